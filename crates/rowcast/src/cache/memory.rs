//! A cache in this process: for programs without servers, and for tests of logic. The same semantics as Redis, without its
//! faults; deterministic, for nothing in it waits, spawns, or reads a clock but the runtime's.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Block, Cache, Cached, Error, Expiries, Link, Put, Stored, Written, layout, names};
use crate::change::{KeyHash, Partition, Run, Table};
use crate::mapping::Terms;

/// How many keys one step of a scan returns: few, so that a sweep has many steps between which something else may happen.
const SCAN_STEP: usize = 16;

/// A cache for one pipeline in this process. Its clones are the same cache.
#[derive(Clone, Debug)]
pub struct MemoryCache {
    pipeline: Arc<str>,
    contents: Arc<Mutex<Contents>>,
}

/// What stands in a memory cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Rows, and whatever else somebody put beside them.
    pub values: BTreeMap<String, Cached>,
    /// Which of them go by themselves.
    pub expiries: Expiries,
    /// The number of partitions in force.
    pub layout: Option<u16>,
    /// How far each partition is.
    pub checkpoints: BTreeMap<Partition, Stored>,
    /// The keys that were written while a resync was open.
    pub seen: BTreeMap<(Partition, Table, Run), Vec<KeyHash>>,
}

impl MemoryCache {
    /// An empty cache for `pipeline`.
    pub fn new(pipeline: &str) -> MemoryCache {
        MemoryCache { pipeline: pipeline.into(), contents: Arc::default() }
    }

    /// The pipeline's name.
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// A copy of everything that stands in it.
    pub fn contents(&self) -> Contents {
        self.lock().clone()
    }

    /// Changes what stands in it, as any other program does to a Redis that it shares: writes keys of its own, flushes
    /// everything, restores a backup. No link sees it half done.
    pub fn alter<T>(&self, change: impl FnOnce(&mut Contents) -> T) -> T {
        change(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        // A panic in `alter`'s caller leaves what it has changed so far, which is no worse than another program's crash.
        let mut contents = self.contents.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while let Some(key) = contents.expiries.due() {
            contents.values.remove(&key);
        }
        contents
    }
}

impl Cache for MemoryCache {
    type Link = MemoryLink;

    async fn connect(&self) -> Result<MemoryLink, Error> {
        Ok(MemoryLink { cache: self.clone(), scans: BTreeMap::new(), last_cursor: 0 })
    }
}

/// A connection to a [`MemoryCache`].
#[derive(Debug)]
pub struct MemoryLink {
    cache: MemoryCache,
    /// The last key that was returned, for each scan that has not ended.
    scans: BTreeMap<u64, String>,
    last_cursor: u64,
}

impl Link for MemoryLink {
    async fn layout(&mut self) -> Result<Option<u16>, Error> {
        Ok(self.cache.lock().layout)
    }

    async fn take_over(&mut self, old: Option<u16>, of: u16, fresh: &mut (dyn FnMut() -> Run + Send)) -> Result<bool, Error> {
        let mut contents = self.cache.lock();
        if contents.layout != old {
            return Ok(false);
        }
        let old: Vec<Partition> = old.into_iter().flat_map(Partition::all).collect();
        let checkpoints: Vec<_> = old.iter().filter_map(|p| contents.checkpoints.get(p).map(|stored| stored.checkpoint.clone())).collect();
        let next = layout::follow(&checkpoints, of, fresh);
        contents.checkpoints.retain(|partition, _| !old.contains(partition));
        contents.seen.retain(|(partition, _, _), _| !old.contains(partition));
        contents.checkpoints.extend(next);
        contents.layout = Some(of);
        Ok(true)
    }

    async fn load(&mut self, partition: Partition) -> Result<Option<Stored>, Error> {
        Ok(self.cache.lock().checkpoints.get(&partition).cloned())
    }

    async fn write(&mut self, block: &Block) -> Result<Written, Error> {
        Ok(self.cache.lock().write(block))
    }

