//! What is put into a database for hooks, and taken out again: a schema with three small tables.

use std::time::Duration;

use super::super::super::Error;
use super::super::wire::{Connection, Fault, code, literal, quoted};
use super::super::{PostgresSettings, Report, fits, install as log};

const PATIENCE: Duration = Duration::from_secs(30);

/// The version of what is installed.
pub(super) const FORMAT: &str = "1";

/// Several applications and `rowcast install` may begin at once; the same number in `rowcast-sea-orm`.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7811882113245603)";

/// Exactly this text: `rowcast-sea-orm` writes the same. That the changelog has a primary key lets the database publish all of its tables;
/// that it is vacuumed by number and not by share keeps it small, for it has no rows of its own to go by.
const TABLES: [&str; 4] = [
    "CREATE SCHEMA IF NOT EXISTS rowcast",
    "CREATE TABLE IF NOT EXISTS rowcast.meta(name text PRIMARY KEY, value text NOT NULL)",
    "CREATE TABLE IF NOT EXISTS rowcast.changelog(xid xid8 NOT NULL DEFAULT pg_current_xact_id(), id bigint GENERATED ALWAYS AS IDENTITY, \
     at timestamptz NOT NULL DEFAULT clock_timestamp(), tbl oid NOT NULL, op text NOT NULL, key json NOT NULL, PRIMARY KEY (xid, id)) \
     WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)",
    "CREATE TABLE IF NOT EXISTS rowcast.read(number bigint PRIMARY KEY, snapshot pg_snapshot NOT NULL, file oid NOT NULL, \
     mark text NOT NULL DEFAULT gen_random_uuid()::text, at timestamptz NOT NULL DEFAULT clock_timestamp()) \
     WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000)",
];

/// Which form this is, and which of the database's histories.
const META: &str = "INSERT INTO rowcast.meta(name, value) VALUES ('format', '1'), ('generation', gen_random_uuid()::text) \
                    ON CONFLICT (name) DO NOTHING";

/// The identity of the database, out of which a lineage is made.
pub(super) const BASE: &str = "(SELECT s.system_identifier || ':changelog:' || d.oid FROM pg_control_system() s, pg_database d \
                               WHERE d.datname = current_database())";

/// Whose history it is. The timeline is no part of it: a standby that was promoted and has all that was shipped goes on with it.
pub(super) fn lineage(base: &str, generation: &str) -> String {
    format!("postgres:{base}:{generation}")
}

/// What stands in `rowcast.meta`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meta {
    pub format: Option<String>,
    pub generation: Option<String>,
    pub pipeline: Option<String>,
}

/// What is installed, if anything is.
pub(super) async fn meta(connection: &mut Connection) -> Result<Option<Meta>, Fault> {
    let there = "SELECT to_regclass('rowcast.meta') IS NOT NULL AND to_regclass('rowcast.changelog') IS NOT NULL \
                 AND to_regclass('rowcast.read') IS NOT NULL";
    if !connection.query(there, PATIENCE).await?.first().is_some_and(|answer| answer.is_true(0)) {
        return Ok(None);
    }
    let mut meta = Meta::default();
    for answer in connection.query("SELECT name, value FROM rowcast.meta", PATIENCE).await? {
        let value = Some(answer.text(1)?.to_owned());
        match answer.text(0)? {
            "format" => meta.format = value,
            "generation" => meta.generation = value,
            "pipeline" => meta.pipeline = value,
            _ => {}
        }
    }
    Ok(Some(meta))
}

/// Why what is installed does not serve this pipeline; a sentence.
pub(super) fn stranger(meta: &Meta, settings: &PostgresSettings) -> Option<String> {
    if meta.format.as_deref() != Some(FORMAT) {
        return Some(format!(
            "the changelog has the format {}, this rowcast knows {FORMAT}; run the rowcast that installed it, or `rowcast uninstall` with it",
            meta.format.as_deref().unwrap_or("of a damaged installation")
        ));
    }
    let owner = meta.pipeline.as_ref().filter(|owner| **owner != settings.pipeline)?;
    Some(format!(
        "the database's changelog belongs to the pipeline {owner}, not {}, and serves one pipeline only; use the name {owner}, or `rowcast \
         uninstall` there first",
        settings.pipeline
    ))
}

