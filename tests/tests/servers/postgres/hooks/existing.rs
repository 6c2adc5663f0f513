//! Rows that stand, read while the table is written, and tables that are altered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rowcast::broker::Broker;
use rowcast::change::Table;
use rowcast::request::Request;
use rowcast::source::postgres::changelog::ChangelogSource;
use rowcast::source::{ChunkLimits, Portion, Read, Source};
use rowcast_testkit::postgres::PostgresServer;
use rowcast_testkit::wait::until;

use super::super::held;
use super::{DEADLINE, ROWS, oracle, recorded, recording, table};

const LIMITS: ChunkLimits = ChunkLimits { rows: 1000, bytes: 1 << 20 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_read_again_and_again_while_they_are_written_never_go_back() {
    let server = Arc::new(PostgresServer::start().unwrap());
    server.execute(ROWS).unwrap();
    let mut pipeline = recorded(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    let over = Arc::new(AtomicBool::new(false));
    let writer = {
        let (server, over) = (Arc::clone(&server), Arc::clone(&over));
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let updates: String = (1..=100).map(|id| format!("UPDATE t SET v = nextval('s') WHERE id = {id};")).collect();
                server.execute(&updates).unwrap();
            }
        })
    };
    for _ in 0..40 {
        pipeline.resync(&["t"]).await;
        let pks = (1..=100).map(|id| serde_json::value::to_raw_value(&serde_json::json!({ "id": id })).unwrap()).collect();
        pipeline.broker.request(Request::Rows { table: Table::from("t"), pks }.encode()).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    over.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    pipeline.agree(&server, &oracle("t")).await;
    pipeline.assert_nothing_went_back();
}

/// They may show what a crash of the server takes back; that it did is told by the read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_stand_go_out_after_a_read_that_has_its_number_also_where_there_are_no_news() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let pipeline = recorded(&server, vec![table("t", None)]).await;
    let mut source = ChangelogSource::new(pipeline.settings.clone());
    let begun = source.begin(None).await.unwrap();
    let Ok(Read::Later) = source.chunk(0, None, LIMITS).await else { panic!("the rows come later") };
    let Portion::Record(record) = source.next().await.unwrap() else { panic!("the record comes first") };
    assert!(record.position > begun.record.position);
    let standing = format!("SELECT mark FROM rowcast.read WHERE number = {}", record.position.0);
    assert_eq!(server.execute(&standing).unwrap(), record.mark);
    let Portion::Changes { changes, complete: true, .. } = source.next().await.unwrap() else { panic!("the whole read") };
    assert!(changes.is_empty());
    let Portion::Rows { chunk, .. } = source.next().await.unwrap() else { panic!("then the rows") };
    assert_eq!(chunk.rows.len(), 100);
}

/// Nothing of it is in the changelog; the table is another file all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_emptied_altered_rewritten_or_made_anew_is_read_again() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    server.execute("CREATE TABLE u(id int PRIMARY KEY); INSERT INTO u VALUES (1)").unwrap();
    let mut pipeline = recorded(&server, vec![table("t", None), table("u", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &format!("{}; {}", oracle("t"), oracle("u"))).await;
    let lineage = pipeline.lineage();
    for statements in [
        "TRUNCATE t; INSERT INTO t VALUES (7)",
        "ALTER TABLE t ADD COLUMN w text DEFAULT 'w'; UPDATE t SET v = nextval('s')",
        "ALTER TABLE t ALTER COLUMN v TYPE text USING 'v' || v; UPDATE t SET w = 'x' WHERE id = 7",
        "ALTER TABLE t DROP COLUMN w; INSERT INTO t VALUES (8, 'y')",
        "ALTER TABLE t RENAME COLUMN v TO x; INSERT INTO t VALUES (9, 'z')",
        "BEGIN; ALTER TABLE t RENAME TO old; CREATE TABLE t(id int PRIMARY KEY, x text); INSERT INTO t SELECT * FROM old; COMMIT; \
         ALTER TABLE old DISABLE TRIGGER record; INSERT INTO t VALUES (10, 'unseen')",
    ] {
        server.execute(statements).unwrap();
        let oracle = format!("{}; {}", oracle("t"), oracle("u"));
        pipeline.agree(&server, &oracle).await;
    }
    assert_eq!(pipeline.lineage(), lineage, "only the table is read again");
    server.execute(&recording("t")).unwrap();
    server.execute("UPDATE t SET x = 'seen' WHERE id = 10; DROP TABLE u; DELETE FROM t WHERE id = 9").unwrap();
    pipeline.agree(&server, &oracle("t")).await;
}

/// The rows are rewritten while a read waits for the table whose snapshot is older: to that they seem gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_rewritten_while_a_read_waits_for_its_table_is_never_taken_for_deleted() {
    migrated("COMMIT").await;
}

