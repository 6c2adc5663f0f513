//! `rowcast run`: publisher and consumer in one process.

use std::sync::Arc;

use rowcast::config::Config;
use rowcast::meter::Meter;

use crate::failure::Failure;
use crate::findings::{require_source, warn_of_other_database};
use crate::half::{Half, stop_all, until_one_ends};
use crate::pipeline::{AnyBroker, AnyCache, start_consumer, start_publisher};
use crate::screen::Screen;
use crate::signals::Signals;
use crate::status_line::{self, Shows};

/// Runs until somebody stops it.
pub async fn run(config: &Config, screen: &Screen) -> Result<(), Failure> {
    require_source(config).await?;
    warn_of_other_database(config);
    let signals = Signals::listen()?;
    let meter = Arc::new(Meter::default());
    let broker = AnyBroker::new(&config.broker, config.partitions);
    let cache = AnyCache::new(&config.cache, &config.pipeline);
    // The consumer first, so that nothing waits longer than it must.
    let consumer = start_consumer(config, &broker, &cache, &meter)?;
    let publisher = match start_publisher(config, &broker, &meter) {
        Ok(publisher) => publisher,
        Err(error) => {
            stop_all(vec![consumer]).await?;
            return Err(error.into());
        }
    };
    attend(config, vec![publisher, consumer], signals, screen, &meter, Shows::Run).await
}

/// Shows how the halves are doing, and stops all of them at a signal or when one has ended.
pub async fn attend(
    config: &Config,
    mut halves: Vec<Half>,
    mut signals: Signals,
    screen: &Screen,
    meter: &Meter,
    shows: Shows,
) -> Result<(), Failure> {
    tracing::info!("pipeline {} is running with {} partitions; Ctrl-C stops it", config.pipeline, config.partitions);
    let asked = tokio::select! {
        asked = until_one_ends(&mut halves, &mut signals) => asked,
        () = status_line::show(screen, meter, shows) => false,
    };
    if asked {
        tracing::info!("stopping, once what is in hand is finished; Ctrl-C again ends at once");
    }
    signals.exit_at_the_next();
    stop_all(halves).await?;
    tracing::info!("stopped; {}", status_line::total(meter, shows));
    Ok(())
}
