//! The newest asking of each partition, and which chunk to read next. Pure.
//!
//! An asking is credit for a few chunks. All partitions that stand at the same start are served by one reading, the lowest
//! start first, so that partitions that fell apart come together again.

use std::collections::{BTreeMap, VecDeque};

use crate::change::{Bound, Partition, Run, Table};
use crate::request::{Asking, CREDIT};

/// One partition's resync of one table, as the publisher sees it.
#[derive(Debug)]
struct Entry {
    run: Run,
    /// Where the next chunk begins.
    after: Option<Bound>,
    /// How many chunks lie before it, as far as this publisher knows; stands for the order of bounds, which only the source
    /// could tell.
    depth: u32,
    /// The depth up to which there is credit.
    limit: u32,
    /// The starts of the newest chunks that were sent, with their depths.
    sent: VecDeque<(Option<Bound>, u32)>,
    /// Whether the last chunk was sent.
    finished: bool,
}

/// A chunk that is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which table.
    pub table: Table,
    /// From where on.
    pub after: Option<Bound>,
    /// For whom.
    pub recipients: Vec<(Partition, Run)>,
}

/// Who asks for what.
#[derive(Debug, Default)]
pub struct Askings {
    entries: BTreeMap<(Table, Partition), Entry>,
}

impl Askings {
    /// Notes an asking; it takes the place of the partition's former one.
    pub fn note(&mut self, asking: Asking) {
        let key = (asking.table, asking.partition);
        if let Some(entry) = self.entries.get_mut(&key)
            && entry.run == asking.run
            && !asking.again
        {
            let known = entry.sent.iter().rev().find(|(start, _)| *start == asking.after).map(|(_, depth)| *depth);
            if let Some(depth) = known.or((entry.after == asking.after).then_some(entry.depth)) {
                entry.limit = entry.limit.max(depth + CREDIT);
                return;
            }
        }
        let depth = self.depth_of(&key.0, asking.after.as_ref());
        let fresh = Entry { run: asking.run, after: asking.after, depth, limit: depth + CREDIT, sent: VecDeque::new(), finished: false };
        self.entries.insert(key, fresh);
    }

    /// What another partition knows of where this bound stands.
    fn depth_of(&self, table: &Table, after: Option<&Bound>) -> u32 {
        let of_table = self.entries.iter().filter(|((other, _), _)| other == table).map(|(_, entry)| entry);
        let known = of_table.flat_map(|entry| {
            let current = (entry.after.as_ref() == after).then_some(entry.depth);
            current.or_else(|| entry.sent.iter().find(|(start, _)| start.as_ref() == after).map(|(_, depth)| *depth))
        });
        known.max().unwrap_or(0)
    }

    /// The chunk that should be read next, of a table of which one can be read.
    pub fn next(&self, free: impl Fn(&Table) -> bool) -> Option<Wanted> {
        let open = || self.entries.iter().filter(|((table, _), entry)| free(table) && !entry.finished && entry.depth < entry.limit);
        let ((table, _), lowest) = open().min_by_key(|(_, entry)| entry.depth)?;
        let recipients = open()
            .filter(|((other, _), entry)| other == table && entry.after == lowest.after)
            .map(|((_, partition), entry)| (*partition, entry.run.clone()))
            .collect();
        Some(Wanted { table: table.clone(), after: lowest.after.clone(), recipients })
    }

    /// Drops the askings for a chunk that cannot be read.
    pub fn forget(&mut self, wanted: &Wanted) {
        for (partition, run) in &wanted.recipients {
            let key = (wanted.table.clone(), *partition);
            if self.entries.get(&key).is_some_and(|entry| entry.run == *run && entry.after == wanted.after) {
                self.entries.remove(&key);
            }
        }
    }

