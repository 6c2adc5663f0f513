//! One world: a database, publishers, broker, consumers, cache, and everything that may happen to them.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rowcast::broker::memory::MemoryBroker;
use rowcast::cache::memory::{Contents, MemoryCache};
use rowcast::cache::{Cache, Cached, Link};
use rowcast::change::{Op, Partition};
use rowcast::checkpoint::Value;
use rowcast::consumer::{self, Applied, Consumer};
use rowcast::mapping::OnChange;
use rowcast::meter::Meter;
use rowcast::publisher::{self, Publisher};
use rowcast::request::Request;
use rowcast::stop;
use serde_json::value::RawValue;
use tokio::task::JoinHandle;

use crate::chance::Chance;
use crate::database::{Database, Reader, TABLES, keys};
use crate::faults::{FaultyBroker, FaultyCache};

/// Keys of somebody else, which no sweep may touch.
const STRANGERS: [&str; 3] = ["t0:a:cart", "t0:", "session:a"];

/// How long, by the virtual clock, the world may take to converge once the faults have ended.
const PATIENCE: Duration = Duration::from_secs(600);

/// What readers have seen of each key.
#[derive(Default)]
struct Watch {
    /// The newest version of each key, and how often the source itself had gone back by then.
    newest: BTreeMap<String, (u64, i64)>,
    /// The lineage that each partition followed last.
    lineages: BTreeMap<Partition, u64>,
    /// Whether batches came in another order than one publisher at a time sends them in: then an abandoned lineage may come back for
    /// a while, and must heal all the same.
    intruded: bool,
    /// Whether the cache itself has gone back.
    cache_went_back: Arc<AtomicBool>,
    violation: Option<String>,
}

pub struct World {
    chance: Chance,
    database: Database,
    broker: FaultyBroker,
    cache: FaultyCache,
    partitions: u16,
    publishers: Vec<JoinHandle<Result<(), publisher::Error>>>,
    consumers: Vec<(u16, JoinHandle<Result<(), consumer::Error>>)>,
    /// Keeps whoever runs from stopping.
    stopper: (stop::Stopper, stop::Stop),
    saved: Option<Contents>,
    /// Whether a checkpoint was lost, so that nobody knows any more of the seen logs that it spoke of (Redis lets them expire),
    /// nor of the old templates (their keys stay: a limit that the README names).
    strays: bool,
    watch: Arc<Mutex<Watch>>,
}

impl World {
    pub fn new(seed: u64) -> World {
        let chance = Chance::new(seed);
        let partitions = 1 + u16::from(chance.is(0.3));
        let broker =
            FaultyBroker { inner: MemoryBroker::new(partitions), chance: chance.clone(), late: Arc::default(), record: Arc::default() };
        let strangers = STRANGERS.map(|key| (key.to_owned(), Cached::Text(b"not ours".to_vec())));
        let empty = Contents { values: strangers.into(), ..Contents::default() };
        let cache =
            FaultyCache { inner: MemoryCache::new("sim"), chance: chance.clone(), late: Arc::default(), empty, went_back: Arc::default() };
        cache.flush();
        let watch = Watch { cache_went_back: cache.went_back.clone(), ..Watch::default() };
        World {
            database: Database::new(&chance),
            broker,
            cache,
            partitions,
            publishers: Vec::new(),
            consumers: Vec::new(),
            stopper: stop::channel(),
            saved: None,
            strays: false,
            watch: Arc::new(Mutex::new(watch)),
            chance,
        }
    }

    fn start_publisher(&mut self) {
        let mut settings = publisher::Settings::new("sim", self.partitions);
        settings.batch.changes = 1 + self.chance.below(3);
        settings.window_messages = 4 + self.chance.below(20);
        let broker = FaultyBroker { inner: self.broker.inner.with_partitions(self.partitions), ..self.broker.clone() };
        let publisher = Publisher::new(settings, Reader::new(&self.database), broker, Arc::default());
        self.publishers.push(tokio::spawn(publisher.run(self.stopper.1.clone())));
    }

