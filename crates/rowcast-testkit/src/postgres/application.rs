//! A psql that stays connected, as an application does: many small transactions without a program and a connection each.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail};

use super::programs::programs;

/// A connection. It ends with this.
#[derive(Debug)]
pub struct Application {
    psql: Child,
    input: ChildStdin,
    output: BufReader<std::io::PipeReader>,
    asked: u64,
}

/// What came of some statements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What they printed: columns separated by `|`.
    pub lines: Vec<String>,
    /// The SQLSTATE of each that failed.
    pub errors: Vec<String>,
    /// The server's words of the newest error of this connection.
    pub newest_error: String,
    /// Whether the last of them succeeded. A COMMIT of a transaction that has failed does.
    pub last_succeeded: bool,
}

impl Application {
    /// Connects. In a transaction a statement that fails is undone alone, by a savepoint of its own.
    pub fn connect(url: &str) -> Result<Application> {
        // Both outputs in one, so that errors stand where they happened.
        let (output, both) = std::io::pipe()?;
        let mut psql = Command::new(programs()?.join("psql"))
            .args([
                "--no-psqlrc",
                "--quiet",
                "--no-align",
                "--tuples-only",
                "--set=ON_ERROR_ROLLBACK=on",
                "--set=VERBOSITY=sqlstate",
                "--file=-",
                "--dbname",
                url,
            ])
            .env("PGCLIENTENCODING", "UTF8")
            .stdin(Stdio::piped())
            .stdout(both.try_clone()?)
            .stderr(both)
            .spawn()
            .context("running psql")?;
        let input = psql.stdin.take().context("psql's input")?;
        let mut application = Application { psql, input, output: BufReader::new(output), asked: 0 };
        application.run("SELECT;").context("connecting")?;
        Ok(application)
    }

    /// Runs statements that end with a semicolon each. An error means that the connection is lost, and that nobody knows whether a COMMIT
    /// among them was heard.
    pub fn run(&mut self, sql: &str) -> Result<Outcome> {
        self.asked += 1;
        let mark = format!("rowcast-testkit-{} ", self.asked);
        let text = format!("{sql}\n\\echo {mark}:ERROR :LAST_ERROR_MESSAGE\n");
        self.input.write_all(text.as_bytes()).and_then(|()| self.input.flush()).context("writing to psql")?;
        let mut outcome = Outcome::default();
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).context("reading from psql")? == 0 {
                bail!("psql has lost its connection: {:?}", outcome.lines);
            }
            let line = line.trim_end_matches('\n');
            if let Some((error, words)) = line.strip_prefix(&mark).and_then(|rest| rest.split_once(' ')) {
                outcome.last_succeeded = error == "false";
                outcome.newest_error = words.to_owned();
                return Ok(outcome);
            }
            match line.split_once("ERROR:  ") {
                Some((place, state)) if place.starts_with("psql:") => outcome.errors.push(state.to_owned()),
                _ => outcome.lines.push(line.to_owned()),
            }
        }
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        // One that has ended by itself needs neither.
        drop(self.psql.kill());
        drop(self.psql.wait());
    }
}
