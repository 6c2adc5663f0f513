//! Ten tables of every kind, and one fault after another, drawn from a seed.

use rand::RngExt;
use redis::Commands;

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
                // One of the tables is not cached for a while, and all of its keys go.
                let without = configuration.replace("\n[[table]]\nname = \"tree\"\n", "");
                assert_ne!(without, configuration);
                // Rows come back as they were, which nothing else may do.
                world.excuse();
                publisher.leave();
                let other = world.half_configured("publish", &format!("publisher-{fault}-without"), &without);
                let gone = || world.client().keys::<_, Vec<String>>("tree:*").expect("keys").is_empty().then_some(());
                rowcast_testkit::wait::until_blocking("the table's keys to go", std::time::Duration::from_secs(40), gone).expect("they go");
                world.wait_until_settled();
                let resyncs = world.said("resync of tree");
                other.leave();
                publisher = world.half_configured("publish", &format!("publisher-{fault}"), &configuration);
                world.wait_until_said("resync of tree", resyncs + PARTITIONS);
                world.wait_until_settled();
                world.watch_anew();
            }
            6 => {
                // Another order of columns, and back.
                let mut columns = ["\"id\"", "\"active\"", "\"name\"", "\"v\""];
                columns.rotate_left(random.random_range(1..4));
                let changed =
                    configuration.replace("name = \"names\"\n", &format!("name = \"names\"\ncolumns = [{}]\n", columns.join(", ")));
                publisher.leave();
                let other = world.half_configured("publish", &format!("publisher-{fault}-changed"), &changed);
                world.writer.wait_for_more(20);
                other.leave();
                publisher = world.half_configured("publish", &format!("publisher-{fault}"), &configuration);
            }
            _ => {
                let mut client = world.client();
                let partition = random.random_range(1..=PARTITIONS);
                let key = format!("rowcast:{{{}}}:checkpoint:{partition}of{PARTITIONS}", world.pipeline);
                let lost = world.said("no checkpoint: every table");
                assert_eq!(client.del::<_, u32>(key).expect("it is removed"), 1);
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
