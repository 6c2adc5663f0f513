//! What rowcast puts into a database, and takes out again: the changelog, its two small tables, and the triggers.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior};

use super::super::Error;
use super::error::{Failure, patiently};
use super::filter;
use super::rows;
use super::schema::{self, Table};
use super::sql::quoted;
use super::triggers::{self, Logged, Trigger, logged_width, value_column};
use super::{Capture, SqliteSettings};
use crate::finding::Setting;
use crate::mapping::{MappedTable, TableSettings, nearest};

/// The version of what is installed.
const FORMAT: i64 = 1;

/// Exactly this text: the ORM crates write the same, and nothing in it can make an application's statement fail.
const TABLES: [&str; 3] = [
    "CREATE TABLE IF NOT EXISTS rowcast_meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS rowcast_table(number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, capture TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS rowcast_changelog(id INTEGER PRIMARY KEY, tbl, op, at, v1, v2, v3, v4)",
];

/// How many value columns the changelog has from the beginning.
const VALUE_COLUMNS: usize = 4;

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The statements that were executed, in order.
    pub statements: Vec<String>,
    /// What they mean, one sentence each. Empty if nothing had to be done.
    pub notes: Vec<String>,
}

/// A table of the pipeline with what is known of it.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) table: Table,
    pub(super) mapped: MappedTable,
    /// Columns of the template that are not in the primary key, by their places in the table.
    pub(super) beside_key: Vec<usize>,
    /// The statement that takes a primary key and says whether the row matches the filter, where there is one.
    pub(super) filter: Option<String>,
}

/// Opens the database, which must exist.
pub(super) fn open(path: &Path) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // Locks are waited for in our own loops, which know what else there is to do.
    connection.busy_timeout(Duration::ZERO)?;
    // Our own writes are small; an application that checkpoints by itself shall go on doing so.
    connection.set_prepared_statement_cache_capacity(256);
    Ok(connection)
}

/// Reads the table's schema and makes its settings definite.
pub(super) fn prepare(connection: &Connection, settings: &TableSettings, capture: Capture) -> Result<Prepared, Failure> {
    let name = &settings.name;
    let Some(table) = schema::read(connection, name)? else {
        let names = schema::names(connection)?;
        let near = nearest(name, names.iter().map(String::as_str)).map(|near| format!("; did you mean {near}?"));
        let hint = near.or_else(|| elsewhere(name)).unwrap_or_default();
        return Err(Failure::Misfit(Setting::Name, format!("there is no table {name} in the database{hint}")));
    };
    if let Some(trouble) = &table.trouble {
        return Err(Failure::Misfit(Setting::Name, format!("table {name} cannot be cached: {trouble}")));
    }
    let mapped = MappedTable::resolve(settings, &table.mapped()).map_err(|error| Failure::Misfit(error.setting(), error.to_string()))?;
    let key: Vec<usize> = table.key_columns().collect();
    let place = |column: &str| table.columns.iter().position(|c| c.name == column);
    let template = mapped.descriptor.keys.template.columns().filter_map(|column| place(&column.column));
    let mut beside_key: Vec<usize> = Vec::new();
    for column in template {
        if table.columns[column].generated {
            return Err(Error::Fatal(format!(
                "table {name}: the key uses the generated column {}, which another version of SQLite may compute otherwise; build the key \
                 from ordinary columns",
                table.columns[column].name
            ))
            .into());
        }
        if !key.contains(&column) && !beside_key.contains(&column) {
            beside_key.push(column);
        }
    }
    if capture == Capture::Hooks && !beside_key.is_empty() {
        let columns: Vec<&str> = beside_key.iter().map(|column| table.columns[*column].name.as_str()).collect();
        return Err(Failure::Misfit(
            Setting::Key,
            format!(
                "table {name}: the key uses {}, whose old values hooks do not see; capture by triggers (rowcast install), or build the \
                 key from the primary key",
                columns.join(", ")
            ),
        ));
    }
    let columns: Vec<String> = mapped.columns.iter().map(|column| quoted(column)).collect();
    if let Err(error) = connection.prepare(&format!("SELECT {} FROM {}", columns.join(", "), quoted(name))) {
        return Err(Failure::Misfit(
            Setting::Columns,
            format!(
                "table {name} cannot be cached: SQLite cannot read it ({error}); if a generated column uses a function that only the \
                 application has, replace that"
            ),
        ));
    }
    let filter = match &settings.filter {
        None => None,
        Some(text) => {
            let compiled = filter::compile(connection, &table, text, &rows::equal(&table, &table.key));
            Some(compiled.map_err(|reason| Failure::Misfit(Setting::Where, format!("table {name}: `where` {reason}")))?)
        }
    };
    Ok(Prepared { table, mapped, beside_key, filter })
}

