//! Rows of one table: the statements that find them, and how a found row becomes an image.

use std::collections::HashMap;

use rusqlite::{CachedStatement, Connection, Row, Rows};
use serde_json::value::RawValue;

use super::super::Error;
use super::filter::{Filter, Verdict};
use super::install::Prepared;
use super::schema::{Part, PartOf, Table};
use super::sql::quoted;
use super::values::{self, Datum, NotUtf8};
use crate::batch::push_json_text;
use crate::change::{Image, KeyValue};
use crate::mapping::MappedTable;

/// Where a value of the template comes from in a changelog row.
#[derive(Clone, Copy, Debug)]
enum Logged {
    /// The primary key's column at this place.
    Key(usize),
    /// The value at this place behind the primary key.
    Beside(usize),
}

/// How the rows of one mapped table are found and rendered.
#[derive(Debug)]
pub(super) struct RowReader {
    name: String,
    /// How many columns the primary key has; they come first in every row that is read.
    pub(super) key_width: usize,
    /// How many values of the template are logged behind the primary key.
    pub(super) beside_width: usize,
    /// For each column of the JSON object the text before its value, and its place in the row that is read.
    fields: Vec<(String, usize)>,
    /// For each column of the primary key the text before its value.
    key_fields: Vec<String>,
    /// The template's columns: their places in the row that is read, and in a changelog row.
    template: Vec<(usize, Logged)>,
    by_key: String,
    /// Where the primary key alone does not tell which key of the cache a row had, or whether another row has that now.
    by_template: Option<ByTemplate>,
    /// What says whether a row is cached at all, where not all are.
    filter: Option<String>,
    /// Whether a chunk names the rows that are not, because no sweep could tell their keys from somebody else's.
    pub(super) names_unmatched: bool,
    /// What a chunk reads first, and what it reads after a bound.
    pub(super) chunk_first: String,
    pub(super) chunk_after: String,
}

/// How a row with given template values is found.
#[derive(Debug)]
struct ByTemplate {
    sql: String,
    /// Which of the template's values the statement takes.
    parameters: Vec<usize>,
}

/// A row that a changelog row named.
pub(super) struct Found {
    pub(super) pk: String,
    pub(super) key: Vec<Datum>,
    pub(super) image: Image,
}

impl RowReader {
    pub(super) fn new(prepared: &Prepared) -> RowReader {
        let table = &prepared.table;
        let key: Vec<usize> = table.key_columns().collect();
        let mut read = key.clone();
        let mut place_of = |column: usize| {
            read.iter().position(|known| *known == column).unwrap_or_else(|| {
                read.push(column);
                read.len() - 1
            })
        };
        let fields = fields(&prepared.mapped, table).map(|(before, column)| (before, place_of(column))).collect();
        let columns = template_columns(&prepared.mapped, table);
        let template: Vec<(usize, Logged)> = columns
            .iter()
            .map(|column| {
                let logged = match key.iter().position(|key| key == column) {
                    Some(place) => Logged::Key(place),
                    None => {
                        let place = prepared.beside_key.iter().position(|beside| beside == column);
                        Logged::Beside(place.expect("every column of the template is in the key or beside it"))
                    }
                };
                (place_of(*column), logged)
            })
            .collect();
        let names: Vec<String> = read.iter().map(|column| quoted(&table.columns[*column].name)).collect();
        let from = format!("SELECT {} FROM {}", names.join(", "), quoted(&table.name));
        let (chunk_first, chunk_after) = chunk_statements(table, &from);
        RowReader {
            name: table.name.clone(),
            key_width: key.len(),
            beside_width: prepared.beside_key.len(),
            fields,
            key_fields: key.iter().enumerate().map(|(place, column)| field(place == 0, &table.columns[*column].name)).collect(),
            template,
            by_key: format!("{from} WHERE {}", equal(table, &table.key)),
            by_template: by_template(table, &columns, &key, &from),
            filter: prepared.filter.clone(),
            names_unmatched: !prepared.mapped.descriptor.keys.can_be_told(),
            chunk_first,
            chunk_after,
        }
    }

