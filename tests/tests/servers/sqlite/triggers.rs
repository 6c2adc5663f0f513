//! Whatever a writer does to a table of whatever shape, the changelog names every row that is different afterwards.

use rand::prelude::*;
use rand::rngs::StdRng;
use rowcast::source::sqlite::install;

use super::statements::{Shape, shapes};
use super::writer::{Python, Writer, bundled};
use super::{Follower, application, newest, oracle, schemas, settings};

/// How many random schemas are tried where the environment does not say (`ROWCAST_SCHEMAS`, from `ROWCAST_SEED` on).
const SCHEMAS: u64 = 60;

/// Does random statements to a table and compares, after every few, what was streamed with what the table holds. `strike` happens once
/// the history has begun. Returns what went wrong first.
pub async fn random_run(
    shape: &Shape,
    seed: u64,
    steps: usize,
    open: impl Fn(&std::path::Path) -> Box<dyn Writer>,
    strike: impl FnOnce(&std::path::Path),
) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let reader = application(&path);
    let context = |said: &[String], follower: Option<&Follower>| {
        let last = follower.map(|follower| format!("{:#?}", follower.last)).unwrap_or_default();
        format!(
            "shape {}, seed {seed}, schema\n{}{}\nlast statements {:#?}, last changes {last}",
            shape.name,
            shape.ddl,
            shape.later,
            &said[said.len().saturating_sub(6)..]
        )
    };
    reader.execute_batch(&format!("PRAGMA synchronous = OFF; {}", shape.ddl)).unwrap_or_else(|error| panic!("{error}: {}", shape.ddl));
    let settings = settings(&path, &[(&shape.table, shape.key.as_deref())]);
    install(&settings).unwrap_or_else(|error| panic!("{error}: {}", shape.ddl));
    reader.execute_batch(&shape.later).unwrap_or_else(|error| panic!("{error}: {}", context(&[], None)));
    let mut follower = Follower::begin(&settings).await;
    strike(&path);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut writer = open(&path);
    writer.execute(&format!("PRAGMA recursive_triggers = {}", seed % 2));
    writer.execute("PRAGMA synchronous = OFF");
    let mut said = Vec::new();
    for _ in 0..steps {
        for _ in 0..rng.random_range(1..=3) {
            let transaction = shape.transaction(&mut rng);
            writer.execute(&transaction);
            // A statement that failed may have left the transaction open.
            if transaction.contains('\n') {
                writer.execute("ROLLBACK");
            }
            said.push(transaction);
        }
        follower.follow(newest(&reader)).await.unwrap();
        let [by_key, by_pk] = oracle(&reader, &follower.start.tables[0], &shape.primary_key);
        if shape.has_keys && follower.rows != by_key {
            return Err(format!("streamed {:#?}\nheld {by_key:#?}\n{}", follower.rows, context(&said, Some(&follower))));
        }
        let only_pk = follower.start.tables[0].descriptor.keys.template.columns().all(|column| shape.primary_key.contains(&column.column));
        if only_pk && follower.by_pk != by_pk {
            return Err(format!("streamed {:#?}\nheld {by_pk:#?}\n{}", follower.by_pk, context(&said, Some(&follower))));
        }
    }
    Ok(())
}

fn nothing(_: &std::path::Path) {}

fn agreed(outcome: Result<(), String>) {
    outcome.unwrap_or_else(|difference| panic!("{difference}"));
}

#[tokio::test]
async fn what_is_streamed_is_what_the_table_holds() {
    for shape in shapes() {
        for seed in 0..8 {
            agreed(random_run(&shape, seed, 80, bundled, nothing).await);
        }
    }
}

#[tokio::test]
async fn what_another_sqlite_writes_is_streamed_too() {
    for shape in shapes() {
        for seed in 0..2 {
            agreed(random_run(&shape, seed, 40, |path| Box::new(Python::start(path)), nothing).await);
        }
    }
}

/// The first seed, and how many follow it.
fn seeds(few: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number")));
    let first = number("ROWCAST_SEED").unwrap_or(0);
    first..first + number("ROWCAST_SCHEMAS").unwrap_or(few)
}

#[tokio::test]
async fn tables_of_random_schemas_are_streamed_as_they_are() {
    for seed in seeds(SCHEMAS) {
        agreed(random_run(&schemas::random(seed), seed, 25, bundled, nothing).await);
    }
}

#[tokio::test]
async fn tables_of_random_schemas_that_another_sqlite_writes_are_streamed_as_they_are() {
    for seed in seeds(SCHEMAS / 5) {
        agreed(random_run(&schemas::random(seed), seed, 15, |path| Box::new(Python::start(path)), nothing).await);
    }
}

#[tokio::test]
async fn what_a_foreign_key_does_to_another_table_is_streamed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = application(&path);
    app.execute_batch(
        "CREATE TABLE parent(id INTEGER PRIMARY KEY, name TEXT UNIQUE); \
         CREATE TABLE child(id INTEGER PRIMARY KEY, parent INTEGER NOT NULL REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE); \
         CREATE TABLE loose(id INTEGER PRIMARY KEY, parent INTEGER REFERENCES parent ON DELETE SET NULL)",
    )
    .unwrap();
    let settings = settings(&path, &[("child", Some("c:{id}")), ("loose", Some("l:{id}"))]);
    let mut follower = Follower::begin(&settings).await;
    for statement in [
        "INSERT INTO parent VALUES(1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')",
        "INSERT INTO child VALUES(1, 1), (2, 2), (3, 3), (4, 4); INSERT INTO loose VALUES(1, 1), (2, 2), (3, 3), (4, 4)",
        "UPDATE parent SET id = 20 WHERE id = 2 AND NOT EXISTS (SELECT * FROM loose WHERE loose.parent = 2)",
        "DELETE FROM loose WHERE id = 2; UPDATE parent SET id = 20 WHERE id = 2",
        "DELETE FROM parent WHERE id = 1",
        "REPLACE INTO parent VALUES(30, 'c')",
        "UPDATE OR REPLACE parent SET name = 'd' WHERE id = 30",
    ] {
        app.execute_batch(statement).unwrap();
        follower.follow(newest(&app)).await.unwrap();
        let mut held = oracle(&app, &follower.start.tables[0], &["id"])[0].clone();
        held.extend(oracle(&app, &follower.start.tables[1], &["id"])[0].clone());
        assert_eq!(follower.rows, held, "{statement}");
    }
    assert_eq!(follower.rows.keys().collect::<Vec<_>>(), ["c:2", "l:1", "l:3", "l:4"]);
}
