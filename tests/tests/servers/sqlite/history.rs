//! A history that goes on is resumed; one that was changed behind rowcast's back is noticed, and a new one begins.

use std::path::Path;
use std::process::Command;

use rowcast::source::sqlite::{Capture, SqliteSettings, SqliteSource, inspect, install, plan, uninstall};
use rowcast::source::{ChunkLimits, Error, PositionRecord, Read, Source, Start};
use rowcast_testkit::wait;
use rusqlite::Connection;

use super::{DEADLINE, Follower, application, begun, newest, now, oracle, settings};

const USERS: &str = "CREATE TABLE users(id INTEGER PRIMARY KEY, name TEXT NOT NULL)";

fn users(folder: &Path) -> (SqliteSettings, Connection) {
    let path = folder.join("app.db");
    let app = application(&path);
    app.execute_batch(&format!("PRAGMA journal_mode = WAL; {USERS}")).unwrap();
    (settings(&path, &[("users", Some("user:{id}"))]), app)
}

fn insert(app: &Connection, ids: std::ops::Range<i64>, name: &str) {
    for id in ids {
        app.execute("INSERT INTO users VALUES(?1, ?2)", (id, name)).unwrap();
    }
}

async fn again(settings: &SqliteSettings, record: &PositionRecord) -> Result<Start, Error> {
    SqliteSource::new(settings.clone()).unwrap().begin(Some(record)).await
}

/// A copy of the database as a backup would hold it, without a log beside it.
fn copy(app: &Connection, to: &Path) {
    app.execute("VACUUM INTO ?1", [to.to_str().unwrap()]).unwrap();
}

/// Restores a backup as SQLite's own documentation wants it: the log of the old file must go, or it is applied to the new one.
fn replace(path: &Path, backup: &Path) {
    for suffix in ["-wal", "-shm"] {
        let mut beside = path.as_os_str().to_owned();
        beside.push(suffix);
        let beside = Path::new(&beside);
        if beside.exists() {
            std::fs::remove_file(beside).unwrap();
        }
    }
    std::fs::rename(backup, path).unwrap();
}

fn forgotten(settings: &SqliteSettings) -> (u64, u64) {
    let waiting = inspect(&settings.path).unwrap().changelog.unwrap();
    (waiting.forgotten, waiting.newest)
}

#[tokio::test]
async fn a_restart_resumes_from_what_was_confirmed() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = users(folder.path());
    let mut follower = Follower::begin(&settings).await;
    insert(&app, 1..11, "Ada");
    follower.follow(10).await.unwrap();

    let start = again(&settings, &follower.record).await.unwrap();
    assert_eq!((start.lineage, start.from.0, start.notes), (follower.start.lineage.clone(), 0, vec![]), "nothing was confirmed yet");

    follower.source.forget(follower.position).await.unwrap();
    wait::until("the changelog to forget", DEADLINE, || async { (forgotten(&settings) == (10, 10)).then_some(()) }).await.unwrap();
    insert(&app, 11..13, "Bob");
    let mut source = SqliteSource::new(settings.clone()).unwrap();
    let start = source.begin(Some(&follower.record)).await.unwrap();
    assert_eq!((&start.lineage, start.from, start.record.clone()), (&follower.start.lineage, follower.position, follower.record.clone()));
    let mut next = Follower { source, start, ..follower };
    next.follow(12).await.unwrap();
    assert_eq!(next.last.iter().map(|change| change.pk.as_str()).collect::<Vec<_>>(), [r#"{"id":11}"#, r#"{"id":12}"#]);
    assert_eq!(next.rows, oracle(&app, &next.start.tables[0], &["id"])[0]);
}

#[tokio::test]
async fn trimming_keeps_the_newest_row_and_the_records() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = users(folder.path());
    let mut follower = Follower::begin(&settings).await;
    app.execute_batch("WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000) INSERT INTO users SELECT i, 'x' FROM n")
        .unwrap();
    follower.follow(12000).await.unwrap();
    let (record, confirmed) = (follower.record.clone(), follower.position);
    insert(&app, 20001..20003, "y");
    follower.follow(12002).await.unwrap();
    assert!(follower.source.forget(rowcast::change::Position(12003, 0)).await.is_err(), "what was not shipped cannot be forgotten");
    follower.source.forget(confirmed).await.unwrap();
    let kept = || app.query_row("SELECT group_concat(id) FROM rowcast_changelog", [], |row| row.get::<_, String>(0)).unwrap();
    wait::until("the changelog to be trimmed", DEADLINE, || async { (kept() == "12000,12001,12002").then_some(()) }).await.unwrap();
    for record in [&record, &follower.record] {
        let start = again(&settings, record).await.unwrap();
        assert_eq!((start.lineage, start.from), (follower.start.lineage.clone(), confirmed));
    }
    follower.source.forget(follower.position).await.unwrap();
    wait::until("only the newest row to be left", DEADLINE, || async { (kept() == "12002").then_some(()) }).await.unwrap();
    assert_eq!(again(&settings, &follower.record).await.unwrap().lineage, follower.start.lineage);
}

