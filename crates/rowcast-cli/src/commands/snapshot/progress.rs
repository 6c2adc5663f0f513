//! How far the resyncs are that somebody waits for, out of one look at the checkpoints after the other. Pure.

use std::collections::BTreeMap;

use rowcast::change::{Partition, Run, Table};
use rowcast::checkpoint::Checkpoint;

/// How far the slowest part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Not every partition has heard of the request.
    Waiting,
    /// Rows are being read.
    Reading,
    /// All rows are read, and what has none is being removed.
    Sweeping,
    /// Everywhere complete.
    Done,
}

/// One table in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    step: Step,
    /// Keys written since its resync began.
    keys: u64,
}

/// All parts.
pub struct Progress {
    tables: Vec<Table>,
    /// How many rows each table has.
    rows: Option<BTreeMap<Table, u64>>,
    /// The runs that were open or completed before the request: none of them is the one that is waited for.
    old: Vec<Run>,
    parts: BTreeMap<(Table, Partition), Part>,
}

impl Progress {
    /// Begins with the checkpoints from before the request.
    pub fn new(tables: Vec<Table>, before: Vec<(Partition, Option<Checkpoint>)>, rows: Option<&[u64]>) -> Progress {
        let mut old = Vec::new();
        for checkpoint in before.iter().filter_map(|(_, checkpoint)| checkpoint.as_ref()) {
            old.extend(checkpoint.resyncs.values().map(|resync| resync.run.clone()));
            old.extend(checkpoint.completed.values().cloned());
        }
        let rows = rows.map(|rows| tables.iter().cloned().zip(rows.iter().copied()).collect());
        let mut progress = Progress { tables, rows, old, parts: BTreeMap::new() };
        let waiting: Vec<(Partition, Option<Checkpoint>)> = before.into_iter().map(|(partition, _)| (partition, None)).collect();
        progress.note(&waiting);
        progress
    }

    /// Notes what stands there now. Returns whether anything has moved.
    pub fn note(&mut self, found: &[(Partition, Option<Checkpoint>)]) -> bool {
        let mut parts = BTreeMap::new();
        for (partition, checkpoint) in found {
            for table in &self.tables {
                let place = (table.clone(), *partition);
                let part = self.part(table, checkpoint.as_ref(), self.parts.get(&place));
                parts.insert(place, part);
            }
        }
        let moved = parts != self.parts;
        self.parts = parts;
        moved
    }

    fn part(&self, table: &Table, checkpoint: Option<&Checkpoint>, before: Option<&Part>) -> Part {
        let waiting = Part { step: Step::Waiting, keys: 0 };
        let Some(checkpoint) = checkpoint else { return waiting };
        match (checkpoint.resyncs.get(table), checkpoint.completed.get(table)) {
            (Some(resync), _) if self.old.contains(&resync.run) => waiting,
            (Some(resync), _) => Part { step: if resync.sweeping { Step::Sweeping } else { Step::Reading }, keys: resync.seen / 8 },
            (None, Some(run)) if !self.old.contains(run) => Part { step: Step::Done, keys: before.map_or(0, |part| part.keys) },
            (None, _) => waiting,
        }
    }

    /// How far the slowest part is.
    pub fn step(&self) -> Step {
        self.parts.values().map(|part| part.step).min().unwrap_or(Step::Waiting)
    }

    /// Partitions in which something is still to be done.
    pub fn open_partitions(&self) -> impl Iterator<Item = Partition> {
        self.parts.iter().filter(|(_, part)| part.step != Step::Done).map(|((_, partition), _)| *partition)
    }

    /// Keys written since the resyncs began, as far as was seen.
    pub fn keys(&self) -> u64 {
        self.parts.values().map(|part| part.keys).sum()
    }

