//! The batch and its wire form (version 1): every change of one partition in one stretch of history, `(from, to]`.
//!
//! Encoding appends to one growing text and decoding borrows from the message, so that a row is copied once on each side.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::change::{Bound, Lineage, Op, Partition, Position, Run, Table};
use crate::mapping::Descriptor;

/// The version of the wire form that this program writes and reads.
pub const VERSION: u32 = 1;

/// A message type, as it stands in the AMQP property `type`.
pub const MESSAGE_TYPE: &str = "rowcast.batch";

/// One change of one Redis key.
#[derive(Debug, Deserialize)]
pub struct KeyChange<'m> {
    /// What happened. `Read` marks the rows of a chunk.
    pub op: Op,
    /// The table's name.
    #[serde(borrow)]
    pub table: Cow<'m, str>,
    /// The primary key, a JSON object. Absent for a truncate.
    #[serde(borrow, default)]
    pub pk: Option<&'m RawValue>,
    /// The Redis key. Empty for a truncate.
    #[serde(borrow, default)]
    pub key: Cow<'m, str>,
    /// The mapped columns, a JSON object; absent where the key has no row, or where it is to go because its row changed.
    #[serde(borrow, default)]
    pub row: Option<&'m RawValue>,
    /// Where it stands.
    pub at: Position,
    /// Microseconds since the epoch, by the source's clock.
    pub committed: i64,
}

/// What a batch with rows of a chunk claims: these are all rows of the table between `after` and `upto`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkHead {
    /// The table.
    pub table: Table,
    /// The attempt it was read for; `None` for rows read singly.
    pub run: Option<Run>,
    /// Where it begins, itself excluded; `None` is the table's beginning.
    pub after: Option<Bound>,
    /// Where it ends, itself included; `None` only where the table is empty.
    pub upto: Option<Bound>,
    /// Whether no row follows.
    pub last: bool,
}

/// A batch as it was received.
#[derive(Debug, Deserialize)]
pub struct Batch<'m> {
    rowcast: u32,
    /// The pipeline's name.
    #[serde(borrow)]
    pub pipeline: Cow<'m, str>,
    /// Whose positions these are.
    pub lineage: Lineage,
    /// The partition whose changes these are.
    pub partition: Partition,
    /// Where the stretch begins, itself excluded.
    pub from: Position,
    /// Where it ends, itself included.
    pub to: Position,
    /// The mapping of every table of the pipeline.
    pub mapping: BTreeMap<Table, Descriptor>,
    /// The changes in commit order, or the rows of the chunk.
    #[serde(borrow)]
    pub changes: Vec<KeyChange<'m>>,
    /// Present where `changes` are rows that were read.
    #[serde(default)]
    pub chunk: Option<ChunkHead>,
    /// Tables for which somebody has requested a resync.
    #[serde(default)]
    pub resync: Vec<Table>,
}

/// A message that is not a batch of this version.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer rowcast. Nothing may be skipped: the consumer stops.
    #[error("the batch has version {0}, this rowcast reads version {VERSION}; run the newer rowcast here too")]
    Version(u32),
    /// A table's mapping is of a newer rowcast. Nothing may be skipped: the consumer stops.
    #[error("{0}")]
    Newer(String),
    /// Not a batch at all. It is set aside; what it may have held shows as a gap.
    #[error("not a batch: {0}")]
    Malformed(String),
}

impl<'m> Batch<'m> {
    /// Reads the text of a message that came through the queue of `partition`.
    pub fn decode(message: &'m [u8], partition: Partition) -> Result<Batch<'m>, DecodeError> {
        #[derive(Deserialize)]
        struct VersionOnly {
            rowcast: u32,
        }
        let batch: Batch<'m> = match serde_json::from_slice(message) {
            Ok(batch) => batch,
            Err(error) => {
                return Err(match serde_json::from_slice::<VersionOnly>(message) {
                    Ok(VersionOnly { rowcast }) if rowcast != VERSION => DecodeError::Version(rowcast),
                    _ if error.to_string().contains("newer version of rowcast") => DecodeError::Newer(error.to_string()),
                    _ => DecodeError::Malformed(error.to_string()),
                });
            }
        };
        if batch.rowcast != VERSION {
            return Err(DecodeError::Version(batch.rowcast));
        }
        batch.check(partition).map_err(DecodeError::Malformed)?;
        Ok(batch)
    }

