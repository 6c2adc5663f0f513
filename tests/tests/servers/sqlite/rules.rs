//! Each rule by which the triggers are generated is needed: without it, random statements soon lose a change.
//!
//! The triggers are weakened in the database, as nobody but a test would do it: the source looks at `schema_version` only, and that
//! is put back.

use std::path::Path;

use rowcast::mapping::Mapped;
use rowcast::source::Source;
use rusqlite::Connection;

use super::schemas;
use super::statements::{Shape, shape};
use super::triggers::random_run;
use super::writer::bundled;

/// How a trigger's text reads without the rule; `None` where the trigger goes.
type Weaken = fn(&str, &str) -> Option<String>;

/// A rule, where it matters, and the triggers without it.
struct Rule {
    name: &'static str,
    shape: fn() -> Shape,
    without: Weaken,
}

fn gone(name: &str, sql: &str, trigger: &str) -> Option<String> {
    (!name.ends_with(trigger)).then(|| sql.to_owned())
}

/// The text without each statement of its body that contains `words`.
fn without_statement(sql: &str, words: &str) -> Option<String> {
    let (head, body) = sql.split_once(" BEGIN ")?;
    let body = body.strip_suffix("END")?;
    let kept: Vec<&str> = body.split_inclusive("; ").filter(|statement| !statement.contains(words)).collect();
    (!kept.is_empty()).then(|| format!("{head} BEGIN {}END", kept.concat()))
}

/// The new key of a row is named once its update is over, and not before.
fn new_key_afterwards(name: &str, sql: &str) -> Option<String> {
    let afterwards = "; INSERT INTO rowcast_changelog(tbl, op, at, v1) VALUES(1, 'U', 0, NEW.id); END";
    if name.ends_with("_update") { Some(sql.replace("; END", afterwards)) } else { without_statement(sql, "'U'") }
}

/// A table in which a displaced row takes along the row that displaces it.
fn cascade() -> Shape {
    shape("cascades within the table")
}

fn hidden_rowid() -> Shape {
    shape("text key without case, beside a hidden rowid")
}

fn several() -> Shape {
    shape("several unique indexes")
}

/// A table whose rows take others along by a foreign key, which fails half-way.
fn failing() -> Shape {
    let mut shape = shape("integer key alone");
    shape.ddl.push_str(
        "; CREATE TABLE below(id INTEGER PRIMARY KEY, up REFERENCES t ON DELETE CASCADE ON UPDATE CASCADE); \
         CREATE TRIGGER fails_to_go AFTER DELETE ON below BEGIN SELECT RAISE(FAIL, 'no') WHERE OLD.id % 2; END; \
         CREATE TRIGGER fails_to_follow AFTER UPDATE ON below BEGIN SELECT RAISE(FAIL, 'no') WHERE OLD.id % 2; END",
    );
    shape.beside = ["INSERT INTO below(up) SELECT id FROM t LIMIT 2", "DELETE FROM below WHERE id % 2 = 0"].map(str::to_owned).to_vec();
    shape
}

/// The same where no trigger says so, but a constraint that one meets.
fn failing_by_constraint() -> Shape {
    let mut shape = failing();
    let (tables, _) = shape.ddl.split_once("CREATE TRIGGER").unwrap();
    shape.ddl = format!(
        "{tables} CREATE TABLE audit(who NOT NULL ON CONFLICT FAIL); \
         CREATE TRIGGER theirs AFTER DELETE ON below BEGIN INSERT INTO audit SELECT NULL WHERE OLD.id % 2; END"
    );
    shape
}

