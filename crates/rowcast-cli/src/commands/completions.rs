//! `rowcast completions` and `rowcast man`: what shell and manual know of the arguments, from their definitions.

use anyhow::Context;
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::args::LowArgs;
use crate::failure::Failure;
use crate::output::print;

/// For which shell.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell that is to complete.
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

/// Of what.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The command whose page it is; rowcast itself if none is named.
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
}

/// Prints a script for the shell.
pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut LowArgs::command(), "rowcast", &mut script);
    print(&String::from_utf8(script).context("the script is not UTF-8")?)?;
    Ok(())
}

/// Prints a manual page.
pub fn man(args: &ManArgs) -> Result<(), Failure> {
    let mut rowcast = LowArgs::command();
    // Global options reach the pages of the commands.
    rowcast.build();
    let command = match &args.command {
        None => rowcast,
        Some(name) => page_of(&rowcast, name)?,
    };
    let mut page = Vec::new();
    Man::new(command).render(&mut page).context("the page cannot be rendered")?;
    print(&String::from_utf8(page).context("the page is not UTF-8")?)?;
    Ok(())
}

fn page_of(rowcast: &Command, name: &str) -> Result<Command, Failure> {
    let Some(command) = rowcast.find_subcommand(name) else {
        let names = || rowcast.get_subcommands().map(Command::get_name);
        let near = rowcast::mapping::nearest(name, names()).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        return Err(Failure::Wrong(format!("there is no command {name}{near}")));
    };
    Ok(command.clone())
}
