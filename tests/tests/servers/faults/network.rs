//! Connections that are cut in the middle of something, or go dead without a word.

use std::net::SocketAddr;
use std::time::Duration;

use rand::RngExt;
use rowcast_testkit::proxy::{Direction, Proxy};
use rowcast_testkit::wait::until_blocking;

use super::half::Half;
use super::world::{Route, World};

/// How long it may take until enough bytes have gone by.
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn connections_cut_in_the_middle_of_a_publish_and_of_a_block_lose_nothing() {
    cut_and_stall("cut", |world, _, _, [publishing, consuming, writing]| {
        let mut random = world.random();
        for round in 0..3 {
            for proxy in [publishing, writing, consuming] {
                for direction in [Direction::ToServer, Direction::ToClient] {
                    world.writer.wait_for_more(10);
                    // Somewhere in a frame or a command, or in the answer to one.
                    let bytes = if direction == Direction::ToServer { 2_000 } else { 200 };
                    proxy.cut_after(direction, random.random_range(1..bytes * (round + 1)));
                    until_blocking("the cut", DEADLINE, || (!proxy.cut_due(direction)).then_some(())).expect("something goes by");
                }
            }
        }
    });
}

#[test]
fn connections_that_go_dead_without_a_word_lose_nothing() {
    cut_and_stall("dead-line", |world, publisher, consumer, [publishing, consuming, writing]| {
        for (proxy, half) in [(publishing, publisher), (consuming, consumer), (writing, consumer)] {
            world.writer.wait_for_more(20);
            let lost = half.log().count("trying again");
            proxy.stall(Direction::ToServer);
            proxy.stall(Direction::ToClient);
            half.log().wait_for_more("trying again", lost);
            // What was held up arrives, late.
            proxy.resume();
        }
    });
}

/// Runs a world whose halves reach their servers through proxies (publisher → broker, consumer → broker, consumer → cache).
fn cut_and_stall(pipeline: &str, strike: impl Fn(&World, &Half, &Half, [&Proxy; 3])) {
    let server = crate::rabbitmq::shared();
    let world = World::new(pipeline, &server.url(), 0);
    let proxy = |port| world.block_on(Proxy::start(SocketAddr::from(([127, 0, 0, 1], port)))).expect("a proxy");
    let (publishing, consuming, writing) = (proxy(server.port()), proxy(server.port()), proxy(world.redis.port()));
    let broker = |proxy: &Proxy| format!("{}?heartbeat=2", server.url_through(proxy.port()));
    let mut publisher = world.half("publish", "publisher", Route { broker: Some(&broker(&publishing)), ..Route::default() });
    let cache = format!("redis://127.0.0.1:{}/0", writing.port());
    let mut consumer =
        world.half("consume", "consumer", Route { broker: Some(&broker(&consuming)), cache: Some(&cache), ..Route::default() });
    world.wait_until_settled();
    let openings = world.openings();
    strike(&world, &publisher, &consumer, [&publishing, &consuming, &writing]);
    world.writer.wait_for_more(50);
    assert_eq!(world.openings(), openings, "nothing was missing");
    world.judge(&mut [&mut publisher, &mut consumer]);
}
