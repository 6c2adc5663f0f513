//! When changes come, in what pieces, and what happens while the database is locked or the caller changes its mind.

use std::path::Path;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rowcast::change::{Image, Position};
use rowcast::source::sqlite::{SqliteSettings, SqliteSource, inspect};
use rowcast::source::{Chunk, ChunkLimits, Error, Portion, Source};
use rowcast_testkit::wait;
use rusqlite::Connection;

use super::statements::shape;
use super::writer::{Python, Writer, bundled};
use super::{DEADLINE, Follower, application, begun, newest, now, oracle, rows_now, settings};

const MODES: [(&str, &str); 4] = [("wal", "NORMAL"), ("wal", "FULL"), ("delete", "FULL"), ("truncate", "FULL")];

fn table(folder: &Path, mode: &str) -> (SqliteSettings, Connection) {
    let path = folder.join("app.db");
    let app = application(&path);
    app.execute_batch(&format!("PRAGMA journal_mode = {mode}; CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT)")).unwrap();
    (settings(&path, &[("t", None)]), app)
}

/// How long after each commit its change came, in microseconds, sorted.
async fn wake_ups(mode: &str, synchronous: &str, open: impl Fn(&Path) -> Box<dyn Writer>) -> Vec<u128> {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = table(folder.path(), mode);
    let mut follower = Follower::begin(&settings).await;
    let mut writer = open(&settings.path);
    writer.execute(&format!("PRAGMA synchronous = {synchronous}"));
    let mut took = Vec::new();
    for id in 1..=30 {
        // An application that writes now and then: long enough for the quick looks after the last commit to be over.
        tokio::time::sleep(Duration::from_millis(3 * (id % 20))).await;
        writer.execute(&format!("INSERT INTO t VALUES({id}, 'x')"));
        let committed = Instant::now();
        follower.follow(id).await.unwrap();
        took.push(committed.elapsed().as_micros());
    }
    assert_eq!(newest(&app), 30);
    took.sort_unstable();
    took
}

#[tokio::test]
async fn a_commit_is_noticed_soon_in_every_journal_mode() {
    for (mode, synchronous) in MODES {
        for (who, open) in [
            ("this process", bundled as fn(&Path) -> Box<dyn Writer>),
            ("another", |path| Box::new(Python::start(path)) as Box<dyn Writer>),
        ] {
            let took = wake_ups(mode, synchronous, open).await;
            println!("{mode} {synchronous}, written by {who}: p50 {} µs, max {} µs", took[took.len() / 2], took[took.len() - 1]);
            assert!(took[took.len() / 2] < 1_000_000, "{mode} {synchronous} by {who}: {took:?}");
        }
    }
}

