//! One read of the changelog: what it names, as the snapshot of one transaction has it.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension};
use serde::Serialize;

use super::super::{Error, Portion, PositionRecord};
use super::error::Failure;
use super::install;
use super::rows::{Found, Lookup, RowReader};
use super::session::{Session, SessionTable};
use super::triggers::{logged_width, value_column};
use super::values::{self, Datum};
use crate::change::{Change, Image, Lineage, Op, Position};

/// How many changelog rows are held in memory at once.
const WINDOW: i64 = 4096;
/// How much one portion holds, more or less.
const PORTION_CHANGES: usize = 2000;
const PORTION_BYTES: usize = 1 << 20;

/// A read under way; its transaction is open on the session's connection.
#[derive(Debug)]
pub(super) struct Read {
    /// The newest id when it began.
    pub(super) newest: i64,
    /// What has been taken into `rows` so far.
    window_end: i64,
    rows: Vec<LogRow>,
    /// The next of `rows` to be shipped.
    next: usize,
    /// Whether the record has gone out.
    announced: bool,
}

/// A row of the changelog that still matters within its window.
#[derive(Debug)]
struct LogRow {
    id: i64,
    table: usize,
    op: Op,
    at_ms: i64,
    /// The primary key, then the template's other columns.
    values: Vec<Datum>,
    /// Whether no later row of the window names the same key, or the same old values.
    last_of_key: bool,
    last_of_template: bool,
}

impl Session {
    /// Opens a read if there is something new: checks that the history is still the one of this session.
    pub(super) fn open_read(&mut self) -> Result<bool, Failure> {
        debug_assert!(self.read.is_none());
        self.check_file()?;
        self.connection.execute_batch("BEGIN")?;
        let opened = self.look();
        match opened {
            Ok(Some(read)) => {
                self.read = Some(read);
                Ok(true)
            }
            Ok(None) => {
                self.end_transaction()?;
                Ok(false)
            }
            Err(failure) => {
                self.end_transaction()?;
                Err(failure)
            }
        }
    }

    fn look(&self) -> Result<Option<Read>, Failure> {
        self.check_history()?;
        let newest = newest_id(&self.connection)?;
        if newest < self.shipped {
            return Err(Error::Changed(format!(
                "{} went back in time: the changelog ends at {newest}, but {} had been shipped",
                self.path.display(),
                self.shipped
            ))
            .into());
        }
        let read = Read { newest, window_end: self.shipped, rows: Vec::new(), next: 0, announced: false };
        Ok((newest > self.shipped).then_some(read))
    }

    /// The next portion of the read under way.
    pub(super) fn portion(&mut self) -> Result<Portion, Failure> {
        let mut read = self.read.take().expect("a portion is only asked for while a read is under way");
        match self.portion_of(&mut read) {
            Ok(portion) => {
                if matches!(portion, Portion::Changes { complete: true, .. }) {
                    self.end_transaction()?;
                    self.shipped = read.newest;
                } else {
                    self.read = Some(read);
                }
                Ok(portion)
            }
            Err(failure) => {
                self.end_transaction()?;
                Err(failure)
            }
        }
    }

    fn portion_of(&mut self, read: &mut Read) -> Result<Portion, Failure> {
        if !read.announced {
            read.announced = true;
            let mark = mark(&self.connection, read.newest)?;
            self.record = PositionRecord { lineage: self.lineage.clone(), position: position(read.newest), mark };
            return Ok(Portion::Record(self.record.clone()));
        }
        let mut changes = Vec::new();
        loop {
            if read.next == read.rows.len() && read.window_end < read.newest {
                self.fill_window(read)?;
            }
            let to = self.ship(read, &mut changes)?;
            let complete = read.next == read.rows.len() && read.window_end == read.newest;
            if complete || !changes.is_empty() {
                let to = if complete { position(read.newest) } else { Position(unsigned(read.newest), unsigned(to)) };
                return Ok(Portion::Changes { changes, to, complete });
            }
        }
    }

