//! Tables of many shapes, and random statements that hit their unique indexes as often as not.

use rand::prelude::*;
use rand::rngs::StdRng;

/// A table that is followed, and what statements may do to it and beside it.
#[derive(Clone, Debug)]
pub struct Shape {
    pub name: String,
    pub ddl: String,
    /// Executed once triggers of ours are there.
    pub later: String,
    pub table: String,
    pub key: Option<String>,
    pub primary_key: Vec<String>,
    /// Columns that statements name (a hidden rowid too), with the values they try.
    pub columns: Vec<(String, Vec<String>)>,
    /// Statements on other tables.
    pub beside: Vec<String>,
    /// Whether its rows have Redis keys; an untyped key has none that is safe.
    pub has_keys: bool,
}

/// One that was thought of.
struct Fixed {
    name: &'static str,
    ddl: &'static str,
    table: &'static str,
    key: Option<&'static str>,
    primary_key: &'static [&'static str],
    columns: &'static [(&'static str, &'static [&'static str])],
    has_keys: bool,
}

/// Every shape that was thought of.
pub fn shapes() -> Vec<Shape> {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let shape = |fixed: &Fixed| Shape {
        name: fixed.name.to_owned(),
        ddl: fixed.ddl.to_owned(),
        later: String::new(),
        table: fixed.table.to_owned(),
        key: fixed.key.map(str::to_owned),
        primary_key: owned(fixed.primary_key),
        columns: fixed.columns.iter().map(|(name, values)| ((*name).to_owned(), owned(values))).collect(),
        beside: Vec::new(),
        has_keys: fixed.has_keys,
    };
    SHAPES.iter().map(shape).collect()
}

/// The shape of that name.
pub fn shape(name: &str) -> Shape {
    shapes().into_iter().find(|shape| shape.name == name).unwrap_or_else(|| panic!("there is no shape {name}"))
}

const SMALL: &[&str] = &["1", "2", "3", "4", "5", "6"];
const SOME: &[&str] = &["NULL", "1", "2", "3", "4"];
const WORDS: &[&str] = &["'a'", "'A'", "'b'", "'B'", "'c'", "'a '"];
const MAYBE: &[&str] = &["NULL", "'a'", "'A'", "'x'", "'X'", "'b'"];

