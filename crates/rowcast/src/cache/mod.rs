//! The cache that is kept in step: what the consumer asks of it, whichever it is.
//!
//! A cache knows nothing of sources and brokers. There is one way to write: a [`Block`], whole or not at all, and only on
//! top of what the writer believes to stand there.

use std::collections::BTreeMap;
use std::future::Future;

use crate::change::{KeyHash, Partition, Run, Table};
use crate::checkpoint::Checkpoint;
use crate::mapping::Terms;

mod expiry;
mod layout;
pub mod memory;
mod names;
pub mod redis;
mod value;

pub use expiry::Expiries;

/// A fresh id with every block; what compare-and-set compares.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub String);

/// A checkpoint as it stands in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Its version.
    pub version: Version,
}

/// What a key becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// A string.
    Text(Vec<u8>, Terms),
    /// A hash with these fields; the former value goes whole. One without fields is no key at all, whatever the terms.
    Hash(Vec<(String, Vec<u8>)>, Terms),
    /// Nothing.
    Gone,
}

/// Hashes to be appended to a seen log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenAppend {
    /// The table.
    pub table: Table,
    /// The attempt.
    pub run: Run,
    /// The length in bytes that the log must have before; else the block is refused.
    pub expected: u64,
    /// What is appended.
    pub hashes: Vec<KeyHash>,
}

/// One transaction: the rows of one or several batches, and the checkpoint.
#[derive(Clone, Debug)]
pub struct Block {
    /// Whose.
    pub partition: Partition,
    /// What must stand there now: the version read or written last, or no checkpoint.
    pub on: Option<Version>,
    /// The version that it becomes.
    pub version: Version,
    /// The checkpoint that it becomes.
    pub checkpoint: Checkpoint,
    /// Each key at most once.
    pub puts: Vec<(String, Put)>,
    /// One for each open resync, also where nothing is appended: the length is compared all the same.
    pub seen: Vec<SeenAppend>,
    /// Seen logs that nobody needs any more.
    pub forget: Vec<(Table, Run)>,
}

/// What became of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It stands.
    Done,
    /// Somebody else has written, or the cache went back: nothing was written.
    Overtaken,
    /// Another layout is in force (this many partitions; 0 where there is none): nothing was written.
    Layout(u16),
    /// The seen log of these tables is not as long as the checkpoint says: nothing was written.
    SeenLost(Vec<Table>),
    /// The cache is full: nothing was written, but the keys of the block were removed if the version was the expected one.
    /// To be tried again after a pause.
    Full(String),
    /// One value can never be written; nothing was. The consumer sets it aside and removes its key.
    Refused {
        /// The key.
        key: String,
        /// What the cache said.
        reason: String,
    },
}

/// A value as it stands in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cached {
    /// A string.
    Text(Vec<u8>),
    /// A hash.
    Hash(BTreeMap<String, Vec<u8>>),
    /// Another type, by the name that Redis gives it.
    Other(String),
}

/// Why the cache does not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Connect again after a pause, and read what stands there: what was sent last may have been executed, or may be yet.
    #[error("{0}")]
    Lost(String),
    /// Somebody has to do something; the text says what.
    #[error("{0}")]
    Fatal(String),
}

/// A cache for one pipeline.
pub trait Cache: Clone + Send + Sync + 'static {
    /// A connection.
    type Link: Link;

    /// Connects.
    fn connect(&self) -> impl Future<Output = Result<Self::Link, Error>> + Send;
}

/// One connection to the cache.
///
/// No method but [`Link::load`], [`Link::values`] and the other reads is cancel safe.
pub trait Link: Send {
    /// The number of partitions in force; `None` where the pipeline has never written here.
    fn layout(&mut self) -> impl Future<Output = Result<Option<u16>, Error>> + Send;

    /// Puts the layout `of` into force in one transaction: sets it, removes the checkpoints and seen logs of the old layout,
    /// writes the new checkpoints with the old lineage, the greatest old position and a resync open for every table under
    /// the runs that `fresh` hands out. With no old layout only the layout is set. `false` if somebody wrote meanwhile.
    fn take_over(
        &mut self,
        old: Option<u16>,
        of: u16,
        fresh: &mut (dyn FnMut() -> Run + Send),
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// The checkpoint of a partition.
    fn load(&mut self, partition: Partition) -> impl Future<Output = Result<Option<Stored>, Error>> + Send;

    /// Writes a block, whole or not at all. A row under one of rowcast's own keys is [`Written::Refused`]; to remove one does
    /// nothing.
    fn write(&mut self, block: &Block) -> impl Future<Output = Result<Written, Error>> + Send;

    /// A whole seen log of `length` bytes; `None` where it is not as long as that.
    fn seen(
        &mut self,
        partition: Partition,
        table: &Table,
        run: &Run,
        length: u64,
    ) -> impl Future<Output = Result<Option<Vec<KeyHash>>, Error>> + Send;

    /// One step through all keys that begin with `prefix`, from `cursor` (0 at first). Returns the next cursor (0 at the end). A key that
    /// stands all the while is returned at least once, and rowcast's own never; a cursor is good for this connection only.
    fn scan(&mut self, cursor: u64, prefix: &str) -> impl Future<Output = Result<(u64, Vec<String>), Error>> + Send;

    /// The values of these keys, in order.
    fn values(&mut self, keys: &[String]) -> impl Future<Output = Result<Vec<Option<Cached>>, Error>> + Send;
}
