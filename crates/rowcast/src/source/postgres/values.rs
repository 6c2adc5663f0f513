//! A value's text form becomes what `row_to_json` writes, in one pass into a growing buffer. Pure.
//!
//! PostgreSQL decides by the type, looking through domains (`json_categorize_type` in its sources): numbers stand as they are,
//! booleans are JSON's, time stamps get a `T`, JSON stays what it is, arrays and composites become arrays and objects of their
//! parts, and every other type is its text in quotes. The text form depends on settings of the session, so these are pinned.

use super::literal::{Array, ArrayPart, Composite, Hstore, Malformed};
use crate::batch::push_json_escaped;
use crate::change::KeyValue;
use crate::mapping::ColumnType;

/// Settings, and the values that they must have in every session whose text is converted: what a value looks like depends on them.
pub const PINNED: [(&str, &str); 9] = [
    ("client_encoding", "UTF8"),
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    // regclass and its like print a schema unless it is found on the path, and quotes where they need not be.
    ("search_path", "pg_catalog"),
    ("quote_all_identifiers", "off"),
];

/// The `client_encoding` that a session must have instead, by the `server_encoding` that the server says at its start.
///
/// A database of the encoding SQL_ASCII takes any bytes. Asked for UTF-8 the server would refuse to send those that are not, and a stream
/// would end there for ever; as they are they can be refused row by row.
pub fn client_encoding(server_encoding: &str) -> &'static str {
    if server_encoding == "SQL_ASCII" { "SQL_ASCII" } else { "UTF8" }
}

/// How the values of one type become JSON. Compiled by [`super::types::Catalogue::plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub(super) shape: Shape,
    pub(super) type_name: String,
    pub(super) definition: String,
    pub(super) key: Option<ColumnType>,
    pub(super) by_session: bool,
    pub(super) foreign: Option<String>,
}

/// What a text form is, and so what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Quoted.
    Text,
    /// As it is, but for NaN and the infinities, which are quoted.
    Number,
    /// `t` and `f`.
    Bool,
    /// `2026-01-01 00:00:00`.
    Timestamp,
    /// `2026-01-01 00:00:00+00`.
    TimestampTz,
    /// As it is.
    Json,
    /// `"a"=>"1", "b"=>NULL`.
    Hstore,
    /// `1 2 3`; the parts have this shape.
    Vector(Box<Shape>),
    /// `{1,NULL,"3"}`.
    Array { element: Box<Shape>, delimiter: u8 },
    /// `(1,,"3")`.
    Composite(Vec<Attribute>),
}

/// A part of a composite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    /// Its name as JSON, and the colon.
    pub(super) before: String,
    pub(super) shape: Shape,
}

/// Why a value could not be converted. All of these are a matter of the one row: to read it again in another session gives the same, but
/// the row as it stands in the table may be another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Bytes that a database of the encoding SQL_ASCII took.
    #[error(
        "the value is not UTF-8, so no JSON can hold it (a database of the encoding SQL_ASCII takes any bytes); write it again as UTF-8, \
         or leave the column out of `columns`"
    )]
    NotUtf8,
    /// The type was altered between the row and the catalogue as it was read, or a pinned setting is not in force.
    #[error(
        "the server sent a text that is not {0} as the catalogue has it: ALTER TYPE came between the row and now, so that the table is \
         read again, or something between rowcast and the server (a pooler) changes the settings of its session"
    )]
    Not(&'static str),
    /// A column was dropped between the row and the catalogue as it was read.
    #[error("the row has no such column; ALTER TABLE came between the row and now, so that the table is read again")]
    NoCell,
}

/// Room for the parts of nested values while they are unquoted, one text a level; used again for every value.
#[derive(Clone, Debug, Default)]
pub struct Scratch(Vec<String>);

/// A level that has held a larger text than this gives the room back.
const SCRATCH_KEPT: usize = 1 << 16;

