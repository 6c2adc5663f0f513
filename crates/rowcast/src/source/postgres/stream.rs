//! From the messages of the log to changes: which table, which row, where it stands. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::super::Error;
use super::cases::{Court, Docket, Untold};
use super::judge::Judge;
use super::pgoutput::{self, Message, Old, Relation, Tuple};
use super::row::{Cell, Cells, Kept};
use super::rows::{Nameless, Place, RowReader};
use super::schema::Table;
use super::singles::Singles;
use super::touched::Touched;
use super::types::Catalogue;
use super::visibility::Unseen;
use crate::change::{Change, Image, KeyValue, Op, Position};
use crate::mapping::MappedTable;

/// How much one portion holds, more or less.
const PORTION_CHANGES: usize = 2000;
const PORTION_BYTES: usize = 1 << 20;
/// How many keys are remembered that a transaction took from a table whose uniqueness is checked only at its end.
const TAKEN_MAX: usize = 100_000;

/// A table of the pipeline, in the order that changes count.
#[derive(Debug)]
pub(super) struct SessionTable {
    pub table: Table,
    pub mapped: MappedTable,
    /// Who says what the log does not tell of its rows.
    pub judge: Option<Arc<Judge>>,
    /// Whether two rows may have one key for a moment, within a transaction.
    pub deferred: bool,
}

/// What is known of a row as it is told.
enum Told {
    Row(Image),
    /// The server must judge it first.
    Unjudged(Arc<Court>, Kept),
    /// It must be read.
    NotWhole,
}

impl Told {
    fn of<'c>(reader: &mut RowReader, court: Option<&Arc<Court>>, cell: impl Fn(usize) -> Option<Cell<'c>>) -> Told {
        match court {
            None => reader.image(cell).map_or(Told::NotWhole, Told::Row),
            Some(court) => court.keep(cell).map_or(Told::NotWhole, |row| Told::Unjudged(Arc::clone(court), row)),
        }
    }
}

/// What came with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A part of a transaction, or nothing.
    Within,
    /// A transaction has ended.
    Committed(Committed),
    /// A table's rows come with columns of which no row as it is mapped can be made.
    Strange {
        /// Which table.
        table: usize,
    },
}

/// The end of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Committed {
    pub xid: u32,
    /// Where its commit record starts and ends.
    pub commit: u64,
    pub end: u64,
    pub committed_us: i64,
    /// Where the stream stood before it.
    pub before: Position,
    /// Our message in it.
    pub message: Option<String>,
    /// Whether there was anything in it but messages.
    pub holds_changes: bool,
    /// How many events the log has told of it.
    pub events: u64,
}

#[derive(Debug)]
struct Open {
    xid: u32,
    commit: u64,
    committed_us: i64,
    /// How many events the log has told of it, ours or not.
    index: u64,
    before: Position,
    message: Option<String>,
    holds_changes: bool,
    /// By table and key, who took it last.
    taken: HashMap<(usize, String), String>,
}

/// A relation that the stream has described.
#[derive(Debug)]
enum Known {
    /// No table of ours.
    Other,
    /// Rows of a table; without a reader they are passed over. Where the log does not tell the old values that the keys need, because
    /// somebody has changed the replica identity, whatever goes or changes makes the table be read anew.
    Ours { table: usize, reader: Option<Box<RowReader>>, court: Option<Arc<Court>>, in_identity: Vec<bool>, tells_old: bool },
}

/// The stream so far.
#[derive(Debug)]
pub(super) struct Stream {
    tables: Vec<SessionTable>,
    catalogue: Catalogue,
    prefix: String,
    /// By oid, whose rows a relation holds.
    leaves: HashMap<u32, usize>,
    known: HashMap<u32, Known>,
    open: Option<Open>,
    /// Everything before this was told.
    position: Position,
    pub unseen: Unseen,
    /// What is touched while rows are being read, by the number of the reading.
    pub touched: BTreeMap<u64, Touched>,
    singles: Singles,
    /// Tables that must be read anew as a whole, with the commit record of the oldest transaction before here that needs it.
    pub resyncs: BTreeMap<usize, Option<u64>>,
    changes: Vec<Change>,
    /// The rows among them that the server must judge.
    docket: Docket,
    bytes: usize,
    old_cells: Cells,
    new_cells: Cells,
}

