//! Migrations under way: whatever happens to the schema, what is streamed afterwards is what the tables hold.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rowcast::mapping::Descriptor;
use rowcast::source::sqlite::{Capture, SqliteSettings, SqliteSource, install, uninstall};
use rowcast::source::{ChunkLimits, Error, Source};
use rusqlite::Connection;

use super::{DEADLINE, Follower, application, newest, now, oracle, settings};

impl Follower {
    /// Meets a changed schema as a publisher does, and returns the notes. A resync is done where every table or this one is new.
    async fn begin_again(&mut self) -> Vec<String> {
        let error = tokio::time::timeout(DEADLINE, self.source.next()).await.expect("it is noticed").unwrap_err();
        assert!(matches!(&error, Error::Changed(_)), "{error}");
        let before = (self.start.lineage.clone(), self.descriptors());
        self.start = self.source.begin(Some(&self.record)).await.unwrap();
        (self.record, self.position) = (self.start.record.clone(), self.start.from);
        if before != (self.start.lineage.clone(), self.descriptors()) {
            self.resync().await;
        }
        self.start.notes.clone()
    }

    fn descriptors(&self) -> Vec<(String, Descriptor)> {
        self.start.tables.iter().map(|table| (table.table.0.to_string(), table.descriptor.clone())).collect()
    }

    /// Everything by chunks.
    async fn resync(&mut self) {
        (self.rows, self.by_pk) = Default::default();
        for table in 0..self.start.tables.len() {
            let chunk = now(self.source.chunk(table, None, ChunkLimits { rows: 10_000, bytes: 1 << 30 }).await.unwrap());
            assert!(chunk.last);
            for row in chunk.rows {
                if let rowcast::mapping::Mapped::Put { key, row } = self.start.tables[table].map(&row.image) {
                    self.rows.insert(key, row.to_owned());
                }
            }
        }
    }

    async fn assert_agrees(&mut self, app: &Connection) {
        self.follow(newest(app)).await.unwrap();
        let mut held = std::collections::BTreeMap::new();
        for table in &*self.start.tables {
            held.extend(oracle(app, table, &["id"])[0].clone());
        }
        assert_eq!(self.rows, held);
    }

    fn tables(&self) -> Vec<&str> {
        self.start.tables.iter().map(|table| &*table.table.0).collect()
    }
}

const SCHEMA: &str = "PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT UNIQUE, b INTEGER); \
                      CREATE TABLE u(id INTEGER PRIMARY KEY, a TEXT); \
                      INSERT INTO t VALUES(1, 'x', 1), (2, 'y', 2); INSERT INTO u VALUES(1, 'u')";

/// Two tables that are followed, `t` and `u`.
async fn two_tables(folder: &Path) -> (SqliteSettings, Connection, Follower) {
    let path = folder.join("app.db");
    let app = application(&path);
    app.execute_batch(SCHEMA).unwrap();
    let settings = settings(&path, &[("t", None), ("u", None)]);
    let mut follower = Follower::begin(&settings).await;
    follower.resync().await;
    (settings, app, follower)
}

#[tokio::test]
async fn columns_that_are_added_renamed_and_dropped_under_way_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (_, app, mut follower) = two_tables(folder.path()).await;
    for (migration, columns) in [
        ("ALTER TABLE t ADD COLUMN c INTEGER DEFAULT 7", vec!["id", "a", "b", "c"]),
        ("ALTER TABLE t RENAME COLUMN b TO \"d d\"", vec!["id", "a", "d d", "c"]),
        ("ALTER TABLE t RENAME COLUMN a TO e", vec!["id", "e", "d d", "c"]),
        ("ALTER TABLE t DROP COLUMN \"d d\"", vec!["id", "e", "c"]),
        ("ALTER TABLE t ADD COLUMN f AS (id + 1) VIRTUAL", vec!["id", "e", "c", "f"]),
        ("BEGIN; ALTER TABLE t DROP COLUMN f; ALTER TABLE t ADD COLUMN f AS (id + 2) VIRTUAL; COMMIT", vec!["id", "e", "c", "f"]),
        ("ALTER TABLE t DROP COLUMN f", vec!["id", "e", "c"]),
        // No trigger sees that every row has another value afterwards.
        ("BEGIN; ALTER TABLE t DROP COLUMN c; ALTER TABLE t ADD COLUMN c INTEGER DEFAULT 8; COMMIT", vec!["id", "e", "c"]),
    ] {
        let before = follower.descriptors();
        app.execute_batch(migration).unwrap();
        assert_eq!(follower.begin_again().await, Vec::<String>::new(), "{migration}: history goes on");
        assert_eq!(follower.start.tables[0].columns, columns);
        let after = follower.descriptors();
        assert_ne!(before[0], after[0], "{migration}: the table is read again");
        assert_eq!(before[1], after[1], "{migration}: the other one is not");
        app.execute_batch("INSERT OR REPLACE INTO t(id) VALUES(5); UPDATE t SET id = id + 10 WHERE id = 1; UPDATE u SET a = a || 'x'")
            .unwrap();
        follower.assert_agrees(&app).await;
    }
}

