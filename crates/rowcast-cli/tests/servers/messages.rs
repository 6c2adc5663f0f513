//! Messages that a consumer cannot use, and a configuration that is not in force any more.

use lapin::options::{BasicPublishOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, ConnectionProperties};

use super::*;

const QUEUE: &str = "rowcast.shop.1of1";

fn configure(folder: &Path, name: &str, partitions: u16, rabbit: &RabbitServer, redis: &RedisServer) {
    let text = format!(
        "[pipeline]\nname = \"shop\"\n[source]\nurl = \"sqlite:shop.db\"\n[broker]\nurl = \"{}\"\npartitions = {partitions}\n\
         [cache]\nurl = \"{}\"\n[[table]]\nname = \"users\"\n",
        rabbit.url(),
        redis.url()
    );
    std::fs::write(folder.join(name), text).unwrap();
}

fn consume(folder: &Path, configuration: &str, log: &str) -> Process {
    let arguments = ["consume", "--config", configuration].map(OsStr::new);
    Process::start(Path::new(BINARY), &arguments, &[], folder, &folder.join(log)).unwrap()
}

async fn send(channel: &Channel, body: &str) {
    let sent = channel.basic_publish(
        "rowcast.shop".into(),
        "1of1".into(),
        BasicPublishOptions::default(),
        body.as_bytes(),
        BasicProperties::default().with_delivery_mode(2),
    );
    sent.await.unwrap().await.unwrap();
}

async fn depth(channel: &Channel, queue: &str) -> u32 {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(ShortString::from(queue), options, FieldTable::default()).await.unwrap().message_count()
}

/// Waits for the end by itself; returns the exit code and the error.
async fn end_of(mut process: Process, folder: &Path, log: &str) -> (Option<i32>, String) {
    let status = until("the process to end", DEADLINE, || std::future::ready(process.ended().transpose())).await.unwrap().unwrap();
    let text = std::fs::read_to_string(folder.join(log)).unwrap();
    let errors = text.lines().filter(|line| line.starts_with("error: "));
    (status.code(), errors.collect::<Vec<_>>().join("\n"))
}

