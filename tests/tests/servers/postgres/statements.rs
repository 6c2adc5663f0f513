//! Everything that may be done to rows.

use std::sync::Arc;

use rowcast::broker::Broker;
use rowcast::change::{Bound, Partition, Run};
use rowcast::request::{Asking, Request};
use rowcast_testkit::postgres::PostgresServer;
use rowcast_testkit::wait::until;
use serde_json::value::RawValue;

use super::Pipeline;
use super::held::Running;
use super::pipeline::{DEADLINE, oracle, table};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncates_of_several_tables_and_by_cascade_empty_the_cache() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE TABLE a(id int PRIMARY KEY, v int); CREATE TABLE b(id int PRIMARY KEY, a int REFERENCES a);
             CREATE TABLE c(id int PRIMARY KEY);
             INSERT INTO a SELECT i, 0 FROM generate_series(1, 50) i; INSERT INTO b SELECT i, i FROM generate_series(1, 50) i;
             INSERT INTO c SELECT i FROM generate_series(1, 50) i",
        )
        .unwrap();
    let mut pipeline = Pipeline::installed(&server, ["a", "b", "c"].map(|name| table(name, None)).into()).await;
    pipeline.start();
    let all = format!("{} UNION ALL {} UNION ALL {}", oracle("a"), oracle("b"), oracle("c"));
    pipeline.agree(&server, &all).await;
    server.execute("BEGIN; INSERT INTO c VALUES (100); TRUNCATE a CASCADE; INSERT INTO a VALUES (7, 7); COMMIT").unwrap();
    pipeline.agree(&server, &all).await;
    server.execute("INSERT INTO b VALUES (1, 7); TRUNCATE b, c").unwrap();
    pipeline.agree(&server, &all).await;
    server.execute("BEGIN; TRUNCATE c; ROLLBACK; INSERT INTO c VALUES (1), (2)").unwrap();
    pipeline.agree(&server, &all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_change_and_swap_end_where_their_rows_are() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE TABLE m(id int PRIMARY KEY, email text NOT NULL UNIQUE DEFERRABLE INITIALLY DEFERRED, v int); ALTER TABLE m REPLICA IDENTITY FULL;
             CREATE TABLE k(a int NOT NULL, b text NOT NULL, v int, PRIMARY KEY(a, b));
             CREATE TABLE i(id int NOT NULL PRIMARY KEY, code text NOT NULL, v int); CREATE UNIQUE INDEX i_code ON i(code, id);
             ALTER TABLE i REPLICA IDENTITY USING INDEX i_code;
             INSERT INTO m SELECT n, 'm' || n || '@x.y', 0 FROM generate_series(1, 20) n;
             INSERT INTO k SELECT n % 3, 'k ' || n, 0 FROM generate_series(1, 20) n;
             INSERT INTO i SELECT n, 'c' || n, 0 FROM generate_series(1, 20) n",
        )
        .unwrap();
    let tables = vec![table("m", Some("mail:{email}")), table("k", None), table("i", Some("code:{code}:{id}"))];
    let mut pipeline = Pipeline::installed(&server, tables).await;
    pipeline.start();
    let all = "SELECT 'mail:' || email || chr(9) || row_to_json(m) FROM m UNION ALL
               SELECT 'k:' || a || ':' || replace(b, ' ', '%20') || chr(9) || row_to_json(k) FROM k UNION ALL
               SELECT 'code:' || code || ':' || id || chr(9) || row_to_json(i) FROM i";
    pipeline.agree(&server, all).await;
    for statement in [
        // Two rows swap a unique key, in either order of their ids.
        "BEGIN; UPDATE m SET email = 'm2@x.y' WHERE id = 1; UPDATE m SET email = 'm1@x.y' WHERE id = 2; COMMIT",
        "UPDATE m SET email = CASE id WHEN 3 THEN 'm4@x.y' ELSE 'm3@x.y' END WHERE id IN (3, 4)",
        // The new holder comes before the old one goes.
        "BEGIN; INSERT INTO m VALUES (100, 'm5@x.y', 0); DELETE FROM m WHERE id = 5; COMMIT",
        // And goes again, so that the old one keeps it.
        "BEGIN; INSERT INTO m VALUES (101, 'm6@x.y', 9); DELETE FROM m WHERE id = 101; COMMIT",
        "UPDATE k SET a = a + 10; UPDATE k SET b = b || 'x' WHERE a = 11",
        "BEGIN; DELETE FROM k WHERE a = 10; INSERT INTO k VALUES (10, 'k 3', 5); COMMIT",
        "UPDATE i SET code = 'new' || id WHERE id < 5; UPDATE i SET id = id + 100 WHERE id > 15; DELETE FROM i WHERE id = 10",
    ] {
        server.execute(statement).unwrap();
        pipeline.agree(&server, all).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_that_an_update_leaves_alone_are_not_lost() {
    let server = PostgresServer::start().unwrap();
    for (name, identity) in [("d", "DEFAULT"), ("f", "FULL")] {
        server
            .execute(&format!(
                "CREATE TABLE {name}(id int PRIMARY KEY, body text, v int); ALTER TABLE {name} ALTER body SET STORAGE EXTERNAL;
                 ALTER TABLE {name} REPLICA IDENTITY {identity};
                 INSERT INTO {name} SELECT i, repeat(chr(64 + i), 9000), 0 FROM generate_series(1, 10) i"
            ))
            .unwrap();
    }
    let mut pipeline = Pipeline::installed(&server, vec![table("d", None), table("f", None)]).await;
    pipeline.start();
    let all = format!("{} UNION ALL {}", oracle("d"), oracle("f"));
    pipeline.agree(&server, &all).await;
    for name in ["d", "f"] {
        for statement in [
            "UPDATE $ SET v = 1 WHERE id = 1",
            "BEGIN; UPDATE $ SET v = 1 WHERE id = 2; UPDATE $ SET v = 2 WHERE id = 2; UPDATE $ SET v = 3; COMMIT",
            "BEGIN; INSERT INTO $ VALUES (20, repeat('x', 9000), 0); UPDATE $ SET v = 1 WHERE id = 20; COMMIT",
            "UPDATE $ SET id = id + 100 WHERE id = 3; UPDATE $ SET v = 9 WHERE id = 103",
            "BEGIN; UPDATE $ SET v = 4 WHERE id = 4; DELETE FROM $ WHERE id = 4; COMMIT",
            "UPDATE $ SET body = 'short' WHERE id = 5; UPDATE $ SET v = 5 WHERE id = 5",
        ] {
            server.execute(&statement.replace('$', name)).unwrap();
            pipeline.agree(&server, &all).await;
        }
    }
    // Also where the cache has lost the row, and where the publisher dies before the row was read.
    pipeline.cache.alter(|contents| drop(contents.values.remove("d:1")));
    server.execute("UPDATE d SET v = 17 WHERE id = 1").unwrap();
    pipeline.agree(&server, &all).await;
    server.execute("UPDATE d SET v = 18").unwrap();
    pipeline.kill_publisher().await;
    pipeline.start_publisher();
    pipeline.agree(&server, &all).await;
    pipeline.assert_nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn savepoints_rollbacks_copy_merge_upserts_and_prepared_transactions_are_what_they_leave() {
    let server = PostgresServer::start().unwrap();
    server.execute("CREATE TABLE t(id int PRIMARY KEY, v int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i").unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    for statement in [
        "BEGIN; UPDATE t SET v = 1; SAVEPOINT s; UPDATE t SET v = 2; ROLLBACK TO s; UPDATE t SET v = 3 WHERE id = 1; COMMIT",
        "BEGIN; DELETE FROM t; ROLLBACK",
        "INSERT INTO t VALUES (1, 9), (30, 9) ON CONFLICT (id) DO UPDATE SET v = excluded.v",
        "MERGE INTO t USING (VALUES (1, 11), (31, 11)) AS n(id, v) ON t.id = n.id WHEN MATCHED THEN UPDATE SET v = n.v \
         WHEN NOT MATCHED THEN INSERT VALUES (n.id, n.v)",
        "COPY t FROM PROGRAM 'printf \"40\\t1\\n41\\t2\\n\"'",
    ] {
        server.execute(statement).unwrap();
        pipeline.agree(&server, &oracle("t")).await;
    }
    server.execute("BEGIN; UPDATE t SET v = 50 WHERE id < 5; PREPARE TRANSACTION 'p'").unwrap();
    server.execute("UPDATE t SET v = 51 WHERE id = 10").unwrap();
    pipeline.agree(&server, &oracle("t")).await;
    server.execute("COMMIT PREPARED 'p'").unwrap();
    pipeline.agree(&server, &oracle("t")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_altered_is_read_again_as_it_is_then() {
    let server = Arc::new(PostgresServer::start().unwrap());
    server
        .execute(
            "CREATE TYPE mood AS ENUM ('sad', 'ok');
             CREATE TABLE t(id int PRIMARY KEY, name text, n int, m mood DEFAULT 'ok');
             CREATE TABLE other(id int PRIMARY KEY);
             INSERT INTO t SELECT i, 'n' || i, i FROM generate_series(1, 50) i; INSERT INTO other VALUES (1)",
        )
        .unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None), table("other", None)]).await;
    pipeline.start();
    let all = format!("{} UNION ALL {}", oracle("t"), oracle("other"));
    pipeline.agree(&server, &all).await;
    for statement in [
        "ALTER TABLE t ADD COLUMN more int DEFAULT 5; UPDATE t SET n = 100 WHERE id = 1",
        "UPDATE t SET n = 101 WHERE id = 1; ALTER TABLE t RENAME COLUMN name TO title; UPDATE t SET n = 102 WHERE id = 2",
        "ALTER TABLE t DROP COLUMN more; INSERT INTO t VALUES (60, 'x', 1)",
        "ALTER TABLE t ALTER COLUMN n TYPE bigint USING n * 1000; DELETE FROM t WHERE id = 60",
        // Nothing but the rows is other than before, and the log says nothing of it.
        "ALTER TABLE t ALTER COLUMN n TYPE bigint USING n + 1",
        "ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'",
        "ALTER TABLE t ADD COLUMN x text, ADD COLUMN big text DEFAULT repeat('y', 3000)",
        // There and back again: rows come by with a column that no longer has that name.
        "ALTER TABLE t RENAME COLUMN title TO label; UPDATE t SET label = 'between' WHERE id = 3; ALTER TABLE t RENAME COLUMN label TO title",
        "DROP TABLE t; CREATE TABLE t(id int PRIMARY KEY, title text); INSERT INTO t VALUES (1, 'new')",
    ] {
        server.execute(statement).unwrap();
        pipeline.agree(&server, &all).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leaves_of_a_partitioned_table_are_its_rows() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE TABLE p(id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
             CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
             CREATE TABLE p2(v int, id int NOT NULL, PRIMARY KEY(id)); ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (100) TO (200);
             INSERT INTO p SELECT i, 0 FROM generate_series(0, 199, 10) i",
        )
        .unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("p", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("p")).await;
    for statement in [
        "UPDATE p SET v = 1; INSERT INTO p VALUES (1, 1), (103, 1); DELETE FROM p WHERE id IN (0, 100)",
        "UPDATE p SET id = id + 100 WHERE id = 1",
        "TRUNCATE p1",
        "CREATE TABLE p3(id int PRIMARY KEY, v int); INSERT INTO p3 VALUES (250, 3); ALTER TABLE p ATTACH PARTITION p3 FOR VALUES FROM (200) TO (300)",
        "INSERT INTO p VALUES (251, 3), (2, 2)",
        "ALTER TABLE p DETACH PARTITION p2",
        "DROP TABLE p3",
        "CREATE TABLE p4 PARTITION OF p FOR VALUES FROM (100) TO (150); INSERT INTO p VALUES (120, 4)",
        "TRUNCATE p",
    ] {
        server.execute(statement).unwrap();
        pipeline.agree(&server, &oracle("p")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_while_a_partition_is_detached_for_a_moment_is_read() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE TABLE p(id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
             CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
             CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (id);
             CREATE TABLE p21 PARTITION OF p2 FOR VALUES FROM (100) TO (150);
             INSERT INTO p SELECT i, 0 FROM generate_series(0, 149, 10) i",
        )
        .unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("p", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("p")).await;
    for (partition, written, from, to) in [("p1", "p1", 0, 100), ("p2", "p21", 100, 200)] {
        server
            .execute(&format!(
                "BEGIN; ALTER TABLE p DETACH PARTITION {partition}; UPDATE {written} SET v = 1;
                 ALTER TABLE p ATTACH PARTITION {partition} FOR VALUES FROM ({from}) TO ({to}); COMMIT"
            ))
            .unwrap();
        pipeline.agree(&server, &oracle("p")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_attached_while_a_session_begins_is_followed() {
    let server = Arc::new(PostgresServer::start().unwrap());
    server
        .execute(
            "CREATE TABLE p(id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
             CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
             CREATE TABLE p2(id int PRIMARY KEY, v int); INSERT INTO p VALUES (1, 0); INSERT INTO p2 VALUES (101, 0)",
        )
        .unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("p", None)]).await;
    // Each look at the partitions waits here; a locker that queues behind one look lets it pass and stops the next.
    let lock = || Running::start(&server, "BEGIN; LOCK TABLE p1 IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600); COMMIT");
    let locks = async |mode: &str, granted: bool| {
        let sql = format!("SELECT count(*) FROM pg_locks WHERE relation = 'p1'::regclass AND mode = '{mode}' AND granted = {granted}");
        until("a lock on the partition", DEADLINE, async || (server.execute(&sql).unwrap() == "1").then_some(())).await.unwrap();
    };
    let unlock = || {
        let sql =
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = 'p1'::regclass AND mode = 'AccessExclusiveLock' AND granted";
        server.execute(sql).unwrap();
    };
    let first = lock();
    locks("AccessExclusiveLock", true).await;
    pipeline.start();
    locks("AccessShareLock", false).await;
    let second = lock();
    locks("AccessExclusiveLock", false).await;
    unlock();
    first.end();
    locks("AccessExclusiveLock", true).await;
    locks("AccessShareLock", false).await;
    // The look that waits began before this; the next one finds it.
    server.execute("ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (100) TO (200)").unwrap();
    unlock();
    second.end();
    pipeline.agree(&server, &oracle("p")).await;
    server.execute("UPDATE p SET v = 1").unwrap();
    pipeline.agree(&server, &oracle("p")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_huge_transaction_comes_in_many_portions() {
    use rowcast::source::postgres::{PostgresSource, install};
    use rowcast::source::{Portion, Source};
    let server = PostgresServer::start().unwrap();
    server.execute("CREATE TABLE t(id int PRIMARY KEY, body text)").unwrap();
    let pipeline = Pipeline::new(&server.url(), vec![table("t", None)]);
    install(&pipeline.settings).await.unwrap();
    let mut source = PostgresSource::new(pipeline.settings.clone());
    source.begin(None).await.unwrap();
    server.execute("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 100000) i").unwrap();
    let (mut changes_seen, mut portions, mut last) = (0, 0, None);
    while changes_seen < 100_000 {
        let portion = tokio::time::timeout(super::pipeline::DEADLINE, source.next()).await.expect("a portion in time").unwrap();
        let Portion::Changes { changes, to, complete } = portion else { continue };
        assert!(changes.len() <= 2000, "{}", changes.len());
        for change in &changes {
            assert!(last.is_none_or(|last| change.position > last) && change.position <= to);
            last = Some(change.position);
        }
        changes_seen += changes.len();
        portions += usize::from(!changes.is_empty());
        assert!(complete == (changes_seen == 100_000 || changes_seen == 0) || changes_seen == 100_000, "only its end is complete");
    }
    assert!(portions >= 50, "{portions}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_the_log_does_not_name_under_another_replica_identity_cost_a_resync_and_no_publisher() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE TABLE t(id int PRIMARY KEY, code text NOT NULL UNIQUE, v int);
             INSERT INTO t SELECT i, 'c' || i, 0 FROM generate_series(1, 20) i",
        )
        .unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    for statement in [
        "DELETE FROM t WHERE id = 1",
        "UPDATE t SET id = 102 WHERE id = 2",
        "UPDATE t SET id = 103, code = 'd' WHERE id = 3",
        "UPDATE t SET code = 'e', v = 1 WHERE id = 4; DELETE FROM t WHERE id = 5; INSERT INTO t VALUES (5, 'c5', 5)",
    ] {
        server
            .execute(&format!(
                "BEGIN; ALTER TABLE t REPLICA IDENTITY USING INDEX t_code_key; {statement}; ALTER TABLE t REPLICA IDENTITY DEFAULT; COMMIT"
            ))
            .unwrap();
        pipeline.agree(&server, &oracle("t")).await;
    }
    pipeline.stop_publisher().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_tables_that_inherit_are_neither_cached_nor_harmed() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE TABLE t(id int PRIMARY KEY, v int); CREATE TABLE child() INHERITS (t);
             INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i; INSERT INTO child VALUES (1, 7), (100, 7)",
        )
        .unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    pipeline.start();
    let own = "SELECT 't:' || id || chr(9) || row_to_json(t) FROM ONLY t";
    pipeline.agree(&server, own).await;
    for statement in [
        "UPDATE child SET v = 8; DELETE FROM child WHERE id = 100",
        "UPDATE t SET v = 1",
        "DELETE FROM t WHERE id < 3",
        "CREATE TABLE later() INHERITS (t); INSERT INTO later VALUES (5, 5); UPDATE t SET v = 2",
        "TRUNCATE ONLY t; INSERT INTO t VALUES (1, 1)",
        "TRUNCATE t",
    ] {
        server.execute(statement).unwrap();
        pipeline.agree(&server, own).await;
        pipeline.resync(&["t"]).await;
        pipeline.agree(&server, own).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_for_what_no_row_can_have_are_settled_and_stop_nothing() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE FUNCTION even(int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN IF $1 % 2 = 0 THEN RETURN true; END IF; RAISE 'odd'; END $$;
             CREATE DOMAIN positive AS int CHECK (VALUE > 0) CHECK (even(VALUE)); CREATE TABLE t(id positive PRIMARY KEY, v int);
             CREATE TABLE n(id text PRIMARY KEY, v int); INSERT INTO t SELECT 2 * i, 0 FROM generate_series(1, 20) i",
        )
        .unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None), table("n", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    let lost = || pipeline.cache.alter(|contents| contents.values.remove("t:2"));
    for (table, pk) in [("n", r#"{"id":"a\u0000b"}"#), ("t", r#"{"id":-2}"#), ("t", r#"{"id":3}"#), ("t", r#"{"id":"x"}"#)] {
        lost().unwrap();
        for (table, pk) in [(table, pk), ("t", r#"{"id":2}"#)] {
            let pks = vec![RawValue::from_string(pk.to_owned()).unwrap()];
            pipeline.broker.request(Request::Rows { table: table.into(), pks }.encode()).await.unwrap();
        }
        pipeline.agree(&server, &oracle("t")).await;
        until("the requests to be settled", DEADLINE, async || pipeline.broker.with_control(|queue| queue.is_empty()).then_some(()))
            .await
            .unwrap();
    }
    // What a resync asks for after a bound that is no key begins anew.
    for (table, bound) in [("t", r#"{"id":"abc"}"#), ("t", r#"{"id":"-2"}"#), ("t", r#"{"id":"3"}"#), ("t", r#"{"id":"1\u0000"}"#)] {
        lost().unwrap();
        let partition = Partition { number: 1, of: 2 };
        let asking = Asking { table: table.into(), partition, run: Run("x".into()), after: Some(Bound(bound.into())), again: true };
        pipeline.broker.request(Request::Chunk(asking).encode()).await.unwrap();
        pipeline.agree(&server, &oracle("t")).await;
    }
    pipeline.stop_publisher().await;
}
