//! Any bytes as a message of PostgreSQL's logical replication: a message or an error, and what a message says of its lengths is so.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rowcast::source::postgres::pgoutput::{Message, Old, Tuple, decode};
use rowcast::source::postgres::row::Cells;

fn touch(tuple: Tuple<'_>) {
    let mut cells = Cells::default();
    let row = tuple.locate(&mut cells);
    assert_eq!(row.width(), usize::from(tuple.width()));
    for (place, cell) in tuple.cells().enumerate() {
        assert_eq!(row.cell(place), Some(cell));
    }
}

fuzz_target!(|bytes: &[u8]| {
    match decode(bytes) {
        Ok(Message::Insert { new, .. } | Message::Update { old: None, new, .. }) => touch(new),
        Ok(Message::Update { old: Some(Old::Key(old) | Old::Full(old)), new, .. }) => {
            touch(old);
            touch(new);
        }
        Ok(Message::Delete { old: Old::Key(old) | Old::Full(old), .. }) => touch(old),
        Ok(Message::Relation(relation)) => assert_eq!(relation.columns().count(), usize::from(relation.width)),
        Ok(Message::Truncate { relations, .. }) => assert_eq!(relations.iter().count(), relations.len()),
        Ok(_) => {}
        Err(malformed) => assert!(malformed.at <= bytes.len()),
    }
});
