//! The rows of `rowcast_changelog`: one for every change of a row that hooks see.
//!
//! A changelog row names a key, in its native type. What the row behind it is now is read when it is shipped, so the order of the
//! two statements inside their transaction does not matter, only that there is one transaction.

use sea_orm::sea_query::{Alias, Cond, Expr, ExprTrait, Func, JoinType, Query, ValueTuple};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseBackend, DbErr, EntityTrait, IdenStatic, Iterable, PrimaryKeyToColumn, Statement, Value,
};

use crate::install::missing;

/// How many key columns a changelog row has room for.
const KEY_COLUMNS: [&str; 4] = ["v1", "v2", "v3", "v4"];

/// Statement time in milliseconds, written as the triggers write it.
const NOW_MS: &str = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)";

/// How many keys one statement records: with four columns each, far below the 32,766 variables that SQLite takes.
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
    fn letter(self) -> &'static str {
        match self {
            Operation::Insert => "I",
            Operation::Update => "U",
            Operation::Delete => "D",
        }
    }
}

/// Who records the changes of a table.
#[derive(Debug, PartialEq)]
pub(crate) enum Capture {
    Hooks,
    Triggers,
}

/// Refuses an entity whose changes could not be recorded: before its row is written.
pub(crate) fn check<E: EntityTrait, C: ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    let table = table::<E>();
    let backend = db.get_database_backend();
    if backend != DatabaseBackend::Sqlite {
        let message = format!(
            "{table}: rowcast's hooks write a changelog in SQLite, and this is {}, whose own log rowcast reads; remove \
             rowcast_sea_orm::hooks! from the entity",
            backend.as_str()
        );
        return Err(DbErr::Custom(message));
    }
    if let Some(schema) = E::default().schema_name()
        && !schema.eq_ignore_ascii_case("main")
    {
        let message = format!(
            "{table}: the table is in the attached database {schema:?}, which cannot share a transaction with the changelog; \
             open that file as a database of its own, or remove rowcast_sea_orm::hooks! from the entity"
        );
        return Err(DbErr::Custom(message));
    }
    let columns = E::PrimaryKey::iter().count();
    if columns == 0 || columns > KEY_COLUMNS.len() {
        let message = format!(
            "{table}: the primary key has {columns} columns, and rowcast's changelog has room for 1 to {}; remove \
             rowcast_sea_orm::hooks! from the entity",
            KEY_COLUMNS.len()
        );
        return Err(DbErr::Custom(message));
    }
    Ok(())
}

/// Writes the changelog rows of some changes, unless triggers do. Each key holds the primary key's columns in order.
pub(crate) async fn append<E: EntityTrait, C: ConnectionTrait>(db: &C, operation: Operation, keys: &[Vec<Value>]) -> Result<(), DbErr> {
    for keys in keys.chunks(KEYS_A_STATEMENT) {
        append_some::<E, C>(db, operation, keys).await?;
    }
    Ok(())
}

async fn append_some<E: EntityTrait, C: ConnectionTrait>(db: &C, operation: Operation, keys: &[Vec<Value>]) -> Result<(), DbErr> {
    if write::<E, C>(db, operation, keys).await? {
        return Ok(());
    }
    match capture::<E, C>(db).await? {
        Some(Capture::Triggers) => return Ok(()),
        Some(Capture::Hooks) => {}
        None => register::<E, C>(db).await?,
    }
    if write::<E, C>(db, operation, keys).await? {
        return Ok(());
    }
    let (table, entity, declared) = (table::<E>(), key_columns::<E>(), declared_key::<E, C>(db).await?);
    Err(DbErr::Custom(format!(
        "{table}: the entity's primary key is ({entity}) and the table's is ({declared}), so rowcast would take one row for another; \
         give the entity the same columns in the same order, or remove rowcast_sea_orm::hooks! from it and let triggers record \
         the table (rowcast install)"
    )))
}

/// The entity's key columns in its own order.
fn key_columns<E: EntityTrait>() -> String {
    E::PrimaryKey::iter().map(|part| part.into_column().as_str().to_owned()).collect::<Vec<_>>().join(",")
}

/// The key columns in the order in which the table declares them, which is the order in which rowcast reads them.
const DECLARED_KEY: &str = "(SELECT group_concat(name, ',') FROM (SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk))";

