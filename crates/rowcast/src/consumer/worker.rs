//! One partition's worker, and its sessions: from connecting to the first fault.

use std::collections::BTreeSet;
use std::future;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, sleep_until};
use ulid::Ulid;

use super::askings::Askings;
use super::fold::{self, Fold, Folded};
use super::inbox::Inbox;
use super::outage::Server;
use super::sweep::Sweep;
use super::{Consumer, Error, fresh_run};
use crate::backoff::Backoff;
use crate::batch::{Batch, DecodeError};
use crate::broker::{self, Broker, PartitionQueue};
use crate::cache::{self, Block, Cache, Link, Put, Stored, Version, Written};
use crate::change::{Lineage, Op, Partition, Position, Table};
use crate::checkpoint::{Cause, Checkpoint, Opened, Write};
use crate::dead_letter::DeadLetter;
use crate::meter::Meter;
use crate::request::Request;
use crate::stop::Stop;

/// Messages that may have been delivered to this connection and wait in it: what brokers are asked to prefetch at most.
const DELIVERED_MAX: u64 = 256;

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

/// Why a session ended.
enum End {
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

/// One partition's worker.
pub(super) struct Worker<B, C> {
    consumer: Consumer<B, C>,
    partition: Partition,
}

impl<B: Broker, C: Cache> Worker<B, C> {
    pub(super) fn new(consumer: Consumer<B, C>, partition: Partition) -> Worker<B, C> {
        Worker { consumer, partition }
    }

    /// Works until it is asked to stop or somebody is needed.
    pub(super) async fn run(self, mut stop: Stop) -> Result<(), Error> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let mut failures = 0;
        loop {
            let opened = tokio::select! {
                biased;
                () = stop.requested() => return Ok(()),
                opened = self.open() => opened,
            };
            let end = match opened {
                Ok(mut session) => {
                    if failures > 0 && self.consumer.outages.over() {
                        tracing::info!("connected again");
                    }
                    let end = session.run(&mut stop).await;
                    if session.blocks > 0 {
                        backoff.reset();
                        failures = 0;
                    }
                    match end {
                        Ok(()) => return self.leave(session.queue).await,
                        Err(End::Reopen) => match session.queue.leave().await {
                            Ok(()) => continue,
                            Err(error) => End::Broker(error),
                        },
                        Err(end) => end,
                    }
                }
                Err(end) => end,
            };
            failures += 1;
            match end {
                End::Stop(error) => return Err(error),
                End::Broker(error @ broker::Error::Fatal(_)) => return Err(Error::Broker(error)),
                End::Cache(error @ cache::Error::Fatal(_)) => return Err(Error::Cache(error)),
                // A broker may refuse the first consumer of a queue that was made a moment ago.
                End::Broker(error) => self.tell(Server::Broker, &error, failures == 1),
                End::Cache(error) => self.tell(Server::Cache, &error, false),
                End::Reopen => {}
            }
            tokio::select! {
                biased;
                () = stop.requested() => return Ok(()),
                () = tokio::time::sleep(backoff.pause()) => {}
            }
        }
    }

    /// A server is away, which one of the workers says for all of them.
    fn tell(&self, server: Server, error: &dyn std::fmt::Display, hiccup: bool) {
        let partition = self.partition;
        let name = match server {
            Server::Broker => "broker",
            Server::Cache => "cache",
        };
        match (self.consumer.outages.tell(server), hiccup) {
            (true, true) => tracing::info!("{name}: {error}; trying again"),
            (true, false) => tracing::warn!("{name}: {error}; trying again"),
            (false, _) => tracing::debug!(%partition, "{name}: {error}; trying again"),
        }
    }

