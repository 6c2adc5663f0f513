//! A session: one open connection to one history, from `begin` until something changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::super::{Error, PositionRecord, Start};
use super::error::{self, Failure, patiently};
use super::install::{self, Installation};
use super::rows::RowReader;
use super::stream::{self, Read};
use super::{Capture, SqliteSettings};
use crate::change::{Lineage, Position};
use crate::mapping::{MappedTable, TableSettings};

/// How many changelog rows one transaction removes: some two milliseconds during which the application cannot write.
const TRIM_ROWS: i64 = 5000;
/// How long fewer than that may wait.
const TRIM_AFTER: Duration = Duration::from_secs(1);

/// The page cache: negative means KiB to SQLite.
const CACHE_KIB: i64 = -8192;

/// A table of the pipeline, in the order of the settings.
#[derive(Debug)]
pub(super) struct SessionTable {
    /// Its number in `rowcast_table`.
    pub(super) number: i64,
    pub(super) reader: RowReader,
}

/// An open history.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) path: PathBuf,
    pub(super) connection: Connection,
    /// Which file was opened; the path may come to name another one.
    file: FileId,
    pub(super) schema_version: i64,
    pub(super) generation: String,
    pub(super) lineage: Lineage,
    pub(super) tables: Vec<SessionTable>,
    /// The last record that went out.
    pub(super) record: PositionRecord,
    /// The newest id of the last complete read.
    pub(super) shipped: i64,
    pub(super) read: Option<Read>,
    /// What `PRAGMA data_version` said last.
    data_version: Option<i64>,
    trim: Trim,
}

/// What may be removed from the changelog.
#[derive(Debug)]
struct Trim {
    upto: i64,
    done: i64,
    last: Instant,
}

/// What a new session starts from.
struct Opened {
    schema_version: i64,
    generation: String,
    lineage: Lineage,
    record: PositionRecord,
    forgotten: i64,
    tables: Vec<SessionTable>,
    mapped: Vec<MappedTable>,
    notes: Vec<String>,
}

impl Session {
    /// Opens the file anew, compares its history with the record, and mends what a migration has removed. Where a session went
    /// before (`again`), a table that cannot be followed any more is left out, and the others go on.
    pub(super) fn begin(settings: &SqliteSettings, record: Option<&PositionRecord>, again: bool) -> Result<(Session, Start), Failure> {
        let path = &settings.path;
        let (mut connection, file) = open_this_file(path)?;
        if connection.is_readonly("main")? {
            // SQLite would read happily, and the changelog would grow for ever.
            return Err(error::read_only(path, "opening its history").into());
        }
        patiently(settings.busy_timeout, || Ok(set_up(&connection)?))?;
        let opened =
            install::writing(&mut connection, settings.busy_timeout, |transaction| open_history(transaction, settings, record, again))?;
        let start = Start {
            lineage: opened.lineage.clone(),
            from: stream::position(opened.forgotten),
            record: opened.record.clone(),
            tables: Arc::from(opened.mapped),
            notes: opened.notes,
        };
        let session = Session {
            path: path.clone(),
            connection,
            file,
            schema_version: opened.schema_version,
            generation: opened.generation,
            lineage: opened.lineage,
            tables: opened.tables,
            record: opened.record,
            shipped: opened.forgotten,
            read: None,
            data_version: None,
            trim: Trim { upto: opened.forgotten, done: opened.forgotten, last: Instant::now() },
        };
        Ok((session, start))
    }

    /// Whether the path still names the file that is open.
    pub(super) fn check_file(&self) -> Result<(), Failure> {
        if FileId::of(&self.path).ok() == Some(self.file) {
            return Ok(());
        }
        Err(Error::Changed(format!("{} was replaced by another file", self.path.display())).into())
    }

    /// Whether somebody has committed since this last said so.
    pub(super) fn has_news(&mut self) -> Result<bool, Failure> {
        self.check_file()?;
        let version = self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        let news = self.data_version != Some(version);
        self.data_version = Some(version);
        Ok(news)
    }

    /// Runs `work` on a snapshot: the one of the read under way, else one of its own.
    pub(super) fn on_snapshot<T>(&mut self, work: impl Fn(&Session, Position) -> Result<T, Failure>) -> Result<T, Failure> {
        if let Some(read) = &self.read {
            return work(self, stream::position(read.newest));
        }
        self.check_file()?;
        self.connection.execute_batch("BEGIN")?;
        let outcome = self.check_history().and_then(|()| {
            let newest = stream::newest_id(&self.connection)?;
            if newest < self.shipped {
                return Err(Error::Changed(format!("{} went back in time", self.path.display())).into());
            }
            let position = stream::position(newest);
            let record = PositionRecord { lineage: self.lineage.clone(), position, mark: stream::mark(&self.connection, newest)? };
            Ok((work(self, position)?, record))
        });
        self.end_transaction()?;
        let (read, record) = outcome?;
        // What was read belongs to this history only as long as the newest change of this snapshot stands, too.
        self.record = record;
        Ok(read)
    }

