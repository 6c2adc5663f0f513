//! `rowcast`: keeps a Redis cache in step with a SQL database through RabbitMQ.
//!
//! What was typed ([`args`]) is read once, each command stands in a file of its own, and what goes wrong becomes text and an
//! exit code here and nowhere else.

mod args;
mod commands;
mod failure;
mod findings;
mod half;
mod numbers;
mod output;
mod pipeline;
mod screen;
mod signals;
mod source;
mod status_line;
mod tables;

use std::process::ExitCode;

use clap::Parser;

use args::LowArgs;

fn main() -> ExitCode {
    let args = LowArgs::parse();
    let screen = screen::Screen::new();
    // The demo tells its own story; only what goes wrong comes in between.
    let quiet = matches!(args.command, args::Command::Demo(_));
    screen::log_to(&screen, args.verbose, quiet, args.log_format);
    // Publisher and consumer have runtimes of their own; this one only waits.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::Failure::from(anyhow::Error::from(error)).report(),
    };
    match runtime.block_on(commands::run(args, &screen)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
