//! How the rows of one table become keys and JSON, whatever columns they come with. Pure.

use std::fmt::Write;

use super::row::{Cell, RowPlan, Wanted};
use super::schema::Table;
use super::types::Catalogue;
use super::values::{Plan, Reason, Scratch};
use crate::batch::push_json_text;
use crate::change::{Image, KeyValue};
use crate::mapping::MappedTable;

/// A column of rows as they come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The column's name.
    pub name: String,
    /// The type's oid.
    pub type_oid: u32,
    /// Whether the log tells its old value.
    pub in_identity: bool,
}

/// Turns rows with certain columns into what is published of them.
#[derive(Clone, Debug)]
pub(super) struct RowReader {
    row: RowPlan,
    primary_key: Vec<Part>,
    template: Vec<Part>,
    scratch: Scratch,
    /// How long the last row's JSON was: the next one's will be about as long.
    size: usize,
}

/// A column of a key.
#[derive(Clone, Debug)]
struct Part {
    name: String,
    place: usize,
    plan: Plan,
}

/// A row that cannot be told from others; a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Nameless {
    /// A column of its primary key is not told.
    Untold(String),
    /// Its primary key cannot be written down.
    Unwritable(String),
}

impl Part {
    /// Appends the column's value as it stands in a primary key. Bytes that are no text stand in an object, which no value of a key looks
    /// like.
    fn push(&self, json: &mut String, text: &[u8], scratch: &mut Scratch) -> Result<(), Nameless> {
        let before = json.len();
        match self.plan.push_json(json, text, scratch) {
            Ok(()) => Ok(()),
            Err(Reason::NotUtf8) => {
                json.truncate(before);
                push_bytes(json, text);
                Ok(())
            }
            Err(reason) => Err(Nameless::Unwritable(format!("the primary key's column {}: {reason}", self.name))),
        }
    }

    fn untold(&self) -> Nameless {
        Nameless::Untold(format!("the primary key's column {} is not told", self.name))
    }
}

/// Bytes that a database of the encoding SQL_ASCII took, as [`bytes_of`] reads them.
fn push_bytes(json: &mut String, bytes: &[u8]) {
    json.push_str("{\"bytes\":\"");
    for byte in bytes {
        write!(json, "{byte:02x}").expect("a String takes every write");
    }
    json.push_str("\"}");
}

