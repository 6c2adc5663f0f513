//! One session of the publisher: from taking the exclusive queue to the first sign that something is not as it was.

use std::collections::BTreeMap;
use std::future;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::askings::Askings;
use super::assembler::{Assembler, Outgoing};
use super::audience::{Audience, News};
use super::ledger::Ledger;
use super::requests::Requests;
use super::rows::{Awaited, Pending};
use super::{End, Settings};
use crate::batch::{self, DraftChange};
use crate::broker::{self, Address, Broker, Event, Message, Publishing, Ticket};
use crate::change::{Change, Image, KeyHash, Op, Partition, Position, Table};
use crate::dead_letter::{self, DeadLetter};
use crate::mapping::{Mapped, MappedTable};
use crate::meter::Meter;
use crate::request::Request;
use crate::source::{Portion, PositionRecord, Source};
use crate::stop::Stop;

/// How long a read may wait for a broker that takes no messages before it is given up.
const BLOCKED_READ: Duration = Duration::from_secs(1);
/// How often the source is told what it may forget.
const FORGET_EVERY: Duration = Duration::from_millis(50);
/// How long the last confirms are waited for at an orderly end.
const FAREWELL: Duration = Duration::from_secs(2);

pub(super) struct Session<'p, S, L> {
    pub(super) settings: &'p Settings,
    pub(super) source: &'p mut S,
    link: L,
    pub(super) meter: &'p Meter,
    pub(super) tables: Arc<[MappedTable]>,
    pub(super) assembler: Assembler,
    ledger: Ledger,
    pub(super) askings: Askings,
    pub(super) requests: Requests,
    /// The newest message's.
    pub(super) last_ticket: Ticket,
    pub(super) pending: Option<Pending>,
    /// By table, what the source has put off.
    pub(super) awaited: BTreeMap<usize, Awaited>,
    /// Up to where the stream has been read, and whether a read ends there.
    pub(super) position: Position,
    complete: bool,
    /// The end of the last complete read.
    complete_to: Position,
    /// When each partition was last sent something.
    last_sent: Vec<Instant>,
    pub(super) next_heartbeat: Instant,
    audience: Audience,
    next_forget: Instant,
    forgettable: Option<Position>,
    /// Since when the broker takes no messages.
    blocked: Option<Instant>,
    /// Whether the read under way was given up since then; the source may have begun one that it has not spoken of.
    read_given_up: bool,
    /// Confirms are waited for since the sending or since here, whichever is later.
    unblocked: Instant,
}

