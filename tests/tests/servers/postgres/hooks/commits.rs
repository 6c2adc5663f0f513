//! What transactions leave in the cache, whatever the order of their numbers, their rows and their commits.

use std::sync::Arc;
use std::time::Duration;

use rowcast::source::postgres::changelog::ChangelogSource;
use rowcast::source::{Portion, Source};
use rowcast_testkit::postgres::{PostgresOptions, PostgresServer};
use rowcast_testkit::wait::until;

use super::super::held;
use super::{DEADLINE, ROWS, oracle, recorded, recording, table};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_from_before_and_every_change_come_to_the_cache_and_a_restart_loses_nothing() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE TABLE users(id bigint PRIMARY KEY, name text, balance numeric, at timestamptz);
             INSERT INTO users SELECT i, 'name ' || i, i / 7.0, '2026-01-01'::timestamptz + i * interval '1 minute' FROM generate_series(1, 5000) i",
        )
        .unwrap();
    let mut pipeline = recorded(&server, vec![table("users", None)]).await;
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

/// The transaction of the smaller number commits last, and its changelog rows have the smaller numbers, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_began_first_and_commits_last_is_shipped_also_by_a_publisher_that_resumes() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let mut pipeline = recorded(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    let lineage = pipeline.lineage();
    for restart in [false, true] {
        server.execute("BEGIN; UPDATE t SET v = nextval('s') WHERE id = 1; PREPARE TRANSACTION 'early'").unwrap();
        server.execute("UPDATE t SET v = nextval('s') WHERE id = 2").unwrap();
        pipeline.agree(&server, &oracle("t")).await;
        if restart {
            pipeline.stop_publisher().await;
            pipeline.start_publisher();
        }
        server.execute("UPDATE t SET v = nextval('s') WHERE id = 3").unwrap();
        pipeline.agree(&server, &oracle("t")).await;
        if restart {
            pipeline.stop_publisher().await;
        }
        server.execute("COMMIT PREPARED 'early'").unwrap();
        if restart {
            pipeline.start_publisher();
        }
        pipeline.agree(&server, &oracle("t")).await;
    }
    assert_eq!(pipeline.lineage(), lineage);
    pipeline.assert_nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_one_transaction_is_held_open_for_long_the_others_are_shipped_and_removed() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let mut pipeline = recorded(&server, vec![table("t", None)]).await;
    pipeline.start();
    server.execute("BEGIN; UPDATE t SET v = nextval('s') WHERE id <= 10; PREPARE TRANSACTION 'open'").unwrap();
    for round in 0..20 {
        let updates: String = (0..20).map(|i| format!("UPDATE t SET v = nextval('s') WHERE id = {};", 11 + (round * 7 + i) % 90)).collect();
        server.execute(&updates).unwrap();
        pipeline.agree(&server, &oracle("t")).await;
    }
    until("what was delivered to be removed", DEADLINE, async || {
        (server.execute("SELECT count(*) FROM rowcast.changelog").unwrap() == "0").then_some(())
    })
    .await
    .unwrap();
    server.execute("COMMIT PREPARED 'open'").unwrap();
    pipeline.agree(&server, &oracle("t")).await;
    until("the last ones to be removed", DEADLINE, async || {
        (server.execute("SELECT count(*) FROM rowcast.changelog").unwrap() == "0").then_some(())
    })
    .await
    .unwrap();
    pipeline.assert_nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollbacks_savepoints_changed_and_swapped_keys_are_what_they_leave() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let mut pipeline = recorded(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    server
        .execute(
            "BEGIN; UPDATE t SET v = 1000000; DELETE FROM t WHERE id = 5; ROLLBACK;
             BEGIN; UPDATE t SET v = nextval('s') WHERE id = 1; SAVEPOINT a; DELETE FROM t WHERE id < 50; ROLLBACK TO a;
             SAVEPOINT b; UPDATE t SET v = nextval('s') WHERE id = 2; RELEASE b; COMMIT;
             BEGIN; DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (3); DELETE FROM t WHERE id = 4; COMMIT;
             UPDATE t SET id = 500 WHERE id = 6;
             BEGIN; UPDATE t SET id = -1 WHERE id = 7; UPDATE t SET id = 7 WHERE id = 8; UPDATE t SET id = 8 WHERE id = -1; COMMIT;
             BEGIN; UPDATE t SET id = 501 WHERE id = 9; UPDATE t SET id = 9 WHERE id = 501; COMMIT;
             INSERT INTO t VALUES (600); DELETE FROM t WHERE id = 600",
        )
        .unwrap();
    let many: String = (0..200).map(|_| "UPDATE t SET v = nextval('s') WHERE id = 10;").collect();
    server.execute(&many).unwrap();
    pipeline.agree(&server, &oracle("t")).await;
}