    fn start_consumer(&mut self) {
        let mut settings = consumer::Settings::new("sim", self.partitions);
        settings.block_keys = 1 + self.chance.below(8);
        let (watch, database) = (self.watch.clone(), self.database.clone());
        let broker = FaultyBroker { inner: self.broker.inner.with_partitions(self.partitions), ..self.broker.clone() };
        let meter: Arc<Meter> = Arc::default();
        let consumer = Consumer::new(settings, broker, self.cache.clone(), meter)
            .observe(move |applied| watch.lock().unwrap().see(applied, &database));
        self.consumers.push((self.partitions, tokio::spawn(consumer.run(self.stopper.1.clone()))));
    }

    fn kill_publishers(&mut self) {
        self.publishers.drain(..).for_each(|publisher| publisher.abort());
    }

    fn kill_consumers(&mut self) {
        self.consumers.drain(..).for_each(|(_, consumer)| consumer.abort());
    }

    /// Runs `steps` steps with faults, then waits for convergence without.
    pub async fn run(mut self, steps: u32) -> Result<(), String> {
        for _ in 0..steps {
            self.step().await?;
        }
        self.chance.end_faults();
        self.kill_publishers();
        self.consumers.retain(|(of, consumer)| {
            if *of != self.partitions {
                consumer.abort();
            }
            *of == self.partitions
        });
        self.cache.late.lock().unwrap().clear();
        let ended = tokio::time::Instant::now();
        loop {
            self.revive().await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            if self.settled().await {
                return Ok(());
            }
            if ended.elapsed() > PATIENCE {
                return Err(format!("did not converge: {}", self.describe().await));
            }
        }
    }

    async fn step(&mut self) -> Result<(), String> {
        self.revive().await?;
        match self.chance.below(100) {
            0..12 => self.fault().await,
            12..60 => {
                for _ in 0..=self.chance.below(3) {
                    self.database.write();
                }
            }
            60..80 => self.fill(),
            _ => {}
        }
        let pause = match self.chance.below(10) {
            0 => Duration::from_secs(1) + self.chance.millis(4_000),
            1..5 => self.chance.millis(200),
            _ => self.chance.millis(10),
        };
        tokio::time::sleep(pause).await;
        match self.watch.lock().unwrap().violation.take() {
            Some(violation) => Err(violation),
            None => Ok(()),
        }
    }

    /// Sees to it that somebody is at work, and that nobody has ended who should not.
    async fn revive(&mut self) -> Result<(), String> {
        for index in (0..self.publishers.len()).rev() {
            if self.publishers[index].is_finished() {
                let ended = self.publishers.swap_remove(index).await;
                return Err(format!("a publisher ended: {ended:?}"));
            }
        }
        for index in (0..self.consumers.len()).rev() {
            if self.consumers[index].1.is_finished() {
                let (_, consumer) = self.consumers.swap_remove(index);
                match consumer.await {
                    Ok(Err(consumer::Error::Layout { .. })) => {}
                    ended => return Err(format!("a consumer ended: {ended:?}")),
                }
            }
        }
        if self.publishers.is_empty() {
            self.start_publisher();
        }
        if !self.consumers.iter().any(|(of, _)| *of == self.partitions) {
            self.start_consumer();
        }
        Ok(())
    }

    /// The application reads a row and fills its key, where that is left to the application.
    fn fill(&self) {
        let table = self.chance.below(TABLES.len());
        let key = self.chance.pick(&keys(table).collect::<Vec<_>>());
        let state = self.database.state();
        let mapping = state.mapping(table);
        if let Some(version) =
            state.now.rows.get(&key).filter(|version| mapping.on_change() != OnChange::Write && mapping.matches(**version))
        {
            let (name, value) = (format!("{}{key}", mapping.prefix()), mapping.value(key, *version));
            self.cache.inner.alter(|contents| {
                contents.expiries.clear(&name);
                contents.values.insert(name, value);
            });
        }
    }