/// What to do about a table of a database that only a connection of the application knows.
fn elsewhere(name: &str) -> Option<String> {
    let (database, table) = name.split_once('.')?;
    Some(match database.to_ascii_lowercase().as_str() {
        "main" => format!("; write {table}"),
        "temp" => "; a temporary table is seen by one connection of the application only and cannot be cached".to_owned(),
        _ => format!(
            "; if {database} is a database that the application attaches, {table} needs a pipeline of its own, with that database's file as \
             its source"
        ),
    })
}

/// A changelog row of a table is shipped once, so a table can be mapped only once.
pub(super) fn check_each_once(settings: &SqliteSettings) -> Result<(), Failure> {
    for (index, table) in settings.tables.iter().enumerate() {
        if settings.tables[..index].iter().any(|other| other.name == table.name) {
            return Err(
                Error::Fatal(format!("table {} is configured twice; a second key for it needs a pipeline of its own", table.name)).into()
            );
        }
    }
    Ok(())
}

/// Rows of two tables must not share keys: they would overwrite each other, and no sweep could tell them apart.
pub(super) fn check_keys_apart(tables: &[MappedTable]) -> Result<(), Failure> {
    match (0..tables.len()).find_map(|index| share_keys(&tables[index], tables[..index].iter())) {
        Some(text) => Err(Failure::Misfit(Setting::Key, text)),
        None => Ok(()),
    }
}

/// Which of `others` the table would share keys with, as a sentence.
pub(super) fn share_keys<'m>(table: &MappedTable, mut others: impl Iterator<Item = &'m MappedTable>) -> Option<String> {
    let template = |mapped: &MappedTable| mapped.descriptor.keys.template.clone();
    let other = others.find(|other| template(other).overlaps(&template(table)))?;
    Some(format!(
        "the tables {} and {} would share keys ({} and {}); give one of them a key that begins otherwise",
        other.table,
        table.table,
        template(other),
        template(table)
    ))
}

/// An open transaction that changes what is installed, and remembers what it did.
pub(super) struct Installation<'t> {
    transaction: &'t Transaction<'t>,
    pub(super) report: Report,
    /// Whether changes may have gone unrecorded, so that only a new lineage brings the cache back in step.
    pub(super) history_broken: bool,
}

