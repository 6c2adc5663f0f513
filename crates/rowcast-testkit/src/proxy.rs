//! A TCP proxy on loopback with faults: cut, cut in the middle, stall as a half-open connection does, refuse.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::process::free_port;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// What happens to bytes in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lane {
    /// Nothing is read and nothing is passed on; nobody is told.
    stalled: bool,
    /// After so many bytes more every connection is cut.
    left: Option<u64>,
}

/// What the proxy does now.
#[derive(Clone, Copy, Debug)]
struct Mode {
    /// Where new connections go.
    server: SocketAddr,
    refusing: bool,
    /// Connections of an earlier generation are cut.
    generation: u64,
    to_server: Lane,
    to_client: Lane,
}

impl Mode {
    fn lane(&mut self, direction: Direction) -> &mut Lane {
        match direction {
            Direction::ToServer => &mut self.to_server,
            Direction::ToClient => &mut self.to_client,
        }
    }
}

/// Forwards connections to one server until it is told otherwise. Dropping it cuts them all.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    mode: watch::Sender<Mode>,
    forwarded: Arc<Mutex<[u64; 2]>>,
    open: Arc<()>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port. Must be called in a tokio runtime.
    pub async fn start(server: SocketAddr) -> Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", free_port()?)).await?;
        let address = listener.local_addr()?;
        let (mode, watched) =
            watch::channel(Mode { server, refusing: false, generation: 0, to_server: Lane::default(), to_client: Lane::default() });
        let forwarded = Arc::default();
        let mut tasks = JoinSet::new();
        let open = Arc::new(());
        let shared = Shared { mode: mode.clone(), forwarded: Arc::clone(&forwarded), open: Arc::downgrade(&open) };
        tasks.spawn(listen(listener, address, watched, shared));
        Ok(Proxy { port: address.port(), mode, forwarded, open, _tasks: tasks })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts every connection that there is; new ones are forwarded.
    pub fn cut(&self) {
        self.mode.send_modify(|mode| mode.generation += 1);
    }

    /// Cuts every connection that there is; new ones go to another server, as an address does that moves with a service.
    pub fn redirect(&self, server: SocketAddr) {
        self.mode.send_modify(|mode| {
            mode.server = server;
            mode.generation += 1;
        });
    }

    /// Passes `bytes` more in this direction, over all connections together, and then cuts them all, once.
    pub fn cut_after(&self, direction: Direction, bytes: u64) {
        self.mode.send_modify(|mode| mode.lane(direction).left = Some(bytes));
    }

    /// Whether the cut that was ordered by [`Proxy::cut_after`] is still to come.
    pub fn cut_due(&self, direction: Direction) -> bool {
        let mut mode = *self.mode.borrow();
        mode.lane(direction).left.is_some()
    }

    /// Passes nothing on in this direction, of connections old and new, and tells nobody.
    pub fn stall(&self, direction: Direction) {
        self.mode.send_modify(|mode| mode.lane(direction).stalled = true);
    }

    /// Takes back every [`Proxy::stall`] and [`Proxy::refuse`]; what was held up goes on.
    pub fn resume(&self) {
        self.mode.send_modify(|mode| {
            mode.refusing = false;
            mode.to_server.stalled = false;
            mode.to_client.stalled = false;
        });
    }

    /// Refuses new connections, as a server does that is not there. Those that there are live on.
    pub fn refuse(&self) {
        self.mode.send_modify(|mode| mode.refusing = true);
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        Arc::strong_count(&self.open) - 1
    }

    /// How many bytes have gone by in this direction.
    pub fn forwarded(&self, direction: Direction) -> u64 {
        self.forwarded.lock().unwrap_or_else(PoisonError::into_inner)[direction as usize]
    }
}

/// What the proxy shares with its connections.
#[derive(Clone)]
struct Shared {
    mode: watch::Sender<Mode>,
    forwarded: Arc<Mutex<[u64; 2]>>,
    /// Counted while a connection lives.
    open: Weak<()>,
}

async fn listen(listener: TcpListener, address: SocketAddr, mut watched: watch::Receiver<Mode>, shared: Shared) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let refusing = watched.borrow_and_update().refusing;
        if refusing {
            // Without a listener the system itself refuses.
            listener = None;
        } else if listener.is_none() {
            listener = Some(TcpListener::bind(address).await.expect("the proxy's port is still its own"));
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = watched.changed() => if changed.is_err() { return },
            Some(_) = connections.join_next() => {}
            Ok((client, _)) = accepted => {
                let Mode { server, generation, .. } = *shared.mode.borrow();
                connections.spawn(forward(client, server, generation, shared.clone()));
            }
        }
    }
}

