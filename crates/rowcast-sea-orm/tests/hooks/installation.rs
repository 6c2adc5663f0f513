//! Creating the changelog, and doing without it.

use sea_orm::{ActiveModelTrait, ConnectionTrait, Database, Set, TransactionTrait, Unchanged};

use crate::database::{TestDatabase, assert_says, texts};
use crate::entities::user;

const MISSING: &[&str] = &["users", "no rowcast changelog", "rowcast install", "rowcast_sea_orm::install"];

fn ada() -> user::ActiveModel {
    user::ActiveModel { name: Set("Ada".to_owned()), ..Default::default() }
}

#[tokio::test]
async fn the_tables_are_those_that_rowcast_reads() {
    let database = TestDatabase::installed().await;
    let tables = texts(&database.db, "SELECT sql FROM sqlite_master WHERE name LIKE 'rowcast\\_%' ESCAPE '\\' ORDER BY rowid").await;
    assert_eq!(
        tables,
        [
            "CREATE TABLE rowcast_meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID",
            "CREATE TABLE rowcast_table(number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, capture TEXT NOT NULL)",
            "CREATE TABLE rowcast_changelog(id INTEGER PRIMARY KEY, tbl, op, at, v1, v2, v3, v4)",
        ]
    );
    let meta = "SELECT name || ' ' || typeof(value) || ' ' || iif(typeof(value) = 'text', length(value), value) FROM rowcast_meta";
    assert_eq!(texts(&database.db, meta).await, ["database text 32", "forgotten integer 0", "format integer 1", "generation text 32"]);
    assert_eq!(database.text("SELECT CAST(count(DISTINCT value) AS TEXT) FROM rowcast_meta").await, "4");
}

#[tokio::test]
async fn installing_again_changes_nothing() {
    let database = TestDatabase::installed().await;
    let txn = database.db.begin().await.unwrap();
    ada().insert(&txn).await.unwrap();
    txn.commit().await.unwrap();
    let everything = "SELECT name || value FROM rowcast_meta UNION ALL SELECT number || name || capture FROM rowcast_table
                      UNION ALL SELECT id || '/' || tbl || op || v1 FROM rowcast_changelog";
    let before = texts(&database.db, everything).await;
    rowcast_sea_orm::install(&database.db).await.unwrap();
    assert_eq!(texts(&database.db, everything).await, before);
}

#[tokio::test]
async fn two_databases_never_share_an_identity() {
    let (one, other) = (TestDatabase::installed().await, TestDatabase::installed().await);
    let identity = "SELECT value FROM rowcast_meta WHERE name = 'database'";
    assert_ne!(one.text(identity).await, other.text(identity).await);
}

#[tokio::test]
async fn installing_is_part_of_a_surrounding_transaction() {
    let database = TestDatabase::without_changelog().await;
    let txn = database.db.begin().await.unwrap();
    rowcast_sea_orm::install(&txn).await.unwrap();
    ada().insert(&txn).await.unwrap();
    txn.rollback().await.unwrap();
    assert_eq!(database.count("sqlite_master WHERE name LIKE 'rowcast%'").await, 0);
}

#[tokio::test]
async fn another_format_is_refused() {
    let database = TestDatabase::installed().await;
    database.db.execute_unprepared("UPDATE rowcast_meta SET value = 2 WHERE name = 'format'").await.unwrap();
    assert_says(rowcast_sea_orm::install(&database.db).await, &["format 2", "format 1"]);
}

#[tokio::test]
async fn without_a_changelog_the_error_says_how_to_get_one() {
    let database = TestDatabase::without_changelog().await;
    database.db.execute_unprepared("INSERT INTO users VALUES (1, 'Ada')").await.unwrap();
    let row = || user::ActiveModel { id: Unchanged(1), name: Set("Countess".to_owned()) };
    assert_says(ada().insert(&database.db).await, MISSING);

    let txn = database.db.begin().await.unwrap();
    assert_says(row().update(&txn).await, MISSING);
    assert_says(row().delete(&txn).await, MISSING);
    assert_says(ada().insert(&txn).await, MISSING);
    txn.rollback().await.unwrap();
    assert_eq!(database.text("SELECT name FROM users").await, "Ada");
}

#[tokio::test]
async fn a_table_of_an_attached_database_is_refused() {
    let db = Database::connect("sqlite::memory:").await.unwrap();
    rowcast_sea_orm::install(&db).await.unwrap();
    db.execute_unprepared("ATTACH ':memory:' AS other; CREATE TABLE other.users(id INTEGER PRIMARY KEY, name TEXT)").await.unwrap();
    let txn = db.begin().await.unwrap();
    assert_says(elsewhere::ActiveModel { id: Set(1) }.insert(&txn).await, &["users", "attached database \"other\""]);
}

mod elsewhere {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(schema_name = "other", table_name = "users")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
    }

    #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    rowcast_sea_orm::hooks!(ActiveModel);
}
