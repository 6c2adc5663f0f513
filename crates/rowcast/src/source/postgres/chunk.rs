//! Existing rows of one table, read by primary key on a snapshot that is told with them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::super::{ChunkLimits, ReadRow};
use super::desk::Outcome;
use super::filter::free_name;
use super::install::Prepared;
use super::judge::{Evidence, Judge, Verdict};
use super::row::Cell;
use super::rows::{Nameless, Place, RowReader, bytes_of};
use super::types::Catalogue;
use super::visibility::Snapshot;
use super::wire::{Answer, Connection, Fault, ServerError, code, literal, quoted};
use crate::change::{Bound, Image, KeyValue};

/// How long one statement of a reading may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long somebody's exclusive lock on the table is waited for; the stream goes on meanwhile.
const LOCK_PATIENCE: &str = "5s";
/// How long the rows of a chunk may take, more or less; a snapshot that lasts keeps the server from cleaning up.
const CHUNK_TIME: Duration = Duration::from_secs(1);
/// How long the server may take for the rows that are fetched at once and filtered.
const FETCH_LIMIT: Duration = Duration::from_secs(10);
/// How many rows are fetched first, before it is known how long they are.
const FIRST_ROWS: usize = 64;
/// How many times as many are fetched next.
const GROWTH: usize = 8;

/// What is to be read.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub wanted: Wanted,
    pub limits: ChunkLimits,
}

/// Which rows.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// Those after a bound, in the order of the key.
    After(Option<Bound>),
    /// These, by their primary keys as JSON objects.
    Rows(Vec<String>),
}

/// What was read.
#[derive(Debug)]
pub(super) struct Readout {
    pub rows: Vec<ReadRow>,
    /// Where it ends, for rows after a bound.
    pub upto: Option<Bound>,
    pub last: bool,
    /// Of how many primary keys this is the answer, for rows by their keys.
    pub answered: usize,
    /// How many of those the table has, whether they are cached or not.
    pub existing: usize,
    /// What the reading has seen.
    pub snapshot: Snapshot,
    /// By the server's clock, in microseconds since the epoch.
    pub read_us: i64,
}

/// How the rows of one table are read.
#[derive(Debug)]
pub(super) struct ReadTable {
    pub name: String,
    pub sql_name: String,
    /// The columns that are selected.
    pub columns: Vec<String>,
    /// Names and types of the primary key, as SQL writes them.
    pub key: Vec<(String, String)>,
    key_names: Vec<String>,
    pub reader: RowReader,
    filtering: Option<Filtering>,
}

/// How rows are left out that are not to be cached.
#[derive(Debug)]
struct Filtering {
    judge: Arc<Judge>,
    /// Where the columns stand that the judge asks for.
    inputs: Vec<usize>,
    /// The condition, as what is selected beside the columns.
    selected: String,
    /// The name of that, as SQL writes it.
    verdict: String,
    /// By column, whether it is told of a row that is left out.
    always_told: Vec<bool>,
    /// By column, whether only the judge asks for it: where the server itself has left rows out it is told of none.
    only_asked: Vec<bool>,
    /// Whether a chunk names the rows that are left out, because no sweep could tell their keys from somebody else's.
    names_unmatched: bool,
    /// How many columns the template has.
    key_width: usize,
}

/// The rows of a reading that wait for the judge: where they stand, and what is put before it.
struct Unjudged {
    rows: Vec<usize>,
    evidence: Evidence,
}

impl Unjudged {
    fn add(&mut self, row: usize, filtering: &Filtering, answer: &Answer) {
        self.rows.push(row);
        self.evidence.push(filtering.inputs.iter().map(|place| answer.bytes(*place)));
    }
}

