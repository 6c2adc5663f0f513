//! `rowcast snapshot`: has tables read again from the database, and shows how far that is.
//!
//! The request goes to the publisher, which passes it on in the stream; what follows is in the checkpoints.

mod progress;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rowcast::broker::Broker;
use rowcast::cache::{self, Cache, Link};
use rowcast::change::{Partition, Table};
use rowcast::checkpoint::Checkpoint;
use rowcast::config::Config;
use rowcast::request::Request;
use serde_json::json;

use self::progress::{Progress, Step};
use crate::failure::Failure;
use crate::numbers::{count, span};
use crate::output::print;
use crate::pipeline::{AnyBroker, AnyCache, require_servers};
use crate::screen::{Moving, Screen};
use crate::signals::Signals;
use crate::{source, tables, with_broker, with_cache};

/// Which tables, and how to tell.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Only this table (may be repeated).
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,

    /// Print one JSON object at the end.
    #[arg(long)]
    json: bool,
}

/// How often the checkpoints are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// After so long without any progress it is asked who is missing.
const SILENCE: Duration = Duration::from_secs(5);

/// How long the cache may be out of reach.
const CACHE_PATIENCE: Duration = Duration::from_secs(30);

/// Asks, and follows until everything is read.
pub async fn run(args: &SnapshotArgs, config: &Config, path: &Path, screen: &Screen) -> Result<(), Failure> {
    require_servers(config, path, "snapshot")?;
    let names = tables::named(config, &args.tables)?;
    let mut signals = Signals::listen()?;
    let broker = AnyBroker::new(&config.broker, config.partitions);
    let cache = AnyCache::new(&config.cache, &config.pipeline);
    let begun = Instant::now();
    let rows = tokio::select! {
        rows = count_rows(config, &names) => rows,
        () = signals.next() => return Err(Failure::Interrupted("nothing was requested".to_owned())),
    };
    let asking = async { with_broker!(&broker, broker => with_cache!(&cache, cache => ask(config, &names, broker, cache).await)) };
    let asked = tokio::select! {
        asked = asking => asked?,
        () = signals.next() => return Err(Failure::Interrupted("the request may have been handed over already".to_owned())),
    };
    let mut progress = Progress::new(names.iter().map(|name| Table::from(name.as_str())).collect(), asked, rows.as_deref());
    eprintln!("requested a resync of {}", names.join(", "));
    let bar = screen.show(bar(rows.as_ref().map(|rows| rows.iter().sum())));
    let following = async {
        with_broker!(&broker, broker => with_cache!(&cache, cache => follow(config, &names, &mut progress, &bar, broker, cache).await))
    };
    let followed = tokio::select! {
        followed = following => followed,
        () = signals.next() => Err(Failure::Interrupted(
            "the resync goes on without this command; `rowcast status` shows how far it is".to_owned(),
        )),
    };
    drop(bar);
    followed?;
    let took = begun.elapsed();
    let rows = rows.map(|rows| rows.iter().sum::<u64>());
    let read = rows.map_or("all".to_owned(), |rows| count(rows, "row", "rows"));
    eprintln!("{read} of {} read again in {}", names.join(", "), span(took));
    if args.json {
        let summary = json!({ "tables": names, "rows": rows, "seconds": round(took) });
        print(&format!("{summary}\n"))?;
    }
    Ok(())
}

/// Seconds with three decimals.
fn round(took: Duration) -> f64 {
    (took.as_secs_f64() * 1000.0).round() / 1000.0
}

/// For the bar alone: without it the resync runs all the same.
async fn count_rows(config: &Config, names: &[String]) -> Option<Vec<u64>> {
    match source::count_rows(config, names.to_vec()).await {
        Ok(rows) => Some(rows),
        Err(error) => {
            eprintln!("how many rows there are is unknown: {error}");
            None
        }
    }
}

/// Hands the request over. Returns the checkpoints from before it: whatever resync is opened after them reads every row anew.
async fn ask<B: Broker, C: Cache>(
    config: &Config,
    names: &[String],
    broker: &B,
    cache: &C,
) -> anyhow::Result<Vec<(Partition, Option<Checkpoint>)>> {
    let mut link = cache.connect().await?;
    let before = checkpoints(&mut link, config.partitions).await?;
    request(names, broker).await?;
    Ok(before)
}

