//! Tests: whatever bytes come, decoder and converter answer with a value or with an error, and take no more room than the bytes do.
//!
//! `ROWCAST_ROUNDS` says how many random cases are tried.

use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::Index;

use super::pgoutput::{Message, Old, Tuple, decode};
use super::row::{Cell, Cells, RowPlan, Wanted};
use super::samples::{ODDITIES, catalogue};
use super::types::Catalogue;

fn cases(few: u32) -> ProptestConfig {
    let cases = std::env::var("ROWCAST_ROUNDS").map_or(few, |text| text.parse().expect("ROWCAST_ROUNDS is a number"));
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Three columns: a text, NULL, an unchanged one.
const TUPLE: &[u8] = b"\0\x03t\0\0\0\x02hinu";

/// One message of each kind and form.
fn messages() -> Vec<Vec<u8>> {
    let (lsn, time) = ([0, 0, 0, 0, 0x16, 0xb3, 0x74, 0x8], [0, 2, 0xea, 0x1b, 0, 0, 0, 0]);
    let relation: &[u8] = b"\0\0\x40\0";
    vec![
        joined(&[b"B", &lsn, &time, b"\0\0\x02\xea"]),
        joined(&[b"C\0", &lsn, &lsn, &time]),
        joined(&[b"O", &lsn, b"elsewhere\0"]),
        joined(&[b"R", relation, b"public\0users\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0name\0\0\0\0\x19\0\0\0\x0d"]),
        joined(&[b"Y", relation, b"\0mood\0"]),
        joined(&[b"I", relation, b"N", TUPLE]),
        joined(&[b"U", relation, b"N", TUPLE]),
        joined(&[b"U", relation, b"K", TUPLE, b"N", TUPLE]),
        joined(&[b"U", relation, b"O", TUPLE, b"N", TUPLE]),
        joined(&[b"D", relation, b"K", TUPLE]),
        joined(&[b"D", relation, b"O", TUPLE]),
        joined(&[b"T\0\0\0\x02\x03", relation, relation]),
        joined(&[b"M\x01", &lsn, b"mine\0\0\0\0\x02hi"]),
    ]
}

/// Looks at everything that a message gives out.
fn touch(message: &Message<'_>) -> usize {
    let mut cells = Cells::default();
    let mut tuple = |tuple: Tuple<'_>| {
        let one_by_one: Vec<Cell<'_>> = tuple.cells().collect();
        let row = tuple.locate(&mut cells);
        assert_eq!(row.width(), one_by_one.len());
        assert_eq!(row.cell(one_by_one.len()), None);
        for (place, cell) in one_by_one.iter().enumerate() {
            assert_eq!(row.cell(place), Some(*cell));
        }
        one_by_one.len()
    };
    match *message {
        Message::Insert { new, .. } | Message::Update { old: None, new, .. } => tuple(new),
        Message::Update { old: Some(Old::Key(old) | Old::Full(old)), new, .. } => tuple(old) + tuple(new),
        Message::Delete { old: Old::Key(old) | Old::Full(old), .. } => tuple(old),
        Message::Relation(relation) => relation.columns().map(|column| column.name.len()).sum(),
        Message::Truncate { relations, .. } => {
            assert_eq!(relations.iter().count(), relations.len());
            relations.len()
        }
        _ => 0,
    }
}

#[test]
fn a_message_that_is_cut_short_or_goes_on_is_refused() {
    for message in messages() {
        assert!(decode(&message).is_ok(), "{message:?}");
        for length in 0..message.len() {
            let error = decode(&message[..length]).unwrap_err();
            assert!(error.at <= length, "{error}");
        }
        let error = decode(&joined(&[&message, b"\0"])).unwrap_err();
        assert_eq!((error.what, error.at), ("more bytes than the message has", message.len()));
    }
}

