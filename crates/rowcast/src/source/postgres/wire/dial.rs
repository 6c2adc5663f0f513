//! The way to a connection: TCP or a Unix socket, TLS, the startup message, and logging in.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::super::server::{Server, SslMode};
use super::super::values;
use super::connection::{Connection, Stream};
use super::fault::{Fault, ServerError, code};
use super::tls;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Role {
    /// Statements.
    Queries,
    /// The replication protocol.
    Replication,
}

/// What every session of ours is set to beside [`values::PINNED`]. The startup message overrules `ALTER ROLE … SET` and `ALTER DATABASE … SET`.
const ALSO_PINNED: [(&str, &str); 9] = [
    // Every wait has an end here; a role's own would end a long reading again and again.
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    // What we commit are messages and the publication, which need no standby; a publisher must not hang where commits do.
    ("synchronous_commit", "local"),
    ("xmloption", "content"),
    ("standard_conforming_strings", "on"),
    // A table whose rows a policy hides from us is an error, not a table with fewer rows.
    ("row_security", "off"),
    ("default_transaction_read_only", "off"),
    // What is done under a lock must see what was committed before the lock was had.
    ("default_transaction_isolation", "read committed"),
    ("idle_in_transaction_session_timeout", "60s"),
];

/// How long the server waits for a sign of life of whoever reads its log; one comes every second. A publisher that is frozen, or lost with its
/// network, holds the slot so long, and another one cannot take over. The server's own setting is a minute. Replies that wait to be read are
/// read before this is looked at, so that a server that was busy with a large transaction does not count its own time.
const SENDER_TIMEOUT: (&str, &str) = ("wal_sender_timeout", "15s");

/// How often a system that says nothing is asked whether it is there, and how often in vain until the connection is over.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVES: u32 = 3;

/// Connects and logs in, within the server's time-out.
pub(in super::super) async fn dial(server: &Server, role: Role, name: &str) -> Result<Connection, Fault> {
    let connecting = async {
        match attempt(server, role, name, server.ssl_mode != SslMode::Disable).await {
            // As in libpq: where TLS is only preferred, a server whose TLS does not work is spoken to without.
            Err(Fault::Lost(why)) if server.ssl_mode == SslMode::Prefer && why.starts_with("TLS") => {
                attempt(server, role, name, false).await
            }
            attempted => attempted,
        }
    };
    let limit = server.connect_timeout;
    timeout(limit, connecting).await.unwrap_or_else(|_| Err(Fault::Lost(format!("connecting took longer than {} s", limit.as_secs()))))
}

async fn attempt(server: &Server, role: Role, name: &str, with_tls: bool) -> Result<Connection, Fault> {
    let mut connection = Connection::new(reach(server, with_tls).await?);
    let mut parameters = vec![("user", server.user.as_str()), ("database", server.database.as_str()), ("application_name", name)];
    if role == Role::Replication {
        parameters.extend([("replication", "database"), SENDER_TIMEOUT]);
    }
    parameters.extend(values::PINNED);
    parameters.extend(ALSO_PINNED);
    let mut message = BytesMut::new();
    frontend::startup_message(parameters, &mut message).map_err(|error| Fault::Hopeless(error.to_string()))?;
    connection.send(&message).await?;
    log_in(server, &mut connection).await?;
    let server_encoding = until_ready(&mut connection).await?;
    let encoding = values::client_encoding(&server_encoding);
    if encoding != "UTF8" {
        connection.query(&format!("SET client_encoding TO '{encoding}'"), AT_ONCE).await?;
    }
    Ok(connection)
}

async fn reach(server: &Server, with_tls: bool) -> Result<Box<dyn Stream>, Fault> {
    let lost = |error: io::Error| Fault::Lost(format!("cannot connect: {error}"));
    if server.host.starts_with('/') {
        let path = format!("{}/.s.PGSQL.{}", server.host, server.port);
        return Ok(Box::new(UnixStream::connect(&path).await.map_err(lost)?));
    }
    let mut stream = TcpStream::connect((server.host.as_str(), server.port)).await.map_err(lost)?;
    stream.set_nodelay(true).map_err(lost)?;
    notice_death(&stream).map_err(lost)?;
    if !with_tls {
        return Ok(Box::new(stream));
    }
    let mut message = BytesMut::new();
    frontend::ssl_request(&mut message);
    stream.write_all(&message).await.map_err(lost)?;
    // One byte and no more: what a stranger may have put behind it must not count as said under TLS.
    match stream.read_u8().await.map_err(lost)? {
        b'S' => Ok(Box::new(tls::shake_hands(server, stream).await?)),
        b'N' if server.ssl_mode == SslMode::Prefer => Ok(Box::new(stream)),
        b'N' => Err(Fault::Hopeless("the server has no TLS, and sslmode in the url asks for it".to_owned())),
        _ => Err(Fault::Lost("TLS: the server does not speak PostgreSQL's protocol".to_owned())),
    }
}

/// Lets the system find out by itself that the other side is gone, for a server may be busy and say nothing for long.
fn notice_death(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_EVERY)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVES)?;
    // Nothing is asked while something sent is not acknowledged: that has a limit of its own.
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(stream, u32::try_from((KEEPALIVE_EVERY * KEEPALIVES).as_millis()).expect("a short while"))?;
    Ok(())
}