/// It waits for a table that a read has locked while that waits for one of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_locks_tables_one_after_the_other_is_never_ended_for_us() {
    migrated("LOCK TABLE t; COMMIT").await;
}

/// A migration of `u` that ends like this, begun before a read that concerns both tables.
async fn migrated(end: &str) {
    let server = Arc::new(PostgresServer::start().unwrap());
    server.execute(ROWS).unwrap();
    server.execute("CREATE TABLE u(id int PRIMARY KEY, v int); INSERT INTO u VALUES (1, 1)").unwrap();
    let mut pipeline = recorded(&server, vec![table("t", None), table("u", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &format!("{}; {}", oracle("t"), oracle("u"))).await;
    let gate = held::Gate::shut(&server);
    let locked = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = 'u'::regclass";
    let migration = held::Running::start(
        &server,
        &format!(
            "BEGIN; LOCK TABLE u; SELECT pg_advisory_xact_lock_shared(1); ALTER TABLE u ALTER COLUMN v TYPE bigint USING v + 1; {end}"
        ),
    );
    until("the migration to have locked u", DEADLINE, async || (server.execute(locked).unwrap() == "1").then_some(())).await.unwrap();
    // A row of u is named while it is locked: nothing goes out until the lock is gone.
    let named = "INSERT INTO rowcast.changelog(tbl, op, key) VALUES ('u'::regclass, 'U', '{\"id\":1}')";
    server.execute(&format!("BEGIN; UPDATE t SET v = nextval('s') WHERE id <= 2; {named}; COMMIT")).unwrap();
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'u'::regclass";
    until("the changelog to wait for the lock", DEADLINE, async || (server.execute(waits).unwrap() == "1").then_some(())).await.unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (cache, over) = (pipeline.cache.clone(), Arc::clone(&over));
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                assert!(cache.contents().values.contains_key("u:1"), "a row that was there all the time was removed");
            }
        })
    };
    gate.open();
    migration.end();
    pipeline.agree(&server, &format!("{}; {}", oracle("t"), oracle("u"))).await;
    over.store(true, Ordering::Relaxed);
    watcher.join().unwrap();
    assert!(!server.log().unwrap().contains("deadlock detected"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitioned_tables_and_several_schemas_are_followed_like_others() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE SCHEMA s; CREATE TABLE s.p(id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
             CREATE TABLE s.low PARTITION OF s.p FOR VALUES FROM (0) TO (100); CREATE TABLE s.high PARTITION OF s.p FOR VALUES FROM (100) TO (200);
             INSERT INTO s.p VALUES (1, 1), (150, 1)",
        )
        .unwrap();
    let mut pipeline = super::Pipeline::hooked(&server, vec![table("s.p", Some("p:{id}"))]).await;
    pipeline.start();
    let oracle = "SELECT 'p:' || id || chr(9) || row_to_json(p) FROM s.p";
    pipeline.agree(&server, oracle).await;
    let named =
        |id: u32| format!("INSERT INTO rowcast.changelog(tbl, op, key) VALUES ('s.p'::regclass, 'U', json_build_object('id', {id}));");
    server.execute(&format!("BEGIN; UPDATE s.p SET id = 160 WHERE id = 1; {} {} COMMIT", named(1), named(160))).unwrap();
    pipeline.agree(&server, oracle).await;
    // An entity may be of a partition.
    let of_leaf = "INSERT INTO rowcast.changelog(tbl, op, key) VALUES ('s.high'::regclass, 'U', '{\"id\":150}')";
    server.execute(&format!("BEGIN; UPDATE s.high SET v = 2 WHERE id = 150; {of_leaf}; COMMIT")).unwrap();
    pipeline.agree(&server, oracle).await;
    server.execute("ALTER TABLE s.p DETACH PARTITION s.low; CREATE TABLE s.new PARTITION OF s.p FOR VALUES FROM (200) TO (300)").unwrap();
    server.execute(&format!("BEGIN; INSERT INTO s.p VALUES (250, 1); {} COMMIT", named(250))).unwrap();
    pipeline.agree(&server, oracle).await;
}
