//! Whose key is it? A sweep must never touch a key that rowcast did not write.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::descriptor::{Keys, Proof};

/// A row's columns in order, each as it stands in the JSON object.
pub struct Fields<'r>(pub Vec<(Cow<'r, str>, &'r RawValue)>);

impl<'r> Fields<'r> {
    /// Takes a JSON object apart; `None` where the text is not one.
    pub fn of(json: &'r str) -> Option<Fields<'r>> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(map.size_hint().unwrap_or(8).min(1024));
                while let Some(Name(name)) = map.next_key()? {
                    fields.push((name, map.next_value()?));
                }
                Ok(fields)
            }
        }
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let fields = deserializer.deserialize_map(InOrder).ok()?;
        deserializer.end().ok()?;
        Some(Fields(fields))
    }

    /// The field `name` as plain text: a string's content, anything else as JSON writes it; `None` for null or no such field.
    pub fn plain(&self, name: &str) -> Option<Cow<'r, str>> {
        self.0.iter().find(|(field, _)| field == name).and_then(|(_, value)| plain(value))
    }
}

#[derive(serde::Deserialize)]
struct Name<'n>(#[serde(borrow)] Cow<'n, str>);

/// A JSON value as plain text, as the fields of a hash hold it; `None` for null. A string that no text can be (half of a surrogate pair,
/// which PostgreSQL's `json` takes) stays as JSON writes it.
pub fn plain(value: &RawValue) -> Option<Cow<'_, str>> {
    match value.get() {
        "null" => None,
        text if text.starts_with('"') => Some(serde_json::from_str::<Name<'_>>(text).map_or(Cow::Borrowed(text), |Name(text)| text)),
        text => Some(Cow::Borrowed(text)),
    }
}

impl Keys {
    /// Whether `key` is one of this template's. `column` gives a column's plain text out of the value that stands there; it is
    /// asked only where the value holds the key's columns.
    ///
    /// Where neither the key nor the value can decide, the answer is no: to leave a key is a lesser evil than to remove
    /// somebody else's.
    pub fn own<'v>(&self, key: &str, mut column: impl FnMut(&str) -> Option<Cow<'v, str>>) -> bool {
        let Some(parts) = self.template.parse(key) else { return false };
        match self.proof {
            Proof::KeyAlone => true,
            Proof::Key => !self.template.ends_openly(),
            Proof::Value => self.template.columns().zip(parts).all(|(placeholder, part)| {
                column(&placeholder.column).is_some_and(|plain| self.template.encode(placeholder.kind, &plain) == part)
            }),
        }
    }

    /// Whether a sweep finds every key that was written under this template; else a key that nobody names any more may stay.
    pub fn can_be_told(&self) -> bool {
        self.proof != Proof::Key || !self.template.ends_openly()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_but_null_has_a_plain_text() {
        let values = r#"["null",null,"a\"b",1.10,{"a":null},"\ud800"]"#;
        let values: Vec<&RawValue> = serde_json::from_str(values).unwrap();
        let plain: Vec<Option<Cow<'_, str>>> = values.into_iter().map(plain).collect();
        let expected = [Some("null"), None, Some("a\"b"), Some("1.10"), Some(r#"{"a":null}"#), Some(r#""\ud800""#)];
        assert_eq!(plain.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
    }

    fn keys(text: &str) -> Keys {
        text.parse().unwrap()
    }

    fn own(keys: &Keys, key: &str, json: &str) -> bool {
        let fields = Fields::of(json);
        keys.own(key, |name| fields.as_ref().and_then(|fields| fields.plain(name)))
    }

    #[test]
    fn a_value_must_render_back_to_its_key() {
        let users = keys("user:{id:integer}");
        assert!(own(&users, "user:7", r#"{"id":7,"name":"Ada"}"#));
        for (key, json) in [
            ("user:7", r#"{"id":8}"#),
            ("user:7", r#"{"name":"Ada"}"#),
            ("user:7", "hello"),
            ("user:7", r#"{"id":null}"#),
            ("user:7:cart", r#"{"id":7}"#),
        ] {
            assert!(!own(&users, key, json), "{key} {json}");
        }
        assert!(own(&keys("m:{mail:text}"), "m:a%20b", r#"{"mail":"a b"}"#));
        assert!(own(&keys("m:{price:numeric}"), "m:1.5", r#"{"price":1.5}"#));
        assert!(own(&keys("m:{hash:blob}"), "m:00ff", r#"{"hash":"00ff"}"#));
    }

    #[test]
    fn where_neither_can_decide_the_key_is_left() {
        assert!(own(&keys("key-apart user:{id:integer}"), "user:7", "hello"));
        assert!(!own(&keys("key-apart m:{mail:text}"), "m:a", r#"{"mail":"a"}"#));
        assert!(own(&keys("key-apart m:{mail:text}:x"), "m:a:x", "{}"));
    }

    #[test]
    fn where_the_application_fills_keys_the_key_alone_tells() {
        let users = keys("key-alone user:{id:integer}");
        for value in ["hello", r#"{"id":8}"#, ""] {
            assert!(own(&users, "user:7", value), "{value}");
        }
        assert!(!own(&users, "user:7:cart", r#"{"id":7}"#));
    }

    #[test]
    fn plain_text_is_what_a_hash_would_hold() {
        let fields = Fields::of(r#"{"a":"x\n","b":null,"c":-1.50,"d":true,"e\"":"é"}"#).unwrap();
        assert_eq!(fields.plain("a").unwrap(), "x\n");
        assert_eq!(fields.plain("b"), None);
        assert_eq!(fields.plain("c").unwrap(), "-1.50");
        assert_eq!(fields.plain("d").unwrap(), "true");
        assert_eq!(fields.plain("e\"").unwrap(), "é");
        for text in ["", "[]", "{", "{} x", "7"] {
            assert!(Fields::of(text).is_none(), "{text}");
        }
    }
}
