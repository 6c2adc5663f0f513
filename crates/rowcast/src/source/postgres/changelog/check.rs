//! What would stop or harm a pipeline whose changes hooks record, on this server.

use std::time::Duration;

use super::super::check::{self as postgres, INSTALL, MappedTables};
use super::super::schema;
use super::super::wire::{Connection, Fault, literal, quoted};
use super::super::{PostgresSettings, fits, slot};
use super::{inspect, install};
use crate::finding::{Finding, Grade, Setting};

const PATIENCE: Duration = Duration::from_secs(30);

/// So many changelog rows are more than a moment's backlog.
const BACKLOG_ROWS: u64 = 100_000;

/// Looks at the database as the pipeline would use it, and changes nothing.
pub(in super::super) async fn check(connection: &mut Connection, settings: &PostgresSettings) -> Result<Vec<Finding>, Fault> {
    let facts = fits::facts(connection).await?;
    let mut found: Vec<Finding> = facts.impossible(settings).iter().map(|sentence| Finding::of_sentence(Grade::Stops, sentence)).collect();
    found.extend(postgres::encoding(&facts));
    let (all, _) = schema::read(connection, "", &settings.names()).await?;
    let tables = postgres::mapped_tables(connection, settings, facts.in_recovery, all, &mut found).await?;
    found.extend(changelog(connection, settings, &tables).await?);
    for (index, table, _) in &tables {
        found.extend(cascades(connection, table).await?.map(|finding| finding.about(*index, Setting::Name)));
    }
    if let Some(slot) = slot::read(connection, &settings.slot()).await? {
        let message = format!(
            "the replication slot {} of this pipeline is still there, and the server keeps {} MiB of its log for it",
            settings.slot(),
            slot.retained >> 20
        );
        found.push(Finding::new(Grade::Harms, message).mend(format!("run `{}`", slot::dropping(&settings.slot()))));
    }
    found.push(Finding::new(
        Grade::Notes,
        "hooks see what is written through models; statements that start from an entity (insert_many, update_many, delete_many), raw SQL, \
         COPY and other programs go unseen unless the application records what they do (rowcast_sea_orm::record)",
    ));
    Ok(found)
}

/// The changelog itself, and who may use it.
async fn changelog(connection: &mut Connection, settings: &PostgresSettings, tables: &MappedTables) -> Result<Vec<Finding>, Fault> {
    let absent = || vec![Finding::new(Grade::Stops, format!("{} has no changelog yet", settings.server.place())).mend(INSTALL)];
    let usable = "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = 'rowcast'";
    let Some(usable) = connection.query(usable, PATIENCE).await?.first().map(|answer| answer.is_true(0)) else { return Ok(absent()) };
    if !usable {
        return Ok(vec![forbidden(settings)]);
    }
    let privileges = "SELECT bool_and(has_table_privilege(c.oid, p)) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, \
                      unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p \
                      WHERE n.nspname = 'rowcast' AND c.relname IN ('meta', 'read', 'changelog') AND (c.relname <> 'changelog' OR p IN ('SELECT', 'DELETE'))";
    match connection.query(privileges, PATIENCE).await?.first().map(|answer| (answer.bytes(0).is_some(), answer.is_true(0))) {
        Some((true, false)) => return Ok(vec![forbidden(settings)]),
        Some((true, true)) => {}
        Some((false, _)) | None => return Ok(absent()),
    }
    let Some(meta) = install::meta(connection).await? else { return Ok(absent()) };
    if let Some(text) = install::stranger(&meta, settings) {
        return Ok(vec![Finding::of_sentence(Grade::Stops, &text)]);
    }
    let mut found = Vec::new();
    let backlog = inspect::backlog(connection, meta).await?;
    if backlog.rows >= BACKLOG_ROWS {
        let message = format!("{} changelog rows wait for delivery, and the database grows with each", backlog.rows);
        found.push(Finding::new(Grade::Harms, message).mend("run `rowcast run`, or `rowcast status` to see what keeps it"));
    }
    let oids: Vec<u32> = tables.iter().map(|(_, table, _)| table.oid).collect();
    let roles = install::without_changelog(connection, &oids).await?;
    if !roles.is_empty() {
        let message = format!("{} may write the tables and not the changelog, so that a write with hooks fails", roles.join(", "));
        found.push(Finding::new(Grade::Harms, message).mend(format!("run `{}`", install::granting(&roles).join("; "))));
    }
    Ok(found)
}

/// A changelog of this pipeline that nobody reads, because the server's log is read instead.
pub(in super::super) async fn unread(connection: &mut Connection, settings: &PostgresSettings) -> Result<Option<Finding>, Fault> {
    let usable = "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'rowcast' AND c.relname = 'meta' \
                  AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')";
    if connection.query(usable, PATIENCE).await?.is_empty() {
        return Ok(None);
    }
    let own = install::meta(connection).await?.is_some_and(|meta| meta.pipeline.as_ref() == Some(&settings.pipeline));
    let message = "the changelog of this pipeline is still there, and grows with what the application's hooks write, for nobody";
    let remedy = "write `capture = \"hooks\"`, or remove the hooks from the application and run `DROP SCHEMA rowcast CASCADE`";
    Ok(own.then(|| Finding::new(Grade::Harms, message).mend(remedy)))
}

fn forbidden(settings: &PostgresSettings) -> Finding {
    let user = quoted(&settings.server.user);
    let message = format!("{} may not use the changelog, which somebody else has made", settings.server.user);
    Finding::new(Grade::Stops, message).mend(format!(
        "run `GRANT USAGE ON SCHEMA rowcast TO {user}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA rowcast TO {user}`"
    ))
}

/// Foreign keys by which the database itself changes rows of the table.
async fn cascades(connection: &mut Connection, table: &schema::Table) -> Result<Option<Finding>, Fault> {
    let sql = format!(
        "SELECT DISTINCT confrelid::regclass::text FROM pg_constraint WHERE contype = 'f' AND conrelid = {}::oid \
         AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd')) ORDER BY 1",
        literal(&table.oid.to_string())
    );
    let answers = connection.query(&sql, PATIENCE).await?;
    let names = answers.iter().map(|answer| answer.text(0).map(str::to_owned)).collect::<Result<Vec<_>, _>>()?;
    if names.is_empty() {
        return Ok(None);
    }
    let message = format!(
        "table {}: the database itself changes its rows when rows of {} change (a foreign key with an action), and hooks do not see that",
        table.name,
        names.join(", ")
    );
    let remedy = "let the application record these rows (rowcast_sea_orm::record), or let the server's log tell (leave out `capture`)";
    Ok(Some(Finding::new(Grade::Harms, message).mend(remedy)))
}
