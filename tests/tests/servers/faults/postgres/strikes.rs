//! Everything that may happen to a pipeline on PostgreSQL, one after another, drawn from a seed.

use std::sync::Arc;

use rand::RngExt;
use rowcast_testkit::postgres::PostgresServer;
use rowcast_testkit::proxy::{Direction, Proxy};
use rowcast_testkit::rabbitmq::RabbitServer;
use rowcast_testkit::wait::until_blocking;

use super::super::database::Database;
use super::super::turns::Turns;
use super::super::world::{AGREEMENT, World};
use super::{Load, Postgres};

/// How many kinds of fault there are.
const KINDS: usize = 15;

#[test]
fn a_pipeline_on_postgresql_comes_through_one_fault_after_another() {
    let mut broker = RabbitServer::start().expect("a RabbitMQ server");
    let postgres = Arc::new(Postgres::start(Load::Everything));
    let world = World::on(postgres.clone(), "postgres", &broker.url());
    // An address that stays while servers change.
    let proxy = world.block_on(Proxy::start(postgres.address())).expect("a proxy");
    let url = postgres.server.lock().url_through(proxy.port(), "postgres");
    let mut turns = Turns::begin(world, Some(url));
    for _ in 0..Turns::count(KINDS) {
        match turns.next(KINDS) {
            0 => turns.kill_publisher(),
            1 => cut_connections(&mut turns, &proxy),
            2 => restart(&turns, &postgres, PostgresServer::stop),
            3 => turns.kill_consumer(),
            4 => restart(&turns, &postgres, PostgresServer::kill),
            5 => turns.flush_redis(),
            6 => drop_slot(&turns, &postgres),
            7 => restart(&turns, &postgres, PostgresServer::stop_at_once),
            8 => turns.reorder("users", &["id", "handle", "name", "v"], "users: its mapping"),
            9 => fail_over(&turns, &postgres, &proxy),
            10 => turns.lose_messages(),
            11 => restore(&turns, &postgres),
            12 => turns.roll_redis_back(),
            13 => turns.lose_checkpoint(),
            _ => restart_broker(&turns, &mut broker),
        }
        turns.end();
    }
    turns.judge();
    assert_ne!(postgres.query("SELECT count(*) FROM pgbench_history"), "0", "pgbench has written");
}

/// The publisher's connections are cut after any number of bytes, six times.
fn cut_connections(turns: &mut Turns, proxy: &Proxy) {
    for _ in 0..3 {
        // The server says much more than the publisher does.
        for (direction, bytes) in [(Direction::ToServer, 3_000), (Direction::ToClient, 60_000)] {
            turns.world.writer.wait_for_more(10);
            proxy.cut_after(direction, turns.random.random_range(1..bytes));
            until_blocking("the cut", AGREEMENT, || (!proxy.cut_due(direction)).then_some(())).expect("something goes by");
        }
    }
}

fn restart(turns: &Turns, postgres: &Postgres, stop: fn(&mut PostgresServer) -> anyhow::Result<()>) {
    let mut server = postgres.server.lock();
    stop(&mut server).expect("it stops");
    server.start_again().expect("it starts again");
    drop(server);
    turns.world.writer.wait_for_more(10);
}

fn restart_broker(turns: &Turns, broker: &mut RabbitServer) {
    broker.kill().expect("it is killed");
    // The database goes on meanwhile.
    turns.world.writer.wait_for_more(20);
    let holders = turns.world.holders();
    broker.start_again().expect("it starts again");
    turns.world.wait_until_taken_over(&holders);
}

/// Somebody drops the slot under the publisher.
fn drop_slot(turns: &Turns, postgres: &Postgres) {
    let before = turns.world.lineages();
    let attempt = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active; SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
    // The publisher takes it again as soon as it can.
    until_blocking("the slot to be free for a moment", AGREEMENT, || postgres.server.lock().execute(attempt).ok()).expect("it is dropped");
    turns.world.wait_until_followed(&before);
}

/// The server is lost, and a standby takes its place, which may lack the last commits.
fn fail_over(turns: &Turns, postgres: &Postgres, proxy: &Proxy) {
    let before = turns.world.lineages();
    let standby = postgres.server.lock().start_standby().expect("a standby");
    turns.world.writer.wait_for_more(20);
    turns.world.excuse();
    let mut server = postgres.server.lock();
    server.kill().expect("it is killed");
    standby.promote().expect("it is promoted");
    *server = standby;
    drop(server);
    proxy.redirect(postgres.address());
    turns.world.wait_until_followed(&before);
    turns.world.watch_anew();
}

/// The server's files are replaced by a copy of them, and it is written on.
fn restore(turns: &Turns, postgres: &Postgres) {
    let before = turns.world.lineages();
    let mut server = postgres.server.lock();
    server.stop().expect("it stops");
    let copy = server.cold_copy().expect("a copy");
    server.start_again().expect("it starts again");
    drop(server);
    turns.world.writer.wait_for_more(20);
    // What is lost has been shipped.
    postgres.wait_until_forgotten();
    turns.world.excuse();
    let mut server = postgres.server.lock();
    server.stop().expect("it stops");
    server.restore(&copy).expect("the copy takes the place");
    server.start_again().expect("it starts again");
    drop(server);
    turns.world.wait_until_followed(&before);
    turns.world.watch_anew();
}
