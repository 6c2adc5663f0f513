//! Standard error: the log, and on a terminal the lines that move beneath it.

use std::io::{self, IsTerminal, Write};
use std::ops::Deref;

use indicatif::{MultiProgress, ProgressBar};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::LogFormat;

/// Where the log goes and progress is shown. Clones are the same screen.
#[derive(Clone)]
pub struct Screen {
    bars: MultiProgress,
}

impl Screen {
    /// Standard error. Progress is only shown if it is a terminal.
    pub fn new() -> Screen {
        Screen { bars: MultiProgress::new() }
    }

    /// Shows a line that moves, until what is returned is dropped.
    pub fn show(&self, bar: ProgressBar) -> Moving {
        Moving { bar: self.bars.add(bar), bars: self.bars.clone() }
    }
}

/// A line that moves.
pub struct Moving {
    bar: ProgressBar,
    bars: MultiProgress,
}

impl Deref for Moving {
    type Target = ProgressBar;

    fn deref(&self) -> &ProgressBar {
        &self.bar
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        self.bars.remove(&self.bar);
    }
}

/// Writes around the moving lines.
pub struct Line(MultiProgress);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The log hands over whole lines.
        self.0.suspend(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'w> MakeWriter<'w> for Screen {
    type Writer = Line;

    fn make_writer(&'w self) -> Line {
        Line(self.bars.clone())
    }
}

/// Sends the log to the screen from now on; if it is to be `quiet`, only what goes wrong.
pub fn log_to(screen: &Screen, verbose: u8, quiet: bool, format: LogFormat) {
    // A lost connection is told by rowcast itself, with what it does about it.
    let (own, lapin, others) = match verbose {
        0 => (if quiet { LevelFilter::WARN } else { LevelFilter::INFO }, LevelFilter::OFF, LevelFilter::WARN),
        1 => (LevelFilter::DEBUG, LevelFilter::OFF, LevelFilter::WARN),
        _ => (LevelFilter::TRACE, LevelFilter::DEBUG, LevelFilter::DEBUG),
    };
    let mut filter = Targets::new().with_default(others).with_target("rowcast", own).with_target("lapin", lapin);
    if quiet && verbose == 0 {
        // That a session begins with a new history is no news for a database that was just made.
        filter = filter.with_target("rowcast::publisher::session", LevelFilter::ERROR);
    }
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Human => {
            let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            let layer = tracing_subscriber::fmt::layer().with_writer(screen.clone()).with_target(false).with_ansi(colours);
            registry.with(layer).init();
        }
        LogFormat::Json => registry.with(tracing_subscriber::fmt::layer().json().with_writer(screen.clone())).init(),
    }
}
