//! What would stop or harm the pipeline on this database.
//!
//! What a session would do at its beginning is done here in a transaction that is rolled back, so that nothing is judged in
//! two ways.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

use super::error::{Failure, patiently};
use super::install::{self, Installation};
use super::sql::quoted;
use super::{Capture, SqliteSettings, inspect};
use crate::finding::{Finding, Grade, Setting};
use crate::mapping::{ColumnType, MappedTable, Proof, TableSettings, nearest};

/// How long a lock of somebody else is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many rows of each table are looked at for keys that cannot be made.
const SAMPLE_ROWS: u32 = 10_000;

/// So many changelog rows are more than a moment's backlog.
const BACKLOG_ROWS: u64 = 100_000;

/// Less free space than this is soon used up while the broker is away.
const FREE_BYTES_LEAST: u64 = 64 << 20;

const INSTALL: &str = "run `rowcast install`";

/// Looks at the database as the pipeline would use it, and changes nothing.
pub fn check(settings: &SqliteSettings) -> Vec<Finding> {
    let path = &settings.path;
    if !path.exists() {
        return vec![missing(path)];
    }
    let stops = |failure: Failure| vec![Finding::of_sentence(Grade::Stops, &failure.explain(path, "looking at it").to_string())];
    let mut connection = match install::open(path) {
        Ok(connection) => connection,
        Err(error) => return stops(error.into()),
    };
    let mut found = match look_as_writer(&mut connection, settings) {
        Err(failure) if failure.is_lock() => vec![locked(path)],
        Err(failure) if is_read_only(&failure) => {
            let read = patiently(PATIENCE, || look(&connection.transaction()?, settings, Access::Read));
            let mut found = vec![read_only(path)];
            found.extend(read.map(|looked| looked.found).unwrap_or_else(stops));
            found
        }
        Err(failure) => stops(failure),
        Ok(looked) => {
            // Where readers and writers do not wait for each other, nobody has to wait while rows are read.
            let sampled = patiently(PATIENCE, || {
                let transaction = connection.transaction()?;
                let keyless = |(index, mapped): &(usize, MappedTable)| {
                    Ok(keyless_rows(&transaction, mapped)?.map(|finding| finding.about(*index, Setting::Key)))
                };
                looked.mapped.iter().map(keyless).collect::<Result<Vec<_>, Failure>>()
            });
            let mut found = looked.found;
            match sampled {
                Ok(sampled) => found.extend(sampled.into_iter().flatten()),
                Err(failure) if failure.is_lock() => found.push(locked(path)),
                Err(failure) => found.extend(stops(failure)),
            }
            found
        }
    };
    found.extend(low_space(path));
    found
}

/// What keeps the tables from being followed as they are configured. Reads only, and little, so that it may be asked often.
pub fn misfits(settings: &SqliteSettings) -> Vec<Finding> {
    if !settings.path.exists() {
        return vec![missing(&settings.path)];
    }
    let looked = install::open(&settings.path)
        .map_err(Failure::from)
        .and_then(|mut connection| patiently(PATIENCE, || look(&connection.transaction()?, settings, Access::Read)));
    let mut found = looked
        .map(|looked| looked.found)
        .unwrap_or_else(|failure| vec![Finding::of_sentence(Grade::Stops, &failure.explain(&settings.path, "looking at it").to_string())]);
    found.retain(|finding| finding.grade == Grade::Stops);
    found
}

/// What was found, and the tables that can be mapped, by their places in the settings.
struct Looked {
    found: Vec<Finding>,
    mapped: Vec<(usize, MappedTable)>,
}

fn look_as_writer(connection: &mut Connection, settings: &SqliteSettings) -> Result<Looked, Failure> {
    patiently(PATIENCE, || {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let looked = look(&transaction, settings, Access::Write)?;
        transaction.rollback()?;
        Ok(looked)
    })
}

/// Whether what is missing may be put there for a moment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

fn look(transaction: &Transaction<'_>, settings: &SqliteSettings, access: Access) -> Result<Looked, Failure> {
    let mut found = Vec::new();
    let installed = install::is_installed(transaction)?;
    if installed {
        match install::check_format(transaction).and_then(|()| inspect::waiting(transaction)) {
            Ok(waiting) => found.extend(backlog(waiting.rows)),
            Err(Failure::Known(error)) => {
                return Ok(Looked { found: vec![Finding::of_sentence(Grade::Stops, &error.to_string())], mapped: Vec::new() });
            }
            Err(failure) => return Err(failure),
        }
    } else if settings.capture == Capture::Triggers {
        let message = format!("{} has no changelog yet", settings.path.display());
        found.push(Finding::new(Grade::Stops, message).mend(INSTALL));
    }
    let mut installation = Installation::new(transaction);
    if access == Access::Write {
        installation.tables()?;
        if let Err(failure) = installation.pipeline(&settings.pipeline) {
            found.push(finding(failure, None)?);
        }
    }
    found.extend(journal_mode(transaction, &settings.path)?);
    let mut looking = Looking { transaction, settings, installed, access, installation, found };
    let mut mapped: Vec<(usize, MappedTable)> = Vec::new();
    for (index, table) in settings.tables.iter().enumerate() {
        match looking.table(index, table) {
            Ok(table) => mapped.push((index, table)),
            Err(failure) => looking.found.push(finding(failure, Some(index))?),
        }
    }
    let mut found = looking.found;
    for (place, (index, table)) in mapped.iter().enumerate() {
        if let Some(text) = install::share_keys(table, mapped[..place].iter().map(|(_, other)| other)) {
            found.push(Finding::of_sentence(Grade::Stops, &text).about(*index, Setting::Key));
        }
    }
    if installed {
        found.extend(left_behind(transaction, settings)?);
    }
    Ok(Looked { found, mapped })
}

