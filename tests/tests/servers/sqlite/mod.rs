//! The SQLite source beside other writers: whatever they do, what the source streams is what the table holds.

mod around;
mod filters;
mod history;
mod migrations;
mod pace;
mod rules;
mod schemas;
mod statements;
mod triggers;
mod values;
mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rowcast::change::{Change, Image, KeyValue, Op, Position};
use rowcast::mapping::{Mapped, MappedTable, TableSettings};
use rowcast::source::sqlite::{SqliteSettings, SqliteSource, install};
use rowcast::source::{Chunk, Portion, PositionRecord, Read, ReadRows, Source, Start};
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use statements::quoted;

/// How long anything may take before a test fails.
const DEADLINE: Duration = Duration::from_secs(120);

/// A connection as an application would open it.
fn application(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    // SQLite lets nobody queue for a lock: on a busy machine one of several writers may wait for long.
    connection.busy_timeout(3 * DEADLINE).unwrap();
    connection.execute_batch("PRAGMA foreign_keys = ON").unwrap();
    connection
}

fn settings(path: &Path, tables: &[(&str, Option<&str>)]) -> SqliteSettings {
    let tables = tables.iter().map(|(name, key)| TableSettings { key: key.map(str::to_owned), ..TableSettings::new(name) });
    SqliteSettings { tables: tables.collect(), ..SqliteSettings::new(path, "shop") }
}

/// An installed source whose history has begun.
async fn begun(settings: &SqliteSettings) -> (SqliteSource, Start) {
    install(settings).unwrap();
    let mut source = SqliteSource::new(settings.clone()).unwrap();
    let start = source.begin(None).await.unwrap();
    (source, start)
}

fn newest(connection: &Connection) -> u64 {
    connection.query_row("SELECT coalesce(max(id), 0) FROM rowcast_changelog", [], |row| row.get::<_, i64>(0)).unwrap().unsigned_abs()
}

/// SQLite reads at once.
fn now(read: Read) -> Chunk {
    match read {
        Read::Now(chunk) => chunk,
        other => panic!("rows, not {other:?}"),
    }
}

/// The same for single rows.
fn rows_now(read: ReadRows) -> (Chunk, usize) {
    match read {
        ReadRows::Now(chunk, answered) => (chunk, answered),
        ReadRows::Later => panic!("rows at once"),
    }
}

/// Somebody who knows only what the source streams.
struct Follower {
    source: SqliteSource,
    start: Start,
    record: PositionRecord,
    position: Position,
    /// Redis key → row.
    rows: BTreeMap<String, String>,
    /// Primary key → row.
    by_pk: BTreeMap<String, String>,
    /// What came last.
    last: Vec<Change>,
}

impl Follower {
    async fn begin(settings: &SqliteSettings) -> Follower {
        let (source, start) = begun(settings).await;
        let (record, position) = (start.record.clone(), start.from);
        Follower { source, start, record, position, rows: BTreeMap::new(), by_pk: BTreeMap::new(), last: Vec::new() }
    }

    /// Takes portions until the changelog up to `newest` has been read.
    async fn follow(&mut self, newest: u64) -> Result<(), rowcast::source::Error> {
        self.last.clear();
        while self.position < Position(newest, newest) {
            let portion = tokio::time::timeout(DEADLINE, self.source.next()).await.expect("a portion in time")?;
            match portion {
                Portion::Record(record) => {
                    assert!(record.position > self.position, "a record comes ahead of what it vouches for");
                    self.record = record;
                }
                Portion::Changes { changes, to, complete } => {
                    for change in changes {
                        assert!(change.position > self.position && change.position <= to, "{change:?} within its portion");
                        assert!(change.position <= self.record.position, "nothing goes out beyond the record");
                        self.apply(&change);
                        self.last.push(change);
                    }
                    self.position = to;
                    assert_eq!(complete, to == self.record.position);
                }
                other => panic!("SQLite never hands out {other:?}"),
            }
        }
        Ok(())
    }

    fn apply(&mut self, change: &Change) {
        assert_ne!(change.op, Op::Truncate);
        match &change.image {
            Image::Present { json, .. } => drop(self.by_pk.insert(change.pk.clone(), json.clone())),
            Image::Absent { .. } => drop(self.by_pk.remove(&change.pk)),
            Image::Unreadable { reason, .. } => panic!("{reason}"),
        }
        match self.start.tables[change.table].map(&change.image) {
            Mapped::Put { key, row } => drop(self.rows.insert(key, row.to_owned())),
            Mapped::Remove { key } => drop(self.rows.remove(&key)),
            Mapped::Nothing | Mapped::Dead { .. } => {}
        }
    }
}

fn key_value(value: ValueRef<'_>) -> KeyValue {
    match value {
        ValueRef::Null => KeyValue::Null,
        ValueRef::Integer(number) => KeyValue::Integer(number),
        ValueRef::Real(number) => KeyValue::Real(number),
        ValueRef::Text(text) => KeyValue::Text(String::from_utf8(text.to_vec()).unwrap()),
        ValueRef::Blob(bytes) => KeyValue::Blob(bytes.to_vec()),
    }
}

/// What the table holds, by SQLite's own words: Redis key → row, and primary key → row.
fn oracle<S: AsRef<str>>(connection: &Connection, mapped: &MappedTable, primary_key: &[S]) -> [BTreeMap<String, String>; 2] {
    let object = |columns: &[&str], blob: &str| {
        let part = |column: &&str| {
            let (name, column) = (column.replace('\'', "''"), quoted(column));
            format!(
                "'{name}', json(CASE typeof({column}) WHEN 'blob' THEN {} ELSE json_quote({column}) END)",
                blob.replace('$', &format!("lower(hex({column}))"))
            )
        };
        format!("json_object({})", columns.iter().map(part).collect::<Vec<_>>().join(", "))
    };
    let columns: Vec<&str> = mapped.columns.iter().map(String::as_str).collect();
    let pk: Vec<&str> = primary_key.iter().map(AsRef::as_ref).collect();
    let template: Vec<String> = mapped.descriptor.keys.template.columns().map(|column| quoted(&column.column)).collect();
    let (columns, pk) = (object(&columns, "json_quote($)"), object(&pk, "json_object('hex', $)"));
    let sql = format!("SELECT {columns}, {pk}, {} FROM {}", template.join(", "), quoted(&mapped.table.0));
    let mut statement = connection.prepare(&sql).unwrap();
    let mut rows = statement.query([]).unwrap();
    let mut maps = [BTreeMap::new(), BTreeMap::new()];
    while let Some(row) = rows.next().unwrap() {
        let json: String = row.get(0).unwrap();
        let key: Vec<KeyValue> = (0..template.len()).map(|index| key_value(row.get_ref(2 + index).unwrap())).collect();
        if let Ok(key) = mapped.descriptor.keys.template.render(&key) {
            assert!(maps[0].insert(key, json.clone()).is_none(), "two rows share a key");
        }
        assert!(maps[1].insert(row.get(1).unwrap(), json).is_none(), "two rows share a primary key");
    }
    maps
}

fn now_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_micros()).unwrap()
}
