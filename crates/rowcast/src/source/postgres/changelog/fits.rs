//! Which tables hooks can record. Pure.

use super::super::schema::Table;
use super::super::values::Plan;
use crate::mapping::MappedTable;

/// Why they cannot, a sentence: hooks name a row by its primary key, as the application's session writes it.
pub(in super::super) fn misfit(table: &Table, mapped: &MappedTable) -> Option<String> {
    let name = &table.name;
    let key = table.primary_key();
    if let Some(column) = mapped.descriptor.keys.template.columns().find(|column| !key.contains(&column.column)) {
        return Some(format!(
            "table {name}: the key uses {}, whose old values hooks do not see; build the key from the primary key, or let the server's log \
             tell (leave out `capture`)",
            column.column
        ));
    }
    let names = |name: &str| mapped.descriptor.keys.template.columns().any(|column| column.column == name);
    if let Some(left_out) = key.iter().find(|name| !names(name)) {
        return Some(format!(
            "table {name}: the key leaves out {left_out} of the primary key, so that one row may take the key over from another, and hooks do \
             not tell which of them came last; build the key from the whole primary key, or let the server's log tell (leave out `capture`)"
        ));
    }
    let column = |name: &String| table.columns.iter().find(|column| column.name == *name);
    let depends = |name: &&String| column(name).and_then(|column| column.plan.as_ref().ok()).is_some_and(Plan::depends_on_session);
    key.iter().find(depends).map(|column_name| {
        let declared = column(column_name).map_or("", |column| &column.declared);
        format!(
            "table {name}: the primary key's column {column_name} is of type {declared}, whose text depends on the settings of the \
             application's session, so that hooks cannot name a row by it; let the server's log tell (leave out `capture`)"
        )
    })
}
