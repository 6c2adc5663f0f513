//! A database of two tables with a few keys each, read in one of two ways: as a log with every image, or, like SQLite's
//! changelog, as names of keys whose rows are what one snapshot says.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use rowcast::cache::Cached;
use rowcast::change::{Bound, Change, Image, KeyValue, Lineage, Op, Position, Table};
use rowcast::mapping::{ColumnType, Descriptor, Keys, MappedTable, OnChange, Proof, Shape, Template, Ttl};
use rowcast::source::{Chunk, ChunkLimits, Error, Portion, PositionRecord, Read, ReadRow, ReadRows, Source, Start};
use tokio::sync::Notify;

use crate::chance::Chance;

pub const TABLES: [(&str, &str); 2] = [("t", "abcd"), ("u", "wxyz")];

pub fn keys(table: usize) -> impl Iterator<Item = char> {
    TABLES[table].1.chars()
}

pub fn table_of(key: char) -> usize {
    usize::from(TABLES[1].1.contains(key))
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub table: usize,
    /// `None` for a truncate.
    pub key: Option<char>,
    /// `None` for a delete.
    pub value: Option<i64>,
    pub version: i64,
}

#[derive(Clone)]
pub struct Contents {
    pub log: Vec<Entry>,
    pub rows: BTreeMap<char, i64>,
    /// When a key was deleted last.
    pub gone: BTreeMap<char, i64>,
    forgotten: usize,
}

pub struct State {
    pub now: Contents,
    pub version: i64,
    pub backup: Option<Contents>,
    lineage: Option<u64>,
    lineages: u64,
    /// How often the source went back in time, and how often it had when each lineage began.
    pub restores: u64,
    pub epochs: BTreeMap<String, u64>,
    /// The number of each table's mapping; every change takes another one.
    pub mappings: [u32; 2],
}

impl State {
    pub fn mapping(&self, table: usize) -> Mapping {
        Mapping { table, number: self.mappings[table] }
    }
}

#[derive(Clone)]
pub struct Database {
    state: Arc<Mutex<State>>,
    committed: Arc<Notify>,
    pub chance: Chance,
    /// Whether the stream is names of keys instead of images.
    pub names: bool,
}

impl Database {
    pub fn new(chance: &Chance) -> Database {
        let now = Contents { log: Vec::new(), rows: BTreeMap::new(), gone: BTreeMap::new(), forgotten: 0 };
        let mapping = || if chance.is(0.5) { 0 } else { u32::try_from(chance.below(60)).unwrap() };
        let mappings = [mapping(), mapping()];
        let state = State { now, version: 0, backup: None, lineage: None, lineages: 0, restores: 0, epochs: BTreeMap::new(), mappings };
        Database { state: Arc::new(Mutex::new(state)), committed: Arc::default(), chance: chance.clone(), names: chance.is(0.5) }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn write(&self) {
        let truncate = self.chance.is(0.04);
        let key = self.chance.pick(&"abcdwxyz".chars().collect::<Vec<_>>());
        self.write_to(key, truncate);
    }

    /// Writes or deletes a row, or truncates its table.
    pub fn write_to(&self, key: char, truncate: bool) {
        let delete = self.chance.is(0.3);
        let mut state = self.state();
        state.version += 1;
        let (version, table) = (state.version, table_of(key));
        let now = &mut state.now;
        let (key, value) = if truncate {
            now.rows.retain(|key, _| table_of(*key) != table);
            now.gone.extend(keys(table).map(|key| (key, version)));
            (None, None)
        } else if delete && now.rows.remove(&key).is_some() {
            now.gone.insert(key, version);
            (Some(key), None)
        } else {
            now.rows.insert(key, version);
            (Some(key), Some(version))
        };
        now.log.push(Entry { table, key, value, version });
        drop(state);
        self.committed.notify_waiters();
    }

    /// What others write between a reading and the moment in which it goes out.
    fn write_meanwhile(&self) {
        while self.chance.fault(0.3) {
            self.write();
        }
    }

    pub fn back_up(&self) {
        let mut state = self.state();
        state.backup = Some(state.now.clone());
    }

    pub fn restore(&self) {
        let mut state = self.state();
        if let Some(backup) = state.backup.clone() {
            state.now = backup;
            state.restores += 1;
        }
        drop(state);
        self.committed.notify_waiters();
    }

    pub fn remap(&self, table: usize) {
        let by = 1 + u32::try_from(self.chance.below(6)).unwrap();
        self.state().mappings[table] += by;
    }
}

/// A mapping by its number.
#[derive(Clone, Copy)]
pub struct Mapping {
    pub table: usize,
    pub number: u32,
}

impl Mapping {
    pub fn shape(self) -> Shape {
        if self.number.is_multiple_of(2) { Shape::Json } else { Shape::Hash }
    }

