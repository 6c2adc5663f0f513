//! Which rows of the changelog nobody needs any more, and how they go: a few at a time, in transactions for which nobody waits.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::visibility::Snapshot;
use super::super::wire::{Connection, Fault, code};
use super::stream::PLANS;

const PATIENCE: Duration = Duration::from_secs(30);

/// How many rows one transaction removes.
const ROWS: u64 = 2000;
/// How long one transaction may take. Where an old snapshot keeps much from being cleaned away, the first one of a session goes through all
/// of that.
const STEP: Duration = Duration::from_secs(5);
/// How long what took longer is left alone.
const LATER: Duration = Duration::from_secs(60);
/// How long reads that may be forgotten wait for each other.
const EVERY: Duration = Duration::from_secs(1);

/// Rows by transaction and number: those after a place, up to the end of another transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    xid: u64,
    id: i64,
    /// No row of this transaction or a later one.
    before: u64,
}

impl Segment {
    /// Everything below.
    pub fn up_to(before: u64) -> Segment {
        Segment { xid: 0, id: 0, before }
    }
}

/// Where rows stand that `now` sees and `then` did not.
fn between(then: &Snapshot, now: &Snapshot) -> Vec<Segment> {
    let ended = then.running().iter().filter(|xid| now.shows(**xid)).map(|xid| Segment { xid: *xid, id: 0, before: xid + 1 });
    let begun = (then.xmax < now.xmax).then_some(Segment { xid: then.xmax, id: 0, before: now.xmax });
    ended.chain(begun).collect()
}

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trimmed {
    /// Nothing is left of it.
    Whole,
    /// This is left.
    Rest(Segment),
    /// It took too long, and nothing was removed.
    NotNow,
}

/// Readies the connection on which rows are removed.
pub(super) async fn prepare(connection: &mut Connection) -> Result<(), Fault> {
    connection.query(&format!("{PLANS}; SET statement_timeout = {}", STEP.as_millis()), PATIENCE).await.map(drop)
}

/// Removes some of the segment's rows, as far as the snapshot sees them.
pub(super) async fn step(connection: &mut Connection, segment: Segment, snapshot: &Snapshot) -> Result<Trimmed, Fault> {
    let Segment { xid, id, before } = segment;
    let sql = format!(
        "WITH gone AS (DELETE FROM rowcast.changelog c USING (SELECT xid, id FROM rowcast.changelog \
         WHERE (xid, id) > ('{xid}'::xid8, {id}) AND xid < '{before}'::xid8 AND pg_visible_in_snapshot(xid, '{snapshot}') \
         ORDER BY xid, id LIMIT {ROWS}) s WHERE c.xid = s.xid AND c.id = s.id RETURNING c.xid, c.id) \
         SELECT count(*) OVER (), xid, id FROM gone ORDER BY xid DESC, id DESC LIMIT 1"
    );
    let answers = match connection.query(&sql, PATIENCE).await {
        Err(Fault::Refused(error)) if error.code == code::QUERY_CANCELED => return Ok(Trimmed::NotNow),
        answered => answered?,
    };
    let Some(answer) = answers.first() else { return Ok(Trimmed::Whole) };
    let count: u64 = answer.number(0)?;
    tracing::trace!(count, "trimmed the changelog");
    let rest = Segment { xid: answer.number(1)?, id: answer.number(2)?, before };
    Ok(if count < ROWS { Trimmed::Whole } else { Trimmed::Rest(rest) })
}

/// What is to be removed.
#[derive(Debug)]
pub(super) struct Trim {
    /// Up to here everything may go, and nobody resumes before it.
    forgotten: (u64, Snapshot),
    /// Reads that were shipped whole and are not forgotten.
    shipped: VecDeque<(u64, Snapshot)>,
    /// The newest one that may be.
    next: Option<(u64, Snapshot)>,
    segments: VecDeque<Segment>,
    /// What took too long, and when to try again.
    later: VecDeque<(Instant, Segment)>,
    asked: bool,
    last: Instant,
}

/// What is to be done about it.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// The reads from `from` on and below `below` are no longer needed.
    Forget { from: u64, below: u64 },
    /// Rows of this segment may go, as far as the snapshot sees them.
    Remove(Segment, Snapshot),
}

impl Trim {
    /// A publisher resumes after this read. What its snapshot sees is garbage, if there is any: somebody was ended while removing it.
    pub fn new(number: u64, snapshot: Snapshot) -> Trim {
        let segments = VecDeque::from([Segment::up_to(snapshot.xmax)]);
        let (shipped, later) = (VecDeque::new(), VecDeque::new());
        Trim { forgotten: (number, snapshot), shipped, next: None, segments, later, asked: false, last: Instant::now() }
    }

    /// A read was handed out whole.
    pub fn shipped(&mut self, number: u64, snapshot: Snapshot) {
        self.shipped.push_back((number, snapshot));
    }