#[tokio::test]
async fn a_large_transaction_comes_in_pieces_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = table(folder.path(), "wal");
    let (mut source, _) = begun(&settings).await;
    app.execute_batch(
        "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) INSERT INTO t SELECT i, printf('%200d', i) FROM n",
    )
    .unwrap();
    app.execute_batch("UPDATE t SET a = 'last' WHERE id = 1").unwrap();
    let (mut pieces, mut ids, mut end) = (0, Vec::new(), Position::START);
    assert!(matches!(source.next().await.unwrap(), Portion::Record(record) if record.position == Position(20001, 20001)));
    loop {
        let Portion::Changes { changes, to, complete } = source.next().await.unwrap() else { panic!("one record a read") };
        assert!(changes.len() <= 2001 && to > end);
        pieces += 1;
        for change in changes {
            assert!(change.position > end && change.position <= to);
            end = change.position;
            ids.push(change.pk);
        }
        end = to;
        if complete {
            break;
        }
    }
    assert!(pieces > 9, "{pieces}");
    assert_eq!(ids.len(), 20001, "row 1 is named far apart, and so comes twice");
    assert_eq!((ids[0].as_str(), ids[20000].as_str()), (r#"{"id":1}"#, r#"{"id":1}"#));
}

#[tokio::test]
async fn the_old_and_the_new_key_of_a_row_are_not_torn_between_two_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = table(folder.path(), "wal");
    app.execute_batch("WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) INSERT INTO t SELECT i, 'x' FROM n").unwrap();
    let (mut source, _) = begun(&settings).await;
    // One change, then two a row, so that a piece is full between the two.
    app.execute_batch("UPDATE t SET a = 'y' WHERE id = 1; UPDATE t SET id = id + 10000 WHERE id > 1").unwrap();
    assert!(matches!(source.next().await.unwrap(), Portion::Record(_)));
    let (mut pieces, mut end, mut pks) = (0, Position::START, Vec::new());
    loop {
        let Portion::Changes { changes, to, complete } = source.next().await.unwrap() else { panic!("one record a read") };
        assert!(changes.iter().all(|change| change.position > end && change.position <= to), "piece {pieces} ends between two");
        pks.extend(changes.into_iter().map(|change| change.pk));
        (pieces, end) = (pieces + 1, to);
        if complete {
            break;
        }
    }
    assert!(pieces > 1);
    assert_eq!(pks.len(), 1 + 2 * 2999);
    assert_eq!(pks[1..3], [r#"{"id":2}"#, r#"{"id":10002}"#]);
}

#[tokio::test]
async fn a_burst_on_one_row_is_one_change() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = table(folder.path(), "wal");
    let mut follower = Follower::begin(&settings).await;
    app.execute_batch("BEGIN; INSERT INTO t VALUES(1, 'x'); INSERT INTO t VALUES(2, 'x')").unwrap();
    for step in 0..100 {
        app.execute("UPDATE t SET a = ?1 WHERE id = 1", [step]).unwrap();
    }
    app.execute_batch("DELETE FROM t WHERE id = 2; COMMIT").unwrap();
    follower.follow(103).await.unwrap();
    let seen: Vec<String> = follower.last.iter().map(|change| format!("{} {} {}", change.op, change.pk, change.position.1)).collect();
    assert_eq!(seen, [r#"update {"id":1} 102"#, r#"delete {"id":2} 103"#]);
    let lag = super::now_us() - follower.last[0].committed_us;
    assert!((0..60_000_000).contains(&lag), "the time is the commit's: {lag} µs ago");
}

#[tokio::test]
async fn a_dropped_future_loses_nothing_and_an_abandoned_read_comes_again() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, app) = table(folder.path(), "wal");
    let mut follower = Follower::begin(&settings).await;
    for id in 1..=200 {
        app.execute("INSERT INTO t VALUES(?1, 'x')", [id]).unwrap();
        // Polled once or a few times, then dropped, at every possible moment.
        drop(tokio::time::timeout(Duration::from_micros(u64::try_from(id).unwrap() % 7 * 50), std::future::pending::<()>()).await);
        let portion = tokio::time::timeout(Duration::ZERO, follower.source.next()).await;
        match portion {
            Ok(Ok(Portion::Record(record))) => follower.record = record,
            Ok(Ok(Portion::Changes { changes, to, .. })) => {
                changes.iter().for_each(|change| follower.apply(change));
                follower.position = to;
            }
            Ok(Ok(other)) => panic!("SQLite never hands out {other:?}"),
            Ok(Err(error)) => panic!("{error}"),
            Err(_) => {
                if id % 3 == 0 {
                    follower.source.abandon().await.unwrap();
                }
                // Chunks may be read while the next portion is awaited.
                let limits = ChunkLimits { rows: 1000, bytes: 1 << 20 };
                let chunk = now(follower.source.chunk(0, None, limits).await.unwrap());
                assert!(chunk.last && chunk.rows.len() <= usize::try_from(id).unwrap());
            }
        }
    }
    follower.follow(200).await.unwrap();
    assert_eq!(follower.rows, oracle(&app, &follower.start.tables[0], &["id"])[0]);
}

#[tokio::test]
async fn several_programs_write_at_once_while_history_is_forgotten() {
    let shape = shape("keys from another column");
    for mode in ["wal", "delete"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let app = application(&path);
        app.execute_batch(&format!("PRAGMA journal_mode = {mode}; {}", shape.ddl)).unwrap();
        let settings = settings(&path, &[(&shape.table, shape.key.as_deref())]);
        let mut follower = Follower::begin(&settings).await;
        let writers: Vec<_> = (0..3)
            .map(|number| {
                let (path, shape) = (path.clone(), shape.clone());
                std::thread::spawn(move || {
                    let mut writer: Box<dyn Writer> = if number == 0 { bundled(&path) } else { Box::new(Python::start(&path)) };
                    let mut rng = StdRng::seed_from_u64(number);
                    for _ in 0..200 {
                        writer.execute(&shape.statement(&mut rng));
                    }
                })
            })
            .collect();
        while !writers.iter().all(|writer| writer.is_finished()) {
            follower.follow(newest(&app)).await.unwrap();
            follower.source.forget(follower.position).await.unwrap();
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        follower.follow(newest(&app)).await.unwrap();
        assert!(follower.position.0 > 200, "{mode}: the statements did something");
        assert_eq!(follower.rows, oracle(&app, &follower.start.tables[0], &shape.primary_key)[0], "{mode}");
        // Leaving writes down what was confirmed, unless somebody else writes just then.
        follower.source.forget(follower.position).await.unwrap();
        let (record, position) = (follower.record.clone(), follower.position);
        drop(follower);
        wait::until("the confirmed position to be written down", DEADLINE, || async {
            let waiting = inspect(&path).unwrap().changelog.unwrap();
            (waiting.forgotten == position.0 && waiting.rows == 0).then_some(())
        })
        .await
        .unwrap();
        let start = SqliteSource::new(settings).unwrap().begin(Some(&record)).await.unwrap();
        assert_eq!((start.from, start.notes), (position, vec![]));
    }
}

#[tokio::test]
async fn a_lock_is_waited_for_and_only_a_lasting_one_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (mut settings, app) = table(folder.path(), "delete");
    settings.busy_timeout = Duration::from_secs(3);
    let mut follower = Follower::begin(&settings).await;
    app.execute_batch("BEGIN EXCLUSIVE; INSERT INTO t VALUES(1, 'x')").unwrap();
    let mut next = Box::pin(follower.source.next());
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut next).await.is_err(), "not yet is no error");
    let error = tokio::time::timeout(DEADLINE, &mut next).await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::Busy(why) if why.contains("locked")), "{error}");
    drop(next);
    app.execute_batch("COMMIT").unwrap();
    follower.follow(1).await.unwrap();
    assert_eq!(follower.rows.len(), 1);
}

