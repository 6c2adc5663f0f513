//! The table that is followed, and those who write to it.

use std::path::Path;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant};

use rowcast::mapping::TableSettings;
use rowcast::source::sqlite::{self, SqliteSettings};
use rusqlite::{Connection, params};

use crate::usage::now_us;

/// The pipeline's name.
pub const PIPELINE: &str = "bench";

/// The product's default.
pub const PARTITIONS: u16 = 4;

/// Rows in one transaction of those who write a backlog.
const TRANSACTION: u32 = 1_000;

/// Every so many commits one is looked for by a plain client.
const SAMPLE: u32 = 50;

/// The settings of the source.
pub fn settings(path: &Path) -> SqliteSettings {
    let table = TableSettings { key: Some("user:{id}".to_owned()), ..TableSettings::new("users") };
    SqliteSettings { tables: vec![table], ..SqliteSettings::new(path, PIPELINE) }
}

/// The version that a row's JSON holds.
pub fn version_in(row: &str) -> Option<u64> {
    let (_, rest) = row.split_once("\"version\":")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn open(path: &Path) -> anyhow::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    Ok(connection)
}

/// Makes the table with its rows, and then the triggers.
pub fn create(path: &Path, rows: u32) -> anyhow::Result<()> {
    let mut connection = open(path)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.execute_batch(
        "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL, city TEXT, balance REAL NOT NULL, \
         active INTEGER NOT NULL, version INTEGER NOT NULL)",
    )?;
    let transaction = connection.transaction()?;
    {
        let mut insert = transaction.prepare("INSERT INTO users VALUES (?1, ?2, ?3, ?4, ?5, 1, 0)")?;
        for id in 1..=rows {
            let city = ["London", "Paris", "Geneva", "Buenos Aires"][id as usize % 4];
            let balance = f64::from(id) * 1.25;
            insert.execute(params![id, format!("Ada Lovelace {id}"), format!("ada.{id}@example.com"), city, balance])?;
        }
    }
    transaction.commit()?;
    sqlite::install(&settings(path))?;
    Ok(())
}

/// Changes `changes` rows, each once, in an order that is not the table's.
pub fn write_backlog(path: &Path, rows: u32, changes: u32) -> anyhow::Result<()> {
    let mut connection = open(path)?;
    for begin in (0..changes).step_by(TRANSACTION as usize) {
        let transaction = connection.transaction()?;
        let mut update = transaction.prepare_cached("UPDATE users SET balance = balance + 1.5, version = version + 1 WHERE id = ?1")?;
        for index in begin..changes.min(begin + TRANSACTION) {
            update.execute([scattered(index, rows)])?;
        }
        drop(update);
        transaction.commit()?;
    }
    Ok(())
}

/// An id that is not near those of the neighbouring indexes; no two of `rows` indexes share one.
fn scattered(index: u32, rows: u32) -> i64 {
    // A prime is coprime to any number of rows below it.
    1 + i64::from(index) * 2_147_483_647 % i64::from(rows)
}

/// The newest id of the changelog.
pub fn newest(path: &Path) -> anyhow::Result<u64> {
    let changelog = sqlite::inspect(path)?.changelog;
    Ok(anyhow::Context::context(changelog, "there is no changelog")?.newest)
}

/// A copy of the file as it stands, triggers included.
pub fn copy(path: &Path, to: &Path) -> anyhow::Result<()> {
    open(path)?.execute("VACUUM INTO ?1", [to.to_string_lossy()])?;
    let connection = open(to)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    Ok(())
}

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

/// The first version that [`commit_singly`] writes, well above what a backlog wrote.
pub const FIRST_VERSION: u64 = 1_000_000_000;

/// Commits single rows at a steady rate; some of them are passed on to be looked for.
pub fn commit_singly(path: &Path, rows: u32, rate: u32, count: u32, samples: &SyncSender<Commit>) -> anyhow::Result<Vec<Commit>> {
    let connection = open(path)?;
    let mut update = connection.prepare("UPDATE users SET balance = balance + 1.5, version = ?2 WHERE id = ?1")?;
    let begun = Instant::now();
    let mut commits = Vec::with_capacity(count as usize);
    for index in 0..count {
        let due = begun + Duration::from_secs(1) * index / rate;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let (id, version) = (scattered(index % rows, rows), FIRST_VERSION + u64::from(index));
        let before = Instant::now();
        update.execute(params![id, i64::try_from(version)?])?;
        let commit = Commit { id, version, us: now_us(), took: before.elapsed() };
        commits.push(commit);
        // Where the one before is still being looked for, this one is not.
        if index % SAMPLE == SAMPLE / 2 && samples.try_send(commit) == Err(TrySendError::Disconnected(commit)) {
            anyhow::bail!("nobody looks for the commits any more");
        }
    }
    Ok(commits)
}
