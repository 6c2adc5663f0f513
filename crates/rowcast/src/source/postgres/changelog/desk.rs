//! The connections at work: each is a task that answers one question after the other, so that nothing is lost where nobody waits for an
//! answer any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::chunk::{ReadTable, Reading, Readout};
use super::super::desk;
use super::super::schema::{self, Table};
use super::super::visibility::Snapshot;
use super::super::wire::{Connection, Fault, code, literal};
use super::stream::{Log, Piece, Shipped, Standing};
use super::trim::{self, Segment, Trimmed};

const PATIENCE: Duration = Duration::from_secs(30);

/// A question about the changelog's news.
#[derive(Debug)]
pub(super) enum AskLog {
    /// Are there any since then? Or a read in any case.
    Poll { shipped: Shipped, in_any_case: bool },
    /// The next piece of the read that was opened.
    Piece,
    /// Nothing more of it.
    Abandon,
}

/// A question for existing rows.
#[derive(Debug)]
pub(super) struct AskRows {
    pub table: Arc<ReadTable>,
    pub reading: Reading,
}

/// A question that is short.
#[derive(Debug)]
pub(super) enum AskAside {
    /// Writes down that a read of this number is made, on this snapshot. What the snapshot sees is durable once that is answered.
    Number { number: u64, snapshot: Snapshot, file: u32 },
    /// The same read is to end earlier.
    Cap { number: u64, snapshot: Snapshot },
    /// What does the catalogue say of these tables?
    Look(Vec<String>),
    /// Every partition has everything up to the read `below`; nobody resumes before it.
    Forget { from: u64, below: u64 },
    /// Removes some of the rows that this snapshot sees.
    Trim { segment: Segment, snapshot: Snapshot },
}

/// An answer.
#[derive(Debug)]
pub(super) enum Told {
    /// There are no news up to this moment.
    Quiet(Standing),
    Opened(Standing),
    Piece(Piece),
    Abandoned,
    /// A read has its number, and the mark by which it is recognised.
    Numbered(String),
    /// The read of this number has another end.
    Capped(u64),
    Looked(Vec<Option<Table>>),
    Forgotten,
    /// Some rows were removed.
    Trimmed(Trimmed),
    /// Existing rows; `None` where what the reading begins after is no key of the table.
    Rows(Option<Readout>),
    /// The rows of the table could not be read now.
    RowsNotNow(String),
    /// The changelog could not be read now.
    NotNow(String),
    /// The history or the schema is not what it was.
    Changed(String),
}

/// Where answers go.
pub(super) type Teller = mpsc::UnboundedSender<Result<Told, Fault>>;

/// A task with a connection. Dropping it ends both.
#[derive(Debug)]
pub(super) struct Desk<A> {
    asks: mpsc::UnboundedSender<A>,
    task: JoinHandle<()>,
}

impl<A> Desk<A> {
    /// Asks. If the task has ended its last answer says why.
    pub fn ask(&self, ask: A) {
        drop(self.asks.send(ask));
    }
}

impl<A> Drop for Desk<A> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Desk<AskLog> {
    /// Starts the one that reads the changelog.
    pub fn log(mut log: Log, teller: Teller) -> Desk<AskLog> {
        let (asks, mut questions) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Some(ask) = questions.recv().await {
                let answer = match ask {
                    AskLog::Poll { shipped, in_any_case } => log.poll(&shipped, in_any_case).await,
                    AskLog::Piece => log.piece().await,
                    AskLog::Abandon => log.abandon().await,
                };
                if !told(&teller, answer) {
                    return;
                }
            }
        });
        Desk { asks, task }
    }
}

impl Desk<AskAside> {
    /// Starts the one for what is short.
    pub fn aside(mut connection: Connection, teller: Teller) -> Desk<AskAside> {
        let (asks, mut questions) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Some(ask) = questions.recv().await {
                let answer = aside(&mut connection, ask).await;
                if !told(&teller, answer) {
                    return;
                }
            }
        });
        Desk { asks, task }
    }
}

impl Desk<AskRows> {
    /// Starts the one that reads existing rows.
    pub fn rows(mut connection: Connection, teller: Teller) -> Desk<AskRows> {
        let (asks, mut questions) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            while let Some(AskRows { table, reading }) = questions.recv().await {
                let answer = table.read(&mut connection, reading).await.map(|outcome| match outcome {
                    desk::Outcome::Rows(readout) => Told::Rows(Some(readout)),
                    desk::Outcome::NoKey => Told::Rows(None),
                    desk::Outcome::NotNow(why) => Told::RowsNotNow(why),
                });
                if !told(&teller, answer) {
                    return;
                }
            }
        });
        Desk { asks, task }
    }
}

/// Whether to go on.
fn told(teller: &Teller, answer: Result<Told, Fault>) -> bool {
    let over = answer.is_err();
    teller.send(answer).is_ok() && !over
}

async fn aside(connection: &mut Connection, ask: AskAside) -> Result<Told, Fault> {
    match ask {
        AskAside::Number { number, snapshot, file } => number_read(connection, number, &snapshot, file).await,
        AskAside::Cap { number, snapshot } => {
            let sql = format!("UPDATE rowcast.read SET snapshot = {} WHERE number = {number}", literal(&snapshot.to_string()));
            connection.query(&sql, PATIENCE).await.map(|_| Told::Capped(number))
        }
        AskAside::Look(names) => schema::read(connection, "", &names).await.map(|(tables, _)| Told::Looked(tables)),
        AskAside::Forget { from, below } => {
            let sql = format!("DELETE FROM rowcast.read WHERE number >= {from} AND number < {below}");
            connection.query(&sql, PATIENCE).await.map(|_| Told::Forgotten)
        }
        AskAside::Trim { segment, snapshot } => trim::step(connection, segment, &snapshot).await.map(Told::Trimmed),
    }
}

/// Its commit waits until the log is on disk, and so is all that the snapshot sees, for that was committed before. And as its number is
/// unique, two publishers never both go on from one read; the read before it is held, for with that one gone somebody may have made this
/// number and removed it again.
async fn number_read(connection: &mut Connection, number: u64, snapshot: &Snapshot, file: u32) -> Result<Told, Fault> {
    let (snapshot, before) = (literal(&snapshot.to_string()), number - 1);
    let sql = format!(
        "INSERT INTO rowcast.read(number, snapshot, file) SELECT {number}, {snapshot}::pg_snapshot, {file}::oid \
         FROM rowcast.read WHERE number = {before} FOR KEY SHARE RETURNING mark"
    );
    let overtaken = || Ok(Told::Changed(format!("the read {number} was made by somebody else; only one publisher may use a changelog")));
    match connection.query(&sql, PATIENCE).await {
        Ok(answers) => match answers.first() {
            Some(answer) => Ok(Told::Numbered(answer.text(0)?.to_owned())),
            None => overtaken(),
        },
        Err(Fault::Refused(error)) if error.code == code::UNIQUE_VIOLATION => overtaken(),
        Err(fault) => Err(fault),
    }
}
