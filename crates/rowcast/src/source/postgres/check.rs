//! What would stop or harm the pipeline on this server.

use std::time::Duration;

use super::super::Error;
use super::judge::Judge;
use super::schema::{self, Misfit, Table};
use super::slot::{self, Slot};
use super::wire::{Connection, Fault, literal, quoted};
use super::{Capture, PostgresSettings, changelog, fits, install};
use crate::finding::{Finding, Grade, Setting};
use crate::mapping::{MappedTable, Proof, nearest};

const PATIENCE: Duration = Duration::from_secs(30);

/// So much log kept for a slot is more than a moment's backlog.
const RETAINED_BYTES: u64 = 1 << 30;

pub(super) const INSTALL: &str = "run `rowcast install`";

/// Looks at the database as the pipeline would use it, and changes nothing.
pub async fn check(settings: &PostgresSettings) -> Vec<Finding> {
    let place = settings.server.place();
    let sentence = |error: Error| Finding::of_sentence(Grade::Stops, &error.to_string());
    let mut connection = match settings.connect("connecting").await {
        Ok(connection) => connection,
        Err(error) => return vec![sentence(error)],
    };
    let looked = match settings.capture {
        Capture::Log => look(&mut connection, settings).await,
        Capture::Hooks => changelog::check(&mut connection, settings).await,
    };
    match looked {
        Ok(found) => found,
        Err(fault) => vec![sentence(fault.explain(&place, "looking at it"))],
    }
}

/// What keeps the tables from being followed as they are configured.
pub async fn misfits(settings: &PostgresSettings) -> Vec<Finding> {
    let mut found = check(settings).await;
    found.retain(|finding| finding.grade == Grade::Stops);
    found
}

async fn look(connection: &mut Connection, settings: &PostgresSettings) -> Result<Vec<Finding>, Fault> {
    let facts = fits::facts(connection).await?;
    let mut found: Vec<Finding> = facts.impossible(settings).iter().map(|sentence| Finding::of_sentence(Grade::Stops, sentence)).collect();
    found.extend(encoding(&facts));
    found.extend(synchronous(&facts.synchronous_standbys));
    let slot = slot::read(connection, &settings.slot()).await?;
    found.extend(about_slot(settings, slot.as_ref(), &facts));
    let publication = install::publication(connection, &settings.publication()).await?;
    if publication.is_none() {
        let message = format!("the publication {} is not there", settings.publication());
        found.push(Finding::new(Grade::Stops, message).mend(INSTALL));
    }
    let (all, _) = schema::read(connection, &settings.publication(), &settings.names()).await?;
    found.extend(left_over(connection, settings, &all).await?);
    found.extend(changelog::unread(connection, settings).await?);
    let mapped = mapped_tables(connection, settings, facts.in_recovery, all, &mut found).await?;
    for (index, table, _) in &mapped {
        let published = publication.as_ref().is_some_and(|publication| publication.all_tables) || table.membership.is_some();
        if publication.is_some() && !published {
            found.push(
                Finding::new(Grade::Stops, format!("table {} is not published yet", table.name)).mend(INSTALL).about(*index, Setting::Name),
            );
        }
        if table.filtered {
            let message = format!("the publication leaves out rows or columns of {}, so that changes are missed", table.name);
            let remedy = format!(
                "run `ALTER PUBLICATION {} DROP TABLE {}`, then `rowcast install`",
                quoted(&settings.publication()),
                table.sql_name()
            );
            found.push(Finding::new(Grade::Stops, message).mend(remedy).about(*index, Setting::Name));
        }
    }
    Ok(found)
}

/// The tables that can be mapped, by their places in the settings.
pub(super) type MappedTables = Vec<(usize, Table, MappedTable)>;

