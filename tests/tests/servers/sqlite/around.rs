//! What an application may do around a table that is followed: other databases, temporary tables, large rows, files that cannot be
//! written.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use rowcast::source::sqlite::{SqliteSource, install};
use rowcast::source::{ChunkLimits, Error, Source};

use super::{Follower, application, newest, now, oracle, settings};
use crate::faults::rowcast;

const TABLE: &str = "PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, a)";

#[tokio::test]
async fn who_writes_from_another_database_or_beside_a_temporary_table_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = application(&path);
    app.execute_batch(TABLE).unwrap();
    let mut follower = Follower::begin(&settings(&path, &[("t", None)])).await;
    let other = application(&folder.path().join("other.db"));
    other.execute_batch(&format!("CREATE TABLE t(id INTEGER PRIMARY KEY, a); ATTACH '{}' AS app", path.display())).unwrap();
    other.execute_batch("INSERT INTO main.t VALUES(1, 'not ours'); INSERT INTO app.t VALUES(2, 'ours'); DELETE FROM main.t").unwrap();
    app.execute_batch(
        "CREATE TEMP TABLE t(id INTEGER PRIMARY KEY, a); INSERT INTO t VALUES(3, 'temporary'); INSERT INTO main.t VALUES(4, 'lasting'); \
         DROP TABLE temp.t; CREATE TEMP TRIGGER theirs AFTER INSERT ON main.t BEGIN UPDATE t SET a = a || '!' WHERE id = NEW.id; END; \
         INSERT INTO t VALUES(5, 'loud')",
    )
    .unwrap();
    follower.follow(newest(&app)).await.unwrap();
    assert_eq!(follower.rows, oracle(&app, &follower.start.tables[0], &["id"])[0]);
    assert_eq!(
        follower.rows.values().cloned().collect::<Vec<_>>(),
        [r#"{"id":2,"a":"ours"}"#, r#"{"id":4,"a":"lasting"}"#, r#"{"id":5,"a":"loud!"}"#]
    );
}

#[test]
fn tables_elsewhere_and_tables_of_other_kinds_are_refused_by_name_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = application(&path);
    app.execute_batch(TABLE).unwrap();
    app.execute_batch("CREATE VIEW v AS SELECT * FROM t; CREATE VIRTUAL TABLE words USING fts5(word); CREATE TABLE loose(a)").unwrap();
    for (name, said) in [
        ("main.t", "there is no table main.t in the database; write t"),
        ("temp.t", "a temporary table is seen by one connection"),
        ("archive.t", "if archive is a database that the application attaches, t needs a pipeline of its own"),
        ("T", "did you mean t?"),
        ("v", "table v cannot be cached: it is a view, which has no rows of its own; map the tables that it reads"),
        ("words", "table words cannot be cached: it is a virtual table"),
        ("words_content", "table words_content cannot be cached: it is a shadow table"),
        ("loose", "table loose cannot be cached: it has no primary key"),
        ("sqlite_schema", "sqlite_schema"),
        ("rowcast_meta", "rowcast_meta"),
    ] {
        let error = install(&settings(&path, &[(name, None)])).unwrap_err().to_string();
        assert!(error.contains(said), "{name}: {error}");
    }
}

#[tokio::test]
async fn rows_of_several_megabytes_come_in_the_stream_in_a_chunk_and_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = application(&path);
    app.execute_batch(TABLE).unwrap();
    let mut follower = Follower::begin(&settings(&path, &[("t", None)])).await;
    let row = "INSERT INTO t VALUES(?1, CASE ?1 % 2 WHEN 0 THEN zeroblob(2500000) ELSE replace(hex(zeroblob(2500000)), '0', 'é') END)";
    for id in 1..=4 {
        app.execute(row, [id]).unwrap();
    }
    follower.follow(newest(&app)).await.unwrap();
    let held = oracle(&app, &follower.start.tables[0], &["id"])[0].clone();
    assert!(held.values().all(|row| row.len() > 5_000_000));
    assert!(follower.rows == held, "the bytes are the same");
    let mut read = std::collections::BTreeMap::new();
    let mut after = None;
    loop {
        let chunk = now(follower.source.chunk(0, after.as_ref(), ChunkLimits { rows: 100, bytes: 512 * 1024 }).await.unwrap());
        assert!(chunk.rows.len() <= 1, "a large row goes alone");
        for row in chunk.rows {
            if let rowcast::mapping::Mapped::Put { key, row } = follower.start.tables[0].map(&row.image) {
                read.insert(key, row.to_owned());
            }
        }
        if chunk.last {
            break;
        }
        after = chunk.upto;
    }
    assert!(read == held, "by chunks, too");
}

/// Runs `rowcast` in `folder` as somebody whom permissions bind, even where the tests run as root.
fn as_nobody(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(rowcast());
        command
    } else {
        Command::new(rowcast())
    };
    command.args(arguments).current_dir(folder).output().unwrap()
}

