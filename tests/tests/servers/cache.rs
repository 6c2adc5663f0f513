//! What every cache promises, whichever it is.

mod terms;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use rowcast::cache::{Block, Cache, Cached, Link, Put, SeenAppend, Stored, Version, Written};
use rowcast::change::{KeyHash, Lineage, Partition, Position, Run, Table};
use rowcast::checkpoint::Checkpoint;
use rowcast::mapping::Terms;

use terms::{
    a_block_mixes_rows_on_all_terms, a_row_for_existing_keys_alone_is_written_where_one_is_and_leaves_its_time,
    a_time_to_live_is_set_afresh_by_every_write_and_cleared_by_one_without,
};

pub const P1: Partition = Partition { number: 1, of: 2 };
pub const P2: Partition = Partition { number: 2, of: 2 };

/// An id that was never used.
pub fn fresh() -> Run {
    static LAST: AtomicU64 = AtomicU64::new(0);
    Run(format!("run{}", LAST.fetch_add(1, Ordering::Relaxed)).into())
}

/// A checkpoint of lineage `a` that maps `users`.
pub fn checkpoint(position: u64) -> Checkpoint {
    Checkpoint {
        lineage: Lineage("a".into()),
        position: Position(position, 0),
        mappings: [("users".into(), "9f3c61d0 json user:{id:integer}".parse().unwrap())].into(),
        old_keys: BTreeMap::new(),
        resyncs: BTreeMap::new(),
        completed: BTreeMap::new(),
    }
}

/// A block with these rows.
pub fn block(partition: Partition, on: Option<&Version>, position: u64, puts: &[(&str, Put)]) -> Block {
    Block {
        partition,
        on: on.cloned(),
        version: Version(fresh().0.to_string()),
        checkpoint: checkpoint(position),
        puts: puts.iter().map(|(key, put)| ((*key).to_owned(), put.clone())).collect(),
        seen: Vec::new(),
        forget: Vec::new(),
    }
}

pub fn text(value: &str) -> Put {
    Put::Text(value.as_bytes().to_vec(), Terms::default())
}

pub fn hash(fields: &[(&str, &str)]) -> Put {
    Put::Hash(fields.iter().map(|(field, value)| ((*field).to_owned(), value.as_bytes().to_vec())).collect(), Terms::default())
}

pub fn cached_text(value: &str) -> Option<Cached> {
    Some(Cached::Text(value.as_bytes().to_vec()))
}

pub fn cached_hash(fields: &[(&str, &str)]) -> Option<Cached> {
    Some(Cached::Hash(fields.iter().map(|(field, value)| ((*field).to_owned(), value.as_bytes().to_vec())).collect()))
}

/// A connection to a cache with two partitions.
pub async fn ready<C: Cache>(cache: &C) -> C::Link {
    let mut link = cache.connect().await.unwrap();
    assert!(link.take_over(None, 2, &mut fresh).await.unwrap());
    link
}

/// Writes a block and hands back its version.
pub async fn done(link: &mut impl Link, block: &Block) -> Version {
    assert_eq!(link.write(block).await.unwrap(), Written::Done);
    block.version.clone()
}

pub async fn value(link: &mut impl Link, key: &str) -> Option<Cached> {
    link.values(&[key.to_owned()]).await.unwrap().remove(0)
}

fn seen(table: &str, run: &Run, expected: u64, keys: &[&str]) -> SeenAppend {
    SeenAppend { table: table.into(), run: run.clone(), expected, hashes: keys.iter().map(|key| KeyHash::of(key)).collect() }
}

async fn an_empty_cache_has_no_layout_and_takes_no_block<C: Cache>(cache: C) {
    let mut link = cache.connect().await.unwrap();
    assert_eq!(link.layout().await.unwrap(), None);
    assert_eq!(link.load(P1).await.unwrap(), None);
    assert_eq!(link.write(&block(P1, None, 1, &[("user:1", text("a"))])).await.unwrap(), Written::Layout(0));
    assert_eq!(value(&mut link, "user:1").await, None);
}