impl<'p, S: Source, L: Publishing> Session<'p, S, L> {
    /// Takes the exclusive queue, reads the position record, opens the source with it, and publishes the record again at once:
    /// reading it has counted as a delivery.
    pub(super) async fn open<B: Broker<Publishing = L>>(
        settings: &'p Settings,
        source: &'p mut S,
        broker: &B,
        meter: &'p Meter,
    ) -> Result<Session<'p, S, L>, End> {
        let mut link = broker.publishing().await?;
        let record = link.record().await?;
        let record: Option<PositionRecord> = match record.as_deref().map(serde_json::from_slice).transpose() {
            Ok(record) => record,
            Err(error) => {
                // Without a record the source begins a new lineage, which is always right.
                tracing::warn!("the position record in the broker cannot be read ({error}); beginning a new lineage");
                None
            }
        };
        let start = source.begin(record.as_ref()).await?;
        for note in &start.notes {
            // At a first start a new history is what everybody expects.
            if record.is_none() { tracing::info!("{note}") } else { tracing::warn!("{note}") }
        }
        tracing::info!(lineage = %start.lineage, position = %start.from, "publishing");
        let mapping: BTreeMap<_, _> = start.tables.iter().map(|table| (&table.table, &table.descriptor)).collect();
        let mapping = serde_json::to_string(&mapping).expect("a mapping is plain data");
        let now = Instant::now();
        let mut session = Session {
            settings,
            source,
            link,
            meter,
            tables: start.tables,
            assembler: Assembler::new(&settings.pipeline, start.lineage, mapping, settings.partitions, start.from, settings.batch),
            ledger: Ledger::new(settings.partitions, start.from),
            askings: Askings::default(),
            requests: Requests::default(),
            last_ticket: Ticket(0),
            pending: None,
            awaited: BTreeMap::new(),
            position: start.from,
            complete: true,
            complete_to: start.from,
            last_sent: vec![now; usize::from(settings.partitions)],
            next_heartbeat: now + settings.heartbeat,
            audience: Audience::default(),
            next_forget: now,
            forgettable: None,
            blocked: None,
            read_given_up: false,
            unblocked: now,
        };
        session.send_record(&start.record).await?;
        for partition in Partition::all(settings.partitions) {
            session.send_empty(partition).await?;
        }
        Ok(session)
    }

    /// Publishes until it is asked to stop (`Ok`) or the session is over (`Err`).
    pub(super) async fn run(mut self, stop: &mut Stop) -> Result<(), End> {
        loop {
            self.forget().await?;
            let worked = self.may_publish() && self.complete && self.serve_askings().await?;
            let overdue = self.overdue();
            let give_up_read = self.blocked.filter(|_| !self.read_given_up).map(|since| since + BLOCKED_READ);
            let heartbeat = self.blocked.is_none().then_some(self.next_heartbeat);
            let forget = self.forgettable.filter(|_| self.complete).map(|_| self.next_forget);
            tokio::select! {
                biased;
                () = stop.requested() => break,
                event = self.link.event() => self.on_event(event?).await?,
                () = at(overdue) => return Err(self.no_confirm().into()),
                () = at(give_up_read) => self.give_up_read().await?,
                () = at(heartbeat) => self.heartbeat().await?,
                portion = self.source.next(), if self.may_publish() => self.on_portion(portion?).await?,
                () = at(forget) => {}
                () = future::ready(()), if worked => {}
            }
        }
        self.farewell().await
    }

    /// Waits for what is under way, so that the next session has little to send again.
    async fn farewell(mut self) -> Result<(), End> {
        let deadline = Instant::now() + FAREWELL;
        while self.ledger.len() > 0 {
            tokio::select! {
                biased;
                event = self.link.event() => self.on_event(event?).await?,
                () = sleep_until(deadline) => break,
            }
        }
        if let Some(upto) = self.forgettable.take() {
            self.source.abandon().await?;
            self.source.forget(upto).await?;
        }
        Ok(self.source.release().await?)
    }

    fn may_publish(&self) -> bool {
        self.blocked.is_none() && self.ledger.len() < self.settings.window_messages && self.ledger.bytes() < self.settings.window_bytes
    }

    // What the broker says.

    async fn on_event(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Confirmed(ticket) => {
                Meter::add(&self.meter.confirmed, self.ledger.confirm(ticket));
                self.forgettable = self.ledger.forgettable().or(self.forgettable);
                // A request that is not settled comes again to the next session.
                while let Some(number) = self.requests.settled(&self.ledger) {
                    self.link.settle(number).await?;
                }
            }
            Event::Blocked(reason) => {
                tracing::warn!("the broker takes no messages for now: {reason}");
                self.blocked.get_or_insert_with(Instant::now);
                self.read_given_up = false;
            }
            Event::Unblocked => {
                tracing::info!("the broker takes messages again");
                self.blocked = None;
                self.unblocked = Instant::now();
                self.next_heartbeat = self.unblocked;
            }
            Event::Control { body, number } => self.on_request(&body, number).await?,
        }
        Ok(())
    }

    async fn on_request(&mut self, body: &[u8], number: u64) -> Result<(), End> {
        let request = match Request::decode(body) {
            Ok(request) => request,
            Err(reason) => {
                tracing::warn!("{reason}");
                let letter = DeadLetter::of_message(&self.settings.pipeline, body, &reason);
                self.send_dead_letter(&letter).await?;
                self.requests.answered_by(self.last_ticket, number);
                return Ok(());
            }
        };
        match request {
            Request::Chunk(asking) => {
                // An asking of another layout, or for a table that is not mapped any more, is one that nobody waits for.
                if asking.partition.of == self.settings.partitions && self.table(&asking.table).is_some() {
                    tracing::debug!(table = %asking.table, partition = %asking.partition, run = %asking.run, after = ?asking.after, again = asking.again, "asked for chunks");
                    self.askings.note(asking);
                }
                // If it is lost its consumer asks again.
                self.link.settle(number).await?;
            }
            Request::Rows { table, pks } => match self.table(&table) {
                Some(index) if !pks.is_empty() => {
                    self.requests.want_rows(index, pks.iter().map(|pk| pk.get().to_owned()), number);
                }
                Some(_) => self.link.settle(number).await?,
                None => {
                    tracing::warn!("rows of {table} were requested, which is not mapped");
                    self.link.settle(number).await?;
                }
            },
            Request::Resync { tables } => {
                for table in tables {
                    if self.table(&table).is_some() {
                        self.requests.want_resync(table);
                    } else {
                        tracing::warn!("a resync of {table} was requested, which is not mapped");
                    }
                }
                self.requests.resyncs_by(number);
                self.next_heartbeat = Instant::now();
            }
        }
        Ok(())
    }

    pub(super) fn table(&self, name: &Table) -> Option<usize> {
        self.tables.iter().position(|mapped| mapped.table == *name)
    }

    fn overdue(&self) -> Option<Instant> {
        let since = self.ledger.oldest().filter(|_| self.blocked.is_none())?;
        Some(since.max(self.unblocked) + self.settings.confirm_timeout)
    }

    fn no_confirm(&self) -> broker::Error {
        let (messages, timeout) = (self.ledger.len(), self.settings.confirm_timeout);
        broker::Error::Lost(format!("the broker has not confirmed the oldest of {messages} messages within {timeout:?}"))
    }

    // What the source says.

    async fn on_portion(&mut self, portion: Portion) -> Result<(), End> {
        match portion {
            Portion::Record(record) => {
                self.complete = false;
                self.send_record(&record).await
            }
            Portion::Changes { changes, to, complete } => {
                Meter::add(&self.meter.published, changes.len());
                for change in &changes {
                    self.add(change).await?;
                }
                for outgoing in self.assembler.flush(to) {
                    self.send_batch(outgoing).await?;
                }
                self.position = to;
                self.complete = complete;
                if complete {
                    self.complete_to = to;
                    self.ledger.complete(to);
                }
                Ok(())
            }
            Portion::Rows { table, chunk, answered, asked: true } => {
                let awaited = self.awaited.remove(&table).expect("a source answers what it was asked");
                self.on_rows(table, chunk, answered, awaited).await
            }
            Portion::Rows { table, chunk, asked: false, .. } => self.send_rows(&Pending::new(table, None, chunk)).await,
            Portion::NoKey { table } => {
                let awaited = self.awaited.remove(&table).expect("a source answers what it was asked");
                self.begin_resync_anew(&awaited.into_asking());
                Ok(())
            }
            Portion::Resync { table } => {
                self.requests.want_resync(self.tables[table].table.clone());
                // At once: what follows in the stream may be forgotten once it is confirmed.
                self.heartbeat().await
            }
        }
    }

    async fn add(&mut self, change: &Change) -> Result<(), End> {
        if let Some(pending) = &mut self.pending {
            pending.touch(change);
        }
        let tables = Arc::clone(&self.tables);
        let mapped = &tables[change.table];
        let table = &*mapped.table.0;
        let draft = DraftChange {
            op: change.op,
            table,
            pk: &change.pk,
            key: "",
            row: None,
            at: change.position,
            committed_us: change.committed_us,
        };
        if change.op == Op::Truncate {
            for partition in Partition::all(self.settings.partitions) {
                self.add_to(partition, draft).await?;
            }
            return Ok(());
        }
        match self.map(mapped, change.op, &change.pk, &change.image).await? {
            Some((key, row)) => {
                let partition = KeyHash::of(&key).partition(self.settings.partitions);
                self.add_to(partition, DraftChange { key: &key, row, ..draft }).await
            }
            None => Ok(()),
        }
    }

    async fn add_to(&mut self, partition: Partition, change: DraftChange<'_>) -> Result<(), End> {
        match self.assembler.add(partition, change) {
            Some(full) => self.send_batch(full).await,
            None => Ok(()),
        }
    }

    /// The key that a row concerns and what it holds. What cannot be mapped goes to the dead letters, and its key goes.
    pub(super) async fn map<'i>(
        &mut self,
        mapped: &MappedTable,
        op: Op,
        pk: &str,
        image: &'i Image,
    ) -> Result<Option<(String, Option<&'i str>)>, End> {
        let limit = self.settings.row_bytes_max;
        let (key, reason) = match mapped.map(image) {
            Mapped::Put { key, .. } | Mapped::Remove { key } if key.len() + pk.len() > limit / 4 => {
                // Such a key was never written, so there is nothing to remove; nor would it fit into a letter.
                let reason = format!("its keys have {} bytes, the limit is {}", key.len() + pk.len(), limit / 4);
                let letter = DeadLetter::of_row(&self.settings.pipeline, &mapped.table.0, op, "", None, &reason);
                self.send_dead_letter(&letter).await?;
                return Ok(None);
            }
            Mapped::Put { key, row } if row.len() <= limit => return Ok(Some((key, Some(row)))),
            Mapped::Put { key, row } => (Some(key), format!("the row has {} bytes of JSON, the limit is {limit}", row.len())),
            Mapped::Remove { key } => return Ok(Some((key, None))),
            Mapped::Nothing => return Ok(None),
            Mapped::Dead { key, reason } => (key, reason),
        };
        let letter = DeadLetter::of_row(&self.settings.pipeline, &mapped.table.0, op, pk, key.as_deref(), &reason);
        self.send_dead_letter(&letter).await?;
        Ok(key.map(|key| (key, None)))
    }

    /// No read transaction stays open while the broker takes no messages.
    async fn give_up_read(&mut self) -> Result<(), End> {
        self.read_given_up = true;
        if self.source.abandon().await? {
            self.assembler.rewind(self.complete_to);
            self.position = self.complete_to;
            self.complete = true;
        }
        Ok(())
    }

    // What goes out.

    /// An empty batch carries an idle partition forward and shows a gap that nothing else would.
    pub(super) async fn heartbeat(&mut self) -> Result<(), End> {
        let now = Instant::now();
        self.next_heartbeat = now + self.settings.heartbeat;
        for partition in Partition::all(self.settings.partitions) {
            if !self.requests.resyncs().is_empty() || now - self.last_sent[partition.index()] >= self.settings.heartbeat / 2 {
                self.send_empty(partition).await?;
            }
        }
        self.requests.resyncs_sent(self.last_ticket);
        let unconsumed = self.link.look_for_queues().await?;
        match self.audience.note(unconsumed, now) {
            None => {}
            Some(News::Back) => tracing::info!("every queue is consumed again"),
            Some(News::Missed(partitions)) => {
                let partitions: Vec<String> = partitions.iter().map(Partition::to_string).collect();
                let of = self.settings.partitions;
                tracing::warn!(
                    "nobody consumes the partitions {}: what is published waits there; start `rowcast consume`, or, if consumers run with \
                     another number of partitions than {of}, give all the same one",
                    partitions.join(", ")
                );
            }
        }
        Ok(())
    }

    async fn send_empty(&mut self, partition: Partition) -> Result<(), End> {
        let outgoing = self.assembler.empty(partition, self.position, self.requests.resyncs());
        self.send_batch(outgoing).await
    }

    pub(super) async fn send_batch(&mut self, outgoing: Outgoing) -> Result<(), End> {
        let now = Instant::now();
        self.last_sent[outgoing.partition.index()] = now;
        let bytes = outgoing.body.len();
        let message = Message { to: Address::Partition(outgoing.partition), kind: batch::MESSAGE_TYPE, body: outgoing.body };
        let ticket = self.link.publish(message).await?;
        self.last_ticket = ticket;
        self.ledger.sent(ticket, Some((outgoing.partition, outgoing.to)), bytes, now);
        Ok(())
    }

    async fn send_record(&mut self, record: &PositionRecord) -> Result<(), End> {
        let body = serde_json::to_vec(record).expect("a position record is plain data");
        self.send_aside(Message { to: Address::Record, kind: "rowcast.position", body }).await
    }

    async fn send_dead_letter(&mut self, letter: &DeadLetter) -> Result<(), End> {
        self.meter.dead.fetch_add(1, Relaxed);
        tracing::warn!(
            table = letter.table.as_ref().map(tracing::field::display),
            pk = letter.pk,
            key = letter.key,
            "dead letter: {}",
            letter.reason
        );
        self.send_aside(Message { to: Address::Dead, kind: dead_letter::MESSAGE_TYPE, body: letter.encode() }).await
    }

    /// Sends what is no batch. No confirm after it counts before its own.
    async fn send_aside(&mut self, message: Message) -> Result<(), End> {
        let bytes = message.body.len();
        let ticket = self.link.publish(message).await?;
        self.last_ticket = ticket;
        self.ledger.sent(ticket, None, bytes, Instant::now());
        Ok(())
    }

    /// Tells the source what it may forget, not too often and never in the middle of a read.
    async fn forget(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if self.complete
            && now >= self.next_forget
            && let Some(upto) = self.forgettable.take()
        {
            self.next_forget = now + FORGET_EVERY;
            self.source.forget(upto).await?;
        }
        Ok(())
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => future::pending().await,
    }
}
