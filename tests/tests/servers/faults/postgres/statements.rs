//! Everything that PostgreSQL lets an application do to rows, from a seed.

use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;
use rowcast_testkit::postgres;

use super::super::database::{Application, KEYS, SHOPS};
use super::pgbench::Pgbench;
use super::{Load, Server};

/// One who writes.
pub struct Statements {
    pub server: Arc<Server>,
    pub load: Load,
    pub version: u64,
    /// `None` until it is needed, and after it was lost.
    pub connection: Option<postgres::Application>,
    /// The name of a transaction that was prepared in the shop `west`.
    pub prepared: Option<String>,
    /// Runs beside this.
    pub pgbench: Option<Pgbench>,
}

/// What may come of a random statement: a violated constraint, a lock that somebody has for long, a deadlock.
const HARMLESS: [&str; 3] = ["23", "55P03", "40P01"];

impl Application for Statements {
    fn transact(&mut self, random: &mut StdRng) -> bool {
        if self.connection.is_none() && !self.connect(random.random_bool(0.5)) {
            return false;
        }
        let sql = match random.random_range(0..30) {
            0 if self.prepared.is_none() => self.prepare(random),
            1 => self.resolve(random.random_bool(0.5)),
            2 if self.load == Load::Everything && random.random_bool(0.3) => self.turn_upside_down(random),
            _ => self.transaction(random),
        };
        self.run(&sql)
    }

    fn leave(&mut self) {
        self.pgbench = None;
        // Also what was prepared by somebody before.
        self.connection = None;
        assert!(self.connect(true), "the database is there when nothing strikes any more");
    }
}

impl Statements {
    /// Returns whether it was committed.
    fn run(&mut self, sql: &str) -> bool {
        let connection = self.connection.as_mut().expect("it is connected");
        let Ok(outcome) = connection.run(sql) else {
            self.connection = None;
            return false;
        };
        let harmless = |state: &String| HARMLESS.iter().any(|class| state.starts_with(class));
        assert!(outcome.errors.iter().all(harmless), "{sql}: {outcome:?}");
        outcome.last_succeeded && !sql.ends_with("ROLLBACK;")
    }

    /// Connects, and brings to an end whatever was prepared. While the server is being struck this waits.
    fn connect(&mut self, commit: bool) -> bool {
        let Ok(mut connection) = self.server.application() else { return false };
        let Ok(outcome) = connection.run("SET lock_timeout = '2s'; SELECT gid FROM pg_prepared_xacts;") else { return false };
        let end = if commit { "COMMIT" } else { "ROLLBACK" };
        let ends: String = outcome.lines.iter().map(|name| format!("{end} PREPARED '{name}';")).collect();
        if !ends.is_empty() && connection.run(&ends).is_err() {
            return false;
        }
        self.prepared = None;
        self.connection = Some(connection);
        true
    }

    fn version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn prepare(&mut self, random: &mut StdRng) -> String {
        let name = format!("prepared {}", self.version());
        let mut sql = String::from("BEGIN;");
        for _ in 0..random.random_range(1..4) {
            let (key, v) = (random.random_range(0..KEYS), self.version());
            sql += &format!(
                "INSERT INTO lines VALUES ('west', {key}, 'prepared', {v}) ON CONFLICT (shop, number) DO UPDATE SET words = 'prepared', v = {v};"
            );
        }
        sql +=
            &format!("DELETE FROM lines WHERE shop = 'west' AND number = {}; PREPARE TRANSACTION '{name}';", random.random_range(0..KEYS));
        self.prepared = Some(name);
        sql
    }

    /// Ends what was prepared.
    fn resolve(&mut self, commit: bool) -> String {
        match self.prepared.take() {
            Some(name) => format!("{} PREPARED '{name}';", if commit { "COMMIT" } else { "ROLLBACK" }),
            None => "SELECT;".to_owned(),
        }
    }

    /// What is done to whole tables.
    fn turn_upside_down(&mut self, random: &mut StdRng) -> String {
        let resolve = self.resolve(true);
        let (key, v) = (random.random_range(0..KEYS), self.version());
        let statement = match random.random_range(0..8) {
            0 => "TRUNCATE lines".to_owned(),
            1 => format!("BEGIN; INSERT INTO settings VALUES ({key}, 'gone', {v}) ON CONFLICT DO NOTHING; TRUNCATE users, settings; INSERT INTO users VALUES ({key}, 'h{key}', 'first', {v}); COMMIT"),
            2 => format!("BEGIN; TRUNCATE stock CASCADE; INSERT INTO stock VALUES ('c{key}', 1, {v}); COMMIT"),
            3 => "BEGIN; TRUNCATE profiles, stock, orders; ROLLBACK".to_owned(),
            4 => format!("ALTER TABLE stock ADD COLUMN IF NOT EXISTS extra text DEFAULT 'of {v}'"),
            5 => "ALTER TABLE stock DROP COLUMN IF EXISTS extra".to_owned(),
            6 => "DO $$ DECLARE found text; BEGIN
                    SELECT attname INTO found FROM pg_attribute WHERE attrelid = 'stock'::regclass AND attnum = 2;
                    EXECUTE format('ALTER TABLE stock RENAME COLUMN %I TO %I', found, CASE found WHEN 'amount' THEN 'count' ELSE 'amount' END);
                  END $$".to_owned(),
            _ => format!("BEGIN; ALTER TABLE settings ADD COLUMN IF NOT EXISTS \"a \"\"b\"\"\" int DEFAULT {key}; UPDATE settings SET v = {v} WHERE id = {key}; COMMIT"),
        };
        format!("{resolve} {statement};")
    }

