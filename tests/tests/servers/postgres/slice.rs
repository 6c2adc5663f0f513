//! The smallest whole: existing rows, every kind of change, a restart.

use rowcast_testkit::postgres::PostgresServer;

use super::Pipeline;
use super::pipeline::{oracle, table};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_from_before_and_every_change_come_to_the_cache_and_a_restart_loses_nothing() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE TABLE users(id bigint PRIMARY KEY, name text, balance numeric, at timestamptz);
             INSERT INTO users SELECT i, 'name ' || i, i / 7.0, '2026-01-01'::timestamptz + i * interval '1 minute' FROM generate_series(1, 5000) i",
        )
        .unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("users", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("users")).await;
    let lineage = pipeline.lineage();

    server
        .execute(
            "INSERT INTO users SELECT i, 'new ' || i, NULL, NULL FROM generate_series(5001, 5100) i;
             UPDATE users SET name = name || '!' WHERE id % 3 = 0;
             DELETE FROM users WHERE id % 10 = 0;
             UPDATE users SET id = id + 100000 WHERE id % 11 = 0",
        )
        .unwrap();
    pipeline.agree(&server, &oracle("users")).await;

    pipeline.stop_publisher().await;
    server.execute("UPDATE users SET name = 'while nobody looked' WHERE id < 100; DELETE FROM users WHERE id = 1").unwrap();
    pipeline.start_publisher();
    pipeline.agree(&server, &oracle("users")).await;
    assert_eq!(pipeline.lineage(), lineage, "it is the same history");

    pipeline.kill_publisher().await;
    server.execute("UPDATE users SET name = 'while nobody looked again' WHERE id < 200").unwrap();
    pipeline.start_publisher();
    pipeline.agree(&server, &oracle("users")).await;
    assert_eq!(pipeline.lineage(), lineage, "it is the same history");
}
