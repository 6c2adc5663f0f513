//! PostgreSQL as the oracle of what a row is in JSON, and the two ways on which its rows come.

use std::collections::HashMap;

use rowcast::change::KeyValue;
use rowcast::mapping::{ColumnType, Fields, plain};
use rowcast::source::postgres::pgoutput::{Message, decode};
use rowcast::source::postgres::row::{Cell, Cells, RowPlan, Wanted};
use rowcast::source::postgres::types::{Catalogue, query};
use rowcast::source::postgres::values::PINNED;
use rowcast_testkit::postgres::PostgresServer;

pub struct Oracle {
    pub server: PostgresServer,
    pub database: String,
}

/// The same rows, read in three ways.
pub struct Readings {
    /// `row_to_json` of each.
    pub json: Vec<String>,
    /// The messages of the stream.
    pub messages: Vec<Vec<u8>>,
    /// The columns' texts, by a query; `None` where one is NULL.
    pub texts: Vec<Vec<Option<Vec<u8>>>>,
}

/// Statements that give a session the settings that conversion expects.
pub fn pins() -> String {
    PINNED.map(|(name, value)| format!("SET {name} TO '{value}';\n")).concat()
}

impl Oracle {
    /// A server with the extensions whose types are tried.
    pub fn start() -> Oracle {
        let server = PostgresServer::start().unwrap();
        let oracle = Oracle { server, database: "postgres".to_owned() };
        oracle.extensions();
        oracle
    }

    pub fn extensions(&self) {
        self.run(
            "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE EXTENSION cube;
             CREATE TABLE plain(a int); CREATE TABLE \"Odd \"\" {name}\"(a int);",
        );
    }

    pub fn run(&self, sql: &str) -> String {
        self.server.execute_in(&self.database, sql).unwrap()
    }

    /// A table `t` with these types in columns `c0`, `c1` and so on, which the slot `s` follows.
    pub fn table(&self, types: &[String]) {
        let columns: Vec<String> = types.iter().enumerate().map(|(index, name)| format!("c{index} {name}")).collect();
        self.run(&format!(
            "CREATE TABLE t(id int PRIMARY KEY, {}); CREATE PUBLICATION p FOR TABLE t;
             SELECT 1 FROM pg_create_logical_replication_slot('s', 'pgoutput');",
            columns.join(", ")
        ));
    }

    pub fn drop_table(&self) {
        self.run("SELECT pg_drop_replication_slot('s'); DROP PUBLICATION p; DROP TABLE t;");
    }

    /// What the catalogue says of the columns of `t`.
    pub fn catalogue(&self) -> Catalogue {
        let oids = self.run("SELECT DISTINCT atttypid FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0");
        let query = query(oids.lines().map(|oid| oid.parse().unwrap()));
        Catalogue::read(&self.run(&format!("{}{query}", pins()))).unwrap()
    }

    /// Runs the statements and reads all rows of `t` in a session with these settings.
    pub fn read(&self, settings: &str, statements: &str) -> Readings {
        let answer = self.run(&format!(
            "{statements};
             {settings}
             \\echo JSON
             SELECT pg_catalog.encode(pg_catalog.convert_to(pg_catalog.row_to_json(t)::text, 'UTF8'), 'hex') FROM public.t ORDER BY id;
             \\echo COPY
             COPY (SELECT * FROM public.t ORDER BY id) TO STDOUT;
             \\echo STREAM
             SELECT pg_catalog.encode(data, 'hex') FROM pg_catalog.pg_logical_slot_get_binary_changes('s', NULL, NULL,
               'proto_version', '1', 'publication_names', 'p', 'messages', 'true');"
        ));
        let part = |from: &str, to: &str| -> Vec<String> {
            let rest = answer.split_once(&format!("{from}\n")).unwrap().1;
            let lines = if to.is_empty() { rest } else { &rest[..rest.find(&format!("{to}\n")).unwrap()] };
            lines.lines().map(str::to_owned).collect()
        };
        Readings {
            json: part("JSON", "COPY").iter().map(|line| String::from_utf8(unhex(line)).unwrap()).collect(),
            texts: part("COPY", "STREAM").iter().map(|line| line.split('\t').map(copied).collect()).collect(),
            messages: part("STREAM", "").iter().map(|line| unhex(line)).collect(),
        }
    }
}

