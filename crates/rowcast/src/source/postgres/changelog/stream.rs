//! One read of the changelog: what it names, as one snapshot has it.
//!
//! News are the rows that the snapshot sees and an earlier one did not: those of transactions that ran then and have ended, and those of
//! transactions that have begun since. Neither transaction numbers nor row numbers say which came first.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::super::chunk::ReadTable;
use super::super::rows::RowReader;
use super::super::schema::Table;
use super::super::values::client_encoding;
use super::super::visibility::Snapshot;
use super::super::wire::{Answer, Connection, Fault, code};
use super::desk::Told;
use crate::change::{Change, Image, Op, Position};

const PATIENCE: Duration = Duration::from_secs(60);

/// How many changelog rows are held in memory at once.
const WINDOW: usize = 4096;
/// After so many a read ends, so that its snapshot and its locks do too. A transaction is never divided.
const READ_ROWS: u64 = 20_000;
/// How much one portion holds, more or less.
const PORTION_CHANGES: usize = 2000;
const PORTION_BYTES: usize = 1 << 20;
/// How many rows are looked up first, before it is known how long they are.
const FIRST_LOOKUP: usize = 64;

/// Whoever waits for a lock of ours must never be ended as a part of a deadlock: that is looked for after a second
/// (`deadlock_timeout`), and by then we have let go.
const LOCK_PATIENCE: &str = "500ms";

/// Every statement here goes by an index, whatever the statistics of a table say that grows and shrinks all the time.
pub(super) const PLANS: &str =
    "SET jit = off; SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off";

/// A table as changelog rows name it.
#[derive(Debug)]
pub(super) struct LogTable {
    /// Its own and those of its partitions: an entity may be of one of these.
    oids: Vec<u32>,
    read: Arc<ReadTable>,
    /// Locks the table and tells what it looks like.
    lock: String,
    /// What it must look like; else it is another one than was mapped, or its rows were rewritten out of the snapshot's sight.
    form: String,
}

impl LogTable {
    pub fn new(table: &Table, read: Arc<ReadTable>) -> LogTable {
        let columns = read.columns.iter().map(|column| format!("pg_typeof(t.{column})::oid"));
        let files = table.leaves.iter().map(|leaf| format!("coalesce(pg_relation_filenode({}), 0)", leaf.oid));
        let parts: Vec<String> = columns.chain(files).collect();
        let lock = format!(
            "LOCK TABLE {} IN ACCESS SHARE MODE; SELECT ARRAY[{}]::text FROM (SELECT) AS one LEFT JOIN {} AS t ON false",
            read.sql_name,
            parts.join(", "),
            read.sql_name
        );
        let unquoted = |column: &String| column[1..column.len() - 1].replace("\"\"", "\"");
        let type_of = |column: &String| table.column(&unquoted(column)).map_or(0, |column| column.type_oid);
        let form: Vec<String> =
            read.columns.iter().map(type_of).chain(table.leaves.iter().map(|leaf| leaf.file)).map(|number| number.to_string()).collect();
        let oids = std::iter::once(table.oid).chain(table.leaves.iter().map(|leaf| leaf.oid)).collect();
        LogTable { oids, read, lock, form: format!("{{{}}}", form.join(",")) }
    }
}

/// A row of the changelog that still matters within its window.
#[derive(Debug)]
struct LogRow {
    /// Where in the read, from 1.
    index: u64,
    table: usize,
    op: Op,
    at_us: i64,
    key: String,
    /// Whether no later row of the window names the same key.
    last_of_key: bool,
}

/// What a snapshot sees of whose changelog this is, and how far it is.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub snapshot: Snapshot,
    /// Whether the read is still there that was shipped last. If not, somebody has removed what comes after it.
    pub has_shipped: bool,
    /// The newest read that the snapshot knows of.
    pub newest: u64,
    pub generation: String,
    /// Which file holds the changelog: another one once somebody has emptied or rewritten it.
    pub file: u32,
}

/// What was shipped last.
#[derive(Clone, Debug)]
pub(super) struct Shipped {
    /// The number of the read.
    pub number: u64,
    /// All that this one sees was shipped, or there was nothing to ship.
    pub seen: Snapshot,
}

/// A piece of a read.
#[derive(Debug)]
pub(super) struct Piece {
    /// In order; the number of the read is still to be put into their positions.
    pub changes: Vec<Change>,
    /// All changes up to this index are in it or were in one before.
    pub index: u64,
    pub end: Option<End>,
}