    async fn open(&self) -> Result<Session<'_, B, C>, End> {
        let mut link = self.consumer.cache.connect().await?;
        // Where another layout is in force the queue may have been deleted, and must not be made again.
        self.require_layout(&mut link).await?;
        let stored = link.load(self.partition).await?;
        let queue = self.consumer.broker.queue(self.partition).await?;
        // Another layout comes into force first, and then the old queues go: if it did so just now, the queue that was just made
        // anew would never get a message that tells of it.
        self.require_layout(&mut link).await?;
        let opened = Ulid::generate().to_string();
        Ok(Session {
            consumer: &self.consumer,
            partition: self.partition,
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
            opened,
            blocks: 0,
            retry: None,
            full: Backoff::new(Duration::from_millis(100), Duration::from_secs(2)),
        })
    }

    /// Yields where another layout is in force. Where there is none the first block finds out.
    async fn require_layout(&self, link: &mut C::Link) -> Result<(), End> {
        match link.layout().await? {
            Some(found) if found != self.partition.of => Err(yield_to(found, &self.consumer, self.partition)),
            _ => Ok(()),
        }
    }

    /// Leaves in an orderly way; a connection that is gone already has left, too.
    async fn leave(&self, queue: B::Queue) -> Result<(), Error> {
        if let Err(error) = queue.leave().await {
            tracing::debug!(partition = %self.partition, "the broker's connection was already over: {error}");
        }
        Ok(())
    }
}

struct Session<'w, B: Broker, C: Cache> {
    consumer: &'w Consumer<B, C>,
    partition: Partition,
    queue: B::Queue,
    link: C::Link,
    /// What this consumer read or wrote last.
    stored: Option<Stored>,
    inbox: Inbox,
    /// The tag of the channel's first delivery. Before there is one this consumer may be standing by, and leaves the
    /// sweeps to whoever is active.
    first_tag: Option<u64>,
    askings: Askings,
    /// Messages consumed since the askings were last looked at.
    consumed: u64,
    sweep: Option<Sweep>,
    /// Tables whose seen log was lost: their resync begins anew with the next block.
    lost: BTreeSet<Table>,
    /// Keys whose value the cache can never take, to be removed by the next block.
    refused: BTreeSet<String>,
    /// Makes versions unique.
    opened: String,
    blocks: u64,
    /// The cache is full: nothing is tried before this.
    retry: Option<Instant>,
    full: Backoff,
}

