//! `rowcast get`: one row in the database and in the cache, side by side.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use rowcast::broker::Broker;
use rowcast::broker::QueueState;
use rowcast::cache::{Cache, Cached, Link};
use rowcast::change::{Image, KeyHash, Partition};
use rowcast::checkpoint::Checkpoint;
use rowcast::config::Config;
use rowcast::mapping::{Mapped, OnChange};
use rowcast::source::{SingleRow, SingleRowError};
use rowcast::verify::{self, Class};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::numbers::count;
use crate::output::print;
use crate::pipeline::{AnyBroker, AnyCache, require_servers};
use crate::{source, tables, with_broker, with_cache};

/// Which row, and how to show it.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// The table.
    #[arg(value_name = "TABLE")]
    table: String,

    /// The primary key: a value for each of its columns in order, or COLUMN=VALUE; bytes as x'00ff'.
    #[arg(value_name = "KEY", required = true, allow_negative_numbers = true)]
    key: Vec<String>,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// How long a consumer that is behind is waited for before it is said that it is.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// Row and value, read one after the other.
struct Pair {
    row: SingleRow,
    /// Why the row has no key, if it has none.
    no_key: Option<String>,
    value: Option<Standing>,
}

/// What the cache says of the row's key.
struct Standing {
    key: String,
    partition: Partition,
    cached: Option<Cached>,
    checkpoint: Option<Checkpoint>,
    /// How many changelog rows, or bytes of the log, the partition is behind; `None` where it follows another history or nothing is known.
    behind: Option<u64>,
    difference: Option<Class>,
    /// Whether what stands there is nobody's row, so that no resync touches it.
    foreign: bool,
}

/// Whether row and value agree.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Agree,
    Differ(Class),
    /// The partition has not come so far yet.
    Behind,
    /// A resync of the table is open, which may bring what is missing.
    Resync,
    /// No key can be made of the row.
    NoKey,
}

/// Looks and shows.
pub async fn run(args: &GetArgs, config: &Config, path: &Path) -> Result<(), Failure> {
    require_servers(config, path, "get")?;
    let table = tables::place(config, &args.table)?;
    let cache = AnyCache::new(&config.cache, &config.pipeline);
    let pair = with_cache!(&cache, cache => settled(args, config, table, cache).await)?;
    let broker = AnyBroker::new(&config.broker, config.partitions);
    // The queue is shown where the broker answers; row and value are compared all the same.
    let queues = with_broker!(&broker, broker => broker.inspect().await);
    let queue = match (&queues, &pair.value) {
        (Ok(queues), Some(value)) => {
            let end = format!(".{}", value.partition);
            queues.iter().find(|queue| queue.name.ends_with(&end))
        }
        _ => None,
    };
    let verdict = pair.verdict();
    if args.json {
        print(&format!("{}\n", pair.json(&args.table, queue, verdict)))?;
    } else {
        print(&pair.text(&args.table, source::units(config), queue, verdict))?;
        if let Err(error) = &queues {
            eprintln!("the queue could not be looked at: {error}");
        }
    }
    match verdict {
        Verdict::Agree => Ok(()),
        Verdict::Differ(_) => Err(Failure::Differences),
        Verdict::Behind | Verdict::Resync | Verdict::NoKey => Err(Failure::Told(1)),
    }
}

/// Reads both until they agree, or the partition has passed the moment at which the row was read.
async fn settled<C: Cache>(args: &GetArgs, config: &Config, table: usize, cache: &C) -> Result<Pair, Failure> {
    let mut link = cache.connect().await.map_err(anyhow::Error::from)?;
    let begun = Instant::now();
    let mut seen_before = None;
    loop {
        let row = source::single_row(config, table, &args.key).await.map_err(|error| match error {
            SingleRowError::Key(text) => Failure::Wrong(text),
            SingleRowError::Source(error) => Failure::Failed(error.into()),
        })?;
        let pair = read(config, row, &mut link).await.map_err(anyhow::Error::from)?;
        let verdict = pair.verdict();
        // The value was read after the row, so a difference counts only if it survives a second look.
        let survived = matches!(verdict, Verdict::Differ(_)) && seen_before == Some(verdict);
        if survived || matches!(verdict, Verdict::Agree | Verdict::NoKey) || begun.elapsed() > PATIENCE {
            return Ok(pair);
        }
        seen_before = Some(verdict);
        tokio::time::sleep(LOOK).await;
    }
}

