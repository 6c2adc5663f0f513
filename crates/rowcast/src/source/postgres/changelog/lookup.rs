//! The rows that changelog rows name, as the open snapshot has them: many in one statement.

use std::time::Duration;

use super::super::super::ReadRow;
use super::super::chunk::{ReadTable, cell, nameless, refuses_value};
use super::super::rows::RowReader;
use super::super::wire::{Answer, Connection, Fault};
use crate::change::Image;

/// How long one lookup may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What became of one key: nothing where it is none of the table's, two rows where the row that equals it spells it otherwise.
pub(super) type Fates = Vec<ReadRow>;

impl ReadTable {
    /// What became of these keys, each a JSON object, in their order. The connection is in a transaction that holds a lock on the table.
    pub async fn fates(&self, connection: &mut Connection, reader: &mut RowReader, keys: &[&str]) -> Result<Vec<Fates>, Fault> {
        match self.ask_for(connection, reader, keys).await {
            Err(Fault::Refused(error)) if refuses_value(&error) => {
                connection.query("ROLLBACK TO SAVEPOINT keys; RELEASE SAVEPOINT keys", PATIENCE).await?;
            }
            answered => return answered,
        }
        // One of them is no key of this table; the others must not suffer.
        let mut fates = Vec::with_capacity(keys.len());
        for key in keys {
            match self.ask_for(connection, reader, &[key]).await {
                Err(Fault::Refused(error)) if refuses_value(&error) => {
                    connection.query("ROLLBACK TO SAVEPOINT keys; RELEASE SAVEPOINT keys", PATIENCE).await?;
                    self.warn(key);
                    fates.push(Fates::new());
                }
                answered => fates.extend(answered?),
            }
        }
        Ok(fates)
    }

    async fn ask_for(&self, connection: &mut Connection, reader: &mut RowReader, keys: &[&str]) -> Result<Vec<Fates>, Fault> {
        let mut fates = vec![Fates::new(); keys.len()];
        let mut wanted = Vec::with_capacity(keys.len());
        for (place, key) in keys.iter().enumerate() {
            match self.values_of_pk(key) {
                Some(values) => wanted.push(format!("({place},{})", self.literals(&values))),
                None => self.warn(key),
            }
        }
        if wanted.is_empty() {
            return Ok(fates);
        }
        for answer in connection.query(&self.statement(&wanted), PATIENCE).await? {
            let place: usize = answer.number(0)?;
            let fate = fates.get_mut(place).ok_or_else(|| Fault::Lost("the server answered what it was not asked".to_owned()))?;
            self.tell(reader, &answer, fate)?;
        }
        Ok(fates)
    }

    /// The key columns as they were named stand behind the place, then the row's own.
    fn statement(&self, wanted: &[String]) -> String {
        let named: Vec<String> = (0..self.key.len()).map(|index| format!("w.k{index}")).collect();
        let names: Vec<String> = (0..self.key.len()).map(|index| format!("k{index}")).collect();
        let columns: Vec<String> = self.columns.iter().map(|column| format!("t.{column}")).collect();
        let equal: Vec<String> = self.key.iter().zip(&named).map(|((name, _), named)| format!("t.{name} = {named}")).collect();
        format!(
            "SAVEPOINT keys; SELECT w.place, {}, {} FROM (VALUES {}) AS w(place, {}) LEFT JOIN {} AS t ON {}; RELEASE SAVEPOINT keys",
            named.join(", "),
            columns.join(", "),
            wanted.join(","),
            names.join(", "),
            self.sql_name,
            equal.join(" AND ")
        )
    }

    fn tell(&self, reader: &mut RowReader, answer: &Answer, fate: &mut Fates) -> Result<(), Fault> {
        let named = |place| self.key_cell(answer, 1, place);
        let pk = reader.pk(named).map_err(nameless)?;
        let first = 1 + self.key.len();
        let own = |place: usize| cell(answer, first + place);
        let key_place = self.columns.iter().position(|column| Some(column) == self.key.first().map(|(name, _)| name));
        // No column of a primary key is ever null.
        let found = key_place.is_some_and(|place| answer.bytes(first + place).is_some());
        let found = if found { Some(reader.pk(own).map_err(nameless)?) } else { None };
        // 1.0 and 1.00 are one key to the server, and two in the cache: nobody has the one that was named, then.
        if found.as_ref() != Some(&pk) {
            let key = reader.key(named).map_err(Fault::Hopeless)?;
            fate.push(ReadRow { pk, image: Image::Absent { key } });
        }
        if let Some(pk) = found {
            let image = reader.image(own).expect("a query tells every column");
            fate.push(ReadRow { pk, image });
        }
        Ok(())
    }

    /// Says that a name is passed over.
    pub fn warn(&self, key: &str) {
        tracing::warn!(table = self.name, "a changelog row names {key:?}, by which no row can be told");
    }
}
