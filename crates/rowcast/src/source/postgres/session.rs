//! A session: one stream from one slot, and a few connections beside it, from `begin` until something changes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::super::{Error, Portion};
use super::chunk::{ReadTable, Reading};
use super::desk::{Ask, Desk, Told};
use super::feed::Feed;
use super::judge::{Evidence, Judge};
use super::outbox::Outbox;
use super::readings::{State, UnderWay};
use super::record::{self, Keeping, Mark};
use super::schema::{Membership, Table};
use super::stream::{Committed, Step, Stream};
use super::visibility::Snapshot;
use super::wire::{Fault, Frame, code};
use crate::change::{Lineage, Position};

/// How often it is asked what is visible while a reading waits for it, and while nothing but confirming does.
const POLL_WAITING: Duration = Duration::from_millis(5);
const POLL: Duration = Duration::from_millis(200);
/// How often the catalogue is compared with what it was.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a message of ours is written while changes are shipped, so that the server may forget them.
const MARK_EVERY: Duration = Duration::from_secs(1);
/// How much log of others may lie behind the newest message on an otherwise idle database.
const MARK_BYTES: u64 = 64 * 1024;
/// Messages of readings become records no more often than this.
const RECORD_EVERY: Duration = Duration::from_millis(500);
/// If no message has come by for so long, because a backlog lies before it, a transaction of somebody else becomes the record. Otherwise a
/// publisher that is ended within a long backlog would begin it anew, and the server would keep its log until the last of it.
const RECORD_LATE: Duration = Duration::from_secs(2);
/// How many events such a transaction may hold: to find it again the server must be stopped in the middle of telling of it.
const RECORD_EVENTS_MAX: u64 = 10_000;

/// What a session stands on, made by [`super::begin`].
#[derive(Debug)]
pub(super) struct Parts {
    pub place: String,
    pub lineage: Lineage,
    /// Tells our messages of this session from those of others.
    pub nonce: String,
    pub feed: Feed,
    /// For what is short.
    pub aside: Desk,
    /// For rows: as many readings as these may be under way.
    pub readers: Vec<Desk>,
    /// For verdicts on rows, where any table needs them.
    pub judge: Option<Desk>,
    /// By table, who says what the log does not tell of its rows.
    pub judges: Vec<Option<Arc<Judge>>>,
    pub told: mpsc::UnboundedReceiver<Result<Told, Fault>>,
    pub facts: Vec<Option<Table>>,
    pub read_tables: Vec<Arc<ReadTable>>,
    pub stream: Stream,
    pub confirmed: u64,
    /// Until a snapshot's xmin is this far, no row is read: a transaction that began before its table was published may run.
    pub barrier: Option<u64>,
}

/// An open history.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) parts: Parts,
    pub(super) frames: VecDeque<Frame>,
    pub(super) outbox: Outbox,
    /// Up to where portions were handed out.
    pub(super) flushed: Position,
    pub(super) keeping: Keeping,
    /// The readings under way, each with its number, and with a connection of its own until it was answered.
    pub(super) under_way: Vec<UnderWay>,
    /// How many readings there were.
    pub(super) readings: u64,
    /// What is to be read next.
    pub(super) asked: VecDeque<(usize, Reading)>,
    /// Whether the newest one was for rows that the log does not tell whole.
    pub(super) own_last: bool,
    /// Messages of ours: how many were written, and which came by last.
    pub(super) written: u64,
    pub(super) seen: u64,
    pub(super) last_written: Instant,
    pub(super) last_record: Option<Instant>,
    pub(super) begun: Instant,
    /// Where the newest record's transaction ends.
    pub(super) record_end: u64,
    /// Whether anything was shipped since then.
    pub(super) dirty: bool,
    /// Up to where the server has told of its log.
    pub(super) alive: u64,
    /// Whether an answer about visibility is awaited.
    pub(super) polling: bool,
    pub(super) next_poll: Instant,
    pub(super) looking: bool,
    pub(super) next_look: Instant,
    /// A table whose rows come with columns that do not fit; nothing more is taken in before the catalogue has said whether they are older
    /// or newer than what is known of it.
    pub(super) strange: Option<usize>,
    /// Whether the look that is under way began before that was found.
    pub(super) look_is_old: bool,
    /// Whether the server cannot decode the log for this slot, because the publication is younger than it.
    pub(super) slot_useless: bool,
}

