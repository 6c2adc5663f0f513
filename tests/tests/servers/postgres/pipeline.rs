//! A publisher on a real PostgreSQL server, with broker and cache in memory, and the server itself as the oracle of what the cache must
//! hold.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rowcast::broker::Broker;
use rowcast::broker::memory::MemoryBroker;
use rowcast::cache::Cached;
use rowcast::cache::memory::MemoryCache;
use rowcast::change::Table;
use rowcast::checkpoint::Value;
use rowcast::consumer::{self, Consumer};
use rowcast::mapping::TableSettings;
use rowcast::meter::Meter;
use rowcast::publisher::{self, Publisher};
use rowcast::request::Request;
use rowcast::source::postgres::{self, Capture, PostgresSettings, Server};
use rowcast::source::{AnySource, SourceSettings};
use rowcast::stop::{self, Stopper};
use rowcast_testkit::postgres::PostgresServer;
use rowcast_testkit::wait::until;
use tokio::task::JoinHandle;

/// How long anything may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(120);

const PARTITIONS: u16 = 2;

/// A running half.
struct Half {
    stopper: Stopper,
    task: JoinHandle<Result<(), String>>,
}

/// One pipeline.
pub struct Pipeline {
    pub settings: PostgresSettings,
    pub broker: MemoryBroker,
    pub cache: MemoryCache,
    publisher: Option<Half>,
    consumer: Option<Half>,
    /// What went back: a key that was given a row whose `v` is smaller than one that it had before.
    regressions: Arc<Mutex<Vec<String>>>,
}

/// A table with its key template; the name alone leaves the key to its default.
pub fn table(name: &str, key: Option<&str>) -> TableSettings {
    TableSettings { key: key.map(str::to_owned), ..TableSettings::new(name) }
}

impl Pipeline {
    /// A pipeline that is installed; nothing runs yet.
    pub async fn installed(server: &PostgresServer, tables: Vec<TableSettings>) -> Pipeline {
        let pipeline = Pipeline::new(&server.url(), tables);
        postgres::install(&pipeline.settings).await.unwrap();
        pipeline
    }

    /// A pipeline whose changes hooks record, installed.
    pub async fn hooked(server: &PostgresServer, tables: Vec<TableSettings>) -> Pipeline {
        let mut pipeline = Pipeline::new(&server.url(), tables);
        pipeline.settings.capture = Capture::Hooks;
        postgres::install(&pipeline.settings).await.unwrap();
        pipeline
    }

    /// The same, not installed.
    pub fn new(url: &str, tables: Vec<TableSettings>) -> Pipeline {
        // What is said shows where a test fails.
        drop(tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_test_writer().try_init());
        let server = Server::parse(url).unwrap();
        Pipeline {
            settings: PostgresSettings { tables, ..PostgresSettings::new(server, "shop") },
            broker: MemoryBroker::new(PARTITIONS),
            cache: MemoryCache::new("shop"),
            publisher: None,
            consumer: None,
            regressions: Arc::default(),
        }
    }

    /// Starts both halves.
    pub fn start(&mut self) {
        self.start_publisher();
        self.start_consumer();
    }

    pub fn start_publisher(&mut self) {
        let settings = publisher::Settings { heartbeat: Duration::from_millis(200), ..publisher::Settings::new("shop", PARTITIONS) };
        let source = AnySource::new(SourceSettings::Postgres(Box::new(self.settings.clone()))).unwrap();
        let publisher = Publisher::new(settings, source, self.broker.clone(), Arc::new(Meter::default()));
        let (stopper, stop) = stop::channel();
        let task = tokio::spawn(async move { publisher.run(stop).await.map_err(|error| error.to_string()) });
        self.publisher = Some(Half { stopper, task });
    }

    pub fn start_consumer(&mut self) {
        let settings = consumer::Settings::new("shop", PARTITIONS);
        let regressions = Arc::clone(&self.regressions);
        let newest: Mutex<HashMap<String, i64>> = Mutex::default();
        let consumer = Consumer::new(settings, self.broker.clone(), self.cache.clone(), Arc::new(Meter::default()));
        let consumer = consumer.observe(move |applied| {
            for write in applied.writes {
                let Value::Row(row, ..) = write.value else { continue };
                let Ok(Versioned { v: Some(v) }) = serde_json::from_str(row.get()) else { continue };
                let before = newest.lock().unwrap().insert(write.key.to_owned(), v);
                if let Some(before) = before.filter(|before| *before > v) {
                    regressions.lock().unwrap().push(format!("{} went from {before} back to {v} by {}", write.key, write.op));
                }
            }
        });
        let (stopper, stop) = stop::channel();
        let task = tokio::spawn(async move { consumer.run(stop).await.map_err(|error| error.to_string()) });
        self.consumer = Some(Half { stopper, task });
    }

    /// Stops the publisher in an orderly way.
    pub async fn stop_publisher(&mut self) {
        let half = self.publisher.take().expect("a publisher runs");
        half.stopper.stop();
        half.task.await.unwrap().unwrap();
    }