async fn declared_key<E: EntityTrait, C: ConnectionTrait>(db: &C) -> Result<String, DbErr> {
    let sql = format!("SELECT {DECLARED_KEY}");
    let statement = Statement::from_sql_and_values(DatabaseBackend::Sqlite, sql, [E::default().table_name().into()]);
    let row = db.query_one_raw(statement).await?;
    Ok(row.map(|row| row.try_get_by_index::<Option<String>>(0)).transpose()?.flatten().unwrap_or_default())
}

/// Who records the changes of this table; `None` if it was never registered.
pub(crate) async fn capture<E: EntityTrait, C: ConnectionTrait>(db: &C) -> Result<Option<Capture>, DbErr> {
    let sql = "SELECT capture FROM rowcast_table WHERE name = ? COLLATE NOCASE";
    let statement = Statement::from_sql_and_values(DatabaseBackend::Sqlite, sql, [E::default().table_name().into()]);
    let Some(row) = db.query_one_raw(statement).await.map_err(|error| missing(&table::<E>(), error))? else {
        return Ok(None);
    };
    match row.try_get_by_index::<String>(0)?.as_str() {
        "hooks" => Ok(Some(Capture::Hooks)),
        "triggers" => Ok(Some(Capture::Triggers)),
        other => Err(DbErr::Custom(format!(
            "{}: rowcast_table says that its changes are recorded by {other:?}, which this version of rowcast-sea-orm does not know",
            table::<E>()
        ))),
    }
}

/// Whether rows were written. They are not if the table is unregistered or recorded by triggers, or if its key is not the entity's.
///
/// A key is taken from the row itself where there is one: the database may hold it in another type, or in other letters, than
/// the application named it by (`'7'` in an integer column, `'a'` under NOCASE), and rowcast compares keys byte for byte.
async fn write<E: EntityTrait, C: ConnectionTrait>(db: &C, operation: Operation, keys: &[Vec<Value>]) -> Result<bool, DbErr> {
    let [registry, given, name, number] = ["rowcast_table", "rowcast_given", "name", "number"].map(Alias::new);
    let mut columns = vec!["tbl", "op", "at"];
    let mut same_row = Cond::all();
    let mut select = Query::select();
    select.expr(Expr::col((registry.clone(), number))).expr(Expr::val(operation.letter())).expr(Expr::cust(NOW_MS));
    for (index, (part, column)) in E::PrimaryKey::iter().zip(KEY_COLUMNS).enumerate() {
        let of_row = Expr::col(part.into_column().as_column_ref());
        // What SQLite calls the columns of VALUES.
        let as_given = Expr::col((given.clone(), Alias::new(format!("column{}", index + 1))));
        // The row's column stands on the left, whose collation decides.
        same_row = same_row.add(of_row.clone().eq(as_given.clone()));
        select.expr(Func::coalesce([of_row, as_given]));
        columns.push(column);
    }
    select
        .from(registry.clone())
        .from_values(keys.iter().cloned().map(ValueTuple::Many), given)
        .join(JoinType::LeftJoin, E::default().table_ref(), same_row)
        .and_where(Expr::col((registry.clone(), name)).eq(Expr::cust_with_values("? COLLATE NOCASE", [E::default().table_name()])))
        .and_where(Expr::col((registry, Alias::new("capture"))).eq("hooks"))
        .and_where(Expr::cust_with_values(
            format!("{DECLARED_KEY} = ? COLLATE NOCASE"),
            [E::default().table_name().to_owned(), key_columns::<E>()],
        ));
    let mut insert = Query::insert();
    insert.into_table(Alias::new("rowcast_changelog")).columns(columns.into_iter().map(Alias::new));
    insert.select_from(select).map_err(|error| DbErr::Custom(error.to_string()))?;
    let written = db.execute(&insert).await.map_err(|error| missing(&table::<E>(), error))?.rows_affected();
    Ok(written > 0)
}

/// Gives the table a number, under the name that the database itself has for it.
async fn register<E: EntityTrait, C: ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    let sql = "INSERT OR IGNORE INTO rowcast_table(name, capture) \
               SELECT name, 'hooks' FROM main.sqlite_master WHERE type = 'table' AND name = ? COLLATE NOCASE";
    let statement = Statement::from_sql_and_values(DatabaseBackend::Sqlite, sql, [E::default().table_name().into()]);
    if db.execute_raw(statement).await?.rows_affected() == 0 {
        let message = format!("{}: rowcast records changes of tables, and the database has no table of this name", table::<E>());
        return Err(DbErr::Custom(message));
    }
    Ok(())
}

/// The entity's table, for errors.
pub(crate) fn table<E: EntityTrait>() -> String {
    E::default().table_name().to_owned()
}
