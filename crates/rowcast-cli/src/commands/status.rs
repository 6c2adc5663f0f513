//! `rowcast status`: how far the pipeline is, and what waits where.
//!
//! Source, broker and cache are asked one by one: what is out of reach is said, the rest is shown.

use std::fmt::Write;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use anstyle::Style;
use clap::Args;
use rowcast::broker::{Broker, QueueState};
use rowcast::cache::{Cache, Link};
use rowcast::change::Partition;
use rowcast::checkpoint::Checkpoint;
use rowcast::config::Config;
use rowcast::finding::Finding;
use rowcast::source::postgres;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::findings;
use crate::numbers::{count, grouped};
use crate::output::{print, try_print};
use crate::pipeline::{AnyBroker, AnyCache, require_servers};
use crate::signals::Signals;
use crate::source::{self, Waiting};
use crate::{with_broker, with_cache};

/// Clears a terminal and begins at its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

const DIM: Style = Style::new().dimmed();

/// How to show it.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print one JSON object; with --watch one a line.
    #[arg(long)]
    json: bool,

    /// Look again every few seconds, until Ctrl-C.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

/// What was found, or why nothing was.
struct Status<'c> {
    config: &'c Config,
    source: Result<Option<Waiting>, String>,
    /// What keeps a publisher from its work.
    stops: Vec<Finding>,
    broker: Result<Vec<QueueState>, String>,
    cache: Result<CacheState, String>,
}

struct CacheState {
    layout: Option<u16>,
    partitions: Vec<(Partition, Option<Checkpoint>)>,
}

/// Looks and shows, once or until somebody stops it.
pub async fn run(args: &StatusArgs, config: &Config, path: &Path) -> Result<(), Failure> {
    require_servers(config, path, "status")?;
    let broker = AnyBroker::new(&config.broker, config.partitions);
    let cache = AnyCache::new(&config.cache, &config.pipeline);
    let Some(seconds) = args.watch else {
        let status = look(config, &broker, &cache).await;
        print(&if args.json { format!("{}\n", status.json()) } else { status.text() })?;
        let failed = status.source.is_err() || status.broker.is_err() || status.cache.is_err();
        return if failed { Err(Failure::Told(1)) } else { Ok(()) };
    };
    let mut signals = Signals::listen()?;
    let watching = async {
        loop {
            let status = look(config, &broker, &cache).await;
            let text = match (args.json, std::io::stdout().is_terminal()) {
                (true, _) => format!("{}\n", status.json()),
                (false, true) => format!("{CLEAR}{}\n{DIM}every {seconds} s; Ctrl-C ends it{DIM:#}\n", status.text()),
                (false, false) => format!("{}\n", status.text()),
            };
            if !try_print(&text)? {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_secs(seconds)).await;
        }
    };
    tokio::select! {
        ended = watching => ended,
        () = signals.next() => Ok(()),
    }
}

async fn look<'c>(config: &'c Config, broker: &AnyBroker, cache: &AnyCache) -> Status<'c> {
    let broker = async { with_broker!(broker, broker => broker.inspect().await).map_err(|error| error.to_string()) };
    let cache = async { with_cache!(cache, cache => checkpoints(cache, config.partitions).await).map_err(|error| error.to_string()) };
    let (broker, cache) = tokio::join!(broker, cache);
    let source = source::waiting(config).await.map_err(|error| error.to_string());
    // That a file is missing or unreadable is said already.
    let stops = if matches!(source, Ok(Some(_))) { source::misfits(config).await } else { Vec::new() };
    Status { config, source, stops, broker, cache }
}

async fn checkpoints<C: Cache>(cache: &C, configured: u16) -> Result<CacheState, rowcast::cache::Error> {
    let mut link = cache.connect().await?;
    let layout = link.layout().await?;
    let mut partitions = Vec::new();
    for partition in Partition::all(layout.unwrap_or(configured)) {
        partitions.push((partition, link.load(partition).await?.map(|stored| stored.checkpoint)));
    }
    Ok(CacheState { layout, partitions })
}

