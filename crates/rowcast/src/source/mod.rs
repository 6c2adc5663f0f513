//! The database that is read: what the publisher asks of it, whichever it is.
//!
//! A source knows nothing of brokers and caches. It hands out committed changes in order, reads chunks of existing rows, and
//! forgets history when it is told that nobody needs it any more.

use std::future::Future;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::change::{Bound, Change, Image, Lineage, Position};
use crate::mapping::{MappedTable, TableSettings};

pub mod postgres;
pub mod sqlite;

use postgres::changelog::ChangelogSource;
use postgres::{Capture, PostgresSettings, PostgresSource};
use sqlite::{SqliteSettings, SqliteSource};

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
    /// Rows that may go out here and now, between two transactions: the stream has passed the moment of their reading, and they are
    /// less every row that it has touched since.
    Rows {
        /// Which table.
        table: usize,
        /// The rows.
        chunk: Chunk,
        /// For rows that were read singly: of how many of their keys this is the answer.
        answered: usize,
        /// Whether this is the answer to the reading of that table that was put off ([`Read::Later`], [`ReadRows::Later`]). Otherwise the source had
        /// to read these rows singly, because a change did not tell them whole.
        asked: bool,
    },
    /// The answer to a reading that was put off where it is [`Read::NoKey`], as only the server could tell.
    NoKey {
        /// Which table.
        table: usize,
    },
    /// A whole table must be read anew. Everything after this in the stream may only be forgotten once that request has been published.
    Resync {
        /// Which table.
        table: usize,
    },
}

/// What becomes of a reading of existing rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Read {
    /// These are the rows.
    Now(Chunk),
    /// They come as [`Portion::Rows`]. Nothing else of that table is to be read until then, and no answer is lost but with the session.
    Later,
    /// What it was to begin after is no key of the table as it is now (a migration gave it another primary key): only a fresh run of the
    /// resync, from the beginning, will do.
    NoKey,
}

/// What becomes of a reading of single rows.
#[derive(Clone, Debug, PartialEq)]
pub enum ReadRows {
    /// These are the rows, and of how many keys they are the answer: at least one.
    Now(Chunk, usize),
    /// They come as [`Portion::Rows`], as [`Read::Later`] says.
    Later,
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
    /// complete one. For a publisher that cannot publish for a while, so that no read transaction stays open. Returns whether that is so:
    /// a source that keeps nothing open answers no, and its next portion goes on where the last one ended.
    fn abandon(&mut self) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Reads existing rows of `table` with keys after `after`, as of now. Is not called between the portions of an incomplete
    /// read, but a read may have begun of which [`Source::next`] has not returned anything yet (its future was dropped); then
    /// `as_of` is no earlier than that read's end.
    fn chunk(&mut self, table: usize, after: Option<&Bound>, limits: ChunkLimits) -> impl Future<Output = Result<Read, Error>> + Send;

    /// Of how many tables readings may be put off at once. Where that is one nothing at all is to be read before the answer.
    fn readings_max(&self) -> usize {
        1
    }

    /// Reads these rows singly, each `pk` a JSON object, from the first one on until the limits are reached; a row that is not there
    /// comes as `Absent` where its key can be told.
    fn rows(&mut self, table: usize, pks: &[String], limits: ChunkLimits) -> impl Future<Output = Result<ReadRows, Error>> + Send;

    /// History up to `upto`, the end of a complete read, is no longer needed. It may be kept all the same.
    fn forget(&mut self, upto: Position) -> impl Future<Output = Result<(), Error>> + Send;

    /// The session is over. Gives up what is under way and lets go of all that another publisher would need, in an orderly way, so that what
    /// was forgotten last is written down.
    fn release(&mut self) -> impl Future<Output = Result<(), Error>> + Send;
}

/// The state of a changelog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Rows that have not been forgotten.
    pub rows: u64,
    /// The first part of the newest position (SQLite: the newest id; PostgreSQL: where the newest read ends); 0 where there is none.
    pub newest: u64,
    /// Everything up to this one has been confirmed.
    pub forgotten: u64,
    /// Whose history it is.
    pub lineage: String,
    /// Whose pipeline it serves.
    pub pipeline: Option<String>,
}