/// The end of a read.
#[derive(Clone, Debug)]
pub(super) struct End {
    /// Everything that this one sees has been read.
    pub snapshot: Snapshot,
    /// Whether that is all that there was to be seen.
    pub whole: bool,
}

/// A read under way; its transaction is open.
#[derive(Debug)]
struct Read {
    snapshot: Snapshot,
    /// What begins here has not been seen by an earlier read.
    fresh: u64,
    rows: Vec<LogRow>,
    /// The next of `rows` to be shipped.
    next: usize,
    /// How many were taken into windows so far, and the transaction of the newest one.
    taken: u64,
    newest_xid: u64,
    /// Whether all that belongs to the read is in `rows` or was; its end, then.
    end: Option<End>,
    locked: HashSet<usize>,
    /// How many rows to look up at once.
    lookup: usize,
}

/// The changelog on a connection of its own.
pub(super) struct Log {
    connection: Connection,
    tables: Vec<LogTable>,
    readers: Vec<RowReader>,
    read: Option<Read>,
}

impl Log {
    pub async fn new(mut connection: Connection, tables: Vec<LogTable>) -> Result<Log, Fault> {
        connection.query(PLANS, PATIENCE).await?;
        let answers = connection.query("SHOW server_encoding", PATIENCE).await?;
        // Else one name that is no UTF-8 would make the server refuse the whole read.
        let encoding = client_encoding(answers.first().ok_or_else(no_answer)?.text(0)?);
        connection.query(&format!("SET client_encoding = '{encoding}'"), PATIENCE).await?;
        let readers = tables.iter().map(|table| table.read.reader.clone()).collect();
        Ok(Log { connection, tables, readers, read: None })
    }

    /// Opens a read if there are news, or in any case; else says up to where there are none.
    pub async fn poll(&mut self, shipped: &Shipped, in_any_case: bool) -> Result<Told, Fault> {
        assert!(self.read.is_none(), "one read after the other");
        if !in_any_case {
            let answers = match self.connection.query(&peek(shipped), PATIENCE).await {
                Err(fault) => return self.passing(fault).await,
                Ok(answers) => answers,
            };
            let answer = answers.first().ok_or_else(no_answer)?;
            if !answer.is_true(Standing::COLUMNS) {
                return Ok(Told::Quiet(Standing::of(answer)?));
            }
        }
        match self.open(shipped).await {
            Ok(opened) => Ok(Told::Opened(opened)),
            Err(fault) => self.passing(fault).await,
        }
    }

