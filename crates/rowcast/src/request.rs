//! What is asked of the publisher through the control queue: chunks by consumers, the rest by commands.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::batch::VERSION;
use crate::change::{Bound, Partition, Run, Table};

/// How many chunks an asking is good for.
pub const CREDIT: u32 = 4;

/// A consumer asks for the chunks of one table that follow `after`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asking {
    /// Which table.
    pub table: Table,
    /// For which partition.
    pub partition: Partition,
    /// For which attempt.
    pub run: Run,
    /// From where on.
    pub after: Option<Bound>,
    /// Whether what was sent from here on has not arrived, so that it must be sent again. Otherwise the asking only extends
    /// the credit of what is under way.
    pub again: bool,
}

/// A request to the publisher.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Chunks of a resync.
    Chunk(Asking),
    /// These rows, read singly, as they are now.
    Rows {
        /// Which table.
        table: Table,
        /// Their primary keys, each a JSON object.
        pks: Vec<Box<RawValue>>,
    },
    /// A resync of these tables.
    Resync {
        /// Which tables.
        tables: Vec<Table>,
    },
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    rowcast: u32,
    request: Request,
}

impl Request {
    /// The message.
    pub fn encode(self) -> Vec<u8> {
        serde_json::to_vec(&Envelope { rowcast: VERSION, request: self }).expect("a request is plain data")
    }

    /// Reads a message; the error says what is wrong with it.
    pub fn decode(message: &[u8]) -> Result<Request, String> {
        let envelope: Envelope = serde_json::from_slice(message).map_err(|error| format!("not a request: {error}"))?;
        if envelope.rowcast != VERSION {
            return Err(format!("a request of version {}, this rowcast reads version {VERSION}", envelope.rowcast));
        }
        Ok(envelope.request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back_as_it_was_written() {
        let asking = Asking {
            table: "users".into(),
            partition: Partition { number: 3, of: 4 },
            run: Run("01J".into()),
            after: Some(Bound("[4000]".into())),
            again: true,
        };
        let Ok(Request::Chunk(read)) = Request::decode(&Request::Chunk(asking.clone()).encode()) else { panic!() };
        assert_eq!(read, asking);
        let pk = RawValue::from_string(r#"{"id":7}"#.to_owned()).unwrap();
        let rows = Request::Rows { table: "users".into(), pks: vec![pk] }.encode();
        assert_eq!(String::from_utf8(rows).unwrap(), r#"{"rowcast":1,"request":{"rows":{"table":"users","pks":[{"id":7}]}}}"#);
        assert!(Request::decode(b"hello").is_err());
        assert!(Request::decode(br#"{"rowcast":2,"request":{"resync":{"tables":[]}}}"#).is_err());
    }
}
