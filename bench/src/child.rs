//! The pipeline as `rowcast run` runs it, in a process of its own, so that its processor time and memory can be told.
//!
//! It is asked on its standard input, a word a line, and answers each word with a line of JSON. At the end of its input it
//! stops in an orderly way.

use std::io::{BufRead, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context;
use rowcast::broker::rabbitmq::{QueueType, RabbitBroker, RabbitSettings};
use rowcast::cache::redis::{RedisCache, RedisSettings};
use rowcast::change::Op;
use rowcast::checkpoint::Value;
use rowcast::consumer::{self, Applied, Consumer};
use rowcast::meter::Meter;
use rowcast::publisher::{self, Publisher};
use rowcast::stop::{self, Stop, Stopper};
use serde::{Deserialize, Serialize};

use crate::database::{self, PARTITIONS, PIPELINE};
use crate::{Pipeline, usage};

/// What the process knows of its progress.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// When publisher and consumer were started, in microseconds since the epoch.
    pub began_us: i64,
    /// Where each partition stands.
    pub positions: Vec<(u64, u64)>,
    /// Changes applied, rows of chunks not counted.
    pub changes: u64,
    /// When the newest of them was.
    pub changes_us: i64,
    /// Rows of chunks applied.
    pub read: u64,
    /// When the newest of them was.
    pub read_us: i64,
    /// Resyncs that are open.
    pub resyncs: i64,
    /// Blocks that Redis has taken.
    pub blocks: u64,
    /// Messages that were applied.
    pub messages: u64,
}

/// Which version of a row was visible when: told by [`State`]'s process at the word `visible`.
pub type Visible = Vec<(u64, i64)>;

#[derive(Debug, Default)]
struct Seen {
    state: State,
    /// `None` until the word `record`.
    visible: Option<Visible>,
}

/// Runs until its input ends.
pub fn run(pipeline: &Pipeline) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::new("rowcast=warn,lapin=off");
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let meter = Arc::new(Meter::default());
    let positions = vec![(0, 0); usize::from(PARTITIONS)];
    let began_us = usage::now_us();
    let seen = Arc::new(Mutex::new(Seen { state: State { began_us, positions, ..State::default() }, visible: None }));
    let halves = [start_consumer(pipeline, &meter, &seen)?, start_publisher(pipeline, &meter)?];
    serve(&meter, &seen)?;
    for (stopper, _) in &halves {
        stopper.stop();
    }
    for (_, thread) in halves {
        match thread.join() {
            Ok(result) => result?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    Ok(())
}

fn serve(meter: &Meter, seen: &Mutex<Seen>) -> anyhow::Result<()> {
    for line in std::io::stdin().lock().lines() {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match line?.as_str() {
            "state" => {
                seen.state.resyncs = meter.resyncs.load(std::sync::atomic::Ordering::Relaxed);
                seen.state.blocks = Meter::read(&meter.blocks);
                seen.state.messages = Meter::read(&meter.applied);
                serde_json::to_string(&seen.state)?
            }
            "record" => {
                seen.visible = Some(Visible::new());
                "null".to_owned()
            }
            "visible" => serde_json::to_string(&seen.visible.take().unwrap_or_default())?,
            other => anyhow::bail!("what is {other:?}?"),
        };
        drop(seen);
        let mut output = std::io::stdout().lock();
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}

type Half = (Stopper, JoinHandle<anyhow::Result<()>>);

/// A half on a thread with a runtime of its own, as in `rowcast run`.
pub fn start_half<F: Future<Output = anyhow::Result<()>>>(
    name: &'static str,
    work: impl FnOnce(Stop) -> F + Send + 'static,
) -> anyhow::Result<Half> {
    let (stopper, stop) = stop::channel();
    let run = move || tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work(stop));
    Ok((stopper, std::thread::Builder::new().name(name.to_owned()).spawn(run).context("starting a thread")?))
}

fn broker(pipeline: &Pipeline) -> anyhow::Result<RabbitBroker> {
    Ok(RabbitBroker::new(RabbitSettings::new(&pipeline.broker, PIPELINE, PARTITIONS, QueueType::Quorum)?))
}

fn start_publisher(pipeline: &Pipeline, meter: &Arc<Meter>) -> anyhow::Result<Half> {
    let mut settings = publisher::Settings::new(PIPELINE, PARTITIONS);
    if let Some(changes) = pipeline.batch_changes {
        settings.batch.changes = changes;
    }
    let source = database::source(&pipeline.source)?;
    let (broker, meter) = (broker(pipeline)?, meter.clone());
    start_half("publisher", move |stop| async move { Ok(Publisher::new(settings, source, broker, meter).run(stop).await?) })
}

fn start_consumer(pipeline: &Pipeline, meter: &Arc<Meter>, seen: &Arc<Mutex<Seen>>) -> anyhow::Result<Half> {
    let settings = consumer::Settings::new(PIPELINE, PARTITIONS);
    let cache = RedisCache::new(RedisSettings::new(&pipeline.cache, PIPELINE)?);
    let seen = seen.clone();
    let observer = move |applied: &Applied<'_>| note(&mut seen.lock().unwrap_or_else(PoisonError::into_inner), applied);
    let consumer = Consumer::new(settings, broker(pipeline)?, cache, meter.clone()).observe(observer);
    start_half("consumer", move |stop| async move { Ok(consumer.run(stop).await?) })
}

fn note(seen: &mut Seen, applied: &Applied<'_>) {
    let Seen { state, visible } = seen;
    state.positions[applied.partition.index()] = (applied.position.0, applied.position.1);
    for write in applied.writes {
        if write.op == Op::Read {
            state.read += 1;
            state.read_us = applied.applied_us;
        } else {
            state.changes += 1;
            state.changes_us = applied.applied_us;
            if let (Some(visible), Value::Row(row, ..)) = (visible.as_mut(), write.value) {
                visible.extend(database::version_in(row.get()).map(|version| (version, applied.applied_us)));
            }
        }
    }
}