impl<'t> Installation<'t> {
    pub(super) fn new(transaction: &'t Transaction<'t>) -> Installation<'t> {
        Installation { transaction, report: Report::default(), history_broken: false }
    }

    fn run(&mut self, sql: String) -> Result<(), Failure> {
        self.transaction.execute_batch(&sql)?;
        self.report.statements.push(sql);
        Ok(())
    }

    fn note(&mut self, note: String) {
        self.report.notes.push(note);
    }

    /// The three tables, with a fresh identity if there was none.
    pub(super) fn tables(&mut self) -> Result<(), Failure> {
        if !exists(self.transaction, "rowcast_meta")?
            || !exists(self.transaction, "rowcast_table")?
            || !exists(self.transaction, "rowcast_changelog")?
        {
            for sql in TABLES {
                self.run(sql.to_owned())?;
            }
            self.note("created rowcast_meta, rowcast_table and rowcast_changelog".to_owned());
        }
        if meta(self.transaction, "format")?.is_none() {
            let (database, generation) = (new_id(self.transaction)?, new_id(self.transaction)?);
            self.run(format!(
                "INSERT OR IGNORE INTO rowcast_meta(name, value) \
                 VALUES('format', {FORMAT}), ('database', '{database}'), ('generation', '{generation}'), ('forgotten', 0)"
            ))?;
        }
        check_format(self.transaction)
    }

    /// Makes the database this pipeline's.
    pub(super) fn pipeline(&mut self, name: &str) -> Result<(), Failure> {
        match meta(self.transaction, "pipeline")? {
            None => self.run(format!("INSERT INTO rowcast_meta(name, value) VALUES('pipeline', '{}')", name.replace('\'', "''"))),
            Some(owner) if owner == name => Ok(()),
            Some(owner) => Err(Error::Fatal(format!(
                "the database belongs to the pipeline {owner}, not {name}, and its changelog serves one pipeline only; use the name {owner}, \
                 or `rowcast uninstall` there first"
            ))
            .into()),
        }
    }

    /// Does all of `work`, or nothing where that needs somebody; then returns why.
    pub(super) fn or_nothing<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Failure>) -> Result<Result<T, String>, Failure> {
        let (before, history_broken) = (self.report.clone(), self.history_broken);
        self.transaction.execute_batch("SAVEPOINT rowcast_table")?;
        let outcome = work(self);
        if matches!(outcome, Err(Failure::Known(Error::Fatal(_)) | Failure::Misfit(..))) {
            self.transaction.execute_batch("ROLLBACK TO rowcast_table")?;
            (self.report, self.history_broken) = (before, history_broken);
        }
        match outcome {
            Ok(done) => {
                self.transaction.execute_batch("RELEASE rowcast_table")?;
                Ok(Ok(done))
            }
            Err(Failure::Known(Error::Fatal(why)) | Failure::Misfit(_, why)) => {
                self.transaction.execute_batch("RELEASE rowcast_table")?;
                Ok(Err(why))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Takes the triggers off a table that is left out: they only cost time there, keep a migration from dropping their columns,
    /// and where the table was renamed under `legacy_alter_table` they make every write to it fail.
    pub(super) fn leave(&mut self, name: &str) -> Result<(), Failure> {
        match registration(self.transaction, name)? {
            Some((number, _)) => self.triggers(name, number, &[]).map(drop),
            None => Ok(()),
        }
    }

    /// The table's number, its capture and its triggers as they must be now.
    pub(super) fn table(&mut self, prepared: &Prepared, capture: Capture) -> Result<i64, Failure> {
        let name = &prepared.table.name;
        let registered = registration(self.transaction, name)?;
        let (number, known) = match &registered {
            Some((number, known)) => (*number, known.as_str()),
            None => {
                let next: i64 =
                    self.transaction.query_row("SELECT coalesce(max(number), 0) + 1 FROM rowcast_table", [], |row| row.get(0))?;
                (next, capture.name())
            }
        };
        let text = name.replace('\'', "''");
        if registered.is_none() {
            self.run(format!("INSERT INTO rowcast_table(number, name, capture) VALUES({number}, '{text}', '{}')", capture.name()))?;
            self.note(format!("table {name} is followed by {}, as number {number}", capture.name()));
        } else if known != capture.name() {
            self.run(format!("UPDATE rowcast_table SET capture = '{}' WHERE number = {number}", capture.name()))?;
            self.note(format!("table {name} is followed by {} instead of {known}", capture.name()));
            self.history_broken = true;
        }
        self.value_columns(logged_width(prepared.table.key.len(), prepared.beside_key.len()))?;
        let wanted = match capture {
            Capture::Triggers => triggers::generate(&Logged { table: &prepared.table, number, beside_key: &prepared.beside_key }),
            Capture::Hooks => Vec::new(),
        };
        if self.triggers(name, number, &wanted)? {
            self.try_out(prepared)?;
            self.history_broken |= registered.is_some();
        }
        Ok(number)
    }

    fn value_columns(&mut self, wanted: usize) -> Result<(), Failure> {
        for index in VALUE_COLUMNS..wanted {
            let column = value_column(index);
            let there = self.transaction.query_row(
                "SELECT count(*) FROM pragma_table_info('rowcast_changelog', 'main') WHERE name = ?1",
                [&column],
                |row| row.get::<_, i64>(0),
            )?;
            if there == 0 {
                self.run(format!("ALTER TABLE rowcast_changelog ADD COLUMN {column}"))?;
            }
        }
        Ok(())
    }

    /// Makes the triggers of this number exactly those. Returns whether something had to be done.
    fn triggers(&mut self, table: &str, number: i64, wanted: &[Trigger]) -> Result<bool, Failure> {
        let mut found = installed(self.transaction, &format!("rowcast_{number}_*"))?;
        let overtaken = self.overtaken(table, number)?;
        let mut changed = false;
        let mut missing = Vec::new();
        for trigger in wanted {
            match found.remove(&trigger.name) {
                Some(sql) if sql == trigger.sql && !overtaken => {}
                Some(_) => {
                    self.run(format!("DROP TRIGGER {}", quoted(&trigger.name)))?;
                    missing.push(trigger);
                }
                None => missing.push(trigger),
            }
        }
        for name in found.keys() {
            self.run(format!("DROP TRIGGER {}", quoted(name)))?;
            self.note(format!("removed the trigger {name}, which is no longer needed"));
            changed = true;
        }
        for trigger in &missing {
            self.run(trigger.sql.clone())?;
        }
        if !missing.is_empty() {
            let names: Vec<&str> = missing.iter().map(|trigger| trigger.name.as_str()).collect();
            self.note(format!("created on {table}: {}", names.join(", ")));
            changed = true;
        }
        Ok(changed)
    }

    /// Whether the application has a trigger that runs before ours and may end a statement without them: SQLite runs the newest
    /// first, and none follows after RAISE(IGNORE), or after anything that fails in a statement with OR FAIL, which keeps its row.
    pub(super) fn overtaken(&self, table: &str, number: i64) -> rusqlite::Result<bool> {
        self.transaction.query_row(
            "SELECT EXISTS (SELECT * FROM main.sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE AND name NOT GLOB ?2 \
             AND rowid > (SELECT min(rowid) FROM main.sqlite_schema WHERE type = 'trigger' AND name GLOB ?2))",
            (table, format!("rowcast_{number}_*")),
            |row| row.get(0),
        )
    }

    /// Has SQLite compile what the application will do, so that functions and collations that only the application has are
    /// found now.
    fn try_out(&self, prepared: &Prepared) -> Result<(), Failure> {
        let name = quoted(&prepared.table.name);
        let key = quoted(prepared.table.primary_key().first().copied().unwrap_or_default());
        for sql in [format!("INSERT INTO {name} DEFAULT VALUES"), format!("UPDATE {name} SET {key} = {key}"), format!("DELETE FROM {name}")]
        {
            if let Err(error) = self.transaction.prepare(&sql) {
                return Err(Error::Fatal(format!(
                    "table {} cannot be cached by triggers: SQLite cannot compile a write to it ({error}); if one of its generated \
                     columns, indexes, defaults or triggers uses a function that only the application has, replace that",
                    prepared.table.name
                ))
                .into());
            }
        }
        Ok(())
    }

    /// Starts a new history: nothing of the old one is shipped any more, and every table will be read again.
    pub(super) fn new_generation(&mut self) -> Result<String, Failure> {
        let generation = new_id(self.transaction)?;
        self.transaction.execute("INSERT OR REPLACE INTO rowcast_meta(name, value) VALUES('generation', ?1)", [&generation])?;
        self.transaction.execute(
            "INSERT OR REPLACE INTO rowcast_meta(name, value) SELECT 'forgotten', coalesce(max(id), 0) FROM rowcast_changelog",
            [],
        )?;
        Ok(generation)
    }

    /// Triggers of tables that are no longer in the pipeline only cost the application time.
    fn remove_others(&mut self, kept: &[i64]) -> Result<(), Failure> {
        let registered: Vec<(i64, String)> = {
            let mut statement = self.transaction.prepare("SELECT number, name FROM rowcast_table WHERE capture = 'triggers'")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<Result<_, _>>()?
        };
        for (number, name) in registered.into_iter().filter(|(number, _)| !kept.contains(number)) {
            self.triggers(&name, number, &[])?;
        }
        Ok(())
    }
}

fn exists(connection: &Connection, table: &str) -> rusqlite::Result<bool> {
    connection.table_exists(Some("main"), table)
}

/// One row of `rowcast_meta`, as text.
pub(super) fn meta(connection: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    connection.query_row("SELECT CAST(value AS TEXT) FROM rowcast_meta WHERE name = ?1", [name], |row| row.get(0)).optional()
}

pub(super) fn check_format(connection: &Connection) -> Result<(), Failure> {
    match meta(connection, "format")? {
        Some(format) if format == FORMAT.to_string() => Ok(()),
        format => Err(Error::Fatal(format!(
            "the changelog has the format {}, this rowcast knows {FORMAT}; run the rowcast that installed it, or `rowcast uninstall` with it",
            format.unwrap_or_else(|| "of a damaged installation".to_owned())
        ))
        .into()),
    }
}

/// The table's number and capture.
pub(super) fn registration(connection: &Connection, table: &str) -> rusqlite::Result<Option<(i64, String)>> {
    connection
        .query_row("SELECT number, capture FROM rowcast_table WHERE name = ?1", [table], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

/// Whether the changelog is there at all.
pub(super) fn is_installed(connection: &Connection) -> rusqlite::Result<bool> {
    Ok(exists(connection, "rowcast_meta")? && exists(connection, "rowcast_table")? && exists(connection, "rowcast_changelog")?)
}

/// Names and texts of our triggers.
pub(super) fn installed(connection: &Connection, pattern: &str) -> rusqlite::Result<BTreeMap<String, String>> {
    let mut statement = connection.prepare("SELECT name, sql FROM main.sqlite_schema WHERE type = 'trigger' AND name GLOB ?1")?;
    let rows = statement.query_map([pattern], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// A fresh ULID; the randomness is SQLite's.
fn new_id(connection: &Connection) -> rusqlite::Result<String> {
    let (now_ms, random): (i64, [u8; 16]) =
        connection.query_row("SELECT CAST((julianday('now')-2440587.5)*86400000 AS INTEGER), randomblob(16)", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    Ok(ulid::Ulid::from_parts(u64::try_from(now_ms).unwrap_or(0), u128::from_le_bytes(random)).to_string())
}

/// One transaction that writes, retried while somebody else does.
pub(super) fn writing<T>(
    connection: &mut Connection,
    patience: Duration,
    work: impl Fn(&Transaction<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    patiently(patience, || {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = work(&transaction)?;
        transaction.commit()?;
        Ok(done)
    })
}

fn install_in(transaction: &Transaction<'_>, settings: &SqliteSettings) -> Result<Report, Failure> {
    let mut installation = Installation::new(transaction);
    installation.tables()?;
    installation.pipeline(&settings.pipeline)?;
    check_each_once(settings)?;
    let (mut numbers, mut mapped) = (Vec::new(), Vec::new());
    for table in &settings.tables {
        let prepared = prepare(transaction, table, settings.capture)?;
        numbers.push(installation.table(&prepared, settings.capture)?);
        mapped.push(prepared.mapped);
    }
    check_keys_apart(&mapped)?;
    installation.remove_others(&numbers)?;
    if installation.history_broken {
        installation.new_generation()?;
        installation
            .note("changes may have gone unrecorded before, so the history starts anew and every table will be read again".to_owned());
    }
    Ok(installation.report)
}

/// Puts the changelog and the triggers of every table in place, in one transaction. Does nothing where all is as it should be.
pub fn install(settings: &SqliteSettings) -> Result<Report, Error> {
    let explain = |failure: Failure| failure.explain(&settings.path, "installing");
    let mut connection = open_existing(&settings.path).map_err(explain)?;
    writing(&mut connection, settings.busy_timeout, |transaction| install_in(transaction, settings)).map_err(explain)
}

/// The statements that [`install`] would execute.
pub fn plan(settings: &SqliteSettings) -> Result<Vec<String>, Error> {
    let explain = |failure: Failure| failure.explain(&settings.path, "planning the installation");
    let mut connection = open_existing(&settings.path).map_err(explain)?;
    patiently(settings.busy_timeout, || {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let report = install_in(&transaction, settings)?;
        transaction.rollback()?;
        Ok(report.statements)
    })
    .map_err(explain)
}

/// Takes everything out again: the triggers first, because they write to the tables that go after them.
pub fn uninstall(path: &Path) -> Result<Report, Error> {
    let explain = |failure: Failure| failure.explain(path, "uninstalling");
    let mut connection = open_existing(path).map_err(explain)?;
    writing(&mut connection, Duration::from_secs(5), |transaction| {
        let mut installation = Installation::new(transaction);
        for name in installed(transaction, "rowcast_[0-9]*")?.keys() {
            installation.run(format!("DROP TRIGGER {}", quoted(name)))?;
        }
        for table in ["rowcast_changelog", "rowcast_table", "rowcast_meta"] {
            if exists(transaction, table)? {
                installation.run(format!("DROP TABLE {table}"))?;
            }
        }
        let dropped = installation.report.statements.len();
        if dropped > 0 {
            installation.note(format!("removed {dropped} triggers and tables"));
        }
        Ok(installation.report)
    })
    .map_err(explain)
}

pub(super) fn open_existing(path: &Path) -> Result<Connection, Failure> {
    if !path.exists() {
        return Err(Error::Fatal(format!("there is no database file {}", path.display())).into());
    }
    Ok(open(path)?)
}

/// Up to which id everything has been confirmed.
pub(super) fn forgotten(connection: &Connection) -> Result<i64, Failure> {
    let text = meta(connection, "forgotten")?;
    let number = text.as_deref().and_then(|text| text.parse().ok()).filter(|number: &i64| *number >= 0);
    number.ok_or_else(|| damaged("forgotten").into())
}

/// Whose history it is.
pub(super) fn lineage(connection: &Connection) -> Result<String, Failure> {
    let part = |name| -> Result<String, Failure> { meta(connection, name)?.ok_or_else(|| damaged(name).into()) };
    Ok(format!("sqlite:{}:{}", part("database")?, part("generation")?))
}

fn damaged(name: &str) -> Error {
    Error::Fatal(format!("rowcast_meta has no proper row {name}; run `rowcast uninstall` and `rowcast install`"))
}
