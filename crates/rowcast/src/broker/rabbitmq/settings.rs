//! Where the broker is and how its queues are to be made: checked once, trusted afterwards.

use std::fmt;

use lapin::uri::AMQPUri;
use url::{Host, Url};

/// How soon a dead connection is noticed, in seconds: both sides give up after two of these without a sign of life. RabbitMQ's
/// own default of 60 would leave the publisher's exclusive queue locked for two minutes.
const HEARTBEAT_S: u16 = 10;

/// The largest frame. lapin keeps two buffers of 32 frames for each connection, which RabbitMQ's 128 KiB would make 8 MiB.
const FRAME_BYTES_MAX: u32 = 32 * 1024;

/// AMQP's limit for every name.
const NAME_BYTES_MAX: usize = 255;

/// Room for what is put before and after the pipeline's name (`rowcast.` and `.65535of65535`).
const PIPELINE_BYTES_MAX: usize = NAME_BYTES_MAX - 32;

/// How many messages a consumer holds unacked, unless it is told otherwise.
const PREFETCH: u16 = 100;

/// The type of the queues that hold messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueType {
    /// Replicated where the broker is a cluster, and always on disk.
    #[default]
    Quorum,
    /// On one node.
    Classic,
}

impl QueueType {
    /// The value of `x-queue-type`.
    pub fn name(self) -> &'static str {
        match self {
            QueueType::Quorum => "quorum",
            QueueType::Classic => "classic",
        }
    }
}

/// A setting that cannot work. The text names it and says what would; a password is never in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSetting(pub String);

/// Everything that [`super::RabbitBroker`] has to know.
#[derive(Clone)]
pub struct RabbitSettings {
    /// Parsed, with the heartbeat and the frame size that this program wants.
    pub(super) uri: AMQPUri,
    /// What the names of exchange and queues are made of.
    pub(super) pipeline: String,
    /// How many partition queues there are.
    pub(super) partitions: u16,
    /// What is asked of an existing queue too.
    pub(super) queue_type: QueueType,
    /// Bounds what a consumer holds unacked.
    pub(super) prefetch: u16,
}

impl RabbitSettings {
    /// Checks the settings: `amqp://user:password@host:5672/vhost`, or `amqps://` for TLS with the system's certificates. Without a
    /// user it is `guest`, without a vhost it is `/`; `?heartbeat=` in seconds is the only parameter.
    pub fn new(url: &str, pipeline: &str, partitions: u16, queue_type: QueueType) -> Result<RabbitSettings, InvalidSetting> {
        if pipeline.is_empty() || pipeline.len() > PIPELINE_BYTES_MAX {
            return Err(InvalidSetting(format!("the pipeline's name must have 1 to {PIPELINE_BYTES_MAX} bytes")));
        }
        if partitions == 0 {
            return Err(InvalidSetting("there must be at least one partition".to_owned()));
        }
        Ok(RabbitSettings { uri: parse(url)?, pipeline: pipeline.to_owned(), partitions, queue_type, prefetch: PREFETCH })
    }

    /// Bounds how many messages a consumer holds unacked.
    pub fn with_prefetch(self, prefetch: u16) -> Result<RabbitSettings, InvalidSetting> {
        if prefetch == 0 {
            return Err(InvalidSetting("a prefetch of 0 would be no limit at all; it must be at least 1".to_owned()));
        }
        Ok(RabbitSettings { prefetch, ..self })
    }

    /// The host and port, for messages; no password is in it.
    pub fn address(&self) -> String {
        format!("{}:{}", self.uri.authority.host, self.uri.authority.port)
    }
}

impl fmt::Debug for RabbitSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitSettings")
            .field("address", &self.address())
            .field("vhost", &self.uri.vhost)
            .field("user", &self.uri.authority.userinfo.username)
            .field("pipeline", &self.pipeline)
            .field("partitions", &self.partitions)
            .field("queue_type", &self.queue_type)
            .field("prefetch", &self.prefetch)
            .finish_non_exhaustive()
    }
}