async fn the_first_layout_is_only_set<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    assert_eq!(link.layout().await.unwrap(), Some(2));
    assert_eq!(link.load(P1).await.unwrap(), None);
    assert!(!link.take_over(None, 4, &mut fresh).await.unwrap(), "there is one already");
    assert_eq!(link.layout().await.unwrap(), Some(2));
}

async fn rows_and_checkpoint_stand_as_they_were_written<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let mut first = block(P1, None, 7, &[("user:1", text("Ada \u{0}\r\n")), ("order:1", hash(&[("id", "1"), ("", "x")]))]);
    first.checkpoint.old_keys = [("users".into(), BTreeSet::from(["u:{id:integer}".parse().unwrap()]))].into();
    first.checkpoint.open(&"users".into(), fresh());
    let version = done(&mut link, &first).await;
    assert_eq!(link.load(P1).await.unwrap(), Some(Stored { checkpoint: first.checkpoint, version }));
    assert_eq!(link.load(P2).await.unwrap(), None);
    let keys = ["order:1", "user:2", "user:1"].map(str::to_owned);
    assert_eq!(
        link.values(&keys).await.unwrap(),
        [cached_hash(&[("id", "1"), ("", "x")]), None, cached_text("Ada \u{0}\r\n")],
        "in the order that was asked for"
    );
    let mut other = cache.connect().await.unwrap();
    assert_eq!(value(&mut other, "user:1").await, cached_text("Ada \u{0}\r\n"));
}

async fn a_block_on_another_version_writes_nothing<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let old = done(&mut link, &block(P1, None, 1, &[("user:1", text("1"))])).await;
    let new = done(&mut link, &block(P1, Some(&old), 2, &[("user:1", text("2"))])).await;
    for on in [None, Some(&old), Some(&Version("never".into()))] {
        let late = block(P1, on, 9, &[("user:1", text("late")), ("user:2", text("late"))]);
        assert_eq!(link.write(&late).await.unwrap(), Written::Overtaken);
    }
    let missing = block(P2, Some(&new), 9, &[("user:2", text("late"))]);
    assert_eq!(link.write(&missing).await.unwrap(), Written::Overtaken, "no checkpoint at all is another one too");
    assert_eq!(value(&mut link, "user:1").await, cached_text("2"));
    assert_eq!(value(&mut link, "user:2").await, None);
    assert_eq!(link.load(P1).await.unwrap().unwrap().version, new);
}

async fn a_block_that_was_written_is_not_written_again<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let once = block(P1, None, 1, &[("user:1", text("1"))]);
    done(&mut link, &once).await;
    assert_eq!(link.write(&once).await.unwrap(), Written::Overtaken);
}

async fn a_block_of_another_layout_writes_nothing<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let other = block(Partition { number: 1, of: 4 }, None, 1, &[("user:1", text("1"))]);
    assert_eq!(link.write(&other).await.unwrap(), Written::Layout(2));
    assert_eq!(value(&mut link, "user:1").await, None);
}

async fn a_key_takes_any_shape_and_the_former_value_goes_whole<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let steps = [
        (hash(&[("a", "1"), ("b", "2")]), cached_hash(&[("a", "1"), ("b", "2")])),
        (hash(&[("b", "3")]), cached_hash(&[("b", "3")])),
        (text("x"), cached_text("x")),
        (hash(&[("c", "4")]), cached_hash(&[("c", "4")])),
        (Put::Gone, None),
        (text(""), cached_text("")),
        (Put::Gone, None),
        (Put::Gone, None),
        (text("x"), cached_text("x")),
        (hash(&[]), None),
    ];
    let mut version = None;
    for (position, (put, stands)) in (1..).zip(steps) {
        version = Some(done(&mut link, &block(P1, version.as_ref(), position, &[("k", put)])).await);
        assert_eq!(value(&mut link, "k").await, stands);
    }
}

