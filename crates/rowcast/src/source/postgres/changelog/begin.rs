//! From the record to a session: which history this is, and where it goes on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::super::super::{Error, PositionRecord, Start};
use super::super::chunk::ReadTable;
use super::super::fits::server_fits;
use super::super::visibility::Snapshot;
use super::super::wire::{Answer, Connection, Fault, literal};
use super::super::{PostgresSettings, begin, schema};
use super::desk::Desk;
use super::install;
use super::session::{Parts, Session, end_of};
use super::stream::{Log, LogTable};
use super::trim;
use crate::change::{Lineage, Position};

const PATIENCE: Duration = Duration::from_secs(30);

/// Opens the history. Where an earlier session of this process went before, a table that cannot be followed any more is left out.
pub(super) async fn begin(settings: &PostgresSettings, record: Option<&PositionRecord>, before: bool) -> Result<(Session, Start), Error> {
    let aside = settings.connect("connecting").await?;
    let log = settings.connect("connecting").await?;
    let rows = settings.connect("connecting").await?;
    let broom = settings.connect("connecting").await?;
    let mut connections = [aside, log, rows, broom];
    one_primary(&mut connections, settings).await?;
    let [mut aside, log, rows, mut broom] = connections;
    trim::prepare(&mut broom).await.map_err(settings.explain("preparing the connection"))?;
    server_fits(&mut aside, settings).await?;
    install::require(&mut aside, settings).await?;
    let mut notes = Vec::new();
    // Older than what is worked with, so that whatever happens in between is a difference for the first look.
    let (facts, _) = schema::read(&mut aside, "", &settings.names()).await.map_err(settings.explain("reading the catalogue"))?;
    let (tables, catalogue, _) = begin::prepare(&mut aside, settings, before, &mut notes).await?;
    let history = open_history(&mut aside, settings, record, &mut notes).await?;

    let mapped: Arc<[_]> = tables.iter().map(|prepared| prepared.mapped.clone()).collect();
    let read_tables: Vec<Arc<ReadTable>> = tables.iter().map(|prepared| Arc::new(ReadTable::new(prepared, &catalogue))).collect();
    let log_tables = tables.iter().zip(&read_tables).map(|(prepared, read)| LogTable::new(&prepared.table, Arc::clone(read))).collect();
    let log = Log::new(log, log_tables).await.map_err(settings.explain("preparing the connection"))?;
    let (teller, told) = mpsc::unbounded_channel();
    let start = Start { lineage: history.lineage.clone(), from: end_of(history.resumes.0), record: history.record, tables: mapped, notes };
    let session = Session::new(Parts {
        place: settings.server.place(),
        lineage: history.lineage,
        generation: history.generation,
        file: history.file,
        newest: history.newest,
        resumes: history.resumes,
        log: Desk::log(log, teller.clone()),
        aside: Desk::aside(aside, teller.clone()),
        broom: Desk::aside(broom, teller.clone()),
        rows: Desk::rows(rows, teller),
        told,
        names: settings.names(),
        facts,
        read_tables,
    });
    Ok((session, start))
}

/// That all of these lead to one server, and that it is a primary. An address may lead elsewhere from one moment to the next, and a standby or
/// another server would answer as well, with less.
async fn one_primary(connections: &mut [Connection], settings: &PostgresSettings) -> Result<(), Error> {
    let mut identities = Vec::with_capacity(connections.len());
    for connection in connections {
        let sql = "SELECT pg_is_in_recovery(), pg_postmaster_start_time(), system_identifier FROM pg_control_system()";
        let asking = async {
            let answers = connection.query(sql, PATIENCE).await?;
            let answer = answers.first().ok_or_else(|| Fault::Lost("the server did not say what it is".to_owned()))?;
            Ok::<_, Fault>((answer.is_true(0), answer.text(1)?.to_owned(), answer.text(2)?.to_owned()))
        };
        identities.push(asking.await.map_err(settings.explain("asking what it is"))?);
    }
    // A standby is spoken of by whoever asks whether the server fits.
    match identities.windows(2).all(|two| two[0] == two[1]) {
        true => Ok(()),
        false => Err(Error::Busy(format!(
            "PostgreSQL at {}: the address leads to several servers, or to one that was just restarted; let it lead to the primary alone",
            settings.server.place()
        ))),
    }
}

