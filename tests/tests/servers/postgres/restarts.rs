//! What must come again, or be waited for, when a publisher begins: the rest of a transaction, rows that have not arrived, and what was
//! prepared before it.

use std::sync::Arc;

use rowcast::change::Position;
use rowcast::source::postgres::PostgresSource;
use rowcast::source::{Portion, Source};
use rowcast_testkit::postgres::PostgresServer;
use rowcast_testkit::wait::until;
use tokio::time::timeout;

use super::Pipeline;
use super::held::{Gate, Running};
use super::pipeline::{DEADLINE, oracle, table};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_dies_inside_a_huge_transaction_loses_none_of_it() {
    const ROWS: u32 = 100_000;
    let server = PostgresServer::start().unwrap();
    server.execute("CREATE TABLE t(id int PRIMARY KEY, v int)").unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    pipeline.start();
    until("the first start", DEADLINE, async || pipeline.settled().then_some(())).await.unwrap();
    server.execute(&format!("INSERT INTO t SELECT i, 0 FROM generate_series(1, {ROWS}) i")).unwrap();
    let positions =
        || -> Vec<Position> { pipeline.cache.contents().checkpoints.values().map(|stored| stored.checkpoint.position).collect() };
    // Within a transaction positions count its changes.
    until("the transaction to arrive in part", DEADLINE, async || positions().iter().any(|position| position.1 > 0).then_some(()))
        .await
        .unwrap();
    pipeline.kill_publisher().await;
    assert!(pipeline.cached().len() < ROWS as usize, "it was killed too late");
    pipeline.start_publisher();
    pipeline.agree(&server, &oracle("t")).await;
    pipeline.assert_nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_prepared_before_a_table_was_published_is_waited_for() {
    let server = PostgresServer::start().unwrap();
    server
        .execute("CREATE TABLE t(id int PRIMARY KEY, v int); CREATE TABLE u(id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0)")
        .unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    server.execute("BEGIN; INSERT INTO u VALUES (1, 0), (2, 0); PREPARE TRANSACTION 'p'").unwrap();
    pipeline.stop_publisher().await;
    pipeline.settings.tables.push(table("u", None));
    pipeline.start_publisher();
    let published = "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'u'";
    until("the table to be published", DEADLINE, async || (server.execute(published).unwrap() == "1").then_some(())).await.unwrap();
    // Changes go on meanwhile, and the new table is not taken for read.
    server.execute("UPDATE t SET v = 1").unwrap();
    pipeline.holds("t:1", r#"{"id":1,"v":1}"#).await;
    pipeline.pass(&server, 4).await;
    assert!(!pipeline.settled(), "its rows are not read before what was prepared has ended");
    server.execute("COMMIT PREPARED 'p'").unwrap();
    pipeline.agree(&server, &format!("{} UNION ALL {}", oracle("t"), oracle("u"))).await;
}

/// The next portion, in time.
async fn next(source: &mut PostgresSource) -> Portion {
    timeout(DEADLINE, source.next()).await.expect("a portion in time").unwrap()
}

/// Waits for the row that the log does not tell whole; returns up to where portions were handed out before it.
async fn row_of_its_own(source: &mut PostgresSource) -> Position {
    let mut before = Position::START;
    loop {
        match next(source).await {
            Portion::Rows { asked: false, chunk, .. } => {
                assert_eq!(chunk.rows.len(), 1);
                return before;
            }
            Portion::Changes { to, .. } => before = to,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_comes_again_as_long_as_its_row_was_handed_out_and_has_not_arrived() {
    let server = Arc::new(PostgresServer::start().unwrap());
    server
        .execute(
            "CREATE TABLE d(id int PRIMARY KEY, body text, v int); ALTER TABLE d ALTER body SET STORAGE EXTERNAL;
             INSERT INTO d VALUES (1, repeat('x', 9000), 0)",
        )
        .unwrap();
    let pipeline = Pipeline::installed(&server, vec![table("d", None)]).await;
    let mut source = PostgresSource::new(pipeline.settings.clone());
    source.begin(None).await.unwrap();
    // The table is locked from the moment of the commit on, so that a record comes between the change and its row.
    let gate = Gate::shut(&server);
    let writer = gate.up_to("BEGIN; UPDATE d SET v = 1 WHERE id = 1; SELECT pg_advisory_xact_lock_shared(1); COMMIT");
    let locker = Running::start(&server, "BEGIN; LOCK TABLE d IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600); COMMIT");
    let queued = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted";
    until("the lock to be asked for", DEADLINE, async || (server.execute(queued).unwrap() == "1").then_some(())).await.unwrap();
    gate.open();
    writer.end();
    let committed: Position = {
        let end = server.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").unwrap();
        Position(end.parse().unwrap(), 0)
    };
    while !matches!(next(&mut source).await, Portion::Record(record) if record.position > committed) {}
    server
        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()")
        .unwrap();
    locker.end();
    let before = row_of_its_own(&mut source).await;
    assert!(before > committed);
    // All but the row has arrived, and the publisher ends.
    source.forget(before).await.unwrap();
    source.release().await.unwrap();
    source.begin(None).await.unwrap();
    row_of_its_own(&mut source).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_ends_within_a_long_backlog_does_not_begin_it_anew() {
    const BACKLOG: usize = 30_000;
    let server = PostgresServer::start().unwrap();
    server.execute("CREATE TABLE t(id int PRIMARY KEY, v int)").unwrap();
    let pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    let transactions =
        (0..BACKLOG).step_by(100).map(|first| format!("INSERT INTO t SELECT i, 0 FROM generate_series({first}, {first} + 99) i;"));
    server.execute(&transactions.collect::<String>()).unwrap();
    let mut source = PostgresSource::new(pipeline.settings.clone());
    source.begin(None).await.unwrap();
    // A broker that is slower than the server: all of it takes far longer than a record may be late.
    let (mut handed_out, mut newest) = (0, None);
    while newest.is_none() && handed_out < BACKLOG {
        match next(&mut source).await {
            Portion::Record(record) => newest = Some(record),
            Portion::Changes { changes, .. } => handed_out += changes.len(),
            _ => {}
        }
        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    }
    let record = newest.expect("a record within the backlog");
    assert!(handed_out < BACKLOG);
    // What was handed out with it has arrived, the publisher ends, and another one goes on there.
    let Portion::Changes { changes, to, complete: true } = next(&mut source).await else { panic!("changes follow the record") };
    handed_out += changes.len();
    assert!(to > record.position);
    source.forget(to).await.unwrap();
    source.release().await.unwrap();
    let start = source.begin(Some(&record)).await.unwrap();
    assert_eq!((start.lineage, start.from), (record.lineage, Position(record.position.0, 0)));
    let mut again = 0;
    while handed_out + again < BACKLOG {
        if let Portion::Changes { changes, .. } = next(&mut source).await {
            again += changes.len();
        }
    }
    assert!(again < BACKLOG, "the whole of it came again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ends_before_its_first_message_has_come_by_makes_no_new_history_unless_the_server_was_started_again() {
    let mut server = PostgresServer::start().unwrap();
    server.execute("CREATE TABLE t(id int PRIMARY KEY, v int)").unwrap();
    let pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    let mut source = PostgresSource::new(pipeline.settings.clone());
    let first = source.begin(None).await.unwrap();
    server.execute("INSERT INTO t VALUES (1, 1)").unwrap();
    // Whoever comes next tells of the row again. Were it of a new history, a key that has a newer row by then would go back.
    let mut another = PostgresSource::new(pipeline.settings.clone());
    source.release().await.unwrap();
    let second = another.begin(Some(&first.record)).await.unwrap();
    assert_eq!((&second.lineage, second.from, &second.record), (&first.lineage, first.from, &first.record));
    another.release().await.unwrap();
    server.restart().unwrap();
    assert_ne!(another.begin(Some(&second.record)).await.unwrap().lineage, first.lineage, "it may be a copy that was put back");
}