impl ReadTable {
    pub fn new(prepared: &Prepared, catalogue: &Catalogue) -> ReadTable {
        let Prepared { table, mapped, judge } = prepared;
        let judge = judge.as_ref().filter(|judge| judge.filters());
        let mut columns: Vec<String> = mapped.columns.clone();
        let template: Vec<String> = mapped.descriptor.keys.template.columns().map(|column| column.column.clone()).collect();
        let inputs = judge.iter().flat_map(|judge| judge.inputs()).map(str::to_owned);
        for name in table.primary_key().iter().cloned().chain(template.iter().cloned()).chain(inputs) {
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
        let filtering = judge.map(|judge| {
            let always_told = |name: &String| table.primary_key().contains(name) || template.contains(name);
            let verdict = quoted(&free_name(table, "rowcast row"));
            let place = |name: &str| columns.iter().position(|column| column == name).expect("it was just put there");
            Filtering {
                judge: Arc::clone(judge),
                inputs: judge.inputs().map(place).collect(),
                selected: format!("{} AS {verdict}", judge.condition()),
                verdict,
                always_told: columns.iter().map(always_told).collect(),
                only_asked: columns.iter().map(|name| !always_told(name) && !mapped.columns.contains(name)).collect(),
                names_unmatched: !mapped.descriptor.keys.can_be_told(),
                key_width: template.len(),
            }
        });
        let place = |name: &String| {
            let column = table.column(name).expect("a mapping names columns of the table");
            Place { name: name.clone(), type_oid: column.type_oid, in_identity: true }
        };
        let places: Vec<Place> = columns.iter().map(place).collect();
        let reader = RowReader::new(table, mapped, catalogue, &places).expect("every column of the mapping is selected");
        let key = |name: &String| (quoted(name), table.column(name).map_or(String::new(), |column| column.declared.clone()));
        ReadTable {
            name: table.name.clone(),
            sql_name: table.only(),
            columns: columns.iter().map(|name| quoted(name)).collect(),
            key: table.primary_key().iter().map(key).collect(),
            key_names: table.primary_key().to_vec(),
            reader,
            filtering,
        }
    }

    /// Whether the bound is a key of the table as it is now.
    pub fn knows(&self, after: Option<&Bound>) -> bool {
        self.condition(after).is_some()
    }

    /// Reads. What the server refuses because the table is locked, or is not what it was, is no fault of the connection.
    pub async fn read(&self, connection: &mut Connection, reading: Reading) -> Result<Outcome, Fault> {
        let read = match &reading.wanted {
            Wanted::After(after) => match self.condition(after.as_ref()) {
                Some(condition) => self.read_chunk(connection, after.clone(), &condition, reading.limits).await.map(Some),
                None => Ok(None),
            },
            Wanted::Rows(pks) => self.read_rows(connection, pks, reading.limits).await.map(Some),
        };
        match read {
            Ok(None) => Ok(Outcome::NoKey),
            Ok(Some((mut readout, unjudged))) => {
                connection.query("COMMIT", PATIENCE).await?;
                if let (Some(filtering), Some(unjudged)) = (&self.filtering, unjudged) {
                    let verdicts = filtering.judge.ask(connection, &unjudged.evidence).await?;
                    let names_unmatched = filtering.names_unmatched || matches!(reading.wanted, Wanted::Rows(_));
                    filtering.settle(&mut readout.rows, &unjudged.rows, verdicts, names_unmatched);
                }
                Ok(Outcome::Rows(readout))
            }
            Err(Fault::Refused(error)) => {
                connection.query("ROLLBACK", PATIENCE).await?;
                if refuses_value(&error) && self.refuses_bound(connection, &reading.wanted).await? {
                    return Ok(Outcome::NoKey);
                }
                let passing = matches!(
                    error.code.as_str(),
                    code::LOCK_NOT_AVAILABLE
                        | code::QUERY_CANCELED
                        | code::UNDEFINED_TABLE
                        | code::UNDEFINED_COLUMN
                        | code::UNDEFINED_OBJECT
                );
                if passing { Ok(Outcome::NotNow(format!("reading rows of {}: {error}", self.name))) } else { Err(Fault::Refused(error)) }
            }
            Err(fault) => Err(fault),
        }
    }

    /// The lock comes before the snapshot: a statement that rewrites the table between the two would leave it empty to the snapshot.
    fn begin(&self) -> String {
        format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = '{LOCK_PATIENCE}'; \
             LOCK TABLE {} IN ACCESS SHARE MODE; \
             SELECT pg_current_snapshot(), (extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
            self.sql_name
        )
    }

    /// Rows after a bound. The server leaves out what is not to be cached; where it cannot, because of some row, all are read and judged.
    async fn read_chunk(
        &self,
        connection: &mut Connection,
        after: Option<Bound>,
        condition: &str,
        limits: ChunkLimits,
    ) -> Result<(Readout, Option<Unjudged>), Fault> {
        let mut limits = limits;
        if let Some(filtering) = &self.filtering {
            let select = self.matching(filtering, condition, limits);
            let mut first = FIRST_ROWS;
            loop {
                match self.read_after(connection, after.clone(), &select, limits, first, None).await {
                    Err(Fault::Refused(error)) if error.code == code::QUERY_CANCELED => {
                        connection.query("ROLLBACK", PATIENCE).await?;
                        if first == 1 {
                            // The judge has a limit for each row.
                            limits.rows = 1;
                            break;
                        }
                        first /= GROWTH;
                        tracing::warn!(table = self.name, "the server took too long for the filter of a few rows; asking for {first}");
                    }
                    Err(Fault::Refused(error)) if error.may_be_of_row() => {
                        connection.query("ROLLBACK", PATIENCE).await?;
                        break;
                    }
                    read => return read.map(|readout| (readout, None)),
                }
            }
        }
        let select = format!("SELECT {} FROM {}{condition} {}", self.columns.join(","), self.sql_name, self.order(limits));
        let mut unjudged = self.filtering.as_ref().map(Filtering::unjudged);
        let readout = self.read_after(connection, after, &select, limits, FIRST_ROWS, unjudged.as_mut()).await?;
        Ok((readout, unjudged))
    }

    /// The order of the key. One row more than wanted tells whether any follows.
    fn order(&self, limits: ChunkLimits) -> String {
        let key: Vec<&str> = self.key.iter().map(|(name, _)| name.as_str()).collect();
        format!("ORDER BY {} LIMIT {}", key.join(","), limits.rows.max(1) + 1)
    }

    /// Selects rows with, as the last column, whether they match. The condition is evaluated once a row, and of a row that does not match
    /// only its keys are told.
    fn matching(&self, filtering: &Filtering, condition: &str, limits: ChunkLimits) -> String {
        let verdict = &filtering.verdict;
        let told = |(column, (always, only_asked)): (&String, (&bool, &bool))| match (always, only_asked) {
            (true, _) => column.clone(),
            (_, true) => format!("NULL AS {column}"),
            _ => format!("CASE WHEN {verdict} THEN {column} END AS {column}"),
        };
        let columns: Vec<String> = self.columns.iter().zip(filtering.always_told.iter().zip(&filtering.only_asked)).map(told).collect();
        let order = self.order(limits);
        format!(
            "SELECT {},{verdict} FROM (SELECT {},{} FROM {}{condition} {order}) rows {order}",
            columns.join(","),
            self.columns.join(","),
            filtering.selected,
            self.sql_name
        )
    }

    async fn read_after(
        &self,
        connection: &mut Connection,
        after: Option<Bound>,
        select: &str,
        limits: ChunkLimits,
        first: usize,
        mut unjudged: Option<&mut Unjudged>,
    ) -> Result<Readout, Fault> {
        let wanted = limits.rows.max(1);
        let mut asked = first.min(wanted + 1);
        // A filter that the server evaluates may be slow.
        let filters = self.filtering.is_some() && unjudged.is_none();
        let limit = if filters { format!("SET LOCAL statement_timeout = '{}ms'; ", FETCH_LIMIT.as_millis()) } else { String::new() };
        let begin = format!("{}; {limit}DECLARE rowcast NO SCROLL CURSOR FOR {select}; FETCH {asked} FROM rowcast", self.begin());
        let mut answers = VecDeque::from(connection.query(&begin, PATIENCE).await?);
        let begun = Instant::now();
        let mut readout = readout(answers.pop_front(), after)?;
        let mut reader = self.reader.clone();
        let (mut read, mut bytes, mut told) = (0, 0, 0);
        loop {
            let got = answers.len();
            for answer in answers.drain(..) {
                if read >= wanted || bytes >= limits.bytes && read > 0 {
                    readout.last = false;
                    return Ok(readout);
                }
                read += 1;
                // Where the server has left the row out, it says so behind the columns.
                let left_out = answer.len() > self.columns.len() && !answer.is_true(self.columns.len());
                let row = match &self.filtering {
                    Some(filtering) if left_out => filtering.left_out(&mut reader, &answer)?,
                    _ => Some(read_row(&mut reader, &answer)?),
                };
                if let Some(row) = row {
                    if let (Some(filtering), Some(unjudged)) = (&self.filtering, &mut unjudged) {
                        unjudged.add(readout.rows.len(), filtering, &answer);
                    }
                    bytes += size(&row).max(answer.size());
                    told += usize::from(!left_out);
                    readout.rows.push(row);
                }
                let bound = reader.bound(|place| cell(&answer, place)).map_err(nameless)?;
                readout.upto = Some(Bound(bound.into()));
            }
            if got < asked || read > wanted {
                return Ok(readout);
            }
            if begun.elapsed() >= CHUNK_TIME {
                readout.last = false;
                return Ok(readout);
            }
            // As many as may fit, going by the length of the rows that were told so far, and not many more than before, for nobody knows how
            // long they take.
            let fitting = if told == 0 { FIRST_ROWS } else { limits.bytes.saturating_sub(bytes) * told / bytes.max(1) + 1 };
            let growth = if first < FIRST_ROWS { 1 } else { GROWTH };
            asked = fitting.min(wanted + 1 - read).min(growth * asked).max(1);
            answers = match connection.query(&format!("FETCH {asked} FROM rowcast"), PATIENCE).await {
                // What there is so far is a chunk; the next one begins with the rows that take so long.
                Err(Fault::Refused(error)) if filters && error.code == code::QUERY_CANCELED => {
                    readout.last = false;
                    return Ok(readout);
                }
                fetched => VecDeque::from(fetched?),
            };
        }
    }

    async fn read_rows(
        &self,
        connection: &mut Connection,
        pks: &[String],
        limits: ChunkLimits,
    ) -> Result<(Readout, Option<Unjudged>), Fault> {
        let mut unjudged = self.filtering.as_ref().map(Filtering::unjudged);
        let mut begun = connection.query(&format!("{}; SAVEPOINT row", self.begin()), PATIENCE).await?;
        let mut readout = readout(begun.pop(), None)?;
        let mut reader = self.reader.clone();
        let mut bytes = 0;
        for pk in pks {
            if readout.answered >= limits.rows.max(1) || bytes >= limits.bytes && readout.answered > 0 {
                break;
            }
            readout.answered += 1;
            // Anybody may put a request into the control queue; one that makes no sense must not stop the pipeline.
            let found = match self.values_of_pk(pk) {
                Some(values) => self.read_one(connection, &mut reader, &values).await?,
                None => None,
            };
            let Some((row, answer)) = found else {
                tracing::warn!(table = self.name, "a row was requested by {pk:?}, by which none can be told");
                continue;
            };
            let told = answer.as_ref().map_or(0, Answer::size);
            if let Some(answer) = answer {
                readout.existing += 1;
                if let (Some(filtering), Some(unjudged)) = (&self.filtering, &mut unjudged) {
                    unjudged.add(readout.rows.len(), filtering, &answer);
                }
            }
            bytes += size(&row).max(told);
            readout.rows.push(row);
        }
        Ok((readout, unjudged))
    }

    /// One row with what the server told of it, or that there is none. `None` where the values are none of the key's types, or its template
    /// needs more than the key.
    pub async fn read_one(
        &self,
        connection: &mut Connection,
        reader: &mut RowReader,
        values: &[String],
    ) -> Result<Option<(ReadRow, Option<Answer>)>, Fault> {
        let condition = self.key.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",");
        let literals = self.literals(values);
        // The first statement tells how the server itself writes the key.
        let sql = format!("SELECT {literals}; SELECT {} FROM {} WHERE ({condition}) = ({literals})", self.columns.join(","), self.sql_name);
        let answers = match connection.query(&sql, PATIENCE).await {
            Err(Fault::Refused(error)) if refuses_value(&error) => {
                connection.query("ROLLBACK TO SAVEPOINT row", PATIENCE).await?;
                return Ok(None);
            }
            answered => answered?,
        };
        let [key, found @ ..] = answers.as_slice() else { return Err(Fault::Lost("the server gave no row for a key".to_owned())) };
        if let Some(row) = found.first() {
            return read_row(reader, row).map(|read| Some((read, Some(row.clone()))));
        }
        let cell = |place| self.key_cell(key, 0, place);
        let pk = reader.pk(cell).map_err(nameless)?;
        Ok(reader.key(cell).ok().map(|key| (ReadRow { pk, image: Image::Absent { key } }, None)))
    }

