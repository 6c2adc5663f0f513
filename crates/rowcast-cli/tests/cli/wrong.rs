//! Wrong use, and servers that are not there: each with its exact words.

use super::*;

/// A database that is installed, and servers that nobody runs. Returns their ports.
pub fn without_servers() -> (TempDir, [u16; 2]) {
    let ports = [free_port().unwrap(), free_port().unwrap()];
    (with_servers_at(ports), ports)
}

/// A database that is installed, and servers at these ports.
pub fn with_servers_at([rabbit, redis]: [u16; 2]) -> TempDir {
    let folder = shop();
    let config = MEMORY.replacen("memory:", &format!("amqp://ada:hunter2@127.0.0.1:{rabbit}"), 1).replacen(
        "memory:",
        &format!("redis://:hunter2@127.0.0.1:{redis}"),
        1,
    );
    std::fs::write(folder.path().join("rowcast.toml"), config).unwrap();
    assert_eq!(rowcast(folder.path(), &["install"]).code, Some(0));
    folder
}

/// What a command says, with the ports masked.
pub fn masked(text: &str, [rabbit, redis]: [u16; 2]) -> String {
    assert!(!text.contains("hunter2"), "{text}");
    text.replace(&rabbit.to_string(), "RABBIT").replace(&redis.to_string(), "REDIS")
}

#[test]
fn an_unknown_table_is_named_with_the_near_one() {
    let (folder, _) = without_servers();
    for arguments in [&["get", "user", "1"][..], &["snapshot", "--table", "user"], &["tail", "--table", "user"]] {
        let said = rowcast(folder.path(), arguments);
        assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""));
        insta::allow_duplicates! {
            insta::assert_snapshot!(said.stderr, @"error: the table user is not in the configuration; did you mean users?");
        }
    }
    let said = rowcast(folder.path(), &["get", "orders", "1"]);
    insta::assert_snapshot!(said.stderr, @"error: the table orders is not in the configuration; these are: users");
}

#[test]
fn a_refused_connection_is_told_without_a_password() {
    let (folder, ports) = without_servers();
    let mut said = Vec::new();
    for arguments in [&["get", "users", "1"][..], &["snapshot"], &["tail"]] {
        let one = rowcast(folder.path(), arguments);
        assert_eq!((one.code, one.stdout.as_str()), (Some(1), ""));
        said.push(masked(&one.stderr, ports));
    }
    insta::assert_snapshot!(said.concat(), @r"
    error: Redis at 127.0.0.1:REDIS: cannot connect: Connection refused (os error 111)
    error: Redis at 127.0.0.1:REDIS: cannot connect: Connection refused (os error 111)
    error: connecting to RabbitMQ at 127.0.0.1:RABBIT failed: Connection refused (os error 111)
    ");
    let check = rowcast(folder.path(), &["check"]);
    assert_eq!((check.code, check.stderr.as_str()), (Some(1), ""));
    insta::assert_snapshot!(masked(&check.stdout, ports), @r"
    pipeline shop, rowcast.toml

    source  sqlite:shop.db
      good

    broker  127.0.0.1:RABBIT
      stops   connecting to RabbitMQ at 127.0.0.1:RABBIT failed: Connection refused (os error 111)
              → start the broker, or correct the `url` in [broker]

    cache   127.0.0.1:REDIS
      stops   Redis at 127.0.0.1:REDIS: cannot connect: Connection refused (os error 111)
              → start the server, or correct the `url` in [cache]

    2 findings stop the pipeline
    ");
}

#[test]
fn completions_and_manual_come_from_the_arguments() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let said = rowcast(folder.path(), &["completions", shell]);
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
        assert!(["snapshot", "dry-run", "log-format"].iter().all(|word| said.stdout.contains(word)), "{shell}: {}", said.stdout);
    }
    let said = rowcast(folder.path(), &["man"]);
    assert!(
        said.stdout.starts_with(".ie") && said.stdout.contains(".TH rowcast 1") && said.stdout.contains("rowcast\\-snapshot"),
        "{}",
        said.stdout
    );
    let said = rowcast(folder.path(), &["man", "check"]);
    assert!(said.stdout.contains(".TH rowcast-check 1") && said.stdout.contains("may\\-evict"), "{}", said.stdout);
    let said = rowcast(folder.path(), &["man", "snapshto"]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(2), "error: there is no command snapshto; did you mean snapshot?\n"));
}