const SHAPES: &[Fixed] = &[
    Fixed {
        name: "integer key alone",
        ddl: "CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, b TEXT)",
        table: "t",
        key: None,
        primary_key: &["id"],
        columns: &[("id", SMALL), ("a", SOME), ("b", WORDS)],
        has_keys: true,
    },
    Fixed {
        name: "several unique indexes",
        ddl: "CREATE TABLE t(id INTEGER PRIMARY KEY, email TEXT NOT NULL UNIQUE COLLATE NOCASE, a INTEGER UNIQUE, b INTEGER NOT NULL DEFAULT '3' UNIQUE)",
        table: "t",
        key: None,
        primary_key: &["id"],
        columns: &[("id", SMALL), ("email", WORDS), ("a", SOME), ("b", SOME)],
        has_keys: true,
    },
    Fixed {
        name: "text key without case, beside a hidden rowid",
        ddl: "CREATE TABLE t(k TEXT NOT NULL PRIMARY KEY COLLATE NOCASE, a INTEGER)",
        table: "t",
        key: None,
        primary_key: &["k"],
        columns: &[("k", WORDS), ("a", SOME), ("rowid", SMALL)],
        has_keys: true,
    },
    Fixed {
        name: "text key with a default, and a column called rowid",
        ddl: "CREATE TABLE t(k TEXT NOT NULL DEFAULT 'b' PRIMARY KEY, rowid INTEGER)",
        table: "t",
        key: None,
        primary_key: &["k"],
        columns: &[("k", MAYBE), ("rowid", SOME), ("_rowid_", SMALL)],
        has_keys: true,
    },
    Fixed {
        name: "composite key without rowid, descending",
        ddl: "CREATE TABLE t(a INTEGER, b TEXT COLLATE RTRIM, c TEXT UNIQUE, PRIMARY KEY(a, b DESC)) WITHOUT ROWID",
        table: "t",
        key: None,
        primary_key: &["a", "b"],
        columns: &[("a", &["1", "2"]), ("b", WORDS), ("c", MAYBE)],
        has_keys: true,
    },
    Fixed {
        name: "keys from another column",
        ddl: "CREATE TABLE t(id INTEGER PRIMARY KEY, email TEXT NOT NULL UNIQUE, a INTEGER)",
        table: "t",
        key: Some("u:{email}"),
        primary_key: &["id"],
        columns: &[("id", SMALL), ("email", WORDS), ("a", SOME)],
        has_keys: true,
    },
    Fixed {
        name: "keys from the primary key and more",
        ddl: "CREATE TABLE t(k TEXT PRIMARY KEY COLLATE NOCASE, a INTEGER, b TEXT) WITHOUT ROWID",
        table: "t",
        key: Some("u:{k}:{a}"),
        primary_key: &["k"],
        columns: &[("k", WORDS), ("a", SOME), ("b", MAYBE)],
        has_keys: true,
    },
    Fixed {
        name: "keys from a part of the primary key",
        ddl: "CREATE TABLE t(a INTEGER NOT NULL UNIQUE, b TEXT NOT NULL, c INTEGER, PRIMARY KEY(b, a)) WITHOUT ROWID",
        table: "t",
        key: Some("u:{a}"),
        primary_key: &["b", "a"],
        columns: &[("a", SMALL), ("b", MAYBE), ("c", SOME)],
        has_keys: true,
    },
    Fixed {
        name: "more logged values than the changelog has columns for",
        ddl: "CREATE TABLE t(a INT NOT NULL, b INT NOT NULL, c INT NOT NULL, d INT NOT NULL, e TEXT NOT NULL, PRIMARY KEY(a, b, c), UNIQUE(d, e))",
        table: "t",
        key: Some("{d}:{e}"),
        primary_key: &["a", "b", "c"],
        columns: &[("a", &["1"]), ("b", &["1", "2"]), ("c", SMALL), ("d", &["1", "2"]), ("e", WORDS), ("rowid", SMALL)],
        has_keys: true,
    },
    Fixed {
        name: "partial and expression indexes",
        ddl: "CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, s TEXT COLLATE NOCASE, n INTEGER NOT NULL DEFAULT 2); \
              CREATE UNIQUE INDEX p ON t(n) WHERE t.s = 'X' /* as NOCASE has it */; \
              CREATE UNIQUE INDEX q ON t(lower(s) COLLATE RTRIM DESC, a + 1) WHERE a = '1' -- as an integer\n; \
              CREATE UNIQUE INDEX r ON t((a = '2'), n) WHERE a > 1",
        table: "t",
        key: None,
        primary_key: &["id"],
        columns: &[("id", SMALL), ("a", &["NULL", "1", "1", "2"]), ("s", &["NULL", "'a'", "'A'", "'a '", "'X'"]), ("n", SOME)],
        has_keys: true,
    },
    Fixed {
        name: "quoted names",
        ddl: "CREATE TABLE \"we \"\"ird'\"(\"select\" INTEGER PRIMARY KEY, \"a b\" TEXT NOT NULL, \"x\"\"y\" INTEGER UNIQUE)",
        table: "we \"ird'",
        key: Some("w:{select}"),
        primary_key: &["select"],
        columns: &[("select", SMALL), ("a b", WORDS), ("x\"y", SOME)],
        has_keys: true,
    },
    Fixed {
        name: "cascades within the table",
        ddl: "CREATE TABLE t(id INTEGER PRIMARY KEY, parent INTEGER REFERENCES t(id) ON DELETE CASCADE ON UPDATE CASCADE, a INTEGER UNIQUE)",
        table: "t",
        key: None,
        primary_key: &["id"],
        columns: &[("id", SMALL), ("parent", SOME), ("a", SOME)],
        has_keys: true,
    },
    Fixed {
        name: "an untyped key",
        ddl: "CREATE TABLE t(k PRIMARY KEY, a INTEGER UNIQUE) WITHOUT ROWID",
        table: "t",
        key: None,
        primary_key: &["k"],
        columns: &[("k", &["1", "'1'", "1.0", "'a'", "2", "2.5"]), ("a", SOME)],
        has_keys: false,
    },
];

