//! What a table of SQLite is: its columns, its key, its unique indexes, and why it cannot be used if it cannot.

use rusqlite::{Connection, OptionalExtension};

use super::sql::{self, Token};
use crate::mapping::{ColumnSchema, ColumnType, TableSchema};

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name, as the database spells it.
    pub name: String,
    /// Its declared type.
    pub declared: String,
    /// Whether it never holds NULL.
    pub not_null: bool,
    /// Its default, as SQL.
    pub default: Option<String>,
    /// Whether it is computed from others.
    pub generated: bool,
    /// The collation that plain comparisons use.
    pub collation: String,
}

/// One part of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) what: PartOf,
    pub(super) collation: String,
    pub(super) descending: bool,
}

/// What a part of an index is taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PartOf {
    /// A column, by its place in the table.
    Column(usize),
    /// The text of an expression.
    Expression(String),
}

/// A unique index; of the primary key only where it is not the rowid itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unique {
    pub(super) name: String,
    pub(super) parts: Vec<Part>,
    /// The text after WHERE.
    pub(super) partial: Option<String>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name, as the database spells it.
    pub name: String,
    /// Every column that can be read, in order.
    pub columns: Vec<Column>,
    /// The primary key, in order.
    pub(super) key: Vec<Part>,
    /// Whether the primary key is the rowid.
    pub(super) key_is_rowid: bool,
    /// The name by which a rowid that is not the primary key can be reached.
    pub(super) hidden_rowid: Option<&'static str>,
    /// Unique indexes beside the primary key.
    pub(super) unique: Vec<Unique>,
    /// Whether the silent removal of a row that REPLACE displaces may take along the very row that displaces it.
    pub(super) removal_spreads: bool,
    /// Whether what a foreign key does to other rows may end the statement and leave standing what it did so far: the row itself
    /// has changed then, and no trigger after that comes.
    pub(super) action_may_fail: bool,
    /// The statement that creates it as it is now.
    definition: String,
    strict: bool,
    /// Why it cannot be used, with the remedy.
    pub trouble: Option<String>,
}

const COLLATIONS: [&str; 3] = ["BINARY", "NOCASE", "RTRIM"];
const ROWID_NAMES: [&str; 3] = ["rowid", "_rowid_", "oid"];

/// Whether a name belongs to SQLite or to rowcast itself.
fn is_internal(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("sqlite_") || matches!(name.as_str(), "rowcast_meta" | "rowcast_table" | "rowcast_changelog")
}

/// Every table that an application could mean, in the order of their names.
pub(super) fn names(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement =
        connection.prepare("SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'virtual') ORDER BY name")?;
    let names = statement.query_map([], |row| row.get::<_, String>(0))?;
    names.filter(|name| !name.as_ref().is_ok_and(|name| is_internal(name))).collect()
}

/// Every view, in the order of their names.
pub(super) fn views(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare("SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'view' ORDER BY name")?;
    let names = statement.query_map([], |row| row.get(0))?;
    names.collect()
}

/// Reads what a table is; `None` if there is none of this very name.
pub(super) fn read(connection: &Connection, name: &str) -> rusqlite::Result<Option<Table>> {
    let found = connection
        .query_row(
            "SELECT l.type, l.wr, l.strict, coalesce(s.sql, '') FROM pragma_table_list AS l \
             LEFT JOIN main.sqlite_schema AS s ON s.type IN ('table', 'view') AND s.name = l.name WHERE l.schema = 'main' AND l.name = ?1",
            [name],
            |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?, row.get::<_, bool>(2)?, row.get::<_, String>(3)?)),
        )
        .optional()?;
    let Some((kind, without_rowid, strict, definition)) = found else { return Ok(None) };
    let mut table = Table {
        name: name.to_owned(),
        columns: Vec::new(),
        key: Vec::new(),
        key_is_rowid: false,
        hidden_rowid: None,
        unique: Vec::new(),
        removal_spreads: false,
        action_may_fail: false,
        definition,
        strict,
        trouble: None,
    };
    if is_internal(name) {
        table.trouble = Some("it belongs to SQLite or to rowcast itself; map tables of the application".to_owned());
    } else if kind != "table" {
        table.trouble = Some(match kind.as_str() {
            "view" => "it is a view, which has no rows of its own; map the tables that it reads".to_owned(),
            "virtual" => {
                "it is a virtual table, and SQLite allows no triggers on those; map the ordinary table that it was made from".to_owned()
            }
            _ => format!(
                "it is a {kind} table, which a virtual table (a full-text index, say) keeps its own data in; map the ordinary table that that one was made from"
            ),
        });
    }
    if table.trouble.is_some() {
        return Ok(Some(table));
    }
    let mut key = read_columns(connection, &mut table)?;
    key.sort_unstable();
    let key: Vec<usize> = key.into_iter().map(|(_, column)| column).collect();
    read_indexes(connection, &mut table)?;
    // Without an index of its own the primary key is the rowid; an INTEGER PRIMARY KEY DESC, say, has one.
    table.key_is_rowid = table.key.is_empty() && !without_rowid && key.len() == 1;
    if table.key_is_rowid {
        table.columns[key[0]].not_null = true;
        table.key = vec![Part { what: PartOf::Column(key[0]), collation: "BINARY".to_owned(), descending: false }];
    } else if !without_rowid {
        table.hidden_rowid = ROWID_NAMES.into_iter().find(|rowid| table.columns.iter().all(|c| !c.name.eq_ignore_ascii_case(rowid)));
    }
    table.removal_spreads = removal_spreads(connection, name)?;
    table.action_may_fail = action_may_fail(connection, name)?;
    table.trouble = trouble(&table, without_rowid);
    Ok(Some(table))
}

