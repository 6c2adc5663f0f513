//! A PostgreSQL database, and what can only be done to one.

mod pgbench;
mod statements;
mod strikes;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use rowcast_testkit::postgres::{self, PostgresServer};
use rowcast_testkit::wait::until_blocking;

use super::contents::{Contents, Value};
use super::database::{self, Application, Database, numbered};
use super::world::AGREEMENT;
use pgbench::Pgbench;
use statements::Statements;

/// The schema. Keys of `profiles` are made of a column that is not the primary key, and two rows may have one for a moment.
const SCHEMA: &str = "
    CREATE TABLE users (id bigint PRIMARY KEY, handle text NOT NULL UNIQUE, name text, v bigint NOT NULL);
    CREATE TABLE profiles (name text PRIMARY KEY, handle text NOT NULL UNIQUE DEFERRABLE INITIALLY DEFERRED, v bigint NOT NULL);
    ALTER TABLE profiles REPLICA IDENTITY FULL;
    CREATE TABLE lines (shop text, number int, words text, v bigint NOT NULL, PRIMARY KEY (shop, number));
    ALTER TABLE lines ALTER words SET STORAGE EXTERNAL;
    CREATE TABLE stock (code text PRIMARY KEY, amount bigint, v bigint NOT NULL);
    CREATE TABLE settings (id bigint PRIMARY KEY, label text, v bigint NOT NULL);
    CREATE TABLE orders (id bigint PRIMARY KEY, stock text REFERENCES stock ON DELETE CASCADE ON UPDATE CASCADE, v bigint NOT NULL);
";

/// Each table, its key's beginning and what follows it.
const KEYS_OF: [(&str, &str, &str); 5] = [
    ("users", "users", "id"),
    ("profiles", "profile", "handle"),
    ("lines", "lines", "shop || ':' || number"),
    ("stock", "stock", "code"),
    ("orders", "orders", "id"),
];

/// What is done to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// What changes rows.
    Rows,
    /// Also what changes whole tables, and `pgbench` beside it.
    Everything,
}

/// The server that is the database now.
#[derive(Debug)]
pub struct Server(Mutex<PostgresServer>);

impl Server {
    /// Nobody else connects while this is held.
    fn lock(&self) -> MutexGuard<'_, PostgresServer> {
        self.0.lock().expect("no strike has failed")
    }

    fn url(&self) -> String {
        self.lock().url()
    }

    fn application(&self) -> anyhow::Result<postgres::Application> {
        self.lock().application()
    }
}

/// The database.
#[derive(Debug)]
pub struct Postgres {
    server: Arc<Server>,
    load: Load,
}

impl Postgres {
    /// Starts a server with empty tables.
    pub fn start(load: Load) -> Postgres {
        let server = PostgresServer::start().expect("a PostgreSQL server");
        server.execute(SCHEMA).expect("the schema");
        if load == Load::Everything {
            pgbench::initialise(&server);
        }
        Postgres { server: Arc::new(Server(Mutex::new(server))), load }
    }

    /// Where the server listens now.
    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.server.lock().port()))
    }

    /// Runs statements and returns what they print.
    fn query(&self, sql: &str) -> String {
        self.server.lock().execute(sql).expect("statements")
    }
}

impl Database for Postgres {
    fn url(&self) -> String {
        self.server.url()
    }

    fn tables(&self) -> String {
        let orders = "\n[[table]]\nname = \"orders\"\n";
        let more = if self.load == Load::Everything { pgbench::TABLES } else { "" };
        [database::TABLES, orders, more].concat()
    }

    fn keys(&self) -> (Vec<String>, Vec<String>) {
        let (mut json, hashes) = database::keys();
        json.extend(numbered("orders:"));
        if self.load == Load::Everything {
            json.extend(pgbench::keys());
        }
        (json, hashes)
    }

    fn preload(&self, rows: u32) {
        self.execute(&format!("INSERT INTO lines SELECT 'archive', i, repeat('00', 500), i FROM generate_series(1, {rows}) i"));
    }

    fn execute(&self, sql: &str) {
        self.query(sql);
    }

    fn expected(&self) -> Contents {
        let of = |(table, prefix, key): (&str, &str, &str)| {
            format!("SELECT '{prefix}:' || {key} || chr(9) || row_to_json({table}) FROM {table}")
        };
        let mut selects: Vec<String> = KEYS_OF.map(of).into();
        if self.load == Load::Everything {
            selects.extend(pgbench::KEYS_OF.map(|(table, key)| of((table, table, key))));
        }
        let pair = |line: &str| line.split_once('\t').map(|(key, row)| (key.to_owned(), row.to_owned())).expect("a key and a row");
        let text = self.query(&selects.join(" UNION ALL "));
        let mut contents: Contents = text.lines().map(pair).map(|(key, row)| (key, Value::Text(row))).collect();
        let text = self.query("SELECT 'setting:' || id || chr(9) || row_to_json(settings) FROM settings");
        contents.extend(text.lines().map(pair).map(|(key, row)| (key, Value::Hash(fields(&row)))));
        contents
    }

    fn application(&self, version: u64) -> Box<dyn Application> {
        let pgbench = (self.load == Load::Everything).then(|| Pgbench::start(self.server.clone()));
        Box::new(Statements { server: self.server.clone(), load: self.load, version, connection: None, prepared: None, pgbench })
    }

    fn wait_until_forgotten(&self) {
        let newest = self.query("SELECT pg_current_wal_insert_lsn()");
        let confirmed = format!("SELECT confirmed_flush_lsn >= '{newest}' FROM pg_replication_slots");
        until_blocking("the slot to advance", AGREEMENT, || (self.query(&confirmed) == "t").then_some(())).expect("it does");
    }
}

/// A row as a hash: the field of a NULL is absent.
fn fields(row: &str) -> BTreeMap<String, String> {
    let row: BTreeMap<String, serde_json::Value> = serde_json::from_str(row).expect("a row is JSON");
    let plain = |value| match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text),
        other => Some(other.to_string()),
    };
    row.into_iter().filter_map(|(name, value)| Some((name, plain(value)?))).collect()
}
