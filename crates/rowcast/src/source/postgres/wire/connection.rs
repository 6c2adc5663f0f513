//! One connection, every message of which is read. When it is over it stays over.

use std::fmt::Write;
use std::ops::Range;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::dial::AT_ONCE;
use super::fault::{Fault, ServerError};

/// Something that bytes go through in both directions.
pub(in super::super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;
/// PostgreSQL itself makes no message longer than 1 GiB.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// A connection that is logged in, or on the way to it.
pub(in super::super) struct Connection {
    stream: Box<dyn Stream>,
    /// What has arrived and is not taken yet. It grows with what arrives, never because a length says so.
    inbox: BytesMut,
    /// Whether an answer is owed, so that nothing else may be asked: somebody did not wait for the end.
    busy: bool,
}

/// A piece of the replication stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Frame {
    /// A message of the output plug-in.
    Data(Bytes),
    /// The server is there, and has come so far: every commit record before this LSN was sent or left out.
    Alive {
        /// The LSN.
        end: u64,
        /// Whether it wants an answer at once.
        reply: bool,
    },
}

/// A row in text format.
#[derive(Clone, Debug)]
pub(in super::super) struct Answer {
    payload: Bytes,
    ranges: Vec<Option<Range<usize>>>,
}

impl Answer {
    fn read(payload: Bytes) -> Option<Answer> {
        let mut rest = payload.clone();
        let count = rest.try_get_u16().ok()?;
        let mut ranges = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let length = rest.try_get_i32().ok()?;
            let start = payload.len() - rest.len();
            // A negative length is a null.
            let range = usize::try_from(length).ok().map(|length| start..start + length);
            if let Some(range) = &range {
                if rest.len() < range.len() {
                    return None;
                }
                rest.advance(range.len());
            }
            ranges.push(range);
        }
        rest.is_empty().then_some(Answer { payload, ranges })
    }

    /// How many bytes they take together.
    pub fn size(&self) -> usize {
        self.payload.len()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The bytes of one; `None` is a null.
    pub fn bytes(&self, index: usize) -> Option<&[u8]> {
        self.ranges.get(index)?.clone().map(|range| &self.payload[range])
    }

    /// The text of one that is not null.
    pub fn text(&self, index: usize) -> Result<&str, Fault> {
        self.maybe(index)?.ok_or_else(|| Fault::Hopeless(format!("the catalogue has a null in column {index} of an answer")))
    }

    /// The text of one.
    pub fn maybe(&self, index: usize) -> Result<Option<&str>, Fault> {
        let utf8 = |bytes| std::str::from_utf8(bytes).map_err(|_| Fault::Lost("the server's answer is not UTF-8".to_owned()));
        self.bytes(index).map(utf8).transpose()
    }

    /// A boolean.
    pub fn is_true(&self, index: usize) -> bool {
        self.bytes(index) == Some(b"t")
    }

    /// A number.
    pub fn number<N: std::str::FromStr>(&self, index: usize) -> Result<N, Fault> {
        let text = self.text(index)?;
        text.parse().map_err(|_| Fault::Lost(format!("the server's answer {text:?} is not the number that it should be")))
    }
}

impl Connection {
    pub(in super::super) fn new(stream: Box<dyn Stream>) -> Connection {
        Connection { stream, inbox: BytesMut::new(), busy: false }
    }

    /// Sends. Not cancel safe: what is half sent ends the connection.
    pub async fn send(&mut self, message: &[u8]) -> Result<(), Fault> {
        let broke = |error| Fault::Lost(format!("the connection broke: {error}"));
        let stuck = |_| Fault::Lost(format!("the server has taken nothing for {} s", AT_ONCE.as_secs()));
        let mut rest = message;
        while !rest.is_empty() {
            match timeout(AT_ONCE, self.stream.write(rest)).await.map_err(stuck)?.map_err(broke)? {
                0 => return Err(Fault::Lost("the server closed the connection".to_owned())),
                written => rest = &rest[written..],
            }
        }
        timeout(AT_ONCE, self.stream.flush()).await.map_err(stuck)?.map_err(broke)
    }

    /// Reads what there is, or waits for it. Cancel safe.
    pub async fn fill(&mut self) -> Result<(), Fault> {
        self.inbox.reserve(READ_BYTES);
        match (&mut self.stream).take(READ_BYTES as u64).read_buf(&mut self.inbox).await {
            Ok(0) => Err(Fault::Lost("the server closed the connection".to_owned())),
            Ok(_) => Ok(()),
            Err(error) => Err(Fault::Lost(format!("the connection broke: {error}"))),
        }
    }

