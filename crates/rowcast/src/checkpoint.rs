//! The decision that everything rests on: checkpoint + batch → next checkpoint and what to write.
//! What to ask follows from the resyncs that are open in the checkpoint.
//!
//! Pure: no I/O, no clock, no randomness but the fresh runs that the caller hands in. The consumer, the simulation and the
//! model checker call these very functions. `docs/decisions/0001-ranges-and-a-checkpoint.md` tells why there is a
//! checkpoint at all.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::batch::Batch;
use crate::change::{Bound, KeyHash, Lineage, Op, Position, Run, Table};
use crate::mapping::{Descriptor, Keys, OnChange, Shape, Terms};

/// How far Redis is with one partition. Kept in Redis, written in the transaction that writes the rows it vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Whose position it is.
    pub lineage: Lineage,
    /// Every change up to here is in Redis, but for what the open resyncs will bring.
    pub position: Position,
    /// The mapping that the rows of each table were last written under.
    pub mappings: BTreeMap<Table, Descriptor>,
    /// Where keys of a table may stand besides its mapping's own template, until a sweep has been there.
    pub old_keys: BTreeMap<Table, BTreeSet<Keys>>,
    /// What is being brought back.
    pub resyncs: BTreeMap<Table, Resync>,
    /// The newest resync of each table that was completed, so that whoever waits for one can tell that it is over.
    pub completed: BTreeMap<Table, Run>,
}

/// A resync of one table in one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resync {
    /// The attempt.
    pub run: Run,
    /// Where its last chunk ended.
    pub upto: Option<Bound>,
    /// Whether the last chunk has arrived, so that what was not seen may go.
    pub sweeping: bool,
    /// The length in bytes of the seen log: eight for each key that was written since the run began.
    pub seen: u64,
}

/// What happens to one Redis key.
#[derive(Clone, Debug)]
pub struct Write<'m> {
    /// The key.
    pub key: &'m str,
    /// Its table.
    pub table: &'m str,
    /// The row's primary key, a JSON object.
    pub pk: Option<&'m RawValue>,
    /// What it becomes.
    pub value: Value<'m>,
    /// What happened to its row.
    pub op: Op,
    /// When it was committed, in microseconds since the epoch.
    pub committed_us: i64,
}

/// What a Redis key becomes.
#[derive(Clone, Copy, Debug)]
pub enum Value<'m> {
    /// The row, in this shape and on these terms.
    Row(&'m RawValue, Shape, Terms),
    /// Nothing: the key goes.
    Gone,
}

/// A key that was written while a resync of its table is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The table.
    pub table: Table,
    /// The attempt in whose log it belongs.
    pub run: Run,
    /// The key.
    pub hash: KeyHash,
}

/// What one batch leads to.
#[derive(Debug)]
pub struct Decision<'m> {
    /// The checkpoint to be written with the rows.
    pub next: Checkpoint,
    /// The rows, in order; of two with the same key the later one counts.
    pub writes: Vec<Write<'m>>,
    /// What goes into the seen logs.
    pub seen: Vec<Seen>,
    /// Why resyncs were opened, if any were.
    pub opened: Option<Opened>,
}

/// Why a batch opened resyncs; for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Nothing was known of the partition: the first start, or a cache that lost its checkpoint.
    NoCheckpoint,
    /// The source's history is another one.
    NewLineage {
        /// The one that the checkpoint had.
        old: Lineage,
    },
    /// Something before the batch is missing.
    Gap {
        /// Where the checkpoint stood.
        position: Position,
        /// Where the batch begins.
        from: Position,
    },
    /// These tables alone.
    Tables(BTreeMap<Table, Cause>),
}

/// Why the resync of one table was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// Its mapping is new or changed.
    Mapping,
    /// It is no longer mapped.
    Unmapped,
    /// Somebody requested it.
    Requested,
    /// It was truncated.
    Truncated,
}

impl Checkpoint {
    fn new(lineage: Lineage) -> Checkpoint {
        Checkpoint {
            lineage,
            position: Position::START,
            mappings: BTreeMap::new(),
            old_keys: BTreeMap::new(),
            resyncs: BTreeMap::new(),
            completed: BTreeMap::new(),
        }
    }

    /// Opens a resync of `table` under a fresh run, even if one is open.
    pub fn open(&mut self, table: &Table, run: Run) {
        // A table that is no longer mapped has no chunks to wait for: what is left of it is all to be swept. So is every key of one
        // whose keys are evicted, for any of them may be stale.
        let sweeping = self.mappings.get(table).is_none_or(|mapping| mapping.on_change == OnChange::Evict);
        self.resyncs.insert(table.clone(), Resync { run, upto: None, sweeping, seen: 0 });
    }

    /// Closes the resync of `table`: its sweep has been through every key.
    pub fn close(&mut self, table: &Table) {
        let closed = self.resyncs.remove(table);
        self.old_keys.remove(table);
        match closed.filter(|_| self.mappings.contains_key(table)) {
            Some(resync) => drop(self.completed.insert(table.clone(), resync.run)),
            None => drop(self.completed.remove(table)),
        }
    }

    /// Moves to the mappings of a batch, keeping in mind where keys of the old ones may stand.
    fn adopt(&mut self, mappings: &BTreeMap<Table, Descriptor>) {
        for (table, old) in &self.mappings {
            if mappings.get(table).map(|new| &new.keys) != Some(&old.keys) {
                self.old_keys.entry(table.clone()).or_default().insert(old.keys.clone());
            }
        }
        self.mappings.clone_from(mappings);
    }
}

