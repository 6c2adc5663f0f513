//! The changelog's tables.

use sea_orm::{
    ConnectionTrait, DatabaseBackend, DbErr, SqliteTransactionMode, Statement, TransactionOptions, TransactionSession, TransactionTrait,
};

/// The form of the changelog that this crate writes.
const FORMAT: i64 = 1;

/// What `rowcast install` creates as well: whichever comes first, the other finds it.
///
/// The changelog has no types or constraints, so that nothing it says can make an application's own statement fail.
const TABLES: [&str; 3] = [
    "CREATE TABLE IF NOT EXISTS rowcast_meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS rowcast_table(number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, capture TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS rowcast_changelog(id INTEGER PRIMARY KEY, tbl, op, at, v1, v2, v3, v4)",
];

/// Which database this is, and which of its histories.
const META: &str = "INSERT OR IGNORE INTO rowcast_meta(name, value) VALUES \
                    ('format', 1), ('database', lower(hex(randomblob(16)))), ('generation', lower(hex(randomblob(16)))), ('forgotten', 0)";

/// Creates the changelog's tables in this SQLite database, in one transaction. What exists is left as it is, so it may be called
/// at every start, beside the application's migrations.
///
/// `rowcast install` creates the same tables; calling either is enough.
pub async fn install<C: ConnectionTrait + TransactionTrait>(db: &C) -> Result<(), DbErr> {
    let backend = db.get_database_backend();
    if backend != DatabaseBackend::Sqlite {
        let message = format!(
            "rowcast needs a changelog in SQLite only, and this is {}, whose own log it reads: nothing to install",
            backend.as_str()
        );
        return Err(DbErr::Custom(message));
    }
    // The write lock first: a transaction that reads before it writes fails at once if another program writes meanwhile.
    let mode = Some(SqliteTransactionMode::Immediate);
    let transaction = db.begin_with_options(TransactionOptions { sqlite_transaction_mode: mode, ..Default::default() }).await?;
    for statement in TABLES {
        transaction.execute_unprepared(statement).await?;
    }
    transaction.execute_unprepared(META).await?;
    check_format(&transaction).await?;
    transaction.commit().await
}

async fn check_format<C: ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    let query = Statement::from_string(DatabaseBackend::Sqlite, "SELECT CAST(value AS TEXT) FROM rowcast_meta WHERE name = 'format'");
    let row =
        db.query_one_raw(query).await?.ok_or_else(|| DbErr::Custom("rowcast_meta has no format, although it was just written".into()))?;
    let format: String = row.try_get_by_index(0)?;
    if format == FORMAT.to_string() {
        return Ok(());
    }
    let message = format!(
        "this database's rowcast changelog has format {format}, and this version of rowcast-sea-orm writes format {FORMAT}: use the \
         rowcast-sea-orm that belongs to the installed rowcast"
    );
    Err(DbErr::Custom(message))
}

/// `error` itself, or what to do where it says that the changelog is not there.
pub(crate) fn missing(table: &str, error: DbErr) -> DbErr {
    let text = error.to_string();
    if !(text.contains("no such table") && text.contains("rowcast_")) {
        return error;
    }
    DbErr::Custom(format!(
        "{table}: the change cannot be recorded, because this database has no rowcast changelog; create it once, with \
         `rowcast install` or rowcast_sea_orm::install(&db).await"
    ))
}
