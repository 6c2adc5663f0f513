//! `check` without servers, and what other commands find out before they reach for any.

use serde_json::Value;

use super::*;

/// A configuration with parts in memory and these tables.
fn configured(tables: &str) -> String {
    let (head, _) = MEMORY.split_once("[[table]]").unwrap();
    format!("{head}{tables}")
}

fn write(folder: &Path, text: &str) {
    std::fs::write(folder.join("rowcast.toml"), text).unwrap();
}

#[test]
fn check_finds_everything_at_once_each_with_what_mends_it() {
    let folder = tempfile::tempdir().unwrap();
    let db = Connection::open(folder.path().join("shop.db")).unwrap();
    db.execute_batch(
        "CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL UNIQUE);
         CREATE TABLE notes(text TEXT);
         CREATE VIEW adults AS SELECT * FROM users;
         CREATE VIRTUAL TABLE words USING fts5(word);
         CREATE TABLE tags(name NOT NULL PRIMARY KEY);
         CREATE TABLE orders(id INTEGER PRIMARY KEY);
         INSERT INTO tags VALUES(7), (x'00');",
    )
    .unwrap();
    write(
        folder.path(),
        &configured(
            "[[table]]\nname = \"users\"\nkey = \"m:{email}\"\ncolumns = [\"id\", \"nmae\"]\n\
             [[table]]\nname = \"user\"\n\
             [[table]]\nname = \"notes\"\n\
             [[table]]\nname = \"adults\"\n\
             [[table]]\nname = \"words_data\"\n\
             [[table]]\nname = \"tags\"\nkey = \"x:{name}\"\n\
             [[table]]\nname = \"orders\"\nkey = \"x:{id}\"\n",
        ),
    );
    let said = rowcast(folder.path(), &["check"]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(2), ""));
    insta::assert_snapshot!(said.stdout, @r#"
    pipeline shop, rowcast.toml

    source  sqlite:shop.db
      stops   shop.db has no changelog yet
              → run `rowcast install`
      stops   rowcast.toml:12:11: table users: there is no column nmae
                 |
              12 | columns = ["id", "nmae"]
                 |           ^^^^^^^^^^^^^^
              → did you mean name?
      stops   rowcast.toml:14:8: there is no table user in the database
                 |
              14 | name = "user"
                 |        ^^^^^^
              → did you mean users?
      stops   rowcast.toml:16:8: table notes cannot be cached: it has no primary key, so its rows cannot be told apart
                 |
              16 | name = "notes"
                 |        ^^^^^^^
              → give it one
      stops   rowcast.toml:18:8: table adults cannot be cached: it is a view, which has no rows of its own
                 |
              18 | name = "adults"
                 |        ^^^^^^^^
              → map the tables that it reads
      stops   rowcast.toml:20:8: table words_data cannot be cached: it is a shadow table, which a virtual table (a full-text index, say) keeps its own data in
                 |
              20 | name = "words_data"
                 |        ^^^^^^^^^^^^
              → map the ordinary table that that one was made from
      stops   rowcast.toml:26:7: the tables tags and orders would share keys (x:{name:blob} and x:{id:integer})
                 |
              26 | key = "x:{id}"
                 |       ^^^^^^^^
              → give one of them a key that begins otherwise
      harms   shop.db is in journal mode delete, in which readers and writers wait for each other: an application without a busy time-out may be told that the database is locked
              → run `sqlite3 shop.db "PRAGMA journal_mode = wal"`
      harms   rowcast.toml:23:7: table tags: of the first 10000 rows at most, 1 have no safe key, because a column of the key is null, empty, or holds another type than it was declared for; they become dead letters
                 |
              23 | key = "x:{name}"
                 |       ^^^^^^^^^^
              → mend these rows, or build the key from other columns

    broker  memory: in the process that runs the pipeline
      good

    cache   memory: in the process that runs the pipeline
      good

    7 findings stop the pipeline, 2 harm it
    "#);
}

