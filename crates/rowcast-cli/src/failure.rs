//! How a command ends when it does not end well.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use rowcast::config;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub enum Failure {
    /// It went wrong.
    Failed(anyhow::Error),
    /// It was asked for in a way that cannot work.
    Wrong(String),
    /// The configuration cannot work.
    Configuration(config::Error),
    /// Database and cache differ; the command has shown how.
    Differences,
    /// The command has shown what is wrong, and exits with this.
    Told(u8),
    /// It was interrupted before it came to a result; what that means.
    Interrupted(String),
}

/// The exit code of a program that Ctrl-C has ended.
pub const INTERRUPTED: u8 = 130;

impl Failure {
    /// Tells the user, and what the program exits with.
    pub fn report(self) -> ExitCode {
        match self {
            Failure::Failed(error) => {
                tell(&format!("{error:#}"));
                ExitCode::from(1)
            }
            Failure::Wrong(text) => {
                tell(&text);
                ExitCode::from(2)
            }
            Failure::Configuration(error) => {
                for (index, finding) in error.findings.iter().enumerate() {
                    if index > 0 {
                        anstream::eprintln!();
                    }
                    tell(&finding.to_string());
                }
                ExitCode::from(2)
            }
            Failure::Told(code) => ExitCode::from(code),
            Failure::Differences => ExitCode::from(3),
            Failure::Interrupted(text) => {
                anstream::eprintln!("interrupted: {text}");
                ExitCode::from(INTERRUPTED)
            }
        }
    }
}

fn tell(text: &str) {
    let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
    anstream::eprintln!("{red}error:{red:#} {text}");
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Failed(error)
    }
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Failure {
        Failure::Configuration(error)
    }
}
