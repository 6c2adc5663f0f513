//! `where` and generated columns: what only the server can say of a row is the same by chunk, by stream and singly.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rowcast::change::Image;
use rowcast::finding::{Grade, Setting};
use rowcast::mapping::TableSettings;
use rowcast::source::postgres::{self, PostgresSettings, Server};
use rowcast_testkit::postgres::PostgresServer;
use rowcast_testkit::wait::until;

use super::Pipeline;
use super::pipeline::{DEADLINE, oracle, table};

fn filtered(name: &str, filter: &str) -> TableSettings {
    TableSettings { filter: Some(filter.to_owned()), ..table(name, None) }
}

/// The rows that are to be cached, by the server's own words.
fn matching(name: &str, filter: &str) -> String {
    format!("{} WHERE {filter}", oracle(name))
}

/// What a filter over every kind of column may look like.
const CONDITIONS: [&str; 22] = [
    "n > 0 AND mixed.n < 3",
    "n IS NULL OR n = -1",
    "price > 1.10 AND price <> 'NaN'",
    "scale(price) = 2",
    "real <> 'Infinity' AND real * 3 > 0.3::float8",
    "at > '2026-01-01' AND at < 'infinity'",
    "(at AT TIME ZONE 'Europe/Berlin')::date = '2026-06-01'",
    "day <= '0044-03-15 BC' OR day = 'infinity'",
    "span > '1 day' -- an interval",
    "name < 'b' AND name <> ''",
    "low = 'STRASSE' OR name ILIKE 'é%'",
    "low COLLATE \"C\" > 'a'",
    "mood >= 'fine'",
    "'x' = ANY (tags) OR tags[2] IS NULL",
    "tags = '{}' OR array_length(tags, 1) > 1",
    "doc ? 'k' AND doc ->> 'k' <> $x$'\"$x$",
    "flag",
    "pair IS NULL OR (pair).a = 1",
    "data = '\\x00ff' OR fixed = 'ab'",
    "whole BETWEEN 2 AND 5 AND address << '10.0.0.0/8'",
    "places @> 5 AND box @> point '(1,1)'",
    "doubled > 2 OR label = 'n1: it''s'",
];

const COLUMNS: &str = "id int PRIMARY KEY, n int, price numeric, real float8, at timestamptz, day date, span interval, name text COLLATE \"C\",
    low text COLLATE nocase, mood mood, tags text[], doc jsonb, flag bool, pair pair, data bytea, fixed char(4), whole positive, address inet,
    places int4range, box box, doubled bigint GENERATED ALWAYS AS (n * 2) STORED,
    label varchar(40) COLLATE \"C\" GENERATED ALWAYS AS ('n' || n || ': ' || name) STORED, v int";

/// A value for each column but the first, the computed ones and `v`.
fn values(random: &mut StdRng) -> String {
    let choices: [&[&str]; 19] = [
        &["NULL", "-1", "0", "1", "2", "2147483"],
        &["NULL", "1.10", "1.1", "1.11", "'NaN'", "'Infinity'", "-3e300"],
        &["NULL", "0.1", "'NaN'", "'Infinity'", "0.1::float8 + 0.2", "-0"],
        &["NULL", "'2026-05-31 23:30+00'", "'2026-06-01 22:00+00'", "'-infinity'", "'infinity'", "'2026-01-01 00:00:00.000001+00'"],
        &["NULL", "'0044-03-15 BC'", "'infinity'", "'2026-02-03'"],
        &["NULL", "'1 day'", "'1 day 00:00:00.000001'", "'-1 mon +2 days'", "'25:00'"],
        &["NULL", "''", "'a'", "'B'", "'b'", "'é'", "'É'", "'it''s'", "'back\\slash \"q\"'", "'NULL'", "E'tab\\tline\\n'", "'{a,b}'"],
        &["NULL", "'straße'", "'STRASSE'", "'Strasse'", "'A'"],
        &["NULL", "'sad'", "'fine'", "'very \"good\", it''s'"],
        &["NULL", "'{}'", "'{x}'", "'{NULL,y}'", "ARRAY['a', 'it''s \"\\']", "'[0:1]={x,z}'"],
        &["NULL", "'{}'", "'{\"k\": \"it''s\"}'", "'{\"k\": \"''\\\"\"}'", "'[\"k\"]'"],
        &["NULL", "true", "false"],
        &["NULL", "ROW(1, 'a\"b,(')", "ROW(NULL, NULL)", "ROW(2, '')"],
        &["NULL", "'\\x00ff'", "'\\x'"],
        &["NULL", "'ab'", "'abcd'"],
        &["NULL", "1", "2", "5"],
        &["NULL", "'10.1.2.3'", "'192.168.0.1/24'"],
        &["NULL", "'[1,9]'", "'empty'", "'(,5)'"],
        &["NULL", "'(2,2),(0,0)'", "'(9,9),(8,8)'"],
    ];
    let of = |choices: &&[&str]| choices[random.random_range(0..choices.len())].to_owned();
    choices.iter().map(of).collect::<Vec<_>>().join(", ")
}