    /// The primary key of the row that was read.
    pub(super) fn key(&self, row: &Row<'_>) -> rusqlite::Result<Vec<Datum>> {
        (0..self.key_width).map(|place| row.get_ref(place).map(Datum::from)).collect()
    }

    /// The primary key as a JSON object.
    pub(super) fn pk(&self, key: &[Datum]) -> String {
        let mut json = String::with_capacity(16 * key.len() + 8);
        for (before, value) in self.key_fields.iter().zip(key) {
            json.push_str(before);
            values::push_key_json(&mut json, value.borrowed());
        }
        json.push('}');
        json
    }

    /// The primary key that [`RowReader::pk`] wrote.
    pub(super) fn read_pk(&self, pk: &str) -> Result<Vec<Datum>, Error> {
        let wrong = || Error::Fatal(format!("{pk} is not a primary key of the table {}", self.name));
        let object: HashMap<String, &RawValue> = serde_json::from_str(pk).map_err(|_| wrong())?;
        let mut key = Vec::with_capacity(self.key_width);
        for (place, before) in self.key_fields.iter().enumerate() {
            let value = object.iter().find(|(name, _)| field(place == 0, name) == *before);
            key.push(value.and_then(|(_, raw)| values::read_key_json(raw)).ok_or_else(wrong)?);
        }
        if object.len() != self.key_width { Err(wrong()) } else { Ok(key) }
    }

