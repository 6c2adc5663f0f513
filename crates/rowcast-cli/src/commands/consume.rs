//! `rowcast consume`: the right half alone. As many of them as wanted share the partitions.

use std::path::Path;
use std::sync::Arc;

use rowcast::config::Config;
use rowcast::meter::Meter;

use super::run::attend;
use crate::failure::Failure;
use crate::pipeline::{AnyBroker, AnyCache, require_servers, start_consumer};
use crate::screen::Screen;
use crate::signals::Signals;
use crate::status_line::Shows;

/// Consumes until somebody stops it.
pub async fn run(config: &Config, path: &Path, screen: &Screen) -> Result<(), Failure> {
    require_servers(config, path, "consume")?;
    let signals = Signals::listen()?;
    let meter = Arc::new(Meter::default());
    let broker = AnyBroker::new(&config.broker, config.partitions);
    let cache = AnyCache::new(&config.cache, &config.pipeline);
    let consumer = start_consumer(config, &broker, &cache, &meter)?;
    attend(config, vec![consumer], signals, screen, &meter, Shows::Consume).await
}
