//! A table as it is mapped: the settings of the configuration, made definite by the schema that the source found.

use super::descriptor::{Descriptor, Keys, Proof, Shape};
use super::options::{OnChange, Ttl};
use super::refusal::{KeyError, TemplateError};
use super::template::{ColumnType, Template};
use crate::change::{Image, Table};
use crate::finding::Setting;

/// What the configuration says of a table. Everything but the name has a default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSettings {
    /// The table's name.
    pub name: String,
    /// The key template; by default the table's name and its primary key (`users:{id}`).
    pub key: Option<String>,
    /// The form of the value.
    pub shape: Shape,
    /// The columns that are cached; by default all.
    pub columns: Option<Vec<String>>,
    /// An SQL expression: rows for which it is false or NULL are absent from the cache.
    pub filter: Option<String>,
    /// How long a row stands after it was written last; by default for good.
    pub ttl: Option<Ttl>,
    /// What a change does to the key.
    pub on_change: OnChange,
}

impl TableSettings {
    /// A table with every setting at its default.
    pub fn new(name: &str) -> TableSettings {
        TableSettings {
            name: name.to_owned(),
            key: None,
            shape: Shape::Json,
            columns: None,
            filter: None,
            ttl: None,
            on_change: OnChange::Write,
        }
    }
}

/// A column as the source found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnSchema {
    /// Its name, as the database spells it.
    pub name: String,
    /// What a key template may expect of it.
    pub kind: ColumnType,
    /// How it was declared; part of the mapping's fingerprint, since it decides how values are rendered.
    pub declared: String,
}

/// A table as the source found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSchema {
    /// The columns that are cached by default, in order.
    pub columns: Vec<ColumnSchema>,
    /// The primary key's columns, in order.
    pub primary_key: Vec<String>,
    /// Sets of columns of which the source guarantees that no two rows agree in all of them; the primary key among them.
    pub unique: Vec<Vec<String>>,
    /// Whatever else decides what the rows hold; part of the mapping's fingerprint. ALTER TABLE may drop a column and add another one
    /// of the same name and type, let two columns swap their names or give one another expression, and no trigger sees that.
    pub definition: String,
}

/// Settings and schema do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// The template is not one.
    #[error("table {table}: {error}")]
    Template {
        /// The table.
        table: String,
        /// Why.
        error: TemplateError,
    },
    /// The template could give two rows one key.
    #[error(
        "table {table}: the key {key:?} could be the same for two rows, because nothing makes {columns} unique; use the \
         primary key, or create a unique index over NOT NULL columns"
    )]
    NotUnique {
        /// The table.
        table: String,
        /// The template.
        key: String,
        /// Its columns.
        columns: String,
    },
    /// A column that is to be cached is not there.
    #[error("table {table}: there is no column {column}{near}", near = near.as_ref().map(|n| format!("; did you mean {n}?")).unwrap_or_default())]
    NoColumn {
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// The column with the nearest name.
        near: Option<String>,
    },
    /// Nothing could tell the table's keys from somebody else's.
    #[error(
        "table {table}: with on_change = {word:?} the application fills keys in whatever form it likes, so the key alone must tell whose it is; \
         {key:?} ends in {{{column}}}, which could be any text; let the key end in a word of its own, for instance {key}:row"
    )]
    OpenKey {
        /// The table.
        table: String,
        /// `refresh` or `evict`.
        word: &'static str,
        /// The template.
        key: String,
        /// Its last column.
        column: String,
    },
    /// No columns at all.
    #[error("table {table}: `columns` is empty; leave it out to cache every column")]
    NoColumns {
        /// The table.
        table: String,
    },
}

impl MappingError {
    /// Which setting does not fit.
    pub fn setting(&self) -> Setting {
        match self {
            MappingError::Template { .. } | MappingError::NotUnique { .. } | MappingError::OpenKey { .. } => Setting::Key,
            MappingError::NoColumn { .. } | MappingError::NoColumns { .. } => Setting::Columns,
        }
    }
}

