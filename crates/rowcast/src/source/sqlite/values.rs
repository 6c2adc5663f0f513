//! SQLite's values: how they become JSON, and how keys are written down and read back to the letter. Pure.
//!
//! Integers keep their digits, reals are the shortest text that reads back to the same eight bytes, infinities are
//! `9.0e+999`, blobs are hexadecimal digits. Nothing is ever replaced by a placeholder: text that is not UTF-8 has no JSON.

use std::fmt::Write;
use std::hash::{Hash, Hasher};

use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, ValueRef};
use serde_json::value::RawValue;

use crate::batch::push_json_text;
use crate::change::KeyValue;

/// A value of SQLite as it is stored. Equal means equal in type and bytes, whatever a collation says.
#[derive(Clone, Debug)]
pub(super) enum Datum {
    Null,
    Integer(i64),
    Real(f64),
    /// SQLite does not promise UTF-8.
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl PartialEq for Datum {
    fn eq(&self, other: &Datum) -> bool {
        match (self, other) {
            (Datum::Null, Datum::Null) => true,
            (Datum::Integer(a), Datum::Integer(b)) => a == b,
            (Datum::Real(a), Datum::Real(b)) => a.to_bits() == b.to_bits(),
            (Datum::Text(a), Datum::Text(b)) | (Datum::Blob(a), Datum::Blob(b)) => a == b,
            _ => false,
        }
    }
}

impl Eq for Datum {}

impl Hash for Datum {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        match self {
            Datum::Null => {}
            Datum::Integer(number) => number.hash(state),
            Datum::Real(number) => number.to_bits().hash(state),
            Datum::Text(bytes) | Datum::Blob(bytes) => bytes.hash(state),
        }
    }
}

impl From<ValueRef<'_>> for Datum {
    fn from(value: ValueRef<'_>) -> Datum {
        match value {
            ValueRef::Null => Datum::Null,
            ValueRef::Integer(number) => Datum::Integer(number),
            ValueRef::Real(number) => Datum::Real(number),
            ValueRef::Text(bytes) => Datum::Text(bytes.to_vec()),
            ValueRef::Blob(bytes) => Datum::Blob(bytes.to_vec()),
        }
    }
}

impl ToSql for Datum {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.borrowed()))
    }
}

impl Datum {
    pub(super) fn borrowed(&self) -> ValueRef<'_> {
        match self {
            Datum::Null => ValueRef::Null,
            Datum::Integer(number) => ValueRef::Integer(*number),
            Datum::Real(number) => ValueRef::Real(*number),
            Datum::Text(bytes) => ValueRef::Text(bytes),
            Datum::Blob(bytes) => ValueRef::Blob(bytes),
        }
    }

    /// Whether `value` is this in type and bytes.
    pub(super) fn is(&self, value: ValueRef<'_>) -> bool {
        match (self, value) {
            (Datum::Null, ValueRef::Null) => true,
            (Datum::Integer(a), ValueRef::Integer(b)) => *a == b,
            (Datum::Real(a), ValueRef::Real(b)) => a.to_bits() == b.to_bits(),
            (Datum::Text(a), ValueRef::Text(b)) | (Datum::Blob(a), ValueRef::Blob(b)) => a == b,
            _ => false,
        }
    }
}

/// Text whose bytes are not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotUtf8;

/// Appends a column's value as JSON.
pub(super) fn push_json(json: &mut String, value: ValueRef<'_>) -> Result<(), NotUtf8> {
    match value {
        ValueRef::Null => json.push_str("null"),
        ValueRef::Integer(number) => push_integer(json, number),
        ValueRef::Real(number) => push_real(json, number),
        ValueRef::Text(bytes) => push_json_text(json, std::str::from_utf8(bytes).map_err(|_| NotUtf8)?),
        ValueRef::Blob(bytes) => {
            json.push('"');
            push_hex(json, bytes);
            json.push('"');
        }
    }
    Ok(())
}

/// Appends one value of a primary key or bound as JSON, so that no two values share a text: bytes stand in an object.
pub(super) fn push_key_json(json: &mut String, value: ValueRef<'_>) {
    let mut wrapped = |name: &str, bytes: &[u8]| {
        json.push_str("{\"");
        json.push_str(name);
        json.push_str("\":\"");
        push_hex(json, bytes);
        json.push_str("\"}");
    };
    match value {
        ValueRef::Blob(bytes) => wrapped("hex", bytes),
        ValueRef::Text(bytes) if std::str::from_utf8(bytes).is_err() => wrapped("text_hex", bytes),
        _ => push_json(json, value).expect("everything else has a JSON text"),
    }
}