impl Plan {
    /// Appends the value whose text form is `text`. After an error what was appended is of no use.
    pub fn push_json(&self, json: &mut String, text: &[u8], scratch: &mut Scratch) -> Result<(), Reason> {
        let text = std::str::from_utf8(text).map_err(|_| Reason::NotUtf8)?;
        if !self.shape.has_parts() {
            return self.shape.push(json, text, &mut []);
        }
        scratch.0.resize_with(scratch.0.len().max(self.shape.depth()), String::new);
        let outcome = self.shape.push(json, text, &mut scratch.0);
        for level in &mut scratch.0 {
            if level.capacity() > SCRATCH_KEPT {
                level.clear();
                level.shrink_to(SCRATCH_KEPT);
            }
        }
        outcome
    }

    /// The type that PostgreSQL does not bring along, if this is one or is made of one: its operators, its order among them, are its own.
    pub fn foreign(&self) -> Option<&str> {
        self.foreign.as_deref()
    }

    /// The type's name, as the database prints it.
    pub fn type_name(&self) -> &str {
        &self.type_name
    }

    /// All of the type's definition that decides how its values look, for the mapping's fingerprint: names and types of a composite's
    /// attributes, labels of an enumeration, and so on downwards. Where it changes, rows look different that nobody wrote.
    pub fn definition(&self) -> &str {
        &self.definition
    }

    /// What a key template may expect of a column of this type; `None` where two values that a unique index tells apart may look the
    /// same: arrays lose their bounds, in JSON a text may be what a number is, and two functions may have one name.
    pub fn key_type(&self) -> Option<ColumnType> {
        self.key
    }

    /// Whether the text of a value depends on the settings of the session that writes it, in JSON too, so that one that an application
    /// has written down may be read as another.
    pub fn depends_on_session(&self) -> bool {
        self.by_session
    }

    /// A template's column as mapping wants it: a whole number, or the text that stands in the JSON. Only for types with a key type.
    pub fn key_value(&self, text: &[u8]) -> Result<KeyValue, Reason> {
        let text = std::str::from_utf8(text).map_err(|_| Reason::NotUtf8)?;
        Ok(match (&self.shape, self.key) {
            (_, Some(ColumnType::Integer)) => KeyValue::Integer(text.parse().map_err(|_| Reason::Not("a whole number"))?),
            (Shape::Bool, _) => KeyValue::Text(boolean(text)?.to_owned()),
            (Shape::Timestamp, _) => {
                let (date, time) = timestamp(text);
                KeyValue::Text([date, time].join(if time.is_empty() { "" } else { "T" }))
            }
            (Shape::TimestampTz, _) => {
                let mut plain = String::with_capacity(text.len() + 3);
                timestamptz(text, |part| plain.push_str(part))?;
                KeyValue::Text(plain)
            }
            _ => KeyValue::Text(text.to_owned()),
        })
    }
}

impl Shape {
    fn has_parts(&self) -> bool {
        matches!(self, Shape::Array { .. } | Shape::Composite(_) | Shape::Hstore)
    }

    /// How many texts may be open within each other.
    pub(super) fn depth(&self) -> usize {
        match self {
            Shape::Array { element, .. } => 1 + element.depth(),
            Shape::Composite(attributes) => 1 + attributes.iter().map(|attribute| attribute.shape.depth()).max().unwrap_or(0),
            Shape::Hstore => 1,
            _ => 0,
        }
    }

    fn push(&self, json: &mut String, text: &str, scratch: &mut [String]) -> Result<(), Reason> {
        match self {
            Shape::Text => push_quoted(json, text),
            Shape::Number if is_json_number(text.as_bytes()) => json.push_str(text),
            Shape::Number => push_quoted(json, text),
            Shape::Bool => json.push_str(boolean(text)?),
            Shape::Timestamp => {
                let (date, time) = timestamp(text);
                json.push('"');
                push_json_escaped(json, date);
                if !time.is_empty() {
                    json.push('T');
                }
                push_json_escaped(json, time);
                json.push('"');
            }
            Shape::TimestampTz => {
                json.push('"');
                timestamptz(text, |part| push_json_escaped(json, part))?;
                json.push('"');
            }
            Shape::Json if text.is_empty() => return Err(Reason::Not("JSON")),
            Shape::Json => json.push_str(text),
            Shape::Hstore => push_hstore(json, text, scratch)?,
            Shape::Vector(part) => {
                json.push('[');
                for (index, number) in text.split_ascii_whitespace().enumerate() {
                    if index > 0 {
                        json.push(',');
                    }
                    part.push(json, number, scratch)?;
                }
                json.push(']');
            }
            Shape::Array { element, delimiter } => push_array(json, text, element, *delimiter, scratch)?,
            Shape::Composite(attributes) => push_composite(json, text, attributes, scratch)?,
        }
        Ok(())
    }
}

