//! What stands in a cache, and how two such contents differ.

use std::collections::BTreeMap;

/// A value in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A string.
    Text(String),
    /// A hash.
    Hash(BTreeMap<String, String>),
    /// Something else, by its type's name.
    Other(String),
}

/// Key → value.
pub type Contents = BTreeMap<String, Value>;

/// Everything that `client` sees, but for rowcast's own keys.
pub fn read(client: &mut redis::Connection) -> redis::RedisResult<Contents> {
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(client)?;
    let keys: Vec<String> = keys.into_iter().filter(|key| !key.starts_with("rowcast:{")).collect();
    let mut contents = Contents::new();
    let mut pipe = redis::pipe();
    for key in &keys {
        pipe.cmd("TYPE").arg(key);
    }
    let types: Vec<String> = if keys.is_empty() { Vec::new() } else { pipe.query(client)? };
    let of = |kind: &str| keys.iter().zip(&types).filter(|(_, of)| *of == kind).map(|(key, _)| key.clone()).collect::<Vec<_>>();
    for some in of("string").chunks(1000) {
        let values: Vec<Option<String>> = redis::cmd("MGET").arg(some).query(client)?;
        contents.extend(some.iter().zip(values).filter_map(|(key, value)| Some((key.clone(), Value::Text(value?)))));
    }
    for key in of("hash") {
        let fields: BTreeMap<String, String> = redis::cmd("HGETALL").arg(&key).query(client)?;
        // A hash without fields has gone since.
        contents.extend((!fields.is_empty()).then_some((key, Value::Hash(fields))));
    }
    let other = keys.iter().zip(&types).filter(|(_, kind)| !["string", "hash", "none"].contains(&kind.as_str()));
    contents.extend(other.map(|(key, kind)| (key.clone(), Value::Other(kind.clone()))));
    Ok(contents)
}

/// How they differ, a line a key, the first few only; empty where they agree.
pub fn differences(expected: &Contents, found: &Contents) -> Vec<String> {
    let keys: std::collections::BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    let differing = keys.into_iter().filter(|key| expected.get(*key) != found.get(*key));
    differing.take(20).map(|key| format!("{key}: expected {:?}, found {:?}", expected.get(key), found.get(key))).collect()
}