/// Limits that nothing here reaches.
const ALL: ChunkLimits = ChunkLimits { rows: 1000, bytes: 1 << 20 };

/// Every chunk of the table, and its rows.
async fn chunks(source: &mut SqliteSource, limits: ChunkLimits) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    loop {
        let after = chunks.last().and_then(|chunk| chunk.upto.clone());
        let chunk = now(source.chunk(0, after.as_ref(), limits).await.unwrap());
        let last = chunk.last;
        chunks.push(chunk);
        if last {
            return chunks;
        }
    }
}

#[tokio::test]
async fn a_row_has_the_same_bytes_in_the_stream_in_a_chunk_and_alone() {
    for ddl in [
        "CREATE TABLE t(a, b BLOB, c TEXT COLLATE NOCASE, d REAL, PRIMARY KEY(a, b)) WITHOUT ROWID",
        "CREATE TABLE t(a NOT NULL, b BLOB NOT NULL, c TEXT, d REAL, PRIMARY KEY(b DESC, a))",
        "CREATE TABLE t(a NOT NULL, b BLOB NOT NULL, c TEXT, d REAL, PRIMARY KEY(a COLLATE NOCASE DESC, b))",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let app = application(&path);
        app.execute_batch(ddl).unwrap();
        let (mut source, _) = begun(&settings(&path, &[("t", None)])).await;
        let keys = [
            "1",
            "1.5",
            "-9223372036854775807",
            "9e999",
            "-9e999",
            "'1'",
            "'a'",
            "'B'",
            "'a b\"\\'",
            "x'00ff'",
            "x''",
            "1e300",
            "0.1",
            "CAST(x'ff' AS TEXT)",
        ];
        for key in keys {
            for other in ["1", "'x'", "x'01'", "3.0000000000000004"] {
                app.execute_batch(&format!(
                    "INSERT INTO t VALUES({key}, {other}, 'Aé' || char(0, 10, 127), 1e16), ({other}, {key}, NULL, 0.1 + 0.2)"
                ))
                .unwrap_or_else(|error| assert!(error.to_string().contains("UNIQUE"), "{error}"));
            }
        }
        let rows: u32 = app.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        let rows = usize::try_from(rows).unwrap();
        assert!(rows > 50);
        let mut streamed = std::collections::BTreeMap::new();
        loop {
            match source.next().await.unwrap() {
                Portion::Record(_) => {}
                Portion::Changes { changes, complete, .. } => {
                    streamed.extend(changes.into_iter().map(|change| (change.pk, change.image)));
                    if complete {
                        break;
                    }
                }
                other => panic!("SQLite never hands out {other:?}"),
            }
        }
        assert_eq!(streamed.len(), rows, "no two rows share a primary key");
        for limits in
            [ChunkLimits { rows: 1, bytes: 1 << 20 }, ChunkLimits { rows: 7, bytes: 1 << 20 }, ChunkLimits { rows: 100, bytes: 300 }]
        {
            let read: Vec<_> = chunks(&mut source, limits).await.into_iter().flat_map(|chunk| chunk.rows).collect();
            assert_eq!(read.len(), rows, "each row once");
            assert_eq!(read.into_iter().map(|row| (row.pk, row.image)).collect::<std::collections::BTreeMap<_, _>>(), streamed);
        }
        let mut pks: Vec<String> = streamed.keys().cloned().collect();
        pks.push(r#"{"a":77,"b":{"hex":"07"}}"#.to_owned());
        let (alone, answered) = rows_now(source.rows(0, &pks, ALL).await.unwrap());
        assert_eq!(answered, pks.len());
        let alone = alone.rows;
        assert!(matches!(alone.last().unwrap().image, Image::Absent { .. }));
        assert_eq!(alone.into_iter().take(rows).map(|row| (row.pk, row.image)).collect::<std::collections::BTreeMap<_, _>>(), streamed);
        assert!(streamed.iter().any(|(pk, image)| pk.contains("text_hex") && matches!(image, Image::Unreadable { key: None, .. })));
        // A request that makes no sense is passed over: anybody may put one into the control queue.
        let nonsense_first = rows_now(source.rows(0, &[r#"{"a":1}"#.to_owned(), pks[0].clone()], ALL).await.unwrap());
        assert_eq!((nonsense_first.0.rows.len(), nonsense_first.1), (1, 2));
        for limits in [ChunkLimits { rows: 2, ..ALL }, ChunkLimits { bytes: 1, ..ALL }] {
            let (some, answered) = rows_now(source.rows(0, &pks, limits).await.unwrap());
            assert_eq!(some.rows.len(), answered);
            assert!((1..=2).contains(&answered), "{answered} rows within {limits:?}");
        }
    }
}

#[tokio::test]
async fn a_table_may_have_five_hundred_columns() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = application(&path);
    let columns: Vec<String> = (0..500).map(|column| format!("\"column {column}\" INTEGER")).collect();
    app.execute_batch(&format!("CREATE TABLE wide(id INTEGER PRIMARY KEY, {}); INSERT INTO wide DEFAULT VALUES", columns.join(", ")))
        .unwrap();
    let (mut source, _) = begun(&settings(&path, &[("wide", None)])).await;
    let chunk = now(source.chunk(0, None, ChunkLimits { rows: 10, bytes: 1000 }).await.unwrap());
    let Image::Present { json, .. } = &chunk.rows[0].image else { panic!("{chunk:?}") };
    assert!(json.starts_with(r#"{"id":1,"column 0":null,"#) && json.ends_with(r#""column 499":null}"#));
}