    async fn fault(&mut self) {
        // Let something gather in the queues for the fault to meet.
        tokio::time::sleep(self.chance.millis(30)).await;
        let partition =
            Partition { number: 1 + u16::try_from(self.chance.below(usize::from(self.partitions))).unwrap(), of: self.partitions };
        let what = self.chance.below(24);
        tracing::debug!(what, "fault");
        match what {
            0 => self.broker.inner.with_queue(partition, |queue| queue.clear()),
            1 => {
                let at = self.chance.below(1 << 16);
                self.broker.inner.with_queue(partition, |queue| drop(queue.remove(at % queue.len().max(1))));
            }
            2 => {
                self.watch.lock().unwrap().intruded = true;
                let by = self.chance.below(16);
                self.broker.inner.with_queue(partition, |queue| {
                    let by = by % queue.len().max(1);
                    queue.rotate_left(by);
                });
            }
            3 => self.broker.inner.with_control(|control| control.clear()),
            4 => {
                self.broker.inner.wipe();
                self.broker.late.lock().unwrap().clear();
            }
            5 => self.cache.flush(),
            6 => self.saved = Some(self.cache.inner.contents()),
            7 => {
                if let Some(saved) = self.saved.clone() {
                    self.cache.go_back(saved);
                }
            }
            8 => self.kill_publishers(),
            9 => {
                let table = self.chance.below(TABLES.len());
                self.database.remap(table);
                self.kill_publishers();
            }
            10 => {
                self.watch.lock().unwrap().intruded = true;
                self.broker.inner.forget_publisher();
                self.start_publisher();
            }
            11 => self.kill_consumers(),
            12 => self.start_consumer(),
            13 => {
                let late = self.broker.late.lock().unwrap().pop();
                if let Some((partition, body)) = late {
                    self.watch.lock().unwrap().intruded = true;
                    self.broker.inner.with_queue(partition, |queue| queue.push_back(body));
                }
            }
            14 => self.database.back_up(),
            15 => self.database.restore(),
            16 | 17 => {
                let late = self.cache.late.lock().unwrap().pop();
                if let Some(block) = late {
                    let mut link = self.cache.inner.connect().await.unwrap();
                    link.write(&block).await.unwrap();
                }
            }
            18 => {
                let table = self.chance.below(TABLES.len());
                let key = self.chance.pick(&keys(table).collect::<Vec<_>>());
                let pk = RawValue::from_string(format!(r#"{{"id":"{key}"}}"#)).unwrap();
                let request = Request::Rows { table: TABLES[table].0.into(), pks: vec![pk] };
                self.broker.inner.with_control(|control| control.push_back(request.encode()));
                if self.chance.is(0.5) {
                    // The row may be gone with its table by the time in which it could be sent.
                    tokio::time::sleep(self.chance.millis(10)).await;
                    self.database.write_to(key, true);
                }
            }
            19 => {
                let table = TABLES[self.chance.below(TABLES.len())].0.into();
                let request = Request::Resync { tables: vec![table] };
                self.broker.inner.with_control(|control| control.push_back(request.encode()));
            }
            20 => {
                let checkpoint = self.chance.is(0.5);
                if checkpoint {
                    // A cache that keeps the rows and loses the checkpoint has gone back itself.
                    self.strays = true;
                    self.cache.went_back.store(true, Relaxed);
                }
                self.cache
                    .inner
                    .alter(|contents| if checkpoint { drop(contents.checkpoints.remove(&partition)) } else { contents.seen.clear() });
            }
            21 | 22 => {
                self.broker.inner.block(true);
                for _ in 0..self.chance.below(20) {
                    self.database.write();
                    tokio::time::sleep(self.chance.millis(1_000)).await;
                }
                self.broker.inner.block(false);
            }
            _ => match self.chance.below(2) {
                0 => self.broker.inner.cut(),
                _ => {
                    self.partitions = 1 + u16::try_from(self.chance.below(3)).unwrap();
                    self.kill_publishers();
                }
            },
        }
    }

    /// The rows as they should stand in the cache, and whether each may be absent.
    fn expected(&self) -> BTreeMap<String, (Cached, bool)> {
        let state = self.database.state();
        let rows = state.now.rows.iter().filter_map(|(key, version)| {
            let mapping = state.mapping(crate::database::table_of(*key));
            let may_be_absent = mapping.on_change() != OnChange::Write || mapping.ttl().is_some();
            let name = format!("{}{key}", mapping.prefix());
            mapping.matches(*version).then(|| (name, (mapping.value(*key, *version), may_be_absent)))
        });
        rows.collect()
    }

    async fn settled(&self) -> bool {
        let mut contents = self.cache.inner.contents();
        let strangers = STRANGERS.iter().all(|key| contents.values.remove(*key).is_some());
        if self.strays {
            let current: Vec<String> = [0, 1].map(|table| self.database.state().mapping(table).prefix()).into();
            contents.values.retain(|key, _| current.iter().any(|prefix| key.starts_with(prefix)));
        }
        let expected = self.expected();
        let nothing_stale = contents.values.iter().all(|(key, value)| expected.get(key).is_some_and(|(row, _)| row == value));
        let nothing_missing = expected.iter().all(|(key, (_, may_be_absent))| *may_be_absent || contents.values.contains_key(key));
        let queues_empty =
            Partition::all(self.partitions).all(|partition| self.broker.inner.with_queue(partition, |queue| queue.is_empty()));
        strangers
            && nothing_stale
            && nothing_missing
            && queues_empty
            && contents.checkpoints.len() == usize::from(self.partitions)
            && contents.checkpoints.values().all(|stored| stored.checkpoint.resyncs.is_empty() && stored.checkpoint.old_keys.is_empty())
            && (self.strays || contents.seen.is_empty())
    }

    async fn describe(&self) -> String {
        let contents = self.cache.inner.contents();
        let depths: Vec<usize> =
            Partition::all(self.partitions).map(|partition| self.broker.inner.with_queue(partition, |queue| queue.len())).collect();
        let readable = |values: &BTreeMap<String, Cached>| {
            let text = |value: &Cached| match value {
                Cached::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                other => format!("{other:?}"),
            };
            values.iter().map(|(key, value)| format!("\n  {key} = {}", text(value))).collect::<String>()
        };
        let checkpoints: String = contents.checkpoints.iter().map(|(partition, stored)| format!("\n  {partition} {stored:?}")).collect();
        let expected = self.expected().into_iter().map(|(key, (value, _))| (key, value)).collect();
        let (expected, found) = (readable(&expected), readable(&contents.values));
        format!("expected{expected}\nfound{found}\ncheckpoints{checkpoints}\nqueues {depths:?}")
    }
}

impl Watch {
    fn see(&mut self, applied: &Applied<'_>, database: &Database) {
        let epoch = database.state().epochs.get(&*applied.lineage.0).copied().unwrap_or(0);
        let lineage = applied.lineage.0.rsplit(':').next().and_then(|number| number.parse().ok()).unwrap();
        if self.cache_went_back.swap(false, Relaxed) {
            self.newest.clear();
        }
        if self.lineages.insert(applied.partition, lineage).is_some_and(|before| lineage < before) {
            if !self.intruded {
                self.violation = Some(format!("the abandoned lineage {} came back in {}", applied.lineage, applied.partition));
            }
            self.newest.clear();
        }
        for write in applied.writes {
            let version = match write.value {
                Value::Row(row, ..) => row.get().split("\"v\":").nth(1).and_then(|rest| rest.trim_end_matches('}').parse().ok()).unwrap(),
                Value::Gone => write.committed_us,
            };
            let before = self.newest.get(write.key).copied();
            // A row that was read and found absent went at some time before: its version is only the latest possible one.
            if !(matches!(write.value, Value::Gone) && write.op == Op::Read) {
                self.newest.insert(write.key.to_owned(), (epoch, version));
            }
            if let Some((_, newest)) = before.filter(|(before, newest)| *before == epoch && version < *newest) {
                self.violation = Some(format!("{} went back from {newest} to {version} ({:?})", write.key, write.op));
            }
        }
    }
}
