//! The configuration file, made definite: read once, checked whole, trusted afterwards.
//!
//! Every fault is named with file, line and column before anything runs. What depends on the database's schema (does the
//! table exist, is the key unique) is checked by the source.

mod document;
mod excerpt;
mod finding;
mod reader;
mod text;

use std::env::VarError;
use std::path::Path;

pub use finding::{Error, Finding, Place, TablePlaces};
pub use reader::Database;

use crate::broker::rabbitmq::RabbitSettings;
use crate::cache::redis::RedisSettings;
use crate::finding::Setting;
use crate::source::SourceSettings;

/// A pipeline as it is configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// The pipeline's name.
    pub pipeline: String,
    /// How many partitions it has.
    pub partitions: u16,
    /// The database that is read, and its tables.
    pub source: SourceSettings,
    /// Where the tables stand in the file, in the same order.
    pub places: Vec<TablePlaces>,
    /// Where batches go.
    pub broker: BrokerConfig,
    /// What is kept in step.
    pub cache: CacheConfig,
}

/// Which broker.
#[derive(Clone, Debug)]
pub enum BrokerConfig {
    /// One inside the process, which only serves a publisher and a consumer that run together.
    Memory,
    /// RabbitMQ.
    Rabbit(RabbitSettings),
}

/// Which cache.
#[derive(Clone, Debug)]
pub enum CacheConfig {
    /// One inside the process, which nobody else can read.
    Memory,
    /// Redis or Valkey.
    Redis(Box<RedisSettings>),
}

impl Config {
    /// Reads a configuration file. Relative paths in it count from its own folder.
    pub fn read(path: &Path) -> Result<Config, Error> {
        let file = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Config::parse(&text, path, &|name| std::env::var(name)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::of_file(format!(
                "there is no configuration file {file}; write one with `rowcast init sqlite:app.db`, or name yours with --config"
            ))),
            Err(error) => Err(Error::of_file(format!("the configuration file {file} cannot be read: {error}"))),
        }
    }

    /// The place in the file that a finding of the source is about; its table's name where the setting is left to its default.
    pub fn place(&self, found: &crate::finding::Finding) -> Option<&Place> {
        let (table, setting) = found.about?;
        let places = self.places.get(table)?;
        let set = match setting {
            Setting::Name => None,
            Setting::Key => places.key.as_ref(),
            Setting::Columns => places.columns.as_ref(),
            Setting::Where => places.filter.as_ref(),
        };
        Some(set.unwrap_or(&places.name))
    }

    /// The same from a text that stands in `path`, with an environment of the caller's.
    pub fn parse(text: &str, path: &Path, environment: &dyn Fn(&str) -> Result<String, VarError>) -> Result<Config, Error> {
        reader::read(text, path, environment)
    }
}

#[cfg(test)]
mod tests;