/// Somebody's foreign key does something when a row of the table goes, and a row of the table may go, or get another key, by a
/// foreign key or by a trigger of the application.
fn removal_spreads(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    connection.query_row(
        "SELECT EXISTS (SELECT * FROM pragma_table_list AS t, pragma_foreign_key_list(t.name, 'main') AS f \
                        WHERE t.schema = 'main' AND t.type = 'table' AND f.\"table\" = ?1 COLLATE NOCASE \
                          AND f.on_delete NOT IN ('NO ACTION', 'RESTRICT')) \
            AND (EXISTS (SELECT * FROM pragma_foreign_key_list(?1, 'main') AS f \
                         WHERE f.on_delete = 'CASCADE' \
                            OR (f.on_delete NOT IN ('NO ACTION', 'RESTRICT') OR f.on_update NOT IN ('NO ACTION', 'RESTRICT')) \
                           AND f.\"from\" COLLATE NOCASE IN (SELECT name FROM pragma_table_xinfo(?1, 'main') WHERE pk > 0)) \
                 OR EXISTS (SELECT * FROM main.sqlite_schema WHERE type = 'trigger' AND name NOT GLOB 'rowcast_[0-9]*'))",
        [name],
        |row| row.get(0),
    )
}

/// Somebody's foreign key does something when a row of the table goes or changes, the application has triggers that it may set
/// off, and something in the schema fails without undoing: a trigger by RAISE(FAIL), or any constraint that such a trigger meets.
fn action_may_fail(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    connection.query_row(
        "SELECT EXISTS (SELECT * FROM pragma_table_list AS t, pragma_foreign_key_list(t.name, 'main') AS f \
                        WHERE t.schema = 'main' AND t.type = 'table' AND f.\"table\" = ?1 COLLATE NOCASE \
                          AND (f.on_delete NOT IN ('NO ACTION', 'RESTRICT') OR f.on_update NOT IN ('NO ACTION', 'RESTRICT'))) \
            AND EXISTS (SELECT * FROM main.sqlite_schema WHERE type = 'trigger' AND name NOT GLOB 'rowcast_[0-9]*') \
            AND EXISTS (SELECT * FROM main.sqlite_schema WHERE name NOT GLOB 'rowcast_[0-9]*' AND sql LIKE '%fail%')",
        [name],
        |row| row.get(0),
    )
}

/// Reads the columns, and returns the primary key's as (place in the key, place in the table).
fn read_columns(connection: &Connection, table: &mut Table) -> rusqlite::Result<Vec<(i64, usize)>> {
    let mut statement = connection.prepare("SELECT name, type, \"notnull\", dflt_value, pk, hidden FROM pragma_table_xinfo(?1, 'main')")?;
    let mut rows = statement.query([&table.name])?;
    let mut key = Vec::new();
    while let Some(row) = rows.next()? {
        let hidden: i64 = row.get(5)?;
        let name: String = row.get(0)?;
        let (_, collation, ..) = connection.column_metadata(Some("main"), table.name.as_str(), name.as_str())?;
        let collation = collation.map_or("BINARY".into(), |collation| collation.to_string_lossy().to_uppercase());
        if row.get::<_, i64>(4)? > 0 {
            key.push((row.get(4)?, table.columns.len()));
        }
        table.columns.push(Column {
            name,
            declared: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
            not_null: row.get(2)?,
            default: row.get(3)?,
            generated: hidden == 2 || hidden == 3,
            collation,
        });
    }
    Ok(key)
}