/// It is in the server's log, and nobody sees it. What is not seen is not shipped; a later commit that is seen does not wait for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_waits_for_a_standby_is_shipped_when_it_is_seen() {
    let server = Arc::new(PostgresServer::start().unwrap());
    server.execute(ROWS).unwrap();
    let mut pipeline = recorded(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    let hanging = held::hang(&server, "UPDATE t SET v = nextval('s') WHERE id = 1");
    server.execute("SET synchronous_commit = local; UPDATE t SET v = nextval('s') WHERE id = 2").unwrap();
    pipeline.agree(&server, &oracle("t")).await;
    pipeline.kill_publisher().await;
    pipeline.start_publisher();
    server.execute("SET synchronous_commit = local; UPDATE t SET v = nextval('s') WHERE id = 3").unwrap();
    pipeline.agree(&server, &oracle("t")).await;
    held::release(&server);
    hanging.end();
    pipeline.agree(&server, &oracle("t")).await;
    pipeline.assert_nothing_went_back();
}

/// More than one read's worth, in transactions that are never divided.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_backlog_is_shipped_in_several_reads_also_by_publishers_that_are_killed_meanwhile() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let mut pipeline = recorded(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    pipeline.stop_publisher().await;
    let reads = || server.execute("SELECT max(number) FROM rowcast.read").unwrap().parse::<u64>().unwrap();
    let before = reads();
    server.execute("BEGIN; UPDATE t SET v = nextval('s') WHERE id = 1; PREPARE TRANSACTION 'early'").unwrap();
    server.execute("INSERT INTO t SELECT i FROM generate_series(1001, 50000) i").unwrap();
    let inserts: String = (0..40)
        .map(|i| format!("INSERT INTO t SELECT i FROM generate_series({}, {}) i;", 100_001 + i * 1000, 101_000 + i * 1000))
        .collect();
    server.execute(&inserts).unwrap();
    server.execute("COMMIT PREPARED 'early'").unwrap();
    // Killed each time that something of it was forgotten: the next one must not take a part of a read for the whole.
    let resumes = || server.execute("SELECT min(number) FROM rowcast.read").unwrap();
    for _ in 0..2 {
        pipeline.start_publisher();
        let from = resumes();
        until("a read to be forgotten", DEADLINE, async || (resumes() != from).then_some(())).await.unwrap();
        pipeline.kill_publisher().await;
    }
    pipeline.start_publisher();
    pipeline.agree(&server, &oracle("t")).await;
    assert!((3..20).contains(&(reads() - before)), "{} reads", reads() - before);
    pipeline.assert_nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_what_the_row_says_and_what_is_no_key_is_passed_over() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE TABLE n(id numeric PRIMARY KEY, v int); INSERT INTO n VALUES (1.00, 1), (2, 2);
             CREATE TABLE d(id date, \"the \"\"time\" timestamptz, v int, PRIMARY KEY (\"the \"\"time\", id));",
        )
        .unwrap();
    let mut pipeline = recorded(&server, vec![table("n", None), table("d", Some("d:{id}:{the \"time}"))]).await;
    server.execute("DROP TRIGGER record ON d").unwrap();
    pipeline.start();
    pipeline.agree(&server, &oracle("n")).await;
    let name = |table: &str, key: &str| format!("INSERT INTO rowcast.changelog(tbl, op, key) VALUES ({table}, 'U', '{key}');");
    let junk: String = ["{\"id\":\"x\"}", "{\"id\":null}", "{\"ix\":1}", "[1]", "1", "{\"id\":{}}", "{\"id\":\"\\u0000\"}"]
        .iter()
        .map(|key| name("'n'::regclass", key))
        .collect();
    // Another spelling of a key names the row that equals it.
    let spelt = name("'n'::regclass", "{\"id\":1.0}");
    server.execute(&format!("BEGIN; {junk} {spelt} {} UPDATE n SET v = 3 WHERE id = 2; COMMIT", name("0", "{\"id\":1}"))).unwrap();
    server.execute("ALTER TABLE n DISABLE TRIGGER record; UPDATE n SET v = 4 WHERE id = 1").unwrap();
    server.execute(&name("'n'::regclass", "{\"id\":1.000}")).unwrap();
    pipeline.agree(&server, &oracle("n")).await;
    assert!(!pipeline.cached().contains_key("n:1.000"));
    // Equal to the server, and another key in the cache.
    server.execute("ALTER TABLE n ENABLE TRIGGER record; UPDATE n SET id = 1.0 WHERE id = 1").unwrap();
    pipeline.agree(&server, &oracle("n")).await;
    // As an application with other settings writes it.
    server
        .execute(
            "SET DateStyle = 'SQL, DMY'; SET TimeZone = 'Asia/Kolkata';
             BEGIN; INSERT INTO d VALUES ('2026-02-01', '2026-03-04 05:06:07+00', 1);
             INSERT INTO rowcast.changelog(tbl, op, key) SELECT 'd'::regclass, 'I', json_build_object('id', id, 'the \"time', \"the \"\"time\") FROM d;
             COMMIT",
        )
        .unwrap();
    let row = r#"{"id":"2026-02-01","the \"time":"2026-03-04T05:06:07+00:00","v":1}"#;
    until("the row", DEADLINE, async || pipeline.cached().values().any(|value| value == row).then_some(()))
        .await
        .unwrap_or_else(|_| panic!("{:?}", pipeline.cached()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_not_utf_8_is_passed_over() {
    let options = PostgresOptions { initdb: &["--encoding=SQL_ASCII", "--locale=C"], ..PostgresOptions::default() };
    let server = PostgresServer::start_with(&options).unwrap();
    server.execute(ROWS).unwrap();
    let mut pipeline = recorded(&server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    let bytes = "INSERT INTO rowcast.changelog(tbl, op, key) VALUES ('t'::regclass, 'U', ('{\"id\":\"' || chr(255) || '\"}')::json)";
    server.execute(&format!("BEGIN; {bytes}; UPDATE t SET v = nextval('s') WHERE id = 1; COMMIT")).unwrap();
    pipeline.agree(&server, &oracle("t")).await;
}

/// The removing waits for somebody's lock, as it would take long under an old snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_removed_for_now_neither_holds_up_a_read_nor_ends_the_session() {
    let server = Arc::new(PostgresServer::start().unwrap());
    server.execute(ROWS).unwrap();
    let pipeline = recorded(&server, vec![table("t", None)]).await;
    server.execute("UPDATE t SET v = nextval('s') WHERE id = 1").unwrap();
    let gate = held::Gate::shut(&server);
    let holder = gate.up_to("BEGIN; SELECT FROM rowcast.changelog FOR UPDATE; SELECT pg_advisory_xact_lock_shared(1); COMMIT");
    let mut source = ChangelogSource::new(pipeline.settings.clone());
    source.begin(None).await.unwrap();
    let update = "UPDATE t SET v = nextval('s') WHERE id = 2";
    for round in 1..=2 {
        server.execute(update).unwrap();
        let record = tokio::time::timeout(Duration::from_secs(4), source.next()).await;
        assert!(matches!(record, Ok(Ok(Portion::Record(_)))), "{round}: {record:?}");
        let changes = source.next().await;
        assert!(matches!(changes, Ok(Portion::Changes { complete: true, .. })), "{round}: {changes:?}");
        if round == 1 {
            until("the removing to be given up", DEADLINE, async || {
                server.log().unwrap().contains("canceling statement due to statement timeout").then_some(())
            })
            .await
            .unwrap();
        }
    }
    gate.open();
    holder.end();
}

/// Nothing that was removed is met again, however long somebody else's old snapshot keeps it from being cleaned away; nor what a
/// transaction has written that still runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_cost_what_is_new_whatever_old_snapshots_and_open_transactions_there_are() {
    let server = Arc::new(PostgresServer::start().unwrap());
    server.execute(ROWS).unwrap();
    let mut pipeline = recorded(&server, vec![table("t", None)]).await;
    server.execute("CREATE TABLE bulk(id int PRIMARY KEY)").unwrap();
    server.execute(&recording("bulk")).unwrap();
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    let gate = held::Gate::shut(&server);
    let old = held::Running::start(
        &server,
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM t; SELECT pg_advisory_xact_lock_shared(1); COMMIT",
    );
    server.execute("BEGIN; INSERT INTO bulk SELECT i FROM generate_series(1, 20000) i; PREPARE TRANSACTION 'open'").unwrap();
    let gone_through = || {
        let sql = "SELECT pg_stat_force_next_flush(); SELECT i.idx_tup_read + t.seq_tup_read FROM pg_stat_user_indexes i
                   JOIN pg_stat_user_tables t ON t.relid = i.relid WHERE i.indexrelname = 'changelog_pkey'";
        server.execute(sql).unwrap().lines().last().unwrap().parse::<u64>().unwrap()
    };
    let before = gone_through();
    for _ in 0..20 {
        let updates: String = (1..=50).map(|id| format!("UPDATE t SET v = nextval('s') WHERE id = {id};")).collect();
        server.execute(&updates).unwrap();
        pipeline.agree(&server, &oracle("t")).await;
        until("what was delivered to be removed", DEADLINE, async || {
            (server.execute("SELECT EXISTS (SELECT FROM rowcast.changelog)").unwrap() == "f").then_some(())
        })
        .await
        .unwrap();
    }
    let each = (gone_through() - before) / 2000;
    server.execute("COMMIT PREPARED 'open'").unwrap();
    gate.open();
    old.end();
    pipeline.agree(&server, &oracle("t")).await;
    // 2,000 rows: looked for, read, removed; and 20,000 of the open transaction once or twice.
    assert!(each < 40, "each row was gone through {each} times");
}