/// Why a row cannot be looked for.
#[derive(Debug, thiserror::Error)]
pub enum SingleRowError {
    /// What was typed is no primary key of the table; the text says what one looks like.
    #[error("{0}")]
    Key(String),
    /// The database does not answer.
    #[error("{0}")]
    Source(#[from] Error),
}

/// A row, or that there is none, and the moment of the reading.
#[derive(Clone, Debug)]
pub struct SingleRow {
    /// The table as it is mapped.
    pub mapped: MappedTable,
    /// The primary key as a JSON object.
    pub pk: String,
    /// The row; absent too where the filter leaves it out.
    pub image: Image,
    /// Whether the database has the row.
    pub exists: bool,
    /// Whose history it is (or the beginning of its name, up to a colon), and the first part of a position that has all that was
    /// read; `None` where nothing is installed.
    pub as_of: Option<(String, u64)>,
}

/// What a source of either kind needs to know.
#[derive(Clone, Debug)]
pub enum SourceSettings {
    /// A SQLite database.
    Sqlite(SqliteSettings),
    /// A PostgreSQL database.
    Postgres(Box<PostgresSettings>),
}

impl SourceSettings {
    /// The tables.
    pub fn tables(&self) -> &[TableSettings] {
        match self {
            SourceSettings::Sqlite(settings) => &settings.tables,
            SourceSettings::Postgres(settings) => &settings.tables,
        }
    }
}

/// A source of either kind.
#[derive(Debug)]
pub enum AnySource {
    /// A SQLite database.
    Sqlite(SqliteSource),
    /// A PostgreSQL database.
    Postgres(Box<PostgresSource>),
    /// A PostgreSQL database with a changelog.
    PostgresChangelog(Box<ChangelogSource>),
}

impl AnySource {
    /// A source that opens nothing before [`Source::begin`].
    pub fn new(settings: SourceSettings) -> std::io::Result<AnySource> {
        Ok(match settings {
            SourceSettings::Sqlite(settings) => AnySource::Sqlite(SqliteSource::new(settings)?),
            SourceSettings::Postgres(settings) => match settings.capture {
                Capture::Log => AnySource::Postgres(Box::new(PostgresSource::new(*settings))),
                Capture::Hooks => AnySource::PostgresChangelog(Box::new(ChangelogSource::new(*settings))),
            },
        })
    }
}

/// The same with whichever source it is.
macro_rules! either {
    ($any:expr, $source:ident => $body:expr) => {
        match $any {
            AnySource::Sqlite($source) => $body,
            AnySource::Postgres($source) => $body,
            AnySource::PostgresChangelog($source) => $body,
        }
    };
}

impl Source for AnySource {
    async fn begin(&mut self, record: Option<&PositionRecord>) -> Result<Start, Error> {
        either!(self, source => source.begin(record).await)
    }

    async fn next(&mut self) -> Result<Portion, Error> {
        either!(self, source => source.next().await)
    }

    async fn abandon(&mut self) -> Result<bool, Error> {
        either!(self, source => source.abandon().await)
    }

    async fn chunk(&mut self, table: usize, after: Option<&Bound>, limits: ChunkLimits) -> Result<Read, Error> {
        either!(self, source => source.chunk(table, after, limits).await)
    }

    fn readings_max(&self) -> usize {
        either!(self, source => source.readings_max())
    }

    async fn rows(&mut self, table: usize, pks: &[String], limits: ChunkLimits) -> Result<ReadRows, Error> {
        either!(self, source => source.rows(table, pks, limits).await)
    }

    async fn forget(&mut self, upto: Position) -> Result<(), Error> {
        either!(self, source => source.forget(upto).await)
    }

    async fn release(&mut self) -> Result<(), Error> {
        either!(self, source => source.release().await)
    }
}
