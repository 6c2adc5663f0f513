//! What a message looks like on the wire: its properties and its body, compressed where that pays.

use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

use lapin::BasicProperties;

/// Below this a body goes as it is, so that the management page shows the usual small batch as text.
const COMPRESS_ABOVE_BYTES: usize = 4 * 1024;

/// Level 1 costs 1.7 ms a MB; higher ones gain little on JSON.
const COMPRESSION_LEVEL: i32 = 1;

/// What a received body may become. A batch has 1 MiB at most.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The window that a decompressor may be made to allocate by a header alone: 8 MiB, what every zstd decoder must support.
const WINDOW_LOG_MAX: u32 = 23;

/// In the property `content-encoding`.
const ZSTD: &str = "zstd";

/// Persistent, in the property `delivery-mode`.
const PERSISTENT: u8 = 2;

/// The properties and the body of a message on its way out.
pub(super) fn encode(kind: &str, body: Vec<u8>) -> std::io::Result<(BasicProperties, Vec<u8>)> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_type(kind.into())
        .with_timestamp(now_s)
        .with_app_id("rowcast".into());
    if body.len() <= COMPRESS_ABOVE_BYTES {
        return Ok((properties, body));
    }
    let compressed = zstd::bulk::compress(&body, COMPRESSION_LEVEL)?;
    Ok((properties.with_content_encoding(ZSTD.into()), compressed))
}

/// The body of a message that was received. One that cannot be decompressed comes as it is: it is no batch, and the consumer
/// sets aside what is none.
pub(super) fn decode(properties: &BasicProperties, data: Vec<u8>) -> Vec<u8> {
    match properties.content_encoding().as_ref().map(|encoding| encoding.as_str()) {
        None => data,
        Some(ZSTD) => decompress(&data).unwrap_or_else(|error| {
            tracing::warn!(bytes = data.len(), %error, "a message cannot be decompressed");
            data
        }),
        Some(encoding) => {
            tracing::warn!(bytes = data.len(), encoding, "a message has an unknown content-encoding");
            data
        }
    }
}

/// Grows with what is really there: no length field is believed.
fn decompress(data: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(data)?;
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    let mut body = Vec::with_capacity(data.len());
    decoder.take(BODY_BYTES_MAX + 1).read_to_end(&mut body)?;
    if body.len() as u64 > BODY_BYTES_MAX {
        return Err(std::io::Error::other(format!("it is larger than {BODY_BYTES_MAX} bytes")));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_comes_out_as_it_went_in() {
        for length in [0, 1, COMPRESS_ABOVE_BYTES, COMPRESS_ABOVE_BYTES + 1, 3_000_000] {
            let body: Vec<u8> = b"{\"rowcast\":1}".iter().copied().cycle().take(length).collect();
            let (properties, data) = encode("rowcast.batch", body.clone()).unwrap();
            assert_eq!(properties.content_encoding().is_some(), length > COMPRESS_ABOVE_BYTES);
            assert_eq!(decode(&properties, data), body);
        }
    }

    #[test]
    fn what_cannot_be_decompressed_comes_as_it_is() {
        let properties = BasicProperties::default().with_content_encoding("zstd".into());
        let (_, mut data) = encode("rowcast.batch", vec![b'x'; 10_000]).unwrap();
        data.truncate(data.len() - 3);
        assert_eq!(decode(&properties, data.clone()), data);
        assert_eq!(decode(&properties, b"{}".to_vec()), b"{}");
        let unknown = BasicProperties::default().with_content_encoding("br".into());
        assert_eq!(decode(&unknown, b"{}".to_vec()), b"{}");
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let bomb = zstd::bulk::compress(&vec![0; 65 * 1024 * 1024], 1).unwrap();
        assert!(bomb.len() < 10_000);
        assert!(decompress(&bomb).unwrap_err().to_string().contains("larger than"));
    }
}
