//! Whether the server can be a source at all.

use std::time::Duration;

use super::super::Error;
use super::wire::{Connection, Fault};
use super::{Capture, PostgresSettings};

const PATIENCE: Duration = Duration::from_secs(30);

/// The oldest server that lets a logical message through the stream.
const VERSION_MIN: u32 = 140_000;

/// What decides whether the server can be a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServerFacts {
    pub version: u32,
    pub version_text: String,
    pub in_recovery: bool,
    pub wal_level: String,
    pub encoding: String,
    /// Whether the user may replicate.
    pub replication: bool,
    pub slots_left: i64,
    pub senders_left: i64,
    /// What commits wait for, in the server's own words; empty where they wait for nobody.
    pub synchronous_standbys: String,
}

/// Asks.
pub(super) async fn facts(connection: &mut Connection) -> Result<ServerFacts, Fault> {
    let sql = "SELECT current_setting('server_version_num'), current_setting('server_version'), pg_is_in_recovery(), \
               current_setting('wal_level'), current_setting('server_encoding'), \
               (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user), \
               current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots), \
               current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication), \
               current_setting('synchronous_standby_names')";
    let rows = connection.query(sql, PATIENCE).await?;
    let row = rows.first().ok_or_else(|| Fault::Lost("the server did not say what it is".to_owned()))?;
    Ok(ServerFacts {
        version: row.number(0)?,
        version_text: row.text(1)?.to_owned(),
        in_recovery: row.is_true(2),
        wal_level: row.text(3)?.to_owned(),
        encoding: row.text(4)?.to_owned(),
        replication: row.is_true(5),
        slots_left: row.number(6)?,
        senders_left: row.number(7)?,
        synchronous_standbys: row.text(8)?.to_owned(),
    })
}

impl ServerFacts {
    /// What makes it impossible, each a sentence with the remedy.
    pub fn impossible(&self, settings: &PostgresSettings) -> Vec<String> {
        let mut found = Vec::new();
        if self.version < VERSION_MIN {
            found.push(format!("the server is PostgreSQL {}; version 14 or later is needed", self.version_text));
        }
        if self.in_recovery {
            found.push("the server is a standby, which takes no statement that writes; name the primary in the url".to_owned());
        }
        if settings.capture == Capture::Hooks {
            return found;
        }
        if self.wal_level != "logical" {
            found.push(format!(
                "wal_level is {}, so that changes of rows are not in the log; run `ALTER SYSTEM SET wal_level = logical`, then restart the \
                 server",
                self.wal_level
            ));
        }
        if !self.replication {
            let user = super::wire::quoted(&settings.server.user);
            found.push(format!("{} may not replicate; run `ALTER ROLE {user} REPLICATION`", settings.server.user));
        }
        found
    }
}

/// Refuses a server that cannot be a source.
pub(super) async fn server_fits(connection: &mut Connection, settings: &PostgresSettings) -> Result<(), Error> {
    let place = settings.server.place();
    let facts = facts(connection).await.map_err(settings.explain("asking what it is"))?;
    // A standby is promoted in a moment, perhaps; and a primary that became one is followed where it went.
    match facts.impossible(settings).first() {
        None => Ok(()),
        Some(text) if facts.in_recovery => Err(Error::Busy(format!("PostgreSQL at {place}: {text}"))),
        Some(text) => Err(Error::Fatal(format!("PostgreSQL at {place}: {text}"))),
    }
}