impl<B: Broker, C: Cache> Session<'_, B, C> {
    async fn run(&mut self, stop: &mut Stop) -> Result<(), End> {
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
                report_opened(self.partition, &opened);
                report_applied(self.consumer, &block, &writes, folded.len());
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
    fn stand_at(&mut self, block: Block) {
        self.blocks += 1;
        self.full.reset();
        self.retry = None;
        let before = self.stored.as_ref().map_or(0, |stored| stored.checkpoint.resyncs.len());
        let change = i64::try_from(block.checkpoint.resyncs.len()).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX);
        self.consumer.meter.resyncs.fetch_add(change, Relaxed);
        self.stored = Some(Stored { checkpoint: block.checkpoint, version: block.version });
    }

    /// The block does not stand.
    async fn not_written(&mut self, written: Written) -> Result<bool, End> {
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

    // sweep

    /// One step of the sweep, if one is due. Returns whether it was.
    async fn sweep_step(&mut self) -> Result<bool, End> {
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
        let candidates: Vec<(String, &crate::mapping::Keys)> = keys
            .into_iter()
            .filter_map(|key| Some((sweep.candidate(&stored.checkpoint, &key)?, key)))
            .map(|(keys, key)| (key, keys))
            .collect();
        let names: Vec<String> = candidates.iter().map(|(key, _)| key.clone()).collect();
        let values = if names.is_empty() { Vec::new() } else { self.link.values(&names).await? };
        assert_eq!(values.len(), names.len(), "the cache answers for every key");
        let own = candidates.iter().zip(values).filter(|((key, keys), value)| value.as_ref().is_some_and(|value| value.is_own(keys, key)));
        let mut puts: Vec<(String, Put)> = own.map(|((key, _), _)| (key.clone(), Put::Gone)).collect();
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

/// Another layout is in force.
fn yield_to<B, C>(found: u16, consumer: &Consumer<B, C>, partition: Partition) -> End {
    End::Stop(Error::Layout { pipeline: consumer.settings.pipeline.clone(), found, own: partition.of })
}

/// What to do with the deliveries in hand.
enum Choice<'m> {
    /// Write this; the indexes are of the deliveries in it.
    Fold { fold: Box<Fold<'m>>, folded: Vec<usize> },
    /// These begin after the checkpoint; their predecessors may be on the way. Empty where nothing is in hand.
    Wait { ahead: Vec<usize> },
    /// This one is no batch.
    SetAside(usize, String),
    /// This one may not be skipped and cannot be read.
    Stop(String),
    /// The first one is of another lineage, and the channel has seen others.
    Reopen,
}

type Decoded<'m> = Vec<(usize, Result<Batch<'m>, DecodeError>)>;

/// Reads the first deliveries in hand, as many as fit one block.
fn decode<'m>(inbox: &'m Inbox, settings: &super::Settings, partition: Partition) -> Decoded<'m> {
    let mut decoded = Vec::new();
    let mut bytes = 0;
    for (index, held) in inbox.iter().enumerate().filter(|(_, held)| !held.done) {
        let batch = Batch::decode(&held.delivery.body, partition).and_then(|batch| {
            if batch.pipeline == settings.pipeline {
                Ok(batch)
            } else {
                Err(DecodeError::Malformed(format!("it is of the pipeline {}", batch.pipeline)))
            }
        });
        decoded.push((index, batch));
        bytes += held.delivery.body.len();
        if bytes >= settings.block_bytes {
            break;
        }
    }
    decoded
}

/// Folds what fits onto what stands in the cache, in order.
fn choose<'m>(
    decoded: &'m Decoded<'m>,
    inbox: &Inbox,
    first_tag: Option<u64>,
    stored: Option<&'m Stored>,
    lost: &BTreeSet<Table>,
    patience: Duration,
    settings: &super::Settings,
) -> Choice<'m> {
    let now = Instant::now();
    let mut fold = Fold::new(stored, lost, &mut fresh_run);
    let mut folded = Vec::new();
    let mut ahead = Vec::new();
    for (index, batch) in decoded {
        let batch = match batch {
            Ok(batch) => batch,
            Err(_) if !folded.is_empty() => break,
            Err(DecodeError::Malformed(reason)) => return Choice::SetAside(*index, reason.clone()),
            Err(error) => return Choice::Stop(error.to_string()),
        };
        let held = inbox.iter().nth(*index).expect("it was decoded from there");
        if let Some(checkpoint) = fold.checkpoint() {
            if checkpoint.lineage != batch.lineage {
                // Everything before it is applied and acked first; then the channel is opened anew, so that nothing of the old
                // lineage can be delivered again after it.
                if !folded.is_empty() || !ahead.is_empty() {
                    break;
                }
                if first_tag != Some(held.delivery.tag) {
                    return Choice::Reopen;
                }
            } else if batch.from > checkpoint.position && now - held.ahead_since.unwrap_or(now) < patience {
                ahead.push(*index);
                continue;
            }
        }
        fold.add(batch, &mut fresh_run);
        folded.push(*index);
        let (keys, bytes) = fold.size();
        if keys >= settings.block_keys || bytes >= settings.block_bytes {
            break;
        }
    }
    if folded.is_empty() && lost.is_empty() { Choice::Wait { ahead } } else { Choice::Fold { fold: Box::new(fold), folded } }
}

fn report_opened(partition: Partition, opened: &[Opened]) {
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

fn report_applied<B, C>(consumer: &Consumer<B, C>, block: &Block, writes: &[Write<'_>], batches: usize) {
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

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => future::pending().await,
    }
}
