//! Transactions that stand still: one that is in the log but that nobody sees, and one that has not committed.

use std::sync::Arc;
use std::thread::JoinHandle;

use rowcast_testkit::postgres::PostgresServer;
use rowcast_testkit::wait::until_blocking;

use super::pipeline::DEADLINE;

/// A statement that somebody runs on a thread.
pub struct Running(JoinHandle<()>);

impl Running {
    pub fn start(server: &Arc<PostgresServer>, sql: &str) -> Running {
        let (server, sql) = (Arc::clone(server), sql.to_owned());
        Running(std::thread::spawn(move || drop(server.execute(&sql))))
    }

    pub fn end(self) {
        self.0.join().unwrap();
    }
}

/// Runs a statement whose transaction commits into the log and then waits for a standby that is not there: it is streamed, and no
/// snapshot sees it. Every later commit hangs, too, but for those that wait for no standby.
pub fn hang(server: &Arc<PostgresServer>, sql: &str) -> Running {
    let waiting = || server.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").unwrap();
    let before = waiting();
    let_commits_hang(server);
    let running = Running::start(server, sql);
    until_blocking("the commit to wait for the standby", DEADLINE, || (waiting() != before).then_some(())).unwrap();
    running
}

/// From now on commits hang.
pub fn let_commits_hang(server: &PostgresServer) {
    server.execute("ALTER SYSTEM SET synchronous_standby_names = 'absent'").unwrap();
    server.execute("SELECT pg_reload_conf()").unwrap();
    until_blocking("the setting to be in force", DEADLINE, || {
        (server.execute("SHOW synchronous_standby_names").unwrap() == "absent").then_some(())
    })
    .unwrap();
}

/// Lets hanging commits go on.
pub fn release(server: &PostgresServer) {
    server.execute("ALTER SYSTEM RESET synchronous_standby_names").unwrap();
    server.execute("SELECT pg_reload_conf()").unwrap();
}

/// Keeps transactions at `SELECT pg_advisory_xact_lock_shared(1)` until it is opened.
pub struct Gate {
    server: Arc<PostgresServer>,
    holder: Running,
}

impl Gate {
    pub fn shut(server: &Arc<PostgresServer>) -> Gate {
        let holder = Running::start(server, "SELECT pg_advisory_lock(1); SELECT pg_sleep(600)");
        let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock'";
        until_blocking("the gate to be shut", DEADLINE, || (server.execute(held).unwrap() == "1").then_some(())).unwrap();
        Gate { server: Arc::clone(server), holder }
    }

    /// Runs a transaction up to the gate.
    pub fn up_to(&self, sql: &str) -> Running {
        let running = Running::start(&self.server, sql);
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        until_blocking("the transaction to stand at the gate", DEADLINE, || (self.server.execute(waits).unwrap() == "1").then_some(()))
            .unwrap();
        running
    }

    pub fn open(self) {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock'";
        self.server.execute(end).unwrap();
        self.holder.end();
    }
}