    /// Notes that the chunk was sent to those whose asking is still the same.
    pub fn sent(&mut self, wanted: &Wanted, upto: Option<&Bound>, last: bool) {
        for (partition, run) in &wanted.recipients {
            let Some(entry) = self.entries.get_mut(&(wanted.table.clone(), *partition)) else { continue };
            if entry.run != *run || entry.after != wanted.after {
                continue;
            }
            entry.sent.push_back((entry.after.take(), entry.depth));
            if entry.sent.len() > 2 * CREDIT as usize {
                entry.sent.pop_front();
            }
            entry.after = upto.cloned();
            entry.depth += 1;
            entry.finished = last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_is_not_read_until_it_is_asked_for_again() {
        let mut askings = Askings::default();
        askings.note(asking(1, "a", 0, false));
        askings.note(asking(2, "b", 0, false));
        let wanted = askings.next(|_| true).unwrap();
        // A newer asking of another run is not meant.
        askings.note(asking(2, "c", 0, false));
        askings.forget(&wanted);
        assert_eq!(serve(&mut askings, 100), Some((0, vec![2])));
    }

    fn bound(n: u32) -> Option<Bound> {
        (n > 0).then(|| Bound(format!("[{n}]").into()))
    }

    fn asking(partition: u16, run: &str, after: u32, again: bool) -> Asking {
        Asking { table: "t".into(), partition: Partition { number: partition, of: 2 }, run: Run(run.into()), after: bound(after), again }
    }

    /// Serves one chunk; each ends at the next number, the last at `end`.
    fn serve(askings: &mut Askings, end: u32) -> Option<(u32, Vec<u16>)> {
        let wanted = askings.next(|_| true)?;
        let start = wanted.after.as_ref().map_or(0, |bound| bound.0.trim_matches(['[', ']']).parse().unwrap());
        askings.sent(&wanted, bound(start + 1).as_ref(), start + 1 == end);
        Some((start, wanted.recipients.iter().map(|(partition, _)| partition.number).collect()))
    }

    #[test]
    fn partitions_at_one_start_share_a_reading() {
        let mut askings = Askings::default();
        askings.note(asking(1, "a", 0, false));
        askings.note(asking(2, "b", 0, false));
        for start in 0..CREDIT {
            assert_eq!(serve(&mut askings, 100), Some((start, vec![1, 2])));
        }
        assert_eq!(serve(&mut askings, 100), None, "the credit is used up");
    }

    #[test]
    fn progress_extends_the_credit_and_sends_nothing_twice() {
        let mut askings = Askings::default();
        askings.note(asking(1, "a", 0, false));
        for start in 0..CREDIT {
            assert_eq!(serve(&mut askings, 100), Some((start, vec![1])));
        }
        askings.note(asking(1, "a", 2, false));
        assert_eq!(serve(&mut askings, 100), Some((4, vec![1])));
        assert_eq!(serve(&mut askings, 100), Some((5, vec![1])));
        assert_eq!(serve(&mut askings, 100), None);
    }

    #[test]
    fn what_did_not_arrive_is_sent_again() {
        let mut askings = Askings::default();
        askings.note(asking(1, "a", 0, false));
        while serve(&mut askings, 100).is_some() {}
        askings.note(asking(1, "a", 1, true));
        assert_eq!(serve(&mut askings, 100), Some((1, vec![1])));
    }

    #[test]
    fn a_fresh_run_begins_anew_and_the_one_behind_is_served_first() {
        let mut askings = Askings::default();
        askings.note(asking(1, "a", 0, false));
        serve(&mut askings, 100);
        askings.note(asking(2, "b", 0, false));
        assert_eq!(serve(&mut askings, 100), Some((0, vec![2])));
        assert_eq!(serve(&mut askings, 100), Some((1, vec![1, 2])));
        askings.note(asking(1, "c", 0, false));
        assert_eq!(serve(&mut askings, 100), Some((0, vec![1])));
    }

    #[test]
    fn nothing_follows_the_last_chunk() {
        let mut askings = Askings::default();
        askings.note(asking(1, "a", 0, false));
        assert_eq!(serve(&mut askings, 1), Some((0, vec![1])));
        assert_eq!(serve(&mut askings, 1), None);
        askings.note(asking(1, "a", 0, true));
        assert_eq!(serve(&mut askings, 1), Some((0, vec![1])), "it was lost");
    }
}
