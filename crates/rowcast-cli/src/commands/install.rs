//! `rowcast install`: changelog and triggers, or publication and slot.

use clap::Args;
use rowcast::config::Config;

use crate::failure::Failure;
use crate::findings::require_fitting_tables;
use crate::output::print;
use crate::source;

/// How to install.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Only print the statements that would be executed.
    #[arg(long)]
    dry_run: bool,
}

/// Installs, or says how.
pub async fn run(args: &InstallArgs, config: &Config) -> Result<(), Failure> {
    require_fitting_tables(config).await?;
    if args.dry_run {
        let statements = source::plan(config).await.map_err(anyhow::Error::from)?;
        let script: String = statements.iter().map(|statement| format!("{};\n", statement.trim_end_matches(';'))).collect();
        print(&script)?;
        if statements.is_empty() {
            eprintln!("nothing to do: {} has everything already", source::place(config));
        }
        return Ok(());
    }
    let notes = source::install(config).await.map_err(anyhow::Error::from)?;
    for note in &notes {
        eprintln!("{note}");
    }
    if notes.is_empty() {
        eprintln!("nothing to do: {} has everything already", source::place(config));
    } else {
        eprintln!("next: rowcast run");
    }
    Ok(())
}