/// Lives as long as both directions do.
async fn forward(client: TcpStream, server: SocketAddr, generation: u64, shared: Shared) {
    let Some(_open) = shared.open.upgrade() else { return };
    let Ok(server) = TcpStream::connect(server).await else { return };
    // Small frames are not to wait for each other here either.
    if client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
        return;
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let pipe = |direction| Pipe { direction, generation, watched: shared.mode.subscribe(), shared: shared.clone() };
    // The end of one direction ends the connection: both halves are dropped.
    tokio::select! {
        _ = pipe(Direction::ToServer).run(from_client, to_server) => {}
        _ = pipe(Direction::ToClient).run(from_server, to_client) => {}
    }
}

/// One direction of one connection.
struct Pipe {
    direction: Direction,
    generation: u64,
    watched: watch::Receiver<Mode>,
    shared: Shared,
}

impl Pipe {
    async fn run(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            self.flowing().await?;
            let read = tokio::select! {
                read = from.read(&mut buffer) => read?,
                changed = self.watched.changed() => {
                    changed?;
                    continue;
                }
            };
            if read == 0 {
                self.flowing().await?;
                return Ok(());
            }
            // A stall that began while the bytes were under way holds them too.
            self.flowing().await?;
            let allowed = self.spend(read);
            to.write_all(&buffer[..allowed]).await?;
            self.shared.forwarded.lock().unwrap_or_else(PoisonError::into_inner)[self.direction as usize] += allowed as u64;
            if allowed < read {
                self.shared.mode.send_modify(|mode| mode.generation += 1);
            }
        }
    }

    /// Returns once bytes may flow; fails where the connection is to be cut.
    async fn flowing(&mut self) -> Result<()> {
        let (direction, generation) = (self.direction, self.generation);
        let mode = self.watched.wait_for(|mode| mode.generation != generation || !{ *mode }.lane(direction).stalled).await?;
        (mode.generation == generation).then_some(()).context("cut")
    }

    /// How many of `wanted` bytes may pass. One that may not cuts the connection, and with it the limit is done with.
    fn spend(&self, wanted: usize) -> usize {
        let mut allowed = wanted;
        self.shared.mode.send_if_modified(|mode| {
            let lane = mode.lane(self.direction);
            if let Some(left) = lane.left {
                allowed = usize::try_from(left).map_or(wanted, |left| left.min(wanted));
                lane.left = (allowed == wanted).then(|| left - wanted as u64);
            }
            false
        });
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::until;
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(60);

    /// A server that sends back what it gets.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = client.split();
                    drop(tokio::io::copy(&mut read, &mut write).await);
                });
            }
        });
        address
    }

    async fn connected() -> (Proxy, TcpStream) {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let client = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        (proxy, client)
    }

    async fn says_back(client: &mut TcpStream) {
        client.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ping");
    }

    #[tokio::test]
    async fn it_forwards_until_it_is_cut_and_then_forwards_new_connections() {
        let (proxy, mut client) = connected().await;
        says_back(&mut client).await;
        assert_eq!(proxy.forwarded(Direction::ToServer), 4);
        proxy.cut();
        assert!(matches!(client.read(&mut [0; 4]).await, Ok(0) | Err(_)));
        let mut client = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        says_back(&mut client).await;
    }

    #[tokio::test]
    async fn it_can_be_moved_to_another_server() {
        let (proxy, mut client) = connected().await;
        says_back(&mut client).await;
        let other = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        proxy.redirect(other.local_addr().unwrap());
        assert!(matches!(client.read(&mut [0; 4]).await, Ok(0) | Err(_)));
        let _client = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        tokio::time::timeout(SOON, other.accept()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn it_cuts_after_so_many_bytes() {
        let (proxy, mut client) = connected().await;
        proxy.cut_after(Direction::ToClient, 6);
        says_back(&mut client).await;
        client.write_all(b"ping").await.unwrap();
        let mut rest = Vec::new();
        drop(client.read_to_end(&mut rest).await);
        assert_eq!(rest, b"pi");
        let mut client = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        says_back(&mut client).await;
        says_back(&mut client).await;
    }

    #[tokio::test]
    async fn a_stall_holds_bytes_back_and_closes_nothing() {
        let (proxy, mut client) = connected().await;
        says_back(&mut client).await;
        proxy.stall(Direction::ToClient);
        client.write_all(b"ping").await.unwrap();
        until("the server to have it", SOON, async || (proxy.forwarded(Direction::ToServer) == 8).then_some(())).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), client.read(&mut [0; 4])).await.is_err());
        proxy.resume();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).await.unwrap();
    }

    #[tokio::test]
    async fn it_refuses_new_connections_only() {
        let (proxy, mut client) = connected().await;
        says_back(&mut client).await;
        proxy.refuse();
        let address = ("127.0.0.1", proxy.port());
        until("a refusal", SOON, async || TcpStream::connect(address).await.is_err().then_some(())).await.unwrap();
        says_back(&mut client).await;
        proxy.resume();
        until("a connection", SOON, async || TcpStream::connect(address).await.ok()).await.unwrap();
    }
}