async fn read<L: Link>(config: &Config, row: SingleRow, link: &mut L) -> Result<Pair, rowcast::cache::Error> {
    let (key, json) = match row.mapped.map(&row.image) {
        Mapped::Put { key, row } => (key, Some(row.to_owned())),
        Mapped::Remove { key } => (key, None),
        Mapped::Nothing => {
            let why = "without its row the key cannot be told, for it is made of other columns than the primary key".to_owned();
            return Ok(Pair { row, no_key: Some(why), value: None });
        }
        Mapped::Dead { reason, .. } => return Ok(Pair { row, no_key: Some(reason), value: None }),
    };
    let of = link.layout().await?.unwrap_or(config.partitions);
    let partition = KeyHash::of(&key).partition(of);
    let checkpoint = link.load(partition).await?.map(|stored| stored.checkpoint);
    let cached = link.values(std::slice::from_ref(&key)).await?.pop().flatten();
    let behind = match (&row.as_of, &checkpoint) {
        (Some((lineage, newest)), Some(checkpoint)) if source::is_of(&checkpoint.lineage.0, lineage) => {
            Some(newest.saturating_sub(checkpoint.position.0))
        }
        _ => None,
    };
    let raw: Option<&RawValue> = json.as_deref().map(|json| serde_json::from_str(json).expect("a source renders rows as JSON"));
    // What the application fills under an evicted key is its own.
    let filled = row.mapped.descriptor.on_change == OnChange::Evict && matches!(row.image, Image::Present { .. });
    let difference = if filled { None } else { verify::compare_one(raw, &row.mapped.descriptor, cached.as_ref()) };
    let own = |cached: &Cached| cached.is_own(&row.mapped.descriptor.keys, &key);
    let foreign = json.is_none() && cached.as_ref().is_some_and(|cached| !own(cached));
    Ok(Pair { row, no_key: None, value: Some(Standing { key, partition, cached, checkpoint, behind, difference, foreign }) })
}

impl Pair {
    fn verdict(&self) -> Verdict {
        let Some(value) = &self.value else { return Verdict::NoKey };
        let Some(class) = value.difference else { return Verdict::Agree };
        let table = &self.row.mapped.table;
        match &value.checkpoint {
            Some(checkpoint) if value.behind == Some(0) => {
                let mapped_so = checkpoint.mappings.get(table) == Some(&self.row.mapped.descriptor);
                if checkpoint.resyncs.contains_key(table) || !mapped_so { Verdict::Resync } else { Verdict::Differ(class) }
            }
            // Nothing is known of the partition, or it follows another history: it has all before it.
            _ => Verdict::Behind,
        }
    }

    fn row_json(&self) -> Option<&str> {
        match &self.row.image {
            Image::Present { json, .. } => Some(json),
            _ => None,
        }
    }

    fn is_left_out(&self) -> bool {
        self.row.exists && matches!(self.row.image, Image::Absent { .. })
    }

