//! One row, as it is now: for people who ask, not for the stream.

use std::sync::Arc;
use std::time::Duration;

use super::super::{ChunkLimits, SingleRow, SingleRowError};
use super::chunk::{ReadTable, Reading, Wanted};
use super::desk::Outcome;
use super::inspect::lineage;
use super::install::Prepared;
use super::judge::Judge;
use super::schema::{self, Table};
use super::wire::{Connection, quoted};
use super::{Capture, Error, PostgresSettings, changelog, install, slot};
use crate::batch::push_json_text;
use crate::change::Image;

const PATIENCE: Duration = Duration::from_secs(60);

/// Finds the row of the table at `table` in the settings by its primary key: a value each column, as it would be typed, or
/// `column=value`.
pub async fn single_row(settings: &PostgresSettings, table: usize, key: &[String]) -> Result<SingleRow, SingleRowError> {
    let mut connection = settings.connect("looking for the row").await?;
    let explain = settings.explain("looking for the row");
    let configured = &settings.tables[table];
    let names = [configured.name.clone()];
    let (mut found, catalogue) = schema::read(&mut connection, &settings.published(), &names).await.map_err(&explain)?;
    let found = found.pop().flatten().ok_or_else(|| Error::Fatal(install::missing(&configured.name)))?;
    let mapped = found.resolve(configured, settings.capture).map_err(Error::from)?;
    let pk = typed_key(&found, key).map_err(SingleRowError::Key)?;
    // A question of somebody's must not move the end of the log, by which it is told whether the cache has come as far.
    let judge = match settings.capture {
        Capture::Log => Judge::familiar(&found, &mapped, configured.filter.as_deref()).map_err(Error::from)?.map(Arc::new),
        Capture::Hooks => None,
    };
    if let Some(judge) = &judge {
        judge.prepare(&mut connection).await.map_err(&explain)?;
    }
    let prepared = Prepared { table: found, mapped, judge };
    let read_table = ReadTable::new(&prepared, &catalogue);
    let Prepared { table: found, mapped, .. } = prepared;
    let reading = Reading { wanted: Wanted::Rows(vec![pk.clone()]), limits: ChunkLimits { rows: 1, bytes: usize::MAX } };
    let readout = match read_table.read(&mut connection, reading).await.map_err(&explain)? {
        Outcome::Rows(readout) => readout,
        Outcome::NotNow(why) => return Err(Error::Busy(why).into()),
        Outcome::NoKey => unreachable!("a row that is found by its key is read after no bound"),
    };
    let as_of = match settings.capture {
        Capture::Log => as_of(settings, &mut connection).await?,
        Capture::Hooks => changelog::as_of(&mut connection, &readout.snapshot).await.map_err(&explain)?,
    };
    match readout.rows.into_iter().next() {
        Some(row) => Ok(SingleRow { mapped, pk: row.pk, exists: readout.existing > 0, image: row.image, as_of }),
        // A template that is not made of the primary key alone cannot be told without the row.
        None if template_in_key(&found, &mapped) => {
            Err(SingleRowError::Key(format!("{} is no primary key of {}", key.join(" "), configured.name)))
        }
        None => Ok(SingleRow {
            exists: false,
            pk,
            image: Image::Absent { key: vec![crate::change::KeyValue::Null; mapped.descriptor.keys.template.columns().count()] },
            mapped,
            as_of,
        }),
    }
}

/// Whose history it is, and a position that has whatever was read before; `None` where nothing is installed.
async fn as_of(settings: &PostgresSettings, connection: &mut Connection) -> Result<Option<(String, u64)>, Error> {
    let explain = settings.explain("looking for the row");
    if slot::read(connection, &settings.slot()).await.map_err(&explain)?.is_none() {
        return Ok(None);
    }
    let whose = lineage(settings, connection).await?;
    // Whatever the row holds was written before here.
    let end = connection.query("SELECT pg_current_wal_insert_lsn() - '0/0'", PATIENCE).await.map_err(&explain)?;
    match end.first() {
        Some(row) => Ok(Some((whose, row.number(0).map_err(&explain)?))),
        None => Err(Error::Busy("the server did not say where its log ends".to_owned())),
    }
}

fn template_in_key(table: &Table, mapped: &crate::mapping::MappedTable) -> bool {
    mapped.descriptor.keys.template.columns().all(|column| table.primary_key().contains(&column.column))
}

/// The primary key as a JSON object out of what was typed.
fn typed_key(table: &Table, typed: &[String]) -> Result<String, String> {
    let columns = table.primary_key();
    let wrong = |what: String| match columns {
        [column] => format!("{what}; a row of {} is found by one value, that of {column}", table.name),
        columns => {
            let values: Vec<String> = columns.iter().map(|column| format!("{column}=VALUE")).collect();
            format!("{what}; a row of {} is found by {}", table.name, values.join(" "))
        }
    };
    let mut values: Vec<Option<&str>> = vec![None; columns.len()];
    for (place, text) in typed.iter().enumerate() {
        // What stands before = names a column only if it is one; a value may have = in it.
        let named = text.split_once('=').and_then(|(name, value)| Some((columns.iter().position(|column| *column == name)?, value)));
        let (place, value) = named.unwrap_or((place, text));
        match values.get_mut(place) {
            Some(slot @ None) => *slot = Some(value),
            Some(Some(_)) => return Err(wrong(format!("{} is given twice", columns[place]))),
            None => return Err(wrong(format!("{} values are given", typed.len()))),
        }
    }
    let mut pk = String::from("{");
    for (value, column) in values.into_iter().zip(columns) {
        let value = value.ok_or_else(|| wrong(format!("{column} is not given")))?;
        if pk.len() > 1 {
            pk.push(',');
        }
        push_json_text(&mut pk, column);
        pk.push(':');
        push_json_text(&mut pk, value);
    }
    pk.push('}');
    Ok(pk)
}

/// About how many rows the tables have, in the order of their names here: what the server's statistics say.
pub async fn count_rows(settings: &PostgresSettings, names: &[&str]) -> Result<Vec<u64>, Error> {
    let mut connection = settings.connect("counting rows").await?;
    let explain = settings.explain("counting rows");
    let mut counts = Vec::with_capacity(names.len());
    for name in names {
        let (schema, relation) = schema::split_name(name);
        let table = super::wire::literal(&format!("{}.{}", quoted(schema), quoted(relation)));
        let sql = format!(
            "SELECT coalesce(sum(greatest(c.reltuples, s.n_live_tup, 0)), 0)::bigint FROM \
             (SELECT {table}::regclass AS oid UNION SELECT relid FROM pg_partition_tree({table}::regclass)) t \
             JOIN pg_class c ON c.oid = t.oid AND c.relkind = 'r' LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid"
        );
        let rows = connection.query(&sql, PATIENCE).await.map_err(&explain)?;
        counts.push(rows.first().map_or(Ok(0), |row| row.number(0)).map_err(&explain)?);
    }
    Ok(counts)
}
