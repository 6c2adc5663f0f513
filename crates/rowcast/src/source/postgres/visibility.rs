//! Which transactions a snapshot sees, and which streamed ones no snapshot has shown yet. Pure.
//!
//! A transaction can be in the log, and streamed, while snapshots do not see it: it waits for a synchronous standby, say. So positions
//! in the log do not tell what a read has seen; only its snapshot does.

use std::collections::VecDeque;
use std::fmt;

use super::wire::Fault;

/// What `pg_current_snapshot()` says. <https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT>
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// Everything below has ended.
    pub xmin: u64,
    /// Nothing from here on is visible.
    pub xmax: u64,
    /// What lies between and had not ended, in order.
    running: Vec<u64>,
}

impl Snapshot {
    /// Reads `xmin:xmax:xip,xip`.
    pub fn read(text: &str) -> Result<Snapshot, Fault> {
        let read = || {
            let mut parts = text.split(':');
            let (xmin, xmax, running) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
            let running: Option<Vec<u64>> = running.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().ok()).collect();
            let mut running = running?;
            running.sort_unstable();
            parts.next().is_none().then_some(Snapshot { xmin, xmax, running })
        };
        read().ok_or_else(|| Fault::Lost(format!("{text:?} is no snapshot")))
    }

    /// What lies between and had not ended, in order.
    pub fn running(&self) -> &[u64] {
        &self.running
    }

    /// Whether it sees what this transaction has done; all of its number is known.
    pub fn shows(&self, xid: u64) -> bool {
        xid < self.xmax && self.running.binary_search(&xid).is_err()
    }

    /// The same of the transactions before `xmax` alone.
    pub fn before(&self, xmax: u64) -> Snapshot {
        let xmax = xmax.min(self.xmax);
        let running = self.running.iter().copied().filter(|xid| *xid < xmax).collect();
        Snapshot { xmin: self.xmin.min(xmax), xmax, running }
    }

    /// Whether it sees what this transaction has done. The log gives 32 bits of the transaction's number; they mean the one that is
    /// nearest to the snapshot, for no two that are in use are further apart than half of them.
    pub fn sees(&self, xid: u32) -> bool {
        self.shows(self.widen(xid))
    }

    /// Whether this transaction and every one before it has ended, so that what they have done is seen.
    pub fn has_ended(&self, xid: u32) -> bool {
        self.widen(xid) < self.xmin
    }

    fn widen(&self, xid: u32) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "the distance within 32 bits is what is wanted")]
        let distance = i64::from(xid.wrapping_sub(self.xmax as u32) as i32);
        self.xmax.saturating_add_signed(distance)
    }
}

/// As the server writes it, and reads it.
impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (index, xid) in self.running.iter().enumerate() {
            write!(f, "{}{xid}", if index > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// A streamed transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Streamed {
    xid: u32,
    /// The start of its commit record.
    commit: u64,
}

/// The streamed transactions that no snapshot has shown, in the order of the stream.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    streamed: VecDeque<Streamed>,
}

impl Unseen {
    /// Notes a transaction whose commit has come by.
    pub fn push(&mut self, xid: u32, commit: u64) {
        self.streamed.push_back(Streamed { xid, commit });
    }

    /// Takes out what a snapshot shows.
    pub fn shown(&mut self, snapshot: &Snapshot) {
        self.streamed.retain(|streamed| !snapshot.sees(streamed.xid));
    }

    /// Where the oldest of them begins its commit record; what is confirmed must not pass it, for it would not be streamed again.
    pub fn oldest(&self) -> Option<u64> {
        self.streamed.front().map(|streamed| streamed.commit)
    }

    /// Their numbers.
    pub fn xids(&self) -> impl Iterator<Item = u32> + '_ {
        self.streamed.iter().map(|streamed| streamed.xid)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.streamed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_had_ended() {
        let snapshot = Snapshot::read("10:20:10,14").unwrap();
        for (xid, seen) in [(9, true), (10, false), (11, true), (14, false), (19, true), (20, false), (30, false)] {
            assert_eq!(snapshot.sees(xid), seen, "{xid}");
        }
        assert!(Snapshot::read("7:7:").unwrap().sees(6));
        for text in ["", "1:2", "a:b:", "1:2:3:4", "1:2:x"] {
            assert!(Snapshot::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_number_of_32_bits_means_the_nearest_transaction() {
        let turn = 1_u64 << 32;
        let snapshot = Snapshot { xmin: turn + 5, xmax: turn + 10, running: vec![turn + 5] };
        assert!(snapshot.sees(u32::MAX), "it was before the numbers began anew");
        assert!(!snapshot.sees(5) && snapshot.sees(6) && !snapshot.sees(10) && !snapshot.sees(1000));
        let before = Snapshot { xmin: turn - 1, xmax: turn - 1, running: vec![] };
        assert!(!before.sees(3), "it comes after the numbers begin anew");
    }

    #[test]
    fn a_snapshot_is_written_as_it_was_read_and_can_end_earlier() {
        for text in ["7:7:", "10:20:10,14"] {
            assert_eq!(Snapshot::read(text).unwrap().to_string(), text);
        }
        let snapshot = Snapshot::read("10:20:10,14").unwrap();
        for (xmax, text) in [(30, "10:20:10,14"), (14, "10:14:10"), (9, "9:9:")] {
            assert_eq!(snapshot.before(xmax).to_string(), text);
        }
    }

    #[test]
    fn the_oldest_unseen_transaction_holds_the_confirming() {
        let mut unseen = Unseen::default();
        for (xid, commit) in [(12, 100), (10, 200), (11, 300)] {
            unseen.push(xid, commit);
        }
        assert_eq!(unseen.oldest(), Some(100));
        unseen.shown(&Snapshot::read("10:13:10").unwrap());
        assert_eq!((unseen.oldest(), unseen.xids().collect::<Vec<_>>()), (Some(200), vec![10]));
        unseen.shown(&Snapshot::read("13:13:").unwrap());
        assert!(unseen.is_empty());
    }
}