/// What is to be said of the tables themselves, and those that can be mapped.
pub(super) async fn mapped_tables(
    connection: &mut Connection,
    settings: &PostgresSettings,
    in_recovery: bool,
    all: Vec<Option<Table>>,
    found: &mut Vec<Finding>,
) -> Result<MappedTables, Fault> {
    let mut mapped: MappedTables = Vec::new();
    for (index, (table, configured)) in all.into_iter().zip(&settings.tables).enumerate() {
        let Some(table) = table else {
            found.push(absent(connection, &configured.name).await?.about(index, Setting::Name));
            continue;
        };
        let resolved = match table.resolve(configured, settings.capture) {
            Ok(resolved) => {
                // A standby, which is refused as it is, makes no temporary table.
                if settings.capture == Capture::Log
                    && !in_recovery
                    && let Err(Misfit { setting, text }) =
                        Judge::appoint(connection, &table, &resolved, configured.filter.as_deref()).await?
                {
                    found.push(Finding::of_sentence(Grade::Stops, &text).about(index, setting));
                }
                resolved
            }
            Err(Misfit { setting, text }) => {
                found.push(Finding::of_sentence(Grade::Stops, &text).about(index, setting));
                continue;
            }
        };
        if let Some((_, other, _)) = mapped.iter().find(|(_, other, _)| other.oid == table.oid) {
            found.push(Finding::of_sentence(Grade::Stops, &install::twice(other, &table)).about(index, Setting::Name));
            continue;
        }
        if let Some(text) = install::share_keys(&resolved, mapped.iter().map(|(_, _, other)| other)) {
            found.push(Finding::of_sentence(Grade::Stops, &text).about(index, Setting::Key));
        }
        found.extend(open_end(&resolved).map(|finding| finding.about(index, Setting::Key)));
        found.extend(readable(connection, settings, &table).await?.map(|finding| finding.about(index, Setting::Name)));
        mapped.push((index, table, resolved));
    }
    Ok(mapped)
}

/// A database whose text may be anything.
pub(super) fn encoding(facts: &fits::ServerFacts) -> Option<Finding> {
    (facts.encoding == "SQL_ASCII").then(|| {
        Finding::new(
            Grade::Harms,
            "the database's encoding is SQL_ASCII, which takes any bytes; rows with text that is not UTF-8 become dead letters",
        )
    })
}

/// Tables that an earlier configuration had, or that somebody added: the server tells of them for nobody.
async fn left_over(connection: &mut Connection, settings: &PostgresSettings, tables: &[Option<Table>]) -> Result<Option<Finding>, Fault> {
    let name = settings.publication();
    let configured: Vec<String> = tables.iter().flatten().map(|table| table.oid.to_string()).collect();
    let sql = format!(
        "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
         JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE p.pubname = {} AND r.prrelid <> ALL (ARRAY[{}]::oid[]) ORDER BY 1",
        literal(&name),
        configured.join(",")
    );
    let rows = connection.query(&sql, PATIENCE).await?;
    let names = rows.iter().map(|row| row.text(0)).collect::<Result<Vec<_>, _>>()?.join(", ");
    if names.is_empty() {
        return Ok(None);
    }
    let message = format!(
        "the publication {name} has tables that are not configured ({names}): the server sends their changes for nothing, and refuses UPDATE \
         and DELETE where one has no replica identity"
    );
    let remedy = format!("run `ALTER PUBLICATION {} DROP TABLE {names}`", quoted(&name));
    Ok(Some(Finding::new(Grade::Harms, message).mend(remedy)))
}

/// A walsender of ours would be one of the standbys that commits wait for, while it waits for commits to become visible.
fn synchronous(standbys: &str) -> Option<Finding> {
    standbys.contains('*').then(|| {
        Finding::new(
            Grade::Harms,
            format!(
                "synchronous_standby_names is {standbys:?}, so that rowcast's own connection counts as a standby: commits wait for it, and it \
                 confirms nothing before commits are visible"
            ),
        )
        .mend("name the standbys in synchronous_standby_names")
    })
}