fn read_indexes(connection: &Connection, table: &mut Table) -> rusqlite::Result<()> {
    let mut list = connection.prepare(
        "SELECT l.name, l.origin, l.partial, s.sql FROM pragma_index_list(?1, 'main') AS l \
         LEFT JOIN main.sqlite_schema AS s ON s.type = 'index' AND s.name = l.name WHERE l.\"unique\" ORDER BY l.name",
    )?;
    let mut indexes = list.query([&table.name])?;
    while let Some(index) = indexes.next()? {
        let name: String = index.get(0)?;
        let text: Option<String> = index.get(3)?;
        let (texts, partial) = text.as_deref().map(sql::split_create_index).unwrap_or_default();
        let mut info = connection.prepare("SELECT cid, coll, \"desc\" FROM pragma_index_xinfo(?1, 'main') WHERE key ORDER BY seqno")?;
        let mut rows = info.query([&name])?;
        let mut parts = Vec::new();
        while let Some(row) = rows.next()? {
            let what = match row.get::<_, i64>(0)? {
                // -1 is the rowid, which no CREATE INDEX can name, -2 an expression.
                cid if cid < 0 => PartOf::Expression(texts.get(parts.len()).cloned().unwrap_or_default()),
                cid => PartOf::Column(usize::try_from(cid).unwrap_or(usize::MAX)),
            };
            let collation = row.get::<_, Option<String>>(1)?.unwrap_or_else(|| "BINARY".to_owned()).to_uppercase();
            parts.push(Part { what, collation, descending: row.get(2)? });
        }
        if index.get::<_, String>(1)? == "pk" {
            table.key = parts;
        } else {
            table.unique.push(Unique { name, parts, partial: if index.get(2)? { Some(partial.unwrap_or_default()) } else { None } });
        }
    }
    Ok(())
}

/// Why the table cannot be used: what the triggers cannot get right is refused, never guessed.
fn trouble(table: &Table, without_rowid: bool) -> Option<String> {
    if table.name.eq_ignore_ascii_case("new") || table.name.eq_ignore_ascii_case("old") {
        return Some("its name is what triggers call a row; rename it".to_owned());
    }
    if table.key.is_empty() {
        return Some("it has no primary key, so its rows cannot be told apart; give it one".to_owned());
    }
    for part in &table.key {
        let PartOf::Column(column) = part.what else { return Some("its primary key is not made of columns".to_owned()) };
        let column = &table.columns[column];
        if !without_rowid && !column.not_null {
            return Some(format!(
                "its primary key column {} may be NULL in several rows (SQLite allows that where it is not INTEGER PRIMARY KEY); \
                 declare it NOT NULL",
                column.name
            ));
        }
    }
    let all = table.unique.iter().map(|unique| (unique.name.as_str(), &unique.parts)).chain([("of the primary key", &table.key)]);
    for (name, parts) in all {
        if let Some(part) = parts.iter().find(|part| !COLLATIONS.contains(&part.collation.as_str())) {
            return Some(format!(
                "its unique index {name} uses the collation {}, which only the application has; use BINARY, NOCASE or RTRIM",
                part.collation
            ));
        }
        for part in parts {
            let PartOf::Column(column) = part.what else { continue };
            let column = &table.columns[column];
            if column.generated {
                return Some(format!(
                    "its unique index {name} is over the generated column {0}; make it a unique index over the expression that {0} is computed by, which does the same",
                    column.name
                ));
            }
            if column.not_null && column.default.as_deref().is_some_and(|default| default.to_ascii_lowercase().contains("random")) {
                return Some(format!(
                    "the default of {} in its unique index {name} is random, so that nobody can tell which row a REPLACE would displace; \
                     drop the default or the index",
                    column.name
                ));
            }
        }
    }
    table.unique.iter().find_map(|unique| expression_trouble(table, unique))
}

