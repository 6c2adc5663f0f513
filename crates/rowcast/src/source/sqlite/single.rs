//! One row, as it is now: for people who ask, not for the stream.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::super::{Error, SingleRow, SingleRowError};
use super::error::{Failure, patiently};
use super::install::{self, Prepared};
use super::rows::{Lookup, RowReader};
use super::schema::Table;
use super::sql::quoted;
use super::values::{self, Datum};
use super::{SqliteSettings, stream};
use crate::mapping::ColumnType;

/// How long a lock of somebody else is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Finds the row of the table at `table` in the settings by its primary key: a value each column, as it would be typed, or
/// `column=value`.
pub fn single_row(settings: &SqliteSettings, table: usize, key: &[String]) -> Result<SingleRow, SingleRowError> {
    let explain = |failure: Failure| failure.explain(&settings.path, "looking for the row");
    let mut connection = install::open_existing(&settings.path).map_err(explain)?;
    let looked = patiently(PATIENCE, || {
        let transaction = connection.transaction()?;
        let prepared = install::prepare(&transaction, &settings.tables[table], settings.capture)?;
        let key = match typed_key(&prepared.table, key) {
            Ok(key) => key,
            Err(wrong) => return Ok(Err(SingleRowError::Key(wrong))),
        };
        let reader = RowReader::new(&prepared);
        let found = find(&transaction, &prepared, &reader, &key)?;
        let exists = found.is_some();
        let (pk, image) = match found {
            Some(found) => (found.pk, found.image),
            None => (reader.pk(&key), reader.absent(&key)),
        };
        let as_of = match install::is_installed(&transaction)? {
            true => Some((install::lineage(&transaction)?, u64::try_from(stream::newest_id(&transaction)?).unwrap_or(0))),
            false => None,
        };
        Ok(Ok(SingleRow { mapped: prepared.mapped, pk, image, exists, as_of }))
    });
    looked.map_err(explain)?
}

/// How many rows the tables have, in the order of their names here.
pub fn count_rows(path: &Path, tables: &[&str]) -> Result<Vec<u64>, Error> {
    let explain = |failure: Failure| failure.explain(path, "counting rows");
    let mut connection = install::open_existing(path).map_err(explain)?;
    patiently(PATIENCE, || {
        let transaction = connection.transaction()?;
        let count = |table: &&str| {
            let rows: i64 = transaction.query_row(&format!("SELECT count(*) FROM {}", quoted(table)), [], |row| row.get(0))?;
            Ok(u64::try_from(rows).unwrap_or(0))
        };
        tables.iter().map(count).collect()
    })
    .map_err(explain)
}

fn find(connection: &Connection, prepared: &Prepared, reader: &RowReader, key: &[Datum]) -> Result<Option<super::rows::Found>, Failure> {
    let mut lookup = Lookup::new(connection, reader)?;
    if let Some(found) = lookup.by_key(reader, key)? {
        return Ok(Some(found));
    }
    // A column that was declared for nothing in particular keeps what it is given: 7 may stand there as a number or as text.
    let untyped = |(value, kind): (&Datum, ColumnType)| match value {
        Datum::Text(text) if kind == ColumnType::Blob => {
            std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).map(Datum::Integer)
        }
        _ => None,
    };
    let kinds = key_kinds(&prepared.table);
    let again: Vec<Datum> = key.iter().zip(kinds).map(|(value, kind)| untyped((value, kind)).unwrap_or_else(|| value.clone())).collect();
    if again == key { Ok(None) } else { Ok(lookup.by_key(reader, &again)?) }
}

fn key_kinds(table: &Table) -> Vec<ColumnType> {
    let schema = table.mapped();
    let kind = |name: &String| schema.columns.iter().find(|column| column.name == *name).map_or(ColumnType::Text, |column| column.kind);
    schema.primary_key.iter().map(kind).collect()
}

/// The primary key out of what was typed.
fn typed_key(table: &Table, typed: &[String]) -> Result<Vec<Datum>, String> {
    let columns = table.primary_key();
    let wrong = |what: String| match columns.as_slice() {
        [column] => format!("{what}; a row of {} is found by one value, that of {column}", table.name),
        columns => {
            let values: Vec<String> = columns.iter().map(|column| format!("{column}=VALUE")).collect();
            format!("{what}; a row of {} is found by {}", table.name, values.join(" "))
        }
    };
    let mut values: Vec<Option<&str>> = vec![None; columns.len()];
    for (place, text) in typed.iter().enumerate() {
        // What stands before = names a column only if it is one; a value may have = in it.
        let named = text.split_once('=').and_then(|(name, value)| Some((columns.iter().position(|column| *column == name)?, value)));
        let (place, value) = named.unwrap_or((place, text));
        match values.get_mut(place) {
            Some(slot @ None) => *slot = Some(value),
            Some(Some(_)) => return Err(wrong(format!("{} is given twice", columns[place]))),
            None => return Err(wrong(format!("{} values are given", typed.len()))),
        }
    }
    let mut key = Vec::with_capacity(columns.len());
    for ((value, column), kind) in values.into_iter().zip(&columns).zip(key_kinds(table)) {
        let value = value.ok_or_else(|| wrong(format!("{column} is not given")))?;
        let misfit = || match value.split_once('=') {
            Some((name, _)) => wrong(format!("{name} is no column of the key")),
            None => wrong(format!("{column} holds whole numbers, and {value:?} is none")),
        };
        key.push(datum(value, kind).ok_or_else(misfit)?);
    }
    Ok(key)
}

