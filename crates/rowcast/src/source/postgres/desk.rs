//! Ordinary connections at work: each is a task that answers one question after the other, so that the stream never waits for an answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Capture;
use super::chunk::{ReadTable, Reading, Readout};
use super::judge::{Evidence, Judge, Verdict};
use super::schema::{self, Table};
use super::visibility::Snapshot;
use super::wire::{Connection, Fault, literal};
use crate::mapping::TableSettings;

/// How long a short statement may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// With every which look the server is asked again whether it takes a filter that it did not; each time leaves a little in the log.
const LOOKS_BETWEEN_TRIES: u64 = 5;

/// A question.
#[derive(Debug)]
pub(super) enum Ask {
    /// What is visible now?
    Snapshot,
    /// Writes a message into the log, in a transaction of its own that waits for nobody.
    Emit(String),
    /// What does the catalogue say of the tables?
    Look,
    /// Reads rows, for the reading with this number.
    Read(u64, Arc<ReadTable>, Reading),
    /// What becomes of these rows, by table?
    Judge(Vec<(usize, Arc<Judge>, Evidence)>),
}

/// An answer.
#[derive(Debug)]
pub(super) enum Told {
    Snapshot(Snapshot),
    Emitted,
    /// The tables, and one that was left out and can be followed now.
    Looked(Vec<Option<Table>>, Option<String>),
    /// What became of the reading with this number.
    Read(u64, Outcome),
    /// The verdicts, by table in the order of the rows.
    Judged(BTreeMap<usize, Vec<Verdict>>),
}

/// What becomes of a reading.
#[derive(Debug)]
pub(super) enum Outcome {
    /// These are the rows.
    Rows(Readout),
    /// What it was to begin after is no key of the table.
    NoKey,
    /// The rows could not be read now; the server's words.
    NotNow(String),
}

/// Which objects the questions are about.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// The publication.
    pub publication: String,
    /// The prefix of our messages in the log.
    pub prefix: String,
    /// The configured tables.
    pub names: Vec<String>,
    /// Those of them that cannot be followed as they are.
    pub left_out: Vec<TableSettings>,
}

/// A task with a connection. Dropping it ends both.
#[derive(Debug)]
pub(super) struct Desk {
    asks: mpsc::UnboundedSender<Ask>,
    task: JoinHandle<()>,
}

impl Desk {
    /// Starts one whose answers go to `told`.
    pub fn start(connection: Connection, subject: Subject, told: mpsc::UnboundedSender<Result<Told, Fault>>) -> Desk {
        let (asks, questions) = mpsc::unbounded_channel();
        let task = tokio::spawn(answer(connection, subject, questions, told));
        Desk { asks, task }
    }

    /// Asks. If the task has ended its last answer says why.
    pub fn ask(&self, ask: Ask) {
        drop(self.asks.send(ask));
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    mut connection: Connection,
    subject: Subject,
    mut questions: mpsc::UnboundedReceiver<Ask>,
    told: mpsc::UnboundedSender<Result<Told, Fault>>,
) {
    let mut looks = 0;
    while let Some(ask) = questions.recv().await {
        let answer = match ask {
            Ask::Snapshot => snapshot(&mut connection).await.map(Told::Snapshot),
            Ask::Emit(content) => emit(&mut connection, &subject.prefix, &content).await.map(|()| Told::Emitted),
            Ask::Look => {
                looks += 1;
                look(&mut connection, &subject, looks % LOOKS_BETWEEN_TRIES == 0).await
            }
            Ask::Read(number, table, reading) => table.read(&mut connection, reading).await.map(|outcome| Told::Read(number, outcome)),
            Ask::Judge(questions) => judge(&mut connection, questions).await.map(Told::Judged),
        };
        let over = answer.is_err();
        if told.send(answer).is_err() || over {
            return;
        }
    }
}

async fn look(connection: &mut Connection, subject: &Subject, tries: bool) -> Result<Told, Fault> {
    let (tables, _) = schema::read(connection, &subject.publication, &subject.names).await?;
    let mut mended = None;
    for configured in subject.left_out.iter().filter(|_| tries) {
        // What else may be wrong with a table is seen in the catalogue itself.
        let table = tables.iter().flatten().find(|table| table.name == configured.name);
        let Some((table, mapped)) = table.and_then(|table| Some((table, table.resolve(configured, Capture::Log).ok()?))) else { continue };
        match Judge::appoint(connection, table, &mapped, configured.filter.as_deref()).await {
            Ok(Ok(_)) => mended = Some(table.name.clone()),
            Ok(Err(_)) | Err(Fault::Refused(_)) => {}
            Err(fault) => return Err(fault),
        }
    }
    Ok(Told::Looked(tables, mended))
}

async fn judge(connection: &mut Connection, questions: Vec<(usize, Arc<Judge>, Evidence)>) -> Result<BTreeMap<usize, Vec<Verdict>>, Fault> {
    let mut verdicts = BTreeMap::new();
    for (table, judge, evidence) in questions {
        verdicts.insert(table, judge.ask(connection, &evidence).await?);
    }
    Ok(verdicts)
}

/// What is visible now.
pub(super) async fn snapshot(connection: &mut Connection) -> Result<Snapshot, Fault> {
    let rows = connection.query("SELECT pg_current_snapshot()", PATIENCE).await?;
    let row = rows.first().ok_or_else(|| Fault::Lost("the server gave no snapshot".to_owned()))?;
    Snapshot::read(row.text(0)?)
}

/// Writes a message into the log. Where commits wait for a synchronous standby this one does not, for our sessions commit locally.
async fn emit(connection: &mut Connection, prefix: &str, content: &str) -> Result<(), Fault> {
    let sql = format!("SELECT pg_logical_emit_message(true, {}, {})", literal(prefix), literal(content));
    connection.query(&sql, PATIENCE).await.map(drop)
}
