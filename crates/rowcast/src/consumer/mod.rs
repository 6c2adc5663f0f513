//! The right half of the picture: receive → decide → apply → ack, and sweeps.
//!
//! One worker a partition, each with its own connections. A worker believes nothing for longer than its connections live: what
//! stands in the cache is read again after every fault and after every refused block.

mod askings;
mod choice;
mod fold;
mod inbox;
mod outage;
mod report;
mod session;
mod sweep;
mod sweep_step;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use ulid::Ulid;

pub use report::Applied;

use self::outage::Server;
use crate::backoff::Backoff;
use crate::broker::{self, Broker};
use crate::cache::{self, Cache, Link};
use crate::change::{Partition, Run};
use crate::meter::Meter;
use crate::stop::{self, Stop};

/// How a consumer works. [`Settings::new`] gives values that suit most pipelines.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The pipeline's name.
    pub pipeline: String,
    /// How many partitions it has.
    pub partitions: u16,
    /// Keys in one block at most.
    pub block_keys: usize,
    /// Bytes of rows after which a block is full.
    pub block_bytes: usize,
    /// Bytes of deliveries in hand after which no more are taken.
    pub inbox_bytes: usize,
    /// How long a batch that begins after the checkpoint waits for its predecessor before it counts as a gap.
    pub patience: Duration,
}

impl Settings {
    /// The defaults.
    pub fn new(pipeline: &str, partitions: u16) -> Settings {
        Settings {
            pipeline: pipeline.to_owned(),
            partitions,
            block_keys: 2_000,
            block_bytes: 512 * 1024,
            inbox_bytes: 1024 * 1024,
            patience: Duration::from_secs(2),
        }
    }
}

/// Why a consumer cannot go on. Everything that may pass by itself is tried again and does not show here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker needs somebody.
    #[error("broker: {0}")]
    Broker(broker::Error),
    /// The cache needs somebody.
    #[error("cache: {0}")]
    Cache(cache::Error),
    /// A message needs a newer rowcast. It stays in the queue.
    #[error("{0}")]
    Message(String),
    /// Another number of partitions is in force.
    #[error(
        "the pipeline {pipeline} now has {found} partitions and this consumer was started with {own}; give it the new configuration \
         (a consumer that starts puts its own number in force)"
    )]
    Layout {
        /// The pipeline.
        pipeline: String,
        /// In force.
        found: u16,
        /// This consumer's.
        own: u16,
    },
}

/// Told of every block that stands in the cache.
pub type Observer = Arc<dyn Fn(&Applied<'_>) + Send + Sync>;

/// Reads one broker's queues and writes to one cache.
#[derive(Clone)]
pub struct Consumer<B, C> {
    settings: Settings,
    broker: B,
    cache: C,
    meter: Arc<Meter>,
    observer: Option<Observer>,
    /// What all workers together have said of servers that are away.
    outages: Arc<outage::Outages>,
}

impl<B: Broker, C: Cache> Consumer<B, C> {
    /// A consumer that has not begun.
    pub fn new(settings: Settings, broker: B, cache: C, meter: Arc<Meter>) -> Consumer<B, C> {
        Consumer { settings, broker, cache, meter, observer: None, outages: Arc::default() }
    }

    /// Calls `observer` after every block, on the consumer's own thread.
    pub fn observe(mut self, observer: impl Fn(&Applied<'_>) + Send + Sync + 'static) -> Consumer<B, C> {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Consumes until it is asked to stop. Dropping the future is a crash, which is safe: what was not acked comes again.
    pub async fn run(self, mut stop: Stop) -> Result<(), Error> {
        tokio::select! {
            biased;
            () = stop.requested() => return Ok(()),
            started = self.start() => started?,
        }
        // Dropped when the first worker ends, so that the others finish what they have in hand.
        let (stopper, workers_stop) = stop::channel();
        let mut workers = JoinSet::new();
        for partition in Partition::all(self.settings.partitions) {
            let worker = worker::Worker::new(self.clone(), partition);
            workers.spawn(worker.run(workers_stop.clone()));
        }
        let mut outcome = Ok(());
        tokio::select! {
            biased;
            () = stop.requested() => stopper.stop(),
            first = workers.join_next() => {
                stopper.stop();
                outcome = finished(first);
            }
        }
        while let Some(next) = workers.join_next().await {
            outcome = outcome.and(finished(Some(next)));
        }
        outcome
    }

    /// Puts this consumer's layout in force.
    async fn start(&self) -> Result<(), Error> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let mut left = None;
        loop {
            match self.put_layout_in_force(&mut left).await {
                Ok(Some(old)) => {
                    tracing::info!("the pipeline had {old} partitions and has {} now; every table is resynced", self.settings.partitions);
                    return self.remove_layout(old, &mut backoff).await;
                }
                Ok(None) => return Ok(()),
                Err(error @ (Error::Cache(cache::Error::Fatal(_)) | Error::Broker(broker::Error::Fatal(_)))) => return Err(error),
                Err(Error::Cache(error)) => self.outages.say(Server::Cache, &error),
                Err(Error::Broker(error)) => self.outages.say(Server::Broker, &error),
                Err(error @ (Error::Message(_) | Error::Layout { .. })) => return Err(error),
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Returns the number of partitions that was in force before, if it was another one. It stands in `left`, too, from before it is
    /// left: the answer to that may be lost.
    async fn put_layout_in_force(&self, left: &mut Option<u16>) -> Result<Option<u16>, Error> {
        let own = self.settings.partitions;
        let mut link = self.cache.connect().await.map_err(Error::Cache)?;
        loop {
            let found = link.layout().await.map_err(Error::Cache)?;
            if found == Some(own) {
                return Ok(*left);
            }
            // Another layout costs a full resync, and whoever works with the old one has to end: not for a consumer that cannot work.
            self.broker.inspect().await.map_err(Error::Broker)?;
            *left = found;
            // `false` means that somebody wrote meanwhile; then it is looked at again.
            if link.take_over(found, own, &mut fresh_run).await.map_err(Error::Cache)? {
                return Ok(found);
            }
        }
    }

    /// The queues of the old layout get nothing any more, and what is in them is covered by the resyncs.
    async fn remove_layout(&self, old: u16, backoff: &mut Backoff) -> Result<(), Error> {
        loop {
            match self.broker.remove_layout(old).await {
                Ok(()) => return Ok(()),
                Err(error @ broker::Error::Fatal(_)) => return Err(Error::Broker(error)),
                Err(error) => {
                    self.outages.say(Server::Broker, &error);
                    tokio::time::sleep(backoff.pause()).await;
                }
            }
        }
    }
}

/// A run that was never used.
fn fresh_run() -> Run {
    Run(Ulid::generate().to_string().into())
}

fn finished(worker: Option<Result<Result<(), Error>, tokio::task::JoinError>>) -> Result<(), Error> {
    match worker {
        None => Ok(()),
        Some(Ok(result)) => result,
        // A worker is never cancelled, so it panicked: an impossible state, which must not pass for an orderly end.
        Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
    }
}
