//! One session of a partition's worker: from connecting to the first fault.

use std::collections::BTreeSet;
use std::future;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use ulid::Ulid;

use super::askings::Askings;
use super::choice::{Choice, choose, decode};
use super::fold::Folded;
use super::inbox::Inbox;
use super::report;
use super::sweep::Sweep;
use super::{Consumer, Error, fresh_run};
use crate::backoff::Backoff;
use crate::broker::{self, Broker, PartitionQueue};
use crate::cache::{self, Block, Cache, Link, Stored, Version, Written};
use crate::change::{Partition, Table};
use crate::dead_letter::DeadLetter;
use crate::request::Request;
use crate::stop::Stop;

/// Messages that may have been delivered to this connection and wait in it: what brokers are asked to prefetch at most.
const DELIVERED_MAX: u64 = 256;

/// Why a session ended.
pub(super) enum End {
    Broker(broker::Error),
    Cache(cache::Error),
    Stop(Error),
    /// The channel is to be opened anew and the checkpoint read again. Either the next batch is of another lineage, and nothing
    /// of the old one may come after it; or a block was refused, and what is in hand may be long since somebody else's: decided
    /// again on a newer checkpoint, a batch of an abandoned lineage would bring that lineage back.
    Reopen,
}

impl From<broker::Error> for End {
    fn from(error: broker::Error) -> End {
        End::Broker(error)
    }
}

impl From<cache::Error> for End {
    fn from(error: cache::Error) -> End {
        End::Cache(error)
    }
}

/// One partition, one channel, one connection to the cache.
pub(super) struct Session<'w, B: Broker, C: Cache> {
    pub(super) consumer: &'w Consumer<B, C>,
    pub(super) partition: Partition,
    pub(super) queue: B::Queue,
    pub(super) link: C::Link,
    /// What this consumer read or wrote last.
    pub(super) stored: Option<Stored>,
    inbox: Inbox,
    /// The tag of the channel's first delivery. Before there is one this consumer may be standing by, and leaves the
    /// sweeps to whoever is active.
    first_tag: Option<u64>,
    askings: Askings,
    /// Messages consumed since the askings were last looked at.
    consumed: u64,
    pub(super) sweep: Option<Sweep>,
    /// Tables whose seen log was lost: their resync begins anew with the next block.
    pub(super) lost: BTreeSet<Table>,
    /// Keys whose value the cache can never take, to be removed by the next block.
    refused: BTreeSet<String>,
    /// Makes versions unique.
    pub(super) opened: String,
    pub(super) blocks: u64,
    /// The cache is full: nothing is tried before this.
    retry: Option<Instant>,
    full: Backoff,
}

impl<'w, B: Broker, C: Cache> Session<'w, B, C> {
    /// Takes up the channel and reads the checkpoint.
    pub(super) async fn open(consumer: &'w Consumer<B, C>, partition: Partition) -> Result<Self, End> {
        let mut link = consumer.cache.connect().await?;
        // Where another layout is in force the queue may have been deleted, and must not be made again.
        require_layout(consumer, partition, &mut link).await?;
        let stored = link.load(partition).await?;
        let queue = consumer.broker.queue(partition).await?;
        // Another layout comes into force first, and then the old queues go: if it did so just now, the queue that was just made
        // anew would never get a message that tells of it.
        require_layout(consumer, partition, &mut link).await?;
        Ok(Session {
            consumer,
            partition,
            queue,
            link,
            stored,
            inbox: Inbox::default(),
            first_tag: None,
            askings: Askings::default(),
            consumed: 0,
            sweep: None,
            lost: BTreeSet::new(),
            refused: BTreeSet::new(),
            opened: Ulid::generate().to_string(),
            blocks: 0,
            retry: None,
            full: Backoff::new(Duration::from_millis(100), Duration::from_secs(2)),
        })
    }

