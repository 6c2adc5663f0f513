//! What a database's settings, encodings and users' own types can do to values.

use rowcast::source::postgres::pgoutput::{Message, decode};
use rowcast::source::postgres::row::{RowPlan, Wanted};
use rowcast::source::postgres::values::{PINNED, client_encoding};

use super::oracle::{Oracle, Readings, pins, unhex};

/// A setting that somebody gave the database, a value that looks different under it, and its type.
const ODD: [(&str, &str, &str, &str); 8] = [
    ("client_encoding", "LATIN1", "text", "'é'"),
    ("TimeZone", "America/New_York", "timestamptz", "'2026-01-01 00:00:00+00'"),
    ("DateStyle", "SQL, DMY", "date", "'2026-01-02'"),
    ("IntervalStyle", "iso_8601", "interval", "'1 month 2 days'"),
    ("extra_float_digits", "0", "float8", "0.1::float8 + 0.2::float8"),
    ("bytea_output", "escape", "bytea", "'\\x00ff'"),
    ("search_path", "public", "regclass", "'plain'"),
    ("quote_all_identifiers", "on", "regclass", "'public.plain'"),
];

/// What the stream says of the one row under these settings.
fn streamed(oracle: &Oracle, settings: &str) -> Result<Vec<String>, String> {
    let sql = "SELECT pg_catalog.encode(data, 'hex') FROM pg_catalog.pg_logical_slot_peek_binary_changes('s', NULL, NULL, \
               'proto_version', '1', 'publication_names', 'p')";
    let messages = oracle.run(&format!("{settings} {sql}")).lines().map(unhex).collect();
    Readings { json: Vec::new(), messages, texts: Vec::new() }.streamed(&oracle.catalogue())
}

#[test]
fn every_pinned_setting_decides_what_some_value_looks_like_and_overrules_the_databases() {
    let oracle = Oracle::start();
    let types: Vec<String> = ODD.iter().map(|(_, _, name, _)| (*name).to_owned()).collect();
    oracle.table(&types);
    let values: Vec<&str> = ODD.iter().map(|(_, _, _, value)| *value).collect();
    oracle.run(&format!("INSERT INTO t VALUES (1, {})", values.join(", ")));
    for (name, odd, _, _) in ODD {
        oracle.run(&format!("ALTER DATABASE postgres SET {name} TO '{odd}'"));
    }
    // There is no locale but C to be relied on, so the form of money cannot be tried.
    let tried: Vec<&str> = ODD.iter().map(|(name, ..)| *name).chain(["lc_monetary"]).collect();
    assert!(PINNED.iter().all(|(name, _)| tried.contains(name)));

    let right = streamed(&oracle, &pins()).unwrap();
    let said = oracle.run(&format!("{} SELECT pg_catalog.row_to_json(t)::text FROM public.t", pins()));
    assert_eq!(right, [said]);
    for (name, odd, ..) in ODD {
        let others: String = pins().lines().filter(|line| !line.contains(name)).collect();
        assert_ne!(streamed(&oracle, &format!("{others} SET {name} TO '{odd}';")), Ok(right.clone()), "{name}");
    }
}

