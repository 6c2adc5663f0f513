//! The messages of the output plug-in `pgoutput`, protocol version 1, values as text. Pure.
//!
//! A message borrows from the buffer it was decoded from; nothing is allocated, whatever its length fields say. Every message is
//! checked to its last byte when it is decoded. The format is that of the chapter "Logical Replication Message Formats" of
//! PostgreSQL's manual; the frame around a message (XLogData) is the replication client's.

use super::row::{Cell, Cells, Row, Span};

/// Microseconds from the Unix epoch to PostgreSQL's, the first moment of the year 2000.
pub const EPOCH_US: i64 = 946_684_800_000_000;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Message<'b> {
    /// A transaction begins. Whole transactions come one after the other, in the order of their commit records.
    Begin {
        /// Where its commit record starts.
        commit_lsn: u64,
        /// By the server's clock, in microseconds since the Unix epoch.
        committed_us: i64,
        /// The lower 32 bits of its id.
        xid: u32,
    },
    /// The transaction ends.
    Commit {
        /// Where its commit record starts.
        commit_lsn: u64,
        /// Where its commit record ends.
        end_lsn: u64,
        /// By the server's clock, in microseconds since the Unix epoch.
        committed_us: i64,
    },
    /// The transaction came from another server by replication.
    Origin {
        /// Where it was committed there.
        commit_lsn: u64,
        /// The name of the origin.
        name: &'b str,
    },
    /// What the rows of a table look like from here on.
    Relation(Relation<'b>),
    /// The name of a type that is not built in. (What a type is made of only the catalogue says.)
    Type {
        /// Its id.
        oid: u32,
        /// Its schema.
        schema: &'b str,
        /// Its name.
        name: &'b str,
    },
    /// A new row.
    Insert {
        /// The id of its table.
        relation: u32,
        /// The row.
        new: Tuple<'b>,
    },
    /// A changed row.
    Update {
        /// The id of its table.
        relation: u32,
        /// What is said of the old row: nothing where the replica identity did not change and is not FULL.
        old: Option<Old<'b>>,
        /// The row as it is now.
        new: Tuple<'b>,
    },
    /// A row that is gone.
    Delete {
        /// The id of its table.
        relation: u32,
        /// What is said of it.
        old: Old<'b>,
    },
    /// All rows of these tables are gone.
    Truncate {
        /// The ids of the tables.
        relations: Oids<'b>,
        /// Whether CASCADE was said; the tables that it reached are among `relations`.
        cascade: bool,
        /// Whether the sequences began again.
        restart_identity: bool,
    },
    /// What somebody wrote by `pg_logical_emit_message`.
    Logical {
        /// Whether it belongs to the transaction around it.
        transactional: bool,
        /// Where it stands.
        lsn: u64,
        /// Whose it is.
        prefix: &'b str,
        /// What it says.
        content: &'b [u8],
    },
}

/// A table, or a leaf of a partitioned one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Relation<'b> {
    /// Its id.
    pub oid: u32,
    /// Its schema.
    pub schema: &'b str,
    /// Its name.
    pub name: &'b str,
    /// What an update or a delete says of the old row.
    pub identity: Identity,
    /// How many columns its rows have.
    pub width: u16,
    columns: &'b [u8],
}

/// A table's replica identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The primary key's columns.
    Default,
    /// Nothing.
    Nothing,
    /// The whole row.
    Full,
    /// The columns of an index.
    Index,
}

/// A column of a [`Relation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column<'b> {
    /// Whether it belongs to the replica identity (with FULL every column does).
    pub in_identity: bool,
    /// Its name.
    pub name: &'b str,
    /// The id of its type.
    pub type_oid: u32,
    /// The type's modifier (a length, a precision), or -1.
    pub modifier: i32,
}

/// What is said of a row as it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Old<'b> {
    /// The columns of the replica identity; all other columns are shown as null, which says nothing of them.
    Key(Tuple<'b>),
    /// The whole row.
    Full(Tuple<'b>),
}

/// A row: one value a column of its [`Relation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<'b> {
    width: u16,
    bytes: &'b [u8],
}

