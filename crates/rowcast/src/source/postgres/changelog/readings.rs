//! Readings of existing rows: one at a time, on a snapshot of its own and a connection of its own.
//!
//! Its rows go out once the changelog has been read on a snapshot that was taken after them, by a read that has its number, so that no older
//! state of a row follows and no crash of the server takes back what they show; less every key that a read has shipped since the reading was asked for, for what the stream has said of it may be newer.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::super::super::{Chunk, ChunkLimits, Error, Portion, Read};
use super::super::chunk::{Reading, Readout, Wanted};
use super::desk::AskRows;
use super::pace::Refusals;
use super::session::Session;
use crate::change::{Bound, Change, Position};

/// How many keys are remembered that the stream has named meanwhile. With more, the rows are read again.
const NAMED_MAX: usize = 100_000;

/// A reading under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    table: usize,
    reading: Reading,
    state: State,
    /// The keys of the table that reads have shipped since it was asked for; `None` where they are too many.
    named: Option<HashSet<String>>,
}

#[derive(Debug)]
enum State {
    /// The server is to be asked then.
    Due(Instant),
    Asked,
    /// The stream has to pass it.
    Read(Readout),
}

impl UnderWay {
    /// The stream ships this.
    pub fn note(&mut self, change: &Change) {
        if change.table != self.table {
            return;
        }
        if let Some(named) = self.named.as_mut().filter(|named| named.len() < NAMED_MAX) {
            named.insert(change.pk.clone());
        } else {
            self.named = None;
        }
    }
}

impl Session {
    /// Begins to read rows after a bound.
    pub fn read_after(&mut self, table: usize, after: Option<&Bound>, limits: ChunkLimits) -> Result<Read, Error> {
        let Some(read_table) = self.parts.read_tables.get(table) else {
            return Err(Error::Fatal(format!("there is no table number {table} in this pipeline")));
        };
        if !read_table.knows(after) {
            return Ok(Read::NoKey);
        }
        self.ask_for(table, Reading { wanted: Wanted::After(after.cloned()), limits });
        Ok(Read::Later)
    }

    /// Begins to read these rows.
    pub fn read_rows(&mut self, table: usize, pks: &[String], limits: ChunkLimits) {
        self.ask_for(table, Reading { wanted: Wanted::Rows(pks.to_vec()), limits });
    }

    fn ask_for(&mut self, table: usize, reading: Reading) {
        assert!(self.under_way.is_none(), "one reading is asked for at a time");
        let now = Instant::now();
        self.under_way = Some(UnderWay { table, reading, state: State::Due(now), named: Some(HashSet::new()) });
        self.begin_reading(now);
    }

    /// Asks the server, if that is due.
    pub(super) fn begin_reading(&mut self, now: Instant) {
        if let Some(UnderWay { table, reading, state, .. }) = &mut self.under_way
            && let State::Due(due) = state
            && *due <= now
        {
            *state = State::Asked;
            self.parts.rows.ask(AskRows { table: Arc::clone(&self.parts.read_tables[*table]), reading: reading.clone() });
        }
    }

    /// When the server is to be asked.
    pub(super) fn reading_due(&self) -> Option<Instant> {
        match &self.under_way {
            Some(UnderWay { state: State::Due(due), .. }) => Some(*due),
            _ => None,
        }
    }

    /// Whether rows wait for the stream to pass them.
    pub(super) fn has_rows(&self) -> bool {
        matches!(&self.under_way, Some(UnderWay { state: State::Read(_), .. }))
    }

    pub(super) fn on_readout(&mut self, readout: Option<Readout>) {
        self.rows_refusals = Refusals::default();
        let under_way = self.under_way.as_mut().expect("a reading is under way until it has been answered");
        match readout {
            Some(readout) => {
                under_way.state = State::Read(readout);
                self.hurry();
            }
            None => {
                let table = under_way.table;
                self.under_way = None;
                self.ready.push_back(Portion::NoKey { table });
            }
        }
    }

    /// The rows could not be read; they are asked for again after a while.
    pub(super) fn read_again(&mut self, why: &str) {
        tracing::info!("{why}; trying again");
        let wait = self.rows_refusals.another();
        let under_way = self.under_way.as_mut().expect("a reading is under way until it has been answered");
        under_way.state = State::Due(Instant::now() + wait);
    }

    /// The changelog has been read up to a snapshot, all of it. If rows had been read before that snapshot was taken, they go out.
    pub(super) fn passed(&mut self, after_rows: bool) {
        if !after_rows {
            return;
        }
        let Some(UnderWay { table, reading, state: State::Read(mut readout), named }) = self.under_way.take() else {
            unreachable!("the rows are there until they go out");
        };
        let Some(named) = named else {
            tracing::debug!("more rows were touched than are remembered; reading again");
            self.ask_for(table, reading);
            return;
        };
        readout.rows.retain(|row| !named.contains(&row.pk));
        let chunk = Chunk {
            rows: readout.rows,
            upto: readout.upto,
            last: readout.last,
            // The stream has passed the moment of their reading already.
            as_of: Position::START,
            read_us: readout.read_us,
        };
        self.ready.push_back(Portion::Rows { table, chunk, answered: readout.answered, asked: true });
    }
}
