//! Tables of many shapes, and random statements that hit their unique indexes as often as not.

use rand::prelude::*;
use rand::rngs::StdRng;

/// A table that is followed.
pub struct Shape {
    pub name: &'static str,
    pub ddl: &'static str,
    pub table: &'static str,
    pub key: Option<&'static str>,
    pub primary_key: &'static [&'static str],
    /// Columns that statements name (a hidden rowid too), with the values they try.
    pub columns: &'static [(&'static str, &'static [&'static str])],
    /// Whether its rows have Redis keys; an untyped key has none that is safe.
    pub has_keys: bool,
}

const SMALL: &[&str] = &["1", "2", "3", "4", "5", "6"];
const SOME: &[&str] = &["NULL", "1", "2", "3", "4"];
const WORDS: &[&str] = &["'a'", "'A'", "'b'", "'B'", "'c'", "'a '"];
const MAYBE: &[&str] = &["NULL", "'a'", "'A'", "'x'", "'X'", "'b'"];

pub const SHAPES: &[Shape] = &[
    Shape {
        name: "integer key alone",
        ddl: "CREATE TABLE t(id INTEGER PRIMARY KEY, a INTEGER, b TEXT)",
        table: "t",
        key: None,
        primary_key: &["id"],
        columns: &[("id", SMALL), ("a", SOME), ("b", WORDS)],
        has_keys: true,
    },
    Shape {
        name: "several unique indexes",
        ddl: "CREATE TABLE t(id INTEGER PRIMARY KEY, email TEXT NOT NULL UNIQUE COLLATE NOCASE, a INTEGER UNIQUE, b INTEGER NOT NULL DEFAULT '3' UNIQUE)",
        table: "t",
        key: None,
        primary_key: &["id"],
        columns: &[("id", SMALL), ("email", WORDS), ("a", SOME), ("b", SOME)],
        has_keys: true,
    },
    Shape {
        name: "text key without case, beside a hidden rowid",
        ddl: "CREATE TABLE t(k TEXT NOT NULL PRIMARY KEY COLLATE NOCASE, a INTEGER)",
        table: "t",
        key: None,
        primary_key: &["k"],
        columns: &[("k", WORDS), ("a", SOME), ("rowid", SMALL)],
        has_keys: true,
    },
    Shape {
        name: "text key with a default, and a column called rowid",
        ddl: "CREATE TABLE t(k TEXT NOT NULL DEFAULT 'b' PRIMARY KEY, rowid INTEGER)",
        table: "t",
        key: None,
        primary_key: &["k"],
        columns: &[("k", MAYBE), ("rowid", SOME), ("_rowid_", SMALL)],
        has_keys: true,
    },
    Shape {
        name: "composite key without rowid, descending",
        ddl: "CREATE TABLE t(a INTEGER, b TEXT COLLATE RTRIM, c TEXT UNIQUE, PRIMARY KEY(a, b DESC)) WITHOUT ROWID",
        table: "t",
        key: None,
        primary_key: &["a", "b"],
        columns: &[("a", &["1", "2"]), ("b", WORDS), ("c", MAYBE)],
        has_keys: true,
    },
    Shape {
        name: "keys from another column",
        ddl: "CREATE TABLE t(id INTEGER PRIMARY KEY, email TEXT NOT NULL UNIQUE, a INTEGER)",
        table: "t",
        key: Some("u:{email}"),
        primary_key: &["id"],
        columns: &[("id", SMALL), ("email", WORDS), ("a", SOME)],
        has_keys: true,
    },
    Shape {
        name: "keys from the primary key and more",
        ddl: "CREATE TABLE t(k TEXT PRIMARY KEY COLLATE NOCASE, a INTEGER, b TEXT) WITHOUT ROWID",
        table: "t",
        key: Some("u:{k}:{a}"),
        primary_key: &["k"],
        columns: &[("k", WORDS), ("a", SOME), ("b", MAYBE)],
        has_keys: true,
    },
    Shape {
        name: "more logged values than the changelog has columns for",
        ddl: "CREATE TABLE t(a INT NOT NULL, b INT NOT NULL, c INT NOT NULL, d INT NOT NULL, e TEXT NOT NULL, PRIMARY KEY(a, b, c), UNIQUE(d, e))",
        table: "t",
        key: Some("{d}:{e}"),
        primary_key: &["a", "b", "c"],
        columns: &[("a", &["1"]), ("b", &["1", "2"]), ("c", SMALL), ("d", &["1", "2"]), ("e", WORDS), ("rowid", SMALL)],
        has_keys: true,
    },
    Shape {
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
    Shape {
        name: "quoted names",
        ddl: "CREATE TABLE \"we \"\"ird'\"(\"select\" INTEGER PRIMARY KEY, \"a b\" TEXT NOT NULL, \"x\"\"y\" INTEGER UNIQUE)",
        table: "we \"ird'",
        key: Some("w:{select}"),
        primary_key: &["select"],
        columns: &[("select", SMALL), ("a b", WORDS), ("x\"y", SOME)],
        has_keys: true,
    },
    Shape {
        name: "cascades within the table",
        ddl: "CREATE TABLE t(id INTEGER PRIMARY KEY, parent INTEGER REFERENCES t(id) ON DELETE CASCADE ON UPDATE CASCADE, a INTEGER UNIQUE)",
        table: "t",
        key: None,
        primary_key: &["id"],
        columns: &[("id", SMALL), ("parent", SOME), ("a", SOME)],
        has_keys: true,
    },
    Shape {
        name: "an untyped key",
        ddl: "CREATE TABLE t(k PRIMARY KEY, a INTEGER UNIQUE) WITHOUT ROWID",
        table: "t",
        key: None,
        primary_key: &["k"],
        columns: &[("k", &["1", "'1'", "1.0", "'a'", "2", "2.5"]), ("a", SOME)],
        has_keys: false,
    },
];

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Shape {
    fn column(&self, rng: &mut StdRng) -> (String, &'static str) {
        let (name, values) = self.columns.choose(rng).unwrap();
        (quoted(name), values.choose(rng).unwrap())
    }

    fn assignments(&self, rng: &mut StdRng) -> String {
        let count = rng.random_range(1..=2);
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

    fn insertion(&self, rng: &mut StdRng) -> String {
        let mut columns = Vec::new();
        let mut values = Vec::new();
        for (name, domain) in self.columns {
            if rng.random_bool(0.85) {
                columns.push(quoted(name));
                values.push(*domain.choose(rng).unwrap());
            }
        }
        if columns.is_empty() {
            return "DEFAULT VALUES".to_owned();
        }
        format!("({}) VALUES({})", columns.join(", "), values.join(", "))
    }

    /// One statement.
    pub fn statement(&self, rng: &mut StdRng) -> String {
        let table = quoted(self.table);
        let or = ["", "OR REPLACE ", "OR REPLACE ", "OR IGNORE ", "OR FAIL "].choose(rng).unwrap();
        match rng.random_range(0..10) {
            0..4 => format!("INSERT {or}INTO {table} {}", self.insertion(rng)),
            4 => format!("INSERT INTO {table} {} ON CONFLICT DO UPDATE SET {}", self.insertion(rng), self.assignments(rng)),
            5..8 => format!("UPDATE {or}{table} SET {} WHERE {}", self.assignments(rng), self.condition(rng)),
            8 => {
                // Two rows swap a value, or all move up.
                let (column, value) = self.column(rng);
                let (_, other) = self.column(rng);
                format!("UPDATE {or}{table} SET {column} = CASE {column} WHEN {value} THEN {other} ELSE {column} END")
            }
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
        statements.push(if rng.random_bool(0.8) { "COMMIT" } else { "ROLLBACK" }.to_owned());
        statements.join(";\n")
    }
}
