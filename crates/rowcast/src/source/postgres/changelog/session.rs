//! A session: one history, read by one publisher, from `begin` until something changes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::super::super::{Error, Portion, PositionRecord};
use super::super::chunk::ReadTable;
use super::super::schema::Table;
use super::super::session::difference;
use super::super::visibility::Snapshot;
use super::super::wire::Fault;
use super::desk::{AskAside, AskLog, AskRows, Desk, Told};
use super::pace::{Pace, Refusals};
use super::readings::UnderWay;
use super::stream::{End, Piece, Shipped, Standing};
use super::trim::{Step, Trim, Trimmed};
use crate::change::{Lineage, Position};

/// How often the catalogue is compared with what it was.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long the last transactions may take at the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a session stands on, made by [`super::begin`].
#[derive(Debug)]
pub(super) struct Parts {
    pub place: String,
    pub lineage: Lineage,
    pub generation: String,
    /// Which file holds the changelog.
    pub file: u32,
    /// The newest read that was made.
    pub newest: u64,
    /// The read after which this session begins, and what it has seen.
    pub resumes: (u64, Snapshot),
    pub log: Desk<AskLog>,
    pub aside: Desk<AskAside>,
    /// For what must not keep a read from its number: removing what is no longer needed.
    pub broom: Desk<AskAside>,
    pub rows: Desk<AskRows>,
    pub told: mpsc::UnboundedReceiver<Result<Told, Fault>>,
    pub names: Vec<String>,
    pub facts: Vec<Option<Table>>,
    pub read_tables: Vec<Arc<ReadTable>>,
}

/// What becomes of the changelog.
#[derive(Debug)]
enum State {
    /// Nothing until then.
    Waiting(Instant),
    /// It was asked whether there are news.
    Polling {
        /// Whether existing rows had been read before.
        after_rows: bool,
    },
    /// A read is under way.
    Reading(Read),
    /// It was given up, and the server's word for that is awaited.
    Abandoning,
}

/// A read under way.
#[derive(Debug)]
struct Read {
    number: u64,
    after_rows: bool,
    /// Whether it has its number for good.
    numbered: bool,
    /// A piece that waits for the number, or for the end that was written down earlier.
    held: Option<Piece>,
}

/// An open history.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) parts: Parts,
    pub(super) ready: VecDeque<Portion>,
    state: State,
    /// What was handed out.
    shipped: Shipped,
    /// Whether a read's number is being written down. No other read begins before that is settled.
    numbering: bool,
    pace: Pace,
    /// How often the changelog could not be read, and existing rows.
    refusals: Refusals,
    pub(super) rows_refusals: Refusals,
    trim: Trim,
    pub(super) under_way: Option<UnderWay>,
    looking: bool,
    next_look: Instant,
}

/// Where the history stands once a read has been shipped whole: before everything of a later one.
pub(super) fn end_of(number: u64) -> Position {
    Position(number + 1, 0)
}

/// Which read ends there.
fn ending_at(position: Position) -> u64 {
    position.0.saturating_sub(1)
}

impl Session {
    pub fn new(parts: Parts) -> Session {
        let now = Instant::now();
        let (number, seen) = parts.resumes.clone();
        Session {
            ready: VecDeque::new(),
            state: State::Waiting(now),
            trim: Trim::new(number, seen.clone()),
            shipped: Shipped { number, seen },
            numbering: false,
            pace: Pace::new(),
            refusals: Refusals::default(),
            rows_refusals: Refusals::default(),
            under_way: None,
            looking: false,
            next_look: now + LOOK_EVERY,
            parts,
        }
    }

    /// The next portion. Cancel safe: whatever has arrived stays here.
    pub async fn next(&mut self) -> Result<Portion, Error> {
        loop {
            if let Some(portion) = self.ready.pop_front() {
                return Ok(portion);
            }
            self.work();
            let wake = self.wake();
            tokio::select! {
                biased;
                told = self.parts.told.recv() => self.on_told(told)?,
                () = sleep_until(wake) => {}
            }
        }
    }

