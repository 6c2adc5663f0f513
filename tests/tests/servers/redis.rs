//! What Redis alone can do to a cache.

use std::time::Duration;

use redis::AsyncCommands;
use rowcast::cache::redis::{RedisCache, RedisLink, RedisSettings};
use rowcast::cache::{Block, Cache, Cached, Error, Link, Put, SeenAppend, Version, Written};
use rowcast::change::{KeyHash, Partition, Position, Run};
use rowcast_testkit::redis::RedisServer;
use rowcast_testkit::wait::until;

use crate::cache::{P1, P2, block, cached_hash, cached_text, done, fresh, hash, ready, scanned, text, value};

const LAYOUT: &str = "rowcast:{shop}:layout";
const CHECKPOINT: &str = "rowcast:{shop}:checkpoint:1of2";
const DEADLINE: Duration = Duration::from_secs(120);

fn settings(url: &str) -> RedisSettings {
    let mut settings = RedisSettings::new(url, "shop").unwrap();
    settings.seen_piece_bytes = 24;
    settings
}

/// A cache of the pipeline `shop` whose seen logs are cut into pieces of three hashes, so that small tests have several.
pub fn cache(url: &str) -> RedisCache {
    RedisCache::new(settings(url))
}

/// A server with two partitions, and a block in the first.
async fn server_and_link() -> (RedisServer, RedisLink, Version) {
    let server = RedisServer::start().await.unwrap();
    let mut link = ready(&cache(&server.url())).await;
    let version = done(&mut link, &block(P1, None, 1, &[("user:1", text("1")), ("order:1", hash(&[("id", "1")]))])).await;
    (server, link, version)
}

#[track_caller]
fn lost<T: std::fmt::Debug>(answer: Result<T, Error>, says: &str) {
    assert!(matches!(&answer, Err(Error::Lost(text)) if text.contains(says)), "{answer:?}");
}

#[track_caller]
fn fatal<T: std::fmt::Debug>(answer: Result<T, Error>, says: &[&str]) {
    assert!(matches!(&answer, Err(Error::Fatal(text)) if says.iter().all(|part| text.contains(part))), "{answer:?}");
}

/// Whether the partition still stands where `version` left it, with nothing of a later block.
async fn stands_at(server: &RedisServer, version: &Version) -> bool {
    let at: String = server.query(&["HGET", CHECKPOINT, "version"]).await.unwrap();
    let late: u64 = server.query(&["EXISTS", "user:2"]).await.unwrap();
    at == version.0 && late == 0
}

#[tokio::test]
async fn a_block_that_timed_out_and_is_executed_later_is_found_out_by_the_next() {
    let (server, _, version) = server_and_link().await;
    let mut hasty = settings(&server.url());
    hasty.response_timeout = Duration::from_secs(2);
    let cache = RedisCache::new(hasty);
    let mut link = cache.connect().await.unwrap();
    // The script is known, so that the block itself is what waits in the socket.
    let version = done(&mut link, &block(P1, Some(&version), 2, &[])).await;

    server.pause().unwrap();
    let slow = block(P1, Some(&version), 3, &[("user:1", text("slow"))]);
    lost(link.write(&slow).await, "may yet be executed");
    lost(link.load(P1).await, "may yet be executed");
    lost(link.write(&slow).await, "may yet be executed");
    server.resume().unwrap();

    let executed = || async { (server.query::<String>(&["HGET", CHECKPOINT, "version"]).await.ok()? == slow.version.0).then_some(()) };
    until("the block to be executed after all", DEADLINE, executed).await.unwrap();
    let mut link = self::cache(&server.url()).connect().await.unwrap();
    assert_eq!(link.write(&block(P1, Some(&version), 3, &[("user:1", text("again"))])).await.unwrap(), Written::Overtaken);
    assert_eq!(value(&mut link, "user:1").await, cached_text("slow"));
    let stored = link.load(P1).await.unwrap().unwrap();
    assert_eq!(stored.version, slow.version);
    done(&mut link, &block(P1, Some(&stored.version), 4, &[("user:1", text("on"))])).await;
    assert_eq!(value(&mut link, "user:1").await, cached_text("on"));
}