    /// Reads the next rows of the changelog, and marks which of them are the last to name something.
    fn fill_window(&self, read: &mut Read) -> Result<(), Failure> {
        read.rows.clear();
        read.next = 0;
        let width = |table: &SessionTable| logged_width(table.reader.key_width, table.reader.beside_width);
        let width = self.tables.iter().map(width).max().unwrap_or(0);
        let columns: String = (0..width).map(|index| format!(", {}", value_column(index))).collect();
        let sql = format!("SELECT id, tbl, op, at{columns} FROM rowcast_changelog WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT {WINDOW}");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query([read.window_end, read.newest])?;
        let mut seen = 0;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            seen += 1;
            read.window_end = id;
            let malformed = || malformed(id);
            let number = row.get_ref(1)?.as_i64().map_err(|_| malformed())?;
            // Rows of a table that is no longer in the pipeline concern nobody.
            let Some(table) = self.tables.iter().position(|table| table.number == number) else { continue };
            let reader = &self.tables[table].reader;
            let op = match row.get_ref(2)?.as_str() {
                Ok("I") => Op::Insert,
                Ok("U") => Op::Update,
                Ok("D") => Op::Delete,
                _ => return Err(malformed().into()),
            };
            let at_ms = row.get_ref(3)?.as_i64().map_err(|_| malformed())?;
            let values = |from: usize, count: usize| -> rusqlite::Result<Vec<Datum>> {
                (from..from + count).map(|index| Ok(Datum::from(row.get_ref(4 + index)?))).collect()
            };
            let named = |values| LogRow { id, table, op, at_ms, values, last_of_key: false, last_of_template: false };
            let old = values(0, reader.key_width + reader.beside_width)?;
            let new = if op == Op::Update && reader.beside_width == 0 { values(reader.key_width, reader.key_width)? } else { Vec::new() };
            let moved = new.first().is_some_and(|first| *first != Datum::Null) && new != old;
            read.rows.push(named(old));
            read.rows.extend(moved.then(|| named(new)));
        }
        if seen < WINDOW {
            // The snapshot's newest row was read, or ids are missing at its end, which cannot be within one snapshot.
            assert_eq!(read.window_end, read.newest, "a snapshot of the changelog ends with its newest row");
        }
        mark_last(&mut read.rows, &self.tables.iter().map(|table| &table.reader).collect::<Vec<_>>());
        Ok(())
    }

    /// Looks up what the window's rows name, until the portion is full; returns the id up to which everything is in it.
    fn ship(&self, read: &mut Read, changes: &mut Vec<Change>) -> Result<i64, Failure> {
        let mut lookups: Vec<Option<Lookup<'_>>> = self.tables.iter().map(|_| None).collect();
        let mut bytes = 0;
        while let Some(row) = read.rows.get(read.next) {
            // What one row of the changelog names has one position, and stays together.
            if let Some(before) = read.next.checked_sub(1).map(|before| read.rows[before].id)
                && before < row.id
                && (changes.len() >= PORTION_CHANGES || bytes >= PORTION_BYTES)
            {
                return Ok(before);
            }
            read.next += 1;
            let reader = &self.tables[row.table].reader;
            let lookup = match &mut lookups[row.table] {
                Some(lookup) => lookup,
                empty => empty.insert(Lookup::new(&self.connection, reader)?),
            };
            let before = changes.len();
            ship_row(row, reader, lookup, |found| changes.push(row.change(read.newest, found)))?;
            bytes += changes[before..].iter().map(size).sum::<usize>();
        }
        Ok(read.window_end)
    }

    /// Gives up the read under way, if there is one.
    pub(super) fn abandon(&mut self) -> Result<(), Failure> {
        if self.read.take().is_some() {
            self.end_transaction()?;
        }
        Ok(())
    }

    pub(super) fn end_transaction(&self) -> Result<(), Failure> {
        // SQLite may have ended it by itself, after an I/O error for instance.
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        Ok(())
    }

    /// Compares the open transaction's snapshot with what this session knows.
    pub(super) fn check_history(&self) -> Result<(), Failure> {
        let path = self.path.display();
        let changed = |why: String| Failure::from(Error::Changed(format!("{path}: {why}")));
        let version: i64 = self.connection.prepare_cached("PRAGMA schema_version")?.query_row([], |row| row.get(0))?;
        if version != self.schema_version {
            return Err(changed("the schema changed".to_owned()));
        }
        // With an unchanged schema the tables are there; the contents may still be those of another copy.
        let generation: Option<String> = self
            .connection
            .prepare_cached("SELECT CAST(value AS TEXT) FROM rowcast_meta WHERE name = 'generation'")?
            .query_row([], |row| row.get(0))
            .optional()?;
        if generation.as_deref() != Some(self.generation.as_str()) {
            return Err(changed("its history is another one than when the session began; the file was restored or reinstalled".to_owned()));
        }
        if !still_stands(&self.connection, &self.record)? {
            return Err(changed(format!(
                "the change at {} that was shipped is not there any more; the file went back in time",
                self.record.position.0
            )));
        }
        Ok(())
    }
}

impl LogRow {
    fn change(&self, newest: i64, found: Found) -> Change {
        let op = match (&found.image, self.op) {
            (Image::Absent { .. }, _) => Op::Delete,
            (Image::Present { .. }, Op::Delete) => Op::Update,
            (_, op) => op,
        };
        Change {
            op,
            table: self.table,
            pk: found.pk,
            image: found.image,
            position: Position(unsigned(newest), unsigned(self.id)),
            committed_us: self.at_ms.saturating_mul(1000),
        }
    }
}

