//! The sweep that ends a resync: keys of the table and partition that nobody has written since the resync began, and that no
//! row stands behind any more, go.
//!
//! It runs beside the stream, by the same consumer, so that a key is unseen in the very transaction that removes it. All that is in
//! memory here is thrown away with the connection or after a refused block.

use std::collections::{BTreeMap, HashSet};

use crate::change::{KeyHash, Partition, Run, Table};
use crate::checkpoint::{Checkpoint, Seen};
use crate::mapping::Keys;

/// The keys that were written since a resync began.
#[derive(Debug)]
struct SeenKeys {
    run: Run,
    /// As they were read from the log, sorted.
    logged: Vec<KeyHash>,
    /// Written while this sweep has been running.
    fresh: HashSet<KeyHash>,
}

/// One pass through the keys of the cache, for all tables that were due when it began.
#[derive(Debug)]
pub struct Sweep {
    partition: Partition,
    tables: BTreeMap<Table, SeenKeys>,
    prefix: String,
    /// Where the scan goes on.
    pub cursor: u64,
}

impl Sweep {
    /// Begins a pass for these tables with the contents of their seen logs.
    pub fn new(partition: Partition, checkpoint: &Checkpoint, logs: Vec<(Table, Run, Vec<KeyHash>)>) -> Sweep {
        let tables: BTreeMap<Table, SeenKeys> = logs
            .into_iter()
            .map(|(table, run, mut logged)| {
                logged.sort_unstable();
                logged.dedup();
                (table, SeenKeys { run, logged, fresh: HashSet::new() })
            })
            .collect();
        let prefixes = tables.keys().flat_map(|table| all_keys(checkpoint, table)).map(|keys| keys.template.prefix());
        let prefix = prefixes.reduce(common_prefix).unwrap_or_default().to_owned();
        Sweep { partition, tables, prefix, cursor: 0 }
    }

    /// What every key of the swept tables begins with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The tables of this pass whose resync is still the one it began with.
    pub fn tables<'s>(&'s self, checkpoint: &'s Checkpoint) -> impl Iterator<Item = &'s Table> {
        let current = |(table, seen): &(&Table, &SeenKeys)| {
            checkpoint.resyncs.get(*table).is_some_and(|resync| resync.sweeping && resync.run == seen.run)
        };
        self.tables.iter().filter(current).map(|(table, _)| table)
    }

    /// Keeps in mind what a block has just written.
    pub fn see(&mut self, seen: &[Seen]) {
        for seen in seen {
            if let Some(keys) = self.tables.get_mut(&seen.table).filter(|keys| keys.run == seen.run) {
                keys.fresh.insert(seen.hash);
            }
        }
    }

    /// The keys as which this sweep may remove `key`, should the value not say otherwise of each; none if it may not.
    pub fn candidate<'c>(&self, checkpoint: &'c Checkpoint, key: &str) -> Vec<&'c Keys> {
        let hash = KeyHash::of(key);
        if hash.partition(self.partition.of) != self.partition {
            return Vec::new();
        }
        let swept: Vec<&Table> = self.tables(checkpoint).collect();
        let unseen = |table: &Table| {
            let seen = &self.tables[table];
            seen.logged.binary_search(&hash).is_err() && !seen.fresh.contains(&hash)
        };
        // What any table's own template matches is that table's alone: an old template of another one has no say.
        let current = |table: &&Table| checkpoint.mappings.get(*table).is_some_and(|mapping| mapping.keys.template.parse(key).is_some());
        let owners: Vec<&Table> = checkpoint.mappings.keys().filter(current).collect();
        if !owners.iter().all(|table| swept.contains(table) && unseen(table)) {
            return Vec::new();
        }
        // Under its former mappings the table may have kept other values under the same keys.
        let tables = if owners.is_empty() { swept.into_iter().filter(|table| unseen(table)).collect() } else { owners };
        let keys = tables.into_iter().flat_map(|table| all_keys(checkpoint, table));
        keys.filter(|keys| keys.template.parse(key).is_some()).collect()
    }
}

fn all_keys<'c>(checkpoint: &'c Checkpoint, table: &Table) -> impl Iterator<Item = &'c Keys> {
    let current = checkpoint.mappings.get(table).map(|mapping| &mapping.keys);
    current.into_iter().chain(checkpoint.old_keys.get(table).into_iter().flatten())
}

