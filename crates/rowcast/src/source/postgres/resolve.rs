//! Whether a table can be followed as it is configured, and if so, as what. Pure.

use super::schema::{Generated, Identity, Misfit, Table, split_name};
use super::values::Plan;
use super::wire::quoted;
use super::{Capture, changelog};
use crate::finding::Setting;
use crate::mapping::{MappedTable, MappingError, TableSettings};

impl Table {
    /// Why it cannot be followed, whatever is configured for it; a sentence with the remedy.
    pub fn trouble(&self) -> Option<String> {
        let name = &self.name;
        let kind = match (self.kind, self.persistence) {
            ('r' | 'p', 'p') => None,
            ('r' | 'p', 'u') => {
                Some(format!("is unlogged, so that nothing of it is in the log; run `ALTER TABLE {} SET LOGGED`", self.sql_name()))
            }
            ('r' | 'p', _) => Some("is temporary and belongs to one session; map an ordinary table".to_owned()),
            ('v', _) => Some("is a view; map the tables under it".to_owned()),
            ('m', _) => Some("is a materialized view, whose refreshes are not in the log; map the tables under it".to_owned()),
            ('f', _) => Some("is a foreign table; follow it where it is stored".to_owned()),
            (kind, _) => Some(format!("is of a kind ({kind}) that cannot be followed")),
        };
        let foreign = || {
            let leaf = self.leaves.iter().find(|leaf| leaf.kind != 'r')?;
            Some(format!("has the partition {}, which is a foreign table; detach it", leaf.name))
        };
        let keyless = || {
            self.primary_key().is_empty().then(|| format!("has no primary key; run `ALTER TABLE {} ADD PRIMARY KEY (…)`", self.sql_name()))
        };
        let partition = || self.is_partition.then(|| "is a partition; map the partitioned table, or detach it".to_owned());
        kind.or_else(partition).or_else(foreign).or_else(keyless).map(|text| format!("table {name} {text}"))
    }

    /// Makes settings definite.
    pub(super) fn resolve(&self, settings: &TableSettings, capture: Capture) -> Result<MappedTable, Misfit> {
        let misfit = |setting, text| Err(Misfit { setting, text });
        if let Some(trouble) = self.trouble() {
            return misfit(Setting::Name, trouble);
        }
        if settings.filter.is_some() && capture == Capture::Hooks {
            let text = format!(
                "table {}: `where` is not supported with `capture = \"hooks\"` on PostgreSQL; leave it out, or let the log tell (leave out \
                 `capture`)",
                self.name
            );
            return misfit(Setting::Where, text);
        }
        let mapped = MappedTable::resolve(settings, &self.mapped())
            .map_err(|error: MappingError| Misfit { setting: error.setting(), text: error.to_string() })?;
        let template = mapped.descriptor.keys.template.columns().map(|column| &column.column);
        if let Some(name) = template.chain(self.primary_key()).find(|name| self.generated(name).is_some()) {
            let text = format!(
                "table {}: the key's column {name} is generated, and old values of such a column are not in PostgreSQL's log; use a key of other \
                 columns",
                self.name
            );
            return misfit(Setting::Key, text);
        }
        if let Some((name, leaf)) = mapped.columns.iter().find_map(|name| Some((name, self.generated(name)?.differs_in.as_ref()?))) {
            let text = format!(
                "table {}: the partition {leaf} computes the generated column {name} in another way; leave the column out of `columns`",
                self.name
            );
            return misfit(Setting::Columns, text);
        }
        for name in &mapped.columns {
            if let Some(Err(refusal)) = self.column(name).map(|column| &column.plan) {
                return misfit(
                    Setting::Columns,
                    format!("table {}, column {name}: {refusal}; leave the column out of `columns`", self.name),
                );
            }
        }
        let template = mapped.descriptor.keys.template.columns().map(|column| &column.column);
        for name in template.chain(self.primary_key()) {
            let key_type = self.column(name).and_then(|column| column.plan.as_ref().ok()).and_then(Plan::key_type);
            if key_type.is_none() {
                let declared = self.column(name).map_or("", |column| &column.declared);
                let text = format!(
                    "table {}: the key's column {name} is of type {declared}, of which two values may look the same in JSON; use a key of \
                     other columns",
                    self.name
                );
                return misfit(Setting::Key, text);
            }
        }
        // Its rows are read in the order of the key, by comparisons that PostgreSQL's own types have.
        if let Some((name, foreign)) = self.primary_key().iter().find_map(|name| Some((name, self.foreign(name)?))) {
            let text = format!(
                "table {}: the primary key's column {name} is of the type {foreign}, which is not PostgreSQL's own and has an order of its own; \
                 use a primary key of types that are, text for example",
                self.name
            );
            return misfit(Setting::Key, text);
        }
        let untold = match capture {
            Capture::Log => self.identity_misfit(&mapped),
            Capture::Hooks => changelog::misfit(self, &mapped),
        };
        match untold {
            Some(text) => misfit(Setting::Key, text),
            None => Ok(mapped),
        }
    }

    /// How the server computes the column of this name, if it does.
    pub(super) fn generated(&self, name: &str) -> Option<&Generated> {
        self.column(name)?.generated.as_ref()
    }

    /// The type of the column of this name, or what it is made of, if PostgreSQL does not bring it along.
    pub(super) fn foreign(&self, name: &str) -> Option<&str> {
        self.column(name)?.plan.as_ref().ok()?.foreign()
    }

    /// The columns of primary key and template must be told of a row that is gone or has changed its key.
    fn identity_misfit(&self, mapped: &MappedTable) -> Option<String> {
        let template = mapped.descriptor.keys.template.columns().map(|column| column.column.as_str());
        let needed: Vec<&str> = self.primary_key().iter().map(String::as_str).chain(template).collect();
        for leaf in &self.leaves {
            if leaf.identity == Identity::Nothing {
                return Some(format!(
                    "table {}: {} has no replica identity, so that UPDATE and DELETE fail as soon as it is published; run `ALTER TABLE {} \
                     REPLICA IDENTITY DEFAULT`",
                    self.name,
                    leaf.name,
                    sql(&leaf.name)
                ));
            }
            if let Some(column) = needed.iter().find(|column| !leaf.identity.has(column)) {
                return Some(format!(
                    "table {}: the key needs the old value of {column}, which is not in the replica identity of {}; run `ALTER TABLE {} \
                     REPLICA IDENTITY FULL`",
                    self.name,
                    leaf.name,
                    sql(&leaf.name)
                ));
            }
        }
        None
    }
}

/// `schema.name` as SQL writes it.
fn sql(name: &str) -> String {
    let (schema, relation) = split_name(name);
    format!("{}.{}", quoted(schema), quoted(relation))
}
