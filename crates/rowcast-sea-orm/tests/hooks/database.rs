//! A database in a temporary folder, and what its changelog says.

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbErr};
use tempfile::TempDir;

const TABLES: &str = "
    CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE countries(code TEXT PRIMARY KEY NOT NULL COLLATE NOCASE, name TEXT NOT NULL);
    CREATE TABLE memberships(team TEXT NOT NULL, user_id INTEGER NOT NULL, badge BLOB NOT NULL, role TEXT NOT NULL,
        PRIMARY KEY(team, user_id, badge)) WITHOUT ROWID;
    CREATE TABLE wide(a INTEGER, b INTEGER, c INTEGER, d INTEGER, e INTEGER, PRIMARY KEY(a, b, c, d, e));
    CREATE TABLE notes(id INTEGER PRIMARY KEY, text TEXT NOT NULL);
    CREATE TABLE projects(id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE tasks(id INTEGER PRIMARY KEY, project_id INTEGER NOT NULL REFERENCES projects(id), title TEXT NOT NULL);";

/// The folder goes when this goes.
pub struct TestDatabase {
    pub db: DatabaseConnection,
    _folder: TempDir,
}

impl TestDatabase {
    /// With tables, without a changelog.
    pub async fn without_changelog() -> TestDatabase {
        let folder = tempfile::tempdir().unwrap();
        let mut options = ConnectOptions::new(format!("sqlite:{}?mode=rwc", folder.path().join("app.db").display()));
        // SeaORM opens one for SQLite, with which nobody could look from outside while a transaction is open.
        options.max_connections(4);
        let db = Database::connect(options).await.unwrap();
        db.execute_unprepared("PRAGMA journal_mode = WAL").await.unwrap();
        db.execute_unprepared(TABLES).await.unwrap();
        TestDatabase { db, _folder: folder }
    }

    /// With tables and a changelog.
    pub async fn installed() -> TestDatabase {
        let database = TestDatabase::without_changelog().await;
        rowcast_sea_orm::install(&database.db).await.unwrap();
        database
    }

    /// The changelog, oldest first: table, operation and the key as SQL literals, so that types show.
    pub async fn changelog(&self) -> Vec<String> {
        changelog(&self.db).await
    }

    /// How many rows a table has.
    pub async fn count(&self, table: &str) -> i64 {
        self.text(&format!("SELECT CAST(count(*) AS TEXT) FROM {table}")).await.parse().unwrap()
    }

    /// The one value of a query.
    pub async fn text(&self, sql: &str) -> String {
        texts(&self.db, sql).await.remove(0)
    }
}

/// The changelog as this connection sees it.
pub async fn changelog<C: ConnectionTrait>(db: &C) -> Vec<String> {
    let sql = "SELECT coalesce(name, '?') || ' ' || op || ' ' || quote(v1)
                   || CASE WHEN v2 IS NULL THEN '' ELSE ',' || quote(v2) END
                   || CASE WHEN v3 IS NULL THEN '' ELSE ',' || quote(v3) END
                   || CASE WHEN v4 IS NULL THEN '' ELSE ',' || quote(v4) END
               FROM rowcast_changelog LEFT JOIN rowcast_table ON number = tbl ORDER BY id";
    texts(db, sql).await
}

/// The first column of every row.
pub async fn texts<C: ConnectionTrait>(db: &C, sql: &str) -> Vec<String> {
    let rows = db.query_all_raw(sea_orm::Statement::from_string(sea_orm::DatabaseBackend::Sqlite, sql)).await.unwrap();
    rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
}

/// The error, of which every part must be there.
#[track_caller]
pub fn assert_says<T: std::fmt::Debug>(result: Result<T, DbErr>, parts: &[&str]) {
    let text = result.expect_err("this must be refused").to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}
