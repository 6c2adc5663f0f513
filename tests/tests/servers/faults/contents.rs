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
    for some in keys.chunks(1000) {
        let mut pipe = redis::pipe();
        for key in some {
            pipe.cmd("TYPE").arg(key);
        }
        let types: Vec<String> = pipe.query(client)?;
        for (key, kind) in some.iter().zip(types) {
            let value = match kind.as_str() {
                "string" => redis::cmd("GET").arg(key).query::<Option<String>>(client)?.map(Value::Text),
                // Without fields it went since, as does what is of no type.
                "hash" => {
                    Some(redis::cmd("HGETALL").arg(key).query::<BTreeMap<_, _>>(client)?).filter(|it| !it.is_empty()).map(Value::Hash)
                }
                "none" => None,
                other => Some(Value::Other(other.to_owned())),
            };
            contents.extend(value.map(|value| (key.clone(), value)));
        }
    }
    Ok(contents)
}

/// How they differ, a line a key, the first few only; empty where they agree.
pub fn differences(expected: &Contents, found: &Contents) -> Vec<String> {
    let keys: std::collections::BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    let differing = keys.into_iter().filter(|key| expected.get(*key) != found.get(*key));
    differing.take(20).map(|key| format!("{key}: expected {:?}, found {:?}", expected.get(key), found.get(key))).collect()
}
