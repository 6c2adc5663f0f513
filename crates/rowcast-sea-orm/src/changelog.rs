//! The rows of rowcast's changelog: one for every change of a row that hooks see.
//!
//! A changelog row names a key. What the row behind it is now is read when it is shipped, so the order of the two statements inside their
//! transaction does not matter, only that there is one transaction.

use sea_orm::{ConnectionTrait, DatabaseBackend, DbErr, EntityTrait, IdenStatic, Iterable, PrimaryKeyToColumn, Value};

use crate::{postgres, sqlite};

/// How many keys one statement records: with four columns each, far below the 32,766 variables that SQLite takes and the 65,535 of
/// PostgreSQL.
const KEYS_A_STATEMENT: usize = 1_000;

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The row is new.
    Insert,
    /// The row has other values than before.
    Update,
    /// The row is about to go, in the same transaction.
    Delete,
}

impl Operation {
    /// As the changelog spells it.
    pub(crate) fn letter(self) -> &'static str {
        match self {
            Operation::Insert => "I",
            Operation::Update => "U",
            Operation::Delete => "D",
        }
    }
}

/// Refuses an entity whose changes could not be recorded: before its row is written.
pub(crate) fn check<E: EntityTrait, C: ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    match db.get_database_backend() {
        DatabaseBackend::Sqlite => sqlite::check::<E>(),
        DatabaseBackend::Postgres => Ok(()),
        other => Err(DbErr::Custom(format!(
            "{}: rowcast's hooks write a changelog in SQLite or PostgreSQL, and this is {}; remove rowcast_sea_orm::hooks! from the entity",
            table::<E>(),
            other.as_str()
        ))),
    }
}

/// Writes the changelog rows of some changes, unless triggers do. Each key holds the primary key's columns in order.
pub(crate) async fn append<E: EntityTrait, C: ConnectionTrait>(db: &C, operation: Operation, keys: &[Vec<Value>]) -> Result<(), DbErr> {
    for keys in keys.chunks(KEYS_A_STATEMENT) {
        match db.get_database_backend() {
            DatabaseBackend::Postgres => postgres::append::<E, C>(db, operation, keys).await?,
            _ => sqlite::append::<E, C>(db, operation, keys).await?,
        }
    }
    Ok(())
}

/// Whether triggers record the changes of this table, so that hooks have nothing to do.
pub(crate) async fn recorded_by_triggers<E: EntityTrait, C: ConnectionTrait>(db: &C) -> Result<bool, DbErr> {
    match db.get_database_backend() {
        DatabaseBackend::Postgres => Ok(false),
        _ => Ok(sqlite::capture::<E, C>(db).await? == Some(sqlite::Capture::Triggers)),
    }
}

/// The entity's key columns in its own order.
pub(crate) fn key_columns<E: EntityTrait>() -> Vec<&'static str> {
    E::PrimaryKey::iter().map(|part| part.into_column().as_str()).collect()
}

/// That the table's key is another one.
pub(crate) fn another_key<E: EntityTrait>(declared: &str, same: &str) -> DbErr {
    let (table, entity) = (table::<E>(), key_columns::<E>().join(","));
    DbErr::Custom(format!(
        "{table}: the entity's primary key is ({entity}) and the table's is ({declared}), so rowcast would take one row for another; \
         give the entity the {same}, or remove rowcast_sea_orm::hooks! from it and let rowcast record the table without hooks (rowcast install)"
    ))
}

/// The entity's table, for errors.
pub(crate) fn table<E: EntityTrait>() -> String {
    E::default().table_name().to_owned()
}
