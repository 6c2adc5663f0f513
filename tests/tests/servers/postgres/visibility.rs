//! What is in the log and what a snapshot sees are two things.

use std::sync::Arc;
use std::time::Duration;

use rowcast::source::postgres::PostgresSource;
use rowcast::source::{ChunkLimits, Portion, Read, Source};
use rowcast_testkit::postgres::PostgresServer;
use rowcast_testkit::wait::until;
use tokio::time::timeout;

use super::Pipeline;
use super::held::{Gate, Running, hang, let_commits_hang, release};
use super::pipeline::{DEADLINE, oracle, table};

async fn with_rows() -> (Arc<PostgresServer>, Pipeline) {
    let server = Arc::new(PostgresServer::start().unwrap());
    server.execute("CREATE TABLE t(id int PRIMARY KEY, v int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 100) i").unwrap();
    let pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    (server, pipeline)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_is_read_while_a_streamed_transaction_is_not_visible() {
    let (server, mut pipeline) = with_rows().await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    let hanging = hang(&server, "UPDATE t SET v = 1 WHERE id = 1");
    pipeline.holds("t:1", r#"{"id":1,"v":1}"#).await;
    pipeline.resync(&["t"]).await;
    pipeline.pass(&server, 3).await;
    assert!(!pipeline.settled(), "a snapshot would show the row as it was");
    release(&server);
    hanging.end();
    pipeline.agree(&server, &oracle("t")).await;
    pipeline.assert_nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lost_connection_a_transaction_that_is_not_visible_comes_again() {
    let (server, mut pipeline) = with_rows().await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    let hanging = hang(&server, "UPDATE t SET v = 1 WHERE id = 1");
    pipeline.holds("t:1", r#"{"id":1,"v":1}"#).await;
    // Long enough for messages, records and confirms; were the server told, it would not stream the transaction again.
    pipeline.pass(&server, 4).await;
    server.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots").unwrap();
    pipeline.pass(&server, 1).await;
    pipeline.resync(&["t"]).await;
    pipeline.pass(&server, 3).await;
    assert!(!pipeline.settled(), "no row is read");
    release(&server);
    hanging.end();
    pipeline.agree(&server, &oracle("t")).await;
    pipeline.assert_nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_asked_for_before_a_hanging_transaction_has_come_again_wait_for_it() {
    let (server, pipeline) = with_rows().await;
    let mut source = PostgresSource::new(pipeline.settings.clone());
    source.begin(None).await.unwrap();
    let hanging = hang(&server, "INSERT INTO t VALUES (101, 1)");
    let mut streamed = false;
    while !streamed {
        let portion = timeout(DEADLINE, source.next()).await.expect("a portion in time").unwrap();
        streamed = matches!(&portion, Portion::Changes { changes, .. } if !changes.is_empty());
    }
    // Another session; what it is asked for first it is asked for before anything has been streamed.
    source.begin(None).await.unwrap();
    let limits = ChunkLimits { rows: 1000, bytes: 1 << 20 };
    assert!(matches!(source.chunk(0, None, limits).await.unwrap(), Read::Later));
    // Without the wait the rows come within milliseconds of the first message.
    let early = timeout(Duration::from_secs(2), async {
        loop {
            if let Portion::Rows { chunk, .. } = source.next().await.unwrap() {
                return chunk.rows.len();
            }
        }
    });
    assert!(early.await.is_err(), "rows come, though the transaction is not visible");
    release(&server);
    hanging.end();
    let read = loop {
        if let Portion::Rows { chunk, .. } = timeout(DEADLINE, source.next()).await.expect("a portion in time").unwrap() {
            break chunk.rows;
        }
    };
    assert!(read.len() == 101 && read.iter().any(|row| row.pk.contains("101")), "{}", read.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_less_what_an_invisible_transaction_has_touched_while_they_were_read() {
    let (server, mut pipeline) = with_rows().await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    // The reading waits behind a lock that waits for the writer. Then the writer commits and hangs, and keeps its own lock.
    let gate = Gate::shut(&server);
    let writer = gate.up_to("BEGIN; UPDATE t SET v = 1 WHERE id <= 50; SELECT pg_advisory_xact_lock_shared(1); COMMIT");
    let locker = Running::start(&server, "BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE; COMMIT");
    let waits = async |mode: &str| {
        let sql = format!("SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND mode = '{mode}' AND NOT granted");
        until("a lock to be waited for", DEADLINE, async || (server.execute(&sql).unwrap() == "1").then_some(())).await.unwrap();
    };
    waits("AccessExclusiveLock").await;
    pipeline.resync(&["t"]).await;
    waits("AccessShareLock").await;
    let open = || pipeline.cache.contents().checkpoints.values().all(|stored| !stored.checkpoint.resyncs.is_empty());
    until("the resync to begin", DEADLINE, async || open().then_some(())).await.unwrap();
    let_commits_hang(&server);
    gate.open();
    pipeline.holds("t:50", r#"{"id":50,"v":1}"#).await;
    server
        .execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 't'::regclass AND mode = 'AccessExclusiveLock'")
        .unwrap();
    locker.end();
    // One partition at least gets its rows from that reading; another reading would wait for the writer.
    let over = || pipeline.cache.contents().checkpoints.values().any(|stored| stored.checkpoint.resyncs.is_empty());
    until("the rows to be read", DEADLINE, async || over().then_some(())).await.unwrap();
    assert_eq!(server.execute("SELECT sum(v) FROM t").unwrap(), "0", "what was read does not see the writer");
    let cached = pipeline.cached();
    assert_eq!(cached.values().filter(|row| row.ends_with(r#""v":1}"#)).count(), 50, "{cached:?}");
    release(&server);
    writer.end();
    pipeline.agree(&server, &oracle("t")).await;
    pipeline.assert_nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_before_a_table_was_published_is_not_missed() {
    let (server, mut pipeline) = with_rows().await;
    server.execute("CREATE TABLE u(id int PRIMARY KEY, v int)").unwrap();
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    let gate = Gate::shut(&server);
    let writer = gate
        .up_to("BEGIN; INSERT INTO u VALUES (1, 0), (2, 0); SELECT pg_advisory_xact_lock_shared(1); INSERT INTO u VALUES (3, 0); COMMIT");
    pipeline.stop_publisher().await;
    pipeline.settings.tables.push(table("u", None));
    pipeline.start_publisher();
    let published = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'u'";
    until("the table to be published", DEADLINE, async || (server.execute(published).unwrap() == "1").then_some(())).await.unwrap();
    pipeline.pass(&server, 4).await;
    gate.open();
    writer.end();
    pipeline.agree(&server, &format!("{} UNION ALL {}", oracle("t"), oracle("u"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_rewritten_while_its_rows_are_asked_for_is_not_empty() {
    let (server, mut pipeline) = with_rows().await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    let gate = Gate::shut(&server);
    let rewriting =
        gate.up_to("BEGIN; ALTER TABLE t ALTER COLUMN v TYPE bigint USING v + 1; SELECT pg_advisory_xact_lock_shared(1); COMMIT");
    pipeline.resync(&["t"]).await;
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'relation' AND mode = 'AccessShareLock' AND NOT granted";
    until("the reading to wait for the table", DEADLINE, async || (server.execute(waits).unwrap() != "0").then_some(())).await.unwrap();
    gate.open();
    rewriting.end();
    until("the rows to be read as they are now", DEADLINE, async || {
        let cached = pipeline.cached();
        assert_eq!(cached.len(), 100, "no row is ever missing");
        (pipeline.settled() && cached.values().all(|row| row.ends_with(r#""v":1}"#))).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_row_must_be_read_is_kept_until_that_row_has_arrived() {
    let (server, mut pipeline) = with_rows().await;
    server
        .execute(
            "CREATE TABLE d(id int PRIMARY KEY, body text, v int); ALTER TABLE d ALTER body SET STORAGE EXTERNAL;
             INSERT INTO d SELECT i, repeat('x', 9000), 0 FROM generate_series(1, 3) i",
        )
        .unwrap();
    pipeline.settings.tables = vec![table("d", None)];
    pipeline.start();
    pipeline.agree(&server, &oracle("d")).await;
    // The table is locked from the moment of the commit on, so that the row cannot be read.
    let gate = Gate::shut(&server);
    let writer = gate.up_to("BEGIN; UPDATE d SET v = 1 WHERE id = 1; SELECT pg_advisory_xact_lock_shared(1); COMMIT");
    let locker = Running::start(&server, "BEGIN; LOCK TABLE d IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600); COMMIT");
    let queued = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted";
    until("the lock to be asked for", DEADLINE, async || (server.execute(queued).unwrap() == "1").then_some(())).await.unwrap();
    gate.open();
    writer.end();
    // Messages pass meanwhile, up to which the server could forget.
    pipeline.pass(&server, 4).await;
    pipeline.kill_publisher().await;
    server
        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()")
        .unwrap();
    locker.end();
    pipeline.start_publisher();
    pipeline.agree(&server, &oracle("d")).await;
}
