//! Everything that a test strikes at: database, writer, servers, processes, watcher; and the judgement at the end.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rowcast_testkit::folder::Folder;
use rowcast_testkit::proxy::{Direction, Proxy};
use rowcast_testkit::rabbitmq::RabbitServer;
use rowcast_testkit::redis::RedisServer;
use rowcast_testkit::wait::until_blocking;
use tokio::runtime::Runtime;

use super::binary;
use super::contents::{self, Contents, Value};
use super::database::{self, Database, STRANGERS};
use super::half::{Half, Log};
use super::watcher::Watcher;
use super::writer::Writer;

/// How long the cache may take to agree with the database once nobody writes any more.
pub const AGREEMENT: Duration = Duration::from_secs(180);

/// Below are the versions of preloaded rows.
const FIRST_VERSION: u64 = 100_000;

/// How many partitions there are.
pub const PARTITIONS: usize = 4;

/// One pipeline with everything around it. A test that fails prints the seed and the ends of all logs.
pub struct World {
    pub pipeline: String,
    pub redis: RedisServer,
    pub writer: Writer,
    database: Arc<dyn Database>,
    runtime: Runtime,
    seed: u64,
    broker_url: String,
    watcher: Watcher,
    logs: RefCell<Vec<Log>>,
    /// Seen logs whose checkpoint was removed: nobody knows of them any more.
    forgotten: RefCell<BTreeSet<String>>,
    folder: Folder,
}

/// How a process reaches its server, where it is not the straight way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Route<'u> {
    pub source: Option<&'u str>,
    pub broker: Option<&'u str>,
    pub cache: Option<&'u str>,
}

impl World {
    /// The chosen database with `rows` long rows in `lines` beyond the writer's reach, a fresh Redis with some strangers' keys, an installed
    /// pipeline, and a writer at work. No half runs yet.
    pub fn new(pipeline: &str, broker_url: &str, rows: u32) -> World {
        let database = database::chosen();
        database.preload(rows);
        World::on(database, pipeline, broker_url)
    }