/// `None` where the column cannot hold what was typed.
fn datum(text: &str, kind: ColumnType) -> Option<Datum> {
    let as_text = || Datum::Text(text.as_bytes().to_vec());
    match kind {
        ColumnType::Integer => text.parse().ok().map(Datum::Integer),
        ColumnType::Numeric => {
            let integer = text.parse().ok().map(Datum::Integer);
            let real = || text.parse().ok().filter(|number: &f64| number.is_finite()).map(Datum::Real);
            Some(integer.or_else(real).unwrap_or_else(as_text))
        }
        ColumnType::Text => Some(as_text()),
        ColumnType::Blob => {
            let hex = text.strip_prefix("x'").and_then(|rest| rest.strip_suffix('\'')).and_then(values::read_hex);
            Some(hex.map_or_else(as_text, Datum::Blob))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Image;
    use crate::mapping::TableSettings;

    fn database(sql: &str) -> (tempfile::TempDir, SqliteSettings) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.db");
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let settings = SqliteSettings { tables: vec![TableSettings::new("t")], ..SqliteSettings::new(path, "p") };
        (folder, settings)
    }

    fn look(settings: &SqliteSettings, key: &[&str]) -> Result<(String, Option<String>), String> {
        let key: Vec<String> = key.iter().map(ToString::to_string).collect();
        let found = single_row(settings, 0, &key).map_err(|error| error.to_string())?;
        let json = if let Image::Present { json, .. } = found.image { Some(json) } else { None };
        Ok((found.pk, json))
    }

    #[test]
    fn a_row_is_found_by_what_one_would_type() {
        for (sql, key, row) in [
            ("CREATE TABLE t(id INTEGER PRIMARY KEY, a); INSERT INTO t VALUES(7, 'x')", &["7"][..], r#"{"id":7,"a":"x"}"#),
            ("CREATE TABLE t(id INTEGER PRIMARY KEY, a); INSERT INTO t VALUES(7, 'x')", &["id=7"], r#"{"id":7,"a":"x"}"#),
            ("CREATE TABLE t(k TEXT NOT NULL PRIMARY KEY); INSERT INTO t VALUES('a=b')", &["a=b"], r#"{"k":"a=b"}"#),
            ("CREATE TABLE t(k NUMERIC NOT NULL PRIMARY KEY); INSERT INTO t VALUES(1.5)", &["1.5"], r#"{"k":1.5}"#),
            ("CREATE TABLE t(k BLOB NOT NULL PRIMARY KEY); INSERT INTO t VALUES(x'00ff')", &["x'00ff'"], r#"{"k":"00ff"}"#),
            ("CREATE TABLE t(k NOT NULL PRIMARY KEY); INSERT INTO t VALUES(7)", &["7"], r#"{"k":7}"#),
            (
                "CREATE TABLE t(a TEXT, b INT, PRIMARY KEY(a, b)) WITHOUT ROWID; INSERT INTO t VALUES('x', 2)",
                &["x", "2"],
                r#"{"a":"x","b":2}"#,
            ),
            (
                "CREATE TABLE t(a TEXT, b INT, PRIMARY KEY(a, b)) WITHOUT ROWID; INSERT INTO t VALUES('x', 2)",
                &["b=2", "a=x"],
                r#"{"a":"x","b":2}"#,
            ),
        ] {
            let (_folder, settings) = database(sql);
            assert_eq!(look(&settings, key).unwrap().1.as_deref(), Some(row), "{sql}");
        }
    }

    #[test]
    fn a_row_that_is_not_there_has_its_key_all_the_same() {
        let (_folder, settings) = database("CREATE TABLE t(id INTEGER PRIMARY KEY)");
        assert_eq!(look(&settings, &["7"]), Ok((r#"{"id":7}"#.to_owned(), None)));
    }

    #[test]
    fn what_is_no_key_is_refused_with_the_form_of_one() {
        let (_folder, settings) = database("CREATE TABLE t(id INTEGER PRIMARY KEY)");
        insta::assert_snapshot!(look(&settings, &["foo=1"]).unwrap_err(), @"foo is no column of the key; a row of t is found by one value, that of id");
        insta::assert_snapshot!(look(&settings, &["seven"]).unwrap_err(), @r#"id holds whole numbers, and "seven" is none; a row of t is found by one value, that of id"#);
        insta::assert_snapshot!(look(&settings, &["1", "2"]).unwrap_err(), @"2 values are given; a row of t is found by one value, that of id");
        let (_folder, settings) = database("CREATE TABLE t(a INT, b INT, PRIMARY KEY(a, b)) WITHOUT ROWID");
        insta::assert_snapshot!(look(&settings, &["1"]).unwrap_err(), @"b is not given; a row of t is found by a=VALUE b=VALUE");
        insta::assert_snapshot!(look(&settings, &["1", "a=2"]).unwrap_err(), @"a is given twice; a row of t is found by a=VALUE b=VALUE");
    }

    #[test]
    fn a_row_that_the_filter_leaves_out_is_told_from_one_that_is_not_there() {
        let (_folder, mut settings) = database("CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER); INSERT INTO t VALUES(1, 0), (2, 1)");
        settings.tables[0].filter = Some("a = 1".to_owned());
        let look = |key: &str| {
            let found = single_row(&settings, 0, &[key.to_owned()]).unwrap();
            (found.exists, matches!(found.image, Image::Present { .. }))
        };
        assert_eq!([look("1"), look("2"), look("3")], [(true, false), (true, true), (false, false)]);
    }
}
