//! What is made in the server for a pipeline: a publication and a slot. No table is written, and no trigger made.

use std::sync::Arc;
use std::time::Duration;

use super::super::Error;
use super::fits::server_fits;
use super::judge::Judge;
use super::schema::{self, Table};
use super::types::Catalogue;
use super::wire::{Connection, Fault, Role, dial, literal, quoted};
use super::{Capture, PostgresSettings, changelog, slot};
use crate::mapping::MappedTable;

/// How long a statement may take that waits for nobody.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The statements, in order.
    pub statements: Vec<String>,
}

/// A publication as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Publication {
    /// Whether every table is in it.
    pub all_tables: bool,
    /// Whether it publishes all that is done to rows.
    pub everything: bool,
    /// Whether partitions are published as their root.
    pub via_root: bool,
}

impl PostgresSettings {
    /// A connection for statements.
    pub(super) async fn connect(&self, doing: &str) -> Result<Connection, Error> {
        let name = format!("rowcast {}", self.pipeline);
        dial(&self.server, Role::Queries, &name).await.map_err(|fault| fault.explain(&self.server.place(), doing))
    }

    pub(super) fn explain(&self, doing: &'static str) -> impl Fn(Fault) -> Error {
        let place = self.server.place();
        move |fault| fault.explain(&place, doing)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.tables.iter().map(|table| table.name.clone()).collect()
    }
}

/// The publication, if there is one.
pub(super) async fn publication(connection: &mut Connection, name: &str) -> Result<Option<Publication>, Fault> {
    let sql = format!(
        "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot FROM pg_publication WHERE pubname = {}",
        literal(name)
    );
    let rows = connection.query(&sql, PATIENCE).await?;
    Ok(rows.first().map(|row| Publication { all_tables: row.is_true(0), everything: row.is_true(1), via_root: row.is_true(2) }))
}

/// A table, made definite.
#[derive(Debug)]
pub(super) struct Prepared {
    pub table: Table,
    pub mapped: MappedTable,
    /// Who says what the log does not tell of its rows.
    pub judge: Option<Arc<Judge>>,
}

/// Why tables cannot be followed as they are configured.
#[derive(Debug)]
pub(super) enum Unfit {
    /// This one cannot be, whatever becomes of the others; a sentence.
    Table(usize, String),
    /// They cannot be together, or nobody can tell.
    All(Error),
}

impl From<Unfit> for Error {
    fn from(unfit: Unfit) -> Error {
        match unfit {
            Unfit::Table(_, text) => Error::Fatal(text),
            Unfit::All(error) => error,
        }
    }
}

/// Every table as it is mapped; the first that cannot be is the error.
pub(super) async fn prepare(connection: &mut Connection, settings: &PostgresSettings) -> Result<(Vec<Prepared>, Catalogue), Unfit> {
    let explain = settings.explain("reading the catalogue");
    let all = |fault: Fault| Unfit::All(explain(fault));
    let (found, catalogue) = schema::read(connection, &settings.published(), &settings.names()).await.map_err(all)?;
    let mut tables: Vec<Prepared> = Vec::new();
    for (index, (found, configured)) in found.into_iter().zip(&settings.tables).enumerate() {
        let table = found.ok_or_else(|| Unfit::Table(index, missing(&configured.name)))?;
        let mapped = table.resolve(configured, settings.capture).map_err(|misfit| Unfit::Table(index, misfit.text))?;
        let judge = match settings.capture {
            Capture::Log => Judge::appoint(connection, &table, &mapped, configured.filter.as_deref()).await.map_err(all)?,
            // Whatever is to be known of a row is read from the table.
            Capture::Hooks => Ok(None),
        };
        let judge = judge.map_err(|misfit| Unfit::Table(index, misfit.text))?.map(Arc::new);
        tables.push(Prepared { table, mapped, judge });
    }
    for (place, Prepared { table, mapped, .. }) in tables.iter().enumerate() {
        if let Some(other) = tables[..place].iter().find(|other| other.table.oid == table.oid) {
            return Err(Unfit::All(Error::Fatal(twice(&other.table, table))));
        }
        if let Some(text) = share_keys(mapped, tables[..place].iter().map(|other| &other.mapped)) {
            return Err(Unfit::All(Error::Fatal(text)));
        }
    }
    Ok((tables, catalogue))
}

/// That a table is not there.
pub(super) fn missing(name: &str) -> String {
    let (schema, relation) = schema::split_name(name);
    let looked = if name.contains('.') { String::new() } else { format!(" (a name without a schema means the schema {schema})") };
    format!("there is no table {relation} in the schema {schema}{looked}; correct its name in the configuration")
}

/// That one table stands under two names.
pub(super) fn twice(one: &Table, other: &Table) -> String {
    format!("{} and {} are one table; name each table once", one.name, other.name)
}

/// Why the keys of a table could be those of another one.
pub(super) fn share_keys<'o>(table: &MappedTable, others: impl Iterator<Item = &'o MappedTable>) -> Option<String> {
    let template = &table.descriptor.keys.template;
    let other = others.into_iter().find(|other| other.descriptor.keys.template.overlaps(template))?;
    Some(format!(
        "tables {} and {}: one key could be a row's of either ({} and {}); let the keys begin differently",
        other.table, table.table, other.descriptor.keys.template, template
    ))
}

