//! A row as the server sends it, by stream or by query, and how it becomes a JSON object. Pure.

use super::types::{Catalogue, Refusal};
use super::values::{Plan, Reason, Scratch};
use crate::batch::push_json_text;

/// A column's value in the server's own text form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'b> {
    /// SQL NULL.
    Null,
    /// A large value that the update left as it was; the stream does not repeat it.
    Unchanged,
    /// What the type's output function writes.
    Text(&'b [u8]),
}

/// Where a cell stands in the bytes of its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Span {
    Null,
    Unchanged,
    Text { start: usize, end: usize },
}

impl Span {
    /// The cell itself.
    pub(super) fn of(self, bytes: &[u8]) -> Cell<'_> {
        match self {
            Span::Null => Cell::Null,
            Span::Unchanged => Cell::Unchanged,
            Span::Text { start, end } => Cell::Text(&bytes[start..end]),
        }
    }
}

/// Room for the places of one row's cells, used again for every row.
#[derive(Clone, Debug, Default)]
pub struct Cells(Vec<Span>);

impl Cells {
    /// The cells of a row; those of the row before are forgotten.
    pub(super) fn of<'c>(&'c mut self, bytes: &'c [u8], spans: impl Iterator<Item = Span>) -> Row<'c> {
        self.0.clear();
        self.0.extend(spans);
        Row { bytes, spans: &self.0 }
    }
}

/// One row, its cells in reach in any order.
#[derive(Clone, Copy, Debug)]
pub struct Row<'r> {
    bytes: &'r [u8],
    spans: &'r [Span],
}

impl<'r> Row<'r> {
    /// The value of the column at this place, counted from 0; `None` beyond the last one.
    pub fn cell(&self, place: usize) -> Option<Cell<'r>> {
        self.spans.get(place).map(|span| span.of(self.bytes))
    }

    /// How many columns it has.
    pub fn width(&self) -> usize {
        self.spans.len()
    }
}

/// The cells of a row that are kept after the message that told them is gone.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    spans: Vec<Span>,
}

impl Kept {
    /// Keeps these cells, in this order.
    pub fn new<'c>(cells: impl Iterator<Item = Cell<'c>>) -> Kept {
        let mut kept = Kept::default();
        for cell in cells {
            let start = kept.bytes.len();
            kept.spans.push(match cell {
                Cell::Null => Span::Null,
                Cell::Unchanged => Span::Unchanged,
                Cell::Text(text) => {
                    kept.bytes.extend_from_slice(text);
                    Span::Text { start, end: kept.bytes.len() }
                }
            });
        }
        kept
    }

    /// The cell at this place, counted from 0; `None` beyond the last one.
    pub fn cell(&self, place: usize) -> Option<Cell<'_>> {
        self.spans.get(place).map(|span| span.of(&self.bytes))
    }

    /// How long the texts are together.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// A column that goes into the JSON object.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'n> {
    /// Its name, and that of the field.
    pub name: &'n str,
    /// Its type.
    pub type_oid: u32,
    /// Where it stands in the rows that are read, counted from 0.
    pub place: usize,
}

/// How the rows of one table become JSON objects; made once, used for every row.
///
/// Each value stands byte for byte as `row_to_json` writes it (under the settings of [`super::values::PINNED`]). The object has the
/// wanted columns in the wanted order, without any white space of its own; `row_to_json` has the same form, with all columns in the
/// table's order.
#[derive(Clone, Debug)]
pub struct RowPlan {
    table: String,
    fields: Vec<Field>,
    scratch: Scratch,
}

#[derive(Clone, Debug)]
struct Field {
    column: String,
    /// The name as JSON, and the colon.
    before: String,
    place: usize,
    plan: Plan,
}

/// A column whose values cannot be cached, and what can be done about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("table {table}, column {column}: {refusal}; leave the column out of `columns`")]
pub struct Unsupported {
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
    /// Why.
    pub refusal: Refusal,
}

/// A value that could not be converted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("table {table}, column {column} of type {type_name}: {reason}")]
pub struct ValueError {
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
    /// Its type.
    pub type_name: String,
    /// Why not.
    pub reason: Reason,
}

impl RowPlan {
    /// A plan for the rows of `table`.
    pub fn new<'n>(catalogue: &Catalogue, table: &str, wanted: impl IntoIterator<Item = Wanted<'n>>) -> Result<RowPlan, Unsupported> {
        let mut fields = Vec::new();
        for Wanted { name, type_oid, place } in wanted {
            let plan =
                catalogue.plan(type_oid).map_err(|refusal| Unsupported { table: table.to_owned(), column: name.to_owned(), refusal })?;
            let mut before = String::with_capacity(name.len() + 3);
            push_json_text(&mut before, name);
            before.push(':');
            fields.push(Field { column: name.to_owned(), before, place, plan });
        }
        Ok(RowPlan { table: table.to_owned(), fields, scratch: Scratch::default() })
    }

    /// Whether the column at this place goes into the object.
    pub(super) fn reads(&self, place: usize) -> bool {
        self.fields.iter().any(|field| field.place == place)
    }

    /// Appends the JSON object of a row. A column that `cell` gives as unchanged is left out of the object, and its index among the
    /// wanted columns is appended to `missing`. After an error both are as they were.
    pub fn push_json<'c>(
        &mut self,
        json: &mut String,
        cell: impl Fn(usize) -> Option<Cell<'c>>,
        missing: &mut Vec<usize>,
    ) -> Result<(), ValueError> {
        let (begin, missing_before) = (json.len(), missing.len());
        json.push('{');
        for (index, field) in self.fields.iter().enumerate() {
            let outcome = match cell(field.place) {
                Some(Cell::Unchanged) => {
                    missing.push(index);
                    continue;
                }
                Some(Cell::Null) => {
                    field.begin(json, begin);
                    json.push_str("null");
                    Ok(())
                }
                Some(Cell::Text(text)) => {
                    field.begin(json, begin);
                    field.plan.push_json(json, text, &mut self.scratch)
                }
                None => Err(Reason::NoCell),
            };
            if let Err(reason) = outcome {
                json.truncate(begin);
                missing.truncate(missing_before);
                return Err(ValueError {
                    table: self.table.clone(),
                    column: field.column.clone(),
                    type_name: field.plan.type_name().to_owned(),
                    reason,
                });
            }
        }
        json.push('}');
        Ok(())
    }
}

impl Field {
    /// What stands before the value in an object that starts at `begin`.
    fn begin(&self, json: &mut String, begin: usize) {
        if json.len() > begin + 1 {
            json.push(',');
        }
        json.push_str(&self.before);
    }
}
