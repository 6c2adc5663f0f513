//! The one summary at the end.

use std::fmt::Write;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use hdrhistogram::Histogram;
use rowcast::verify::{Class, Comparison};
use serde::Serialize;

use crate::numbers::{count, grouped, span};
use crate::output::print;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// What was done, how fast, and whether database and cache agree.
#[derive(Debug, Serialize)]
pub struct Summary {
    rows: u64,
    changes: u64,
    changes_per_s: u64,
    lag_ms: Lag,
    missing: u64,
    stale: u64,
    orphans: u64,
    wrong_type: u64,
    #[serde(skip)]
    elapsed: Duration,
    #[serde(skip)]
    examples: Vec<(Class, String)>,
}

#[derive(Debug, Serialize)]
struct Lag {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Summary {
    /// `elapsed` runs from the load's beginning until the last key was written.
    pub fn new(changes: u64, elapsed: Duration, lag_us: &Histogram<u64>, comparison: Comparison) -> Summary {
        // One division, so that three decimals are what is printed.
        let ms = |us: u64| us as f64 / 1000.0;
        let per_s = u128::from(changes) * 1_000_000 / elapsed.as_micros().max(1);
        Summary {
            rows: comparison.rows,
            changes,
            changes_per_s: u64::try_from(per_s).unwrap_or(u64::MAX),
            lag_ms: Lag { p50: ms(lag_us.value_at_quantile(0.5)), p99: ms(lag_us.value_at_quantile(0.99)), max: ms(lag_us.max()) },
            missing: comparison.missing,
            stale: comparison.stale,
            orphans: comparison.orphans,
            wrong_type: comparison.wrong_type,
            elapsed,
            examples: comparison.examples,
        }
    }

    /// How many keys differ.
    pub fn differences(&self) -> u64 {
        self.missing + self.stale + self.orphans + self.wrong_type
    }

    /// Prints it.
    pub fn show(&self, json: bool) -> anyhow::Result<()> {
        if json {
            return print(&format!("{}\n", serde_json::to_string(self)?));
        }
        // Writing to a String cannot fail.
        print(&self.text().expect("a String takes every write"))
    }

    fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let colour = if self.differences() == 0 { AnsiColor::Green } else { AnsiColor::Red };
        let verdict = Style::new().bold().fg_color(Some(colour.into()));
        let lag = |ms: f64| span(Duration::from_secs_f64(ms / 1000.0));
        let Lag { p50, p99, max } = self.lag_ms;
        writeln!(text, "\n{BOLD}Summary{BOLD:#}")?;
        writeln!(text, "  rows         {}", grouped(self.rows))?;
        writeln!(text, "  changes      {} in {}, {} a second", grouped(self.changes), span(self.elapsed), grouped(self.changes_per_s))?;
        writeln!(text, "  lag          p50 {} · p99 {} · max {}, from the statement to the cache", lag(p50), lag(p99), lag(max))?;
        writeln!(text, "  {verdict}differences  {}{verdict:#}", grouped(self.differences()))?;
        if self.differences() > 0 {
            let Summary { missing, stale, orphans, wrong_type, .. } = self;
            writeln!(
                text,
                "               {missing} missing, {stale} stale, {}, {wrong_type} of a wrong type",
                count(*orphans, "orphan", "orphans")
            )?;
            for (class, key) in &self.examples {
                writeln!(text, "               {class:?}: {key}")?;
            }
        }
        writeln!(text, "\n{BOLD}What to try next{BOLD:#}")?;
        for (command, what) in [
            ("rowcast demo --broker amqp://localhost --cache redis://localhost", "the same on real servers"),
            ("rowcast init sqlite:app.db", "a configuration for a database of yours"),
            ("rowcast --help", "everything else"),
        ] {
            writeln!(text, "  {command:<66}  {DIM}{what}{DIM:#}")?;
        }
        Ok(text)
    }
}
