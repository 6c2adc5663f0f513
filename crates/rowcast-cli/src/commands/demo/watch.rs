//! What the consumer tells of each block: which keys, and how long after their commit.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;
use rowcast::change::Op;
use rowcast::consumer::Applied;
use tokio::sync::Notify;

/// Looks on at the consumer's work.
pub struct Watch {
    seen: Mutex<Seen>,
    changed: Notify,
}

struct Seen {
    /// From the changelog's time stamp to the cache's answer, in microseconds.
    lag: Histogram<u64>,
    /// When the last key was written.
    last: Option<Instant>,
    /// When each key was written last; only before the load.
    keys: Option<BTreeMap<String, Instant>>,
}

impl Default for Watch {
    fn default() -> Watch {
        // One microsecond to one hour, three digits.
        let lag = Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("these bounds are possible");
        Watch { seen: Mutex::new(Seen { lag, last: None, keys: Some(BTreeMap::new()) }), changed: Notify::new() }
    }
}

impl Watch {
    /// The consumer's observer.
    pub fn applied(&self, applied: &Applied<'_>) {
        let now = Instant::now();
        let mut seen = self.lock();
        for write in applied.writes.iter().filter(|write| write.op != Op::Read) {
            seen.lag.saturating_record(u64::try_from(applied.applied_us - write.committed_us).unwrap_or(0));
            seen.last = Some(now);
            if let Some(keys) = &mut seen.keys {
                keys.insert(write.key.to_owned(), now);
            }
        }
        drop(seen);
        self.changed.notify_waiters();
    }

    /// Waits until `key` is written, and says when it was. Each write is told once.
    pub async fn written(&self, key: &str) -> Instant {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if let Some(when) = self.lock().keys.as_mut().and_then(|keys| keys.remove(key)) {
                return when;
            }
            changed.await;
        }
    }

    /// Forgets the single steps; from now on only the lag is kept.
    pub fn begin_load(&self) {
        let mut seen = self.lock();
        seen.lag.reset();
        seen.last = None;
        seen.keys = None;
    }

    /// When the last key was written.
    pub fn last(&self) -> Option<Instant> {
        self.lock().last
    }

    /// The lag of every write so far.
    pub fn lag(&self) -> Histogram<u64> {
        self.lock().lag.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