    /// The filter at work, where there is one.
    pub(super) fn filter<'c>(&self, connection: &'c Connection) -> rusqlite::Result<Option<Filter<'c>>> {
        self.filter.as_ref().map(|statement| Filter::new(connection, statement)).transpose()
    }

    /// What the row with this primary key is to the cache.
    pub(super) fn image(&self, row: &Row<'_>, key: &[Datum], filter: Option<&mut Filter<'_>>) -> rusqlite::Result<Image> {
        match filter.map_or(Ok(Verdict::Matches), |filter| filter.judge(key))? {
            Verdict::Matches => self.rendered(row),
            // What cannot be a key has never been one.
            Verdict::Differs => {
                let key = self.template_of(row)?.unwrap_or_else(|| vec![KeyValue::Null; self.template.len()]);
                Ok(Image::Absent { key })
            }
            Verdict::Fails(reason) => Ok(Image::Unreadable { key: self.template_of(row)?, reason }),
        }
    }

    /// The template's values of the row; `None` where a text among them is not UTF-8.
    fn template_of(&self, row: &Row<'_>) -> rusqlite::Result<Option<Vec<KeyValue>>> {
        let mut key = Vec::with_capacity(self.template.len());
        let mut key_is_text = true;
        for (place, _) in &self.template {
            match values::key_value(row.get_ref(*place)?) {
                Ok(value) => key.push(value),
                Err(NotUtf8) => key_is_text = false,
            }
        }
        Ok(key_is_text.then_some(key))
    }

    fn rendered(&self, row: &Row<'_>) -> rusqlite::Result<Image> {
        let key = self.template_of(row)?;
        let mut json = String::with_capacity(self.fields.len() * 24 + 2);
        for (before, place) in &self.fields {
            json.push_str(before);
            if values::push_json(&mut json, row.get_ref(*place)?) == Err(NotUtf8) {
                let column = before.trim_start_matches(['{', ',']).trim_end_matches(':');
                return Ok(Image::Unreadable { key, reason: not_utf8(column) });
            }
        }
        json.push('}');
        Ok(match key {
            Some(key) => Image::Present { json, key },
            None => Image::Unreadable { key: None, reason: not_utf8("of the key") },
        })
    }

    /// What became of a row whose primary key nobody has any more. Where that does not tell the fate of its key in the cache, this
    /// says only that the row is gone: another row may have that key, but a chunk must not bring this one back.
    pub(super) fn absent(&self, key: &[Datum]) -> Image {
        match self.by_template {
            None => self.absent_with(key, &[]),
            Some(_) => Image::Absent { key: vec![KeyValue::Null; self.template.len()] },
        }
    }

    /// Whether a changelog row has the template's values. Those beside the primary key are not there for an insert.
    pub(super) fn names_template(&self, insert: bool) -> bool {
        self.by_template.is_some() && (self.beside_width == 0 || !insert)
    }

    fn absent_with(&self, key: &[Datum], beside: &[Datum]) -> Image {
        let values = self.template_values(key, beside).map(|value| values::key_value(value.borrowed()));
        match values.collect::<Result<Vec<KeyValue>, NotUtf8>>() {
            Ok(key) => Image::Absent { key },
            Err(NotUtf8) => Image::Unreadable { key: None, reason: not_utf8("of the key") },
        }
    }

    fn template_values<'d>(&self, key: &'d [Datum], beside: &'d [Datum]) -> impl Iterator<Item = &'d Datum> {
        self.template.iter().map(move |(_, logged)| match logged {
            Logged::Key(place) => &key[*place],
            Logged::Beside(place) => &beside[*place],
        })
    }

    /// Whether the template's values of the row are these.
    fn has_template_values(&self, row: &Row<'_>, key: &[Datum], beside: &[Datum]) -> rusqlite::Result<bool> {
        for ((place, _), value) in self.template.iter().zip(self.template_values(key, beside)) {
            if !value.is(row.get_ref(*place)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn found(&self, row: &Row<'_>, filter: Option<&mut Filter<'_>>) -> rusqlite::Result<Found> {
        let key = self.key(row)?;
        Ok(Found { pk: self.pk(&key), image: self.image(row, &key, filter)?, key })
    }
}

/// The prepared statements of one table, for as long as one window lasts.
pub(super) struct Lookup<'c> {
    by_key: CachedStatement<'c>,
    by_template: Option<CachedStatement<'c>>,
    filter: Option<Filter<'c>>,
}

impl<'c> Lookup<'c> {
    pub(super) fn new(connection: &'c Connection, reader: &RowReader) -> rusqlite::Result<Lookup<'c>> {
        let by_template = reader.by_template.as_ref().map(|by| connection.prepare_cached(&by.sql)).transpose()?;
        Ok(Lookup { by_key: connection.prepare_cached(&reader.by_key)?, by_template, filter: reader.filter(connection)? })
    }

    /// The row with this primary key, as the table compares keys: the one found may differ in its bytes.
    pub(super) fn by_key(&mut self, reader: &RowReader, key: &[Datum]) -> rusqlite::Result<Option<Found>> {
        for (place, value) in key.iter().enumerate() {
            self.by_key.raw_bind_parameter(place + 1, value)?;
        }
        let mut rows = self.by_key.raw_query();
        rows.next()?.map(|row| reader.found(row, self.filter.as_mut())).transpose()
    }

    /// What has become of old values of the template: the row that has exactly these now, else that nobody has.
    /// `None` where the primary key tells as much, or where a NULL is among them, which never made a key.
    pub(super) fn by_template(&mut self, reader: &RowReader, key: &[Datum], beside: &[Datum]) -> rusqlite::Result<Option<Found>> {
        let (Some(statement), Some(by)) = (&mut self.by_template, &reader.by_template) else { return Ok(None) };
        let values: Vec<&Datum> = reader.template_values(key, beside).collect();
        if values.contains(&&Datum::Null) {
            return Ok(None);
        }
        for (place, value) in by.parameters.iter().enumerate() {
            statement.raw_bind_parameter(place + 1, values[*value])?;
        }
        let mut rows: Rows<'_> = statement.raw_query();
        while let Some(row) = rows.next()? {
            if reader.has_template_values(row, key, beside)? {
                return reader.found(row, self.filter.as_mut()).map(Some);
            }
        }
        Ok(Some(Found { pk: reader.pk(key), key: key.to_vec(), image: reader.absent_with(key, beside) }))
    }
}

impl Lookup<'_> {
    /// What became of a row whose primary key nobody has any more, as far as that can be told without its old values.
    pub(super) fn fate(&mut self, reader: &RowReader, key: &[Datum]) -> rusqlite::Result<Image> {
        if reader.beside_width == 0
            && let Some(Found { image: image @ Image::Absent { .. }, .. }) = self.by_template(reader, key, &[])?
        {
            return Ok(image);
        }
        Ok(reader.absent(key))
    }
}

fn not_utf8(column: &str) -> String {
    format!("the text in the column {column} is not valid UTF-8, so it has no JSON; mend it in the database")
}

/// The text before the value of a column.
fn field(first: bool, name: &str) -> String {
    let mut text = String::from(if first { "{" } else { "," });
    push_json_text(&mut text, name);
    text.push(':');
    text
}

fn fields<'m>(mapped: &'m MappedTable, table: &'m Table) -> impl Iterator<Item = (String, usize)> + 'm {
    mapped.columns.iter().enumerate().map(|(index, name)| (field(index == 0, name), place(table, name)))
}

fn template_columns(mapped: &MappedTable, table: &Table) -> Vec<usize> {
    mapped.descriptor.keys.template.columns().map(|column| place(table, &column.column)).collect()
}

fn place(table: &Table, name: &str) -> usize {
    table.columns.iter().position(|column| column.name == name).expect("the mapping was resolved against this very table")
}

/// The condition that finds a row by an index.
pub(super) fn equal(table: &Table, parts: &[Part]) -> String {
    let conditions = parts.iter().enumerate().filter_map(|(index, part)| match part.what {
        PartOf::Column(column) => Some(format!("{} COLLATE {} = ?{}", quoted(&table.columns[column].name), part.collation, index + 1)),
        PartOf::Expression(_) => None,
    });
    conditions.collect::<Vec<_>>().join(" AND ")
}

fn by_template(table: &Table, columns: &[usize], key: &[usize], from: &str) -> Option<ByTemplate> {
    let within = |these: &[usize], those: &[usize]| these.iter().all(|column| those.contains(column));
    if within(columns, key) && within(key, columns) {
        return None;
    }
    let parts = table.unique_within(columns).expect("a template without a unique index is refused by the mapping");
    let parameters = parts.iter().filter_map(|part| match part.what {
        PartOf::Column(column) => columns.iter().position(|other| *other == column),
        PartOf::Expression(_) => None,
    });
    Some(ByTemplate { sql: format!("{from} WHERE {}", equal(table, parts)), parameters: parameters.collect() })
}

/// Rows in the order of the primary key's own index: all, and those after a bound. The last parameter is the limit.
fn chunk_statements(table: &Table, from: &str) -> (String, String) {
    let columns: Vec<(String, &Part)> = table
        .key
        .iter()
        .filter_map(|part| match part.what {
            PartOf::Column(column) => Some((quoted(&table.columns[column].name), part)),
            PartOf::Expression(_) => None,
        })
        .collect();
    let width = columns.len();
    let order: Vec<String> = columns
        .iter()
        .map(|(name, part)| format!("{name} COLLATE {}{}", part.collation, if part.descending { " DESC" } else { "" }))
        .collect();
    let order = order.join(", ");
    let plain = table
        .key
        .iter()
        .all(|part| !part.descending && matches!(part.what, PartOf::Column(column) if table.columns[column].collation == part.collation));
    let after = if plain {
        let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
        let values: Vec<String> = (1..=width).map(|index| format!("?{index}")).collect();
        format!("({}) > ({})", names.join(", "), values.join(", "))
    } else {
        after_in_mixed_order(&columns)
    };
    let limit = width + 1;
    (format!("{from} ORDER BY {order} LIMIT ?{limit}"), format!("{from} WHERE {after} ORDER BY {order} LIMIT ?{limit}"))
}

/// SQLite compares row values only in one direction and by the columns' own collations; this is the same, written out. The
/// first condition lets it seek.
fn after_in_mixed_order(columns: &[(String, &Part)]) -> String {
    let sign = |part: &Part| if part.descending { "<" } else { ">" };
    let mut condition = String::new();
    for (index, (name, part)) in columns.iter().enumerate().rev() {
        let (collation, sign, value) = (&part.collation, sign(part), index + 1);
        condition = if condition.is_empty() {
            format!("{name} COLLATE {collation} {sign} ?{value}")
        } else {
            format!("{name} COLLATE {collation} {sign}= ?{value} AND ({name} COLLATE {collation} {sign} ?{value} OR ({condition}))")
        };
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::TableSettings;
    use crate::source::sqlite::{Capture, install};

    #[test]
    fn rows_are_found_by_their_indexes_never_by_looking_at_all() {
        for (ddl, key) in [
            ("CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT NOT NULL UNIQUE)", None),
            ("CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT NOT NULL UNIQUE)", Some("t:{a}")),
            ("CREATE TABLE t(k TEXT PRIMARY KEY COLLATE NOCASE, a TEXT NOT NULL) WITHOUT ROWID", Some("t:{a}:{k}")),
            ("CREATE TABLE t(k TEXT NOT NULL, n INT NOT NULL, a TEXT, PRIMARY KEY(k, n))", None),
            ("CREATE TABLE t(k TEXT NOT NULL, n INT NOT NULL UNIQUE, a TEXT, PRIMARY KEY(k, n))", Some("t:{n}")),
            ("CREATE TABLE t(k TEXT NOT NULL, n INT NOT NULL, a TEXT, PRIMARY KEY(k DESC, n))", None),
            ("CREATE TABLE t(k TEXT NOT NULL, n INT NOT NULL, a TEXT, PRIMARY KEY(k COLLATE RTRIM, n DESC)) WITHOUT ROWID", None),
        ] {
            let connection = Connection::open_in_memory().unwrap();
            connection.execute_batch(ddl).unwrap();
            let settings = TableSettings { key: key.map(str::to_owned), ..TableSettings::new("t") };
            let reader = RowReader::new(&install::prepare(&connection, &settings, Capture::Triggers).unwrap());
            let by_template = reader.by_template.as_ref().map(|by| &by.sql);
            for sql in [&reader.by_key, &reader.chunk_after].into_iter().chain(by_template) {
                let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
                let plan: Vec<String> = statement.raw_query().mapped(|row| row.get(3)).map(Result::unwrap).collect();
                assert!(plan.len() == 1 && plan[0].starts_with("SEARCH"), "{ddl}: {sql}: {plan:?}");
            }
        }
    }

    #[test]
    fn a_primary_key_reads_back_whatever_the_order_of_its_columns() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t(\"a\"\"b\" TEXT, n INT, PRIMARY KEY(n, \"a\"\"b\")) WITHOUT ROWID").unwrap();
        let settings = TableSettings { key: Some("t:{n}:{a\"b}".to_owned()), ..TableSettings::new("t") };
        let reader = RowReader::new(&install::prepare(&connection, &settings, Capture::Triggers).unwrap());
        let key = vec![Datum::Integer(1), Datum::Text(b"x\"".to_vec())];
        assert_eq!(reader.pk(&key), r#"{"n":1,"a\"b":"x\""}"#);
        assert_eq!(reader.read_pk(&reader.pk(&key)).unwrap(), key);
        assert_eq!(reader.read_pk(r#"{"a\"b":"x\"", "n":1}"#).unwrap(), key);
        for wrong in ["{}", "[1]", r#"{"n":1}"#, r#"{"n":1,"a\"b":"x","more":1}"#, r#"{"n":true,"a\"b":"x"}"#] {
            assert!(reader.read_pk(wrong).is_err(), "{wrong}");
        }
    }
}
