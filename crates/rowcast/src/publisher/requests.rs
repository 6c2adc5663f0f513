//! What was requested of the publisher, until what answers it is confirmed.

use std::collections::{BTreeMap, VecDeque};

use super::ledger::Ledger;
use crate::broker::Ticket;
use crate::change::Table;

/// Requests for rows and for resyncs, by their numbers. A request that is not settled comes again to the next session, so nothing
/// here has to survive.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Rows that are to be read singly, by table.
    rows: BTreeMap<usize, VecDeque<String>>,
    /// The numbers of the requests for them.
    row_requests: Vec<u64>,
    /// Tables whose resync is to be passed on.
    resyncs: Vec<Table>,
    /// The numbers of the requests for them.
    resync_requests: Vec<u64>,
    /// Requests that are answered by what was sent up to a ticket.
    answered: VecDeque<(Ticket, u64)>,
}

impl Requests {
    /// Somebody requests rows by their primary keys.
    pub(super) fn want_rows(&mut self, table: usize, pks: impl Iterator<Item = String>, number: u64) {
        self.rows.entry(table).or_default().extend(pks);
        self.row_requests.push(number);
    }

    /// Rows of a request that is known are still to be read.
    pub(super) fn want_more_rows(&mut self, table: usize, pks: VecDeque<String>) {
        if !pks.is_empty() {
            self.rows.entry(table).or_default().extend(pks);
        }
    }

    /// The rows of one table that is free that are to be read next; whoever takes them brings back what could not be read yet.
    pub(super) fn next_rows(&mut self, free: impl Fn(usize) -> bool) -> Option<(usize, VecDeque<String>)> {
        let table = self.rows.keys().copied().find(|table| free(*table))?;
        self.rows.remove_entry(&table)
    }

    /// Rows went out, the last with `ticket`; if they were the last ones every request for rows is answered.
    pub(super) fn rows_sent(&mut self, ticket: Ticket) {
        if self.rows.is_empty() {
            self.answered.extend(self.row_requests.drain(..).map(|number| (ticket, number)));
        }
    }

    /// A table is to be resynced.
    pub(super) fn want_resync(&mut self, table: Table) {
        if !self.resyncs.contains(&table) {
            self.resyncs.push(table);
        }
    }

    /// A request is answered when the resyncs are passed on.
    pub(super) fn resyncs_by(&mut self, number: u64) {
        self.resync_requests.push(number);
    }

    /// The tables whose resync is to be passed on.
    pub(super) fn resyncs(&self) -> &[Table] {
        &self.resyncs
    }

    /// They went out to every partition, the last with `ticket`.
    pub(super) fn resyncs_sent(&mut self, ticket: Ticket) {
        self.resyncs.clear();
        self.answered.extend(self.resync_requests.drain(..).map(|number| (ticket, number)));
    }

    /// A request is answered by what was sent up to `ticket`.
    pub(super) fn answered_by(&mut self, ticket: Ticket, number: u64) {
        self.answered.push_back((ticket, number));
    }

    /// The next request whose answer is confirmed.
    pub(super) fn settled(&mut self, ledger: &Ledger) -> Option<u64> {
        self.answered.pop_front_if(|(ticket, _)| ledger.settled(*ticket)).map(|(_, number)| number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_for_rows_are_answered_together_once_all_are_sent() {
        let mut requests = Requests::default();
        requests.want_rows(1, ["a", "b"].map(str::to_owned).into_iter(), 7);
        requests.want_rows(2, ["c"].map(str::to_owned).into_iter(), 8);
        let (table, mut pks) = requests.next_rows(|_| true).unwrap();
        assert_eq!((table, pks.pop_front().as_deref()), (1, Some("a")));
        requests.want_more_rows(table, pks);
        requests.rows_sent(Ticket(1));
        assert_eq!(requests.answered, []);
        assert_eq!(requests.next_rows(|table| table != 1), Some((2, ["c".to_owned()].into())));
        requests.want_more_rows(2, ["c".to_owned()].into());
        assert_eq!(requests.next_rows(|_| true), Some((1, ["b".to_owned()].into())));
        assert_eq!(requests.next_rows(|_| true), Some((2, ["c".to_owned()].into())));
        requests.want_more_rows(2, VecDeque::new());
        requests.rows_sent(Ticket(3));
        assert_eq!(requests.answered, [(Ticket(3), 7), (Ticket(3), 8)]);
    }

    #[test]
    fn a_table_is_resynced_once_for_all_who_ask() {
        let mut requests = Requests::default();
        let users = Table::from("users");
        for number in [1, 2] {
            requests.want_resync(users.clone());
            requests.resyncs_by(number);
        }
        assert_eq!(requests.resyncs(), [users]);
        requests.resyncs_sent(Ticket(9));
        assert_eq!(requests.resyncs(), []);
        assert_eq!(requests.answered, [(Ticket(9), 1), (Ticket(9), 2)]);
    }
}
