//! Every option of a table, taken up and given up again while everything goes on, with an application that fills keys.

use std::sync::Arc;
use std::time::Duration;

use rowcast_testkit::wait::until_blocking;

use super::super::contents::{self, Contents, Value};
use super::super::database::{Database, STRANGERS};
use super::super::world::{PARTITIONS, World};
use super::{Sqlite, Tables};

const DEADLINE: Duration = Duration::from_secs(120);

/// The tables of the tests with every option in use.
const TABLES: &str = r#"
[[table]]
name = "users"
where = "id % 2 = 0 AND name IS NOT NULL"

[[table]]
name = "profiles"
key = "profile:{handle}"
where = "v % 2 = 1"

[[table]]
name = "lines"
ttl = "1h"

[[table]]
name = "stock"
key = "stock:{code}:row"
on_change = "evict"

[[table]]
name = "settings"
key = "setting:{id}"
value = "hash"
on_change = "refresh"
"#;

/// What a consumer says when it takes up a mapping of which every table has changed.
const ALL_CHANGED: &str = "resync of lines, profiles, settings, stock, users: its mapping";

#[test]
fn every_option_can_be_taken_up_and_given_up_and_leaves_nothing_stale() {
    let sqlite = Arc::new(Sqlite::new(Tables::Five));
    let mut world = World::on(sqlite.clone(), "options", &crate::rabbitmq::shared().url());
    let publisher = world.publisher("publisher-1");
    let mut consumer = world.consumer("consumer");
    world.wait_until_settled();
    world.excuse();
    world.writer.wait_for_more(100);

    let plain = world.configuration();
    let (rest, _) = plain.split_once("\n[[table]]").expect("tables");
    publisher.leave();
    let publisher = world.half_configured("publish", "publisher-2", &format!("{rest}{TABLES}"));
    taken_up(&world, PARTITIONS);
    world.writer.wait_for_more(50);
    world.writer.stop();
    wait_until_true(&world, &sqlite, "the options to hold");
    let found = contents::read(&mut world.client()).expect("the cache");
    assert!(found.keys().any(|key| key.starts_with("setting:")), "what stood there is refreshed");
    assert_eq!(found.keys().filter(|key| key.starts_with("stock:")).count(), 0, "what may be stale is evicted, by whatever key");
    for key in found.keys().filter(|key| key.starts_with("lines:")) {
        assert!((1..=3_600_000).contains(&world.left_ms(key)), "{key} has {} ms", world.left_ms(key));
    }

    changes_refresh_and_evict_what_the_application_filled(&world, &sqlite);
    a_gap_leaves_nothing_that_the_application_filled_stale(&world, &sqlite);

    publisher.leave();
    world.write_again(1_000_000);
    let mut publisher = world.publisher("publisher-3");
    taken_up(&world, 2 * PARTITIONS);
    for key in contents::read(&mut world.client()).expect("the cache").keys() {
        assert!(world.left_ms(key) < 0, "{key} has a time left");
    }
    world.watch_anew();
    world.writer.wait_for_more(30);
    world.judge(&mut [&mut publisher, &mut consumer]);
}

fn taken_up(world: &World, times: usize) {
    until_blocking("the mapping to be taken up", DEADLINE, || (world.said(ALL_CHANGED) >= times).then_some(())).expect("it is");
    world.wait_until_settled();
}

/// What may stand in the cache for rows to which nobody writes; what must is without the keys that the application fills.
fn allowed(sqlite: &Sqlite) -> (Contents, Contents) {
    let (database, all) = (sqlite.connect(), sqlite.expected());
    let chosen = |sql: &str| -> Vec<String> {
        let mut statement = database.prepare(sql).expect("a query");
        statement.query_map([], |row| row.get(0)).expect("rows").map(|row| row.expect("a key")).collect()
    };
    let mut keys = chosen("SELECT 'users:' || id FROM users WHERE id % 2 = 0 AND name IS NOT NULL");
    keys.extend(chosen("SELECT 'profile:' || handle FROM profiles WHERE v % 2 = 1"));
    let with = |key: &str, prefixes: &[&str]| prefixes.iter().any(|prefix| key.starts_with(prefix));
    let must = all.iter().filter(|(key, _)| keys.contains(key) || with(key, &["lines:"]));
    let must: Contents = must.map(|(key, value)| (key.clone(), value.clone())).collect();
    let mut may = must.clone();
    may.extend(all.into_iter().filter(|(key, _)| with(key, &["setting:"])));
    may.extend(STRANGERS.map(|(key, value)| (key.to_owned(), Value::Text(value.to_owned()))));
    (must, may)
}

