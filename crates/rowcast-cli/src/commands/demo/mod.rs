//! `rowcast demo`: the newcomer's first command. A SQLite file, a user model with SeaORM and rowcast's hooks, broker and cache
//! in this process or real ones; single steps as they flow, a load, a comparison, one summary.

mod load;
mod steps;
mod story;
mod summary;
mod tap;
mod user;
mod watch;

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use rowcast::broker::Broker;
use rowcast::broker::rabbitmq::{QueueType, RabbitSettings};
use rowcast::cache::redis::RedisSettings;
use rowcast::cache::{Cache, Link};
use rowcast::change::{Partition, Position};
use rowcast::config::{BrokerConfig, CacheConfig};
use rowcast::consumer::{self, Consumer};
use rowcast::mapping::TableSettings;
use rowcast::meter::Meter;
use rowcast::publisher::{self, Publisher};
use rowcast::source::sqlite::{self, Capture, SqliteSettings, SqliteSource};
use rowcast::source::{self, Source};
use rowcast::verify::{self, Comparison};

use self::story::Story;
use self::summary::Summary;
use self::tap::Tap;
use self::watch::Watch;
use crate::failure::Failure;
use crate::half::{Half, stop_all, until_one_ends};
use crate::pipeline::{AnyBroker, AnyCache};
use crate::screen::Screen;
use crate::signals::Signals;
use crate::{with_broker, with_cache};

/// What to show, and on what.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How many changes the load makes.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rows: u64,

    /// Print nothing but the summary, as one JSON object.
    #[arg(long)]
    json: bool,

    /// Use this RabbitMQ (amqp://user:password@host) and not a broker in this process.
    #[arg(long, value_name = "URL")]
    broker: Option<String>,

    /// Use this Redis (redis://user:password@host) and not a cache in this process.
    #[arg(long, value_name = "URL")]
    cache: Option<String>,

    /// How many partitions the pipeline has.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    partitions: u16,
}

/// How long the pipeline may stand still before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// The demo's own pipeline.
struct Stage {
    pipeline: String,
    /// What the demo's keys begin with, so that on a real server they are nobody else's.
    prefix: String,
    partitions: u16,
    database: PathBuf,
    broker: AnyBroker,
    cache: AnyCache,
}

/// Shows everything.
pub async fn run(args: DemoArgs, screen: &Screen) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let folder = tempfile::Builder::new().prefix("rowcast-demo-").tempdir().context("cannot make a temporary folder")?;
    let stage = Stage::new(&args, folder.path())?;
    stage.look_for_servers().await?;
    let story = Story::new(args.json);
    story.opening(&stage)?;
    let performed = with_broker!(stage.broker.clone(), broker => with_cache!(stage.cache.clone(), cache => {
        perform(&stage, broker, cache, args.rows, &story, screen, signals).await
    }));
    // Also after an error: nothing of the demo may stay on somebody's servers.
    let tidied = stage.tidy().await;
    let summary = performed?;
    tidied?;
    summary.show(args.json)?;
    if summary.differences() > 0 { Err(Failure::Differences) } else { Ok(()) }
}

impl Stage {
    fn new(args: &DemoArgs, folder: &Path) -> Result<Stage, Failure> {
        let servers = args.broker.is_some() || args.cache.is_some();
        // Nobody else on a real server has this name.
        let pipeline =
            if servers { format!("demo-{:08x}", RandomState::new().hash_one(std::process::id()) >> 32) } else { "demo".to_owned() };
        let prefix = if servers { format!("{pipeline}:") } else { String::new() };
        let broker = match &args.broker {
            None => BrokerConfig::Memory,
            Some(url) => BrokerConfig::Rabbit(
                RabbitSettings::new(url, &pipeline, args.partitions, QueueType::Quorum)
                    .map_err(|error| Failure::Wrong(format!("--broker: {error}")))?,
            ),
        };
        let cache = match &args.cache {
            None => CacheConfig::Memory,
            Some(url) => CacheConfig::Redis(Box::new(
                RedisSettings::new(url, &pipeline).map_err(|error| Failure::Wrong(format!("--cache: {error}")))?,
            )),
        };
        Ok(Stage {
            broker: AnyBroker::new(&broker, args.partitions),
            cache: AnyCache::new(&cache, &pipeline),
            partitions: args.partitions,
            database: folder.join("demo.sqlite"),
            pipeline,
            prefix,
        })
    }

    /// A server that cannot be reached is an error at once; the pipeline itself would wait for it.
    async fn look_for_servers(&self) -> anyhow::Result<()> {
        with_broker!(&self.broker, broker => drop(broker.inspect().await?));
        with_cache!(&self.cache, cache => drop(cache.connect().await?));
        Ok(())
    }

    fn source(&self) -> SqliteSettings {
        let users = TableSettings { key: Some(format!("{}user:{{id}}", self.prefix)), ..TableSettings::new("users") };
        SqliteSettings { tables: vec![users], capture: Capture::Hooks, ..SqliteSettings::new(&self.database, &self.pipeline) }
    }

