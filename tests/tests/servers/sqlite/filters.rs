//! `where`: a row that does not match is absent, whatever was done to it and however it is read.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rowcast::change::Image;
use rowcast::mapping::{Mapped, TableSettings};
use rowcast::source::sqlite::{SqliteSettings, SqliteSource, install};
use rowcast::source::{Chunk, ChunkLimits, Source};
use rusqlite::Connection;

use super::{Follower, application, begun, newest, now, rows_now};

const SCHEMA: &str = "PRAGMA journal_mode = WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, mail TEXT NOT NULL UNIQUE, n INTEGER, doc TEXT)";

fn filtered(path: &std::path::Path, key: Option<&str>, filter: &str) -> SqliteSettings {
    let table = TableSettings { key: key.map(str::to_owned), filter: Some(filter.to_owned()), ..TableSettings::new("t") };
    SqliteSettings { tables: vec![table], ..SqliteSettings::new(path, "shop") }
}

/// Key → row, by SQLite's own words.
fn matching(connection: &Connection, filter: &str, key: &str) -> BTreeMap<String, String> {
    let sql = format!("SELECT {key}, json_object('id', id, 'mail', mail, 'n', n, 'doc', doc) FROM t WHERE {filter}");
    let mut statement = connection.prepare(&sql).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

/// A write of any kind; some leave a row's filter as it is, some turn it, some move its key.
fn write(connection: &Connection, random: &mut StdRng) {
    let (id, other, n) = (random.random_range(1..8), random.random_range(1..8), random.random_range(0..4));
    let sql = match random.random_range(0..8) {
        0..3 => format!("INSERT OR REPLACE INTO t VALUES ({id}, 'm{other}', {n}, NULL)"),
        3 => format!("UPDATE t SET n = {n} WHERE id = {id}"),
        4 => format!("UPDATE OR REPLACE t SET mail = 'm{other}', n = {n} WHERE id = {id}"),
        5 => format!("UPDATE OR REPLACE t SET id = {other} WHERE id = {id}"),
        6 => format!("DELETE FROM t WHERE id = {id}"),
        // One takes the key that another one has just left.
        _ => format!(
            "UPDATE OR IGNORE t SET mail = 'left', n = {n} WHERE id = {id}; UPDATE OR IGNORE t SET mail = 'm{id}' WHERE id = {other}; \
             UPDATE OR IGNORE t SET mail = 'm{other}' WHERE id = {id}"
        ),
    };
    connection.execute_batch(&sql).unwrap();
}

#[tokio::test]
async fn the_stream_leads_to_the_rows_that_match() {
    for (key, oracle) in [(None, "'t:' || id"), (Some("m:{mail}"), "'m:' || mail")] {
        for seed in 0..4 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("app.db");
            let app = application(&path);
            app.execute_batch(SCHEMA).unwrap();
            let filter = "n > 1 OR n IS NULL";
            let mut follower = Follower::begin(&filtered(&path, key, filter)).await;
            let mut random = StdRng::seed_from_u64(seed);
            for round in 0..40 {
                app.execute_batch("BEGIN").unwrap();
                for _ in 0..random.random_range(1..6) {
                    write(&app, &mut random);
                }
                app.execute_batch("COMMIT").unwrap();
                follower.follow(newest(&app)).await.unwrap();
                assert_eq!(follower.rows, matching(&app, filter, oracle), "{key:?}, seed {seed}, round {round}");
            }
        }
    }
}

/// Reads the whole table by chunks.
async fn chunks(source: &mut SqliteSource, limits: ChunkLimits) -> Vec<Chunk> {
    let (mut chunks, mut after) = (Vec::new(), None);
    loop {
        let chunk = now(source.chunk(0, after.as_ref(), limits).await.unwrap());
        after = chunk.upto.clone();
        let last = chunk.last;
        chunks.push(chunk);
        if last {
            return chunks;
        }
    }
}

