//! A SQLite database, and what can only be done to one.

mod more;
mod options;
mod schema;
mod source;
mod statements;
mod ten;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rowcast_testkit::folder::Folder;
use rowcast_testkit::wait::until_blocking;
use rusqlite::Connection;

use super::contents::Contents;
use super::database::{Application, Database};
use super::world::AGREEMENT;
use statements::Statements;

pub use schema::Tables;

/// The database in a folder of its own.
#[derive(Debug)]
pub struct Sqlite {
    tables: Tables,
    folder: Folder,
}

/// A connection as an application opens it.
fn connect(path: &Path) -> Connection {
    let connection = Connection::open(path).expect("the database opens");
    connection.busy_timeout(Duration::from_secs(30)).expect("a busy timeout");
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON").expect("settings");
    connection
}

impl Sqlite {
    /// One with these tables, which are empty.
    pub fn new(tables: Tables) -> Sqlite {
        let database = Sqlite { tables, folder: Folder::new("rowcast-sqlite-").expect("a folder") };
        database.connect().execute_batch(&tables.schema()).expect("the schema");
        database
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("app.db")
    }

    /// Another connection.
    pub fn connect(&self) -> Connection {
        connect(&self.path())
    }
}

impl Database for Sqlite {
    fn url(&self) -> String {
        format!("sqlite:{}", self.path().display())
    }

    fn tables(&self) -> String {
        self.tables.configuration()
    }

    fn keys(&self) -> (Vec<String>, Vec<String>) {
        self.tables.keys()
    }

    fn preload(&self, rows: u32) {
        let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                   INSERT INTO lines SELECT 'archive', i, hex(zeroblob(500)), i FROM n";
        self.connect().execute(sql, [rows]).expect("rows");
    }

    fn execute(&self, sql: &str) {
        self.connect().execute_batch(sql).expect("statements");
    }

    fn expected(&self) -> Contents {
        self.tables.expected(&self.connect())
    }

    fn application(&self, version: u64) -> Box<dyn Application> {
        Box::new(Statements { connection: self.connect(), tables: self.tables, version })
    }

    fn wait_until_forgotten(&self) {
        let database = self.connect();
        let newest: i64 = database.query_row("SELECT max(id) FROM rowcast_changelog", [], |row| row.get(0)).expect("a changelog");
        let left = "SELECT count(*) FROM rowcast_changelog WHERE id < ?1";
        let trimmed = || database.query_row(left, [newest], |row| row.get::<_, i64>(0)).is_ok_and(|left| left <= 1).then_some(());
        until_blocking("the changelog to be trimmed", AGREEMENT, trimmed).expect("what is confirmed is trimmed");
    }
}
