//! What the demo tells on stdout while it goes on; nothing at all where the summary is to stand alone.

use std::fmt::Write;
use std::time::Duration;

use anstyle::Style;

use super::Stage;
use crate::numbers::{grouped, span};
use crate::output::print;
use crate::pipeline::{AnyBroker, AnyCache};

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// The narrator.
pub struct Story {
    silent: bool,
}

/// One step as it flowed.
pub struct Step<'s> {
    /// What was done, as one says it.
    pub title: &'s str,
    /// The row, or what became of it.
    pub row: String,
    /// The batch as it stands in the broker.
    pub batch: String,
    /// The key.
    pub key: &'s str,
    /// Its value before.
    pub before: String,
    /// Its value after.
    pub after: String,
    /// From the commit to the cache.
    pub took: Duration,
}

impl Story {
    /// A narrator, who may have nothing to say.
    pub fn new(silent: bool) -> Story {
        Story { silent }
    }

    fn say(&self, text: &str) -> anyhow::Result<()> {
        if self.silent { Ok(()) } else { print(text) }
    }

    /// What is about to be shown.
    pub fn opening(&self, stage: &Stage) -> anyhow::Result<()> {
        let broker = match stage.broker {
            AnyBroker::Memory(_) => "a broker in this process",
            AnyBroker::Rabbit(_) => "RabbitMQ",
        };
        let cache = match stage.cache {
            AnyCache::Memory(_) => "a cache in this process",
            AnyCache::Redis(_) => "Redis",
        };
        self.say(&format!(
            "{BOLD}A table of users in SQLite, written through SeaORM{BOLD:#} → {broker} → {cache}\n{DIM}{} · pipeline {} · {} \
             partitions{DIM:#}\n",
            stage.database.display(),
            stage.pipeline,
            stage.partitions
        ))
    }

    /// One step.
    pub fn step(&self, step: &Step<'_>) -> anyhow::Result<()> {
        let mut text = format!("\n{BOLD}{}{BOLD:#}\n", step.title);
        let mut line = |label: &str, value: &str| {
            for (index, part) in value.lines().enumerate() {
                let label = if index == 0 { label } else { "" };
                // Writing to a String cannot fail.
                writeln!(text, "  {DIM}{label:<7}{DIM:#} {part}").expect("a String takes every write");
            }
        };
        line("row", &step.row);
        line("batch", &step.batch);
        line("cache", &format!("{} was  {}", step.key, step.before));
        line("", &format!("{} is   {}", step.key, step.after));
        line("time", &format!("{} from commit to cache", span(step.took)));
        self.say(&text)
    }

    /// The load begins.
    pub fn load(&self, changes: u64) -> anyhow::Result<()> {
        self.say(&format!("\n{BOLD}A load of {} inserts, updates and deletes{BOLD:#}\n", grouped(changes)))
    }

    /// The comparison begins.
    pub fn comparing(&self) -> anyhow::Result<()> {
        self.say(&format!("\n{BOLD}A comparison of every row with its key, and every key with its row{BOLD:#}\n"))
    }
}
