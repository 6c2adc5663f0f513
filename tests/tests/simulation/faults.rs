//! Broker and cache as the network lets them appear: slow, cut at any call, answered or not, executed later.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rowcast::broker::memory::{MemoryBroker, MemoryPublishing, MemoryQueue};
use rowcast::broker::{self, Address, Broker, Delivery, Event, Message, PartitionQueue, Publishing, QueueState, Ticket};
use rowcast::cache::memory::{Contents, MemoryCache, MemoryLink};
use rowcast::cache::{self, Block, Cache, Cached, Link, Stored, Written};
use rowcast::change::{KeyHash, Partition, Run, Table};
use rowcast::source::PositionRecord;

use crate::chance::Chance;

/// Copies of batches that surface much later.
type LateCopies = Arc<Mutex<Vec<(Partition, Vec<u8>)>>>;

#[derive(Clone)]
pub struct FaultyBroker {
    pub inner: MemoryBroker,
    pub chance: Chance,
    pub late: LateCopies,
    /// The newest position record.
    pub record: Arc<Mutex<Option<PositionRecord>>>,
}

fn lost() -> broker::Error {
    broker::Error::Lost("the network".to_owned())
}

impl Broker for FaultyBroker {
    type Publishing = FaultyPublishing;
    type Queue = FaultyQueue;

    async fn publishing(&self) -> Result<FaultyPublishing, broker::Error> {
        self.chance.latency().await;
        Ok(FaultyPublishing {
            inner: self.inner.publishing().await?,
            chance: self.chance.clone(),
            late: self.late.clone(),
            record: self.record.clone(),
            broken: false,
        })
    }

    async fn queue(&self, partition: Partition) -> Result<FaultyQueue, broker::Error> {
        self.chance.latency().await;
        Ok(FaultyQueue { inner: self.inner.queue(partition).await?, chance: self.chance.clone() })
    }

    async fn remove_layout(&self, of: u16) -> Result<(), broker::Error> {
        self.inner.remove_layout(of).await
    }

    async fn request(&self, body: Vec<u8>) -> Result<(), broker::Error> {
        self.inner.request(body).await
    }

    async fn inspect(&self) -> Result<Vec<QueueState>, broker::Error> {
        self.inner.inspect().await
    }
}

pub struct FaultyPublishing {
    inner: MemoryPublishing,
    chance: Chance,
    late: LateCopies,
    record: Arc<Mutex<Option<PositionRecord>>>,
    broken: bool,
}

impl FaultyPublishing {
    /// A second publisher's record never takes the place of a newer one: a real broker lets the second one in only after the
    /// first one's last message was read. (Without this, a source that goes back between the two is not noticed.)
    fn newest_record(&self, body: Vec<u8>) -> Vec<u8> {
        let record: PositionRecord = serde_json::from_slice(&body).unwrap();
        let mut newest = self.record.lock().unwrap();
        match newest.as_ref().filter(|newest| newest.lineage == record.lineage && newest.position > record.position) {
            Some(newest) => serde_json::to_vec(newest).unwrap(),
            None => {
                *newest = Some(record);
                body
            }
        }
    }
}

impl Publishing for FaultyPublishing {
    async fn record(&mut self) -> Result<Option<Vec<u8>>, broker::Error> {
        self.chance.latency().await;
        self.inner.record().await
    }

    async fn publish(&mut self, mut message: Message) -> Result<Ticket, broker::Error> {
        if message.to == Address::Record {
            message.body = self.newest_record(message.body);
        }
        if let Address::Partition(partition) = message.to
            && self.chance.fault(0.02)
        {
            self.late.lock().unwrap().push((partition, message.body.clone()));
        }
        if self.broken || self.chance.fault(0.05) {
            if !self.broken && self.chance.is(0.5) {
                self.inner.publish(message).await?;
            }
            self.broken = true;
            // The caller learns of it here, or only at the next event.
            return if self.chance.is(0.5) { Err(lost()) } else { Ok(Ticket(u64::MAX)) };
        }
        self.inner.publish(message).await
    }

    async fn event(&mut self) -> Result<Event, broker::Error> {
        if self.broken { Err(lost()) } else { self.inner.event().await }
    }

    async fn settle(&mut self, number: u64) -> Result<(), broker::Error> {
        if self.broken { Err(lost()) } else { self.inner.settle(number).await }
    }

    async fn look_for_queues(&mut self) -> Result<Vec<Partition>, broker::Error> {
        self.inner.look_for_queues().await
    }
}

pub struct FaultyQueue {
    inner: MemoryQueue,
    chance: Chance,
}

impl FaultyQueue {
    /// Whether a message never arrives: it goes with the next ack.
    fn loses(&self) -> bool {
        self.chance.fault(0.006)
    }
}