impl Status<'_> {
    /// How many changelog rows, or bytes of the log, the partition is behind; `None` where it follows another history or nothing is known.
    fn behind(&self, checkpoint: &Checkpoint) -> Option<u64> {
        let Ok(Some(waiting)) = &self.source else { return None };
        source::is_of(&checkpoint.lineage.0, waiting.lineage()).then(|| waiting.newest().saturating_sub(checkpoint.position.0))
    }

    /// The lineage that the cache follows, if it is of another database.
    fn other_database(&self) -> Option<&str> {
        let (Ok(Some(waiting)), Ok(cache)) = (&self.source, &self.cache) else { return None };
        let lineages = cache.partitions.iter().filter_map(|(_, checkpoint)| Some(&*checkpoint.as_ref()?.lineage.0));
        let own = source::database_of(waiting.lineage());
        lineages.into_iter().find(|lineage| source::database_of(lineage) != own)
    }

    fn queue(&self, partition: Partition) -> Option<&QueueState> {
        let end = format!(".{partition}");
        self.broker.as_ref().ok()?.iter().find(|queue| queue.name.ends_with(&end))
    }

    /// The depth of a queue that belongs to no partition; `None` where there is no such queue.
    fn depth(&self, purpose: &str) -> Option<u64> {
        let name = format!("rowcast.{}.{purpose}", self.config.pipeline);
        self.broker.iter().flatten().find(|queue| queue.name == name).and_then(|queue| queue.depth)
    }

    fn broker_text(&self) -> String {
        // The publisher's own queue lives as long as its connection.
        let publisher = if self.depth("publisher").is_some() { "a publisher is connected" } else { "no publisher is connected" };
        let requests = count(self.depth("control").unwrap_or(0), "request waits for it", "requests wait for it");
        let dead = count(self.depth("dead").unwrap_or(0), "dead letter", "dead letters");
        format!("{publisher}, {requests}; {dead}")
    }

    fn text(&self) -> String {
        let mut text =
            format!("pipeline {}, {}\n\n", self.config.pipeline, count(self.config.partitions.into(), "partition", "partitions"));
        // Writing to a String cannot fail.
        self.write_text(&mut text).expect("a String takes every write");
        text
    }

    fn write_text(&self, text: &mut String) -> std::fmt::Result {
        match &self.source {
            Err(error) => writeln!(text, "source  {error}")?,
            Ok(None) => writeln!(text, "source  nothing is installed in {}; run `rowcast install`", source::place(self.config))?,
            Ok(Some(Waiting::Log(log))) => write_log(text, log)?,
            Ok(Some(Waiting::Changelog(waiting))) => {
                writeln!(text, "source  {} still kept for delivery", count(waiting.rows, "changelog row is", "changelog rows are"))?;
                writeln!(text, "        newest {}, lineage {}", grouped(waiting.newest), waiting.lineage)?;
            }
        }
        for finding in &self.stops {
            text.push_str(&findings::text(self.config, finding));
        }
        match &self.broker {
            Err(error) => writeln!(text, "broker  {error}")?,
            Ok(_) => writeln!(text, "broker  {}", self.broker_text())?,
        }
        match &self.cache {
            Err(error) => writeln!(text, "cache   {error}")?,
            Ok(state) => match state.layout {
                None => writeln!(text, "cache   no consumer of this pipeline has ever written here")?,
                Some(of) if of != self.config.partitions => {
                    writeln!(
                        text,
                        "cache   {of} partitions are in force, {} are configured; the next consumer to start changes that",
                        self.config.partitions
                    )?;
                }
                Some(of) => writeln!(text, "cache   {of} partitions are in force")?,
            },
        }
        if let Some(lineage) = self.other_database() {
            writeln!(text, "        it follows another database under this pipeline's name: {lineage}")?;
        }
        writeln!(text, "\n{:<12} {:<26} {:>10} {:>10} {:>10}  resyncs", "partition", "position", "behind", "in queue", "consumers")?;
        let unknown = || Partition::all(self.config.partitions).map(|partition| (partition, None)).collect();
        let partitions: Vec<(Partition, Option<&Checkpoint>)> = match &self.cache {
            Ok(state) => state.partitions.iter().map(|(partition, checkpoint)| (*partition, checkpoint.as_ref())).collect(),
            Err(_) => unknown(),
        };
        for (partition, checkpoint) in partitions {
            let position = checkpoint.map_or("-".to_owned(), |checkpoint| checkpoint.position.to_string());
            let behind = checkpoint.and_then(|checkpoint| self.behind(checkpoint)).map_or("-".to_owned(), grouped);
            let queue = self.queue(partition);
            let depth = queue.and_then(|queue| queue.depth).map_or("-".to_owned(), grouped);
            let consumers = queue.map_or("-".to_owned(), |queue| grouped(queue.consumers));
            let resyncs = checkpoint.map_or("-".to_owned(), resyncs_text);
            writeln!(text, "{:<12} {position:<26} {behind:>10} {depth:>10} {consumers:>10}  {resyncs}", partition.to_string())?;
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let source = match &self.source {
            Err(error) => json!({ "error": error }),
            Ok(None) => json!({ "installed": false }),
            Ok(Some(Waiting::Log(log))) => json!({
                "installed": true, "lineage": log.lineage.trim_end_matches(':'), "retained": log.slot.retained, "unconfirmed": log.slot.behind,
                "wal_status": log.slot.wal_status, "lost": log.slot.lost, "active": log.slot.active.is_some(),
                "reply_age_seconds": log.reply_age_seconds, "lag_ms": log.lag_ms,
            }),
            Ok(Some(Waiting::Changelog(waiting))) => json!({
                "installed": true, "lineage": waiting.lineage, "waiting": waiting.rows, "newest": waiting.newest, "confirmed": waiting.forgotten,
            }),
        };
        let broker = match &self.broker {
            Err(error) => json!({ "error": error }),
            Ok(queues) => {
                let queue = |queue: &QueueState| json!({ "name": queue.name, "depth": queue.depth, "consumers": queue.consumers });
                json!({ "queues": queues.iter().map(queue).collect::<Vec<_>>() })
            }
        };
        let cache = match &self.cache {
            Err(error) => json!({ "error": error }),
            Ok(state) => {
                let partitions: Vec<Value> =
                    state.partitions.iter().map(|(partition, checkpoint)| self.partition_json(*partition, checkpoint.as_ref())).collect();
                json!({ "layout": state.layout, "partitions": partitions })
            }
        };
        let stops: Vec<Value> = self.stops.iter().map(|finding| findings::json(self.config, "source", finding)).collect();
        json!({ "pipeline": self.config.pipeline, "partitions": self.config.partitions, "stops": stops, "source": source, "broker": broker, "cache": cache })
    }

    fn partition_json(&self, partition: Partition, checkpoint: Option<&Checkpoint>) -> Value {
        let Some(checkpoint) = checkpoint else { return json!({ "partition": partition.to_string(), "position": null }) };
        let resyncs: Vec<Value> = checkpoint
            .resyncs
            .iter()
            .map(|(table, resync)| {
                json!({ "table": table, "run": resync.run, "upto": resync.upto, "sweeping": resync.sweeping, "keys": resync.seen / 8 })
            })
            .collect();
        json!({
            "partition": partition.to_string(),
            "lineage": checkpoint.lineage,
            "position": checkpoint.position.to_string(),
            "behind": self.behind(checkpoint),
            "resyncs": resyncs,
        })
    }
}

