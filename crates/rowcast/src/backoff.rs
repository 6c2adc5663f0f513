//! The pauses between attempts: each twice as long as the one before, up to a limit.

use std::time::Duration;

/// Pauses that grow while nothing works.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    next: Duration,
}

impl Backoff {
    /// Begins with `first` and never exceeds `limit`.
    pub fn new(first: Duration, limit: Duration) -> Backoff {
        Backoff { first, limit, next: first }
    }

    /// The pause before the next attempt.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.limit);
        pause
    }

    /// Something worked: begin again with the shortest pause.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}
