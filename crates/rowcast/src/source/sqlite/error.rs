//! What SQLite's errors mean for the publisher: wait, begin anew, or somebody has to act.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::ErrorCode;

use super::super::Error;
use crate::finding::Setting;

/// Something went wrong inside the source, before it is known what that means.
#[derive(Debug)]
pub(super) enum Failure {
    /// SQLite said so.
    Sqlite(rusqlite::Error),
    /// It is known what it means.
    Known(Error),
    /// A setting of a table does not fit the database.
    Misfit(Setting, String),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Failure {
        Failure::Sqlite(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Known(error)
    }
}

impl Failure {
    /// Whether somebody else holds a lock, so that it may pass by itself.
    pub(super) fn is_lock(&self) -> bool {
        matches!(
            self,
            Failure::Sqlite(rusqlite::Error::SqliteFailure(error, _))
                if matches!(error.code, ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed)
        )
    }

    /// What it means; `doing` goes on after "while".
    pub(super) fn explain(self, path: &Path, doing: &str) -> Error {
        let lock = self.is_lock();
        let error = match self {
            Failure::Known(error) => return error,
            Failure::Misfit(_, text) => return Error::Fatal(text),
            Failure::Sqlite(error) => error,
        };
        let code = error.sqlite_error_code();
        if matches!(code, Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied)) {
            return read_only(path, doing);
        }
        let path = path.display();
        match code {
            _ if lock => Error::Busy(format!(
                "{path} has been locked for too long while {doing}; another program keeps a transaction open, which has to end"
            )),
            Some(ErrorCode::DiskFull) => Error::Busy(format!("the disk of {path} is full while {doing}; make room on it")),
            Some(ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Error::Busy(format!(
                "{path} cannot be read while {doing} ({error}); if it is being replaced this passes, else restore it from a backup"
            )),
            Some(ErrorCode::CannotOpen) => Error::Busy(format!(
                "{path} cannot be opened while {doing} ({error}); if it is being replaced this passes, else give rowcast read and write \
                 permission on the file and its folder"
            )),
            Some(ErrorCode::SchemaChanged) => Error::Changed(format!("the schema of {path} changed while {doing}")),
            _ => Error::Fatal(format!("SQLite refused while {doing} on {path}: {error}")),
        }
    }
}

/// The file may only be read.
pub(super) fn read_only(path: &Path, doing: &str) -> Error {
    Error::Fatal(format!("{} cannot be written while {doing}; give rowcast write permission on the file and its folder", path.display()))
}

/// How long to wait before a lock is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Does it again while somebody else holds a lock, for `patience` at most.
pub(super) fn patiently<T>(patience: Duration, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(failure) if failure.is_lock() && begun.elapsed() < patience => std::thread::sleep(LOOK_AGAIN),
            outcome => return outcome,
        }
    }
}