    fn on_told(&mut self, told: Option<Result<Told, Fault>>) -> Result<(), Error> {
        let place = &self.parts.place;
        let told = told.ok_or_else(|| Error::Busy(format!("PostgreSQL at {place}: every connection is over")))?;
        match told.map_err(|fault| fault.explain(place, "following the changelog"))? {
            Told::Quiet(standing) => self.on_quiet(standing)?,
            Told::Opened(opened) => self.on_opened(opened)?,
            Told::Numbered(mark) => self.on_numbered(mark),
            Told::Piece(piece) => self.on_piece(piece),
            Told::Capped(number) => self.on_capped(number),
            Told::Abandoned => self.state = State::Waiting(Instant::now()),
            Told::Looked(facts) => {
                self.looking = false;
                if let Some(differs) = difference(&self.parts.facts, &facts) {
                    return Err(Error::Changed(differs));
                }
            }
            Told::Forgotten => self.trim.done(),
            Told::Trimmed(trimmed) => {
                if trimmed == Trimmed::NotNow {
                    tracing::info!("removing delivered changelog rows takes long (an old snapshot, perhaps); trying again later");
                }
                self.trim.removed(trimmed);
            }
            Told::Rows(readout) => self.on_readout(readout),
            Told::RowsNotNow(why) => self.read_again(&why),
            Told::NotNow(why) => {
                tracing::info!("{why}; trying again");
                let wait = self.refusals.another();
                if !matches!(self.state, State::Abandoning) {
                    self.state = State::Waiting(Instant::now() + wait);
                }
            }
            Told::Changed(why) => return Err(Error::Changed(format!("PostgreSQL at {place}: {why}"))),
        }
        Ok(())
    }

    // The changelog.

    fn on_quiet(&mut self, standing: Standing) -> Result<(), Error> {
        let State::Polling { after_rows } = self.state else { return Ok(()) };
        // Nothing to be seen may also mean that it was removed.
        self.belongs(&standing)?;
        assert!(!after_rows, "with rows that wait a read is made in any case");
        self.shipped.seen = standing.snapshot;
        self.refusals = Refusals::default();
        let wait = self.pace.quiet();
        self.wait(wait);
        Ok(())
    }

    /// Whether what stands in the database is what this session has left there.
    fn belongs(&self, standing: &Standing) -> Result<(), Error> {
        let parts = &self.parts;
        let Standing { has_shipped, newest, generation, file, .. } = standing;
        if *has_shipped && *generation == parts.generation && *newest == parts.newest && *file == parts.file {
            return Ok(());
        }
        Err(Error::Changed(format!(
            "PostgreSQL at {}: the changelog is not the one of this session any more; it was emptied, rewritten or installed anew, or \
             another publisher reads it",
            parts.place
        )))
    }

    fn on_opened(&mut self, opened: Standing) -> Result<(), Error> {
        let State::Polling { after_rows } = self.state else { return Ok(()) };
        self.belongs(&opened)?;
        self.refusals = Refusals::default();
        let number = self.parts.newest + 1;
        self.state = State::Reading(Read { number, after_rows, numbered: false, held: None });
        self.numbering = true;
        self.parts.aside.ask(AskAside::Number { number, snapshot: opened.snapshot, file: opened.file });
        self.parts.log.ask(AskLog::Piece);
        Ok(())
    }

    fn on_numbered(&mut self, mark: String) {
        // Also if the read was given up meanwhile: the number is taken.
        self.numbering = false;
        self.parts.newest += 1;
        let State::Reading(read) = &mut self.state else { return };
        read.numbered = true;
        let position = Position(read.number, 0);
        let held = read.held.take();
        self.ready.push_back(Portion::Record(PositionRecord { lineage: self.parts.lineage.clone(), position, mark }));
        if let Some(piece) = held {
            self.on_piece(piece);
        }
    }

    fn on_piece(&mut self, piece: Piece) {
        let State::Reading(read) = &mut self.state else { return };
        match &piece.end {
            _ if !read.numbered => read.held = Some(piece),
            // What the read has seen is less than was written down; a publisher must not resume after the whole of it.
            Some(End { snapshot, whole: false }) => {
                self.parts.aside.ask(AskAside::Cap { number: read.number, snapshot: snapshot.clone() });
                read.held = Some(piece);
            }
            Some(_) => self.hand_out(piece),
            None => {
                self.parts.log.ask(AskLog::Piece);
                self.hand_out(piece);
            }
        }
    }

    fn on_capped(&mut self, number: u64) {
        let State::Reading(read) = &mut self.state else { return };
        // Of one that was given up nothing is held any more, and another may not be on disk yet.
        if read.number == number
            && let Some(piece) = read.held.take()
        {
            self.hand_out(piece);
        }
    }

