//! The line of a file that an error shows, less what could be a secret.
//!
//! A URL may hold a password, and a misspelt key may be one for a password. So a line is shown whole only where that cannot
//! be.

/// Keys whose values are shown.
const PLAIN: [&str; 11] = ["name", "capture", "partitions", "queue", "key", "value", "columns", "where", "ttl", "on_change", "url"];

const HIDDEN: &str = "…";

/// The line as it may be shown.
pub(super) fn of(line: &str) -> String {
    let line = line.trim_end();
    let suspicious = line.contains('@') || line.contains("://");
    let Some((left, right)) = line.split_once('=') else {
        return if suspicious { HIDDEN.to_owned() } else { line.to_owned() };
    };
    let key = left.trim().trim_matches(['"', '\'']);
    let value = right.trim_start();
    let shown = &line[..line.len() - value.len()];
    let local = key == "url" && ["sqlite:", "memory:"].iter().any(|scheme| value.trim_start_matches(['"', '\'']).starts_with(scheme));
    if PLAIN.contains(&key) && !suspicious && (key != "url" || local) {
        return line.to_owned();
    }
    match scheme(value).filter(|_| key == "url") {
        Some(scheme) => format!("{shown}{scheme}{HIDDEN}\""),
        None => format!("{shown}{HIDDEN}"),
    }
}

/// The beginning of a quoted URL, up to where a password could stand (`"amqp://`).
fn scheme(value: &str) -> Option<&str> {
    let end = value.find("://")?;
    let name = value[..end].strip_prefix('"')?;
    (!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase())).then(|| &value[..end + 3])
}