#[test]
fn a_file_that_may_not_be_written_is_named_with_the_remedy() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    application(&path).execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY)").unwrap();
    let configuration = "[pipeline]\nname = \"p\"\n[source]\nurl = \"sqlite:app.db\"\n[broker]\nurl = \"memory:\"\n[cache]\nurl = \"memory:\"\n[[table]]\nname = \"t\"\n";
    std::fs::write(folder.path().join("rowcast.toml"), configuration).unwrap();
    let permit = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    permit(&path, 0o444);
    permit(folder.path(), 0o555);
    let refused = as_nobody(folder.path(), &["install"]);
    permit(folder.path(), 0o755);
    permit(&path, 0o644);
    assert!(Command::new(rowcast()).arg("install").current_dir(folder.path()).status().unwrap().success());
    permit(&path, 0o444);
    permit(folder.path(), 0o555);
    // SQLite would open it all the same, and nobody could trim the changelog.
    let not_run = as_nobody(folder.path(), &["run"]);
    permit(folder.path(), 0o755);
    for answer in [refused, not_run] {
        let (text, said) = (String::from_utf8_lossy(&answer.stderr), "give rowcast write permission on the file and its folder");
        assert!(answer.status.code() == Some(1) && text.contains(said), "{answer:?}");
    }
}

/// Where a file system of one MiB is mounted for the test within the test.
const SMALL_DISK: &str = "ROWCAST_SMALL_DISK";

/// Fills the disk to the last byte; what this returns makes room again.
fn fill(folder: &Path) -> impl FnOnce() {
    let filler = folder.join("filler");
    let mut file = File::create(&filler).unwrap();
    for size in [4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    move || std::fs::remove_file(filler).unwrap()
}

#[test]
fn a_full_disk_is_named_and_once_there_is_room_everything_goes_on() {
    if let Some(folder) = std::env::var_os(SMALL_DISK) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(on_a_small_disk(Path::new(&folder)));
    }
    let folder = tempfile::tempdir().unwrap();
    let may = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("not tried: this machine lets nobody but root mount a file system");
        return;
    }
    // Only who lives in the name space sees the disk, so this very test runs there once more.
    let script = "mount -t tmpfs -o size=1m tmpfs \"$ROWCAST_SMALL_DISK\" && exec \"$0\" --exact --nocapture \
                  sqlite::around::a_full_disk_is_named_and_once_there_is_room_everything_goes_on";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .env(SMALL_DISK, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

async fn on_a_small_disk(folder: &Path) {
    let path = folder.join("app.db");
    let app = application(&path);
    app.execute_batch(TABLE).unwrap();
    app.execute_batch("CREATE TABLE u(id INTEGER PRIMARY KEY)").unwrap();
    let mut follower = Follower::begin(&settings(&path, &[("t", None)])).await;
    app.execute("INSERT INTO t VALUES(0, 'before')", []).unwrap();
    let make_room = fill(folder);
    let error = (1..1000).find_map(|id| app.execute("INSERT INTO t VALUES(?1, hex(zeroblob(1000)))", [id]).err());
    let error = error.expect("the disk is full").to_string();
    assert!(error.contains("full"), "{error}");
    follower.follow(newest(&app)).await.unwrap();
    assert_eq!(follower.rows, oracle(&app, &follower.start.tables[0], &["id"])[0]);
    let error = install(&settings(&path, &[("t", None), ("u", None)])).unwrap_err();
    assert!(matches!(&error, Error::Busy(why) if why.contains("is full while installing; make room on it")), "{error}");
    // The publisher's own trims fail meanwhile, and nobody is the worse for it.
    follower.source.forget(follower.position).await.unwrap();
    make_room();
    for id in 2000..2020 {
        app.execute("INSERT INTO t VALUES(?1, 'room')", [id]).unwrap();
    }
    follower.follow(newest(&app)).await.unwrap();
    assert_eq!(follower.rows, oracle(&app, &follower.start.tables[0], &["id"])[0]);
    follower.source.forget(follower.position).await.unwrap();
    rowcast_testkit::wait::until("the changelog to be trimmed", super::DEADLINE, || async {
        let rows: u32 = app.query_row("SELECT count(*) FROM rowcast_changelog", [], |row| row.get(0)).unwrap();
        (rows <= 1).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_lock_that_is_never_given_back_is_an_error_that_may_pass() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = application(&path);
    app.execute_batch(TABLE).unwrap();
    let mut settings = settings(&path, &[("t", None)]);
    settings.busy_timeout = std::time::Duration::from_millis(200);
    install(&settings).unwrap();
    app.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE; INSERT INTO t VALUES(1, 1); COMMIT").unwrap();
    let mut source = SqliteSource::new(settings).unwrap();
    let error = source.begin(None).await.unwrap_err();
    assert!(matches!(&error, Error::Busy(why) if why.contains("locked")), "{error}");
    app.execute_batch("PRAGMA locking_mode = NORMAL; SELECT * FROM t").unwrap();
    source.begin(None).await.unwrap();
}