async fn log_in(server: &Server, connection: &mut Connection) -> Result<(), Fault> {
    let mut scram: Option<ScramSha256> = None;
    let mut verified = false;
    loop {
        let (tag, payload) = connection.receive().await?;
        match tag {
            b'R' => {}
            b'E' => return Err(refused(server, &payload)),
            // A notice, or that an older minor version is negotiated.
            b'N' | b'v' => continue,
            other => return Err(unexpected(other)),
        }
        let (kind, rest) = payload.split_first_chunk::<4>().ok_or_else(|| unexpected(b'R'))?;
        let mut answer = BytesMut::new();
        let built = match i32::from_be_bytes(*kind) {
            // Whoever has begun SCRAM must prove that it knows the password too.
            0 if scram.is_some() && !verified => return Err(Fault::Lost("the server ended SCRAM without a proof of its own".to_owned())),
            0 => return Ok(()),
            3 => frontend::password_message(password(server)?.as_bytes(), &mut answer),
            5 => {
                let salt = rest.first_chunk::<4>().ok_or_else(|| unexpected(b'R'))?;
                let hash = md5_hash(server.user.as_bytes(), password(server)?.as_bytes(), *salt);
                frontend::password_message(hash.as_bytes(), &mut answer)
            }
            10 => {
                if !rest.split(|byte| *byte == 0).any(|mechanism| mechanism == SCRAM_SHA_256.as_bytes()) {
                    return Err(Fault::Hopeless(
                        "the server asks for a way to log in that is not known here (not SCRAM-SHA-256)".to_owned(),
                    ));
                }
                let client = ScramSha256::new(password(server)?.as_bytes(), ChannelBinding::unsupported());
                let built = frontend::sasl_initial_response(SCRAM_SHA_256, client.message(), &mut answer);
                scram = Some(client);
                built
            }
            11 => {
                let client = scram.as_mut().ok_or_else(|| unexpected(b'R'))?;
                client.update(rest).map_err(|error| Fault::Lost(format!("SCRAM: {error}")))?;
                frontend::sasl_response(client.message(), &mut answer)
            }
            12 => {
                let client = scram.as_mut().ok_or_else(|| unexpected(b'R'))?;
                client.finish(rest).map_err(|error| Fault::Lost(format!("SCRAM: {error}")))?;
                verified = true;
                continue;
            }
            other => {
                return Err(Fault::Hopeless(format!(
                    "the server asks for a way to log in that is not known here (number {other}); let pg_hba.conf ask for scram-sha-256"
                )));
            }
        };
        built.map_err(|error| Fault::Hopeless(error.to_string()))?;
        connection.send(&answer).await?;
    }
}

fn password(server: &Server) -> Result<&str, Fault> {
    let missing = || Fault::Hopeless(format!("the server asks {} for a password, and the url has none", server.user));
    server.password.as_deref().ok_or_else(missing)
}

/// Waits for the end of the server's welcome, and returns the encoding of the database that it says.
async fn until_ready(connection: &mut Connection) -> Result<String, Fault> {
    let mut encoding = String::new();
    loop {
        let (tag, payload) = connection.receive().await?;
        match tag {
            b'Z' => return Ok(encoding),
            b'E' => return Err(Fault::Ended(Box::new(ServerError::read(&payload)))),
            b'S' => {
                let mut parts = payload.split(|byte| *byte == 0);
                if let (Some(b"server_encoding"), Some(value)) = (parts.next(), parts.next()) {
                    encoding = String::from_utf8_lossy(value).into_owned();
                }
            }
            // Notices, the key for cancelling.
            b'N' | b'K' | b'v' => {}
            other => return Err(unexpected(other)),
        }
    }
}

/// What a refused login means.
fn refused(server: &Server, payload: &Bytes) -> Fault {
    let error = ServerError::read(payload);
    let remedy = match error.code.as_str() {
        code::UNDEFINED_PARAMETER if error.message.contains("startup parameter") => {
            "this looks like a connection pooler (PgBouncer, say), through which replication is not to be had: name the server itself"
        }
        code::INVALID_PASSWORD => "correct user and password in the url",
        code::INVALID_AUTHORIZATION => "let pg_hba.conf admit this user to the database, or mend the user in the url",
        code::NO_SUCH_DATABASE => "correct the database in the url",
        _ => return Fault::Ended(Box::new(error)),
    };
    Fault::Hopeless(format!("logging in as {}: {error}; {remedy}", server.user))
}

fn unexpected(tag: u8) -> Fault {
    Fault::Lost(format!("the server sent {:?} where PostgreSQL would not", char::from(tag)))
}

/// How long an answer may take that needs no work.
pub(super) const AT_ONCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_system_notices_by_itself_that_a_server_is_gone() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        notice_death(&stream).unwrap();
        assert_eq!(sockopt::socket_keepalive(&stream), Ok(true));
        assert_eq!(sockopt::tcp_keepidle(&stream), Ok(KEEPALIVE_EVERY));
        #[cfg(target_os = "linux")]
        assert_eq!(sockopt::tcp_user_timeout(&stream), Ok(30_000));
    }
}