async fn a_block_may_be_large<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let wide: Vec<(String, Vec<u8>)> = (0..5000).map(|column| (format!("c{column}"), vec![b'v'])).collect();
    let mut large = block(P1, None, 1, &[]);
    large.puts.extend((0..9001).map(|id| (format!("user:{id}"), text("v"))));
    large.puts.extend((0..3000).map(|id| (format!("order:{id}"), hash(&[("id", "v"), ("b", "c")]))));
    large.puts.push(("wide".into(), Put::Hash(wide.clone(), Terms::default())));
    let version = done(&mut link, &large).await;
    let keys: Vec<String> = large.puts.iter().map(|(key, _)| key.clone()).collect();
    let values = link.values(&keys).await.unwrap();
    assert!(values[..9001].iter().all(|value| *value == cached_text("v")));
    assert!(values[9001..12001].iter().all(|value| *value == cached_hash(&[("id", "v"), ("b", "c")])));
    assert_eq!(values[12001], Some(Cached::Hash(wide.into_iter().collect())));

    let mut empty = block(P1, Some(&version), 2, &[]);
    empty.puts = keys.iter().map(|key| (key.clone(), Put::Gone)).collect();
    done(&mut link, &empty).await;
    assert!(link.values(&keys).await.unwrap().iter().all(Option::is_none));
}

async fn seen_logs_grow_with_the_blocks_and_read_back<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let (users, orders) = (fresh(), fresh());
    let keys: Vec<String> = (0..11).map(|id| format!("user:{id}")).collect();
    let hashes: Vec<KeyHash> = keys.iter().map(|key| KeyHash::of(key)).collect();
    let mut version = None;
    for step in 0..=11_usize {
        let next: Vec<&str> = keys.iter().skip(step).take(1).map(String::as_str).collect();
        let mut block = block(P1, version.as_ref(), step as u64, &[]);
        block.seen = vec![seen("users", &users, 8 * step as u64, &next), seen("orders", &orders, 0, &[])];
        version = Some(done(&mut link, &block).await);
    }
    assert_eq!(link.seen(P1, &"users".into(), &users, 88).await.unwrap(), Some(hashes));
    assert_eq!(link.seen(P1, &"orders".into(), &orders, 0).await.unwrap(), Some(vec![]));
    for length in [0, 80, 96] {
        assert_eq!(link.seen(P1, &"users".into(), &users, length).await.unwrap(), None, "{length}");
    }
    assert_eq!(link.seen(P2, &"users".into(), &users, 88).await.unwrap(), None, "another partition has its own");
}

async fn many_hashes_at_once_go_into_a_seen_log<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let run = fresh();
    let hashes: Vec<KeyHash> = (0..1000).map(KeyHash).collect();
    let mut first = block(P1, None, 1, &[]);
    first.seen = vec![SeenAppend { table: "users".into(), run: run.clone(), expected: 0, hashes: hashes[..700].to_vec() }];
    let version = done(&mut link, &first).await;
    let mut second = block(P1, Some(&version), 2, &[]);
    second.seen = vec![SeenAppend { table: "users".into(), run: run.clone(), expected: 5600, hashes: hashes[700..].to_vec() }];
    done(&mut link, &second).await;
    assert_eq!(link.seen(P1, &"users".into(), &run, 8000).await.unwrap(), Some(hashes));
}

async fn a_seen_log_of_another_length_refuses_the_block<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let (users, orders) = (fresh(), fresh());
    let mut first = block(P1, None, 1, &[]);
    first.seen = vec![seen("users", &users, 0, &["user:1", "user:2"]), seen("orders", &orders, 0, &["order:1"])];
    let version = done(&mut link, &first).await;
    for (length, lost) in [(8, vec!["users"]), (24, vec!["users"]), (16, vec![])] {
        let mut next = block(P1, Some(&version), 2, &[("user:3", text("x"))]);
        // Nothing to append: compared all the same.
        next.seen = vec![seen("users", &users, length, &[]), seen("orders", &orders, 8, &["order:2"])];
        if lost.is_empty() {
            done(&mut link, &next).await;
        } else {
            let lost: Vec<Table> = lost.into_iter().map(Table::from).collect();
            assert_eq!(link.write(&next).await.unwrap(), Written::SeenLost(lost));
            assert_eq!(value(&mut link, "user:3").await, None);
            assert!(link.seen(P1, &"orders".into(), &orders, 8).await.unwrap().is_some());
        }
    }
}

