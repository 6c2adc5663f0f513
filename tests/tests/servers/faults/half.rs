//! A running `rowcast publish` or `rowcast consume`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rowcast_testkit::process::Process;
use rowcast_testkit::wait::until_blocking;
use rustix::process::Signal;

use super::binary;

/// How long a process may take to say or do something.
const DEADLINE: Duration = Duration::from_secs(120);

/// The lines that a consumer writes when it opens resyncs, but for those of a mapping, a truncate or a request.
const OPENINGS: [&str; 3] = ["no checkpoint: every table", "history is another one: every table", "something before this batch is missing"];

/// One process with a log of its own.
#[derive(Debug)]
pub struct Half {
    log: Log,
    process: Process,
}

/// What a process has said; outlives it.
#[derive(Clone, Debug)]
pub struct Log(pub PathBuf);

impl Half {
    /// Starts `rowcast <command> --config <config>` in `folder`; its log is `<name>.log` there.
    pub fn start(folder: &Path, command: &str, config: &str, name: &str) -> Half {
        let log = folder.join(format!("{name}.log"));
        let arguments = [OsStr::new(command), OsStr::new("--config"), OsStr::new(config)];
        let process = Process::start(binary::rowcast(), &arguments, &[], folder, &log).expect("rowcast starts");
        Half { log: Log(log), process }
    }

    /// What it has said so far.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// `kill -9`.
    pub fn kill(self) {
        self.process.kill().expect("the process is killed");
    }

    /// Whether it still runs (or is merely stopped).
    pub fn lives(&mut self) -> bool {
        self.process.ended().expect("its status is known").is_none()
    }

    /// SIGSTOP: it does nothing any more, and nobody is told.
    pub fn freeze(&self) {
        self.process.signal(Signal::STOP).expect("it is stopped");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.process.signal(Signal::CONT).expect("it goes on");
    }

    /// SIGINT, as Ctrl-C does, and the wait for an orderly end.
    pub fn leave(mut self) {
        // Before that it does not listen.
        self.log.wait_for("is running with");
        self.process.signal(Signal::INT).expect("it is asked to stop");
        let ended = until_blocking("the process to leave", DEADLINE, || self.process.ended().expect("its status is known"));
        let status = ended.unwrap_or_else(|error| panic!("{error}: {}", self.log.tail()));
        assert!(status.success(), "it left with {status}: {}", self.log.tail());
    }
}

impl Half {
    /// Waits for its end by itself, which must be a failure with exit code 1, and returns what it said.
    pub fn fails(mut self) -> String {
        let ended = until_blocking("the process to give up", DEADLINE, || self.process.ended().expect("its status is known"));
        let status = ended.unwrap_or_else(|error| panic!("{error}: {}", self.log.tail()));
        assert_eq!(status.code(), Some(1), "{}", self.log.tail());
        self.log.text()
    }
}

impl Log {
    /// The whole text.
    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.0).expect("a log can be read")
    }

    /// In how many lines `words` stand.
    pub fn count(&self, words: &str) -> usize {
        self.text().lines().filter(|line| line.contains(words)).count()
    }

    /// The lines that tell of a resync of everything.
    pub fn openings(&self) -> Vec<String> {
        self.text().lines().filter(|line| OPENINGS.iter().any(|opening| line.contains(opening))).map(str::to_owned).collect()
    }

    /// Waits until `words` have been said more than `before` times.
    pub fn wait_for_more(&self, words: &str, before: usize) {
        until_blocking(&format!("{words:?} in a log"), DEADLINE, || (self.count(words) > before).then_some(()))
            .unwrap_or_else(|error| panic!("{error}: {}", self.tail()));
    }

    /// Waits until `words` have been said.
    pub fn wait_for(&self, words: &str) {
        self.wait_for_more(words, 0);
    }

    /// The last lines, under the log's name.
    pub fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.0).unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = text.lines().collect();
        format!("{}:\n{}\n", self.0.display(), lines[lines.len().saturating_sub(30)..].join("\n"))
    }
}
