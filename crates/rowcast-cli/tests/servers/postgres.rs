//! A whole session on a real PostgreSQL server: from `init` to `uninstall`, as a user without privileges beyond the documented ones.

use rowcast_testkit::postgres::{PostgresOptions, PostgresServer};

use sea_orm::{ActiveModelTrait, Database, IntoActiveModel, ModelTrait, Set, TransactionTrait};

use super::commands::{Said, said};
use super::*;

/// The application's model, as it would be on any database.
mod user {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "users")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub name: String,
    }

    #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    rowcast_sea_orm::hooks!(ActiveModel);
}

/// What docs/postgresql.md grants: the first script is for the log, the second for hooks.
fn least_privileges(script: usize) -> String {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/postgresql.md")).unwrap();
    let script = page.split("```sql").nth(script).and_then(|rest| rest.split("```").next()).expect("a script in docs/postgresql.md");
    script.replace("<password>", "hunter2").replace("<database>", "postgres")
}

fn ok(said: &Said) -> &str {
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    &said.stdout
}

#[tokio::test]
async fn a_pipeline_on_postgresql_from_init_to_uninstall_with_the_documented_privileges() {
    let (rabbit, redis) = (RabbitServer::start().unwrap(), RedisServer::start().await.unwrap());
    let server = PostgresServer::start_with(&PostgresOptions { password: Some("super"), ..PostgresOptions::default() }).unwrap();
    server
        .execute(
            "CREATE ROLE app; GRANT CREATE ON SCHEMA public TO app; SET ROLE app;
             CREATE TABLE users(id bigint PRIMARY KEY, name text NOT NULL, born date); CREATE TABLE notes(body text);
             INSERT INTO users SELECT i, 'user ' || i, date '2000-01-01' + i FROM generate_series(1, 3000) i",
        )
        .unwrap();
    server.execute(&format!("REVOKE TEMPORARY ON DATABASE postgres FROM PUBLIC; {}", least_privileges(1))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let url = server.url_as("rowcast", "hunter2", "postgres");
    let init = said(folder, &["init", &url]);
    ok(&init);
    assert!(init.stderr.contains("left out notes: table notes has no primary key"), "{}", init.stderr);
    let path = folder.join("rowcast.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("hunter2") && text.contains("${PGPASSWORD}"), "{text}");
    let text =
        text.replace("${PGPASSWORD}", "hunter2").replace("amqp://localhost", &rabbit.url()).replace("redis://localhost", &redis.url());
    let with = |filter: &str| text.replace("name = \"users\"", &format!("name = \"users\"\nwhere = \"{filter}\""));
    assert_ne!(with(""), text);
    std::fs::write(&path, with("born > now()")).unwrap();
    let wrong = said(folder, &["check"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.stdout);
    assert!(
        wrong.stdout.contains("`where` has a result that may change by itself") && wrong.stdout.contains("where = \"born > now()\""),
        "{}",
        wrong.stdout
    );
    std::fs::write(&path, with("born IS NOT NULL OR id < 0")).unwrap();

    let before = said(folder, &["check"]);
    assert_eq!(before.code, Some(1), "{}", before.stdout);
    assert!(before.stdout.contains("run `rowcast install`"), "{}", before.stdout);
    let early = said(folder, &["run"]);
    assert_eq!(early.code, Some(1), "{}", early.stderr);
    assert!(early.stderr.contains("run `rowcast install`"), "{}", early.stderr);
    assert!(ok(&said(folder, &["install", "--dry-run"])).contains("CREATE PUBLICATION"));
    let installed = said(folder, &["install"]);
    ok(&installed);
    assert!(installed.stderr.contains("pg_create_logical_replication_slot"), "{}", installed.stderr);
    assert!(said(folder, &["install"]).stderr.contains("nothing to do"));
    assert!(ok(&said(folder, &["check"])).contains("nothing stops the pipeline"));

    let running = start(folder, "run", "run.log");
    let log = || std::fs::read_to_string(folder.join("run.log")).unwrap_or_default();
    let value = async |key: &str, wanted: Option<&str>| {
        let looked =
            until(key, DEADLINE, async || (redis.query::<Option<String>>(&["GET", key]).await.unwrap().as_deref() == wanted).then_some(()));
        looked.await.unwrap_or_else(|error| panic!("{error}\n{}", log()));
    };
    value("users:3000", Some(r#"{"id":3000,"name":"user 3000","born":"2008-03-19"}"#)).await;
    server
        .execute(
            "UPDATE users SET name = 'Ada' WHERE id = 7; DELETE FROM users WHERE id = 8; INSERT INTO users VALUES (-1, 'new', NULL);
             UPDATE users SET born = NULL WHERE id = 9",
        )
        .unwrap();
    value("users:7", Some(r#"{"id":7,"name":"Ada","born":"2000-01-08"}"#)).await;
    value("users:8", None).await;
    value("users:9", None).await;
    value("users:-1", Some(r#"{"id":-1,"name":"new","born":null}"#)).await;

    let settled = until("all partitions to settle", DEADLINE, async || {
        let status = status(folder);
        let partitions = status["cache"]["partitions"].as_array().unwrap().clone();
        let settled = partitions.len() == 4 && partitions.iter().all(|p| p["resyncs"] == serde_json::json!([]) && p["behind"].is_u64());
        settled.then_some(status)
    });
    let found = settled.await.unwrap();
    assert_eq!((&found["source"]["installed"], &found["source"]["active"]), (&Value::Bool(true), &Value::Bool(true)), "{found}");
    assert!(found["source"]["retained"].is_u64() && found["stops"] == serde_json::json!([]), "{found}");
    let shown = said(folder, &["status"]);
    assert!(ok(&shown).contains("of log kept for delivery"), "{}", shown.stdout);
    server.execute("GRANT pg_read_all_stats TO rowcast").unwrap();
    let lag = until("a lag in time", DEADLINE, async || {
        server.execute("UPDATE users SET name = name WHERE id = 7").unwrap();
        status(folder)["source"]["lag_ms"].as_i64()
    });
    assert!((0..120_000).contains(&lag.await.unwrap()));
    let tail = start(folder, "tail", "tail.log");
    let seen = until("a change in the tail", DEADLINE, async || {
        server.execute("UPDATE users SET name = 'Grace' WHERE id = 9").unwrap();
        let text = std::fs::read_to_string(folder.join("tail.log")).unwrap_or_default();
        text.contains("users:9").then_some(())
    });
    seen.await.unwrap();
    end(tail).await;
    let row = said(folder, &["get", "users", "7"]);
    assert!(ok(&row).contains("agree       yes"), "{}", row.stdout);
    redis.query::<()>(&["SET", "users:7", "{}"]).await.unwrap();
    let row = said(folder, &["get", "users", "7"]);
    assert_eq!(row.code, Some(3), "{}", row.stdout);
    let nobody = said(folder, &["get", "users", "seven"]);
    assert_eq!(nobody.code, Some(2), "{}", nobody.stderr);
    let again = said(folder, &["snapshot", "--table", "users"]);
    ok(&again);
    value("users:7", Some(r#"{"id":7,"name":"Ada","born":"2000-01-08"}"#)).await;

    let busy = said(folder, &["uninstall"]);
    assert_eq!(busy.code, Some(1), "{}", busy.stderr);
    assert!(busy.stderr.contains("stop the publisher"), "{}", busy.stderr);
    end(running).await;
    assert!(!log().contains("hunter2"));
    ok(&said(folder, &["uninstall"]));
    assert_eq!(server.execute("SELECT (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_replication_slots)").unwrap(), "0|0");
    assert!(said(folder, &["uninstall"]).stderr.contains("nothing to do"));
}

/// Neither logical decoding nor a WAL sender is to be had, and the user may not replicate.
#[tokio::test]
async fn an_application_on_sea_orm_and_postgresql_records_its_changes_itself() {
    let (rabbit, redis) = (RabbitServer::start().unwrap(), RedisServer::start().await.unwrap());
    let settings: &[_] = &[("wal_level", "minimal"), ("max_wal_senders", "0")];
    let server = PostgresServer::start_with(&PostgresOptions { password: Some("super"), settings, ..PostgresOptions::default() }).unwrap();
    server
        .execute(
            "CREATE ROLE app LOGIN PASSWORD 'app'; GRANT CREATE ON SCHEMA public TO app; SET ROLE app;
             CREATE TABLE users(id bigserial PRIMARY KEY, name text NOT NULL); INSERT INTO users(name) SELECT 'user ' || i FROM generate_series(1, 3000) i",
        )
        .unwrap();
    server.execute(&least_privileges(2)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    ok(&said(folder, &["init", &server.url_as("rowcast", "hunter2", "postgres")]));
    let path = folder.join("rowcast.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text
        .replace("${PGPASSWORD}", "hunter2")
        .replace("# capture = \"hooks\"", "capture = \"hooks\"")
        .replace("amqp://localhost", &rabbit.url())
        .replace("redis://localhost", &redis.url());
    std::fs::write(&path, text).unwrap();
    let before = said(folder, &["check"]);
    assert_eq!(before.code, Some(1), "{}", before.stdout);
    assert!(before.stdout.contains("has no changelog yet") && before.stdout.contains("run `rowcast install`"), "{}", before.stdout);
    assert!(ok(&said(folder, &["install", "--dry-run"])).contains("CREATE TABLE IF NOT EXISTS rowcast.changelog"));
    let installed = said(folder, &["install"]);
    ok(&installed);
    assert!(installed.stderr.contains("GRANT INSERT (tbl, op, key) ON rowcast.changelog TO app"), "{}", installed.stderr);
    assert!(said(folder, &["install"]).stderr.contains("nothing to do"));
    assert!(ok(&said(folder, &["check"])).contains("nothing stops the pipeline"));

    let running = start(folder, "run", "run.log");
    let log = || std::fs::read_to_string(folder.join("run.log")).unwrap_or_default();
    let value = async |key: &str, wanted: Option<&str>| {
        let looked =
            until(key, DEADLINE, async || (redis.query::<Option<String>>(&["GET", key]).await.unwrap().as_deref() == wanted).then_some(()));
        looked.await.unwrap_or_else(|error| panic!("{error}\n{}", log()));
    };
    value("users:3000", Some(r#"{"id":3000,"name":"user 3000"}"#)).await;
    let app = Database::connect(server.url_as("app", "app", "postgres")).await.unwrap();
    let txn = app.begin().await.unwrap();
    let ada = user::ActiveModel { name: Set("Ada".to_owned()), ..Default::default() }.insert(&txn).await.unwrap();
    let other = user::ActiveModel { name: Set("Babbage".to_owned()), ..Default::default() }.insert(&txn).await.unwrap();
    txn.commit().await.unwrap();
    value(&format!("users:{}", other.id), Some(&format!(r#"{{"id":{},"name":"Babbage"}}"#, other.id))).await;
    let txn = app.begin().await.unwrap();
    let mut countess = ada.clone().into_active_model();
    countess.name = Set("Countess".to_owned());
    countess.update(&txn).await.unwrap();
    user::Model { id: 1, name: String::new() }.delete(&txn).await.unwrap();
    txn.commit().await.unwrap();
    let txn = app.begin().await.unwrap();
    other.clone().delete(&txn).await.unwrap();
    txn.rollback().await.unwrap();
    let key = format!("users:{}", ada.id);
    value(&key, Some(&format!(r#"{{"id":{},"name":"Countess"}}"#, ada.id))).await;
    value("users:1", None).await;
    value(&format!("users:{}", other.id), Some(&format!(r#"{{"id":{},"name":"Babbage"}}"#, other.id))).await;

    let settled = until("all partitions to settle", DEADLINE, async || {
        let status = status(folder);
        let partitions = status["cache"]["partitions"].as_array().unwrap().clone();
        let settled = partitions.len() == 4 && partitions.iter().all(|p| p["resyncs"] == serde_json::json!([]) && p["behind"] == 0);
        (settled && status["source"]["waiting"] == 0).then_some(status)
    });
    let found = settled.await.unwrap();
    assert!(found["source"]["installed"] == true && found["stops"] == serde_json::json!([]), "{found}");
    let shown = said(folder, &["status"]);
    assert!(ok(&shown).contains("0 changelog rows are still kept for delivery"), "{}", shown.stdout);
    let row = said(folder, &["get", "users", &ada.id.to_string()]);
    assert!(ok(&row).contains("agree       yes") && row.stdout.contains("lag         none"), "{}", row.stdout);
    redis.query::<()>(&["SET", &key, "{}"]).await.unwrap();
    let row = said(folder, &["get", "users", &ada.id.to_string()]);
    assert_eq!(row.code, Some(3), "{}", row.stdout);
    ok(&said(folder, &["snapshot", "--table", "users"]));
    value(&key, Some(&format!(r#"{{"id":{},"name":"Countess"}}"#, ada.id))).await;

    end(running).await;
    assert!(!log().contains("hunter2"));
    ok(&said(folder, &["uninstall"]));
    assert_eq!(server.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'rowcast'").unwrap(), "0");
    assert!(said(folder, &["uninstall"]).stderr.contains("nothing to do"));
}