    async fn seen(&mut self, partition: Partition, table: &Table, run: &Run, length: u64) -> Result<Option<Vec<KeyHash>>, Error> {
        let contents = self.cache.lock();
        let log = contents.seen.get(&(partition, table.clone(), run.clone())).cloned().unwrap_or_default();
        Ok((length_bytes(&log) == length).then_some(log))
    }

    async fn scan(&mut self, cursor: u64, prefix: &str) -> Result<(u64, Vec<String>), Error> {
        let from = match cursor {
            0 => Bound::Included(prefix.to_owned()),
            _ => match self.scans.remove(&cursor) {
                Some(last) => Bound::Excluded(last),
                None => return Err(Error::Lost(format!("the scan cursor {cursor} is not one of this connection"))),
            },
        };
        let contents = self.cache.lock();
        let mut rest = contents.values.range((from, Bound::Unbounded)).map(|(key, _)| key).take_while(|key| key.starts_with(prefix));
        let keys: Vec<String> = rest.by_ref().take(SCAN_STEP).cloned().collect();
        let Some(last) = keys.last().filter(|_| rest.next().is_some()).cloned() else { return Ok((0, keys)) };
        self.last_cursor += 1;
        self.scans.insert(self.last_cursor, last);
        Ok((self.last_cursor, keys))
    }

    async fn values(&mut self, keys: &[String]) -> Result<Vec<Option<Cached>>, Error> {
        let contents = self.cache.lock();
        Ok(keys.iter().map(|key| contents.values.get(key).cloned()).collect())
    }
}

impl Contents {
    fn write(&mut self, block: &Block) -> Written {
        if let Some(refused) = names::refuse_own(&block.puts).or_else(|| self.differs(block)) {
            return refused;
        }
        for (key, put) in &block.puts {
            match put {
                Put::Text(text, terms) => self.put(key, terms, || Cached::Text(text.clone())),
                // A hash without fields is no key at all.
                Put::Hash(fields, terms) if !fields.is_empty() => self.put(key, terms, || Cached::Hash(fields.iter().cloned().collect())),
                Put::Hash(..) | Put::Gone => {
                    self.values.remove(key);
                    self.expiries.clear(key);
                }
            }
        }
        for seen in block.seen.iter().filter(|seen| !seen.hashes.is_empty()) {
            self.seen.entry((block.partition, seen.table.clone(), seen.run.clone())).or_default().extend(&seen.hashes);
        }
        for (table, run) in &block.forget {
            self.seen.remove(&(block.partition, table.clone(), run.clone()));
        }
        self.checkpoints.insert(block.partition, Stored { checkpoint: block.checkpoint.clone(), version: block.version.clone() });
        Written::Done
    }

    fn put(&mut self, key: &str, terms: &Terms, value: impl FnOnce() -> Cached) {
        if terms.existing && !self.values.contains_key(key) {
            return;
        }
        self.values.insert(key.to_owned(), value());
        match terms.ttl {
            Some(ttl) => self.expiries.set(key, ttl),
            // Whoever filled the key has said how long it stands.
            None if terms.existing => {}
            None => self.expiries.clear(key),
        }
    }

    /// Why nothing is written, if what stands here is not what the writer believes.
    fn differs(&self, block: &Block) -> Option<Written> {
        if self.layout != Some(block.partition.of) {
            return Some(Written::Layout(self.layout.unwrap_or(0)));
        }
        if self.checkpoints.get(&block.partition).map(|stored| &stored.version) != block.on.as_ref() {
            return Some(Written::Overtaken);
        }
        let length =
            |table: &Table, run: &Run| self.seen.get(&(block.partition, table.clone(), run.clone())).map_or(0, |log| length_bytes(log));
        let lost: Vec<Table> =
            block.seen.iter().filter(|seen| length(&seen.table, &seen.run) != seen.expected).map(|seen| seen.table.clone()).collect();
        (!lost.is_empty()).then_some(Written::SeenLost(lost))
    }
}

fn length_bytes(log: &[KeyHash]) -> u64 {
    8 * log.len() as u64
}