    /// Rows that are done, of those that there were.
    pub fn rows(&self) -> u64 {
        let Some(rows) = &self.rows else { return self.keys() };
        let of_table = |(table, rows): (&Table, &u64)| {
            let parts = || self.parts.iter().filter(|((other, _), _)| other == table).map(|(_, part)| part);
            // What was written meanwhile counts too, so there may be more keys than there were rows; and a small part may be
            // over before anybody has looked.
            if parts().all(|part| part.step >= Step::Sweeping) { *rows } else { parts().map(|part| part.keys).sum::<u64>().min(*rows) }
        };
        rows.iter().map(of_table).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rowcast::change::{Lineage, Position};

    const ONE: Partition = Partition { number: 1, of: 2 };
    const TWO: Partition = Partition { number: 2, of: 2 };

    fn checkpoint() -> Checkpoint {
        let mut checkpoint = Checkpoint {
            lineage: Lineage("l".into()),
            position: Position::START,
            mappings: [(Table::from("t"), "9f3c61d0 json t:{id:integer}".parse().unwrap())].into(),
            old_keys: BTreeMap::new(),
            resyncs: BTreeMap::new(),
            completed: BTreeMap::new(),
        };
        close(open(&mut checkpoint, "old", 8));
        checkpoint
    }

    fn open<'c>(checkpoint: &'c mut Checkpoint, run: &str, keys: u64) -> &'c mut Checkpoint {
        checkpoint.open(&"t".into(), Run(run.into()));
        checkpoint.resyncs.get_mut("t").unwrap().seen = 8 * keys;
        checkpoint
    }

    fn close(checkpoint: &mut Checkpoint) {
        checkpoint.close(&"t".into());
    }

    fn both(one: &Checkpoint, two: &Checkpoint) -> Vec<(Partition, Option<Checkpoint>)> {
        vec![(ONE, Some(one.clone())), (TWO, Some(two.clone()))]
    }

    fn progress(before: &Checkpoint) -> Progress {
        Progress::new(vec!["t".into()], both(before, before), Some(&[10]))
    }

    #[test]
    fn a_resync_is_followed_to_its_end_in_every_partition() {
        let before = checkpoint();
        let mut progress = progress(&before);
        assert_eq!((progress.step(), progress.rows()), (Step::Waiting, 0));
        assert!(!progress.note(&both(&before, &before)), "nothing has moved");
        let (mut one, mut two) = (before.clone(), before.clone());
        open(&mut one, "new1", 3);
        assert!(progress.note(&both(&one, &two)));
        assert_eq!((progress.step(), progress.rows()), (Step::Waiting, 3));
        open(&mut two, "new2", 4);
        one.resyncs.get_mut("t").unwrap().sweeping = true;
        progress.note(&both(&one, &two));
        assert_eq!((progress.step(), progress.rows()), (Step::Reading, 7));
        close(&mut one);
        two.resyncs.get_mut("t").unwrap().sweeping = true;
        progress.note(&both(&one, &two));
        assert_eq!((progress.step(), progress.rows()), (Step::Sweeping, 10));
        assert_eq!(progress.open_partitions().collect::<Vec<_>>(), [TWO]);
        close(&mut two);
        progress.note(&both(&one, &two));
        assert_eq!((progress.step(), progress.rows(), progress.keys()), (Step::Done, 10, 7));
    }

    #[test]
    fn what_was_over_between_two_looks_counts() {
        let before = checkpoint();
        let mut progress = progress(&before);
        let (mut one, mut two) = (before.clone(), before);
        close(open(&mut one, "new1", 3));
        close(open(&mut two, "new2", 3));
        progress.note(&both(&one, &two));
        assert_eq!((progress.step(), progress.rows()), (Step::Done, 10));
    }

    #[test]
    fn a_resync_that_was_open_before_is_not_the_one_that_is_waited_for() {
        let mut before = checkpoint();
        open(&mut before, "earlier", 2);
        let mut progress = progress(&before);
        let mut after = before.clone();
        close(&mut after);
        progress.note(&both(&after, &after));
        assert_eq!(progress.step(), Step::Waiting);
    }
}
