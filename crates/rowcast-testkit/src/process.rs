//! Child processes that end with the test, even if the test is killed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, getpgid, kill_process, kill_process_group};

/// Below the ports that the system gives to outgoing connections. Whoever polls such a port until a server listens may
/// otherwise be connected to itself, and so take the port from the server.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// A free TCP port on loopback, which this process gives to nobody else: a server that is down for a while finds it free. Another
/// process may take it before the server does, so starting a server is worth a second try.
pub fn free_port() -> Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let port = (0..100)
        .map(|_| rand::random_range(PORTS))
        .find(|port| !given.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .context("a hundred ports are all taken")?;
    given.insert(port);
    Ok(port)
}

/// A child in a process group of its own, which a small guardian kills as soon as the test's end of a pipe is closed: by
/// dropping this, or by the test's death in whatever way.
#[derive(Debug)]
pub struct Process {
    guardian: Child,
    pid: Pid,
}

/// Runs the program in the background, says its id, waits for the end of its own input and kills the group. The child is the
/// leader of its group (`setsid`), so a server's own children go too. If the child ends first, its status is kept for
/// [`Process::wait`].
///
/// There is no job control (`set -m`): with it bash takes a stopped child for an ended one, and with `wait -f` it may spin for
/// ever on a child that was stopped and continued.
const GUARDIAN: &str = r#"
exec 3<&0
setsid "$@" </dev/null 3<&- &
child=$!
echo "$child" >&4
exec 4>&-
( read -r _ <&3; kill -KILL -- "-$child" 2>/dev/null ) >/dev/null 2>&1 &
watcher=$!
wait "$child"
status=$?
kill -KILL "$watcher" 2>/dev/null
exit "$status"
"#;

impl Process {
    /// Starts `program`; both of its outputs go to the file `log`.
    pub fn start(program: &Path, arguments: &[&OsStr], environment: &[(&str, &OsStr)], folder: &Path, log: &Path) -> Result<Process> {
        let output = File::options().create(true).append(true).open(log).with_context(|| format!("opening {}", log.display()))?;
        let pid_file = tempfile::NamedTempFile::new()?;
        let mut guardian = Command::new("bash")
            .arg("-c")
            .arg(format!("exec 4>'{}'\n{GUARDIAN}", pid_file.path().display()))
            .arg("guardian")
            .arg(program)
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let pid = crate::wait::until_blocking("the child to have an id", std::time::Duration::from_secs(60), || {
            std::fs::read_to_string(pid_file.path()).ok().and_then(|text| text.strip_suffix('\n').and_then(|text| text.parse().ok()))
        });
        let pid = match pid.map(|raw: i32| Pid::from_raw(raw)) {
            Ok(Some(pid)) => pid,
            other => {
                guardian.kill()?;
                anyhow::bail!("{} did not start: {other:?}", program.display());
            }
        };
        // The child becomes the leader of its group a moment after it has an id; one that is gone already has been it.
        crate::wait::until_blocking("the child to lead its group", std::time::Duration::from_secs(60), || match getpgid(Some(pid)) {
            Ok(group) => (group == pid).then_some(()),
            Err(_) => Some(()),
        })?;
        Ok(Process { guardian, pid })
    }

    /// The child's own id.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends a signal to the child alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid, signal).context("sending a signal")
    }

    /// Sends a signal to the child and all that it started.
    pub fn signal_group(&self, signal: Signal) -> Result<()> {
        kill_process_group(self.pid, signal).context("sending a signal")
    }

    /// `kill -9`, and the wait for its end.
    pub fn kill(mut self) -> Result<()> {
        self.signal_group(Signal::KILL)?;
        self.guardian.wait()?;
        Ok(())
    }

    /// Waits for the child to end by itself.
    pub fn wait(mut self) -> Result<ExitStatus> {
        // The guardian's input stays open until the child is gone: `Child::wait` would close it.
        let input = self.guardian.stdin.take();
        let status = self.guardian.wait()?;
        drop(input);
        Ok(status)
    }

    /// Its status if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.guardian.try_wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.guardian.stdin.take());
        // The guardian kills the group when its input ends; nothing is left to be done about one that is gone already.
        drop(self.guardian.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::test_kill_process;

    fn sleeper(folder: &Path) -> Process {
        Process::start(Path::new("sleep"), &[OsStr::new("1000")], &[], folder, &folder.join("log")).unwrap()
    }

    #[test]
    fn a_child_ends_when_it_is_dropped_or_killed() {
        let folder = tempfile::tempdir().unwrap();
        for end in [drop as fn(Process), |process| process.kill().unwrap()] {
            let child = sleeper(folder.path());
            let pid = child.pid;
            assert!(test_kill_process(pid).is_ok());
            end(child);
            assert!(test_kill_process(pid).is_err());
        }
    }

    #[test]
    fn a_child_that_is_stopped_stays_so_until_it_is_continued_or_killed() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = sleeper(folder.path());
        let state = |child: &Process| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
            stat.rsplit_once(") ").unwrap().1.chars().next()
        };
        let becomes = |child: &Process, wanted| {
            crate::wait::until_blocking("the state", std::time::Duration::from_secs(60), || (state(child) == Some(wanted)).then_some(()))
                .unwrap();
        };
        child.signal(Signal::STOP).unwrap();
        becomes(&child, 'T');
        // The guardian has had time to take a stop for an end, if it does.
        let begun = std::time::Instant::now();
        crate::wait::until_blocking("half a second", std::time::Duration::from_secs(60), || {
            assert_eq!((child.ended().unwrap(), state(&child)), (None, Some('T')));
            (begun.elapsed() > std::time::Duration::from_millis(500)).then_some(())
        })
        .unwrap();
        child.signal(Signal::CONT).unwrap();
        becomes(&child, 'S');
        child.kill().unwrap();
    }

    #[test]
    fn a_child_keeps_its_status() {
        let folder = tempfile::tempdir().unwrap();
        let arguments = [OsStr::new("-c"), OsStr::new("exit 3")];
        let child = Process::start(Path::new("sh"), &arguments, &[], folder.path(), &folder.path().join("log")).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
}
