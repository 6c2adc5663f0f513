//! From the record to a running stream: which history this is, and where it goes on.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::super::{Error, PositionRecord, Start};
use super::chunk::ReadTable;
use super::desk::{Desk, Subject, snapshot};
use super::feed::{self, Feed, SILENCE_MAX};
use super::fits::server_fits;
use super::install::{Prepared, Unfit};
use super::pgoutput::{self, Message};
use super::record::{self, Claim, Mark};
use super::schema;
use super::session::{Parts, Session};
use super::stream::{SessionTable, Stream};
use super::types::Catalogue;
use super::wire::{Answer, Connection, Fault, Frame, Role, code, dial, literal, quoted};
use super::{PostgresSettings, install, slot};
use crate::change::{Lineage, Position};
use crate::mapping::{MappedTable, TableSettings};

/// How long a short statement may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the server may take until it begins to stream: it reads its log from where the slot's oldest transaction began.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long somebody else may hold the slot.
const SLOT_PATIENCE: Duration = Duration::from_secs(5);
/// How often a server that says nothing is asked how far it is.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How many connections read rows at once, each of another table.
pub(super) const READERS_MAX: usize = 3;
/// How long the server is waited for that is to let go of the slot in an orderly way.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// What an earlier session of this process has found out.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Whether there was one.
    pub before: bool,
    /// Whether the slot must be made anew, because the publication is younger than it.
    pub slot_is_useless: bool,
    /// Memberships of tables in the publication that began before every transaction that runs.
    pub settled: HashSet<schema::Membership>,
}

/// Opens the history.
pub(super) async fn begin(
    settings: &PostgresSettings,
    record: Option<&PositionRecord>,
    known: &mut Known,
) -> Result<(Session, Start), Error> {
    let mut aside = settings.connect("connecting").await?;
    server_fits(&mut aside, settings).await?;
    let mut notes = Vec::new();
    let (prepared, ..) = prepare(&mut aside, settings, known.before, &mut notes).await?;
    if !known.before
        && install::publication(&mut aside, &settings.publication()).await.map_err(settings.explain("reading the catalogue"))?.is_none()
    {
        return Err(Error::Fatal(format!(
            "nothing is installed for the pipeline {} in {}; run `rowcast install`",
            settings.pipeline,
            settings.server.place()
        )));
    }
    for statement in install::publish(&mut aside, settings, &prepared).await? {
        notes.push(format!("ran {statement}"));
    }
    if known.slot_is_useless {
        slot::drop(&mut aside, settings).await?;
        known.slot_is_useless = false;
    }
    let slot = slot::ensure(&mut aside, settings).await?;
    if slot.made {
        let why = if slot.replaced { "the server had thrown away the log that its slot needed" } else { "its slot was gone" };
        notes.push(format!("{why}: the slot {} was made anew, and every table is read again", settings.slot()));
    }
    // Older than what is worked with, so that whatever happens in between is a difference for the first look.
    let (facts, _) =
        schema::read(&mut aside, &settings.publication(), &settings.names()).await.map_err(settings.explain("reading the catalogue"))?;
    // What was just published is a part of what the tables are.
    let (tables, catalogue, left_out) = prepare(&mut aside, settings, known.before, &mut notes).await?;
    let mut readers = Vec::new();
    for _ in 0..tables.len().clamp(1, READERS_MAX) {
        readers.push(settings.connect("connecting").await?);
    }
    let judge = judging(settings, &tables, &mut readers).await?;
    let barrier = barrier(&mut aside, settings, &tables, &slot, known).await?;

    let server_started_us = server_started_us(&mut aside).await.map_err(settings.explain("asking since when the server runs"))?;
    let (replication, identity) = replication(settings).await?;
    let base = format!("postgres:{}:{}", identity.text, settings.slot());
    let own = record.filter(|record| record.lineage.0.strip_prefix(base.as_str()).is_some_and(|rest| rest.starts_with(':')));
    let (replication, lineage) = recognise(settings, replication, own, &slot, &base, (identity.end, server_started_us), &mut notes).await?;
    if own.is_none() && record.is_some() {
        notes.push(format!("this is another history than the one that was published before ({}); every table is read again", base));
    }
    let from = Position(slot.confirmed, 0);
    let record = match own {
        Some(record) if record.lineage == lineage => record.clone(),
        _ => record::early(&lineage, from, server_started_us),
    };

    let feed = Feed::start(start(settings, replication, slot.confirmed).await?, slot.confirmed);
    let mapped: Arc<[MappedTable]> = tables.iter().map(|prepared| prepared.mapped.clone()).collect();
    let read_tables = tables.iter().map(|prepared| Arc::new(ReadTable::new(prepared, &catalogue))).collect();
    let judges = tables.iter().map(|prepared| prepared.judge.clone()).collect();
    let subject = Subject { publication: settings.publication(), prefix: settings.prefix(), names: settings.names(), left_out };
    let (sender, told) = mpsc::unbounded_channel();
    let session_tables = tables
        .into_iter()
        .map(|Prepared { table, mapped, judge }| {
            let deferred = table.unique.iter().any(|key| !key.immediate);
            SessionTable { table, mapped, judge, deferred }
        })
        .collect();
    let session = Session::new(Parts {
        place: settings.server.place(),
        lineage: lineage.clone(),
        nonce: ulid::Ulid::generate().to_string(),
        feed,
        aside: Desk::start(aside, subject.clone(), sender.clone()),
        judge: judge.map(|connection| Desk::start(connection, subject.clone(), sender.clone())),
        judges,
        readers: readers.into_iter().map(|connection| Desk::start(connection, subject.clone(), sender.clone())).collect(),
        told,
        facts,
        read_tables,
        stream: Stream::new(session_tables, catalogue, settings.prefix(), from),
        confirmed: slot.confirmed,
        barrier,
    });
    known.before = true;
    Ok((session, Start { lineage, from, record, tables: mapped, notes }))
}