#[tokio::test]
async fn an_older_copy_in_place_of_the_file_is_a_new_history() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = users(folder.path());
    let mut follower = Follower::begin(&settings).await;
    insert(&app, 1..5, "Ada");
    follower.follow(4).await.unwrap();
    let backup = folder.path().join("backup.db");
    copy(&app, &backup);
    insert(&app, 5..8, "Bob");
    follower.follow(7).await.unwrap();
    drop(app);
    replace(&settings.path, &backup);
    let error = tokio::time::timeout(DEADLINE, follower.source.next()).await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::Changed(why) if why.contains("replaced")), "{error}");
    let start = follower.source.begin(Some(&follower.record)).await.unwrap();
    assert_ne!(start.lineage, follower.start.lineage);
    assert!(start.notes.iter().any(|note| note.contains("went back in time")), "{:?}", start.notes);
    assert_eq!(start.from, start.record.position);
}

#[tokio::test]
async fn other_rows_in_the_place_of_lost_commits_are_a_new_history() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = users(folder.path());
    let mut follower = Follower::begin(&settings).await;
    insert(&app, 1..5, "Ada");
    follower.follow(4).await.unwrap();
    let backup = folder.path().join("backup.db");
    copy(&app, &backup);
    insert(&app, 5..8, "lost");
    follower.follow(7).await.unwrap();
    let (record, lineage) = (follower.record.clone(), follower.start.lineage.clone());
    drop((follower, app));
    // A power cut loses the end of the log; then the application goes on.
    replace(&settings.path, &backup);
    let app = application(&settings.path);
    insert(&app, 105..109, "other");
    assert_eq!(newest(&app), 8, "the ids are beyond what was shipped");
    let start = again(&settings, &record).await.unwrap();
    assert_ne!(start.lineage, lineage);
}

#[tokio::test]
async fn a_restore_under_way_is_noticed_although_the_ids_climb_past_the_old_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = users(folder.path());
    let mut follower = Follower::begin(&settings).await;
    insert(&app, 1..5, "Ada");
    follower.follow(4).await.unwrap();
    let backup = folder.path().join("backup.db");
    copy(&app, &backup);
    insert(&app, 5..8, "Bob");
    follower.follow(7).await.unwrap();
    let mut next = Box::pin(follower.source.next());
    assert!(tokio::time::timeout(std::time::Duration::from_millis(100), &mut next).await.is_err());
    let other = "INSERT INTO users VALUES(50, 'x'), (51, 'x'), (52, 'x'), (53, 'x'), (54, 'x')";
    let restored = Command::new("sqlite3")
        .arg(&settings.path)
        .args([".timeout 10000", &format!(".restore {}", backup.display()), other])
        .output()
        .unwrap();
    assert!(restored.status.success() && restored.stderr.is_empty(), "{restored:?}");
    let error = tokio::time::timeout(DEADLINE, &mut next).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Changed(_)), "{error}");
    drop(next);
    assert_ne!(follower.source.begin(Some(&follower.record)).await.unwrap().lineage, follower.start.lineage);
}