/// A table whose row, while it takes another one's key, may be given yet another one by its own foreign key.
fn moved_along() -> Shape {
    let mut shape = shape("integer key alone");
    shape.ddl = "CREATE TABLE above(x INTEGER PRIMARY KEY, y INTEGER REFERENCES t(id) ON DELETE CASCADE); \
         CREATE TABLE t(id INTEGER PRIMARY KEY DEFAULT 6 REFERENCES above(x) ON DELETE SET DEFAULT DEFERRABLE INITIALLY DEFERRED, \
                        a INTEGER, b TEXT)"
        .to_owned();
    shape.beside = [
        "INSERT OR REPLACE INTO above VALUES(1, NULL), (2, NULL), (3, NULL), (4, NULL), (5, NULL), (6, NULL); DELETE FROM t; \
         INSERT INTO t VALUES(1, 1, 'a'), (2, 2, 'b'); UPDATE above SET y = 2 WHERE x = 1",
        "UPDATE OR REPLACE t SET id = 2 WHERE id = 1",
    ]
    .map(str::to_owned)
    .to_vec();
    shape
}

const RULES: &[Rule] = &[
    Rule { name: "an insert is named", shape: several, without: |name, sql| gone(name, sql, "_insert") },
    Rule { name: "an update is named", shape: several, without: |name, sql| gone(name, sql, "_update") },
    Rule { name: "a delete is named", shape: several, without: |name, sql| gone(name, sql, "_delete") },
    Rule {
        name: "an update of the rowid by another name is one",
        shape: hidden_rowid,
        without: |_, sql| Some(sql.replace("BEFORE UPDATE ON", "BEFORE UPDATE OF k, a ON")),
    },
    Rule {
        name: "a key that changes is named by its new value",
        shape: || shape("integer key alone"),
        without: |_, sql| Some(sql.replace("OLD.\"id\", NEW.\"id\")", "OLD.\"id\", NULL)")),
    },
    Rule {
        name: "the new key is named before the update, where a cascade may take the row along",
        shape: cascade,
        without: new_key_afterwards,
    },
    Rule { name: "rows that an insert displaces are named", shape: several, without: |name, sql| gone(name, sql, "_insert_displaces") },
    Rule { name: "rows that an update displaces are named", shape: several, without: |name, sql| gone(name, sql, "_update_displaces") },
    Rule {
        name: "each unique index is looked at",
        shape: several,
        without: |_, sql| Some(sql.replace("\"b\" COLLATE BINARY = coalesce(NEW.\"b\", '3')", "0")),
    },
    Rule {
        name: "an index compares by its own collation",
        shape: several,
        without: |_, sql| Some(sql.replace("COLLATE NOCASE =", "COLLATE BINARY =")),
    },
    Rule {
        name: "NULL becomes the default where NULL is not allowed",
        shape: several,
        without: |_, sql| Some(sql.replace("coalesce(NEW.\"b\", '3')", "NEW.\"b\"")),
    },
    Rule {
        name: "the hidden rowid is a unique index, too",
        shape: hidden_rowid,
        without: |_, sql| without_statement(sql, "rowid = NEW.rowid"),
    },
    Rule {
        name: "a key whose collation hides its bytes is looked up",
        shape: hidden_rowid,
        without: |_, sql| without_statement(sql, "\"k\" COLLATE NOCASE = NEW.\"k\""),
    },
    Rule {
        name: "a change that the collation hides is a change",
        shape: || shape("keys from the primary key and more"),
        without: |name, sql| {
            Some(if name.ends_with("_update") {
                sql.replace("FOR EACH ROW", "FOR EACH ROW WHEN OLD.k IS NOT NEW.k OR OLD.a IS NOT NEW.a OR OLD.b IS NOT NEW.b")
            } else {
                sql.to_owned()
            })
        },
    },
    Rule {
        name: "expressions of an index are looked at",
        shape: || shape("partial and expression indexes"),
        without: |_, sql| without_statement(sql, "lower(s)"),
    },
    Rule {
        name: "an expression sees the columns' own collations and affinities",
        shape: || shape("partial and expression indexes"),
        without: |_, sql| {
            let (mut text, mut rest) = (String::new(), sql);
            while let Some((before, after)) = rest.split_once("FROM (SELECT \"id\", ") {
                let (_, after) = after.split_once("UNION ALL SELECT ")?;
                text.push_str(before);
                let (values, after) = after.split_once(") AS")?;
                let named: Vec<String> =
                    ["id", "a", "s", "n"].iter().zip(split(values)).map(|(name, value)| format!("{value} AS {name}")).collect();
                text.push_str(&format!("FROM (SELECT {}) AS", named.join(", ")));
                rest = after;
            }
            Some(text + rest)
        },
    },
    Rule {
        name: "partial indexes are looked at",
        shape: || shape("partial and expression indexes"),
        without: |_, sql| without_statement(sql, "t.s = 'X'"),
    },
    Rule {
        name: "an update may bring a row into a partial index without touching its columns",
        shape: || shape("partial and expression indexes"),
        without: |name, sql| {
            let guarded = "FOR EACH ROW WHEN OLD.n IS NOT NEW.n OR OLD.id IS NOT NEW.id OR OLD.a IS NOT NEW.a";
            Some(if name.ends_with("_update_displaces") { sql.replace("FOR EACH ROW", guarded) } else { sql.to_owned() })
        },
    },
    Rule {
        name: "old values of the template are recorded",
        shape: || shape("keys from another column"),
        without: |_, sql| Some(sql.replace("OLD.\"email\");", "NULL);")),
    },
    Rule {
        name: "a row that is displaced by its primary key has old values, too",
        shape: || shape("keys from another column"),
        without: |_, sql| without_statement(sql, "\"id\" COLLATE BINARY = NEW.\"id\""),
    },
    Rule {
        name: "a row is named before it goes, where that may fail half-way",
        shape: failing,
        without: |name, sql| gone(name, sql, "_delete_fails"),
    },
    Rule {
        name: "a row is named before it goes, where a constraint may fail half-way",
        shape: failing_by_constraint,
        without: |name, sql| gone(name, sql, "_delete_fails"),
    },
    Rule {
        name: "the new key is named before the update, where the row may get yet another one",
        shape: moved_along,
        without: new_key_afterwards,
    },
    Rule {
        name: "a row is named before it changes, where that may fail half-way",
        shape: failing,
        without: |name, sql| gone(name, sql, "_update_fails"),
    },
    Rule {
        name: "a row is named before it is displaced, where that may fail half-way",
        shape: failing,
        without: |name, sql| gone(name, sql, "_insert_displaces"),
    },
    Rule {
        name: "triggers of the application that may end a statement run after ours",
        shape: || {
            let mut shape = shape("integer key alone");
            shape.ddl.push_str("; CREATE TRIGGER theirs AFTER INSERT ON t WHEN NEW.a = 1 BEGIN SELECT RAISE(IGNORE); END");
            shape
        },
        without: |name, sql| {
            Some(if name.ends_with("_insert") {
                sql.replace(" BEGIN", " BEGIN SELECT RAISE(IGNORE) WHERE NEW.a = 1;")
            } else {
                sql.to_owned()
            })
        },
    },
];