#[tokio::test]
async fn a_full_server_loses_the_keys_of_the_block_and_nothing_else() {
    let (server, mut link, version) = server_and_link().await;
    let puts = [("user:1", text("new")), ("order:1", hash(&[("id", "new")])), ("user:2", text("new"))];
    let next = block(P1, Some(&version), 2, &puts);
    let hashes_alone = block(P1, Some(&version), 2, &[("order:1", hash(&[("id", "new")]))]);
    server.query::<()>(&["SET", "stranger", "x"]).await.unwrap();
    server.set("maxmemory", "1").await.unwrap();

    let stale = block(P1, Some(&Version("older".into())), 2, &[("user:1", text("stale"))]);
    assert_eq!(link.write(&stale).await.unwrap(), Written::Overtaken, "an overtaken consumer removes nothing");
    assert_eq!(value(&mut link, "user:1").await, cached_text("1"));
    for full in [&hashes_alone, &next] {
        let answer = link.write(full).await.unwrap();
        assert!(matches!(&answer, Written::Full(text) if text.contains("maxmemory")), "{answer:?}");
        for (key, _) in &full.puts {
            assert_eq!(value(&mut link, key).await, None);
        }
        assert!(stands_at(&server, &version).await);
    }
    assert_eq!(value(&mut link, "stranger").await, cached_text("x"));
    lost(link.take_over(Some(2), 3, &mut fresh).await, "OOM");
    assert_eq!(server.query::<String>(&["GET", LAYOUT]).await.unwrap(), "2");

    server.set("maxmemory", "0").await.unwrap();
    let mut link = cache(&server.url()).connect().await.unwrap();
    done(&mut link, &next).await;
    assert_eq!(value(&mut link, "order:1").await, cached_hash(&[("id", "new")]));
}

#[tokio::test]
async fn what_refuses_writes_for_a_while_is_lost_with_nothing_written() {
    let (server, _, version) = server_and_link().await;
    let cache = cache(&server.url());
    let next = block(P1, Some(&version), 2, &[("user:1", Put::Gone), ("user:2", text("2")), ("order:1", hash(&[("id", "2")]))]);
    let refused = async |says: &str| {
        let mut link = cache.connect().await.unwrap();
        lost(link.write(&next).await, says);
        lost(link.load(P1).await, says);
        assert!(stands_at(&server, &version).await);
        let mut link = cache.connect().await.unwrap();
        assert_eq!(value(&mut link, "user:1").await, cached_text("1"));
        assert_eq!(value(&mut link, "order:1").await, cached_hash(&[("id", "1")]));
    };

    server.query::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await.unwrap();
    refused("This is a replica: after a failover").await;
    server.query::<()>(&["REPLICAOF", "NO", "ONE"]).await.unwrap();

    server.set("min-replicas-to-write", "1").await.unwrap();
    refused("min-replicas-to-write").await;
    server.set("min-replicas-to-write", "0").await.unwrap();

    // Where the dump should go there is a folder.
    std::fs::create_dir(server.folder().join("dump.rdb")).unwrap();
    server.set("save", "3600 1").await.unwrap();
    server.query::<()>(&["BGSAVE"]).await.unwrap();
    let failed = || async { (server.info("persistence", "rdb_last_bgsave_status").await.ok()? == "err").then_some(()) };
    until("the server to notice that it cannot save", DEADLINE, failed).await.unwrap();
    refused("cannot save to disk").await;
    server.set("stop-writes-on-bgsave-error", "no").await.unwrap();

    done(&mut cache.connect().await.unwrap(), &next).await;
}

