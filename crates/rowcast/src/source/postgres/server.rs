//! Which server, which database, and as whom: what a `postgres://` URL says. Pure.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

/// How much a connection insists on TLS; the words and their meaning are libpq's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Never.
    Disable,
    /// If the server has it; nothing is verified.
    Prefer,
    /// Always; nothing is verified.
    Require,
    /// Always, and the certificate must come from a known authority.
    VerifyCa,
    /// The same, and it must be for this host.
    VerifyFull,
}

/// A server, a database on it, and a user.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    /// A name or an address; the folder of a Unix socket where it begins with `/`.
    pub host: String,
    /// The port; it is part of a Unix socket's name, too.
    pub port: u16,
    /// The database.
    pub database: String,
    /// The user.
    pub user: String,
    /// The password, if one is given.
    pub password: Option<String>,
    /// How much TLS.
    pub ssl_mode: SslMode,
    /// A file of certificate authorities, instead of the system's.
    pub ssl_root: Option<PathBuf>,
    /// How long connecting may take in all.
    pub connect_timeout: Duration,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({}, user {:?}, {:?})", self.place(), self.user, self.ssl_mode)
    }
}

/// Where PostgreSQL listens if nothing is said.
const PORT: u16 = 5432;
/// How long connecting may take if nothing is said.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Every parameter that a URL may have.
const PARAMETERS: &[&str] = &["sslmode", "sslrootcert", "connect_timeout", "host", "password"];

impl Server {
    /// Reads a URL (`postgres://user:password@host:5432/database?sslmode=verify-full`). The error is a sentence that never shows the
    /// password.
    pub fn parse(text: &str) -> Result<Server, String> {
        let url = Url::parse(text).map_err(|error| {
            let hint = match text {
                text if text.contains('#') => " (a # in a user, password or database is written %23)",
                text if text.contains(',') => " (several hosts cannot be named: name the primary)",
                _ => "",
            };
            format!("the url is not one that PostgreSQL is reached by: {error}{hint}; write postgres://user@host/database")
        })?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err("the url does not begin with postgres://".to_owned());
        }
        let decoded = |text: &str, what: &str| decode(text).ok_or_else(|| format!("the {what} in the url is not UTF-8"));
        let mut server = Server {
            host: decoded(url.host_str().unwrap_or_default().trim_matches(['[', ']']), "host")?,
            port: url.port().unwrap_or(PORT),
            database: decoded(url.path().trim_start_matches('/'), "database")?,
            user: decoded(url.username(), "user")?,
            password: url.password().map(|password| decoded(password, "password")).transpose()?,
            ssl_mode: SslMode::Prefer,
            ssl_root: None,
            connect_timeout: CONNECT_TIMEOUT,
        };
        for (name, value) in url.query_pairs() {
            server.parameter(&name, &value)?;
        }
        if url.fragment().is_some() {
            return Err("the url has a # in it; a # in a user, password or database is written %23".to_owned());
        }
        if server.host.contains(',') {
            return Err("several hosts cannot be named: name the primary".to_owned());
        }
        if server.host.is_empty() {
            return Err("the url names no host; write postgres://user@host/database".to_owned());
        }
        if server.user.is_empty() {
            return Err("the url names no user; write postgres://user@host/database".to_owned());
        }
        if server.database.is_empty() {
            return Err("the url names no database; write postgres://user@host/database".to_owned());
        }
        if server.database.contains('/') {
            return Err("the url names more than a database after the host; a / in its name is written %2F".to_owned());
        }
        let strings = [&server.host, &server.database, &server.user].into_iter().chain(&server.password);
        if strings.into_iter().any(|text| text.contains('\0')) {
            return Err("the url has a null character in it".to_owned());
        }
        Ok(server)
    }

    fn parameter(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "sslmode" => {
                self.ssl_mode = match value {
                    "disable" => SslMode::Disable,
                    // libpq would try without TLS first; nothing is verified either way.
                    "allow" | "prefer" => SslMode::Prefer,
                    "require" => SslMode::Require,
                    "verify-ca" => SslMode::VerifyCa,
                    "verify-full" => SslMode::VerifyFull,
                    other => return Err(format!("sslmode is disable, allow, prefer, require, verify-ca or verify-full, not {other:?}")),
                }
            }
            "sslrootcert" => self.ssl_root = (value != "system").then(|| PathBuf::from(value)),
            "connect_timeout" => {
                let seconds = value.parse().ok().filter(|seconds| (1..=600).contains(seconds));
                let seconds: u64 = seconds.ok_or_else(|| "connect_timeout is a number of seconds from 1 to 600".to_owned())?;
                self.connect_timeout = Duration::from_secs(seconds);
            }
            "host" => value.clone_into(&mut self.host),
            "password" => self.password = Some(value.to_owned()),
            other => {
                let near = crate::mapping::nearest(other, PARAMETERS.iter().copied());
                let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                return Err(format!("the url has the parameter {other}, which is not known here{near}"));
            }
        }
        Ok(())
    }

    /// Whether a certificate is verified, and against the host's name too. As in libpq, a file of authorities makes `require` mean
    /// `verify-ca`.
    pub(super) fn verifies(&self) -> (bool, bool) {
        match self.ssl_mode {
            SslMode::Disable | SslMode::Prefer => (false, false),
            SslMode::Require => (self.ssl_root.is_some(), false),
            SslMode::VerifyCa => (true, false),
            SslMode::VerifyFull => (true, true),
        }
    }

    /// Host, port and database, for messages.
    pub fn place(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{host}:{}/{}", self.port, self.database)
    }
}