fn common_prefix<'p>(left: &'p str, right: &'p str) -> &'p str {
    let end = left.char_indices().zip(right.chars()).find(|((_, l), r)| l != r).map(|((index, _), _)| index);
    &left[..end.unwrap_or(left.len().min(right.len()))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Lineage, Position};
    use crate::checkpoint::Resync;
    use crate::mapping::Proof;

    const ALL: Partition = Partition { number: 1, of: 1 };

    fn checkpoint(current: &[(&str, &str)], old: &[(&str, &str)], swept: &[&str]) -> Checkpoint {
        Checkpoint {
            lineage: Lineage("l".into()),
            position: Position::START,
            mappings: current.iter().map(|(table, keys)| (Table::from(*table), format!("0 json {keys}").parse().unwrap())).collect(),
            old_keys: old.iter().map(|(table, keys)| (Table::from(*table), [keys.parse().unwrap()].into())).collect(),
            resyncs: swept
                .iter()
                .map(|table| (Table::from(*table), Resync { run: Run("r".into()), upto: None, sweeping: true, seen: 0 }))
                .collect(),
            completed: Default::default(),
        }
    }

    fn sweep(checkpoint: &Checkpoint, seen: &[&str]) -> Sweep {
        let hashes: Vec<_> = seen.iter().map(|key| KeyHash::of(key)).collect();
        Sweep::new(ALL, checkpoint, checkpoint.resyncs.keys().map(|table| (table.clone(), Run("r".into()), hashes.clone())).collect())
    }

    fn candidate(checkpoint: &Checkpoint, seen: &[&str], key: &str) -> bool {
        !sweep(checkpoint, seen).candidate(checkpoint, key).is_empty()
    }

    #[test]
    fn only_unseen_keys_of_the_swept_table_may_go() {
        let state = checkpoint(&[("t", "t:{id:integer}"), ("u", "u:{id:integer}")], &[], &["t"]);
        assert!(candidate(&state, &["t:2"], "t:1"));
        assert!(!candidate(&state, &["t:2"], "t:2"));
        assert!(!candidate(&state, &[], "u:1"));
        assert!(!candidate(&state, &[], "t:1:cart"));
        let mut running = sweep(&state, &[]);
        running.see(&[Seen { table: "t".into(), run: Run("r".into()), hash: KeyHash::of("t:1") }]);
        assert!(running.candidate(&state, "t:1").is_empty());
    }

    #[test]
    fn an_old_template_leaves_what_another_tables_own_template_matches() {
        // T moved from x: to z:, U from y: to x:, in one deploy.
        let state =
            checkpoint(&[("t", "z:{id:integer}"), ("u", "x:{id:integer}")], &[("t", "x:{id:integer}"), ("u", "y:{id:integer}")], &["t"]);
        assert!(!candidate(&state, &[], "x:1"));
        assert!(candidate(&state, &[], "z:1"));
        let without = checkpoint(&[("t", "z:{id:integer}")], &[("t", "x:{id:integer}")], &["t"]);
        assert!(candidate(&without, &[], "x:1"));
    }

    #[test]
    fn under_a_new_mapping_keys_of_the_old_one_are_known_by_either() {
        // The application filled t:1 in its own form, as long as it was the application that filled keys.
        let state = checkpoint(&[("t", "t:{id:integer}")], &[("t", "key-alone t:{id:integer}")], &["t"]);
        let running = sweep(&state, &["t:2"]);
        let proofs: Vec<_> = running.candidate(&state, "t:1").iter().map(|keys| keys.proof).collect();
        assert_eq!(proofs, [Proof::Value, Proof::KeyAlone]);
        assert!(running.candidate(&state, "t:2").is_empty());
    }

    #[test]
    fn a_removed_table_goes_whole() {
        let state = checkpoint(&[], &[("t", "t:{id:integer}")], &["t"]);
        assert!(candidate(&state, &[], "t:1"));
    }

    #[test]
    fn a_resync_that_was_opened_anew_is_not_swept_with_the_old_keys() {
        let mut state = checkpoint(&[("t", "t:{id:integer}")], &[], &["t"]);
        let running = sweep(&state, &[]);
        state.open(&"t".into(), Run("fresh".into()));
        assert!(running.candidate(&state, "t:1").is_empty());
        assert_eq!(running.tables(&state).count(), 0);
    }

    #[test]
    fn the_scan_is_as_narrow_as_the_templates_allow() {
        let state = checkpoint(&[("t", "shop:t:{id:integer}"), ("u", "shop:u:{id:integer}")], &[], &["t", "u"]);
        assert_eq!(sweep(&state, &[]).prefix(), "shop:");
    }
}