#[tokio::test]
async fn a_replica_without_its_master_and_a_busy_or_loading_server_are_lost() {
    let server = RedisServer::start_with(&["--enable-debug-command", "yes"]).await.unwrap();
    let cache = cache(&server.url());
    let mut link = ready(&cache).await;
    let mut first = block(P1, None, 1, &[]);
    first.puts.extend((0..300).map(|id| (format!("user:{id}"), text("x"))));
    done(&mut link, &first).await;

    server.set("replica-serve-stale-data", "no").await.unwrap();
    server.query::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await.unwrap();
    lost(cache.connect().await.map(drop), "lost its master");
    lost(link.load(P1).await, "lost its master");
    server.query::<()>(&["REPLICAOF", "NO", "ONE"]).await.unwrap();

    let mut debugger = server.client().await.unwrap();
    let says = |says: &'static str| {
        let cache = &cache;
        move || async move { matches!(cache.connect().await, Err(Error::Lost(text)) if text.contains(says)).then_some(()) }
    };
    server.set("busy-reply-threshold", "1").await.unwrap();
    let endless = redis::cmd("EVAL").arg("while true do end").arg(0).to_owned();
    let endless = tokio::spawn(async move { endless.query_async::<()>(&mut debugger).await });
    until("the server to be busy", DEADLINE, says("SCRIPT KILL")).await.unwrap();
    server.query::<()>(&["SCRIPT", "KILL"]).await.unwrap();
    assert!(endless.await.unwrap().is_err());

    server.set("loading-process-events-interval-bytes", "1024").await.unwrap();
    server.set("key-load-delay", "20000").await.unwrap();
    let mut debugger = server.client().await.unwrap();
    let reload = tokio::spawn(async move { redis::cmd("DEBUG").arg("RELOAD").query_async::<()>(&mut debugger).await });
    until("the server to be loading", DEADLINE, says("once its data is loaded")).await.unwrap();
    reload.await.unwrap().unwrap();
    assert_eq!(cache.connect().await.unwrap().load(P1).await.unwrap().unwrap().version, first.version);
}

#[tokio::test]
async fn one_of_rowcasts_own_keys_that_somebody_spoilt_is_named_with_the_remedy() {
    let (server, mut link, version) = server_and_link().await;
    let run = fresh();
    let mut next = block(P1, Some(&version), 2, &[("user:2", text("2"))]);
    next.seen = vec![SeenAppend { table: "users".into(), run: run.clone(), expected: 0, hashes: vec![] }];

    let seen = format!("rowcast:{{shop}}:seen:1of2:users:{run}");
    server.query::<()>(&["LPUSH", &seen, "x"]).await.unwrap();
    fatal(link.write(&next).await, &[&format!("DEL {seen}"), "it is a list"]);
    fatal(link.seen(P1, &"users".into(), &run, 8).await, &[&format!("DEL {seen}")]);
    assert!(stands_at(&server, &version).await);
    server.query::<()>(&["DEL", &seen]).await.unwrap();

    for spoil in [&["HSET", CHECKPOINT, "resyncs", "{"][..], &["HDEL", CHECKPOINT, "mappings"], &["HSET", CHECKPOINT, "position", "7"]] {
        server.query::<()>(spoil).await.unwrap();
        fatal(link.load(P1).await, &[&format!("DEL {CHECKPOINT}"), spoil[2]]);
        fatal(link.take_over(Some(2), 3, &mut fresh).await, &[&format!("DEL {CHECKPOINT}")]);
    }
    server.query::<()>(&["SET", CHECKPOINT, "x"]).await.unwrap();
    fatal(link.load(P1).await, &[&format!("DEL {CHECKPOINT}")]);
    fatal(link.write(&next).await, &[&format!("DEL {CHECKPOINT}"), "it is a string"]);
    server.query::<()>(&["DEL", CHECKPOINT]).await.unwrap();
    assert_eq!(link.load(P1).await.unwrap(), None, "what was said mends it");

    for spoil in [&["SET", LAYOUT, "two"][..], &["SET", LAYOUT, "70000"], &["SET", LAYOUT, "0"]] {
        server.query::<()>(spoil).await.unwrap();
        fatal(link.layout().await, &[&format!("DEL {LAYOUT}")]);
        fatal(link.write(&next).await, &[&format!("DEL {LAYOUT}")]);
    }
    server.query::<()>(&["DEL", LAYOUT]).await.unwrap();
    server.query::<()>(&["HSET", LAYOUT, "a", "b"]).await.unwrap();
    fatal(link.layout().await, &[&format!("DEL {LAYOUT}")]);
    fatal(link.write(&next).await, &[&format!("DEL {LAYOUT}"), "it is a hash"]);
}