    /// The publisher ends without a farewell, as if it were killed.
    pub async fn kill_publisher(&mut self) {
        let half = self.publisher.take().expect("a publisher runs");
        half.task.abort();
        drop(half.task.await);
        self.broker.forget_publisher();
    }

    /// Why the publisher ended by itself.
    pub async fn publisher_error(&mut self) -> String {
        let half = self.publisher.take().expect("a publisher runs");
        tokio::time::timeout(DEADLINE, half.task).await.expect("it ends").unwrap().expect_err("it ends with an error")
    }

    /// What the cache holds, but for rowcast's own keys.
    pub fn cached(&self) -> BTreeMap<String, String> {
        let text = |cached| match cached {
            Cached::Text(bytes) => String::from_utf8(bytes).unwrap(),
            other => format!("{other:?}"),
        };
        self.cache.contents().values.into_iter().map(|(key, cached)| (key, text(cached))).collect()
    }

    /// Whether no partition has a resync open, and each has a checkpoint.
    pub fn settled(&self) -> bool {
        let checkpoints = self.cache.contents().checkpoints;
        checkpoints.len() == usize::from(PARTITIONS) && checkpoints.values().all(|stored| stored.checkpoint.resyncs.is_empty())
    }

    /// Waits until the cache holds what `oracle` prints (a key, a tab and a row a line), and no resync is open.
    pub async fn agree(&self, server: &PostgresServer, oracle: &str) {
        let seen = RefCell::new((BTreeMap::new(), BTreeMap::new()));
        let agreed = until("the cache to agree with the database", DEADLINE, async || {
            let wanted = rows(&server.execute(oracle).unwrap());
            let cached = self.cached();
            let agree = wanted == cached && self.settled();
            seen.replace((wanted, cached));
            agree.then_some(())
        })
        .await;
        if agreed.is_err() {
            let (wanted, cached) = seen.into_inner();
            let missing: Vec<_> = wanted.iter().filter(|(key, row)| cached.get(*key) != Some(row)).take(5).collect();
            let surplus: Vec<_> = cached.iter().filter(|(key, row)| wanted.get(*key) != Some(row)).take(5).collect();
            let state = self.cache.contents().checkpoints;
            let running = self.publisher.as_ref().map(|half| half.task.is_finished());
            panic!("missing {missing:?}\nsurplus {surplus:?}\nfinished {running:?}\n{state:?}");
        }
    }

    /// Asks for these tables to be read again.
    pub async fn resync(&self, tables: &[&str]) {
        let tables = tables.iter().map(|name| Table::from(*name)).collect();
        self.broker.request(Request::Resync { tables }.encode()).await.unwrap();
    }

    /// What a key's row went back to, if any did: rows have a column `v` that the writer only ever raises.
    pub fn assert_nothing_went_back(&self) {
        let regressions = self.regressions.lock().unwrap();
        assert!(regressions.is_empty(), "{}: {:?}", regressions.len(), &regressions[..regressions.len().min(5)]);
    }

    /// Waits until every checkpoint has moved on so many times over something in the log that is none of ours: so much of the stream has
    /// passed.
    pub async fn pass(&self, server: &PostgresServer, times: usize) {
        for _ in 0..times {
            // Without a transaction, so that it waits for nobody.
            server.execute("SELECT pg_logical_emit_message(false, 'noise', 'x')").unwrap();
            let positions = || -> Vec<_> { self.cache.contents().checkpoints.values().map(|stored| stored.checkpoint.position).collect() };
            let before = positions();
            until("the checkpoints to move on", DEADLINE, async || {
                let now = positions();
                (now.len() == before.len() && now.iter().zip(&before).all(|(now, before)| now > before)).then_some(())
            })
            .await
            .unwrap();
        }
    }

    /// Waits until the cache holds this under the key.
    pub async fn holds(&self, key: &str, row: &str) {
        until("the key to hold the row", DEADLINE, async || (self.cached().get(key).map(String::as_str) == Some(row)).then_some(()))
            .await
            .unwrap_or_else(|_| panic!("{key} holds {:?}", self.cached().get(key)));
    }

    /// The lineage of the checkpoints.
    pub fn lineage(&self) -> String {
        self.cache.contents().checkpoints.values().map(|stored| stored.checkpoint.lineage.to_string()).max().unwrap()
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        for half in [&self.publisher, &self.consumer].into_iter().flatten() {
            half.task.abort();
        }
    }
}

#[derive(serde::Deserialize)]
struct Versioned {
    v: Option<i64>,
}

/// Lines of key, tab and row.
fn rows(text: &str) -> BTreeMap<String, String> {
    text.lines().map(|line| line.split_once('\t').map(|(key, row)| (key.to_owned(), row.to_owned())).expect("a key and a row")).collect()
}

/// The oracle of a table whose key is its name and its id.
pub fn oracle(name: &str) -> String {
    format!("SELECT '{name}:' || id || chr(9) || row_to_json({name}) FROM {name}")
}
