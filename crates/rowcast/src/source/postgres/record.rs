//! The position record: a transaction in the log, as a rule one with a message of ours, by which the history is recognised, and what the server may forget. Pure.
//!
//! A cold copy of a server has the same identity, the same slot and the same numbers; only times differ. So the record names a
//! transaction by its number and its time, and the server is never told that it may forget that transaction: at a restart it must
//! come by again.

use std::collections::VecDeque;

use super::super::PositionRecord;
use crate::change::{Lineage, Position};

/// A transaction, of ours as a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub xid: u32,
    pub committed_us: i64,
}

impl Mark {
    /// As it stands in a record.
    pub fn text(&self) -> String {
        format!("{}@{}", self.xid, self.committed_us)
    }
}

/// A record of this transaction.
pub(super) fn record(lineage: &Lineage, commit: u64, mark: &Mark) -> PositionRecord {
    PositionRecord { lineage: lineage.clone(), position: Position(commit, 1), mark: mark.text() }
}

/// The record of a history in which no message of ours has come by yet. Until one has, that the server has not been started again since is
/// the proof that the history is the same: a session that ends so early must not make the next one tell of it all as of a new history, by
/// which keys would go back.
pub(super) fn early(lineage: &Lineage, from: Position, server_started_us: i64) -> PositionRecord {
    PositionRecord { lineage: lineage.clone(), position: from, mark: early_mark(server_started_us) }
}

/// What stands in such a record.
fn early_mark(server_started_us: i64) -> String {
    format!("server@{server_started_us}")
}

/// What a record says of the history that a server has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// That a transaction stands there, which must come by again.
    Transaction,
    /// The server has run ever since, and nothing was forgotten: it is the same history.
    Same,
    /// No message had come by, and the server was started again since: it may be any history.
    Unknown,
}

/// What this record says where the server was started then and was told to send everything from `confirmed` on.
pub(super) fn claim(record: &PositionRecord, server_started_us: i64, confirmed: u64) -> Claim {
    match record.mark.starts_with("server@") {
        false => Claim::Transaction,
        true if record.mark == early_mark(server_started_us) && record.position.0 == confirmed => Claim::Same,
        true => Claim::Unknown,
    }
}

/// A record that was published.
#[derive(Clone, Copy, Debug)]
struct Published {
    commit: u64,
    end: u64,
}

/// Rows that had to be read because the log did not tell them whole: the transaction that named them stays until they have arrived.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// The commit record of the oldest transaction that needs them.
    since: u64,
    /// They went out before this.
    delivered: u64,
}

/// How far the server may forget.
#[derive(Debug)]
pub(super) struct Keeping {
    published: VecDeque<Published>,
    held: Vec<Held>,
    /// Up to here every partition has everything.
    forgotten: u64,
    confirmed: u64,
}

impl Keeping {
    /// Nothing after `confirmed` may be forgotten yet.
    pub fn new(confirmed: u64) -> Keeping {
        Keeping { published: VecDeque::new(), held: Vec::new(), forgotten: confirmed, confirmed }
    }

    /// A record goes out; its transaction's commit record lies from `commit` to `end`.
    pub fn published(&mut self, commit: u64, end: u64) {
        self.published.push_back(Published { commit, end });
    }

    /// Rows that a transaction at `since` needs went out before `delivered`.
    pub fn hold(&mut self, since: u64, delivered: u64) {
        self.held.push(Held { since, delivered });
    }

    /// Every partition has everything up to here.
    pub fn forget(&mut self, upto: Position) {
        self.forgotten = self.forgotten.max(upto.0);
        let forgotten = self.forgotten;
        self.held.retain(|held| held.delivered > forgotten);
    }

    /// What the server may be told: it sends again whatever commits there or later. `oldest` is the oldest commit that must come again
    /// for other reasons.
    pub fn confirm(&mut self, oldest: Option<u64>) -> u64 {
        let held = self.held.iter().map(|held| held.since).min();
        let limit = oldest.into_iter().chain(held).min().unwrap_or(u64::MAX);
        let forgotten = self.forgotten;
        while let Some(published) = self.published.pop_front_if(|published| published.end <= forgotten && published.commit <= limit) {
            self.confirmed = published.commit;
        }
        self.confirmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_early_record_holds_as_long_as_the_server_runs_and_has_forgotten_nothing() {
        let record = early(&Lineage("l".into()), Position(100, 0), 7);
        for (started, confirmed, expected) in [(7, 100, Claim::Same), (8, 100, Claim::Unknown), (7, 101, Claim::Unknown)] {
            assert_eq!(claim(&record, started, confirmed), expected);
        }
        let later = super::record(&Lineage("l".into()), 100, &Mark { xid: 5, committed_us: 7 });
        assert_eq!(claim(&later, 7, 100), Claim::Transaction);
    }

    #[test]
    fn the_transaction_of_the_record_is_never_forgotten() {
        let mut keeping = Keeping::new(100);
        keeping.published(200, 210);
        keeping.published(300, 310);
        assert_eq!(keeping.confirm(None), 100, "nothing has arrived");
        keeping.forget(Position(250, 0));
        assert_eq!(keeping.confirm(None), 200, "up to the commit record, not beyond");
        keeping.forget(Position(400, 0));
        assert_eq!(keeping.confirm(None), 300);
    }

    #[test]
    fn what_no_snapshot_has_shown_and_rows_that_are_under_way_hold_it() {
        let mut keeping = Keeping::new(100);
        keeping.published(200, 210);
        keeping.published(300, 310);
        keeping.forget(Position(400, 0));
        assert_eq!(keeping.confirm(Some(199)), 100);
        assert_eq!(keeping.confirm(Some(200)), 200);
        keeping.hold(250, 500);
        assert_eq!(keeping.confirm(None), 200);
        keeping.forget(Position(499, 0));
        assert_eq!(keeping.confirm(None), 200);
        keeping.forget(Position(500, 0));
        assert_eq!(keeping.confirm(None), 300);
    }
}
