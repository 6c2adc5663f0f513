//! What is installed and for whom, what `rowcast check` says of it, and that nothing is left of it.

use rowcast::finding::Finding;
use rowcast::source::postgres::{self, Capture, PostgresSettings, Server};
use rowcast_testkit::postgres::{PostgresOptions, PostgresServer};
use sea_orm::Database;

use super::{Pipeline, ROWS, oracle, recording, table};

fn settings(url: &str, tables: &[&str]) -> PostgresSettings {
    let tables = tables.iter().map(|name| table(name, None)).collect();
    PostgresSettings { tables, capture: Capture::Hooks, ..PostgresSettings::new(Server::parse(url).unwrap(), "shop") }
}

fn lines(found: &[Finding]) -> String {
    let line =
        |finding: &Finding| format!("{}: {} → {}\n", finding.grade.name(), finding.message, finding.remedy.as_deref().unwrap_or("-"));
    found.iter().map(line).collect::<String>().replace(|c: char| c.is_ascii_digit(), "9")
}

/// What docs/postgresql.md grants for hooks: the second script.
fn least_privileges() -> String {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/postgresql.md")).unwrap();
    let script = page.split("```sql").nth(2).and_then(|rest| rest.split("```").next()).expect("a second script in docs/postgresql.md");
    script.replace("<password>", "x").replace("<database>", "postgres")
}

