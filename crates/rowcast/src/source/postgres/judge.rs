//! What the server has to say of rows that were told by their texts: whether they match the filter, and what generated columns they have.
//!
//! Only PostgreSQL can evaluate its expressions, and they are immutable, so that it does not matter when it does. It is given the texts of
//! the columns that are in them, as lists of values that each type reads as it reads what it has written.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::filter::{self, Filter};
use super::schema::{Misfit, Table};
use super::wire::{Answer, Connection, Fault, ServerError, code, quoted};
use crate::finding::Setting;
use crate::mapping::MappedTable;

/// How long the server may take for the rows of one question.
const LIMIT: Duration = Duration::from_secs(10);
/// The same, with what comes around it.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much is put before the server at once, unless one row is more: a server may have little memory, and reads it several times.
const PART_BYTES: usize = 2 * 1024 * 1024;

/// What the server is asked about the rows of one table.
#[derive(Debug)]
pub(super) struct Judge {
    /// The table's name, for messages.
    table: String,
    /// The columns that must be told of a row.
    inputs: Vec<Input>,
    /// The cached columns that are computed.
    computed: Vec<String>,
    /// The filter's condition, true or false of a row of the table itself.
    condition: Option<String>,
    /// The name of the prepared statement.
    statement: String,
    /// What is selected of the rows, and what is selected of those.
    layers: Layers,
}

/// A column that is in an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Input {
    name: String,
    /// The type of the list.
    list: String,
    /// What is selected of a value in the list.
    value: String,
}

/// The parts of the question between which the lists stand.
#[derive(Clone, Debug)]
struct Layers {
    before: String,
    after: String,
}

/// What the server says of one row.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is cached. The columns that are computed begin at [`Verdict::COMPUTED`].
    Matches(Answer),
    /// It is absent from the cache.
    Differs,
    /// The server cannot tell, for this reason.
    Fails(String),
}

impl Verdict {
    /// Where the computed columns of an answer begin: after the row's number and whether it matches.
    pub const COMPUTED: usize = 2;
}

/// The texts of rows that are put before the server, column by column, each as an array within a text as SQL writes them.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    rows: usize,
    columns: Vec<Texts>,
}

#[derive(Clone, Debug, Default)]
struct Texts {
    bytes: Vec<u8>,
    /// Where each row's ends.
    ends: Vec<usize>,
}

impl Evidence {
    /// No row yet, of so many columns.
    pub fn new(columns: usize) -> Evidence {
        Evidence { rows: 0, columns: vec![Texts::default(); columns] }
    }

    /// Adds a row.
    pub fn push<'c>(&mut self, cells: impl Iterator<Item = Option<&'c [u8]>>) {
        let mut width = 0;
        for (texts, cell) in self.columns.iter_mut().zip(cells) {
            texts.push(cell);
            width += 1;
        }
        assert_eq!(width, self.columns.len(), "a row has every column that is asked for");
        self.rows += 1;
    }

    /// All rows, in parts of at most [`PART_BYTES`] or one row.
    fn parts(&self) -> Vec<Range<usize>> {
        let mut parts = Vec::new();
        let (mut start, mut before) = (0, 0);
        for row in 0..self.rows {
            let end: usize = self.columns.iter().map(|texts| texts.ends[row]).sum();
            if end - before > PART_BYTES && row > start {
                parts.push(start..row);
                before = self.columns.iter().map(|texts| texts.ends[row - 1]).sum();
                start = row;
            }
        }
        if start < self.rows {
            parts.push(start..self.rows);
        }
        parts
    }
}

impl Texts {
    fn push(&mut self, cell: Option<&[u8]>) {
        if !self.ends.is_empty() {
            self.bytes.push(b',');
        }
        match cell {
            None => self.bytes.extend_from_slice(b"NULL"),
            Some(text) => {
                self.bytes.push(b'"');
                for &byte in text {
                    match byte {
                        // For the array.
                        b'"' | b'\\' => self.bytes.push(b'\\'),
                        // For the text around it.
                        b'\'' => self.bytes.push(b'\''),
                        _ => {}
                    }
                    self.bytes.push(byte);
                }
                self.bytes.push(b'"');
            }
        }
        self.ends.push(self.bytes.len());
    }

