//! What becomes of the checkpoints when the number of partitions changes. Pure.

use std::collections::BTreeSet;

use super::{Stored, Version};
use crate::change::{Partition, Run, Table};
use crate::checkpoint::Checkpoint;

/// The checkpoints of a layout of `of` partitions that follows on `old`, in the order of [`Partition::all`]; none where there
/// is no old one, for then nothing is known and every partition begins without a checkpoint.
///
/// No new partition may take a key back, whichever old one the key came from: so all begin at the greatest position. What
/// the slower ones had not yet written is what the resyncs bring.
pub(super) fn follow(old: &[Checkpoint], of: u16, fresh: &mut (dyn FnMut() -> Run + Send)) -> Vec<(Partition, Stored)> {
    let Some(merged) = merge(old) else { return Vec::new() };
    let tables: BTreeSet<Table> = tables(old).cloned().collect();
    let next = |partition| {
        let mut checkpoint = merged.clone();
        for table in &tables {
            checkpoint.open(table, fresh());
        }
        // A run is an id that was never used, which is all that a version has to be.
        (partition, Stored { checkpoint, version: Version(fresh().0.to_string()) })
    };
    Partition::all(of).map(next).collect()
}

/// One checkpoint without resyncs that says of the whole pipeline what the old ones say of their partitions.
fn merge(old: &[Checkpoint]) -> Option<Checkpoint> {
    // Where partitions are of two histories the choice does not matter for long: the next batch is of one of them, and opens
    // every resync if it is the other.
    let furthest = old.iter().max_by(|a, b| (&a.lineage, a.position).cmp(&(&b.lineage, b.position)))?;
    let mut merged = Checkpoint { resyncs: Default::default(), ..furthest.clone() };
    for checkpoint in old {
        for (table, mapping) in &checkpoint.mappings {
            let kept = merged.mappings.entry(table.clone()).or_insert_with(|| mapping.clone());
            if kept.keys != mapping.keys {
                merged.old_keys.entry(table.clone()).or_default().insert(mapping.keys.clone());
            }
        }
        for (table, keys) in &checkpoint.old_keys {
            merged.old_keys.entry(table.clone()).or_default().extend(keys.iter().cloned());
        }
    }
    Some(merged)
}

/// Every table that a key may belong to.
fn tables(old: &[Checkpoint]) -> impl Iterator<Item = &Table> {
    old.iter().flat_map(|checkpoint| checkpoint.mappings.keys().chain(checkpoint.old_keys.keys()).chain(checkpoint.resyncs.keys()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Lineage, Position};
    use crate::mapping::Keys;

    fn checkpoint(lineage: &str, position: u64, mappings: &[(&str, &str)]) -> Checkpoint {
        Checkpoint {
            lineage: Lineage(lineage.into()),
            position: Position(position, 0),
            mappings: mappings.iter().map(|(table, mapping)| (Table::from(*table), mapping.parse().unwrap())).collect(),
            old_keys: Default::default(),
            resyncs: Default::default(),
            completed: Default::default(),
        }
    }

    fn following(old: &[Checkpoint], of: u16) -> Vec<(Partition, Stored)> {
        let mut runs = 0;
        follow(old, of, &mut move || {
            runs += 1;
            Run(format!("run{runs}").into())
        })
    }

    const USERS: (&str, &str) = ("users", "9f3c61d0 json user:{id:integer}");
    const USERS_BEFORE: (&str, &str) = ("users", "11111111 json u:{id:integer}");
    const ORDERS: (&str, &str) = ("orders", "22222222 hash order:{id:integer}");

    #[test]
    fn every_new_partition_begins_at_the_greatest_old_position() {
        let next = following(&[checkpoint("a", 5, &[USERS]), checkpoint("a", 9, &[USERS]), checkpoint("a", 7, &[USERS])], 2);
        assert_eq!(next.iter().map(|(partition, _)| partition.to_string()).collect::<Vec<_>>(), ["1of2", "2of2"]);
        for (_, stored) in &next {
            assert_eq!((&*stored.checkpoint.lineage.0, stored.checkpoint.position), ("a", Position(9, 0)));
        }
    }

    #[test]
    fn of_two_lineages_the_greater_counts_and_only_its_positions_are_compared() {
        let next = following(&[checkpoint("a", 900, &[USERS]), checkpoint("b", 3, &[USERS]), checkpoint("b", 2, &[USERS])], 1);
        assert_eq!((&*next[0].1.checkpoint.lineage.0, next[0].1.checkpoint.position), ("b", Position(3, 0)));
    }

    #[test]
    fn a_resync_of_every_table_is_open_each_with_a_run_of_its_own() {
        let mut second = checkpoint("a", 2, &[ORDERS]);
        second.old_keys.insert("gone".into(), BTreeSet::from(["g:{id:integer}".parse::<Keys>().unwrap()]));
        let next = following(&[checkpoint("a", 1, &[USERS]), second], 3);
        let mut ids = BTreeSet::new();
        for (_, stored) in &next {
            ids.insert(stored.version.0.clone());
            let resyncs = &stored.checkpoint.resyncs;
            assert_eq!(resyncs.keys().map(|table| &*table.0).collect::<Vec<_>>(), ["gone", "orders", "users"]);
            assert!(resyncs.values().all(|resync| resync.upto.is_none() && resync.seen == 0));
            // What is no longer mapped has no chunks to wait for.
            assert!(resyncs["gone"].sweeping && !resyncs["users"].sweeping);
            ids.extend(resyncs.values().map(|resync| resync.run.0.to_string()));
        }
        assert_eq!(ids.len(), 3 * 4);
    }

    #[test]
    fn keys_that_any_partition_may_have_written_under_are_remembered() {
        let mut first = checkpoint("a", 1, &[USERS_BEFORE]);
        first.old_keys.insert("users".into(), BTreeSet::from(["old:{id:integer}".parse::<Keys>().unwrap()]));
        let next = following(&[first, checkpoint("a", 2, &[USERS])], 1);
        let checkpoint = &next[0].1.checkpoint;
        assert_eq!(checkpoint.mappings[&Table::from("users")].to_string(), USERS.1);
        let old: Vec<String> = checkpoint.old_keys[&Table::from("users")].iter().map(ToString::to_string).collect();
        assert_eq!(old, ["old:{id:integer}", "u:{id:integer}"]);
    }

    #[test]
    fn without_an_old_checkpoint_there_is_no_new_one() {
        assert!(following(&[], 4).is_empty());
    }
}
