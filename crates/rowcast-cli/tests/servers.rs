//! Whole sessions with the built binary on a real RabbitMQ and a real Redis.

#[path = "servers/commands.rs"]
mod commands;
#[path = "servers/messages.rs"]
mod messages;
mod music;
#[path = "servers/postgres.rs"]
mod postgres;

use std::ffi::OsStr;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rowcast_testkit::certificates::Certificates;
use rowcast_testkit::process::{Process, free_port};
use rowcast_testkit::proxy::{Direction, Proxy};
use rowcast_testkit::rabbitmq::RabbitServer;
use rowcast_testkit::redis::RedisServer;
use rowcast_testkit::wait::until;
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_rowcast");

/// On two busy cores everything takes longer.
const DEADLINE: Duration = Duration::from_secs(120);

fn rowcast(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).current_dir(folder).output().unwrap()
}

fn start(folder: &Path, command: &str, log: &str) -> Process {
    Process::start(Path::new(BINARY), &[OsStr::new(command)], &[], folder, &folder.join(log)).unwrap()
}

async fn end(mut process: Process) {
    process.signal(Signal::TERM).unwrap();
    let status = until("the process to end", DEADLINE, || std::future::ready(process.ended().transpose())).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

fn status(folder: &Path) -> Value {
    let output = rowcast(folder, &["status", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn the_demo_runs_on_real_servers_and_leaves_nothing_behind() {
    let (rabbit, redis) = (RabbitServer::start().unwrap(), RedisServer::start().await.unwrap());
    redis.query::<()>(&["SET", "user:1", "somebody else's"]).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = rowcast(folder.path(), &["demo", "--json", "--rows", "2000", "--broker", &rabbit.url(), "--cache", &redis.url()]);
    // RabbitMQ may refuse a queue that is being made, which is tried again with a word on stderr.
    assert_eq!(output.status.code(), Some(0), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(["missing", "stale", "orphans", "wrong_type"].iter().all(|class| summary[*class] == 0), "{summary}");
    assert!(summary["rows"].as_u64().unwrap() > 600, "{summary}");
    assert_eq!(redis.query::<Vec<String>>(&["KEYS", "*"]).await.unwrap(), ["user:1"]);
    assert_eq!(rabbit.control(&["list_queues", "name", "--no-table-headers"]).unwrap(), "");
    assert!(!rabbit.control(&["list_exchanges", "name"]).unwrap().contains("rowcast"));
}

#[tokio::test]
async fn a_publisher_and_two_consumers_in_processes_of_their_own_keep_redis_in_step() {
    let (rabbit, redis) = (RabbitServer::start().unwrap(), RedisServer::start().await.unwrap());
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let db = Connection::open(folder.join("shop.db")).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode = wal; CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT); INSERT INTO users VALUES(1, 'Ada')",
    )
    .unwrap();
    assert_eq!(rowcast(folder, &["init", "sqlite:shop.db"]).status.code(), Some(0));
    let path = folder.join("rowcast.toml");
    let text =
        std::fs::read_to_string(&path).unwrap().replace("amqp://localhost", &rabbit.url()).replace("redis://localhost", &redis.url());
    std::fs::write(&path, text).unwrap();
    assert_eq!(rowcast(folder, &["install"]).status.code(), Some(0));
    assert_eq!(status(folder)["cache"]["layout"], Value::Null);

    let publisher = start(folder, "publish", "publish.log");
    let consumers = [start(folder, "consume", "consume-1.log"), start(folder, "consume", "consume-2.log")];
    let value = async |key: &str, wanted: Option<&str>| {
        let looked =
            until(key, DEADLINE, async || (redis.query::<Option<String>>(&["GET", key]).await.unwrap().as_deref() == wanted).then_some(()));
        looked.await.unwrap();
    };
    value("users:1", Some(r#"{"id":1,"name":"Ada"}"#)).await;
    db.execute_batch("INSERT INTO users VALUES(2, 'Grace'); UPDATE users SET name = 'Ada Lovelace' WHERE id = 1").unwrap();
    value("users:1", Some(r#"{"id":1,"name":"Ada Lovelace"}"#)).await;
    value("users:2", Some(r#"{"id":2,"name":"Grace"}"#)).await;

    let settled = until("all partitions to catch up", DEADLINE, async || {
        let status = status(folder);
        let partitions = status["cache"]["partitions"].as_array().unwrap();
        let settled = partitions.len() == 4 && partitions.iter().all(|p| p["behind"] == 0 && p["resyncs"] == serde_json::json!([]));
        settled.then_some(status)
    });
    let status = settled.await.unwrap();
    let queues = status["broker"]["queues"].as_array().unwrap();
    let partitions: Vec<&Value> = queues.iter().filter(|queue| queue["name"].as_str().unwrap().ends_with("of4")).collect();
    assert_eq!(partitions.len(), 4);
    // A quorum queue of RabbitMQ 3.10 counts only the active one.
    assert!(partitions.iter().all(|queue| queue["consumers"].as_u64() >= Some(1) && queue["depth"] == 0), "{status}");

    // The one that leaves hands over to the other.
    let [first, second] = consumers;
    end(first).await;
    db.execute("DELETE FROM users", []).unwrap();
    value("users:1", None).await;
    value("users:2", None).await;
    end(publisher).await;
    end(second).await;
    let alone = async || {
        let text = String::from_utf8(rowcast(folder, &["status"]).stdout).unwrap();
        text.contains("no publisher is connected, 0 requests wait for it; 0 dead letters").then_some(())
    };
    until("the broker to know that nobody is there", DEADLINE, alone).await.unwrap();
}

#[tokio::test]
async fn broker_and_cache_are_reached_by_tls_whose_certificates_are_verified() {
    let certificates = Certificates::make().unwrap();
    let [authority, server, key] =
        [certificates.authority(), certificates.server(), certificates.key()].map(|path| path.display().to_string());
    let (broker_port, cache_port) = (free_port().unwrap(), free_port().unwrap());
    let settings = format!(
        "listeners.ssl.1 = 127.0.0.1:{broker_port}\nssl_options.cacertfile = {authority}\nssl_options.certfile = {server}\n\
         ssl_options.keyfile = {key}\nssl_options.verify = verify_none\n"
    );
    let _rabbit = RabbitServer::start_with(&settings).unwrap();
    // It listens without TLS first.
    let listens = async || TcpStream::connect(("127.0.0.1", broker_port)).ok();
    until("RabbitMQ to listen by TLS", DEADLINE, listens).await.unwrap();
    let tls_port = cache_port.to_string();
    let arguments = ["--tls-port", &tls_port, "--tls-cert-file", &server, "--tls-key-file", &key, "--tls-ca-cert-file", &authority];
    let _redis = RedisServer::start_with(&[&arguments[..], &["--tls-auth-clients", "no"]].concat()).await.unwrap();
    let broker = format!("amqps://guest:guest@localhost:{broker_port}/%2f");
    let cache = format!("rediss://localhost:{cache_port}/0");
    let demo = |trusted: Option<&str>, broker: Option<&str>, cache: Option<&str>| {
        let mut command = Command::new(BINARY);
        command.args(["demo", "--json", "--rows", "200"]);
        command.args(broker.map(|url| ["--broker", url]).into_iter().flatten());
        command.args(cache.map(|url| ["--cache", url]).into_iter().flatten());
        command.env_remove("SSL_CERT_DIR").env("SSL_CERT_FILE", trusted.unwrap_or("/etc/ssl/certs/ca-certificates.crt"));
        command.output().unwrap()
    };
    let trusting = demo(Some(&authority), Some(&broker), Some(&cache));
    assert_eq!(trusting.status.code(), Some(0), "{}", String::from_utf8_lossy(&trusting.stderr));

    for (broker, cache) in [(Some(&*broker), None), (None, Some(&*cache))] {
        let distrustful = demo(None, broker, cache);
        let said = String::from_utf8(distrustful.stderr).unwrap();
        assert_eq!(distrustful.status.code(), Some(1), "{said}");
        assert!(said.contains("UnknownIssuer") && said.contains("SSL_CERT_FILE"), "{said}");
    }
}

#[tokio::test]
async fn a_second_ctrl_c_ends_a_run_that_waits_for_its_server_and_nothing_is_lost() {
    let redis = RedisServer::start().await.unwrap();
    let proxy = Proxy::start(([127, 0, 0, 1], redis.port()).into()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let db = Connection::open(folder.join("shop.db")).unwrap();
    db.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT)").unwrap();
    let text = format!(
        "[pipeline]\nname = \"shop\"\n[source]\nurl = \"sqlite:shop.db\"\n[broker]\nurl = \"memory:\"\npartitions = 1\n[cache]\n\
         url = \"redis://127.0.0.1:{}\"\n[[table]]\nname = \"users\"\n",
        proxy.port()
    );
    std::fs::write(folder.join("rowcast.toml"), text).unwrap();
    assert_eq!(rowcast(folder, &["install"]).status.code(), Some(0));
    let cached = async |key: &str| {
        until(key, DEADLINE, async || redis.query::<Option<String>>(&["GET", key]).await.unwrap()).await.unwrap();
    };
    let ended = async |process: &mut Process| {
        until("the process to end", DEADLINE, || std::future::ready(process.ended().transpose())).await.unwrap().unwrap().code()
    };
    let log = || std::fs::read_to_string(folder.join("run.log")).unwrap();

    let mut run = start(folder, "run", "run.log");
    db.execute_batch("INSERT INTO users VALUES(1, 'Ada')").unwrap();
    cached("users:1").await;
    // The answer to a block never comes. If it was another one, without the row, once more.
    for id in 2.. {
        assert!(id < 60, "no block with the row is ever on its way");
        proxy.stall(Direction::ToClient);
        let before = proxy.forwarded(Direction::ToServer);
        db.execute("INSERT INTO users VALUES(?1, printf('%500000d', 1))", [id]).unwrap();
        let sent = async || (proxy.forwarded(Direction::ToServer) > before + 500_000).then_some(());
        if until("the row", Duration::from_secs(1), sent).await.is_ok() {
            break;
        }
        proxy.resume();
        cached(&format!("users:{id}")).await;
    }
    db.execute_batch("INSERT INTO users VALUES(1000, 'Barbara')").unwrap();
    run.signal(Signal::INT).unwrap();
    until("the first Ctrl-C to be heard", DEADLINE, async || log().contains("Ctrl-C again ends at once").then_some(())).await.unwrap();
    run.signal(Signal::INT).unwrap();
    assert_eq!(ended(&mut run).await, Some(130), "{}", log());
    assert!(!log().contains("stopped;"), "it did not wait: {}", log());

    proxy.resume();
    let mut run = start(folder, "run", "run.log");
    cached("users:1000").await;
    run.signal(Signal::INT).unwrap();
    assert_eq!(ended(&mut run).await, Some(0), "{}", log());
    assert!(log().contains("stopped;"));
}