impl Stream {
    /// Begins where every commit record before `from` was shipped.
    pub fn new(tables: Vec<SessionTable>, catalogue: Catalogue, prefix: String, from: Position) -> Stream {
        let leaf =
            |(index, table): (usize, &SessionTable)| table.table.leaves.iter().map(move |leaf| (leaf.oid, index)).collect::<Vec<_>>();
        let leaves = tables.iter().enumerate().flat_map(leaf).collect();
        Stream {
            tables,
            catalogue,
            prefix,
            leaves,
            known: HashMap::new(),
            open: None,
            position: from,
            unseen: Unseen::default(),
            touched: BTreeMap::new(),
            singles: Singles::default(),
            resyncs: BTreeMap::new(),
            changes: Vec::new(),
            docket: Docket::default(),
            bytes: 0,
            old_cells: Cells::default(),
            new_cells: Cells::default(),
        }
    }

    /// Where the stream stands: up to here everything is in the portions taken so far, or in the next one.
    pub fn position(&self) -> Position {
        self.open.as_ref().map_or(self.position, |open| Position(open.commit, open.index))
    }

    /// Whether it stands between two transactions.
    pub fn between(&self) -> bool {
        self.open.is_none()
    }

    /// The transaction that is being told.
    pub fn open_xid(&self) -> Option<u32> {
        self.open.as_ref().map(|open| open.xid)
    }

    /// The server has told that every commit record before `end` was told of, or is none of ours.
    pub fn advance(&mut self, end: u64) {
        if self.open.is_none() {
            self.position = self.position.max(Position(end, 0));
        }
    }

    /// Whether there are as many changes as a portion should hold.
    pub fn is_full(&self) -> bool {
        self.changes.len() >= PORTION_CHANGES || self.bytes >= PORTION_BYTES
    }

    /// The changes so far, and what the server must judge first.
    pub fn take_changes(&mut self) -> (Vec<Change>, Docket) {
        self.bytes = 0;
        (std::mem::take(&mut self.changes), std::mem::take(&mut self.docket))
    }

    /// Whether there are any.
    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Takes in one message.
    pub fn take(&mut self, message: &[u8]) -> Result<Step, Error> {
        let message = pgoutput::decode(message).map_err(|error| Error::Fatal(format!("{error}; this is a fault in rowcast")))?;
        match message {
            Message::Begin { commit_lsn, committed_us, xid } => {
                assert!(self.open.is_none(), "a transaction begins only after the one before has ended");
                let before = self.position;
                self.open = Some(Open {
                    xid,
                    commit: commit_lsn,
                    committed_us,
                    index: 0,
                    before,
                    message: None,
                    holds_changes: false,
                    taken: HashMap::new(),
                });
            }
            Message::Commit { commit_lsn, end_lsn, .. } => return Ok(Step::Committed(self.commit(commit_lsn, end_lsn))),
            Message::Relation(relation) => return Ok(self.describe(&relation)),
            Message::Insert { relation, new } => {
                self.next_event(true);
                self.insert(relation, &new)?;
            }
            Message::Update { relation, old, new } => {
                self.next_event(true);
                self.update(relation, old.as_ref(), &new)?;
            }
            Message::Delete { relation, old } => {
                self.next_event(true);
                self.delete(relation, &old)?;
            }
            Message::Truncate { relations, .. } => {
                for relation in relations.iter() {
                    self.next_event(true);
                    self.truncate(relation);
                }
            }
            Message::Logical { transactional: true, prefix, content, .. } => {
                self.next_event(false);
                if prefix == self.prefix {
                    self.opened().message = std::str::from_utf8(content).ok().map(str::to_owned);
                }
            }
            // Messages outside of transactions are nobody's here; where a transaction was written first does not matter.
            Message::Logical { transactional: false, .. } | Message::Origin { .. } | Message::Type { .. } => {}
        }
        Ok(Step::Within)
    }

