//! What a real server sends is decoded message by message.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use rowcast::source::postgres::pgoutput::{Message, Old, Tuple, decode};
use rowcast::source::postgres::row::Cell;
use rowcast_testkit::postgres::PostgresServer;

use super::oracle::unhex;

/// A server with a slot that follows every table, and the types that follow the schema.
fn server(schema: &str) -> PostgresServer {
    let server = PostgresServer::start().unwrap();
    server.execute(&format!("{schema}; CREATE PUBLICATION p FOR ALL TABLES;")).unwrap();
    server.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").unwrap();
    server
}

fn messages(server: &PostgresServer) -> Vec<Vec<u8>> {
    let sql = "SELECT encode(data, 'hex') FROM pg_logical_slot_get_binary_changes('s', NULL, NULL, 'proto_version', '1', \
               'publication_names', 'p', 'messages', 'true')";
    server.execute(sql).unwrap().lines().map(unhex).collect()
}

fn values(tuple: Tuple<'_>) -> String {
    let value = |cell| match cell {
        Cell::Null => "null".to_owned(),
        Cell::Unchanged => "unchanged".to_owned(),
        Cell::Text(text) if text.len() > 20 => format!("{} bytes", text.len()),
        Cell::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
    };
    tuple.cells().map(value).collect::<Vec<_>>().join("|")
}

fn old(old: Old<'_>) -> String {
    match old {
        Old::Key(tuple) => format!("key {}", values(tuple)),
        Old::Full(tuple) => format!("row {}", values(tuple)),
    }
}

/// One line a message, without what differs from run to run.
fn described(messages: &[Vec<u8>]) -> Vec<String> {
    let mut names: HashMap<u32, String> = HashMap::new();
    let mut lines = Vec::new();
    for message in messages {
        let line = match decode(message).unwrap() {
            Message::Begin { .. } => "begin".to_owned(),
            Message::Commit { .. } => "commit".to_owned(),
            Message::Origin { commit_lsn, name } => format!("origin {name} {commit_lsn:x}"),
            Message::Type { schema, name, .. } => format!("type {schema}.{name}"),
            Message::Relation(relation) => {
                names.insert(relation.oid, relation.name.to_owned());
                let column = |column: rowcast::source::postgres::pgoutput::Column<'_>| {
                    let built_in = if column.type_oid < 16_384 { column.type_oid.to_string() } else { "?".to_owned() };
                    let key = if column.in_identity { "*" } else { "" };
                    format!("{}{key} {built_in}/{}", column.name, column.modifier)
                };
                let columns: Vec<String> = relation.columns().map(column).collect();
                format!("relation {}.{} {:?}: {}", relation.schema, relation.name, relation.identity, columns.join(", "))
            }
            Message::Insert { relation, new } => format!("insert {}: {}", names[&relation], values(new)),
            Message::Update { relation, old: None, new } => format!("update {}: {}", names[&relation], values(new)),
            Message::Update { relation, old: Some(was), new } => format!("update {}: {}, was {}", names[&relation], values(new), old(was)),
            Message::Delete { relation, old: was } => format!("delete {}: {}", names[&relation], old(was)),
            Message::Truncate { relations, cascade, restart_identity } => {
                let tables: Vec<&str> = relations.iter().map(|oid| names[&oid].as_str()).collect();
                format!("truncate {} {cascade} {restart_identity}", tables.join(","))
            }
            Message::Logical { transactional, prefix, content, .. } => {
                format!("message {prefix} {transactional}: {}", String::from_utf8_lossy(content))
            }
        };
        lines.push(line);
    }
    // Transactions of one change are the rule.
    lines.retain(|line| line != "begin" && line != "commit");
    lines
}

