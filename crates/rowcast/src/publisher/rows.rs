//! Existing rows: read when somebody asks for them, and sent once the stream has passed the moment of their reading.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::End;
use super::askings::Wanted;
use super::session::Session;
use crate::batch::{ChunkHead, DraftChange};
use crate::broker::Publishing;
use crate::change::{Change, KeyHash, Op, Partition, Table};
use crate::meter::Meter;
use crate::source::{Chunk, Read, ReadRows, Source};

/// Rows that were read and wait for the stream to pass the moment of their reading.
pub(super) struct Pending {
    table: usize,
    /// The asking that they answer; `None` for rows read singly.
    wanted: Option<Wanted>,
    chunk: Chunk,
    /// By primary key, where in the chunk; what the stream has touched since is gone from here.
    untouched: HashMap<String, usize>,
}

/// Rows that the source will hand out in the stream.
pub(super) struct Awaited {
    /// The asking that they answer; `None` for rows read singly.
    wanted: Option<Wanted>,
    /// The keys of rows read singly.
    pks: VecDeque<String>,
}

impl<S: Source, L: Publishing> Session<'_, S, L> {
    /// One step: sends rows that are due, or reads the next ones. Returns whether there was anything to do.
    pub(super) async fn serve_askings(&mut self) -> Result<bool, End> {
        if let Some(pending) = self.pending.take_if(|pending| pending.chunk.as_of <= self.position) {
            self.send_rows(&pending).await?;
            self.rows_sent(&pending);
            return Ok(true);
        }
        if self.pending.is_some() || self.awaited.len() >= self.source.readings_max() {
            return Ok(false);
        }
        if let Some((table, mut pks)) = self.requests.next_rows(|table| !self.awaited.contains_key(&table)) {
            match self.source.rows(table, pks.make_contiguous(), self.settings.chunk).await? {
                ReadRows::Now(chunk, read) => {
                    pks.drain(..read);
                    self.requests.want_more_rows(table, pks);
                    self.pending = Some(Pending::new(table, None, chunk));
                }
                ReadRows::Later => drop(self.awaited.insert(table, Awaited { wanted: None, pks })),
            }
            return Ok(true);
        }
        let free = |table: &Table| self.table(table).is_some_and(|table| !self.awaited.contains_key(&table));
        if let Some(wanted) = self.askings.next(free) {
            let table = self.table(&wanted.table).expect("only askings of mapped tables are noted");
            match self.source.chunk(table, wanted.after.as_ref(), self.settings.chunk).await? {
                Read::Now(chunk) => self.pending = Some(Pending::new(table, Some(wanted), chunk)),
                Read::Later => drop(self.awaited.insert(table, Awaited { wanted: Some(wanted), pks: VecDeque::new() })),
                Read::NoKey => self.begin_resync_anew(&wanted),
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// The resync that asks cannot be continued; a request makes every partition open a fresh one.
    pub(super) fn begin_resync_anew(&mut self, wanted: &Wanted) {
        let after = wanted.after.as_ref().map_or("", |bound| &bound.0);
        tracing::warn!(table = %wanted.table, after, "a resync asks for rows after what is no key of the table any more; it begins anew");
        self.askings.forget(wanted);
        self.requests.want_resync(wanted.table.clone());
        self.next_heartbeat = Instant::now();
    }

    pub(super) async fn send_rows(&mut self, pending: &Pending) -> Result<(), End> {
        let tables = Arc::clone(&self.tables);
        let mapped = &tables[pending.table];
        let chunk = &pending.chunk;
        let mut lanes: Vec<Vec<(&str, String, Option<&str>)>> = vec![Vec::new(); usize::from(self.settings.partitions)];
        for (index, row) in chunk.rows.iter().enumerate() {
            if pending.untouched.get(&row.pk) != Some(&index) {
                continue;
            }
            if let Some((key, json)) = self.map(mapped, Op::Read, &row.pk, &row.image).await? {
                let partition = KeyHash::of(&key).partition(self.settings.partitions);
                lanes[partition.index()].push((&row.pk, key, json));
            }
        }
        let (recipients, after) = match &pending.wanted {
            Some(wanted) => {
                (wanted.recipients.iter().map(|(partition, run)| (*partition, Some(run.clone()))).collect(), wanted.after.clone())
            }
            None => {
                let concerned = Partition::all(self.settings.partitions).filter(|partition| !lanes[partition.index()].is_empty());
                (concerned.map(|partition| (partition, None)).collect::<Vec<_>>(), None)
            }
        };
        for (partition, run) in recipients {
            let head = ChunkHead { table: mapped.table.clone(), run, after: after.clone(), upto: chunk.upto.clone(), last: chunk.last };
            let rows = &lanes[partition.index()];
            Meter::add(&self.meter.chunk_rows, rows.len());
            let rows = rows.iter().map(|(pk, key, row)| DraftChange {
                op: Op::Read,
                table: &mapped.table.0,
                pk,
                key,
                row: *row,
                at: self.position,
                committed_us: chunk.read_us,
            });
            let outgoing = self.assembler.chunk(partition, self.position, &head, rows);
            self.send_batch(outgoing).await?;
        }
        Ok(())
    }

    /// Rows that were asked for earlier may go out.
    pub(super) async fn on_rows(&mut self, table: usize, chunk: Chunk, answered: usize, mut awaited: Awaited) -> Result<(), End> {
        if awaited.wanted.is_none() {
            awaited.pks.drain(..answered);
            self.requests.want_more_rows(table, awaited.pks);
        }
        let pending = Pending::new(table, awaited.wanted, chunk);
        self.send_rows(&pending).await?;
        self.rows_sent(&pending);
        Ok(())
    }

    /// Notes that what was asked for has been answered.
    fn rows_sent(&mut self, pending: &Pending) {
        match &pending.wanted {
            Some(wanted) => self.askings.sent(wanted, pending.chunk.upto.as_ref(), pending.chunk.last),
            None if self.awaited.values().all(|awaited| awaited.wanted.is_some()) => self.requests.rows_sent(self.last_ticket),
            None => {}
        }
    }
}

impl Pending {
    pub(super) fn new(table: usize, wanted: Option<Wanted>, chunk: Chunk) -> Pending {
        let untouched = chunk.rows.iter().enumerate().map(|(index, row)| (row.pk.clone(), index)).collect();
        Pending { table, wanted, chunk, untouched }
    }

    /// The stream has news of a row (or of a whole table) since a chunk was read: what the chunk says of it is old. News from
    /// before that moment the chunk has, too, and must keep: a consumer whose checkpoint is ahead of this stream skips them.
    pub(super) fn touch(&mut self, change: &Change) {
        if self.table != change.table || change.position <= self.chunk.as_of {
            return;
        }
        if change.op == Op::Truncate {
            self.untouched.clear();
        } else {
            self.untouched.remove(&change.pk);
        }
    }
}

impl Awaited {
    /// The asking, where it cannot be one for single rows.
    pub(super) fn into_asking(self) -> Wanted {
        self.wanted.expect("rows that are asked for singly begin after nothing")
    }
}
