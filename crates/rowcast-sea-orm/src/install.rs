//! The changelog's tables. `rowcast install` creates the same: whichever comes first, the other finds them.

use sea_orm::{
    ConnectionTrait, DatabaseBackend, DbErr, SqliteTransactionMode, Statement, TransactionOptions, TransactionSession, TransactionTrait,
};

/// The form of the changelog that this crate writes.
const FORMAT: i64 = 1;

/// In SQLite. The changelog has no types or constraints, so that nothing it says can make an application's own statement fail.
const TABLES: [&str; 3] = [
    "CREATE TABLE IF NOT EXISTS rowcast_meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS rowcast_table(number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, capture TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS rowcast_changelog(id INTEGER PRIMARY KEY, tbl, op, at, v1, v2, v3, v4)",
];

/// Which database this is, and which of its histories.
const META: &str = "INSERT OR IGNORE INTO rowcast_meta(name, value) VALUES \
                    ('format', 1), ('database', lower(hex(randomblob(16)))), ('generation', lower(hex(randomblob(16)))), ('forgotten', 0)";

/// Several programs may begin at once, and `IF NOT EXISTS` does not keep two of them apart.
const POSTGRES_LOCK: &str = "SELECT pg_advisory_xact_lock(7811882113245603)";

/// Asked of the catalogue, which everybody may read.
const POSTGRES_THERE: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                              WHERE n.nspname = 'rowcast' AND c.relname = 'changelog')";

/// In PostgreSQL, in a schema of their own.
const POSTGRES: [&str; 5] = [
    "CREATE SCHEMA IF NOT EXISTS rowcast",
    "CREATE TABLE IF NOT EXISTS rowcast.meta(name text PRIMARY KEY, value text NOT NULL)",
    "CREATE TABLE IF NOT EXISTS rowcast.changelog(xid xid8 NOT NULL DEFAULT pg_current_xact_id(), id bigint GENERATED ALWAYS AS IDENTITY, \
     at timestamptz NOT NULL DEFAULT clock_timestamp(), tbl oid NOT NULL, op text NOT NULL, key json NOT NULL, PRIMARY KEY (xid, id)) \
     WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)",
    "CREATE TABLE IF NOT EXISTS rowcast.read(number bigint PRIMARY KEY, snapshot pg_snapshot NOT NULL, file oid NOT NULL, \
     mark text NOT NULL DEFAULT gen_random_uuid()::text, at timestamptz NOT NULL DEFAULT clock_timestamp()) \
     WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000)",
    "INSERT INTO rowcast.meta(name, value) VALUES ('format', '1'), ('generation', gen_random_uuid()::text) ON CONFLICT (name) DO NOTHING",
];

/// Creates the changelog's tables in this database, in one transaction. What exists is left as it is, so it may be called at every start,
/// beside the application's migrations.
///
/// `rowcast install` creates the same tables; calling either is enough. In PostgreSQL whoever creates them owns them: if that is the
/// application, rowcast's own user needs rights on them, and `rowcast check` says which. Where they are there already nothing is created, and
/// the application's user needs no more than what `rowcast install` grants to whoever may write the tables.
pub async fn install<C: ConnectionTrait + TransactionTrait>(db: &C) -> Result<(), DbErr> {
    let backend = db.get_database_backend();
    // In SQLite the write lock first: a transaction that reads before it writes fails at once if another program writes meanwhile.
    let (mode, mut statements) = match backend {
        DatabaseBackend::Sqlite => (Some(SqliteTransactionMode::Immediate), [TABLES.as_slice(), &[META]].concat()),
        DatabaseBackend::Postgres => (None, POSTGRES.to_vec()),
        other => {
            let message = format!("rowcast's changelog can be in SQLite or PostgreSQL, and this is {}: nothing to install", other.as_str());
            return Err(DbErr::Custom(message));
        }
    };
    let transaction = db.begin_with_options(TransactionOptions { sqlite_transaction_mode: mode, ..Default::default() }).await?;
    if backend == DatabaseBackend::Postgres {
        transaction.execute_unprepared(POSTGRES_LOCK).await?;
        if is_there(&transaction).await? {
            statements.clear();
        }
    }
    for statement in statements {
        transaction.execute_unprepared(statement).await?;
    }
    check_format(&transaction).await?;
    transaction.commit().await
}

async fn is_there<C: ConnectionTrait>(db: &C) -> Result<bool, DbErr> {
    let row = db.query_one_raw(Statement::from_string(DatabaseBackend::Postgres, POSTGRES_THERE)).await?;
    row.ok_or_else(|| DbErr::Custom("the database did not say whether it has a rowcast changelog".to_owned()))?.try_get_by_index(0)
}

async fn check_format<C: ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    let backend = db.get_database_backend();
    let table = if backend == DatabaseBackend::Postgres { "rowcast.meta" } else { "rowcast_meta" };
    let query = Statement::from_string(backend, format!("SELECT CAST(value AS TEXT) FROM {table} WHERE name = 'format'"));
    let row = match db.query_one_raw(query).await {
        Err(error) if error.to_string().contains("permission denied") => {
            return Err(DbErr::Custom(format!(
                "rowcast's changelog is there, and this user may not read its format ({error}); run `rowcast install` again, or let its owner \
                 run `GRANT USAGE ON SCHEMA rowcast TO …; GRANT SELECT ON rowcast.meta TO …; GRANT INSERT (tbl, op, key) ON rowcast.changelog \
                 TO …`"
            )));
        }
        found => found?,
    };
    let row = row.ok_or_else(|| {
        DbErr::Custom(format!("{table} has no format: its installation is damaged; run `rowcast uninstall`, then `rowcast install`"))
    })?;
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

/// `error` itself, or what to do where it says that the changelog is not there or not to be used.
pub(crate) fn missing(table: &str, error: DbErr) -> DbErr {
    let text = error.to_string();
    let changelog = ["rowcast_", "rowcast.changelog", "schema rowcast", "table changelog"].iter().any(|name| text.contains(name));
    if changelog && text.contains("permission denied") {
        return DbErr::Custom(format!(
            "{table}: the change cannot be recorded, because this user may not write rowcast's changelog ({text}); run `rowcast install` \
             again, or let its owner run `GRANT USAGE ON SCHEMA rowcast TO …; GRANT INSERT (tbl, op, key) ON rowcast.changelog TO …`"
        ));
    }
    if !(changelog && (text.contains("no such table") || text.contains("does not exist"))) {
        return error;
    }
    DbErr::Custom(format!(
        "{table}: the change cannot be recorded, because this database has no rowcast changelog; create it once, with \
         `rowcast install` or rowcast_sea_orm::install(&db).await"
    ))
}
