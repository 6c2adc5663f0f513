//! The table in a SQLite file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rowcast::source::sqlite;
use rusqlite::{Connection, params};

use super::{TRANSACTION, scattered};

/// The file.
#[derive(Debug)]
pub struct Sqlite {
    /// Where it is.
    pub path: PathBuf,
}

pub(super) fn open(path: &Path) -> anyhow::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    Ok(connection)
}

/// The statement that changes a row.
pub(super) fn update(version: &str, id: &str) -> String {
    format!("UPDATE users SET balance = balance + 1.5, version = {version} WHERE id = {id}")
}

impl Sqlite {
    pub(super) fn url(&self) -> String {
        format!("sqlite:{}", self.path.display())
    }

    pub(super) fn create(&self, rows: u32) -> anyhow::Result<()> {
        let mut connection = open(&self.path)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.execute_batch(
            "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL, city TEXT, balance REAL NOT NULL, \
             active INTEGER NOT NULL, version INTEGER NOT NULL)",
        )?;
        let transaction = connection.transaction()?;
        {
            let mut insert = transaction.prepare("INSERT INTO users VALUES (?1, ?2, ?3, ?4, ?5, 1, 0)")?;
            for id in 1..=rows {
                let city = ["London", "Paris", "Geneva", "Buenos Aires"][id as usize % 4];
                let balance = f64::from(id) * 1.25;
                insert.execute(params![id, format!("Ada Lovelace {id}"), format!("ada.{id}@example.com"), city, balance])?;
            }
        }
        transaction.commit()?;
        let super::SourceSettings::Sqlite(settings) = super::settings(&self.url())? else { anyhow::bail!("this is no file") };
        sqlite::install(&settings)?;
        Ok(())
    }

    pub(super) fn write_backlog(&self, rows: u32, changes: u32) -> anyhow::Result<()> {
        let mut connection = open(&self.path)?;
        for begin in (0..changes).step_by(TRANSACTION as usize) {
            let transaction = connection.transaction()?;
            let mut statement = transaction.prepare_cached(&update("version + 1", "?1"))?;
            for index in begin..changes.min(begin + TRANSACTION) {
                statement.execute([scattered(index, rows)])?;
            }
            drop(statement);
            transaction.commit()?;
        }
        Ok(())
    }

    /// A position is the newest change of its read and the change's own.
    pub(super) fn newest(&self) -> anyhow::Result<(u64, u64)> {
        let newest = sqlite::inspect(&self.path)?.changelog.context("there is no changelog")?.newest;
        Ok((newest, newest))
    }

    /// A copy of the file as it stands, triggers included.
    pub(super) fn copy(&self, to: &Path) -> anyhow::Result<Sqlite> {
        open(&self.path)?.execute("VACUUM INTO ?1", [to.to_string_lossy()])?;
        open(to)?.pragma_update(None, "journal_mode", "wal")?;
        Ok(Sqlite { path: to.to_owned() })
    }
}
