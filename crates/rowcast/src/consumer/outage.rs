//! One line for a server that is away, not one for each partition that misses it.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How often it is said that a server is still away.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// When each server was last said to be away.
#[derive(Debug, Default)]
pub(super) struct Outages {
    broker: Mutex<Option<Instant>>,
    cache: Mutex<Option<Instant>>,
}

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    Broker,
    Cache,
}

impl Outages {
    fn of(&self, server: Server) -> &Mutex<Option<Instant>> {
        match server {
            Server::Broker => &self.broker,
            Server::Cache => &self.cache,
        }
    }

    /// A worker misses the server: one of them says so, the others only where somebody wants to know everything.
    pub(super) fn say(&self, server: Server, error: &dyn Display) {
        let name = match server {
            Server::Broker => "broker",
            Server::Cache => "cache",
        };
        if self.tell(server) {
            tracing::warn!("{name}: {error}; trying again");
        } else {
            tracing::debug!("{name}: {error}; trying again");
        }
    }

    /// A worker misses the server. Returns whether it is the one to say so.
    fn tell(&self, server: Server) -> bool {
        let mut told = self.of(server).lock().unwrap_or_else(PoisonError::into_inner);
        let due = told.is_none_or(|told| told.elapsed() >= TOLD_EVERY);
        if due {
            *told = Some(Instant::now());
        }
        due
    }

    /// A worker has reached both again. Returns whether it is the one to say so.
    pub(super) fn over(&self) -> bool {
        let was_told = |server| self.of(server).lock().unwrap_or_else(PoisonError::into_inner).take().is_some();
        let (broker, cache) = (was_told(Server::Broker), was_told(Server::Cache));
        broker || cache
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_many_workers_one_tells_and_each_server_has_its_own_line() {
        let outages = Outages::default();
        let told = |server| (0..4).filter(|_| outages.tell(server)).count();
        assert_eq!((told(Server::Broker), told(Server::Cache)), (1, 1));
        tokio::time::advance(TOLD_EVERY - Duration::from_millis(1)).await;
        assert_eq!(told(Server::Broker), 0);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(told(Server::Broker), 1);
        assert_eq!((0..4).filter(|_| outages.over()).count(), 1, "its end is told once");
        assert_eq!(told(Server::Broker), 1);
    }
}