/// The tables as they are mapped, and those that are left out: where a session went before, one that cannot be followed any more holds up
/// no other.
pub(super) async fn prepare(
    connection: &mut Connection,
    settings: &PostgresSettings,
    before: bool,
    notes: &mut Vec<String>,
) -> Result<(Vec<Prepared>, Catalogue, Vec<TableSettings>), Error> {
    let mut fitting = settings.clone();
    let mut unfit = Vec::new();
    loop {
        match install::prepare(connection, &fitting).await {
            Err(Unfit::Table(misfit, text)) if before && fitting.tables.len() > 1 => {
                let left_out = fitting.tables.remove(misfit);
                let note = format!("{text}; until then {} is left out", left_out.name);
                if !notes.contains(&note) {
                    notes.push(note);
                }
                unfit.push(left_out);
            }
            prepared => {
                let (tables, catalogue) = prepared?;
                return Ok((tables, catalogue, unfit));
            }
        }
    }
}

/// A connection that knows what to ask about rows, where any table needs it. Those that read rows are told too.
async fn judging(settings: &PostgresSettings, tables: &[Prepared], readers: &mut [Connection]) -> Result<Option<Connection>, Error> {
    let judges = || tables.iter().filter_map(|prepared| prepared.judge.as_deref());
    if judges().next().is_none() {
        return Ok(None);
    }
    let mut connection = settings.connect("connecting").await?;
    for judge in judges() {
        for connection in readers.iter_mut().chain([&mut connection]) {
            // What is wrong with the table the next session finds out.
            let prepared = judge.prepare(connection).await.map_err(Fault::passing);
            prepared.map_err(settings.explain("preparing to judge rows"))?;
        }
    }
    Ok(Some(connection))
}