    /// Every partition has all of the reads up to this one.
    pub fn forget(&mut self, number: u64) {
        while let Some(shipped) = self.shipped.pop_front_if(|(shipped, _)| *shipped <= number) {
            self.next = Some(shipped);
        }
    }

    /// When there is something to do.
    pub fn due(&self) -> Option<Instant> {
        match (&self.next, self.segments.is_empty()) {
            _ if self.asked => None,
            (_, false) => Some(self.last),
            (Some(_), true) => Some(self.last + EVERY),
            (None, true) => self.later.front().map(|(due, _)| *due),
        }
    }

    /// Whether there is something to do that has not been put off.
    pub fn has_work(&self) -> bool {
        self.next.is_some() || !self.segments.is_empty()
    }

    /// Whether a step is under way.
    pub fn is_asked(&self) -> bool {
        self.asked
    }

    /// What to do now. First it is written down that nobody resumes before; only then are the rows of it removed. The other way round a
    /// publisher that resumes would claim to ship a stretch of which something is gone.
    pub fn step(&mut self) -> Option<Step> {
        if self.asked {
            return None;
        }
        if !self.has_work() {
            // Put off long enough, if it is due.
            let (_, segment) = self.later.pop_front_if(|(due, _)| *due <= Instant::now())?;
            self.segments.push_back(segment);
        }
        let step = match self.segments.front() {
            Some(segment) => Step::Remove(*segment, self.forgotten.1.clone()),
            None => {
                let (number, snapshot) = self.next.take()?;
                let from = self.forgotten.0;
                self.segments = between(&self.forgotten.1, &snapshot).into();
                self.forgotten = (number, snapshot);
                self.last = Instant::now();
                Step::Forget { from, below: number }
            }
        };
        self.asked = true;
        Some(step)
    }

    /// A step is done.
    pub fn done(&mut self) {
        self.asked = false;
    }

    /// Rows of the front segment were removed, or not.
    pub fn removed(&mut self, trimmed: Trimmed) {
        self.asked = false;
        let segment = self.segments.pop_front();
        match trimmed {
            Trimmed::Whole => {}
            Trimmed::Rest(rest) => self.segments.push_front(rest),
            Trimmed::NotNow => self.later.extend(segment.map(|segment| (Instant::now() + LATER, segment))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        Snapshot::read(text).unwrap()
    }

    #[test]
    fn what_is_new_stands_with_transactions_that_ran_and_ended_or_began_since() {
        let then = snapshot("10:20:10,14");
        let ended = Segment { xid: 10, id: 0, before: 11 };
        let begun = Segment { xid: 20, id: 0, before: 30 };
        assert_eq!(between(&then, &snapshot("14:30:14,25")), [ended, begun]);
        assert_eq!(between(&then, &then), []);
    }

    #[test]
    fn a_read_is_forgotten_before_its_rows_are_removed_and_the_next_one_after_that() {
        let mut trim = Trim::new(4, snapshot("5:5:"));
        assert_eq!(trim.step(), Some(Step::Remove(Segment::up_to(5), snapshot("5:5:"))), "what was left over goes first");
        assert_eq!(trim.step(), None, "one step at a time");
        trim.removed(Trimmed::Whole);
        trim.shipped(5, snapshot("9:9:"));
        trim.shipped(7, snapshot("12:12:"));
        trim.forget(4);
        assert_eq!(trim.step(), None);
        trim.forget(6);
        assert_eq!(trim.step(), Some(Step::Forget { from: 4, below: 5 }));
        trim.done();
        trim.forget(7);
        let segment = Segment { xid: 5, id: 0, before: 9 };
        assert_eq!(trim.step(), Some(Step::Remove(segment, snapshot("9:9:"))));
        let rest = Segment { xid: 6, id: 70, before: 9 };
        trim.removed(Trimmed::Rest(rest));
        assert_eq!(trim.step(), Some(Step::Remove(rest, snapshot("9:9:"))));
        trim.removed(Trimmed::Whole);
        assert_eq!(trim.step(), Some(Step::Forget { from: 5, below: 7 }));
    }

    #[test]
    fn what_takes_too_long_is_put_off_and_keeps_nothing_else_from_going_on() {
        let mut trim = Trim::new(4, snapshot("5:5:"));
        assert!(matches!(trim.step(), Some(Step::Remove(..))));
        trim.removed(Trimmed::NotNow);
        assert!(!trim.has_work() && trim.due().is_some_and(|due| due > Instant::now()));
        assert_eq!(trim.step(), None, "it is not due");
        trim.shipped(5, snapshot("9:9:"));
        trim.forget(5);
        assert_eq!(trim.step(), Some(Step::Forget { from: 4, below: 5 }));
        trim.done();
        assert_eq!(trim.step(), Some(Step::Remove(Segment { xid: 5, id: 0, before: 9 }, snapshot("9:9:"))));
        trim.removed(Trimmed::Whole);
        trim.later[0].0 = Instant::now();
        assert_eq!(trim.step(), Some(Step::Remove(Segment::up_to(5), snapshot("9:9:"))), "the newest snapshot sees it, too");
    }
}