#[tokio::test]
async fn without_a_record_or_with_anothers_a_new_history_begins() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = users(folder.path());
    let (source, start) = begun(&settings).await;
    insert(&app, 1..4, "Ada");
    drop(source);
    let without = SqliteSource::new(settings.clone()).unwrap().begin(None).await.unwrap();
    assert_ne!(without.lineage, start.lineage);
    assert_eq!(without.from.0, 3, "what was there before is read by chunks");
    let others = again(&settings, &start.record).await.unwrap();
    assert!(![start.lineage, without.lineage].contains(&others.lineage));
}

#[tokio::test]
async fn triggers_that_a_migration_removed_are_mended_and_the_history_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = users(folder.path());
    let mut follower = Follower::begin(&settings).await;
    insert(&app, 1..3, "Ada");
    follower.follow(2).await.unwrap();
    app.execute_batch(
        "BEGIN; CREATE TABLE fresh(id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT UNIQUE); INSERT INTO fresh SELECT id, name, NULL FROM users; \
         DROP TABLE users; ALTER TABLE fresh RENAME TO users; COMMIT; INSERT INTO users VALUES(3, 'unseen', 'e')",
    )
    .unwrap();
    let error = tokio::time::timeout(DEADLINE, follower.source.next()).await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::Changed(why) if why.contains("schema")), "{error}");
    let start = follower.source.begin(Some(&follower.record)).await.unwrap();
    assert_ne!(start.lineage, follower.start.lineage, "what went unseen has to be read");
    assert!(start.notes.iter().any(|note| note.contains("rowcast_1_insert")), "{:?}", start.notes);
    assert_eq!(start.tables[0].columns, ["id", "name", "email"]);
    app.execute_batch("UPDATE OR REPLACE users SET email = 'e' WHERE id = 1").unwrap();
    let mut follower = Follower { position: start.from, record: start.record.clone(), start, ..follower };
    follower.follow(newest(&app)).await.unwrap();
    let ops: Vec<String> = follower.last.iter().map(|change| format!("{} {}", change.op, change.pk)).collect();
    assert_eq!(ops, [r#"delete {"id":3}"#, r#"update {"id":1}"#]);

    // A schema that changes elsewhere costs nothing but a look.
    app.execute_batch("CREATE TABLE other(a)").unwrap();
    let error = tokio::time::timeout(DEADLINE, follower.source.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Changed(_)), "{error}");
    let start = follower.source.begin(Some(&follower.record)).await.unwrap();
    assert_eq!((start.lineage, start.notes), (follower.start.lineage.clone(), vec![]));
}

