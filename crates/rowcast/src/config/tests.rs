//! Every text that a wrong configuration leads to.

use std::env::VarError;
use std::path::{Path, PathBuf};

use super::{BrokerConfig, CacheConfig, Config};
use crate::mapping::{OnChange, Shape, TableSettings};
use crate::source::SourceSettings;
use crate::source::sqlite::{Capture, SqliteSettings};

const GOOD: &str = r#"
[pipeline]
name = "shop"

[source]
url = "sqlite:shop.db"

[broker]
url = "amqp://ada:${RABBIT_PASSWORD}@rabbit/%2f"

[cache]
url = "redis://:${REDIS_PASSWORD}@redis/0"

[[table]]
name = "users"
"#;

fn environment(name: &str) -> Result<String, VarError> {
    match name {
        "RABBIT_PASSWORD" => Ok("hunter2".to_owned()),
        "REDIS_PASSWORD" => Ok("hunter3".to_owned()),
        "NAME" => Ok("shop".to_owned()),
        "WRONG" => Ok("hunter4".to_owned()),
        _ => Err(VarError::NotPresent),
    }
}

fn parse(text: &str) -> Result<Config, super::Error> {
    Config::parse(text, Path::new("conf/rowcast.toml"), &environment)
}

fn sqlite(config: &Config) -> &SqliteSettings {
    match &config.source {
        SourceSettings::Sqlite(settings) => settings,
        SourceSettings::Postgres(_) => panic!("a SQLite source"),
    }
}

/// The error of the good file with one thing changed.
fn error(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    let error = parse(&GOOD.replacen(from, to, 1)).unwrap_err().to_string();
    assert!(!error.contains("hunter"), "{error}");
    error
}

#[test]
fn the_least_that_is_needed_has_its_defaults() {
    let config = parse(GOOD).unwrap();
    assert_eq!((config.pipeline.as_str(), config.partitions), ("shop", 4));
    assert_eq!(sqlite(&config).path, PathBuf::from("conf/shop.db"));
    assert_eq!(sqlite(&config).capture, Capture::Triggers);
    let users = &config.source.tables()[0];
    assert_eq!((users.name.as_str(), &users.key, users.shape, &users.columns), ("users", &None, Shape::Json, &None));
    assert!(matches!((&config.broker, &config.cache), (BrokerConfig::Rabbit(_), CacheConfig::Redis(_))));
}

#[test]
fn a_postgres_url_makes_a_postgres_source() {
    let config = parse(&GOOD.replace("sqlite:shop.db", "postgres://ada:hunter2@db/shop")).unwrap();
    let SourceSettings::Postgres(settings) = &config.source else { panic!("a PostgreSQL source") };
    assert_eq!((settings.server.place().as_str(), settings.slot().as_str()), ("db:5432/shop", "rowcast_shop"));
    assert!(!format!("{config:?}").contains("hunter2"));
    let hooks = GOOD.replace("url = \"sqlite:shop.db\"", "url = \"postgres://ada:hunter2@db/shop\"\ncapture = \"hooks\"");
    let hooked = parse(&hooks).unwrap();
    assert!(matches!(&hooked.source, SourceSettings::Postgres(settings) if settings.capture == crate::source::postgres::Capture::Hooks));
    let triggers = hooks.replace("hooks", "triggers");
    assert!(parse(&triggers).unwrap_err().to_string().contains("PostgreSQL's own log is read, not triggers"));
}

#[test]
fn everything_can_be_said() {
    let config = parse(
        r#"
        broker = { url = "memory:", partitions = 0x10, queue = "classic" }
        cache.url = "memory:"
        pipeline.name = "${NAME}-2"
        [source]
        url = "sqlite:/var/lib/shop.db"
        capture = "hooks"
        [[table]]
        name = "users"
        key = "file:{id}"
        value = "hash"
        columns = ["id", "name"]
        where = "active = 1 -- only these"
        ttl = "90s"
        on_change = "refresh"
        [[table]]
        name = "orders"
        "#,
    )
    .unwrap();
    assert_eq!((config.pipeline.as_str(), config.partitions), ("shop-2", 16));
    assert_eq!((sqlite(&config).path.as_path(), sqlite(&config).capture), (Path::new("/var/lib/shop.db"), Capture::Hooks));
    assert!(matches!((&config.broker, &config.cache), (BrokerConfig::Memory, CacheConfig::Memory)));
    let [users, orders] = config.source.tables() else { panic!("two tables") };
    assert_eq!((users.key.as_deref(), users.shape), (Some("file:{id}"), Shape::Hash));
    assert_eq!(users.columns.as_deref(), Some(&["id".to_owned(), "name".to_owned()][..]));
    assert_eq!(users.filter.as_deref(), Some("active = 1"));
    assert_eq!((users.ttl.unwrap().to_string().as_str(), users.on_change), ("90s", OnChange::Refresh));
    assert_eq!(orders, &TableSettings::new("orders"));
}