    /// Takes out rows of one table that are to be read, with the commit record of the oldest transaction that needs them.
    pub fn wanted(&mut self, most: usize) -> Option<(usize, Vec<String>, u64)> {
        self.singles.take(most)
    }

    /// Puts back what was taken out and could not be read.
    pub fn want_again(&mut self, table: usize, pks: &[String], since: u64) {
        for pk in pks {
            self.want(table, pk.clone(), since);
        }
    }

    /// The commit record of the oldest transaction that needs rows which wait to be read, singly or with their whole table.
    pub fn wanted_since(&self) -> Option<u64> {
        self.singles.since().into_iter().chain(self.resyncs.values().copied().flatten()).min()
    }

    /// Rows that are to be cached must be read.
    pub fn want_all(&mut self, untold: Vec<Untold>) {
        for Untold { table, pk, commit } in untold {
            self.want(table, pk, commit);
        }
    }

    /// Rows with these columns are passed over, because they are older than the mapping; the table is read anew.
    pub fn pass_over(&mut self, table: usize) {
        self.resync(table, None);
    }

    /// Asks for a whole table anew. `since` is the commit record of the oldest transaction before here that needs it.
    fn resync(&mut self, table: usize, since: Option<u64>) {
        let oldest = self.resyncs.entry(table).or_default();
        *oldest = oldest.iter().copied().chain(since).min();
    }

    fn opened(&mut self) -> &mut Open {
        self.open.as_mut().expect("the server tells changes within transactions only")
    }

    fn next_event(&mut self, is_change: bool) {
        let open = self.opened();
        open.index += 1;
        open.holds_changes |= is_change;
    }

    fn commit(&mut self, commit: u64, end: u64) -> Committed {
        let open = self.open.take().expect("a transaction ends only after it has begun");
        assert_eq!(open.commit, commit, "a transaction ends where its beginning said");
        self.unseen.push(open.xid, commit);
        self.position = Position(end, 0);
        Committed {
            xid: open.xid,
            commit,
            end,
            committed_us: open.committed_us,
            before: open.before,
            message: open.message,
            holds_changes: open.holds_changes,
            events: open.index,
        }
    }

