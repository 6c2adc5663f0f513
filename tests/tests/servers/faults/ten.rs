//! Ten tables of every kind, and one fault after another, drawn from a seed.

use rand::RngExt;
use redis::Commands;

use super::half::Half;
use super::more;
use super::schema::Tables;
use super::world::{PARTITIONS, World};
use super::writer;

/// How many faults there are where the environment does not say (`ROWCAST_FAULTS`). The first ones are one of every kind.
const FAULTS: usize = 8;

#[test]
fn ten_tables_of_every_kind_come_through_one_fault_after_another() {
    let faults = std::env::var("ROWCAST_FAULTS").map_or(FAULTS, |faults| faults.parse().expect("ROWCAST_FAULTS is a number"));
    let mut world = World::of(Tables::Ten, "ten", &crate::rabbitmq::shared().url(), 0);
    let mut random = world.random();
    let configuration = world.configuration();
    let mut publisher = world.publisher("publisher-0");
    let mut consumer = world.consumer("consumer-0");
    world.wait_until_settled();
    for fault in 1..=faults {
        world.writer.wait_for_more(random.random_range(20..60));
        let database = writer::connect(&world.database());
        let kind = if fault <= FAULTS { fault - 1 } else { random.random_range(0..FAULTS) };
        match kind {
            0 => {
                publisher.kill();
                publisher = world.half_configured("publish", &format!("publisher-{fault}"), &configuration);
            }
            1 => {
                let holders = world.holders();
                consumer.kill();
                consumer = world.consumer(&format!("consumer-{fault}"));
                world.wait_until_taken_over(&holders);
            }
            2 => database.execute_batch(more::REBUILD).expect("a migration"),
            3 => {
                let gone = world.said("no checkpoint: every table");
                world.send_redis_back(async |redis| redis.query::<()>(&["FLUSHALL"]).await);
                world.wait_until_said("no checkpoint: every table", gone + PARTITIONS);
            }
            4 => {
                let column = format!("ALTER TABLE \"an \"\"order\"\"\" ADD COLUMN more{fault} TEXT DEFAULT 'of {fault}'; VACUUM");
                database.execute_batch(&column).expect("another column");
            }
            5 => {
                publisher = other_options(&world, publisher, fault);
            }
            6 => {
                // Another order of columns, and back.
                let mut columns = ["\"id\"", "\"active\"", "\"name\"", "\"v\""];
                columns.rotate_left(random.random_range(1..4));
                let changed =
                    configuration.replace("name = \"names\"\n", &format!("name = \"names\"\ncolumns = [{}]\n", columns.join(", ")));
                let resyncs = world.said("resync of names: its mapping");
                publisher.leave();
                let other = world.half_configured("publish", &format!("publisher-{fault}-changed"), &changed);
                world.wait_until_said("resync of names: its mapping", resyncs + PARTITIONS);
                other.leave();
                publisher = world.half_configured("publish", &format!("publisher-{fault}"), &configuration);
            }
            _ => {
                let lost = world.said("no checkpoint: every table");
                world.remove_checkpoint(random.random_range(1..=PARTITIONS));
                world.wait_until_said("no checkpoint: every table", lost + 1);
            }
        }
        if random.random_bool(0.5) {
            world.wait_until_settled();
        }
    }
    world.writer.wait_for_more(50);
    world.judge(&mut [&mut publisher, &mut consumer]);
}

/// Every kind of option changes for a while, and everything comes back as it was.
fn other_options(world: &World, publisher: Half, fault: usize) -> Half {
    const CHANGED: &str = "resync of an \"order\", items, names, settings, tags: its mapping";
    const TREE_BACK: &str = "resync of an \"order\", items, names, settings, tags, tree: its mapping";
    let configuration = world.configuration();
    let other = more::OTHER_OPTIONS.iter().fold(configuration.clone(), |text, (from, to)| {
        assert!(text.contains(from), "{from} is in the configuration");
        text.replace(from, to)
    });
    // Rows come back as they were, which nothing else may do.
    world.excuse();
    let (changed, back) = (world.said(CHANGED), world.said(TREE_BACK));
    publisher.leave();
    let publisher = world.half_configured("publish", &format!("publisher-{fault}-other"), &other);
    world.wait_until_said(CHANGED, changed + PARTITIONS);
    world.wait_until_settled();
    for prefix in ["tree:", "item:", "order:"] {
        assert_eq!(keys(world, prefix), [""; 0], "of what is not cached any more, is evicted or has other keys nothing is left");
    }
    assert!(!keys(world, "setting:").is_empty(), "what stands there is refreshed");
    assert!(keys(world, "tag:").iter().all(|key| world.left_ms(key) < 0), "what has lost its time to live stays");

    publisher.leave();
    let publisher = world.half_configured("publish", &format!("publisher-{fault}"), &configuration);
    world.wait_until_said(TREE_BACK, back + PARTITIONS);
    world.wait_until_settled();
    assert_eq!(keys(world, "o:"), [""; 0]);
    let tags = keys(world, "tag:");
    assert!(!tags.is_empty() && tags.iter().all(|key| world.left_ms(key) != -1), "what has a time to live goes by itself");
    world.watch_anew();
    publisher
}

fn keys(world: &World, prefix: &str) -> Vec<String> {
    world.client().keys(format!("{prefix}*")).expect("keys")
}
