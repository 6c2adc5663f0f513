//! One file a command.

pub mod check;
pub mod completions;
pub mod consume;
pub mod demo;
pub mod get;
pub mod init;
pub mod install;
pub mod publish;
pub mod run;
pub mod snapshot;
pub mod status;
pub mod tail;
pub mod uninstall;

use rowcast::config::Config;

use crate::args::{Command, LowArgs};
use crate::failure::Failure;
use crate::screen::Screen;

/// Does what was asked for.
pub async fn run(args: LowArgs, screen: &Screen) -> Result<(), Failure> {
    let path = args.config.as_path();
    match args.command {
        Command::Demo(demo) => demo::run(demo, screen).await,
        Command::Init(init) => init::run(&init, path).await,
        Command::Check(check) => check::run(&check, path).await,
        Command::Install(install) => install::run(&install, &Config::read(path)?).await,
        Command::Uninstall => uninstall::run(&Config::read(path)?).await,
        Command::Run => run::run(&Config::read(path)?, screen).await,
        Command::Publish => publish::run(&Config::read(path)?, path, screen).await,
        Command::Consume => consume::run(&Config::read(path)?, path, screen).await,
        Command::Snapshot(snapshot) => snapshot::run(&snapshot, &Config::read(path)?, path, screen).await,
        Command::Status(status) => status::run(&status, &Config::read(path)?, path).await,
        Command::Tail(tail) => tail::run(&tail, &Config::read(path)?, path).await,
        Command::Get(get) => get::run(&get, &Config::read(path)?, path).await,
        Command::Completions(completions) => completions::completions(&completions),
        Command::Man(man) => completions::man(&man),
    }
}