/// Undoes percent-encoding; `None` where the result is not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, hex) {
            (b'%', Some(value)) => {
                bytes.push(value);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_who_and_where() {
        let server = Server::parse("postgres://ro%40w:s%3Aecret@db.example:6432/shop?sslmode=verify-full&sslrootcert=/ca.pem").unwrap();
        assert_eq!((server.user.as_str(), server.password.as_deref()), ("ro@w", Some("s:ecret")));
        assert_eq!(server.place(), "db.example:6432/shop");
        assert_eq!((server.ssl_mode, server.ssl_root.as_deref()), (SslMode::VerifyFull, Some(std::path::Path::new("/ca.pem"))));
        assert!(!format!("{server:?}").contains("ecret"));
        let server = Server::parse("postgresql://u@[::1]/d").unwrap();
        assert_eq!((server.host.as_str(), server.place().as_str()), ("::1", "[::1]:5432/d"));
        let server = Server::parse("postgres://u@%2Fvar%2Frun%2Fpostgresql/d").unwrap();
        assert_eq!(server.host, "/var/run/postgresql");
    }

    #[test]
    fn a_file_of_authorities_makes_require_verify() {
        let verifies = |query: &str| Server::parse(&format!("postgres://u@h/d?{query}")).unwrap().verifies();
        assert_eq!(verifies("sslmode=require"), (false, false));
        assert_eq!(verifies("sslmode=require&sslrootcert=/ca.pem"), (true, false));
        assert_eq!(verifies("sslmode=prefer&sslrootcert=/ca.pem"), (false, false));
        assert_eq!(verifies("sslmode=verify-ca"), (true, false));
        assert_eq!(verifies("sslmode=verify-full"), (true, true));
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        for (url, said) in [
            ("postgres://host/shop", "no user"),
            ("postgres://u@host", "no database"),
            ("postgres:///shop", "no host"),
            ("postgres://u@a,b/shop", "several hosts"),
            ("postgres://u@a:1,b:2/shop", "several hosts"),
            ("postgres://u@host/shop?sslmod=require", "did you mean sslmode"),
            ("postgres://u@host/shop?sslmode=yes", "sslmode is"),
            ("postgres://u@host/shop?connect_timeout=0", "seconds"),
            ("postgres://u:p#1@host/shop", "%23"),
            ("postgres://u@host/shop/more", "%2F"),
            ("postgres://u@host/sh%00op", "null"),
        ] {
            let error = Server::parse(url).unwrap_err();
            assert!(error.contains(said), "{url}: {error}");
        }
        assert!(!Server::parse("postgres://u:secret@host:port/shop").unwrap_err().contains("secret"));
    }
}
