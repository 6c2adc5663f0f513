//! A row in the form in which it stands in the cache, and whose a value is that stands there. Pure.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{Cached, Put};
use crate::mapping::{Fields, Keys, Proof, Shape, Terms, plain};

impl Put {
    /// A row, a JSON object, in this shape and on these terms.
    pub fn of_row(row: &RawValue, shape: Shape, terms: Terms) -> Put {
        match shape {
            Shape::Json => Put::Text(row.get().as_bytes().to_vec(), terms),
            Shape::Hash => {
                let columns = Fields::of(row.get()).map(|fields| fields.0).unwrap_or_default();
                let field = |(name, value): (Cow<'_, str>, &RawValue)| Some((name.into_owned(), plain(value)?.into_owned().into_bytes()));
                let fields: Vec<_> = columns.into_iter().filter_map(field).collect();
                // Redis knows no empty hash.
                if fields.is_empty() { Put::Gone } else { Put::Hash(fields, terms) }
            }
        }
    }
}

impl Cached {
    /// Whether this value, under `key`, says that it was written under `keys`.
    pub fn is_own(&self, keys: &Keys, key: &str) -> bool {
        match self {
            Cached::Text(bytes) => {
                let fields = std::str::from_utf8(bytes).ok().and_then(Fields::of);
                keys.own(key, |column| fields.as_ref().and_then(|fields| fields.plain(column)))
            }
            Cached::Hash(fields) => {
                keys.own(key, |column| fields.get(column).and_then(|value| std::str::from_utf8(value).ok()).map(Cow::Borrowed))
            }
            // rowcast writes strings and hashes only; an application may fill its keys with anything.
            Cached::Other(_) => keys.proof == Proof::KeyAlone && keys.own(key, |_| None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_has_a_field_for_each_column_that_is_not_null() {
        let row: &RawValue = serde_json::from_str(r#"{"id":1,"name":"A\"da","email":null}"#).unwrap();
        let fields = [("id", "1"), ("name", "A\"da")].map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        assert_eq!(Put::of_row(row, Shape::Hash, Terms::default()), Put::Hash(fields.into(), Terms::default()));
        let empty: &RawValue = serde_json::from_str(r#"{"name":null}"#).unwrap();
        assert_eq!(Put::of_row(empty, Shape::Hash, Terms::default()), Put::Gone);
    }

    #[test]
    fn the_value_has_the_last_word_on_whose_it_is() {
        let keys: Keys = "t:{id:integer}".parse().unwrap();
        assert!(Cached::Text(br#"{"id":1}"#.to_vec()).is_own(&keys, "t:1"));
        assert!(!Cached::Text(b"hello".to_vec()).is_own(&keys, "t:1"));
        assert!(Cached::Hash([("id".to_owned(), b"1".to_vec())].into()).is_own(&keys, "t:1"));
        assert!(!Cached::Other("list".to_owned()).is_own(&keys, "t:1"));
        let alone: Keys = "key-alone t:{id:integer}".parse().unwrap();
        assert!(Cached::Other("list".to_owned()).is_own(&alone, "t:1"));
        assert!(!Cached::Other("list".to_owned()).is_own(&alone, "t:1:x"));
    }
}
