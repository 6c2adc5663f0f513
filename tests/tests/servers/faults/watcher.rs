//! A plain Redis client that reads every key all the while: none may be seen going back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rowcast_testkit::wait::until_blocking;

/// The keys that hold JSON, and those that are hashes.
type Keys = (Vec<String>, Vec<String>);

/// A thread that reads until it is told to stop.
#[derive(Debug)]
pub struct Watcher {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    shared: Arc<Mutex<Sightings>>,
    thread: Option<JoinHandle<()>>,
}

/// What was seen so far.
#[derive(Debug, Default)]
struct Sightings {
    /// The newest version of each key, and whether it was there when it was last looked for.
    newest: HashMap<String, (u64, bool)>,
    /// What must not be.
    wrong: Vec<String>,
    /// Whether nothing counts for now.
    excused: bool,
}

impl Sightings {
    fn see(&mut self, key: &str, version: Option<u64>) {
        if self.excused {
            return;
        }
        let Some(version) = version else {
            if let Some((_, present)) = self.newest.get_mut(key) {
                *present = false;
            }
            return;
        };
        match self.newest.get(key) {
            Some((newest, _)) if version < *newest => {
                self.wrong.push(format!("{}: {key} went back from version {newest} to {version}", now()))
            }
            // Each time a row is written it gets a version of its own, so this one was gone for good.
            Some((newest, false)) if version == *newest => {
                self.wrong.push(format!("{}: {key} was gone and came back with the same version {version}", now()));
            }
            _ => {}
        }
        self.newest.insert(key.to_owned(), (version, true));
    }
}

impl Watcher {
    /// Watches these keys in the cache at `url`.
    pub fn start(url: &str, keys: Keys) -> Watcher {
        let client = redis::Client::open(url).expect("a URL");
        let (stop, rounds, shared) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::default());
        let (stopped, counted, sightings) = (stop.clone(), rounds.clone(), Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            while !stopped.load(SeqCst) {
                // A server that restarts is no reason to stop watching.
                if let Ok(mut connection) = client.get_connection()
                    && connection.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
                {
                    while !stopped.load(SeqCst) && round(&mut connection, &keys, &sightings).is_ok() {
                        counted.fetch_add(1, SeqCst);
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Watcher { stop, rounds, shared, thread: Some(thread) }
    }

    /// Nothing counts any more: Redis or the source is about to go back itself.
    pub fn excuse(&self) {
        self.sightings().excused = true;
    }

    /// From now on everything counts again, as if no key had been seen before.
    pub fn watch_anew(&self) {
        // Whatever was read before this call has been looked at after two more rounds.
        let rounds = self.rounds.load(SeqCst);
        let passed = || (self.rounds.load(SeqCst) >= rounds + 2).then_some(());
        until_blocking("the watcher to look", Duration::from_secs(40), passed).expect("it looks");
        let mut sightings = self.sightings();
        sightings.newest.clear();
        sightings.excused = false;
    }

    fn sightings(&self) -> MutexGuard<'_, Sightings> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it; returns how often it looked, and what it saw that must not be.
    pub fn stop(&mut self) -> (u64, Vec<String>) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the watcher ends well");
        }
        (self.rounds.load(SeqCst), self.sightings().wrong.clone())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

/// Looks at every key once.
fn round(connection: &mut redis::Connection, (json, hashes): &Keys, sightings: &Mutex<Sightings>) -> redis::RedisResult<()> {
    let texts: Vec<Option<String>> = redis::cmd("MGET").arg(json).query(connection)?;
    let mut pipe = redis::pipe();
    for key in hashes {
        pipe.cmd("HGET").arg(key).arg("v");
    }
    let numbers: Vec<Option<u64>> = pipe.query(connection)?;
    let mut sightings = sightings.lock().unwrap_or_else(PoisonError::into_inner);
    for (key, text) in json.iter().zip(texts) {
        sightings.see(key, text.map(|text| version(&text)));
    }
    for (key, number) in hashes.iter().zip(numbers) {
        sightings.see(key, number);
    }
    Ok(())
}

/// The time of day in UTC, to be found in the logs.
pub fn now() -> String {
    let day = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis()) % 86_400_000;
    format!("{:02}:{:02}:{:06.3}", day / 3_600_000, day / 60_000 % 60, (day % 60_000) as f64 / 1000.0)
}

fn version(json: &str) -> u64 {
    let row: serde_json::Value = serde_json::from_str(json).expect("a row is JSON");
    row["v"].as_u64().expect("every row has a version")
}