    fn hand_out(&mut self, piece: Piece) {
        let State::Reading(read) = &self.state else { unreachable!("a piece belongs to a read") };
        let (number, after_rows) = (read.number, read.after_rows);
        let Piece { mut changes, index, end } = piece;
        for change in &mut changes {
            change.position.0 = number;
            if let Some(under_way) = &mut self.under_way {
                under_way.note(change);
            }
        }
        let to = if end.is_some() { end_of(number) } else { Position(number, index) };
        self.ready.push_back(Portion::Changes { changes, to, complete: end.is_some() });
        let Some(End { snapshot, whole }) = end else { return };
        self.shipped = Shipped { number, seen: snapshot.clone() };
        self.trim.shipped(number, snapshot);
        let wait = self.pace.news();
        if whole {
            self.passed(after_rows);
        }
        self.wait(if whole { wait } else { Duration::ZERO });
    }

    /// Until the next look; rows that were read wait for it.
    fn wait(&mut self, wait: Duration) {
        let wait = if self.has_rows() { Duration::ZERO } else { wait };
        self.state = State::Waiting(Instant::now() + wait);
    }

    /// Rows have been read and wait for the next look.
    pub(super) fn hurry(&mut self) {
        if let State::Waiting(due) = &mut self.state {
            *due = Instant::now();
        }
    }

    /// Gives up the read under way, and returns whether there was one.
    pub async fn abandon(&mut self) -> Result<bool, Error> {
        let had_begun = match self.state {
            State::Waiting(_) => return Ok(false),
            State::Polling { .. } => false,
            State::Reading(_) => true,
            State::Abandoning => unreachable!("that is awaited to its end"),
        };
        self.state = State::Abandoning;
        if had_begun {
            // What is ready of it goes; the answers to existing rows stay.
            self.ready.retain(|portion| !matches!(portion, Portion::Record(_) | Portion::Changes { .. }));
        }
        self.parts.log.ask(AskLog::Abandon);
        while matches!(self.state, State::Abandoning) {
            let told = self.parts.told.recv().await;
            self.on_told(told)?;
        }
        Ok(had_begun)
    }

    // What is due.

    fn work(&mut self) {
        let now = Instant::now();
        self.begin_reading(now);
        if let State::Waiting(due) = self.state
            && due <= now
            && !self.numbering
        {
            // Rows that wait may show what a crash of the server would lose. Once a read that was made after them has its number, it would
            // not; and whether the database went back behind that number is found out.
            let after_rows = self.has_rows();
            self.state = State::Polling { after_rows };
            self.parts.log.ask(AskLog::Poll { shipped: self.shipped.clone(), in_any_case: after_rows });
        }
        if !self.looking && self.next_look <= now {
            self.looking = true;
            self.next_look = now + LOOK_EVERY;
            self.parts.aside.ask(AskAside::Look(self.parts.names.clone()));
        }
        if self.trim.due().is_some_and(|due| Instant::from_std(due) <= now) {
            self.trim();
        }
    }

    /// Until when there is nothing to do unless something arrives.
    fn wake(&self) -> Instant {
        let poll = if let (State::Waiting(due), false) = (&self.state, self.numbering) { Some(*due) } else { None };
        let trim = self.trim.due().map(Instant::from_std);
        let look = (!self.looking).then_some(self.next_look);
        let never = Instant::now() + LOOK_EVERY;
        [poll, trim, look, self.reading_due()].into_iter().flatten().fold(never, Instant::min)
    }

    fn trim(&mut self) {
        match self.trim.step() {
            Some(Step::Forget { from, below }) => self.parts.aside.ask(AskAside::Forget { from, below }),
            Some(Step::Remove(segment, snapshot)) => self.parts.broom.ask(AskAside::Trim { segment, snapshot }),
            None => {}
        }
    }

    /// Every partition has everything up to here.
    pub fn forget(&mut self, upto: Position) {
        self.trim.forget(ending_at(upto));
    }

    /// Writes down what may be forgotten, so that the next session does not ship it again, and ends the connections.
    pub async fn end(mut self) {
        let deadline = Instant::now() + FAREWELL;
        while self.trim.has_work() || self.trim.is_asked() {
            self.trim();
            // The next session ships a little more, which does no harm.
            match timeout_at(deadline, self.parts.told.recv()).await {
                Ok(Some(Ok(told))) => match told {
                    Told::Forgotten => self.trim.done(),
                    Told::Trimmed(trimmed) => self.trim.removed(trimmed),
                    _ => {}
                },
                Ok(Some(Err(_)) | None) | Err(_) => return,
            }
        }
    }
}
