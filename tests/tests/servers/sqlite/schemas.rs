//! Random tables of every kind that is followed: keys, types, collations, unique indexes, foreign keys, triggers of the application.

use rand::prelude::*;
use rand::rngs::StdRng;

use super::statements::{Shape, quoted};

/// Names that need quotes, and some that mean something to SQLite.
const NAMES: &[&str] = &["a", "b b", "c\"d", "select", "Größe", "x.y", "rowid", "new", "it's", "ORDER", "表"];
const TABLES: &[&str] = &["t", "we \"ird'", "group", "Größen", "a b", "x.y"];

/// A column under construction.
#[derive(Clone, Debug)]
struct Column {
    name: String,
    kind: &'static str,
    not_null: bool,
    collation: &'static str,
    more: String,
    values: Vec<String>,
}

impl Column {
    fn random(rng: &mut StdRng, name: &str, strict: bool) -> Column {
        let kinds: &[&str] = if strict {
            &["INTEGER", "TEXT", "REAL", "BLOB", "ANY"]
        } else {
            &["INTEGER", "TEXT", "VARCHAR(9)", "REAL", "NUMERIC", "BLOB", ""]
        };
        let kind = *kinds.choose(rng).unwrap();
        let values: &[&str] = match kind {
            "INTEGER" if strict => &["1", "2", "3", "'2'"],
            "INTEGER" => &["1", "2", "3", "'2'", "2.0", "'x'"],
            "TEXT" | "VARCHAR(9)" => &["'a'", "'A'", "'b'", "'a '", "'é'", "1"],
            "REAL" if strict => &["1", "1.5", "2", "'2'", "9e999"],
            "REAL" => &["1", "1.5", "2", "'2'", "9e999", "'x'"],
            "NUMERIC" => &["1", "'1'", "1.5", "2", "'x'", "'X'"],
            "BLOB" if strict => &["x'00'", "x'01fe'", "x'02'", "x''"],
            "BLOB" => &["x'00'", "x'01fe'", "x'02'", "'a'", "1"],
            _ => &["1", "'1'", "1.0", "x'31'", "'a'"],
        };
        let (not_null, collation) = (rng.random_bool(0.4), ["BINARY", "BINARY", "BINARY", "NOCASE", "RTRIM"].choose(rng).unwrap());
        let mut more = String::new();
        if not_null {
            more.push_str(["", " ON CONFLICT REPLACE", " ON CONFLICT IGNORE"].choose(rng).unwrap());
        }
        if rng.random_bool(0.4) {
            more.push_str(&format!(" DEFAULT {}", values.choose(rng).unwrap()));
        }
        let mut values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        values.push("NULL".to_owned());
        Column { name: name.to_owned(), kind, not_null, collation, more, values }
    }

    fn ddl(&self) -> String {
        let not_null = if self.not_null { " NOT NULL" } else { "" };
        format!("{} {}{not_null}{} COLLATE {}", quoted(&self.name), self.kind, self.more, self.collation)
    }

    fn value(&self, rng: &mut StdRng) -> String {
        self.values.choose(rng).unwrap().clone()
    }
}

fn action(rng: &mut StdRng) -> &'static str {
    ["CASCADE", "CASCADE", "SET NULL", "SET DEFAULT", "NO ACTION"].choose(rng).unwrap()
}

fn collation(rng: &mut StdRng) -> &'static str {
    ["", "", " COLLATE BINARY", " COLLATE NOCASE", " COLLATE RTRIM"].choose(rng).unwrap()
}

