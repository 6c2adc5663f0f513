//! Ten tables of every kind, and one fault after another, drawn from a seed.

use std::sync::Arc;

use redis::Commands;

use super::super::turns::Turns;
use super::super::world::{PARTITIONS, World};
use super::{Sqlite, Tables, more};

/// How many kinds of fault there are.
const KINDS: usize = 8;

#[test]
fn ten_tables_of_every_kind_come_through_one_fault_after_another() {
    let sqlite = Arc::new(Sqlite::new(Tables::Ten));
    let world = World::on(sqlite.clone(), "ten", &crate::rabbitmq::shared().url());
    let mut turns = Turns::begin(world, None);
    for _ in 0..Turns::count(KINDS) {
        match turns.next(KINDS) {
            0 => turns.kill_publisher(),
            1 => turns.kill_consumer(),
            2 => sqlite.connect().execute_batch(more::REBUILD).expect("a migration"),
            3 => turns.flush_redis(),
            4 => {
                let fault = turns.number();
                let column = format!("ALTER TABLE \"an \"\"order\"\"\" ADD COLUMN more{fault} TEXT DEFAULT 'of {fault}'; VACUUM");
                sqlite.connect().execute_batch(&column).expect("another column");
            }
            5 => take_up_other_options(&mut turns),
            6 => turns.reorder("names", &["id", "active", "name", "v"], "resync of names: its mapping"),
            _ => turns.lose_checkpoint(),
        }
        turns.end();
    }
    turns.judge();
}

/// Every kind of option changes for a while, and everything comes back as it was.
fn take_up_other_options(turns: &mut Turns) {
    const CHANGED: &str = "resync of an \"order\", items, names, settings, tags: its mapping";
    const TREE_BACK: &str = "resync of an \"order\", items, names, settings, tags, tree: its mapping";
    let configuration = turns.configuration();
    let other = more::OTHER_OPTIONS.iter().fold(configuration.clone(), |text, (from, to)| {
        assert!(text.contains(from), "{from} is in the configuration");
        text.replace(from, to)
    });
    // Rows come back as they were, which nothing else may do.
    turns.world.excuse();
    let (changed, back) = (turns.world.said(CHANGED), turns.world.said(TREE_BACK));
    turns.let_publisher_leave();
    turns.start_publisher("publisher-other", &other);
    let world = &turns.world;
    world.wait_until_said(CHANGED, changed + PARTITIONS);
    world.wait_until_settled();
    for prefix in ["tree:", "item:", "order:"] {
        assert_eq!(keys(world, prefix), [""; 0], "of what is not cached any more, is evicted or has other keys nothing is left");
    }
    assert!(!keys(world, "setting:").is_empty(), "what stands there is refreshed");
    assert!(keys(world, "tag:").iter().all(|key| world.left_ms(key) < 0), "what has lost its time to live stays");

    turns.let_publisher_leave();
    turns.start_publisher("publisher", &configuration);
    let world = &turns.world;
    world.wait_until_said(TREE_BACK, back + PARTITIONS);
    world.wait_until_settled();
    assert_eq!(keys(world, "o:"), [""; 0]);
    let tags = keys(world, "tag:");
    assert!(!tags.is_empty() && tags.iter().all(|key| world.left_ms(key) != -1), "what has a time to live goes by itself");
    world.watch_anew();
}

fn keys(world: &World, prefix: &str) -> Vec<String> {
    world.client().keys(format!("{prefix}*")).expect("keys")
}
