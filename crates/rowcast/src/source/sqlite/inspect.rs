//! A look at a database: its tables, what can be followed, and how far the changelog is.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::super::{Backlog, Error};
use super::error::{Failure, patiently};
use super::install::{check_format, forgotten, installed, is_installed, lineage, meta, open_existing, registration};
use super::schema::{self, Table};

/// What stands in a database.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Its tables, by name.
    pub tables: Vec<TableInspection>,
    /// Its views, by name; none of them can be followed.
    pub views: Vec<String>,
    /// The changelog, if there is one.
    pub changelog: Option<Backlog>,
    /// Its journal mode (`wal`, `delete`, …).
    pub journal_mode: String,
}

/// One table.
#[derive(Clone, Debug)]
pub struct TableInspection {
    /// What it is, and why it cannot be used if it cannot.
    pub table: Table,
    /// How many triggers of ours are on it.
    pub triggers: usize,
    /// How it is followed, if it is.
    pub capture: Option<String>,
}

/// The database that a lineage is of, whatever became of its history.
pub fn database_of(lineage: &str) -> &str {
    lineage.rsplit_once(':').map_or(lineage, |(database, _)| database)
}

/// Looks at a database and changes nothing.
pub fn inspect(path: &Path) -> Result<Inspection, Error> {
    let explain = |failure: Failure| failure.explain(path, "looking at it");
    let mut connection = open_existing(path).map_err(explain)?;
    patiently(Duration::from_secs(5), || {
        let transaction = connection.transaction()?;
        let there = is_installed(&transaction)?;
        let mut tables = Vec::new();
        for name in schema::names(&transaction)? {
            let Some(table) = schema::read(&transaction, &name)? else { continue };
            let registered = if there { registration(&transaction, &name)? } else { None };
            let triggers = match &registered {
                Some((number, _)) => installed(&transaction, &format!("rowcast_{number}_*"))?.len(),
                None => 0,
            };
            tables.push(TableInspection { table, triggers, capture: registered.map(|(_, capture)| capture) });
        }
        let changelog = if there { Some(waiting(&transaction)?) } else { None };
        let journal_mode = transaction.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        Ok(Inspection { tables, views: schema::views(&transaction)?, changelog, journal_mode })
    })
    .map_err(explain)
}

pub(super) fn waiting(connection: &Connection) -> Result<Backlog, Failure> {
    check_format(connection)?;
    let forgotten = forgotten(connection)?;
    let (rows, newest) = connection.query_row(
        "SELECT count(*), (SELECT coalesce(max(id), 0) FROM rowcast_changelog) FROM rowcast_changelog WHERE id > ?1",
        [forgotten],
        |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
    )?;
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(Backlog {
        rows: unsigned(rows),
        newest: unsigned(newest),
        forgotten: unsigned(forgotten),
        lineage: lineage(connection)?,
        pipeline: meta(connection, "pipeline")?,
    })
}