#[tokio::test]
async fn chunks_leave_out_what_does_not_match_and_read_no_more_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = application(&path);
    app.execute_batch(SCHEMA).unwrap();
    app.execute_batch("WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 1000) INSERT INTO t SELECT i, 'm' || i, i % 100, NULL FROM c")
        .unwrap();
    let (mut source, start) = begun(&filtered(&path, None, "n = 7")).await;
    let chunks = chunks(&mut source, ChunkLimits { rows: 50, bytes: 1 << 20 }).await;
    assert_eq!(chunks.len(), 20, "rows that are left out count, or a chunk could read a whole table");
    let keys: Vec<String> = chunks
        .iter()
        .flat_map(|chunk| &chunk.rows)
        .map(|row| match start.tables[0].map(&row.image) {
            Mapped::Put { key, .. } => key,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(keys, (0..10).map(|hundred| format!("t:{}", hundred * 100 + 7)).collect::<Vec<_>>());
    // Read singly, such a row is absent by its key.
    let pks = [7, 8].map(|id| format!(r#"{{"id":{id}}}"#));
    let (single, _) = rows_now(source.rows(0, &pks, ChunkLimits { rows: 50, bytes: 1 << 20 }).await.unwrap());
    assert!(matches!(&single.rows[0].image, Image::Present { .. }));
    assert_eq!(start.tables[0].map(&single.rows[1].image), Mapped::Remove { key: "t:8".to_owned() });
}

#[tokio::test]
async fn chunks_name_what_does_not_match_where_a_sweep_could_not_find_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = application(&path);
    app.execute_batch(SCHEMA).unwrap();
    app.execute_batch("INSERT INTO t VALUES (1, 'a', 1, NULL), (2, 'b', 0, NULL)").unwrap();
    let mut settings = filtered(&path, Some("m:{mail}"), "n = 1");
    settings.tables[0].columns = Some(vec!["id".to_owned()]);
    let (mut source, start) = begun(&settings).await;
    let chunks = chunks(&mut source, ChunkLimits { rows: 50, bytes: 1 << 20 }).await;
    let mapped: Vec<Mapped<'_>> = chunks[0].rows.iter().map(|row| start.tables[0].map(&row.image)).collect();
    assert_eq!(mapped, [Mapped::Put { key: "m:a".to_owned(), row: r#"{"id":1}"# }, Mapped::Remove { key: "m:b".to_owned() }]);
}

#[tokio::test]
async fn a_row_that_the_filter_cannot_bear_is_set_aside_and_the_others_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = application(&path);
    app.execute_batch(SCHEMA).unwrap();
    let settings = filtered(&path, None, "json_extract(doc, '$.shown')");
    install(&settings).unwrap();
    app.execute_batch(
        r#"INSERT INTO t VALUES (1, 'a', 0, '{"shown":1}'), (2, 'b', 0, '{"shown":'), (3, 'c', 0, '{"shown":2}'), (4, 'd', 0, '{}')"#,
    )
    .unwrap();
    let mut source = SqliteSource::new(settings).unwrap();
    let start = source.begin(None).await.unwrap();
    let read = chunks(&mut source, ChunkLimits { rows: 1, bytes: 1 << 20 }).await;
    let rows: Vec<_> = read.iter().flat_map(|chunk| &chunk.rows).map(|row| start.tables[0].map(&row.image)).collect();
    let [Mapped::Put { key: first, .. }, Mapped::Dead { key: Some(dead), reason }, Mapped::Put { key: third, .. }] = &rows[..] else {
        panic!("{rows:?}")
    };
    assert_eq!([first, dead, third], ["t:1", "t:2", "t:3"]);
    assert_eq!(
        reason,
        "the filter cannot be evaluated for this row: malformed JSON; mend the row, or write `where` so that it bears such a value"
    );

    // In the stream, too; and what is mended comes back.
    app.execute_batch("UPDATE t SET n = 1").unwrap();
    let stream = read_stream(&mut source, newest(&app)).await;
    let dead: BTreeSet<bool> = stream.iter().map(|image| matches!(image, Image::Unreadable { .. })).collect();
    assert_eq!((stream.len(), dead.len()), (4, 2));
    app.execute_batch(r#"UPDATE t SET doc = '{"shown":true}' WHERE id = 2"#).unwrap();
    let stream = read_stream(&mut source, newest(&app)).await;
    assert!(matches!(&stream[..], [Image::Present { .. }]), "{stream:?}");
}

/// Every image that comes until the changelog up to `newest` has been read.
async fn read_stream(source: &mut SqliteSource, newest: u64) -> Vec<Image> {
    let mut images = Vec::new();
    loop {
        match source.next().await.unwrap() {
            rowcast::source::Portion::Record(_) => {}
            rowcast::source::Portion::Changes { changes, to, .. } => {
                images.extend(changes.into_iter().map(|change| change.image));
                if to.0 >= newest && to.1 >= newest {
                    return images;
                }
            }
            other => panic!("SQLite never hands out {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_filter_that_cannot_be_is_refused_before_anything_is_installed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = application(&path);
    app.execute_batch(SCHEMA).unwrap();
    let error = install(&filtered(&path, None, "nn = 1")).unwrap_err();
    assert_eq!(error.to_string(), "table t: `where` names the column nn, which does not exist; did you mean n?");
    let installed: i64 = app.query_row("SELECT count(*) FROM sqlite_schema WHERE name LIKE 'rowcast%'", [], |row| row.get(0)).unwrap();
    assert_eq!(installed, 0);
    install(&filtered(&path, None, "n = 1")).unwrap();
    let mut source = SqliteSource::new(filtered(&path, None, "n = (SELECT 1)")).unwrap();
    let error = source.begin(None).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "table t: `where` has a subquery, but a change of other rows would not be seen; use the columns of the row alone"
    );
}