async fn a_forgotten_seen_log_is_gone_whole<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let run = fresh();
    let mut first = block(P1, None, 1, &[]);
    first.seen = vec![seen("users", &run, 0, &["1", "2", "3", "4", "5"])];
    let version = done(&mut link, &first).await;
    let mut second = block(P1, Some(&version), 2, &[]);
    second.forget = vec![("users".into(), run.clone()), ("users".into(), fresh())];
    let version = done(&mut link, &second).await;
    // Nothing of it is in the way of a log under the same name.
    let mut third = block(P1, Some(&version), 3, &[]);
    third.seen = vec![seen("users", &run, 0, &["6", "7", "8"])];
    done(&mut link, &third).await;
    assert_eq!(link.seen(P1, &"users".into(), &run, 24).await.unwrap(), Some(["6", "7", "8"].map(KeyHash::of).to_vec()));
}

async fn another_layout_begins_at_the_greatest_position_with_every_resync_open<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let run = fresh();
    let mut first = block(P1, None, 5, &[("user:1", text("1"))]);
    first.checkpoint.open(&"users".into(), run.clone());
    first.seen = vec![seen("users", &run, 0, &["user:1"])];
    done(&mut link, &first).await;
    let old = done(&mut link, &block(P2, None, 9, &[])).await;

    assert!(link.take_over(Some(2), 3, &mut fresh).await.unwrap());
    assert_eq!(link.layout().await.unwrap(), Some(3));
    let mut runs = BTreeSet::new();
    for partition in Partition::all(3) {
        let stored = link.load(partition).await.unwrap().unwrap();
        assert_eq!((stored.checkpoint.position, &stored.checkpoint.lineage), (Position(9, 0), &Lineage("a".into())));
        runs.insert(stored.checkpoint.resyncs[&Table::from("users")].run.clone());
        done(&mut link, &block(partition, Some(&stored.version), 10, &[])).await;
    }
    assert_eq!(runs.len(), 3);
    for partition in [P1, P2] {
        assert_eq!(link.load(partition).await.unwrap(), None);
    }
    assert_eq!(link.seen(P1, &"users".into(), &run, 0).await.unwrap(), Some(vec![]), "its seen logs are gone too");
    assert_eq!(value(&mut link, "user:1").await, cached_text("1"), "rows stay");
    assert_eq!(link.write(&block(P2, Some(&old), 10, &[])).await.unwrap(), Written::Layout(3), "who runs on is told");
}

async fn only_one_takes_over<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    done(&mut link, &block(P1, None, 5, &[])).await;
    let mut other = cache.connect().await.unwrap();
    assert!(link.take_over(Some(2), 4, &mut fresh).await.unwrap());
    assert!(!other.take_over(Some(2), 3, &mut fresh).await.unwrap());
    assert_eq!(other.layout().await.unwrap(), Some(4));
    // And back.
    assert!(other.take_over(Some(4), 2, &mut fresh).await.unwrap());
    assert_eq!(link.load(P1).await.unwrap().unwrap().checkpoint.position, Position(5, 0));
    assert_eq!(link.load(Partition { number: 1, of: 4 }).await.unwrap(), None);
}

/// Every key that a whole scan returns.
pub async fn scanned(link: &mut impl Link, prefix: &str) -> BTreeSet<String> {
    let (mut cursor, mut keys) = (0, BTreeSet::new());
    loop {
        let (next, some) = link.scan(cursor, prefix).await.unwrap();
        keys.extend(some);
        if next == 0 {
            return keys;
        }
        cursor = next;
    }
}

async fn a_scan_returns_every_key_that_begins_so_and_none_of_rowcasts_own<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let mut first = block(P1, None, 1, &[("user", text("x")), ("use*r:1", text("x")), ("zebra", text("x")), ("ümlaut:1", text("x"))]);
    first.puts.extend((0..3000).map(|id| (format!("user:{id}"), text("x"))));
    first.puts.extend((0..50).map(|id| (format!("u[a-z]er:{id}"), hash(&[("id", "x")]))));
    done(&mut link, &first).await;
    assert_eq!(scanned(&mut link, "user:").await, (0..3000).map(|id| format!("user:{id}")).collect());
    assert_eq!(scanned(&mut link, "u[a-z]er:").await, (0..50).map(|id| format!("u[a-z]er:{id}")).collect());
    assert_eq!(scanned(&mut link, "use*").await, BTreeSet::from(["use*r:1".to_owned()]));
    assert_eq!(scanned(&mut link, "ü").await, BTreeSet::from(["ümlaut:1".to_owned()]));
    assert_eq!(scanned(&mut link, "nobody").await, BTreeSet::new());
    assert_eq!(scanned(&mut link, "").await, first.puts.iter().map(|(key, _)| key.clone()).collect());
    assert_eq!(scanned(&mut link, "rowcast:").await, BTreeSet::new());
}

