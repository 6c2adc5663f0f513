//! A consumer that is far behind while a resync is open.

use std::time::{Duration, Instant};

use lapin::options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use rowcast::batch::Batch;
use rowcast::change::Partition;

use super::world::{PARTITIONS, World};

/// How long the consumer is kept back: several times as long as it waits before it asks for chunks again.
const HELD_BACK: Duration = Duration::from_secs(14);

#[test]
fn a_consumer_that_is_far_behind_is_not_flooded_with_chunks() {
    const ROWS: u32 = 6_000;
    let world = World::new("backlog", &crate::rabbitmq::shared().url(), ROWS);
    let mut publisher = world.publisher("publisher");
    let consumer = world.consumer("consumer-0");
    world.wait_until_settled();
    consumer.leave();
    let (connection, channel) = world.channel();
    let number = |number: usize| format!("{number}of{PARTITIONS}");
    // A stranger sees every message.
    let stranger = world.queue("stranger");
    world.block_on(async {
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(stranger.clone().into(), options, FieldTable::default()).await.expect("a stranger's queue");
        for partition in (1..=PARTITIONS).map(number) {
            let (exchange, options) = (format!("rowcast.{}", world.pipeline), QueueBindOptions::default());
            channel
                .queue_bind(stranger.clone().into(), exchange.into(), partition.into(), options, FieldTable::default())
                .await
                .expect("a binding");
        }
    });
    // A gap, which opens a resync of everything at the head of a long queue.
    world.writer.wait_for_more(50);
    for partition in (1..=PARTITIONS).map(number) {
        world.block_on(channel.queue_purge(world.queue(&partition).into(), QueuePurgeOptions::default())).expect("a purge");
    }
    for round in 1..=10 {
        world.execute(&format!("UPDATE lines SET words = '{round:03}' || substr(words, 4) WHERE shop = 'archive'"));
        // Each is shipped before the next, which would take its place otherwise.
        world.wait_until_forgotten();
    }
    let mut consumer = world.consumer("consumer-1");
    consumer.log().wait_for("something before this batch is missing");
    // Redis lets through what waits, now and then, and nothing else.
    let mut client = world.client();
    let mut tell = |words: &[&str]| redis::cmd("CLIENT").arg(words).exec(&mut client).expect("a pause");
    let begun = Instant::now();
    tell(&["PAUSE", "60000", "WRITE"]);
    while begun.elapsed() < HELD_BACK {
        std::thread::sleep(Duration::from_secs(1));
        tell(&["UNPAUSE"]);
        tell(&["PAUSE", "60000", "WRITE"]);
    }
    assert!(world.unanswered() > 0, "it has worked through the queue before it was to be judged");
    tell(&["UNPAUSE"]);
    world.wait_until_settled();
    let mut chunks = 0;
    let mut needed = std::collections::HashSet::new();
    world.block_on(async {
        while let Some(message) = channel.basic_get(stranger.clone().into(), BasicGetOptions { no_ack: true }).await.expect("a message") {
            let partition: Partition = message.routing_key.as_str().parse().expect("a partition");
            let body = match message.properties.content_encoding() {
                Some(_) => zstd::decode_all(&message.data[..]).expect("zstd"),
                None => message.data.clone(),
            };
            if let Some(chunk) = Batch::decode(&body, partition).expect("a batch").chunk {
                chunks += 1;
                needed.insert((partition, chunk.table, chunk.after));
            }
        }
    });
    let needed = needed.len();
    assert!(needed > 2 * PARTITIONS, "the resync was a long one: {needed}");
    assert!(chunks <= 2 * needed, "{chunks} chunks were sent where {needed} were needed");
    drop(connection);
    world.judge(&mut [&mut publisher, &mut consumer]);
}
