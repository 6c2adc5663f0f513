//! Tables by the names that somebody has typed.

use rowcast::config::Config;
use rowcast::mapping::nearest;

use crate::failure::Failure;

/// The table's place among the configured ones.
pub fn place(config: &Config, name: &str) -> Result<usize, Failure> {
    let tables = config.source.tables();
    if let Some(place) = tables.iter().position(|table| table.name == name) {
        return Ok(place);
    }
    let names = || tables.iter().map(|table| table.name.as_str());
    let hint = match nearest(name, names()) {
        Some(near) => format!("; did you mean {near}?"),
        None => format!("; these are: {}", names().collect::<Vec<_>>().join(", ")),
    };
    Err(Failure::Wrong(format!("the table {name} is not in the configuration{hint}")))
}

/// The named tables, or all of them where none is named.
pub fn named(config: &Config, names: &[String]) -> Result<Vec<String>, Failure> {
    if names.is_empty() {
        return Ok(config.source.tables().iter().map(|table| table.name.clone()).collect());
    }
    let mut found: Vec<String> = Vec::new();
    for name in names {
        place(config, name)?;
        if !found.contains(name) {
            found.push(name.clone());
        }
    }
    Ok(found)
}
