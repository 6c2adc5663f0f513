//! A change that cannot be mapped or applied: set aside with its reason, its key removed from the cache. A miss is right, a
//! stale value is not.

use serde::{Deserialize, Serialize};

use crate::batch::VERSION;
use crate::change::{Op, Table};

/// The AMQP property `type` of a dead letter.
pub const MESSAGE_TYPE: &str = "rowcast.dead_letter";

/// How much of a message that is no batch is kept: enough to see where it came from, and never more than the broker takes.
const MESSAGE_MAX: usize = 64 * 1024;

/// What was set aside, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    rowcast: u32,
    /// The pipeline's name.
    pub pipeline: String,
    /// Why.
    pub reason: String,
    /// The table, where it is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub table: Option<Table>,
    /// What happened to the row.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub op: Option<Op>,
    /// The primary key as JSON text.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pk: Option<String>,
    /// The Redis key that was removed, where it could be told.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<String>,
    /// The beginning of a message that is not a batch, bytes that are not UTF-8 replaced.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<String>,
}

impl DeadLetter {
    /// A row that cannot be mapped or applied.
    pub fn of_row(pipeline: &str, table: &str, op: Op, pk: &str, key: Option<&str>, reason: &str) -> DeadLetter {
        DeadLetter {
            rowcast: VERSION,
            pipeline: pipeline.to_owned(),
            reason: reason.to_owned(),
            table: Some(Table::from(table)),
            op: Some(op),
            pk: (!pk.is_empty()).then(|| pk.to_owned()),
            key: key.map(str::to_owned),
            message: None,
        }
    }

    /// A message that is not a batch.
    pub fn of_message(pipeline: &str, message: &[u8], reason: &str) -> DeadLetter {
        DeadLetter {
            rowcast: VERSION,
            pipeline: pipeline.to_owned(),
            reason: reason.to_owned(),
            table: None,
            op: None,
            pk: None,
            key: None,
            message: Some(String::from_utf8_lossy(&message[..message.len().min(MESSAGE_MAX)]).into_owned()),
        }
    }

    /// The message that goes to the queue of dead letters.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a dead letter is plain data")
    }
}