    /// What must hold of every batch, whoever wrote it.
    fn check(&self, partition: Partition) -> Result<(), String> {
        if self.partition != partition {
            return Err(format!("it is for partition {}, but came through the queue of {partition}", self.partition));
        }
        if self.from > self.to {
            return Err(format!("it ends at {} before it begins at {}", self.to, self.from));
        }
        let mut before = self.from;
        for change in &self.changes {
            let read = change.op == Op::Read;
            if read != self.chunk.is_some() {
                return Err("a batch holds either changes or the rows of a chunk".to_owned());
            }
            if read {
                if self.chunk.as_ref().is_some_and(|chunk| *chunk.table.0 != *change.table) {
                    return Err(format!("a row of {} in a chunk of another table", change.table));
                }
            } else if change.at < before || change.at <= self.from || change.at > self.to {
                return Err(format!("a change at {} in ({}, {}], after one at {before}", change.at, self.from, self.to));
            }
            if !self.mapping.contains_key(&*change.table) {
                return Err(format!("it names no mapping for the table {}", change.table));
            }
            if change.key.is_empty() && change.op != Op::Truncate {
                return Err(format!("a change of {} without a key", change.table));
            }
            before = change.at.max(before);
        }
        Ok(())
    }
}

/// A change on its way into a [`Draft`].
#[derive(Clone, Copy, Debug)]
pub struct DraftChange<'c> {
    /// What happened.
    pub op: Op,
    /// The table's name.
    pub table: &'c str,
    /// The primary key as JSON; empty for a truncate.
    pub pk: &'c str,
    /// The Redis key; empty for a truncate.
    pub key: &'c str,
    /// The mapped row as JSON.
    pub row: Option<&'c str>,
    /// Where it stands.
    pub at: Position,
    /// Microseconds since the epoch.
    pub committed_us: i64,
}

/// The changes of a batch that is being written.
#[derive(Debug, Default)]
pub struct Draft {
    changes: String,
    count: usize,
}

/// What stands around the changes of a batch.
#[derive(Debug)]
pub struct Header<'h> {
    /// The pipeline's name.
    pub pipeline: &'h str,
    /// Whose positions these are.
    pub lineage: &'h Lineage,
    /// For which partition.
    pub partition: Partition,
    /// Where the stretch begins, itself excluded.
    pub from: Position,
    /// Where it ends, itself included.
    pub to: Position,
    /// The mapping of every table, as one JSON object.
    pub mapping: &'h str,
    /// Present where the changes are rows that were read.
    pub chunk: Option<&'h ChunkHead>,
    /// Tables to be resynced on request.
    pub resync: &'h [Table],
}

impl Draft {
    /// Adds a change.
    pub fn push(&mut self, change: DraftChange<'_>) {
        let text = &mut self.changes;
        if self.count > 0 {
            text.push(',');
        }
        self.count += 1;
        // Writing to a String cannot fail.
        write!(text, "\n{{\"op\":\"{}\",\"table\":", change.op).expect("a String takes every write");
        push_json_text(text, change.table);
        if !change.pk.is_empty() {
            text.push_str(",\"pk\":");
            text.push_str(change.pk);
        }
        if !change.key.is_empty() {
            text.push_str(",\"key\":");
            push_json_text(text, change.key);
        }
        if let Some(row) = change.row {
            text.push_str(",\"row\":");
            text.push_str(row);
        }
        write!(text, ",\"at\":\"{}\",\"committed\":{}}}", change.at, change.committed_us).expect("a String takes every write");
    }

    /// How many changes it holds.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The bytes that the changes take.
    pub fn bytes(&self) -> usize {
        self.changes.len()
    }