#[test]
fn a_key_that_nobody_can_tell_apart_is_a_harm_and_exits_clean() {
    let folder = shop();
    let db = Connection::open(folder.path().join("shop.db")).unwrap();
    db.execute_batch("CREATE TABLE mails(email TEXT NOT NULL PRIMARY KEY, id INTEGER)").unwrap();
    write(folder.path(), &configured("[[table]]\nname = \"mails\"\nkey = \"m:{email}\"\ncolumns = [\"id\"]\n"));
    assert_eq!(rowcast(folder.path(), &["install"]).code, Some(0));
    let said = rowcast(folder.path(), &["check"]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(said.stdout, @r#"
    pipeline shop, rowcast.toml

    source  sqlite:shop.db
      harms   rowcast.toml:11:7: table mails: its key ends in free text (email), which the value does not hold, so a key of that form could be anybody's: a sweep leaves one whose row is gone
                 |
              11 | key = "m:{email}"
                 |       ^^^^^^^^^^^
              → add email to `columns`

    broker  memory: in the process that runs the pipeline
      good

    cache   memory: in the process that runs the pipeline
      good

    nothing stops the pipeline, 1 harms it
    "#);
}

#[test]
fn what_became_of_the_triggers_is_found() {
    let folder = shop();
    write(folder.path(), MEMORY);
    assert_eq!(rowcast(folder.path(), &["install"]).code, Some(0));
    let db = Connection::open(folder.path().join("shop.db")).unwrap();
    let found = || {
        let said = rowcast(folder.path(), &["check", "--json"]);
        let report: Value = serde_json::from_str(&said.stdout).unwrap();
        let found = report["findings"].as_array().unwrap().iter();
        let texts: Vec<String> =
            found.map(|finding| format!("{}: {}", finding["grade"].as_str().unwrap(), finding["message"].as_str().unwrap())).collect();
        (said.code, texts.join("\n"))
    };
    assert_eq!(found(), (Some(0), String::new()));

    db.execute_batch("CREATE TRIGGER mine AFTER INSERT ON users WHEN NEW.name = 'x' BEGIN SELECT RAISE(IGNORE); END").unwrap();
    insta::assert_snapshot!(found().1, @"harms: table users has a trigger of the application that was created after rowcast's: it runs first, and where it ends a statement (RAISE(IGNORE), or an error under OR FAIL) that goes unrecorded");
    db.execute_batch("DROP TRIGGER mine; CREATE UNIQUE INDEX i ON users(name)").unwrap();
    insta::assert_snapshot!(found().1, @"harms: the triggers on users are not what they should be (a migration has rebuilt the table or given it another index, or its key in the configuration is made of other columns), so changes may go unrecorded");
    assert_eq!(rowcast(folder.path(), &["install"]).code, Some(0));
    assert_eq!(found(), (Some(0), String::new()));

    write(folder.path(), &MEMORY.replace("users", "line items").replace("{id}", "{order}:{line}"));
    let (code, text) = found();
    assert_eq!(code, Some(1));
    insta::assert_snapshot!(text, @r"
    stops: table line items is not followed yet
    notes: there are still triggers on users, which the configuration does not name any more
    ");
    write(folder.path(), &MEMORY.replace("name = \"shop\"", "name = \"other\""));
    let (code, text) = found();
    assert_eq!(code, Some(1));
    insta::assert_snapshot!(text, @"stops: the database belongs to the pipeline shop, not other, and its changelog serves one pipeline only");
}

#[test]
fn a_wrong_file_is_named_with_the_near_one() {
    let folder = shop();
    write(folder.path(), &MEMORY.replace("sqlite:shop.db", "sqlite:shpo.db"));
    let said = rowcast(folder.path(), &["run"]);
    assert_eq!(said.code, Some(1));
    insta::assert_snapshot!(said.stderr, @"error: there is no database file shpo.db; did you mean shop.db? Correct the `url` in [source]");
    std::fs::write(folder.path().join("shop.db"), "this is no database at all, but a text of some length").unwrap();
    write(folder.path(), MEMORY);
    let said = rowcast(folder.path(), &["check"]);
    assert_eq!(said.code, Some(1));
    insta::assert_snapshot!(said.stdout, @r"
    pipeline shop, rowcast.toml

    source  sqlite:shop.db
      stops   shop.db cannot be read while looking at it (file is not a database)
              → if it is being replaced this passes, else restore it from a backup

    broker  memory: in the process that runs the pipeline
      good

    cache   memory: in the process that runs the pipeline
      good

    1 finding stops the pipeline
    ");
}

#[test]
fn a_wrong_configuration_can_be_parsed_too() {
    let folder = shop();
    write(folder.path(), &MEMORY.replace("[cache]", "[chache]"));
    let said = rowcast(folder.path(), &["check", "--json"]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(2), ""));
    let report: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(report["stops"], 2);
    assert_eq!((&report["findings"][0]["file"], &report["findings"][0]["line"]), (&"rowcast.toml".into(), &7.into()), "{report}");
}

#[test]
fn what_only_the_database_can_tell_has_its_place_in_the_file() {
    let folder = shop();
    let two = "[[table]]\nname = \"users\"\nkey = \"x:{id}\"\n[[table]]\nname = \"line items\"\nkey = \"x:{order}:{lin}\"\n";
    write(folder.path(), &configured(two));
    for command in ["install", "run"] {
        let said = rowcast(folder.path(), &[command]);
        assert_eq!(said.code, Some(2));
        assert!(
            said.stderr.contains("rowcast.toml:14:7: table line items: the key \"x:{order}:{lin}\" names the column lin"),
            "{}",
            said.stderr
        );
    }
    write(
        folder.path(),
        &configured("[[table]]\nname = \"users\"\nkey = \"x:{id}\"\n[[table]]\nname = \"line items\"\nkey = \"x:{order}\"\n"),
    );
    let said = rowcast(folder.path(), &["install"]);
    assert_eq!(said.code, Some(2));
    insta::assert_snapshot!(said.stderr, @r#"
    error: rowcast.toml:14:7: table line items: the key "x:{order}" could be the same for two rows, because nothing makes order unique; use the primary key, or create a unique index over NOT NULL columns
       |
    14 | key = "x:{order}"
       |       ^^^^^^^^^^^
    "#);
    write(folder.path(), &configured("[[table]]\nname = \"users\"\nwhere = \"nmae <> ''\"\n"));
    let said = rowcast(folder.path(), &["install"]);
    assert_eq!(said.code, Some(2));
    insta::assert_snapshot!(said.stderr, @r#"
    error: rowcast.toml:11:9: table users: `where` names the column nmae, which does not exist; did you mean name?
       |
    11 | where = "nmae <> ''"
       |         ^^^^^^^^^^^^
    "#);
}
