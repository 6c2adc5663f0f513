//! Everything that SQL can do to a key, from a seed.

use rand::RngExt;
use rand::rngs::StdRng;
use rusqlite::Connection;

use super::super::database::{Application, KEYS, SHOPS};
use super::more;
use super::schema::Tables;

/// An application with a connection of its own.
pub struct Statements {
    pub connection: Connection,
    pub tables: Tables,
    pub version: u64,
}

impl Application for Statements {
    fn transact(&mut self, random: &mut StdRng) -> bool {
        let (count, rolled_back) = (random.random_range(1..5), random.random_bool(0.1));
        self.connection.execute_batch("BEGIN IMMEDIATE").expect("a transaction begins");
        for _ in 0..count {
            for sql in self.next(random) {
                match self.connection.execute_batch(&sql) {
                    Ok(()) => {}
                    // Random statements violate constraints; then they do nothing.
                    Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {}
                    Err(error) => panic!("{sql}: {error}"),
                }
            }
        }
        self.connection.execute_batch(if rolled_back { "ROLLBACK" } else { "COMMIT" }).expect("the transaction ends");
        !rolled_back
    }
}

impl Statements {
    fn version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn key(random: &mut StdRng) -> u64 {
        random.random_range(0..KEYS)
    }

    fn word(random: &mut StdRng) -> String {
        match random.random_range(0..4) {
            0 => "NULL".to_owned(),
            1 => "'x y \"z\" é'".to_owned(),
            _ => format!("'word {}'", random.random_range(0..1000)),
        }
    }

    /// What belongs together.
    fn next(&mut self, random: &mut StdRng) -> Vec<String> {
        let (v, key, other, word) = (self.version(), Self::key(random), Self::key(random), Self::word(random));
        if self.tables == Tables::Ten && random.random_bool(0.6) {
            return vec![more::statement(random, [key, other], &word, v)];
        }
        let shop = SHOPS[random.random_range(0..SHOPS.len())];
        let one = match random.random_range(0..22) {
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