/// The statements that bring the publication to what is configured.
pub(super) fn publishing(name: &str, publication: Option<&Publication>, tables: &[Prepared]) -> Vec<String> {
    let quoted_name = quoted(name);
    let names = |tables: &[&Table]| tables.iter().map(|table| table.only()).collect::<Vec<_>>().join(", ");
    let all: Vec<&Table> = tables.iter().map(|prepared| &prepared.table).collect();
    let Some(publication) = publication else {
        return vec![format!(
            "CREATE PUBLICATION {quoted_name} FOR TABLE {} WITH (publish = 'insert, update, delete, truncate', \
             publish_via_partition_root = false)",
            names(&all)
        )];
    };
    let mut statements = Vec::new();
    if !publication.everything || publication.via_root {
        statements.push(format!(
            "ALTER PUBLICATION {quoted_name} SET (publish = 'insert, update, delete, truncate', publish_via_partition_root = false)"
        ));
    }
    let absent: Vec<&Table> = all.into_iter().filter(|table| table.membership.is_none() && !publication.all_tables).collect();
    if !absent.is_empty() {
        statements.push(format!("ALTER PUBLICATION {quoted_name} ADD TABLE {}", names(&absent)));
    }
    statements
}

/// What [`install`] would do.
pub async fn plan(settings: &PostgresSettings) -> Result<Vec<String>, Error> {
    if settings.capture == Capture::Hooks {
        return changelog::plan(settings).await;
    }
    let mut connection = settings.connect("installing").await?;
    let (tables, _) = prepare(&mut connection, settings).await?;
    let name = settings.publication();
    let publication = publication(&mut connection, &name).await.map_err(settings.explain("reading the catalogue"))?;
    let mut statements = publishing(&name, publication.as_ref(), &tables);
    if slot::read(&mut connection, &settings.slot()).await.map_err(settings.explain("looking for the slot"))?.is_none() {
        statements.push(slot::creating(&settings.slot()));
    }
    Ok(statements)
}

/// Makes what is missing. The publication comes first: a slot that is older than its publication fails for ever.
pub async fn install(settings: &PostgresSettings) -> Result<Report, Error> {
    if settings.capture == Capture::Hooks {
        return changelog::install(settings).await;
    }
    let mut connection = settings.connect("installing").await?;
    let mut report = Report::default();
    server_fits(&mut connection, settings).await?;
    let (tables, _) = prepare(&mut connection, settings).await?;
    let explain = settings.explain("reading the catalogue");
    if publication(&mut connection, &settings.publication()).await.map_err(explain)?.is_none()
        && slot::drop(&mut connection, settings).await?
    {
        // It is older than the publication that is made now.
        report.statements.push(slot::dropping(&settings.slot()));
    }
    report.statements.extend(publish(&mut connection, settings, &tables).await?);
    if slot::ensure(&mut connection, settings).await?.made {
        report.statements.push(slot::creating(&settings.slot()));
    }
    Ok(report)
}

/// Brings the publication to what is configured. Returns the statements that did it.
pub(super) async fn publish(connection: &mut Connection, settings: &PostgresSettings, tables: &[Prepared]) -> Result<Vec<String>, Error> {
    let name = settings.publication();
    if let Some(table) = tables.iter().map(|prepared| &prepared.table).find(|table| table.filtered) {
        return Err(Error::Fatal(format!(
            "the publication {name} leaves out rows or columns of {}, so that changes would be missed; run `ALTER PUBLICATION {} DROP TABLE {}`, \
             then `rowcast install`",
            table.name,
            quoted(&name),
            table.sql_name()
        )));
    }
    let publication = publication(connection, &name).await.map_err(settings.explain("reading the catalogue"))?;
    let statements = publishing(&name, publication.as_ref(), tables);
    for statement in &statements {
        connection.query(statement, PATIENCE).await.map_err(|fault| {
            match fault.explain(&settings.server.place(), "publishing the tables") {
                Error::Fatal(text) => Error::Fatal(format!("{text}; let somebody who may run `{statement}`")),
                other => other,
            }
        })?;
    }
    Ok(statements)
}

/// Removes slot and publication, the slot first: one whose publication is gone fails for ever.
pub async fn uninstall(settings: &PostgresSettings) -> Result<Report, Error> {
    if settings.capture == Capture::Hooks {
        return changelog::uninstall(settings).await;
    }
    let mut connection = settings.connect("uninstalling").await?;
    let mut report = Report::default();
    let (name, slot_name) = (settings.publication(), settings.slot());
    if let Some(found) = slot::read(&mut connection, &slot_name).await.map_err(settings.explain("looking for the slot"))? {
        if let Some(pid) = found.active {
            return Err(Error::Fatal(format!(
                "the slot {slot_name} is in use by the server's process {pid}; stop the publisher of the pipeline {}, then run `rowcast \
                 uninstall` again",
                settings.pipeline
            )));
        }
        let statement = slot::dropping(&slot_name);
        connection.query(&statement, PATIENCE).await.map_err(settings.explain("dropping the slot"))?;
        report.statements.push(statement);
    }
    if publication(&mut connection, &name).await.map_err(settings.explain("reading the catalogue"))?.is_some() {
        let statement = format!("DROP PUBLICATION {}", quoted(&name));
        connection.query(&statement, PATIENCE).await.map_err(settings.explain("dropping the publication"))?;
        report.statements.push(statement);
    }
    Ok(report)
}
