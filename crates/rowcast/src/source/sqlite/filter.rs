//! `where`: an SQL expression over one row, which the source evaluates when it reads the row.
//!
//! Whether a row matches must follow from the row alone, for only its own changes are seen. SQLite knows which expressions
//! are so: those that it takes in a partial index. It is asked on a database of its own, so that nothing is written anywhere.

use rusqlite::config::DbConfig;
use rusqlite::{CachedStatement, Connection, ffi};

use super::schema::Table;
use super::sql::{self, quoted};
use super::values::Datum;
use crate::mapping::nearest;

/// What a filter says of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The row is cached.
    Matches,
    /// The row is absent from the cache.
    Differs,
    /// SQLite cannot tell, for this reason.
    Fails(String),
}

/// The expression of `text`, without comments; the error is a sentence for the user that goes on after "`where`".
///
/// It is one expression in parentheses that close what they open, so that it can be pasted between parentheses.
pub fn expression(text: &str) -> Result<String, String> {
    let clean = sql::without_comments(text);
    let clean = clean.trim();
    if clean.is_empty() {
        return Err("is empty; leave it out to cache every row".to_owned());
    }
    if !sql::is_closed(text) {
        return Err("has a quotation mark or a comment that is never closed".to_owned());
    }
    let mut depth = 0_i32;
    for sign in sql::signs(clean) {
        match sign {
            '(' => depth += 1,
            ')' => depth -= 1,
            ';' => return Err("is one expression, without a `;`".to_owned()),
            _ => {}
        }
        if depth < 0 {
            return Err("closes a parenthesis that it does not open".to_owned());
        }
    }
    if depth > 0 {
        return Err("opens a parenthesis that it does not close".to_owned());
    }
    Ok(clean.to_owned())
}

/// Checks a filter against its table; the error is a sentence for the user that goes on after "`where`". Returns the statement
/// that takes a primary key and says whether the row matches.
pub(super) fn compile(connection: &Connection, table: &Table, text: &str, by_key: &str) -> Result<String, String> {
    let clean = expression(text)?;
    if let Some(name) = sql::names(&clean).into_iter().map(|token| token.name).find(|name| table.is_hidden_rowid(name)) {
        return Err(format!("uses the row's number {name}, which VACUUM may change; use a column"));
    }
    if let Some(function) = sql::call_of_now(&clean) {
        return Err(format!(
            "asks {function}() for the time now or the local one, so that a row would come or go without a change; compare columns only"
        ));
    }
    try_out(table, &clean).map_err(|error| explain(&error, table))?;
    let name = quoted(&table.name);
    let statement = format!("SELECT ({clean}) IS TRUE FROM {name} WHERE {by_key}");
    // Only the database itself knows the collations of its columns.
    connection.prepare(&statement).map_err(|error| explain(&error, table))?;
    Ok(statement)
}

/// Has SQLite make a partial index of it.
fn try_out(table: &Table, clean: &str) -> rusqlite::Result<()> {
    let scratch = Connection::open_in_memory()?;
    // Else a misspelt name in double quotes would be a text.
    scratch.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    let name = quoted(&table.name);
    let columns: Vec<String> = table.columns.iter().map(|column| quoted(&column.name)).collect();
    scratch.execute_batch(&format!("CREATE TABLE {name}({})", columns.join(", ")))?;
    let first = columns.first().map_or("", String::as_str);
    scratch.execute_batch(&format!("CREATE INDEX rowcast_filter ON {name}({first}) WHERE ({clean})"))
}