    fn transaction(&mut self, random: &mut StdRng) -> String {
        let mut sql = String::from("BEGIN;");
        if random.random_bool(0.2) {
            sql += "SET LOCAL synchronous_commit = off;";
        }
        for _ in 0..random.random_range(1..5) {
            let statement = self.statement(random);
            let undone = random.random_bool(0.1);
            sql += &if undone { format!("SAVEPOINT s; {statement}; ROLLBACK TO s; RELEASE s;") } else { format!("{statement};") };
        }
        sql + if random.random_bool(0.1) { "ROLLBACK;" } else { "COMMIT;" }
    }

    fn statement(&mut self, random: &mut StdRng) -> String {
        let (v, key, other) = (self.version(), random.random_range(0..KEYS), random.random_range(0..KEYS));
        let word = match random.random_range(0..4) {
            0 => "NULL".to_owned(),
            1 => "E'x y \"z\" é \\n\\t\\\\'".to_owned(),
            _ => format!("'word {}'", random.random_range(0..1000)),
        };
        let shops = if self.prepared.is_some() { &SHOPS[..2] } else { &SHOPS };
        let shop = shops[random.random_range(0..shops.len())];
        match random.random_range(0..29) {
            0 => format!("INSERT INTO users VALUES ({key}, 'h{other}', {word}, {v}) ON CONFLICT (id) DO UPDATE SET name = {word}, v = {v}"),
            1 => format!("INSERT INTO users VALUES ({key}, 'h{other}', {word}, {v}) ON CONFLICT DO NOTHING"),
            2 => format!("UPDATE users SET name = {word}, v = {v} WHERE id BETWEEN {key} AND {key} + 5"),
            3 => format!("UPDATE users SET id = {other}, v = {v} WHERE id = {key}"),
            4 => format!("DELETE FROM users WHERE handle = 'h{other}'; UPDATE users SET handle = 'h{other}', v = {v} WHERE id = {key}"),
            5 => format!("DELETE FROM users WHERE id = {key}"),
            6 => format!(
                "MERGE INTO users USING (VALUES ({key}, {v}), ({}, {})) AS n(id, v) ON users.id = n.id
                 WHEN MATCHED AND n.v % 5 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET name = 'merged', v = n.v
                 WHEN NOT MATCHED THEN INSERT VALUES (n.id, 'h' || n.id, 'merged', n.v)",
                (key + 1) % KEYS,
                self.version()
            ),
            7 | 8 => format!(
                "INSERT INTO profiles VALUES ('n{key}', 'h{other}', {v}) ON CONFLICT (name) DO UPDATE SET handle = excluded.handle, v = {v}"
            ),
            9 => format!("UPDATE profiles SET handle = 'h{other}', v = {v} WHERE name = 'n{key}'"),
            10 => format!("UPDATE profiles SET name = 'n{other}', v = {v} WHERE name = 'n{key}'"),
            11 => format!("DELETE FROM profiles WHERE handle = 'h{key}'"),
            // Two rows exchange their unique handle, and with it their keys in the cache.
            12 | 13 => format!(
                "UPDATE profiles p SET handle = q.handle, v = CASE p.name WHEN 'n{key}' THEN {v} ELSE {} END FROM profiles q
                 WHERE (p.name, q.name) IN (('n{key}', 'n{other}'), ('n{other}', 'n{key}'))",
                self.version()
            ),
            14 => upsert_line(shop, key, &word, v),
            // Long enough to be kept beside the row; the next one changes the row alone.
            15 => upsert_line(shop, key, &format!("repeat('{key} ', 1500)"), v),
            16 | 17 => format!("UPDATE lines SET v = {v} WHERE shop = '{shop}' AND number BETWEEN {key} AND {key} + 3"),
            18 => format!("UPDATE lines SET number = {other}, v = {v} WHERE shop = '{shop}' AND number = {key}"),
            19 => format!("DELETE FROM lines WHERE shop = '{shop}' AND number BETWEEN {key} AND {key} + 3"),
            20 => format!(
                "DELETE FROM lines WHERE shop = '{shop}' AND number IN ({key}, {0}); COPY lines FROM PROGRAM E'printf \"{shop}\\\\t{key}\\\\tcopied\\\\t{v}\\\\n{shop}\\\\t{0}\\\\t\\\\\\\\\\\\\\\\N\\\\t{1}\\\\n\"'",
                (key + 1) % KEYS,
                self.version()
            ),
            21 => format!("INSERT INTO stock VALUES ('c{key}', {other}, {v}) ON CONFLICT (code) DO UPDATE SET v = {v}"),
            22 => format!("UPDATE stock SET code = 'c{other}', v = {v} WHERE code = 'c{key}'"),
            23 => format!("DELETE FROM stock WHERE code = 'c{key}'"),
            24 => format!(
                "INSERT INTO orders SELECT {key}, code, {v} FROM stock ORDER BY code LIMIT 1 ON CONFLICT (id) DO UPDATE SET v = {v}"
            ),
            25 => format!("DELETE FROM orders WHERE id = {key}"),
            26 => {
                format!("INSERT INTO settings VALUES ({key}, {word}, {v}) ON CONFLICT (id) DO UPDATE SET label = excluded.label, v = {v}")
            }
            27 => format!("UPDATE settings SET id = {other}, label = {word}, v = {v} WHERE id = {key}"),
            _ => format!("DELETE FROM settings WHERE id = {key}"),
        }
    }
}

fn upsert_line(shop: &str, key: u64, words: &str, v: u64) -> String {
    format!(
        "INSERT INTO lines VALUES ('{shop}', {key}, {words}, {v}) ON CONFLICT (shop, number) DO UPDATE SET words = excluded.words, v = {v}"
    )
}