    /// Works until it is asked to stop (`Ok`) or the session is over (`Err`).
    pub(super) async fn run(&mut self, stop: &mut Stop) -> Result<(), End> {
        while !stop.is_requested() {
            self.receive();
            let applied = self.may_write() && self.apply().await?;
            self.ask().await?;
            let swept = self.may_write() && self.first_tag.is_some() && self.sweep_step().await?;
            if applied || swept {
                // The memory broker and cache never wait, so others get their turn here.
                tokio::task::yield_now().await;
                continue;
            }
            let again = self.retry.or_else(|| self.inbox.patience_ends(self.consumer.settings.patience));
            tokio::select! {
                biased;
                () = stop.requested() => {}
                delivery = self.queue.next(), if self.has_room() => self.take(delivery?),
                () = at(again) => self.retry = None,
            }
        }
        Ok(())
    }

    // receive

    fn has_room(&self) -> bool {
        self.inbox.bytes() < self.consumer.settings.inbox_bytes
    }

    fn receive(&mut self) {
        while self.has_room()
            && let Some(delivery) = self.queue.ready()
        {
            self.take(delivery);
        }
    }

    fn take(&mut self, delivery: broker::Delivery) {
        self.first_tag.get_or_insert(delivery.tag);
        self.inbox.push(delivery);
    }

    fn may_write(&self) -> bool {
        self.retry.is_none_or(|retry| Instant::now() >= retry)
    }

    // decide → apply → ack

    /// Applies what can be applied of the deliveries in hand, in one block. Returns whether anything moved.
    async fn apply(&mut self) -> Result<bool, End> {
        let settings = &self.consumer.settings;
        let now = Instant::now();
        let decoded = decode(&self.inbox, settings, self.partition);
        let chosen = choose(&decoded, &self.inbox, self.first_tag, self.stored.as_ref(), &self.lost, settings.patience, settings);
        let (fold, folded) = match chosen {
            Choice::Reopen => return Err(End::Reopen),
            Choice::SetAside(index, reason) => {
                return self.set_aside(index, &reason).await;
            }
            Choice::Stop(reason) => return Err(End::Stop(Error::Message(reason))),
            Choice::Wait { ahead } => {
                self.wait_for_predecessors(&ahead, now);
                return Ok(false);
            }
            Choice::Fold { fold, folded } => (fold, folded),
        };
        let version = Version(format!("{}-{}", self.opened, self.blocks));
        let Some(Folded { block, writes, seen, opened }) = fold.finish(self.partition, version, &self.refused) else {
            return Ok(false);
        };
        match self.link.write(&block).await? {
            Written::Done => {
                report::opened(self.partition, &opened);
                report::applied(self.consumer, &block, &writes, folded.len());
                if let Some(sweep) = self.sweep.as_mut() {
                    sweep.see(&seen);
                }
                self.stand_at(block);
                self.refused.clear();
                self.lost.clear();
                self.ack(&folded).await?;
                Ok(true)
            }
            Written::Refused { key, reason } => {
                let letter = writes.iter().find(|write| write.key == key).map(|write| {
                    let pk = write.pk.map_or("", |pk| pk.get());
                    DeadLetter::of_row(&settings.pipeline, write.table, write.op, pk, Some(&key), &reason)
                });
                self.dead_letter(&letter.expect("the cache refused a value that this block holds")).await?;
                self.refused.insert(key);
                Ok(true)
            }
            other => self.not_written(other).await,
        }
    }