#[tokio::test]
async fn a_login_that_is_missing_or_wrong_stops_with_the_remedy_and_without_the_password() {
    let (server, mut link, version) = server_and_link().await;
    fatal(cache(&server.url_as("", "sesame")).connect().await.map(drop), &["does not know of"]);
    // This client stays logged in.
    let mut admin = server.client().await.unwrap();
    let mut acl = async |arguments: &[&str]| redis::cmd("ACL").arg(arguments).query_async::<()>(&mut admin).await.unwrap();
    acl(&["SETUSER", "default", "resetpass", ">secret"]).await;
    done(&mut link, &block(P1, Some(&version), 2, &[])).await;

    fatal(cache(&server.url()).connect().await.map(drop), &["NOAUTH", "redis://user:password@host"]);
    let wrong = cache(&server.url_as("default", "sesame")).connect().await.map(drop);
    assert!(!format!("{wrong:?}").contains("sesame"));
    fatal(wrong, &["WRONGPASS", "not right"]);
    fatal(cache(&server.url_as("nobody", "secret")).connect().await.map(drop), &["WRONGPASS"]);
    let mut link = cache(&server.url_as("default", "secret")).connect().await.unwrap();
    assert_eq!(value(&mut link, "user:1").await, cached_text("1"));
    let mut link = cache(&server.url_as("", "secret")).connect().await.unwrap();
    assert_eq!(value(&mut link, "user:1").await, cached_text("1"));
}