#[test]
fn every_kind_of_message_is_decoded() {
    let server = server(
        "CREATE TYPE mood AS ENUM ('fine');
         CREATE TABLE usual(id int PRIMARY KEY, name varchar(9), mood mood, large text);
         ALTER TABLE usual ALTER large SET STORAGE EXTERNAL;
         CREATE TABLE complete(a int, large text); ALTER TABLE complete REPLICA IDENTITY FULL;
         ALTER TABLE complete ALTER large SET STORAGE EXTERNAL;
         CREATE TABLE indexed(a int NOT NULL, b int NOT NULL, c int); CREATE UNIQUE INDEX i ON indexed(b);
         ALTER TABLE indexed REPLICA IDENTITY USING INDEX i;
         CREATE TABLE nothing(a int); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
         CREATE TABLE child(id int PRIMARY KEY REFERENCES usual)",
    );
    server
        .execute(
            "INSERT INTO usual VALUES (1, 'Ada', 'fine', repeat('x', 5000));
             UPDATE usual SET name = NULL;
             UPDATE usual SET id = 2, large = '';
             DELETE FROM usual;
             INSERT INTO complete VALUES (1, repeat('x', 5000)); UPDATE complete SET a = 2; DELETE FROM complete;
             INSERT INTO indexed VALUES (1, 2, 3); UPDATE indexed SET b = 4; DELETE FROM indexed;
             INSERT INTO nothing VALUES (1);
             TRUNCATE usual CASCADE; TRUNCATE complete, indexed RESTART IDENTITY;
             SELECT pg_logical_emit_message(true, 'mine', 'inside'), pg_logical_emit_message(false, 'mine', 'outside');
             SELECT pg_replication_origin_create('elsewhere'); SELECT pg_replication_origin_session_setup('elsewhere');
             BEGIN; SELECT pg_replication_origin_xact_setup('0/16', now()); INSERT INTO nothing VALUES (2); COMMIT;",
        )
        .unwrap();
    let expected = [
        "type public.mood",
        "relation public.usual Default: id* 23/-1, name 1043/13, mood ?/-1, large 25/-1",
        "insert usual: 1|Ada|fine|5000 bytes",
        "update usual: 1|null|fine|unchanged",
        "update usual: 2|null|fine|, was key 1|null|null|null",
        "delete usual: key 2|null|null|null",
        "relation public.complete Full: a* 23/-1, large* 25/-1",
        "insert complete: 1|5000 bytes",
        "update complete: 2|unchanged, was row 1|5000 bytes",
        "delete complete: row 2|5000 bytes",
        "relation public.indexed Index: a 23/-1, b* 23/-1, c 23/-1",
        "insert indexed: 1|2|3",
        "update indexed: 1|4|3, was key null|2|null",
        "delete indexed: key null|4|null",
        "relation public.nothing Nothing: a 23/-1",
        "insert nothing: 1",
        "relation public.child Default: id* 23/-1",
        "truncate usual,child true false",
        "truncate complete,indexed false true",
        "message mine false: outside",
        "message mine true: inside",
        "origin elsewhere 16",
        "insert nothing: 2",
    ];
    let mut found: Vec<String> = Vec::new();
    for line in described(&messages(&server)) {
        // When the server repeats what it said of a table is its own affair.
        if !found.contains(&line) {
            found.push(line);
        }
    }
    assert_eq!(found, expected);
}

#[test]
fn a_transaction_says_when_and_where_it_was_committed() {
    let server = server("CREATE TABLE t(a int)");
    let answer = server
        .execute(
            "BEGIN; INSERT INTO t VALUES (1); SELECT pg_current_xact_id(), pg_current_wal_insert_lsn(); COMMIT; \
                                 SELECT pg_current_wal_insert_lsn()",
        )
        .unwrap();
    let (inside, after) = answer.split_once('\n').unwrap();
    let (xid_there, before) = inside.split_once('|').unwrap();
    let lsn = |text: &str| {
        let (high, low) = text.split_once('/').unwrap();
        u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
    };
    let messages = messages(&server);
    let Message::Begin { commit_lsn, committed_us, xid } = decode(&messages[0]).unwrap() else { panic!("{messages:?}") };
    let Message::Commit { commit_lsn: again, end_lsn, committed_us: then } = decode(messages.last().unwrap()).unwrap() else {
        panic!("{messages:?}")
    };
    assert_eq!(xid.to_string(), xid_there);
    assert_eq!((commit_lsn, committed_us), (again, then));
    assert!(lsn(before) <= commit_lsn && commit_lsn < end_lsn && end_lsn <= lsn(after));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    assert!(now.abs_diff(u128::try_from(committed_us).unwrap()) < 60_000_000);
}
