//! Slots that are gone, servers that went back in time, and others that took their place.

use rowcast::source::postgres;
use rowcast_testkit::postgres::{PostgresOptions, PostgresServer};
use rowcast_testkit::wait::until;

use super::Pipeline;
use super::pipeline::{DEADLINE, oracle, table};

const ROWS: &str = "CREATE TABLE t(id int PRIMARY KEY, v int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 100) i";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_installation_the_publisher_says_what_to_run() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let mut pipeline = Pipeline::new(&server.url(), vec![table("t", None)]);
    pipeline.start();
    let error = pipeline.publisher_error().await;
    assert!(error.contains("run `rowcast install`"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_was_dropped_or_that_lost_its_log_is_made_anew_and_every_row_read() {
    let options = PostgresOptions {
        settings: &[("max_slot_wal_keep_size", "1MB"), ("min_wal_size", "32MB"), ("max_wal_size", "32MB")],
        ..Default::default()
    };
    let server = PostgresServer::start_with(&options).unwrap();
    server.execute(ROWS).unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    let first = pipeline.lineage();

    pipeline.stop_publisher().await;
    server.execute("SELECT pg_drop_replication_slot('rowcast_shop'); UPDATE t SET v = 1; DELETE FROM t WHERE id = 1").unwrap();
    pipeline.start_publisher();
    pipeline.agree(&server, &oracle("t")).await;
    let second = pipeline.lineage();
    assert_ne!(first, second);

    pipeline.stop_publisher().await;
    server.execute("UPDATE t SET v = 2; DELETE FROM t WHERE id = 2").unwrap();
    until("the slot to lose its log", DEADLINE, async || {
        server
            .execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000)) FROM generate_series(1, 20); SELECT pg_switch_wal()")
            .unwrap();
        server.execute("CHECKPOINT").unwrap();
        (server.execute("SELECT wal_status FROM pg_replication_slots").unwrap() == "lost").then_some(())
    })
    .await
    .unwrap();
    let found = postgres::check(&pipeline.settings).await;
    assert!(found.iter().any(|finding| finding.message.contains("thrown away the log")), "{found:?}");
    pipeline.start_publisher();
    pipeline.agree(&server, &oracle("t")).await;
    assert_ne!(second, pipeline.lineage());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_copy_that_was_put_back_and_written_on_is_another_history() {
    let mut server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    pipeline.stop_publisher().await;
    server.stop().unwrap();
    let copy = server.cold_copy().unwrap();
    server.start_again().unwrap();

    pipeline.start_publisher();
    server.execute("UPDATE t SET v = 1 WHERE id <= 50; INSERT INTO t VALUES (200, 1)").unwrap();
    pipeline.agree(&server, &oracle("t")).await;
    let lineage = pipeline.lineage();
    pipeline.pass(&server, 3).await;
    pipeline.stop_publisher().await;

    server.stop().unwrap();
    server.restore(&copy).unwrap();
    server.start_again().unwrap();
    // The same identity, slot, positions and numbers; other contents.
    server.execute("UPDATE t SET v = 2 WHERE id > 50; INSERT INTO t VALUES (300, 2)").unwrap();
    pipeline.start_publisher();
    pipeline.agree(&server, &oracle("t")).await;
    assert_ne!(lineage, pipeline.lineage());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_was_promoted_is_another_history() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    let lineage = pipeline.lineage();
    let standby = server.start_standby().unwrap();
    server.execute("UPDATE t SET v = 1 WHERE id = 1").unwrap();
    pipeline.agree(&server, &oracle("t")).await;
    until("the standby to have it", DEADLINE, async || (standby.execute("SELECT v FROM t WHERE id = 1").unwrap() == "1").then_some(()))
        .await
        .unwrap();
    pipeline.stop_publisher().await;
    drop(server);
    standby.promote().unwrap();
    standby.execute("DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (500, 5)").unwrap();
    pipeline.settings.server = postgres::Server::parse(&standby.url()).unwrap();
    pipeline.start_publisher();
    pipeline.agree(&standby, &oracle("t")).await;
    assert_ne!(lineage, pipeline.lineage());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_or_restarted_is_followed_on_without_a_resync() {
    let mut server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    let lineage = pipeline.lineage();
    for round in 1..=2 {
        server.execute(&format!("UPDATE t SET v = {round} WHERE id <= 50")).unwrap();
        if round == 1 {
            server.restart().unwrap()
        } else {
            server.kill().unwrap();
            server.start_again().unwrap();
        }
        server.execute(&format!("UPDATE t SET v = {round} WHERE id > 50")).unwrap();
        pipeline.agree(&server, &oracle("t")).await;
        assert_eq!(lineage, pipeline.lineage(), "{round}");
    }
    pipeline.assert_nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_moves_on_while_only_other_tables_are_written() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    server.execute("CREATE TABLE other(body text)").unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    server.execute("INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 2000)").unwrap();
    let target = server.execute("SELECT pg_current_wal_lsn() - '0/0'").unwrap();
    until("the slot to move on", DEADLINE, async || {
        // Less than what is worth a message may lie behind it.
        let sql = format!("SELECT confirmed_flush_lsn - '0/0' >= {target} - 100000 FROM pg_replication_slots");
        (server.execute(&sql).unwrap() == "t").then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_takes_nothing_or_cuts_connections_in_the_middle_of_a_huge_transaction_loses_nothing() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    let lineage = pipeline.lineage();
    pipeline.broker.block(true);
    server.execute("INSERT INTO t SELECT i, 1 FROM generate_series(1000, 40000) i").unwrap();
    // A publisher gives up its read after a second; the stream goes on where it was.
    let blocked = std::time::Instant::now();
    until("more than a second to pass", DEADLINE, async || (blocked.elapsed() > std::time::Duration::from_millis(1500)).then_some(()))
        .await
        .unwrap();
    pipeline.broker.block(false);
    pipeline.agree(&server, &oracle("t")).await;
    server.execute("UPDATE t SET v = 2").unwrap();
    pipeline.holds("t:1000", r#"{"id":1000,"v":2}"#).await;
    pipeline.broker.cut();
    pipeline.agree(&server, &oracle("t")).await;
    assert_eq!(lineage, pipeline.lineage());
    pipeline.assert_nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_that_somebody_drops_is_made_anew_with_its_slot() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    server.execute("UPDATE t SET v = 1; DROP PUBLICATION rowcast_shop; UPDATE t SET v = 2; DELETE FROM t WHERE id = 1").unwrap();
    pipeline.agree(&server, &oracle("t")).await;
    server.execute("UPDATE t SET v = 3").unwrap();
    pipeline.agree(&server, &oracle("t")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_that_leaves_changes_out_for_a_while_costs_a_resync_and_no_change() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    let all = "ALTER PUBLICATION rowcast_shop SET (publish = 'insert, update, delete, truncate', publish_via_partition_root = false)";
    for (round, options) in ["publish = 'insert'", "publish_via_partition_root = true, publish = 'truncate'"].into_iter().enumerate() {
        // Between two looks, so that it stands as it was when it is looked at.
        server.execute(&format!("ALTER PUBLICATION rowcast_shop SET ({options})")).unwrap();
        server.execute(&format!("UPDATE t SET v = v + 1; DELETE FROM t WHERE id = 1 + {round}")).unwrap();
        server.execute(all).unwrap();
        pipeline.agree(&server, &oracle("t")).await;
        // And left so.
        server.execute(&format!("ALTER PUBLICATION rowcast_shop SET ({options})")).unwrap();
        server.execute(&format!("UPDATE t SET v = v + 1; DELETE FROM t WHERE id = 11 + {round}")).unwrap();
        pipeline.agree(&server, &oracle("t")).await;
        server.execute("UPDATE t SET v = v + 1").unwrap();
        pipeline.agree(&server, &oracle("t")).await;
        // And while nobody looks.
        pipeline.stop_publisher().await;
        server.execute(&format!("ALTER PUBLICATION rowcast_shop SET ({options})")).unwrap();
        server.execute(&format!("UPDATE t SET v = v + 1; DELETE FROM t WHERE id = 21 + {round}")).unwrap();
        pipeline.start_publisher();
        pipeline.agree(&server, &oracle("t")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_older_than_a_publication_somebody_made_anew_is_made_anew_too() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    pipeline.stop_publisher().await;
    server.execute("DROP PUBLICATION rowcast_shop").unwrap();
    server.execute("UPDATE t SET v = 1; DELETE FROM t WHERE id = 1").unwrap();
    server.execute("CREATE PUBLICATION rowcast_shop FOR TABLE t").unwrap();
    pipeline.start_publisher();
    pipeline.agree(&server, &oracle("t")).await;
    server.execute("UPDATE t SET v = 2").unwrap();
    pipeline.agree(&server, &oracle("t")).await;
}