fn push_array(json: &mut String, text: &str, element: &Shape, delimiter: u8, scratch: &mut [String]) -> Result<(), Reason> {
    let (own, inner) = scratch.split_first_mut().expect("a level of scratch for each level of the type");
    let wrong = |Malformed| Reason::Not("an array");
    let mut array = Array::new(text, delimiter).map_err(wrong)?;
    while let Some(part) = array.part().map_err(wrong)? {
        match part {
            ArrayPart::Open => json.push('['),
            ArrayPart::Close => json.push(']'),
            ArrayPart::Delimiter => json.push(','),
            ArrayPart::Null => json.push_str("null"),
            ArrayPart::Element(taken) => element.push(json, taken.plain(own), inner)?,
        }
    }
    Ok(())
}

fn push_composite(json: &mut String, text: &str, attributes: &[Attribute], scratch: &mut [String]) -> Result<(), Reason> {
    let (own, inner) = scratch.split_first_mut().expect("a level of scratch for each level of the type");
    let wrong = |Malformed| Reason::Not("a composite of its type");
    let mut composite = Composite::new(text).map_err(wrong)?;
    json.push('{');
    for (index, attribute) in attributes.iter().enumerate() {
        if index > 0 {
            json.push(',');
        }
        json.push_str(&attribute.before);
        match composite.attribute().map_err(wrong)? {
            None => json.push_str("null"),
            Some(taken) => attribute.shape.push(json, taken.plain(own), inner)?,
        }
    }
    composite.end().map_err(wrong)?;
    json.push('}');
    Ok(())
}

/// As the extension's own cast does: with a space behind colons and commas, every value in quotes.
fn push_hstore(json: &mut String, text: &str, scratch: &mut [String]) -> Result<(), Reason> {
    let own = scratch.first_mut().expect("a level of scratch for each level of the type");
    let wrong = |Malformed| Reason::Not("an hstore");
    let mut hstore = Hstore::new(text);
    let mut first = true;
    json.push('{');
    while let Some((key, value)) = hstore.pair().map_err(wrong)? {
        if !std::mem::take(&mut first) {
            json.push_str(", ");
        }
        push_quoted(json, key.plain(own));
        json.push_str(": ");
        match value {
            None => json.push_str("null"),
            Some(value) => push_quoted(json, value.plain(own)),
        }
    }
    json.push('}');
    Ok(())
}

fn push_quoted(json: &mut String, text: &str) {
    json.push('"');
    push_json_escaped(json, text);
    json.push('"');
}

fn boolean(text: &str) -> Result<&'static str, Reason> {
    match text {
        "t" => Ok("true"),
        "f" => Ok("false"),
        _ => Err(Reason::Not("a boolean")),
    }
}