fn parse(text: &str) -> Result<AMQPUri, InvalidSetting> {
    let invalid = |why: String| InvalidSetting(format!("the broker's URL {why}; it looks like amqp://user:password@host:5672/vhost"));
    let url = Url::parse(text).map_err(|error| {
        invalid(format!("cannot be read ({error}; in a user name or password, write special characters as %23 for #, %2F for /)"))
    })?;
    if !matches!(url.scheme(), "amqp" | "amqps") {
        return Err(invalid(format!("begins with {}:", url.scheme())));
    }
    // lapin's own parser takes an IPv6 address or a missing host for localhost.
    let host = match url.host() {
        Some(Host::Domain(name)) if !name.is_empty() => None,
        Some(Host::Ipv4(address)) => Some(address.to_string()),
        Some(Host::Ipv6(address)) => Some(address.to_string()),
        Some(Host::Domain(_)) | None => return Err(invalid("names no host".to_owned())),
    };
    if url.fragment().is_some() {
        return Err(invalid("has a # in it, which is written as %23".to_owned()));
    }
    if url.path().contains('@') {
        return Err(invalid("has an @ behind a /; in a user name or password / is written %2F, in a vhost @ is written %40".to_owned()));
    }
    // The name is not shown: behind a ? in a password stands the rest of it.
    if url.query_pairs().any(|(name, _)| name != "heartbeat") {
        return Err(invalid(
            "has a parameter other than heartbeat behind its ?, which means nothing here; in a user name or password ? is written %3F"
                .to_owned(),
        ));
    }
    let mut uri: AMQPUri =
        text.parse().map_err(|_| invalid("holds a part that is not UTF-8, or a heartbeat that is no number".to_owned()))?;
    if let Some(host) = host {
        uri.authority.host = host;
    }
    if uri.vhost.is_empty() {
        "/".clone_into(&mut uri.vhost);
    }
    if uri.vhost.len() > NAME_BYTES_MAX {
        return Err(invalid(format!("has a vhost of more than {NAME_BYTES_MAX} bytes")));
    }
    let heartbeat_s = uri.query.heartbeat.unwrap_or(HEARTBEAT_S);
    if !(1..=60).contains(&heartbeat_s) {
        return Err(invalid("asks for a heartbeat that is not between 1 and 60 seconds".to_owned()));
    }
    uri.query.heartbeat = Some(heartbeat_s);
    uri.query.frame_max = Some(FRAME_BYTES_MAX);
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Result<RabbitSettings, InvalidSetting> {
        RabbitSettings::new(url, "shop", 4, QueueType::Quorum)
    }

    #[test]
    fn a_url_is_read_with_its_defaults() {
        let uri = settings("amqp://rabbit").unwrap().uri;
        assert_eq!((uri.authority.host.as_str(), uri.authority.port, uri.vhost.as_str()), ("rabbit", 5672, "/"));
        assert_eq!(uri.authority.userinfo.username, "guest");
        assert_eq!(uri.query.heartbeat, Some(10));
        let uri = settings("amqps://ada:p%40ss@rabbit/%2fshop?heartbeat=5").unwrap().uri;
        assert_eq!((uri.authority.port, uri.vhost.as_str()), (5671, "/shop"));
        assert_eq!((uri.authority.userinfo.password.as_str(), uri.query.heartbeat), ("p@ss", Some(5)));
        assert_eq!(settings("amqp://rabbit/").unwrap().uri.vhost, "/");
    }

    #[test]
    fn a_host_may_be_an_address() {
        assert_eq!(settings("amqp://[::1]:5673").unwrap().address(), "::1:5673");
        assert_eq!(settings("amqp://127.0.0.1").unwrap().address(), "127.0.0.1:5672");
    }

    #[test]
    fn what_cannot_work_is_refused_without_showing_the_password() {
        for (url, says) in [
            ("rabbit:5672", "begins with rabbit:"),
            ("http://rabbit", "begins with http:"),
            ("amqp://ada:se#cret@rabbit", "%23"),
            ("amqp:///vhost", "names no host"),
            ("amqp://ada:secret@rabbit?frame_max=1", "other than heartbeat"),
            ("amqp://ada:?secret@rabbit", "%3F"),
            ("amqp://ada:/secret@rabbit", "%2F"),
            ("amqp://ada:secret@rabbit?heartbeat=0", "between 1 and 60"),
            ("amqp://ada:secret@rabbit?heartbeat=often", "no number"),
            ("amqp://ada:secret@rabbit:port", "cannot be read"),
        ] {
            let error = settings(url).unwrap_err().to_string();
            assert!(error.contains(says), "{url}: {error}");
            assert!(!error.contains("cret"), "{url}: {error}");
        }
    }

    #[test]
    fn the_password_is_not_in_a_debug_line() {
        let shown = format!("{:?}", settings("amqp://ada:secret@rabbit").unwrap());
        assert!(shown.contains("ada") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn names_that_amqp_would_refuse_are_refused() {
        assert!(RabbitSettings::new("amqp://rabbit", "", 4, QueueType::Quorum).is_err());
        assert!(RabbitSettings::new("amqp://rabbit", &"x".repeat(224), 4, QueueType::Quorum).is_err());
        assert!(RabbitSettings::new("amqp://rabbit", "shop", 0, QueueType::Quorum).is_err());
        assert!(settings(&format!("amqp://rabbit/{}", "v".repeat(256))).is_err());
        assert!(settings("amqp://rabbit").unwrap().with_prefetch(0).is_err());
    }
}
