//! The benchmark's end of the pipeline's process.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rowcast_testkit::wait::until_blocking;
use serde::de::DeserializeOwned;

use crate::child::{State, Visible};
use crate::usage;

/// How long a phase may take.
const DEADLINE: Duration = Duration::from_secs(600);

/// Where a pipeline reads and writes.
#[derive(Clone, Debug)]
pub struct Route {
    /// The database's URL.
    pub source: String,
    /// RabbitMQ's URL.
    pub broker: String,
    /// Redis' URL.
    pub cache: String,
}

/// A pipeline at work. It ends with this.
#[derive(Debug)]
pub struct Running {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Running {
    /// Starts one.
    pub fn start(route: &Route, batch_changes: Option<usize>) -> anyhow::Result<Running> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["pipeline", "--source", &route.source, "--broker", &route.broker, "--cache", &route.cache]);
        command.args(batch_changes.map(|changes| format!("--batch-changes={changes}")));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting the pipeline")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("the pipeline has no output")?);
        Ok(Running { child, input, output })
    }

    fn ask<T: DeserializeOwned>(&mut self, word: &str) -> anyhow::Result<T> {
        let input = self.input.as_mut().context("the pipeline was stopped")?;
        writeln!(input, "{word}")?;
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "the pipeline has ended; what it said is above");
        Ok(serde_json::from_str(&line)?)
    }

    /// How far it is.
    pub fn state(&mut self) -> anyhow::Result<State> {
        self.ask("state")
    }

    /// From now on it notes when each version becomes visible.
    pub fn record(&mut self) -> anyhow::Result<()> {
        self.ask("record")
    }

    /// What it has noted.
    pub fn visible(&mut self) -> anyhow::Result<Visible> {
        self.ask("visible")
    }

    /// Waits until it is so far.
    pub fn until(&mut self, what: &str, mut far: impl FnMut(&State) -> bool) -> anyhow::Result<State> {
        until_blocking(what, DEADLINE, || match self.state() {
            Ok(state) => far(&state).then_some(Ok(state)),
            Err(error) => Some(Err(error)),
        })?
    }

    /// Processor seconds so far.
    pub fn cpu_s(&self) -> anyhow::Result<f64> {
        usage::process_cpu_s(self.child.id())
    }

    /// The most memory it ever had in use.
    pub fn peak_mib(&self) -> anyhow::Result<f64> {
        usage::peak_mib(self.child.id())
    }

    /// Stops it in an orderly way.
    pub fn stop(mut self) -> anyhow::Result<()> {
        drop(self.input.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "the pipeline ended with {status}");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has been waited for needs neither.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