#[test]
fn text_of_another_encoding_is_converted_and_text_of_none_is_refused_by_name() {
    let mut oracle = Oracle::start();
    oracle.run("CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    oracle.run("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");

    oracle.database = "latin".to_owned();
    oracle.table(&["text".to_owned()]);
    let readings = oracle.read(&pins(), "INSERT INTO t VALUES (1, 'é')");
    assert_eq!(readings.json, [r#"{"id":1,"c0":"é"}"#]);
    assert_eq!(readings.streamed(&oracle.catalogue()).as_ref(), Ok(&readings.json));
    oracle.drop_table();

    oracle.database = "ascii".to_owned();
    oracle.table(&["text".to_owned()]);
    oracle.run("INSERT INTO t VALUES (1, 'é')");
    let encoding = client_encoding(&oracle.run("SHOW server_encoding"));
    let settings = format!("{} SET client_encoding TO '{encoding}';", pins());
    assert_eq!(streamed(&oracle, &settings).unwrap(), [r#"{"id":1,"c0":"é"}"#]);
    oracle.run("UPDATE t SET c0 = ''; INSERT INTO t VALUES (2, convert_from('\\xff', 'SQL_ASCII'))");
    let error = streamed(&oracle, &settings).unwrap_err();
    assert_eq!(
        error,
        "table t, column c0 of type text: the value is not UTF-8, so no JSON can hold it (a database of the encoding SQL_ASCII takes \
         any bytes); write it again as UTF-8, or leave the column out of `columns`"
    );
}

/// Why the only column of `t` has no plan.
fn refused(oracle: &Oracle) -> String {
    let oid = oracle.run("SELECT atttypid FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'c0'").parse().unwrap();
    RowPlan::new(&oracle.catalogue(), "public.t", [Wanted { name: "c0", type_oid: oid, place: 1 }]).unwrap_err().to_string()
}

#[test]
fn a_type_with_a_cast_of_its_own_is_refused_unless_it_is_hstore() {
    let oracle = Oracle::start();
    oracle.run(
        "CREATE TYPE mood AS ENUM ('fine'); CREATE DOMAIN moods AS mood[];
         CREATE FUNCTION mood_json(mood) RETURNS json LANGUAGE sql AS $$ SELECT '{\"mood\":true}'::json $$;
         CREATE CAST (mood AS json) WITH FUNCTION mood_json(mood);
         CREATE TYPE pair AS (a int, b moods);",
    );
    for name in ["mood", "mood[]", "moods", "pair"] {
        oracle.table(&[name.to_owned()]);
        assert_eq!(
            refused(&oracle),
            "table public.t, column c0: values of its type public.mood become JSON by the function public.mood_json(public.mood), a cast \
             to json, which only the database can run; leave the column out of `columns`"
        );
        oracle.drop_table();
    }
    // A cast that only says that the two have the same bytes, or goes through the text, is none to row_to_json; nor is one to jsonb.
    oracle.run(
        "CREATE TYPE colour AS ENUM ('red'); CREATE CAST (colour AS json) WITH INOUT;
         CREATE FUNCTION colour_jsonb(colour) RETURNS jsonb LANGUAGE sql AS $$ SELECT '1'::jsonb $$;
         CREATE CAST (colour AS jsonb) WITH FUNCTION colour_jsonb(colour);",
    );
    oracle.table(&["colour".to_owned()]);
    let readings = oracle.read(&pins(), "INSERT INTO t VALUES (1, 'red')");
    assert_eq!(readings.streamed(&oracle.catalogue()).as_ref(), Ok(&readings.json));
}

/// The definition of the type of the column `c0`.
fn definition(oracle: &Oracle) -> String {
    let oid = oracle.run("SELECT atttypid FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'c0'").parse().unwrap();
    oracle.catalogue().plan(oid).unwrap().definition().to_owned()
}

#[test]
fn a_definition_tells_of_everything_that_changes_a_value_nobody_wrote() {
    let oracle = Oracle::start();
    oracle.run(
        "CREATE TYPE mood AS ENUM ('fine', 'sad'); CREATE TYPE moods AS RANGE (SUBTYPE = mood); CREATE DOMAIN range_of AS moods;
         CREATE TYPE pair AS (a int, b range_of[], c int4range);",
    );
    oracle.table(&["pair[]".to_owned()]);
    let expected = "public.pair[] of public.pair(\"a\" integer, \"b\" public.range_of[] of public.range_of over public.moods of \
                    public.mood [\"fine\", \"sad\"], \"c\" int4range of integer)";
    assert_eq!(definition(&oracle), expected);
    let mut known = vec![definition(&oracle)];
    for change in [
        "ALTER TYPE mood RENAME VALUE 'fine' TO 'great'",
        "ALTER TYPE pair RENAME ATTRIBUTE a TO x",
        "ALTER TYPE pair ADD ATTRIBUTE d text",
        "ALTER TYPE pair DROP ATTRIBUTE c",
    ] {
        oracle.run(change);
        let now = definition(&oracle);
        assert!(!known.contains(&now), "{change}: {now}");
        known.push(now);
    }
}

#[test]
fn a_row_of_a_type_that_was_altered_meanwhile_is_refused() {
    let oracle = Oracle::start();
    oracle.run("CREATE TYPE pair AS (a int, b int)");
    oracle.table(&["pair".to_owned()]);
    oracle.run("INSERT INTO t VALUES (1, ROW(1, 2))");
    assert_eq!(streamed(&oracle, &pins()).unwrap(), [r#"{"id":1,"c0":{"a":1,"b":2}}"#]);
    oracle.run("ALTER TYPE pair ADD ATTRIBUTE c int");
    let error = streamed(&oracle, &pins()).unwrap_err();
    assert!(
        error.contains("column c0 of type public.pair: the server sent a text that is not a composite of its type as the catalogue has it"),
        "{error}"
    );
}

#[test]
fn the_row_type_of_a_table_is_converted_without_its_dropped_columns() {
    let oracle = Oracle::start();
    oracle.run("CREATE TABLE address(street text, country text, zip int, noted timestamp); ALTER TABLE address DROP COLUMN country");
    oracle.table(&["address[]".to_owned()]);
    let readings = oracle
        .read(&pins(), "INSERT INTO t VALUES (1, ARRAY[ROW('A \"B\" C', 7, '2026-01-01 00:00:00'), ROW('', NULL, 'infinity')]::address[])");
    assert!(readings.json[0].contains(r#""zip":7,"noted":"2026-01-01T00:00:00""#), "{:?}", readings.json);
    assert_eq!(readings.streamed(&oracle.catalogue()).as_ref(), Ok(&readings.json));
    assert_eq!(readings.queried(&oracle.catalogue()).as_ref(), Ok(&readings.json));
}

#[test]
fn a_large_value_that_was_not_changed_is_left_out_and_named() {
    let oracle = Oracle::start();
    oracle.table(&["text".to_owned(), "text".to_owned()]);
    oracle.run("ALTER TABLE t ALTER c0 SET STORAGE EXTERNAL; INSERT INTO t VALUES (1, repeat('x', 5000), 'a'); UPDATE t SET c1 = 'b'");
    let readings = oracle.read(&pins(), "");
    let catalogue = oracle.catalogue();
    let update = readings.messages.iter().find_map(|message| match decode(message) {
        Ok(Message::Update { new, .. }) => Some(new),
        _ => None,
    });
    let (mut cells, mut json, mut missing) = (Default::default(), String::new(), Vec::new());
    let row = update.unwrap().locate(&mut cells);
    let wanted = [("c0", 25, 1), ("id", 23, 0), ("c1", 25, 2)].map(|(name, type_oid, place)| Wanted { name, type_oid, place });
    RowPlan::new(&catalogue, "t", wanted).unwrap().push_json(&mut json, |place| row.cell(place), &mut missing).unwrap();
    assert_eq!((json.as_str(), missing.as_slice()), (r#"{"id":1,"c1":"b"}"#, &[0][..]));
}