    /// The cell of the selected column at `place` out of an answer in which the primary key alone stands, from `first` on.
    pub fn key_cell<'a>(&self, answer: &'a Answer, first: usize, place: usize) -> Option<Cell<'a>> {
        let column = self.columns.get(place)?;
        let index = self.key.iter().position(|(name, _)| name == column)?;
        answer.bytes(first + index).map(Cell::Text)
    }

    /// Whether it is the bound that the server refuses: since it was made, the primary key was given other types.
    async fn refuses_bound(&self, connection: &mut Connection, wanted: &Wanted) -> Result<bool, Fault> {
        let Wanted::After(Some(after)) = wanted else { return Ok(false) };
        let Some(literals) = self.bound(after) else { return Ok(true) };
        match connection.query(&format!("SELECT {literals}"), PATIENCE).await {
            Err(Fault::Refused(error)) if refuses_value(&error) => Ok(true),
            asked => asked.map(|_| false),
        }
    }

    fn condition(&self, after: Option<&Bound>) -> Option<String> {
        let Some(after) = after else { return Some(String::new()) };
        let names: Vec<&str> = self.key.iter().map(|(name, _)| name.as_str()).collect();
        self.bound(after).map(|literals| format!(" WHERE ({}) > ({literals})", names.join(",")))
    }

    /// A bound's values as SQL writes them, if it is made of the primary key's columns.
    fn bound(&self, after: &Bound) -> Option<String> {
        let values: Vec<(String, String)> = ordered(&after.0, |value| quoted_text(value.get()))?;
        let known = values.iter().map(|(name, _)| name).eq(&self.key_names);
        let values: Vec<String> = values.into_iter().map(|(_, value)| value).collect();
        known.then(|| self.literals(&values))
    }

    /// These texts, as SQL writes them, in the key's types.
    pub fn literals(&self, values: &[String]) -> String {
        let typed = |(value, (_, declared)): (&String, &(String, String))| format!("{value}::{declared}");
        values.iter().zip(&self.key).map(typed).collect::<Vec<_>>().join(",")
    }

    /// The server's text of each column of a primary key that stands as a JSON object, as SQL writes it.
    pub fn values_of_pk(&self, pk: &str) -> Option<Vec<String>> {
        let text = |value: &RawValue| match value.get() {
            "null" => None,
            text if text.starts_with(['{', '"']) => quoted_text(text),
            text if text.starts_with('[') => None,
            text => Some(literal(text)),
        };
        let values = ordered(pk, text)?;
        let of = |name: &String| values.iter().find(|(field, _)| field == name).map(|(_, value)| value.clone());
        let found: Option<Vec<String>> = self.key_names.iter().map(of).collect();
        found.filter(|_| values.len() == self.key_names.len())
    }
}