    /// The message, and the draft empty again.
    pub fn finish(&mut self, header: &Header<'_>) -> Vec<u8> {
        let mut text = String::with_capacity(self.changes.len() + header.mapping.len() + 256);
        write!(text, "{{\"rowcast\":{VERSION},\"pipeline\":").expect("a String takes every write");
        push_json_text(&mut text, header.pipeline);
        text.push_str(",\"lineage\":");
        push_json_text(&mut text, &header.lineage.0);
        write!(text, ",\"partition\":\"{}\",\"from\":\"{}\",\"to\":\"{}\",\"mapping\":", header.partition, header.from, header.to)
            .expect("a String takes every write");
        text.push_str(header.mapping);
        if let Some(chunk) = header.chunk {
            text.push_str(",\"chunk\":");
            text.push_str(&serde_json::to_string(chunk).expect("a chunk's head is plain data"));
        }
        if !header.resync.is_empty() {
            text.push_str(",\"resync\":");
            text.push_str(&serde_json::to_string(header.resync).expect("table names are plain data"));
        }
        text.push_str(",\"changes\":[");
        text.push_str(&self.changes);
        text.push_str("]}");
        self.changes.clear();
        self.count = 0;
        text.into_bytes()
    }
}

/// Appends `value` as a JSON string.
pub(crate) fn push_json_text(text: &mut String, value: &str) {
    text.push('"');
    push_json_escaped(text, value);
    text.push('"');
}

/// Appends what stands between the quotes of a JSON string. Only quotes, backslashes and characters below the space are escaped.
pub(crate) fn push_json_escaped(text: &mut String, value: &str) {
    let special = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
    let mut rest = value;
    loop {
        // Whole blocks first: without a way out in the middle of a block the compiler looks at many bytes at once.
        let (blocks, _) = rest.as_bytes().as_chunks::<16>();
        let plain = 16 * blocks.iter().take_while(|block| !block.iter().fold(false, |found, byte| found | special(byte))).count();
        let Some(length) = rest.as_bytes()[plain..].iter().position(special).map(|more| plain + more) else { break };
        text.push_str(&rest[..length]);
        match rest.as_bytes()[length] {
            b'"' => text.push_str("\\\""),
            b'\\' => text.push_str("\\\\"),
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            0x08 => text.push_str("\\b"),
            0x0c => text.push_str("\\f"),
            byte => write!(text, "\\u{byte:04x}").expect("a String takes every write"),
        }
        rest = &rest[length + 1..];
    }
    text.push_str(rest);
}