    /// What every key begins with; there are few, so that a table comes back to former ones.
    pub fn prefix(self) -> String {
        format!("{}{}:", TABLES[self.table].0, self.number / 2 % 3)
    }

    pub fn on_change(self) -> OnChange {
        match self.number % 5 {
            3 => OnChange::Refresh,
            4 => OnChange::Evict,
            _ => OnChange::Write,
        }
    }

    pub fn ttl(self) -> Option<Ttl> {
        (self.number % 7 == 3).then(|| "20s".parse().unwrap())
    }

    /// The filter, where there is one: the version is even.
    pub fn matches(self, version: i64) -> bool {
        self.number % 3 != 2 || version % 2 == 0
    }

    /// The value of a row that somebody else fills in.
    pub fn value(self, key: char, version: i64) -> Cached {
        match self.shape() {
            Shape::Json => Cached::Text(format!(r#"{{"id":"{key}","v":{version}}}"#).into_bytes()),
            Shape::Hash => {
                Cached::Hash([("id".to_owned(), key.to_string().into_bytes()), ("v".to_owned(), version.to_string().into_bytes())].into())
            }
        }
    }

    fn mapped(self) -> MappedTable {
        let template = Template::configured(&format!("{}{{id}}", self.prefix()), |_| Some(ColumnType::Text)).unwrap();
        let proof = if self.on_change() == OnChange::Write { Proof::Value } else { Proof::KeyAlone };
        MappedTable {
            table: Table::from(TABLES[self.table].0),
            columns: vec!["id".to_owned(), "v".to_owned()],
            descriptor: Descriptor {
                fingerprint: format!("{:08x}", self.number),
                shape: self.shape(),
                ttl: self.ttl(),
                on_change: self.on_change(),
                keys: Keys { template, proof },
            },
        }
    }
}

pub struct Reader {
    database: Database,
    lineage: Lineage,
    /// The end of the newest read, and its beginning.
    read_to: usize,
    read_from: usize,
    record: PositionRecord,
    queued: VecDeque<Portion>,
    /// The mappings with which it began.
    mappings: [u32; 2],
    /// A reading that was put off.
    later: Option<Later>,
}

/// A reading whose rows come in the stream, as a log's source reads them.
enum Later {
    After(usize, Option<Bound>),
    Rows(usize, Vec<String>),
}

fn mark(contents: &Contents, at: usize) -> Option<String> {
    if at == 0 { Some("the beginning".to_owned()) } else { contents.log.get(at - 1).map(|entry| format!("{entry:?}")) }
}

fn row(key: char, version: i64) -> Image {
    Image::Present { json: format!(r#"{{"id":"{key}","v":{version}}}"#), key: vec![KeyValue::Text(key.to_string())] }
}

fn absent(key: char) -> Image {
    Image::Absent { key: vec![KeyValue::Text(key.to_string())] }
}

fn pk(key: char) -> String {
    format!(r#"{{"id":"{key}"}}"#)
}

impl Reader {
    pub fn new(database: &Database) -> Reader {
        let lineage = Lineage("none".into());
        let record = PositionRecord { lineage: lineage.clone(), position: Position::START, mark: String::new() };
        let (queued, later) = (VecDeque::new(), None);
        Reader { database: database.clone(), lineage, read_to: 0, read_from: 0, record, queued, mappings: [0, 0], later }
    }

    /// What a row of this version is to the cache.
    fn image(&self, key: char, version: i64) -> Image {
        let table = table_of(key);
        if (Mapping { table, number: self.mappings[table] }).matches(version) { row(key, version) } else { absent(key) }
    }

    fn compare(&self, state: &State) -> Result<(), Error> {
        let at = usize::try_from(self.record.position.0).unwrap();
        if mark(&state.now, at).as_ref() == Some(&self.record.mark) {
            Ok(())
        } else {
            Err(Error::Changed("the source went back".to_owned()))
        }
    }

    fn record_at(&self, contents: &Contents, at: usize) -> PositionRecord {
        PositionRecord { lineage: self.lineage.clone(), position: self.end(at), mark: mark(contents, at).unwrap() }
    }

    /// The position at which a read that ends after `at` entries is complete.
    fn end(&self, at: usize) -> Position {
        Position(at as u64, if self.database.names { at as u64 } else { 0 })
    }

    fn read(&mut self) -> Result<bool, Error> {
        let database = self.database.clone();
        let state = database.state();
        self.compare(&state)?;
        let length = state.now.log.len();
        if length <= self.read_to {
            return Ok(false);
        }
        self.read_from = self.read_to;
        if database.names {
            self.read_names(&state.now, length)
        } else {
            self.read_log(&state.now, length)
        }
        Ok(true)
    }

    fn read_log(&mut self, contents: &Contents, length: usize) {
        let to = length.min(self.read_to + 1 + self.database.chance.below(3));
        let changes = (self.read_to..to).map(|index| {
            let entry = &contents.log[index];
            let image = match (entry.key, entry.value) {
                (Some(key), Some(version)) => self.image(key, version),
                (Some(key), None) => absent(key),
                (None, _) => Image::Absent { key: Vec::new() },
            };
            change(entry, image, Position(index as u64 + 1, 0))
        });
        let changes = changes.collect();
        self.record = self.record_at(contents, to);
        self.queued.push_back(Portion::Record(self.record.clone()));
        self.queued.push_back(Portion::Changes { changes, to: self.end(to), complete: true });
        self.read_to = to;
    }

    fn read_names(&mut self, contents: &Contents, length: usize) {
        let mut newest: BTreeMap<char, usize> = BTreeMap::new();
        let mut changes = Vec::new();
        for index in self.read_to..length {
            match contents.log[index].key {
                Some(key) => {
                    newest.insert(key, index);
                }
                None => changes.push((index, None)),
            }
        }
        changes.extend(newest.into_iter().map(|(key, index)| (index, Some(key))));
        changes.sort_by_key(|(index, _)| *index);
        let changes = changes.into_iter().map(|(index, key)| {
            let image = match key {
                Some(key) => contents.rows.get(&key).map_or_else(|| absent(key), |version| self.image(key, *version)),
                None => Image::Absent { key: Vec::new() },
            };
            // What the snapshot says is as new as the key's newest version, whichever change named it.
            let version = key.map_or(0, |key| contents.rows.get(&key).or(contents.gone.get(&key)).copied().unwrap_or(0));
            Change { committed_us: version, ..change(&contents.log[index], image, Position(length as u64, index as u64 + 1)) }
        });
        let mut changes: Vec<Change> = changes.collect();
        self.record = self.record_at(contents, length);
        self.queued.push_back(Portion::Record(self.record.clone()));
        while changes.len() > 1 && self.database.chance.is(0.4) {
            let rest = changes.split_off(1 + self.database.chance.below(changes.len() - 1));
            let to = changes[changes.len() - 1].position;
            self.queued.push_back(Portion::Changes { changes, to, complete: false });
            changes = rest;
        }
        self.queued.push_back(Portion::Changes { changes, to: self.end(length), complete: true });
        self.read_to = length;
    }

    /// A log's source cannot read rows at once, where the stream may be behind.
    fn puts_off(&self) -> bool {
        !self.database.names && self.database.chance.fault(0.5)
    }

    fn read_later(&mut self, later: &Later) -> Result<Portion, Error> {
        let (table, chunk, answered) = match later {
            Later::After(table, after) => match self.read_after(*table, after.as_ref())? {
                Read::Now(chunk) => (*table, chunk, 0),
                // What a bound is worth was found out when it was asked for.
                _ => return Err(Error::Changed("the table has another key".to_owned())),
            },
            Later::Rows(table, pks) => {
                let (chunk, read) = self.read_rows(pks)?;
                (*table, chunk, read)
            }
        };
        Ok(Portion::Rows { table, chunk, answered, asked: true })
    }

    fn read_after(&mut self, table: usize, after: Option<&Bound>) -> Result<Read, Error> {
        let step = 1 + self.database.chance.below(3);
        let state = self.database.state();
        self.compare(&state)?;
        if after.is_some() && self.database.chance.fault(0.02) {
            // A migration gave the table another primary key.
            return Ok(Read::NoKey);
        }
        let start = after.map(|bound| serde_json::from_str::<[char; 1]>(&bound.0).unwrap()[0]);
        let following: Vec<char> = keys(table).filter(|key| start.is_none_or(|start| *key > start)).collect();
        let span = &following[..step.min(following.len())];
        let upto = span.last().map(|key| Bound(format!("[\"{key}\"]").into())).or(after.cloned());
        let rows = span.iter().filter_map(|key| Some(ReadRow { pk: pk(*key), image: self.image(*key, *state.now.rows.get(key)?) }));
        // Rows that do not match are left out.
        let rows = rows.filter(|row| matches!(row.image, Image::Present { .. }));
        let chunk = self.chunk_of(&state, rows.collect(), upto, span.len() == following.len());
        drop(state);
        self.database.write_meanwhile();
        Ok(Read::Now(chunk))
    }

    fn read_rows(&mut self, pks: &[String]) -> Result<(Chunk, usize), Error> {
        let state = self.database.state();
        self.compare(&state)?;
        let rows = pks.iter().map(|text| {
            let key = keys(0).chain(keys(1)).find(|key| pk(*key) == *text).unwrap();
            let image = state.now.rows.get(&key).map_or_else(|| absent(key), |version| self.image(key, *version));
            ReadRow { pk: text.clone(), image }
        });
        let read = 1 + self.database.chance.below(pks.len());
        let chunk = self.chunk_of(&state, rows.take(read).collect(), None, true);
        drop(state);
        self.database.write_meanwhile();
        Ok((chunk, read))
    }

    fn chunk_of(&self, state: &State, rows: Vec<ReadRow>, upto: Option<Bound>, last: bool) -> Chunk {
        Chunk { rows, upto, last, as_of: self.end(state.now.log.len()), read_us: state.version }
    }
}

fn change(entry: &Entry, image: Image, position: Position) -> Change {
    let op = match (entry.key, &image) {
        (None, _) => Op::Truncate,
        (_, Image::Present { .. }) => Op::Update,
        _ => Op::Delete,
    };
    let pk = entry.key.map(pk).unwrap_or_default();
    Change { op, table: entry.table, pk, image, position, committed_us: entry.version }
}

impl Source for Reader {
    async fn begin(&mut self, record: Option<&PositionRecord>) -> Result<Start, Error> {
        self.database.chance.latency().await;
        let database = self.database.clone();
        let mut state = database.state();
        let name = |number: Option<u64>| Lineage(format!("sim:{}", number.unwrap_or(0)).into());
        let same = state.lineage.is_some()
            && record.is_some_and(|record| {
                record.lineage == name(state.lineage)
                    && mark(&state.now, usize::try_from(record.position.0).unwrap()).as_ref() == Some(&record.mark)
            });
        if !same {
            state.lineages += 1;
            state.lineage = Some(state.lineages);
            let (begun, restores) = (name(state.lineage), state.restores);
            state.epochs.insert(begun.0.to_string(), restores);
            if !database.names {
                // A log's old images would take keys back where the record was lost and the source is whole.
                state.now.forgotten = state.now.log.len();
            }
        }
        self.lineage = name(state.lineage);
        self.read_to = state.now.forgotten;
        self.queued.clear();
        self.later = None;
        let at = record.filter(|_| same).map_or(state.now.log.len(), |record| usize::try_from(record.position.0).unwrap());
        self.record = self.record_at(&state.now, at);
        self.mappings = state.mappings;
        let tables: Vec<MappedTable> = [0, 1].map(|table| state.mapping(table).mapped()).into();
        Ok(Start {
            lineage: self.lineage.clone(),
            from: self.end(self.read_to),
            record: self.record.clone(),
            tables: tables.into(),
            notes: Vec::new(),
        })
    }

    async fn next(&mut self) -> Result<Portion, Error> {
        loop {
            let database = self.database.clone();
            let committed = database.committed.notified();
            tokio::pin!(committed);
            committed.as_mut().enable();
            if let Some(portion) = self.queued.front().cloned() {
                database.chance.latency().await;
                self.queued.pop_front();
                return Ok(portion);
            }
            if self.read()? {
                continue;
            }
            // The stream has told everything, so rows that are read now are less nothing.
            match self.later.take() {
                Some(later) => {
                    let portion = self.read_later(&later)?;
                    self.queued.push_back(portion);
                }
                None => committed.await,
            }
        }
    }

    async fn abandon(&mut self) -> Result<bool, Error> {
        // Rows that were asked for stand between two reads.
        if self.queued.iter().any(|portion| !matches!(portion, Portion::Rows { .. })) {
            self.queued.clear();
            self.read_to = self.read_from;
        }
        Ok(true)
    }

    async fn release(&mut self) -> Result<(), Error> {
        self.abandon().await.map(drop)
    }

    async fn chunk(&mut self, table: usize, after: Option<&Bound>, _: ChunkLimits) -> Result<Read, Error> {
        self.database.chance.latency().await;
        if self.puts_off() {
            self.compare(&self.database.clone().state())?;
            self.later = Some(Later::After(table, after.cloned()));
            return Ok(Read::Later);
        }
        self.read_after(table, after)
    }

    async fn rows(&mut self, table: usize, pks: &[String], _: ChunkLimits) -> Result<ReadRows, Error> {
        self.database.chance.latency().await;
        if self.puts_off() {
            self.compare(&self.database.clone().state())?;
            self.later = Some(Later::Rows(table, pks.to_vec()));
            return Ok(ReadRows::Later);
        }
        let (chunk, read) = self.read_rows(pks)?;
        Ok(ReadRows::Now(chunk, read))
    }

    async fn forget(&mut self, upto: Position) -> Result<(), Error> {
        self.database.chance.latency().await;
        let mut state = self.database.state();
        // The source may have gone back since; then nothing is known of what may go.
        if self.compare(&state).is_ok() {
            let upto = usize::try_from(upto.0).unwrap();
            state.now.forgotten = state.now.forgotten.max(upto);
        }
        Ok(())
    }
}