impl Session {
    pub fn new(parts: Parts) -> Session {
        let now = Instant::now();
        let flushed = parts.stream.position();
        let keeping = Keeping::new(parts.confirmed);
        let record_end = parts.confirmed;
        let mut session = Session {
            parts,
            frames: VecDeque::new(),
            outbox: Outbox::default(),
            flushed,
            keeping,
            under_way: Vec::new(),
            readings: 0,
            asked: VecDeque::new(),
            own_last: false,
            written: 0,
            seen: 0,
            last_written: now,
            last_record: None,
            begun: now,
            record_end,
            dirty: false,
            alive: 0,
            polling: false,
            next_poll: now,
            looking: false,
            next_look: now + LOOK_EVERY,
            strange: None,
            look_is_old: false,
            slot_useless: false,
        };
        // No row is read before a message of this session has come by: until then transactions may follow that an earlier session has
        // shipped already.
        session.write_mark();
        session
    }

    /// The next portion. Cancel safe: whatever has arrived stays here.
    pub async fn next(&mut self) -> Result<Portion, Error> {
        loop {
            while let Ok(told) = self.parts.told.try_recv() {
                self.on_told(told)?;
            }
            if let Some(portion) = self.outbox.pop() {
                return Ok(portion);
            }
            self.work();
            if self.strange.is_none() && self.outbox.has_room() {
                if self.take_frames()? {
                    continue;
                }
                if self.has_news() {
                    match self.parts.feed.frames_at_once() {
                        Some(frames) => {
                            let frames = self.streamed(frames)?;
                            self.frames.extend(frames);
                        }
                        None => self.flush(),
                    }
                    continue;
                }
            }
            let wake = self.wake();
            let waits_for_frames = self.frames.is_empty();
            let feed = &mut self.parts.feed;
            tokio::select! {
                biased;
                told = self.parts.told.recv() => match told {
                    Some(told) => self.on_told(told)?,
                    None => return Err(Error::Busy(format!("PostgreSQL at {}: all connections for statements are over", self.parts.place))),
                },
                frames = feed.frames(), if waits_for_frames => {
                    let frames = self.streamed(frames)?;
                    self.frames.extend(frames);
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Takes in what has arrived, until there is a portion. Returns whether there was anything.
    fn take_frames(&mut self) -> Result<bool, Error> {
        let mut any = false;
        while !self.outbox.is_ready() && self.outbox.has_room() && self.strange.is_none() {
            let Some(frame) = self.frames.pop_front() else { break };
            any = true;
            match frame {
                Frame::Alive { end, .. } => {
                    self.alive = self.alive.max(end);
                    self.parts.stream.advance(end);
                }
                Frame::Data(data) => match self.parts.stream.take(&data)? {
                    Step::Within => {}
                    Step::Committed(committed) => self.on_commit(&committed),
                    Step::Strange { table } => self.on_strange(table),
                },
            }
            if self.parts.stream.is_full() {
                self.flush();
            }
        }
        Ok(any)
    }

    fn on_commit(&mut self, committed: &Committed) {
        self.alive = self.alive.max(committed.end);
        self.dirty |= committed.holds_changes;
        let mark = committed
            .message
            .as_deref()
            .and_then(|message| message.strip_prefix(self.parts.nonce.as_str())?.strip_prefix(':')?.parse().ok());
        if let Some(mark) = mark {
            self.on_mark(mark, committed);
        } else if committed.holds_changes
            && committed.events <= RECORD_EVENTS_MAX
            && self.last_record.unwrap_or(self.begun).elapsed() >= RECORD_LATE
        {
            self.record(committed);
            self.hand_out(Position(committed.end, 0));
        }
    }

    /// The record of this transaction goes out ahead of whatever has not been handed out yet.
    fn record(&mut self, committed: &Committed) {
        let mark = Mark { xid: committed.xid, committed_us: committed.committed_us };
        self.outbox.push(Portion::Record(record::record(&self.parts.lineage, committed.commit, &mark)));
        self.keeping.published(committed.commit, committed.end);
        self.record_end = committed.end;
        self.last_record = Some(Instant::now());
        self.dirty = false;
    }

    /// A message of this session comes by.
    fn on_mark(&mut self, mark: u64, committed: &Committed) {
        debug_assert!(!committed.holds_changes);
        self.seen = self.seen.max(mark);
        // All that came before it goes out first; what follows from the message must have gone out before its own position has.
        self.hand_out(committed.before);
        let waits = |under_way: &UnderWay| matches!(under_way.state, State::Read { mark: awaited, .. } if awaited == mark);
        if let Some(place) = self.under_way.iter().position(waits) {
            let under_way = self.under_way.remove(place);
            self.finish(under_way, committed);
        }
        let behind = committed.end.saturating_sub(self.record_end) > MARK_BYTES;
        let due = self.last_record.is_none_or(|last| last.elapsed() >= RECORD_EVERY && (self.dirty || behind));
        if due {
            self.record(committed);
        }
        self.hand_out(Position(committed.end, 0));
    }

    /// Whether there is something to hand out. In the middle of a transaction there is not before a portion is full: it was committed as a
    /// whole, so what follows is on its way, and portions of whatever has arrived would make small messages just when the server is slower
    /// than the broker.
    fn has_news(&self) -> bool {
        let stream = &self.parts.stream;
        stream.between() && (stream.has_changes() || stream.position() > self.flushed) || !stream.resyncs.is_empty()
    }

    fn flush(&mut self) {
        let to = self.parts.stream.position();
        self.hand_out(to);
    }

    /// Hands out what there is, up to `to`.
    fn hand_out(&mut self, to: Position) {
        for (table, since) in std::mem::take(&mut self.parts.stream.resyncs) {
            self.outbox.push(Portion::Resync { table });
            if let Some(since) = since {
                // Whatever lies beyond what was handed out so far is forgotten only after the request is published.
                self.keeping.hold(since, self.flushed.0 + 1);
            }
        }
        let (changes, docket) = self.parts.stream.take_changes();
        if changes.is_empty() && to <= self.flushed {
            return;
        }
        self.flushed = to;
        let complete = self.parts.stream.between();
        if docket.is_empty() {
            self.outbox.push(Portion::Changes { changes, to, complete });
            return;
        }
        let question = |(table, evidence): (usize, Evidence)| {
            let judge = self.parts.judges[table].as_ref().expect("only rows of tables that have a judge wait for verdicts");
            (table, Arc::clone(judge), evidence)
        };
        let questions = docket.evidence.into_iter().map(question).collect();
        self.parts.judge.as_ref().expect("where there is a judge there is a connection for it").ask(Ask::Judge(questions));
        self.outbox.push_unjudged(changes, docket.cases, to, complete);
    }

    fn on_strange(&mut self, table: usize) {
        self.strange = Some(table);
        self.look_is_old = self.looking;
        self.next_look = Instant::now();
    }

    // What the other connections say.

    fn on_told(&mut self, told: Result<Told, Fault>) -> Result<(), Error> {
        match self.explained(told, "asking it")? {
            Told::Snapshot(snapshot) => self.on_snapshot(&snapshot),
            Told::Emitted => {}
            Told::Looked(facts, mended) => self.on_look(&facts, mended)?,
            Told::Read(number, outcome) => self.on_outcome(number, outcome),
            Told::Judged(verdicts) => {
                let untold = self.outbox.judged(verdicts);
                self.parts.stream.want_all(untold);
            }
        }
        Ok(())
    }

    fn on_snapshot(&mut self, snapshot: &Snapshot) {
        self.polling = false;
        self.parts.stream.unseen.shown(snapshot);
        self.parts.barrier = self.parts.barrier.filter(|barrier| snapshot.xmin < *barrier);
        for under_way in &mut self.under_way {
            if let State::Waiting { blockers, .. } = &mut under_way.state {
                blockers.retain(|xid| !snapshot.sees(*xid));
            }
        }
        self.confirm();
    }

    fn on_look(&mut self, facts: &[Option<Table>], mended: Option<String>) -> Result<(), Error> {
        self.looking = false;
        let mended = mended.map(|name| format!("the table {name} can be followed again"));
        if let Some(differs) = difference(&self.parts.facts, facts).or(mended) {
            return Err(Error::Changed(differs));
        }
        if std::mem::take(&mut self.look_is_old) {
            self.next_look = Instant::now();
            return Ok(());
        }
        if let Some(table) = self.strange.take() {
            // They are older than the mapping, which is read anew where it was not yet.
            self.parts.stream.pass_over(table);
        }
        Ok(())
    }

    // What is due.

    /// Asks whatever is due to be asked.
    fn work(&mut self) {
        let now = Instant::now();
        self.begin_readings();
        self.watch_anew_if_much_was_touched();
        if self.may_read() {
            for under_way in self.under_way.iter_mut().filter(|under_way| under_way.is_due(now)) {
                under_way.state = State::Asked;
                let read_table = Arc::clone(&self.parts.read_tables[under_way.table]);
                self.parts.readers[under_way.reader].ask(Ask::Read(under_way.number, read_table, under_way.reading.clone()));
            }
        }
        if let Some(due) = self.poll_due()
            && due <= now
        {
            self.polling = true;
            self.next_poll = now + if self.is_waiting() { POLL_WAITING } else { POLL };
            self.parts.aside.ask(Ask::Snapshot);
        }
        if !self.looking && self.next_look <= now {
            self.looking = true;
            self.next_look = now + LOOK_EVERY;
            self.parts.aside.ask(Ask::Look);
        }
        if self.mark_due().is_some_and(|due| due <= now) {
            self.write_mark();
        }
    }

    /// Until when there is nothing to do unless something arrives.
    fn wake(&self) -> Instant {
        let unblocked = |under_way: &UnderWay| match &under_way.state {
            State::Waiting { not_before, blockers } if blockers.is_empty() => Some(*not_before),
            _ => None,
        };
        let reading = self.under_way.iter().filter(|_| self.may_read()).filter_map(unblocked).min();
        [reading, self.poll_due(), self.mark_due()].into_iter().flatten().fold(self.next_look, Instant::min)
    }

    fn is_waiting(&self) -> bool {
        self.under_way.iter().any(|under_way| matches!(under_way.state, State::Waiting { .. }))
    }

    /// Whether it is known what a reading must wait for.
    fn may_read(&self) -> bool {
        self.seen > 0 && self.parts.barrier.is_none()
    }

    fn poll_due(&self) -> Option<Instant> {
        let needed = !self.parts.stream.unseen.is_empty() || self.parts.barrier.is_some() && self.is_waiting();
        (needed && !self.polling).then_some(self.next_poll)
    }

    /// When a message of ours is to be written so that the server may forget: not while one is under way.
    fn mark_due(&self) -> Option<Instant> {
        let behind = self.alive.saturating_sub(self.record_end) > MARK_BYTES;
        ((self.dirty || behind) && self.seen == self.written).then_some(self.last_written + MARK_EVERY)
    }

    pub(super) fn write_mark(&mut self) -> u64 {
        self.written += 1;
        self.last_written = Instant::now();
        self.parts.aside.ask(Ask::Emit(format!("{}:{}", self.parts.nonce, self.written)));
        self.written
    }

    // What may be forgotten.

    /// Every partition has everything up to here.
    pub fn forget(&mut self, upto: Position) {
        self.keeping.forget(upto);
        self.confirm();
    }

    fn confirm(&mut self) {
        let stream = &self.parts.stream;
        let own = self.under_way.iter().filter_map(|under_way| under_way.own);
        let oldest = stream.unseen.oldest().into_iter().chain(stream.wanted_since()).chain(own).min();
        let confirmed = self.keeping.confirm(oldest);
        self.parts.feed.confirm(confirmed);
    }

    /// The tables' memberships in the publication, once every transaction has ended that may have begun before them.
    pub fn settled(&self) -> Vec<Membership> {
        match self.parts.barrier {
            None => self.parts.facts.iter().flatten().filter_map(|table| table.membership).collect(),
            Some(_) => Vec::new(),
        }
    }

    /// Whether the slot must be made anew.
    pub fn slot_is_useless(&self) -> bool {
        self.slot_useless
    }

    /// A slot that is older than its publication fails for ever, even once there is a publication of that name again.
    fn streamed(&mut self, frames: Result<Vec<Frame>, Fault>) -> Result<Vec<Frame>, Error> {
        if let Err(fault) = &frames
            && fault.code() == Some(code::UNDEFINED_OBJECT)
        {
            self.slot_useless = true;
            let text = format!("PostgreSQL at {}: the publication was dropped while the slot needed it", self.parts.place);
            return Err(Error::Changed(text));
        }
        self.explained(frames, "reading the log")
    }

    /// Ends all connections, the stream in an orderly way.
    pub async fn end(self) {
        self.parts.feed.end().await;
    }

    fn explained<T>(&self, outcome: Result<T, Fault>, doing: &str) -> Result<T, Error> {
        outcome.map_err(|fault| fault.explain(&self.parts.place, doing))
    }
}

/// What has changed in the catalogue, as a sentence.
pub(super) fn difference(before: &[Option<Table>], now: &[Option<Table>]) -> Option<String> {
    before.iter().zip(now).find_map(|(before, now)| match (before, now) {
        (None, None) => None,
        (None, Some(now)) => Some(format!("there is a table {} now", now.name)),
        (Some(before), None) => Some(format!("the table {} is gone", before.name)),
        (Some(before), Some(now)) if before != now => Some(format!("the table {} was altered", before.name)),
        (Some(_), Some(_)) => None,
    })
}
