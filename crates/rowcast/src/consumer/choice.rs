//! What to do with the deliveries in hand: which of them go into the next block, and which have to wait. Pure but for the clock.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::fold::Fold;
use super::inbox::Inbox;
use super::{Settings, fresh_run};
use crate::batch::{Batch, DecodeError};
use crate::cache::Stored;
use crate::change::{Partition, Table};

/// What to do with the deliveries in hand.
pub(super) enum Choice<'m> {
    /// Write this; the indexes are of the deliveries in it.
    Fold { fold: Box<Fold<'m>>, folded: Vec<usize> },
    /// These begin after the checkpoint; their predecessors may be on the way. Empty where nothing is in hand.
    Wait { ahead: Vec<usize> },
    /// This one is no batch.
    SetAside(usize, String),
    /// This one may not be skipped and cannot be read.
    Stop(String),
    /// The first one is of another lineage, and the channel has seen others.
    Reopen,
}

pub(super) type Decoded<'m> = Vec<(usize, Result<Batch<'m>, DecodeError>)>;

/// Reads the first deliveries in hand, as many as fit one block.
pub(super) fn decode<'m>(inbox: &'m Inbox, settings: &Settings, partition: Partition) -> Decoded<'m> {
    let mut decoded = Vec::new();
    let mut bytes = 0;
    for (index, held) in inbox.iter().enumerate().filter(|(_, held)| !held.done) {
        let batch = Batch::decode(&held.delivery.body, partition).and_then(|batch| {
            if batch.pipeline == settings.pipeline {
                Ok(batch)
            } else {
                Err(DecodeError::Malformed(format!("it is of the pipeline {}", batch.pipeline)))
            }
        });
        decoded.push((index, batch));
        bytes += held.delivery.body.len();
        if bytes >= settings.block_bytes {
            break;
        }
    }
    decoded
}

/// Folds what fits onto what stands in the cache, in order.
pub(super) fn choose<'m>(
    decoded: &'m Decoded<'m>,
    inbox: &Inbox,
    first_tag: Option<u64>,
    stored: Option<&'m Stored>,
    lost: &BTreeSet<Table>,
    patience: Duration,
    settings: &Settings,
) -> Choice<'m> {
    let now = Instant::now();
    let mut fold = Fold::new(stored, lost, &mut fresh_run);
    let mut folded = Vec::new();
    let mut ahead = Vec::new();
    for (index, batch) in decoded {
        let batch = match batch {
            Ok(batch) => batch,
            Err(_) if !folded.is_empty() => break,
            Err(DecodeError::Malformed(reason)) => {
                let reason = format!("a message that is no batch ({reason}); only a publisher of the pipeline may publish to its exchange");
                return Choice::SetAside(*index, reason);
            }
            Err(error) => return Choice::Stop(error.to_string()),
        };
        let held = inbox.iter().nth(*index).expect("it was decoded from there");
        if let Some(checkpoint) = fold.checkpoint() {
            if checkpoint.lineage != batch.lineage {
                // Everything before it is applied and acked first; then the channel is opened anew, so that nothing of the old
                // lineage can be delivered again after it.
                if !folded.is_empty() || !ahead.is_empty() {
                    break;
                }
                if first_tag != Some(held.delivery.tag) {
                    return Choice::Reopen;
                }
            } else if batch.from > checkpoint.position && now - held.ahead_since.unwrap_or(now) < patience {
                ahead.push(*index);
                continue;
            }
        }
        fold.add(batch, &mut fresh_run);
        folded.push(*index);
        let (keys, bytes) = fold.size();
        if keys >= settings.block_keys || bytes >= settings.block_bytes {
            break;
        }
    }
    if folded.is_empty() && lost.is_empty() { Choice::Wait { ahead } } else { Choice::Fold { fold: Box::new(fold), folded } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Delivery;
    use crate::cache::{Stored, Version};
    use crate::change::Run;
    use crate::checkpoint::Checkpoint;

    const ONE: Partition = Partition { number: 1, of: 1 };

    /// A batch that moves on from `from` in this lineage, with a chunk for `run`.
    fn message(lineage: &str, from: u64, run: &str) -> Vec<u8> {
        let text = format!(
            r#"{{"rowcast":1,"pipeline":"p","lineage":"{lineage}","partition":"1of1","from":"{from:x}-0","to":"{:x}-0","mapping":{{"t":"0 json t:{{id:integer}}"}},"changes":[],"chunk":{{"table":"t","run":"{run}","after":null,"upto":[7],"last":false}}}}"#,
            from + 1
        );
        text.into_bytes()
    }

    /// What stands in the cache: lineage `a` at position 1, with a resync of the table open.
    fn stored(run: &str) -> Stored {
        let message = message("a", 0, "none");
        let batch = Batch::decode(&message, ONE).unwrap();
        let mut fold = Fold::new(None, &BTreeSet::new(), &mut fresh_run);
        fold.add(&batch, &mut fresh_run);
        let mut checkpoint: Checkpoint = fold.checkpoint().unwrap().clone();
        checkpoint.open(&Table::from("t"), Run(run.into()));
        Stored { checkpoint, version: Version("v".to_owned()) }
    }

    /// Chooses among these messages, which came after `before` others on the channel.
    fn chosen<T>(messages: &[Vec<u8>], before: u64, stored: &Stored, look: impl FnOnce(Choice<'_>) -> T) -> T {
        let settings = Settings::new("p", 1);
        let mut inbox = Inbox::default();
        for (tag, body) in (before + 1..).zip(messages) {
            inbox.push(Delivery { tag, body: body.clone() });
        }
        let decoded = decode(&inbox, &settings, ONE);
        look(choose(&decoded, &inbox, Some(1), Some(stored), &BTreeSet::new(), settings.patience, &settings))
    }

    #[test]
    fn another_lineage_begins_on_a_channel_of_its_own_and_after_all_of_the_old_one() {
        let stored = stored("run");
        let reopens = |messages: &[Vec<u8>], before| chosen(messages, before, &stored, |choice| matches!(choice, Choice::Reopen));
        assert!(reopens(&[message("b", 0, "run")], 1), "the channel has seen others");
        assert!(!reopens(&[message("b", 0, "run")], 0), "it is the first on its channel");
        let folded = chosen(&[message("a", 1, "run"), message("b", 0, "run")], 1, &stored, |choice| match choice {
            Choice::Fold { folded, .. } => folded,
            _ => panic!("the old lineage's batch comes first"),
        });
        assert_eq!(folded, [0], "all of the old one is applied before");
    }

    #[test]
    fn a_chunk_is_progress_in_the_run_that_it_was_read_for_and_in_no_other() {
        let upto = |run| {
            let stored = stored("run");
            chosen(&[message("a", 1, run)], 1, &stored, |choice| match choice {
                Choice::Fold { fold, .. } => fold.checkpoint().unwrap().resyncs[&Table::from("t")].upto.is_some(),
                _ => panic!("it joins on"),
            })
        };
        assert!(upto("run"));
        assert!(!upto("an older one"));
    }
}
