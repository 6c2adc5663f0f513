//! A database that was not made for rowcast, from `init` to `run`, with random writes to all of its tables.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use rand::prelude::*;
use rand::rngs::StdRng;
use rowcast_testkit::rabbitmq::RabbitServer;
use rowcast_testkit::redis::RedisServer;
use rowcast_testkit::wait::until;
use rusqlite::Connection;
use serde_json::Value;

use super::{DEADLINE, end, rowcast, start};

/// Each table with its primary key.
const TABLES: [(&str, &[&str]); 11] = [
    ("Artist", &["ArtistId"]),
    ("Album", &["AlbumId"]),
    ("Genre", &["GenreId"]),
    ("MediaType", &["MediaTypeId"]),
    ("Track", &["TrackId"]),
    ("Playlist", &["PlaylistId"]),
    ("PlaylistTrack", &["PlaylistId", "TrackId"]),
    ("Employee", &["EmployeeId"]),
    ("Customer", &["CustomerId"]),
    ("Invoice", &["InvoiceId"]),
    ("InvoiceLine", &["InvoiceId", "Line"]),
];

/// Key → row of every table that there is, by SQLite's own words.
fn expected(db: &Connection) -> BTreeMap<String, String> {
    let mut expected = BTreeMap::new();
    for (table, key) in TABLES {
        let columns: Vec<String> = db
            .prepare("SELECT name FROM pragma_table_xinfo(?1)")
            .unwrap()
            .query_map([table], |row| row.get(0))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        if columns.is_empty() {
            continue;
        }
        let fields: Vec<String> = columns
            .iter()
            .map(|name| format!("'{name}', CASE typeof(\"{name}\") WHEN 'blob' THEN lower(hex(\"{name}\")) ELSE \"{name}\" END"))
            .collect();
        let sql = format!("SELECT '{table}:' || {}, json_object({}) FROM {table}", key.join(" || ':' || "), fields.join(", "));
        let mut statement = db.prepare(&sql).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        expected.extend(rows.map(Result::unwrap));
    }
    expected
}

async fn cached(redis: &RedisServer) -> BTreeMap<String, String> {
    let keys: Vec<String> = redis.query(&["KEYS", "*"]).await.unwrap();
    let keys: Vec<&str> = keys.iter().map(String::as_str).filter(|key| !key.starts_with("rowcast:{")).collect();
    let mut command = vec!["MGET"];
    command.extend(&keys);
    let values: Vec<Option<String>> = if keys.is_empty() { Vec::new() } else { redis.query(&command).await.unwrap() };
    keys.into_iter().map(str::to_owned).zip(values).filter_map(|(key, value)| Some((key, value?))).collect()
}

async fn agree(db: &Connection, redis: &RedisServer) {
    let expected = expected(db);
    let differing = RefCell::new(Vec::<String>::new());
    let agreed = until("every key to be as its row", DEADLINE, async || {
        let found = cached(redis).await;
        let keys: std::collections::BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
        let differ: Vec<String> = keys.into_iter().filter(|key| expected.get(*key) != found.get(*key)).take(10).cloned().collect();
        let agreed = differ.is_empty().then_some(());
        differing.replace(differ);
        agreed
    });
    agreed.await.unwrap_or_else(|error| panic!("{error}: {:?}", differing.borrow()));
}

/// Random statements; one that violates a constraint is one that did nothing.
fn write(db: &Connection, rng: &mut StdRng, count: usize) {
    for _ in 0..count {
        let (i, j, k) = (rng.random_range(1..310), rng.random_range(1..6), rng.random_range(1..6));
        let statements = [
            format!("INSERT INTO Artist (Name) VALUES ('artist {i}')"),
            format!("DELETE FROM Artist WHERE ArtistId = {i}"),
            format!("UPDATE OR REPLACE Artist SET ArtistId = {j} WHERE ArtistId = {k}"),
            format!("INSERT OR REPLACE INTO Album VALUES ({j}, 'album {i}', {k})"),
            format!("REPLACE INTO Genre VALUES ({j}, (SELECT upper(Name) FROM Genre WHERE GenreId = {k}))"),
            format!("INSERT INTO Genre VALUES ({j}, 'genre {i}') ON CONFLICT DO UPDATE SET Name = excluded.Name"),
            format!("INSERT INTO MediaType (MediaTypeId) VALUES ({j})"),
            format!("UPDATE Track SET UnitPrice = {k}.25, Milliseconds = {i} WHERE TrackId % 7 = {j}"),
            format!(
                "UPDATE Track SET Name = t.Name || '{j}' FROM (SELECT * FROM Track WHERE TrackId = {i}) AS t WHERE Track.TrackId = {i} + 1"
            ),
            format!(
                "INSERT OR REPLACE INTO Track (TrackId, Name, Milliseconds, Cover, UnitPrice) VALUES ({i}, 'fresh', {k}, x'0{j}', {j})"
            ),
            format!("DELETE FROM Track WHERE TrackId = {i}"),
            format!("REPLACE INTO Playlist VALUES ({j}, 'list {i}')"),
            format!("INSERT OR IGNORE INTO PlaylistTrack SELECT {j}, TrackId FROM Track WHERE TrackId % 50 = {k}"),
            format!("UPDATE OR REPLACE PlaylistTrack SET PlaylistId = {j} WHERE TrackId % 20 = {k}"),
            format!("INSERT INTO Employee (LastName, ReportsTo, Email) VALUES ('E{i}', {j}, 'e{k}@example.com')"),
            format!("UPDATE Employee SET Email = 'e{j}@example.com' WHERE EmployeeId = {k}"),
            format!("INSERT OR REPLACE INTO Customer VALUES ({j}, 'C{i}', 'C{k}@Example.com', {j})"),
            format!("UPDATE OR REPLACE Customer SET Email = 'c{j}@example.com' WHERE CustomerId = {k}"),
            format!("DELETE FROM Customer WHERE CustomerId = {j}"),
            format!("INSERT INTO Invoice (CustomerId) VALUES ({j})"),
            format!("INSERT OR REPLACE INTO InvoiceLine SELECT InvoiceId, {k}, {i}, {j} FROM Invoice WHERE InvoiceId % 5 = {k}"),
            format!("DELETE FROM InvoiceLine WHERE Line = {j} AND TrackId % 2 = 0"),
        ];
        db.execute_batch("BEGIN").unwrap();
        for _ in 0..rng.random_range(1..4) {
            let statement = statements.choose(rng).unwrap();
            if let Err(error) = db.execute_batch(statement) {
                assert!(error.to_string().contains("constraint failed"), "{statement}: {error}");
            }
        }
        db.execute_batch(if rng.random_bool(0.9) { "COMMIT" } else { "ROLLBACK" }).unwrap();
    }
}