/// Waits until all stands there that must, and nothing that may not.
fn wait_until_true(world: &World, sqlite: &Sqlite, what: &str) {
    let (must, may) = allowed(sqlite);
    let mut wrong = Vec::new();
    let settled = until_blocking(what, DEADLINE, || {
        let found = contents::read(&mut world.client()).expect("the cache");
        let (missing, stale) =
            (must.iter().filter(|(key, _)| !found.contains_key(*key)), found.iter().filter(|(key, value)| may.get(*key) != Some(value)));
        wrong = missing.chain(stale).map(|(key, value)| format!("{key}: {value:?}")).collect();
        wrong.is_empty().then_some(())
    });
    settled.unwrap_or_else(|error| panic!("{error}: {}", wrong.join("\n")));
}

fn changes_refresh_and_evict_what_the_application_filled(world: &World, sqlite: &Sqlite) {
    let database = sqlite.connect();
    let mut client = world.client();
    let setting = |id: u32| format!("setting:{id}");
    database
        .execute_batch("INSERT OR REPLACE INTO settings VALUES (1, 'a', 900001), (2, 'b', 900002), (3, 'c', 900003); REPLACE INTO stock VALUES ('c1', 1, 900004)")
        .expect("rows");
    world.wait_until_forgotten();
    world.wait_for_blocks(2);
    wait_until_true(world, sqlite, "rows to arrive");
    // One key is not filled, one is in the application's own way, one has a time to live.
    redis::cmd("DEL").arg(setting(1)).exec(&mut client).expect("a key goes");
    redis::cmd("SET").arg(setting(2)).arg("as the application likes it").exec(&mut client).expect("a key");
    redis::cmd("DEL").arg(setting(3)).exec(&mut client).expect("a key goes");
    redis::cmd("HSET").arg(setting(3)).arg("id").arg(3).exec(&mut client).expect("a key");
    redis::cmd("PEXPIRE").arg(setting(3)).arg(600_000).exec(&mut client).expect("a time");
    redis::cmd("RPUSH").arg("stock:c1:row").arg("a list").exec(&mut client).expect("a key");
    database.execute_batch("UPDATE settings SET v = v + 100; UPDATE stock SET amount = 2 WHERE code = 'c1'").expect("changes");
    wait_until_true(world, sqlite, "changes to refresh and evict");
    let found = contents::read(&mut client).expect("the cache");
    assert!(!found.contains_key(&setting(1)), "a key that is not there is not written");
    assert!(found.contains_key(&setting(2)) && found.contains_key(&setting(3)));
    assert!((1..=600_000).contains(&world.left_ms(&setting(3))), "its time is the application's");
}

fn a_gap_leaves_nothing_that_the_application_filled_stale(world: &World, sqlite: &Sqlite) {
    let mut client = world.client();
    for key in ["stock:c1:row", "stock:gone:row", "setting:2", "setting:777777"] {
        redis::cmd("DEL").arg(key).exec(&mut client).expect("a key goes");
        redis::cmd("RPUSH").arg(key).arg("stale").exec(&mut client).expect("a key");
    }
    redis::cmd("SET").arg("stock:c1:row:cart").arg("3 apples").exec(&mut client).expect("a stranger's key");
    let checkpoints: Vec<String> =
        redis::cmd("KEYS").arg(format!("rowcast:{{{}}}:checkpoint:*", world.pipeline)).query(&mut client).expect("checkpoints");
    redis::cmd("DEL").arg(checkpoints).exec(&mut client).expect("they go");
    let stale = || {
        ["stock:c1:row", "stock:gone:row", "setting:777777"]
            .iter()
            .any(|key| redis::cmd("EXISTS").arg(key).query(&mut world.client()).expect("an answer"))
    };
    until_blocking("what is stale to go", DEADLINE, || (!stale()).then_some(())).expect("it goes");
    let cart: String = redis::cmd("GETDEL").arg("stock:c1:row:cart").query(&mut client).expect("it stands");
    assert_eq!(cart, "3 apples");
    world.wait_until_settled();
    wait_until_true(world, sqlite, "the resync to end");
    assert!(contents::read(&mut client).expect("the cache").contains_key("setting:2"), "it has a row, and holds it");
}
