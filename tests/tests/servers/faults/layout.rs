//! Numbers of partitions that change while a consumer of the old number still runs.

use std::time::Duration;

use redis::Commands;
use rowcast_testkit::wait::until_blocking;

use super::world::{PARTITIONS, World};

/// How long the queues of the old number may stand.
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn a_consumer_of_the_old_number_of_partitions_yields_and_nothing_goes_back() {
    let world = World::new("layout", &crate::rabbitmq::shared().url(), 0);
    let publisher = world.publisher("publisher-4");
    let old = world.consumer("consumer-4");
    world.wait_until_settled();
    world.writer.wait_for_more(30);

    let two = world.configuration().replace(&format!("partitions = {PARTITIONS}"), "partitions = 2");
    assert_ne!(two, world.configuration());
    publisher.leave();
    let publisher = world.half_configured("publish", "publisher-2", &two);
    let consumer = world.half_configured("consume", "consumer-2", &two);
    let said = old.fails();
    assert!(said.contains("now has 2 partitions and this consumer was started with 4"), "{said}");
    let layout: String = world.client().get(format!("rowcast:{{{}}}:layout", world.pipeline)).expect("the layout");
    assert_eq!(layout, "2");
    until_blocking("the old queues to go", DEADLINE, || {
        let queues = crate::rabbitmq::shared().control(&["list_queues", "name"]).ok()?;
        (!queues.lines().any(|name| name.starts_with("rowcast.layout.") && name.ends_with("of4"))).then_some(())
    })
    .expect("nobody makes them again");
    world.wait_until_said("resync complete", PARTITIONS + 2);
    world.writer.wait_for_more(30);

    // And back, the publisher last this time.
    let mut new = world.consumer("consumer-4-again");
    let said = consumer.fails();
    assert!(said.contains("now has 4 partitions and this consumer was started with 2"), "{said}");
    publisher.leave();
    let mut publisher = world.publisher("publisher-4-again");
    world.writer.wait_for_more(30);
    world.judge(&mut [&mut publisher, &mut new]);
}
