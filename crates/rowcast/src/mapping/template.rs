//! Key templates: how columns become a Redis key, and how a Redis key is taken apart again.
//!
//! Rendering is one-to-one: two rows with different template columns never share a key, and a key that was rendered by a
//! template is taken apart by it without doubt. Letters and digits of a text stand as they are; whatever could be mistaken
//! (`:`, spaces, `%`, characters of the template's literals) is percent-encoded, so `a b:c` becomes `a%20b%3Ac`. A part that is
//! NULL or empty makes no key.

use std::fmt;
use std::str::FromStr;

use super::refusal::{KeyError, TemplateError};
use crate::change::KeyValue;

/// What a template expects of a column, and so which texts between its literals can be ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ColumnType {
    /// Whole numbers and nothing else, written in decimal digits.
    Integer,
    /// Numbers, and whatever else a column of numeric affinity lets through; encoded like text.
    Numeric,
    /// Text, percent-encoded where it could be mistaken.
    Text,
    /// Bytes, written in lower-case hexadecimal digits.
    Blob,
}

impl ColumnType {
    fn name(self) -> &'static str {
        match self {
            ColumnType::Integer => "integer",
            ColumnType::Numeric => "numeric",
            ColumnType::Text => "text",
            ColumnType::Blob => "blob",
        }
    }
}

/// A column of a template.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Placeholder {
    /// The column's name.
    pub column: String,
    /// Its type.
    pub kind: ColumnType,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Piece {
    Literal(String),
    Column(Placeholder),
}

/// A key template with the types of its columns, written `user:{id:integer}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Template {
    pieces: Vec<Piece>,
}

/// Whether a character beyond ASCII looks like a space, like nothing, or changes the direction of what follows. Written out: the
/// standard library's tables change with its version, and the key of a row must not.
fn is_unseen(c: char) -> bool {
    matches!(
        c,
        '\u{80}'..='\u{a0}'
            | '\u{ad}'
            | '\u{61c}'
            | '\u{1680}'
            | '\u{180e}'
            | '\u{2000}'..='\u{200f}'
            | '\u{2028}'..='\u{202f}'
            | '\u{205f}'..='\u{206f}'
            | '\u{3000}'
            | '\u{feff}'
            | '\u{fff0}'..='\u{ffff}'
    )
}

/// A real number as JSON writes it, so that the value renders back to the key. Infinity must not be a word, which a text could be.
fn real(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "9.0e+999" } else { "-9.0e+999" }.to_owned();
    }
    let mut text = zmij::Buffer::new().format(number).to_owned();
    if !text.contains(['.', 'e']) {
        text.push_str(".0");
    }
    text
}

fn is_literal(c: char) -> bool {
    c.is_ascii_alphanumeric() || ":/._-@+#=,;~".contains(c)
}

impl Template {
    /// Reads a template as the configuration writes it (`user:{id}`); `kind` gives the type of a column, or `None` where the
    /// table has no such column.
    pub fn configured(text: &str, mut kind: impl FnMut(&str) -> Option<ColumnType>) -> Result<Template, TemplateError> {
        Template::read(text, |inner| {
            let kind =
                kind(inner).ok_or_else(|| TemplateError::UnknownColumn { text: text.to_owned(), column: inner.to_owned(), near: None })?;
            Ok(Placeholder { column: inner.to_owned(), kind })
        })
    }