/// The ids of several tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oids<'b>(&'b [u8]);

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server sent a message that pgoutput's protocol 1 does not have: {what} at byte {at}")]
pub struct Malformed {
    /// What is wrong.
    pub what: &'static str,
    /// The place in the message, counted from 0.
    pub at: usize,
}

/// Reads one message.
pub fn decode(message: &[u8]) -> Result<Message<'_>, Malformed> {
    let mut reader = Reader { bytes: message, at: 0 };
    let decoded = match reader.u8()? {
        b'B' => Message::Begin { commit_lsn: reader.u64()?, committed_us: reader.time()?, xid: reader.u32()? },
        b'C' => {
            if reader.u8()? != 0 {
                return Err(reader.wrong_before(1, "flags of a commit that are not 0"));
            }
            Message::Commit { commit_lsn: reader.u64()?, end_lsn: reader.u64()?, committed_us: reader.time()? }
        }
        b'O' => Message::Origin { commit_lsn: reader.u64()?, name: reader.text()? },
        b'R' => Message::Relation(reader.relation()?),
        b'Y' => Message::Type { oid: reader.u32()?, schema: reader.schema()?, name: reader.text()? },
        b'I' => Message::Insert { relation: reader.u32()?, new: reader.tuple_marked(b'N')? },
        b'U' => {
            let relation = reader.u32()?;
            match reader.u8()? {
                b'N' => Message::Update { relation, old: None, new: reader.tuple()? },
                mark => Message::Update { relation, old: Some(reader.old(mark)?), new: reader.tuple_marked(b'N')? },
            }
        }
        b'D' => {
            let relation = reader.u32()?;
            let mark = reader.u8()?;
            Message::Delete { relation, old: reader.old(mark)? }
        }
        b'T' => reader.truncate()?,
        b'M' => reader.logical()?,
        _ => return Err(reader.wrong_before(1, "an unknown kind of message")),
    };
    if reader.at != message.len() { Err(reader.wrong("more bytes than the message has")) } else { Ok(decoded) }
}

impl<'b> Relation<'b> {
    /// Its columns, in the order of a [`Tuple`].
    pub fn columns(&self) -> impl Iterator<Item = Column<'b>> + use<'b> {
        let mut reader = Reader { bytes: self.columns, at: 0 };
        // They were read once when the message was decoded.
        (0..self.width).map(move |_| reader.column().expect("the columns were checked"))
    }
}

impl<'b> Tuple<'b> {
    /// How many columns it has.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Its values, in order.
    pub fn cells(&self) -> impl Iterator<Item = Cell<'b>> + use<'b> {
        let bytes = self.bytes;
        self.spans().map(move |span| span.of(bytes))
    }

    /// Its values, found once and for any order. What `cells` knew before is forgotten.
    pub fn locate<'c>(&self, cells: &'c mut Cells) -> Row<'c>
    where
        'b: 'c,
    {
        cells.of(self.bytes, self.spans())
    }

    fn spans(&self) -> impl Iterator<Item = Span> + use<'b> {
        let mut reader = Reader { bytes: self.bytes, at: 0 };
        // They were read once when the message was decoded.
        (0..self.width).map(move |_| reader.span().expect("the values were checked"))
    }
}

impl Oids<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len() / 4
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'_> {
        self.0.chunks_exact(4).map(|bytes| u32::from_be_bytes(bytes.try_into().expect("a chunk of four bytes")))
    }
}