/// A transaction that began before a table was published may still run, and what it wrote before is not in the stream. So no row is read
/// until every transaction that has a number now has ended, unless the memberships are known to be older. (The end of a snapshot is no
/// such number: transactions beyond it may run.)
async fn barrier(
    connection: &mut Connection,
    settings: &PostgresSettings,
    tables: &[Prepared],
    slot: &slot::Ensured,
    known: &mut Known,
) -> Result<Option<u64>, Error> {
    let memberships = || tables.iter().filter_map(|prepared| prepared.table.membership);
    // Making the slot has waited for every one of them.
    if slot.made || memberships().all(|membership| known.settled.contains(&membership)) {
        known.settled.extend(memberships());
        return Ok(None);
    }
    let explain = settings.explain("asking which transactions run");
    let rows = connection.query("SELECT pg_current_xact_id()", PATIENCE).await.map_err(&explain)?;
    let row = rows.first().ok_or_else(|| Error::Busy("the server gave no transaction number".to_owned()))?;
    let next: u64 = row.number(0).map_err(&explain)?;
    if snapshot(connection).await.map_err(&explain)?.xmin >= next {
        known.settled.extend(memberships());
        return Ok(None);
    }
    Ok(Some(next))
}

/// Whose log it is.
struct Identity {
    /// System, timeline, database.
    text: String,
    /// Where the log ends.
    end: u64,
}

/// A replication connection, and whose log it reads.
async fn replication(settings: &PostgresSettings) -> Result<(Connection, Identity), Error> {
    let name = format!("rowcast {}", settings.pipeline);
    let dialled = dial(&settings.server, Role::Replication, &name).await;
    let mut connection = dialled.map_err(|fault| match fault.code() {
        Some(code::INSUFFICIENT_PRIVILEGE) => Error::Fatal(format!(
            "PostgreSQL at {}: {} may not replicate; run `ALTER ROLE {} REPLICATION`",
            settings.server.place(),
            settings.server.user,
            quoted(&settings.server.user)
        )),
        _ => fault.explain(&settings.server.place(), "connecting for replication"),
    })?;
    let explain = settings.explain("asking whose log this is");
    let rows = connection.query("IDENTIFY_SYSTEM", PATIENCE).await.map_err(&explain)?;
    let oid =
        connection.query("SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()", PATIENCE).await.map_err(&explain)?;
    let text = |rows: &[Answer], index: usize| {
        let row = rows.first().ok_or_else(|| Fault::Lost("the server did not say whose log this is".to_owned()))?;
        row.text(index).map(str::to_owned)
    };
    let end = text(&rows, 2).map_err(&explain)?;
    let end = read_lsn(&end).ok_or_else(|| Error::Busy(format!("the server said that its log ends at {end:?}")))?;
    let text = format!("{}:{}:{}", text(&rows, 0).map_err(&explain)?, text(&rows, 1).map_err(&explain)?, text(&oid, 0).map_err(&explain)?);
    Ok((connection, Identity { text, end }))
}

/// When the server was started, by its own clock in microseconds since the epoch.
async fn server_started_us(connection: &mut Connection) -> Result<i64, Fault> {
    let rows = connection.query("SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint", PATIENCE).await?;
    rows.first().ok_or_else(|| Fault::Lost("the server did not say since when it runs".to_owned()))?.number(0)
}

/// Reads `16/B374D848`.
fn read_lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some(u64::from(u32::from_str_radix(high, 16).ok()?) << 32 | u64::from(u32::from_str_radix(low, 16).ok()?))
}

/// Begins to stream what commits at `from` or later; never earlier than what was confirmed. The server may take a moment until it notices
/// that whoever used the slot before is gone.
async fn start(settings: &PostgresSettings, mut connection: Connection, from: u64) -> Result<Connection, Error> {
    let command = format!(
        "START_REPLICATION SLOT {} LOGICAL {:X}/{:X} (proto_version '1', publication_names {}, messages 'true')",
        quoted(&settings.slot()),
        from >> 32,
        from & 0xffff_ffff,
        literal(&quoted(&settings.publication()))
    );
    let deadline = Instant::now() + SLOT_PATIENCE;
    loop {
        match connection.start_replication(&command, START_PATIENCE).await {
            Ok(()) => return Ok(connection),
            Err(fault) if fault.code() == Some(code::OBJECT_IN_USE) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                (connection, _) = replication(settings).await?;
            }
            // It was there and whole a moment ago; the next session looks again.
            Err(fault) if matches!(fault.code(), Some(code::UNDEFINED_OBJECT | code::NOT_IN_PREREQUISITE_STATE)) => {
                return Err(match fault.explain(&settings.server.place(), "beginning to stream") {
                    Error::Fatal(text) => Error::Busy(text),
                    other => other,
                });
            }
            Err(fault) => return Err(fault.explain(&settings.server.place(), "beginning to stream")),
        }
    }
}