    fn read(text: &str, mut placeholder: impl FnMut(&str) -> Result<Placeholder, TemplateError>) -> Result<Template, TemplateError> {
        let brace = || TemplateError::Brace(text.to_owned());
        let mut pieces: Vec<Piece> = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(inside) = rest.strip_prefix('{') {
                let (name, after) = inside.split_once('}').ok_or_else(brace)?;
                if name.is_empty() || name.contains('{') {
                    return Err(brace());
                }
                let next = placeholder(name)?;
                if let Some(Piece::Column(left)) = pieces.last() {
                    return Err(TemplateError::Touching { text: text.to_owned(), left: left.column.clone(), right: next.column });
                }
                pieces.push(Piece::Column(next));
                rest = after;
            } else {
                let end = rest.find('{').unwrap_or(rest.len());
                let literal = &rest[..end];
                if literal.contains('}') {
                    return Err(brace());
                }
                if let Some(character) = literal.chars().find(|c| !is_literal(*c)) {
                    return Err(TemplateError::Literal { text: text.to_owned(), character });
                }
                if let Some(Piece::Column(left)) = pieces.last()
                    && literal.starts_with(|c: char| c.is_ascii_alphanumeric())
                {
                    return Err(TemplateError::Separator {
                        text: text.to_owned(),
                        column: left.column.clone(),
                        literal: literal.to_owned(),
                    });
                }
                pieces.push(Piece::Literal(literal.to_owned()));
                rest = &rest[end..];
            }
        }
        if text.starts_with("rowcast:") {
            return Err(TemplateError::Reserved(text.to_owned()));
        }
        let template = Template { pieces };
        if template.columns().next().is_none() {
            return Err(TemplateError::NoColumn(text.to_owned()));
        }
        Ok(template)
    }

    /// The columns, in order.
    pub fn columns(&self) -> impl Iterator<Item = &Placeholder> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Column(placeholder) => Some(placeholder),
            Piece::Literal(_) => None,
        })
    }

    /// The text before the first column: every key begins with it.
    pub fn prefix(&self) -> &str {
        match self.pieces.first() {
            Some(Piece::Literal(literal)) => literal,
            _ => "",
        }
    }

    pub(super) fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter()
    }

    /// The key of a row; `values` are those of the template's columns, in its order.
    pub fn render(&self, values: &[KeyValue]) -> Result<String, KeyError> {
        debug_assert_eq!(values.len(), self.columns().count());
        let mut key = String::new();
        let mut values = values.iter();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => key.push_str(literal),
                Piece::Column(column) => self.render_part(&mut key, column, values.next().unwrap_or(&KeyValue::Null))?,
            }
        }
        Ok(key)
    }

    fn render_part(&self, key: &mut String, column: &Placeholder, value: &KeyValue) -> Result<(), KeyError> {
        use std::fmt::Write;
        let wrong = |found| KeyError::Type { column: column.column.clone(), found, expected: column.kind.name() };
        // Writing to a String cannot fail.
        match (value, column.kind) {
            (KeyValue::Null, _) => return Err(KeyError::Null(column.column.clone())),
            (KeyValue::Blob(bytes), ColumnType::Blob) => {
                if bytes.is_empty() {
                    return Err(KeyError::Empty(column.column.clone()));
                }
                for byte in bytes {
                    write!(key, "{byte:02x}").expect("a String takes every write");
                }
            }
            (KeyValue::Blob(_), _) => return Err(wrong("a blob")),
            // A column without affinity holds 1 and '1' as two rows; only the bytes that it was declared for are safe.
            (_, ColumnType::Blob) => return Err(wrong("something else than bytes")),
            (KeyValue::Integer(number), ColumnType::Integer) => write!(key, "{number}").expect("a String takes every write"),
            (KeyValue::Integer(number), ColumnType::Numeric) => self.render_text(key, &number.to_string()),
            // Affinity has made 1 of 1.0 and of '1', so what is still real or text cannot meet a whole number.
            (KeyValue::Real(number), ColumnType::Numeric) => self.render_text(key, &real(*number)),
            (KeyValue::Text(text), ColumnType::Text | ColumnType::Numeric) => {
                if text.is_empty() {
                    return Err(KeyError::Empty(column.column.clone()));
                }
                self.render_text(key, text);
            }
            (KeyValue::Integer(_) | KeyValue::Real(_), ColumnType::Text) => return Err(wrong("a number")),
            (KeyValue::Real(_), ColumnType::Integer) => return Err(wrong("a real number")),
            (KeyValue::Text(_), ColumnType::Integer) => return Err(wrong("text")),
        }
        Ok(())
    }

    /// Whether a character of a text part stands as it is. Signs of the literals never do, so that a key is taken apart
    /// without doubt.
    fn stands(&self, c: char) -> bool {
        let in_literal = || self.pieces.iter().any(|piece| matches!(piece, Piece::Literal(literal) if literal.contains(c)));
        c.is_ascii_alphanumeric() || (!c.is_ascii() && !is_unseen(c)) || ("_.@+-".contains(c) && !in_literal())
    }

    /// Whether a value of this type may have `c` in its part of the key.
    pub(super) fn part_may_hold(&self, kind: ColumnType, c: char) -> bool {
        match kind {
            ColumnType::Integer => c.is_ascii_digit() || c == '-',
            ColumnType::Blob => matches!(c, '0'..='9' | 'a'..='f'),
            ColumnType::Text | ColumnType::Numeric => c == '%' || self.stands(c),
        }
    }

    fn render_text(&self, key: &mut String, text: &str) {
        use std::fmt::Write;
        for c in text.chars() {
            if self.stands(c) {
                key.push(c);
            } else {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    write!(key, "%{byte:02X}").expect("a String takes every write");
                }
            }
        }
    }

    /// Whether the last part is free text, so that a key that begins like ours could be anybody's.
    pub fn ends_openly(&self) -> bool {
        matches!(self.pieces.last(), Some(Piece::Column(Placeholder { kind: ColumnType::Text | ColumnType::Numeric, .. })))
    }

    /// How a column's plain text stands in a key.
    pub fn encode(&self, kind: ColumnType, plain: &str) -> String {
        match kind {
            ColumnType::Integer | ColumnType::Blob => plain.to_owned(),
            ColumnType::Text | ColumnType::Numeric => {
                let mut part = String::new();
                self.render_text(&mut part, plain);
                part
            }
        }
    }

    /// Takes a key apart: the parts between the literals, each of which a column of its type could have written.
    /// `None` where this template cannot have rendered `key`.
    pub fn parse<'k>(&self, key: &'k str) -> Option<Vec<&'k str>> {
        let mut parts = Vec::new();
        let mut rest = key;
        let mut pieces = self.pieces.iter().peekable();
        while let Some(piece) = pieces.next() {
            match piece {
                Piece::Literal(literal) => rest = rest.strip_prefix(literal.as_str())?,
                Piece::Column(column) => {
                    let end = match pieces.peek() {
                        // A literal's first character never stands in a value, but for the sign of a whole number.
                        Some(Piece::Literal(literal)) => {
                            let sign = usize::from(column.kind == ColumnType::Integer && rest.starts_with('-'));
                            sign + rest[sign..].find(literal.as_str())?
                        }
                        _ => rest.len(),
                    };
                    let (part, after) = rest.split_at(end);
                    if !self.could_be(part, column.kind) {
                        return None;
                    }
                    parts.push(part);
                    rest = after;
                }
            }
        }
        rest.is_empty().then_some(parts)
    }

    fn could_be(&self, part: &str, kind: ColumnType) -> bool {
        match kind {
            ColumnType::Integer => part.parse::<i64>().is_ok_and(|number| number.to_string() == part),
            ColumnType::Blob => {
                !part.is_empty() && part.len().is_multiple_of(2) && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            }
            ColumnType::Text | ColumnType::Numeric => self.is_encoded(part),
        }
    }

    fn is_encoded(&self, part: &str) -> bool {
        let mut decoded = Vec::with_capacity(part.len());
        let mut rest = part;
        while let Some(c) = rest.chars().next() {
            if c == '%' {
                let Some(byte) = rest.get(1..3).and_then(|hex| u8::from_str_radix(hex, 16).ok()) else { return false };
                decoded.push(byte);
                rest = &rest[3..];
            } else {
                decoded.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = &rest[c.len_utf8()..];
            }
        }
        let Ok(text) = String::from_utf8(decoded) else { return false };
        let mut again = String::new();
        self.render_text(&mut again, &text);
        !part.is_empty() && again == part
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => f.write_str(literal)?,
                Piece::Column(column) => write!(f, "{{{}:{}}}", column.column, column.kind.name())?,
            }
        }
        Ok(())
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Template, TemplateError> {
        Template::read(text, |inner| {
            // The type comes last, so that a column's own name may hold a colon.
            let (column, kind) = inner.rsplit_once(':').ok_or_else(|| TemplateError::UnknownType(inner.to_owned()))?;
            let kind = [ColumnType::Integer, ColumnType::Numeric, ColumnType::Text, ColumnType::Blob]
                .into_iter()
                .find(|known| known.name() == kind)
                .ok_or_else(|| TemplateError::UnknownType(kind.to_owned()))?;
            Ok(Placeholder { column: column.to_owned(), kind })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use KeyValue::{Blob, Integer, Null, Real, Text};
    use proptest::prelude::*;

    fn kinds(column: &str) -> Option<ColumnType> {
        match column {
            "id" | "n" => Some(ColumnType::Integer),
            "name" | "other" => Some(ColumnType::Text),
            "price" => Some(ColumnType::Numeric),
            "hash" => Some(ColumnType::Blob),
            _ => None,
        }
    }

    fn template(text: &str) -> Template {
        Template::configured(text, kinds).unwrap()
    }

    fn text(text: &str) -> KeyValue {
        Text(text.to_owned())
    }

    #[test]
    fn keys_read_as_one_would_write_them() {
        assert_eq!(template("user:{id}").render(&[Integer(-7)]).unwrap(), "user:-7");
        assert_eq!(template("mail/{name}").render(&[text("Ada.L@example.com")]).unwrap(), "mail/Ada.L@example.com");
        assert_eq!(template("x:{price}").render(&[Real(1.5)]).unwrap(), "x:1.5");
        assert_eq!(template("x:{hash}:y").render(&[Blob(vec![0, 255])]).unwrap(), "x:00ff:y");
    }

    #[test]
    fn what_could_be_mistaken_is_encoded() {
        assert_eq!(template("u:{name}").render(&[text("a b:c%\u{e9}")]).unwrap(), "u:a%20b%3Ac%25\u{e9}");
        assert_eq!(template("{name}-{other}").render(&[text("a-b"), text("c_d")]).unwrap(), "a%2Db-c_d");
        assert_eq!(template("u:{name}").render(&[text("\n\u{a0}\u{200b}日本🎵")]).unwrap(), "u:%0A%C2%A0%E2%80%8B日本🎵");
    }

    #[test]
    fn a_number_stands_in_a_key_as_it_stands_in_the_value() {
        for (number, part) in
            [(1.0, "1.0"), (0.1, "0.1"), (1e300, "1e%2B300"), (f64::INFINITY, "9.0e%2B999"), (f64::NEG_INFINITY, "-9.0e%2B999")]
        {
            let template = template("x+{price}");
            let key = template.render(&[Real(number)]).unwrap();
            assert_eq!(key, format!("x+{part}"));
            assert_eq!(template.parse(&key), Some(vec![part]));
        }
        assert_ne!(template("x:{price}").render(&[Real(f64::INFINITY)]), template("x:{price}").render(&[text("inf")]));
    }

    #[test]
    fn a_row_without_a_safe_key_has_none() {
        assert_eq!(template("u:{name}").render(&[Null]), Err(KeyError::Null("name".into())));
        assert_eq!(template("u:{name}").render(&[text("")]), Err(KeyError::Empty("name".into())));
        for (key, value) in
            [("u:{name}", Integer(1)), ("u:{id}", text("1")), ("u:{id}", Real(1.5)), ("u:{hash}", text("a")), ("u:{name}", Blob(vec![1]))]
        {
            assert!(matches!(template(key).render(std::slice::from_ref(&value)), Err(KeyError::Type { .. })), "{key} {value:?}");
        }
    }

    #[test]
    fn a_key_of_somebody_else_is_not_ours() {
        let users = template("user:{id}");
        assert_eq!(users.parse("user:7"), Some(vec!["7"]));
        for key in ["user:7:cart", "user:", "user:07", "user:+7", "user:7 ", "user:x", "users:7", "user:9223372036854775808"] {
            assert_eq!(users.parse(key), None, "{key}");
        }
        assert_eq!(template("u:{name}").parse("u:a:b"), None);
        assert_eq!(template("u:{name}").parse("u:a%2"), None);
        assert_eq!(template("u:{name}").parse("u:%61"), None, "an a is never encoded");
        assert_eq!(template("u:{hash}").parse("u:0G"), None);
    }

    #[test]
    fn templates_that_cannot_be_safe_are_refused() {
        use TemplateError as E;
        let refused = |text: &str| Template::configured(text, kinds).unwrap_err();
        assert!(matches!(refused("user"), E::NoColumn(_)));
        assert!(matches!(refused(""), E::NoColumn(_)));
        assert!(matches!(refused("user:{id"), E::Brace(_)));
        assert!(matches!(refused("user:id}"), E::Brace(_)));
        assert!(matches!(refused("user:{}"), E::Brace(_)));
        assert!(matches!(refused("{id}{n}"), E::Touching { .. }));
        assert!(matches!(refused("{name}x{n}"), E::Separator { .. }));
        assert!(matches!(refused("user {id}"), E::Literal { character: ' ', .. }));
        assert!(matches!(refused("u:{nmae}"), E::UnknownColumn { .. }));
        assert!(matches!(refused("rowcast:{id}"), E::Reserved(_)));
    }

    #[test]
    fn a_template_reads_back_as_it_was_printed() {
        for written in ["user:{id}", "{name}-{other}/{price}", "a{hash}:z"] {
            let template = template(written);
            assert_eq!(template.to_string().parse(), Ok(template));
        }
        assert!("user:{id:stone}".parse::<Template>().is_err());
    }

    proptest! {
        #[test]
        fn every_rendered_key_is_taken_apart_and_no_two_rows_share_one(
            a in ("[a-c:%é -]{1,4}", any::<i64>(), "[a-c:%é_.-]{1,4}", any::<f64>()),
            b in ("[a-c:%é -]{1,4}", any::<i64>(), "[a-c:%é_.-]{1,4}", any::<f64>()),
        ) {
            let template = template("k:{name}-{id}-{other}:{price}");
            let values = |(name, id, other, price): &(String, i64, String, f64)| [text(name), Integer(*id), text(other), Real(*price)];
            let (left, right) = (template.render(&values(&a)).unwrap(), template.render(&values(&b)).unwrap());
            let parts = template.parse(&left);
            prop_assert!(parts.is_some(), "{}", left);
            prop_assert_eq!(parts.unwrap()[1], a.1.to_string());
            prop_assert_eq!(a == b, left == right);
        }
    }
}
