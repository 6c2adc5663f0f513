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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::memory::MemoryCache;
    use crate::cache::{Cache, Cached, Link, Written};
    use crate::change::KeyHash;

    const ONE: Partition = Partition { number: 1, of: 1 };

    /// A message with these changes (`key` or `key=row`) at positions that go on from `from`.
    fn message(mapping: &str, from: u64, changes: &[&str]) -> Vec<u8> {
        let change = |(index, change): (usize, &&str)| {
            let (key, row) = change.split_once('=').map_or((*change, String::new()), |(key, row)| (key, format!(r#","row":{row}"#)));
            format!(r#"{{"op":"update","table":"t","key":"{key}"{row},"at":"{from:x}-{:x}","committed":0}}"#, index + 1)
        };
        let changes: Vec<String> = changes.iter().enumerate().map(change).collect();
        let text = format!(
            r#"{{"rowcast":1,"pipeline":"p","lineage":"l","partition":"1of1","from":"{from:x}-0","to":"{:x}-0","mapping":{{"t":"{mapping}"}},"changes":[{}]}}"#,
            from + 1,
            changes.join(",")
        );
        text.into_bytes()
    }

    fn fresh() -> Run {
        super::super::fresh_run()
    }

    /// Writes these messages in one block on top of what stands there; returns the checkpoint that it led to.
    async fn apply(link: &mut impl Link, messages: &[Vec<u8>]) -> Checkpoint {
        let stored = link.load(ONE).await.unwrap();
        let batches: Vec<Batch<'_>> = messages.iter().map(|message| Batch::decode(message, ONE).unwrap()).collect();
        let mut fold = Fold::new(stored.as_ref(), &BTreeSet::new(), &mut fresh);
        batches.iter().for_each(|batch| fold.add(batch, &mut fresh));
        let folded = fold.finish(ONE, Version(fresh().0.to_string()), &BTreeSet::new()).unwrap();
        assert_eq!(link.write(&folded.block).await.unwrap(), Written::Done);
        folded.block.checkpoint
    }

    async fn ready() -> (MemoryCache, impl Link) {
        let cache = MemoryCache::new("p");
        let mut link = cache.connect().await.unwrap();
        assert!(link.take_over(None, 1, &mut fresh).await.unwrap());
        (cache, link)
    }

    fn text(value: &str) -> Cached {
        Cached::Text(value.as_bytes().to_vec())
    }

    fn fill(cache: &MemoryCache, key: &str) {
        cache.alter(|contents| contents.values.insert(key.to_owned(), text("old")));
    }

    const REFRESH: &str = "0 json refresh key-alone t:{id:integer}";
    const EVICT: &str = "0 json evict key-alone t:{id:integer}";
    const WRITE: &str = "0 json t:{id:integer}";

    #[tokio::test]
    async fn under_refresh_a_key_is_fresh_or_absent_whatever_came_before_in_the_block() {
        let (cache, mut link) = ready().await;
        fill(&cache, "t:1");
        fill(&cache, "t:3");
        fill(&cache, "t:5");
        let first = message(REFRESH, 0, &["t:1", r#"t:1={"v":1}"#, "t:2", r#"t:2={"v":1}"#, r#"t:3={"v":1}"#]);
        let second = message(REFRESH, 1, &["t:3", r#"t:4={"v":2}"#, r#"t:5={"v":2}"#]);
        apply(&mut link, &[first, second]).await;
        let values = cache.contents().values;
        assert_eq!(values, [("t:1".to_owned(), text(r#"{"v":1}"#)), ("t:5".to_owned(), text(r#"{"v":2}"#))].into());
    }

    #[tokio::test]
    async fn under_refresh_every_row_counts_as_seen_whether_its_key_was_there_or_not() {
        let (cache, mut link) = ready().await;
        fill(&cache, "t:1");
        let checkpoint = apply(&mut link, &[message(REFRESH, 0, &[r#"t:1={"v":1}"#, r#"t:2={"v":1}"#, "t:3"])]).await;
        let resync = &checkpoint.resyncs[&Table::from("t")];
        let seen = link.seen(ONE, &"t".into(), &resync.run, resync.seen).await.unwrap().unwrap();
        assert_eq!(seen, [KeyHash::of("t:1"), KeyHash::of("t:2")]);
        assert!(!resync.sweeping, "its chunks are waited for");
    }

    #[tokio::test]
    async fn under_evict_every_change_removes_the_key_and_a_resync_is_a_sweep() {
        let (cache, mut link) = ready().await;
        fill(&cache, "t:1");
        fill(&cache, "t:2");
        let checkpoint = apply(&mut link, &[message(EVICT, 0, &[r#"t:1={"v":1}"#])]).await;
        assert_eq!(cache.contents().values.keys().collect::<Vec<_>>(), ["t:2"]);
        assert!(checkpoint.resyncs[&Table::from("t")].sweeping, "any other key may be stale, and no chunk would tell");
    }

    #[tokio::test]
    async fn a_mapping_that_changes_within_a_block_is_that_of_each_change() {
        let (cache, mut link) = ready().await;
        let to_evict = [message(WRITE, 0, &[r#"t:1={"v":1}"#, r#"t:2={"v":1}"#]), message(EVICT, 1, &[r#"t:1={"v":2}"#])];
        let checkpoint = apply(&mut link, &to_evict).await;
        assert_eq!(cache.contents().values.keys().collect::<Vec<_>>(), ["t:2"]);
        assert!(checkpoint.resyncs[&Table::from("t")].sweeping);
        let limited = "0 json ttl=1h t:{id:integer}";
        apply(&mut link, &[message(EVICT, 2, &["t:2"]), message(limited, 3, &[r#"t:2={"v":3}"#]), message(WRITE, 4, &[r#"t:3={"v":4}"#])])
            .await;
        let contents = cache.contents();
        assert_eq!(contents.values.keys().collect::<Vec<_>>(), ["t:2", "t:3"]);
        assert!(contents.expiries.left("t:2").is_some() && contents.expiries.left("t:3").is_none());
    }
}