const NAMES: &str = "n, price, real, at, day, span, name, low, mood, tags, doc, flag, pair, data, fixed, whole, address, places, box";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_matches_is_what_the_server_says_by_chunk_and_by_stream_whatever_the_types() {
    let server = PostgresServer::start().unwrap();
    let mut random = StdRng::seed_from_u64(7);
    let mut sql = format!(
        "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TYPE mood AS ENUM ('sad', 'fine', 'very \"good\", it''s'); CREATE TYPE pair AS (a int, b text);
         CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE TABLE mixed({COLUMNS});"
    );
    // What is dropped leaves a hole between the columns.
    sql +=
        "ALTER TABLE mixed ADD gone text; ALTER TABLE mixed ADD late int GENERATED ALWAYS AS (n + 1) STORED; ALTER TABLE mixed DROP gone;";
    for id in 0..60 {
        sql += &format!("INSERT INTO mixed (id, v, {NAMES}) VALUES ({id}, 0, {});", values(&mut random));
    }
    server.execute(&sql).unwrap();
    for condition in CONDITIONS {
        let mut pipeline = Pipeline::installed(&server, vec![filtered("mixed", condition)]).await;
        pipeline.start();
        let wanted = matching("mixed", condition);
        pipeline.agree(&server, &wanted).await;
        let chunks = pipeline.cached();
        assert!(!chunks.is_empty() && chunks.len() < 60, "{condition}: {} of 60", chunks.len());
        // Every row comes by in the stream as it is.
        server.execute("UPDATE mixed SET v = 1").unwrap();
        pipeline.agree(&server, &wanted).await;
        assert_eq!(pipeline.cached().keys().collect::<Vec<_>>(), chunks.keys().collect::<Vec<_>>(), "{condition}");
        // And as something else.
        let mut updates = String::new();
        for id in 0..60 {
            updates += &format!("UPDATE mixed SET v = 2, ({NAMES}) = ROW({}) WHERE id = {id};", values(&mut random));
        }
        server.execute(&format!("BEGIN; {updates} COMMIT")).unwrap();
        pipeline.agree(&server, &wanted).await;
        assert!(pipeline.broker.dead_letters().is_empty());
        pipeline.stop_publisher().await;
        postgres::uninstall(&pipeline.settings).await.unwrap();
    }
}

