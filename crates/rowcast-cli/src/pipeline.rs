//! From the configuration to the parts that it names.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rowcast::broker::memory::MemoryBroker;
use rowcast::broker::rabbitmq::RabbitBroker;
use rowcast::cache::memory::MemoryCache;
use rowcast::cache::redis::RedisCache;
use rowcast::config::{BrokerConfig, CacheConfig, Config};
use rowcast::consumer::{self, Consumer};
use rowcast::meter::Meter;
use rowcast::publisher::{self, Publisher};
use rowcast::source::AnySource;

use crate::failure::Failure;
use crate::half::Half;

/// A broker of either kind.
#[derive(Clone)]
pub enum AnyBroker {
    /// In this process.
    Memory(MemoryBroker),
    /// RabbitMQ.
    Rabbit(RabbitBroker),
}

/// A cache of either kind.
#[derive(Clone)]
pub enum AnyCache {
    /// In this process.
    Memory(MemoryCache),
    /// Redis.
    Redis(RedisCache),
}

impl AnyBroker {
    /// Connects to nothing yet.
    pub fn new(config: &BrokerConfig, partitions: u16) -> AnyBroker {
        match config {
            BrokerConfig::Memory => AnyBroker::Memory(MemoryBroker::new(partitions)),
            BrokerConfig::Rabbit(settings) => AnyBroker::Rabbit(RabbitBroker::new(settings.clone())),
        }
    }
}

impl AnyCache {
    /// Connects to nothing yet.
    pub fn new(config: &CacheConfig, pipeline: &str) -> AnyCache {
        match config {
            CacheConfig::Memory => AnyCache::Memory(MemoryCache::new(pipeline)),
            CacheConfig::Redis(settings) => AnyCache::Redis(RedisCache::new((**settings).clone())),
        }
    }
}

/// Does the same with a broker of either kind.
#[macro_export]
macro_rules! with_broker {
    ($any:expr, $broker:ident => $body:expr) => {
        match $any {
            $crate::pipeline::AnyBroker::Memory($broker) => $body,
            $crate::pipeline::AnyBroker::Rabbit($broker) => $body,
        }
    };
}

/// Does the same with a cache of either kind.
#[macro_export]
macro_rules! with_cache {
    ($any:expr, $cache:ident => $body:expr) => {
        match $any {
            $crate::pipeline::AnyCache::Memory($cache) => $body,
            $crate::pipeline::AnyCache::Redis($cache) => $body,
        }
    };
}

/// Refuses parts in memory where another process would have to see them.
pub fn require_servers(config: &Config, path: &Path, command: &str) -> Result<(), Failure> {
    let mut parts = Vec::new();
    if matches!(config.broker, BrokerConfig::Memory) {
        parts.push("broker");
    }
    if matches!(config.cache, CacheConfig::Memory) {
        parts.push("cache");
    }
    if parts.is_empty() {
        return Ok(());
    }
    let (parts, verb) = (parts.join(" and "), if parts.len() == 1 { "is" } else { "are" });
    Err(Failure::Wrong(format!(
        "{}: {parts} {verb} \"memory:\", which lives and ends with one process, so `rowcast {command}` has nothing to work with; use \
         `rowcast run`, or name servers (amqp://…, redis://…)",
        path.display()
    )))
}

/// Starts the left half.
pub fn start_publisher(config: &Config, broker: &AnyBroker, meter: &Arc<Meter>) -> anyhow::Result<Half> {
    let source = AnySource::new(config.source.clone()).context("cannot start the thread that reads SQLite")?;
    let settings = publisher::Settings::new(&config.pipeline, config.partitions);
    let meter = meter.clone();
    with_broker!(broker.clone(), broker => Half::start("publisher", move |stop| async move {
        Ok(Publisher::new(settings, source, broker, meter).run(stop).await?)
    }))
}

/// Starts the right half.
pub fn start_consumer(config: &Config, broker: &AnyBroker, cache: &AnyCache, meter: &Arc<Meter>) -> anyhow::Result<Half> {
    let settings = consumer::Settings::new(&config.pipeline, config.partitions);
    let meter = meter.clone();
    with_broker!(broker.clone(), broker => with_cache!(cache.clone(), cache => {
        let consumer = Consumer::new(settings, broker, cache, meter);
        Half::start("consumer", move |stop| async move { Ok(consumer.run(stop).await?) })
    }))
}