    fn describe(&mut self, relation: &Relation<'_>) -> Step {
        let Some(&table) = self.leaves.get(&relation.oid) else {
            self.known.insert(relation.oid, Known::Other);
            return Step::Within;
        };
        let place = |column: pgoutput::Column<'_>| Place {
            name: column.name.to_owned(),
            type_oid: column.type_oid,
            in_identity: column.in_identity,
        };
        let places: Vec<Place> = relation.columns().map(place).collect();
        let session = &self.tables[table];
        let (reader, court) = match &session.judge {
            None => (RowReader::new(&session.table, &session.mapped, &self.catalogue, &places), None),
            Some(judge) => {
                let court = Court::new(judge, &session.table, &session.mapped, &self.catalogue, &places).map(Arc::new);
                (court.as_ref().map(|court| court.reader().clone()), court)
            }
        };
        let reader = reader.map(Box::new);
        let strange = reader.is_none();
        let tells_old = reader.as_ref().is_some_and(|reader| reader.tells_old(&places));
        let in_identity = places.iter().map(|place| place.in_identity).collect();
        self.known.insert(relation.oid, Known::Ours { table, reader, court, in_identity, tells_old });
        if strange { Step::Strange { table } } else { Step::Within }
    }

    fn insert(&mut self, relation: u32, new: &Tuple<'_>) -> Result<(), Error> {
        let Some(Known::Ours { table, reader: Some(reader), court, .. }) = self.known.get_mut(&relation) else {
            return self.is_known(relation);
        };
        let table = *table;
        let row = new.locate(&mut self.new_cells);
        let cell = |place: usize| row.cell(place);
        let pk = reader.pk(cell).map_err(|why| nameless(&self.tables[table], why))?;
        let told = Told::of(reader, court.as_ref(), cell);
        self.present(table, Op::Insert, pk, told);
        Ok(())
    }

    fn update(&mut self, relation: u32, old: Option<&Old<'_>>, new: &Tuple<'_>) -> Result<(), Error> {
        let Some(Known::Ours { table, reader: Some(reader), court, in_identity, tells_old }) = self.known.get_mut(&relation) else {
            return self.is_known(relation);
        };
        let (table, tells_old) = (*table, *tells_old);
        let new = new.locate(&mut self.new_cells);
        let Some(old) = old.filter(|_| tells_old) else {
            // Neither primary key nor template have changed, for both are in the identity, or nobody knows whether they have.
            let cell = |place: usize| new.cell(place);
            let pk = match reader.pk(cell) {
                Ok(pk) => Some(pk),
                Err(Nameless::Untold(_)) if !tells_old => None,
                Err(why) => return Err(nameless(&self.tables[table], why)),
            };
            if let Some(pk) = pk {
                let told = Told::of(reader, court.as_ref(), cell);
                self.present(table, Op::Update, pk, told);
            }
            if !tells_old {
                self.resync(table, None);
            }
            return Ok(());
        };
        let (old, full) = match old {
            Old::Full(tuple) => (tuple.locate(&mut self.old_cells), true),
            Old::Key(tuple) => (tuple.locate(&mut self.old_cells), false),
        };
        // Outside of the identity a key tuple says null of everything.
        let before = |place: usize| old.cell(place).filter(|_| full || in_identity.get(place) == Some(&true));
        // A large value that did not change stands in the old row, if that is told.
        let after = |place: usize| match new.cell(place) {
            Some(Cell::Unchanged) => before(place).or(Some(Cell::Unchanged)),
            told => told,
        };
        let pk = reader.pk(after).map_err(|why| nameless(&self.tables[table], why))?;
        let moved = !reader.same_pk(before, after);
        let renamed = moved || !reader.same_key(before, after);
        let gone = if renamed {
            let old_pk = if moved { reader.pk(before).map_err(|why| nameless(&self.tables[table], why))? } else { pk.clone() };
            Some((old_pk, reader.key(before)))
        } else {
            None
        };
        let told = Told::of(reader, court.as_ref(), after);
        if let Some((old_pk, key)) = gone {
            self.absent(table, old_pk, key);
        }
        self.present(table, if moved { Op::Insert } else { Op::Update }, pk, told);
        Ok(())
    }

    fn delete(&mut self, relation: u32, old: &Old<'_>) -> Result<(), Error> {
        let Some(Known::Ours { table, reader: Some(reader), in_identity, tells_old, .. }) = self.known.get_mut(&relation) else {
            return self.is_known(relation);
        };
        let table = *table;
        if !*tells_old {
            self.resync(table, None);
            return Ok(());
        }
        let (old, full) = match old {
            Old::Full(tuple) => (tuple.locate(&mut self.old_cells), true),
            Old::Key(tuple) => (tuple.locate(&mut self.old_cells), false),
        };
        let before = |place: usize| old.cell(place).filter(|_| full || in_identity.get(place) == Some(&true));
        let pk = reader.pk(before).map_err(|why| nameless(&self.tables[table], why))?;
        let key = reader.key(before);
        self.absent(table, pk, key);
        Ok(())
    }

    fn truncate(&mut self, relation: u32) {
        let Some(&table) = self.leaves.get(&relation) else { return };
        let open = self.open.as_ref().expect("the server tells changes within transactions only");
        for touched in self.touched.values_mut() {
            touched.all(open.xid, table);
        }
        // What waits to be read singly is gone; what comes after is told or asked for again.
        self.singles.forget(table);
        let position = Position(open.commit, open.index);
        let committed_us = open.committed_us;
        let image = Image::Absent { key: Vec::new() };
        self.changes.push(Change { op: Op::Truncate, table, pk: String::new(), image, position, committed_us });
    }

    /// The server describes every relation before it tells of its rows.
    fn is_known(&self, relation: u32) -> Result<(), Error> {
        match self.known.get(&relation) {
            Some(_) => Ok(()),
            None => Err(Error::Busy(format!("the server told of a row of the relation {relation}, which it has not described"))),
        }
    }

    /// There is a row with this primary key.
    fn present(&mut self, table: usize, op: Op, pk: String, told: Told) {
        let deferred = self.tables[table].deferred;
        let open = self.open.as_mut().expect("the server tells changes within transactions only");
        for touched in self.touched.values_mut() {
            touched.row(open.xid, table, &pk);
        }
        let key = match &told {
            Told::NotWhole => {
                let commit = open.commit;
                self.want(table, pk, commit);
                return;
            }
            Told::Row(Image::Present { key, .. }) if deferred => Some(spelt(key)),
            Told::Unjudged(court, row) if deferred => court.reader().key(|place| row.cell(place)).ok().map(|key| spelt(&key)),
            Told::Row(_) | Told::Unjudged(..) => None,
        };
        if let Some(key) = key {
            open.taken.insert((table, key), pk.clone());
            if open.taken.len() > TAKEN_MAX {
                open.taken.clear();
                self.resync(table, None);
            }
        }
        match told {
            Told::Row(image) => self.push(table, op, pk, image),
            Told::Unjudged(court, row) => {
                self.bytes += row.len();
                self.docket.add(self.changes.len(), table, &court, row);
                // The verdict takes its place.
                self.push(table, op, pk, Image::Absent { key: Vec::new() });
            }
            Told::NotWhole => unreachable!("it was returned from"),
        }
    }

    /// No row has this primary key, or these template values, any more.
    fn absent(&mut self, table: usize, pk: String, key: Result<Vec<KeyValue>, String>) {
        let deferred = self.tables[table].deferred;
        let open = self.open.as_mut().expect("the server tells changes within transactions only");
        for touched in self.touched.values_mut() {
            touched.row(open.xid, table, &pk);
        }
        let image = match key {
            Ok(key) => Image::Absent { key },
            Err(reason) => Image::Unreadable { key: None, reason },
        };
        // Where uniqueness is checked at the end only, the new holder of a key may come before the old one goes.
        if deferred
            && let Image::Absent { key } = &image
            && let Some(holder) = open.taken.get(&(table, spelt(key)))
        {
            if *holder != pk {
                return;
            }
            // Who else has the key the log does not tell.
            self.resync(table, None);
        }
        self.push(table, Op::Delete, pk, image);
    }

    fn push(&mut self, table: usize, op: Op, pk: String, image: Image) {
        let open = self.open.as_ref().expect("the server tells changes within transactions only");
        self.bytes += 64 + pk.len() + if let Image::Present { json, .. } = &image { json.len() } else { 0 };
        let position = Position(open.commit, open.index);
        self.changes.push(Change { op, table, pk, image, position, committed_us: open.committed_us });
    }

    fn want(&mut self, table: usize, pk: String, commit: u64) {
        if let Some(since) = self.singles.want(table, pk, commit) {
            self.resync(table, Some(since));
        }
    }
}