#[tokio::test]
async fn a_message_that_is_no_batch_is_set_aside_and_one_of_an_unknown_version_stays() {
    let (rabbit, redis) = (RabbitServer::start().unwrap(), RedisServer::start().await.unwrap());
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let db = rusqlite::Connection::open(folder.join("shop.db")).unwrap();
    db.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT)").unwrap();
    configure(folder, "rowcast.toml", 1, &rabbit, &redis);
    assert_eq!(rowcast(folder, &["install"]).status.code(), Some(0));
    let publisher = start(folder, "publish", "publish.log");
    let consumer = consume(folder, "rowcast.toml", "consume-1.log");
    let cached = async |key: &str| {
        until(key, DEADLINE, async || redis.query::<Option<String>>(&["GET", key]).await.unwrap()).await.unwrap();
    };
    db.execute_batch("INSERT INTO users VALUES(1, 'Ada')").unwrap();
    cached("users:1").await;

    let connection = lapin::Connection::connect(&rabbit.url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(Default::default()).await.unwrap();
    for body in ["hello", r#"{"rowcast":1,"pipeline":"shop"}"#, r#"{"rowcast":1,"pipeline":"other","lineage":"l""#] {
        send(&channel, body).await;
    }
    db.execute_batch("INSERT INTO users VALUES(2, 'Grace')").unwrap();
    cached("users:2").await;
    until("the letters", DEADLINE, async || (depth(&channel, "rowcast.shop.dead").await == 3).then_some(())).await.unwrap();
    let log = std::fs::read_to_string(folder.join("consume-1.log")).unwrap();
    let letters: Vec<&str> = log.lines().filter_map(|line| line.split_once("dead letter: ")).map(|(_, reason)| reason).collect();
    insta::assert_snapshot!(letters.join("\n"), @r"
    a message that is no batch (expected value at line 1 column 1); only a publisher of the pipeline may publish to its exchange partition=1of1
    a message that is no batch (missing field `lineage` at line 1 column 31); only a publisher of the pipeline may publish to its exchange partition=1of1
    a message that is no batch (EOF while parsing an object at line 1 column 45); only a publisher of the pipeline may publish to its exchange partition=1of1
    ");

    send(&channel, r#"{"rowcast":2,"pipeline":"shop","anything":"else"}"#).await;
    let (code, error) = end_of(consumer, folder, "consume-1.log").await;
    assert_eq!(code, Some(1));
    insta::assert_snapshot!(error, @"error: the batch has version 2, this rowcast reads version 1; run the newer rowcast here too");
    // It stays for a newer rowcast, and nobody goes past it.
    db.execute_batch("INSERT INTO users VALUES(3, 'Edsger')").unwrap();
    let again = consume(folder, "rowcast.toml", "consume-2.log");
    assert_eq!(end_of(again, folder, "consume-2.log").await, (code, error));
    assert_eq!(redis.query::<Option<String>>(&["GET", "users:3"]).await.unwrap(), None);
    // What an ended consumer held comes back a moment later, all of it at once.
    until("what it held to be back", DEADLINE, async || (depth(&channel, QUEUE).await > 0).then_some(())).await.unwrap();

    // Somebody takes it away, and whatever waits behind it: that shows as a gap.
    channel.queue_purge(QUEUE.into(), QueuePurgeOptions::default()).await.unwrap();
    let last = consume(folder, "rowcast.toml", "consume-3.log");
    cached("users:3").await;

    // Another number of partitions comes into force, and whoever works with the old one is told.
    configure(folder, "two.toml", 2, &rabbit, &redis);
    let new = consume(folder, "two.toml", "consume-4.log");
    let (code, error) = end_of(last, folder, "consume-3.log").await;
    assert_eq!(code, Some(1));
    insta::assert_snapshot!(error, @"error: the pipeline shop now has 2 partitions and this consumer was started with 1; give it the new configuration (a consumer that starts puts its own number in force)");
    let missed = async || {
        let log = std::fs::read_to_string(folder.join("publish.log")).unwrap();
        log.lines().find_map(|line| line.split_once("nobody consumes")).map(|(_, rest)| rest.to_owned())
    };
    let missed = until("the publisher to miss its consumers", DEADLINE, missed).await.unwrap();
    insta::assert_snapshot!(missed, @" the partitions 1of1: what is published waits there; start `rowcast consume`, or, if consumers run with another number of partitions than 1, give all the same one");
    end(publisher).await;
    let publisher =
        Process::start(Path::new(BINARY), &["publish", "--config", "two.toml"].map(OsStr::new), &[], folder, &folder.join("publish-2.log"));
    let publisher = publisher.unwrap();
    db.execute_batch("INSERT INTO users VALUES(4, 'Barbara')").unwrap();
    cached("users:4").await;
    end(publisher).await;
    end(new).await;

    // One that cannot work puts nothing in force.
    configure(folder, "wrong.toml", 3, &rabbit, &redis);
    let text = std::fs::read_to_string(folder.join("wrong.toml"))
        .unwrap()
        .replace("amqp://", "amqp://guest:wrong@")
        .replace("guest:wrong@guest:guest@", "guest:wrong@");
    std::fs::write(folder.join("wrong.toml"), text).unwrap();
    let wrong = consume(folder, "wrong.toml", "consume-5.log");
    let (code, error) = end_of(wrong, folder, "consume-5.log").await;
    assert_eq!(code, Some(1));
    assert!(error.contains("refused") && !error.contains("guest:wrong"), "{error}");
    assert_eq!(redis.query::<String>(&["GET", "rowcast:{shop}:layout"]).await.unwrap(), "2");
}