/// Ships what one row of the changelog names: its key as it is now, and what became of its old template values.
fn ship_row(row: &LogRow, reader: &RowReader, lookup: &mut Lookup<'_>, mut ship: impl FnMut(Found)) -> Result<(), Failure> {
    let (key, beside) = row.values.split_at(reader.key_width);
    let mut shipped = None;
    if row.last_of_key {
        let found = lookup.by_key(reader, key)?;
        let same = found.as_ref().is_some_and(|found| found.key == key);
        // 'A' may find 'a': then nobody has the key that was named, and the other one is told as well.
        if !same {
            ship(Found { pk: reader.pk(key), key: key.to_vec(), image: reader.absent(key) });
        }
        if let Some(found) = found {
            shipped = Some(found.key.clone());
            ship(found);
        }
    }
    if row.last_of_template
        && let Some(found) = lookup.by_template(reader, key, beside)?
        && (matches!(found.image, Image::Absent { .. }) || shipped.as_ref() != Some(&found.key))
    {
        ship(found);
    }
    Ok(())
}

/// Marks the newest row that names each key, and the newest that names each set of old template values.
fn mark_last(rows: &mut [LogRow], readers: &[&RowReader]) {
    let mut keys: HashSet<(usize, &[Datum])> = HashSet::with_capacity(rows.len());
    let mut olds: HashSet<(usize, &[Datum])> = HashSet::new();
    let marks: Vec<(bool, bool)> = rows
        .iter()
        .rev()
        .map(|row| {
            let reader = readers[row.table];
            let last_of_key = keys.insert((row.table, &row.values[..reader.key_width]));
            (last_of_key, reader.names_template(row.op == Op::Insert) && olds.insert((row.table, &row.values[..])))
        })
        .collect();
    for (row, (last_of_key, last_of_template)) in rows.iter_mut().rev().zip(marks) {
        (row.last_of_key, row.last_of_template) = (last_of_key, last_of_template);
    }
}

fn size(change: &Change) -> usize {
    let image = match &change.image {
        Image::Present { json, .. } => json.len(),
        Image::Absent { .. } | Image::Unreadable { .. } => 0,
    };
    change.pk.len() + image + 64
}

fn malformed(id: i64) -> Error {
    Error::Fatal(format!(
        "row {id} of rowcast_changelog was not written by rowcast's triggers or hooks; find out who wrote it, then run \
         rowcast uninstall and rowcast install: a new changelog begins with a resync"
    ))
}

/// The newest id of the changelog; 0 if it is empty.
pub(super) fn newest_id(connection: &Connection) -> Result<i64, Failure> {
    let newest = connection.prepare_cached("SELECT coalesce(max(id), 0) FROM rowcast_changelog")?.query_row([], |row| row.get(0))?;
    if newest < 0 {
        return Err(malformed(newest).into());
    }
    Ok(newest)
}

/// Where the history stands once everything up to `id` has been shipped.
pub(super) fn position(id: i64) -> Position {
    Position(unsigned(id), unsigned(id))
}

pub(super) fn unsigned(id: i64) -> u64 {
    u64::try_from(id).expect("ids of the changelog are never negative")
}

/// What stands in the changelog at `id`, so that it is recognised; `null` if nothing does.
pub(super) fn mark(connection: &Connection, id: i64) -> Result<String, Failure> {
    #[derive(Serialize)]
    struct Mark<'m>(i64, &'m [String]);
    let mut statement = connection.prepare_cached("SELECT * FROM rowcast_changelog WHERE id = ?1")?;
    let width = statement.column_count();
    let mut rows = statement.query([id])?;
    let Some(row) = rows.next()? else { return Ok("null".to_owned()) };
    let mut cells = Vec::with_capacity(width);
    for index in 1..width {
        let mut text = String::new();
        values::push_key_json(&mut text, row.get_ref(index)?);
        cells.push(text);
    }
    // A column that was added later is not a difference.
    while cells.last().is_some_and(|cell| cell == "null") {
        cells.pop();
    }
    Ok(serde_json::to_string(&Mark(id, &cells)).expect("a mark is plain data"))
}

/// Whether the change of the record still stands where it stood.
pub(super) fn still_stands(connection: &Connection, record: &PositionRecord) -> Result<bool, Failure> {
    let Ok(id) = i64::try_from(record.position.0) else { return Ok(false) };
    Ok(mark(connection, id)? == record.mark)
}

/// The identity of the history in the database.
pub(super) fn lineage(connection: &Connection) -> Result<Lineage, Failure> {
    Ok(Lineage(install::lineage(connection)?.into()))
}