#[tokio::test]
async fn a_resync_from_before_another_primary_key_is_not_continued() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = application(&path);
    app.execute_batch("CREATE TABLE t(a INT NOT NULL, b INT NOT NULL UNIQUE, PRIMARY KEY(b)); INSERT INTO t VALUES(2, 1), (1, 2)").unwrap();
    let settings = SqliteSettings { capture: Capture::Hooks, ..settings(&path, &[("t", Some("t:{b}"))]) };
    let mut source = SqliteSource::new(settings).unwrap();
    let start = source.begin(None).await.unwrap();
    let limits = ChunkLimits { rows: 1, bytes: 1000 };
    let upto = now(source.chunk(0, None, limits).await.unwrap()).upto;
    assert_eq!(upto.as_ref().map(|bound| &*bound.0), Some(r#"{"b":1}"#));
    app.execute_batch(
        "CREATE TABLE n(a INT NOT NULL, b INT NOT NULL UNIQUE, PRIMARY KEY(a, b)); INSERT INTO n SELECT * FROM t; DROP TABLE t; ALTER TABLE n RENAME TO t",
    )
    .unwrap();
    assert!(matches!(source.chunk(0, upto.as_ref(), limits).await, Err(Error::Changed(_))), "the schema is not what it was");
    assert_eq!(source.begin(Some(&start.record)).await.unwrap().lineage, start.lineage);
    assert_eq!(source.chunk(0, upto.as_ref(), limits).await.unwrap(), Read::NoKey, "the consumer asks for more of it");
    assert_eq!(now(source.chunk(0, None, limits).await.unwrap()).rows[0].pk, r#"{"a":1,"b":2}"#);
}

#[tokio::test]
async fn a_trigger_that_ends_a_statement_early_does_not_come_before_ours() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = users(folder.path());
    let mut follower = Follower::begin(&settings).await;
    app.execute_batch(
        "CREATE TRIGGER theirs AFTER INSERT ON users WHEN NEW.name = 'quiet' BEGIN SELECT RAISE /* here */ (IGNORE); END; \
         INSERT INTO users VALUES(1, 'quiet')",
    )
    .unwrap();
    let error = tokio::time::timeout(DEADLINE, follower.source.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Changed(_)), "{error}");
    let start = follower.source.begin(Some(&follower.record)).await.unwrap();
    assert_ne!(start.lineage, follower.start.lineage, "the first quiet row went unseen");
    let mut follower = Follower { position: start.from, record: start.record.clone(), start, ..follower };
    app.execute_batch("INSERT INTO users VALUES(2, 'quiet')").unwrap();
    follower.follow(newest(&app)).await.unwrap();
    assert_eq!(follower.rows.keys().collect::<Vec<_>>(), ["user:2"]);
    assert_eq!(again(&settings, &follower.record).await.unwrap().lineage, follower.start.lineage, "once is enough");
}

#[tokio::test]
async fn what_was_removed_from_the_changelog_by_hand_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = users(folder.path());
    let mut follower = Follower::begin(&settings).await;
    insert(&app, 1..6, "Ada");
    follower.follow(5).await.unwrap();
    let was = follower.start.lineage.clone();
    app.execute_batch("DELETE FROM rowcast_changelog WHERE id < 4").unwrap();
    assert_ne!(again(&settings, &follower.record).await.unwrap().lineage, was, "the first three were not confirmed");
    app.execute_batch("DELETE FROM rowcast_changelog").unwrap();
    let error = tokio::time::timeout(DEADLINE, follower.source.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Changed(_)), "{error}");
}

#[test]
fn installing_twice_does_nothing_and_uninstalling_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = users(folder.path());
    app.execute_batch("CREATE UNIQUE INDEX by_name ON users(name); CREATE TRIGGER rowcaster AFTER DELETE ON users BEGIN SELECT 1; END")
        .unwrap();
    let schema = || -> Vec<String> {
        let mut statement = app.prepare("SELECT type || name || coalesce(sql, '') FROM sqlite_schema ORDER BY rowid").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let before = schema();
    let planned = plan(&settings).unwrap();
    assert_eq!(schema(), before, "a plan changes nothing");
    let report = install(&settings).unwrap();
    let without_ids = |statements: &[String]| statements.iter().filter(|sql| !sql.contains("generation")).cloned().collect::<Vec<_>>();
    assert_eq!(without_ids(&report.statements), without_ids(&planned));
    assert!(report.statements.iter().any(|sql| sql.contains("BEFORE INSERT")), "the unique index is watched");
    let installed = schema();
    assert_eq!(install(&settings).unwrap(), Default::default(), "there is nothing to do the second time");
    assert_eq!(schema(), installed);
    uninstall(&settings.path).unwrap();
    assert_eq!(schema(), before);
    assert_eq!(uninstall(&settings.path).unwrap(), Default::default());
    app.execute_batch("INSERT INTO users VALUES(1, 'the application goes on')").unwrap();
}