#[tokio::test]
async fn a_missing_permission_stops_with_the_acl_line_that_mends_it() {
    let (server, _, version) = server_and_link().await;
    server.query::<()>(&["ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-mset"]).await.unwrap();
    let cache = cache(&server.url_as("app", "pw"));
    let next = block(P1, Some(&version), 2, &[("user:2", text("2"))]);
    let mut link = cache.connect().await.unwrap();
    let refused = link.write(&next).await;
    let Err(Error::Fatal(says)) = &refused else { panic!("{refused:?}") };
    assert!(says.contains("mset"), "{says}");
    assert!(stands_at(&server, &version).await);

    // The line that it says is enough for everything, and nothing is left of what the user could do before.
    let line = says.split_once("ACL SETUSER app ").unwrap().1;
    let command: Vec<&str> = ["ACL", "SETUSER", "app", "reset", "on", ">pw"].into_iter().chain(line.split(' ')).collect();
    server.query::<()>(&command).await.unwrap();
    let mut link = cache.connect().await.unwrap();
    let run = fresh();
    let mut next = block(P1, Some(&version), 2, &[("user:2", text("2")), ("order:2", hash(&[("a", "b")])), ("user:1", Put::Gone)]);
    next.seen = vec![SeenAppend { table: "users".into(), run: run.clone(), expected: 0, hashes: vec![KeyHash(7)] }];
    next.forget = vec![("users".into(), fresh())];
    let version = done(&mut link, &next).await;
    assert_eq!(link.seen(P1, &"users".into(), &run, 8).await.unwrap(), Some(vec![KeyHash(7)]));
    assert_eq!(value(&mut link, "order:2").await, cached_hash(&[("a", "b")]));
    assert!(scanned(&mut link, "user:").await.contains("user:2"));
    server.query::<()>(&["LPUSH", "list", "x"]).await.unwrap();
    assert_eq!(value(&mut link, "list").await, Some(Cached::Other("list".into())));
    assert!(link.take_over(Some(2), 3, &mut fresh).await.unwrap());
    assert_eq!(link.write(&block(P1, Some(&version), 3, &[])).await.unwrap(), Written::Layout(3));
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_is_given_them_again_and_nothing_is_executed_twice() {
    let (server, mut link, version) = server_and_link().await;
    let run = fresh();
    let seen = |expected| SeenAppend { table: "users".into(), run: run.clone(), expected, hashes: vec![KeyHash(expected)] };
    let mut next = block(P1, Some(&version), 2, &[("user:2", text("2"))]);
    next.seen = vec![seen(0)];
    server.query::<()>(&["SCRIPT", "FLUSH"]).await.unwrap();
    let version = done(&mut link, &next).await;
    server.query::<()>(&["SCRIPT", "FLUSH"]).await.unwrap();
    let mut next = block(P1, Some(&version), 3, &[]);
    next.seen = vec![seen(8)];
    done(&mut link, &next).await;
    assert_eq!(link.seen(P1, &"users".into(), &run, 16).await.unwrap(), Some(vec![KeyHash(0), KeyHash(8)]));
}

#[tokio::test]
async fn a_restarted_server_is_lost_until_one_connects_again() {
    let (mut server, mut link, version) = server_and_link().await;
    server.restart().await.unwrap();
    lost(link.load(P1).await, "127.0.0.1");
    lost(link.load(P1).await, "127.0.0.1");
    let cache = cache(&server.url());
    let version = done(&mut cache.connect().await.unwrap(), &block(P1, Some(&version), 2, &[])).await;

    server.restart_empty().await.unwrap();
    let mut link = cache.connect().await.unwrap();
    assert_eq!(link.write(&block(P1, Some(&version), 3, &[("user:1", text("x"))])).await.unwrap(), Written::Layout(0));
    assert_eq!((link.layout().await.unwrap(), link.load(P1).await.unwrap()), (None, None));

    server.kill().unwrap();
    lost(cache.connect().await.map(drop), "127.0.0.1");
}

#[tokio::test]
async fn a_server_that_went_back_in_time_refuses_the_next_block() {
    let (mut server, mut link, old) = server_and_link().await;
    let dump = server.save().await.unwrap();
    let new = done(&mut link, &block(P1, Some(&old), 2, &[("user:1", text("2"))])).await;
    server.roll_back(&dump).await.unwrap();
    let mut link = cache(&server.url()).connect().await.unwrap();
    assert_eq!(link.write(&block(P1, Some(&new), 3, &[("user:3", text("3"))])).await.unwrap(), Written::Overtaken);
    assert_eq!(value(&mut link, "user:3").await, None);
    assert_eq!(link.load(P1).await.unwrap().unwrap().version, old);
}

#[tokio::test]
async fn what_is_flushed_or_removed_under_a_running_consumer_refuses_its_next_block() {
    let (server, mut link, version) = server_and_link().await;
    let run = fresh();
    let seen = |expected, hashes: u64| SeenAppend {
        table: "users".into(),
        run: run.clone(),
        expected,
        hashes: (0..hashes).map(KeyHash).collect(),
    };
    // Seven hashes stand in three pieces.
    let mut next = block(P1, Some(&version), 2, &[]);
    next.seen = vec![seen(0, 7)];
    let version = done(&mut link, &next).await;
    let piece = |n: &str| format!("rowcast:{{shop}}:seen:1of2:users:{run}{n}");
    for (name, bytes) in [("", 24), (":1", 24), (":2", 8)] {
        assert_eq!(server.query::<u64>(&["STRLEN", &piece(name)]).await.unwrap(), bytes);
        assert!(server.query::<i64>(&["TTL", &piece(name)]).await.unwrap() > 0, "should the checkpoint be lost, the log goes by itself");
    }
    let mut next = block(P1, Some(&version), 3, &[("user:2", text("2"))]);
    next.seen = vec![seen(56, 1)];
    for name in ["", ":1", ":2"] {
        let stood: Vec<u8> = server.query(&["GET", &piece(name)]).await.unwrap();
        server.query::<()>(&["DEL", &piece(name)]).await.unwrap();
        assert_eq!(link.write(&next).await.unwrap(), Written::SeenLost(vec!["users".into()]), "without {name:?}");
        assert_eq!(link.seen(P1, &"users".into(), &run, 56).await.unwrap(), None);
        server.client().await.unwrap().set::<_, _, ()>(piece(name), stood).await.unwrap();
    }
    let version = done(&mut link, &next).await;

    server.query::<()>(&["DEL", CHECKPOINT]).await.unwrap();
    let next = block(P1, Some(&version), 4, &[("user:2", text("late"))]);
    assert_eq!(link.write(&next).await.unwrap(), Written::Overtaken);
    server.query::<()>(&["FLUSHALL"]).await.unwrap();
    assert_eq!(link.write(&next).await.unwrap(), Written::Layout(0));
    assert_eq!(server.query::<u64>(&["DBSIZE"]).await.unwrap(), 0);
}

#[tokio::test]
async fn all_keys_of_a_block_change_at_once_for_every_reader() {
    let server = RedisServer::start().await.unwrap();
    let mut link = ready(&cache(&server.url())).await;
    let strings: Vec<String> = (0..3000).map(|id| format!("user:{id}")).collect();
    let mut version = None;
    let mut reader = server.client().await.unwrap();
    let reading = tokio::spawn({
        let keys = strings.clone();
        async move {
            let mut generations = std::collections::BTreeSet::new();
            while !generations.contains(&Some("last".to_owned())) {
                // One transaction of the reader's: all strings, a hash, and the checkpoint.
                let (values, field, position): (Vec<Option<String>>, Option<String>, Option<String>) = redis::pipe()
                    .atomic()
                    .mget(&keys)
                    .hget("order:1", "generation")
                    .hget(CHECKPOINT, "position")
                    .query_async(&mut reader)
                    .await
                    .unwrap();
                let first = &values[0];
                assert!(values.iter().all(|value| value == first));
                assert_eq!(&field, first);
                assert_eq!(position.is_some(), first.is_some());
                generations.insert(first.clone());
            }
            generations.len()
        }
    });
    for generation in (0..200).map(|n| n.to_string()).chain(["last".to_owned()]) {
        let mut next = block(P1, version.as_ref(), 1, &[("order:1", hash(&[("generation", &generation)]))]);
        next.puts.extend(strings.iter().map(|key| (key.clone(), text(&generation))));
        version = Some(done(&mut link, &next).await);
    }
    assert!(reading.await.unwrap() > 2, "the reader looked on while the blocks were written");
}

#[tokio::test]
async fn of_two_writers_on_one_version_exactly_one_writes() {
    let (server, _, first) = server_and_link().await;
    let cache = cache(&server.url());
    let mut version = first;
    for round in 0..50 {
        let blocks = [0, 1].map(|writer| block(P1, Some(&version), round, &[("user:1", text(&format!("{round} {writer}")))]));
        let (mut one, mut other) = (cache.connect().await.unwrap(), cache.connect().await.unwrap());
        let (a, b) = tokio::join!(one.write(&blocks[0]), other.write(&blocks[1]));
        let won = match (a.unwrap(), b.unwrap()) {
            (Written::Done, Written::Overtaken) => 0,
            (Written::Overtaken, Written::Done) => 1,
            both => panic!("{both:?}"),
        };
        assert_eq!(value(&mut one, "user:1").await, cached_text(&format!("{round} {won}")));
        version = blocks[won].version.clone();
    }
}

#[tokio::test]
async fn a_value_that_redis_can_never_take_is_refused_by_its_key() {
    let (server, _, version) = server_and_link().await;
    server.set("proto-max-bulk-len", "1mb").await.unwrap();
    let mut link = cache(&server.url()).connect().await.unwrap();
    let value = |bytes| Put::Text(vec![b'x'; bytes], rowcast::mapping::Terms::default());
    let refused = link.write(&block(P1, Some(&version), 2, &[("user:2", text("x")), ("user:3", value((1 << 20) + 1))])).await.unwrap();
    assert!(
        matches!(&refused, Written::Refused { key, reason } if key == "user:3" && reason.contains("proto-max-bulk-len")),
        "{refused:?}"
    );
    assert!(stands_at(&server, &version).await);
    done(&mut link, &block(P1, Some(&version), 2, &[("user:3", value(1 << 20))])).await;
}

#[tokio::test]
async fn a_cluster_is_refused_with_the_remedy() {
    let server = RedisServer::start_with(&["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"]).await.unwrap();
    // This node has the slot of rowcast's own keys, and no other.
    let slot: u64 = server.query(&["CLUSTER", "KEYSLOT", LAYOUT]).await.unwrap();
    server.query::<()>(&["CLUSTER", "ADDSLOTS", &slot.to_string()]).await.unwrap();
    let up = || async { server.query::<()>(&["SET", LAYOUT, "2"]).await.ok() };
    until("the cluster to be up", DEADLINE, up).await.unwrap();
    let mut link = cache(&server.url()).connect().await.unwrap();
    fatal(link.write(&block(P1, None, 1, &[("user:1", text("x"))])).await, &["not in cluster mode"]);
    assert_eq!(link.load(P1).await.unwrap(), None);
}

#[tokio::test]
async fn tls_on_a_port_without_it_is_an_error_and_no_more() {
    let server = RedisServer::start().await.unwrap();
    let mut impatient = settings(&server.url().replace("redis://", "rediss://"));
    impatient.connect_timeout = Duration::from_secs(1);
    lost(RedisCache::new(impatient).connect().await.map(drop), "127.0.0.1");
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_lost_after_the_time_out() {
    let server = RedisServer::start().await.unwrap();
    server.pause().unwrap();
    let mut impatient = settings(&server.url());
    impatient.connect_timeout = Duration::from_millis(200);
    impatient.response_timeout = Duration::from_millis(200);
    lost(RedisCache::new(impatient).connect().await.map(drop), "127.0.0.1");
    server.resume().unwrap();
}

#[tokio::test]
async fn another_database_of_the_server_is_another_cache() {
    let (server, _, _) = server_and_link().await;
    let url = server.url().replace("/0", "/3");
    let mut link = cache(&url).connect().await.unwrap();
    assert_eq!(link.layout().await.unwrap(), None);
    fatal(cache(&server.url().replace("/0", "/99")).connect().await.map(drop), &["number of a database"]);
}

/// Takes over while, after the reading and before the script, another consumer writes `next`.
async fn take_over_beside(next: Block, server: &RedisServer, link: &mut RedisLink) -> bool {
    let mut next = Some(next);
    let url = server.url();
    let mut meddle = || -> Run {
        if let Some(next) = next.take() {
            let cache = cache(&url);
            let write = async { done(&mut cache.connect().await.unwrap(), &next).await };
            std::thread::scope(|threads| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                threads.spawn(move || runtime.block_on(write)).join().unwrap();
            });
        }
        fresh()
    };
    link.take_over(Some(2), 3, &mut meddle).await.unwrap()
}

#[tokio::test]
async fn busy_partitions_do_not_hold_up_another_layout_which_begins_where_they_are() {
    let (server, mut link, version) = server_and_link().await;
    let mut far = block(P1, Some(&version), 2, &[]);
    // A second part of more than eight digits.
    far.checkpoint.position = Position(2, 0x1_0000_0000);
    assert!(take_over_beside(far, &server, &mut link).await);
    assert_eq!(link.load(Partition { number: 3, of: 3 }).await.unwrap().unwrap().checkpoint.position, Position(2, 0x1_0000_0000));
}

#[tokio::test]
async fn taking_over_is_refused_where_a_mapping_changed_meanwhile_or_a_checkpoint_came() {
    let (server, mut link, version) = server_and_link().await;
    let mut changed = block(P1, Some(&version), 2, &[]);
    changed.checkpoint.mappings.insert("users".into(), "11111111 json u:{id:integer}".parse().unwrap());
    let changed = (changed.checkpoint.clone(), changed);
    assert!(!take_over_beside(changed.1, &server, &mut link).await);
    assert_eq!(link.layout().await.unwrap(), Some(2));
    assert_eq!(link.load(P1).await.unwrap().unwrap().checkpoint, changed.0);
    assert_eq!(link.load(P2).await.unwrap(), None);
    assert!(!take_over_beside(block(P2, None, 9, &[]), &server, &mut link).await);
    assert_eq!(link.layout().await.unwrap(), Some(2));
}