impl Readings {
    /// What the stream's rows become.
    pub fn streamed(&self, catalogue: &Catalogue) -> Result<Vec<String>, String> {
        let mut plans: HashMap<u32, RowPlan> = HashMap::new();
        let mut cells = Cells::default();
        let mut rows = Vec::new();
        for message in &self.messages {
            match decode(message).map_err(|error| error.to_string())? {
                Message::Relation(relation) => {
                    let columns: Vec<_> = relation.columns().collect();
                    let wanted =
                        columns.iter().enumerate().map(|(place, column)| Wanted { name: column.name, type_oid: column.type_oid, place });
                    let plan = RowPlan::new(catalogue, relation.name, wanted).map_err(|error| error.to_string())?;
                    plans.insert(relation.oid, plan);
                }
                Message::Insert { relation, new } => {
                    let row = new.locate(&mut cells);
                    let plan = plans.get_mut(&relation).ok_or("a row before its relation")?;
                    rows.push(object(plan, |place| row.cell(place))?);
                }
                _ => {}
            }
        }
        Ok(rows)
    }

    /// The messages of new rows.
    pub fn inserts(&self) -> impl Iterator<Item = &[u8]> {
        self.messages.iter().map(Vec::as_slice).filter(|message| matches!(decode(message), Ok(Message::Insert { .. })))
    }

    /// The types of the columns.
    pub fn types(&self) -> Vec<u32> {
        let relation = self.messages.iter().find_map(|message| match decode(message) {
            Ok(Message::Relation(relation)) => Some(relation),
            _ => None,
        });
        relation.unwrap().columns().map(|column| column.type_oid).collect()
    }

    /// What the rows that were read by a query become.
    pub fn queried(&self, catalogue: &Catalogue) -> Result<Vec<String>, String> {
        let relation = self.messages.iter().find_map(|message| match decode(message) {
            Ok(Message::Relation(relation)) => Some(relation),
            _ => None,
        });
        let columns: Vec<_> = relation.ok_or("no relation")?.columns().collect();
        let wanted = columns.iter().enumerate().map(|(place, column)| Wanted { name: column.name, type_oid: column.type_oid, place });
        let mut plan = RowPlan::new(catalogue, "t", wanted).map_err(|error| error.to_string())?;
        self.texts.iter().map(|row| object(&mut plan, |place| row.get(place).map(cell))).collect()
    }
}

/// Whether a template's value of every column is the text that its field has.
pub fn check_keys(catalogue: &Catalogue, message: &[u8], types: &[u32], json: &str) -> Result<(), String> {
    let Ok(Message::Insert { new, .. }) = decode(message) else { return Err("no row".to_owned()) };
    let fields = Fields::of(json).ok_or("no JSON object")?.0;
    for ((cell, oid), (name, field)) in new.cells().zip(types).zip(&fields) {
        let plan = catalogue.plan(*oid).map_err(|refusal| refusal.to_string())?;
        let (Some(kind), Cell::Text(text)) = (plan.key_type(), cell) else { continue };
        let found = match plan.key_value(text).map_err(|reason| reason.to_string())? {
            KeyValue::Integer(number) if kind == ColumnType::Integer => number.to_string(),
            KeyValue::Text(text) if kind != ColumnType::Integer => text,
            other => return Err(format!("{name} of {kind:?} is {other:?}")),
        };
        if plain(field).as_deref() != Some(found.as_str()) {
            return Err(format!("the key has {found:?} where the field {name} has {field}"));
        }
    }
    Ok(())
}

fn object<'c>(plan: &mut RowPlan, cell: impl Fn(usize) -> Option<Cell<'c>>) -> Result<String, String> {
    let (mut json, mut missing) = (String::new(), Vec::new());
    plan.push_json(&mut json, cell, &mut missing).map_err(|error| error.to_string())?;
    if missing.is_empty() { Ok(json) } else { Err(format!("{missing:?} are missing")) }
}

pub fn unhex(line: &str) -> Vec<u8> {
    line.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// A field of COPY's text form.
fn copied(field: &str) -> Option<Vec<u8>> {
    if field == "\\N" {
        return None;
    }
    let mut text = Vec::with_capacity(field.len());
    let mut bytes = field.bytes();
    while let Some(byte) = bytes.next() {
        text.push(match byte {
            b'\\' => match bytes.next().unwrap() {
                b'b' => 8,
                b't' => 9,
                b'n' => 10,
                b'v' => 11,
                b'f' => 12,
                b'r' => 13,
                other => other,
            },
            other => other,
        });
    }
    Some(text)
}

fn cell(text: &Option<Vec<u8>>) -> Cell<'_> {
    text.as_ref().map_or(Cell::Null, |text| Cell::Text(text))
}