/// A table as it is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedTable {
    /// Its name.
    pub table: Table,
    /// The columns that make the JSON object, in order.
    pub columns: Vec<String>,
    /// What a batch says of the mapping.
    pub descriptor: Descriptor,
}

/// What a row becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapped<'i> {
    /// The key holds this row.
    Put {
        /// The Redis key.
        key: String,
        /// The JSON object.
        row: &'i str,
    },
    /// The key is gone.
    Remove {
        /// The Redis key.
        key: String,
    },
    /// It has no key and never had one, so nothing is to be done.
    Nothing,
    /// It cannot be mapped: to be set aside with its reason.
    Dead {
        /// The key that must not keep a stale value, where it could be told.
        key: Option<String>,
        /// Why.
        reason: String,
    },
}

impl MappedTable {
    /// Makes settings definite.
    pub fn resolve(settings: &TableSettings, schema: &TableSchema) -> Result<MappedTable, MappingError> {
        let table = || settings.name.clone();
        let kind = |name: &str| schema.columns.iter().find(|column| column.name == name).map(|column| column.kind);
        let text = settings.key.clone().unwrap_or_else(|| default_key(&settings.name, &schema.primary_key));
        let near = |word: &str| nearest(word, schema.columns.iter().map(|column| column.name.as_str())).map(str::to_owned);
        let template = Template::configured(&text, kind).map_err(|error| {
            let error = match error {
                TemplateError::UnknownColumn { text, column, near: _ } => {
                    TemplateError::UnknownColumn { near: near(&column), text, column }
                }
                error => error,
            };
            MappingError::Template { table: table(), error }
        })?;
        let named: Vec<&str> = template.columns().map(|column| column.column.as_str()).collect();
        if !schema.unique.iter().any(|set| set.iter().all(|column| named.contains(&column.as_str()))) {
            return Err(MappingError::NotUnique { table: table(), key: text, columns: named.join(", ") });
        }
        let columns = match &settings.columns {
            None => schema.columns.iter().map(|column| column.name.clone()).collect(),
            Some(columns) if columns.is_empty() => return Err(MappingError::NoColumns { table: table() }),
            Some(columns) => columns.clone(),
        };
        if let Some(column) = columns.iter().find(|column| kind(column).is_none()) {
            return Err(MappingError::NoColumn { table: table(), column: column.clone(), near: near(column) });
        }
        let in_value = named.iter().all(|name| columns.iter().any(|column| column == name));
        if settings.on_change != OnChange::Write && template.ends_openly() {
            let column = named.last().map(|name| (*name).to_owned()).unwrap_or_default();
            return Err(MappingError::OpenKey { table: table(), word: settings.on_change.word(), key: text, column });
        }
        let proof = match (settings.on_change, in_value) {
            (OnChange::Write, true) => Proof::Value,
            (OnChange::Write, false) => Proof::Key,
            (OnChange::Refresh | OnChange::Evict, _) => Proof::KeyAlone,
        };
        let descriptor = Descriptor {
            fingerprint: fingerprint(&columns, schema, settings.filter.as_deref()),
            shape: settings.shape,
            ttl: settings.ttl,
            on_change: settings.on_change,
            keys: Keys { template, proof },
        };
        Ok(MappedTable { table: Table::from(settings.name.as_str()), columns, descriptor })
    }

    /// What a row becomes.
    pub fn map<'i>(&self, image: &'i Image) -> Mapped<'i> {
        let template = &self.descriptor.keys.template;
        match image {
            Image::Present { json, key } => match template.render(key) {
                // What is evicted needs no value.
                Ok(key) if self.descriptor.on_change == OnChange::Evict => Mapped::Remove { key },
                Ok(key) => Mapped::Put { key, row: json },
                Err(error) => Mapped::Dead { key: None, reason: error.to_string() },
            },
            Image::Absent { key } => match template.render(key) {
                Ok(key) => Mapped::Remove { key },
                // A row without a safe key never had one in the cache.
                Err(KeyError::Null(_) | KeyError::Empty(_) | KeyError::Type { .. }) => Mapped::Nothing,
            },
            Image::Unreadable { key, reason } => {
                Mapped::Dead { key: key.as_ref().and_then(|key| template.render(key).ok()), reason: reason.clone() }
            }
        }
    }
}

