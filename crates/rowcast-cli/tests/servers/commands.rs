//! The commands that look and ask, on a pipeline that runs.

use super::*;

/// What a command has said and done.
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

pub fn said(folder: &Path, arguments: &[&str]) -> Said {
    let output = rowcast(folder, arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn start_with(folder: &Path, arguments: &[&str], log: &str) -> Process {
    let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
    Process::start(Path::new(BINARY), &arguments, &[], folder, &folder.join(log)).unwrap()
}

/// Waits until a command's output has this in it.
async fn says(folder: &Path, log: &str, text: &str) -> String {
    let read = async || std::fs::read_to_string(folder.join(log)).ok().filter(|read| read.contains(text));
    until(text, DEADLINE, read).await.unwrap_or_else(|error| panic!("{error}: {:?}", std::fs::read_to_string(folder.join(log))))
}

/// Ctrl-C, and the exit code.
async fn interrupted(mut process: Process) -> Option<i32> {
    process.signal(Signal::INT).unwrap();
    until("the process to end", DEADLINE, || std::future::ready(process.ended().transpose())).await.unwrap().unwrap().code()
}

fn configure(folder: &Path, rabbit: &str, redis: &str) {
    let text = format!(
        "[pipeline]\nname = \"shop\"\n[source]\nurl = \"sqlite:shop.db\"\n[broker]\nurl = \"{rabbit}\"\npartitions = 2\n[cache]\n\
         url = \"{redis}\"\n[[table]]\nname = \"users\"\nkey = \"user:{{id}}\"\n[[table]]\nname = \"lines\"\nvalue = \"hash\"\n"
    );
    std::fs::write(folder.join("rowcast.toml"), text).unwrap();
}

fn database(folder: &Path) -> Connection {
    let db = Connection::open(folder.join("shop.db")).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode = wal;
         CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT);
         CREATE TABLE lines(\"order\" INTEGER, line INTEGER, sku TEXT, PRIMARY KEY(\"order\", line)) WITHOUT ROWID;
         INSERT INTO users VALUES(1, 'Ada'), (2, 'Grace');
         INSERT INTO lines VALUES(7, 1, 'x');",
    )
    .unwrap();
    db
}

/// Without what differs from run to run.
fn masked(text: &str) -> String {
    let masked = text.lines().map(|line| match line.split_once("  ") {
        Some(("checkpoint", _)) => "checkpoint  …".to_owned(),
        _ => line.to_owned(),
    });
    masked.map(|line| line + "\n").collect()
}

#[tokio::test]
async fn rows_are_looked_up_changes_watched_and_tables_read_again() {
    let (rabbit, redis) = (RabbitServer::start().unwrap(), RedisServer::start().await.unwrap());
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let db = database(folder);
    configure(folder, &rabbit.url(), &redis.url());
    assert_eq!(said(folder, &["install"]).code, Some(0));

    // Nobody is there yet.
    let tail = said(folder, &["tail"]);
    assert_eq!((tail.code, tail.stdout.as_str()), (Some(1), ""));
    insta::assert_snapshot!(tail.stderr, @"error: there is no exchange rowcast.shop, so the pipeline shop has never run on this broker; start it with `rowcast run`");
    let get = said(folder, &["get", "users", "1"]);
    assert_eq!(get.code, Some(1));
    insta::assert_snapshot!(get.stdout, @r#"
    table       users {"id":1}
    database    {"id":1,"name":"Ada"}
    cache       (nil)
    key         user:1
    partition   2of2, queue rowcast.shop.2of2
    checkpoint  none
    lag         unknown: the cache does not follow this history of the database yet
    agree       not yet: the cache has not come so far; `rowcast status` shows what waits where
    "#);
    let snapshot = said(folder, &["snapshot", "--table", "users"]);
    assert_eq!((snapshot.code, snapshot.stdout.as_str()), (Some(1), ""));
    insta::assert_snapshot!(snapshot.stderr, @r"
    requested a resync of users
    error: no publisher of the pipeline shop is connected; the request waits in rowcast.shop.control; start `rowcast run` or `rowcast publish`
    ");

    let publisher = start(folder, "publish", "publish.log");
    let snapshot = until("the publisher to be missed no more", DEADLINE, async || {
        let snapshot = said(folder, &["snapshot", "--table", "users"]);
        snapshot.stderr.contains("no consumer").then_some(snapshot)
    });
    let snapshot = snapshot.await.unwrap();
    assert_eq!(snapshot.code, Some(1));
    insta::assert_snapshot!(snapshot.stderr, @r"
    requested a resync of users
    error: no consumer is connected to rowcast.shop.1of2; what the publisher sends waits there; start `rowcast run` or `rowcast consume`
    ");
    let waiting = start_with(folder, &["snapshot"], "snapshot.log");
    says(folder, "snapshot.log", "requested").await;
    assert_eq!(interrupted(waiting).await, Some(130));
    let log = says(folder, "snapshot.log", "interrupted").await;
    // Behind it the test's own guardian may have said a word.
    let log: Vec<&str> = log.lines().take(2).collect();
    insta::assert_snapshot!(log.join("\n"), @r"
    requested a resync of users, lines
    interrupted: the resync goes on without this command; `rowcast status` shows how far it is
    ");

    let consumer = start(folder, "consume", "consume.log");
    // It is missed only by who finds nobody there for some seconds.
    let there = until("the consumer", DEADLINE, async || {
        let status = status(folder);
        let queues = status["broker"]["queues"].as_array().unwrap();
        let of = |end: &str| queues.iter().find(|queue| queue["name"].as_str().unwrap().ends_with(end)).unwrap();
        (of("1of2")["consumers"] == 1 && of("2of2")["consumers"] == 1).then_some(())
    });
    there.await.unwrap();
    let snapshot = said(folder, &["snapshot", "--json"]);
    assert_eq!(snapshot.code, Some(0), "{}", snapshot.stderr);
    let summary: Value = serde_json::from_str(&snapshot.stdout).unwrap();
    assert_eq!((&summary["tables"], &summary["rows"]), (&serde_json::json!(["users", "lines"]), &3.into()));

    // Row and value agree, whatever is typed.
    let get = said(folder, &["get", "users", "1"]);
    assert_eq!((get.code, get.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(masked(&get.stdout), @r#"
    table       users {"id":1}
    database    {"id":1,"name":"Ada"}
    cache       {"id":1,"name":"Ada"}
    key         user:1
    partition   2of2, queue rowcast.shop.2of2, 0 batches in it
    checkpoint  …
    lag         none
    agree       yes
    "#);
    let get = said(folder, &["get", "lines", "line=1", "order=7", "--json"]);
    assert_eq!(get.code, Some(0), "{}{}", get.stdout, get.stderr);
    let shown: Value = serde_json::from_str(&get.stdout).unwrap();
    assert_eq!((&shown["agree"], &shown["key"], &shown["behind"]), (&true.into(), &"lines:7:1".into(), &0.into()));
    assert_eq!(said(folder, &["get", "users", "3"]).code, Some(0), "neither row nor key");
    redis.query::<()>(&["SET", "user:3", "theirs"]).await.unwrap();
    let get = said(folder, &["get", "users", "3"]);
    assert_eq!(get.code, Some(3), "{}{}", get.stdout, get.stderr);
    let words = "agree       no: orphan; it was not written by rowcast, so a resync leaves it alone: `redis-cli DEL user:3` removes it";
    assert!(get.stdout.lines().any(|line| line == words), "{}", get.stdout);
    redis.query::<()>(&["DEL", "user:3"]).await.unwrap();
    let get = said(folder, &["get", "users", "seven"]);
    assert_eq!(get.code, Some(2));
    insta::assert_snapshot!(get.stderr, @r#"error: id holds whole numbers, and "seven" is none; a row of users is found by one value, that of id"#);

    // A value that somebody else has put there is found, and a snapshot mends it.
    redis.query::<()>(&["SET", "user:1", "mine"]).await.unwrap();
    let get = said(folder, &["get", "users", "1"]);
    assert_eq!(get.code, Some(3));
    assert!(
        get.stdout.contains("cache       mine\n") && get.stdout.contains("no: stale; `rowcast snapshot --table users`"),
        "{}",
        get.stdout
    );
    assert_eq!(said(folder, &["snapshot", "--table", "users"]).code, Some(0));
    assert_eq!(said(folder, &["get", "users", "1"]).code, Some(0));

    // Changes as they go by.
    let tail = start_with(folder, &["tail", "--table", "users", "--key", "user:*", "--json"], "tail.log");
    says(folder, "tail.log", "looking on").await;
    db.execute_batch(
        "INSERT INTO lines VALUES(8, 1, 'y'); UPDATE users SET name = 'Ada Lovelace' WHERE id = 1; DELETE FROM users WHERE id = 2",
    )
    .unwrap();
    let seen = says(folder, "tail.log", "delete").await;
    says(folder, "tail.log", "update").await;
    assert!(!seen.contains("lines"), "{seen}");
    assert_eq!(interrupted(tail).await, Some(0));
    let lines = std::fs::read_to_string(folder.join("tail.log")).unwrap();
    let changes: Vec<Value> = lines.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect();
    let update = changes.iter().find(|change| change["op"] == "update").unwrap();
    assert_eq!((&update["key"], &update["row"]["name"], &update["pk"]["id"]), (&"user:1".into(), &"Ada Lovelace".into(), &1.into()));
    let queues = rabbit.control(&["list_queues", "name", "--no-table-headers"]).unwrap();
    assert!(!queues.contains("tail"), "{queues}");

    // Nothing of all this has disturbed anybody.
    let watch = start_with(folder, &["status", "--watch=1", "--json"], "status.log");
    let twice = until("two looks", DEADLINE, async || {
        let text = std::fs::read_to_string(folder.join("status.log")).unwrap_or_default();
        (text.matches('\n').count() >= 2).then_some(text)
    });
    let status: Value = serde_json::from_str(twice.await.unwrap().lines().nth(1).unwrap()).unwrap();
    assert_eq!(status["stops"], serde_json::json!([]));
    assert_eq!(interrupted(watch).await, Some(0));

    // A table that is gone is named by status, too.
    end(publisher).await;
    db.execute_batch("DROP TABLE lines").unwrap();
    let text = said(folder, &["status"]).stdout;
    assert!(text.contains("there is no table lines in the database") && text.contains("rowcast.toml:14:8"), "{text}");
    end(consumer).await;
}

/// The findings of a check, `part grade: message`.
fn found(folder: &Path) -> (Option<i32>, Vec<String>) {
    let check = said(folder, &["check", "--json"]);
    assert_eq!(check.stderr, "");
    assert!(!check.stdout.contains("hunter2"), "{}", check.stdout);
    let report: Value = serde_json::from_str(&check.stdout).unwrap();
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap_or_default().to_owned();
    let line = |finding: &Value| {
        let remedy = text(finding, "remedy");
        format!("{} {}: {} → {remedy}", text(finding, "part"), text(finding, "grade"), text(finding, "message"))
    };
    (check.code, report["findings"].as_array().unwrap().iter().map(line).filter(|line| !line.contains("append-only")).collect())
}

#[tokio::test]
async fn check_names_what_is_wrong_with_broker_and_cache() {
    let (rabbit, redis) = (RabbitServer::start().unwrap(), RedisServer::start().await.unwrap());
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    drop(database(folder));
    let ports = [(rabbit.port().to_string(), "RABBIT"), (redis.port().to_string(), "REDIS")];
    let check = |broker: &str, cache: &str| {
        configure(folder, broker, cache);
        let (code, found) = found(folder);
        let text = ports.iter().fold(found.join("\n"), |text, (port, name)| text.replace(port, name));
        (code, text)
    };
    let (good_broker, good_cache) = (rabbit.url(), redis.url());
    configure(folder, &good_broker, &good_cache);
    assert_eq!(said(folder, &["install"]).code, Some(0));
    assert_eq!(check(&good_broker, &good_cache), (Some(0), String::new()));
    assert_eq!(rabbit.control(&["list_queues", "name", "--no-table-headers"]).unwrap(), "", "nothing is left behind");
    assert_eq!(redis.query::<Vec<String>>(&["KEYS", "*"]).await.unwrap(), [""; 0]);

    let wrong = [
        check(&good_broker.replace("guest:guest", "guest:hunter2"), &good_cache),
        check(&good_broker.replace("%2f", "nowhere"), &good_cache),
        check(&good_cache.replace("redis://", "amqp://"), &good_cache),
        check(&good_broker, &good_broker.replace("amqp://guest:guest", "redis://").replace("%2f", "0").replace("redis://@", "redis://")),
        check(&good_broker, &good_cache.replace("redis://", "redis://:hunter2@")),
        check(&good_broker, &good_cache.replace("/0", "/99")),
    ];
    let texts: Vec<String> = wrong
        .into_iter()
        .map(|(code, text)| {
            assert_eq!(code, Some(1), "{text}");
            text
        })
        .collect();
    insta::assert_snapshot!(texts.join("\n"), @r#"
    broker stops: connecting to RabbitMQ at 127.0.0.1:RABBIT was refused: ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile → Correct the user name or password in the broker's URL, or grant the user the permissions configure, write and read on "^(rowcast\.|amq\.default).*" (rabbitmqctl set_permissions).
    broker stops: connecting to RabbitMQ at 127.0.0.1:RABBIT was refused: NOT_ALLOWED - vhost nowhere not found → Create the vhost (rabbitmqctl add_vhost) and grant the user access to it (rabbitmqctl set_permissions -p VHOST), or correct the vhost in the broker's URL.
    broker stops: what listens at 127.0.0.1:REDIS said nothing for 3 s → does the broker's URL name another server's port? (RabbitMQ listens at 5672 unless it is told otherwise)
    cache stops: what answers at 127.0.0.1:RABBIT does not speak as Redis does: does the cache's URL name another server's port? (Redis listens at 6379 unless it is told otherwise) → 
    cache stops: Redis at 127.0.0.1:REDIS: ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct? The cache's URL has a user or a password that this server does not know of → 
    cache stops: Redis at 127.0.0.1:REDIS: ERR DB index is out of range. The last part of the cache's URL is the number of a database that the server has →
    "#);

    // Permissions that do not reach.
    for user in ["some", "all"] {
        rabbit.control(&["add_user", user, "hunter2"]).unwrap();
    }
    rabbit.control(&["set_permissions", "some", "^rowcast.*", "^rowcast.*", "^rowcast.*"]).unwrap();
    rabbit.control(&["set_permissions", "all", r"^rowcast\..*", r"^(rowcast\.|amq\.default).*", r"^rowcast\..*"]).unwrap();
    redis.query::<()>(&["ACL", "SETUSER", "some", "on", ">hunter2", "~user:*", "+@all", "-@admin"]).await.unwrap();
    let (code, text) = check(&good_broker.replace("guest:guest", "some:hunter2"), &redis.url_as("some", "hunter2"));
    assert_eq!(code, Some(1));
    insta::assert_snapshot!(text, @r#"
    broker stops: publishing to the exchange "" was refused: ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused for user 'some' → Correct the user name or password in the broker's URL, or grant the user the permissions configure, write and read on "^(rowcast\.|amq\.default).*" (rabbitmqctl set_permissions).
    cache stops: Redis at 127.0.0.1:REDIS: NOPERM this user has no permissions to access one of the keys used as arguments. → send `ACL SETUSER some ~* +auth +select +type +get +set +mset +hget +hset +hgetall +exists +strlen +append +expire +pexpire +pttl +unlink +scan +evalsha +script|load`
    "#);
    // What is offered as the remedy is one.
    let (_, acl) = text.split_once("send `ACL SETUSER some ").unwrap();
    let mut all = vec!["ACL", "SETUSER", "all", "on", ">hunter2"];
    all.extend(acl.trim_end_matches('`').split(' '));
    redis.query::<()>(&all).await.unwrap();
    let (code, text) = check(&good_broker.replace("guest:guest", "all:hunter2"), &redis.url_as("all", "hunter2"));
    assert_eq!(code, Some(0), "{text}");
    insta::assert_snapshot!(text, @"cache notes: Redis at 127.0.0.1:REDIS does not permit INFO, so its version, eviction and role were not looked at → send `ACL SETUSER all +info`");

    // What exists was made otherwise; the cache evicts, and follows another layout and another database.
    let run = start(folder, "run", "run.log");
    says(folder, "run.log", "resync complete").await;
    let caught_up = until("a checkpoint", DEADLINE, async || (status(folder)["cache"]["partitions"][0]["behind"] == 0).then_some(()));
    caught_up.await.unwrap();
    let (code, text) = check(&good_broker, &good_cache);
    assert_eq!(
        (code, text.as_str()),
        (
            Some(0),
            "broker notes: a publisher of the pipeline is at work (it holds rowcast.shop.publisher); another one stands by until that ends → "
        )
    );
    end(run).await;
    redis.set("maxmemory", "100mb").await.unwrap();
    redis.set("maxmemory-policy", "allkeys-lru").await.unwrap();
    configure(folder, &good_broker, &good_cache);
    let path = folder.join("rowcast.toml");
    let text = std::fs::read_to_string(&path).unwrap().replace("partitions = 2", "partitions = 4\nqueue = \"classic\"");
    std::fs::write(&path, text).unwrap();
    std::fs::rename(folder.join("shop.db"), folder.join("old.db")).unwrap();
    drop(database(folder));
    assert_eq!(said(folder, &["install"]).code, Some(0));
    let (code, lines) = found(folder);
    assert_eq!(code, Some(1));
    let text = ports.iter().fold(lines.join("\n"), |text, (port, name)| text.replace(port, name));
    insta::assert_snapshot!(text, @r"
    broker stops: declaring the queue rowcast.shop.control failed, because it exists with other arguments: PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'rowcast.shop.control' in vhost '/': received 'classic' but current is 'quorum' (and the same of rowcast.shop.position, rowcast.shop.dead) → Either set what it is made with (the queue type) in the configuration, or stop publisher and consumers, delete it and start again: what it held is read again from the source.
    cache stops: Redis at 127.0.0.1:REDIS has maxmemory-policy allkeys-lru, under which it may evict the checkpoint: every table is then resynced, and meanwhile a key may show an older state → send `CONFIG SET maxmemory-policy noeviction` (or volatile-lru, which spares keys without a ttl), and let redis.conf say so, too; `rowcast check --may-evict` accepts it
    cache notes: 2 partitions are in force, 4 are configured; the next consumer to start puts its own number in force, and every table is resynced → write `partitions = 2` in [broker] to leave all as it is
    ");
    let evicting = said(folder, &["check", "--may-evict"]);
    assert!(evicting.stdout.contains("the cache follows another database under the name shop (sqlite:"), "{}", evicting.stdout);

    // A replica takes no writes.
    redis.set("maxmemory-policy", "noeviction").await.unwrap();
    redis.query::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await.unwrap();
    let (_, text) = check(&good_broker, &good_cache);
    assert!(text.contains("is a replica, which takes no writes → name its master in the cache's URL: 127.0.0.1:1"), "{text}");
}
