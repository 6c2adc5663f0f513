//! What a batch says of a table's mapping: enough for the consumer to write, and to sweep, without a configuration of its own.

use std::fmt;
use std::str::FromStr;

use super::options::{OnChange, Terms, Ttl};
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

/// What tells whose a key of a template's form is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proof {
    /// The value: it holds every column of the template, so that it renders back to its key.
    Value,
    /// The key, where a template can decide at all, for the value does not hold the columns. It is a string or a hash.
    Key,
    /// The key alone, for the application fills keys too: whatever stands under a key of this form is the table's.
    KeyAlone,
}

/// Under which keys a mapping writes, and what tells whose they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Keys {
    /// The key template.
    pub template: Template,
    /// What tells that a key is the table's.
    pub proof: Proof,
}

/// A table's mapping as it stands in a batch and in the checkpoint: `9f3c61d0 json user:{id:integer}`, or with every option
/// `9f3c61d0 json ttl=1h refresh key-alone user:{id:integer}`.
///
/// Two mappings are the same exactly if their descriptors are equal; the fingerprint stands for what the rest does not show
/// (columns, their order, the filter).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Descriptor {
    /// Eight or more hexadecimal digits.
    pub fingerprint: String,
    /// The form of the value.
    pub shape: Shape,
    /// How long a value stands.
    pub ttl: Option<Ttl>,
    /// What a change does to the key.
    pub on_change: OnChange,
    /// The keys.
    pub keys: Keys,
}

impl Descriptor {
    /// On which terms a row is written.
    pub fn terms(&self) -> Terms {
        Terms { ttl: self.ttl.map(Ttl::duration), existing: self.on_change == OnChange::Refresh }
    }
}

/// A descriptor that this version cannot read: it has a part that is not known here, and to go on without it could write wrong
/// values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the mapping {0:?} is of a newer version of rowcast; run that version here too")]
pub struct UnknownMapping(pub String);

/// What stands before a time to live.
const TTL: &str = "ttl=";

impl Proof {
    /// The word that stands before the template; none for the usual proof.
    fn word(self) -> Option<&'static str> {
        match self {
            Proof::Value => None,
            Proof::Key => Some("key-apart"),
            Proof::KeyAlone => Some("key-alone"),
        }
    }
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.fingerprint, self.shape.name())?;
        if let Some(ttl) = self.ttl {
            write!(f, "{TTL}{ttl} ")?;
        }
        if self.on_change != OnChange::Write {
            write!(f, "{} ", self.on_change.word())?;
        }
        self.keys.fmt(f)
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(word) = self.proof.word() {
            write!(f, "{word} ")?;
        }
        self.template.fmt(f)
    }
}

/// Takes the first word off, if it is this one. No template begins with a word and a space.
fn after_word<'t>(text: &'t str, word: &str) -> Option<&'t str> {
    text.strip_prefix(word).and_then(|rest| rest.strip_prefix(' '))
}

impl FromStr for Keys {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let said = [Proof::Key, Proof::KeyAlone].into_iter().find_map(|proof| Some((proof, after_word(text, proof.word()?)?)));
        let (proof, template) = said.unwrap_or((Proof::Value, text));
        Ok(Keys { proof, template: template.parse()? })
    }
}

impl FromStr for Descriptor {
    type Err = UnknownMapping;

    fn from_str(text: &str) -> Result<Self, UnknownMapping> {
        let unknown = || UnknownMapping(text.to_owned());
        let (fingerprint, rest) = text.split_once(' ').ok_or_else(unknown)?;
        let (shape, mut rest) = rest.split_once(' ').ok_or_else(unknown)?;
        let shape = [Shape::Json, Shape::Hash].into_iter().find(|known| known.name() == shape).ok_or_else(unknown)?;
        let mut ttl = None;
        // A template may begin like this word, but goes on without a space, or with none before its first brace.
        if let Some((word, after)) = rest.strip_prefix(TTL).and_then(|rest| rest.split_once(' '))
            && !word.contains('{')
        {
            ttl = Some(word.parse().map_err(|_| unknown())?);
            rest = after;
        }
        let said = [OnChange::Refresh, OnChange::Evict].into_iter().find_map(|on| Some((on, after_word(rest, on.word())?)));
        let (on_change, keys) = said.unwrap_or((OnChange::Write, rest));
        // A word that is not known here is part of no template.
        let keys = keys.parse().map_err(|_| unknown())?;
        Ok(Descriptor { fingerprint: fingerprint.to_owned(), shape, ttl, on_change, keys })
    }
}

serde_as_text!(Descriptor, Keys);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_reads_back_as_it_was_printed() {
        for text in [
            "9f3c61d0 json user:{id:integer}",
            "9f3c61d0 hash key-apart {a b:text}:x",
            "9f3c61d0 json ttl=90s user:{id:integer}",
            "9f3c61d0 json refresh key-alone user:{id:integer}",
            "9f3c61d0 hash ttl=7d evict key-alone user:{id:integer}",
            "9f3c61d0 hash ttl={a b:text}",
            "9f3c61d0 hash ttl=1h ttl={a b:text}",
            "9f3c61d0 hash evict{a b:text}",
        ] {
            assert_eq!(text.parse::<Descriptor>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_text_of_an_older_version_has_no_options() {
        let descriptor: Descriptor = "9f3c61d0 hash key-apart {a b:text}:x".parse().unwrap();
        assert_eq!((descriptor.ttl, descriptor.on_change, descriptor.keys.proof), (None, OnChange::Write, Proof::Key));
        assert_eq!(descriptor.terms(), Terms::default());
    }

    #[test]
    fn a_word_of_a_newer_version_is_refused() {
        for text in [
            "",
            "9f3c61d0",
            "9f3c61d0 json",
            "9f3c61d0 msgpack user:{id:integer}",
            "9f3c61d0 json ttl=5 user:{id:integer}",
            "9f3c61d0 json ttl=1h later user:{id:integer}",
            "9f3c61d0 json user:{id:uuid}",
        ] {
            assert!(text.parse::<Descriptor>().unwrap_err().to_string().contains("newer version"), "{text}");
        }
    }
}