/// Reads from the front; every length is compared with what is there before it is used.
struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    fn wrong(&self, what: &'static str) -> Malformed {
        Malformed { what, at: self.at }
    }

    /// About something that was just read.
    fn wrong_before(&self, bytes: usize, what: &'static str) -> Malformed {
        Malformed { what, at: self.at - bytes }
    }

    fn take(&mut self, length: usize) -> Result<&'b [u8], Malformed> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..length).ok_or_else(|| self.wrong("an end too early"))?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were asked for"))
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// A moment in microseconds since PostgreSQL's epoch, as one since Unix'.
    fn time(&mut self) -> Result<i64, Malformed> {
        let since_2000 = i64::from_be_bytes(self.array()?);
        since_2000.checked_add(EPOCH_US).ok_or_else(|| self.wrong_before(8, "a time beyond all times"))
    }

    /// A count of columns.
    fn width(&mut self) -> Result<u16, Malformed> {
        let width = i16::from_be_bytes(self.array()?);
        u16::try_from(width).map_err(|_| self.wrong_before(2, "a negative number of columns"))
    }

    /// A length of what follows.
    fn length(&mut self) -> Result<usize, Malformed> {
        let length = self.i32()?;
        usize::try_from(length).map_err(|_| self.wrong_before(4, "a negative length"))
    }

    /// A text that ends with a zero byte.
    fn text(&mut self) -> Result<&'b str, Malformed> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == 0).ok_or_else(|| self.wrong("a name without an end"))?;
        let text = std::str::from_utf8(&rest[..length]).map_err(|_| self.wrong("a name that is not UTF-8"))?;
        self.at += length + 1;
        Ok(text)
    }

    /// The name of a schema; the server leaves out that of its own catalogue.
    fn schema(&mut self) -> Result<&'b str, Malformed> {
        Ok(match self.text()? {
            "" => "pg_catalog",
            schema => schema,
        })
    }

    fn relation(&mut self) -> Result<Relation<'b>, Malformed> {
        let (oid, schema, name) = (self.u32()?, self.schema()?, self.text()?);
        let identity = match self.u8()? {
            b'd' => Identity::Default,
            b'n' => Identity::Nothing,
            b'f' => Identity::Full,
            b'i' => Identity::Index,
            _ => return Err(self.wrong_before(1, "an unknown replica identity")),
        };
        let width = self.width()?;
        let begin = self.at;
        for _ in 0..width {
            self.column()?;
        }
        Ok(Relation { oid, schema, name, identity, width, columns: &self.bytes[begin..self.at] })
    }

    fn column(&mut self) -> Result<Column<'b>, Malformed> {
        let flags = self.u8()?;
        if flags > 1 {
            return Err(self.wrong_before(1, "unknown flags of a column"));
        }
        Ok(Column { in_identity: flags == 1, name: self.text()?, type_oid: self.u32()?, modifier: self.i32()? })
    }

    fn tuple_marked(&mut self, mark: u8) -> Result<Tuple<'b>, Malformed> {
        if self.u8()? != mark {
            return Err(self.wrong_before(1, "something else than a new row"));
        }
        self.tuple()
    }

    fn old(&mut self, mark: u8) -> Result<Old<'b>, Malformed> {
        match mark {
            b'K' => Ok(Old::Key(self.tuple()?)),
            b'O' => Ok(Old::Full(self.tuple()?)),
            _ => Err(self.wrong_before(1, "something else than a row")),
        }
    }

    fn tuple(&mut self) -> Result<Tuple<'b>, Malformed> {
        let width = self.width()?;
        let begin = self.at;
        for _ in 0..width {
            self.span()?;
        }
        Ok(Tuple { width, bytes: &self.bytes[begin..self.at] })
    }

    fn span(&mut self) -> Result<Span, Malformed> {
        match self.u8()? {
            b'n' => Ok(Span::Null),
            b'u' => Ok(Span::Unchanged),
            b't' => {
                let length = self.length()?;
                let start = self.at;
                self.take(length)?;
                Ok(Span::Text { start, end: self.at })
            }
            b'b' => Err(self.wrong_before(1, "a value in binary form, though text was asked for,")),
            _ => Err(self.wrong_before(1, "an unknown kind of value")),
        }
    }

    fn truncate(&mut self) -> Result<Message<'b>, Malformed> {
        let count = self.length()?;
        let flags = self.u8()?;
        if flags > 3 {
            return Err(self.wrong_before(1, "unknown flags of a truncate"));
        }
        let length = count.checked_mul(4).ok_or_else(|| self.wrong("an end too early"))?;
        Ok(Message::Truncate { relations: Oids(self.take(length)?), cascade: flags & 1 != 0, restart_identity: flags & 2 != 0 })
    }

    fn logical(&mut self) -> Result<Message<'b>, Malformed> {
        let flags = self.u8()?;
        if flags > 1 {
            return Err(self.wrong_before(1, "unknown flags of a logical message"));
        }
        let (lsn, prefix, length) = (self.u64()?, self.text()?, self.length()?);
        Ok(Message::Logical { transactional: flags == 1, lsn, prefix, content: self.take(length)? })
    }
}
