//! The table that is followed, and those who write to it, in either database.

mod postgres;
mod sqlite;

use std::path::Path;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant};

use rowcast::mapping::TableSettings;
use rowcast::source::postgres::{PostgresSettings, Server};
use rowcast::source::sqlite::SqliteSettings;
use rowcast::source::{AnySource, SourceSettings};

use crate::usage::now_us;

pub use postgres::Postgres;
pub use sqlite::Sqlite;

/// The pipeline's name.
pub const PIPELINE: &str = "bench";

/// The product's default.
pub const PARTITIONS: u16 = 4;

/// Rows in one transaction of those who write a backlog.
const TRANSACTION: u32 = 1_000;

/// After a backlog is in Redis: the last confirms, and the trimming of the changelog, which are part of the cost.
const SETTLE: Duration = Duration::from_millis(1_500);

/// How many connections commit single rows in a server; one alone may wait for the disk for longer than the rate allows.
const WRITERS: u32 = 4;

/// Every so many commits one is looked for by a plain client.
const SAMPLE: u32 = 50;

/// A database with its table `users`.
#[derive(Debug)]
pub enum Database {
    /// A file.
    Sqlite(Sqlite),
    /// A server.
    Postgres(Box<Postgres>),
}

/// The same with whichever database it is.
macro_rules! either {
    ($any:expr, $database:ident => $body:expr) => {
        match $any {
            Database::Sqlite($database) => $body,
            Database::Postgres($database) => $body,
        }
    };
}

impl Database {
    /// What the reports call it.
    pub fn name(&self) -> &'static str {
        match self {
            Database::Sqlite(_) => "SQLite",
            Database::Postgres(_) => "PostgreSQL",
        }
    }

    /// Where it is, as a configuration says it.
    pub fn url(&self) -> String {
        either!(self, database => database.url())
    }

    /// Makes the table with its rows, and what rowcast needs.
    pub async fn create(&self, rows: u32) -> anyhow::Result<()> {
        match self {
            Database::Sqlite(sqlite) => sqlite.create(rows),
            Database::Postgres(postgres) => postgres.create(rows).await,
        }
    }

    /// Makes so many changes to single rows, in transactions of 1,000 and in an order that is not the table's.
    pub fn write_backlog(&self, rows: u32, changes: u32) -> anyhow::Result<()> {
        either!(self, database => database.write_backlog(rows, changes))
    }

    /// A position that every partition reaches once it has all that is committed now.
    pub fn newest(&self) -> anyhow::Result<(u64, u64)> {
        either!(self, database => database.newest())
    }

    /// Waits until the database was told that it may forget everything up to here, so that the next pipeline begins there.
    pub fn settle(&self, newest: (u64, u64)) -> anyhow::Result<()> {
        match self {
            Database::Sqlite(_) => std::thread::sleep(SETTLE),
            Database::Postgres(postgres) => postgres.wait_until_forgotten(newest.0)?,
        }
        Ok(())
    }

    /// The same table where nothing else reads it: a copy, or this one where the pipeline is not disturbed by it.
    pub fn apart(self, folder: &Path) -> anyhow::Result<Database> {
        match self {
            Database::Sqlite(sqlite) => Ok(Database::Sqlite(sqlite.copy(&folder.join("alone.db"))?)),
            Database::Postgres(postgres) => Ok(Database::Postgres(postgres)),
        }
    }

    /// Commits single rows at a steady rate, in order of their versions; some of them are passed on to be looked for.
    pub fn commit_singly(&self, rows: u32, rate: u32, count: u32, samples: &SyncSender<Commit>) -> anyhow::Result<Vec<Commit>> {
        match self {
            Database::Sqlite(sqlite) => {
                let connection = sqlite::open(&sqlite.path)?;
                let mut update = connection.prepare(&sqlite::update("?2", "?1"))?;
                let commit = |id, version| Ok(update.execute((id, i64::try_from(version)?)).map(drop)?);
                at_a_rate(rows, rate, (0..count).collect(), samples, commit)
            }
            Database::Postgres(postgres) => {
                let commit_some = |first| {
                    let mut application = postgres.application()?;
                    let indexes = (first..count).step_by(WRITERS as usize).collect();
                    at_a_rate(rows, rate, indexes, samples, |id, version| postgres::commit(&mut application, id, version))
                };
                let mut commits = Vec::new();
                std::thread::scope(|scope| {
                    let writers: Vec<_> = (0..WRITERS).map(|first| scope.spawn(move || commit_some(first))).collect();
                    for writer in writers {
                        commits.extend(writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??);
                    }
                    anyhow::Ok(())
                })?;
                commits.sort_by_key(|commit| commit.version);
                Ok(commits)
            }
        }
    }
}

/// The settings of the source at this URL.
fn settings(url: &str) -> anyhow::Result<SourceSettings> {
    let tables = vec![TableSettings { key: Some("user:{id}".to_owned()), ..TableSettings::new("users") }];
    Ok(match url.strip_prefix("sqlite:") {
        Some(path) => SourceSettings::Sqlite(SqliteSettings { tables, ..SqliteSettings::new(Path::new(path), PIPELINE) }),
        None => {
            let server = Server::parse(url).map_err(anyhow::Error::msg)?;
            SourceSettings::Postgres(Box::new(PostgresSettings { tables, ..PostgresSettings::new(server, PIPELINE) }))
        }
    })
}

/// The source at this URL.
pub fn source(url: &str) -> anyhow::Result<AnySource> {
    Ok(AnySource::new(settings(url)?)?)
}

/// The version that a row's JSON holds.
pub fn version_in(row: &str) -> Option<u64> {
    let (_, rest) = row.split_once("\"version\":")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// An id that is not near those of the neighbouring indexes; no two of `rows` indexes share one.
fn scattered(index: u32, rows: u32) -> i64 {
    // A prime is coprime to any number of rows below it.
    1 + i64::from(index) * PRIME % i64::from(rows)
}

const PRIME: i64 = 2_147_483_647;

/// One single-row commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The row.
    pub id: i64,
    /// What its column `version` says since.
    pub version: u64,
    /// When the commit had returned, in microseconds since the epoch.
    pub us: i64,
    /// How long statement and commit took.
    pub took: Duration,
}

/// The first version that [`Database::commit_singly`] writes, well above what a backlog wrote.
pub const FIRST_VERSION: u64 = 1_000_000_000;

fn at_a_rate(
    rows: u32,
    rate: u32,
    indexes: Vec<u32>,
    samples: &SyncSender<Commit>,
    mut commit: impl FnMut(i64, u64) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Commit>> {
    let begun = Instant::now();
    let mut commits = Vec::with_capacity(indexes.len());
    for index in indexes {
        let due = begun + Duration::from_secs(1) * index / rate;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let (id, version) = (scattered(index % rows, rows), FIRST_VERSION + u64::from(index));
        let before = Instant::now();
        commit(id, version)?;
        let commit = Commit { id, version, us: now_us(), took: before.elapsed() };
        commits.push(commit);
        // Where the one before is still being looked for, this one is not.
        if index % SAMPLE == SAMPLE / 2 && samples.try_send(commit) == Err(TrySendError::Disconnected(commit)) {
            anyhow::bail!("nobody looks for the commits any more");
        }
    }
    Ok(commits)
}