/// What SQLite's refusal means for the user. The expression is not shown: something may have been substituted in it.
fn explain(error: &rusqlite::Error, table: &Table) -> String {
    let message = match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        rusqlite::Error::SqliteFailure(_, Some(message)) => message.clone(),
        other => other.to_string(),
    };
    if let Some(column) = message.strip_prefix("no such column: ") {
        // A name in double quotes comes with advice.
        let (column, quoted) =
            column.strip_prefix('"').and_then(|rest| rest.split_once('"')).map_or((column, false), |(name, _)| (name, true));
        let near = nearest(column, table.columns.iter().map(|column| column.name.as_str()));
        let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        let quotes = if quoted { " (a text stands in single quotes)" } else { "" };
        return format!("names the column {column}, which does not exist{quotes}{near}");
    }
    if let Some(function) = message.strip_prefix("no such function: ") {
        return format!("uses the function {function}, which SQLite does not have; functions of the application are not to be had here");
    }
    if let Some(collation) = message.strip_prefix("no such collation sequence: ") {
        return format!(
            "uses the collation {collation}, which only the application has; write COLLATE BINARY, NOCASE or RTRIM behind the column"
        );
    }
    if message.starts_with("subqueries prohibited") {
        return "has a subquery, but a change of other rows would not be seen; use the columns of the row alone".to_owned();
    }
    if message.starts_with("non-deterministic functions prohibited") {
        return "uses a function whose result changes by itself (random, the time now and the like); compare columns only".to_owned();
    }
    if message.starts_with("parameters prohibited") {
        return "has a parameter (? or :name), and nobody gives it a value".to_owned();
    }
    if message.starts_with("misuse of aggregate") || message.starts_with("misuse of window") {
        return format!("looks at many rows ({message}); use the columns of the row alone");
    }
    if message.starts_with("row value misused") {
        return "is one expression, not a list".to_owned();
    }
    if message == "near \")\": syntax error" {
        return "ends before the expression does".to_owned();
    }
    format!("is not an expression that SQLite takes ({message})")
}

/// A filter that is at work, for as long as one snapshot lasts.
pub(super) struct Filter<'c>(CachedStatement<'c>);

impl<'c> Filter<'c> {
    pub(super) fn new(connection: &'c Connection, statement: &str) -> rusqlite::Result<Filter<'c>> {
        connection.prepare_cached(statement).map(Filter)
    }

    /// Looks at the row with this primary key, which must be there.
    pub(super) fn judge(&mut self, key: &[Datum]) -> rusqlite::Result<Verdict> {
        for (place, value) in key.iter().enumerate() {
            self.0.raw_bind_parameter(place + 1, value)?;
        }
        let mut rows = self.0.raw_query();
        match rows.next() {
            Ok(Some(row)) => Ok(if row.get(0)? { Verdict::Matches } else { Verdict::Differs }),
            // Text of UTF-16 that is not whole reads as text that is not there.
            Ok(None) => Ok(Verdict::Fails("its primary key does not find it again; mend the key's text".to_owned())),
            Err(error) if is_of_values(&error) => Ok(Verdict::Fails(failure(&error))),
            Err(error) => Err(error),
        }
    }
}

/// Whether the values of the row are to blame, and not the database.
fn is_of_values(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code & 0xff);
    matches!(code, Some(ffi::SQLITE_ERROR | ffi::SQLITE_TOOBIG | ffi::SQLITE_MISMATCH))
}