/// That a changelog is there and this pipeline's.
pub(super) async fn require(connection: &mut Connection, settings: &PostgresSettings) -> Result<(), Error> {
    let explain = settings.explain("looking at the changelog");
    let place = settings.server.place();
    let found = meta(connection).await.map_err(|fault| match (fault.code() == Some(code::INSUFFICIENT_PRIVILEGE), explain(fault)) {
        (true, Error::Fatal(text)) => Error::Fatal(format!("{text}; `rowcast check` says what to grant")),
        (_, error) => error,
    });
    let Some(meta) = found? else {
        return Err(Error::Fatal(format!("{place} has no changelog yet; run `rowcast install`")));
    };
    if let Some(text) = stranger(&meta, settings) {
        return Err(Error::Fatal(text));
    }
    if meta.pipeline.is_none() {
        connection.query(&belonging(settings), PATIENCE).await.map_err(&explain)?;
        // Another one may have been faster.
        let meta = self::meta(connection).await.map_err(&explain)?.unwrap_or_default();
        if let Some(text) = stranger(&meta, settings) {
            return Err(Error::Fatal(text));
        }
    }
    Ok(())
}

fn belonging(settings: &PostgresSettings) -> String {
    format!("INSERT INTO rowcast.meta(name, value) VALUES ('pipeline', {}) ON CONFLICT (name) DO NOTHING", literal(&settings.pipeline))
}

/// The roles that may write these tables and not the changelog, as SQL writes them.
pub(super) async fn without_changelog(connection: &mut Connection, tables: &[u32]) -> Result<Vec<String>, Fault> {
    let oids = tables.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let (changelog, meta) = ("to_regclass('rowcast.changelog')", "to_regclass('rowcast.meta')");
    let sql = format!(
        "WITH writer AS ( \
           SELECT a.grantee FROM pg_class c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a \
           WHERE c.oid = ANY ('{{{oids}}}'::oid[]) AND a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE') \
           UNION SELECT a.grantee FROM pg_attribute t, aclexplode(t.attacl) a \
           WHERE t.attrelid = ANY ('{{{oids}}}'::oid[]) AND a.privilege_type IN ('INSERT', 'UPDATE')) \
         SELECT CASE WHEN w.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END FROM writer w LEFT JOIN pg_roles r ON r.oid = w.grantee \
         WHERE (w.grantee = 0 OR NOT r.rolsuper AND r.rolname <> current_user) AND ({changelog} IS NULL OR NOT \
           CASE WHEN w.grantee = 0 THEN has_schema_privilege('public', 'rowcast', 'USAGE') \
             AND has_column_privilege('public', {changelog}, 'key', 'INSERT') AND has_table_privilege('public', {meta}, 'SELECT') \
           ELSE has_schema_privilege(w.grantee, 'rowcast', 'USAGE') AND has_column_privilege(w.grantee, {changelog}, 'key', 'INSERT') \
             AND has_table_privilege(w.grantee, {meta}, 'SELECT') END) \
         ORDER BY 1"
    );
    let answers = connection.query(&sql, PATIENCE).await?;
    answers.iter().map(|answer| answer.text(0).map(str::to_owned)).collect()
}

/// The statements that let these roles write the changelog: its rows name keys, and nothing else of them can be chosen. An application also
/// reads which format it has to write.
pub(super) fn granting(roles: &[String]) -> Vec<String> {
    if roles.is_empty() {
        return Vec::new();
    }
    let roles = roles.join(", ");
    vec![
        format!("GRANT USAGE ON SCHEMA rowcast TO {roles}"),
        format!("GRANT SELECT ON rowcast.meta TO {roles}"),
        format!("GRANT INSERT (tbl, op, key) ON rowcast.changelog TO {roles}"),
    ]
}