impl Filtering {
    fn unjudged(&self) -> Unjudged {
        Unjudged { rows: Vec::new(), evidence: Evidence::new(self.inputs.len()) }
    }

    /// What a chunk says of a row that the server has left out.
    fn left_out(&self, reader: &mut RowReader, answer: &Answer) -> Result<Option<ReadRow>, Fault> {
        if !self.names_unmatched {
            return Ok(None);
        }
        let pk = reader.pk(|place| cell(answer, place)).map_err(nameless)?;
        // What cannot be a key has never been one.
        let key = reader.key(|place| cell(answer, place)).unwrap_or_else(|_| vec![KeyValue::Null; self.key_width]);
        Ok(Some(ReadRow { pk, image: Image::Absent { key } }))
    }

    /// Leaves rows out, or names them as absent, and sets those aside that the server cannot judge.
    fn settle(&self, rows: &mut Vec<ReadRow>, judged: &[usize], verdicts: Vec<Verdict>, names_unmatched: bool) {
        assert_eq!(judged.len(), verdicts.len(), "every row is judged");
        let mut kept = vec![true; rows.len()];
        for (&place, verdict) in judged.iter().zip(verdicts) {
            let reason = match verdict {
                Verdict::Matches(_) => continue,
                Verdict::Differs => None,
                Verdict::Fails(reason) => Some(reason),
            };
            let key = match &rows[place].image {
                Image::Present { key, .. } | Image::Unreadable { key: Some(key), .. } => Some(key.clone()),
                Image::Absent { .. } | Image::Unreadable { key: None, .. } => None,
            };
            rows[place].image = match reason {
                Some(reason) => Image::Unreadable { key, reason },
                // What cannot be a key has never been one.
                None => {
                    kept[place] = names_unmatched;
                    Image::Absent { key: key.unwrap_or_else(|| vec![KeyValue::Null; self.key_width]) }
                }
            };
        }
        let mut kept = kept.into_iter();
        rows.retain(|_| kept.next().expect("there is a word for each row"));
    }
}

