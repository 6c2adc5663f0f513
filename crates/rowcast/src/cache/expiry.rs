//! When the keys of a memory cache go by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// Which keys have a time to live, and until when. By the clock of the runtime, which a test may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expiries {
    by_key: BTreeMap<String, Instant>,
    by_time: BTreeSet<(Instant, String)>,
}

impl Expiries {
    /// The key goes so much later than now.
    pub fn set(&mut self, key: &str, ttl: Duration) {
        self.clear(key);
        let at = Instant::now() + ttl;
        self.by_key.insert(key.to_owned(), at);
        self.by_time.insert((at, key.to_owned()));
    }

    /// The key stays.
    pub fn clear(&mut self, key: &str) {
        if let Some((key, at)) = self.by_key.remove_entry(key) {
            self.by_time.remove(&(at, key));
        }
    }

    /// How long the key still has; `None` if it stays.
    pub fn left(&self, key: &str) -> Option<Duration> {
        self.by_key.get(key).map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// The next key whose time has come.
    pub(super) fn due(&mut self) -> Option<String> {
        // Without any there is no need to look at the clock.
        let (_, key) = self.by_time.first().filter(|(at, _)| *at <= Instant::now())?.clone();
        self.clear(&key);
        Some(key)
    }
}