    async fn open(&mut self, shipped: &Shipped) -> Result<Standing, Fault> {
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = '{LOCK_PATIENCE}'; \
             LOCK TABLE rowcast.changelog IN ACCESS SHARE MODE; \
             SELECT {}; DECLARE news NO SCROLL CURSOR FOR {}; FETCH {WINDOW} FROM news",
            Standing::sql(shipped),
            news(&shipped.seen)
        );
        let mut answers = self.connection.query(&begin, PATIENCE).await?.into_iter();
        let first = answers.next().ok_or_else(no_answer)?;
        let opened = Standing::of(&first)?;
        let mut read = Read {
            snapshot: opened.snapshot.clone(),
            fresh: shipped.seen.xmax,
            rows: Vec::new(),
            next: 0,
            taken: 0,
            newest_xid: 0,
            end: None,
            locked: HashSet::new(),
            lookup: FIRST_LOOKUP,
        };
        take(&mut read, &self.tables, answers.as_slice())?;
        self.read = Some(read);
        Ok(opened)
    }

    /// The next piece of the read under way.
    pub async fn piece(&mut self) -> Result<Told, Fault> {
        let mut read = self.read.take().expect("a piece is only asked for while a read is under way");
        match self.piece_of(&mut read).await {
            Ok(Told::Piece(piece)) => {
                if piece.end.is_some() {
                    self.connection.query("COMMIT", PATIENCE).await?;
                } else {
                    self.read = Some(read);
                }
                Ok(Told::Piece(piece))
            }
            Ok(other) => {
                self.connection.query("ROLLBACK", PATIENCE).await?;
                Ok(other)
            }
            Err(fault) => self.passing(fault).await,
        }
    }

    async fn piece_of(&mut self, read: &mut Read) -> Result<Told, Fault> {
        let mut changes = Vec::new();
        loop {
            if read.next == read.rows.len() && read.end.is_none() {
                let answers = self.connection.query(&format!("FETCH {WINDOW} FROM news"), PATIENCE).await?;
                take(read, &self.tables, &answers)?;
            }
            let (named, index) = named(read);
            for table in tables_of(&named) {
                if read.locked.insert(table)
                    && let Some(changed) = lock(&mut self.connection, &self.tables[table]).await?
                {
                    return Ok(Told::Changed(changed));
                }
            }
            self.ship(&named, &mut changes).await?;
            if !changes.is_empty() {
                // As many as may fill a portion, going by the length of these.
                let bytes: usize = changes.iter().map(weight).sum();
                read.lookup = (PORTION_BYTES * changes.len() / bytes).clamp(1, PORTION_CHANGES);
            }
            let end = read.end.clone().filter(|_| read.next == read.rows.len());
            if end.is_some() || !changes.is_empty() {
                return Ok(Told::Piece(Piece { changes, index, end }));
            }
        }
    }

    /// Looks up what these rows name, table by table, and puts it into the order of the changelog.
    async fn ship(&mut self, named: &[LogRow], changes: &mut Vec<Change>) -> Result<(), Fault> {
        for table in tables_of(named) {
            let rows: Vec<&LogRow> = named.iter().filter(|row| row.table == table).collect();
            let keys: Vec<&str> = rows.iter().map(|row| row.key.as_str()).collect();
            let fates = self.tables[table].read.fates(&mut self.connection, &mut self.readers[table], &keys).await?;
            for (row, fates) in rows.into_iter().zip(fates) {
                changes.extend(fates.into_iter().map(|fate| row.change(fate.pk, fate.image)));
            }
        }
        changes.sort_by_key(|change| change.position);
        Ok(())
    }

    /// Gives up the read under way, if there is one.
    pub async fn abandon(&mut self) -> Result<Told, Fault> {
        if self.read.take().is_some() {
            self.connection.query("ROLLBACK", PATIENCE).await?;
        }
        Ok(Told::Abandoned)
    }

    /// A refusal ends the read. It is no fault of the connection where a table is locked, or is not what it was.
    async fn passing(&mut self, fault: Fault) -> Result<Told, Fault> {
        let Fault::Refused(error) = fault else { return Err(fault) };
        self.connection.query("ROLLBACK", PATIENCE).await?;
        match error.code.as_str() {
            code::LOCK_NOT_AVAILABLE | code::QUERY_CANCELED => Ok(Told::NotNow(format!("reading the changelog: {error}"))),
            code::UNDEFINED_TABLE | code::UNDEFINED_COLUMN | code::UNDEFINED_OBJECT => Ok(Told::Changed(error.to_string())),
            _ => Err(Fault::Refused(error)),
        }
    }
}

/// Locks the table. Returns what is wrong where it is not what was mapped.
async fn lock(connection: &mut Connection, table: &LogTable) -> Result<Option<String>, Fault> {
    let answers = connection.query(&table.lock, PATIENCE).await?;
    let form = answers.first().ok_or_else(no_answer)?.text(0)?;
    Ok((form != table.form).then(|| format!("the table {} was altered", table.read.name)))
}

/// The next rows to be looked up, of which none that a later one of the window repeats; and the index up to which that is everything.
fn named(read: &mut Read) -> (Vec<LogRow>, u64) {
    let mut named = Vec::new();
    let mut index = read.taken;
    while let Some(row) = read.rows.get_mut(read.next) {
        if row.last_of_key && named.len() >= read.lookup {
            index = row.index - 1;
            break;
        }
        read.next += 1;
        if row.last_of_key {
            named.push(LogRow { key: std::mem::take(&mut row.key), ..*row });
        }
    }
    (named, index)
}

fn tables_of(named: &[LogRow]) -> Vec<usize> {
    let mut tables: Vec<usize> = named.iter().map(|row| row.table).collect();
    tables.sort_unstable();
    tables.dedup();
    tables
}