/// The table of this seed.
pub fn random(seed: u64) -> Shape {
    let rng = &mut StdRng::seed_from_u64(seed);
    let strict = rng.random_bool(0.25);
    let table = *TABLES.choose(rng).unwrap();
    let mut names = NAMES.to_vec();
    names.shuffle(rng);
    let mut data: Vec<Column> = names.iter().take(rng.random_range(2..=5)).map(|name| Column::random(rng, name, strict)).collect();

    // The primary key.
    let mut parts: Vec<String> = Vec::new();
    let mut tail = String::new();
    let mut primary_key = Vec::new();
    // SQLite refuses a foreign key to a column whose index collates otherwise.
    let mut referable = true;
    let with_id = rng.random_bool(0.5);
    let without_rowid = !with_id && rng.random_bool(0.5);
    if with_id {
        let more = ["", "", " AUTOINCREMENT", " ON CONFLICT REPLACE"].choose(rng).unwrap();
        parts.push(format!("id INTEGER PRIMARY KEY{more}"));
        primary_key.push("id".to_owned());
    } else {
        let width = rng.random_range(1..=2);
        referable = width == 1;
        let mut key = Vec::new();
        for column in &mut data[..width] {
            // In a table without rowid this is implied.
            column.not_null = true;
            if column.kind == "INTEGER" {
                // Alone that would be the rowid.
                column.kind = "INT";
            }
            let (collation, order) = (collation(rng), ["", "", " DESC"].choose(rng).unwrap());
            referable &= collation.is_empty() || collation.ends_with(column.collation);
            key.push(format!("{}{collation}{order}", quoted(&column.name)));
            primary_key.push(column.name.clone());
        }
        let conflict = ["", "", " ON CONFLICT REPLACE"].choose(rng).unwrap();
        tail = format!(", PRIMARY KEY({}){conflict}", key.join(", "));
    }
    parts.extend(data.iter().map(Column::ddl));
    let mut columns: Vec<(String, Vec<String>)> = data.iter().map(|column| (column.name.clone(), column.values.clone())).collect();
    let numbers: Vec<String> = ["1", "2", "3", "4", "5"].map(str::to_owned).to_vec();
    if with_id {
        columns.push(("id".to_owned(), numbers.clone()));
    } else if !without_rowid && rng.random_bool(0.5) {
        let hidden = if data.iter().any(|column| column.name == "rowid") { "_rowid_" } else { "rowid" };
        columns.push((hidden.to_owned(), numbers.clone()));
    }

    // Columns that are computed.
    for index in 0..rng.random_range(0..=2) {
        let column = data.choose(rng).unwrap();
        let name = quoted(&column.name);
        let text = matches!(column.kind, "TEXT" | "VARCHAR(9)" | "INT" | "INTEGER");
        let (kind, expression) = match rng.random_range(0..3) {
            0 if text => ("TEXT", format!("{name} || '-'")),
            1 => ("INTEGER", format!("length({name})")),
            _ => ("TEXT", format!("typeof({name})")),
        };
        parts.push(format!("\"made {index}\" {kind} AS ({expression}) {}", ["VIRTUAL", "STORED"].choose(rng).unwrap()));
    }

    // Foreign keys: to itself, to another table, and from a third one.
    let mut before = String::new();
    let mut after = String::new();
    let mut beside = Vec::new();
    let table_name = quoted(table);
    let single = referable.then(|| primary_key[0].clone());
    let values_of = |name: &str| columns.iter().find(|(column, _)| column == name).map(|(_, values)| values.clone()).unwrap();
    let mut more_columns = Vec::new();
    if let Some(key) = &single
        && rng.random_bool(0.4)
    {
        let kind = if strict { "ANY" } else { "" };
        parts.push(format!(
            "up {kind} REFERENCES {table_name}({}) ON DELETE {} ON UPDATE {}{}",
            quoted(key),
            action(rng),
            action(rng),
            ["", " DEFERRABLE INITIALLY DEFERRED"].choose(rng).unwrap()
        ));
        let mut values = values_of(key);
        values.extend(["NULL".to_owned(), "NULL".to_owned()]);
        more_columns.push(("up".to_owned(), values));
    }
    if rng.random_bool(0.3) {
        before.push_str("CREATE TABLE other(id INTEGER PRIMARY KEY, u INTEGER UNIQUE); INSERT INTO other VALUES(1, 1), (2, 2), (3, 3);\n");
        parts.push(format!("o INTEGER REFERENCES other ON DELETE {} ON UPDATE {}", action(rng), action(rng)));
        more_columns.push(("o".to_owned(), ["1", "2", "3", "NULL"].map(str::to_owned).to_vec()));
        for statement in [
            "REPLACE INTO other VALUES(1, 2)",
            "INSERT OR IGNORE INTO other VALUES(1, 1), (2, 2), (3, 3)",
            "DELETE FROM other WHERE id = 2",
            "UPDATE OR REPLACE other SET id = 3 WHERE id = 1",
            "UPDATE OR REPLACE other SET u = 3",
        ] {
            beside.push(statement.to_owned());
        }
    }
    columns.extend(more_columns);
    if let Some(key) = &single
        && rng.random_bool(0.3)
    {
        let key_name = quoted(key);
        after.push_str(&format!(
            "CREATE TABLE below(id INTEGER PRIMARY KEY, up REFERENCES {table_name}({key_name}) ON DELETE {} ON UPDATE CASCADE);\n",
            action(rng)
        ));
        beside.push(format!("INSERT INTO below(up) SELECT {key_name} FROM {table_name} LIMIT 2"));
        beside.push("DELETE FROM below".to_owned());
        if rng.random_bool(0.5) {
            let (name, values) = columns.choose(rng).unwrap();
            after.push_str(&format!(
                "CREATE TRIGGER spreads AFTER DELETE ON below BEGIN DELETE FROM {table_name} WHERE {} IS NOT {}; END;\n",
                quoted(name),
                values.choose(rng).unwrap()
            ));
        }
        if rng.random_bool(0.5) {
            let when = ["BEFORE DELETE", "AFTER DELETE", "BEFORE UPDATE", "AFTER UPDATE"].choose(rng).unwrap();
            let body = if rng.random_bool(0.5) {
                "SELECT RAISE(FAIL, 'no') WHERE OLD.id % 2"
            } else {
                after.push_str("CREATE TABLE audit(who NOT NULL ON CONFLICT FAIL);\n");
                "INSERT INTO audit SELECT NULL WHERE OLD.id % 2"
            };
            after.push_str(&format!("CREATE TRIGGER fails {when} ON below BEGIN {body}; END;\n"));
        }
    }

    // Unique indexes.
    let mut unique_key = None;
    for index in 0..rng.random_range(0..=3) {
        let mut over: Vec<&Column> = data.iter().collect();
        over.shuffle(rng);
        over.truncate(rng.random_range(1..=2));
        let plain = rng.random_bool(0.6);
        let texts: Vec<String> = over
            .iter()
            .map(|column| {
                let name = quoted(&column.name);
                let order = ["", "", " DESC", " ASC"].choose(rng).unwrap();
                if plain {
                    return format!("{name}{}{order}", collation(rng));
                }
                let expression = match rng.random_range(0..6) {
                    0 => format!("lower({name})"),
                    1 => format!("coalesce({name}, 0)"),
                    2 => format!("({name} = '1')"),
                    3 => format!("{name} + 1"),
                    4 => format!("substr({name}, 1, 1)"),
                    _ => format!("{name} || 'x'"),
                };
                format!("{expression}{}{order}", collation(rng))
            })
            .collect();
        let partial = rng.random_bool(0.3).then(|| {
            let column = data.choose(rng).unwrap();
            let name = quoted(&column.name);
            let test = [" > 1", " IS NOT NULL", " = 'a'", " <> 'A'"].choose(rng).unwrap();
            format!(" WHERE {name}{test}")
        });
        if plain && partial.is_none() && over.iter().all(|column| column.not_null) && texts.iter().all(|text| !text.contains("COLLATE")) {
            let binary = over.iter().all(|column| column.collation == "BINARY");
            unique_key = binary.then(|| over.iter().map(|column| column.name.clone()).collect::<Vec<_>>()).or(unique_key);
        }
        let (texts, partial) = (texts.join(", "), partial.unwrap_or_default());
        after.push_str(&format!("CREATE UNIQUE INDEX \"index {index}\" ON {table_name}({texts}){partial};\n"));
    }

    // The Redis key.
    let template = |names: &[String]| names.iter().map(|name| format!(":{{{name}}}")).collect::<String>();
    let key = match unique_key {
        Some(names) if rng.random_bool(0.7) => Some(format!("u{}", template(&names))),
        _ if rng.random_bool(0.2) => {
            let mut names = primary_key.clone();
            names.extend(data.iter().map(|column| column.name.clone()).filter(|name| !primary_key.contains(name)).take(1));
            Some(format!("u{}", template(&names)))
        }
        _ => Some(format!("k{}", template(&primary_key))),
    };

    let mut options = Vec::new();
    options.extend(strict.then_some("STRICT"));
    options.extend(without_rowid.then_some("WITHOUT ROWID"));
    let create = format!("CREATE TABLE {table_name}({}{tail}) {};\n", parts.join(", "), options.join(", "));
    let encoding = ["", "", "", "PRAGMA encoding = 'UTF-16le';\n"].choose(rng).unwrap();
    let mut shape = Shape {
        name: format!("random {seed}"),
        ddl: format!("{encoding}PRAGMA journal_mode = WAL;\n{before}{create}{after}"),
        later: String::new(),
        table: table.to_owned(),
        key,
        primary_key,
        columns,
        beside,
        has_keys: true,
    };
    for index in 0..[0, 0, 1, 2][rng.random_range(0..4)] {
        let trigger = trigger(rng, &shape, &data, index);
        // Whether it is older or newer than ours decides which of the two runs first.
        if rng.random_bool(0.5) { shape.ddl.push_str(&trigger) } else { shape.later.push_str(&trigger) }
    }
    shape
}

