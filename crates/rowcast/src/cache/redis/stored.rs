//! A checkpoint as a Redis hash, readable with `HGETALL`.

use std::collections::HashMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::{Stored, Version};
use crate::change::Lineage;
use crate::checkpoint::Checkpoint;

/// Fields and values in turn, all of them always, so that nothing of an older checkpoint is left.
pub(super) fn encode(version: &Version, checkpoint: &Checkpoint) -> [Vec<u8>; 14] {
    [
        b"version".to_vec(),
        version.0.clone().into_bytes(),
        b"lineage".to_vec(),
        checkpoint.lineage.0.as_bytes().to_vec(),
        b"position".to_vec(),
        checkpoint.position.to_string().into_bytes(),
        b"mappings".to_vec(),
        json(&checkpoint.mappings),
        b"old_keys".to_vec(),
        json(&checkpoint.old_keys),
        b"resyncs".to_vec(),
        json(&checkpoint.resyncs),
        b"completed".to_vec(),
        json(&checkpoint.completed),
    ]
}

/// Reads a hash back; the error says which field is wrong. Fields that this version does not know are ignored.
pub(super) fn decode(fields: &HashMap<String, String>) -> Result<Stored, String> {
    let field = |name: &str| fields.get(name).ok_or_else(|| format!("the field {name} is missing"));
    let version = field("version")?;
    if version.is_empty() {
        return Err("the field version is empty".to_owned());
    }
    let checkpoint = Checkpoint {
        lineage: Lineage(field("lineage")?.as_str().into()),
        position: field("position")?.parse().map_err(|error| format!("the field position: {error}"))?,
        mappings: parse("mappings", field("mappings")?)?,
        old_keys: parse("old_keys", field("old_keys")?)?,
        resyncs: parse("resyncs", field("resyncs")?)?,
        // A checkpoint of the first version does not have it.
        completed: fields.get("completed").map(|text| parse("completed", text)).transpose()?.unwrap_or_default(),
    };
    Ok(Stored { checkpoint, version: Version(version.clone()) })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("all keys are text, and a bound is JSON wherever it came from")
}

fn parse<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("the field {name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Bound, Position, Run, Table};

    fn checkpoint() -> Checkpoint {
        let users = Table::from("users");
        let mut checkpoint = Checkpoint {
            lineage: Lineage("sqlite:a:b".into()),
            position: Position(5, 2),
            mappings: [(users.clone(), "9f3c61d0 json user:{id:integer}".parse().unwrap())].into(),
            old_keys: [(users.clone(), ["u:{id:integer}".parse().unwrap()].into())].into(),
            resyncs: Default::default(),
            completed: [(users.clone(), Run("01JG".into()))].into(),
        };
        checkpoint.open(&users, Run("01JH".into()));
        let resync = checkpoint.resyncs.get_mut(&users).unwrap();
        resync.upto = Some(Bound(r#"[1,"a"]"#.into()));
        resync.seen = 16;
        checkpoint
    }

    fn fields() -> HashMap<String, String> {
        let text = |bytes: &Vec<u8>| String::from_utf8(bytes.clone()).unwrap();
        encode(&Version("v1".into()), &checkpoint()).chunks(2).map(|pair| (text(&pair[0]), text(&pair[1]))).collect()
    }

    #[test]
    fn a_checkpoint_reads_back_as_it_was_written() {
        assert_eq!(decode(&fields()), Ok(Stored { checkpoint: checkpoint(), version: Version("v1".into()) }));
    }

    #[test]
    fn a_checkpoint_of_the_first_version_is_read() {
        let mut fields = fields();
        fields.remove("completed");
        assert_eq!(decode(&fields).unwrap().checkpoint.completed, Default::default());
    }

    #[test]
    fn a_missing_or_spoilt_field_is_named() {
        for name in ["version", "lineage", "position", "mappings", "old_keys", "resyncs"] {
            let mut missing = fields();
            missing.remove(name);
            assert!(decode(&missing).unwrap_err().contains(name));
            if name != "lineage" {
                let mut spoilt = fields();
                spoilt.insert(name.to_owned(), String::new());
                assert!(decode(&spoilt).unwrap_err().contains(name), "{name}");
            }
        }
    }
}
