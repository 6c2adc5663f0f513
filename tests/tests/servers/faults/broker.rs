//! A broker that restarts, and queues that somebody empties or deletes.

use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use rowcast_testkit::rabbitmq::RabbitServer;

use super::world::{PARTITIONS, World};

/// What a consumer says of a gap.
const GAP: &str = "something before this batch is missing";

#[test]
fn a_broker_that_restarts_loses_nothing() {
    let mut server = RabbitServer::start().expect("a RabbitMQ server");
    let world = World::new("restart", &server.url(), 0);
    let mut publisher = world.publisher("publisher");
    let mut consumer = world.consumer("consumer");
    world.wait_until_settled();
    let openings = world.openings();
    for strike in [RabbitServer::stop, RabbitServer::kill] {
        world.writer.wait_for_more(100);
        let (sent, received) = (publisher.log().count("trying again"), consumer.log().count("trying again"));
        strike(&mut server).expect("it stops");
        publisher.log().wait_for_more("trying again", sent);
        consumer.log().wait_for_more("trying again", received);
        world.writer.wait_for_more(100);
        let holders = world.holders();
        server.start_again().expect("it starts again");
        world.wait_until_taken_over(&holders);
    }
    world.writer.wait_for_more(50);
    assert_eq!(world.openings(), openings, "what was confirmed is there, what was not is sent again");
    world.judge(&mut [&mut publisher, &mut consumer]);
}

#[test]
fn queues_that_are_purged_are_made_up_for() {
    let world = World::new("purged", &crate::rabbitmq::shared().url(), 0);
    let mut publisher = world.publisher("publisher");
    let consumer = world.consumer("consumer-0");
    world.wait_until_settled();
    let (connection, channel) = world.channel();
    let purge = || {
        let purge = |number| {
            let queue = world.queue(&format!("{number}of{PARTITIONS}"));
            world.block_on(channel.queue_purge(queue.into(), QueuePurgeOptions::default())).expect("a purge")
        };
        (1..=PARTITIONS).map(purge).collect::<Vec<_>>()
    };
    // Under way: whatever happens to wait.
    for _ in 0..10 {
        world.writer.wait_for_more(10);
        purge();
    }
    // Nobody receives, and the source has forgotten what it was told has arrived: there is something to lose.
    consumer.leave();
    world.writer.wait_for_more(100);
    world.wait_until_forgotten();
    let lost = purge();
    assert!(lost.iter().all(|messages| *messages > 0), "every queue held something: {lost:?}");
    world.plant_orphan();
    let gaps = world.said(GAP);
    let mut consumer = world.consumer("consumer-1");
    world.writer.wait_for_more(50);
    world.wait_until_said(GAP, gaps + PARTITIONS);
    consumer.log().wait_for_more("resync complete", PARTITIONS - 1);
    drop(connection);
    world.judge(&mut [&mut publisher, &mut consumer]);
}

#[test]
fn a_queue_that_is_deleted_is_made_up_for_even_if_a_stranger_takes_its_messages() {
    let world = World::new("deleted", &crate::rabbitmq::shared().url(), 0);
    let mut publisher = world.publisher("publisher");
    let consumer = world.consumer("consumer-0");
    world.wait_until_settled();
    let (connection, channel) = world.channel();
    let queue = |number| world.queue(&format!("{number}of{PARTITIONS}"));
    let delete =
        |number: usize| world.block_on(channel.queue_delete(queue(number).into(), QueueDeleteOptions::default())).expect("it is deleted");
    // Under way, both sides at work.
    world.writer.wait_for_more(50);
    let received = consumer.log().count("trying again");
    delete(1);
    consumer.log().wait_for_more("trying again", received);
    world.writer.wait_for_more(50);
    // A stranger's queue is bound to every key: the broker returns nothing, so the publisher has to look.
    let stranger = world.queue("stranger");
    world.block_on(async {
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(stranger.clone().into(), options, FieldTable::default()).await.expect("a stranger's queue");
        for number in 1..=PARTITIONS {
            let (exchange, key) = (format!("rowcast.{}", world.pipeline), format!("{number}of{PARTITIONS}"));
            let options = QueueBindOptions::default();
            channel
                .queue_bind(stranger.clone().into(), exchange.into(), key.into(), options, FieldTable::default())
                .await
                .expect("a binding");
        }
    });
    consumer.leave();
    world.writer.wait_for_more(50);
    world.wait_until_forgotten();
    let sent = publisher.log().count("trying again");
    let lost: Vec<u32> = [1, 2].map(delete).into();
    assert!(lost.iter().all(|messages| *messages > 0), "both queues held something: {lost:?}");
    publisher.log().wait_for_more("trying again", sent);
    world.writer.wait_for_more(50);
    let gaps = world.said(GAP);
    let mut consumer = world.consumer("consumer-1");
    world.writer.wait_for_more(50);
    // Both partitions have one.
    world.wait_until_said(GAP, gaps + 2);
    consumer.log().wait_for_more("resync complete", 1);
    drop(connection);
    world.judge(&mut [&mut publisher, &mut consumer]);
}