#[test]
fn a_text_may_stand_in_a_file_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("url");
    std::fs::write(&secret, "redis://:hunter5@redis/0\n").unwrap();
    let config = parse(&GOOD.replacen("redis://:${REDIS_PASSWORD}@redis/0", &format!("file:{}", secret.display()), 1)).unwrap();
    assert!(matches!(config.cache, CacheConfig::Redis(_)));
    assert!(!format!("{config:?}").contains("hunter"));
}

#[test]
fn no_password_is_in_a_debug_line() {
    let shown = format!("{:?}", parse(GOOD).unwrap());
    assert!(shown.contains("ada") && !shown.contains("hunter"), "{shown}");
}

#[test]
fn an_unknown_key_is_named_with_the_near_word() {
    insta::assert_snapshot!(error("name = \"shop\"", "nmae = \"shop\""), @r#"
    conf/rowcast.toml:2:2: [pipeline] has no `name`; write for instance name = "shop"
      |
    2 | [pipeline]
      |  ^^^^^^^^

    conf/rowcast.toml:3:1: unknown key `nmae` in [pipeline]; did you mean `name`?
      |
    3 | nmae = …
      | ^^^^
    "#);
    insta::assert_snapshot!(error("[cache]", "[chache]"), @r#"
    conf/rowcast.toml:11:2: unknown key `chache` in the file; did you mean `cache`?
       |
    11 | [chache]
       |  ^^^^^^

    conf/rowcast.toml: [cache] is missing; write for instance

    [cache]
    url = "redis://localhost"
    "#);
    insta::assert_snapshot!(error("[cache]", "password = \"hunter2\"\n[cache]"), @r#"
    conf/rowcast.toml:11:1: unknown key `password` in [broker]
       |
    11 | password = …
       | ^^^^^^^^
    "#);
}

#[test]
fn a_wrong_option_is_named() {
    let option = |line: &str| error("name = \"users\"", &format!("name = \"users\"\n{line}"));
    insta::assert_snapshot!(option("ttl = \"1w\"\non_change = \"evcit\"\nwhere = \"active = 1; --\""), @r#"
    conf/rowcast.toml:16:7: `ttl` is "1w", but a time to live is a whole number and s, m, h or d, such as "90s", "15m", "1h" or "7d", from 1s to 3650d
       |
    16 | ttl = "1w"
       |       ^^^^

    conf/rowcast.toml:17:13: `on_change` is "write", "refresh" or "evict", not "evcit"; did you mean `evict`?
       |
    17 | on_change = "evcit"
       |             ^^^^^^^

    conf/rowcast.toml:18:9: `where` is one expression, without a `;`
       |
    18 | where = "active = 1; --"
       |         ^^^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(option("ttl = 90"), @r#"
    conf/rowcast.toml:16:7: `ttl` is a text in quotes, not a number
       |
    16 | ttl = 90
       |       ^^
    "#);
    insta::assert_snapshot!(option("ttl = \"${WRONG}\""), @r#"
    conf/rowcast.toml:16:7: `ttl` is what was substituted for it, but a time to live is a whole number and s, m, h or d, such as "90s", "15m", "1h" or "7d", from 1s to 3650d
       |
    16 | ttl = "${WRONG}"
       |       ^^^^^^^^^^
    "#);
    insta::assert_snapshot!(option("where = \"1) OR (1\""), @r#"
    conf/rowcast.toml:16:9: `where` closes a parenthesis that it does not open
       |
    16 | where = "1) OR (1"
       |         ^^^^^^^^^^
    "#);
    insta::assert_snapshot!(option("where = \"name = 'x\""), @r#"
    conf/rowcast.toml:16:9: `where` has a quotation mark or a comment that is never closed
       |
    16 | where = "name = 'x"
       |         ^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(option("where = \"\""), @r#"
    conf/rowcast.toml:16:9: `where` is empty; leave it out to cache every row
       |
    16 | where = ""
       |         ^^
    "#);
    insta::assert_snapshot!(option("were = \"active\""), @r#"
    conf/rowcast.toml:16:1: unknown key `were` in [[table]]; did you mean `where`?
       |
    16 | were = …
       | ^^^^
    "#);
}

#[test]
fn a_wrong_type_is_named() {
    insta::assert_snapshot!(error("name = \"shop\"", "name = 7"), @r#"
    conf/rowcast.toml:3:8: `name` is a text in quotes, not a number
      |
    3 | name = 7
      |        ^
    "#);
    insta::assert_snapshot!(error("[cache]", "partitions = \"4\"\n[cache]"), @r#"
    conf/rowcast.toml:11:14: `partitions` is a whole number, not a text in quotes
       |
    11 | partitions = "4"
       |              ^^^
    "#);
    insta::assert_snapshot!(error("[cache]", "partitions = 0\n[cache]"), @r#"
    conf/rowcast.toml:11:14: `partitions` is a number from 1 to 1024
       |
    11 | partitions = 0
       |              ^
    "#);
    insta::assert_snapshot!(error("name = \"users\"", "name = \"users\"\ncolumns = \"id\""), @r#"
    conf/rowcast.toml:16:11: `columns` is a list, such as ["id", "name"], not a text in quotes
       |
    16 | columns = "id"
       |           ^^^^
    "#);
    insta::assert_snapshot!(error("[[table]]", "[table]"), @r#"
    conf/rowcast.toml:14:1: a table is written [[table]], with two brackets on each side
       |
    14 | [table]
       | ^^^^^^^
    "#);
    insta::assert_snapshot!(error("[cache]\nurl = \"redis://:${REDIS_PASSWORD}@redis/0\"", "[[cache]]"), @r#"
    conf/rowcast.toml:11:1: `cache` is a table, which begins with [cache], not a list
       |
    11 | [[cache]]
       | ^^^^^^^^^
    "#);
}

#[test]
fn a_wrong_word_is_named() {
    insta::assert_snapshot!(error("[broker]", "capture = \"trigers\"\n[broker]"), @r#"
    conf/rowcast.toml:8:11: `capture` is "triggers" or "hooks", not "trigers"; did you mean `triggers`?
      |
    8 | capture = "trigers"
      |           ^^^^^^^^^
    "#);
    insta::assert_snapshot!(error("[cache]", "queue = \"${WRONG}\"\n[cache]"), @r#"
    conf/rowcast.toml:11:9: `queue` is "quorum" or "classic", not what was substituted for it
       |
    11 | queue = "${WRONG}"
       |         ^^^^^^^^^^
    "#);
    insta::assert_snapshot!(error("name = \"users\"", "name = \"users\"\nvalue = \"yaml\""), @r#"
    conf/rowcast.toml:16:9: `value` is "json" or "hash", not "yaml"
       |
    16 | value = "yaml"
       |         ^^^^^^
    "#);
    insta::assert_snapshot!(error("name = \"shop\"", "name = \"my shop\""), @r#"
    conf/rowcast.toml:3:8: "my shop" cannot be a pipeline's name: it becomes part of the names of queues and keys, and has 1 to 100 letters, digits, - and _
      |
    3 | name = "my shop"
      |        ^^^^^^^^^
    "#);
}

#[test]
fn what_is_missing_is_named_with_an_example() {
    insta::assert_snapshot!(parse("").unwrap_err(), @r#"
    conf/rowcast.toml: [pipeline] is missing; write for instance

    [pipeline]
    name = "shop"

    conf/rowcast.toml: [source] is missing; write for instance

    [source]
    url = "sqlite:shop.db"

    conf/rowcast.toml: [broker] is missing; write for instance

    [broker]
    url = "amqp://localhost"

    conf/rowcast.toml: [cache] is missing; write for instance

    [cache]
    url = "redis://localhost"

    conf/rowcast.toml: no table is named; write for instance

    [[table]]
    name = "users"
    "#);
    insta::assert_snapshot!(error("url = \"sqlite:shop.db\"", ""), @r#"
    conf/rowcast.toml:5:2: [source] has no `url`; write for instance url = "sqlite:shop.db"
      |
    5 | [source]
      |  ^^^^^^
    "#);
    insta::assert_snapshot!(error("name = \"users\"", ""), @r#"
    conf/rowcast.toml:14:1: [[table]] has no `name`; write for instance name = "users"
       |
    14 | [[table]]
       | ^^^^^^^^^
    "#);
}

#[test]
fn a_table_is_named_once_and_so_is_a_column() {
    insta::assert_snapshot!(error("name = \"users\"", "name = \"users\"\n[[table]]\nname = \"Users\""), @r#"
    conf/rowcast.toml:17:8: the table "Users" is already there; name each table once
       |
    17 | name = "Users"
       |        ^^^^^^^
    "#);
    insta::assert_snapshot!(error("name = \"users\"", "name = \"users\"\ncolumns = [\n  \"id\",\n  \"id\"\n]"), @r#"
    conf/rowcast.toml:18:3: the column "id" is named twice
       |
    18 |   "id"
       |   ^^^^
    "#);
    insta::assert_snapshot!(error("name = \"users\"", "name = \"users\"\ncolumns = []"), @r#"
    conf/rowcast.toml:16:11: `columns` is empty; leave it out to cache every column
       |
    16 | columns = []
       |           ^^
    "#);
}

#[test]
fn a_key_that_cannot_be_one_is_named() {
    insta::assert_snapshot!(error("name = \"users\"", "name = \"users\"\nkey = \"user:id\""), @r#"
    conf/rowcast.toml:16:7: the key "user:id" names no column, so every row would share it; write for instance user:id:{id}
       |
    16 | key = "user:id"
       |       ^^^^^^^^^
    "#);
    insta::assert_snapshot!(error("name = \"users\"", "name = \"users\"\nkey = \"user:{id\""), @r#"
    conf/rowcast.toml:16:7: the key "user:{id" has an unpaired brace; a column is written {name}
       |
    16 | key = "user:{id"
       |       ^^^^^^^^^^
    "#);
}

#[test]
fn a_url_that_cannot_be_one_is_named_and_never_shown() {
    insta::assert_snapshot!(error("sqlite:shop.db", "mysql://ada:hunter2@db/shop"), @r#"
    conf/rowcast.toml:6:7: this version of rowcast reads SQLite and PostgreSQL; write for instance sqlite:shop.db or postgres://user@host/shop
      |
    6 | url = "mysql://…"
      |       ^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(error("sqlite:shop.db", "postgres://ada:hunter2@db"), @r#"
    conf/rowcast.toml:6:7: the url names no database; write postgres://user@host/database
      |
    6 | url = "postgres://…"
      |       ^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(error("sqlite:shop.db", "shop.db"), @r#"
    conf/rowcast.toml:6:7: the source's URL is sqlite: and the path of the database file, for instance sqlite:shop.db
      |
    6 | url = …
      |       ^
    "#);
    insta::assert_snapshot!(error("sqlite:shop.db", "sqlite::memory:"), @r#"
    conf/rowcast.toml:6:7: a SQLite database in memory can be read by nobody but its own program; name a file
      |
    6 | url = "sqlite::memory:"
      |       ^^^^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(error("amqp://ada:${RABBIT_PASSWORD}@rabbit/%2f", "http://ada:hunter2@rabbit"), @r#"
    conf/rowcast.toml:9:7: the broker's URL begins with http:; it looks like amqp://user:password@host:5672/vhost
      |
    9 | url = "http://…"
      |       ^^^^^^^^^^
    "#);
    insta::assert_snapshot!(error("redis://:${REDIS_PASSWORD}@redis/0", "hunter2"), @r#"
    conf/rowcast.toml:12:7: the cache's URL cannot be read (relative URL without a base); it looks like redis://user:password@host:6379/0, or rediss:// for TLS, and in user and password anything but letters and digits is percent-encoded
       |
    12 | url = …
       |       ^
    "#);
}

#[test]
fn a_password_that_breaks_its_url_is_not_shown() {
    for sign in ["?", "#", "/", "\\", "@", ":", " ", "%", "[", "?heartbeat="] {
        for (secret, url) in [("${RABBIT_PASSWORD}", "amqp"), ("${REDIS_PASSWORD}", "redis")] {
            for broken in [format!("{sign}{secret}"), format!("{secret}{sign}"), format!("{secret}{sign}{secret}")] {
                let text = GOOD.replacen(secret, &broken.replace('\\', "\\\\"), 1);
                let shown = parse(&text).map_or_else(|error| error.to_string(), |config| format!("{config:?}"));
                assert!(!shown.contains("hunter"), "{url} {broken}: {shown}");
            }
        }
    }
}

#[test]
fn what_cannot_be_substituted_is_named() {
    insta::assert_snapshot!(error("${RABBIT_PASSWORD}", "${RABIT_PASSWORD}"), @r#"
    conf/rowcast.toml:9:7: the environment variable RABIT_PASSWORD is not set
      |
    9 | url = "amqp://…"
      |       ^^^^^^^^^^
    "#);
    insta::assert_snapshot!(error("${RABBIT_PASSWORD}", "${RABBIT_PASSWORD"), @r#"
    conf/rowcast.toml:9:7: `${` without its `}`; an environment variable is written ${NAME}
      |
    9 | url = "amqp://…"
      |       ^^^^^^^^^^
    "#);
    insta::assert_snapshot!(error("redis://:${REDIS_PASSWORD}@redis/0", "file:/no/such/secret"), @r#"
    conf/rowcast.toml:12:7: the file /no/such/secret cannot be read: No such file or directory (os error 2)
       |
    12 | url = …
       |       ^
    "#);
}

#[test]
fn what_is_not_toml_shows_where_and_no_secret() {
    insta::assert_snapshot!(error("name = \"shop\"", "name = shop"), @r#"
    conf/rowcast.toml:3:8: this is not TOML: string values must be quoted, expected literal string
      |
    3 | name = shop
      |        ^^^^
    "#);
    insta::assert_snapshot!(error("[cache]", "password = hunter2\n[cache]"), @r#"
    conf/rowcast.toml:11:12: this is not TOML: string values must be quoted, expected literal string
       |
    11 | password = …
       |            ^
    "#);
    insta::assert_snapshot!(error("url = \"redis://:${REDIS_PASSWORD}@redis/0\"", "url = redis://:hunter2@redis/0"), @r#"
    conf/rowcast.toml:12:7: this is not TOML: string values must be quoted, expected literal string
       |
    12 | url = …
       |       ^
    "#);
    insta::assert_snapshot!(error("[cache]", "[broker]\n[cache]"), @r#"
    conf/rowcast.toml:11:2: this is not TOML: duplicate key
       |
    11 | [broker]
       |  ^^^^^^
    "#);
}

#[test]
fn every_fault_is_named_at_once_in_the_order_of_the_file() {
    insta::assert_snapshot!(parse("[pipeline]\nname = \"\"\n[broker]\nurl = \"amqp://\"\n[cache]\nurl = 1\n[source]\nurl = \"x\"").unwrap_err(), @r#"
    conf/rowcast.toml:2:8: "" cannot be a pipeline's name: it becomes part of the names of queues and keys, and has 1 to 100 letters, digits, - and _
      |
    2 | name = ""
      |        ^^

    conf/rowcast.toml:4:7: the broker's URL names no host; it looks like amqp://user:password@host:5672/vhost
      |
    4 | url = "amqp://…"
      |       ^^^^^^^^^

    conf/rowcast.toml:6:7: `url` is a text in quotes, not a number
      |
    6 | url = …
      |       ^

    conf/rowcast.toml:8:7: the source's URL is sqlite: and the path of the database file, for instance sqlite:shop.db
      |
    8 | url = …
      |       ^

    conf/rowcast.toml: no table is named; write for instance

    [[table]]
    name = "users"
    "#);
}

#[test]
fn a_file_that_is_not_there_is_named_with_the_way_to_one() {
    let error = Config::read(Path::new("/no/such/rowcast.toml")).unwrap_err();
    insta::assert_snapshot!(error, @"there is no configuration file /no/such/rowcast.toml; write one with `rowcast init sqlite:app.db`, or name yours with --config");
}

proptest::proptest! {
    #[test]
    fn no_file_makes_the_reader_panic(text: String, at in 0..GOOD.len(), cut: String) {
        drop(parse(&text));
        let mut changed = GOOD.to_owned();
        changed.insert_str(at, &cut);
        if let Err(error) = parse(&changed) {
            proptest::prop_assert!(!error.to_string().contains("hunter"));
        }
    }
}

/// The page that describes every key.
const PAGE: &str = include_str!("../../../../docs/configuration.md");

#[test]
fn the_page_describes_every_key_and_no_other() {
    let (mut section, mut described) = ("", Vec::new());
    for line in PAGE.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading.trim_matches(['`', '[', ']']);
        } else if let Some(heading) = line.strip_prefix("### ") {
            described.push((section, heading.trim_matches('`')));
        }
    }
    let known: Vec<(&str, &str)> =
        super::reader::KEYS.iter().flat_map(|(section, keys)| keys.iter().map(move |key| (*section, *key))).collect();
    assert_eq!(described, known);
}

#[test]
fn the_pages_examples_are_read() {
    let examples: Vec<&str> = PAGE.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(examples.len() > 3, "{examples:?}");
    let environment = |name: &str| Ok(format!("value-of-{name}"));
    for example in examples {
        // A fragment shows one table; the rest is as in the first, whole, example.
        let whole = if example.contains("[pipeline]") {
            example.to_owned()
        } else {
            format!("{}{example}", GOOD.split("[[table]]").next().unwrap())
        };
        if let Err(error) = Config::parse(&whole, Path::new("rowcast.toml"), &environment) {
            panic!("{error}\n{whole}");
        }
    }
}
