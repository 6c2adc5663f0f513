//! What is in the log and what a snapshot sees are two things.

use std::sync::Arc;

use rowcast_testkit::postgres::PostgresServer;
use rowcast_testkit::wait::until;

use super::Pipeline;
use super::held::{Gate, hang, release};
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
async fn rows_are_less_what_an_invisible_transaction_has_touched_while_they_were_read() {
    let (server, mut pipeline) = with_rows().await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    // The reading waits for the lock; meanwhile a transaction commits that its snapshot does not see.
    let gate = Gate::shut(&server);
    let locker = gate.up_to("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE; SELECT pg_advisory_xact_lock_shared(1); COMMIT");
    pipeline.resync(&["t"]).await;
    pipeline.pass(&server, 2).await;
    gate.open();
    locker.end();
    let hanging = hang(&server, "UPDATE t SET v = 1 WHERE id <= 50");
    pipeline.holds("t:50", r#"{"id":50,"v":1}"#).await;
    release(&server);
    hanging.end();
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
    server.execute("INSERT INTO u VALUES (4, 0)").unwrap();
    pipeline.holds("u:4", r#"{"id":4,"v":0}"#).await;
    pipeline.pass(&server, 2).await;
    gate.open();
    writer.end();
    pipeline.agree(&server, &format!("{} UNION ALL {}", oracle("t"), oracle("u"))).await;
}