/// A history that goes on, or a new one.
struct History {
    lineage: Lineage,
    generation: String,
    file: u32,
    newest: u64,
    resumes: (u64, Snapshot),
    record: PositionRecord,
}

/// What stands in the database.
#[derive(Debug)]
struct Standing {
    /// The server's identity and the database's number.
    base: String,
    generation: String,
    file: u32,
    newest: u64,
    /// The oldest read, after which a publisher resumes.
    oldest: Option<(u64, Snapshot)>,
    /// The mark of the read that the record is of, and the file that held the changelog then.
    recorded: Option<(String, u32)>,
}

/// In one transaction, while nobody else makes a read.
async fn open_history(
    connection: &mut Connection,
    settings: &PostgresSettings,
    record: Option<&PositionRecord>,
    notes: &mut Vec<String>,
) -> Result<History, Error> {
    let explain = settings.explain("opening the changelog");
    let opening = async {
        connection.query("BEGIN; SET LOCAL lock_timeout = '10s'; LOCK TABLE rowcast.read IN SHARE ROW EXCLUSIVE MODE", PATIENCE).await?;
        let standing = standing(connection, record).await?;
        let lineage = |generation: &str| Lineage(install::lineage(&standing.base, generation).into());
        let history = match (why_new(&standing, record, &lineage(&standing.generation)), record, &standing.oldest) {
            (None, Some(record), Some(oldest)) => History {
                lineage: record.lineage.clone(),
                generation: standing.generation.clone(),
                file: standing.file,
                newest: standing.newest,
                resumes: oldest.clone(),
                record: record.clone(),
            },
            (why, ..) => {
                notes.extend(why.map(|why| format!("a new history begins, and every table is read again: {why}")));
                let generation = ulid::Ulid::generate().to_string();
                let (number, snapshot, mark) = new_generation(connection, &generation, &standing).await?;
                let lineage = lineage(&generation);
                let record = PositionRecord { lineage: lineage.clone(), position: Position(number, 0), mark };
                History { lineage, generation, file: standing.file, newest: number, resumes: (number, snapshot), record }
            }
        };
        connection.query("COMMIT", PATIENCE).await?;
        Ok(history)
    };
    opening.await.map_err(explain)
}

async fn standing(connection: &mut Connection, record: Option<&PositionRecord>) -> Result<Standing, Fault> {
    let recorded = record.map_or(0, |record| i64::try_from(record.position.0).unwrap_or(0));
    let sql = format!(
        "SELECT {}, coalesce((SELECT value FROM rowcast.meta WHERE name = 'generation'), ''), \
         coalesce(pg_relation_filenode('rowcast.changelog'::regclass), 0), coalesce((SELECT max(number) FROM rowcast.read), 0), \
         o.number, o.snapshot, r.mark, r.file \
         FROM (SELECT) AS one LEFT JOIN (SELECT number, snapshot FROM rowcast.read ORDER BY number LIMIT 1) o ON true \
         LEFT JOIN rowcast.read r ON r.number = {recorded}",
        install::BASE
    );
    let answers = connection.query(&sql, PATIENCE).await?;
    let answer = answers.first().ok_or_else(|| Fault::Lost("the server gave no answer about the changelog".to_owned()))?;
    let oldest = |answer: &Answer| Ok::<_, Fault>((answer.number(4)?, Snapshot::read(answer.text(5)?)?));
    Ok(Standing {
        base: answer.text(0)?.to_owned(),
        generation: answer.text(1)?.to_owned(),
        file: answer.number(2)?,
        newest: answer.number(3)?,
        oldest: answer.maybe(4)?.map(|_| oldest(answer)).transpose()?,
        recorded: answer.maybe(6)?.map(|mark| Ok::<_, Fault>((mark.to_owned(), answer.number(7)?))).transpose()?,
    })
}

