//! Redis 6 or later, and Valkey: the cache of production.
//!
//! One connection without reconnection of its own, one script a block, every reply read. Readers see plain values; beside
//! them stand `rowcast:{shop}:layout`, `rowcast:{shop}:checkpoint:3of4` (a hash) and, while a resync is open,
//! `rowcast:{shop}:seen:3of4:<table>:<run>`.

use std::sync::Arc;
use std::time::Duration;

use redis::io::tcp::TcpSettings;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo};

use super::{Cache, Error};

mod block;
mod check;
mod connection;
mod fault;
mod link;
mod removal;
mod script;
mod seen;
mod stored;

pub use link::RedisLink;

/// Where Redis is, and how it is dealt with.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// Where and as whom; its `Debug` does not show the password.
    info: ConnectionInfo,
    pipeline: Arc<str>,
    /// How long connecting may take, name resolution and login included.
    pub connect_timeout: Duration,
    /// How long an answer may take. What was not answered in time may still be executed.
    pub response_timeout: Duration,
    /// The length at which a piece of a seen log is full. A multiple of 8; all consumers of a pipeline must agree, for a log
    /// that is cut differently counts as lost.
    pub seen_piece_bytes: u64,
}

/// A setting that cannot be right. Never shows the URL, for that may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The URL is not one.
    #[error(
        "the cache's URL cannot be read ({0}); it looks like redis://user:password@host:6379/0, or rediss:// for TLS, and in user and \
         password anything but letters and digits is percent-encoded"
    )]
    Url(String),
    /// The name is part of Redis keys between braces.
    #[error("the pipeline's name {0:?} is empty or has a brace in it")]
    Pipeline(String),
}

impl RedisSettings {
    /// Checks the URL (`redis://` or `rediss://`) and the pipeline's name; the rest has its default.
    pub fn new(url: &str, pipeline: &str) -> Result<RedisSettings, SettingsError> {
        if pipeline.is_empty() || pipeline.contains(['{', '}']) {
            return Err(SettingsError::Pipeline(pipeline.to_owned()));
        }
        let url = url::Url::parse(url).map_err(|error| SettingsError::Url(error.to_string()))?;
        if !["redis", "rediss", "valkey", "valkeys"].contains(&url.scheme()) {
            return Err(SettingsError::Url("its scheme is not redis or rediss".to_owned()));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(SettingsError::Url("it has something behind a ? or #".to_owned()));
        }
        let database = url.path().trim_matches('/');
        if !database.is_empty() && database.parse::<u16>().is_err() {
            // Where the URL is misspelt the password may stand in what looks like a path.
            return Err(SettingsError::Url("what follows the host and a / is no number of a database".to_owned()));
        }
        let info = url.into_connection_info().map_err(|error| SettingsError::Url(error.category().to_owned()))?;
        Ok(RedisSettings {
            info,
            pipeline: pipeline.into(),
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(10),
            // A sweep reads a log piece by piece, and takes no more room beside its keys than for one.
            seen_piece_bytes: 1 << 20,
        })
    }

    /// Host and port, for messages; no password is in it.
    pub fn place(&self) -> String {
        self.info.addr().to_string()
    }

    fn is_tls(&self) -> bool {
        matches!(self.info.addr(), ConnectionAddr::TcpTls { .. })
    }

    fn login(&self) -> &RedisConnectionInfo {
        self.info.redis_settings()
    }

    /// How to connect, without logging in: the client library would do that too, but keeps to itself what the server answered.
    fn without_login(&self) -> ConnectionInfo {
        let bare = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
        // The end of a block must not wait until the server has acknowledged its beginning.
        let tcp = TcpSettings::default().set_nodelay(true);
        self.info.clone().set_redis_settings(bare).set_tcp_settings(tcp)
    }
}

/// A Redis server for one pipeline.
#[derive(Clone, Debug)]
pub struct RedisCache {
    settings: Arc<RedisSettings>,
}

impl RedisCache {
    /// Does not connect yet.
    ///
    /// # Panics
    /// If `seen_piece_bytes` is not a multiple of 8, or zero.
    pub fn new(settings: RedisSettings) -> RedisCache {
        assert!(settings.seen_piece_bytes > 0 && settings.seen_piece_bytes.is_multiple_of(8), "a hash is never torn");
        RedisCache { settings: Arc::new(settings) }
    }
}

impl Cache for RedisCache {
    type Link = RedisLink;

    async fn connect(&self) -> Result<RedisLink, Error> {
        RedisLink::open(Arc::clone(&self.settings)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_checked_and_never_shown() {
        for url in [
            "amqp://u:secret@host",
            "redis://u:secret@",
            "redis://u:sec/ret@host:port",
            "redis://u:secret@host/zero",
            "redis://u:secret@host?protocol=resp3",
            "rediss://u:secret@host/#insecure",
            "secret",
        ] {
            let error = RedisSettings::new(url, "shop").unwrap_err().to_string();
            assert!(!error.contains("sec") && error.contains("redis://user"), "{url}: {error}");
        }
        let settings = RedisSettings::new("redis://u:secret@host/3", "shop").unwrap();
        assert_eq!((settings.place().as_str(), settings.login().db(), settings.login().password()), ("host:6379", 3, Some("secret")));
        assert!(!format!("{settings:?}").contains("secret"));
    }

    #[test]
    fn a_pipeline_is_named_without_braces() {
        assert!(RedisSettings::new("redis://host", "a}b").is_err());
        assert!(RedisSettings::new("redis://host", "").is_err());
        assert!(RedisSettings::new("rediss://host", "shop").is_ok());
    }
}
