//! The tables, one of every kind, and what they should look like in the cache by SQLite's own words.

use std::collections::BTreeMap;

use rusqlite::Connection;
use rusqlite::types::Value as Sql;

use super::super::contents::{Contents, Value};
use super::super::database::{TABLES, keys};
use super::more;

/// The schema. In every table `v` only grows: each statement that writes a row gives it a number that was never used.
const SCHEMA: &str = "
    CREATE TABLE users (id INTEGER PRIMARY KEY, handle TEXT NOT NULL UNIQUE, name TEXT, v INTEGER NOT NULL);
    CREATE TABLE profiles (name TEXT PRIMARY KEY NOT NULL, handle TEXT NOT NULL UNIQUE, v INTEGER NOT NULL);
    CREATE TABLE lines (shop TEXT NOT NULL, number INTEGER NOT NULL, words TEXT, v INTEGER NOT NULL, PRIMARY KEY (shop, number));
    CREATE TABLE stock (code TEXT PRIMARY KEY NOT NULL, amount INTEGER, v INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE settings (id INTEGER PRIMARY KEY, label TEXT, v INTEGER NOT NULL);
";

/// Which tables there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// Those above.
    Five,
    /// And those of [`more`].
    Ten,
}

impl Tables {
    /// The statements that create them.
    pub fn schema(self) -> String {
        match self {
            Tables::Five => SCHEMA.to_owned(),
            Tables::Ten => [SCHEMA, more::SCHEMA].concat(),
        }
    }

    /// Their part of the configuration.
    pub fn configuration(self) -> String {
        match self {
            Tables::Five => TABLES.to_owned(),
            Tables::Ten => [TABLES, more::TABLES].concat(),
        }
    }

    /// Every key that holds JSON, and every key that is a hash, that the writer may write.
    pub fn keys(self) -> (Vec<String>, Vec<String>) {
        let (mut json, hashes) = keys();
        if self == Tables::Ten {
            json.extend(more::keys());
        }
        (json, hashes)
    }

    /// What the cache should hold for the rows that there are.
    pub fn expected(self, database: &Connection) -> Contents {
        let mut contents = expected(database);
        if self == Tables::Ten {
            contents.extend(more::expected(database));
        }
        contents
    }
}

fn expected(database: &Connection) -> Contents {
    const JSON: [&str; 4] = [
        "SELECT 'users:' || id, json_object('id', id, 'handle', handle, 'name', name, 'v', v) FROM users",
        "SELECT 'profile:' || handle, json_object('name', name, 'handle', handle, 'v', v) FROM profiles",
        "SELECT 'lines:' || shop || ':' || number, json_object('shop', shop, 'number', number, 'words', words, 'v', v) FROM lines",
        "SELECT 'stock:' || code, json_object('code', code, 'amount', amount, 'v', v) FROM stock",
    ];
    let mut contents = Contents::new();
    for sql in JSON {
        let mut statement = database.prepare(sql).expect("a query");
        let rows = statement.query_map([], |row| Ok((row.get(0)?, Value::Text(row.get(1)?)))).expect("rows");
        contents.extend(rows.map(|row| row.expect("a row")));
    }
    let mut statement = database.prepare("SELECT id, label, v FROM settings").expect("a query");
    let rows = statement.query_map([], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?])).expect("rows");
    for row in rows {
        let plain = |value: Sql| match value {
            Sql::Null => None,
            Sql::Integer(number) => Some(number.to_string()),
            Sql::Text(text) => Some(text),
            other => panic!("{other:?} in the table settings"),
        };
        let fields = ["id", "label", "v"].map(str::to_owned).into_iter().zip(row.expect("a row").map(plain));
        let fields: BTreeMap<String, String> = fields.filter_map(|(name, value)| Some((name, value?))).collect();
        contents.insert(format!("setting:{}", fields["id"]), Value::Hash(fields));
    }
    contents
}
