//! Counts of what the two halves have done, for the status line and the benches. Nothing decides by them.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// Counters that publisher and consumer add to.
#[derive(Debug, Default)]
pub struct Meter {
    /// Changes handed to the broker.
    pub published: AtomicU64,
    /// Rows of chunks handed to the broker.
    pub chunk_rows: AtomicU64,
    /// Batches that the broker has confirmed.
    pub confirmed: AtomicU64,
    /// Batches that the consumer has applied.
    pub applied: AtomicU64,
    /// Keys that the consumer has written or removed.
    pub keys: AtomicU64,
    /// Blocks that the cache has taken.
    pub blocks: AtomicU64,
    /// Keys that sweeps have removed.
    pub swept: AtomicU64,
    /// Dead letters.
    pub dead: AtomicU64,
    /// Resyncs that are open.
    pub resyncs: AtomicI64,
    /// From commit to Redis, of the newest change in the newest block, in microseconds.
    pub lag_us: AtomicI64,
}

impl Meter {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Relaxed);
    }

    /// Reads a counter.
    pub fn read(counter: &AtomicU64) -> u64 {
        counter.load(Relaxed)
    }
}