/// A trigger of the application's own.
fn trigger(rng: &mut StdRng, shape: &Shape, data: &[Column], index: usize) -> String {
    // SQLite takes the name in any case.
    let table = if shape.table.is_ascii() { quoted(&shape.table.to_uppercase()) } else { quoted(&shape.table) };
    let column = data.choose(rng).unwrap();
    let (name, value, other) = (quoted(&column.name), column.value(rng), column.value(rng));
    let (when, body) = match rng.random_range(0..8) {
        0 => ("AFTER INSERT", format!("UPDATE OR REPLACE {table} SET {name} = {value} WHERE {name} IS {other}")),
        1 => ("BEFORE INSERT", format!("DELETE FROM {table} WHERE {name} IS {value}")),
        2 => ("AFTER UPDATE", format!("DELETE FROM {table} WHERE {name} IS {value}")),
        3 => ("AFTER DELETE", format!("INSERT OR REPLACE INTO {table} {}", shape.insertion(rng))),
        4 => ("AFTER INSERT", format!("SELECT RAISE(IGNORE) WHERE NEW.{name} IS {value}")),
        5 => ("AFTER UPDATE", format!("SELECT RAISE(IGNORE) WHERE NEW.{name} IS {value}")),
        6 => ("AFTER UPDATE", format!("SELECT RAISE(FAIL, 'no') WHERE NEW.{name} IS {value}")),
        _ => ("BEFORE UPDATE", format!("SELECT RAISE(ABORT, 'no') WHERE NEW.{name} IS {value}")),
    };
    let body = if body.contains("DEFAULT VALUES") { "SELECT 1".to_owned() } else { body };
    format!("CREATE TRIGGER \"theirs {index}\" {when} ON {table} BEGIN {body}; END;\n")
}