/// A failure as a finding; what SQLite itself refuses stays a failure.
fn finding(failure: Failure, table: Option<usize>) -> Result<Finding, Failure> {
    match (failure, table) {
        (Failure::Misfit(setting, text), Some(table)) => Ok(Finding::of_sentence(Grade::Stops, &text).about(table, setting)),
        (Failure::Misfit(_, text), None) => Ok(Finding::of_sentence(Grade::Stops, &text)),
        (Failure::Known(error), Some(table)) => Ok(Finding::of_sentence(Grade::Stops, &error.to_string()).about(table, Setting::Name)),
        (Failure::Known(error), None) => Ok(Finding::of_sentence(Grade::Stops, &error.to_string())),
        (failure, _) => Err(failure),
    }
}

struct Looking<'t> {
    transaction: &'t Transaction<'t>,
    settings: &'t SqliteSettings,
    installed: bool,
    access: Access,
    installation: Installation<'t>,
    found: Vec<Finding>,
}

impl Looking<'_> {
    fn table(&mut self, index: usize, settings: &TableSettings) -> Result<MappedTable, Failure> {
        let name = &settings.name;
        let registered = if self.installed { install::registration(self.transaction, name)? } else { None };
        let by_triggers = registered.as_ref().is_some_and(|(_, capture)| capture == Capture::Triggers.name());
        let capture = if by_triggers { Capture::Triggers } else { self.settings.capture };
        let prepared = install::prepare(self.transaction, settings, capture)?;
        if self.access == Access::Write {
            let overtaken = match &registered {
                Some((number, _)) if by_triggers => self.installation.overtaken(name, *number)?,
                _ => false,
            };
            let before = self.installation.report.statements.len();
            self.installation.table(&prepared, capture)?;
            let changed = self.installation.report.statements.len() > before;
            self.found.extend(followed(name, registered.map(|(_, capture)| capture), self, overtaken, changed));
        }
        self.found.extend(open_end(&prepared.mapped).map(|finding| finding.about(index, Setting::Key)));
        Ok(prepared.mapped)
    }
}

/// How the table is followed, against how it should be.
fn followed(name: &str, registered: Option<String>, looking: &Looking<'_>, overtaken: bool, changed: bool) -> Option<Finding> {
    let (triggers, hooks) = (Capture::Triggers.name(), Capture::Hooks.name());
    let wanted = looking.settings.capture;
    match registered.as_deref() {
        // That nothing is installed is said once.
        None if !looking.installed || wanted == Capture::Hooks => None,
        None => Some(Finding::new(Grade::Stops, format!("table {name} is not followed yet")).mend(INSTALL)),
        Some(known) if known != triggers && wanted == Capture::Triggers => {
            Some(Finding::new(Grade::Stops, format!("table {name} is followed by {known}, not triggers")).mend(INSTALL))
        }
        Some(known) if known == triggers && overtaken => Some(
            Finding::new(
                Grade::Harms,
                format!(
                    "table {name} has a trigger of the application that was created after rowcast's: it runs first, and where it ends a \
                     statement (RAISE(IGNORE), or an error under OR FAIL) that goes unrecorded"
                ),
            )
            .mend(INSTALL),
        ),
        Some(known) if known == triggers && changed => Some(
            Finding::new(
                Grade::Harms,
                format!(
                    "the triggers on {name} are not what they should be (a migration has rebuilt the table or given it another index, or \
                     its key in the configuration is made of other columns), so changes may go unrecorded"
                ),
            )
            .mend(INSTALL),
        ),
        Some(known) if known == triggers && wanted == Capture::Hooks => Some(
            Finding::new(Grade::Notes, format!("table {name} is still followed by triggers; they see whatever {hooks} see")).mend(INSTALL),
        ),
        Some(_) => None,
    }
}

fn missing(path: &Path) -> Finding {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let names: Vec<String> = std::fs::read_dir(folder)
        .map(|entries| entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    let wanted = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let remedy = match nearest(&wanted, names.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {near}? Correct the `url` in [source]"),
        None => "correct the `url` in [source]".to_owned(),
    };
    Finding::new(Grade::Stops, format!("there is no database file {}", path.display())).mend(remedy)
}

fn locked(path: &Path) -> Finding {
    Finding::new(
        Grade::Harms,
        format!("{} was locked for {} s by another program, so it could not be looked at", path.display(), PATIENCE.as_secs()),
    )
    .mend("end the transaction that another program keeps open, then look again")
}

fn is_read_only(failure: &Failure) -> bool {
    let code = |error: &rusqlite::Error| error.sqlite_error_code();
    matches!(failure, Failure::Sqlite(error) if matches!(code(error), Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied)))
}

