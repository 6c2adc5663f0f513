//! When to ask the publisher for chunks, and when to ask again. Pure.
//!
//! An asking is repeated only once something that was published well after it has been consumed: every message that waited in
//! the queue when it was made, and then some more. The clock alone would flood a consumer that is behind with chunks.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::change::{Bound, Partition, Run, Table};
use crate::checkpoint::{Checkpoint, Resync};
use crate::request::Asking;

/// How long after the last message that was published before an asking its answer is waited for, at first and at most.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(30));

/// An asking that was made.
#[derive(Debug)]
struct Asked {
    run: Run,
    /// Where the resync stood.
    upto: Option<Bound>,
    /// Messages that were published before the asking and are not consumed yet.
    behind: u64,
    /// Since when none is left, without progress.
    waiting: Option<Instant>,
    patience: Duration,
}

/// The askings of one partition.
#[derive(Debug, Default)]
pub struct Askings {
    asked: BTreeMap<Table, Asked>,
}

/// What is to be asked for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The chunks that follow.
    More,
    /// What did not arrive.
    Again,
}

impl Askings {
    /// Looks at the open resyncs after `consumed` messages; returns what should be asked for.
    pub fn due(&mut self, checkpoint: &Checkpoint, consumed: u64, now: Instant) -> Vec<(Table, Ask)> {
        let open = |table: &Table| checkpoint.resyncs.get(table).filter(|resync| !resync.sweeping);
        self.asked.retain(|table, _| open(table).is_some());
        let unasked = checkpoint.resyncs.keys().filter(|table| open(table).is_some() && !self.asked.contains_key(*table));
        let mut due: Vec<(Table, Ask)> = unasked.map(|table| (table.clone(), Ask::Again)).collect();
        for (table, asked) in &mut self.asked {
            let Some(resync) = open(table) else { continue };
            if let Some(ask) = asked.look(resync, consumed, now) {
                due.push((table.clone(), ask));
            }
        }
        due
    }

    /// Makes an asking. `behind` messages were published before it and are not consumed yet.
    pub fn make(&mut self, table: &Table, ask: Ask, resync: &Resync, partition: Partition, behind: u64) -> Asking {
        let former = self.asked.get(table).filter(|former| former.run == resync.run && ask == Ask::Again);
        let patience = former.map_or(PATIENCE.0, |former| (former.patience * 2).min(PATIENCE.1));
        let asked = Asked { run: resync.run.clone(), upto: resync.upto.clone(), behind, waiting: None, patience };
        self.asked.insert(table.clone(), asked);
        Asking { table: table.clone(), partition, run: resync.run.clone(), after: resync.upto.clone(), again: ask == Ask::Again }
    }
}

impl Asked {
    fn look(&mut self, resync: &Resync, consumed: u64, now: Instant) -> Option<Ask> {
        if self.run != resync.run {
            return Some(Ask::Again);
        }
        self.behind = self.behind.saturating_sub(consumed);
        if self.upto != resync.upto {
            return Some(Ask::More);
        }
        if self.behind == 0 && consumed > 0 {
            let since = *self.waiting.get_or_insert(now);
            if now - since >= self.patience {
                return Some(Ask::Again);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Lineage, Position};

    const ONE: Partition = Partition { number: 1, of: 1 };

    fn table() -> Table {
        "t".into()
    }

    fn checkpoint(run: &str, upto: u32) -> Checkpoint {
        let upto = (upto > 0).then(|| Bound(format!("[{upto}]").into()));
        let resync = Resync { run: Run(run.into()), upto, sweeping: false, seen: 0 };
        Checkpoint {
            lineage: Lineage("l".into()),
            position: Position::START,
            mappings: BTreeMap::new(),
            old_keys: BTreeMap::new(),
            resyncs: BTreeMap::from([(table(), resync)]),
            completed: BTreeMap::new(),
        }
    }

    fn ask(askings: &mut Askings, checkpoint: &Checkpoint, ask: Ask, behind: u64) -> Asking {
        askings.make(&table(), ask, &checkpoint.resyncs[&table()], ONE, behind)
    }

    #[tokio::test(start_paused = true)]
    async fn a_resync_is_asked_for_at_once_and_again_with_a_fresh_run() {
        let mut askings = Askings::default();
        let now = Instant::now();
        let first = checkpoint("a", 0);
        assert_eq!(askings.due(&first, 0, now), [(table(), Ask::Again)]);
        ask(&mut askings, &first, Ask::Again, 0);
        assert_eq!(askings.due(&first, 0, now), []);
        assert_eq!(askings.due(&checkpoint("b", 0), 1, now), [(table(), Ask::Again)]);
    }

    #[tokio::test(start_paused = true)]
    async fn time_alone_never_repeats_an_asking() {
        let mut askings = Askings::default();
        let now = Instant::now();
        let state = checkpoint("a", 0);
        ask(&mut askings, &state, Ask::Again, 1000);
        for second in 0..100 {
            assert_eq!(askings.due(&state, 9, now + Duration::from_secs(second)), [], "at second {second}");
        }
        assert_eq!(askings.due(&state, 100, now + Duration::from_secs(100)), [], "all that came before it is consumed only now");
        assert_eq!(askings.due(&state, 0, now + Duration::from_secs(200)), [], "nothing was consumed since");
        assert_eq!(askings.due(&state, 1, now + Duration::from_secs(200)), [(table(), Ask::Again)]);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_asks_for_more() {
        let mut askings = Askings::default();
        let now = Instant::now();
        ask(&mut askings, &checkpoint("a", 0), Ask::Again, 0);
        assert_eq!(askings.due(&checkpoint("a", 2), 1, now), [(table(), Ask::More)]);
        let asking = ask(&mut askings, &checkpoint("a", 2), Ask::More, 0);
        assert_eq!((asking.after, asking.again), (Some(Bound("[2]".into())), false));
    }

    #[tokio::test(start_paused = true)]
    async fn repeated_askings_come_less_and_less_often() {
        let mut askings = Askings::default();
        let state = checkpoint("a", 0);
        ask(&mut askings, &state, Ask::Again, 0);
        let mut times = Vec::new();
        for second in 0..60 {
            if !askings.due(&state, 1, Instant::now()).is_empty() {
                times.push(second);
                ask(&mut askings, &state, Ask::Again, 0);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(times, [3, 10, 23, 48]);
    }
}