    /// Notes that history up to here is no longer needed. It is written down with the next trim; what is written down is not
    /// shipped again by a later session, whether its rows have gone already or not.
    pub(super) fn forget(&mut self, upto: Position) -> Result<(), Error> {
        let id = i64::try_from(upto.0).unwrap_or(i64::MAX);
        if id > self.shipped {
            return Err(Error::Fatal(format!("history up to {upto} is to be forgotten, but only {} was shipped", self.shipped)));
        }
        self.trim.upto = self.trim.upto.max(id);
        Ok(())
    }

    /// When there will be something to trim.
    pub(super) fn trim_due(&self) -> Option<Duration> {
        let Trim { upto, done, last } = self.trim;
        match upto - done {
            0 => None,
            TRIM_ROWS.. => Some(Duration::ZERO),
            _ => Some(TRIM_AFTER.saturating_sub(last.elapsed())),
        }
    }

    /// Removes some of what may be forgotten, unless somebody else is writing. The newest row and the record's always stay:
    /// the former so that its id is not used again, the latter because it proves the history.
    pub(super) fn trim(&mut self) -> Result<(), Failure> {
        if self.read.is_some() || self.trim_due() != Some(Duration::ZERO) {
            return Ok(());
        }
        match self.trim_now() {
            // Another time.
            Err(failure) if failure.is_lock() => Ok(()),
            outcome => outcome,
        }
    }

    /// The same without waiting until it is worth a transaction; somebody else's lock is an error.
    pub(super) fn trim_now(&mut self) -> Result<(), Failure> {
        if self.trim_due().is_none() {
            return Ok(());
        }
        let upto = self.trim.upto;
        let trimmed = self.trim_to(upto);
        self.end_transaction()?;
        self.trim.last = Instant::now();
        self.trim.done = trimmed?;
        Ok(())
    }

    fn trim_to(&self, upto: i64) -> Result<i64, Failure> {
        let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        // Nothing is removed from a history that is not the one that was shipped.
        self.check_history()?;
        let oldest: i64 =
            transaction.prepare_cached("SELECT coalesce(min(id), 0) FROM rowcast_changelog")?.query_row([], |row| row.get(0))?;
        let end = upto.min(oldest.saturating_add(TRIM_ROWS));
        transaction.prepare_cached("UPDATE rowcast_meta SET value = max(value, ?1) WHERE name = 'forgotten'")?.execute([upto])?;
        // The record stands at `upto` or beyond, and so does the newest row.
        transaction.prepare_cached("DELETE FROM rowcast_changelog WHERE id < ?1")?.execute([end])?;
        transaction.commit()?;
        Ok(end)
    }
}

/// Which file a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// By its name: to open the file and close it again would drop the locks that SQLite holds on it.
    #[cfg(unix)]
    fn of(path: &Path) -> std::io::Result<FileId> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path)?;
        Ok(FileId { device: metadata.dev(), inode: metadata.ino() })
    }

    /// Where files have no number an open one cannot be replaced either.
    #[cfg(not(unix))]
    fn of(path: &Path) -> std::io::Result<FileId> {
        std::fs::metadata(path).map(|_| FileId { device: 0, inode: 0 })
    }
}

/// How often the file may be replaced while it is being opened.
const OPENINGS: usize = 10;

fn open_this_file(path: &Path) -> Result<(Connection, FileId), Failure> {
    let missing = |error: std::io::Error| Error::Busy(format!("the database {} cannot be opened: {error}", path.display()));
    for _ in 0..OPENINGS {
        let before = FileId::of(path).map_err(missing)?;
        let connection = install::open(path)?;
        if FileId::of(path).map_err(missing)? == before {
            return Ok((connection, before));
        }
    }
    Err(Error::Busy(format!("{} is being replaced again and again", path.display())).into())
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    // What is written here may be lost in a power cut without harm: it is then written again.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    // Caches share one budget per process here, and an idle connection of the application may hold all that is usual: then
    // every page would be read from the file again and again.
    connection.pragma_update(None, "cache_size", CACHE_KIB)
}

fn run_install(what: String) -> Failure {
    Failure::from(Error::Fatal(format!("{what}; run `rowcast install`")))
}