#[tokio::test]
async fn a_table_that_is_dropped_leaves_the_others_alone_and_is_taken_up_again() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app, mut follower) = two_tables(folder.path()).await;
    let lineage = follower.start.lineage.clone();
    app.execute_batch("DROP TABLE t; UPDATE u SET a = 'v'").unwrap();
    let notes = follower.begin_again().await;
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("table t is left out") && notes[0].contains("there is no table t"), "{}", notes[0]);
    assert_eq!((follower.tables(), &follower.start.lineage), (vec!["u"], &lineage), "the other one is not read again");
    follower.assert_agrees(&app).await;

    // A publisher that starts now says what is wrong: the configuration may be.
    let error = SqliteSource::new(settings.clone()).unwrap().begin(Some(&follower.record)).await.unwrap_err();
    assert!(matches!(&error, Error::Fatal(why) if why.contains("there is no table t")), "{error}");

    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER UNIQUE); INSERT INTO t VALUES(9, 9)").unwrap();
    let notes = follower.begin_again().await;
    assert!(notes.iter().any(|note| note.contains("created on t")), "{notes:?}");
    assert_eq!(follower.tables(), ["t", "u"]);
    app.execute_batch("REPLACE INTO t VALUES(10, 9)").unwrap();
    follower.assert_agrees(&app).await;
}

#[tokio::test]
async fn a_table_that_is_renamed_is_left_out_until_its_name_is_back() {
    for legacy in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let (_, app, mut follower) = two_tables(folder.path()).await;
        app.execute_batch(&format!("PRAGMA legacy_alter_table = {legacy}; ALTER TABLE t RENAME TO other")).unwrap();
        let write = "INSERT INTO other VALUES(3, 'z', 3); UPDATE other SET b = 7 WHERE id = 1";
        // SQLite's old way leaves the triggers with a name that is gone.
        assert_eq!(app.execute_batch(write).is_err(), legacy);
        let notes = follower.begin_again().await;
        assert!(notes.iter().any(|note| note.contains("table t is left out")), "{notes:?}");
        app.execute_batch("DELETE FROM other WHERE id = 3").unwrap();
        app.execute_batch(write).unwrap();
        app.execute_batch("INSERT INTO u VALUES(2, 'w')").unwrap();
        follower.assert_agrees(&app).await;
        app.execute_batch("ALTER TABLE other RENAME TO t; INSERT INTO t VALUES(4, 'q', 4)").unwrap();
        follower.begin_again().await;
        assert_eq!(follower.tables(), ["t", "u"]);
        app.execute_batch("UPDATE t SET b = 0").unwrap();
        follower.assert_agrees(&app).await;
    }
}

#[tokio::test]
async fn a_table_that_is_rebuilt_step_by_step_is_followed_before_and_after() {
    for steps in [
        [
            "CREATE TABLE n(id INTEGER PRIMARY KEY, a TEXT UNIQUE, b INTEGER, c)",
            "INSERT INTO n SELECT *, 1 FROM t",
            "DROP TABLE t",
            "ALTER TABLE n RENAME TO t",
        ],
        [
            "ALTER TABLE t RENAME TO o",
            "CREATE TABLE t(id INTEGER PRIMARY KEY, b INTEGER, a TEXT UNIQUE)",
            "INSERT INTO t SELECT id, b, a FROM o",
            "DROP TABLE o",
        ],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (_, app, mut follower) = two_tables(folder.path()).await;
        for step in steps {
            let before: i64 = app.query_row("PRAGMA schema_version", [], |row| row.get(0)).unwrap();
            app.execute_batch(step).unwrap();
            if before != app.query_row("PRAGMA schema_version", [], |row| row.get::<_, i64>(0)).unwrap() {
                follower.begin_again().await;
            }
            app.execute_batch("UPDATE u SET a = a || '.'").unwrap();
            follower.assert_agrees(&app).await;
        }
        app.execute_batch("INSERT INTO t(id, a) VALUES(7, 'new'); UPDATE OR REPLACE t SET a = 'new' WHERE id = 1").unwrap();
        follower.assert_agrees(&app).await;
        assert!(!follower.rows.contains_key("t:7") && follower.rows.contains_key("t:1"));
    }
}

#[tokio::test]
async fn a_migration_after_which_a_table_cannot_be_followed_says_so_and_its_columns_can_be_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = application(&path);
    app.execute_batch(SCHEMA).unwrap();
    app.execute_batch("CREATE TABLE w(id INTEGER PRIMARY KEY, handle TEXT NOT NULL); CREATE UNIQUE INDEX i ON w(handle)").unwrap();
    let settings = settings(&path, &[("w", Some("w:{handle}")), ("u", None)]);
    let mut follower = Follower::begin(&settings).await;
    let error = app.execute_batch("DROP INDEX i; ALTER TABLE w DROP COLUMN handle").unwrap_err();
    assert!(error.to_string().contains("error in trigger rowcast_"), "SQLite names our trigger: {error}");
    let notes = follower.begin_again().await;
    assert!(notes.iter().any(|note| note.contains("could be the same for two rows")), "{notes:?}");
    app.execute_batch("ALTER TABLE w DROP COLUMN handle").unwrap();
    follower.begin_again().await;
    follower.resync().await;
    follower.assert_agrees(&app).await;

    // Or all at once, as the guide says.
    uninstall(&path).unwrap();
    app.execute_batch("ALTER TABLE u DROP COLUMN a").unwrap();
    let settings = super::settings(&path, &[("u", None)]);
    install(&settings).unwrap();
    let mut follower = Follower::begin(&settings).await;
    follower.resync().await;
    follower.assert_agrees(&app).await;
}

