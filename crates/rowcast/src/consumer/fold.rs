//! Several batches folded into one block: the last change of a key counts, and one checkpoint stands for all. Pure.

use std::collections::{BTreeSet, HashMap};

use crate::batch::Batch;
use crate::cache::{Block, Put, SeenAppend, Stored, Version};
use crate::change::{Partition, Run, Table};
use crate::checkpoint::{Checkpoint, Opened, Seen, Value, Write, decide};

/// A block in the making.
#[derive(Debug)]
pub struct Fold<'m> {
    base: Option<&'m Stored>,
    /// Where the partition will stand; `None` while nothing is known of it.
    next: Option<Checkpoint>,
    writes: Vec<Write<'m>>,
    /// Where in `writes` a key stands.
    places: HashMap<&'m str, usize>,
    seen: Vec<Seen>,
    opened: Vec<Opened>,
    bytes: usize,
}

/// What is to be done once the block stands.
#[derive(Debug)]
pub struct Folded<'m> {
    /// The block.
    pub block: Block,
    /// The writes, each key once.
    pub writes: Vec<Write<'m>>,
    /// Keys that went into the seen logs.
    pub seen: Vec<Seen>,
    /// Why resyncs were opened.
    pub opened: Vec<Opened>,
}

impl<'m> Fold<'m> {
    /// Begins on what stands in the cache; `lost` are tables whose seen log is gone, so that their resync begins anew.
    pub fn new(base: Option<&'m Stored>, lost: &BTreeSet<Table>, fresh: &mut dyn FnMut() -> Run) -> Fold<'m> {
        let mut fold = Fold {
            base,
            next: base.map(|stored| stored.checkpoint.clone()),
            writes: Vec::new(),
            places: HashMap::new(),
            seen: Vec::new(),
            opened: Vec::new(),
            bytes: 0,
        };
        if let Some(next) = fold.next.as_mut() {
            let lost: Vec<Table> = lost.iter().filter(|table| next.resyncs.contains_key(*table)).cloned().collect();
            for table in lost {
                next.open(&table, fresh());
            }
        }
        fold
    }

    /// Where the partition stands after what was folded so far.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.next.as_ref()
    }

    /// Keys in the block, and the bytes of their rows.
    pub fn size(&self) -> (usize, usize) {
        (self.writes.len(), self.bytes)
    }

    /// Folds a batch in.
    pub fn add(&mut self, batch: &'m Batch<'m>, fresh: &mut dyn FnMut() -> Run) {
        let decision = decide(self.next.as_ref(), batch, fresh);
        for write in decision.writes {
            if let Value::Row(row, ..) = write.value {
                self.bytes += row.get().len();
            }
            match self.places.get(write.key) {
                Some(&place) => self.writes[place] = write,
                None => {
                    self.places.insert(write.key, self.writes.len());
                    self.writes.push(write);
                }
            }
        }
        self.seen.extend(decision.seen);
        self.opened.extend(decision.opened);
        self.next = Some(decision.next);
    }

    /// The block, or `None` if no batch was folded in and nothing stood there. `refused` are keys whose value the cache can
    /// never take: they go.
    pub fn finish(self, partition: Partition, version: Version, refused: &BTreeSet<String>) -> Option<Folded<'m>> {
        let next = self.next?;
        let is_open = |seen: &Seen| next.resyncs.get(&seen.table).is_some_and(|resync| resync.run == seen.run);
        let seen: Vec<Seen> = self.seen.into_iter().filter(is_open).collect();
        let puts = self.writes.iter().map(|write| (write.key.to_owned(), put(write, refused))).collect();
        let block = block(self.base, partition, version, next, puts, &seen);
        Some(Folded { block, writes: self.writes, seen, opened: self.opened })
    }
}

/// A block that moves from `base` to `next`.
pub fn block(
    base: Option<&Stored>,
    partition: Partition,
    version: Version,
    next: Checkpoint,
    puts: Vec<(String, Put)>,
    seen: &[Seen],
) -> Block {
    let old = base.map(|stored| &stored.checkpoint.resyncs);
    let append = |(table, resync): (&Table, &crate::checkpoint::Resync)| {
        let before = old.and_then(|old| old.get(table)).filter(|old| old.run == resync.run);
        SeenAppend {
            table: table.clone(),
            run: resync.run.clone(),
            expected: before.map_or(0, |old| old.seen),
            hashes: seen.iter().filter(|seen| seen.table == *table).map(|seen| seen.hash).collect(),
        }
    };
    let appends: Vec<SeenAppend> = next.resyncs.iter().map(append).collect();
    for append in &appends {
        assert_eq!(append.expected + 8 * append.hashes.len() as u64, next.resyncs[&append.table].seen, "the seen log of {}", append.table);
    }
    let gone = |(table, resync): (&Table, &crate::checkpoint::Resync)| {
        let stays = next.resyncs.get(table).is_some_and(|now| now.run == resync.run);
        (!stays).then(|| (table.clone(), resync.run.clone()))
    };
    let forget = old.into_iter().flatten().filter_map(gone).collect();
    Block { partition, on: base.map(|stored| stored.version.clone()), version, checkpoint: next, puts, seen: appends, forget }
}

fn put(write: &Write<'_>, refused: &BTreeSet<String>) -> Put {
    match write.value {
        Value::Row(..) if refused.contains(write.key) => Put::Gone,
        Value::Row(row, shape, terms) => Put::of_row(row, shape, terms),
        Value::Gone => Put::Gone,
    }
}
