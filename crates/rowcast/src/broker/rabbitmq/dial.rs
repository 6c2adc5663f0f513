//! The way to a connection: TCP, TLS, the handshake, and giving up.
//!
//! lapin waits for ever for a server that accepts and then says nothing, on a thread of its own that nobody can end. So a
//! second handle of the socket is kept until the handshake is through; shutting that down ends the thread.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::tcp::{AsyncTcpStream, TLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};

use super::errors::failed;
use super::settings::RabbitSettings;
use crate::broker::Error;

/// How long reaching the broker, TLS and the handshake may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects under a name that the management page shows (`rowcast shop 3of4`). lapin's own recovery stays off: topology and
/// position are ours to establish again.
pub(super) async fn connect(settings: &RabbitSettings, role: &str) -> Result<Connection, Error> {
    let what = format!("connecting to RabbitMQ at {}", settings.address());
    let properties = ConnectionProperties::default().with_connection_name(format!("rowcast {} {role}", settings.pipeline).into());
    let runtime = lapin::runtime::default_runtime().map_err(|error| failed(&what, &error))?;
    let attempt = Attempt::default();
    let (socket, reactor) = (attempt.0.clone(), runtime.clone());
    let open = async move |uri: AMQPUri, _| {
        let host = uri.authority.host;
        let addresses: Vec<_> = tokio::net::lookup_host((host.as_str(), uri.authority.port)).await?.collect();
        let stream =
            tokio::time::timeout(CONNECT_TIMEOUT, AsyncTcpStream::connect(&reactor, &*addresses)).await.map_err(std::io::Error::from)??;
        if let AsyncTcpStream::Plain(plain) = &stream {
            keep(&socket, plain.get_ref().as_fd().try_clone_to_owned()?.into())?;
        }
        Ok(match uri.scheme {
            AMQPScheme::AMQP => stream,
            AMQPScheme::AMQPS => stream.into_tls(&host, TLSConfig::default()).await?,
        })
    };
    let connecting = Connection::connector(settings.uri.clone(), runtime, open, properties);
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => {
            attempt.succeed();
            Ok(connection)
        }
        Ok(Err(error)) => Err(failed(&what, &error)),
        Err(_) => Err(Error::Lost(format!("{what} took longer than {} s", CONNECT_TIMEOUT.as_secs()))),
    }
}

/// How far an attempt has come.
#[derive(Default)]
enum Progress {
    /// No socket yet.
    #[default]
    Begun,
    /// The second handle of the socket.
    Open(TcpStream),
    /// Nobody waits for it any more, or it has succeeded.
    Over,
}

/// An attempt under way. Dropping it gives it up.
#[derive(Default)]
struct Attempt(Arc<Mutex<Progress>>);

impl Attempt {
    fn succeed(self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Progress::Over;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut progress = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Progress::Open(socket) = std::mem::replace(&mut *progress, Progress::Over) {
            // It fails only where the socket is closed already.
            drop(socket.shutdown(Shutdown::Both));
        }
    }
}

fn keep(progress: &Mutex<Progress>, socket: TcpStream) -> std::io::Result<()> {
    let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*progress, Progress::Over) {
        return Err(std::io::ErrorKind::TimedOut.into());
    }
    *progress = Progress::Open(socket);
    Ok(())
}