#[tokio::test]
async fn upkeep_of_the_file_costs_nothing_but_a_look() {
    let folder = tempfile::tempdir().unwrap();
    let (_, app, mut follower) = two_tables(folder.path()).await;
    let (lineage, descriptors) = (follower.start.lineage.clone(), follower.descriptors());
    for upkeep in ["VACUUM", "ANALYZE", "CREATE INDEX i ON t(b)", "DROP INDEX i", "CREATE VIEW v AS SELECT * FROM t", "DROP VIEW v"] {
        app.execute_batch(upkeep).unwrap();
        assert_eq!(follower.begin_again().await, Vec::<String>::new(), "{upkeep}");
        app.execute_batch("UPDATE t SET b = b + 1; INSERT INTO u(a) VALUES('more')").unwrap();
        follower.assert_agrees(&app).await;
        follower.source.forget(follower.position).await.unwrap();
    }
    app.execute_batch("REINDEX; PRAGMA optimize; PRAGMA wal_checkpoint(TRUNCATE); UPDATE t SET b = b + 1").unwrap();
    follower.assert_agrees(&app).await;
    assert_eq!((&follower.start.lineage, follower.descriptors()), (&lineage, descriptors));
}

#[tokio::test]
async fn the_journal_mode_may_change_under_way_as_far_as_sqlite_allows() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app, mut follower) = two_tables(folder.path()).await;
    app.busy_timeout(Duration::from_millis(100)).unwrap();
    // Whoever has the file open keeps WAL on; that is SQLite's rule, and the answer is an error, not a harm.
    let error = app.execute_batch("PRAGMA journal_mode = DELETE").unwrap_err();
    assert!(error.to_string().contains("locked"), "{error}");
    app.execute_batch("UPDATE t SET b = 10").unwrap();
    follower.assert_agrees(&app).await;
    let (record, lineage) = (follower.record.clone(), follower.start.lineage.clone());
    drop(follower);
    rowcast_testkit::wait::until("the publisher's connection to close", DEADLINE, || async {
        app.execute_batch("PRAGMA journal_mode = DELETE").ok()
    })
    .await
    .unwrap();
    let mut source = SqliteSource::new(settings).unwrap();
    let start = source.begin(Some(&record)).await.unwrap();
    assert_eq!(start.lineage, lineage);
    let mut follower =
        Follower { source, record, position: start.from, start, rows: Default::default(), by_pk: Default::default(), last: vec![] };
    follower.resync().await;
    for mode in ["truncate", "persist", "memory", "delete", "wal"] {
        rowcast_testkit::wait::until("the journal mode to change", DEADLINE, || async {
            let now: Option<String> = app.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| row.get(0)).ok();
            (now.as_deref() == Some(mode)).then_some(())
        })
        .await
        .unwrap();
        app.execute_batch("UPDATE t SET b = b + 1; INSERT INTO u(a) VALUES('more')").unwrap();
        follower.assert_agrees(&app).await;
    }
}

#[tokio::test]
async fn generated_columns_are_cached_and_what_cannot_be_computed_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = application(&path);
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT, v AS (upper(a)) VIRTUAL, s INTEGER AS (length(a)) STORED)").unwrap();
    let script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.create_function('only_here', 1, lambda a: 1, deterministic=True); \
                  c.execute('CREATE TABLE f(id INTEGER PRIMARY KEY, a TEXT, g AS (only_here(a)))')";
    assert!(Command::new("python3").args(["-c", script]).arg(&path).status().unwrap().success());
    let mut follower = Follower::begin(&settings(&path, &[("t", None)])).await;
    app.execute_batch("INSERT INTO t(id, a) VALUES(1, 'x'), (2, NULL); UPDATE t SET a = 'long' WHERE id = 1").unwrap();
    follower.assert_agrees(&app).await;
    assert_eq!(follower.rows["t:1"], r#"{"id":1,"a":"long","v":"LONG","s":4}"#);
    let refused = |tables: &[(&str, Option<&str>)]| install(&settings(&path, tables)).unwrap_err().to_string();
    assert!(refused(&[("t", Some("t:{id}:{v}"))]).contains("generated column v"));
    assert!(refused(&[("f", None)]).contains("only_here"));
    // The application's own hooks write where a trigger could not, and what is not cached is not computed.
    let mut settings = SqliteSettings { capture: Capture::Hooks, ..settings(&path, &[("f", None)]) };
    assert!(install(&settings).unwrap_err().to_string().contains("only_here"));
    settings.tables[0].columns = Some(vec!["id".to_owned(), "a".to_owned()]);
    install(&settings).unwrap();
}
