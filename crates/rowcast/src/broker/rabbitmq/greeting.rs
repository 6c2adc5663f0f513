//! What a server says of itself when somebody connects, which the client library keeps to itself.

use std::time::Duration;

use lapin::types::parsing::parse_field_table;
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPScheme;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::settings::RabbitSettings;
use crate::broker::Error;

/// How long the server may take to say it.
const GREETING_TIMEOUT: Duration = Duration::from_secs(3);

/// The first words of every AMQP 0-9-1 connection.
const PROTOCOL: &[u8; 8] = b"AMQP\0\0\x09\x01";

/// A frame's header: type, channel, length.
const HEADER_BYTES: usize = 7;

/// The type of a frame that holds a method.
const METHOD: u8 = 1;

/// Class, method and protocol version stand before the server's properties.
const BEFORE_PROPERTIES: usize = 6;

/// What a server's properties take at most.
const FRAME_BYTES_MAX: usize = 128 * 1024;

/// The product and version of the server; `None` behind TLS, where nobody looks.
pub(super) async fn greeting(settings: &RabbitSettings) -> Result<Option<(String, String)>, Error> {
    if settings.uri.scheme != AMQPScheme::AMQP {
        return Ok(None);
    }
    let address = settings.address();
    let lost = |error: std::io::Error| Error::Lost(format!("connecting to RabbitMQ at {address} failed: {error}"));
    match tokio::time::timeout(GREETING_TIMEOUT, read(settings)).await {
        Ok(Ok(frame)) => match properties(&frame) {
            Some(properties) => Ok(Some((text(&properties, "product"), text(&properties, "version")))),
            None => Err(stranger(&address)),
        },
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::InvalidData => Err(stranger(&address)),
        Ok(Err(error)) => Err(lost(error)),
        Err(_) => Err(Error::Lost(format!(
            "what listens at {address} said nothing for {} s; does the broker's URL name another server's port? (RabbitMQ listens at 5672 \
             unless it is told otherwise)",
            GREETING_TIMEOUT.as_secs()
        ))),
    }
}

fn stranger(address: &str) -> Error {
    Error::Fatal(format!(
        "what answers at {address} does not speak as RabbitMQ does (AMQP 0-9-1); does the broker's URL name another server's port? \
         (RabbitMQ listens at 5672 unless it is told otherwise, and its management page at 15672)"
    ))
}

/// The first frame's content; `InvalidData` where what comes is no frame.
async fn read(settings: &RabbitSettings) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((settings.uri.authority.host.as_str(), settings.uri.authority.port)).await?;
    stream.write_all(PROTOCOL).await?;
    let mut header = [0; HEADER_BYTES];
    if let Err(error) = stream.read_exact(&mut header).await {
        // Who takes a connection and ends it without a word is somebody else.
        let ended = error.kind() == std::io::ErrorKind::UnexpectedEof;
        return Err(if ended { std::io::ErrorKind::InvalidData.into() } else { error });
    }
    let [kind, _, _, length @ ..] = header;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if kind != METHOD || !(BEFORE_PROPERTIES..=FRAME_BYTES_MAX).contains(&length) {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; length];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

fn properties(frame: &[u8]) -> Option<FieldTable> {
    const CONNECTION_START: [u8; 4] = [0, 10, 0, 10];
    let properties = frame.strip_prefix(&CONNECTION_START)?.get(2..)?;
    parse_field_table(properties).ok().map(|(_, table)| table)
}

fn text(properties: &FieldTable, name: &str) -> String {
    match properties.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => String::new(),
    }
}