/// Whether the history is that of the record: the transaction that the record names must come by again where it was. If so, the lineage
/// goes on; else it is a new one.
async fn recognise(
    settings: &PostgresSettings,
    connection: Connection,
    record: Option<&PositionRecord>,
    slot: &slot::Ensured,
    base: &str,
    (end, server_started_us): (u64, i64),
    notes: &mut Vec<String>,
) -> Result<(Connection, Lineage), Error> {
    let fresh = || Lineage(format!("{base}:{}", ulid::Ulid::generate()).into());
    let Some(record) = record else { return Ok((connection, fresh())) };
    let at = record.position.0;
    let claim = record::claim(record, server_started_us, slot.confirmed);
    if slot.made || claim == Claim::Unknown || slot.confirmed > at {
        if !slot.made && claim == Claim::Transaction {
            notes.push(format!("the slot {} was moved beyond what had been published; every table is read again", settings.slot()));
        }
        return Ok((connection, fresh()));
    }
    if claim == Claim::Same {
        return Ok((connection, record.lineage.clone()));
    }
    const RESTORED: &str =
        "the newest transaction that was published is not in the log any more: the database was restored; every table is read again";
    if end <= at {
        notes.push(RESTORED.to_owned());
        return Ok((connection, fresh()));
    }
    let mut looking = start(settings, connection, at).await?;
    let found = first_commit(&mut looking, at).await;
    let found = found.map_err(settings.explain("looking for the newest transaction that was published"))?;
    // A server that has streamed once on a connection ends the next stream on it at once. In the middle of a large transaction it does not
    // listen; then it must notice that the connection is gone.
    drop(looking.end_replication(END_PATIENCE).await);
    drop(looking);
    let again = replication(settings).await?.0;
    let lineage = if found.as_ref().map(Mark::text).as_deref() == Some(record.mark.as_str()) {
        record.lineage.clone()
    } else {
        notes.push(RESTORED.to_owned());
        fresh()
    };
    Ok((again, lineage))
}

/// The transaction whose commit record starts at `at`, if there is one. The server may take as long as it likes while it gets on, and is
/// silent while it goes through a large transaction.
async fn first_commit(connection: &mut Connection, at: u64) -> Result<Option<Mark>, Fault> {
    let mut heard = Instant::now();
    loop {
        while let Some(frame) = connection.frame()? {
            match frame {
                Frame::Data(data) => match pgoutput::decode(&data) {
                    Ok(Message::Begin { commit_lsn, committed_us, xid }) if commit_lsn == at => {
                        return Ok(Some(Mark { xid, committed_us }));
                    }
                    Ok(Message::Begin { commit_lsn, .. }) if commit_lsn > at => return Ok(None),
                    Ok(_) => {}
                    Err(error) => return Err(Fault::Hopeless(format!("{error}; this is a fault in rowcast"))),
                },
                // The server has gone through its log beyond there and found nothing.
                Frame::Alive { end, .. } if end > at => return Ok(None),
                Frame::Alive { .. } => {}
            }
        }
        match timeout(ASK_EVERY, connection.fill()).await {
            Ok(filled) => {
                filled?;
                heard = Instant::now();
            }
            Err(_) if heard.elapsed() > SILENCE_MAX => return Err(feed::silent()),
            // Confirms nothing, and asks how far the server is.
            Err(_) => connection.confirm(0, 0, true).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_is_two_numbers_in_sixteens() {
        assert_eq!(read_lsn("16/B374D848"), Some(0x16_B374_D848));
        assert_eq!(read_lsn("0/0"), Some(0));
        for text in ["", "16", "16/", "/1", "x/1", "1/123456789"] {
            assert_eq!(read_lsn(text), None, "{text}");
        }
    }
}