fn default_key(table: &str, primary_key: &[String]) -> String {
    let mut key = table.to_owned();
    for column in primary_key {
        key.push_str(&format!(":{{{column}}}"));
    }
    key
}

/// What the rest of the descriptor does not show, as eight hexadecimal digits.
fn fingerprint(columns: &[String], schema: &TableSchema, filter: Option<&str>) -> String {
    let mut text = String::new();
    for name in columns {
        let declared = schema.columns.iter().find(|column| column.name == *name).map_or("", |column| &column.declared);
        text.push_str(&format!("{name:?} {declared:?},"));
    }
    if !schema.definition.is_empty() {
        text.push_str(&format!(" of {:?}", schema.definition));
    }
    if let Some(filter) = filter {
        // Which columns are called what, and their types, decide what it says; which of them it uses only the source could tell.
        let declared: Vec<(&str, &str)> = schema.columns.iter().map(|column| (column.name.as_str(), column.declared.as_str())).collect();
        text.push_str(&format!(" where {filter:?} {declared:?}"));
    }
    format!("{:08x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()) >> 32)
}

/// The candidate whose spelling is nearest to `word`, if any is near.
pub fn nearest<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    candidates
        .map(|candidate| (distance(&word.to_lowercase(), &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edit distance with neighbouring characters swapped counted once (optimal string alignment).
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut rows = vec![(0..=right.len()).collect::<Vec<usize>>()];
    for i in 1..=left.len() {
        let mut row = vec![i];
        for j in 1..=right.len() {
            let changed = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut best = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::KeyValue;

    fn column(name: &str, kind: ColumnType) -> ColumnSchema {
        ColumnSchema { name: name.to_owned(), kind, declared: "X".to_owned() }
    }

    fn users() -> TableSchema {
        TableSchema {
            columns: vec![column("id", ColumnType::Integer), column("name", ColumnType::Text), column("email", ColumnType::Text)],
            primary_key: vec!["id".to_owned()],
            unique: vec![vec!["id".to_owned()], vec!["email".to_owned()]],
            definition: String::new(),
        }
    }

    fn settings(key: Option<&str>, columns: Option<&[&str]>) -> TableSettings {
        TableSettings {
            key: key.map(str::to_owned),
            columns: columns.map(|columns| columns.iter().map(|c| (*c).to_owned()).collect()),
            ..TableSettings::new("users")
        }
    }

    #[test]
    fn the_defaults_need_nothing_but_a_name() {
        let mapped = MappedTable::resolve(&TableSettings::new("users"), &users()).unwrap();
        assert_eq!(mapped.columns, ["id", "name", "email"]);
        assert_eq!(mapped.descriptor.keys.to_string(), "users:{id:integer}");
        assert_eq!(mapped.descriptor.keys.proof, Proof::Value);
    }

    #[test]
    fn a_key_must_be_unique() {
        assert!(MappedTable::resolve(&settings(Some("u:{email}"), None), &users()).is_ok());
        assert!(MappedTable::resolve(&settings(Some("u:{name}:{id}"), None), &users()).is_ok());
        let error = MappedTable::resolve(&settings(Some("u:{name}"), None), &users()).unwrap_err();
        assert!(matches!(error, MappingError::NotUnique { .. }));
    }

    #[test]
    fn a_value_without_the_keys_columns_says_so() {
        let mapped = MappedTable::resolve(&settings(Some("u:{email}"), Some(&["id", "name"])), &users()).unwrap();
        assert_eq!(mapped.descriptor.keys.proof, Proof::Key);
    }

    #[test]
    fn a_wrong_column_is_named_with_the_near_word() {
        let error = MappedTable::resolve(&settings(None, Some(&["id", "emial"])), &users()).unwrap_err();
        assert_eq!(error.to_string(), "table users: there is no column emial; did you mean email?");
        let error = MappedTable::resolve(&settings(Some("u:{emial}"), None), &users()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "table users: the key \"u:{emial}\" names the column emial, which does not exist; did you mean email?"
        );
        assert!(MappedTable::resolve(&settings(None, Some(&[])), &users()).is_err());
    }

    #[test]
    fn every_part_of_the_mapping_is_in_the_descriptor() {
        let base = MappedTable::resolve(&settings(None, None), &users()).unwrap().descriptor;
        let fewer = MappedTable::resolve(&settings(None, Some(&["id", "name"])), &users()).unwrap().descriptor;
        let swapped = MappedTable::resolve(&settings(None, Some(&["id", "email", "name"])), &users()).unwrap().descriptor;
        let mut retyped = users();
        retyped.columns[1].declared = "Y".to_owned();
        let retyped = MappedTable::resolve(&settings(None, None), &retyped).unwrap().descriptor;
        let with = |change: fn(&mut TableSettings)| {
            let mut settings = TableSettings::new("users");
            change(&mut settings);
            MappedTable::resolve(&settings, &users()).unwrap().descriptor
        };
        let all = [
            base,
            fewer,
            swapped,
            retyped,
            with(|settings| settings.shape = Shape::Hash),
            with(|settings| settings.filter = Some("id > 1".to_owned())),
            with(|settings| settings.filter = Some("id > 2".to_owned())),
            with(|settings| settings.ttl = "1h".parse().ok()),
            with(|settings| settings.ttl = "2h".parse().ok()),
            with(|settings| settings.on_change = OnChange::Refresh),
            with(|settings| settings.on_change = OnChange::Evict),
        ];
        for (index, left) in all.iter().enumerate() {
            for right in &all[index + 1..] {
                assert_ne!(left, right);
                assert_ne!(left.to_string(), right.to_string());
            }
            assert_eq!(&left.to_string().parse::<Descriptor>().unwrap(), left);
        }
    }

    #[test]
    fn where_the_application_fills_keys_the_key_must_tell_whose_it_is() {
        let settings = |key: &str, on_change| TableSettings { on_change, ..settings(Some(key), None) };
        for on_change in [OnChange::Refresh, OnChange::Evict] {
            let mapped = MappedTable::resolve(&settings("u:{email}:row", on_change), &users()).unwrap();
            assert_eq!(mapped.descriptor.keys.proof, Proof::KeyAlone);
            assert!(MappedTable::resolve(&settings("u:{id}", on_change), &users()).is_ok());
        }
        assert_eq!(
            MappedTable::resolve(&settings("u:{email}", OnChange::Evict), &users()).unwrap_err().to_string(),
            "table users: with on_change = \"evict\" the application fills keys in whatever form it likes, so the key alone must tell whose it \
             is; \"u:{email}\" ends in {email}, which could be any text; let the key end in a word of its own, for instance u:{email}:row"
        );
    }

    #[test]
    fn what_is_evicted_travels_without_its_row() {
        let settings = TableSettings { on_change: OnChange::Evict, ..TableSettings::new("users") };
        let mapped = MappedTable::resolve(&settings, &users()).unwrap();
        let present = Image::Present { json: "{}".to_owned(), key: vec![KeyValue::Integer(7)] };
        assert_eq!(mapped.map(&present), Mapped::Remove { key: "users:7".to_owned() });
    }

    #[test]
    fn a_row_becomes_its_key_and_value() {
        let mapped = MappedTable::resolve(&settings(Some("user:{id}"), None), &users()).unwrap();
        let present = Image::Present { json: "{}".to_owned(), key: vec![KeyValue::Integer(7)] };
        assert_eq!(mapped.map(&present), Mapped::Put { key: "user:7".to_owned(), row: "{}" });
        let absent = Image::Absent { key: vec![KeyValue::Integer(7)] };
        assert_eq!(mapped.map(&absent), Mapped::Remove { key: "user:7".to_owned() });
        let unreadable = Image::Unreadable { key: Some(vec![KeyValue::Integer(7)]), reason: "why".to_owned() };
        assert_eq!(mapped.map(&unreadable), Mapped::Dead { key: Some("user:7".to_owned()), reason: "why".to_owned() });
    }
}
