//! The database that is read: what the publisher asks of it, whichever it is.
//!
//! A source knows nothing of brokers and caches. It hands out committed changes in order, reads chunks of existing rows, and
//! forgets history when it is told that nobody needs it any more.

use std::future::Future;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::change::{Bound, Change, Image, Lineage, Position};
use crate::mapping::MappedTable;

pub mod postgres;
pub mod sqlite;

/// The source's own proof that its history is still the one that was shipped: which change stands at a position.
///
/// It is kept in the broker, goes out ahead of every batch beyond it, and is compared at every read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PositionRecord {
    /// Whose history.
    pub lineage: Lineage,
    /// Where.
    pub position: Position,
    /// The change that stands there, in the source's own words.
    pub mark: String,
}

/// Where a publisher begins.
#[derive(Clone, Debug)]
pub struct Start {
    /// Whose positions follow.
    pub lineage: Lineage,
    /// Everything up to here was confirmed by the broker in an earlier session, or never existed.
    pub from: Position,
    /// To be published before anything else.
    pub record: PositionRecord,
    /// The tables as they are now, in the order that [`Change::table`] counts.
    pub tables: Arc<[MappedTable]>,
    /// What an operator should know: a history that went back, triggers that were mended.
    pub notes: Vec<String>,
}

/// A piece of the stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Portion {
    /// A read begins; this record must be on its way before any change that follows.
    Record(PositionRecord),
    /// Changes in order. Those with one position are never split over two portions.
    Changes {
        /// The changes.
        changes: Vec<Change>,
        /// The portion holds all changes up to here.
        to: Position,
        /// Whether the source's transaction ends here. Only then may chunks go out, and history be forgotten up to `to`.
        complete: bool,
    },
}

/// How much a chunk may hold.
#[derive(Clone, Copy, Debug)]
pub struct ChunkLimits {
    /// Rows at most.
    pub rows: usize,
    /// Bytes of JSON after which it ends (a single larger row still goes alone).
    pub bytes: usize,
}

/// One row of a chunk, as of the moment of its reading.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadRow {
    /// The primary key as a JSON object, exactly as [`Change::pk`] writes it.
    pub pk: String,
    /// The row. `Absent` only where rows are read singly, or where a row is named that is not to be cached.
    pub image: Image,
}

/// Existing rows of one table, read by primary key.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// Every row after the bound that was asked for, up to `upto`, in key order, less those that the filter leaves out.
    pub rows: Vec<ReadRow>,
    /// Where it ends; what was asked for if there was no row.
    pub upto: Option<Bound>,
    /// Whether no row follows.
    pub last: bool,
    /// The moment of the reading: the chunk may go out once the stream has passed here, less every row that the stream
    /// touched meanwhile.
    pub as_of: Position,
    /// By the source's clock, in microseconds since the epoch.
    pub read_us: i64,
}

/// Why a source cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The history or the schema is not what it was when the session began. A new session finds out what it is now.
    #[error("{0}")]
    Changed(String),
    /// It may work in a moment: the database is locked, the disk is full.
    #[error("{0}")]
    Busy(String),
    /// Somebody has to do something; the text says what.
    #[error("{0}")]
    Fatal(String),
}

/// A database that is read.
///
/// Methods other than [`Source::next`] are not cancel safe: await them to the end.
pub trait Source: Send {
    /// Opens the history: compares it with the record, decides the lineage (a history that lacks the record's change, or has
    /// another in its place, is a new one; so is a history without a record) and the place to resume from, mends what a
    /// migration has removed. May be called again, after any error or when a session ended, and then starts anew from the
    /// last position that was forgotten.
    fn begin(&mut self, record: Option<&PositionRecord>) -> impl Future<Output = Result<Start, Error>> + Send;

    /// The next portion; waits until there is one. Cancel safe: nothing is lost if the future is dropped.
    fn next(&mut self) -> impl Future<Output = Result<Portion, Error>> + Send;

    /// Gives up the read under way, if there is one: no portion of it follows, and the next read begins again at the last
    /// complete one. For a publisher that cannot publish for a while, so that no read transaction stays open.
    fn abandon(&mut self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Reads existing rows of `table` with keys after `after`, as of now. Is not called between the portions of an incomplete
    /// read, but a read may have begun of which [`Source::next`] has not returned anything yet (its future was dropped); then
    /// `as_of` is no earlier than that read's end. `None` where `after` is no key of the table as it is now (a migration gave it
    /// another primary key): only a fresh run of the resync, from the beginning, will do.
    fn chunk(
        &mut self,
        table: usize,
        after: Option<&Bound>,
        limits: ChunkLimits,
    ) -> impl Future<Output = Result<Option<Chunk>, Error>> + Send;

    /// Reads these rows singly, each `pk` a JSON object, from the first one on until the limits are reached; a row that is not there
    /// comes as `Absent` where its key can be told. Returns them, and of how many `pks` they are the answer: at least one.
    fn rows(&mut self, table: usize, pks: &[String], limits: ChunkLimits) -> impl Future<Output = Result<(Chunk, usize), Error>> + Send;

    /// History up to `upto`, the end of a complete read, is no longer needed. It may be kept all the same.
    fn forget(&mut self, upto: Position) -> impl Future<Output = Result<(), Error>> + Send;
}
