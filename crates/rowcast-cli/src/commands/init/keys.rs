//! Which key each table is given, and why.

use rowcast::mapping::{ColumnType, TableSchema, Template};

/// A table that can be cached.
pub struct Candidate {
    /// Its name, as the configuration has it.
    pub name: String,
    /// What a mapping may use of it.
    pub schema: TableSchema,
}

/// The key of one table.
pub struct Key {
    /// The template.
    pub text: String,
    /// Whether it is what a table has whose key is not set.
    pub default: bool,
    /// Why it is this one, and what else would do: sentences.
    pub reasons: Vec<String>,
}

/// A key for each table, no two of which could meet. The plain default goes first to whoever can have it.
pub fn choose(tables: &[Candidate]) -> Vec<Key> {
    let mut taken: Vec<Template> = Vec::new();
    let mut keys: Vec<Option<Key>> = Vec::new();
    for table in tables {
        let text = template(&table.name, table);
        keys.push(take(&mut taken, &text).then(|| Key { reasons: reasons(table, &text, true), text, default: true }));
    }
    let other = |taken: &mut Vec<Template>, table: &Candidate| {
        let base = plain(&table.name);
        let numbered = (2..).map(|number| format!("{base}-{number}"));
        let text = [base.clone()].into_iter().chain(numbered).map(|name| template(&name, table)).find(|text| take(taken, text));
        let text = text.expect("one of endless many is free");
        Key { reasons: reasons(table, &text, false), text, default: false }
    };
    keys.into_iter().zip(tables).map(|(key, table)| key.unwrap_or_else(|| other(&mut taken, table))).collect()
}

fn template(name: &str, table: &Candidate) -> String {
    let columns: Vec<String> = table.schema.primary_key.iter().map(|column| format!(":{{{column}}}")).collect();
    format!("{name}{}", columns.concat())
}

/// Whether the template is possible and meets no other; then it is taken.
fn take(taken: &mut Vec<Template>, text: &str) -> bool {
    let Ok(template) = Template::configured(text, |_| Some(ColumnType::Integer)) else { return false };
    if taken.iter().any(|other| other.overlaps(&template)) {
        return false;
    }
    taken.push(template);
    true
}

fn reasons(table: &Candidate, text: &str, default: bool) -> Vec<String> {
    let schema = &table.schema;
    let mut reasons = Vec::new();
    let key = schema.primary_key.join(", ");
    reasons.push(if default {
        format!("The key is the table's name and its primary key, {key}, by which its rows are told apart.")
    } else if Template::configured(&template(&table.name, table), |_| Some(ColumnType::Integer)).is_ok() {
        format!("The key is made of the primary key, {key}. It begins otherwise than the table, so that no other table's key can meet it.")
    } else {
        format!("The key is made of the primary key, {key}. A key cannot begin with the table's name.")
    });
    reasons.extend(encoding(schema));
    for set in schema.unique.iter().filter(|set| **set != schema.primary_key) {
        let name = text.split(':').next().unwrap_or_default();
        let columns: Vec<String> = set.iter().map(|column| format!(":{{{column}}}")).collect();
        reasons.push(format!("{} is unique too, so key = \"{name}{}\" would do.", set.join(", "), columns.concat()));
    }
    reasons
}

/// How the primary key's columns stand in a key.
fn encoding(schema: &TableSchema) -> Option<String> {
    let of = |wanted: &[ColumnType]| {
        let columns: Vec<&str> = schema
            .columns
            .iter()
            .filter(|column| schema.primary_key.contains(&column.name) && wanted.contains(&column.kind))
            .map(|column| column.name.as_str())
            .collect();
        (!columns.is_empty()).then(|| columns.join(", "))
    };
    let text = of(&[ColumnType::Text])
        .map(|columns| format!("In it {columns} is percent-encoded where a key could be mistaken (a space is %20)."));
    let bytes =
        of(&[ColumnType::Blob]).map(|columns| format!("In it {columns} is written in hexadecimal digits; only bytes can stand there."));
    match (text, bytes) {
        (Some(text), Some(bytes)) => Some(format!("{text} {bytes}")),
        (text, bytes) => text.or(bytes),
    }
}

/// Letters, digits, - and _ of a name.
pub fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).take(100).collect()
}
