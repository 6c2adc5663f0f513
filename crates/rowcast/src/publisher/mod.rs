//! The left half of the picture: source → map → partition → batch → broker, and chunks when consumers ask for them.
//!
//! The publisher keeps nothing that must survive it. Each session begins with what the broker and the source say, and ends at the
//! first sign that something is not as it was; the next one sends again what was not confirmed.

mod askings;
mod assembler;
mod audience;
mod ledger;
mod requests;
mod rows;
mod session;

use std::sync::Arc;
use std::time::Duration;

pub use assembler::BatchLimits;

use crate::backoff::Backoff;
use crate::broker::{self, Broker};
use crate::meter::Meter;
use crate::source::{self, ChunkLimits, Source};
use crate::stop::Stop;

/// How a publisher works. [`Settings::new`] gives values that suit most pipelines.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The pipeline's name.
    pub pipeline: String,
    /// How many partitions it has.
    pub partitions: u16,
    /// How large a batch may grow.
    pub batch: BatchLimits,
    /// How much a chunk may hold.
    pub chunk: ChunkLimits,
    /// Messages that may be unconfirmed. RabbitMQ stops answering at all where thousands are in flight and a queue goes.
    pub window_messages: usize,
    /// Bytes that may be unconfirmed.
    pub window_bytes: usize,
    /// Bytes of JSON above which a row is set aside: it would not fit a message.
    pub row_bytes_max: usize,
    /// How often an idle partition gets an empty batch.
    pub heartbeat: Duration,
    /// How long a message may be unconfirmed while the broker takes messages.
    pub confirm_timeout: Duration,
}

impl Settings {
    /// The defaults.
    pub fn new(pipeline: &str, partitions: u16) -> Settings {
        Settings {
            pipeline: pipeline.to_owned(),
            partitions,
            // 256 KiB is where RabbitMQ's cost a byte has flattened.
            batch: BatchLimits { changes: 1_000, bytes: 256 * 1024 },
            chunk: ChunkLimits { rows: 2_000, bytes: 512 * 1024 },
            window_messages: 256,
            window_bytes: 4 * 1024 * 1024,
            row_bytes_max: 8 * 1024 * 1024,
            heartbeat: Duration::from_secs(2),
            confirm_timeout: Duration::from_secs(10),
        }
    }
}

/// Why a publisher cannot go on. Everything that may pass by itself is tried again and does not show here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source needs somebody.
    #[error("source: {0}")]
    Source(source::Error),
    /// The broker needs somebody.
    #[error("broker: {0}")]
    Broker(broker::Error),
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("source: {0}")]
    Source(#[from] source::Error),
    #[error("broker: {0}")]
    Broker(#[from] broker::Error),
}

/// Reads one source and publishes to one broker.
#[derive(Debug)]
pub struct Publisher<S, B> {
    settings: Settings,
    source: S,
    broker: B,
    meter: Arc<Meter>,
}

impl<S: Source, B: Broker> Publisher<S, B> {
    /// A publisher that has not begun.
    pub fn new(settings: Settings, source: S, broker: B, meter: Arc<Meter>) -> Publisher<S, B> {
        Publisher { settings, source, broker, meter }
    }

    /// Publishes until it is asked to stop. Dropping the future is a crash, which is safe: what was not confirmed is read again.
    pub async fn run(mut self, mut stop: Stop) -> Result<(), Error> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let mut standby = false;
        loop {
            // To drop an attempt is safe, as a crash is.
            let opened = tokio::select! {
                biased;
                () = stop.requested() => return Ok(()),
                opened = session::Session::open(&self.settings, &mut self.source, &self.broker, &self.meter) => opened,
            };
            let end = match opened {
                Ok(session) => {
                    backoff.reset();
                    standby = false;
                    match session.run(&mut stop).await {
                        Ok(()) => return Ok(()),
                        Err(end) => end,
                    }
                }
                Err(end) => end,
            };
            // The source may have begun a read that nobody takes now, and the broker may be away for long, or another publisher at work.
            if let Err(error) = self.source.release().await {
                tracing::debug!("letting go of the source: {error}");
            }
            let pause = match end {
                End::Source(error @ source::Error::Fatal(_)) => return Err(Error::Source(error)),
                End::Broker(error @ broker::Error::Fatal(_)) => return Err(Error::Broker(error)),
                End::Broker(broker::Error::Standby(reason)) => {
                    if !standby {
                        tracing::info!("standing by: {reason}");
                    }
                    standby = true;
                    Duration::from_millis(500)
                }
                End::Source(source::Error::Changed(reason)) => {
                    tracing::info!("the source changed: {reason}");
                    Duration::from_millis(50)
                }
                end => {
                    tracing::warn!("{end}; trying again");
                    backoff.pause()
                }
            };
            tokio::select! {
                biased;
                () = stop.requested() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}