/// Why the history in the database is not the one that was shipped; `None` if it is.
fn why_new(standing: &Standing, record: Option<&PositionRecord>, lineage: &Lineage) -> Option<String> {
    let Some(record) = record else { return Some("the broker holds no record of an earlier one".to_owned()) };
    if record.lineage != *lineage {
        return Some(format!("the broker's record is of {}, which is not the history in the database", record.lineage));
    }
    // What was shipped last was committed before the read was written down. So where the read stands, all of it does.
    match &standing.recorded {
        Some((mark, _)) if *mark != record.mark => Some(went_back(record)),
        None => Some(went_back(record)),
        Some((_, file)) if *file != standing.file => {
            Some("the changelog was emptied or rewritten (TRUNCATE, VACUUM FULL, CLUSTER), so that changes may be missing".to_owned())
        }
        Some(_) => None,
    }
}

fn went_back(record: &PositionRecord) -> String {
    format!(
        "the read {} that was shipped is not in the database any more, which therefore went back in time (a restored copy, or a standby that \
         was promoted before it had everything)",
        record.position.0
    )
}

/// Nothing of the old one is shipped any more, and every table will be read again.
async fn new_generation(connection: &mut Connection, generation: &str, standing: &Standing) -> Result<(u64, Snapshot, String), Fault> {
    let (number, generation, file) = (standing.newest + 1, literal(generation), standing.file);
    let sql = format!(
        "INSERT INTO rowcast.meta(name, value) VALUES ('generation', {generation}) ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value; \
         DELETE FROM rowcast.read; \
         INSERT INTO rowcast.read(number, snapshot, file) VALUES ({number}, pg_current_snapshot(), {file}) RETURNING snapshot, mark"
    );
    let answers = connection.query(&sql, PATIENCE).await?;
    let answer = answers.first().ok_or_else(|| Fault::Lost("the server gave a read no mark".to_owned()))?;
    Ok((number, Snapshot::read(answer.text(0)?)?, answer.text(1)?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage() -> Lineage {
        Lineage("postgres:730:changelog:5:01A".into())
    }

    fn record(mark: &str) -> PositionRecord {
        PositionRecord { lineage: lineage(), position: Position(7, 0), mark: mark.to_owned() }
    }

    fn standing(recorded: Option<(&str, u32)>) -> Standing {
        Standing {
            base: "730:changelog:5".to_owned(),
            generation: "01A".to_owned(),
            file: 40,
            newest: 9,
            oldest: Some((6, Snapshot::read("1:1:").unwrap())),
            recorded: recorded.map(|(mark, file)| (mark.to_owned(), file)),
        }
    }

    fn reason(recorded: Option<(&str, u32)>, record: Option<PositionRecord>) -> String {
        why_new(&standing(recorded), record.as_ref(), &lineage()).unwrap_or_default()
    }

    #[test]
    fn a_history_goes_on_only_where_the_recorded_read_stands_as_it_stood() {
        assert_eq!(reason(Some(("a", 40)), Some(record("a"))), "");
        for (recorded, said) in [(None, "went back in time"), (Some(("b", 40)), "went back in time"), (Some(("a", 41)), "TRUNCATE")] {
            assert!(reason(recorded, Some(record("a"))).contains(said), "{recorded:?}");
        }
        assert!(reason(Some(("a", 40)), None).contains("no record"));
        let other = PositionRecord { lineage: Lineage("postgres:730:1:5:rowcast_shop:01B".into()), ..record("a") };
        assert!(reason(Some(("a", 40)), Some(other)).contains("not the history"));
    }
}
