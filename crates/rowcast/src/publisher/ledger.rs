//! What the broker was handed and has not confirmed yet, and what follows from its confirms: how far the source may forget. Pure.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use crate::broker::Ticket;
use crate::change::{Partition, Position};

/// A message without a confirm.
#[derive(Debug)]
struct Entry {
    ticket: Ticket,
    /// For a batch: what its confirm proves.
    proves: Option<(Partition, Position)>,
    bytes: usize,
    sent: Instant,
    confirmed: bool,
}

/// The unconfirmed messages of one session, in the order of sending.
#[derive(Debug)]
pub struct Ledger {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Up to where each partition has everything, without a hole in the confirms before it.
    confirmed: HashMap<Partition, Position>,
    /// Ends of complete reads that are not forgotten yet, in order.
    complete: VecDeque<Position>,
}

impl Ledger {
    /// Nothing sent; everything up to `from` was confirmed in an earlier session.
    pub fn new(partitions: u16, from: Position) -> Ledger {
        Ledger {
            entries: VecDeque::new(),
            bytes: 0,
            confirmed: Partition::all(partitions).map(|partition| (partition, from)).collect(),
            complete: VecDeque::new(),
        }
    }

    /// Notes a message that was handed over; `proves` says what a batch's confirm proves.
    pub fn sent(&mut self, ticket: Ticket, proves: Option<(Partition, Position)>, bytes: usize, now: Instant) {
        self.bytes += bytes;
        self.entries.push_back(Entry { ticket, proves, bytes, sent: now, confirmed: false });
    }

    /// Notes a confirm. Returns how many messages are now confirmed without a hole before them.
    ///
    /// # Panics
    /// If the ticket was never sent or was confirmed before: the broker's answer would prove something else than we think.
    pub fn confirm(&mut self, ticket: Ticket) -> usize {
        let index = self.entries.binary_search_by_key(&ticket, |entry| entry.ticket);
        let entry = index.ok().and_then(|index| self.entries.get_mut(index));
        let entry = entry.filter(|entry| !entry.confirmed);
        entry.unwrap_or_else(|| panic!("the broker confirmed {ticket:?}, which is not open")).confirmed = true;
        let mut settled = 0;
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.confirmed) {
            self.bytes -= entry.bytes;
            settled += 1;
            if let Some((partition, to)) = entry.proves {
                let confirmed = self.confirmed.entry(partition).or_insert(to);
                *confirmed = to.max(*confirmed);
            }
        }
        settled
    }

    /// Whether this message and all before it are confirmed.
    pub fn settled(&self, ticket: Ticket) -> bool {
        self.entries.front().is_none_or(|entry| entry.ticket > ticket)
    }

    /// Notes the end of a complete read.
    pub fn complete(&mut self, position: Position) {
        debug_assert!(self.complete.back().is_none_or(|last| *last <= position));
        self.complete.push_back(position);
    }

    /// The newest end of a complete read up to which every partition has a confirmed batch; each is told once.
    pub fn forgettable(&mut self) -> Option<Position> {
        let proven = *self.confirmed.values().min()?;
        let mut newest = None;
        while let Some(position) = self.complete.pop_front_if(|position| *position <= proven) {
            newest = Some(position);
        }
        newest
    }

    /// Messages without a confirm.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Their bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the oldest message without a confirm was sent.
    pub fn oldest(&self) -> Option<Instant> {
        self.entries.front().map(|entry| entry.sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Partition = Partition { number: 1, of: 2 };
    const TWO: Partition = Partition { number: 2, of: 2 };

    #[tokio::test(start_paused = true)]
    async fn the_source_may_forget_only_what_every_partition_has() {
        let mut ledger = Ledger::new(2, Position(1, 1));
        let now = Instant::now();
        ledger.sent(Ticket(1), None, 5, now);
        ledger.sent(Ticket(2), Some((ONE, Position(2, 2))), 5, now);
        ledger.sent(Ticket(3), Some((TWO, Position(3, 1))), 5, now);
        ledger.complete(Position(2, 2));
        ledger.complete(Position(3, 3));
        assert_eq!(ledger.confirm(Ticket(3)), 0);
        assert_eq!(ledger.confirm(Ticket(2)), 0, "the record before it is not confirmed");
        assert_eq!(ledger.forgettable(), None);
        assert_eq!(ledger.confirm(Ticket(1)), 3);
        assert_eq!(ledger.forgettable(), Some(Position(2, 2)));
        assert_eq!(ledger.forgettable(), None, "each is told once");
        assert_eq!((ledger.len(), ledger.bytes()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "which is not open")]
    async fn a_confirm_of_nothing_is_not_believed() {
        Ledger::new(1, Position::START).confirm(Ticket(1));
    }
}