/// The hexadecimal digits of bytes that stand in a key although they are no text.
pub(super) fn bytes_of(json: &str) -> Option<&str> {
    let digits = json.strip_prefix("{\"bytes\":\"")?.strip_suffix("\"}")?;
    (digits.len().is_multiple_of(2) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(digits)
}

impl RowReader {
    /// A reader for rows with these columns. `None` where one that is needed is missing or of another type: then rows as they were before
    /// a change of the schema are told, of which no row as it is now can be made.
    pub fn new(table: &Table, mapped: &MappedTable, catalogue: &Catalogue, places: &[Place]) -> Option<RowReader> {
        let find = |name: &str| {
            let column = table.column(name)?;
            let place = places.iter().position(|place| place.name == name && place.type_oid == column.type_oid)?;
            Some((place, column))
        };
        let part = |name: &str| {
            let (place, column) = find(name)?;
            Some(Part { name: name.to_owned(), place, plan: column.plan.clone().ok()? })
        };
        let template = mapped.descriptor.keys.template.columns().map(|column| part(&column.column)).collect::<Option<Vec<_>>>()?;
        let primary_key = table.primary_key().iter().map(|name| part(name)).collect::<Option<Vec<_>>>()?;
        let wanted = |name: &'_ String| {
            let (place, column) = find(name)?;
            Some((column.type_oid, place))
        };
        let mut columns = Vec::with_capacity(mapped.columns.len());
        for name in &mapped.columns {
            let (type_oid, place) = wanted(name)?;
            columns.push(Wanted { name, type_oid, place });
        }
        // That every type can be converted was found out when the mapping was made.
        let row = RowPlan::new(catalogue, &table.name, columns).ok()?;
        Some(RowReader { row, primary_key, template, scratch: Scratch::default(), size: 256 })
    }

    /// The primary key as a JSON object.
    pub fn pk<'c>(&mut self, cell: impl Fn(usize) -> Option<Cell<'c>>) -> Result<String, Nameless> {
        let mut pk = String::with_capacity(32);
        pk.push('{');
        for part in &self.primary_key {
            if pk.len() > 1 {
                pk.push(',');
            }
            push_json_text(&mut pk, &part.name);
            pk.push(':');
            let Some(Cell::Text(text)) = cell(part.place) else { return Err(part.untold()) };
            part.push(&mut pk, text, &mut self.scratch)?;
        }
        pk.push('}');
        Ok(pk)
    }

    /// Where the row stands, as a chunk begins after it: the primary key's columns in the server's own text.
    pub fn bound<'c>(&self, cell: impl Fn(usize) -> Option<Cell<'c>>) -> Result<String, Nameless> {
        let mut bound = String::with_capacity(32);
        bound.push('{');
        for part in &self.primary_key {
            if bound.len() > 1 {
                bound.push(',');
            }
            push_json_text(&mut bound, &part.name);
            bound.push(':');
            let Some(Cell::Text(text)) = cell(part.place) else { return Err(part.untold()) };
            match std::str::from_utf8(text) {
                Ok(text) => push_json_text(&mut bound, text),
                Err(_) => push_bytes(&mut bound, text),
            }
        }
        bound.push('}');
        Ok(bound)
    }

    /// The values of the template's columns, or why they cannot be told.
    pub fn key<'c>(&self, cell: impl Fn(usize) -> Option<Cell<'c>>) -> Result<Vec<KeyValue>, String> {
        let value = |part: &Part| match cell(part.place) {
            Some(Cell::Null) => Ok(KeyValue::Null),
            Some(Cell::Text(text)) => part.plan.key_value(text).map_err(|reason| format!("the key's column {}: {reason}", part.name)),
            Some(Cell::Unchanged) | None => Err(format!("the key's column {} is not told", part.name)),
        };
        self.template.iter().map(value).collect()
    }

    /// The row. `None` where a column is not told (a large value that did not change), so that the row must be read.
    pub fn image<'c>(&mut self, cell: impl Fn(usize) -> Option<Cell<'c>>) -> Option<Image> {
        let key = match self.key(&cell) {
            Ok(key) => key,
            Err(reason) => return Some(Image::Unreadable { key: None, reason }),
        };
        let mut json = String::with_capacity(self.size);
        let mut missing = Vec::new();
        match self.row.push_json(&mut json, cell, &mut missing) {
            Ok(()) if missing.is_empty() => {
                self.size = json.len() + json.len() / 8;
                Some(Image::Present { json, key })
            }
            Ok(()) => None,
            Err(error) => Some(Image::Unreadable { key: Some(key), reason: error.to_string() }),
        }
    }

    /// Whether the column at this place is part of a key or of the row.
    pub fn reads(&self, place: usize) -> bool {
        self.row.reads(place) || self.primary_key.iter().chain(&self.template).any(|part| part.place == place)
    }

    /// Whether the log tells primary key and template of a row that is gone: all their columns are in the identity.
    pub fn tells_old(&self, places: &[Place]) -> bool {
        self.primary_key.iter().chain(&self.template).all(|part| places.get(part.place).is_some_and(|place| place.in_identity))
    }

    /// Whether these two have the same primary key.
    pub fn same_pk<'c>(&self, left: impl Fn(usize) -> Option<Cell<'c>>, right: impl Fn(usize) -> Option<Cell<'c>>) -> bool {
        self.primary_key.iter().all(|part| left(part.place) == right(part.place))
    }

    /// Whether these two have the same values in the template's columns.
    pub fn same_key<'c>(&self, left: impl Fn(usize) -> Option<Cell<'c>>, right: impl Fn(usize) -> Option<Cell<'c>>) -> bool {
        self.template.iter().all(|part| left(part.place) == right(part.place))
    }
}
