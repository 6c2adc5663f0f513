//! What `rowcast check` says of a server, and the statement that mends each finding.

use rowcast::finding::{Finding, Grade};
use rowcast::mapping::TableSettings;
use rowcast::source::postgres::{self, PostgresSettings, Server};
use rowcast_testkit::certificates::Certificates;
use rowcast_testkit::postgres::{PostgresOptions, PostgresServer};

use super::Pipeline;
use super::pipeline::table;

fn settings(url: &str, tables: &[&str]) -> PostgresSettings {
    let tables = tables.iter().map(|name| table(name, None)).collect();
    PostgresSettings { tables, ..PostgresSettings::new(Server::parse(url).unwrap(), "shop") }
}

fn lines(found: &[Finding]) -> String {
    let line =
        |finding: &Finding| format!("{}: {} → {}\n", finding.grade.name(), finding.message, finding.remedy.as_deref().unwrap_or("-"));
    found.iter().map(line).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_ready_is_told_what_it_lacks() {
    let options = PostgresOptions {
        settings: &[("wal_level", "replica"), ("max_replication_slots", "0"), ("synchronous_standby_names", "*")],
        ..PostgresOptions::default()
    };
    let server = PostgresServer::start_with(&options).unwrap();
    server.execute("SET synchronous_commit = local; CREATE ROLE app LOGIN; CREATE TABLE users(id int PRIMARY KEY)").unwrap();
    let found = postgres::check(&settings(&server.url_as("app", "x", "postgres"), &["users", "user"])).await;
    insta::assert_snapshot!(lines(&found), @r#"
    stops: wal_level is replica, so that changes of rows are not in the log → run `ALTER SYSTEM SET wal_level = logical`, then restart the server
    stops: app may not replicate → run `ALTER ROLE "app" REPLICATION`
    harms: synchronous_standby_names is "*", so that rowcast's own connection counts as a standby: commits wait for it, and it confirms nothing before commits are visible → name the standbys in synchronous_standby_names
    harms: the replication slot rowcast_shop is not there yet → run `rowcast install`
    stops: no replication slot is left on this server → run `ALTER SYSTEM SET max_replication_slots = 20`, then restart the server; or drop a slot that nobody uses
    stops: the publication rowcast_shop is not there → run `rowcast install`
    stops: table users: its rows cannot be read: permission denied for table users → run `GRANT USAGE ON SCHEMA "public" TO "app"; GRANT SELECT ON "public"."users" TO "app"`
    stops: there is no table user in the schema public (a name without a schema means the schema public) → did you mean users?
    "#);
    let error = postgres::install(&settings(&server.url(), &["users"])).await.unwrap_err();
    assert!(error.to_string().contains("wal_level = logical"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_cannot_be_followed_is_told_why() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE TABLE keyless(a int); CREATE UNLOGGED TABLE unlogged(id int PRIMARY KEY); CREATE VIEW v AS SELECT 1 AS id;
             CREATE TABLE nothing(id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
             CREATE TABLE mail(id int PRIMARY KEY, mail text NOT NULL UNIQUE);
             CREATE TABLE generated(id int, twice int GENERATED ALWAYS AS (id * 2) STORED PRIMARY KEY);
             CREATE TABLE parent(id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE leaf PARTITION OF parent FOR VALUES FROM (0) TO (9); CREATE TABLE listed(k int[] PRIMARY KEY);
             CREATE EXTENSION citext; CREATE DOMAIN word AS citext; CREATE TABLE worded(k word PRIMARY KEY)",
        )
        .unwrap();
    let tables = [
        table("keyless", None),
        table("unlogged", None),
        table("v", None),
        table("nothing", None),
        table("mail", Some("m:{mail}")),
        table("generated", None),
        table("leaf", None),
        table("listed", None),
        table("worded", None),
        TableSettings { filter: Some("id > random()".to_owned()), ..table("parent", None) },
        table("public.parent", Some("p:{id}")),
        table("parent", Some("q:{id}")),
    ];
    let mut settings = settings(&server.url(), &[]);
    settings.tables = tables.into();
    let found = postgres::check(&settings).await;
    let about: Vec<Finding> = found.into_iter().filter(|finding| finding.about.is_some() && finding.grade == Grade::Stops).collect();
    insta::assert_snapshot!(lines(&about), @r#"
    stops: table keyless has no primary key → run `ALTER TABLE "public"."keyless" ADD PRIMARY KEY (…)`
    stops: table unlogged is unlogged, so that nothing of it is in the log → run `ALTER TABLE "public"."unlogged" SET LOGGED`
    stops: table v is a view → map the tables under it
    stops: table nothing: public.nothing has no replica identity, so that UPDATE and DELETE fail as soon as it is published → run `ALTER TABLE "public"."nothing" REPLICA IDENTITY DEFAULT`
    stops: table mail: the key needs the old value of mail, which is not in the replica identity of public.mail → run `ALTER TABLE "public"."mail" REPLICA IDENTITY FULL`
    stops: table generated: the key's column twice is generated, and old values of such a column are not in PostgreSQL's log → use a key of other columns
    stops: table leaf is a partition → map the partitioned table, or detach it
    stops: table listed: the key's column k is of type integer[], of which two values may look the same in JSON → use a key of other columns
    stops: table worded: the primary key's column k is of the type public.citext, which is not PostgreSQL's own and has an order of its own → use a primary key of types that are, text for example
    stops: table parent: `where` has a result that may change by itself (the time now, random, what depends on the session's time zone or language, functions that are not IMMUTABLE) → compare columns, and say the time zone where one is needed (AT TIME ZONE 'UTC')
    stops: parent and public.parent are one table → name each table once
    stops: parent and parent are one table → name each table once
    "#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_refused_with_the_advice_to_name_the_primary() {
    let server = PostgresServer::start().unwrap();
    server.execute("CREATE TABLE users(id int PRIMARY KEY)").unwrap();
    let standby = server.start_standby().unwrap();
    let found = postgres::check(&settings(&standby.url(), &["users"])).await;
    assert!(
        lines(&found).contains("the server is a standby, which takes no statement that writes → name the primary in the url"),
        "{found:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_and_tls_are_what_the_url_asks_for() {
    let certificates = Certificates::make().unwrap();
    let options = PostgresOptions {
        settings: &[("listen_addresses", "127.0.0.1,127.0.0.2")],
        password: Some("s3cr3t"),
        tls: Some(&certificates),
        ..PostgresOptions::default()
    };
    let server = PostgresServer::start_with(&options).unwrap();
    server.execute("CREATE TABLE users(id int PRIMARY KEY); INSERT INTO users VALUES (1)").unwrap();
    let authority = certificates.authority().display().to_string();
    let base = format!("postgres://postgres:s3cr3t@localhost:{}/postgres", server.port());
    let outcome = async |url: &str| match postgres::count_rows(&settings(url, &["users"]), &["users"]).await {
        Ok(_) => "in".to_owned(),
        Err(error) => error.to_string(),
    };
    for (query, said) in [
        ("", "in"),
        ("?sslmode=disable", "no pg_hba.conf entry"),
        ("?sslmode=require", "in"),
        ("?sslmode=verify-full", "UnknownIssuer"),
        (&*format!("?sslmode=verify-full&sslrootcert={authority}"), "in"),
        (&*format!("?sslmode=require&sslrootcert={authority}"), "in"),
        ("?sslmode=verify-ca&sslrootcert=/nowhere.pem", "sslrootcert /nowhere.pem"),
    ] {
        let found = outcome(&format!("{base}{query}")).await;
        assert!(found.contains(said) && !found.contains("s3cr3t"), "{query}: {found}");
    }
    // The certificate is not for this address, which only verify-full minds.
    let by_address = base.replace("localhost", "127.0.0.2");
    let unnamed = outcome(&format!("{by_address}?sslmode=verify-ca&sslrootcert={authority}")).await;
    assert_eq!(unnamed, "in");
    let named = outcome(&format!("{by_address}?sslmode=verify-full&sslrootcert={authority}")).await;
    assert!(named.contains("TLS: invalid peer certificate"), "{named}");
    let wrong = outcome(&base.replace("s3cr3t", "guess1ng")).await;
    assert!(wrong.contains("correct user and password in the url") && !wrong.contains("guess1ng"), "{wrong}");
    let missing = outcome(&base.replace(":s3cr3t", "")).await;
    assert!(missing.contains("for a password, and the url has none"), "{missing}");
    // The stream too.
    let mut pipeline = Pipeline::new(&format!("{base}?sslmode=verify-full&sslrootcert={authority}"), vec![table("users", None)]);
    postgres::install(&pipeline.settings).await.unwrap();
    pipeline.start();
    pipeline.holds("users:1", r#"{"id":1}"#).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_published_and_not_configured_any_more_is_told() {
    let server = PostgresServer::start().unwrap();
    server.execute("CREATE TABLE a(id int PRIMARY KEY); CREATE TABLE \"B\"(id int PRIMARY KEY)").unwrap();
    let both = settings(&server.url(), &["a", "B"]);
    postgres::install(&both).await.unwrap();
    assert_eq!(lines(&postgres::check(&both).await), "");
    let found = postgres::check(&settings(&server.url(), &["a"])).await;
    insta::assert_snapshot!(lines(&found), @r#"
    harms: the publication rowcast_shop has tables that are not configured (public."B"): the server sends their changes for nothing, and refuses UPDATE and DELETE where one has no replica identity → run `ALTER PUBLICATION "rowcast_shop" DROP TABLE public."B"`
    "#);
}