/// A key's values as a text that tells them apart.
fn spelt(key: &[KeyValue]) -> String {
    format!("{key:?}")
}

fn nameless(table: &SessionTable, nameless: Nameless) -> Error {
    let (Nameless::Untold(why) | Nameless::Unwritable(why)) = nameless;
    Error::Fatal(format!("table {}: a row cannot be told from others: {why}; mend the row or leave the table out", table.table.name))
}

#[cfg(test)]
mod tests {
    use super::super::Capture;
    use super::super::samples::catalogue;
    use super::super::schema::{Column, Identity, Leaf, UniqueKey};
    use super::*;
    use crate::mapping::TableSettings;

    #[test]
    fn rows_too_many_to_be_read_singly_hold_the_log_until_their_table_is_asked_for() {
        let mut stream = Stream::new(Vec::new(), Catalogue::default(), String::new(), Position::START);
        for row in 0..=20_000_u64 {
            stream.want(0, row.to_string(), 100 + row);
        }
        assert_eq!(stream.wanted(1), None);
        assert_eq!(stream.wanted_since(), Some(100));
        assert_eq!(std::mem::take(&mut stream.resyncs), BTreeMap::from([(0, Some(100))]));
        assert_eq!(stream.wanted_since(), None);
    }

    /// A message whose numbers are these, each with its width in bytes.
    fn message(tag: u8, numbers: &[(u64, usize)]) -> Vec<u8> {
        let bytes = numbers.iter().flat_map(|(number, width)| number.to_be_bytes().into_iter().skip(8 - width));
        std::iter::once(tag).chain(bytes).collect()
    }

