//! Any bytes as the text of a value of PostgreSQL, the first byte being its type: JSON or an error, and no room out of proportion.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rowcast::source::postgres::row::{Cell, RowPlan, Wanted};
use rowcast::source::postgres::types::Catalogue;

/// Types of each shape: id and what differs from a plain built-in one.
const TYPES: [(u32, &str); 14] = [
    (16, ""),
    (22, ""),
    (23, ""),
    (25, ""),
    (30, ""),
    (603, r#""delimiter":";""#),
    (1009, r#""element":25"#),
    (1020, r#""element":603"#),
    (1114, ""),
    (1184, ""),
    (1700, ""),
    (20_000, r#""kind":"c","attributes":[["id",23],["name",25],["many",20001],["words",20003]]"#),
    (20_001, r#""element":20002"#),
    (20_003, r#""cast":{"function":"hstore_to_json(hstore)","hstore":true}"#),
];

/// What the composites in an array are; by itself it would be tried as often as all others.
const INNER: (u32, &str) = (20_002, r#""kind":"c","attributes":[["ok",16],["at",1184],["list",1009]]"#);

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
    let types: Vec<serde_json::Value> = TYPES.iter().chain([&INNER]).map(|(oid, other)| found(*oid, other)).collect();
    Catalogue::read(&serde_json::Value::from(types).to_string()).expect("a catalogue")
});

fn found(oid: u32, other: &str) -> serde_json::Value {
    let usual = r#""kind":"b","base":0,"element":0,"subtype":0,"delimiter":",","cast":null,"attributes":[],"labels":[]"#;
    let read = |text: &str| serde_json::from_str::<serde_json::Map<_, _>>(&format!("{{{text}}}")).expect("a type");
    let mut fields = read(usual);
    fields.extend(read(other));
    fields.extend([("oid".to_owned(), oid.into()), ("name".to_owned(), "x".into())]);
    serde_json::Value::Object(fields)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((which, text)) = bytes.split_first() else { return };
    let (type_oid, _) = TYPES[usize::from(*which) % TYPES.len()];
    let mut plan = RowPlan::new(&CATALOGUE, "t", [Wanted { name: "a", type_oid, place: 0 }]).expect("a plan");
    let mut json = String::new();
    if plan.push_json(&mut json, |_| Some(Cell::Text(text)), &mut Vec::new()).is_ok() {
        assert!(json.capacity() <= 64 + 32 * text.len(), "{} bytes of {}", json.capacity(), text.len());
        serde_json::from_str::<serde::de::IgnoredAny>(&json).expect("JSON");
    }
});