/// A name in double quotes.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Shape {
    fn column(&self, rng: &mut StdRng) -> (String, &str) {
        let (name, values) = self.columns.choose(rng).unwrap();
        (quoted(name), values.choose(rng).unwrap())
    }

    fn assignments(&self, rng: &mut StdRng) -> String {
        let count = rng.random_range(1..=2.min(self.columns.len()));
        let mut assigned: Vec<(String, &str)> = Vec::new();
        while assigned.len() < count {
            let (column, value) = self.column(rng);
            if assigned.iter().all(|(other, _)| *other != column) {
                assigned.push((column, value));
            }
        }
        let texts: Vec<String> = assigned.into_iter().map(|(column, value)| format!("{column} = {value}")).collect();
        texts.join(", ")
    }

    fn condition(&self, rng: &mut StdRng) -> String {
        let (column, value) = self.column(rng);
        let operator = ["IS", "IS", "IS", ">", "<="].choose(rng).unwrap();
        format!("{column} {operator} {value}")
    }

    /// Columns and rows of an INSERT.
    pub fn insertion(&self, rng: &mut StdRng) -> String {
        let columns: Vec<&(String, Vec<String>)> = self.columns.iter().filter(|_| rng.random_bool(0.85)).collect();
        if columns.is_empty() {
            return "DEFAULT VALUES".to_owned();
        }
        let names: Vec<String> = columns.iter().map(|(name, _)| quoted(name)).collect();
        let count = [1, 1, 1, 2, 3][rng.random_range(0..5)];
        let rows: Vec<String> = (0..count)
            .map(|_| {
                let values: Vec<&str> = columns.iter().map(|(_, domain)| domain.choose(rng).unwrap().as_str()).collect();
                format!("({})", values.join(", "))
            })
            .collect();
        format!("({}) VALUES{}", names.join(", "), rows.join(", "))
    }

    /// One statement.
    pub fn statement(&self, rng: &mut StdRng) -> String {
        if !self.beside.is_empty() && rng.random_bool(0.2) {
            return self.beside.choose(rng).unwrap().clone();
        }
        let table = quoted(&self.table);
        let or = ["", "OR REPLACE ", "OR REPLACE ", "OR IGNORE ", "OR FAIL "].choose(rng).unwrap();
        match rng.random_range(0..13) {
            0..4 => format!("INSERT {or}INTO {table} {}", self.insertion(rng)),
            4 => format!("INSERT INTO {table} {} ON CONFLICT DO UPDATE SET {}", self.insertion(rng), self.assignments(rng)),
            5..8 => format!("UPDATE {or}{table} SET {} WHERE {}", self.assignments(rng), self.condition(rng)),
            8 => {
                // Two rows swap a value, or all move up.
                let (column, value) = self.column(rng);
                let (_, other) = self.column(rng);
                format!(
                    "UPDATE {or}{table} SET {column} = CASE {column} WHEN {value} THEN {other} WHEN {other} THEN {value} ELSE {column} END"
                )
            }
            9 => {
                // A row takes what another one has.
                let ((column, value), (other, _)) = (self.column(rng), self.column(rng));
                format!(
                    "UPDATE {or}{table} SET {column} = o.{column} FROM (SELECT * FROM {table} ORDER BY 1 LIMIT 1 OFFSET {}) AS o WHERE {table}.{other} IS {value}",
                    rng.random_range(0..3)
                )
            }
            10 => {
                // Rows come again with another value.
                let (names, values): (Vec<String>, Vec<String>) = self
                    .columns
                    .iter()
                    .filter(|(name, _)| !["rowid", "_rowid_"].contains(&name.as_str()))
                    .map(|(name, domain)| {
                        let name = quoted(name);
                        let value = if rng.random_bool(0.4) { domain.choose(rng).unwrap().clone() } else { name.clone() };
                        (name, value)
                    })
                    .unzip();
                let (names, values, condition) = (names.join(", "), values.join(", "), self.condition(rng));
                format!("INSERT {or}INTO {table} ({names}) SELECT {values} FROM {table} WHERE {condition}")
            }
            11 => format!("DELETE FROM {table} WHERE {} AND {}", self.condition(rng), self.condition(rng)),
            _ => format!("DELETE FROM {table} WHERE {}", self.condition(rng)),
        }
    }

    /// One transaction, committed or not; its statements are separated by a semicolon and a line's end.
    pub fn transaction(&self, rng: &mut StdRng) -> String {
        if rng.random_bool(0.6) {
            return self.statement(rng);
        }
        let mut statements = vec!["BEGIN".to_owned()];
        for _ in 0..rng.random_range(1..4) {
            statements.push(self.statement(rng));
        }
        if rng.random_bool(0.2) {
            statements.extend(["SAVEPOINT s".to_owned(), self.statement(rng), "ROLLBACK TO s".to_owned(), self.statement(rng)]);
        }
        statements.push(if rng.random_bool(0.8) { "COMMIT" } else { "ROLLBACK" }.to_owned());
        statements.join(";\n")
    }
}