fn open_table(
    installation: &mut Installation<'_>,
    transaction: &Transaction<'_>,
    table: &TableSettings,
    capture: Capture,
) -> Result<(SessionTable, MappedTable), Failure> {
    let registered = install::registration(transaction, &table.name)?.map(|(_, capture)| capture);
    let triggers = registered.as_deref() == Some(Capture::Triggers.name());
    // Triggers see whatever hooks see, and the hooks leave the recording to them.
    let capture = if triggers { Capture::Triggers } else { capture };
    let prepared = install::prepare(transaction, table, capture)?;
    if capture == Capture::Triggers && !triggers {
        return Err(run_install(match registered {
            None => format!("table {} is not followed yet", table.name),
            Some(known) => format!("table {} is followed by {known}, not triggers", table.name),
        }));
    }
    let number = installation.table(&prepared, capture)?;
    Ok((SessionTable { number, reader: RowReader::new(&prepared) }, prepared.mapped))
}

fn open_history(
    transaction: &Transaction<'_>,
    settings: &SqliteSettings,
    record: Option<&PositionRecord>,
    again: bool,
) -> Result<Opened, Failure> {
    let mut installation = Installation::new(transaction);
    if settings.capture == Capture::Triggers && !install::is_installed(transaction)? {
        return Err(run_install(format!("{} has no changelog yet", settings.path.display())));
    }
    installation.tables()?;
    installation.pipeline(&settings.pipeline)?;
    install::check_each_once(settings)?;
    let (mut tables, mut mapped, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    for table in &settings.tables {
        match installation.or_nothing(|installation| open_table(installation, transaction, table, settings.capture))? {
            Ok((opened, as_mapped)) => {
                tables.push(opened);
                mapped.push(as_mapped);
            }
            // What a migration has done to one table must not stop the others. Its keys go from the cache, since nobody keeps them true.
            Err(why) if again => {
                installation.leave(&table.name)?;
                left_out.push(format!(
                    "table {} is left out and its keys go from the cache, while the other tables go on: {why}; once that is \
                     mended, it is taken up again by itself",
                    table.name
                ));
            }
            Err(why) => return Err(Error::Fatal(why).into()),
        }
    }
    install::check_keys_apart(&mapped)?;
    let mut notes = std::mem::take(&mut installation.report.notes);
    notes.append(&mut left_out);
    let broken = installation
        .history_broken
        .then(|| "the triggers were not those for this schema and configuration, so changes may have gone unrecorded".to_owned());
    let reason = match broken {
        None => why_new(transaction, record)?,
        broken => broken,
    };
    let record = match (reason, record) {
        (None, Some(record)) => record.clone(),
        (reason, _) => {
            installation.new_generation()?;
            notes.extend(reason.map(|reason| format!("a new history begins, and every table is read again: {reason}")));
            let newest = stream::newest_id(transaction)?;
            let mark = stream::mark(transaction, newest)?;
            PositionRecord { lineage: stream::lineage(transaction)?, position: stream::position(newest), mark }
        }
    };
    let schema_version = transaction.query_row("PRAGMA schema_version", [], |row| row.get(0))?;
    let generation = install::meta(transaction, "generation")?.unwrap_or_default();
    let forgotten = install::forgotten(transaction)?;
    Ok(Opened { schema_version, generation, lineage: stream::lineage(transaction)?, record, forgotten, tables, mapped, notes })
}

/// Why the history in the database is not the one that was shipped; `None` if it is.
fn why_new(transaction: &Transaction<'_>, record: Option<&PositionRecord>) -> Result<Option<String>, Failure> {
    let Some(record) = record else { return Ok(Some("the broker holds no record of an earlier one".to_owned())) };
    if record.lineage != stream::lineage(transaction)? {
        return Ok(Some(format!("the broker's record is of {}, which is not the history in the file", record.lineage)));
    }
    if !stream::still_stands(transaction, record)? {
        return Ok(Some(format!(
            "the change at {} that was shipped is not in the file any more, which therefore went back in time (a restored copy, or a power \
             cut that lost the last commits)",
            record.position.0
        )));
    }
    let forgotten = install::forgotten(transaction)?;
    let newest = stream::newest_id(transaction)?;
    let oldest: Option<i64> = transaction.query_row("SELECT min(id) FROM rowcast_changelog", [], |row| row.get(0))?;
    let removed = match oldest {
        // Ids are handed out without holes, and only what was confirmed is ever trimmed.
        Some(oldest) => oldest > forgotten.saturating_add(1),
        None => forgotten > 0,
    };
    if removed || newest < forgotten {
        return Ok(Some("somebody has removed rows of the changelog that had not been shipped".to_owned()));
    }
    Ok(None)
}
