//! A database that takes any bytes: what is no text is set aside row by row, and stops nothing.

use std::collections::BTreeSet;

use rowcast::change::Image;
use rowcast::mapping::TableSettings;
use rowcast::source::postgres::PostgresSource;
use rowcast::source::{ChunkLimits, Portion, Read, ReadRows, Source};
use rowcast_testkit::postgres::{PostgresOptions, PostgresServer};
use rowcast_testkit::wait::until;
use tokio::time::timeout;

use super::Pipeline;
use super::pipeline::{DEADLINE, oracle, table};

const LIMITS: ChunkLimits = ChunkLimits { rows: 1, bytes: 1 << 20 };

fn start() -> PostgresServer {
    let options = PostgresOptions { initdb: &["--encoding=SQL_ASCII", "--locale=C"], ..PostgresOptions::default() };
    let server = PostgresServer::start_with(&options).unwrap();
    server
        .execute(
            "CREATE TABLE t(id text PRIMARY KEY, body text, v int); ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
             INSERT INTO t VALUES ('a', 'é', 0), (convert_from('\\x6bff', 'SQL_ASCII'), repeat('x', 9000), 0), ('m', convert_from('\\xfe', 'SQL_ASCII'), 0),
             (convert_from('\\xc3', 'SQL_ASCII'), '', 0), ('z', 'it''s', 0)",
        )
        .unwrap();
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_with_bytes_that_are_no_text_are_set_aside_and_the_others_go_on() {
    let server = start();
    let filtered = TableSettings { filter: Some("v < 9 AND body <> 'b'".to_owned()), ..table("t", None) };
    for settings in [table("t", None), filtered] {
        let mut pipeline = Pipeline::installed(&server, vec![settings]).await;
        pipeline.start();
        let wanted = format!("{} WHERE id IN ('a', 'z', 'later')", oracle("t"));
        pipeline.agree(&server, &wanted).await;
        let dead = |from: usize| -> BTreeSet<String> {
            let letters = pipeline.broker.dead_letters();
            let letters = letters[from..].iter().map(|letter| serde_json::from_slice::<serde_json::Value>(letter).unwrap());
            letters.map(|letter| letter["pk"].as_str().unwrap().to_owned()).collect()
        };
        let all: BTreeSet<String> = [r#"{"id":"m"}"#, r#"{"id":{"bytes":"6bff"}}"#, r#"{"id":{"bytes":"c3"}}"#].map(str::to_owned).into();
        assert_eq!(dead(0), all, "by chunk");
        let before = pipeline.broker.dead_letters().len();
        server.execute("UPDATE t SET v = v + 1; INSERT INTO t VALUES ('later', 'x', 0) ON CONFLICT DO NOTHING").unwrap();
        pipeline.agree(&server, &wanted).await;
        until("each to be set aside again", DEADLINE, async || (dead(before) == all).then_some(())).await.unwrap();
        pipeline.stop_publisher().await;
        rowcast::source::postgres::uninstall(&pipeline.settings).await.unwrap();
    }
}

async fn rows(source: &mut PostgresSource) -> rowcast::source::Chunk {
    loop {
        if let Portion::Rows { chunk, .. } = timeout(DEADLINE, source.next()).await.expect("a portion in time").unwrap() {
            return chunk;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_found_by_keys_that_are_no_text() {
    let server = start();
    let pipeline = Pipeline::installed(&server, vec![table("t", None)]).await;
    let mut source = PostgresSource::new(pipeline.settings.clone());
    source.begin(None).await.unwrap();
    let (mut pks, mut after) = (Vec::new(), None);
    loop {
        assert!(matches!(source.chunk(0, after.as_ref(), LIMITS).await.unwrap(), Read::Later));
        let chunk = rows(&mut source).await;
        pks.extend(chunk.rows.into_iter().map(|row| row.pk));
        after = chunk.upto;
        if chunk.last {
            break;
        }
    }
    let wanted = [r#"{"id":"a"}"#, r#"{"id":{"bytes":"6bff"}}"#, r#"{"id":"m"}"#, r#"{"id":"z"}"#, r#"{"id":{"bytes":"c3"}}"#];
    assert_eq!(pks, wanted);
    server.execute("DELETE FROM t WHERE id = convert_from('\\xc3', 'SQL_ASCII')").unwrap();
    for pk in wanted {
        assert!(matches!(source.rows(0, &[pk.to_owned()], LIMITS).await.unwrap(), ReadRows::Later));
        let chunk = rows(&mut source).await;
        let images: Vec<&Image> = chunk.rows.iter().filter(|row| row.pk == pk).map(|row| &row.image).collect();
        // Of a key that is no text it cannot be told that nobody has it; it never was in the cache.
        assert!(matches!(images[..], [Image::Present { .. } | Image::Unreadable { .. }]) || pk == wanted[4], "{pk}: {chunk:?}");
    }
}