/// The statements that are still to be executed.
async fn missing(connection: &mut Connection, settings: &PostgresSettings) -> Result<Vec<String>, Error> {
    fits::server_fits(connection, settings).await?;
    let (tables, _) = log::prepare(connection, settings).await?;
    let explain = settings.explain("looking at the changelog");
    let meta = meta(connection).await.map_err(&explain)?;
    let mut statements = Vec::new();
    match &meta {
        None => statements.extend(TABLES.into_iter().chain([META]).map(str::to_owned)),
        Some(meta) => {
            if let Some(text) = stranger(meta, settings) {
                return Err(Error::Fatal(text));
            }
        }
    }
    if meta.is_none_or(|meta| meta.pipeline.is_none()) {
        statements.push(belonging(settings));
    }
    let oids: Vec<u32> = tables.iter().map(|prepared| prepared.table.oid).collect();
    statements.extend(granting(&without_changelog(connection, &oids).await.map_err(&explain)?));
    Ok(statements)
}

/// The statements that [`install`] would execute.
pub async fn plan(settings: &PostgresSettings) -> Result<Vec<String>, Error> {
    let mut connection = settings.connect("installing").await?;
    missing(&mut connection, settings).await
}

/// Makes what is missing, in one transaction, and lets whoever may write the tables write the changelog.
pub async fn install(settings: &PostgresSettings) -> Result<Report, Error> {
    let mut connection = settings.connect("installing").await?;
    let statements = missing(&mut connection, settings).await?;
    if !statements.is_empty() {
        run(&mut connection, settings, &statements, "installing").await?;
    }
    Ok(Report { statements })
}

/// Removes everything, unless it is another pipeline's.
pub async fn uninstall(settings: &PostgresSettings) -> Result<Report, Error> {
    let mut connection = settings.connect("uninstalling").await?;
    let explain = settings.explain("looking at the changelog");
    let owner = meta(&mut connection).await.map_err(&explain)?.and_then(|meta| meta.pipeline);
    if let Some(owner) = owner.filter(|owner| *owner != settings.pipeline) {
        return Err(Error::Fatal(format!(
            "the changelog in {} belongs to the pipeline {owner}, not {}, and is not removed; run `rowcast uninstall` with that pipeline's \
             configuration",
            settings.server.place(),
            settings.pipeline
        )));
    }
    let sql = "SELECT 'DROP TABLE rowcast.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = 'rowcast' AND c.relkind = 'r' AND c.relname IN ('changelog', 'read', 'meta') ORDER BY c.relname";
    let answers = connection.query(sql, PATIENCE).await.map_err(&explain)?;
    let mut statements = answers.iter().map(|answer| answer.text(0).map(str::to_owned)).collect::<Result<Vec<_>, _>>().map_err(&explain)?;
    let others = "SELECT count(*) FILTER (WHERE c.oid IS NOT NULL) FROM pg_namespace n LEFT JOIN pg_class c ON c.relnamespace = n.oid \
                  AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relname NOT IN ('changelog', 'read', 'meta') \
                  WHERE n.nspname = 'rowcast' HAVING count(*) > 0";
    let others = connection.query(others, PATIENCE).await.map_err(&explain)?;
    if others.first().is_some_and(|answer| answer.bytes(0) == Some(b"0")) {
        statements.push("DROP SCHEMA rowcast".to_owned());
    }
    if !statements.is_empty() {
        run(&mut connection, settings, &statements, "uninstalling").await?;
    }
    Ok(Report { statements })
}

async fn run(connection: &mut Connection, settings: &PostgresSettings, statements: &[String], doing: &'static str) -> Result<(), Error> {
    // An application that is in the middle of a transaction has locked the changelog, and must not wait for us in turn.
    let sql = format!("BEGIN; SET LOCAL lock_timeout = '5s'; {LOCK}; {}; COMMIT", statements.join("; "));
    connection.query(&sql, PATIENCE).await.map(drop).map_err(|fault| {
        let refused = fault.code() == Some(code::INSUFFICIENT_PRIVILEGE);
        match fault.explain(&settings.server.place(), doing) {
            Error::Fatal(text) if refused => Error::Fatal(format!(
                "{text}; run `GRANT CREATE ON DATABASE {} TO {}`, or let somebody who may run what `rowcast {} --dry-run` prints",
                quoted(&settings.server.database),
                quoted(&settings.server.user),
                if doing == "installing" { "install" } else { "uninstall" }
            )),
            other => other,
        }
    })
}
