//! PostgreSQL without its log: a changelog that ORM hooks fill in the application's own transactions, read by what snapshots see.
//!
//! One read is one snapshot, and has a number that is written into the database before anything of it is shipped. It takes the changelog
//! rows that its snapshot sees and the snapshot of the read before did not, and ships each key that they name as this snapshot has it.
//! `docs/decisions/0010-postgresql-changelog.md` says why that is enough.

mod begin;
mod check;
mod desk;
mod fits;
mod inspect;
mod install;
mod lookup;
mod pace;
mod readings;
mod session;
mod stream;
mod trim;

use super::super::{ChunkLimits, Error, Portion, PositionRecord, Read, ReadRows, Source, Start};
use super::PostgresSettings;
use crate::change::{Bound, Position};

pub(super) use check::{check, unread};
pub(super) use fits::misfit;
pub(super) use inspect::as_of;
pub use inspect::waiting;
pub(super) use install::{install, plan, uninstall};

use session::Session;

/// A PostgreSQL database with a changelog, as a source.
#[derive(Debug)]
pub struct ChangelogSource {
    settings: PostgresSettings,
    session: Option<Box<Session>>,
    /// Whether a history was opened since this began.
    opened_before: bool,
}

impl ChangelogSource {
    /// A source that connects to nothing before [`Source::begin`].
    pub fn new(settings: PostgresSettings) -> ChangelogSource {
        ChangelogSource { settings, session: None, opened_before: false }
    }

    fn session(&mut self) -> Result<&mut Session, Error> {
        self.session.as_deref_mut().ok_or_else(|| Error::Busy("the source is not open".to_owned()))
    }
}

impl Source for ChangelogSource {
    async fn begin(&mut self, record: Option<&PositionRecord>) -> Result<Start, Error> {
        self.release().await?;
        let (session, start) = begin::begin(&self.settings, record, self.opened_before).await?;
        self.session = Some(Box::new(session));
        self.opened_before = true;
        Ok(start)
    }

    async fn next(&mut self) -> Result<Portion, Error> {
        self.session()?.next().await
    }

    async fn abandon(&mut self) -> Result<bool, Error> {
        match self.session.as_deref_mut() {
            Some(session) => session.abandon().await,
            None => Ok(false),
        }
    }

    async fn chunk(&mut self, table: usize, after: Option<&Bound>, limits: ChunkLimits) -> Result<Read, Error> {
        self.session()?.read_after(table, after, limits)
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
            session.end().await;
        }
        Ok(())
    }
}
