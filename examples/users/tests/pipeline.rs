//! The guide's two programs as processes of their own, on a real RabbitMQ and a real Redis.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use lapin::options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, Queue};
use rowcast::config::Config;
use rowcast::source::{SourceSettings, sqlite};
use rowcast_testkit::process::Process;
use rowcast_testkit::rabbitmq::RabbitServer;
use rowcast_testkit::redis::RedisServer;
use rowcast_testkit::wait::{until, until_blocking};
use rustix::process::Signal;

const PUBLISHER: &str = env!("CARGO_BIN_EXE_publisher");
const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");

/// On two busy cores everything takes longer.
const DEADLINE: Duration = Duration::from_secs(120);

/// The folder of a newcomer, with both servers and the configuration file beside the programs.
struct Guide {
    folder: tempfile::TempDir,
    rabbit: RabbitServer,
    redis: RedisServer,
}

impl Guide {
    async fn new() -> Guide {
        let (rabbit, redis) = (RabbitServer::start().unwrap(), RedisServer::start().await.unwrap());
        Guide { folder: tempfile::tempdir().unwrap(), rabbit, redis }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// A command of the publisher, which must succeed. Returns what it prints and how long it took.
    fn publisher(&self, arguments: &[&str]) -> (String, Duration) {
        let begun = Instant::now();
        let output = Command::new(PUBLISHER).args(arguments).current_dir(&self.folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (String::from_utf8(output.stdout).unwrap(), begun.elapsed())
    }

    fn start(&self, program: &str, arguments: &[&str], log: &str) -> Process {
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        let (broker, cache) = (self.rabbit.url(), self.redis.url());
        let environment = [("BROKER_URL", OsStr::new(&broker)), ("CACHE_URL", OsStr::new(&cache))];
        Process::start(Path::new(program), &arguments, &environment, self.folder.path(), &self.path(log)).unwrap()
    }

    /// What is written from then on is in the stream; what was there before comes by a resync.
    fn ship(&self) -> Process {
        let process = self.start(PUBLISHER, &["ship"], "ship.log");
        until_blocking("ship to publish", DEADLINE, || self.log("ship.log").contains("publishing").then_some(()))
            .unwrap_or_else(|error| panic!("{error}:\n{}", self.log("ship.log")));
        process
    }

    fn consumer(&self) -> Process {
        self.start(CONSUMER, &[], "consumer.log")
    }

    fn log(&self, file: &str) -> String {
        std::fs::read_to_string(self.path(file)).unwrap_or_default()
    }

    /// Waits until the consumer has printed this.
    fn printed(&self, words: &str) {
        until_blocking(words, DEADLINE, || self.log("consumer.log").contains(words).then_some(()))
            .unwrap_or_else(|error| panic!("{error}:\n{}\n{}", self.log("consumer.log"), self.log("ship.log")));
    }

    /// Waits until `redis-cli get` would say this.
    async fn value(&self, key: &str, wanted: Option<&str>) {
        let get = async || (self.redis.query::<Option<String>>(&["GET", key]).await.unwrap().as_deref() == wanted).then_some(());
        until(key, DEADLINE, get).await.unwrap_or_else(|error| panic!("{error}:\n{}\n{}", self.log("consumer.log"), self.log("ship.log")));
    }

    /// Binds a queue to the pipeline's exchange, as any other service may that wants the same changes.
    async fn listen(&self) -> (Connection, Channel, Queue) {
        let connection = Connection::connect(&self.rabbit.url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.unwrap();
        let exchange = format!("rowcast.{}", users::PIPELINE);
        for partition in 1..=users::PARTITIONS {
            let key = format!("{partition}of{}", users::PARTITIONS);
            let options = QueueBindOptions::default();
            channel
                .queue_bind(queue.name().clone(), exchange.as_str().into(), key.as_str().into(), options, FieldTable::default())
                .await
                .unwrap();
        }
        (connection, channel, queue)
    }

    /// `rowcast install` with the configuration file of the guide.
    fn install_triggers(&self) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("rowcast.toml");
        let text = std::fs::read_to_string(file).unwrap();
        let config = Config::parse(&text, &self.path("rowcast.toml"), &|name| std::env::var(name)).unwrap();
        assert_eq!((config.pipeline.as_str(), config.partitions), (users::PIPELINE, users::PARTITIONS));
        let SourceSettings::Sqlite(source) = &config.source else { panic!("the guide follows SQLite") };
        sqlite::install(source).unwrap();
    }
}

/// Ctrl-C, and the clean end that must follow.
fn interrupt(mut process: Process) {
    process.signal(Signal::INT).unwrap();
    let status = until_blocking("the process to end", DEADLINE, || process.ended().transpose()).unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

/// The least of several times: what else the machine did meanwhile is not in it.
fn least(times: Vec<Duration>) -> Duration {
    times.into_iter().min().expect("some times")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guides_walk_through() {
    let guide = Guide::new().await;
    let ship = guide.ship();
    let (connection, channel, queue) = guide.listen().await;
    guide.publisher(&["insert", "John Doe", "john@example.com"]);
    let batch = until("a batch with a change", DEADLINE, async || {
        let message = channel.basic_get(queue.name().clone(), BasicGetOptions { no_ack: true }).await.unwrap()?;
        let batch: serde_json::Value = serde_json::from_slice(&message.delivery.data).unwrap();
        (batch["changes"].as_array().unwrap().len() == 1).then_some(batch)
    });
    let batch = batch.await.unwrap();
    let change = &batch["changes"][0];
    assert_eq!((&batch["rowcast"], &batch["pipeline"]), (&serde_json::json!(1), &serde_json::json!("users")));
    assert_eq!(change["op"], "insert");
    assert_eq!(change["key"], "user:1");
    assert_eq!(change["row"], serde_json::json!({"id": 1, "name": "John Doe", "email": "john@example.com"}));

    connection.close(200, "done".into()).await.unwrap();

    let consumer = guide.consumer();
    guide.value("user:1", Some(r#"{"id":1,"name":"John Doe","email":"john@example.com"}"#)).await;
    // The first row may come as an existing one, for this consumer begins after it.
    guide.printed("\tuser:1\tis now {\"id\":1,\"name\":\"John Doe\",\"email\":\"john@example.com\"}\t");
    guide.publisher(&["insert", "Ada", "ada@example.com"]);
    guide.publisher(&["update", "2", "--email", "a@l.org"]);
    guide.value("user:2", Some(r#"{"id":2,"name":"Ada","email":"a@l.org"}"#)).await;
    guide.publisher(&["delete", "1"]);
    guide.value("user:1", None).await;
    guide.printed("delete\tuser:1\tis gone\t");
    interrupt(consumer);
    interrupt(ship);
    let said = guide.log("consumer.log");
    assert!(!said.contains("is missing") && !said.contains("dead letter"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_rabbitmq_down_an_insert_takes_as_long_as_ever_and_arrives_when_it_is_back() {
    let mut guide = Guide::new().await;
    let (ship, consumer) = (guide.ship(), guide.consumer());
    let insert = |guide: &Guide, n: usize| guide.publisher(&["insert", &format!("User {n}"), "someone@example.com"]).1;
    let before = least((1..=7).map(|n| insert(&guide, n)).collect());
    guide.value("user:7", Some(r#"{"id":7,"name":"User 7","email":"someone@example.com"}"#)).await;

    guide.rabbit.kill().unwrap();
    let down = least((8..=14).map(|n| insert(&guide, n)).collect());
    // A wait for the broker would be seconds; noise on a busy machine is not.
    assert!(down < before * 3 + Duration::from_millis(200), "{before:?} with RabbitMQ, {down:?} without");
    assert_eq!(guide.redis.query::<Option<String>>(&["GET", "user:14"]).await.unwrap(), None);

    guide.rabbit.start_again().unwrap();
    for n in 8..=14 {
        guide.value(&format!("user:{n}"), Some(&format!(r#"{{"id":{n},"name":"User {n}","email":"someone@example.com"}}"#))).await;
    }
    interrupt(ship);
    interrupt(consumer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_triggers_beside_the_hooks_every_program_is_heard_and_nothing_is_shipped_twice() {
    let guide = Guide::new().await;
    let (ship, consumer) = (guide.ship(), guide.consumer());
    guide.publisher(&["insert", "John Doe", "john@example.com"]);
    guide.printed("\tuser:1\tis now");

    // While both programs go on.
    guide.install_triggers();
    let other = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(&guide.folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    other("sqlite3", &["-cmd", ".timeout 10000", "db.sqlite", "INSERT INTO users(name, email) VALUES('Grace', 'g@navy.mil')"]);
    guide.value("user:2", Some(r#"{"id":2,"name":"Grace","email":"g@navy.mil"}"#)).await;
    let python = "import sqlite3
with sqlite3.connect('db.sqlite', timeout=10) as db:
    db.execute(\"UPDATE users SET name = 'Grace Hopper' WHERE id = 2\")
    db.execute('DELETE FROM users WHERE id = 1')";
    other("python3", &["-c", python]);
    guide.value("user:2", Some(r#"{"id":2,"name":"Grace Hopper","email":"g@navy.mil"}"#)).await;
    guide.value("user:1", None).await;

    // The model's hooks leave the recording to the triggers: one change, not two.
    guide.publisher(&["insert", "Ada", "ada@example.com"]);
    guide.printed("\tuser:3\tis now {\"id\":3,\"name\":\"Ada\"");
    guide.publisher(&["update", "3", "--name", "Ada Lovelace"]);
    guide.printed("\tuser:3\tis now {\"id\":3,\"name\":\"Ada Lovelace\"");
    guide.publisher(&["delete", "3"]);
    guide.printed("\tuser:3\tis gone");
    interrupt(ship);
    interrupt(consumer);
    let log = guide.log("consumer.log");
    for op in ["insert", "update", "delete"] {
        let lines = log.lines().filter(|line| line.starts_with(&format!("{op}\tuser:3\t"))).count();
        assert!(lines <= 1, "{op} came {lines} times:\n{log}");
    }
}
