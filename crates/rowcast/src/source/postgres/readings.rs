//! Readings of existing rows: a few are under way at a time, of different tables, each from the asking to the message that lets it out.

use std::time::Duration;

use tokio::time::Instant;

use super::super::{Chunk, ChunkLimits, Error, Portion, Read};
use super::chunk::{Reading, Readout, Wanted};
use super::desk::Outcome;
use super::session::Session;
use super::stream::Committed;
use super::touched::Touched;
use crate::change::{Bound, Position};

/// How many rows that the log does not tell whole are read at once.
const OWN_ROWS: ChunkLimits = ChunkLimits { rows: 500, bytes: 512 * 1024 };

/// How long a reading waits that the server refused for now.
const NOT_NOW: Duration = Duration::from_secs(1);

/// A reading under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    pub number: u64,
    pub table: usize,
    /// The connection that reads, by its place.
    pub reader: usize,
    pub reading: Reading,
    /// Whether somebody has asked for it; else it is rows that the log does not tell whole, needed by a transaction that commits here.
    pub own: Option<u64>,
    pub state: State,
}

#[derive(Debug)]
pub(super) enum State {
    /// It waits until these streamed transactions are visible, and not before that moment.
    Waiting { blockers: Vec<u32>, not_before: Instant },
    /// The server is asked.
    Asked,
    /// It waits for this message of ours to come by.
    Read { readout: Readout, mark: u64 },
}

impl UnderWay {
    /// Whether it waits for nothing any more.
    pub fn is_due(&self, now: Instant) -> bool {
        matches!(&self.state, State::Waiting { blockers, not_before } if blockers.is_empty() && *not_before <= now)
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
        let is_asked = |under_way: &UnderWay| under_way.own.is_none() && under_way.table == table;
        let asked_before = self.under_way.iter().any(is_asked) || self.asked.iter().any(|(other, _)| *other == table);
        assert!(!asked_before, "one reading of a table is asked for at a time");
        self.asked.push_back((table, reading));
        self.begin_readings();
    }

    /// As long as a connection is free: what somebody has asked for, or rows that the log does not tell whole, in turns. Of the latter one
    /// reading is under way at a time.
    pub(super) fn begin_readings(&mut self) {
        // Until a message of this session has come by, a transaction that an earlier session has shipped may be invisible and come again
        // later: what a reading must wait for is not known yet.
        if self.seen == 0 {
            return;
        }
        while let Some(reader) = (0..self.parts.readers.len()).find(|reader| self.under_way.iter().all(|busy| busy.reader != *reader)) {
            let own_turn = !self.own_last || self.asked.is_empty();
            let own_is_free = self.under_way.iter().all(|under_way| under_way.own.is_none());
            let own = if own_turn && own_is_free { self.parts.stream.wanted(OWN_ROWS.rows) } else { None };
            self.own_last = own.is_some();
            if let Some((table, pks, since)) = own {
                self.start(reader, table, Reading { wanted: Wanted::Rows(pks), limits: OWN_ROWS }, Some(since));
            } else if let Some((table, reading)) = self.asked.pop_front() {
                self.start(reader, table, reading, None);
            } else {
                return;
            }
        }
    }

    /// What was streamed before now must be visible to the reading; what is streamed from now on is watched.
    fn start(&mut self, reader: usize, table: usize, reading: Reading, own: Option<u64>) {
        self.readings += 1;
        let number = self.readings;
        let stream = &mut self.parts.stream;
        let blockers = stream.unseen.xids().chain(stream.open_xid()).collect();
        stream.touched.insert(number, Touched::new(table));
        let state = State::Waiting { blockers, not_before: Instant::now() };
        self.under_way.push(UnderWay { number, table, reader, reading, own, state });
        self.next_poll = Instant::now();
    }

    /// As long as the server has not been asked, a reading may begin to watch anew at any time. So what is remembered of a busy table
    /// stays bounded, however long something else holds the reading up.
    pub(super) fn watch_anew_if_much_was_touched(&mut self) {
        let stream = &mut self.parts.stream;
        for UnderWay { number, table, state, .. } in &mut self.under_way {
            let State::Waiting { blockers, .. } = state else { continue };
            if stream.touched.get(number).is_some_and(Touched::is_much) {
                *blockers = stream.unseen.xids().chain(stream.open_xid()).collect();
                stream.touched.insert(*number, Touched::new(*table));
            }
        }
    }

    pub(super) fn on_outcome(&mut self, number: u64, outcome: Outcome) {
        let place = self.under_way.iter().position(|under_way| under_way.number == number);
        let place = place.expect("a reading is under way until it has been answered");
        match outcome {
            Outcome::Rows(readout) => {
                let mark = self.write_mark();
                self.under_way[place].state = State::Read { readout, mark };
            }
            Outcome::NoKey => {
                let under_way = self.under_way.remove(place);
                assert!(under_way.own.is_none(), "only what somebody has asked for begins after a bound");
                self.parts.stream.touched.remove(&number);
                self.outbox.push(Portion::NoKey { table: under_way.table });
            }
            Outcome::NotNow(why) => {
                tracing::info!("{why}; trying again");
                self.next_look = Instant::now();
                self.under_way[place].state = State::Waiting { blockers: Vec::new(), not_before: Instant::now() + NOT_NOW };
            }
        }
    }

    /// The message of a reading has come by: it goes out, less what the stream has touched in transactions that it has not seen.
    pub(super) fn finish(&mut self, under_way: UnderWay, committed: &Committed) {
        let State::Read { mut readout, .. } = under_way.state else { unreachable!("only what was read is finished") };
        let touched =
            self.parts.stream.touched.remove(&under_way.number).expect("it is watched what the stream touches while rows are read");
        if !touched.strike_out(&readout.snapshot, &mut readout.rows) {
            tracing::debug!("a transaction has touched more rows than are remembered; reading again");
            self.start(under_way.reader, under_way.table, under_way.reading, under_way.own);
            return;
        }
        let answered = readout.answered;
        if let (Some(since), Wanted::Rows(pks)) = (under_way.own, &under_way.reading.wanted) {
            self.keeping.hold(since, committed.end);
            self.parts.stream.want_again(under_way.table, &pks[answered..], since);
        }
        let chunk = Chunk {
            rows: readout.rows,
            upto: readout.upto,
            last: readout.last,
            // The stream has passed the moment of its reading already.
            as_of: Position::START,
            read_us: readout.read_us,
        };
        self.outbox.push(Portion::Rows { table: under_way.table, chunk, answered, asked: under_way.own.is_none() });
    }
}
