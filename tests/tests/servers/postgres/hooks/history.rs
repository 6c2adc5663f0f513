//! Servers that went back in time, others that took their place, changelogs that somebody emptied, and publishers that end at any moment.

use std::sync::Arc;

use rowcast::source::postgres::changelog::ChangelogSource;
use rowcast::source::postgres::{self, Server};
use rowcast::source::{Error, Portion, Source};
use rowcast_testkit::postgres::PostgresServer;
use rowcast_testkit::wait::until;

use super::super::held;
use super::{DEADLINE, Pipeline, ROWS, oracle, recorded, table};

async fn on_rows(server: &PostgresServer) -> Pipeline {
    server.execute(ROWS).unwrap();
    let mut pipeline = recorded(server, vec![table("t", None)]).await;
    pipeline.start();
    pipeline.agree(server, &oracle("t")).await;
    pipeline
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_installation_the_publisher_says_what_to_run() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let mut pipeline = Pipeline::new(&server.url(), vec![table("t", None)]);
    pipeline.settings.capture = postgres::Capture::Hooks;
    pipeline.start();
    let error = pipeline.publisher_error().await;
    assert!(error.contains("run `rowcast install`"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_copy_that_was_put_back_and_written_on_is_another_history() {
    let mut server = PostgresServer::start().unwrap();
    let mut pipeline = on_rows(&server).await;
    pipeline.stop_publisher().await;
    server.stop().unwrap();
    let copy = server.cold_copy().unwrap();
    server.start_again().unwrap();

    pipeline.start_publisher();
    server.execute("UPDATE t SET v = 1 WHERE id <= 50; INSERT INTO t VALUES (200, 1)").unwrap();
    pipeline.agree(&server, &oracle("t")).await;
    let lineage = pipeline.lineage();
    pipeline.stop_publisher().await;

    server.stop().unwrap();
    server.restore(&copy).unwrap();
    server.start_again().unwrap();
    // The same identity, numbers and reads; other contents.
    server.execute("UPDATE t SET v = 2 WHERE id > 50; INSERT INTO t VALUES (300, 2)").unwrap();
    pipeline.start_publisher();
    pipeline.agree(&server, &oracle("t")).await;
    assert_ne!(lineage, pipeline.lineage());
}

/// It is put back while a publisher runs, and has made as many reads as the one before by the time that somebody looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_put_back_under_a_running_publisher_is_another_history() {
    let mut server = PostgresServer::start().unwrap();
    let mut pipeline = on_rows(&server).await;
    pipeline.stop_publisher().await;
    server.stop().unwrap();
    let copy = server.cold_copy().unwrap();
    server.start_again().unwrap();
    pipeline.start_publisher();
    server.execute("UPDATE t SET v = 1 WHERE id <= 50").unwrap();
    pipeline.agree(&server, &oracle("t")).await;
    let lineage = pipeline.lineage();
    server.kill().unwrap();
    server.restore(&copy).unwrap();
    server.start_again().unwrap();
    pipeline.agree(&server, &oracle("t")).await;
    assert_ne!(lineage, pipeline.lineage());
    server.execute("UPDATE t SET v = 2 WHERE id > 50").unwrap();
    pipeline.agree(&server, &oracle("t")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_promoted_goes_on_with_the_history_if_it_has_all_that_was_shipped_and_begins_one_if_not() {
    for complete in [true, false] {
        let server = PostgresServer::start().unwrap();
        let mut pipeline = on_rows(&server).await;
        let standby = server.start_standby().unwrap();
        server.execute("UPDATE t SET v = nextval('s') WHERE id = 1").unwrap();
        pipeline.agree(&server, &oracle("t")).await;
        let newest = server.execute("SELECT max(number) FROM rowcast.read").unwrap();
        until("the standby to have it", DEADLINE, async || {
            (standby.execute("SELECT max(number) FROM rowcast.read").unwrap() == newest).then_some(())
        })
        .await
        .unwrap();
        let lineage = pipeline.lineage();
        if !complete {
            standby.execute("ALTER SYSTEM SET primary_conninfo = ''; SELECT pg_reload_conf()").unwrap();
            until("the standby to stop following", DEADLINE, async || {
                (standby.execute("SELECT count(*) FROM pg_stat_wal_receiver").unwrap() == "0").then_some(())
            })
            .await
            .unwrap();
            server.execute("UPDATE t SET v = nextval('s') WHERE id = 2; DELETE FROM t WHERE id = 4").unwrap();
            pipeline.agree(&server, &oracle("t")).await;
        }
        pipeline.kill_publisher().await;
        drop(server);
        standby.promote().unwrap();
        standby.execute("DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (500)").unwrap();
        pipeline.settings.server = Server::parse(&standby.url()).unwrap();
        pipeline.start_publisher();
        pipeline.agree(&standby, &oracle("t")).await;
        assert_eq!(pipeline.lineage() == lineage, complete);
        if complete {
            pipeline.assert_nothing_went_back();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_or_restarted_is_followed_on_without_a_resync() {
    let mut server = PostgresServer::start().unwrap();
    let pipeline = on_rows(&server).await;
    let lineage = pipeline.lineage();
    for round in 1..=2 {
        // Not waited for: what was shipped of it must be there after a crash all the same.
        server.execute("SET synchronous_commit = off; UPDATE t SET v = nextval('s') WHERE id <= 50").unwrap();
        pipeline.agree(&server, &oracle("t")).await;
        if round == 1 {
            server.restart().unwrap()
        } else {
            server.kill().unwrap();
            server.start_again().unwrap();
        }
        server.execute("UPDATE t SET v = nextval('s') WHERE id > 50").unwrap();
        pipeline.agree(&server, &oracle("t")).await;
    }
    assert_eq!(pipeline.lineage(), lineage);
    pipeline.assert_nothing_went_back();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changelog_that_was_emptied_or_made_anew_is_another_history() {
    let server = PostgresServer::start().unwrap();
    let mut pipeline = on_rows(&server).await;
    let mut lineages = vec![pipeline.lineage()];
    for running in [false, true] {
        if !running {
            pipeline.stop_publisher().await;
        }
        server.execute("BEGIN; UPDATE t SET v = nextval('s') WHERE id < 10; TRUNCATE rowcast.changelog; COMMIT").unwrap();
        if !running {
            pipeline.start_publisher();
        }
        // Nothing more happens: that there are no news must not be taken for nothing to say.
        pipeline.agree(&server, &oracle("t")).await;
        let lineage = pipeline.lineage();
        assert!(!lineages.contains(&lineage), "{lineages:?}");
        lineages.push(lineage);
    }
    pipeline.stop_publisher().await;
    server.execute("ALTER TABLE t DISABLE TRIGGER record").unwrap();
    postgres::uninstall(&pipeline.settings).await.unwrap();
    server.execute("DELETE FROM t WHERE id = 1; UPDATE t SET v = nextval('s') WHERE id = 2").unwrap();
    postgres::install(&pipeline.settings).await.unwrap();
    server.execute("ALTER TABLE t ENABLE TRIGGER record").unwrap();
    pipeline.start_publisher();
    pipeline.agree(&server, &oracle("t")).await;
    assert!(!lineages.contains(&pipeline.lineage()));
    pipeline.assert_nothing_went_back();
}

/// Two that both believe that they are the one: only one of them goes on from a read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_publishers_at_once_never_go_on_from_one_read() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let pipeline = recorded(&server, vec![table("t", None)]).await;
    let update = |id: u32| server.execute(&format!("UPDATE t SET v = nextval('s') WHERE id = {id}")).unwrap();
    let mut one = ChangelogSource::new(pipeline.settings.clone());
    let mut other = ChangelogSource::new(pipeline.settings.clone());
    let begun = one.begin(None).await.unwrap();
    let resumed = other.begin(Some(&begun.record)).await.unwrap();
    assert_eq!((&resumed.lineage, resumed.from), (&begun.lineage, begun.from));
    update(1);
    let Portion::Record(record) = one.next().await.unwrap() else { panic!("the record comes first") };
    assert!(record.position > begun.record.position);
    let Portion::Changes { changes, to, complete: true } = one.next().await.unwrap() else { panic!("and the whole read") };
    assert_eq!((changes.len(), changes[0].pk.as_str()), (1, r#"{"id":1}"#));
    assert!(matches!(other.next().await, Err(Error::Changed(_))), "another has read on");
    // It begins again, and then the first one finds itself overtaken. What was not forgotten comes once more.
    let resumed = other.begin(Some(&record)).await.unwrap();
    assert_eq!((&resumed.lineage, resumed.from), (&begun.lineage, begun.from));
    update(2);
    let Portion::Record(next) = other.next().await.unwrap() else { panic!("the record comes first") };
    assert!(next.position >= to, "{next:?} {to}");
    let Portion::Changes { changes, .. } = other.next().await.unwrap() else { panic!("and the whole read") };
    assert_eq!(changes.len(), 2);
    assert!(matches!(one.next().await, Err(Error::Changed(_))), "another has read on");
}

/// One has looked, and the other makes the next read, or makes several and forgets the first, before the one has its number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_is_overtaken_between_its_look_and_its_number_ships_nothing() {
    let server = Arc::new(PostgresServer::start().unwrap());
    server.execute(ROWS).unwrap();
    let pipeline = recorded(&server, vec![table("t", None)]).await;
    let read = |number: &str| {
        format!(
            "INSERT INTO rowcast.read(number, snapshot, file)
             SELECT {number}, pg_current_snapshot(), pg_relation_filenode('rowcast.changelog') FROM rowcast.read"
        )
    };
    for overtaking in [
        read("max(number) + 1"),
        format!("{}; DELETE FROM rowcast.read WHERE number < (SELECT max(number) FROM rowcast.read)", read("max(number) + 2")),
    ] {
        let mut source = ChangelogSource::new(pipeline.settings.clone());
        source.begin(None).await.unwrap();
        let gate = held::Gate::shut(&server);
        let other = gate.up_to(&format!("BEGIN; {overtaking}; SELECT pg_advisory_xact_lock_shared(1); COMMIT"));
        server.execute("UPDATE t SET v = nextval('s') WHERE id = 1").unwrap();
        let next = tokio::spawn(async move { source.next().await });
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted";
        until("the number to be waited for", DEADLINE, async || (server.execute(waits).unwrap() == "1").then_some(())).await.unwrap();
        gate.open();
        other.end();
        let shipped = next.await.unwrap();
        assert!(matches!(&shipped, Err(Error::Changed(why)) if why.contains("made by somebody else")), "{shipped:?}");
    }
}

/// What it has not shipped is gone, and the newest read is its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_finds_the_changelog_removed_beyond_what_it_has_shipped_ends() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let pipeline = recorded(&server, vec![table("t", None)]).await;
    let mut source = ChangelogSource::new(pipeline.settings.clone());
    source.begin(None).await.unwrap();
    server.execute("UPDATE t SET v = nextval('s')").unwrap();
    let Portion::Record(_) = source.next().await.unwrap() else { panic!("the record comes first") };
    assert!(source.abandon().await.unwrap());
    server
        .execute("DELETE FROM rowcast.read WHERE number < (SELECT max(number) FROM rowcast.read); DELETE FROM rowcast.changelog")
        .unwrap();
    let next = source.next().await;
    assert!(matches!(next, Err(Error::Changed(_))), "{next:?}");
}

/// What was given up in the middle comes again under a greater number, and nothing stays open meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_is_given_up_is_made_again_under_a_greater_number() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let pipeline = recorded(&server, vec![table("t", None)]).await;
    let mut source = ChangelogSource::new(pipeline.settings.clone());
    source.begin(None).await.unwrap();
    assert!(!source.abandon().await.unwrap(), "nothing is under way");
    server.execute("UPDATE t SET v = nextval('s')").unwrap();
    let Portion::Record(first) = source.next().await.unwrap() else { panic!("the record comes first") };
    let Portion::Changes { complete: false, .. } = source.next().await.unwrap() else { panic!("a part of the read") };
    assert!(source.abandon().await.unwrap());
    let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'rowcast shop' AND state <> 'idle'";
    assert_eq!(server.execute(open).unwrap(), "0");
    let Portion::Record(second) = source.next().await.unwrap() else { panic!("the record comes first") };
    assert!(second.position > first.position);
    let mut keys = 0;
    let end = loop {
        match source.next().await.unwrap() {
            Portion::Changes { changes, to, complete } => {
                keys += changes.len();
                if complete {
                    break to;
                }
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(keys, 100);
    // Forgotten, it is not shipped again by whoever resumes.
    source.forget(end).await.unwrap();
    source.release().await.unwrap();
    let resumed = ChangelogSource::new(pipeline.settings.clone()).begin(Some(&second)).await.unwrap();
    assert_eq!(resumed.from, end);
    assert_eq!(server.execute("SELECT count(*) FROM rowcast.changelog").unwrap(), "0");
}
