//! Consumers that die, freeze and leave.

use super::world::World;

#[test]
fn killed_publishers_and_consumers_leave_nothing_lost_and_nothing_stale() {
    let world = World::new("kills", &crate::rabbitmq::shared().url(), 0);
    let mut publisher = world.publisher("publisher-0");
    let mut consumer = world.consumer("consumer-0");
    world.wait_until_settled();
    for kill in 1..=4 {
        world.writer.wait_for_more(rand::random_range(1..80));
        publisher.kill();
        publisher = world.publisher(&format!("publisher-{kill}"));
        world.writer.wait_for_more(rand::random_range(1..80));
        consumer.kill();
        consumer = world.consumer(&format!("consumer-{kill}"));
    }
    world.writer.wait_for_more(50);
    // Each came back where the last one was: nothing was missing.
    let openings = world.openings();
    assert_eq!(openings.len(), super::world::PARTITIONS, "only the first start resyncs: {openings:?}");
    world.judge(&mut [&mut publisher, &mut consumer]);
}
