//! The deliveries of one channel that are not acked yet, in order. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::broker::Delivery;

/// A delivery in hand.
#[derive(Debug)]
pub struct Held {
    /// It.
    pub delivery: Delivery,
    /// Whether what it says stands in the cache.
    pub done: bool,
    /// Since when it is known to begin after the checkpoint.
    pub ahead_since: Option<Instant>,
}

/// Deliveries in the order in which they came.
#[derive(Debug, Default)]
pub struct Inbox {
    held: VecDeque<Held>,
    bytes: usize,
}

impl Inbox {
    /// Takes a delivery in.
    pub fn push(&mut self, delivery: Delivery) {
        self.bytes += delivery.body.len();
        self.held.push_back(Held { delivery, done: false, ahead_since: None });
    }

    /// Deliveries in hand.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Their bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Held> {
        self.held.iter()
    }

    /// One of them.
    pub fn get_mut(&mut self, index: usize) -> &mut Held {
        &mut self.held[index]
    }

    /// Lets go of what is done at the front. Returns the tag up to which everything may be acked.
    pub fn take_done(&mut self) -> Option<u64> {
        let mut newest = None;
        while let Some(held) = self.held.pop_front_if(|held| held.done) {
            self.bytes -= held.delivery.body.len();
            newest = Some(held.delivery.tag);
        }
        newest
    }

    /// When the first batch that waits for its predecessor has waited long enough.
    pub fn patience_ends(&self, patience: Duration) -> Option<Instant> {
        self.held.iter().filter(|held| !held.done).filter_map(|held| held.ahead_since).min().map(|since| since + patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_acked_before_what_came_earlier() {
        let mut inbox = Inbox::default();
        for tag in 1..=3 {
            inbox.push(Delivery { tag, body: vec![0; 10] });
        }
        inbox.get_mut(1).done = true;
        assert_eq!(inbox.take_done(), None);
        inbox.get_mut(0).done = true;
        assert_eq!(inbox.take_done(), Some(2));
        assert_eq!((inbox.len(), inbox.bytes()), (1, 10));
    }
}
