//! PostgreSQL: the log of the server itself, by logical replication, without a table that is written and without a trigger. Where that may
//! not be had, a changelog that ORM hooks fill: `changelog/`.
//!
//! A transaction of the source is one of the stream; its changes stand at (start of its commit record, index). Rows are read on
//! snapshots and go out when a message that was written after the reading has come by in the stream, less all that a transaction has
//! touched which the snapshot does not see.

mod begin;
mod cases;
pub mod changelog;
mod check;
mod chunk;
mod desk;
mod feed;
mod filter;
mod fits;
#[cfg(test)]
mod hostile;
mod inspect;
mod install;
mod judge;
mod literal;
mod outbox;
pub mod pgoutput;
mod readings;
mod record;
mod resolve;
pub mod row;
mod rows;
#[cfg(test)]
mod samples;
mod schema;
mod server;
mod session;
mod single;
mod singles;
mod slot;
mod stream;
mod touched;
pub mod types;
pub mod values;
mod visibility;
mod wire;

use super::{ChunkLimits, Error, Portion, PositionRecord, Read, ReadRows, Source, Start};
use crate::change::{Bound, Position};
use crate::mapping::TableSettings;

pub use check::{check, misfits};
pub use filter::expression as filter_expression;
pub use inspect::{Inspection, TableInspection, Waiting, inspect, waiting};
pub use install::{Report, install, plan, uninstall};
pub use schema::{Column, Generated, Identity, Leaf, Membership, Table, UniqueKey};
pub use server::{Server, SslMode};
pub use single::{count_rows, single_row};
pub use slot::Slot;

use begin::Known;
use session::Session;

/// How changes are captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// From the server's own log: every writer is seen, in any language.
    Log,
    /// By an ORM's hooks, into a changelog: no right to replicate is needed, and only what goes through the hooks is seen.
    Hooks,
}

/// What a PostgreSQL source needs to know.
#[derive(Clone, Debug)]
pub struct PostgresSettings {
    /// Where the database is.
    pub server: Server,
    /// The pipeline's name, after which publication and slot are called.
    pub pipeline: String,
    /// The tables; a name without a schema means `public`.
    pub tables: Vec<TableSettings>,
    /// How changes are captured.
    pub capture: Capture,
}

/// The longest name that the server has.
const NAME_BYTES_MAX: usize = 63;

impl PostgresSettings {
    /// Settings without a table, with the server's own log.
    pub fn new(server: Server, pipeline: &str) -> PostgresSettings {
        PostgresSettings { server, pipeline: pipeline.to_owned(), tables: Vec::new(), capture: Capture::Log }
    }

    /// The name of the replication slot: `rowcast_<pipeline>`. Slots have small letters, digits and _ alone; a pipeline's name that has
    /// more is told apart by a hash.
    pub fn slot(&self) -> String {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let name = format!("rowcast_{}", self.pipeline);
        if name.len() <= NAME_BYTES_MAX && name.chars().all(plain) {
            return name;
        }
        let hash = format!("_{:08x}", xxhash_rust::xxh3::xxh3_64(self.pipeline.as_bytes()) >> 32);
        let plain_name = name.chars().map(|c| {
            if plain(c) {
                c
            } else if c.is_ascii_uppercase() {
                c.to_ascii_lowercase()
            } else {
                '_'
            }
        });
        plain_name.take(NAME_BYTES_MAX - hash.len()).collect::<String>() + &hash
    }

    /// The name of the publication: that of the slot.
    pub fn publication(&self) -> String {
        self.slot()
    }

    /// The publication that the tables are to be in; empty where none is needed.
    fn published(&self) -> String {
        match self.capture {
            Capture::Log => self.publication(),
            Capture::Hooks => String::new(),
        }
    }

    /// The prefix of our messages in the log.
    fn prefix(&self) -> String {
        format!("rowcast:{}", self.slot())
    }
}

/// The database that a lineage is of, whatever became of its history: the server's identity and the database's number.
pub fn database_of(lineage: &str) -> String {
    let mut parts = lineage.split(':').skip(1);
    let (system, _timeline, database) = (parts.next().unwrap_or_default(), parts.next(), parts.next().unwrap_or_default());
    format!("{system}:{database}")
}

/// A PostgreSQL database as a source.
#[derive(Debug)]
pub struct PostgresSource {
    settings: PostgresSettings,
    session: Option<Box<Session>>,
    known: Known,
}

impl PostgresSource {
    /// A source that connects to nothing before [`Source::begin`].
    pub fn new(settings: PostgresSettings) -> PostgresSource {
        PostgresSource { settings, session: None, known: Known::default() }
    }

    fn session(&mut self) -> Result<&mut Session, Error> {
        self.session.as_deref_mut().ok_or_else(|| Error::Busy("the source is not open".to_owned()))
    }
}

impl Source for PostgresSource {
    async fn begin(&mut self, record: Option<&PositionRecord>) -> Result<Start, Error> {
        self.release().await?;
        let (session, start) = begin::begin(&self.settings, record, &mut self.known).await?;
        self.session = Some(Box::new(session));
        Ok(start)
    }

    async fn next(&mut self) -> Result<Portion, Error> {
        self.session()?.next().await
    }

    async fn abandon(&mut self) -> Result<bool, Error> {
        // Nothing is open in the server that a pause would harm: the stream waits, and goes on where it stands.
        Ok(false)
    }

    async fn chunk(&mut self, table: usize, after: Option<&Bound>, limits: ChunkLimits) -> Result<Read, Error> {
        self.session()?.read_after(table, after, limits)
    }

    fn readings_max(&self) -> usize {
        begin::READERS_MAX
    }

    async fn rows(&mut self, table: usize, pks: &[String], limits: ChunkLimits) -> Result<ReadRows, Error> {
        self.session()?.read_rows(table, pks, limits);
        Ok(ReadRows::Later)
    }

    async fn forget(&mut self, upto: Position) -> Result<(), Error> {
        self.session()?.forget(upto);
        Ok(())
    }

    async fn release(&mut self) -> Result<(), Error> {
        if let Some(session) = self.session.take() {
            self.known.settled.extend(session.settled());
            self.known.slot_is_useless |= session.slot_is_useless();
            session.end().await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(pipeline: &str) -> String {
        PostgresSettings::new(Server::parse("postgres://u@h/d").unwrap(), pipeline).slot()
    }

    #[test]
    fn a_slot_is_called_after_its_pipeline_and_no_two_are_called_alike() {
        assert_eq!(slot("shop"), "rowcast_shop");
        let others = [slot("Shop"), slot("a-b"), slot("a_b"), slot(&"x".repeat(100)), slot(&format!("{}y", "x".repeat(99)))];
        assert!(others[0].starts_with("rowcast_shop_") && others[1].starts_with("rowcast_a_b_"), "{others:?}");
        let different: std::collections::HashSet<&String> = others.iter().collect();
        assert_eq!(different.len(), others.len());
        assert!(others.iter().all(|name| name.len() <= NAME_BYTES_MAX));
    }

    #[test]
    fn a_lineage_names_its_database_whatever_the_timeline() {
        assert_eq!(database_of("postgres:730:1:5:rowcast_shop:01J"), database_of("postgres:730:2:5:rowcast_shop:01K"));
        assert_ne!(database_of("postgres:730:1:5:rowcast_shop:01J"), database_of("postgres:730:1:6:rowcast_shop:01J"));
    }
}