/// A write of any kind; some leave a row's filter as it is, some turn it, some move its key.
fn write(random: &mut StdRng) -> String {
    let (id, other, n) = (random.random_range(1..9), random.random_range(1..9), random.random_range(0..4));
    match random.random_range(0..9) {
        0..3 => format!("INSERT INTO t VALUES ({id}, 'm{id}', {n}, repeat('x', 9000)) ON CONFLICT (id) DO UPDATE SET n = {n}"),
        3 => format!("UPDATE t SET n = {n} WHERE id = {id}"),
        4 => format!("UPDATE t SET body = repeat('y', {n} * 3000 + 1) WHERE id = {id}"),
        5 => format!("UPDATE t SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM t WHERE id = {other})"),
        6 => format!("DELETE FROM t WHERE id = {id}"),
        7 => format!("UPDATE t SET mail = 'm' || CASE id WHEN {id} THEN {other} ELSE {id} END, n = {n} WHERE id IN ({id}, {other})"),
        _ => format!("SAVEPOINT s; UPDATE t SET n = {n}; ROLLBACK TO s; UPDATE t SET n = n + 1 WHERE id = {id}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_come_and_go_with_their_filter() {
    let server = PostgresServer::start().unwrap();
    const DEFERRED: &str = "UNIQUE DEFERRABLE INITIALLY DEFERRED";
    let by_mail = (Some("m:{mail}"), "'m:' || mail");
    for (round, ((key, name), unique)) in
        [((None, "'t:' || id"), DEFERRED), (by_mail, DEFERRED), (by_mail, "UNIQUE")].into_iter().enumerate()
    {
        server
            .execute(&format!(
                "DROP TABLE IF EXISTS t; CREATE TABLE t(id int PRIMARY KEY, mail text NOT NULL {unique}, n int, body text);
                 ALTER TABLE t ALTER body SET STORAGE EXTERNAL; ALTER TABLE t REPLICA IDENTITY {};
                 INSERT INTO t SELECT i, 'm' || i, i % 4, repeat('x', 9000) FROM generate_series(1, 8) i",
                if key.is_some() { "FULL" } else { "DEFAULT" }
            ))
            .unwrap();
        let filter = "n > 1 AND length(body) > 2 OR n IS NULL";
        let settings = TableSettings { key: key.map(str::to_owned), ..filtered("t", filter) };
        let mut pipeline = Pipeline::installed(&server, vec![settings]).await;
        pipeline.start();
        let wanted = format!("SELECT {name} || chr(9) || row_to_json(t) FROM t WHERE {filter}");
        pipeline.agree(&server, &wanted).await;
        let mut random = StdRng::seed_from_u64(round as u64);
        for _ in 0..25 {
            let writes: Vec<String> = (0..random.random_range(1..6)).map(|_| write(&mut random)).collect();
            // A deferred check may fail at the end; then nothing has happened.
            drop(server.execute(&format!("BEGIN; {}; COMMIT", writes.join("; "))));
            if random.random_range(0..3) == 0 {
                pipeline.resync(&["t"]).await;
            }
            pipeline.agree(&server, &wanted).await;
        }
        assert!(pipeline.broker.dead_letters().is_empty());
        pipeline.stop_publisher().await;
        postgres::uninstall(&pipeline.settings).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_value_that_an_update_leaves_alone_is_read_for_rows_that_match_alone() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE TABLE t(id int PRIMARY KEY, n int, body text); ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
             INSERT INTO t SELECT i, i % 3, repeat('x', 9000) FROM generate_series(1, 30) i",
        )
        .unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![filtered("t", "n = 1")]).await;
    pipeline.start();
    let wanted = matching("t", "n = 1");
    pipeline.agree(&server, &wanted).await;
    for statement in [
        "UPDATE t SET n = (n + 1) % 3",
        "UPDATE t SET n = 1 WHERE id < 20; UPDATE t SET n = 2 WHERE id = 5; UPDATE t SET id = -id WHERE id BETWEEN 10 AND 12",
        "UPDATE t SET n = 1; TRUNCATE t; INSERT INTO t VALUES (7, 1, repeat('y', 9000)), (8, 0, '')",
        "BEGIN; UPDATE t SET n = 1; UPDATE t SET body = 'short' WHERE id = 7; DELETE FROM t WHERE id = 8; COMMIT",
    ] {
        server.execute(statement).unwrap();
        pipeline.agree(&server, &wanted).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_the_filter_cannot_bear_is_set_aside_alone_and_comes_back_mended() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE FUNCTION picky(int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN IF $1 = 7 THEN RAISE 'seven'; END IF; RETURN true; END $$;
             CREATE TABLE t(id int PRIMARY KEY, n int, v int); INSERT INTO t SELECT i, i % 5, 0 FROM generate_series(1, 40) i;
             INSERT INTO t VALUES (41, 7, 0)",
        )
        .unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![filtered("t", "public.picky(n) AND 100 / n > 30")]).await;
    pipeline.start();
    let wanted = matching("t", "n <> 0 AND n <> 7 AND 100 / nullif(n, 0) > 30");
    pipeline.agree(&server, &wanted).await;
    // The rows that were set aside for this reason, from this letter on; each partition may have read them by a chunk of its own.
    let rows = |reason: &str, from: usize| -> BTreeSet<String> {
        let letters = pipeline.broker.dead_letters();
        let letters = letters[from..].iter().map(|letter| serde_json::from_slice::<serde_json::Value>(letter).unwrap());
        letters.filter(|letter| letter["reason"].as_str().unwrap().contains(reason)).map(|letter| letter["pk"].to_string()).collect()
    };
    assert_eq!((rows("division by zero", 0).len(), rows("seven", 0).len()), (8, 1), "by chunk");
    let before = pipeline.broker.dead_letters().len();
    server.execute("UPDATE t SET v = 1").unwrap();
    pipeline.agree(&server, &wanted).await;
    let reason =
        "the filter cannot be evaluated for this row: division by zero; mend the row, or write `where` so that it bears such a value";
    until("each to be set aside again", DEADLINE, async || {
        (rows(reason, before).len() == 8 && rows("seven", before).len() == 1).then_some(())
    })
    .await
    .unwrap();
    // What was cached goes when the filter cannot bear it any more, and comes back.
    server.execute("UPDATE t SET n = 0 WHERE n = 1").unwrap();
    pipeline.agree(&server, &wanted).await;
    server.execute("UPDATE t SET n = 2").unwrap();
    pipeline.agree(&server, &wanted).await;
    assert_eq!(pipeline.cached().len(), 41);
    // Read singly, too.
    server.execute("UPDATE t SET n = CASE id WHEN 1 THEN 0 WHEN 2 THEN 90 ELSE n END").unwrap();
    pipeline.agree(&server, &wanted).await;
    let single = async |key: &str| postgres::single_row(&pipeline.settings, 0, &[key.to_owned()]).await.unwrap();
    let (fails, differs, matches, none) = (single("1").await, single("2").await, single("3").await, single("99").await);
    assert!(matches!(fails.image, Image::Unreadable { key: Some(_), reason } if reason.contains("division by zero")));
    assert!(matches!((&differs.image, differs.exists), (Image::Absent { .. }, true)), "{differs:?}");
    assert!(matches!((&matches.image, matches.exists), (Image::Present { .. }, true)));
    assert!(matches!((&none.image, none.exists), (Image::Absent { .. }, false)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_code_a_filters_function_raises_the_row_alone_is_set_aside() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE FUNCTION coded(int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
                CASE $1 WHEN 1 THEN RETURN true;
                    WHEN 2 THEN RAISE 'two' USING ERRCODE = 'U0001';
                    WHEN 3 THEN PERFORM nowhere(1);
                    WHEN 4 THEN PERFORM 1 FROM nothing;
                    WHEN 5 THEN RAISE feature_not_supported; END CASE;
             END $$;
             CREATE TABLE t(id int PRIMARY KEY, n int, v int); INSERT INTO t SELECT i, 1, 0 FROM generate_series(1, 30) i;
             UPDATE t SET n = id - 20 WHERE id BETWEEN 21 AND 26",
        )
        .unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![filtered("t", "public.coded(n)")]).await;
    pipeline.start();
    let wanted = matching("t", "n = 1");
    let rows = |from: usize| -> BTreeSet<String> {
        let letters = pipeline.broker.dead_letters();
        let pk = |letter: &Vec<u8>| serde_json::from_slice::<serde_json::Value>(letter).unwrap()["pk"].to_string();
        letters[from..].iter().map(pk).collect()
    };
    pipeline.agree(&server, &wanted).await;
    until("the others to be set aside by chunk", DEADLINE, async || (rows(0).len() == 5).then_some(())).await.unwrap();
    let before = pipeline.broker.dead_letters().len();
    server.execute("UPDATE t SET v = 1").unwrap();
    pipeline.agree(&server, &wanted).await;
    until("the others to be set aside by stream", DEADLINE, async || (rows(before).len() == 5).then_some(())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_swap_their_names_turn_the_filter() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE COLLATION x (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
             CREATE TABLE t(id int PRIMARY KEY, a int, b int, name text); INSERT INTO t SELECT i, i % 2, i % 3, chr(64 + i % 2 * 32 + 1) FROM generate_series(1, 30) i",
        )
        .unwrap();
    let filter = "a = 1 OR name = 'A'";
    let settings = TableSettings { columns: Some(vec!["id".to_owned()]), ..filtered("t", filter) };
    let mut pipeline = Pipeline::installed(&server, vec![settings]).await;
    pipeline.start();
    let wanted = format!("SELECT 't:' || id || chr(9) || '{{\"id\":' || id || '}}' FROM t WHERE {filter}");
    for statement in
        ["SELECT 1", "ALTER TABLE t RENAME a TO a_old; ALTER TABLE t RENAME b TO a", "ALTER TABLE t ALTER name TYPE text COLLATE x"]
    {
        server.execute(statement).unwrap();
        pipeline.agree(&server, &wanted).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_left_out_for_its_filters_function_comes_back_with_it() {
    let server = PostgresServer::start().unwrap();
    let function = "CREATE FUNCTION picky(int) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1 > 10'";
    server
        .execute(&format!(
            "{function}; CREATE TABLE t(id int PRIMARY KEY, v int); CREATE TABLE o(id int PRIMARY KEY);
             INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i"
        ))
        .unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![filtered("t", "public.picky(id)"), table("o", None)]).await;
    pipeline.start();
    let wanted = format!("{} UNION ALL {}", matching("t", "id > 10"), oracle("o"));
    pipeline.agree(&server, &wanted).await;
    server.execute("DROP FUNCTION picky; UPDATE t SET v = 1; INSERT INTO o VALUES (1)").unwrap();
    until("the other table to go on", DEADLINE, async || pipeline.cached().contains_key("o:1").then_some(())).await.unwrap();
    server.execute(function).unwrap();
    pipeline.agree(&server, &wanted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_condition_that_does_not_follow_from_the_row_alone_is_refused_where_it_stands() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE TABLE other(x int); CREATE FUNCTION changing(int) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
             CREATE EXTENSION citext;
             CREATE TABLE users(id int PRIMARY KEY, active int, word citext, at timestamptz, \"date\" text, total int GENERATED ALWAYS AS (id + 1) STORED)",
        )
        .unwrap();
    let settings = |filter: &str| PostgresSettings {
        tables: vec![filtered("users", filter)],
        ..PostgresSettings::new(Server::parse(&server.url()).unwrap(), "shop")
    };
    let mut said = String::new();
    for filter in [
        "",
        "active = 1) OR (true",
        "actve = 1",
        "active = (SELECT max(x) FROM other)",
        "active IN (SELECT x FROM other)",
        "random() > 0",
        "at > now()",
        "at::date = '2026-01-01'",
        "public.changing(active)",
        "active = $1",
        "count(*) > 1",
        "row_number() OVER () = 1",
        "generate_series(1, 2) = 1",
        "users IS NULL",
        "ctid IS NULL",
        "tableoid IS NULL",
        "other.x = 1",
        "active",
        "active, id",
        "frob(active)",
        "active = 'x'",
        "active = 1 / 0",
        "active =",
        "word = 'x'",
        "at > 'tomorrow'",
    ] {
        let found = postgres::check(&settings(filter)).await;
        let about: Vec<_> =
            found.iter().filter(|finding| finding.about == Some((0, Setting::Where)) && finding.grade == Grade::Stops).collect();
        let [finding] = &about[..] else { panic!("{filter}: {found:?}") };
        let message = finding.message.strip_prefix("table users: `where` ").unwrap();
        said += &format!("{filter:?} {message} → {}\n", finding.remedy.as_deref().unwrap_or("-"));
        let error = postgres::install(&settings(filter)).await.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    insta::assert_snapshot!(said, @r#"
    "" is empty → leave it out to cache every row
    "active = 1) OR (true" closes with ) what it does not open → -
    "actve = 1" names a column that does not exist (column "actve" does not exist) → Perhaps you meant to reference the column "users.active"
    "active = (SELECT max(x) FROM other)" has a subquery, but a change of other rows would not be seen → use the columns of the row alone
    "active IN (SELECT x FROM other)" has a subquery, but a change of other rows would not be seen → use the columns of the row alone
    "random() > 0" has a result that may change by itself (the time now, random, what depends on the session's time zone or language, functions that are not IMMUTABLE) → compare columns, and say the time zone where one is needed (AT TIME ZONE 'UTC')
    "at > now()" has a result that may change by itself (the time now, random, what depends on the session's time zone or language, functions that are not IMMUTABLE) → compare columns, and say the time zone where one is needed (AT TIME ZONE 'UTC')
    "at::date = '2026-01-01'" has a result that may change by itself (the time now, random, what depends on the session's time zone or language, functions that are not IMMUTABLE) → compare columns, and say the time zone where one is needed (AT TIME ZONE 'UTC')
    "public.changing(active)" has a result that may change by itself (the time now, random, what depends on the session's time zone or language, functions that are not IMMUTABLE) → compare columns, and say the time zone where one is needed (AT TIME ZONE 'UTC')
    "active = $1" has a parameter ($1), and nobody gives it a value → -
    "count(*) > 1" looks at many rows (an aggregate or a window function) → use the columns of the row alone
    "row_number() OVER () = 1" looks at many rows (an aggregate or a window function) → use the columns of the row alone
    "generate_series(1, 2) = 1" has a function that returns rows (set-returning functions are not allowed in column generation expressions) → use the columns of the row alone
    "users IS NULL" takes the row as a whole → compare its columns one by one
    "ctid IS NULL" uses a column of the system's (ctid and the like), which may change by itself → use a column of the table
    "tableoid IS NULL" names a column that does not exist (column "tableoid" does not exist) → -
    "other.x = 1" names another table (missing FROM-clause entry for table "other") → use the columns of the row alone
    "active" is no condition (argument of IS TRUE must be type boolean, not type integer) → write one that is true or false
    "active, id" is no condition (argument of IS TRUE must be type boolean, not type record) → write one that is true or false
    "frob(active)" uses a function or an operator that does not exist (function frob(integer) does not exist) → those that are not PostgreSQL's own are written with their schema (public.f(x), x OPERATOR(public.+) y)
    "active = 'x'" is not a condition that PostgreSQL takes (invalid input syntax for type integer: "x") → -
    "active = 1 / 0" is not a condition that PostgreSQL takes (division by zero) → -
    "active =" is not a condition that PostgreSQL takes (syntax error at or near ")") → -
    "word = 'x'" names the column word of the type public.citext, which is not PostgreSQL's own, so that its operators would not be found and others be used in silence → compare a generated column that is made of it (word::text, say)
    "at > 'tomorrow'" has the text 'tomorrow', which may stand for the time at which it is read → write the date itself
    "#);
    for filter in ["users.total > 3", "TRUE", "active = 1 AND at > '2026-01-01' AND \"date\" LIKE '%;)' /* fine */", "3 > 2"] {
        let found = postgres::check(&settings(filter)).await;
        assert!(found.iter().all(|finding| finding.about.is_none_or(|(_, setting)| setting != Setting::Where)), "{filter}: {found:?}");
    }
    // Nothing is left of the asking.
    assert_eq!(server.execute("SELECT count(*) FROM pg_class WHERE relpersistence = 't'").unwrap(), "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_columns_are_the_same_by_chunk_and_by_stream() {
    let server = PostgresServer::start().unwrap();
    server
        .execute(
            "CREATE FUNCTION shout(text) RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT upper($1) || '!' $$;
             CREATE TABLE t(id int PRIMARY KEY, dropped text, n numeric(10,2), at timestamptz, body text,
                twice numeric(12,3) GENERATED ALWAYS AS (n * 2) STORED, loud text GENERATED ALWAYS AS (shout(body)) STORED,
                day date GENERATED ALWAYS AS ((at AT TIME ZONE 'Asia/Tokyo')::date) STORED, code char(5) GENERATED ALWAYS AS ('é' || id) STORED,
                fixed int GENERATED ALWAYS AS (7) STORED, list text[] GENERATED ALWAYS AS (ARRAY[body, NULL]) STORED, v int);
             ALTER TABLE t ALTER body SET STORAGE EXTERNAL; ALTER TABLE t ALTER loud SET STORAGE EXTERNAL; ALTER TABLE t DROP dropped;
             CREATE TABLE p(id int, n int, twice bigint GENERATED ALWAYS AS (n * 2) STORED, PRIMARY KEY (id)) PARTITION BY RANGE (id);
             CREATE TABLE p2(v text, twice bigint GENERATED ALWAYS AS (n * 2) STORED, n int, id int NOT NULL); ALTER TABLE p2 DROP v;
             CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (50); ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (50) TO (99);
             INSERT INTO t (id, n, at, body) SELECT i, i * 1.005, '2026-01-01'::timestamptz + i * interval '5 hours', E'it''s \\\\ \"' || i
             FROM generate_series(1, 30) i; INSERT INTO p SELECT i, i FROM generate_series(1, 98) i",
        )
        .unwrap();
    let mut pipeline = Pipeline::installed(&server, vec![table("t", None), table("p", None)]).await;
    pipeline.start();
    let wanted = format!("{} UNION ALL {}", oracle("t"), oracle("p"));
    pipeline.agree(&server, &wanted).await;
    for statement in [
        "UPDATE t SET v = 1; UPDATE p SET n = n + 1",
        "UPDATE t SET n = n + 0.01, at = at + interval '7 hours' WHERE id < 20",
        "UPDATE t SET body = NULL WHERE id = 3; UPDATE t SET n = 'NaN' WHERE id = 4",
        // Large values that the next change does not repeat.
        "UPDATE t SET body = repeat('x', 9000) WHERE id IN (5, 6)",
        "UPDATE t SET v = 2",
        "UPDATE t SET id = id + 100 WHERE id > 25; UPDATE p SET id = id + 20 WHERE id BETWEEN 31 AND 33 AND false; DELETE FROM p WHERE id < 10",
        "UPDATE p SET id = 5 WHERE id = 60; UPDATE p SET id = 60 WHERE id = 20",
        "ALTER TABLE t ADD late bigint GENERATED ALWAYS AS (id + 1) STORED; UPDATE t SET v = 3",
        "ALTER TABLE t DROP COLUMN day; UPDATE t SET v = 4 WHERE id % 2 = 0",
    ] {
        server.execute(statement).unwrap();
        pipeline.agree(&server, &wanted).await;
    }
    assert!(pipeline.broker.dead_letters().is_empty());
    pipeline.stop_publisher().await;
}
