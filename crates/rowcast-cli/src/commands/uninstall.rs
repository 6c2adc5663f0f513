//! `rowcast uninstall`: every trace of rowcast leaves the database.

use rowcast::config::Config;
use rowcast::source::sqlite;

use crate::failure::Failure;

/// Uninstalls.
pub fn run(config: &Config) -> Result<(), Failure> {
    let report = sqlite::uninstall(&config.source.path).map_err(anyhow::Error::from)?;
    for note in &report.notes {
        eprintln!("{note}");
    }
    if report.notes.is_empty() {
        eprintln!("nothing to do: there is nothing of rowcast in {}", config.source.path.display());
    }
    Ok(())
}
