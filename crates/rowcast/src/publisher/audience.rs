//! Whether anybody consumes what is published. A publisher that was started with another number of partitions than the consumers
//! publishes into queues that nobody looks at, and nothing else would tell. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::change::Partition;

/// Consumers that hand over to each other are gone for a moment; this is longer.
const UNCONSUMED_FOR: Duration = Duration::from_secs(10);

/// What is known of the consumers.
#[derive(Debug, Default)]
pub struct Audience {
    /// Since when some queue has had no consumer.
    missed_since: Option<Instant>,
    told: bool,
}

/// What an operator should hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Nobody has consumed these for a while.
    Missed(Vec<Partition>),
    /// All queues are consumed again.
    Back,
}

impl Audience {
    /// Notes which partitions nobody consumes now.
    pub fn note(&mut self, unconsumed: Vec<Partition>, now: Instant) -> Option<News> {
        if unconsumed.is_empty() {
            self.missed_since = None;
            return std::mem::take(&mut self.told).then_some(News::Back);
        }
        let since = *self.missed_since.get_or_insert(now);
        if self.told || now - since < UNCONSUMED_FOR {
            return None;
        }
        self.told = true;
        Some(News::Missed(unconsumed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_that_nobody_consumes_and_once_that_somebody_does_again() {
        let (one, two) = (Partition { number: 1, of: 2 }, Partition { number: 2, of: 2 });
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut audience = Audience::default();
        assert_eq!(audience.note(vec![one, two], at(0)), None);
        assert_eq!(audience.note(vec![], at(8)), None, "a handing over is no news");
        assert_eq!(audience.note(vec![one], at(9)), None);
        assert_eq!(audience.note(vec![two], at(18)), None);
        assert_eq!(audience.note(vec![two], at(19)), Some(News::Missed(vec![two])));
        assert_eq!(audience.note(vec![two], at(60)), None);
        assert_eq!(audience.note(vec![], at(62)), Some(News::Back));
        assert_eq!(audience.note(vec![], at(64)), None);
    }
}