impl Serialize for Bound {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Bound {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Ok(Bound(raw.get().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAPPING: &str = r#"{"users":"9f3c61d0 json user:{id:integer}"}"#;
    const PARTITION: Partition = Partition { number: 3, of: 4 };

    fn header(lineage: &Lineage) -> Header<'_> {
        Header {
            pipeline: "shop",
            lineage,
            partition: PARTITION,
            from: Position(1, 0),
            to: Position(5, 0),
            mapping: MAPPING,
            chunk: None,
            resync: &[],
        }
    }

    fn change<'c>(key: &'c str, row: Option<&'c str>) -> DraftChange<'c> {
        DraftChange { op: Op::Update, table: "users", pk: r#"{"id":7}"#, key, row, at: Position(2, 1), committed_us: 1_767_225_600_123_456 }
    }

    #[test]
    fn a_batch_reads_well() {
        let lineage = Lineage("sqlite:a:b".into());
        let mut draft = Draft::default();
        draft.push(change("user:7", Some(r#"{"id":7,"name":"Ada"}"#)));
        draft.push(change("user:8", None));
        let text = String::from_utf8(draft.finish(&header(&lineage))).unwrap();
        assert_eq!(
            text,
            r#"{"rowcast":1,"pipeline":"shop","lineage":"sqlite:a:b","partition":"3of4","from":"0000000000000001-00000000","to":"0000000000000005-00000000","mapping":{"users":"9f3c61d0 json user:{id:integer}"},"changes":[
{"op":"update","table":"users","pk":{"id":7},"key":"user:7","row":{"id":7,"name":"Ada"},"at":"0000000000000002-00000001","committed":1767225600123456},
{"op":"update","table":"users","pk":{"id":7},"key":"user:8","at":"0000000000000002-00000001","committed":1767225600123456}]}"#
        );
        assert!(draft.is_empty());
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_versions_refused() {
        let lineage = Lineage("l".into());
        let text = String::from_utf8(Draft::default().finish(&header(&lineage))).unwrap();
        let with = |from: &str, to: &str| text.replace(from, to).into_bytes();
        assert!(Batch::decode(&with(r#""rowcast":1"#, r#""rowcast":1,"later":{}"#), PARTITION).is_ok());
        assert!(matches!(Batch::decode(&with(r#""rowcast":1"#, r#""rowcast":2"#), PARTITION), Err(DecodeError::Version(2))));
        assert!(matches!(Batch::decode(br#"{"rowcast":3}"#, PARTITION), Err(DecodeError::Version(3))));
        assert!(matches!(Batch::decode(&with(" json ", " yaml "), PARTITION), Err(DecodeError::Newer(_))));
        assert!(matches!(Batch::decode(b"hello", PARTITION), Err(DecodeError::Malformed(_))));
    }

    #[test]
    fn a_batch_that_contradicts_itself_is_refused() {
        let lineage = Lineage("l".into());
        let decode = |header: &Header<'_>, changes: &[DraftChange<'_>]| {
            let mut draft = Draft::default();
            changes.iter().for_each(|change| draft.push(*change));
            let bytes = draft.finish(header);
            Batch::decode(&bytes, PARTITION).map(|_| ()).map_err(|error| error.to_string())
        };
        let good = change("user:7", None);
        let head = ChunkHead { table: "users".into(), run: None, after: None, upto: None, last: true };
        assert_eq!(decode(&header(&lineage), &[good]), Ok(()));
        assert!(decode(&Header { partition: Partition { number: 1, of: 4 }, ..header(&lineage) }, &[]).is_err());
        assert!(decode(&Header { from: Position(6, 0), ..header(&lineage) }, &[]).is_err());
        assert!(decode(&header(&lineage), &[DraftChange { at: Position(1, 0), ..good }]).is_err());
        assert!(decode(&header(&lineage), &[DraftChange { at: Position(6, 0), ..good }]).is_err());
        assert!(decode(&header(&lineage), &[DraftChange { at: Position(3, 0), ..good }, good]).is_err());
        assert!(decode(&header(&lineage), &[DraftChange { table: "other", ..good }]).is_err());
        assert!(decode(&header(&lineage), &[DraftChange { key: "", ..good }]).is_err());
        assert!(decode(&header(&lineage), &[DraftChange { op: Op::Read, ..good }]).is_err());
        assert!(decode(&Header { chunk: Some(&head), ..header(&lineage) }, &[good]).is_err());
        assert_eq!(decode(&Header { chunk: Some(&head), ..header(&lineage) }, &[DraftChange { op: Op::Read, ..good }]), Ok(()));
    }

    #[test]
    fn a_chunk_keeps_its_bounds_to_the_letter() {
        let lineage = Lineage("l".into());
        let head = ChunkHead {
            table: "users".into(),
            run: Some(Run("01J".into())),
            after: None,
            upto: Some(Bound(r#"[1,"a"]"#.into())),
            last: false,
        };
        let bytes = Draft::default().finish(&Header { chunk: Some(&head), ..header(&lineage) });
        assert_eq!(Batch::decode(&bytes, PARTITION).unwrap().chunk, Some(head));
    }

    proptest! {
        #[test]
        fn keys_and_rows_come_out_as_they_went_in(key in "\\PC{1,20}|[\\x00-\\x1f\"\\\\]{1,5}", value: String) {
            let lineage = Lineage("l".into());
            let row = serde_json::to_string(&serde_json::json!({ "v": value })).unwrap();
            let mut draft = Draft::default();
            draft.push(change(&key, Some(&row)));
            let bytes = draft.finish(&header(&lineage));
            let batch = Batch::decode(&bytes, PARTITION).unwrap();
            prop_assert_eq!(&*batch.changes[0].key, key.as_str());
            prop_assert_eq!(batch.changes[0].row.unwrap().get(), row.as_str());
        }

        #[test]
        fn json_text_is_what_a_parser_reads_back(value: String) {
            let mut text = String::new();
            push_json_text(&mut text, &value);
            prop_assert_eq!(serde_json::from_str::<String>(&text).unwrap(), value);
        }

        #[test]
        fn no_message_makes_the_decoder_panic(message: Vec<u8>) {
            drop(Batch::decode(&message, PARTITION));
        }
    }
}