impl PartitionQueue for FaultyQueue {
    async fn next(&mut self) -> Result<Delivery, broker::Error> {
        loop {
            let delivery = self.inner.next().await?;
            if !self.loses() {
                return Ok(delivery);
            }
        }
    }

    fn ready(&mut self) -> Option<Delivery> {
        let delivery = self.inner.ready()?;
        if self.loses() { self.ready() } else { Some(delivery) }
    }

    async fn ack(&mut self, tag: u64) -> Result<(), broker::Error> {
        self.chance.latency().await;
        if self.chance.fault(0.1) {
            return Err(lost());
        }
        self.inner.ack(tag).await
    }

    async fn request(&mut self, body: Vec<u8>) -> Result<(), broker::Error> {
        if self.chance.fault(0.2) { Ok(()) } else { self.inner.request(body).await }
    }

    async fn dead_letter(&mut self, body: Vec<u8>) -> Result<(), broker::Error> {
        self.inner.dead_letter(body).await
    }

    async fn depth(&mut self) -> Result<u64, broker::Error> {
        self.inner.depth().await
    }

    async fn leave(self) -> Result<(), broker::Error> {
        self.chance.latency().await;
        self.inner.leave().await
    }
}

#[derive(Clone)]
pub struct FaultyCache {
    pub inner: MemoryCache,
    pub chance: Chance,
    /// Blocks that timed out and are executed later.
    pub late: Arc<Mutex<Vec<Block>>>,
    /// What a cache holds that has lost everything of ours.
    pub empty: Contents,
    /// Whether it has gone back since somebody looked last.
    pub went_back: Arc<AtomicBool>,
}

impl FaultyCache {
    /// Loses everything.
    pub fn flush(&self) {
        self.go_back(self.empty.clone());
    }

    /// Holds this again.
    pub fn go_back(&self, to: Contents) {
        self.inner.alter(|contents| *contents = to);
        self.went_back.store(true, Relaxed);
    }
}

impl Cache for FaultyCache {
    type Link = FaultyLink;

    async fn connect(&self) -> Result<FaultyLink, cache::Error> {
        self.chance.latency().await;
        Ok(FaultyLink { inner: self.inner.connect().await?, cache: self.clone() })
    }
}

pub struct FaultyLink {
    inner: MemoryLink,
    cache: FaultyCache,
}

impl FaultyLink {
    async fn trouble(&self) -> Result<(), cache::Error> {
        self.cache.chance.latency().await;
        if self.cache.chance.fault(0.01) { Err(timed_out()) } else { Ok(()) }
    }
}

fn timed_out() -> cache::Error {
    cache::Error::Lost("no answer".to_owned())
}

impl Link for FaultyLink {
    async fn layout(&mut self) -> Result<Option<u16>, cache::Error> {
        self.trouble().await?;
        self.inner.layout().await
    }

    async fn take_over(&mut self, old: Option<u16>, of: u16, fresh: &mut (dyn FnMut() -> Run + Send)) -> Result<bool, cache::Error> {
        self.trouble().await?;
        let done = self.inner.take_over(old, of, fresh).await?;
        // Done all the same.
        self.trouble().await?;
        Ok(done)
    }

    async fn load(&mut self, partition: Partition) -> Result<Option<Stored>, cache::Error> {
        self.trouble().await?;
        self.inner.load(partition).await
    }

    async fn write(&mut self, block: &Block) -> Result<Written, cache::Error> {
        self.trouble().await?;
        let chance = &self.cache.chance;
        if chance.fault(0.02) {
            // Stopped with the block in hand, long enough for others to take over, then continued.
            tokio::time::sleep(Duration::from_secs(3) + chance.millis(10_000)).await;
        }
        if chance.fault(0.02) {
            self.cache.late.lock().unwrap().push(block.clone());
            return Err(timed_out());
        }
        if chance.fault(0.002) {
            // Between two blocks, with more on the way.
            self.cache.flush();
        }
        let written = self.inner.write(block).await?;
        if chance.fault(0.03) {
            return Err(timed_out());
        }
        Ok(written)
    }

    async fn seen(&mut self, partition: Partition, table: &Table, run: &Run, length: u64) -> Result<Option<Vec<KeyHash>>, cache::Error> {
        self.trouble().await?;
        self.inner.seen(partition, table, run, length).await
    }

    async fn scan(&mut self, cursor: u64, prefix: &str) -> Result<(u64, Vec<String>), cache::Error> {
        self.trouble().await?;
        self.inner.scan(cursor, prefix).await
    }

    async fn values(&mut self, keys: &[String]) -> Result<Vec<Option<Cached>>, cache::Error> {
        self.trouble().await?;
        self.inner.values(keys).await
    }
}
