//! The one line that `run`, `publish` and `consume` show on a terminal, once a second.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rowcast::meter::Meter;

use crate::numbers::{count, grouped, span_us};
use crate::screen::Screen;

/// What a line shows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shows {
    /// Both halves.
    Run,
    /// The left one.
    Publish,
    /// The right one.
    Consume,
}

/// Shows the line until the future is dropped.
pub async fn show(screen: &Screen, meter: &Meter, shows: Shows) {
    let line = screen.show(ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{wide_msg}").expect("it is one")));
    let mut before = Counts::default();
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        let now = Counts::of(meter);
        line.set_message(text(meter, shows, before, now));
        line.tick();
        before = now;
    }
}

/// What was done, for the log's last line.
pub fn total(meter: &Meter, shows: Shows) -> String {
    let published = format!("published {}", count(Meter::read(&meter.published), "change", "changes"));
    let wrote = format!("wrote {}", count(Meter::read(&meter.keys), "key", "keys"));
    match shows {
        Shows::Run => format!("{published} and {wrote}"),
        Shows::Publish => published,
        Shows::Consume => wrote,
    }
}

#[derive(Clone, Copy, Default)]
struct Counts {
    published: u64,
    keys: u64,
}

impl Counts {
    fn of(meter: &Meter) -> Counts {
        Counts { published: Meter::read(&meter.published) + Meter::read(&meter.chunk_rows), keys: Meter::read(&meter.keys) }
    }
}

fn text(meter: &Meter, shows: Shows, before: Counts, now: Counts) -> String {
    let mut parts = Vec::new();
    if shows != Shows::Consume {
        parts.push(format!("published {} (+{}/s)", grouped(now.published), grouped(now.published - before.published)));
    }
    if shows != Shows::Publish {
        parts.push(format!("written {} (+{}/s)", count(now.keys, "key", "keys"), grouped(now.keys - before.keys)));
        if now.keys > 0 {
            parts.push(format!("lag {}", span_us(meter.lag_us.load(Relaxed))));
        }
        let resyncs = u64::try_from(meter.resyncs.load(Relaxed)).unwrap_or(0);
        if resyncs > 0 {
            parts.push(format!("{} open", count(resyncs, "resync", "resyncs")));
        }
    }
    let dead = Meter::read(&meter.dead);
    if dead > 0 {
        parts.push(count(dead, "dead letter", "dead letters"));
    }
    parts.join(" · ")
}
