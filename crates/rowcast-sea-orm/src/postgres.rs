//! A changelog row in PostgreSQL: the table by its oid, and the key as a JSON object, in which the text of a value does not depend on the
//! session that writes it (the few types of which that is not so rowcast refuses as keys).

use sea_orm::sea_query::{Alias, Cond, Expr, ExprTrait, Func, JoinType, Query, ValueTuple};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseBackend, DbErr, EntityTrait, IdenStatic, Iterable, PrimaryKeyToColumn, Statement, Value,
};

use crate::changelog::{Operation, another_key, key_columns, table};
use crate::install::missing;

/// Writes the changelog rows of some changes.
///
/// A key is taken from the row itself where there is one: the database may spell it otherwise than the application named it by (`citext`, a
/// collation, `1.00` for 1), and a row that is deleted says it for the last time.
pub(crate) async fn append<E: EntityTrait, C: ConnectionTrait>(db: &C, operation: Operation, keys: &[Vec<Value>]) -> Result<(), DbErr> {
    let given = Alias::new("rowcast_given");
    let (mut same_row, mut of_row, mut as_given) = (Cond::all(), Vec::new(), Vec::new());
    for (index, part) in E::PrimaryKey::iter().enumerate() {
        let column = part.into_column();
        let row = Expr::col(column.as_column_ref());
        // What PostgreSQL calls the columns of VALUES.
        let value = column.save_as(Expr::col((given.clone(), Alias::new(format!("column{}", index + 1)))));
        same_row = same_row.add(row.clone().eq(value.clone()));
        let name = || Expr::cust(literal(column.as_str()));
        of_row.extend([name(), row]);
        as_given.extend([name(), value]);
    }
    let first = E::PrimaryKey::iter().next().map(|part| Expr::col(part.into_column().as_column_ref()));
    let first = first
        .ok_or_else(|| DbErr::Custom(format!("{}: the entity has no primary key; remove rowcast_sea_orm::hooks! from it", table::<E>())))?;
    let object = |fields: Vec<Expr>| Expr::from(Func::cust(Alias::new("json_build_object")).args(fields));
    let key = Expr::case(first.is_not_null(), object(of_row)).finally(object(as_given));
    let mut select = Query::select();
    select
        .expr(Expr::cust(format!("{}::regclass::oid", literal(&relation::<E>()))))
        .expr(Expr::cust(literal(operation.letter())))
        .expr(key)
        .from_values(keys.iter().cloned().map(ValueTuple::Many), given)
        .join(JoinType::LeftJoin, E::default().table_ref(), same_row)
        .and_where(Expr::cust(format!("{} = {}", declared_key::<E>(), literal(&sorted_key::<E>()))));
    let mut insert = Query::insert();
    insert
        .into_table((Alias::new("rowcast"), Alias::new("changelog")))
        .columns(["tbl", "op", "key"].map(Alias::new))
        .select_from(select)
        .map_err(|error| DbErr::Custom(error.to_string()))?;
    let written = db.execute(&insert).await.map_err(|error| missing(&table::<E>(), error))?.rows_affected();
    if written > 0 || keys.is_empty() {
        return Ok(());
    }
    let sql = format!("SELECT coalesce({}, '')", declared_key::<E>());
    let row = db.query_one_raw(Statement::from_string(DatabaseBackend::Postgres, sql)).await?;
    let declared = row.map(|row| row.try_get_by_index::<String>(0)).transpose()?.unwrap_or_default();
    Err(another_key::<E>(&declared, "same columns"))
}

/// The columns of the table's own primary key, by name: rowcast tells the fields of a key by theirs. Those that its index merely includes are
/// none of them, and come last in it.
fn declared_key<E: EntityTrait>() -> String {
    format!(
        "(SELECT string_agg(a.attname::text, ',' ORDER BY a.attname) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a \
         ON a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) WHERE i.indrelid = {}::regclass AND i.indisprimary)",
        literal(&relation::<E>())
    )
}

/// The same of the entity.
fn sorted_key<E: EntityTrait>() -> String {
    let mut columns = key_columns::<E>();
    columns.sort_unstable();
    columns.join(",")
}

/// The table as SQL writes it; without a schema the search path decides, as it does for the entity's own statements.
fn relation<E: EntityTrait>() -> String {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let entity = E::default();
    let schema = entity.schema_name().map(|schema| format!("{}.", quoted(schema))).unwrap_or_default();
    format!("{schema}{}", quoted(entity.table_name()))
}

/// A text of the entity's definition as SQL writes it, whatever `standard_conforming_strings` says.
fn literal(text: &str) -> String {
    let text = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", text.replace('\\', "\\\\")) } else { format!("'{text}'") }
}
