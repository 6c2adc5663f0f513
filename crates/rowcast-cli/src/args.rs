//! What was typed.

use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand, ValueEnum};

use crate::commands::check::CheckArgs;
use crate::commands::completions::{CompletionsArgs, ManArgs};
use crate::commands::demo::DemoArgs;
use crate::commands::get::GetArgs;
use crate::commands::init::InitArgs;
use crate::commands::install::InstallArgs;
use crate::commands::snapshot::SnapshotArgs;
use crate::commands::status::StatusArgs;
use crate::commands::tail::TailArgs;

/// Keeps a Redis cache in step with a SQL database through RabbitMQ: nothing lost, nothing stale.
#[derive(Debug, Parser)]
#[command(name = "rowcast", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "\
Begin with `rowcast demo`. For a database of your own: `rowcast init sqlite:app.db`, then `rowcast install`, `rowcast check` and `rowcast run`.

Exit status: 0 done, 1 failed, 2 wrong use or configuration, 3 the comparison found differences.")]
pub struct LowArgs {
    /// The configuration file.
    #[arg(long, global = true, help_heading = "Global options", value_name = "FILE", default_value = "rowcast.toml")]
    pub config: PathBuf,

    /// Show each change as it is applied (-vv: also what the libraries say).
    #[arg(short, long, global = true, help_heading = "Global options", action = ArgAction::Count)]
    pub verbose: u8,

    /// The form of the log on stderr.
    #[arg(long, global = true, help_heading = "Global options", value_enum, value_name = "FORMAT", default_value_t = LogFormat::Human)]
    pub log_format: LogFormat,

    #[command(subcommand)]
    pub command: Command,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines to read.
    Human,
    /// One JSON object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show all of it at work, without servers and without a configuration.
    Demo(DemoArgs),
    /// Write a configuration for a database.
    Init(InitArgs),
    /// Find out what would stop or harm the pipeline, and what mends it.
    Check(CheckArgs),
    /// Put changelog and triggers into the database.
    Install(InstallArgs),
    /// Take changelog and triggers out of the database again.
    Uninstall,
    /// Publish and consume in one process.
    Run,
    /// Read changes from the database and publish them to the broker.
    Publish,
    /// Receive changes from the broker and write them to the cache.
    Consume,
    /// Have tables read again from the database, and follow that.
    Snapshot(SnapshotArgs),
    /// Show how far the pipeline is, and what waits where.
    Status(StatusArgs),
    /// Watch the changes go by, without disturbing the consumers.
    Tail(TailArgs),
    /// Show one row in the database and in the cache, side by side.
    Get(GetArgs),
    /// Print a script that completes commands and options in a shell.
    Completions(CompletionsArgs),
    /// Print a manual page.
    Man(ManArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The part of the page that is about one command.
    fn section<'p>(page: &'p str, title: &str) -> &'p str {
        let (_, rest) = page.split_once(&format!("\n## {title}\n")).unwrap_or_else(|| panic!("docs/commands.md has no section {title}"));
        rest.split("\n## ").next().unwrap()
    }

    #[test]
    fn every_command_and_option_is_documented() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/commands.md")).unwrap();
        let rowcast = LowArgs::command();
        let documented = |section: &str, command: &clap::Command, title: &str| {
            for argument in command.get_arguments().filter(|argument| !["help", "version"].contains(&argument.get_id().as_str())) {
                let name = match argument.get_long() {
                    Some(long) => format!("--{long}"),
                    None => argument.get_value_names().unwrap_or_default().first().unwrap().to_string(),
                };
                assert!(section.contains(&name), "{title} does not speak of {name}");
            }
        };
        documented(section(&page, "Everywhere"), &rowcast, "Everywhere");
        let commands: Vec<&clap::Command> = rowcast.get_subcommands().filter(|command| command.get_name() != "help").collect();
        for command in &commands {
            documented(section(&page, command.get_name()), command, command.get_name());
        }
        let titles = page.lines().filter_map(|line| line.strip_prefix("## ")).filter(|title| *title != "Everywhere");
        for title in titles {
            assert!(commands.iter().any(|command| command.get_name() == title), "there is no command {title}");
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        LowArgs::command().debug_assert();
    }
}
