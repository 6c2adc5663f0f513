//! A changelog row in SQLite, where a table has a number, triggers may record it instead, and a key stands in its native type.

use sea_orm::sea_query::{Alias, Cond, Expr, ExprTrait, Func, JoinType, Query, ValueTuple};
use sea_orm::{ColumnTrait, ConnectionTrait, DatabaseBackend, DbErr, EntityTrait, Iterable, PrimaryKeyToColumn, Statement, Value};

use crate::changelog::{Operation, another_key, key_columns, table};
use crate::install::missing;

/// How many key columns a changelog row has room for.
const KEY_COLUMNS: [&str; 4] = ["v1", "v2", "v3", "v4"];

/// Statement time in milliseconds, written as the triggers write it.
const NOW_MS: &str = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)";

/// Who records the changes of a table.
#[derive(Debug, PartialEq)]
pub(crate) enum Capture {
    Hooks,
    Triggers,
}

/// Why the changes of this entity could not be recorded, if they could not.
pub(crate) fn check<E: EntityTrait>() -> Result<(), DbErr> {
    let table = table::<E>();
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

/// Writes the changelog rows of some changes, unless triggers do.
pub(crate) async fn append<E: EntityTrait, C: ConnectionTrait>(db: &C, operation: Operation, keys: &[Vec<Value>]) -> Result<(), DbErr> {
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
    Err(another_key::<E>(&declared_key::<E, C>(db).await?, "same columns in the same order"))
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
            [E::default().table_name().to_owned(), key_columns::<E>().join(",")],
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