fn failure(error: &rusqlite::Error) -> String {
    format!("the filter cannot be evaluated for this row: {error}; mend the row, or write `where` so that it bears such a value")
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;
    use proptest::prelude::*;

    fn compiled(text: &str) -> Result<String, String> {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "CREATE TABLE users(id INTEGER PRIMARY KEY, active INTEGER, \"date\" TEXT, \"a b\" TEXT, doubled AS (active * 2)); CREATE TABLE other(x)",
            )
            .unwrap();
        let table = schema::read(&connection, "users").unwrap().unwrap();
        compile(&connection, &table, text, "\"id\" = ?1")
    }

    #[test]
    fn every_expression_over_the_row_alone_is_taken() {
        for text in [
            "active = 1",
            " (active) AND users.active > 0 -- only these\n",
            "active /* ) ; */ = 1",
            "\"a b\" LIKE 'x;)%'",
            "[a b] GLOB 'x*' OR `date` IS NULL",
            "date(\"date\") >= '2020-01-01'",
            "json_extract(\"a b\", '$.x') = 1",
            "doubled IN (2, 4)",
            "CASE WHEN active THEN abs(active) END",
            "active COLLATE NOCASE = 'x'",
            "TRUE",
        ] {
            assert!(compiled(text).is_ok(), "{text}: {:?}", compiled(text));
        }
    }

    #[test]
    fn what_is_not_one_expression_over_the_row_alone_is_refused_with_the_reason() {
        let refused: Vec<String> = [
            "",
            " -- nothing",
            "active = 'x",
            "active = 1 /* x",
            "1) OR (1",
            "(active",
            "active; DROP TABLE users",
            "actve = 1",
            "\"actve\" = 1",
            "active = (SELECT max(x) FROM other)",
            "active IN other",
            "random() > 0",
            "active > CURRENT_TIMESTAMP",
            "\"date\" > date('now')",
            "active = ?",
            "count(*) > 1",
            "row_number() OVER () = 1",
            "active, id",
            "rowid > 5",
            "frobnicate(active)",
            "active COLLATE klingon = 'x'",
            "active =",
            "active 1",
        ]
        .into_iter()
        .map(|text| format!("{text:?} {}", compiled(text).unwrap_err()))
        .collect();
        insta::assert_snapshot!(refused.join("\n"), @r#"
        "" is empty; leave it out to cache every row
        " -- nothing" is empty; leave it out to cache every row
        "active = 'x" has a quotation mark or a comment that is never closed
        "active = 1 /* x" has a quotation mark or a comment that is never closed
        "1) OR (1" closes a parenthesis that it does not open
        "(active" opens a parenthesis that it does not close
        "active; DROP TABLE users" is one expression, without a `;`
        "actve = 1" names the column actve, which does not exist; did you mean active?
        "\"actve\" = 1" names the column actve, which does not exist (a text stands in single quotes); did you mean active?
        "active = (SELECT max(x) FROM other)" has a subquery, but a change of other rows would not be seen; use the columns of the row alone
        "active IN other" has a subquery, but a change of other rows would not be seen; use the columns of the row alone
        "random() > 0" uses a function whose result changes by itself (random, the time now and the like); compare columns only
        "active > CURRENT_TIMESTAMP" uses a function whose result changes by itself (random, the time now and the like); compare columns only
        "\"date\" > date('now')" asks date() for the time now or the local one, so that a row would come or go without a change; compare columns only
        "active = ?" has a parameter (? or :name), and nobody gives it a value
        "count(*) > 1" looks at many rows (misuse of aggregate function count()); use the columns of the row alone
        "row_number() OVER () = 1" looks at many rows (misuse of window function row_number()); use the columns of the row alone
        "active, id" is one expression, not a list
        "rowid > 5" uses the row's number rowid, which VACUUM may change; use a column
        "frobnicate(active)" uses the function frobnicate, which SQLite does not have; functions of the application are not to be had here
        "active COLLATE klingon = 'x'" uses the collation klingon, which only the application has; write COLLATE BINARY, NOCASE or RTRIM behind the column
        "active =" ends before the expression does
        "active 1" is not an expression that SQLite takes (near "1": syntax error)
        "#);
    }

    #[test]
    fn a_value_that_a_filter_cannot_bear_fails_for_its_row_alone() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "CREATE TABLE t(id INTEGER PRIMARY KEY, n); INSERT INTO t VALUES(1, 1), (2, -9223372036854775808), (3, 0), (4, NULL)",
            )
            .unwrap();
        let table = schema::read(&connection, "t").unwrap().unwrap();
        let statement = compile(&connection, &table, "abs(n)", "id = ?1").unwrap();
        let mut filter = Filter::new(&connection, &statement).unwrap();
        let verdicts: Vec<Verdict> = (1..=4).map(|id| filter.judge(&[Datum::Integer(id)]).unwrap()).collect();
        assert!(
            matches!(&verdicts[..], [Verdict::Matches, Verdict::Fails(reason), Verdict::Differs, Verdict::Differs] if reason.contains("integer overflow")),
            "{verdicts:?}"
        );
        assert!(matches!(filter.judge(&[Datum::Integer(9)]).unwrap(), Verdict::Fails(reason) if reason.contains("does not find it")));
    }

    proptest! {
        #[test]
        fn what_passes_for_an_expression_stays_within_its_parentheses(text in "[a-b0(),;'\"`\\[\\]/*\\- \nédatenow]{0,24}") {
            if let Ok(clean) = expression(&text) {
                sql::call_of_now(&clean);
                // Were it to reach beyond them, the second column would not be one of its own.
                let connection = Connection::open_in_memory().unwrap();
                connection.execute_batch("CREATE TABLE t(a, b)").unwrap();
                if let Ok(statement) = connection.prepare(&format!("SELECT ({clean}), 'x' FROM t")) {
                    prop_assert_eq!(statement.column_count(), 2, "{}", clean);
                }
            }
        }
    }
}
