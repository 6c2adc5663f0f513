//! Existing rows of one table, read by primary key.

use std::time::{SystemTime, UNIX_EPOCH};

use super::super::{Chunk, ChunkLimits, Error, ReadRow};
use super::error::Failure;
use super::rows::Lookup;
use super::session::{Session, SessionTable};
use super::values::Datum;
use crate::change::{Bound, Image, Position};

impl Session {
    fn table(&self, table: usize) -> Result<&SessionTable, Failure> {
        self.tables.get(table).ok_or_else(|| Error::Fatal(format!("there is no table number {table} in this pipeline")).into())
    }

    /// Whether the bound is a key of the table as it is now. It may come from a consumer whose resync was under way when a
    /// migration gave the table another primary key.
    pub(super) fn knows(&self, table: usize, bound: &Bound) -> Result<bool, Failure> {
        Ok(self.table(table)?.reader.read_pk(&bound.0).is_ok())
    }

    /// The rows after a bound (a primary key as a JSON object, so that it says of which columns), on the snapshot that is open.
    pub(super) fn read_chunk(&self, table: usize, after: Option<&Bound>, limits: ChunkLimits, as_of: Position) -> Result<Chunk, Failure> {
        let reader = &self.table(table)?.reader;
        let read_us = now_us();
        // One row more than wanted tells whether any follows.
        let limit = i64::try_from(limits.rows.max(1)).unwrap_or(i64::MAX).saturating_add(1);
        let mut statement = self.connection.prepare_cached(if after.is_some() { &reader.chunk_after } else { &reader.chunk_first })?;
        if let Some(after) = after {
            for (place, value) in reader.read_pk(&after.0)?.iter().enumerate() {
                statement.raw_bind_parameter(place + 1, value)?;
            }
        }
        statement.raw_bind_parameter(reader.key_width + 1, limit)?;
        let mut found = statement.raw_query();
        let mut chunk = Chunk { rows: Vec::new(), upto: after.cloned(), last: true, as_of, read_us };
        let mut end: Option<Vec<Datum>> = None;
        let mut filter = reader.filter(&self.connection)?;
        // Rows that the filter leaves out are read, too.
        let (mut read, mut bytes) = (0, 0);
        while let Some(row) = found.next()? {
            if read >= limits.rows.max(1) || bytes >= limits.bytes && read > 0 {
                chunk.last = false;
                break;
            }
            read += 1;
            let key = reader.key(row)?;
            let image = reader.image(row, &key, filter.as_mut())?;
            if reader.names_unmatched || !matches!(image, Image::Absent { .. }) {
                let pk = reader.pk(&key);
                bytes += pk.len() + if let Image::Present { json, .. } = &image { json.len() } else { 0 };
                chunk.rows.push(ReadRow { pk, image });
            }
            end = Some(key);
        }
        if let Some(key) = end {
            chunk.upto = Some(Bound(reader.pk(&key).into()));
        }
        Ok(chunk)
    }

    /// The first of these rows, and of how many keys they are the answer, on the snapshot that is open.
    pub(super) fn read_rows(&self, table: usize, pks: &[String], limits: ChunkLimits, as_of: Position) -> Result<(Chunk, usize), Failure> {
        let reader = &self.table(table)?.reader;
        let mut chunk = Chunk { rows: Vec::new(), upto: None, last: true, as_of, read_us: now_us() };
        let mut lookup = Lookup::new(&self.connection, reader)?;
        let (mut read, mut bytes) = (0, 0);
        for pk in pks {
            if read >= limits.rows.max(1) || bytes >= limits.bytes && read > 0 {
                break;
            }
            read += 1;
            // Anybody may put a request into the control queue; one that makes no sense must not stop the pipeline.
            let key = match reader.read_pk(pk) {
                Ok(key) => key,
                Err(error) => {
                    tracing::warn!("a row was requested that cannot be: {error}");
                    continue;
                }
            };
            let image = match lookup.by_key(reader, &key)?.filter(|found| found.key == key) {
                Some(found) => found.image,
                None => lookup.fate(reader, &key)?,
            };
            if let Image::Present { json, .. } = &image {
                bytes += json.len();
            }
            chunk.rows.push(ReadRow { pk: reader.pk(&key), image });
        }
        Ok((chunk, read))
    }
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