    #[test]
    fn a_sign_of_life_in_the_middle_of_a_transaction_does_not_say_that_it_is_over() {
        let mut stream = Stream::new(Vec::new(), Catalogue::default(), String::new(), Position(100, 0));
        stream.advance(150);
        assert_eq!(stream.position(), Position(150, 0));
        stream.take(&message(b'B', &[(200, 8), (0, 8), (7, 4)])).unwrap();
        // It carries the commit's own place, or one beyond.
        for end in [200, 1000] {
            stream.advance(end);
            assert_eq!((stream.position(), stream.between()), (Position(200, 0), false));
        }
        let committed = stream.take(&message(b'C', &[(0, 1), (200, 8), (210, 8), (0, 8)])).unwrap();
        assert!(matches!(committed, Step::Committed(committed) if committed.before == Position(150, 0) && committed.end == 210));
        assert_eq!((stream.position(), stream.between()), (Position(210, 0), true));
    }

    /// A table whose keys are made of a column that is unique only at the end of a transaction.
    fn deferred_table(catalogue: &Catalogue) -> SessionTable {
        let column = |(number, name, type_oid, declared): (i16, &str, u32, &str)| Column {
            number,
            name: name.to_owned(),
            type_oid,
            plan: catalogue.plan(type_oid).map_err(|refusal| refusal.to_string()),
            declared: declared.to_owned(),
            not_null: true,
            collation: None,
            listed: None,
            generated: None,
        };
        let unique = |name: &str, primary| UniqueKey { columns: vec![name.to_owned()], primary, immediate: primary };
        let leaf = Leaf { oid: 1, name: "public.t".into(), kind: 'r', identity: Identity::Full, file: 1, attached: String::new() };
        let table = Table {
            name: "t".to_owned(),
            oid: 1,
            schema: "public".to_owned(),
            relation: "t".to_owned(),
            kind: 'r',
            persistence: 'p',
            is_partition: false,
            columns: [(1, "id", 23, "integer"), (2, "email", 25, "text")].map(column).into(),
            unique: vec![unique("id", true), unique("email", false)],
            leaves: vec![leaf],
            membership: None,
            filtered: false,
        };
        let settings = TableSettings { key: Some("mail:{email}".to_owned()), ..TableSettings::new("t") };
        let mapped = table.resolve(&settings, Capture::Log).unwrap_or_else(|misfit| panic!("{}", misfit.text));
        SessionTable { table, mapped, judge: None, deferred: true }
    }

    #[test]
    fn keys_too_many_to_be_remembered_within_a_transaction_make_their_table_be_read_anew() {
        let catalogue = catalogue();
        let table = deferred_table(&catalogue);
        let mut stream = Stream::new(vec![table], catalogue, String::new(), Position::START);
        stream.take(&message(b'B', &[(200, 8), (0, 8), (7, 4)])).unwrap();
        let key = |email: String| vec![KeyValue::Text(email)];
        let image = |email: String| Told::Row(Image::Present { json: "{}".to_owned(), key: key(email) });
        // The new holder of a key comes before the old one goes.
        stream.present(0, Op::Insert, "new".to_owned(), image("m".to_owned()));
        stream.absent(0, "old".to_owned(), Ok(key("m".to_owned())));
        assert_eq!((stream.take_changes().0.len(), &stream.resyncs), (1, &BTreeMap::new()), "the old one takes no key away");
        for number in 1..TAKEN_MAX {
            stream.present(0, Op::Insert, number.to_string(), image(number.to_string()));
        }
        assert_eq!(stream.resyncs, BTreeMap::new());
        stream.present(0, Op::Insert, "one more".to_owned(), image("one more".to_owned()));
        assert_eq!(stream.resyncs, BTreeMap::from([(0, None)]));
    }
}