#[test]
fn init_gives_oddly_named_tables_keys_that_cannot_meet() {
    let folder = tempfile::tempdir().unwrap();
    let db = Connection::open(folder.path().join("shop.db")).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode = wal;
         CREATE TABLE \"a b\"(id INTEGER PRIMARY KEY);
         CREATE TABLE \"a-b\"(id INTEGER PRIMARY KEY);
         CREATE TABLE \"a?b\"(id INTEGER PRIMARY KEY);
         CREATE TABLE rowcast(id INTEGER PRIMARY KEY, total AS (id * 2));
         CREATE TABLE \"x\ny\"(k BLOB NOT NULL PRIMARY KEY, mail TEXT NOT NULL UNIQUE) WITHOUT ROWID;
         CREATE VIEW v AS SELECT * FROM rowcast;",
    )
    .unwrap();
    let said = rowcast(folder.path(), &["init", "sqlite:shop.db"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let path = folder.path().join("rowcast.toml");
    let written = std::fs::read_to_string(&path).unwrap();
    let (_, tables) = written.split_once("\n[[table]]").unwrap();
    insta::assert_snapshot!(tables, @r#"
    name = "a b"
    # The key is made of the primary key, id. A key cannot begin with the table's name.
    key = "a-b-2:{id}"                # the Redis key of a row
    # value = "hash"                  # a hash with a field a column; else "json", one object in a string
    # columns = ["id"]                # what is cached, in this order; else all
    # where = "deleted_at IS NULL"    # an SQL expression; rows that do not match are absent from the cache
    # ttl = "1h"                      # how long a row stands after it was written last; else for good
    # on_change = "evict"             # or "refresh", where the application fills keys itself; else "write"

    [[table]]
    name = "a-b"
    # The key is the table's name and its primary key, id, by which its rows are told apart.
    # key = "a-b:{id}"                # the Redis key of a row
    # value = "hash"                  # a hash with a field a column; else "json", one object in a string
    # columns = ["id"]                # what is cached, in this order; else all
    # where = "deleted_at IS NULL"    # an SQL expression; rows that do not match are absent from the cache
    # ttl = "1h"                      # how long a row stands after it was written last; else for good
    # on_change = "evict"             # or "refresh", where the application fills keys itself; else "write"

    [[table]]
    name = "a?b"
    # The key is made of the primary key, id. A key cannot begin with the table's name.
    key = "a-b-3:{id}"                # the Redis key of a row
    # value = "hash"                  # a hash with a field a column; else "json", one object in a string
    # columns = ["id"]                # what is cached, in this order; else all
    # where = "deleted_at IS NULL"    # an SQL expression; rows that do not match are absent from the cache
    # ttl = "1h"                      # how long a row stands after it was written last; else for good
    # on_change = "evict"             # or "refresh", where the application fills keys itself; else "write"

    [[table]]
    name = "rowcast"
    # The key is made of the primary key, id. A key cannot begin with the table's name.
    key = "rowcast-2:{id}"            # the Redis key of a row
    # value = "hash"                  # a hash with a field a column; else "json", one object in a string
    # columns = ["id", "total"]       # what is cached, in this order; else all
    # where = "deleted_at IS NULL"    # an SQL expression; rows that do not match are absent from the cache
    # ttl = "1h"                      # how long a row stands after it was written last; else for good
    # on_change = "evict"             # or "refresh", where the application fills keys itself; else "write"

    [[table]]
    name = "x\ny"
    # The key is made of the primary key, k. A key cannot begin with the table's name.
    # In it k is written in hexadecimal digits; only bytes can stand there.
    # mail is unique too, so key = "x-y:{mail}" would do.
    key = "x-y:{k}"                   # the Redis key of a row
    # value = "hash"                  # a hash with a field a column; else "json", one object in a string
    # columns = ["k", "mail"]         # what is cached, in this order; else all
    # where = "deleted_at IS NULL"    # an SQL expression; rows that do not match are absent from the cache
    # ttl = "1h"                      # how long a row stands after it was written last; else for good
    # on_change = "evict"             # or "refresh", where the application fills keys itself; else "write"

    # v cannot be cached: it is a view, which has no rows of its own; map the tables that it reads
    "#);
    std::fs::write(&path, written.replace("amqp://localhost", "memory:").replace("redis://localhost", "memory:")).unwrap();
    assert_eq!(rowcast(folder.path(), &["install"]).code, Some(0));
    let said = rowcast(folder.path(), &["check"]);
    assert_eq!(said.code, Some(0), "{}", said.stdout);
}
