//! Changes whose rows the server must judge before it is known what they are: what is kept of them meanwhile, and what becomes of them.
//! Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::judge::{Evidence, Judge, Verdict};
use super::row::{Cell, Kept};
use super::rows::{Place, RowReader};
use super::schema::Table;
use super::types::Catalogue;
use crate::change::{Change, Image, KeyValue, Op};
use crate::mapping::MappedTable;

/// How rows of one relation are kept and read, where their table has a judge.
#[derive(Debug)]
pub(super) struct Court {
    /// It reads the columns that the log tells, and behind them those that the server computes.
    reader: RowReader,
    /// How many columns the log tells.
    told: usize,
    /// By place behind those, the place in an answer.
    computed: Vec<usize>,
    /// Where the columns stand that are put before the server.
    inputs: Vec<usize>,
    /// By place, whether anybody looks at the column.
    needed: Vec<bool>,
    /// How many columns the template has.
    key_width: usize,
}

/// A row that waits for its verdict.
#[derive(Debug)]
pub(super) struct Case {
    /// Where its change stands among those of the portion.
    change: usize,
    table: usize,
    court: Arc<Court>,
    row: Kept,
}

/// The rows of one portion that wait.
#[derive(Debug, Default)]
pub(super) struct Docket {
    /// What is put before the server, by table; a table's rows in the order of its cases.
    pub evidence: BTreeMap<usize, Evidence>,
    pub cases: Vec<Case>,
}

/// A row that is to be cached, of which the log does not tell all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Untold {
    pub table: usize,
    pub pk: String,
    /// The commit record of the transaction that needs it.
    pub commit: u64,
}

impl Court {
    /// For rows with these columns. `None` as [`RowReader::new`] says.
    pub fn new(judge: &Judge, table: &Table, mapped: &MappedTable, catalogue: &Catalogue, places: &[Place]) -> Option<Court> {
        let told = places.len();
        let mut places = places.to_vec();
        let mut computed = Vec::new();
        for (index, name) in judge.computed().iter().enumerate() {
            // Version 18 can be told to put such columns into the log.
            if places.iter().any(|place| place.name == *name) {
                continue;
            }
            let type_oid = table.column(name)?.type_oid;
            places.push(Place { name: name.clone(), type_oid, in_identity: false });
            computed.push(Verdict::COMPUTED + index);
        }
        let find = |name: &str| {
            let type_oid = table.column(name)?.type_oid;
            places.iter().position(|place| place.name == name && place.type_oid == type_oid)
        };
        let inputs = judge.inputs().map(find).collect::<Option<Vec<_>>>()?;
        let reader = RowReader::new(table, mapped, catalogue, &places)?;
        let key_width = mapped.descriptor.keys.template.columns().count();
        let needed = (0..told).map(|place| inputs.contains(&place) || reader.reads(place)).collect();
        Some(Court { reader, told, computed, inputs, needed, key_width })
    }

    /// What reads primary key and template of such rows.
    pub fn reader(&self) -> &RowReader {
        &self.reader
    }

    /// Keeps a row. `None` where a column that is put before the server is not told.
    pub fn keep<'c>(&self, cell: impl Fn(usize) -> Option<Cell<'c>>) -> Option<Kept> {
        if self.inputs.iter().any(|place| !matches!(cell(*place), Some(Cell::Null | Cell::Text(_)))) {
            return None;
        }
        let kept = self.needed.iter().enumerate().map(|(place, needed)| cell(place).filter(|_| *needed).unwrap_or(Cell::Null));
        Some(Kept::new(kept))
    }

    fn put_before(&self, row: &Kept, evidence: &mut Evidence) {
        evidence.push(self.inputs.iter().map(|place| match row.cell(*place) {
            Some(Cell::Text(text)) => Some(text),
            _ => None,
        }));
    }

    /// What the row is, now that the verdict is known. `None` where a column that is cached is not told.
    fn image(&self, reader: &mut RowReader, row: &Kept, verdict: Verdict) -> Option<Image> {
        match verdict {
            Verdict::Matches(answer) => reader.image(|place| match place.checked_sub(self.told) {
                None => row.cell(place),
                Some(behind) => self.computed.get(behind).map(|place| answer.bytes(*place).map_or(Cell::Null, Cell::Text)),
            }),
            // What cannot be a key has never been one.
            Verdict::Differs => {
                let key = reader.key(|place| row.cell(place));
                Some(Image::Absent { key: key.unwrap_or_else(|_| vec![KeyValue::Null; self.key_width]) })
            }
            Verdict::Fails(reason) => Some(Image::Unreadable { key: reader.key(|place| row.cell(place)).ok(), reason }),
        }
    }
}

impl Docket {
    /// Adds the row of the change at this place.
    pub fn add(&mut self, change: usize, table: usize, court: &Arc<Court>, row: Kept) {
        let evidence = self.evidence.entry(table).or_insert_with(|| Evidence::new(court.inputs.len()));
        court.put_before(&row, evidence);
        self.cases.push(Case { change, table, court: Arc::clone(court), row });
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }
}

/// Gives the changes their rows. Those that the log does not tell whole are taken out and returned: they must be read.
pub(super) fn settle(changes: &mut Vec<Change>, cases: Vec<Case>, verdicts: BTreeMap<usize, Vec<Verdict>>) -> Vec<Untold> {
    let mut verdicts: BTreeMap<usize, std::vec::IntoIter<Verdict>> =
        verdicts.into_iter().map(|(table, verdicts)| (table, verdicts.into_iter())).collect();
    let mut untold = Vec::new();
    let mut taken_out = vec![false; changes.len()];
    // Rows of one relation mostly follow each other.
    let mut reading: Option<(Arc<Court>, RowReader)> = None;
    for case in cases {
        let verdict = verdicts.get_mut(&case.table).and_then(Iterator::next).expect("every row is judged");
        if reading.as_ref().is_none_or(|(court, _)| !Arc::ptr_eq(court, &case.court)) {
            reading = Some((Arc::clone(&case.court), case.court.reader.clone()));
        }
        let (court, reader) = reading.as_mut().expect("it was just made");
        let change = &mut changes[case.change];
        match court.image(reader, &case.row, verdict) {
            Some(image) => {
                if matches!(image, Image::Absent { .. }) {
                    change.op = Op::Delete;
                }
                change.image = image;
            }
            None => {
                taken_out[case.change] = true;
                untold.push(Untold { table: case.table, pk: change.pk.clone(), commit: change.position.0 });
            }
        }
    }
    assert!(verdicts.values_mut().all(|left| left.next().is_none()), "every verdict is of a row");
    let mut index = 0;
    changes.retain(|_| {
        index += 1;
        !taken_out[index - 1]
    });
    untold
}
