//! `rowcast tail`: the changes as they go by, from RabbitMQ, without disturbing the consumers.

use std::collections::HashMap;
use std::path::Path;

use anyhow::anyhow;
use clap::Args;
use rowcast::batch::{Batch, KeyChange};
use rowcast::broker::rabbitmq::RabbitBroker;
use rowcast::change::{Op, Partition, Position};
use rowcast::config::{BrokerConfig, Config};
use serde_json::json;

use crate::failure::Failure;
use crate::output::try_print;
use crate::signals::Signals;
use crate::tables;

/// What to show, and how.
#[derive(Debug, Args)]
pub struct TailArgs {
    /// Only changes of this table (may be repeated).
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,

    /// Only changes of keys that match; * stands for anything (may be repeated).
    #[arg(long = "key", value_name = "PATTERN")]
    keys: Vec<String>,

    /// Print one JSON object a change.
    #[arg(long)]
    json: bool,

    /// End after so many changes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// Shows changes until somebody stops it.
pub async fn run(args: &TailArgs, config: &Config, path: &Path) -> Result<(), Failure> {
    let BrokerConfig::Rabbit(settings) = &config.broker else {
        return Err(Failure::Wrong(format!(
            "{}: the broker is \"memory:\", which lives in one process, so nobody else can look on; name a server (amqp://…)",
            path.display()
        )));
    };
    let filter = Filter { tables: tables::named(config, &args.tables)?, all: args.tables.is_empty(), keys: &args.keys };
    let mut signals = Signals::listen()?;
    let looking_on = async {
        let mut tail = RabbitBroker::new(settings.clone()).tail().await?;
        eprintln!("looking on at rowcast.{}; Ctrl-C ends it", config.pipeline);
        let mut shown = 0;
        let mut ends = HashMap::new();
        loop {
            let (partition, body) = tail.next().await?;
            let batch = match Batch::decode(&body, partition) {
                Ok(batch) => batch,
                Err(error) => {
                    eprintln!("a message of partition {partition} cannot be shown: {error}");
                    continue;
                }
            };
            tell_what_is_missing(&mut ends, partition, &batch);
            for change in batch.changes.iter().filter(|change| filter.wants(change)) {
                let line = if args.json { as_json(&batch, change) } else { as_text(partition, change) };
                // Whoever does not read on has seen enough.
                if !try_print(&line)? {
                    return Ok(());
                }
                shown += 1;
                if args.count == Some(shown) {
                    return Ok(());
                }
            }
        }
    };
    tokio::select! {
        ended = looking_on => ended.map_err(|error: anyhow::Error| Failure::from(anyhow!("{error:#}"))),
        () = signals.next() => Ok(()),
    }
}

struct Filter<'a> {
    tables: Vec<String>,
    /// Tables that are no longer configured are shown, too.
    all: bool,
    keys: &'a [String],
}

impl Filter<'_> {
    fn wants(&self, change: &KeyChange<'_>) -> bool {
        (self.all || self.tables.iter().any(|table| *table == *change.table))
            && (self.keys.is_empty() || self.keys.iter().any(|pattern| matches(pattern, &change.key)))
    }
}

/// Whether the pattern, in which * stands for anything, is the whole key.
fn matches(pattern: &str, key: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = key.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// A slow reader's queue drops what is oldest, and a publisher that begins anew sends some things twice.
fn tell_what_is_missing(ends: &mut HashMap<Partition, (String, Position)>, partition: Partition, batch: &Batch<'_>) {
    let lineage = batch.lineage.0.to_string();
    if let Some((known, end)) = ends.get(&partition)
        && *known == lineage
        && batch.from > *end
    {
        eprintln!("partition {partition}: changes between {end} and {} went by unseen", batch.from);
    }
    ends.insert(partition, (lineage, batch.to));
}

fn as_text(partition: Partition, change: &KeyChange<'_>) -> String {
    let row = change.row.map_or("", |row| row.get());
    let key = if change.op == Op::Truncate { "(every row)" } else { &*change.key };
    format!("{} {:<6} {:<8} {} {key} {row}", time(change.committed), change.op.to_string(), partition.to_string(), change.table)
        .trim_end()
        .to_owned()
        + "\n"
}

fn as_json(batch: &Batch<'_>, change: &KeyChange<'_>) -> String {
    let change = json!({
        "partition": batch.partition,
        "lineage": batch.lineage,
        "op": change.op,
        "table": change.table,
        "pk": change.pk,
        "key": change.key,
        "row": change.row,
        "at": change.at,
        "committed": change.committed,
    });
    format!("{change}\n")
}

/// The time of day, UTC, of microseconds since the epoch.
fn time(committed_us: i64) -> String {
    let ms = committed_us.div_euclid(1000);
    let (seconds, ms) = (ms.div_euclid(1000).rem_euclid(86_400), ms.rem_euclid(1000));
    format!("{:02}:{:02}:{:02}.{ms:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_the_whole_key() {
        for (pattern, key) in
            [("user:7", "user:7"), ("user:*", "user:7"), ("*:7", "user:7"), ("u*:*7", "user:17"), ("*", ""), ("a*a", "aa")]
        {
            assert!(matches(pattern, key), "{pattern} {key}");
        }
        for (pattern, key) in [("user:7", "user:70"), ("user:*", "users:7"), ("*:7", "user:70"), ("a*a", "a"), ("u*x*7", "user:7")] {
            assert!(!matches(pattern, key), "{pattern} {key}");
        }
    }

    #[test]
    fn the_time_of_day_is_utc() {
        assert_eq!(time(1_767_225_600_123_456), "00:00:00.123");
        assert_eq!(time(1_767_225_600_123_456 + 45_296_000_000), "12:34:56.123");
    }
}