/// The state of a replication slot.
fn write_log(text: &mut String, log: &postgres::Waiting) -> std::fmt::Result {
    let slot = &log.slot;
    let used = match (slot.active, log.reply_age_seconds) {
        (Some(pid), Some(seconds)) => format!("in use by the server's process {pid}, which heard of the publisher {seconds} s ago"),
        (Some(pid), None) => format!("in use by the server's process {pid}"),
        (None, _) => "in use by nobody".to_owned(),
    };
    let lost = slot.lost.as_ref().map(|why| format!(", lost ({why}): the next publisher makes it anew")).unwrap_or_default();
    let lag = log.lag_ms.map(|ms| format!("; what was confirmed last had waited {ms} ms")).unwrap_or_default();
    writeln!(text, "source  {} of log kept for delivery, {} of it not confirmed{lag}", bytes(slot.retained), bytes(slot.behind))?;
    writeln!(text, "        slot {} ({}){lost}", used, slot.wal_status)?;
    writeln!(text, "        lineage {}", log.lineage.trim_end_matches(':'))
}

/// Bytes as people read them.
fn bytes(number: u64) -> String {
    match number {
        0..=9_999 => format!("{number} B"),
        10_000..=10_238_975 => format!("{} KiB", number >> 10),
        _ => format!("{} MiB", number >> 20),
    }
}

fn resyncs_text(checkpoint: &Checkpoint) -> String {
    let resync = |(table, resync): (&rowcast::change::Table, &rowcast::checkpoint::Resync)| {
        let keys = count(resync.seen / 8, "key", "keys");
        match (&resync.upto, resync.sweeping) {
            (_, true) => format!("{table}: all read, {keys}; removing what has no row"),
            (Some(upto), false) => format!("{table}: read up to {}, {keys}", upto.0),
            (None, false) => format!("{table}: waiting for its first rows"),
        }
    };
    if checkpoint.resyncs.is_empty() { "none".to_owned() } else { checkpoint.resyncs.iter().map(resync).collect::<Vec<_>>().join("; ") }
}
