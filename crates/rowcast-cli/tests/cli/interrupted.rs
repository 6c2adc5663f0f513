//! Ctrl-C at every stage: each command ends at once, and leaves nothing half-done.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::Instant;

use rustix::process::{Pid, kill_process};

use super::wrong::{masked, with_servers_at, without_servers};
use super::*;

/// A command under way, as a shell starts one in the foreground: Ctrl-C ends it if it has nothing better to do.
struct Program(Child);

impl Program {
    /// Starts it; both of its outputs go to the file `log`.
    fn start(folder: &Path, arguments: &[&str]) -> Program {
        let log = File::create(folder.join("log")).unwrap();
        let mut command = Command::new(BINARY);
        command.args(arguments).current_dir(folder).env("TMPDIR", folder).stdout(log.try_clone().unwrap()).stderr(log);
        Program(command.spawn().unwrap())
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    fn has_opened(&self, file: &str) -> bool {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid().as_raw_nonzero())).unwrap();
        open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok()).any(|path| path.ends_with(file))
    }

    /// Presses Ctrl-C; returns the exit code that a shell would show.
    fn interrupt(&mut self) -> i32 {
        kill_process(self.pid(), Signal::INT).unwrap();
        let status = until_blocking("the end", DEADLINE, || self.0.try_wait().unwrap()).unwrap();
        status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // One that has ended already cannot be killed.
        drop(self.0.kill());
        self.0.wait().unwrap();
    }
}

#[test]
fn every_command_ends_while_its_servers_do_not_answer() {
    let servers = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let folder = with_servers_at([0, 1].map(|server| servers[server].local_addr().unwrap().port()));
    servers.iter().for_each(|server| server.set_nonblocking(true).unwrap());
    for (arguments, code) in [
        (&["run"][..], 0),
        (&["publish"], 0),
        (&["consume"], 0),
        (&["tail"], 0),
        (&["status", "--watch"], 0),
        (&["status"], 130),
        (&["check"], 130),
        (&["snapshot"], 130),
        (&["get", "users", "1"], 130),
    ] {
        let mut program = Program::start(folder.path(), arguments);
        // Whoever has connected waits for an answer that never comes.
        let connected = || servers.iter().find_map(|server| server.accept().ok());
        let connection = until_blocking("a connection", DEADLINE, connected).unwrap();
        assert_eq!(program.interrupt(), code, "{arguments:?}: {}", said(folder.path()));
        drop(connection);
        while connected().is_some() {}
    }
}

#[test]
fn what_waits_for_a_lock_ends_at_ctrl_c_and_can_be_done_later() {
    let folder = shop();
    std::fs::write(folder.path().join("rowcast.toml"), MEMORY).unwrap();
    let db = Connection::open(folder.path().join("shop.db")).unwrap();
    let locked = || db.execute_batch("BEGIN IMMEDIATE; CREATE TABLE in_the_way(a)").unwrap();
    locked();
    let mut install = Program::start(folder.path(), &["install"]);
    until_blocking("the database to be opened", DEADLINE, || install.has_opened("shop.db").then_some(())).unwrap();
    assert_eq!(install.interrupt(), 130);
    db.execute_batch("ROLLBACK").unwrap();
    assert_eq!(rowcast(folder.path(), &["install"]).code, Some(0));
    locked();
    let mut uninstall = Program::start(folder.path(), &["uninstall"]);
    until_blocking("the database to be opened", DEADLINE, || uninstall.has_opened("shop.db").then_some(())).unwrap();
    assert_eq!(uninstall.interrupt(), 130);
    db.execute_batch("ROLLBACK").unwrap();
    assert_eq!(rowcast(folder.path(), &["uninstall"]).code, Some(0));
    assert_eq!(traces(folder.path()), [""; 0]);
}

#[test]
fn a_run_waits_for_its_servers_with_one_line_for_each_and_ends_at_ctrl_c() {
    let (folder, ports) = without_servers();
    let begun = Instant::now();
    let mut running = Program::start(folder.path(), &["run"]);
    let text = || said(folder.path());
    until_blocking("both servers to be missed", DEADLINE, || (text().contains("cache: ") && text().contains("broker: ")).then_some(()))
        .unwrap();
    assert_eq!(running.interrupt(), 0, "{}", text());
    let lines = masked(&text(), ports);
    // It is said again now and then.
    let most = 1 + begun.elapsed().as_secs() / 5;
    let times = lines.matches("cache: Redis at 127.0.0.1:REDIS").count() as u64;
    assert!((1..=most).contains(&times), "{lines}");
}

#[test]
fn an_interrupted_demo_says_so_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut demo = Program::start(folder.path(), &["demo", "--rows", "100000000"]);
    let text = || said(folder.path());
    until_blocking("the load", DEADLINE, || text().contains("A load of").then_some(())).unwrap();
    assert_eq!(demo.interrupt(), 130, "{}", text());
    assert!(text().lines().any(|line| line == "interrupted: the demo has removed everything that it made"), "{}", text());
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["log"]);
}

fn said(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("log")).unwrap()
}