    /// Removes everything that the demo has put on real servers.
    async fn tidy(&self) -> anyhow::Result<()> {
        if let AnyBroker::Rabbit(broker) = &self.broker {
            broker.remove().await.with_context(|| format!("the queues rowcast.{}.* are still there", self.pipeline))?;
        }
        if let AnyCache::Redis(cache) = &self.cache {
            let remove = async {
                let mut link = cache.connect().await?;
                link.remove(&self.prefix).await?;
                link.remove(&format!("rowcast:{{{}}}:", self.pipeline)).await
            };
            remove
                .await
                .with_context(|| format!("keys that begin with {} or rowcast:{{{}}} are still there", self.prefix, self.pipeline))?;
        }
        Ok(())
    }
}

async fn perform<B: Broker, C: Cache>(
    stage: &Stage,
    broker: B,
    cache: C,
    changes: u64,
    story: &Story,
    screen: &Screen,
    mut signals: Signals,
) -> Result<Summary, Failure> {
    let db = user::open(&stage.database).await.context("cannot make the demo's database")?;
    sqlite::install(&stage.source()).map_err(anyhow::Error::from)?;
    let meter = Arc::new(Meter::default());
    let watch = Arc::new(Watch::default());
    let (tap, mut batches) = Tap::new(broker);
    let mut link = cache.connect().await.map_err(anyhow::Error::from)?;
    let mut halves = start(stage, &tap, cache, &meter, &watch)?;

    let play = async {
        let mut live = Vec::new();
        until_ready(stage, &mut link).await?;
        steps::show(&db, stage, &watch, &mut batches, &mut link, story).await?;
        tap.close();
        watch.begin_load();
        let started = Instant::now();
        let load = load::Load::new(screen, story, changes)?;
        load.write(&db, &mut live, &meter).await?;
        until_caught_up(stage, &mut link, &watch).await?;
        drop(load);
        anyhow::Ok(watch.last().unwrap_or(started) - started)
    };
    let played = tokio::select! {
        played = play => Some(played),
        _ = until_one_ends(&mut halves, &mut signals) => None,
    };
    stop_all(halves).await?;
    db.close().await.context("cannot close the demo's database")?;
    let elapsed = played.ok_or_else(interrupted)??;
    let comparison = tokio::select! {
        comparison = compare(stage, &mut link, story) => comparison?,
        () = signals.next() => return Err(interrupted()),
    };
    Ok(Summary::new(changes, elapsed, &watch.lag(), comparison))
}

fn interrupted() -> Failure {
    Failure::Interrupted("the demo has removed everything that it made".to_owned())
}

fn start<B: Broker, C: Cache>(stage: &Stage, tap: &Tap<B>, cache: C, meter: &Arc<Meter>, watch: &Arc<Watch>) -> anyhow::Result<Vec<Half>> {
    let source = SqliteSource::new(stage.source()).context("cannot start the thread that reads SQLite")?;
    let settings = publisher::Settings::new(&stage.pipeline, stage.partitions);
    let publisher = Publisher::new(settings, source, tap.clone(), meter.clone());
    let settings = consumer::Settings::new(&stage.pipeline, stage.partitions);
    let watch = watch.clone();
    let consumer = Consumer::new(settings, tap.clone(), cache, meter.clone()).observe(move |applied| watch.applied(applied));
    Ok(vec![
        Half::start("consumer", move |stop| async move { Ok(consumer.run(stop).await?) })?,
        Half::start("publisher", move |stop| async move { Ok(publisher.run(stop).await?) })?,
    ])
}

/// Waits until every partition has a checkpoint and has been told that the table is empty.
async fn until_ready<L: Link>(stage: &Stage, link: &mut L) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for partition in Partition::all(stage.partitions) {
        while link.load(partition).await?.is_none_or(|stored| !stored.checkpoint.resyncs.is_empty()) {
            if Instant::now() > deadline {
                bail!("the pipeline was not ready within {} s", PATIENCE.as_secs());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

/// Waits until every partition has passed the newest change.
async fn until_caught_up<L: Link>(stage: &Stage, link: &mut L, watch: &Watch) -> anyhow::Result<()> {
    let newest = sqlite::inspect(&stage.database)?.changelog.context("the changelog is gone")?.newest;
    // In the middle of a read the first half of a position is already the newest id.
    let end = Position(newest, newest);
    let mut seen = watch.last();
    let mut deadline = Instant::now() + PATIENCE;
    for partition in Partition::all(stage.partitions) {
        while link.load(partition).await?.is_none_or(|stored| stored.checkpoint.position < end) {
            if watch.last() != seen {
                seen = watch.last();
                deadline = Instant::now() + PATIENCE;
            }
            if Instant::now() > deadline {
                bail!("the cache made no progress for {} s", PATIENCE.as_secs());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

/// Compares database and cache, which stand still by now.
async fn compare<L: Link>(stage: &Stage, link: &mut L, story: &Story) -> anyhow::Result<Comparison> {
    story.comparing()?;
    let mut source = SqliteSource::new(stage.source()).context("cannot start the thread that reads SQLite")?;
    let deadline = Instant::now() + PATIENCE;
    let start = loop {
        match source.begin(None).await {
            // The connections that were just closed may still be tidying up.
            Err(source::Error::Busy(_)) if Instant::now() < deadline => tokio::time::sleep(LOOK).await,
            begun => break begun?,
        }
    };
    Ok(verify::compare(&mut source, &start.tables, link).await?)
}
