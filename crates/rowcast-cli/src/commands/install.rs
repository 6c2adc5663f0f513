//! `rowcast install`: changelog and triggers.

use clap::Args;
use rowcast::config::Config;
use rowcast::source::sqlite;

use crate::failure::Failure;
use crate::findings::require_fitting_tables;
use crate::output::print;

/// How to install.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Only print the statements that would be executed.
    #[arg(long)]
    dry_run: bool,
}

/// Installs, or says how.
pub fn run(args: &InstallArgs, config: &Config) -> Result<(), Failure> {
    require_fitting_tables(config)?;
    if args.dry_run {
        let statements = sqlite::plan(&config.source).map_err(anyhow::Error::from)?;
        let script: String = statements.iter().map(|statement| format!("{};\n", statement.trim_end_matches(';'))).collect();
        print(&script)?;
        if statements.is_empty() {
            eprintln!("nothing to do: {} has everything already", config.source.path.display());
        }
        return Ok(());
    }
    let report = sqlite::install(&config.source).map_err(anyhow::Error::from)?;
    for note in &report.notes {
        eprintln!("{note}");
    }
    if report.notes.is_empty() {
        eprintln!("nothing to do: {} has everything already", config.source.path.display());
    } else {
        eprintln!("next: rowcast run");
    }
    Ok(())
}
