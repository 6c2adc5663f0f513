//! SQLite: a changelog that triggers or ORM hooks fill in the application's own transactions, read by one thread.
//!
//! One read transaction of the changelog is one source transaction: it fixes the newest id, and every key named since the
//! last read is shipped once, as this snapshot has it.

mod check;
mod chunk;
mod error;
mod filter;
mod inspect;
mod install;
mod rows;
mod schema;
mod session;
mod single;
mod sql;
mod stream;
mod triggers;
mod values;
mod watch;
mod worker;

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::{ChunkLimits, Error, Portion, PositionRecord, Read, ReadRows, Source, Start};
use crate::change::{Bound, Position};
use crate::mapping::TableSettings;

pub use check::{check, misfits};
pub use filter::expression as filter_expression;
pub use inspect::{Inspection, TableInspection, database_of, inspect};
pub use install::{Report, install, plan, uninstall};
pub use schema::{Column, Table};
pub use single::{count_rows, single_row};

use worker::Command;

/// How changed rows come into the changelog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// By triggers: every writer is seen, in any language.
    Triggers,
    /// By an ORM's hooks: the schema stays as it is, and only what goes through the hooks is seen.
    Hooks,
}

impl Capture {
    /// As it stands in `rowcast_table`.
    pub fn name(self) -> &'static str {
        match self {
            Capture::Triggers => "triggers",
            Capture::Hooks => "hooks",
        }
    }
}

/// What a SQLite source needs to know.
#[derive(Clone, Debug)]
pub struct SqliteSettings {
    /// The database file.
    pub path: PathBuf,
    /// The pipeline's name; a database belongs to one.
    pub pipeline: String,
    /// The tables.
    pub tables: Vec<TableSettings>,
    /// How changes are captured.
    pub capture: Capture,
    /// How long a lock of somebody else may last before it is an error.
    pub busy_timeout: Duration,
}

impl SqliteSettings {
    /// Settings with triggers and without a table.
    pub fn new(path: impl Into<PathBuf>, pipeline: &str) -> SqliteSettings {
        SqliteSettings {
            path: path.into(),
            pipeline: pipeline.to_owned(),
            tables: Vec::new(),
            capture: Capture::Triggers,
            busy_timeout: Duration::from_secs(5),
        }
    }
}

/// A SQLite database as a source. Its connection lives on a thread of its own, which ends with this.
#[derive(Debug)]
pub struct SqliteSource {
    commands: mpsc::Sender<Command>,
    /// The answer to a `next` that has been asked for; kept here so that a dropped future loses nothing.
    pending: Option<oneshot::Receiver<Result<Portion, Error>>>,
}

impl SqliteSource {
    /// A source that opens nothing before [`Source::begin`].
    pub fn new(settings: SqliteSettings) -> std::io::Result<SqliteSource> {
        Ok(SqliteSource { commands: worker::start(settings)?, pending: None })
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    fn ask_next(&mut self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Next(reply)).map_err(|_| gone())?;
        self.pending = Some(answer);
        Ok(())
    }
}

fn gone() -> Error {
    Error::Fatal("the thread that reads SQLite has ended; this is a fault in rowcast".to_owned())
}

impl Drop for SqliteSource {
    fn drop(&mut self) {
        // A thread that has ended already needs no telling.
        drop(self.commands.send(Command::Stop));
    }
}

impl Source for SqliteSource {
    async fn begin(&mut self, record: Option<&PositionRecord>) -> Result<Start, Error> {
        self.pending = None;
        let record = record.cloned();
        self.ask(|reply| Command::Begin(record, reply)).await
    }

    async fn next(&mut self) -> Result<Portion, Error> {
        if self.pending.is_none() {
            self.ask_next()?;
        }
        let answer = match &mut self.pending {
            Some(pending) => pending.await,
            None => return Err(gone()),
        };
        self.pending = None;
        let portion = answer.map_err(|_| gone())??;
        // In the middle of a read the next portion is made while the caller works on this one.
        if !matches!(portion, Portion::Changes { complete: true, .. }) {
            self.ask_next()?;
        }
        Ok(portion)
    }

    async fn abandon(&mut self) -> Result<bool, Error> {
        let untaken = self.pending.take().is_some();
        self.ask(|reply| Command::Abandon { untaken, reply }).await?;
        Ok(true)
    }

    async fn chunk(&mut self, table: usize, after: Option<&Bound>, limits: ChunkLimits) -> Result<Read, Error> {
        let after = after.cloned();
        let chunk = self.ask(|reply| Command::Chunk { table, after, limits, reply }).await?;
        Ok(chunk.map_or(Read::NoKey, Read::Now))
    }

    async fn rows(&mut self, table: usize, pks: &[String], limits: ChunkLimits) -> Result<ReadRows, Error> {
        let pks = pks.to_vec();
        let (chunk, answered) = self.ask(|reply| Command::Rows { table, pks, limits, reply }).await?;
        Ok(ReadRows::Now(chunk, answered))
    }

    async fn forget(&mut self, upto: Position) -> Result<(), Error> {
        self.ask(|reply| Command::Forget(upto, reply)).await
    }

    async fn release(&mut self) -> Result<(), Error> {
        // The file is open to everybody, and the thread writes down at its end what may be forgotten.
        self.abandon().await.map(drop)
    }
}