/// The fields of a JSON object in their order.
fn ordered(json: &str, value: impl Fn(&RawValue) -> Option<String>) -> Option<Vec<(String, String)>> {
    let fields = crate::mapping::Fields::of(json)?;
    fields.0.into_iter().map(|(name, raw)| Some((name.into_owned(), value(raw)?))).collect()
}

fn readout(first: Option<Answer>, upto: Option<Bound>) -> Result<Readout, Fault> {
    let first = first.ok_or_else(|| Fault::Lost("the server gave no snapshot".to_owned()))?;
    let snapshot = Snapshot::read(first.text(0)?)?;
    Ok(Readout { rows: Vec::new(), upto, last: true, answered: 0, existing: 0, snapshot, read_us: first.number(1)? })
}

pub(super) fn read_row(reader: &mut RowReader, answer: &Answer) -> Result<ReadRow, Fault> {
    let pk = reader.pk(|place| cell(answer, place)).map_err(nameless)?;
    let image = reader.image(|place| cell(answer, place)).expect("a query tells every column");
    Ok(ReadRow { pk, image })
}

pub(super) fn cell(answer: &Answer, place: usize) -> Option<Cell<'_>> {
    (place < answer.len()).then(|| answer.bytes(place).map_or(Cell::Null, Cell::Text))
}

pub(super) fn nameless(nameless: Nameless) -> Fault {
    let (Nameless::Untold(why) | Nameless::Unwritable(why)) = nameless;
    Fault::Hopeless(why)
}

/// As SQL writes it, a text that stands in quotes, or bytes that are none. A statement ends at a null character, so that none can be said.
fn quoted_text(json: &str) -> Option<String> {
    if let Some(digits) = bytes_of(json) {
        return Some(format!("convert_from('\\x{digits}'::bytea, 'SQL_ASCII')"));
    }
    serde_json::from_str(json).ok().filter(|text: &String| !text.contains('\0')).map(|text| literal(&text))
}

/// Whether the server refuses a value: its type does not take it, or a check of its domain does not.
pub(super) fn refuses_value(error: &ServerError) -> bool {
    [code::CLASS_DATA, code::CLASS_CONSTRAINT, code::RAISED].iter().any(|class| error.code.starts_with(class))
}

pub(super) fn size(row: &ReadRow) -> usize {
    row.pk.len() + if let Image::Present { json, .. } = &row.image { json.len() } else { 0 }
}