    /// The same with this database.
    pub fn on(database: Arc<dyn Database>, pipeline: &str, broker_url: &str) -> World {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let seed = std::env::var("ROWCAST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("ROWCAST_SEED is a number"));
        let folder = Folder::new("rowcast-faults-").expect("a folder");
        let redis = runtime.block_on(RedisServer::start()).expect("a Redis server");
        plant_strangers(&mut client(&redis));
        let watcher = Watcher::start(&redis.url(), database.keys());
        let configuration = configuration(&*database, pipeline, [&database.url(), broker_url, &redis.url()]);
        std::fs::write(folder.path().join("rowcast.toml"), configuration).expect("a configuration");
        let installed = Command::new(binary::rowcast()).arg("install").current_dir(folder.path()).output().expect("rowcast runs");
        assert!(installed.status.success(), "{installed:?}");
        let writer = Writer::start(database.application(FIRST_VERSION), seed);
        let (pipeline, broker_url) = (pipeline.to_owned(), broker_url.to_owned());
        World {
            pipeline,
            redis,
            writer,
            database,
            runtime,
            seed,
            broker_url,
            watcher,
            logs: RefCell::default(),
            forgotten: RefCell::default(),
            folder,
        }
    }

    /// Starts `rowcast publish`.
    pub fn publisher(&self, name: &str) -> Half {
        self.half("publish", name, Route::default())
    }

    /// Starts `rowcast consume`.
    pub fn consumer(&self, name: &str) -> Half {
        self.half("consume", name, Route::default())
    }

    /// Starts `rowcast <command>` with servers that are reached in another way; its log is `<name>.log`.
    pub fn half(&self, command: &str, name: &str, route: Route<'_>) -> Half {
        self.half_configured(command, name, &self.configuration_by(route))
    }

    /// The configuration that a half has unless it is given another one.
    pub fn configuration(&self) -> String {
        self.configuration_by(Route::default())
    }

    /// The same with servers that are reached in another way.
    pub fn configuration_by(&self, route: Route<'_>) -> String {
        let (source, cache) = (self.database.url(), self.redis.url());
        let urls = [route.source.unwrap_or(&source), route.broker.unwrap_or(&self.broker_url), route.cache.unwrap_or(&cache)];
        configuration(&*self.database, &self.pipeline, urls)
    }

    /// Starts `rowcast <command>` with a configuration of the test's own.
    pub fn half_configured(&self, command: &str, name: &str, configuration: &str) -> Half {
        let file = format!("{name}.toml");
        std::fs::write(self.folder.path().join(&file), configuration).expect("a configuration");
        let half = Half::start(self.folder.path(), command, &file, name);
        self.logs.borrow_mut().push(half.log().clone());
        half
    }

    /// Waits until every partition has a checkpoint and no resync is open.
    pub fn wait_until_settled(&self) {
        let mut unsettled = String::new();
        let settled = until_blocking("every resync to be complete", AGREEMENT, || match self.open() {
            Ok(open) if open.is_empty() => Some(()),
            Ok(open) => {
                unsettled = open;
                None
            }
            Err(error) => {
                unsettled = error.to_string();
                None
            }
        });
        settled.unwrap_or_else(|error| panic!("{error}; {unsettled}"));
    }

    /// What is still open; empty where nothing is.
    fn open(&self) -> redis::RedisResult<String> {
        let mut client = redis::Client::open(self.redis.url())?.get_connection()?;
        let own = format!("rowcast:{{{}}}:", self.pipeline);
        let checkpoints: Vec<String> = redis::cmd("KEYS").arg(format!("{own}checkpoint:*")).query(&mut client)?;
        if checkpoints.len() != PARTITIONS {
            return Ok(format!("checkpoints: {checkpoints:?}"));
        }
        let mut open = String::new();
        for checkpoint in checkpoints {
            let resyncs: String = redis::cmd("HGET").arg(&checkpoint).arg("resyncs").query(&mut client)?;
            if resyncs != "{}" {
                open.push_str(&format!("{checkpoint}: {resyncs}; "));
            }
        }
        let mut seen: Vec<String> = redis::cmd("KEYS").arg(format!("{own}seen:*")).query(&mut client)?;
        seen.retain(|log| !self.forgotten.borrow().contains(log));
        if open.is_empty() && !seen.is_empty() {
            open = format!("seen logs are left: {seen:?}");
        }
        Ok(open)
    }

    /// Removes the checkpoint of a partition. Whatever seen logs it spoke of in that moment go by themselves in a few days.
    pub fn remove_checkpoint(&self, number: usize) {
        let script = "local logs = redis.call('KEYS', ARGV[1])
            for _, log in ipairs(logs) do assert(redis.call('TTL', log) > 0, 'a seen log without an end') end
            assert(redis.call('DEL', KEYS[1]) == 1, 'there was no checkpoint')
            return logs";
        let own = |what: &str| format!("rowcast:{{{}}}:{what}:{number}of{PARTITIONS}", self.pipeline);
        let mut removal = redis::cmd("EVAL");
        removal.arg(script).arg(1).arg(own("checkpoint")).arg(own("seen") + ":*");
        let logs: Vec<String> = removal.query(&mut self.client()).expect("the checkpoint is removed");
        self.forgotten.borrow_mut().extend(logs);
    }

    /// Waits until every partition has got that many more blocks at least.
    pub fn wait_for_blocks(&self, count: usize) {
        for _ in 0..count {
            let before = self.versions();
            let moved = || self.versions().iter().zip(&before).all(|(now, before)| now != before).then_some(());
            until_blocking("a block in every partition", AGREEMENT, moved).expect("an idle publisher sends empty batches");
        }
    }

    /// Who has written each partition's checkpoint last: every time a consumer opens a partition it is another word.
    pub fn holders(&self) -> Vec<String> {
        self.versions().iter().map(|version| version.split_once('-').expect("a word and a number").0.to_owned()).collect()
    }

    /// The version of each partition's checkpoint.
    fn versions(&self) -> Vec<String> {
        self.checkpoints("version").into_iter().map(|version| version.expect("a version")).collect()
    }

    /// Whose history each partition follows, where it has a checkpoint.
    pub fn lineages(&self) -> Vec<Option<String>> {
        self.checkpoints("lineage")
    }

    /// Waits until every partition follows another history than any did `before`, and all of it is in the cache.
    pub fn wait_until_followed(&self, before: &[Option<String>]) {
        let follows = |lineage: &Option<String>| lineage.is_some() && !before.contains(lineage);
        until_blocking("the new history to be followed", AGREEMENT, || self.lineages().iter().all(follows).then_some(()))
            .unwrap_or_else(|error| panic!("{error}: {:?}", self.lineages()));
        self.wait_until_settled();
    }

    /// One field of each partition's checkpoint.
    fn checkpoints(&self, field: &str) -> Vec<Option<String>> {
        let mut client = client(&self.redis);
        let checkpoint = |number| format!("rowcast:{{{}}}:checkpoint:{number}of{PARTITIONS}", self.pipeline);
        (1..=PARTITIONS).map(|number| redis::cmd("HGET").arg(checkpoint(number)).arg(field).query(&mut client).expect("a field")).collect()
    }

    /// Waits until every partition is written by somebody else than `before`.
    pub fn wait_until_taken_over(&self, before: &[String]) {
        let taken = || self.holders().iter().zip(before).all(|(now, before)| now != before).then_some(());
        until_blocking("another consumer to take over", AGREEMENT, taken).unwrap_or_else(|error| panic!("{error}; {:?}", self.holders()));
    }

    /// The lines of all logs that tell of a resync of everything.
    pub fn openings(&self) -> Vec<String> {
        self.logs.borrow().iter().flat_map(Log::openings).collect()
    }

    /// In how many lines of all logs `words` stand.
    pub fn said(&self, words: &str) -> usize {
        self.logs.borrow().iter().map(|log| log.count(words)).sum()
    }

    /// Waits until `words` stand in so many lines of all logs.
    pub fn wait_until_said(&self, words: &str, times: usize) {
        until_blocking(&format!("{words:?} to be said {times} times"), AGREEMENT, || (self.said(words) >= times).then_some(()))
            .unwrap_or_else(|error| panic!("{error}, but {}", self.said(words)));
    }

    /// A plain client of the cache.
    pub fn client(&self) -> redis::Connection {
        client(&self.redis)
    }

    /// What a key has left in ms; -1 where it stays, -2 where it has gone.
    pub fn left_ms(&self, key: &str) -> i64 {
        redis::cmd("PTTL").arg(key).query(&mut self.client()).expect("a time")
    }

    /// Does something to Redis.
    pub fn strike_redis<T>(&mut self, strike: impl AsyncFnOnce(&mut RedisServer) -> anyhow::Result<T>) -> T {
        self.runtime.block_on(strike(&mut self.redis)).expect("Redis is struck")
    }

    /// Does something by which Redis itself goes back, for which nobody else is to blame. The strangers put their keys back.
    pub fn send_redis_back(&mut self, strike: impl AsyncFnOnce(&mut RedisServer) -> anyhow::Result<()>) {
        self.watcher.excuse();
        self.strike_redis(strike);
        plant_strangers(&mut self.client());
        self.watcher.watch_anew();
    }

    /// From here to [`World::watch_anew`] no key is watched.
    pub fn excuse(&self) {
        self.watcher.excuse();
    }

    /// Keys are watched again, as if none had been seen before.
    pub fn watch_anew(&self) {
        self.watcher.watch_anew();
    }

    /// Lets the application write again after it was stopped; the versions of its rows go on after `version`.
    pub fn write_again(&mut self, version: u64) {
        self.writer = Writer::start(self.database.application(version), self.seed.wrapping_add(version));
    }

    /// Puts a row into the cache that the database does not have; only a resync's sweep finds it.
    pub fn plant_orphan(&self) {
        let mut client = client(&self.redis);
        for number in 1_000_000..1_000_020 {
            let row = format!(r#"{{"id":{number},"handle":"gone","name":null,"v":1}}"#);
            redis::cmd("SET").arg(format!("users:{number}")).arg(row).exec(&mut client).expect("an orphan");
        }
    }

    /// In how many partitions the resync of `lines` has not got a single chunk yet.
    pub fn unanswered(&self) -> usize {
        let mut client = client(&self.redis);
        let resyncs = |number| -> String {
            let checkpoint = format!("rowcast:{{{}}}:checkpoint:{number}of{PARTITIONS}", self.pipeline);
            redis::cmd("HGET").arg(checkpoint).arg("resyncs").query(&mut client).expect("resyncs")
        };
        let resyncs: Vec<String> = (1..=PARTITIONS).map(resyncs).collect();
        let open = |text: &String| serde_json::from_str::<serde_json::Value>(text).expect("JSON").get("lines").cloned();
        resyncs.iter().filter_map(open).filter(|resync| resync["upto"].is_null() && resync["sweeping"] == false).count()
    }

    /// Waits until every change that is committed now was confirmed by the broker, and the database may forget it.
    pub fn wait_until_forgotten(&self) {
        self.database.wait_until_forgotten();
    }

    /// Runs plain statements on the database, each committed alone.
    pub fn execute(&self, sql: &str) {
        self.database.execute(sql);
    }

    /// Waits until each partition's queue has `count` consumers. A queue itself tells only of the active one.
    pub fn wait_until_consumers(&self, server: &RabbitServer, count: usize) {
        let queue = self.queue("");
        let listed = || {
            let consumers = server.control(&["list_consumers", "queue_name"]).ok()?;
            let ours = consumers.lines().filter(|line| line.starts_with(&queue) && line.ends_with(&format!("of{PARTITIONS}"))).count();
            (ours == count * PARTITIONS).then_some(())
        };
        until_blocking("the consumers", AGREEMENT, listed).expect("they are there");
    }

    /// Waits until more than `bytes` have gone by.
    pub fn wait_until_forwarded(&self, proxy: &Proxy, direction: Direction, bytes: u64) {
        let more = || (proxy.forwarded(direction) > bytes).then_some(());
        until_blocking("what was held up to arrive", AGREEMENT, more).expect("it arrives");
    }

    /// Somebody else's channel to the broker.
    pub fn channel(&self) -> (Connection, Channel) {
        self.runtime.block_on(async {
            let connection = Connection::connect(&self.broker_url, ConnectionProperties::default()).await.expect("a connection");
            let channel = connection.create_channel().await.expect("a channel");
            (connection, channel)
        })
    }

    /// The pipeline's queue `<end>` by its full name.
    pub fn queue(&self, end: &str) -> String {
        format!("rowcast.{}.{end}", self.pipeline)
    }

    /// How many messages wait in a queue.
    pub fn depth(&self, queue: &str) -> u32 {
        let (connection, channel) = self.channel();
        self.runtime.block_on(async {
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let depth =
                channel.queue_declare(queue.into(), options, FieldTable::default()).await.expect("the queue is there").message_count();
            connection.close(200, "done".into()).await.expect("an orderly end");
            depth
        })
    }

    /// Waits for something that needs the runtime.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Fresh random numbers that come again with the same `ROWCAST_SEED`.
    pub fn random(&self) -> StdRng {
        StdRng::seed_from_u64(self.seed)
    }

    /// Waits until the cache agrees with a database to which nobody writes, both ways, and no resync is open.
    pub fn wait_until_agreed(&self) {
        let mut expected = self.database.expected();
        assert!(expected.len() > 20, "the writer has written something");
        expected.extend(STRANGERS.map(|(key, value)| (key.to_owned(), Value::Text(value.to_owned()))));
        let mut differences = Vec::new();
        let agreed = until_blocking("cache and database to agree", AGREEMENT, || {
            differences = match contents::read(&mut client(&self.redis)) {
                Ok(found) => contents::differences(&expected, &found),
                Err(error) => vec![error.to_string()],
            };
            differences.is_empty().then_some(())
        });
        agreed.unwrap_or_else(|error| panic!("{error}:\n{}", differences.join("\n")));
        self.wait_until_settled();
        let found = contents::read(&mut client(&self.redis)).expect("the cache");
        assert_agree(&expected, &found);
    }

    /// Waits until no key says anything else than a database to which nobody writes; some may be absent.
    pub fn wait_until_nothing_is_stale(&self) {
        let mut expected = self.database.expected();
        expected.extend(STRANGERS.map(|(key, value)| (key.to_owned(), Value::Text(value.to_owned()))));
        let mut stale = Vec::new();
        let true_ones = until_blocking("every value to be true", AGREEMENT, || {
            let found = contents::read(&mut client(&self.redis)).expect("the cache");
            stale = found.into_iter().filter(|(key, value)| expected.get(key) != Some(value)).collect();
            stale.is_empty().then_some(())
        });
        true_ones.unwrap_or_else(|error| panic!("{error}: {stale:?}"));
    }

    /// Stops the writer and judges: the cache comes to agree with the database, both ways; strangers' keys stand as they stood; no
    /// key was seen going back; every resync was completed; nothing was set aside; whoever should live does.
    pub fn judge(mut self, halves: &mut [&mut Half]) {
        self.writer.stop();
        self.wait_until_agreed();
        let (rounds, wrong) = self.watcher.stop();
        assert!(rounds > 20, "the watcher looked only {rounds} times");
        assert!(wrong.is_empty(), "{} sightings must not be:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
        assert_eq!(self.depth(&self.queue("dead")), 0, "nothing is set aside");
        for half in halves {
            assert!(half.lives(), "it has ended: {}", half.log().tail());
        }
        assert_eq!(self.said("panicked"), 0, "nobody panics");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the pipeline {} ran with ROWCAST_SEED={}", self.pipeline, self.seed);
            for log in self.logs.borrow().iter() {
                eprintln!("{}", log.tail());
            }
        }
    }
}

fn assert_agree(expected: &Contents, found: &Contents) {
    let differences = contents::differences(expected, found);
    assert!(differences.is_empty(), "a sweep spoiled what was right:\n{}", differences.join("\n"));
}

fn client(redis: &RedisServer) -> redis::Connection {
    redis::Client::open(redis.url()).and_then(|client| client.get_connection()).expect("a client")
}

fn plant_strangers(client: &mut redis::Connection) {
    for (key, value) in STRANGERS {
        redis::cmd("SET").arg(key).arg(value).exec(client).expect("a stranger's key");
    }
}

fn configuration(database: &dyn Database, pipeline: &str, [source, broker, cache]: [&str; 3]) -> String {
    format!(
        "[pipeline]\nname = {pipeline:?}\n[source]\nurl = {source:?}\n[broker]\nurl = {broker:?}\npartitions = {PARTITIONS}\n\
         [cache]\nurl = {cache:?}\n{}",
        database.tables()
    )
}
