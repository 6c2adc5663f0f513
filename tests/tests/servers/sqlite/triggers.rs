//! Whatever a writer does to a table of whatever shape, the changelog names every row that is different afterwards.

use rand::prelude::*;
use rand::rngs::StdRng;

use super::statements::{SHAPES, Shape};
use super::writer::{Python, Writer, bundled};
use super::{Follower, application, newest, oracle, settings};

async fn random_run(shape: &Shape, seed: u64, steps: usize, open: impl Fn(&std::path::Path) -> Box<dyn Writer>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let reader = application(&path);
    reader.execute_batch(&format!("PRAGMA journal_mode = WAL; {}", shape.ddl)).unwrap();
    let settings = settings(&path, &[(shape.table, shape.key)]);
    let mut follower = Follower::begin(&settings).await;
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
        let [by_key, by_pk] = oracle(&reader, &follower.start.tables[0], shape.primary_key);
        let context = || {
            format!(
                "shape {:?}, seed {seed}, last statements {:#?}, last changes {:#?}",
                shape.name,
                &said[said.len().saturating_sub(4)..],
                follower.last
            )
        };
        if shape.has_keys {
            assert_eq!(follower.rows, by_key, "{}", context());
        }
        if shape.key.is_none() {
            assert_eq!(follower.by_pk, by_pk, "{}", context());
        }
    }
}

#[tokio::test]
async fn what_is_streamed_is_what_the_table_holds() {
    for shape in SHAPES {
        for seed in 0..8 {
            random_run(shape, seed, 120, bundled).await;
        }
    }
}

#[tokio::test]
async fn what_another_sqlite_writes_is_streamed_too() {
    for shape in SHAPES {
        for seed in 0..2 {
            random_run(shape, seed, 60, |path| Box::new(Python::start(path))).await;
        }
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