fn expression_trouble(table: &Table, unique: &Unique) -> Option<String> {
    let expressions = unique.parts.iter().filter_map(|part| match &part.what {
        PartOf::Expression(text) => Some(text.as_str()),
        PartOf::Column(_) => None,
    });
    for text in expressions.chain(unique.partial.as_deref()) {
        if text.trim().is_empty() {
            return Some(format!("the text of its unique index {} could not be read; make it an ordinary index", unique.name));
        }
        for Token { name, .. } in sql::names(text) {
            if table.columns.iter().any(|column| column.generated && column.name.eq_ignore_ascii_case(&name)) {
                return Some(format!(
                    "its unique index {} uses the generated column {name}; put the expression that {name} is computed by in its place, which does the same",
                    unique.name
                ));
            }
            // SQLite has not chosen the number of a new row when the triggers look at it.
            let number = table.key_is_rowid && table.is_key_column(&name);
            if number || table.is_hidden_rowid(&name) {
                return Some(format!(
                    "its unique index {} uses the row's own number {name} in an expression; make it an ordinary index",
                    unique.name
                ));
            }
        }
    }
    None
}

impl Table {
    fn has_column(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column.name.eq_ignore_ascii_case(name))
    }

    /// Whether the name stands for the row's number, which is no column of this table.
    pub(super) fn is_hidden_rowid(&self, name: &str) -> bool {
        ROWID_NAMES.iter().any(|rowid| name.eq_ignore_ascii_case(rowid)) && !self.has_column(name)
    }

    fn is_key_column(&self, name: &str) -> bool {
        self.key_columns().any(|column| self.columns[column].name.eq_ignore_ascii_case(name))
    }

    /// The primary key's columns, in order, by their places in the table.
    pub(super) fn key_columns(&self) -> impl Iterator<Item = usize> {
        self.key.iter().filter_map(|part| match part.what {
            PartOf::Column(column) => Some(column),
            PartOf::Expression(_) => None,
        })
    }

    /// The primary key's columns, in order.
    pub fn primary_key(&self) -> Vec<&str> {
        self.key_columns().map(|column| self.columns[column].name.as_str()).collect()
    }

    /// Whether equal values of the column are equal in type and bytes too.
    pub(super) fn equal_is_same(&self, part: &Part) -> bool {
        let PartOf::Column(column) = part.what else { return false };
        part.collation == "BINARY" && affinity(&self.columns[column].declared, self.strict) != Affinity::Blob
    }

    /// What mapping may expect of the table.
    pub fn mapped(&self) -> TableSchema {
        let name = |column: usize| self.columns[column].name.clone();
        let columns = self.columns.iter().enumerate().map(|(place, column)| ColumnSchema {
            name: column.name.clone(),
            kind: self.kind(place),
            declared: column.declared.clone(),
        });
        let mut unique = vec![self.key_columns().map(name).collect::<Vec<_>>()];
        unique.extend(self.unique.iter().filter(|unique| self.tells_rows_apart(unique)).map(|unique| {
            unique.parts.iter().filter_map(|part| if let PartOf::Column(column) = part.what { Some(name(column)) } else { None }).collect()
        }));
        let definition = self.definition.clone();
        TableSchema { columns: columns.collect(), primary_key: self.key_columns().map(name).collect(), unique, definition }
    }

    /// Whether no two rows agree in all columns of the index, and rows are found by it.
    fn tells_rows_apart(&self, unique: &Unique) -> bool {
        unique.partial.is_none()
            && unique
                .parts
                .iter()
                .all(|part| part.collation == "BINARY" && matches!(part.what, PartOf::Column(column) if self.columns[column].not_null))
    }

    /// A unique index that lies within `columns` and by which rows are found.
    pub(super) fn unique_within(&self, columns: &[usize]) -> Option<&[Part]> {
        let within = |parts: &[Part]| parts.iter().all(|part| matches!(part.what, PartOf::Column(column) if columns.contains(&column)));
        if within(&self.key) {
            return Some(&self.key);
        }
        self.unique.iter().find(|unique| self.tells_rows_apart(unique) && within(&unique.parts)).map(|unique| unique.parts.as_slice())
    }

    fn kind(&self, column: usize) -> ColumnType {
        let declared = &self.columns[column].declared;
        let whole = self.strict && (declared.eq_ignore_ascii_case("INTEGER") || declared.eq_ignore_ascii_case("INT"));
        if whole || self.key_is_rowid && self.key_columns().any(|key| key == column) {
            return ColumnType::Integer;
        }
        match affinity(declared, self.strict) {
            Affinity::Text => ColumnType::Text,
            Affinity::Blob => ColumnType::Blob,
            Affinity::Numeric => ColumnType::Numeric,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Affinity {
    Text,
    Blob,
    Numeric,
}

/// SQLite's own rules, in their order.
fn affinity(declared: &str, strict: bool) -> Affinity {
    let declared = declared.to_ascii_uppercase();
    let has = |part: &str| declared.contains(part);
    if strict && declared == "ANY" || declared.is_empty() {
        Affinity::Blob
    } else if has("INT") {
        Affinity::Numeric
    } else if has("CHAR") || has("CLOB") || has("TEXT") {
        Affinity::Text
    } else if has("BLOB") {
        Affinity::Blob
    } else {
        Affinity::Numeric
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(sql: &str, name: &str) -> Table {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(sql).unwrap();
        read(&connection, name).unwrap().unwrap()
    }

    #[test]
    fn what_cannot_be_followed_is_refused_by_name_with_a_remedy() {
        for (sql, name, said) in [
            ("CREATE TABLE t(a)", "t", "no primary key"),
            ("CREATE TABLE t(a TEXT PRIMARY KEY)", "t", "NOT NULL"),
            ("CREATE TABLE t(a INTEGER PRIMARY KEY DESC)", "t", "NOT NULL"),
            ("CREATE TABLE t(a INTEGER PRIMARY KEY); CREATE VIEW v AS SELECT * FROM t", "v", "a view"),
            ("CREATE TABLE t(id INTEGER PRIMARY KEY, a); CREATE UNIQUE INDEX i ON t(a + id)", "t", "own number id"),
            ("CREATE TABLE t(id INTEGER PRIMARY KEY, a); CREATE UNIQUE INDEX i ON t(a) WHERE \"id\" > 5", "t", "own number id"),
            ("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b AS (a + 1)); CREATE UNIQUE INDEX i ON t(b)", "t", "generated column b"),
            ("CREATE TABLE t(id INTEGER PRIMARY KEY, a, b AS (a + 1)); CREATE UNIQUE INDEX i ON t(abs(b))", "t", "generated column b"),
            ("CREATE TABLE t(id INTEGER PRIMARY KEY, a NOT NULL DEFAULT (random()) UNIQUE)", "t", "random"),
            ("CREATE TABLE \"new\"(id INTEGER PRIMARY KEY)", "new", "rename"),
            ("CREATE TABLE t(id INTEGER PRIMARY KEY); CREATE TABLE n(a)", "n", "no primary key"),
            ("CREATE VIRTUAL TABLE f USING fts5(words)", "f", "map the ordinary table"),
            ("CREATE VIRTUAL TABLE f USING fts5(words)", "f_content", "full-text"),
            ("CREATE VIRTUAL TABLE r USING rtree(id, a, b)", "r", "virtual table"),
            ("CREATE VIRTUAL TABLE r USING rtree(id, a, b)", "r_node", "shadow"),
            ("CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT)", "sqlite_sequence", "belongs to SQLite"),
        ] {
            let trouble = table(sql, name).trouble.expect(sql);
            assert!(trouble.contains(said), "{sql}: {trouble}");
        }
    }

    #[test]
    fn whole_numbers_are_only_what_can_hold_nothing_else() {
        let kinds = |sql: &str| table(sql, "t").mapped().columns.iter().map(|column| column.kind).collect::<Vec<_>>();
        use ColumnType::{Blob, Integer, Numeric, Text};
        assert_eq!(
            kinds("CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, b VARCHAR(9), c, d BLOB, e DOUBLE, f DATE, g AS (a))"),
            [Integer, Numeric, Text, Blob, Blob, Numeric, Numeric, Blob]
        );
        assert_eq!(kinds("CREATE TABLE t(id INT NOT NULL PRIMARY KEY, a ANY) STRICT"), [Integer, Blob]);
        assert_eq!(kinds("CREATE TABLE t(id INTEGER PRIMARY KEY) WITHOUT ROWID"), [Numeric]);
    }

    #[test]
    fn only_what_no_two_rows_share_makes_a_key() {
        let unique = table(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT NOT NULL UNIQUE, b TEXT UNIQUE, c TEXT NOT NULL COLLATE NOCASE UNIQUE, d NOT NULL, e NOT NULL); \
             CREATE UNIQUE INDEX p ON t(d) WHERE e; CREATE UNIQUE INDEX q ON t(d, e); CREATE UNIQUE INDEX r ON t(abs(d))",
            "t",
        )
        .mapped()
        .unique;
        let mut unique: Vec<String> = unique.iter().map(|set| set.join(",")).collect();
        unique.sort();
        assert_eq!(unique, ["a", "d,e", "id"]);
    }
}
