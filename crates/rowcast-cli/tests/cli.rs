//! Whole sessions with the built binary.

#[path = "cli/check.rs"]
mod check;
#[path = "cli/interrupted.rs"]
mod interrupted;
#[path = "cli/wrong.rs"]
mod wrong;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rowcast_testkit::process::{Process, free_port};
use rowcast_testkit::wait::until_blocking;
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_rowcast");

/// On two busy cores everything takes longer.
const DEADLINE: Duration = Duration::from_secs(120);

/// What a command has said and done.
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn rowcast(folder: &Path, arguments: &[&str]) -> Said {
    let output: Output = Command::new(BINARY).args(arguments).current_dir(folder).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A folder with a database in it.
fn shop() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let db = Connection::open(folder.path().join("shop.db")).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode = wal;
         CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT);
         CREATE TABLE \"line items\"(\"order\" INTEGER, line INTEGER, sku TEXT, PRIMARY KEY(\"order\", line)) WITHOUT ROWID;
         CREATE TABLE notes(text TEXT);
         INSERT INTO users(name) VALUES('Ada'), ('Grace');",
    )
    .unwrap();
    folder
}

fn traces(folder: &Path) -> Vec<String> {
    let db = Connection::open(folder.join("shop.db")).unwrap();
    let mut statement = db.prepare("SELECT name FROM sqlite_schema WHERE name LIKE '%rowcast%' ORDER BY name").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

const MEMORY: &str = "\
[pipeline]
name = \"shop\"
[source]
url = \"sqlite:shop.db\"
[broker]
url = \"memory:\"
[cache]
url = \"memory:\"
[[table]]
name = \"users\"
key = \"user:{id}\"
";

#[test]
fn the_demo_ends_without_differences_and_its_summary_stands_alone() {
    let folder = tempfile::tempdir().unwrap();
    let said = rowcast(folder.path(), &["demo", "--rows", "1000", "--json"]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{}", said.stdout);
    let Value::Object(summary) = serde_json::from_str(&said.stdout).unwrap() else { panic!("{}", said.stdout) };
    let keys: BTreeSet<&str> = summary.keys().map(String::as_str).collect();
    let expected = ["rows", "changes", "changes_per_s", "lag_ms", "missing", "stale", "orphans", "wrong_type"];
    assert_eq!(keys, BTreeSet::from(expected));
    assert_eq!(
        summary["lag_ms"].as_object().unwrap().keys().map(String::as_str).collect::<BTreeSet<_>>(),
        BTreeSet::from(["p50", "p99", "max"])
    );
    assert!(["missing", "stale", "orphans", "wrong_type"].iter().all(|class| summary[*class] == 0), "{}", said.stdout);
    assert_eq!(summary["changes"], 1000);
    assert!(summary["rows"].as_u64().unwrap() > 300 && summary["changes_per_s"].as_u64().unwrap() > 0, "{}", said.stdout);
}

#[test]
fn the_demo_tells_each_step_in_plain_text_where_nobody_looks() {
    let folder = tempfile::tempdir().unwrap();
    let said = rowcast(folder.path(), &["demo", "--rows", "50", "--partitions", "1"]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{}", said.stdout);
    assert!(!said.stdout.contains('\x1b'), "{}", said.stdout);
    let mut rest = said.stdout.as_str();
    for part in [
        "Insert a user",
        "id 1, name John Doe, email john@example.com",
        r#""key":"user:1","#,
        r#""row":{"id":1,"name":"John Doe","email":"john@example.com"},"#,
        "user:1 was  (nil)",
        r#"user:1 is   {"id":1,"name":"John Doe","email":"john@example.com"}"#,
        "from commit to cache",
        "Change the name",
        r#""op":"update""#,
        r#"user:1 was  {"id":1,"name":"John Doe","email":"john@example.com"}"#,
        r#"user:1 is   {"id":1,"name":"John Q. Doe","email":"john@example.com"}"#,
        "Delete the user",
        r#""op":"delete""#,
        "user:1 is   (nil)",
        "A load of 50",
        "differences  0",
        "What to try next",
    ] {
        let Some((_, after)) = rest.split_once(part) else { panic!("{part} is missing in {rest}") };
        rest = after;
    }
}

#[test]
fn a_database_is_initialised_installed_followed_and_left_without_a_trace() {
    let folder = shop();
    let init = rowcast(folder.path(), &["init", "sqlite:shop.db"]);
    assert_eq!(init.code, Some(0), "{}", init.stderr);
    insta::assert_snapshot!(init.stderr, @r#"
    wrote rowcast.toml with 2 tables of shop.db
    left out notes: it has no primary key, so its rows cannot be told apart; give it one
    next: look through rowcast.toml, then `rowcast install`, `rowcast check` and `rowcast run`
    "#);
    let path = folder.path().join("rowcast.toml");
    let written = std::fs::read_to_string(&path).unwrap();
    insta::assert_snapshot!(written, @r#"
    # rowcast keeps a Redis cache in step with this database through RabbitMQ.
    #
    # In every text ${NAME} stands for an environment variable, and "file:/run/secrets/x" for what is in that file.
    # A line that begins with # shows a setting that could be made. `rowcast check` looks through all of it.

    [pipeline]
    name = "shop"                     # becomes part of the names of queues and of rowcast's own keys

    [source]
    url = "sqlite:shop.db"            # a relative path counts from the folder of this file
    # capture = "hooks"               # where the application records its changes through rowcast-sea-orm; else by triggers

    [broker]
    url = "amqp://localhost"          # amqp://user:password@host:5672/vhost, amqps:// for TLS; "memory:" for a first try
    # partitions = 4                  # so many consumers can share the work
    # queue = "classic"               # else "quorum", which a cluster replicates

    [cache]
    url = "redis://localhost"         # redis://user:password@host:6379/0, rediss:// for TLS; "memory:" for a first try

    [[table]]
    name = "line items"
    # The key is made of the primary key, order, line. A key cannot begin with the table's name.
    key = "line-items:{order}:{line}" # the Redis key of a row
    # value = "hash"                  # a hash with a field a column; else "json", one object in a string
    # columns = ["order", "line", "sku"] # what is cached, in this order; else all
    # where = "deleted_at IS NULL"    # an SQL expression; rows that do not match are absent from the cache
    # ttl = "1h"                      # how long a row stands after it was written last; else for good
    # on_change = "evict"             # or "refresh", where the application fills keys itself; else "write"

    [[table]]
    name = "users"
    # The key is the table's name and its primary key, id, by which its rows are told apart.
    # key = "users:{id}"              # the Redis key of a row
    # value = "hash"                  # a hash with a field a column; else "json", one object in a string
    # columns = ["id", "name", "email"] # what is cached, in this order; else all
    # where = "deleted_at IS NULL"    # an SQL expression; rows that do not match are absent from the cache
    # ttl = "1h"                      # how long a row stands after it was written last; else for good
    # on_change = "evict"             # or "refresh", where the application fills keys itself; else "write"

    # notes cannot be cached: it has no primary key, so its rows cannot be told apart; give it one
    "#);
    std::fs::write(&path, written.replace("amqp://localhost", "memory:").replace("redis://localhost", "memory:")).unwrap();

    let plan = rowcast(folder.path(), &["install", "--dry-run"]);
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
    assert!(plan.stdout.contains("CREATE TRIGGER"), "{}", plan.stdout);
    assert_eq!(traces(folder.path()), [""; 0]);
    let install = rowcast(folder.path(), &["install"]);
    assert_eq!(install.code, Some(0), "{}", install.stderr);
    assert!(traces(folder.path()).len() > 3);

    follow(folder.path());

    let uninstall = rowcast(folder.path(), &["uninstall"]);
    assert_eq!(uninstall.code, Some(0), "{}", uninstall.stderr);
    assert_eq!(traces(folder.path()), [""; 0]);
    let users: i64 =
        Connection::open(folder.path().join("shop.db")).unwrap().query_row("SELECT count(*) FROM users", [], |row| row.get(0)).unwrap();
    assert_eq!(users, 3);
}

/// Runs the pipeline until it has applied what was there and what is written meanwhile, then stops it with Ctrl-C.
fn follow(folder: &Path) {
    let log = folder.join("run.log");
    let arguments = ["-v", "run"].map(OsStr::new);
    let mut running = Process::start(Path::new(BINARY), &arguments, &[], folder, &log).unwrap();
    let says = |text: &'static str| {
        until_blocking(text, DEADLINE, || std::fs::read_to_string(&log).unwrap().contains(text).then_some(())).unwrap();
    };
    // A row that is written before every partition has read the table may come to it as an old one, with or without the new.
    until_blocking("every partition to have read the users", DEADLINE, || {
        let log = std::fs::read_to_string(&log).unwrap();
        let complete = log.lines().filter(|line| line.contains("resync complete:") && line.contains("users"));
        let partitions: BTreeSet<&str> = complete.filter_map(|line| line.split_once("partition=")).map(|(_, name)| name).collect();
        (partitions.len() == 4).then_some(())
    })
    .unwrap();
    let db = Connection::open(folder.join("shop.db")).unwrap();
    db.execute("INSERT INTO users(name) VALUES('Barbara')", []).unwrap();
    says(r#"op=insert table="users" key="users:3""#);
    running.signal(Signal::INT).unwrap();
    let status = until_blocking("the end", DEADLINE, || running.ended().transpose()).unwrap().unwrap();
    let said = std::fs::read_to_string(&log).unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("stopped; published 1 change and wrote "), "{said}");
}

#[test]
fn init_overwrites_nothing_unless_it_is_told_to() {
    let folder = shop();
    std::fs::write(folder.path().join("rowcast.toml"), "mine").unwrap();
    let said = rowcast(folder.path(), &["init", "sqlite:shop.db"]);
    assert_eq!(said.code, Some(2));
    insta::assert_snapshot!(said.stderr, @"error: rowcast.toml is already there; --force overwrites it, --config names another file");
    assert_eq!(std::fs::read_to_string(folder.path().join("rowcast.toml")).unwrap(), "mine");
    assert_eq!(rowcast(folder.path(), &["init", "sqlite:shop.db", "--force"]).code, Some(0));
    assert!(std::fs::read_to_string(folder.path().join("rowcast.toml")).unwrap().contains("[[table]]"));
}

#[test]
fn a_wrong_configuration_is_told_with_its_place() {
    let folder = shop();
    std::fs::write(folder.path().join("rowcast.toml"), MEMORY.replace("url = \"memory:\"\n[cache]", "ulr = \"memory:\"\n[cache]")).unwrap();
    let said = rowcast(folder.path(), &["run"]);
    assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""));
    insta::assert_snapshot!(said.stderr, @r#"
    error: rowcast.toml:5:2: [broker] has no `url`; write for instance url = "amqp://localhost"
      |
    5 | [broker]
      |  ^^^^^^

    error: rowcast.toml:6:1: unknown key `ulr` in [broker]; did you mean `url`?
      |
    6 | ulr = …
      | ^^^
    "#);
    let said = rowcast(folder.path(), &["run", "--config", "other.toml"]);
    assert_eq!(said.code, Some(2));
    insta::assert_snapshot!(said.stderr, @"error: there is no configuration file other.toml; write one with `rowcast init sqlite:app.db`, or name yours with --config");
}

#[test]
fn parts_in_memory_are_refused_where_two_processes_would_need_them() {
    let folder = shop();
    std::fs::write(folder.path().join("rowcast.toml"), MEMORY).unwrap();
    for command in ["publish", "consume", "status"] {
        let said = rowcast(folder.path(), &[command]);
        assert_eq!(said.code, Some(2), "{}", said.stderr);
        assert!(said.stderr.contains("broker and cache are \"memory:\"") && said.stderr.contains("rowcast run"), "{}", said.stderr);
    }
}

#[test]
fn a_table_that_is_not_there_is_named_with_the_near_name() {
    let folder = shop();
    std::fs::write(folder.path().join("rowcast.toml"), MEMORY.replace("name = \"users\"", "name = \"user\"")).unwrap();
    let said = rowcast(folder.path(), &["install"]);
    assert_eq!(said.code, Some(2));
    insta::assert_snapshot!(said.stderr, @r#"
    error: rowcast.toml:10:8: there is no table user in the database; did you mean users?
       |
    10 | name = "user"
       |        ^^^^^^
    "#);
}

#[test]
fn a_run_finds_out_that_nothing_is_installed_before_it_reaches_for_a_server() {
    let folder = shop();
    std::fs::write(folder.path().join("rowcast.toml"), MEMORY).unwrap();
    let said = rowcast(folder.path(), &["run"]);
    assert_eq!(said.code, Some(1));
    assert_eq!(said.stderr, "error: shop.db has no changelog yet; run `rowcast install`\n");
}

#[test]
fn status_shows_what_it_can_reach_and_says_what_it_cannot() {
    let folder = shop();
    let (rabbit, redis) = (free_port().unwrap(), free_port().unwrap());
    let config = MEMORY.replacen("memory:", &format!("amqp://ada:hunter2@127.0.0.1:{rabbit}"), 1).replacen(
        "memory:",
        &format!("redis://:hunter2@127.0.0.1:{redis}"),
        1,
    );
    std::fs::write(folder.path().join("rowcast.toml"), config).unwrap();
    assert_eq!(rowcast(folder.path(), &["install"]).code, Some(0));
    Connection::open(folder.path().join("shop.db")).unwrap().execute("DELETE FROM users", []).unwrap();

    let said = rowcast(folder.path(), &["status", "--json"]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(1), ""));
    assert!(!said.stdout.contains("hunter2"));
    let status: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(status["source"]["waiting"], 2);
    assert!(status["broker"]["error"].as_str().unwrap().contains(&rabbit.to_string()));
    assert!(status["cache"]["error"].as_str().unwrap().contains(&redis.to_string()));

    let said = rowcast(folder.path(), &["status"]);
    assert_eq!(said.code, Some(1));
    assert!(said.stdout.contains("2 changelog rows are still kept for delivery"), "{}", said.stdout);
}

#[test]
fn the_help_is_what_it_should_be() {
    let folder = tempfile::tempdir().unwrap();
    let said = rowcast(folder.path(), &["-h"]);
    assert_eq!(said.code, Some(0));
    insta::assert_snapshot!(said.stdout, @r"
    Keeps a Redis cache in step with a SQL database through RabbitMQ: nothing lost, nothing stale

    Usage: rowcast [OPTIONS] <COMMAND>

    Commands:
      demo         Show all of it at work, without servers and without a configuration
      init         Write a configuration for a database
      check        Find out what would stop or harm the pipeline, and what mends it
      install      Put changelog and triggers into the database
      uninstall    Take changelog and triggers out of the database again
      run          Publish and consume in one process
      publish      Read changes from the database and publish them to the broker
      consume      Receive changes from the broker and write them to the cache
      snapshot     Have tables read again from the database, and follow that
      status       Show how far the pipeline is, and what waits where
      tail         Watch the changes go by, without disturbing the consumers
      get          Show one row in the database and in the cache, side by side
      completions  Print a script that completes commands and options in a shell
      man          Print a manual page
      help         Print this message or the help of the given subcommand(s)

    Options:
      -h, --help     Print help (see more with '--help')
      -V, --version  Print version

    Global options:
          --config <FILE>        The configuration file [default: rowcast.toml]
      -v, --verbose...           Show each change as it is applied (-vv: also what the libraries say)
          --log-format <FORMAT>  The form of the log on stderr [default: human] [possible values: human,
                                 json]

    Begin with `rowcast demo`. For a database of your own: `rowcast init sqlite:app.db`, then `rowcast
    install`, `rowcast check` and `rowcast run`.

    Exit status: 0 done, 1 failed, 2 wrong use or configuration, 3 the comparison found differences.
    ");
    let said = rowcast(folder.path(), &["demo", "-h"]);
    assert_eq!(said.code, Some(0));
    insta::assert_snapshot!(said.stdout, @r#"
    Show all of it at work, without servers and without a configuration

    Usage: rowcast demo [OPTIONS]

    Options:
          --rows <N>        How many changes the load makes [default: 100000]
          --json            Print nothing but the summary, as one JSON object
          --broker <URL>    Use this RabbitMQ (amqp://user:password@host) and not a broker in this
                            process
          --cache <URL>     Use this Redis (redis://user:password@host) and not a cache in this process
          --partitions <N>  How many partitions the pipeline has [default: 4]
      -h, --help            Print help (see more with '--help')

    Global options:
          --config <FILE>        The configuration file [default: rowcast.toml]
      -v, --verbose...           Show each change as it is applied (-vv: also what the libraries say)
          --log-format <FORMAT>  The form of the log on stderr [default: human] [possible values: human,
                                 json]
    "#);
}
