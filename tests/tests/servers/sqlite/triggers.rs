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