fn about_slot(settings: &PostgresSettings, slot: Option<&Slot>, facts: &fits::ServerFacts) -> Vec<Finding> {
    let name = settings.slot();
    let mut found = Vec::new();
    let Some(slot) = slot else {
        // A publisher that finds its publication makes the slot anew.
        found.push(Finding::new(Grade::Harms, format!("the replication slot {name} is not there yet")).mend(INSTALL));
        if facts.slots_left <= 0 {
            let remedy = "run `ALTER SYSTEM SET max_replication_slots = 20`, then restart the server; or drop a slot that nobody uses";
            found.push(Finding::new(Grade::Stops, "no replication slot is left on this server").mend(remedy));
        }
        found.extend(senders(facts));
        return found;
    };
    if let Some(text) = slot::stranger(settings, slot) {
        found.push(Finding::of_sentence(Grade::Stops, &text));
        return found;
    }
    if slot.active.is_none() {
        found.extend(senders(facts));
    }
    if let Some(why) = &slot.lost {
        let message = format!(
            "the server has thrown away the log that the slot {name} needs ({why}); the next run makes it anew and reads every table"
        );
        found.push(Finding::new(Grade::Harms, message).mend("raise max_slot_wal_keep_size, or let rowcast run without long breaks"));
    } else if slot.wal_status == "unreserved" {
        let message = format!("the server is about to throw away the log that the slot {name} needs");
        found.push(Finding::new(Grade::Harms, message).mend("run `rowcast run`, or raise max_slot_wal_keep_size"));
    }
    if slot.retained > RETAINED_BYTES {
        let message = format!("the server keeps {} MiB of log for the slot {name}", slot.retained >> 20);
        found.push(Finding::new(Grade::Harms, message).mend("run `rowcast run`, or `rowcast status` to see what keeps it"));
    }
    found
}

fn senders(facts: &fits::ServerFacts) -> Option<Finding> {
    (facts.senders_left <= 0).then(|| {
        Finding::new(Grade::Stops, "no WAL sender is left on this server")
            .mend("run `ALTER SYSTEM SET max_wal_senders = 20`, then restart the server")
    })
}

async fn absent(connection: &mut Connection, name: &str) -> Result<Finding, Fault> {
    let sentence = install::missing(name);
    let finding = Finding::of_sentence(Grade::Stops, &sentence);
    let rows = connection
        .query(
            "SELECT CASE WHEN n.nspname = 'public' THEN c.relname ELSE n.nspname || '.' || c.relname END FROM pg_class c \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_|^information_schema$'",
            PATIENCE,
        )
        .await?;
    let names: Vec<&str> = rows.iter().map(|row| row.text(0)).collect::<Result<_, _>>()?;
    let near = nearest(name, names.iter().copied()).or_else(|| {
        let wanted = name.rsplit('.').next().unwrap_or(name);
        names.iter().copied().find(|other| other.rsplit('.').next() == Some(wanted))
    });
    Ok(match near {
        Some(near) => finding.mend(format!("did you mean {near}?")),
        None => finding,
    })
}

/// Keys that anybody could have written.
fn open_end(mapped: &MappedTable) -> Option<Finding> {
    let keys = &mapped.descriptor.keys;
    if keys.proof != Proof::Key || !keys.template.ends_openly() {
        return None;
    }
    let last = keys.template.columns().last()?;
    let message = format!(
        "table {}: its key ends in free text ({}), which the value does not hold, so a key of that form could be anybody's: a sweep leaves \
         one whose row is gone",
        mapped.table, last.column
    );
    Some(Finding::new(Grade::Harms, message).mend(format!("add {} to `columns`", last.column)))
}

/// Whether the table's rows may be read, all of them.
async fn readable(connection: &mut Connection, settings: &PostgresSettings, table: &Table) -> Result<Option<Finding>, Fault> {
    let sql = format!("SELECT 1 FROM {} LIMIT 0", table.sql_name());
    match connection.query(&sql, PATIENCE).await {
        Ok(_) => Ok(None),
        Err(Fault::Refused(error)) => {
            let user = quoted(&settings.server.user);
            let remedy = if error.message.contains("row-level security") {
                format!("run `ALTER ROLE {user} BYPASSRLS`")
            } else {
                format!("run `GRANT USAGE ON SCHEMA {} TO {user}; GRANT SELECT ON {} TO {user}`", quoted(&table.schema), table.sql_name())
            };
            Ok(Some(Finding::new(Grade::Stops, format!("table {}: its rows cannot be read: {}", table.name, error.message)).mend(remedy)))
        }
        Err(fault) => Err(fault),
    }
}
