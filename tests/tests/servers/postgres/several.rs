//! Several tables are read at once, by a few connections.

use std::sync::Arc;

use rowcast_testkit::postgres::PostgresServer;
use rowcast_testkit::wait::until;

use super::Pipeline;
use super::held::Running;
use super::pipeline::{DEADLINE, oracle, table};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_somebody_has_locked_holds_up_no_other_and_connections_are_few() {
    let server = Arc::new(PostgresServer::start().unwrap());
    let names = ["a", "b", "c", "d", "e", "f"];
    for name in names {
        server
            .execute(&format!(
                "CREATE TABLE {name}(id int PRIMARY KEY, v int); INSERT INTO {name} SELECT i, 0 FROM generate_series(1, 5000) i"
            ))
            .unwrap();
    }
    let mut pipeline = Pipeline::installed(&server, names.map(|name| table(name, None)).into()).await;
    pipeline.start();
    let wanted = names.map(oracle).join(" UNION ALL ");
    pipeline.agree(&server, &wanted).await;
    let connections = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'rowcast shop'";
    assert_eq!(server.execute(connections).unwrap(), "5", "the stream, what is short, and three that read");
    let locker = Running::start(&server, "BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600)");
    let locked = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = 'a'::regclass";
    until("the table to be locked", DEADLINE, async || (server.execute(locked).unwrap() == "1").then_some(())).await.unwrap();
    pipeline.cache.alter(|contents| contents.values.retain(|key, _| !key.ends_with(":77")));
    pipeline.resync(&names).await;
    for name in &names[1..] {
        pipeline.holds(&format!("{name}:77"), r#"{"id":77,"v":0}"#).await;
    }
    assert!(!pipeline.settled() && !pipeline.cached().contains_key("a:77"), "the locked one still waits");
    server
        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()")
        .unwrap();
    locker.end();
    pipeline.agree(&server, &wanted).await;
}
