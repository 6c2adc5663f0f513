//! An application that writes all the while: everything that SQL can do to a key, from a seed.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rowcast_testkit::wait::until_blocking;
use rusqlite::Connection;

use super::more;
use super::schema::{KEYS, SHOPS, Tables};

/// How long it may take to write what a test waits for.
const DEADLINE: Duration = Duration::from_secs(60);

/// A thread that writes until it is told to stop.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

/// A connection as an application opens it.
pub fn connect(path: &Path) -> Connection {
    let connection = Connection::open(path).expect("the database opens");
    connection.busy_timeout(Duration::from_secs(30)).expect("a busy timeout");
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON").expect("settings");
    connection
}

impl Writer {
    /// Begins to write to these tables of the database at `path`; versions go on after `version`.
    pub fn start(path: &Path, tables: Tables, seed: u64, version: u64) -> Writer {
        let connection = connect(path);
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), committed.clone());
        let thread = std::thread::spawn(move || {
            let mut statements = Statements { tables, random: StdRng::seed_from_u64(seed), version };
            while !stopped.load(SeqCst) {
                if transaction(&connection, &mut statements) {
                    counted.fetch_add(1, SeqCst);
                }
                // An application's pace; nobody waits for it.
                std::thread::sleep(Duration::from_millis(statements.random.random_range(1..6)));
            }
        });
        Writer { stop, committed, thread: Some(thread) }
    }

    /// Waits until so many transactions more are committed.
    pub fn wait_for_more(&self, transactions: u64) {
        let before = self.committed.load(SeqCst);
        let written = || (self.committed.load(SeqCst) >= before + transactions).then_some(());
        until_blocking("the application to write", DEADLINE, written).expect("it writes");
    }

    /// Ends it after the transaction in hand.
    pub fn stop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the writer ends well");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

/// Returns whether it was committed.
fn transaction(connection: &Connection, statements: &mut Statements) -> bool {
    let (count, rolled_back) = (statements.random.random_range(1..5), statements.random.random_bool(0.1));
    connection.execute_batch("BEGIN IMMEDIATE").expect("a transaction begins");
    for _ in 0..count {
        for sql in statements.next() {
            match connection.execute_batch(&sql) {
                Ok(()) => {}
                // Random statements violate constraints; then they do nothing.
                Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {}
                Err(error) => panic!("{sql}: {error}"),
            }
        }
    }
    connection.execute_batch(if rolled_back { "ROLLBACK" } else { "COMMIT" }).expect("the transaction ends");
    !rolled_back
}

struct Statements {
    tables: Tables,
    random: StdRng,
    version: u64,
}

impl Statements {
    fn version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn key(&mut self) -> u64 {
        self.random.random_range(0..KEYS)
    }

    fn word(&mut self) -> String {
        match self.random.random_range(0..4) {
            0 => "NULL".to_owned(),
            1 => "'x y \"z\" é'".to_owned(),
            _ => format!("'word {}'", self.random.random_range(0..1000)),
        }
    }

    /// What belongs together.
    fn next(&mut self) -> Vec<String> {
        let (v, key, other, word) = (self.version(), self.key(), self.key(), self.word());
        if self.tables == Tables::Ten && self.random.random_bool(0.6) {
            return vec![more::statement(&mut self.random, [key, other], &word, v)];
        }
        let shop = SHOPS[self.random.random_range(0..SHOPS.len())];
        let one = match self.random.random_range(0..22) {
            0 => {
                format!("INSERT INTO users (handle, name, v) SELECT 'h{key}', {word}, {v} WHERE (SELECT max(id) FROM users) < {}", KEYS - 1)
            }
            1 => format!("INSERT OR REPLACE INTO users VALUES ({key}, 'h{other}', {word}, {v})"),
            2 => format!("INSERT INTO users VALUES ({key}, 'h{other}', {word}, {v}) ON CONFLICT (id) DO UPDATE SET name = {word}, v = {v}"),
            3 => format!("UPDATE users SET name = {word}, v = {v} WHERE id BETWEEN {key} AND {key} + 5"),
            4 => format!("UPDATE OR REPLACE users SET id = {other}, v = {v} WHERE id = {key}"),
            5 => format!("UPDATE OR IGNORE users SET handle = 'h{other}', v = {v} WHERE id = {key}"),
            6 => format!("DELETE FROM users WHERE id = {key}"),
            7 => format!("INSERT OR REPLACE INTO profiles VALUES ('n{key}', 'h{other}', {v})"),
            8 => format!(
                "INSERT INTO profiles VALUES ('n{key}', 'h{other}', {v}) ON CONFLICT (name) DO UPDATE SET handle = excluded.handle, v = {v}"
            ),
            9 => format!("UPDATE OR REPLACE profiles SET handle = 'h{other}', v = {v} WHERE name = 'n{key}'"),
            10 => format!("UPDATE profiles SET name = 'n{other}', v = {v} WHERE name = 'n{key}'"),
            11 => format!("DELETE FROM profiles WHERE handle = 'h{key}'"),
            12 => return self.swap(key, other),
            13 => format!("REPLACE INTO lines VALUES ('{shop}', {key}, {word}, {v})"),
            14 => format!("UPDATE OR REPLACE lines SET number = {other}, v = {v} WHERE shop = '{shop}' AND number = {key}"),
            15 => format!("DELETE FROM lines WHERE shop = '{shop}' AND number BETWEEN {key} AND {key} + 3"),
            16 => format!("REPLACE INTO stock VALUES ('c{key}', {other}, {v})"),
            17 => format!("UPDATE OR REPLACE stock SET code = 'c{other}', v = {v} WHERE code = 'c{key}'"),
            18 => format!("DELETE FROM stock WHERE code = 'c{key}'"),
            19 => format!("INSERT INTO settings VALUES ({key}, {word}, {v}) ON CONFLICT DO UPDATE SET label = excluded.label, v = {v}"),
            20 => format!("UPDATE OR REPLACE settings SET id = {other}, label = {word}, v = {v} WHERE id = {key}"),
            _ => format!("DELETE FROM settings WHERE id = {key}"),
        };
        vec![one]
    }

    /// Two rows exchange their unique handle, and with it their keys in the cache.
    fn swap(&mut self, one: u64, other: u64) -> Vec<String> {
        if one == other {
            return Vec::new();
        }
        let (first, second, v) = (self.version(), self.version(), self.version());
        vec![format!(
            "CREATE TEMP TABLE IF NOT EXISTS swapped (one TEXT, other TEXT);
             DELETE FROM swapped;
             INSERT INTO swapped SELECT a.handle, b.handle FROM profiles a, profiles b WHERE a.name = 'n{one}' AND b.name = 'n{other}';
             UPDATE profiles SET handle = 'swapping', v = {v} WHERE name = 'n{one}' AND EXISTS (SELECT 1 FROM swapped);
             UPDATE profiles SET handle = (SELECT one FROM swapped), v = {first} WHERE name = 'n{other}' AND EXISTS (SELECT 1 FROM swapped);
             UPDATE profiles SET handle = (SELECT other FROM swapped), v = {second} WHERE handle = 'swapping'"
        )]
    }
}
