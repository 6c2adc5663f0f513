//! The publisher as it is used: its words, where they go, and how it ends.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rowcast_testkit::process::Process;
use rowcast_testkit::wait::until;
use sea_orm::{ConnectionTrait, DatabaseBackend, DatabaseConnection, Statement};

struct Publisher {
    folder: tempfile::TempDir,
}

impl Publisher {
    fn new() -> Publisher {
        Publisher { folder: tempfile::tempdir().unwrap() }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        run_in(self.folder.path(), arguments)
    }

    /// What it prints when it succeeds.
    #[track_caller]
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    /// What it complains of, and its exit code.
    #[track_caller]
    fn fails(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.run(arguments);
        assert_eq!(text(&output.stdout), "");
        (output.status.code(), text(&output.stderr))
    }
}

fn run_in(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_publisher")).args(arguments).current_dir(folder).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_walk_through_of_the_guide() {
    let publisher = Publisher::new();
    assert_eq!(publisher.says(&["insert", "John Doe", "john@example.com"]), "inserted user 1: John Doe <john@example.com>\n");
    assert_eq!(publisher.says(&["insert", "Ada", "ada@example.com"]), "inserted user 2: Ada <ada@example.com>\n");
    assert_eq!(publisher.says(&["update", "2", "--email", "a@l.org"]), "updated user 2: Ada <a@l.org>\n");
    assert_eq!(publisher.says(&["list"]), "1\tJohn Doe\tjohn@example.com\n2\tAda\ta@l.org\n");
    assert_eq!(publisher.says(&["delete", "1"]), "deleted user 1\n");
    assert_eq!(publisher.says(&["list"]), "2\tAda\ta@l.org\n");
    assert!(publisher.folder.path().join("db.sqlite").exists());
}

#[test]
fn a_load_inserts_what_was_asked_for() {
    let publisher = Publisher::new();
    assert!(publisher.says(&["load", "2500"]).starts_with("inserted 2500 users in "));
    assert!(publisher.says(&["--db", "other.sqlite", "load", "20", "--per-second", "1000"]).starts_with("inserted 20 users in "));
    assert_eq!(publisher.says(&["list"]).lines().count(), 2500);
    let other = publisher.says(&["list", "--db", "other.sqlite"]);
    assert_eq!(other.lines().last(), Some("20\tUser 20\tuser20@example.com"));
    assert_eq!(other.lines().count(), 20);
}

#[test]
fn an_unknown_id_fails_and_says_so() {
    let publisher = Publisher::new();
    for arguments in [["delete", "7"].as_slice(), &["update", "7", "--name", "Nobody"]] {
        let (code, complaint) = publisher.fails(arguments);
        assert_eq!(code, Some(1));
        assert!(complaint.contains("no user has the id 7"), "{complaint}");
    }
}

#[test]
fn wrong_use_ends_with_two() {
    let publisher = Publisher::new();
    for arguments in [["update", "1"].as_slice(), &["delete", "one"], &["load", "0"], &["insert", "John Doe"], &[]] {
        assert_eq!(publisher.fails(arguments).0, Some(2), "{arguments:?}");
    }
    assert!(!publisher.folder.path().join("db.sqlite").exists());
}

#[test]
fn a_database_that_cannot_be_opened_is_named() {
    let (code, complaint) = Publisher::new().fails(&["list", "--db", "missing/db.sqlite"]);
    assert_eq!(code, Some(1));
    assert!(complaint.contains("cannot open missing/db.sqlite"), "{complaint}");
}

#[tokio::test]
async fn a_publisher_that_is_killed_has_recorded_exactly_what_it_committed() {
    let folder = tempfile::tempdir().unwrap();
    let db = users::open(&folder.path().join("db.sqlite")).await.unwrap();
    for _ in 0..3 {
        let before = number(&db, "SELECT count(*) FROM users").await;
        let program = Path::new(env!("CARGO_BIN_EXE_publisher"));
        let arguments = ["load", "1000000"].map(OsStr::new);
        let load = Process::start(program, &arguments, &[], folder.path(), &folder.path().join("log")).unwrap();
        let grown = async || (number(&db, "SELECT count(*) FROM users").await > before).then_some(());
        until("rows of the load", Duration::from_secs(120), grown).await.unwrap();
        load.kill().unwrap();

        assert_eq!(number(&db, "SELECT count(*) FROM users WHERE id NOT IN (SELECT v1 FROM rowcast_changelog)").await, 0);
        assert_eq!(number(&db, "SELECT count(*) FROM rowcast_changelog WHERE v1 NOT IN (SELECT id FROM users)").await, 0);
        assert_eq!(number(&db, "SELECT count(*) - count(DISTINCT v1) FROM rowcast_changelog").await, 0);
    }
}

async fn number(db: &DatabaseConnection, sql: &str) -> i64 {
    let row = db.query_one_raw(Statement::from_string(DatabaseBackend::Sqlite, sql)).await.unwrap().unwrap();
    row.try_get_by_index(0).unwrap()
}
