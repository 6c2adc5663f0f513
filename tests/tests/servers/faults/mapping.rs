//! Mappings that change while everything goes on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::contents::{self, Value};
use super::database::STRANGERS;
use super::world::{PARTITIONS, World};

/// How long a changed mapping may take to be everywhere.
const DEADLINE: Duration = Duration::from_secs(120);

#[test]
fn a_mapping_that_changes_in_shape_and_key_resyncs_its_table_alone_and_leaves_no_mix() {
    let world = World::new("mapping", &crate::rabbitmq::shared().url(), 0);
    let publisher = world.publisher("publisher-1");
    let mut consumer = world.consumer("consumer");
    world.wait_until_settled();
    let openings = world.openings().len();
    let mut reader = Reader::default();
    // The watcher knows the keys of one mapping only; here the reader sees to it that no row goes back.
    world.excuse();

    let first = world.configuration();
    let second =
        first.replace(r#"value = "hash""#, r#"value = "json""#).replace("name = \"users\"\n", "name = \"users\"\nkey = \"user:{id}\"\n");
    assert_ne!(first, second);
    publisher.leave();
    let publisher = world.half_configured("publish", "publisher-2", &second);
    reader.read_until_complete(&world, PARTITIONS);
    for (key, value) in reader.ours(&world) {
        assert!(!key.starts_with("users:"), "{key} is of the old template");
        assert!(!key.starts_with("setting:") || matches!(value, Value::Text(_)), "{key} has the old form: {value:?}");
    }

    world.writer.wait_for_more(30);
    publisher.leave();
    let mut publisher = world.half_configured("publish", "publisher-3", &first);
    reader.read_until_complete(&world, 2 * PARTITIONS);
    for (key, value) in reader.ours(&world) {
        assert!(!key.starts_with("user:"), "{key} is of the old template");
        assert!(!key.starts_with("setting:") || matches!(value, Value::Hash(_)), "{key} has the old form: {value:?}");
    }

    assert_eq!(world.openings().len(), openings, "no other table is read again: {:?}", world.openings());
    assert_eq!(world.said("its mapping is new or changed"), world.said("resync of settings, users: its mapping"));
    world.watch_anew();
    world.writer.wait_for_more(30);
    world.judge(&mut [&mut publisher, &mut consumer]);
}

/// Reads the rows of `settings` in either form.
#[derive(Debug, Default)]
struct Reader {
    newest: BTreeMap<String, u64>,
    /// How many values were looked at.
    seen: usize,
}

impl Reader {
    /// Reads until the changed mapping has been taken up that many times in all and its resyncs are complete.
    fn read_until_complete(&mut self, world: &World, times: usize) {
        let (begun, seen) = (Instant::now(), self.seen);
        loop {
            drop(self.look(world));
            if world.said("resync of settings, users: its mapping") >= times {
                break;
            }
            assert!(begun.elapsed() < DEADLINE, "the changed mapping was not taken up");
        }
        world.wait_until_settled();
        assert!(self.seen > seen, "there was something to read");
    }

    /// What is to be seen now that no form changes any more.
    fn ours(&mut self, world: &World) -> Vec<(String, Value)> {
        self.look(world).expect("every key can be read")
    }

    /// Everything but the strangers' keys; each row of `settings` in it is whole and not older than before. A key whose form changes
    /// while it is read is an error of this reader, not of the cache.
    fn look(&mut self, world: &World) -> redis::RedisResult<Vec<(String, Value)>> {
        let contents = contents::read(&mut world.client())?;
        let ours: Vec<(String, Value)> =
            contents.into_iter().filter(|(key, _)| !STRANGERS.iter().any(|(stranger, _)| stranger == key)).collect();
        for (key, value) in ours.iter().filter(|(key, _)| key.starts_with("setting:")) {
            let (id, version) = id_and_version(value).unwrap_or_else(|| panic!("{key} is no whole row: {value:?}"));
            assert_eq!(key, &format!("setting:{id}"));
            let newest = self.newest.entry(key.clone()).or_default();
            assert!(version >= *newest, "{key} went back from version {newest} to {version}");
            *newest = version;
            self.seen += 1;
        }
        Ok(ours)
    }
}

fn id_and_version(value: &Value) -> Option<(u64, u64)> {
    match value {
        Value::Text(json) => {
            let row: serde_json::Value = serde_json::from_str(json).ok()?;
            row.get("label")?;
            Some((row["id"].as_u64()?, row["v"].as_u64()?))
        }
        // The field of a NULL is absent.
        Value::Hash(fields) => Some((fields.get("id")?.parse().ok()?, fields.get("v")?.parse().ok()?)),
        Value::Other(_) => None,
    }
}
