//! `rowcast uninstall`: every trace of rowcast leaves the database.

use rowcast::config::Config;

use crate::failure::Failure;
use crate::source;

/// Uninstalls.
pub async fn run(config: &Config) -> Result<(), Failure> {
    let notes = source::uninstall(config).await.map_err(anyhow::Error::from)?;
    for note in &notes {
        eprintln!("{note}");
    }
    if !notes.is_empty() && source::is_hooked(config) {
        eprintln!("if the application still has rowcast's hooks its writes fail from now on: take the hooks out of it first");
    }
    if notes.is_empty() {
        eprintln!("nothing to do: there is nothing of rowcast in {}", source::place(config));
    }
    Ok(())
}
