//! Two publishers of one pipeline.

use super::world::{Route, World};

#[test]
fn a_publisher_that_was_frozen_until_it_was_replaced_takes_nothing_back() {
    let server = crate::rabbitmq::shared();
    let world = World::new("frozen-publisher", &server.url(), 0);
    let broker = format!("{}?heartbeat=5", server.url());
    let start = |name| world.half("publish", name, Route { broker: Some(&broker), ..Route::default() });
    let mut first = start("publisher-0");
    first.log().wait_for("publishing");
    let mut second = start("publisher-1");
    second.log().wait_for("standing by");
    let mut consumer = world.consumer("consumer");
    world.wait_until_settled();
    let openings = world.openings();
    for (victim, other) in [(&first, &second), (&second, &first)] {
        world.writer.wait_for_more(50);
        let (publishing, standing_by) = (other.log().count("publishing"), victim.log().count("standing by"));
        victim.freeze();
        other.log().wait_for_more("publishing", publishing);
        world.writer.wait_for_more(50);
        victim.thaw();
        victim.log().wait_for_more("standing by", standing_by);
    }
    world.writer.wait_for_more(50);
    assert_eq!(world.openings(), openings, "nothing was missing");
    world.judge(&mut [&mut first, &mut second, &mut consumer]);
}
