//! The comparison of source and cache, both ways: every row has its value, and every value its row.
//!
//! It reads, and changes nothing. It compares what stands still: the caller sees to it that the cache has caught up and that
//! nobody writes meanwhile.
//!
//! Where keys go by themselves (`ttl`) or are filled by the application (`refresh`, `evict`) a row without a key is no difference;
//! a key without a row always is. What the application fills where changes evict is in a form of its own, and not looked into.

use std::collections::{BTreeMap, HashSet};

use serde_json::value::RawValue;

use crate::cache::{self, Cached, Link, Put};
use crate::change::{Bound, Image, KeyHash};
use crate::mapping::{Descriptor, Mapped, MappedTable, OnChange, Shape};
use crate::source::{self, Chunk, ChunkLimits, Portion, Read, Source};

/// How many differences are kept as examples.
const EXAMPLES_MAX: usize = 20;

/// How much of the source is read at once.
const CHUNK: ChunkLimits = ChunkLimits { rows: 2_000, bytes: 512 * 1024 };

/// How a key differs from its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The row has no key.
    Missing,
    /// The key holds something else than the row.
    Stale,
    /// The key has no row.
    Orphan,
    /// The key is not of the form that the mapping wants.
    WrongType,
}

impl Class {
    /// One word for it, or two.
    pub fn name(self) -> &'static str {
        match self {
            Class::Missing => "missing",
            Class::Stale => "stale",
            Class::Orphan => "orphan",
            Class::WrongType => "wrong type",
        }
    }
}

/// What was compared, and what differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Rows of the source that are to be cached.
    pub rows: u64,
    /// Rows that no key can be made of; they are dead letters, and rightly absent from the cache.
    pub unmappable: u64,
    /// Rows without a key.
    pub missing: u64,
    /// Keys that hold something else than their row.
    pub stale: u64,
    /// Keys without a row.
    pub orphans: u64,
    /// Keys of another form than the mapping's.
    pub wrong_type: u64,
    /// Some of the keys that differ.
    pub examples: Vec<(Class, String)>,
}

impl Comparison {
    /// How many keys differ.
    pub fn differences(&self) -> u64 {
        self.missing + self.stale + self.orphans + self.wrong_type
    }