    /// The rows of this range, without the braces.
    fn slice(&self, rows: &Range<usize>) -> &[u8] {
        // The comma is the next row's.
        let start = rows.start.checked_sub(1).map_or(0, |before| self.ends[before] + 1);
        &self.bytes[start..self.ends[rows.end - 1]]
    }
}

impl Judge {
    /// Who judges the rows of a table; `None` where the log and a query tell all there is to know. Tries the expressions out on no row.
    pub async fn appoint(
        connection: &mut Connection,
        table: &Table,
        mapped: &MappedTable,
        filter: Option<&str>,
    ) -> Result<Result<Option<Judge>, Misfit>, Fault> {
        let misfit = |setting, why: String| Ok(Err(Misfit { setting, text: format!("table {}: {why}", table.name) }));
        let filter = match filter {
            None => None,
            Some(text) => match filter::compile(connection, table, text).await? {
                Ok(filter) => Some(filter),
                Err(why) => return misfit(Setting::Where, format!("`where` {why}")),
            },
        };
        let Some(judge) = Judge::new(table, mapped, filter.as_ref()) else { return Ok(Ok(None)) };
        let mut used = filter.iter().flat_map(|filter| &filter.inputs);
        if let Some((name, leaf)) = used.find_map(|name| Some((name, table.generated(name)?.differs_in.as_ref()?))) {
            let why =
                format!("`where` names the generated column {name}, which the partition {leaf} computes in another way; compare others");
            return misfit(Setting::Where, why);
        }
        match connection.query(&judge.question(|_, input| format!("'{{}}'::{}", input.list)), PATIENCE).await {
            Ok(_) => Ok(Ok(Some(judge))),
            Err(Fault::Refused(error)) => match filter::explain(&error) {
                Some(why) if judge.filters() => misfit(Setting::Where, format!("`where` {why}")),
                Some(_) => misfit(
                    Setting::Columns,
                    format!(
                        "its generated columns ({}) cannot be computed: {error}; leave them out of `columns`",
                        judge.computed.join(", ")
                    ),
                ),
                None => Err(Fault::Refused(error)),
            },
            Err(fault) => Err(fault),
        }
    }

    /// The same for a filter that was tried out before: it costs nothing to assume that every column is in it, for a few rows, and nothing is
    /// written.
    pub fn familiar(table: &Table, mapped: &MappedTable, filter: Option<&str>) -> Result<Option<Judge>, Misfit> {
        let wrong = |why| Misfit { setting: Setting::Where, text: format!("table {}: `where` {why}", table.name) };
        let text = filter.map(filter::expression).transpose().map_err(wrong)?;
        let inputs = || table.columns.iter().map(|column| column.name.clone()).collect();
        let filter = text.map(|text| Filter { text, inputs: inputs() });
        Ok(Judge::new(table, mapped, filter.as_ref()))
    }

    fn new(table: &Table, mapped: &MappedTable, filter: Option<&Filter>) -> Option<Judge> {
        let computed: Vec<String> = mapped.columns.iter().filter(|name| table.generated(name).is_some()).cloned().collect();
        if computed.is_empty() && filter.is_none() {
            return None;
        }
        let used = || filter.into_iter().flat_map(|filter| &filter.inputs);
        let (computed_used, told_used): (Vec<&String>, Vec<&String>) = used().partition(|name| table.generated(name).is_some());
        let all_computed = once(computed.iter().chain(computed_used));
        let of_computed = all_computed.iter().filter_map(|name| table.generated(name)).flat_map(|generated| &generated.inputs);
        let mut names = once(told_used.into_iter().chain(of_computed));
        if names.is_empty() {
            // Something must tell how many rows there are.
            names.extend(table.primary_key().first());
        }
        let inputs: Vec<Input> = names.into_iter().filter_map(|name| table.column(name)).map(Input::new).collect();
        let number = filter::free_name(table, "rowcast row");
        let condition = filter.map(|filter| format!("(({}) IS TRUE)", filter.text));
        let layers = layers(table, &inputs, &all_computed, &computed, condition.as_deref().unwrap_or("TRUE"), &number);
        let statement = format!("rowcast_{}", table.oid);
        Some(Judge { table: table.name.clone(), inputs, computed, condition, statement, layers })
    }

