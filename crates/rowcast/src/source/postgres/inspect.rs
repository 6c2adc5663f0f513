//! A look at a database: its tables, what can be followed, and how far its slot is.

use std::time::Duration;

use super::super::Error;
use super::schema::{self, Table};
use super::slot::{self, Slot};
use super::wire::{Connection, Role, dial};
use super::{PostgresSettings, Server, install};

const PATIENCE: Duration = Duration::from_secs(30);

/// What stands in a database.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Its tables, by schema and name, those of the system left out.
    pub tables: Vec<TableInspection>,
}

/// One table.
#[derive(Clone, Debug)]
pub struct TableInspection {
    /// What it is.
    pub table: Table,
    /// Why it cannot be used, if it cannot.
    pub trouble: Option<String>,
}

/// The state of a pipeline's slot.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The slot.
    pub slot: Slot,
    /// The end of the server's log.
    pub end: u64,
    /// Whose history it is, but for what comes after the last colon.
    pub lineage: String,
    /// How long ago the slot was confirmed last, in seconds, if a publisher streams from it.
    pub reply_age_seconds: Option<i64>,
    /// How long the newest part of the log that was confirmed had to wait for that, in ms (`flush_lag`); unknown on an idle server,
    /// while no publisher streams, and to whoever may not see the server's statistics (`pg_read_all_stats`).
    pub lag_ms: Option<i64>,
}

/// Looks at a database and changes nothing.
pub async fn inspect(server: &Server) -> Result<Inspection, Error> {
    let explain = |fault: super::wire::Fault| fault.explain(&server.place(), "looking at it");
    let mut connection = dial(server, Role::Queries, "rowcast init").await.map_err(explain)?;
    let sql = "SELECT CASE WHEN n.nspname = 'public' AND position('.' IN c.relname) = 0 THEN c.relname ELSE n.nspname || '.' || c.relname END \
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind IN ('r', 'p', 'f') AND NOT c.relispartition AND c.relpersistence <> 't' \
               AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' \
               AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') \
               ORDER BY n.nspname, c.relname";
    let rows = connection.query(sql, PATIENCE).await.map_err(explain)?;
    let names: Vec<String> = rows.iter().map(|row| row.text(0).map(str::to_owned)).collect::<Result<_, _>>().map_err(explain)?;
    let (found, _) = schema::read(&mut connection, "", &names).await.map_err(explain)?;
    let tables = found.into_iter().flatten().map(|table| {
        let fits = table.resolve(&crate::mapping::TableSettings::new(&table.name), super::Capture::Log);
        let misfit = || fits.err().filter(|misfit| misfit.setting == crate::finding::Setting::Name).map(|misfit| misfit.text);
        TableInspection { trouble: table.trouble().or_else(misfit), table }
    });
    Ok(Inspection { tables: tables.collect() })
}

/// How far a pipeline's slot is; `None` where nothing is installed.
pub async fn waiting(settings: &PostgresSettings) -> Result<Option<Waiting>, Error> {
    let mut connection = settings.connect("looking at it").await?;
    let explain = settings.explain("looking at the slot");
    let Some(slot) = slot::read(&mut connection, &settings.slot()).await.map_err(&explain)? else { return Ok(None) };
    if install::publication(&mut connection, &settings.publication()).await.map_err(&explain)?.is_none() {
        return Ok(None);
    }
    let sql = format!(
        "SELECT pg_current_wal_lsn() - '0/0', extract(epoch FROM now() - reply_time)::bigint, (extract(epoch FROM flush_lag) * 1000)::bigint \
         FROM (SELECT) one LEFT JOIN pg_stat_replication ON pid = {}",
        slot.active.unwrap_or(0)
    );
    let rows = connection.query(&sql, PATIENCE).await.map_err(&explain)?;
    let row = rows.first().ok_or_else(|| Error::Busy("the server did not say where its log ends".to_owned()))?;
    let end = row.number(0).map_err(&explain)?;
    let number = |index| row.maybe(index).map_err(&explain).map(|number| number.and_then(|number| number.parse().ok()));
    let (reply_age_seconds, lag_ms) = (number(1)?, number(2)?);
    let lineage = lineage(settings, &mut connection).await?;
    Ok(Some(Waiting { slot, end, lineage, reply_age_seconds, lag_ms }))
}

/// Whose history it is, but for what comes after the last colon. A standby that was promoted has another timeline.
pub(super) async fn lineage(settings: &PostgresSettings, connection: &mut Connection) -> Result<String, Error> {
    let explain = settings.explain("asking whose log this is");
    let sql = "SELECT s.system_identifier, c.timeline_id, d.oid FROM pg_control_system() s, pg_control_checkpoint() c, pg_database d \
               WHERE d.datname = current_database()";
    let rows = connection.query(sql, PATIENCE).await.map_err(&explain)?;
    let row = rows.first().ok_or_else(|| Error::Busy("the server did not say whose log this is".to_owned()))?;
    let text = |index| row.text(index).map_err(&explain);
    Ok(format!("postgres:{}:{}:{}:{}:", text(0)?, text(1)?, text(2)?, settings.slot()))
}
