//! What is to be handed out, in order: some of it waits for the server's verdict on rows, and all behind it waits too. Pure.

use std::collections::{BTreeMap, VecDeque};

use super::super::Portion;
use super::cases::{self, Case, Untold};
use super::judge::Verdict;
use crate::change::{Change, Position};

/// How many portions may wait, so that reading ahead is bounded.
const SLOTS_MAX: usize = 8;

/// A place in the queue.
#[derive(Debug)]
enum Slot {
    Ready(Portion),
    /// Changes that need verdicts.
    Judged {
        changes: Vec<Change>,
        cases: Vec<Case>,
        to: Position,
        complete: bool,
    },
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    slots: VecDeque<Slot>,
}

impl Outbox {
    /// Puts a portion at the end.
    pub fn push(&mut self, portion: Portion) {
        self.slots.push_back(Slot::Ready(portion));
    }

    /// Puts changes at the end that need verdicts.
    pub fn push_unjudged(&mut self, changes: Vec<Change>, cases: Vec<Case>, to: Position, complete: bool) {
        self.slots.push_back(Slot::Judged { changes, cases, to, complete });
    }

    /// Takes the first portion, if it is ready.
    pub fn pop(&mut self) -> Option<Portion> {
        match self.slots.pop_front_if(|slot| matches!(slot, Slot::Ready(_)))? {
            Slot::Ready(portion) => Some(portion),
            Slot::Judged { .. } => unreachable!("only what is ready is taken"),
        }
    }

    /// Whether there is something to take.
    pub fn is_ready(&self) -> bool {
        matches!(self.slots.front(), Some(Slot::Ready(_)))
    }

    /// Whether more may be put in.
    pub fn has_room(&self) -> bool {
        self.slots.len() < SLOTS_MAX
    }

    /// The verdicts on the first changes that wait for any. Returns the rows that must be read.
    pub fn judged(&mut self, verdicts: BTreeMap<usize, Vec<Verdict>>) -> Vec<Untold> {
        let waiting = self.slots.iter_mut().find(|slot| matches!(slot, Slot::Judged { .. }));
        let slot = waiting.expect("verdicts come for what waits for them");
        let Slot::Judged { changes, cases, to, complete } = slot else { unreachable!("it was just looked for") };
        let (mut changes, to, complete) = (std::mem::take(changes), *to, *complete);
        let untold = cases::settle(&mut changes, std::mem::take(cases), verdicts);
        *slot = Slot::Ready(Portion::Changes { changes, to, complete });
        untold
    }
}
