//! The replication slot: where the server keeps the log for us.

use std::time::Duration;

use super::super::Error;
use super::PostgresSettings;
use super::wire::{Connection, Fault, code, literal};

const PATIENCE: Duration = Duration::from_secs(30);
/// How long making a slot may wait for transactions that are under way.
const CREATE_SECONDS: u64 = 60;

/// A slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The output plug-in; `None` for a physical slot.
    pub plugin: Option<String>,
    /// Its database.
    pub database: Option<String>,
    /// The server's process that streams from it.
    pub active: Option<u32>,
    /// Whether the server has thrown away what it needs; its word for why.
    pub lost: Option<String>,
    /// Everything before this LSN was confirmed.
    pub confirmed: u64,
    /// How much log the server keeps for it, in bytes.
    pub retained: u64,
    /// How much log there is that was not confirmed, in bytes.
    pub behind: u64,
    /// What the server says of its log: `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: String,
}

/// A slot that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ensured {
    pub confirmed: u64,
    /// Whether it was made just now.
    pub made: bool,
    /// Whether one that was of no use was replaced.
    pub replaced: bool,
}

/// The slot, if there is one.
pub(super) async fn read(connection: &mut Connection, name: &str) -> Result<Option<Slot>, Fault> {
    let sql = format!(
        "SELECT plugin, database, active_pid, coalesce(to_jsonb(s)->>'invalidation_reason', CASE WHEN wal_status = 'lost' THEN 'wal_removed' END), \
         coalesce(confirmed_flush_lsn - '0/0', 0), \
         coalesce(pg_wal_lsn_diff(l.now, restart_lsn), 0)::bigint, \
         coalesce(pg_wal_lsn_diff(l.now, confirmed_flush_lsn), 0)::bigint, coalesce(wal_status, '') \
         FROM pg_replication_slots s, \
         (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS now) l \
         WHERE slot_name = {}",
        literal(name)
    );
    let rows = connection.query(&sql, PATIENCE).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(Some(Slot {
        plugin: row.maybe(0)?.map(str::to_owned),
        database: row.maybe(1)?.map(str::to_owned),
        active: row.maybe(2)?.map(|_| row.number(2)).transpose()?,
        lost: row.maybe(3)?.map(str::to_owned),
        confirmed: row.number(4)?,
        retained: unsigned(row.number(5)?),
        behind: unsigned(row.number(6)?),
        wal_status: row.text(7)?.to_owned(),
    }))
}

/// The statement that makes one.
pub(super) fn creating(name: &str) -> String {
    format!("SELECT pg_create_logical_replication_slot({}, 'pgoutput')", literal(name))
}

/// The statement that drops one.
pub(super) fn dropping(name: &str) -> String {
    format!("SELECT pg_drop_replication_slot({})", literal(name))
}

/// Why a slot of this name is not ours.
pub(super) fn stranger(settings: &PostgresSettings, slot: &Slot) -> Option<String> {
    let name = settings.slot();
    if slot.plugin.as_deref() != Some("pgoutput") {
        return Some(format!(
            "there is a replication slot {name} that was not made by rowcast; drop it, or give the pipeline another name"
        ));
    }
    let database = slot.database.as_deref().unwrap_or_default();
    (database != settings.server.database).then(|| {
        format!("the replication slot {name} belongs to the database {database}; a pipeline of the same name reads that one: give this one another name")
    })
}

/// Finds the slot, or makes it; one for which the server has thrown the log away is made anew.
pub(super) async fn ensure(connection: &mut Connection, settings: &PostgresSettings) -> Result<Ensured, Error> {
    let name = settings.slot();
    let mut replaced = false;
    if let Some(slot) = read(connection, &name).await.map_err(settings.explain("looking for the slot"))? {
        if let Some(text) = stranger(settings, &slot) {
            return Err(Error::Fatal(text));
        }
        if slot.lost.is_none() {
            return Ok(Ensured { confirmed: slot.confirmed, made: false, replaced });
        }
        connection.query(&dropping(&name), PATIENCE).await.map_err(settings.explain("dropping a slot that is of no use any more"))?;
        replaced = true;
    }
    create(connection, settings).await?;
    let made = read(connection, &name).await.map_err(settings.explain("looking for the slot"))?;
    let made = made.ok_or_else(|| Error::Busy(format!("the replication slot {name} was dropped as soon as it was made")))?;
    Ok(Ensured { confirmed: made.confirmed, made: true, replaced })
}

/// Drops the slot, if it is there and ours. Returns whether it was.
pub(super) async fn drop(connection: &mut Connection, settings: &PostgresSettings) -> Result<bool, Error> {
    let Some(slot) = read(connection, &settings.slot()).await.map_err(settings.explain("looking for the slot"))? else { return Ok(false) };
    if let Some(text) = stranger(settings, &slot) {
        return Err(Error::Fatal(text));
    }
    connection.query(&dropping(&settings.slot()), PATIENCE).await.map_err(settings.explain("dropping the slot"))?;
    Ok(true)
}

/// Making a slot waits for every transaction that writes, of other databases too.
async fn create(connection: &mut Connection, settings: &PostgresSettings) -> Result<(), Error> {
    let sql = format!("SET statement_timeout = '{CREATE_SECONDS}s'; {}; RESET statement_timeout", creating(&settings.slot()));
    let made = connection.query(&sql, Duration::from_secs(CREATE_SECONDS + 10)).await;
    let fault = match made {
        Ok(_) => return Ok(()),
        Err(fault) => fault,
    };
    let remedy = match fault.code() {
        Some(code::QUERY_CANCELED) => {
            connection.query("RESET statement_timeout", PATIENCE).await.map_err(settings.explain("making the slot"))?;
            let blocker = blocker(connection).await.map_err(settings.explain("making the slot"))?;
            return Err(Error::Busy(format!(
                "PostgreSQL at {}: making the replication slot waits for transactions that are under way{blocker}; end them",
                settings.server.place()
            )));
        }
        Some(code::CONFIGURATION_LIMIT_EXCEEDED) => {
            "raise max_replication_slots (`ALTER SYSTEM SET max_replication_slots = 20`, then restart the server), or drop a slot that nobody uses"
                .to_owned()
        }
        Some(code::INSUFFICIENT_PRIVILEGE) => format!("run `ALTER ROLE {} REPLICATION`", super::wire::quoted(&settings.server.user)),
        Some(code::NOT_IN_PREREQUISITE_STATE) => "run `ALTER SYSTEM SET wal_level = logical`, then restart the server".to_owned(),
        _ => return Err(fault.explain(&settings.server.place(), "making the slot")),
    };
    match fault.explain(&settings.server.place(), "making the slot") {
        Error::Fatal(text) => Err(Error::Fatal(format!("{text}; {remedy}"))),
        other => Err(other),
    }
}

/// Who keeps a slot from being made.
async fn blocker(connection: &mut Connection) -> Result<String, Fault> {
    let sql = "SELECT pid, coalesce(datname, '-'), coalesce(usename, '-'), coalesce(date_trunc('second', xact_start)::text, '-') \
               FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 1";
    let rows = connection.query(sql, PATIENCE).await?;
    Ok(match rows.first() {
        Some(row) => {
            format!(", the oldest of them that of process {} ({} in {}, since {})", row.text(0)?, row.text(2)?, row.text(1)?, row.text(3)?)
        }
        None => String::new(),
    })
}