fn read_only(path: &Path) -> Finding {
    let message = format!("{} cannot be written, and what was confirmed is trimmed from its changelog", path.display());
    Finding::new(Grade::Stops, message)
        .mend(format!("run `chmod u+w {0}`, and give rowcast's user the right to write in its folder", path.display()))
}

fn journal_mode(connection: &Connection, path: &Path) -> Result<Option<Finding>, Failure> {
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    if mode == "wal" {
        return Ok(None);
    }
    let message = format!(
        "{} is in journal mode {mode}, in which readers and writers wait for each other: an application without a busy time-out may be \
         told that the database is locked",
        path.display()
    );
    Ok(Some(Finding::new(Grade::Harms, message).mend(format!("run `sqlite3 {} \"PRAGMA journal_mode = wal\"`", path.display()))))
}

fn backlog(rows: u64) -> Option<Finding> {
    if rows < BACKLOG_ROWS {
        return None;
    }
    let message = format!("{rows} changelog rows wait for delivery, and the file grows with each");
    Some(Finding::new(Grade::Harms, message).mend("run `rowcast run`, or `rowcast status` to see what keeps it"))
}

/// Keys that anybody could have written.
fn open_end(mapped: &MappedTable) -> Option<Finding> {
    let keys = &mapped.descriptor.keys;
    if keys.proof != Proof::Key || !keys.template.ends_openly() {
        return None;
    }
    let last = keys.template.columns().last()?;
    let message = format!(
        "table {}: its key ends in free text ({}), which the value does not hold, so a key of that form could be anybody's: a sweep leaves \
         one whose row is gone",
        mapped.table, last.column
    );
    Some(Finding::new(Grade::Harms, message).mend(format!("add {} to `columns`", last.column)))
}

/// Rows that no key can be made of, among the first ones.
fn keyless_rows(connection: &Connection, mapped: &MappedTable) -> Result<Option<Finding>, Failure> {
    let columns: Vec<(String, ColumnType)> =
        mapped.descriptor.keys.template.columns().map(|column| (quoted(&column.column), column.kind)).collect();
    let conditions: Vec<String> = columns
        .iter()
        .map(|(name, kind)| match kind {
            ColumnType::Integer => format!("typeof({name}) <> 'integer'"),
            ColumnType::Numeric => format!("typeof({name}) IN ('null', 'blob') OR {name} = ''"),
            ColumnType::Text => format!("typeof({name}) <> 'text' OR {name} = ''"),
            ColumnType::Blob => format!("typeof({name}) <> 'blob' OR length({name}) = 0"),
        })
        .collect();
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    let sql = format!(
        "SELECT count(*) FROM (SELECT {} FROM {} LIMIT {SAMPLE_ROWS}) WHERE {}",
        names.join(", "),
        quoted(&mapped.table.0),
        conditions.join(" OR ")
    );
    let rows: u32 = connection.query_row(&sql, [], |row| row.get(0))?;
    if rows == 0 {
        return Ok(None);
    }
    let message = format!(
        "table {}: of the first {SAMPLE_ROWS} rows at most, {rows} have no safe key, because a column of the key is null, empty, or holds \
         another type than it was declared for; they become dead letters",
        mapped.table
    );
    Ok(Some(Finding::new(Grade::Harms, message).mend("mend these rows, or build the key from other columns")))
}

/// Triggers of tables that are not configured any more cost the application time.
fn left_behind(connection: &Connection, settings: &SqliteSettings) -> Result<Option<Finding>, Failure> {
    let mut statement = connection.prepare("SELECT number, name FROM rowcast_table WHERE capture = 'triggers' ORDER BY name")?;
    let registered: Vec<(i64, String)> = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let mut names = Vec::new();
    for (number, name) in registered {
        let configured = settings.tables.iter().any(|table| table.name == name);
        if !configured && !install::installed(connection, &format!("rowcast_{number}_*"))?.is_empty() {
            names.push(name);
        }
    }
    if names.is_empty() {
        return Ok(None);
    }
    let message = format!("there are still triggers on {}, which the configuration does not name any more", names.join(", "));
    Ok(Some(Finding::new(Grade::Notes, message).mend(INSTALL)))
}

fn low_space(path: &Path) -> Option<Finding> {
    // Where the file system does not tell there is nothing to say.
    let space = rustix::fs::statvfs(path).ok()?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free >= FREE_BYTES_LEAST {
        return None;
    }
    let message = format!(
        "the disk of {} has only {} MiB left, and the changelog grows with everything that is written while the broker is away",
        path.display(),
        free >> 20
    );
    Some(Finding::new(Grade::Harms, message).mend("make room on it"))
}
