//! What is said of a block that stands: to the log, the meter and the observer.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Consumer;
use crate::cache::Block;
use crate::change::{Lineage, Op, Partition, Position};
use crate::checkpoint::{Cause, Checkpoint, Opened, Write};
use crate::meter::Meter;

/// A block that stands in the cache.
#[derive(Debug)]
pub struct Applied<'b> {
    /// Whose.
    pub partition: Partition,
    /// Whose history the partition follows now.
    pub lineage: &'b Lineage,
    /// Where the partition stands now.
    pub position: Position,
    /// What became of the keys, each once.
    pub writes: &'b [Write<'b>],
    /// When the cache's answer arrived, in microseconds since the epoch.
    pub applied_us: i64,
}

/// Why resyncs were opened.
pub(super) fn opened(partition: Partition, opened: &[Opened]) {
    for opened in opened {
        match opened {
            Opened::NoCheckpoint => tracing::info!(%partition, "no checkpoint: every table is resynced"),
            Opened::NewLineage { old } => tracing::info!(%partition, %old, "the source's history is another one: every table is resynced"),
            Opened::Gap { position, from } => {
                tracing::warn!(%partition, %position, %from, "something before this batch is missing: every table is resynced")
            }
            Opened::Tables(tables) => {
                let told = |cause: Cause, why: &str| {
                    let tables: Vec<String> =
                        tables.iter().filter(|(_, other)| **other == cause).map(|(table, _)| table.to_string()).collect();
                    if !tables.is_empty() {
                        tracing::info!(%partition, "resync of {}: {why}", tables.join(", "));
                    }
                };
                told(Cause::Mapping, "its mapping is new or changed");
                told(Cause::Unmapped, "it is no longer mapped, and its keys go");
                told(Cause::Requested, "somebody has requested it");
                told(Cause::Truncated, "it was truncated");
            }
        }
    }
}

/// What became of the keys.
pub(super) fn applied<B, C>(consumer: &Consumer<B, C>, block: &Block, writes: &[Write<'_>], batches: usize) {
    let partition = block.partition;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
    let meter = &consumer.meter;
    Meter::add(&meter.applied, batches);
    Meter::add(&meter.keys, writes.len());
    meter.blocks.fetch_add(1, Relaxed);
    if let Some(committed) = writes.iter().filter(|write| write.op != Op::Read).map(|write| write.committed_us).max() {
        meter.lag_us.store(now - committed, Relaxed);
    }
    for write in writes {
        tracing::debug!(%partition, op = %write.op, table = write.table, key = write.key, lag_ms = (now - write.committed_us) / 1000, "applied");
    }
    if let Some(observer) = &consumer.observer {
        let Checkpoint { lineage, position, .. } = &block.checkpoint;
        observer(&Applied { partition, lineage, position: *position, writes, applied_us: now });
    }
}
