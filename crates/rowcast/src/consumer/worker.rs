//! One partition's worker: session after session, with pauses where a server is away.

use std::time::Duration;

use super::outage::Server;
use super::session::{End, Session};
use super::{Consumer, Error};
use crate::backoff::Backoff;
use crate::broker::{self, Broker, PartitionQueue};
use crate::cache::{self, Cache};
use crate::change::Partition;
use crate::stop::Stop;

/// How many failures in a row a worker tells of by itself.
const OWN_NEWS: u32 = 2;

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
        let mut failures: u32 = 0;
        loop {
            let opened = tokio::select! {
                biased;
                () = stop.requested() => return Ok(()),
                opened = Session::open(&self.consumer, self.partition) => opened,
            };
            let end = match opened {
                Ok(mut session) => {
                    if (1..=OWN_NEWS).contains(&failures) {
                        tracing::info!(partition = %self.partition, "connected again");
                    } else if failures > OWN_NEWS && self.consumer.outages.over() {
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
            let partition = self.partition;
            failures += 1;
            match end {
                End::Stop(error) => return Err(error),
                End::Broker(error @ broker::Error::Fatal(_)) => return Err(Error::Broker(error)),
                End::Cache(error @ cache::Error::Fatal(_)) => return Err(Error::Cache(error)),
                // A broker may refuse the first consumer of a queue that was made a moment ago.
                End::Broker(error) if failures == 1 => tracing::info!(%partition, "broker: {error}; trying again"),
                // That a connection was lost is each worker's own news; that a server stays away is the same for all.
                End::Broker(error) if failures <= OWN_NEWS => tracing::warn!(%partition, "broker: {error}; trying again"),
                End::Cache(error) if failures <= OWN_NEWS => tracing::warn!(%partition, "cache: {error}; trying again"),
                End::Broker(error) => self.consumer.outages.say(Server::Broker, &error),
                End::Cache(error) => self.consumer.outages.say(Server::Cache, &error),
                End::Reopen => {}
            }
            tokio::select! {
                biased;
                () = stop.requested() => return Ok(()),
                () = tokio::time::sleep(backoff.pause()) => {}
            }
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