/// Date and time; the infinities have no time.
fn timestamp(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

/// The parts of a time stamp as JSON has it: a `T`, and minutes in the offset.
fn timestamptz(text: &str, mut push: impl FnMut(&str)) -> Result<(), Reason> {
    let (date, time) = timestamp(text);
    push(date);
    if time.is_empty() {
        return Ok(());
    }
    let (time, era) = time.strip_suffix(" BC").map_or((time, ""), |time| (time, " BC"));
    if !time.ends_with("+00") {
        return Err(Reason::Not("a time in the zone UTC"));
    }
    for part in ["T", time, ":00", era] {
        push(part);
    }
    Ok(())
}

/// Whether it is a number as JSON's grammar has it.
fn is_json_number(text: &[u8]) -> bool {
    fn digits(text: &[u8]) -> usize {
        text.iter().take_while(|byte| byte.is_ascii_digit()).count()
    }
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let whole = digits(text);
    if whole == 0 || (whole > 1 && text[0] == b'0') {
        return false;
    }
    let mut rest = &text[whole..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let count = digits(fraction);
        if count == 0 {
            return false;
        }
        rest = &fraction[count..];
    }
    if let [b'e' | b'E', exponent @ ..] = rest {
        let exponent = exponent.strip_prefix(b"+").or_else(|| exponent.strip_prefix(b"-")).unwrap_or(exponent);
        let count = digits(exponent);
        return count > 0 && count == exponent.len();
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::super::samples::{ODDITIES, catalogue};
    use super::*;

    fn converted(oid: u32, text: &[u8]) -> Result<String, Reason> {
        let mut json = String::new();
        catalogue().plan(oid).unwrap().push_json(&mut json, text, &mut Scratch::default()).map(|()| json)
    }

    #[test]
    fn every_text_form_becomes_what_row_to_json_says() {
        for (oid, text, json) in ODDITIES {
            assert_eq!(converted(*oid, text.as_bytes()).as_deref(), Ok(*json), "{text}");
        }
    }

    #[test]
    fn what_a_type_does_not_write_is_refused() {
        for (oid, texts) in [
            (16, &["true", "", "T"][..]),
            (1184, &["2026-01-01 00:00:00", "2026-01-01 00:00:00+01", "2026-01-01 00:00:00 BC"]),
            (114, &[""]),
            (
                1007,
                &["", "1", "{", "{1", "{1,", "{1,}", "{,1}", "{1}2", "{1}}", "{1{2}}", "{\"1}", "{1\"2\"}", "[0:1]{1}", "{}{}", "{\"1\\"],
            ),
            (1020, &["{(1,2),(0,0),\"x\"y}"]),
            (20_000, &["", "(", "(1,2)", "(1,2,3,4)", "(1,2,3)", "(1,\"2,)", "1,2,", "(1,2,)x", "(1,a\"b\",)"]),
            (20_003, &["(1)", "(", "()x"]),
            (20_004, &["a=>1", "\"a\"", "\"a\"=>", "\"a\"=>1", "\"a\"=>\"1\",", "\"a\"=>\"1\",\"b\"=>\"2\"", "\"a\"=>NULLx"]),
        ] {
            for text in texts {
                let found = converted(oid, text.as_bytes());
                assert!(matches!(found, Err(Reason::Not(_))), "{text}: {found:?}");
            }
        }
        assert_eq!(converted(25, b"\xff"), Err(Reason::NotUtf8));
    }

    #[test]
    fn only_what_json_calls_a_number_stands_without_quotes() {
        for text in ["0", "-0", "10", "0.10", "1e5", "1E+05", "-1.5e-10"] {
            assert_eq!(converted(1700, text.as_bytes()).as_deref(), Ok(text));
        }
        for text in ["", "-", "01", "+1", ".5", "1.", "1e", "1e+", "1e5x", "1x", "NaN", "Infinity", "-Infinity"] {
            assert_eq!(converted(1700, text.as_bytes()), Ok(format!("\"{text}\"")));
        }
    }

    #[test]
    fn a_large_value_leaves_no_large_room_behind() {
        let mut scratch = Scratch::default();
        let text = format!("{{\"\\\"{}\"}}", "x".repeat(1 << 20));
        catalogue().plan(1009).unwrap().push_json(&mut String::new(), text.as_bytes(), &mut scratch).unwrap();
        assert!(scratch.0.iter().map(String::capacity).sum::<usize>() <= SCRATCH_KEPT);
    }

    #[test]
    fn only_types_whose_values_never_look_alike_make_keys() {
        let catalogue = catalogue();
        let key = |oid| catalogue.plan(oid).unwrap().key_type();
        assert_eq!([23, 20_005].map(key), [Some(ColumnType::Integer); 2]);
        assert_eq!([1700, 701].map(key), [Some(ColumnType::Numeric); 2]);
        assert_eq!([25, 16, 1114, 1184, 603].map(key), [Some(ColumnType::Text); 5]);
        assert_eq!([114, 22, 1007, 20_000, 20_004, 2205].map(key), [None; 6]);
    }
}
