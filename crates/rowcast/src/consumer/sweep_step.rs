//! The steps of a sweep, one at a time beside the stream.

use super::fold;
use super::session::{End, Session};
use super::sweep::Sweep;
use crate::broker::Broker;
use crate::cache::{Cache, Link, Put, Stored, Version, Written};
use crate::change::Table;
use crate::mapping::Keys;
use crate::meter::Meter;

impl<B: Broker, C: Cache> Session<'_, B, C> {
    /// One step of the sweep, if one is due. Returns whether it was.
    pub(super) async fn sweep_step(&mut self) -> Result<bool, End> {
        let due = |stored: &&Stored| stored.checkpoint.resyncs.values().any(|resync| resync.sweeping);
        let Some(stored) = self.stored.as_ref().filter(due).cloned() else {
            self.sweep = None;
            return Ok(false);
        };
        if !self.lost.is_empty() {
            return Ok(false);
        }
        if self.sweep.is_none() && !self.begin_sweep(&stored).await? {
            return Ok(true);
        }
        let sweep = self.sweep.as_mut().expect("it has just begun");
        let (cursor, keys) = self.link.scan(sweep.cursor, sweep.prefix()).await?;
        sweep.cursor = cursor;
        let mut candidates: Vec<(String, Vec<&Keys>)> = Vec::new();
        for key in keys {
            let keys = sweep.candidate(&stored.checkpoint, &key);
            if !keys.is_empty() {
                candidates.push((key, keys));
            }
        }
        let names: Vec<String> = candidates.iter().map(|(key, _)| key.clone()).collect();
        let values = if names.is_empty() { Vec::new() } else { self.link.values(&names).await? };
        assert_eq!(values.len(), names.len(), "the cache answers for every key");
        let mut puts: Vec<(String, Put)> = Vec::new();
        for ((key, keys), value) in candidates.into_iter().zip(values) {
            if value.is_some_and(|value| keys.iter().any(|keys| value.is_own(keys, &key))) {
                puts.push((key, Put::Gone));
            }
        }
        // SCAN may return a key twice.
        puts.sort_by(|left, right| left.0.cmp(&right.0));
        puts.dedup_by(|left, right| left.0 == right.0);
        let mut next = stored.checkpoint.clone();
        if cursor == 0 {
            let tables: Vec<Table> = sweep.tables(&next).cloned().collect();
            tables.iter().for_each(|table| next.close(table));
        } else if puts.is_empty() {
            return Ok(true);
        }
        let swept = puts.len();
        let closed = cursor == 0;
        let version = Version(format!("{}-{}", self.opened, self.blocks));
        let block = fold::block(Some(&stored), self.partition, version, next, puts, &[]);
        match self.link.write(&block).await? {
            Written::Done => {
                Meter::add(&self.consumer.meter.swept, swept);
                if closed {
                    let tables: Vec<String> = block.forget.iter().map(|(table, _)| table.to_string()).collect();
                    tracing::info!(partition = %self.partition, "resync complete: {}", tables.join(", "));
                    self.sweep = None;
                }
                self.stand_at(block);
                Ok(true)
            }
            other => {
                self.sweep = None;
                self.not_written(other).await?;
                Ok(true)
            }
        }
    }

    /// Reads the seen logs. Returns whether the sweep can begin.
    async fn begin_sweep(&mut self, stored: &Stored) -> Result<bool, End> {
        let mut logs = Vec::new();
        for (table, resync) in stored.checkpoint.resyncs.iter().filter(|(_, resync)| resync.sweeping) {
            match self.link.seen(self.partition, table, &resync.run, resync.seen).await? {
                Some(log) => logs.push((table.clone(), resync.run.clone(), log)),
                None => {
                    // Either the log was lost, or this consumer was overtaken and a newer checkpoint speaks of more.
                    if self.link.load(self.partition).await?.as_ref() == Some(stored) {
                        tracing::info!(partition = %self.partition, table = %table, "the cache has lost a seen log; the resync begins anew");
                        self.lost.insert(table.clone());
                        return Ok(false);
                    }
                    return Err(End::Reopen);
                }
            }
        }
        self.sweep = Some(Sweep::new(self.partition, &stored.checkpoint, logs));
        Ok(true)
    }
}