/// Takes in a window of changelog rows, and marks which of them are the last to name something.
fn take(read: &mut Read, tables: &[LogTable], answers: &[Answer]) -> Result<(), Fault> {
    read.rows.clear();
    read.next = 0;
    for answer in answers {
        let xid: u64 = answer.number(0)?;
        // What began before is not in the order of its numbers, and few; it always belongs to the read.
        if read.taken >= READ_ROWS && xid >= read.fresh && xid != read.newest_xid {
            read.end = Some(End { snapshot: read.snapshot.before(xid), whole: false });
            break;
        }
        read.taken += 1;
        read.newest_xid = xid;
        let oid: u32 = answer.number(2)?;
        // Rows of a table that is not in the pipeline concern nobody.
        let Some(table) = tables.iter().position(|table| table.oids.contains(&oid)) else { continue };
        let op = match answer.text(3)? {
            "I" => Op::Insert,
            "D" => Op::Delete,
            _ => Op::Update,
        };
        let key = answer.bytes(4).unwrap_or_default();
        // Where the database has no encoding (SQL_ASCII) a key may be any bytes.
        let Ok(key) = std::str::from_utf8(key).map(str::to_owned) else {
            tables[table].read.warn(&String::from_utf8_lossy(key));
            continue;
        };
        read.rows.push(LogRow { index: read.taken, table, op, at_us: answer.number(1)?, key, last_of_key: false });
    }
    if read.end.is_none() && answers.len() < WINDOW {
        read.end = Some(End { snapshot: read.snapshot.clone(), whole: true });
    }
    let mut keys: HashSet<(usize, &str)> = HashSet::with_capacity(read.rows.len());
    let last: Vec<bool> = read.rows.iter().rev().map(|row| keys.insert((row.table, row.key.as_str()))).collect();
    for (row, last) in read.rows.iter_mut().rev().zip(last) {
        row.last_of_key = last;
    }
    Ok(())
}

impl Standing {
    /// How many columns [`Standing::sql`] has.
    const COLUMNS: usize = 5;

    /// Each by one step in an index, whatever dead entries there are.
    fn sql(shipped: &Shipped) -> String {
        format!(
            "pg_current_snapshot(), EXISTS (SELECT FROM rowcast.read WHERE number = {}), \
             coalesce((SELECT max(number) FROM rowcast.read), 0), \
             coalesce((SELECT value FROM rowcast.meta WHERE name = 'generation'), ''), \
             coalesce(pg_relation_filenode('rowcast.changelog'::regclass), 0)",
            shipped.number
        )
    }

    fn of(answer: &Answer) -> Result<Standing, Fault> {
        Ok(Standing {
            snapshot: Snapshot::read(answer.text(0)?)?,
            has_shipped: answer.is_true(1),
            newest: answer.number(2)?,
            generation: answer.text(3)?.to_owned(),
            file: answer.number(4)?,
        })
    }
}

/// Whose changelog it is, as of which moment, and whether there are news. The statement holds a lock on the changelog from its snapshot to
/// its end, so that what it does not find was not removed meanwhile.
fn peek(shipped: &Shipped) -> String {
    format!(
        "SELECT {}, EXISTS (SELECT FROM rowcast.changelog c WHERE {}) OR EXISTS (SELECT FROM {})",
        Standing::sql(shipped),
        begun_since(&shipped.seen),
        ended_since(&shipped.seen)
    )
}

/// The news, those of transactions that have begun since in the order of their numbers.
fn news(seen: &Snapshot) -> String {
    const COLUMNS: &str = "c.xid, (extract(epoch FROM c.at) * 1000000)::bigint, c.tbl, c.op, c.key";
    format!(
        "SELECT {COLUMNS} FROM {} UNION ALL (SELECT {COLUMNS} FROM rowcast.changelog c WHERE {} ORDER BY c.xid, c.id)",
        ended_since(seen),
        begun_since(seen)
    )
}

/// Nothing else is gone through: what a transaction has written that still runs is passed over once and then left alone until it has
/// ended, and what was removed but cannot be cleaned away is never met again.
fn begun_since(seen: &Snapshot) -> String {
    format!("c.xid >= '{}'::xid8 AND c.xid < pg_snapshot_xmax(pg_current_snapshot())", seen.xmax)
}

fn ended_since(seen: &Snapshot) -> String {
    let running: Vec<String> = seen.running().iter().map(u64::to_string).collect();
    format!(
        "unnest('{{{}}}'::xid8[]) AS r(xid) JOIN rowcast.changelog c ON c.xid = r.xid \
         WHERE pg_visible_in_snapshot(r.xid, pg_current_snapshot())",
        running.join(",")
    )
}

impl LogRow {
    fn change(&self, pk: String, image: Image) -> Change {
        let op = match (&image, self.op) {
            (Image::Absent { .. }, _) => Op::Delete,
            (_, Op::Delete) => Op::Update,
            (_, op) => op,
        };
        Change { op, table: self.table, pk, image, position: Position(0, self.index), committed_us: self.at_us }
    }
}

fn weight(change: &Change) -> usize {
    let image = match &change.image {
        Image::Present { json, .. } => json.len(),
        Image::Absent { .. } | Image::Unreadable { .. } => 0,
    };
    change.pk.len() + image + 64
}

fn no_answer() -> Fault {
    Fault::Lost("the server gave no answer about the changelog".to_owned())
}
