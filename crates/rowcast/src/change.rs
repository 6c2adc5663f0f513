//! The nouns that every room shares: what a change is, where it stands, and whose history it belongs to.
//!
//! This module imports no other room.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Where a change stands in its source's commit order. Totally ordered, never goes back within one [`Lineage`].
///
/// The first part counts transactions (SQLite: the newest changelog id of a read), the second what is inside one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64, pub u64);

impl Position {
    /// Before every change.
    pub const START: Position = Position(0, 0);
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:08x}", self.0, self.1)
    }
}

/// A text that is not what its type prints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}")]
pub struct Malformed {
    /// The text that was read.
    pub text: String,
    /// What it should have been, with an example.
    pub what: &'static str,
}

impl FromStr for Position {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = || Malformed { text: text.to_owned(), what: "position (00000000016b3748-00000002)" };
        let hex = |part: &str| {
            // from_str_radix also takes a sign, which no position has.
            if part.is_empty() || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            u64::from_str_radix(part, 16).map_err(|_| malformed())
        };
        let (major, minor) = text.split_once('-').ok_or_else(malformed)?;
        Ok(Position(hex(major)?, hex(minor)?))
    }
}

/// The identity of the history that positions belong to. Positions of two lineages are never compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lineage(pub Arc<str>);

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One attempt at a resync. Every opening gets a fresh one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Run(pub Arc<str>);

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a table as the source writes it (`users`, `public.users`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Table(pub Arc<str>);

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Table {
    fn from(name: &str) -> Self {
        Table(name.into())
    }
}

/// Where a chunk begins or ends: a primary key in the source's own encoding. Compared for equality only.
///
/// The text is JSON, so that it reads well in a batch (`[4000]`); nobody but the source looks inside.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bound(pub Arc<str>);

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// A new row.
    Insert,
    /// A changed row.
    Update,
    /// A row that is gone.
    Delete,
    /// Every row of the table is gone.
    Truncate,
    /// An existing row, read by a chunk or singly.
    Read,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Insert => "insert",
            Op::Update => "update",
            Op::Delete => "delete",
            Op::Truncate => "truncate",
            Op::Read => "read",
        })
    }
}

/// The value of one column that a key template uses.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyValue {
    /// SQL NULL.
    Null,
    /// A whole number.
    Integer(i64),
    /// A real number.
    Real(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

/// What a row is after the change.
#[derive(Clone, Debug, PartialEq)]
pub enum Image {
    /// The row stands so.
    Present {
        /// The mapped columns as a JSON object, in column order.
        json: String,
        /// The values of the template's columns, in the template's order.
        key: Vec<KeyValue>,
    },
    /// No row has the identity. `key` are the values of the template's columns that nobody holds any more.
    Absent {
        /// In the template's order.
        key: Vec<KeyValue>,
    },
    /// The source met a row that it cannot render.
    Unreadable {
        /// The values of the template's columns, where they could be read.
        key: Option<Vec<KeyValue>>,
        /// What is wrong with it, for the dead letter.
        reason: String,
    },
}

/// One committed row change as a source reads it, before mapping.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What happened. A hint: the image says what is.
    pub op: Op,
    /// Index of the table in the pipeline's list of mapped tables.
    pub table: usize,
    /// The primary key as a JSON object (`{"id":7}`). Two rows of a table never share it.
    /// Empty for a truncate.
    pub pk: String,
    /// The row. A truncate carries `Absent` with no key.
    pub image: Image,
    /// Where the change stands.
    pub position: Position,
    /// When it was committed, in microseconds since the epoch by the source's clock.
    pub committed_us: i64,
}

/// A hash class of Redis keys; order is kept within one. Numbered from 1, written `3of4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    /// From 1 to `of`.
    pub number: u16,
    /// How many there are.
    pub of: u16,
}

impl Partition {
    /// All partitions of a layout, in order.
    pub fn all(of: u16) -> impl Iterator<Item = Partition> + Clone {
        (1..=of).map(move |number| Partition { number, of })
    }

    /// Where this partition stands in [`Partition::all`].
    pub fn index(self) -> usize {
        usize::from(self.number) - 1
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}of{}", self.number, self.of)
    }
}

impl FromStr for Partition {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = || Malformed { text: text.to_owned(), what: "partition (3of4)" };
        let (number, of) = text.split_once("of").ok_or_else(malformed)?;
        let number: u16 = number.parse().map_err(|_| malformed())?;
        let of: u16 = of.parse().map_err(|_| malformed())?;
        if number == 0 || number > of {
            return Err(malformed());
        }
        Ok(Partition { number, of })
    }
}

/// The 8-byte hash of a Redis key: it decides the partition and is what the seen log remembers.
///
/// XXH3 with 64 bits and seed 0, so that other programs can compute it from the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub u64);

impl KeyHash {
    /// The hash of `key`.
    pub fn of(key: &str) -> KeyHash {
        KeyHash(xxhash_rust::xxh3::xxh3_64(key.as_bytes()))
    }

    /// The partition of the key among `of` partitions.
    pub fn partition(self, of: u16) -> Partition {
        debug_assert!(of > 0);
        let class = self.0 % u64::from(of);
        // The remainder of a u16 fits a u16.
        Partition { number: u16::try_from(class).unwrap_or(u16::MAX) + 1, of }
    }
}

/// Types that travel as the text that they print and read.
macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
pub(crate) use serde_as_text;
serde_as_text!(Position, Partition);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_back_as_it_was_printed() {
        for position in [Position::START, Position(0x016b_3748, 2), Position(u64::MAX, u64::MAX)] {
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        assert_eq!(Position(0x016b_3748, 2).to_string(), "00000000016b3748-00000002");
    }

    #[test]
    fn what_is_no_position_is_refused() {
        for text in ["", "-", "1", "+1-2", "1-", "g-1", "11111111111111111-0"] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_partition_counts_from_one() {
        assert_eq!("3of4".parse(), Ok(Partition { number: 3, of: 4 }));
        for text in ["0of4", "5of4", "of", "3", "3of"] {
            assert!(text.parse::<Partition>().is_err(), "{text}");
        }
        assert_eq!(Partition::all(2).map(|p| p.to_string()).collect::<Vec<_>>(), ["1of2", "2of2"]);
    }

    #[test]
    fn the_partition_of_a_key_never_changes() {
        // Written out: a change of the hash would orphan every checkpoint in production.
        assert_eq!(KeyHash::of("user:7"), KeyHash(0x0067_b227_f59e_e6b4));
        assert_eq!(KeyHash::of("user:7").partition(4), Partition { number: 1, of: 4 });
    }
}