#[tokio::test]
async fn a_music_shop_is_cached_from_init_to_run_and_through_a_migration() {
    let (rabbit, redis) = (RabbitServer::start().unwrap(), RedisServer::start().await.unwrap());
    let folder = tempfile::tempdir().unwrap();
    let folder: &Path = folder.path();
    let db = Connection::open(folder.join("music.db")).unwrap();
    db.busy_timeout(DEADLINE).unwrap();
    db.execute_batch(include_str!("schema.sql")).unwrap();
    db.execute_batch("PRAGMA foreign_keys = ON").unwrap();

    let said = rowcast(folder, &["init", "sqlite:music.db"]);
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && text.contains("with 11 tables of music.db"), "{text}");
    for left_out in ["left out Clicks: it has no primary key", "left out TrackWords: it is a virtual table"] {
        assert!(text.contains(left_out), "{text}");
    }
    let path = folder.join("rowcast.toml");
    let configuration =
        std::fs::read_to_string(&path).unwrap().replace("amqp://localhost", &rabbit.url()).replace("redis://localhost", &redis.url());
    std::fs::write(&path, configuration).unwrap();
    let check = || {
        let said = rowcast(folder, &["check", "--json"]);
        let report: Value = serde_json::from_slice(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"));
        let found = report["findings"].as_array().unwrap().iter().filter(|finding| finding["grade"] == "stops");
        (said.status.code(), found.map(|finding| (finding["message"].clone(), finding["remedy"].clone())).collect::<Vec<_>>())
    };
    assert_eq!(check(), (Some(1), vec![("music.db has no changelog yet".into(), "run `rowcast install`".into())]));
    let said = rowcast(folder, &["install"]);
    assert!(said.status.success(), "{said:?}");
    assert_eq!(check(), (Some(0), Vec::new()));

    let seed = std::env::var("ROWCAST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("ROWCAST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    write(&db, &mut rng, 50);
    let run = start(folder, "run", "run.log");
    write(&db, &mut rng, 200);
    agree(&db, &redis).await;
    write(&db, &mut rng, 200);
    agree(&db, &redis).await;

    // A migration: a column more, another name for one, a table that goes.
    db.execute_batch(
        "ALTER TABLE Track ADD COLUMN Rating INTEGER NOT NULL DEFAULT 3; ALTER TABLE Customer RENAME COLUMN \"First Name\" TO FirstName; \
         DROP TABLE MediaType",
    )
    .unwrap();
    agree(&db, &redis).await;
    db.execute_batch("CREATE TABLE MediaType (MediaTypeId INTEGER PRIMARY KEY, Name TEXT); INSERT INTO MediaType VALUES (7, 'again')")
        .unwrap();
    write(&db, &mut rng, 100);
    agree(&db, &redis).await;
    assert_eq!(check(), (Some(0), Vec::new()), "nothing stops a pipeline at work");
    end(run).await;
    let log = std::fs::read_to_string(folder.join("run.log")).unwrap();
    assert!(log.contains("table MediaType is left out") && !log.contains("panicked"), "{log}");
    assert_eq!(rabbit.control(&["list_queues", "name", "messages", "--no-table-headers"]).unwrap().matches(".dead\t0").count(), 1);
    let said = rowcast(folder, &["uninstall"]);
    assert!(said.status.success(), "{said:?}");
    db.execute_batch("INSERT INTO Artist (Name) VALUES ('the shop goes on')").unwrap();
}