/// Neither logical decoding nor the right to replicate is needed, nor any right to write the tables.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_rights_are_enough_and_the_applications_roles_may_write_the_changelog_and_nothing_else_of_it() {
    let options = PostgresOptions { settings: &[("wal_level", "minimal"), ("max_wal_senders", "0")], ..PostgresOptions::default() };
    let server = PostgresServer::start_with(&options).unwrap();
    server.execute("CREATE ROLE owner; CREATE ROLE app LOGIN; CREATE ROLE reader LOGIN; GRANT ALL ON SCHEMA public TO owner").unwrap();
    server
        .execute(&format!(
            "SET ROLE owner; {ROWS} GRANT SELECT ON t TO reader; GRANT UPDATE (v) ON t TO app; GRANT USAGE ON SEQUENCE s TO app"
        ))
        .unwrap();
    server.execute(&least_privileges()).unwrap();
    let url = server.url_as("rowcast", "x", "postgres");
    let mut pipeline = Pipeline::new(&url, vec![table("t", None)]);
    pipeline.settings.capture = Capture::Hooks;
    let planned = postgres::plan(&pipeline.settings).await.unwrap();
    let done = postgres::install(&pipeline.settings).await.unwrap().statements;
    assert_eq!(planned, done);
    assert_eq!(done[done.len() - 1], "GRANT INSERT (tbl, op, key) ON rowcast.changelog TO app, owner");
    assert!(postgres::install(&pipeline.settings).await.unwrap().statements.is_empty(), "nothing is left to do");
    insta::assert_snapshot!(lines(&postgres::check(&pipeline.settings).await), @r#"
    notes: hooks see what is written through models; statements that start from an entity (insert_many, update_many, delete_many), raw SQL, COPY and other programs go unseen unless the application records what they do (rowcast_sea_orm::record) → -
    "#);
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    // What an application does at every start.
    rowcast_sea_orm::install(&Database::connect(server.url_as("app", "x", "postgres")).await.unwrap()).await.unwrap();
    // Without a trigger, as the application's own role.
    let update = "SET ROLE app; BEGIN; UPDATE t SET v = nextval('s') WHERE true;
                  INSERT INTO rowcast.changelog(tbl, op, key) SELECT 't'::regclass, 'U', json_build_object('id', i) FROM generate_series(1, 100) i; COMMIT";
    server.execute(update).unwrap();
    pipeline.agree(&server, &oracle("t")).await;
    for refused in [
        "INSERT INTO rowcast.changelog(xid, tbl, op, key) VALUES ('1', 0, 'I', '{}')",
        "SELECT * FROM rowcast.changelog",
        "DELETE FROM rowcast.changelog",
        "INSERT INTO rowcast.read(number, snapshot, file) VALUES (1000, '1:1:', 0)",
    ] {
        assert!(server.execute(&format!("SET ROLE app; {refused}")).unwrap_err().to_string().contains("permission denied"), "{refused}");
    }
    pipeline.stop_publisher().await;
    let gone = postgres::uninstall(&pipeline.settings).await.unwrap().statements;
    assert_eq!(gone.last().map(String::as_str), Some("DROP SCHEMA rowcast"));
    assert_eq!(server.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'rowcast'").unwrap(), "0");
    assert!(postgres::uninstall(&pipeline.settings).await.unwrap().statements.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_says_what_is_missing_and_what_hooks_do_not_see() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE TABLE users(id int PRIMARY KEY, mail text NOT NULL UNIQUE);
             CREATE TABLE orders(id int PRIMARY KEY, user_id int REFERENCES users ON DELETE CASCADE);
             CREATE TABLE parts(a int UNIQUE, b int, PRIMARY KEY(a, b));
             CREATE TABLE readings(at interval, id float8, PRIMARY KEY(at, id)); CREATE ROLE app LOGIN; CREATE ROLE rowcast LOGIN;
             GRANT SELECT ON ALL TABLES IN SCHEMA public TO rowcast",
        )
        .unwrap();
    let mut shop = settings(&server.url(), &["users", "orders", "readings", "parts"]);
    shop.tables[0] = table("users", Some("u:{mail}"));
    shop.tables[3] = table("parts", Some("parts:{a}"));
    insta::assert_snapshot!(lines(&postgres::check(&shop).await), @r#"
    stops: table users: the key uses mail, whose old values hooks do not see → build the key from the primary key, or let the server's log tell (leave out `capture`)
    stops: table readings: the primary key's column at is of type interval, whose text depends on the settings of the application's session, so that hooks cannot name a row by it → let the server's log tell (leave out `capture`)
    stops: table parts: the key leaves out b of the primary key, so that one row may take the key over from another, and hooks do not tell which of them came last → build the key from the whole primary key, or let the server's log tell (leave out `capture`)
    stops: 999.9.9.9:99999/postgres has no changelog yet → run `rowcast install`
    harms: table orders: the database itself changes its rows when rows of public.users change (a foreign key with an action), and hooks do not see that → let the application record these rows (rowcast_sea_orm::record), or let the server's log tell (leave out `capture`)
    notes: hooks see what is written through models; statements that start from an entity (insert_many, update_many, delete_many), raw SQL, COPY and other programs go unseen unless the application records what they do (rowcast_sea_orm::record) → -
    "#);

    let shop = settings(&server.url(), &["users", "orders"]);
    postgres::install(&shop).await.unwrap();
    server.execute("GRANT INSERT ON users TO app; SELECT pg_create_logical_replication_slot('rowcast_shop', 'pgoutput')").unwrap();
    insta::assert_snapshot!(lines(&postgres::check(&shop).await), @r#"
    harms: app may write the tables and not the changelog, so that a write with hooks fails → run `GRANT USAGE ON SCHEMA rowcast TO app; GRANT SELECT ON rowcast.meta TO app; GRANT INSERT (tbl, op, key) ON rowcast.changelog TO app`
    harms: table orders: the database itself changes its rows when rows of public.users change (a foreign key with an action), and hooks do not see that → let the application record these rows (rowcast_sea_orm::record), or let the server's log tell (leave out `capture`)
    harms: the replication slot rowcast_shop of this pipeline is still there, and the server keeps 9 MiB of its log for it → run `SELECT pg_drop_replication_slot('rowcast_shop')`
    notes: hooks see what is written through models; statements that start from an entity (insert_many, update_many, delete_many), raw SQL, COPY and other programs go unseen unless the application records what they do (rowcast_sea_orm::record) → -
    "#);

    let other = settings(&server.url_as("rowcast", "x", "postgres"), &["users"]);
    insta::assert_snapshot!(lines(&postgres::check(&other).await), @r#"
    stops: rowcast may not use the changelog, which somebody else has made → run `GRANT USAGE ON SCHEMA rowcast TO "rowcast"; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA rowcast TO "rowcast"`
    harms: the replication slot rowcast_shop of this pipeline is still there, and the server keeps 9 MiB of its log for it → run `SELECT pg_drop_replication_slot('rowcast_shop')`
    notes: hooks see what is written through models; statements that start from an entity (insert_many, update_many, delete_many), raw SQL, COPY and other programs go unseen unless the application records what they do (rowcast_sea_orm::record) → -
    "#);
    let log = PostgresSettings { capture: Capture::Log, ..settings(&server.url(), &["users"]) };
    let found = lines(&postgres::check(&log).await);
    assert!(found.contains("the changelog of this pipeline is still there") && found.contains("DROP SCHEMA rowcast CASCADE"), "{found}");
    let strange = PostgresSettings { pipeline: "other".to_owned(), ..settings(&server.url(), &["users"]) };
    insta::assert_snapshot!(lines(&postgres::check(&strange).await), @r#"
    stops: the database's changelog belongs to the pipeline shop, not other, and serves one pipeline only → use the name shop, or `rowcast uninstall` there first
    notes: hooks see what is written through models; statements that start from an entity (insert_many, update_many, delete_many), raw SQL, COPY and other programs go unseen unless the application records what they do (rowcast_sea_orm::record) → -
    "#);
    let error = postgres::uninstall(&strange).await.unwrap_err().to_string();
    assert!(error.contains("belongs to the pipeline shop, not other") && error.contains("not removed"), "{error}");
    assert!(postgres::install(&shop).await.unwrap().statements.len() == 3, "it stands, and the grants are still to be made");
}

/// What the application makes beside its migrations is what `rowcast install` makes, and either goes on with the other's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_application_can_make_the_changelog_as_well() {
    let server = PostgresServer::start().unwrap();
    server.execute(ROWS).unwrap();
    let made = || {
        server
            .execute(
                "SELECT c.relname, c.relkind, c.reloptions, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
                   pg_get_expr(d.adbin, d.adrelid) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
                   LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
                   WHERE c.relnamespace = 'rowcast'::regnamespace ORDER BY c.relname, a.attnum",
            )
            .unwrap()
    };
    let db = Database::connect(server.url()).await.unwrap();
    rowcast_sea_orm::install(&db).await.unwrap();
    let by_application = made();
    let shop = settings(&server.url(), &["t"]);
    assert!(by_application.lines().count() > 15, "{by_application}");
    postgres::uninstall(&shop).await.unwrap();
    postgres::install(&shop).await.unwrap();
    assert_eq!(made(), by_application);
    postgres::uninstall(&shop).await.unwrap();

    rowcast_sea_orm::install(&db).await.unwrap();
    let mut pipeline = Pipeline::new(&server.url(), shop.tables);
    pipeline.settings.capture = Capture::Hooks;
    server.execute(&format!("{} {}", super::RECORDING, recording("t"))).unwrap();
    pipeline.start();
    pipeline.agree(&server, &oracle("t")).await;
    server.execute("UPDATE t SET v = nextval('s')").unwrap();
    pipeline.agree(&server, &oracle("t")).await;
}
