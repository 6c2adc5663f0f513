//! Which keys of one table the stream has named while its rows are being read, and by which transaction. Pure.

use std::collections::{HashMap, HashSet};

use super::super::ReadRow;
use super::visibility::Snapshot;

/// How many keys are remembered of one transaction. A larger one is waited for until it is visible, and the rows are read again.
const KEYS_MAX: usize = 100_000;
/// How many are remembered of all together.
const ALL_MAX: usize = 300_000;

/// What one transaction has touched.
#[derive(Debug)]
enum Keys {
    These(HashSet<String>),
    /// Every row: the table was truncated.
    All,
    /// More than are remembered.
    TooMany,
}

/// What the stream has touched since a reading was asked for.
#[derive(Debug)]
pub(super) struct Touched {
    table: usize,
    by: HashMap<u32, Keys>,
    /// The newest transaction of which nothing is remembered, since so many others are.
    beyond: Option<u32>,
    /// How many keys and transactions there are.
    remembered: usize,
}

impl Touched {
    /// Nothing yet; only this table matters.
    pub fn new(table: usize) -> Touched {
        Touched { table, by: HashMap::new(), beyond: None, remembered: 0 }
    }

    /// A row was named.
    pub fn row(&mut self, xid: u32, table: usize, pk: &str) {
        if table != self.table {
            return;
        }
        if self.remembered >= ALL_MAX && !self.by.contains_key(&xid) {
            self.pass_over(xid);
            return;
        }
        let keys = self.by.entry(xid).or_insert_with(|| {
            self.remembered += 1;
            Keys::These(HashSet::new())
        });
        if let Keys::These(known) = keys
            && !known.contains(pk)
        {
            if known.len() >= KEYS_MAX || self.remembered >= ALL_MAX {
                self.remembered -= known.len();
                *keys = Keys::TooMany;
            } else {
                known.insert(pk.to_owned());
                self.remembered += 1;
            }
        }
    }

    /// Nothing is remembered of a transaction but that there was one.
    fn pass_over(&mut self, xid: u32) {
        // Numbers begin anew after 32 bits, and no two that are in use are further apart than half of them.
        let newest = self.beyond.filter(|before| before.wrapping_sub(xid) < 1 << 31);
        self.beyond = Some(newest.unwrap_or(xid));
    }

    /// Whether so much was touched that it is better to begin anew, as long as the server has not been asked for the rows.
    pub fn is_much(&self) -> bool {
        self.remembered >= ALL_MAX / 2
    }

    /// The table was truncated.
    pub fn all(&mut self, xid: u32, table: usize) {
        if table != self.table {
            return;
        }
        if self.remembered >= ALL_MAX && !self.by.contains_key(&xid) {
            self.pass_over(xid);
            return;
        }
        match self.by.insert(xid, Keys::All) {
            None => self.remembered += 1,
            Some(Keys::These(known)) => self.remembered -= known.len(),
            Some(Keys::All | Keys::TooMany) => {}
        }
    }

    /// Takes out of `rows` what transactions have touched that the snapshot does not see: what the stream says of it is newer. Returns
    /// whether that could be told; else the rows must be read again.
    pub fn strike_out(&self, snapshot: &Snapshot, rows: &mut Vec<ReadRow>) -> bool {
        if self.beyond.is_some_and(|newest| !snapshot.has_ended(newest)) {
            return false;
        }
        for (_, keys) in self.by.iter().filter(|(xid, _)| !snapshot.sees(**xid)) {
            match keys {
                Keys::These(keys) => rows.retain(|row| !keys.contains(&row.pk)),
                Keys::All => rows.clear(),
                Keys::TooMany => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Image;

    fn rows(pks: &[&str]) -> Vec<ReadRow> {
        pks.iter().map(|pk| ReadRow { pk: (*pk).to_owned(), image: Image::Absent { key: Vec::new() } }).collect()
    }

    fn struck(touched: &Touched) -> Option<Vec<String>> {
        let snapshot = Snapshot::read("10:20:10").unwrap();
        let mut rows = rows(&["1", "2", "3"]);
        touched.strike_out(&snapshot, &mut rows).then(|| rows.into_iter().map(|row| row.pk).collect())
    }

    #[test]
    fn what_an_invisible_transaction_has_touched_is_struck_out() {
        let mut touched = Touched::new(7);
        touched.row(9, 7, "1");
        touched.row(10, 7, "2");
        touched.row(20, 7, "3");
        touched.row(10, 8, "1");
        assert_eq!(struck(&touched), Some(vec!["1".to_owned()]));
        touched.all(10, 8);
        assert_eq!(struck(&touched), Some(vec!["1".to_owned()]));
        touched.all(10, 7);
        assert_eq!(struck(&touched), Some(vec![]));
    }

    #[test]
    fn many_transactions_together_are_remembered_within_bounds() {
        let mut touched = Touched::new(7);
        let mut largest = 0;
        for xid in 20..30 {
            for pk in 0..KEYS_MAX / 2 {
                touched.row(xid, 7, &pk.to_string());
            }
            largest = largest.max(touched.by.values().map(|keys| if let Keys::These(keys) = keys { keys.len() } else { 0 }).sum());
        }
        assert!(touched.is_much() && largest <= ALL_MAX, "{largest}");
        assert_eq!(struck(&touched), None, "what was not remembered must not be passed over");
        touched.all(20, 7);
        assert!(touched.remembered < ALL_MAX, "a truncate takes the place of keys");
    }

    #[test]
    fn transactions_beyond_all_that_is_remembered_take_no_room() {
        let mut touched = Touched::new(7);
        for xid in 0..2 * u32::try_from(ALL_MAX).unwrap() {
            touched.row(xid, 7, "1");
        }
        touched.all(9_999_999, 7);
        assert!(touched.by.len() <= ALL_MAX && touched.remembered <= ALL_MAX + 1, "{} {}", touched.by.len(), touched.remembered);
        let struck = |snapshot: &str| touched.strike_out(&Snapshot::read(snapshot).unwrap(), &mut rows(&["1"]));
        assert!(!struck("9999999:10000001:9999999") && !struck("1:10000001:1"), "one of them may not be visible");
        assert!(struck("10000000:10000001:"));
    }

    #[test]
    fn where_too_much_was_touched_nothing_can_be_told() {
        let mut touched = Touched::new(7);
        for pk in 0..=KEYS_MAX {
            touched.row(10, 7, &pk.to_string());
        }
        assert_eq!(struck(&touched), None);
        let mut visible = Touched::new(7);
        for pk in 0..=KEYS_MAX {
            visible.row(9, 7, &pk.to_string());
        }
        assert_eq!(struck(&visible), Some(vec!["1".to_owned(), "2".to_owned(), "3".to_owned()]), "the snapshot sees all of it");
    }
}
