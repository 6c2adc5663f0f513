//! What a batch says of a table's mapping: enough for the consumer to write, and to sweep, without a configuration of its own.

use std::fmt;
use std::str::FromStr;

use super::template::{Template, TemplateError};
use crate::change::serde_as_text;

/// The form of a row in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// A string that holds a JSON object.
    Json,
    /// A hash with a field a column; a null column has none.
    Hash,
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Shape::Json => "json",
            Shape::Hash => "hash",
        }
    }
}

/// Under which keys a mapping writes, and whether its values tell whose they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Keys {
    /// The key template.
    pub template: Template,
    /// Whether the value holds every column of the template, so that it renders back to its key.
    pub in_value: bool,
}

/// A table's mapping as it stands in a batch and in the checkpoint: `9f3c61d0 json user:{id:integer}`.
///
/// Two mappings are the same exactly if their descriptors are equal; the fingerprint stands for what the rest does not show
/// (columns, their order, the filter).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Descriptor {
    /// Eight or more hexadecimal digits.
    pub fingerprint: String,
    /// The form of the value.
    pub shape: Shape,
    /// The keys.
    pub keys: Keys,
}

/// A descriptor that this version cannot read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// It has a part that this version does not know; to go on without it could write wrong values.
    #[error("the mapping {0:?} is of a newer version of rowcast; run that version here too")]
    Unknown(String),
    /// Its template is not one.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// The word that says that the value does not hold the key's columns.
const KEY_APART: &str = "key-apart";

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.fingerprint, self.shape.name(), self.keys)
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.in_value {
            write!(f, "{KEY_APART} ")?;
        }
        self.template.fmt(f)
    }
}

impl FromStr for Keys {
    type Err = DescriptorError;

    fn from_str(text: &str) -> Result<Self, DescriptorError> {
        let apart = text.strip_prefix(KEY_APART).and_then(|rest| rest.strip_prefix(' '));
        Ok(Keys { in_value: apart.is_none(), template: apart.unwrap_or(text).parse()? })
    }
}

impl FromStr for Descriptor {
    type Err = DescriptorError;

    fn from_str(text: &str) -> Result<Self, DescriptorError> {
        let unknown = || DescriptorError::Unknown(text.to_owned());
        let (fingerprint, rest) = text.split_once(' ').ok_or_else(unknown)?;
        let (shape, keys) = rest.split_once(' ').ok_or_else(unknown)?;
        let shape = [Shape::Json, Shape::Hash].into_iter().find(|known| known.name() == shape).ok_or_else(unknown)?;
        Ok(Descriptor { fingerprint: fingerprint.to_owned(), shape, keys: keys.parse()? })
    }
}

serde_as_text!(Descriptor, Keys);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_reads_back_as_it_was_printed() {
        for text in ["9f3c61d0 json user:{id:integer}", "9f3c61d0 hash key-apart {a b:text}:x"] {
            assert_eq!(text.parse::<Descriptor>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_word_of_a_newer_version_is_refused() {
        for text in ["", "9f3c61d0", "9f3c61d0 json", "9f3c61d0 msgpack user:{id:integer}", "9f3c61d0 json ttl=5 user:{id:integer}"] {
            assert!(text.parse::<Descriptor>().is_err(), "{text}");
        }
    }
}