    fn differs(&mut self, class: Class, key: &str) {
        *match class {
            Class::Missing => &mut self.missing,
            Class::Stale => &mut self.stale,
            Class::Orphan => &mut self.orphans,
            Class::WrongType => &mut self.wrong_type,
        } += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push((class, key.to_owned()));
        }
    }
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source does not answer.
    #[error("source: {0}")]
    Source(#[from] source::Error),
    /// The cache does not answer.
    #[error("cache: {0}")]
    Cache(#[from] cache::Error),
}

/// Compares every row of `tables`, as [`Source::begin`] gave them, with its key, and every key of theirs with its row.
pub async fn compare<S: Source, L: Link>(source: &mut S, tables: &[MappedTable], link: &mut L) -> Result<Comparison, Error> {
    let mut comparison = Comparison::default();
    for (index, table) in tables.iter().enumerate() {
        let keys = compare_rows(source, index, table, link, &mut comparison).await?;
        find_orphans(table, &keys, link, &mut comparison).await?;
    }
    Ok(comparison)
}

/// Returns the hashes of all keys that a row has.
async fn compare_rows<S: Source, L: Link>(
    source: &mut S,
    index: usize,
    table: &MappedTable,
    link: &mut L,
    comparison: &mut Comparison,
) -> Result<HashSet<KeyHash>, Error> {
    let mut with_row = HashSet::new();
    let mut after = None;
    loop {
        let chunk = read(source, index, after.as_ref()).await?;
        let mut expected: Vec<(String, Put)> = Vec::with_capacity(chunk.rows.len());
        // A row that the filter leaves out has no key.
        for row in chunk.rows.iter().filter(|row| !matches!(row.image, Image::Absent { .. })) {
            comparison.rows += 1;
            match table.map(&row.image) {
                Mapped::Put { key, row } => {
                    let row: &RawValue = serde_json::from_str(row).expect("a source renders rows as JSON");
                    expected.push((key, Put::of_row(row, table.descriptor.shape, table.descriptor.terms())));
                }
                // The application may have filled it.
                Mapped::Remove { key } => drop(with_row.insert(KeyHash::of(&key))),
                Mapped::Nothing | Mapped::Dead { .. } => comparison.unmappable += 1,
            }
        }
        let keys: Vec<String> = expected.iter().map(|(key, _)| key.clone()).collect();
        let found = link.values(&keys).await?;
        assert_eq!(found.len(), keys.len(), "the cache answers for every key");
        for ((key, put), found) in expected.iter().zip(found) {
            with_row.insert(KeyHash::of(key));
            if let Some(class) = judge(put, found.as_ref(), &table.descriptor) {
                comparison.differs(class, key);
            }
        }
        if chunk.last {
            return Ok(with_row);
        }
        assert_ne!(chunk.upto, after, "a chunk that is not the last one moves on");
        after = chunk.upto;
    }
}

fn another_key() -> source::Error {
    source::Error::Changed("the table was given another primary key while it was read".to_owned())
}

/// The rows after a bound. Where they come in the stream, what else comes there is passed over.
async fn read<S: Source>(source: &mut S, table: usize, after: Option<&Bound>) -> Result<Chunk, source::Error> {
    match source.chunk(table, after, CHUNK).await? {
        Read::Now(chunk) => return Ok(chunk),
        Read::NoKey => return Err(another_key()),
        Read::Later => {}
    }
    loop {
        match source.next().await? {
            Portion::Rows { chunk, asked: true, .. } => return Ok(chunk),
            Portion::NoKey { .. } => return Err(another_key()),
            Portion::Record(_) | Portion::Changes { .. } | Portion::Rows { .. } | Portion::Resync { .. } => {}
        }
    }
}

/// How what stands under the key of one row differs from the row; `row` is `None` where no row has the key.
pub fn compare_one(row: Option<&RawValue>, mapping: &Descriptor, found: Option<&Cached>) -> Option<Class> {
    match (row, found) {
        (Some(row), found) => judge(&Put::of_row(row, mapping.shape, mapping.terms()), found, mapping),
        (None, Some(_)) => Some(Class::Orphan),
        (None, None) => None,
    }
}

fn judge(expected: &Put, found: Option<&Cached>, mapping: &Descriptor) -> Option<Class> {
    match (expected, found) {
        // A hash without fields is no key at all.
        (Put::Gone, None) => None,
        (Put::Gone, Some(_)) => Some(Class::Stale),
        // It has expired, or the application has not filled it.
        (_, None) if mapping.ttl.is_some() || mapping.on_change != OnChange::Write => None,
        (_, None) => Some(Class::Missing),
        (Put::Text(text, terms), Some(Cached::Text(found))) => {
            // What the application has filled may be spelt otherwise.
            let same = text == found || terms.existing && same_json(text, found);
            (!same).then_some(Class::Stale)
        }
        (Put::Hash(fields, _), Some(Cached::Hash(found))) => {
            let fields: BTreeMap<&String, &Vec<u8>> = fields.iter().map(|(name, value)| (name, value)).collect();
            (!fields.into_iter().eq(found)).then_some(Class::Stale)
        }
        (Put::Text(..) | Put::Hash(..), Some(_)) => {
            debug_assert!(matches!((mapping.shape, expected), (Shape::Json, Put::Text(..)) | (Shape::Hash, Put::Hash(..))));
            Some(Class::WrongType)
        }
    }
}

fn same_json(left: &[u8], right: &[u8]) -> bool {
    let read = |text| serde_json::from_slice::<serde_json::Value>(text).ok();
    read(left).is_some_and(|left| Some(left) == read(right))
}

async fn find_orphans<L: Link>(
    table: &MappedTable,
    with_row: &HashSet<KeyHash>,
    link: &mut L,
    comparison: &mut Comparison,
) -> Result<(), Error> {
    let keys = &table.descriptor.keys;
    // A scan may return a key twice.
    let mut counted = HashSet::new();
    let mut cursor = 0;
    loop {
        let (next, mut found) = link.scan(cursor, keys.template.prefix()).await?;
        found.retain(|key| !with_row.contains(&KeyHash::of(key)) && keys.template.parse(key).is_some());
        let values = if found.is_empty() { Vec::new() } else { link.values(&found).await? };
        for (key, value) in found.iter().zip(values) {
            if value.is_some_and(|value| value.is_own(keys, key)) && counted.insert(KeyHash::of(key)) {
                comparison.differs(Class::Orphan, key);
            }
        }
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Terms;

    fn text(text: &str) -> Cached {
        Cached::Text(text.as_bytes().to_vec())
    }

    fn mapping(words: &str) -> Descriptor {
        format!("0 {words} t:{{id:integer}}").parse().unwrap()
    }

    #[test]
    fn a_value_is_compared_to_the_byte_and_by_its_form() {
        let (json, plain) = (Put::Text(b"{\"id\":1}".to_vec(), Terms::default()), mapping("json"));
        assert_eq!(judge(&json, Some(&text("{\"id\":1}")), &plain), None);
        assert_eq!(judge(&json, Some(&text("{\"id\": 1}")), &plain), Some(Class::Stale));
        assert_eq!(judge(&json, None, &plain), Some(Class::Missing));
        assert_eq!(judge(&json, Some(&Cached::Other("list".to_owned())), &plain), Some(Class::WrongType));
        assert_eq!(judge(&json, Some(&Cached::Hash(BTreeMap::new())), &plain), Some(Class::WrongType));
    }

    #[test]
    fn what_may_have_gone_by_itself_is_not_missing_but_can_be_stale() {
        for words in ["json ttl=1h", "json refresh key-alone"] {
            let mapping = mapping(words);
            let json = Put::Text(b"{\"id\":1}".to_vec(), mapping.terms());
            assert_eq!(judge(&json, None, &mapping), None, "{words}");
            assert_eq!(judge(&json, Some(&text("{\"id\":2}")), &mapping), Some(Class::Stale), "{words}");
            let spelt_otherwise = judge(&json, Some(&text("{ \"id\": 1 }")), &mapping);
            assert_eq!(spelt_otherwise.is_none(), mapping.on_change == OnChange::Refresh, "{words}");
        }
    }

    #[test]
    fn the_order_of_a_hashs_fields_does_not_matter_but_each_field_does() {
        let plain = mapping("hash");
        let hash = Put::Hash(vec![("b".to_owned(), b"2".to_vec()), ("a".to_owned(), b"1".to_vec())], Terms::default());
        let found = |fields: &[(&str, &str)]| Cached::Hash(fields.iter().map(|(n, v)| ((*n).to_owned(), v.as_bytes().to_vec())).collect());
        assert_eq!(judge(&hash, Some(&found(&[("a", "1"), ("b", "2")])), &plain), None);
        assert_eq!(judge(&hash, Some(&found(&[("a", "1")])), &plain), Some(Class::Stale));
        assert_eq!(judge(&hash, Some(&found(&[("a", "1"), ("b", "2"), ("c", "3")])), &plain), Some(Class::Stale));
        assert_eq!(judge(&Put::Gone, None, &plain), None);
        assert_eq!(judge(&Put::Gone, Some(&found(&[("a", "1")])), &plain), Some(Class::Stale));
    }
}
