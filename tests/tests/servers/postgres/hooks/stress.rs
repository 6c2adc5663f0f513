//! Everything at once: writers, commits that hang and hang over, lost connections, publishers that die, a table that is rewritten; and
//! rows read again all the while. Nothing may go back, and in the end all must agree.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rowcast_testkit::postgres::PostgresServer;

use super::super::stress::transactions;
use super::{ROWS, oracle, recorded, table};

/// How many seconds the writers write, unless `ROWCAST_POSTGRES_STRESS` says otherwise.
const SECONDS: u64 = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_together_nothing_goes_back_and_all_agrees_in_the_end() {
    let seconds = std::env::var("ROWCAST_POSTGRES_STRESS").map_or(SECONDS, |seconds| seconds.parse().expect("a number of seconds"));
    let seed = std::env::var("ROWCAST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("ROWCAST_SEED is a number"));
    println!("ROWCAST_SEED={seed}");
    let server = Arc::new(PostgresServer::start().unwrap());
    server.execute(ROWS).unwrap();
    let mut pipeline = recorded(&server, vec![table("t", None)]).await;
    pipeline.start();
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|number| {
            let (server, over) = (Arc::clone(&server), Arc::clone(&over));
            std::thread::spawn(move || {
                let mut random = StdRng::seed_from_u64(seed + number);
                while !over.load(Ordering::Relaxed) {
                    // Two writers may meet in a deadlock.
                    drop(server.execute(&transactions(&mut random)));
                }
            })
        })
        .collect();
    let mut random = StdRng::seed_from_u64(seed);
    let set = |standbys: &str| {
        server.execute(&format!("ALTER SYSTEM SET synchronous_standby_names = '{standbys}'")).unwrap();
        server.execute("SELECT pg_reload_conf()").unwrap();
    };
    let mut prepared = 0;
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        match random.random_range(0..14) {
            // Commits hang until another turn releases them; whatever else happens meets them.
            0..2 => set("absent"),
            2..4 => set(""),
            4..8 => pipeline.resync(&["t"]).await,
            8 => drop(server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'rowcast%' ORDER BY random() LIMIT 1",
            )),
            9 => {
                pipeline.kill_publisher().await;
                pipeline.start_publisher();
            }
            10 => {
                pipeline.stop_publisher().await;
                pipeline.start_publisher();
            }
            11 => {
                drop(server.execute(
                    "SET synchronous_commit = local; SET lock_timeout = '1s'; ALTER TABLE t ALTER COLUMN v TYPE bigint USING v + 0",
                ))
            }
            // A transaction of a small number that commits, or not, after many of larger ones.
            12 => {
                prepared += 1;
                let id = random.random_range(1..=300);
                drop(server.execute(&format!(
                    "SET synchronous_commit = local; SET lock_timeout = '1s'; BEGIN; UPDATE t SET v = nextval('s') WHERE id = {id}; \
                     PREPARE TRANSACTION 'p{prepared}'"
                )));
            }
            _ => finish_prepared(&server, &mut random),
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(20..150))).await;
    }
    over.store(true, Ordering::Relaxed);
    set("");
    // A writer may wait for one of them.
    for _ in 0..100 {
        finish_prepared(&server, &mut random);
    }
    for writer in writers {
        writer.join().unwrap();
    }
    pipeline.agree(&server, &oracle("t")).await;
    pipeline.assert_nothing_went_back();
}

fn finish_prepared(server: &PostgresServer, random: &mut StdRng) {
    let gid = server.execute("SELECT gid FROM pg_prepared_xacts ORDER BY random() LIMIT 1").unwrap();
    if !gid.is_empty() {
        let how = if random.random_bool(0.8) { "COMMIT" } else { "ROLLBACK" };
        drop(server.execute(&format!("SET synchronous_commit = local; {how} PREPARED '{gid}'")));
    }
}
