//! Tests: texts of many types and what `row_to_json` makes of them, and a catalogue that knows these types.

use super::types::Catalogue;

/// A text that a type writes, and what `row_to_json` makes of it.
pub(super) const ODDITIES: &[(u32, &str, &str)] = &[
    (23, "-7", "-7"),
    (1700, "1.10", "1.10"),
    (1700, "NaN", r#""NaN""#),
    (701, "-0", "-0"),
    (701, "1e+300", "1e+300"),
    (701, "-Infinity", r#""-Infinity""#),
    (16, "t", "true"),
    (16, "f", "false"),
    (25, "", r#""""#),
    (25, "a\"\\\n\u{1}\u{7f}é🎵", "\"a\\\"\\\\\\n\\u0001\u{7f}é🎵\""),
    (1114, "0044-03-15 01:02:03 BC", r#""0044-03-15T01:02:03 BC""#),
    (1114, "infinity", r#""infinity""#),
    (1184, "2026-01-01 21:34:05.1+00", r#""2026-01-01T21:34:05.1+00:00""#),
    (1184, "0044-03-15 01:02:03+00 BC", r#""0044-03-15T01:02:03+00:00 BC""#),
    (1184, "-infinity", r#""-infinity""#),
    (114, " {\"a\":1,\n\"a\":2}", " {\"a\":1,\n\"a\":2}"),
    (22, "1 2", "[1,2]"),
    (22, "", "[]"),
    (30, "1 2", r#"["1","2"]"#),
    (1007, "{}", "[]"),
    (1007, "[0:1]={7,NULL}", "[7,null]"),
    (1007, "{{1,2},{3,4}}", "[[1,2],[3,4]]"),
    (1009, r#"{a,"NULL",NULL,"","x\"\\,{}"}"#, r#"["a","NULL",null,"","x\"\\,{}"]"#),
    (1020, "{(1,2),(0,0);(3,4),(0,0)}", r#"["(1,2),(0,0)","(3,4),(0,0)"]"#),
    (20_000, "(1,\"a\"\"b\",)", r#"{"id":1,"name \"x\"":"a\"b","many":null}"#),
    (20_000, "(,,)", r#"{"id":null,"name \"x\"":null,"many":null}"#),
    (
        20_000,
        r#"(1,"","{""(t,\\""2026-01-01 00:00:00\\"")"",NULL}")"#,
        r#"{"id":1,"name \"x\"":"","many":[{"ok":true,"at":"2026-01-01T00:00:00"},null]}"#,
    ),
    (20_003, "()", "{}"),
    (20_004, "", "{}"),
    (20_004, r#""a"=>"1", "b\"\\"=>NULL"#, r#"{"a": "1", "b\"\\": null}"#),
    (20_005, "-7", "-7"),
];

/// The types of [`ODDITIES`].
pub(super) fn catalogue() -> Catalogue {
    let built_in = [
        (16, "boolean"),
        (22, "int2vector"),
        (23, "integer"),
        (25, "text"),
        (30, "oidvector"),
        (114, "json"),
        (701, "double precision"),
        (1114, "timestamp without time zone"),
        (1184, "timestamp with time zone"),
        (1700, "numeric"),
        (2205, "regclass"),
    ];
    let mut types: Vec<String> = built_in.iter().map(|(oid, name)| found(*oid, name, "")).collect();
    types.extend([
        found(603, "box", r#""delimiter":";""#),
        found(1007, "integer[]", r#""element":23"#),
        found(1009, "text[]", r#""element":25"#),
        found(1020, "box[]", r#""element":603"#),
        found(20_000, "pair", r#""kind":"c","attributes":[["id",23],["name \"x\"",25],["many",20001]]"#),
        found(20_001, "part[]", r#""element":20002"#),
        found(20_002, "part", r#""kind":"c","attributes":[["ok",16],["at",1114]]"#),
        found(20_003, "none", r#""kind":"c""#),
        found(20_004, "hstore", r#""cast":{"function":"hstore_to_json(hstore)","hstore":true}"#),
        found(20_005, "whole", r#""kind":"d","base":23"#),
    ]);
    Catalogue::read(&format!("[{}]", types.join(","))).unwrap()
}

/// A type with these words in the place of the usual ones.
fn found(oid: u32, name: &str, other: &str) -> String {
    let usual = r#""kind":"b","base":0,"element":0,"subtype":0,"delimiter":",","cast":null,"attributes":[],"labels":[]"#;
    let mut fields: serde_json::Map<_, _> = serde_json::from_str(&format!("{{{usual}}}")).unwrap();
    fields.extend(serde_json::from_str::<serde_json::Map<_, _>>(&format!("{{{other}}}")).unwrap());
    fields.extend([("oid".to_owned(), oid.into()), ("name".to_owned(), name.into())]);
    serde_json::Value::Object(fields).to_string()
}