    /// The next message, if it has arrived whole.
    pub fn message(&mut self) -> Result<Option<(u8, Bytes)>, Fault> {
        let Some(&[tag, a, b, c, d]) = self.inbox.first_chunk::<5>() else { return Ok(None) };
        // The length counts itself.
        let length = usize::try_from(i32::from_be_bytes([a, b, c, d])).ok().filter(|length| (4..=MESSAGE_BYTES_MAX).contains(length));
        let length = length.ok_or_else(|| Fault::Lost("the server sent a length that cannot be".to_owned()))?;
        if self.inbox.len() < 1 + length {
            return Ok(None);
        }
        let mut message = self.inbox.split_to(1 + length);
        message.advance(5);
        Ok(Some((tag, message.freeze())))
    }

    /// The next message. Cancel safe.
    pub(super) async fn receive(&mut self) -> Result<(u8, Bytes), Fault> {
        loop {
            if let Some(message) = self.message()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// Runs statements and returns the rows of all of them. `patience` is how long the whole may take; after that, or if the future
    /// is dropped, the connection is of no use any more.
    pub async fn query(&mut self, sql: &str, patience: Duration) -> Result<Vec<Answer>, Fault> {
        self.query_bytes(sql.as_bytes(), patience).await
    }

    /// The same with a text that may be of any encoding, as the session's is.
    pub async fn query_bytes(&mut self, sql: &[u8], patience: Duration) -> Result<Vec<Answer>, Fault> {
        if self.busy {
            return Err(Fault::Lost("an earlier statement was given up".to_owned()));
        }
        self.busy = true;
        let answered = timeout(patience, self.ask(sql)).await;
        match answered {
            Ok(Ok(rows)) => {
                self.busy = false;
                Ok(rows)
            }
            Ok(Err(fault)) => {
                self.busy = !matches!(fault, Fault::Refused(_));
                Err(fault)
            }
            Err(_) => Err(Fault::Lost(format!("a statement took longer than {} s", patience.as_secs()))),
        }
    }

    async fn ask(&mut self, sql: &[u8]) -> Result<Vec<Answer>, Fault> {
        let too_long = || Fault::Hopeless("a statement is longer than a message of the protocol can be".to_owned());
        let length = i32::try_from(4 + sql.len() + 1).map_err(|_| too_long())?;
        if sql.contains(&0) {
            return Err(Fault::Hopeless("a statement has a null character in it".to_owned()));
        }
        let mut message = BytesMut::with_capacity(sql.len() + 6);
        message.put_u8(b'Q');
        message.put_i32(length);
        message.put_slice(sql);
        message.put_u8(0);
        self.send(&message).await?;
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            let (tag, payload) = self.receive().await?;
            match tag {
                b'D' => rows.push(Answer::read(payload).ok_or_else(|| Fault::Lost("the server sent half a row".to_owned()))?),
                b'E' => {
                    let error = Box::new(ServerError::read(&payload));
                    if error.is_final() {
                        return Err(Fault::Ended(error));
                    }
                    refused = Some(error);
                }
                b'Z' => break,
                // What the rows look like, that a statement is done or was empty, notices and changed parameters.
                b'T' | b'C' | b'I' | b'N' | b'S' | b'A' => {}
                other => return Err(Fault::Lost(format!("the server sent {:?} as an answer to a statement", char::from(other)))),
            }
        }
        refused.map_or(Ok(rows), |error| Err(Fault::Refused(error)))
    }

    /// Begins the replication stream.
    pub async fn start_replication(&mut self, command: &str, patience: Duration) -> Result<(), Fault> {
        assert!(!self.busy, "a connection whose answers are read");
        self.busy = true;
        let mut message = BytesMut::new();
        frontend::query(command, &mut message).map_err(|error| Fault::Hopeless(error.to_string()))?;
        self.send(&message).await?;
        let starting = async {
            loop {
                let (tag, payload) = self.receive().await?;
                match tag {
                    b'W' => return Ok(()),
                    b'E' => return Err(Fault::Ended(Box::new(ServerError::read(&payload)))),
                    b'N' | b'S' => {}
                    other => return Err(Fault::Lost(format!("the server sent {:?} where the stream should begin", char::from(other)))),
                }
            }
        };
        let late = || Err(Fault::Lost(format!("the stream did not begin within {} s", patience.as_secs())));
        timeout(patience, starting).await.unwrap_or_else(|_| late())
    }

    /// The next piece of the replication stream, if it has arrived whole.
    pub fn frame(&mut self) -> Result<Option<Frame>, Fault> {
        let broken = || Fault::Lost("the server sent a piece of the stream that cannot be read".to_owned());
        while let Some((tag, mut payload)) = self.message()? {
            match tag {
                b'd' => {}
                b'E' => return Err(Fault::Ended(Box::new(ServerError::read(&payload)))),
                b'N' | b'S' => continue,
                b'c' | b'C' | b'Z' => return Err(Fault::Lost("the server ended the stream".to_owned())),
                _ => return Err(broken()),
            }
            return match payload.try_get_u8().map_err(|_| broken())? {
                // Its start goes back and may be 0, and its end says no more than the start: the messages inside tell where they stand.
                b'w' if payload.len() >= 24 => Ok(Some(Frame::Data(payload.slice(24..)))),
                b'k' if payload.len() == 17 => Ok(Some(Frame::Alive { end: payload.get_u64(), reply: payload[8] == 1 })),
                _ => Err(broken()),
            };
        }
        Ok(None)
    }

    /// Tells the server what it may forget, and how far its stream was received.
    pub async fn confirm(&mut self, received: u64, confirmed: u64, answer: bool) -> Result<(), Fault> {
        let mut message = BytesMut::with_capacity(39);
        message.put_u8(b'd');
        message.put_i32(4 + 34);
        message.put_u8(b'r');
        message.put_u64(received.max(confirmed));
        message.put_u64(confirmed);
        message.put_u64(confirmed);
        // The time here; the server only shows it.
        message.put_i64(0);
        message.put_u8(u8::from(answer));
        self.send(&message).await
    }

    /// Ends the replication stream in an orderly way: what was confirmed last has been taken note of when this returns.
    pub async fn end_replication(&mut self, patience: Duration) -> Result<(), Fault> {
        let mut message = BytesMut::new();
        frontend::copy_done(&mut message);
        self.send(&message).await?;
        let ending = async {
            loop {
                match self.receive().await? {
                    (b'Z', _) => return Ok(()),
                    (b'E', payload) => return Err(Fault::Ended(Box::new(ServerError::read(&payload)))),
                    _ => {}
                }
            }
        };
        timeout(patience, ending).await.unwrap_or_else(|_| Err(Fault::Lost("the server did not end the stream".to_owned())))
    }
}

/// A text as SQL writes it, where `standard_conforming_strings` is on.
pub(in super::super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A name as SQL writes it, whatever is in it.
pub(in super::super) fn quoted(name: &str) -> String {
    let mut quoted = String::with_capacity(name.len() + 2);
    // Writing to a String cannot fail.
    write!(quoted, "\"{}\"", name.replace('"', "\"\"")).expect("a String takes every write");
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(bytes: &[u8]) -> Connection {
        let mut connection = Connection::new(Box::new(tokio::io::empty()));
        connection.inbox.extend_from_slice(bytes);
        connection
    }

    #[test]
    fn a_message_is_taken_once_it_is_whole() {
        let mut connection = connection(b"Z\0\0\0\x05");
        assert_eq!(connection.message(), Ok(None));
        connection.inbox.extend_from_slice(b"IZ");
        assert_eq!(connection.message(), Ok(Some((b'Z', Bytes::from_static(b"I")))));
        assert_eq!(connection.message(), Ok(None));
    }

    #[test]
    fn a_length_that_cannot_be_ends_the_connection_and_allocates_nothing() {
        for bytes in [b"D\xff\xff\xff\xff", b"D\0\0\0\x03", b"D\x7f\xff\xff\xff"] {
            let mut connection = connection(bytes);
            assert!(matches!(connection.message(), Err(Fault::Lost(_))));
        }
        let mut connection = connection(b"D\x3f\xff\xff\xff");
        assert_eq!(connection.message(), Ok(None));
        assert!(connection.inbox.capacity() < 1024);
    }

    #[test]
    fn a_row_is_cut_into_its_cells() {
        let cells = Answer::read(Bytes::from_static(b"\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0")).unwrap();
        assert_eq!((cells.bytes(0), cells.bytes(1), cells.bytes(2), cells.len()), (Some(&b"ab"[..]), None, Some(&b""[..]), 3));
        for bytes in [&b"\0"[..], b"\0\x01", b"\0\x01\0\0\0\x05ab", b"\0\x01\0\0\0\x01abc"] {
            assert!(Answer::read(Bytes::copy_from_slice(bytes)).is_none(), "{bytes:?}");
        }
    }

    #[test]
    fn a_piece_of_the_stream_is_data_or_a_sign_of_life() {
        let mut alive = b"d\0\0\0\x16k".to_vec();
        alive.extend([0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(connection(&alive).frame(), Ok(Some(Frame::Alive { end: 9, reply: true })));
        let mut data = b"d\0\0\0\x1ew".to_vec();
        data.extend([0; 24]);
        data.push(b'C');
        assert_eq!(connection(&data).frame(), Ok(Some(Frame::Data(Bytes::from_static(b"C")))));
        assert!(connection(b"d\0\0\0\x05w").frame().is_err());
        assert!(connection(b"c\0\0\0\x04").frame().is_err());
    }

    #[tokio::test]
    async fn a_connection_that_was_given_up_is_of_no_use() {
        let (here, _there) = tokio::io::duplex(1024);
        let mut connection = Connection::new(Box::new(here));
        let given_up = connection.query("SELECT 1", Duration::from_millis(1)).await;
        assert!(matches!(given_up, Err(Fault::Lost(why)) if why.contains("longer")));
        assert!(matches!(connection.query("SELECT 1", Duration::from_secs(1)).await, Err(Fault::Lost(why)) if why.contains("given up")));
    }
}
