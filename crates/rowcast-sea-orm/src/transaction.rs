//! Whether a connection is inside a transaction.

use std::any::type_name;

use sea_orm::{ConnectionTrait, DatabaseBackend, DatabaseTransaction, DbErr, Statement};

/// A statement that SQLite refuses inside a transaction and that does nothing outside of one.
///
/// SQLite has no function that tells, but it checks `PRAGMA synchronous` against its own transaction flag before anything
/// else, and ignores the pragma for the temporary schema, which has no such setting.
const PROBE: &str = "PRAGMA temp.synchronous = FULL";

/// What SQLite answers inside a transaction.
const ANSWER_INSIDE: &str = "may not be changed inside a transaction";

/// Whether `db` is inside a transaction.
///
/// SeaORM's hooks receive `C: ConnectionTrait`, which cannot say what it is: no method of it or of `TransactionTrait` tells, and
/// `Any` needs `'static`. What is left is the type's name, which settles the ordinary case without a statement, and the
/// database itself for all others: a `DatabaseExecutor` may be either, and so may an application's own wrapper. A name that is
/// not recognised costs a statement, never a change. Asking always would cost a third of an insert, and would find one thing more: a
/// `DatabaseTransaction` that SQLite itself has rolled back (a full disk, `RAISE(ROLLBACK)`) and whose owner carries on after that
/// error; its commit fails.
pub(crate) async fn is_open<C: ConnectionTrait>(db: &C) -> Result<bool, DbErr> {
    if type_name::<C>() == type_name::<DatabaseTransaction>() {
        return Ok(true);
    }
    match db.get_database_backend() {
        DatabaseBackend::Postgres => ask_postgres(db).await,
        _ => ask_sqlite(db).await,
    }
}

/// A setting that is made for a transaction alone is still there for its next statement, and gone where there is no transaction. Nothing
/// else tells without an error, whose words depend on the server's language, and after which a transaction is of no use.
async fn ask_postgres<C: ConnectionTrait>(db: &C) -> Result<bool, DbErr> {
    let ask = |sql: &str| Statement::from_string(DatabaseBackend::Postgres, sql);
    db.query_one_raw(ask("SELECT set_config('rowcast.transaction', 'open', true)")).await?;
    let row = db.query_one_raw(ask("SELECT coalesce(current_setting('rowcast.transaction', true), '') = 'open'")).await?;
    row.map_or(Ok(false), |row| row.try_get_by_index(0))
}

/// Reads nothing, so a transaction that has not begun to read does not begin now: one that reads before it writes can fail where
/// one that only writes would wait for its turn.
///
/// Should a SQLite ever answer otherwise, that means "no transaction", and the change is refused.
async fn ask_sqlite<C: ConnectionTrait>(db: &C) -> Result<bool, DbErr> {
    // Unprepared, because the check is made when the statement is compiled: a cached one would repeat the answer of its first use.
    match db.execute_unprepared(PROBE).await {
        Ok(_) => Ok(false),
        Err(error) if error.to_string().contains(ANSWER_INSIDE) => Ok(true),
        Err(error) => Err(error),
    }
}