#[test]
fn what_the_protocol_does_not_have_is_refused_with_its_place() {
    for (message, what, at) in [
        (&b"X"[..], "an unknown kind of message", 0),
        (b"C\x01", "flags of a commit that are not 0", 1),
        (b"B\0\0\0\0\0\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", "a time beyond all times", 9),
        (b"O\0\0\0\0\0\0\0\0elsewhere", "a name without an end", 9),
        (b"O\0\0\0\0\0\0\0\0\xff\0", "a name that is not UTF-8", 9),
        (b"R\0\0\0\x01a\0b\0x", "an unknown replica identity", 9),
        (b"R\0\0\0\x01a\0b\0d\xff\xff", "a negative number of columns", 10),
        (b"R\0\0\0\x01a\0b\0d\0\x01\x02", "unknown flags of a column", 12),
        (b"I\0\0\0\x01K", "something else than a new row", 5),
        (b"U\0\0\0\x01X", "something else than a row", 5),
        (b"D\0\0\0\x01N", "something else than a row", 5),
        (b"I\0\0\0\x01N\xff\xfe", "a negative number of columns", 6),
        (b"I\0\0\0\x01N\0\x01x", "an unknown kind of value", 8),
        (b"I\0\0\0\x01N\0\x01b\0\0\0\x01x", "a value in binary form, though text was asked for,", 8),
        (b"I\0\0\0\x01N\0\x01t\xff\xff\xff\xff", "a negative length", 9),
        (b"I\0\0\0\x01N\0\x01t\x7f\xff\xff\xff", "an end too early", 13),
        (b"T\xff\xff\xff\xff\0", "a negative length", 1),
        (b"T\x7f\xff\xff\xff\0", "an end too early", 6),
        (b"T\0\0\0\0\x04", "unknown flags of a truncate", 5),
        (b"M\x02", "unknown flags of a logical message", 1),
    ] {
        let error = decode(message).unwrap_err();
        assert_eq!((error.what, error.at), (what, at), "{message:?}");
    }
}

#[test]
fn a_schema_without_a_name_is_the_catalogues_own() {
    let Message::Type { schema, name, .. } = decode(b"Y\0\0\0\x17\0int4\0").unwrap() else { panic!() };
    assert_eq!((schema, name), ("pg_catalog", "int4"));
}

/// Some bytes replaced, some taken out, some put in.
fn spoilt(mut bytes: Vec<u8>, edits: &[(u8, Index, u8)]) -> Vec<u8> {
    for (kind, place, byte) in edits {
        let place = place.index(bytes.len() + 1);
        match (kind % 3, place < bytes.len()) {
            (0, true) => bytes[place] = *byte,
            (1, true) => drop(bytes.remove(place)),
            _ => bytes.insert(place, *byte),
        }
    }
    bytes
}

/// Bytes that mean something to somebody, more often than others.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![prop::sample::select(&b"\"\\{}(),;[]=>NULLntbuKON\0\x01 \xff\xc3\xa9\x7f\x80"[..]), any::<u8>()]
}

fn edits() -> impl Strategy<Value = Vec<(u8, Index, u8)>> {
    prop::collection::vec((any::<u8>(), any::<Index>(), byte()), 1..6)
}

proptest! {
    #![proptest_config(cases(20_000))]

    #[test]
    fn no_bytes_make_the_decoder_panic(which: Index, edits in edits()) {
        let messages = messages();
        let message = spoilt(messages[which.index(messages.len())].clone(), &edits);
        if let Ok(decoded) = decode(&message) {
            prop_assert!(touch(&decoded) <= message.len());
        }
    }

    #[test]
    fn no_text_makes_a_plan_panic_or_take_room_out_of_proportion(which: Index, edits in edits()) {
        let (type_oid, text, _) = ODDITIES[which.index(ODDITIES.len())];
        let text = spoilt(text.as_bytes().to_vec(), &edits);
        static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(catalogue);
        let wanted = [("unchanged", 0), ("a", 1)].map(|(name, place)| Wanted { name, type_oid, place });
        let mut plan = RowPlan::new(&CATALOGUE, "t", wanted).unwrap();
        let (mut json, mut missing) = (String::from("before"), vec![7]);
        let cell = |place| Some(if place == 0 { Cell::Unchanged } else { Cell::Text(&text[..]) });
        match plan.push_json(&mut json, cell, &mut missing) {
            Err(_) => prop_assert_eq!((json.as_str(), &missing[..]), ("before", &[7][..])),
            Ok(()) => {
                prop_assert_eq!(missing, [7, 0]);
                prop_assert!(json.capacity() <= 64 + 32 * text.len(), "{} bytes of {}", json.capacity(), text.len());
                // A text of the types json and jsonb is taken as it is, so the server's word is all there is.
                if !matches!(type_oid, 114 | 3802) {
                    let valid = serde_json::from_str::<serde::de::IgnoredAny>(&json["before".len()..]).is_ok();
                    prop_assert!(valid, "{} of {:?}", json, String::from_utf8_lossy(&text));
                }
            }
        }
    }
}