async fn a_key_that_stands_all_the_while_is_returned_although_others_go<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let mut first = block(P1, None, 1, &[]);
    first.puts.extend((0..4000).map(|id| (format!("user:{id}"), text("x"))));
    let mut version = done(&mut link, &first).await;
    let (mut cursor, mut keys) = (0, BTreeSet::new());
    loop {
        let (next, some) = link.scan(cursor, "user:").await.unwrap();
        // Every key with an odd number goes as soon as it was returned.
        let odd = |key: &&String| key.ends_with(['1', '3', '5', '7', '9']);
        let mut remove = block(P1, Some(&version), 1, &[]);
        remove.puts = some.iter().filter(odd).map(|key| (key.clone(), Put::Gone)).collect::<BTreeMap<_, _>>().into_iter().collect();
        version = done(&mut link, &remove).await;
        keys.extend(some);
        if next == 0 {
            break;
        }
        cursor = next;
    }
    assert!((0..4000).step_by(2).all(|id| keys.contains(&format!("user:{id}"))));
}

async fn no_row_takes_the_place_of_one_of_rowcasts_own_keys<C: Cache>(cache: C) {
    let mut link = ready(&cache).await;
    let own = "rowcast:{shop}:layout";
    for put in [text("4"), hash(&[("a", "b")])] {
        let refused = link.write(&block(P1, None, 1, &[("user:1", text("x")), (own, put)])).await.unwrap();
        assert!(matches!(&refused, Written::Refused { key, .. } if key == own), "{refused:?}");
    }
    assert_eq!(value(&mut link, "user:1").await, None, "nothing of the block was written");
    // What the consumer does with a refused key must have an end.
    done(&mut link, &block(P1, None, 1, &[("user:1", text("x")), (own, Put::Gone)])).await;
    assert_eq!(link.layout().await.unwrap(), Some(2));
}

macro_rules! conformance {
    ($($test:ident)*) => {
        mod memory {
            $(#[tokio::test]
            async fn $test() {
                super::$test(rowcast::cache::memory::MemoryCache::new("shop")).await;
            })*
        }
        mod redis {
            $(#[tokio::test]
            async fn $test() {
                let server = rowcast_testkit::redis::RedisServer::start().await.unwrap();
                super::$test(crate::redis::cache(&server.url())).await;
            })*
        }
    };
}

conformance! {
    an_empty_cache_has_no_layout_and_takes_no_block
    the_first_layout_is_only_set
    rows_and_checkpoint_stand_as_they_were_written
    a_block_on_another_version_writes_nothing
    a_block_that_was_written_is_not_written_again
    a_block_of_another_layout_writes_nothing
    a_key_takes_any_shape_and_the_former_value_goes_whole
    a_block_may_be_large
    a_time_to_live_is_set_afresh_by_every_write_and_cleared_by_one_without
    a_row_for_existing_keys_alone_is_written_where_one_is_and_leaves_its_time
    a_block_mixes_rows_on_all_terms
    seen_logs_grow_with_the_blocks_and_read_back
    many_hashes_at_once_go_into_a_seen_log
    a_seen_log_of_another_length_refuses_the_block
    a_forgotten_seen_log_is_gone_whole
    another_layout_begins_at_the_greatest_position_with_every_resync_open
    only_one_takes_over
    a_scan_returns_every_key_that_begins_so_and_none_of_rowcasts_own
    a_key_that_stands_all_the_while_is_returned_although_others_go
    no_row_takes_the_place_of_one_of_rowcasts_own_keys
}