/// Splits at commas outside of parentheses.
fn split(values: &str) -> Vec<String> {
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for c in values.chars() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if c == ',' && depth == 0 { parts.push(String::new()) } else { parts.last_mut().unwrap().push(c) }
    }
    parts
}

/// Weakens the installed triggers and puts `schema_version` back.
fn weaken(path: &Path, without: Weaken) {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(super::DEADLINE).unwrap();
    let version: i64 = connection.query_row("PRAGMA schema_version", [], |row| row.get(0)).unwrap();
    let triggers: Vec<(String, String)> = {
        let mut statement = connection
            .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND name GLOB 'rowcast_*' ORDER BY rowid")
            .unwrap();
        statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let mut weaker = 0;
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    for (name, sql) in &triggers {
        let weakened = without(name, sql);
        if weakened.as_ref() != Some(sql) {
            weaker += 1;
            connection.execute_batch(&format!("DROP TRIGGER {name}")).unwrap();
            if let Some(weakened) = weakened {
                connection.execute_batch(&weakened).unwrap_or_else(|error| panic!("{error}: {weakened}"));
            }
        }
    }
    connection.execute_batch(&format!("PRAGMA schema_version = {version}; COMMIT")).unwrap();
    assert!(weaker > 0, "nothing was weakened in {triggers:#?}");
}

#[tokio::test]
async fn without_any_one_of_the_rules_a_change_is_lost() {
    let mut unneeded = Vec::new();
    for rule in RULES {
        let mut lost = None;
        for seed in 0..40 {
            if random_run(&(rule.shape)(), seed, 120, bundled, |path| weaken(path, rule.without)).await.is_err() {
                lost = Some(seed);
                break;
            }
        }
        match lost {
            Some(seed) => println!("without \"{}\" a change is lost by seed {seed}", rule.name),
            None => unneeded.push(rule.name),
        }
    }
    assert!(unneeded.is_empty(), "no run lost a change without {unneeded:#?}");
}

#[tokio::test]
async fn a_key_that_another_row_has_stays_though_it_was_named_by_a_change_that_failed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = super::application(&path);
    app.execute_batch("CREATE TABLE t(a INTEGER NOT NULL UNIQUE, b TEXT NOT NULL, PRIMARY KEY(a, b)); INSERT INTO t VALUES(1, 'x')")
        .unwrap();
    let mut follower = super::Follower::begin(&super::settings(&path, &[("t", Some("t:{a}"))])).await;
    for statement in [
        "UPDATE t SET b = 'y'",
        "UPDATE OR IGNORE t SET b = NULL",
        "UPDATE t SET b = 'z'; UPDATE t SET b = 'y'",
        "DELETE FROM t; INSERT INTO t VALUES(1, 'n')",
    ] {
        app.execute_batch(statement).unwrap();
        follower.follow(super::newest(&app)).await.unwrap();
        assert_eq!(follower.rows, super::oracle(&app, &follower.start.tables[0], &["a", "b"])[0], "{statement}");
    }
    let alone = follower
        .source
        .rows(
            0,
            &[r#"{"a":1,"b":"x"}"#.to_owned(), r#"{"a":2,"b":"x"}"#.to_owned()],
            rowcast::source::ChunkLimits { rows: 10, bytes: 1 << 20 },
        )
        .await
        .unwrap();
    let alone = super::rows_now(alone).0.rows;
    let fates: Vec<_> = alone.iter().map(|row| follower.start.tables[0].map(&row.image)).collect();
    assert_eq!(fates, [Mapped::Nothing, Mapped::Remove { key: "t:2".to_owned() }]);
}

#[test]
fn random_schemas_are_of_every_kind() {
    let texts: Vec<String> = (0..400).map(schemas::random).map(|shape| shape.ddl + &shape.later).collect();
    for word in [
        "STRICT",
        "WITHOUT ROWID",
        "VIRTUAL",
        "STORED",
        "AUTOINCREMENT",
        "ON CONFLICT REPLACE",
        "COLLATE NOCASE",
        "COLLATE RTRIM",
        " DESC",
        "lower(",
        "UNIQUE INDEX",
        ") WHERE ",
        "ON DELETE CASCADE",
        "ON UPDATE SET NULL",
        "DEFERRABLE",
        "RAISE(IGNORE)",
        "RAISE(ABORT",
        "RAISE(FAIL",
        "CREATE TRIGGER fails",
        "UTF-16le",
        "DEFAULT",
        "BLOB",
        "CREATE TABLE other",
        "CREATE TABLE below",
        "CREATE TRIGGER spreads",
        "\"select\"",
        "Größe",
        "\"c\"\"d\"",
    ] {
        let count = texts.iter().filter(|text| text.contains(word)).count();
        assert!(count >= 5, "{word} is in {count} of 400 schemas");
    }
}
