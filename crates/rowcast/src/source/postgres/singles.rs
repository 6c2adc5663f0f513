//! Rows that must be read singly, because the log does not tell them whole. Pure.

use std::collections::{BTreeMap, HashSet, VecDeque};

/// How many rows of a table may wait to be read singly; more than that, and the whole table is read anew.
const ROWS_MAX: usize = 20_000;

/// The rows of all tables.
#[derive(Debug, Default)]
pub(super) struct Singles(BTreeMap<usize, Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    pks: VecDeque<String>,
    known: HashSet<String>,
    /// The commit record of the oldest transaction that needs one of them.
    since: u64,
}

impl Waiting {
    fn take(&mut self, most: usize) -> Vec<String> {
        let taken: Vec<String> = self.pks.drain(..self.pks.len().min(most)).collect();
        for pk in &taken {
            self.known.remove(pk);
        }
        taken
    }
}

impl Singles {
    /// A row must be read for a transaction with this commit record. Where too many wait already they are forgotten, and what is returned
    /// is the commit record since when their whole table must be read anew.
    pub fn want(&mut self, table: usize, pk: String, commit: u64) -> Option<u64> {
        let waiting = self.0.entry(table).or_default();
        waiting.since = if waiting.pks.is_empty() { commit } else { waiting.since.min(commit) };
        if waiting.known.contains(&pk) {
            return None;
        }
        if waiting.pks.len() >= ROWS_MAX {
            let since = waiting.since;
            self.forget(table);
            return Some(since);
        }
        waiting.known.insert(pk.clone());
        waiting.pks.push_back(pk);
        None
    }

    /// Takes out rows of one table, with the commit record of the oldest transaction that needs them.
    pub fn take(&mut self, most: usize) -> Option<(usize, Vec<String>, u64)> {
        let (&table, waiting) = self.0.iter_mut().find(|(_, waiting)| !waiting.pks.is_empty())?;
        Some((table, waiting.take(most), waiting.since))
    }

    /// The rows of a table need not be read.
    pub fn forget(&mut self, table: usize) {
        if let Some(waiting) = self.0.get_mut(&table) {
            drop(waiting.take(usize::MAX));
        }
    }

    /// The commit record of the oldest transaction that needs any.
    pub fn since(&self) -> Option<u64> {
        self.0.values().filter(|waiting| !waiting.pks.is_empty()).map(|waiting| waiting.since).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_too_many_to_be_read_singly_are_forgotten_for_their_table() {
        let mut singles = Singles::default();
        for (row, commit) in (100..).enumerate().take(ROWS_MAX) {
            assert_eq!(singles.want(0, row.to_string(), commit), None);
        }
        assert_eq!(singles.want(0, "7".to_owned(), 50_000), None, "it waits already");
        assert_eq!(singles.want(0, "one more".to_owned(), 50_001), Some(100));
        assert_eq!((singles.take(1), singles.since()), (None, None));
        assert_eq!(singles.want(0, "later".to_owned(), 60_000), None);
        assert_eq!(singles.take(1), Some((0, vec!["later".to_owned()], 60_000)));
    }
}