    /// The columns that must be told of a row, in order.
    pub fn inputs(&self) -> impl ExactSizeIterator<Item = &str> {
        self.inputs.iter().map(|input| input.name.as_str())
    }

    /// The cached columns that are computed, in order.
    pub fn computed(&self) -> &[String] {
        &self.computed
    }

    /// Whether rows may be left out.
    pub fn filters(&self) -> bool {
        self.condition.is_some()
    }

    /// Whether a row of the table itself is to be cached.
    pub fn condition(&self) -> &str {
        self.condition.as_deref().unwrap_or("TRUE")
    }

    fn question(&self, list: impl Fn(usize, &Input) -> String) -> String {
        let lists: Vec<String> = self.inputs.iter().enumerate().map(|(index, input)| list(index, input)).collect();
        format!("{}{}{}", self.layers.before, lists.join(", "), self.layers.after)
    }

    /// Lets a connection know the question.
    pub async fn prepare(&self, connection: &mut Connection) -> Result<(), Fault> {
        let question = self.question(|index, input| format!("${}::{}", index + 1, input.list));
        let sql = format!("SET plan_cache_mode = force_generic_plan; PREPARE {} AS {question}", self.statement);
        connection.query(&sql, PATIENCE).await.map(drop)
    }

    /// Asks about rows, on a connection that knows the question. A row that the server cannot judge fails alone.
    pub async fn ask(&self, connection: &mut Connection, evidence: &Evidence) -> Result<Vec<Verdict>, Fault> {
        let mut verdicts = Vec::with_capacity(evidence.rows);
        // Parts that are to be asked about, the first one last.
        let mut left: Vec<Range<usize>> = evidence.parts();
        left.reverse();
        while let Some(rows) = left.pop() {
            let begun = Instant::now();
            match connection.query_bytes(&self.execute(evidence, &rows), PATIENCE).await {
                Ok(answers) => self.read(answers, rows.len(), &mut verdicts)?,
                Err(Fault::Refused(error)) => {
                    connection.query("ROLLBACK", PATIENCE).await?;
                    let late = error.code == code::QUERY_CANCELED && begun.elapsed() >= LIMIT;
                    // The expressions were tried out: what is wrong with the table the next session finds out.
                    let lost = || Fault::Lost(format!("judging rows of {}: {error}", self.table));
                    if !late && !error.may_be_of_row() {
                        return Err(lost());
                    }
                    if late {
                        let (rows, limit) = (rows.len(), LIMIT.as_secs());
                        tracing::warn!(table = self.table, rows, "the server took more than {limit} s to judge rows of the log");
                    }
                    if rows.len() > 1 {
                        let middle = rows.start + rows.len() / 2;
                        left.extend([middle..rows.end, rows.start..middle]);
                    } else if late || error.is_of_values() || self.bears_no_row(connection).await? {
                        verdicts.push(Verdict::Fails(self.failure(&error)));
                    } else {
                        return Err(lost());
                    }
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(verdicts)
    }

    /// Whether the question itself is still one that the server answers: then it is the row that it cannot bear.
    async fn bears_no_row(&self, connection: &mut Connection) -> Result<bool, Fault> {
        let lists = vec!["'{}'"; self.inputs.len()].join(",");
        match connection.query(&format!("EXECUTE {}({lists})", self.statement), PATIENCE).await {
            Ok(_) => Ok(true),
            Err(Fault::Refused(_)) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    fn execute(&self, evidence: &Evidence, rows: &Range<usize>) -> Vec<u8> {
        let mut sql =
            format!("BEGIN READ ONLY; SET LOCAL statement_timeout = '{}ms'; EXECUTE {}", LIMIT.as_millis(), self.statement).into_bytes();
        for (index, texts) in evidence.columns.iter().enumerate() {
            sql.extend_from_slice(if index == 0 { b"('{" } else { b",'{" });
            sql.extend_from_slice(texts.slice(rows));
            sql.extend_from_slice(b"}'");
        }
        sql.extend_from_slice(b"); COMMIT");
        sql
    }

    fn read(&self, answers: Vec<Answer>, rows: usize, verdicts: &mut Vec<Verdict>) -> Result<(), Fault> {
        let wrong = || Fault::Lost(format!("the server did not judge each of the rows of {} in their order", self.table));
        if answers.len() != rows {
            return Err(wrong());
        }
        for (index, answer) in answers.into_iter().enumerate() {
            if answer.number::<usize>(0)? != index + 1 || answer.len() != Verdict::COMPUTED + self.computed.len() {
                return Err(wrong());
            }
            verdicts.push(if answer.is_true(1) { Verdict::Matches(answer) } else { Verdict::Differs });
        }
        Ok(())
    }

    fn failure(&self, error: &ServerError) -> String {
        if self.filters() {
            format!("the filter cannot be evaluated for this row: {error}; mend the row, or write `where` so that it bears such a value")
        } else {
            format!("the generated columns ({}) cannot be computed for this row: {error}; write the row again", self.computed.join(", "))
        }
    }
}

impl Input {
    fn new(column: &super::schema::Column) -> Input {
        let list = column.listed.as_ref().map_or_else(|| "text[]".to_owned(), |listed| format!("{listed}[]"));
        let mut value = quoted(&column.name);
        if column.listed.is_none() {
            value.push_str(&format!("::{}", column.declared));
        }
        if let Some(collation) = &column.collation {
            value = format!("({value}) COLLATE {collation}");
        }
        Input { name: column.name.clone(), list, value }
    }
}

/// Three layers, so that each sees the columns of the one below under the table's own name: the columns that are told, those that are
/// computed of them, and the condition over both.
fn layers(table: &Table, inputs: &[Input], all_computed: &[&String], computed: &[String], condition: &str, number: &str) -> Layers {
    let (name, number) = (quoted(&table.relation), quoted(number));
    let mut outer = format!("SELECT {number}, {condition}");
    for column in computed {
        outer.push_str(&format!(", {}", quoted(column)));
    }
    let mut middle = "SELECT *".to_owned();
    for (column, generated) in all_computed.iter().filter_map(|name| Some((table.column(name)?, table.generated(name)?))) {
        let collation = column.collation.as_ref().map(|name| format!(" COLLATE {name}")).unwrap_or_default();
        middle.push_str(&format!(", ({})::{}{collation} AS {}", generated.expression, column.declared, quoted(&column.name)));
    }
    let mut inner = format!("SELECT {number}");
    for input in inputs {
        inner.push_str(&format!(", {} AS {}", input.value, quoted(&input.name)));
    }
    let names: Vec<String> = inputs.iter().map(|input| quoted(&input.name)).chain([number]).collect();
    Layers {
        before: format!("{outer} FROM ({middle} FROM ({inner} FROM unnest("),
        after: format!(") WITH ORDINALITY AS {name}({})) AS {name}) AS {name}", names.join(", ")),
    }
}

/// Each name once, in order.
fn once<'n>(all: impl Iterator<Item = &'n String>) -> Vec<&'n String> {
    let mut names = Vec::new();
    for name in all {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_evidence_is_put_before_the_server_in_parts() {
        let mut evidence = Evidence::new(2);
        assert!(evidence.parts().is_empty());
        let long = vec![b'x'; PART_BYTES / 2 - 10];
        for text in [&b"x"[..], &long, &long, &long, &[b'x'; PART_BYTES + 1], b"x"] {
            evidence.push([Some(text), None].into_iter());
        }
        assert_eq!(evidence.parts(), [0..2, 2..4, 4..5, 5..6].to_vec());
    }

    #[test]
    fn a_part_of_the_evidence_stands_by_itself_whatever_is_in_the_texts() {
        let mut evidence = Evidence::new(2);
        for row in [[Some("a"), None], [Some(r#"it's "x" \"#), Some("")], [None, Some("NULL")]] {
            evidence.push(row.into_iter().map(|cell| cell.map(str::as_bytes)));
        }
        let part = |column: usize, rows: Range<usize>| String::from_utf8(evidence.columns[column].slice(&rows).to_vec()).unwrap();
        assert_eq!(part(0, 0..3), r#""a","it''s \"x\" \\",NULL"#);
        assert_eq!(
            (part(0, 1..2), part(1, 0..1), part(1, 1..3)),
            (r#""it''s \"x\" \\""#.to_owned(), "NULL".to_owned(), r#""","NULL""#.to_owned())
        );
    }
}