/// Reads one value back that [`push_key_json`] wrote.
pub(super) fn read_key_json(raw: &RawValue) -> Option<Datum> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wrapped {
        hex: Option<String>,
        text_hex: Option<String>,
    }
    let text = raw.get();
    match text.as_bytes().first()? {
        b'n' => Some(Datum::Null),
        b'"' => Some(Datum::Text(serde_json::from_str::<String>(text).ok()?.into_bytes())),
        b'{' => match serde_json::from_str(text).ok()? {
            Wrapped { hex: Some(hex), text_hex: None } => Some(Datum::Blob(read_hex(&hex)?)),
            Wrapped { hex: None, text_hex: Some(hex) } => Some(Datum::Text(read_hex(&hex)?)),
            _ => None,
        },
        // serde_json may miss the last bit of a real; the standard library does not.
        b'-' | b'0'..=b'9' if text.contains(['.', 'e', 'E']) => text.parse().ok().map(Datum::Real),
        b'-' | b'0'..=b'9' => text.parse().ok().map(Datum::Integer),
        _ => None,
    }
}

/// A template's column as mapping wants it.
pub(super) fn key_value(value: ValueRef<'_>) -> Result<KeyValue, NotUtf8> {
    Ok(match value {
        ValueRef::Null => KeyValue::Null,
        ValueRef::Integer(number) => KeyValue::Integer(number),
        ValueRef::Real(number) => KeyValue::Real(number),
        ValueRef::Text(bytes) => KeyValue::Text(std::str::from_utf8(bytes).map_err(|_| NotUtf8)?.to_owned()),
        ValueRef::Blob(bytes) => KeyValue::Blob(bytes.to_vec()),
    })
}

fn push_integer(json: &mut String, number: i64) {
    // Twenty digits hold every i64; filled from the end.
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        json.push('-');
    }
    json.push_str(std::str::from_utf8(&digits[at..]).unwrap_or_default());
}

fn push_real(json: &mut String, number: f64) {
    if number.is_infinite() {
        json.push_str(if number > 0.0 { "9.0e+999" } else { "-9.0e+999" });
        return;
    }
    // SQLite stores NULL for what is not a number.
    debug_assert!(!number.is_nan());
    let mut buffer = zmij::Buffer::new();
    let text = buffer.format_finite(number);
    json.push_str(text);
    if !text.contains(['.', 'e']) {
        json.push_str(".0");
    }
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a String takes every write");
    }
}

pub(super) fn read_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(value: ValueRef<'_>) -> String {
        let mut text = String::new();
        push_json(&mut text, value).unwrap();
        text
    }

    fn there_and_back(datum: &Datum) -> Datum {
        let mut text = String::new();
        push_key_json(&mut text, datum.borrowed());
        read_key_json(&serde_json::from_str::<Box<RawValue>>(&text).unwrap()).unwrap()
    }

    #[test]
    fn every_value_reads_as_one_would_write_it() {
        for (value, text) in [
            (ValueRef::Null, "null"),
            (ValueRef::Integer(0), "0"),
            (ValueRef::Integer(i64::MIN), "-9223372036854775808"),
            (ValueRef::Integer(i64::MAX), "9223372036854775807"),
            (ValueRef::Real(1.0), "1.0"),
            (ValueRef::Real(0.1), "0.1"),
            (ValueRef::Real(f64::INFINITY), "9.0e+999"),
            (ValueRef::Real(f64::NEG_INFINITY), "-9.0e+999"),
            (ValueRef::Text("a\"\n\u{0}é".as_bytes()), "\"a\\\"\\n\\u0000é\""),
            (ValueRef::Blob(&[0, 255]), "\"00ff\""),
        ] {
            assert_eq!(json(value), text);
        }
        assert_eq!(push_json(&mut String::new(), ValueRef::Text(&[0xff])), Err(NotUtf8));
    }

    #[test]
    fn what_a_key_cannot_be_is_not_read() {
        for text in ["true", "[]", "{}", r#"{"hex":"0"}"#, r#"{"hex":"zz"}"#, r#"{"hex":"00","text_hex":"00"}"#, "99999999999999999999"] {
            assert_eq!(read_key_json(&serde_json::from_str::<Box<RawValue>>(text).unwrap()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn reals_read_back_to_the_same_bytes(bits: u64) {
            let number = f64::from_bits(bits);
            prop_assume!(!number.is_nan());
            let text = json(ValueRef::Real(number));
            prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), bits);
            prop_assert!(serde_json::from_str::<Box<RawValue>>(&text).is_ok());
            prop_assert!(text.contains(['.', 'e']), "{} could be a whole number", text);
        }

        #[test]
        fn keys_read_back_to_the_same_bytes(integer: i64, bits: u64, text: Vec<u8>, proper: String) {
            let real = f64::from_bits(bits);
            prop_assume!(!real.is_nan());
            for datum in [
                Datum::Null, Datum::Integer(integer), Datum::Real(real), Datum::Text(proper.into_bytes()),
                Datum::Text(text.clone()), Datum::Blob(text),
            ] {
                prop_assert_eq!(there_and_back(&datum), datum);
            }
        }
    }
}