async fn request<B: Broker>(names: &[String], broker: &B) -> anyhow::Result<()> {
    let tables = names.iter().map(|name| Table::from(name.as_str())).collect();
    Ok(broker.request(Request::Resync { tables }.encode()).await?)
}

async fn checkpoints<L: Link>(link: &mut L, configured: u16) -> Result<Vec<(Partition, Option<Checkpoint>)>, cache::Error> {
    let of = link.layout().await?.unwrap_or(configured);
    let mut found = Vec::new();
    for partition in Partition::all(of) {
        found.push((partition, link.load(partition).await?.map(|stored| stored.checkpoint)));
    }
    Ok(found)
}

async fn follow<B: Broker, C: Cache>(
    config: &Config,
    names: &[String],
    progress: &mut Progress,
    bar: &Moving,
    broker: &B,
    cache: &C,
) -> Result<(), Failure> {
    let mut link = None;
    let mut moved = Instant::now();
    let mut reached = Instant::now();
    loop {
        match look(config, cache, &mut link).await {
            Ok(found) => {
                reached = Instant::now();
                if progress.note(&found) {
                    moved = Instant::now();
                }
            }
            Err(cache::Error::Lost(reason)) if reached.elapsed() < CACHE_PATIENCE => {
                link = None;
                bar.set_message(format!("the cache is out of reach: {reason}"));
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Err(error) => return Err(anyhow!(error).into()),
        }
        show(bar, progress);
        if progress.step() == Step::Done {
            return Ok(());
        }
        if moved.elapsed() > SILENCE {
            if let Some(missing) = missing(config, broker, progress).await? {
                return Err(anyhow!(missing).into());
            }
            if progress.step() == Step::Waiting {
                // Everybody is there, so what the publisher sent was lost on the way (a queue was purged, say).
                request(names, broker).await?;
            }
            moved = Instant::now();
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// One look at every checkpoint, on a connection that is kept while it does.
async fn look<C: Cache>(
    config: &Config,
    cache: &C,
    link: &mut Option<C::Link>,
) -> Result<Vec<(Partition, Option<Checkpoint>)>, cache::Error> {
    let connected = match link.take() {
        Some(connected) => connected,
        None => cache.connect().await?,
    };
    checkpoints(link.insert(connected), config.partitions).await
}

/// Who has to be there for the resync to go on, and is not.
async fn missing<B: Broker>(config: &Config, broker: &B, progress: &Progress) -> anyhow::Result<Option<String>> {
    let queues = broker.inspect().await?;
    let of = |end: &str| queues.iter().find(|queue| queue.name == format!("rowcast.{}.{end}", config.pipeline));
    let remains = if progress.step() == Step::Waiting {
        format!("the request waits in rowcast.{}.control", config.pipeline)
    } else {
        "the resync stays open and goes on when it is back".to_owned()
    };
    if of("publisher").is_none_or(|queue| queue.depth.is_none()) {
        return Ok(Some(format!(
            "no publisher of the pipeline {} is connected; {remains}; start `rowcast run` or `rowcast publish`",
            config.pipeline
        )));
    }
    let without = progress.open_partitions().find(|partition| of(&partition.to_string()).is_none_or(|queue| queue.consumers == 0));
    Ok(without.map(|partition| {
        format!(
            "no consumer is connected to rowcast.{}.{partition}; what the publisher sends waits there; start `rowcast run` or \
             `rowcast consume`",
            config.pipeline
        )
    }))
}

fn bar(rows: Option<u64>) -> ProgressBar {
    match rows.filter(|rows| *rows > 0) {
        Some(rows) => {
            let style = ProgressStyle::with_template("{bar:30} {percent:>3}%  {human_pos} of {human_len} rows  {eta} left  {wide_msg}");
            ProgressBar::new(rows).with_style(style.expect("it is one").progress_chars("━╸ "))
        }
        None => ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {wide_msg}").expect("it is one")),
    }
}

fn show(bar: &Moving, progress: &Progress) {
    bar.set_position(progress.rows());
    bar.set_message(match progress.step() {
        Step::Waiting => "waiting for the publisher",
        Step::Reading => "reading",
        Step::Sweeping => "removing what has no row",
        Step::Done => "done",
    });
    bar.tick();
}
