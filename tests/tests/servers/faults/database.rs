//! What a world needs of the database that it follows, whichever kind it is.

use std::sync::Arc;

use rand::rngs::StdRng;

use super::contents::Contents;
use super::postgres::{Load, Postgres};
use super::sqlite::{Sqlite, Tables};

/// How many different keys each table may have, apart from preloaded rows.
pub const KEYS: u64 = 60;

/// The shops of the table with a composite key.
pub const SHOPS: [&str; 3] = ["north", "south", "west"];

/// Keys of somebody else, some of which look much like ours.
pub const STRANGERS: [(&str, &str); 6] = [
    ("users:7:cart", "3 apples"),
    ("session:1", "Ada"),
    ("users:987654", "not a row"),
    ("users:987655", r#"{"id":1,"handle":"h1","name":null,"v":1}"#),
    ("profile:somebody", r#"{"name":"n","handle":"somebody else","v":1}"#),
    ("stock", "empty"),
];

/// The part of the configuration that is about the five tables which every database has.
pub const TABLES: &str = r#"
[[table]]
name = "users"

[[table]]
name = "profiles"
key = "profile:{handle}"

[[table]]
name = "lines"

[[table]]
name = "stock"

[[table]]
name = "settings"
key = "setting:{id}"
value = "hash"
"#;

/// The keys of those tables that the writer may write: those that hold JSON, and the hashes.
pub fn keys() -> (Vec<String>, Vec<String>) {
    let mut json = [numbered("users:"), numbered("profile:h"), numbered("stock:c")].concat();
    json.extend(SHOPS.iter().flat_map(|shop| numbered(&format!("lines:{shop}:"))));
    (json, numbered("setting:"))
}

/// The keys with this beginning and the writer's numbers.
pub fn numbered(prefix: &str) -> Vec<String> {
    (0..KEYS).map(|n| format!("{prefix}{n}")).collect()
}

/// A database with tables, some of them the five of [`TABLES`]. In every one `v` only grows: each statement that writes a row gives it a
/// number that was never used.
pub trait Database {
    /// Where it is, as the configuration says it.
    fn url(&self) -> String;

    /// The tables' part of the configuration.
    fn tables(&self) -> String;

    /// Every key that holds JSON, and every key that is a hash, to be watched.
    fn keys(&self) -> (Vec<String>, Vec<String>);

    /// Puts so many long rows into `lines`, in the shop `archive`, beyond the writer's reach.
    fn preload(&self, rows: u32);

    /// Runs plain statements that both kinds of database understand, each committed alone.
    fn execute(&self, sql: &str);

    /// What the cache should hold for the rows that there are, in the database's own words.
    fn expected(&self) -> Contents;

    /// Somebody who writes all the while; versions go on after `version`.
    fn application(&self, version: u64) -> Box<dyn Application>;

    /// Waits until the database was told of everything committed now that it may forget it.
    fn wait_until_forgotten(&self);
}

/// Somebody who writes.
pub trait Application: Send {
    /// Runs a transaction; returns whether it was committed.
    fn transact(&mut self, random: &mut StdRng) -> bool;

    /// Leaves nothing half done.
    fn leave(&mut self) {}
}

/// The database of tests that hold for all of them: SQLite, or what `ROWCAST_SOURCE` says (`postgres`).
pub fn chosen() -> Arc<dyn Database> {
    match std::env::var("ROWCAST_SOURCE").as_deref() {
        Ok("postgres") => Arc::new(Postgres::start(Load::Rows)),
        Ok("sqlite") | Err(_) => Arc::new(Sqlite::new(Tables::Five)),
        Ok(other) => panic!("ROWCAST_SOURCE is sqlite or postgres, not {other}"),
    }
}
