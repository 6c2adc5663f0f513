//! `rowcast publish`: the left half alone.

use std::path::Path;
use std::sync::Arc;

use rowcast::config::Config;
use rowcast::meter::Meter;

use super::run::attend;
use crate::failure::Failure;
use crate::findings::{require_source, warn_of_other_database};
use crate::pipeline::{AnyBroker, require_servers, start_publisher};
use crate::screen::Screen;
use crate::signals::Signals;
use crate::status_line::Shows;

/// Publishes until somebody stops it.
pub async fn run(config: &Config, path: &Path, screen: &Screen) -> Result<(), Failure> {
    require_servers(config, path, "publish")?;
    require_source(config).await?;
    warn_of_other_database(config);
    let signals = Signals::listen()?;
    let meter = Arc::new(Meter::default());
    let publisher = start_publisher(config, &AnyBroker::new(&config.broker, config.partitions), &meter)?;
    attend(config, vec![publisher], signals, screen, &meter, Shows::Publish).await
}