#[tokio::test]
async fn what_has_to_be_done_first_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, _app) = users(folder.path());
    let fatal = async |settings: &SqliteSettings| match SqliteSource::new(settings.clone()).unwrap().begin(None).await {
        Err(Error::Fatal(why)) => why,
        other => panic!("{other:?}"),
    };
    assert!(fatal(&settings).await.contains("rowcast install"));
    install(&settings).unwrap();
    let other = SqliteSettings { pipeline: "other".to_owned(), ..settings.clone() };
    SqliteSource::new(settings.clone()).unwrap().begin(None).await.unwrap();
    assert!(fatal(&other).await.contains("belongs to the pipeline shop"));
    assert!(install(&other).unwrap_err().to_string().contains("rowcast uninstall"));
    assert!(fatal(&super::settings(&settings.path, &[("user", None)])).await.contains("did you mean users?"));
    assert!(fatal(&super::settings(&folder.path().join("none.db"), &[])).await.contains("no database file"));
    assert!(!folder.path().join("none.db").exists());
    assert!(fatal(&super::settings(&settings.path, &[("users", None), ("users", Some("u:{id}"))])).await.contains("configured twice"));
    // Triggers see whatever hooks would.
    let hooks = SqliteSettings { capture: Capture::Hooks, ..settings.clone() };
    SqliteSource::new(hooks).unwrap().begin(None).await.unwrap();
}

#[tokio::test]
async fn hooks_need_no_installation_and_no_trigger() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = users(folder.path());
    app.execute_batch("CREATE UNIQUE INDEX by_name ON users(name)").unwrap();
    let hooks = SqliteSettings { capture: Capture::Hooks, ..settings };
    let mut source = SqliteSource::new(hooks.clone()).unwrap();
    let start = source.begin(None).await.unwrap();
    let triggers: i64 = app.query_row("SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'", [], |row| row.get(0)).unwrap();
    assert_eq!(triggers, 0);
    insert(&app, 1..2, "Ada");
    app.execute_batch("INSERT INTO rowcast_changelog(tbl, op, at, v1) SELECT number, 'I', 1700000000000, 1 FROM rowcast_table").unwrap();
    let record = start.record.clone();
    let position = start.from;
    let mut follower = Follower { source, start, record, position, rows: Default::default(), by_pk: Default::default(), last: vec![] };
    follower.follow(1).await.unwrap();
    assert_eq!(follower.last[0].committed_us, 1_700_000_000_000_000);
    assert_eq!(follower.rows.into_iter().collect::<Vec<_>>(), [("user:1".to_owned(), r#"{"id":1,"name":"Ada"}"#.to_owned())]);
    let by_name = SqliteSettings { tables: super::settings(&hooks.path, &[("users", Some("u:{name}"))]).tables, ..hooks };
    assert!(again(&by_name, &follower.record).await.unwrap_err().to_string().contains("hooks do not see"));
}

#[tokio::test]
async fn a_deleted_row_is_named_even_if_another_row_has_taken_its_key_so_that_no_chunk_brings_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let application = application(&path);
    let rows = "INSERT INTO profiles VALUES ('grace', 'admiral'), ('ada', 'countess')";
    application.execute_batch("CREATE TABLE profiles (name TEXT PRIMARY KEY NOT NULL, handle TEXT NOT NULL UNIQUE)").unwrap();
    let mut follower = Follower::begin(&settings(&path, &[("profiles", Some("profile:{handle}"))])).await;
    application.execute_batch(rows).unwrap();
    follower.follow(newest(&application)).await.unwrap();

    application.execute_batch("UPDATE OR REPLACE profiles SET handle = 'admiral' WHERE name = 'ada'").unwrap();
    follower.follow(newest(&application)).await.unwrap();
    let named: Vec<&str> = follower.last.iter().map(|change| change.pk.as_str()).collect();
    assert!(named.contains(&r#"{"name":"grace"}"#) && named.contains(&r#"{"name":"ada"}"#), "{named:?}");
    assert_eq!(follower.rows, [("profile:admiral".to_owned(), r#"{"name":"ada","handle":"admiral"}"#.to_owned())].into());
}