    /// The block stands.
    pub(super) fn stand_at(&mut self, block: Block) {
        self.blocks += 1;
        self.full.reset();
        self.retry = None;
        let before = self.stored.as_ref().map_or(0, |stored| stored.checkpoint.resyncs.len());
        let change = i64::try_from(block.checkpoint.resyncs.len()).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX);
        self.consumer.meter.resyncs.fetch_add(change, Relaxed);
        self.stored = Some(Stored { checkpoint: block.checkpoint, version: block.version });
    }

    /// The block does not stand.
    pub(super) async fn not_written(&mut self, written: Written) -> Result<bool, End> {
        match written {
            Written::Done | Written::Refused { .. } => unreachable!("handled where the block is at hand"),
            Written::Overtaken => {
                tracing::info!(partition = %self.partition, "somebody else has written, or the cache went back; beginning anew");
                return Err(End::Reopen);
            }
            Written::Layout(0) => {
                tracing::info!(partition = %self.partition, "the cache has lost the layout");
                // `false` means that another worker was faster.
                self.link.take_over(None, self.partition.of, &mut fresh_run).await?;
                return Err(End::Reopen);
            }
            Written::Layout(found) => return Err(yield_to(found, self.consumer, self.partition)),
            Written::SeenLost(tables) => {
                tracing::info!(partition = %self.partition, ?tables, "the cache has lost a seen log; the resync begins anew");
                self.sweep = None;
                self.lost.extend(tables);
            }
            Written::Full(reason) => {
                let pause = self.full.pause();
                tracing::warn!(partition = %self.partition, "the cache is full ({reason}); trying again in {pause:?}");
                self.retry = Some(Instant::now() + pause);
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn ack(&mut self, done: &[usize]) -> Result<(), End> {
        for index in done {
            self.inbox.get_mut(*index).done = true;
        }
        self.consumed += done.len() as u64;
        if let Some(tag) = self.inbox.take_done() {
            self.queue.ack(tag).await?;
        }
        Ok(())
    }

    /// A message that is no batch: what it may have held shows as a gap.
    async fn set_aside(&mut self, index: usize, reason: &str) -> Result<bool, End> {
        let body = self.inbox.get_mut(index).delivery.body.clone();
        self.dead_letter(&DeadLetter::of_message(&self.consumer.settings.pipeline, &body, reason)).await?;
        self.ack(&[index]).await?;
        Ok(true)
    }

    async fn dead_letter(&mut self, letter: &DeadLetter) -> Result<(), End> {
        tracing::warn!(partition = %self.partition, key = letter.key, "dead letter: {}", letter.reason);
        self.consumer.meter.dead.fetch_add(1, Relaxed);
        self.queue.dead_letter(letter.encode()).await?;
        Ok(())
    }

    fn wait_for_predecessors(&mut self, ahead: &[usize], now: Instant) {
        for index in ahead {
            self.inbox.get_mut(*index).ahead_since.get_or_insert(now);
        }
    }

    // ask

    async fn ask(&mut self) -> Result<(), End> {
        let Some(stored) = self.stored.as_ref().filter(|_| self.first_tag.is_some()) else { return Ok(()) };
        let due = self.askings.due(&stored.checkpoint, self.consumed, Instant::now());
        self.consumed = 0;
        if due.is_empty() {
            return Ok(());
        }
        // Where there is no room, some that were delivered have not been taken in yet.
        let delivered = if self.has_room() { 0 } else { DELIVERED_MAX };
        let behind = self.queue.depth().await? + self.inbox.len() as u64 + delivered;
        for (table, ask) in due {
            let resync = &stored.checkpoint.resyncs[&table];
            let asking = self.askings.make(&table, ask, resync, self.partition, behind);
            self.queue.request(Request::Chunk(asking).encode()).await?;
        }
        Ok(())
    }
}

/// Yields where another layout is in force. Where there is none the first block finds out.
async fn require_layout<B, C: Cache>(consumer: &Consumer<B, C>, partition: Partition, link: &mut C::Link) -> Result<(), End> {
    match link.layout().await? {
        Some(found) if found != partition.of => Err(yield_to(found, consumer, partition)),
        _ => Ok(()),
    }
}

/// Another layout is in force.
fn yield_to<B, C>(found: u16, consumer: &Consumer<B, C>, partition: Partition) -> End {
    End::Stop(Error::Layout { pipeline: consumer.settings.pipeline.clone(), found, own: partition.of })
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => future::pending().await,
    }
}