/// Decides what `batch` does to a partition that stands at `checkpoint`; `fresh` hands out runs that were never used.
pub fn decide<'m>(checkpoint: Option<&Checkpoint>, batch: &'m Batch<'_>, fresh: &mut dyn FnMut() -> Run) -> Decision<'m> {
    let mut next = checkpoint.cloned().unwrap_or_else(|| Checkpoint::new(batch.lineage.clone()));
    let mut opened = match checkpoint {
        None => Some(Opened::NoCheckpoint),
        Some(old) if old.lineage != batch.lineage => Some(Opened::NewLineage { old: old.lineage.clone() }),
        Some(old) if batch.from > old.position => Some(Opened::Gap { position: old.position, from: batch.from }),
        Some(_) => None,
    };
    let gap = opened.is_some();
    if next.lineage != batch.lineage {
        next.lineage = batch.lineage.clone();
        next.position = Position::START;
    }
    let position = next.position;
    let mut decided = Decided { tables: BTreeMap::new(), writes: Vec::new(), seen: Vec::new() };

    // A batch that ends before the position says nothing about now: its mapping may be an old one.
    if batch.to >= position {
        let old = next.mappings.clone();
        next.adopt(&batch.mapping);
        for (table, mapping) in &batch.mapping {
            if gap || old.get(table) != Some(mapping) {
                decided.open(&mut next, table, Cause::Mapping, fresh());
            }
        }
        for table in old.keys().filter(|table| !batch.mapping.contains_key(*table)) {
            decided.open(&mut next, table, Cause::Unmapped, fresh());
        }
    }

    // A request holds whenever it arrives: the publisher may pass it on before its stream has come this far again.
    for table in batch.resync.iter().filter(|table| !decided.tables.contains_key(*table)).collect::<Vec<_>>() {
        if next.mappings.contains_key(table) {
            decided.open(&mut next, table, Cause::Requested, fresh());
        }
    }

    match &batch.chunk {
        None => decided.apply_changes(&mut next, batch, position, fresh),
        Some(chunk) if chunk.run.is_some() => decided.apply_chunk(&mut next, batch, position),
        // Rows read singly are as of a moment in (from, to]: outside of it they may be older than what stands there.
        Some(_) if !gap && batch.from <= position && position <= batch.to => decided.apply_rows(&mut next, batch),
        Some(_) => {}
    }

    next.position = position.max(batch.to);
    if opened.is_none() && !decided.tables.is_empty() {
        opened = Some(Opened::Tables(decided.tables));
    }
    Decision { next, writes: decided.writes, seen: decided.seen, opened }
}

/// What has been decided so far.
struct Decided<'m> {
    tables: BTreeMap<Table, Cause>,
    writes: Vec<Write<'m>>,
    seen: Vec<Seen>,
}

impl<'m> Decided<'m> {
    fn open(&mut self, next: &mut Checkpoint, table: &Table, cause: Cause, run: Run) {
        next.open(table, run);
        self.seen.retain(|seen| seen.table != *table);
        self.tables.insert(table.clone(), cause);
    }

    fn apply_changes(&mut self, next: &mut Checkpoint, batch: &'m Batch<'_>, position: Position, fresh: &mut dyn FnMut() -> Run) {
        for change in batch.changes.iter().filter(|change| change.at > position) {
            if change.op == Op::Truncate {
                self.writes.retain(|write| *write.table != *change.table);
                self.open(next, &Table::from(&*change.table), Cause::Truncated, fresh());
            } else {
                self.write(next, batch, change);
            }
        }
    }

    fn apply_chunk(&mut self, next: &mut Checkpoint, batch: &'m Batch<'_>, position: Position) {
        let Some(chunk) = &batch.chunk else { return };
        let current = next.resyncs.get(&chunk.table).is_some_and(|resync| Some(&resync.run) == chunk.run.as_ref());
        if !current || batch.to < position {
            return;
        }
        self.apply_rows(next, batch);
        let Some(resync) = next.resyncs.get_mut(&chunk.table) else { return };
        if chunk.after == resync.upto {
            resync.upto.clone_from(&chunk.upto);
            resync.sweeping |= chunk.last;
        }
    }

    fn apply_rows(&mut self, next: &mut Checkpoint, batch: &'m Batch<'_>) {
        for change in &batch.changes {
            self.write(next, batch, change);
        }
    }

    fn write(&mut self, next: &mut Checkpoint, batch: &'m Batch<'_>, change: &'m crate::batch::KeyChange<'_>) {
        let table = &*change.table;
        let value = match (change.row, batch.mapping.get(table)) {
            (Some(row), Some(mapping)) if mapping.on_change != OnChange::Evict => Value::Row(row, mapping.shape, mapping.terms()),
            _ => Value::Gone,
        };
        if let Value::Row(..) = value
            && let Some((table, _)) = next.resyncs.get_key_value(table)
        {
            let table = table.clone();
            self.see(next, table, KeyHash::of(&change.key));
        }
        self.writes.push(Write { key: &change.key, table, pk: change.pk, value, op: change.op, committed_us: change.committed });
    }

    fn see(&mut self, next: &mut Checkpoint, table: Table, hash: KeyHash) {
        let Some(resync) = next.resyncs.get_mut(&table) else { return };
        resync.seen += 8;
        let run = resync.run.clone();
        self.seen.push(Seen { table, run, hash });
    }
}

impl std::borrow::Borrow<str> for Table {
    fn borrow(&self) -> &str {
        &self.0
    }
}
