//! Caches that lose what they held, go back, are full, or do what they were told too late.

use std::time::Duration;

use redis::Commands;
use rowcast_testkit::wait::until_blocking;

use super::world::{PARTITIONS, World};

/// How long a test waits for what it strikes at.
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn a_redis_that_has_lost_everything_is_filled_again() {
    let mut world = World::new("empty", &crate::rabbitmq::shared().url(), 0);
    let mut publisher = world.publisher("publisher");
    let mut consumer = world.consumer("consumer");
    world.wait_until_settled();
    world.writer.wait_for_more(30);

    world.send_redis_back(async |redis| redis.restart_empty().await);
    world.wait_until_said("no checkpoint: every table", 2 * PARTITIONS);
    world.writer.wait_for_more(30);
    world.send_redis_back(async |redis| redis.query::<()>(&["FLUSHALL"]).await);
    world.wait_until_said("no checkpoint: every table", 3 * PARTITIONS);
    world.writer.wait_for_more(30);
    world.judge(&mut [&mut publisher, &mut consumer]);
}

#[test]
fn a_redis_that_went_back_to_an_older_dump_is_brought_forward_again() {
    let mut world = World::new("dump", &crate::rabbitmq::shared().url(), 0);
    let mut publisher = world.publisher("publisher");
    let mut consumer = world.consumer("consumer");
    world.wait_until_settled();
    let dump = world.strike_redis(async |redis| redis.save().await);
    // A block that was acked is not delivered again, and whoever writes a second one has acked the first.
    world.wait_for_blocks(2);

    world.send_redis_back(async |redis| redis.roll_back(&dump).await);
    world.wait_until_said("something before this batch is missing", PARTITIONS);
    world.writer.wait_for_more(30);
    world.judge(&mut [&mut publisher, &mut consumer]);
}

#[test]
fn while_redis_is_full_no_value_is_stale_and_nothing_is_lost() {
    let mut world = World::new("full", &crate::rabbitmq::shared().url(), 0);
    let full = async |redis: &mut rowcast_testkit::redis::RedisServer| redis.set("maxmemory", "1").await;
    let room = async |redis: &mut rowcast_testkit::redis::RedisServer| redis.set("maxmemory", "0").await;
    // Full from the beginning: nothing can be set up, which is waited for.
    world.strike_redis(full);
    let mut publisher = world.publisher("publisher");
    let mut consumer = world.consumer("consumer");
    consumer.log().wait_for("trying again");
    world.strike_redis(room);
    world.wait_until_settled();

    // Full under way, with no more changes than fit one block. A key that cannot become what it should goes, even if its row
    // turns out to be as it was.
    world.writer.wait_for_more(50);
    world.writer.stop();
    world.wait_until_agreed();
    let keys = |world: &World| redis::cmd("DBSIZE").query::<u64>(&mut world.client()).expect("a number");
    let before = keys(&world);
    world.excuse();
    world.strike_redis(full);
    world.write_again(1_000_000);
    world.writer.wait_for_more(20);
    world.writer.stop();
    consumer.log().wait_for("the cache is full");
    world.wait_until_nothing_is_stale();
    assert!(keys(&world) < before, "keys that were to change are gone");
    world.strike_redis(room);
    world.wait_until_agreed();
    world.watch_anew();

    world.write_again(2_000_000);
    world.writer.wait_for_more(30);
    assert_eq!(world.openings().len(), PARTITIONS, "nothing was missing: {:?}", world.openings());
    world.judge(&mut [&mut publisher, &mut consumer]);
}

#[test]
fn a_checkpoint_or_a_seen_log_that_vanishes_costs_a_resync() {
    // Rows enough that a resync lasts.
    let world = World::new("vanished", &crate::rabbitmq::shared().url(), 20_000);
    let mut publisher = world.publisher("publisher");
    let mut consumer = world.consumer("consumer");
    let own = |what: &str| format!("rowcast:{{{}}}:{what}", world.pipeline);

    // The first resync is under way as long as it has a seen log.
    let mut client = world.client();
    let taken = until_blocking("a seen log", DEADLINE, || {
        let logs: Vec<String> = client.keys(own("seen:*")).expect("keys");
        logs.into_iter().find(|log| client.del::<_, u32>(log).expect("it is removed") == 1)
    });
    taken.expect("there is one");
    world.wait_until_said("the cache has lost a seen log", 1);
    world.wait_until_settled();

    let before = world.said("no checkpoint: every table");
    for partition in 1..=2 {
        world.writer.wait_for_more(20);
        world.remove_checkpoint(partition);
        world.wait_until_said("no checkpoint: every table", before + partition);
    }
    world.judge(&mut [&mut publisher, &mut consumer]);
}

#[test]
fn a_block_that_is_executed_after_its_time_out_takes_nothing_back() {
    const TIMED_OUT: &str = "what was sent may yet be executed";
    let mut world = World::new("late", &crate::rabbitmq::shared().url(), 0);
    let mut publisher = world.publisher("publisher");
    let consumer = world.consumer("consumer-1");
    world.wait_until_settled();
    world.redis.pause().expect("Redis stops");
    consumer.log().wait_for(TIMED_OUT);
    world.redis.resume().expect("Redis goes on");
    world.writer.wait_for_more(50);

    // Once more, and this time nobody but the late block can have written.
    world.writer.stop();
    world.wait_until_agreed();
    let timed_out = consumer.log().count(TIMED_OUT);
    // Right after the empty batches with which an idle publisher carries every partition forward; later they might be in the way.
    world.wait_for_blocks(1);
    world.redis.pause().expect("Redis stops");
    let late = "WITH RECURSIVE n(i) AS (SELECT 900000 UNION ALL SELECT i + 1 FROM n WHERE i < 900100) INSERT INTO settings SELECT i, 'late', i FROM n";
    world.execute(late);
    consumer.log().wait_for_more(TIMED_OUT, timed_out);
    consumer.kill();
    world.redis.resume().expect("Redis goes on");
    let mut client = world.client();
    let keys: Vec<String> = (900_000..=900_100).map(|id| format!("setting:{id}")).collect();
    let executed = || (client.exists::<_, u32>(&keys).expect("a number") > 0).then_some(());
    until_blocking("the late block", DEADLINE, executed).expect("it is executed");

    let mut consumer = world.consumer("consumer-2");
    world.write_again(1_000_000);
    world.writer.wait_for_more(50);
    assert_eq!(world.openings().len(), PARTITIONS, "nothing was missing: {:?}", world.openings());
    world.judge(&mut [&mut publisher, &mut consumer]);
}
