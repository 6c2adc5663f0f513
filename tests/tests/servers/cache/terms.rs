//! Rows that are written on terms: with a time to live, or only where their key exists.

use std::collections::BTreeSet;
use std::time::Duration;

use rowcast::cache::{Cache, Link, Put, Version};
use rowcast::mapping::Terms;
use rowcast_testkit::wait::until;

use super::{P1, block, cached_hash, cached_text, done, fresh, ready, scanned, seen, value};

/// Rows on these terms, as a string and as a hash, under `<name>:text` and `<name>:hash`.
fn on_terms(name: &str, value: &str, terms: Terms) -> [(String, Put); 2] {
    let fields = vec![("id".to_owned(), value.as_bytes().to_vec())];
    [(format!("{name}:text"), Put::Text(value.as_bytes().to_vec(), terms)), (format!("{name}:hash"), Put::Hash(fields, terms))]
}

fn lives(ttl_ms: u64) -> Terms {
    Terms { ttl: Some(Duration::from_millis(ttl_ms)), existing: false }
}

const EXISTING: Terms = Terms { ttl: None, existing: true };

/// Writes these rows in a block of their own.
async fn put(link: &mut impl Link, on: &mut Option<Version>, puts: impl IntoIterator<Item = (String, Put)>) {
    let mut next = block(P1, on.as_ref(), 1, &[]);
    next.puts.extend(puts);
    *on = Some(done(link, &next).await);
}

/// Which of `<name>:text` and `<name>:hash` hold this.
async fn holds(link: &mut impl Link, name: &str, value: &str) -> [bool; 2] {
    let found = link.values(&[format!("{name}:text"), format!("{name}:hash")]).await.unwrap();
    [found[0] == cached_text(value), found[1] == cached_hash(&[("id", value)])]
}

/// Waits until what was written with a short time to live before this call has gone.
async fn short_lives_pass(link: &mut impl Link, on: &mut Option<Version>) {
    put(link, on, on_terms("clock", "x", lives(2 * SHORT_MS))).await;
    let link = tokio::sync::Mutex::new(link);
    let gone = until("keys to expire", Duration::from_secs(60), async || {
        let values = link.lock().await.values(&["clock:text", "clock:hash"].map(str::to_owned)).await.unwrap();
        values.iter().all(Option::is_none).then_some(())
    });
    gone.await.unwrap();
}

const SHORT_MS: u64 = 60;

pub async fn a_time_to_live_is_set_afresh_by_every_write_and_cleared_by_one_without<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let mut on = None;
    for (name, first, second) in [
        ("goes", lives(SHORT_MS), None),
        ("shortened", lives(60_000), Some(lives(SHORT_MS))),
        ("limited", Terms::default(), Some(lives(SHORT_MS))),
        ("prolonged", lives(SHORT_MS), Some(lives(60_000))),
        ("cleared", lives(SHORT_MS), Some(Terms::default())),
    ] {
        put(&mut link, &mut on, on_terms(name, "1", first)).await;
        if let Some(second) = second {
            put(&mut link, &mut on, on_terms(name, "2", second)).await;
        }
    }
    short_lives_pass(&mut link, &mut on).await;
    for name in ["goes", "shortened", "limited"] {
        let values = link.values(&[format!("{name}:text"), format!("{name}:hash")]).await.unwrap();
        assert_eq!(values, [None, None], "{name}");
    }
    for name in ["prolonged", "cleared"] {
        assert_eq!(holds(&mut link, name, "2").await, [true, true], "{name}");
    }
    let scanned = scanned(&mut link, "").await;
    assert_eq!(scanned, ["cleared:hash", "cleared:text", "prolonged:hash", "prolonged:text"].map(str::to_owned).into());
    // A key that has gone comes again.
    put(&mut link, &mut on, on_terms("goes", "3", Terms::default())).await;
    assert_eq!(holds(&mut link, "goes", "3").await, [true, true]);
}

pub async fn a_row_for_existing_keys_alone_is_written_where_one_is_and_leaves_its_time<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let mut on = None;
    let afresh = Terms { existing: true, ..lives(SHORT_MS) };
    put(&mut link, &mut on, on_terms("absent", "1", EXISTING)).await;
    put(&mut link, &mut on, on_terms("absent", "1", afresh)).await;
    assert_eq!(scanned(&mut link, "").await, BTreeSet::new());

    put(&mut link, &mut on, on_terms("there", "1", Terms::default())).await;
    put(&mut link, &mut on, on_terms("passing", "1", lives(SHORT_MS))).await;
    put(&mut link, &mut on, on_terms("limited", "1", Terms::default())).await;
    for (name, terms) in [("there", EXISTING), ("passing", EXISTING), ("limited", afresh)] {
        put(&mut link, &mut on, on_terms(name, "2", terms)).await;
    }
    assert_eq!(holds(&mut link, "there", "2").await, [true, true]);
    short_lives_pass(&mut link, &mut on).await;
    assert_eq!(holds(&mut link, "there", "2").await, [true, true]);
    assert_eq!(scanned(&mut link, "limited").await, BTreeSet::new(), "it has the time that the refresh gave it");
    assert_eq!(scanned(&mut link, "passing").await, BTreeSet::new(), "it has the time that it had before");
    // What has expired does not exist.
    put(&mut link, &mut on, on_terms("passing", "3", EXISTING)).await;
    assert_eq!(scanned(&mut link, "passing").await, BTreeSet::new());

    // Whatever form the application has given it.
    let text_for_hash = Put::Text(b"4".to_vec(), EXISTING);
    let hash_for_text = Put::Hash(vec![("id".to_owned(), b"4".to_vec())], EXISTING);
    put(&mut link, &mut on, [("there:hash".to_owned(), text_for_hash), ("there:text".to_owned(), hash_for_text)]).await;
    assert_eq!(value(&mut link, "there:hash").await, cached_text("4"));
    assert_eq!(value(&mut link, "there:text").await, cached_hash(&[("id", "4")]));
    put(&mut link, &mut on, [("there:text".to_owned(), Put::Hash(Vec::new(), EXISTING))]).await;
    assert_eq!(value(&mut link, "there:text").await, None, "a hash without fields is no key at all");
}

pub async fn a_block_mixes_rows_on_all_terms<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let mut on = None;
    let terms = [Terms::default(), lives(60_000), lives(90_000), EXISTING, Terms { ttl: Some(Duration::from_secs(60)), existing: true }];
    let names: Vec<String> = (0..1000).map(|id| format!("k{id}")).collect();
    let rows =
        |value: &str| names.iter().zip(terms.iter().cycle()).flat_map(|(name, terms)| on_terms(name, value, *terms)).collect::<Vec<_>>();
    put(&mut link, &mut on, rows("1")).await;
    let mut second = block(P1, on.as_ref(), 2, &[]);
    let run = fresh();
    // The keys that only existing ones take are there half of the time.
    second.puts.extend(names.iter().step_by(2).flat_map(|name| on_terms(name, "2", Terms::default())));
    second.seen = vec![seen("users", &run, 0, &["k1"])];
    on = Some(done(&mut link, &second).await);
    put(&mut link, &mut on, rows("3")).await;
    for (index, name) in names.iter().enumerate() {
        let there = index % 5 < 3 || index % 2 == 0;
        assert_eq!(holds(&mut link, name, "3").await, [there, there], "{name}");
    }
    assert_eq!(link.load(P1).await.unwrap().unwrap().version, on.unwrap());
    assert!(link.seen(P1, &"users".into(), &run, 8).await.unwrap().is_some());
}