    fn text(&self, table: &str, units: (&str, &str), queue: Option<&QueueState>, verdict: Verdict) -> String {
        let row = match &self.row.image {
            Image::Present { json, .. } => json,
            Image::Absent { .. } if self.is_left_out() => "(a row that `where` leaves out)",
            Image::Absent { .. } => "(no row)",
            Image::Unreadable { .. } => "(a row that cannot be cached)",
        };
        let mut text = format!("{:<11} {table} {}\n{:<11} {row}\n", "table", self.row.pk, "database");
        let mut line = |label: &str, what: String| text.push_str(&format!("{label:<11} {what}\n"));
        let Some(value) = &self.value else {
            line("key", format!("none: {}", self.no_key.as_deref().unwrap_or_default()));
            return text;
        };
        line("cache", value.cached.as_ref().map_or("(nil)".to_owned(), shown));
        line("key", value.key.clone());
        let waiting =
            queue.and_then(|queue| queue.depth).map(|depth| format!(", {} in it", count(depth, "batch", "batches"))).unwrap_or_default();
        let name = queue.map(|queue| format!(", queue {}{waiting}", queue.name)).unwrap_or_default();
        line("partition", format!("{}{name}", value.partition));
        line(
            "checkpoint",
            value.checkpoint.as_ref().map_or("none".to_owned(), |checkpoint| format!("{} of {}", checkpoint.position, checkpoint.lineage)),
        );
        line(
            "lag",
            match (value.behind, &self.row.as_of) {
                (Some(0), _) => "none".to_owned(),
                (Some(rows), _) => format!("{} behind the database", count(rows, units.0, units.1)),
                (None, None) => "unknown: nothing is installed in the database".to_owned(),
                (None, Some(_)) => "unknown: the cache does not follow this history of the database yet".to_owned(),
            },
        );
        line("agree", verdict_text(table, verdict, value));
        text
    }

    fn json(&self, table: &str, queue: Option<&QueueState>, verdict: Verdict) -> Value {
        let raw = |text: &str| serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
        let value = self.value.as_ref();
        json!({
            "table": table,
            "pk": raw(&self.row.pk),
            "row": self.row_json().map(raw),
            "left_out": self.is_left_out(),
            "key": value.map(|value| &value.key),
            "no_key": self.no_key,
            "cached": value.and_then(|value| value.cached.as_ref()).map(shown),
            "partition": value.map(|value| value.partition.to_string()),
            "queue": queue.map(|queue| json!({ "name": queue.name, "depth": queue.depth })),
            "checkpoint": value.and_then(|value| value.checkpoint.as_ref()).map(|checkpoint| json!({
                "lineage": checkpoint.lineage,
                "position": checkpoint.position.to_string(),
            })),
            "behind": value.and_then(|value| value.behind),
            "agree": match verdict {
                Verdict::Agree => json!(true),
                Verdict::Differ(_) => json!(false),
                _ => Value::Null,
            },
            "difference": match verdict {
                Verdict::Differ(class) => json!(class.name()),
                _ => Value::Null,
            },
        })
    }
}

fn verdict_text(table: &str, verdict: Verdict, value: &Standing) -> String {
    match verdict {
        Verdict::Agree => "yes".to_owned(),
        Verdict::Differ(class) if value.foreign => {
            let (class, key) = (class.name(), for_shell(&value.key));
            format!("no: {class}; it was not written by rowcast, so a resync leaves it alone: `redis-cli DEL {key}` removes it")
        }
        Verdict::Differ(class) => format!("no: {}; `rowcast snapshot --table {table}` reads the table again", class.name()),
        Verdict::Behind => "not yet: the cache has not come so far; `rowcast status` shows what waits where".to_owned(),
        Verdict::Resync => "not yet: a resync of the table is open".to_owned(),
        Verdict::NoKey => "no key".to_owned(),
    }
}

/// A key as it is typed in a shell.
fn for_shell(key: &str) -> String {
    let plain = key.chars().all(|c| c.is_ascii_alphanumeric() || ":_-.".contains(c));
    if plain { key.to_owned() } else { format!("'{}'", key.replace('\'', r"'\''")) }
}

/// A value as it would be read by any client.
fn shown(cached: &Cached) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match cached {
        Cached::Text(bytes) => text(bytes),
        Cached::Hash(fields) => {
            let fields: serde_json::Map<String, Value> = fields.iter().map(|(name, value)| (name.clone(), json!(text(value)))).collect();
            format!("hash {}", Value::Object(fields))
        }
        Cached::Other(kind) => format!("({kind})"),
    }
}
