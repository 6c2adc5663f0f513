//! Everything at once: writers, commits that hang, lost connections, publishers that die, a table that is rewritten and one that leaves the
//! publication; and rows read again all the while. Nothing may go back, and in the end all must agree.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rowcast::mapping::TableSettings;
use rowcast_testkit::postgres::PostgresServer;

use super::Pipeline;
use super::pipeline::{oracle, table};

/// How many seconds the writers write, unless `ROWCAST_POSTGRES_STRESS` says otherwise.
const SECONDS: u64 = 10;

const ROWS: u32 = 300;

/// One whose rows come and go with their filter and have a column that is computed, between two plain ones.
const TABLES: [&str; 3] = ["t", "u", "w"];
const FILTER: &str = "v % 3 <> 0";

/// Twenty transactions of one to four statements.
pub fn transactions(random: &mut StdRng) -> String {
    let mut sql = String::new();
    for _ in 0..20 {
        sql.push_str("BEGIN;");
        for _ in 0..random.random_range(1..5) {
            let id = random.random_range(1..=ROWS);
            let t = TABLES[random.random_range(0..TABLES.len())];
            let statement = match random.random_range(0..10) {
                0 => format!("DELETE FROM {t} WHERE id = {id};"),
                1 => format!("SAVEPOINT s; UPDATE {t} SET v = nextval('s') WHERE id = {id}; ROLLBACK TO s;"),
                2 => format!("UPDATE {t} SET v = nextval('s') WHERE id BETWEEN {id} AND {id} + 3;"),
                3..6 => format!("INSERT INTO {t} (id, v) VALUES ({id}, nextval('s')) ON CONFLICT (id) DO UPDATE SET v = nextval('s');"),
                _ => format!("UPDATE {t} SET v = nextval('s') WHERE id = {id};"),
            };
            sql.push_str(&statement);
        }
        sql.push_str(if random.random_bool(0.1) { "ROLLBACK;" } else { "COMMIT;" });
    }
    sql
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_together_nothing_goes_back_and_all_agrees_in_the_end() {
    let seconds = std::env::var("ROWCAST_POSTGRES_STRESS").map_or(SECONDS, |seconds| seconds.parse().expect("a number of seconds"));
    let seed = std::env::var("ROWCAST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("ROWCAST_SEED is a number"));
    println!("ROWCAST_SEED={seed}");
    let server = Arc::new(PostgresServer::start().unwrap());
    server
        .execute(&format!(
            "CREATE SEQUENCE s; CREATE TABLE t(id int PRIMARY KEY, v bigint NOT NULL); CREATE TABLE w(LIKE t INCLUDING ALL);
             CREATE TABLE u(LIKE t INCLUDING ALL, twice bigint GENERATED ALWAYS AS (v * 2) STORED);
             INSERT INTO t SELECT i, nextval('s') FROM generate_series(1, {ROWS}) i; INSERT INTO u SELECT * FROM t; INSERT INTO w SELECT * FROM t"
        ))
        .unwrap();
    let filtered = TableSettings { filter: Some(FILTER.to_owned()), ..table("u", None) };
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None), filtered, table("w", None)]).await;
    pipeline.start();
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..2)
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
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        match random.random_range(0..12) {
            // Commits hang until another turn releases them; whatever else happens meets them.
            0..2 => set("absent"),
            2..4 => set(""),
            4..8 => pipeline.resync(&TABLES[random.random_range(0..TABLES.len())..]).await,
            8 => drop(server.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")),
            9 => {
                pipeline.kill_publisher().await;
                pipeline.start_publisher();
            }
            10 => {
                drop(server.execute(
                    "SET synchronous_commit = local; SET lock_timeout = '1s'; ALTER TABLE t ALTER COLUMN v TYPE bigint USING v + 0",
                ))
            }
            _ => drop(server.execute("SET synchronous_commit = local; ALTER PUBLICATION rowcast_shop DROP TABLE u")),
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(20..200))).await;
    }
    over.store(true, Ordering::Relaxed);
    set("");
    for writer in writers {
        writer.join().unwrap();
    }
    let wanted = format!("{} UNION ALL {} WHERE {FILTER} UNION ALL {}", oracle("t"), oracle("u"), oracle("w"));
    pipeline.agree(&server, &wanted).await;
    pipeline.assert_nothing_went_back();
}
