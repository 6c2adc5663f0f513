//! Consumers that die, freeze and leave.

use rand::RngExt;
use rowcast_testkit::proxy::{Direction, Proxy};

use super::world::{PARTITIONS, Route, World};

#[test]
fn killed_publishers_and_consumers_lose_nothing() {
    let world = World::new("kills", &crate::rabbitmq::shared().url(), 0);
    let mut publisher = world.publisher("publisher-0");
    let mut consumer = world.consumer("consumer-0");
    world.wait_until_settled();
    let mut random = world.random();
    for kill in 1..=4 {
        world.writer.wait_for_more(random.random_range(1..80));
        publisher.kill();
        publisher = world.publisher(&format!("publisher-{kill}"));
        world.writer.wait_for_more(random.random_range(1..80));
        let holders = world.holders();
        consumer.kill();
        consumer = world.consumer(&format!("consumer-{kill}"));
        world.wait_until_taken_over(&holders);
    }
    world.writer.wait_for_more(50);
    // Each came back where the last one was: nothing was missing.
    let openings = world.openings();
    assert_eq!(openings.len(), PARTITIONS, "only the first start resyncs: {openings:?}");
    world.judge(&mut [&mut publisher, &mut consumer]);
}

#[test]
fn a_consumer_that_was_frozen_until_it_was_overtaken_takes_nothing_back() {
    let server = crate::rabbitmq::shared();
    let world = World::new("frozen-consumer", &server.url(), 0);
    let redis = std::net::SocketAddr::from(([127, 0, 0, 1], world.redis.port()));
    let proxies = [0, 1].map(|_| world.block_on(Proxy::start(redis)).expect("a proxy"));
    let broker = format!("{}?heartbeat=5", server.url());
    let start = |index: usize| {
        let cache = format!("redis://127.0.0.1:{}/0", proxies[index].port());
        world.half("consume", &format!("consumer-{index}"), Route { broker: Some(&broker), cache: Some(&cache), ..Route::default() })
    };
    let mut publisher = world.publisher("publisher");
    let mut first = start(0);
    world.wait_until_settled();
    let mut second = start(1);
    let openings = world.openings();
    for (proxy, victim) in [(&proxies[0], &first), (&proxies[1], &second)] {
        world.writer.wait_for_more(50);
        let holders = world.holders();
        // Its next blocks are on their way and do not arrive before it is overtaken.
        let (arrived, lost) = (proxy.forwarded(Direction::ToServer), victim.log().count("trying again"));
        proxy.stall(Direction::ToServer);
        world.writer.wait_for_more(200);
        victim.freeze();
        world.wait_until_taken_over(&holders);
        world.writer.wait_for_more(50);
        proxy.resume();
        world.wait_until_forwarded(proxy, Direction::ToServer, arrived);
        world.writer.wait_for_more(50);
        victim.thaw();
        victim.log().wait_for_more("trying again", lost);
    }
    world.writer.wait_for_more(50);
    assert_eq!(world.openings(), openings, "nothing was missing");
    world.judge(&mut [&mut publisher, &mut first, &mut second]);
}

#[test]
fn a_consumer_that_leaves_in_order_leaves_no_gap() {
    let server = crate::rabbitmq::shared();
    let world = World::new("orderly", &server.url(), 0);
    let mut publisher = world.publisher("publisher");
    let mut active = world.consumer("consumer-0");
    world.wait_until_settled();
    let openings = world.openings();
    for number in 1..=3 {
        let standby = world.consumer(&format!("consumer-{number}"));
        world.wait_until_consumers(server, 2);
        world.writer.wait_for_more(60);
        let holders = world.holders();
        active.leave();
        world.wait_until_taken_over(&holders);
        active = standby;
    }
    world.writer.wait_for_more(50);
    assert_eq!(world.openings(), openings, "nothing was missing");
    assert_eq!(world.said("resync of"), 0, "no single table was resynced either");
    world.judge(&mut [&mut publisher, &mut active]);
}
