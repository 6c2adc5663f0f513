//! A real PostgreSQL server of the test's own, ready for logical replication: own port, own folder, gone with the test.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Signal, kill_process, test_kill_process};

use crate::certificates::Certificates;
use crate::folder::Folder;
use crate::process::{Process, free_port};
use crate::wait::until_blocking;
use programs::{append, as_user, children, copy, hand_over, other_user, programs, run};

mod application;
mod programs;

pub use application::{Application, Outcome};

/// Recovery after a `kill -9` is a part of a start.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A stop writes a checkpoint and waits for the replication clients to have received it.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// How a server differs from the plain one: no password, no TLS, UTF-8.
#[derive(Clone, Copy, Debug, Default)]
pub struct PostgresOptions<'o> {
    /// More settings (`[("max_replication_slots", "1")]`), in the words of postgresql.conf without quotes.
    pub settings: &'o [(&'o str, &'o str)],
    /// The password of the user `postgres`, asked for by SCRAM; without one everybody on loopback is let in.
    pub password: Option<&'o str>,
    /// What the server shows; then it takes TLS alone.
    pub tls: Option<&'o Certificates>,
    /// More arguments of initdb (`["--encoding=SQL_ASCII", "--locale=C"]`).
    pub initdb: &'o [&'o str],
}

/// A server. Its blocking methods are for tests; call them from a blocking thread where other tasks must go on meanwhile.
#[derive(Debug)]
pub struct PostgresServer {
    port: u16,
    password: Option<String>,
    tls: bool,
    server: Option<Process>,
    /// Last, so that nobody writes into it any more when it goes.
    folder: Folder,
}

/// The files of a stopped server.
#[derive(Debug)]
pub struct ColdCopy(Folder);

impl PostgresServer {
    /// Starts an empty server and waits until it takes connections.
    pub fn start() -> Result<PostgresServer> {
        PostgresServer::start_with(&PostgresOptions::default())
    }

    /// The same with more settings than the plain ones.
    pub fn start_with(options: &PostgresOptions<'_>) -> Result<PostgresServer> {
        PostgresServer::twice(|server| {
            server.initialise(options)?;
            server.configure(options)
        })
    }

    /// A standby of this server that streams from it, with its settings and logins. It is read-only until [`PostgresServer::promote`].
    pub fn start_standby(&self) -> Result<PostgresServer> {
        PostgresServer::twice(|standby| {
            standby.password.clone_from(&self.password);
            standby.tls = self.tls;
            let data = standby.data();
            let mut command = standby.program("pg_basebackup")?;
            let source = format!("--dbname={}", self.url());
            command.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", &source, "--pgdata"]).arg(data);
            run(&mut command)?;
            append(&standby.data().join("postgresql.conf"), &format!("port = {}\n", standby.port))
        })
    }

    /// Between the choice of a port and its use somebody else may take it.
    fn twice(prepare: impl Fn(&mut PostgresServer) -> Result<()>) -> Result<PostgresServer> {
        let attempt = || {
            let folder = Folder::new("rowcast-postgres-")?;
            if let Some((uid, gid)) = other_user()? {
                chown(folder.path(), Some(uid), Some(gid)).context("handing the folder to the server's user")?;
            }
            let mut server = PostgresServer { port: free_port()?, password: None, tls: false, server: None, folder };
            prepare(&mut server)?;
            server.start_again()?;
            Ok(server)
        };
        attempt().or_else(|first: anyhow::Error| attempt().with_context(|| format!("the second start; the first one failed: {first:#}")))
    }

    fn initialise(&mut self, options: &PostgresOptions<'_>) -> Result<()> {
        self.password = options.password.map(str::to_owned);
        self.tls = options.tls.is_some();
        let method = if options.password.is_some() { "scram-sha-256" } else { "trust" };
        let mut command = self.program("initdb")?;
        command.args(["--no-sync", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", &format!("--auth={method}")]);
        if let Some(password) = options.password {
            let file = self.folder.path().join("password");
            std::fs::write(&file, password)?;
            hand_over(&file)?;
            command.arg("--pwfile").arg(file);
        }
        command.args(options.initdb).arg("--pgdata").arg(self.data());
        run(&mut command)
    }

    fn configure(&mut self, options: &PostgresOptions<'_>) -> Result<()> {
        let mut settings = configuration(self.port);
        if let Some(certificates) = options.tls {
            for (from, name) in [(certificates.server(), "server.crt"), (certificates.key(), "server.key")] {
                let file = self.data().join(name);
                std::fs::copy(&from, &file).with_context(|| format!("copying {}", from.display()))?;
                hand_over(&file)?;
            }
            settings += "ssl = on\n";
            let hba = self.data().join("pg_hba.conf");
            let rules = std::fs::read_to_string(&hba)?;
            std::fs::write(&hba, rules.replace("\nhost ", "\nhostssl "))?;
        }
        for (name, value) in options.settings {
            settings += &format!("{name} = '{}'\n", value.replace('\'', "''"));
        }
        append(&self.data().join("postgresql.conf"), &settings)
    }

    /// The port on loopback, the same for the whole life of this value.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the server, whose children serve the connections.
    pub fn id(&self) -> Result<i32> {
        Ok(self.process()?.id())
    }

    /// The URL of the database `postgres` for its superuser.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The same of another database.
    pub fn url_of(&self, database: &str) -> String {
        self.url_through(self.port, database)
    }

    /// The same through a proxy that listens on `port`.
    pub fn url_through(&self, port: u16, database: &str) -> String {
        let password = self.password.as_ref().map(|password| format!(":{password}")).unwrap_or_default();
        let tls = if self.tls { "?sslmode=require" } else { "" };
        format!("postgres://postgres{password}@127.0.0.1:{port}/{database}{tls}")
    }

    /// The URL for another user.
    pub fn url_as(&self, user: &str, password: &str, database: &str) -> String {
        let tls = if self.tls { "?sslmode=require" } else { "" };
        format!("postgres://{user}:{password}@127.0.0.1:{}/{database}{tls}", self.port)
    }

    /// Runs statements as psql does, each committed alone unless they say BEGIN, and returns what they print: columns separated by
    /// `|`, rows by newlines. psql's own commands (`\echo`) are possible.
    pub fn execute(&self, sql: &str) -> Result<String> {
        self.execute_in("postgres", sql)
    }

    /// The same in another database.
    pub fn execute_in(&self, database: &str, sql: &str) -> Result<String> {
        let mut psql = Command::new(programs()?.join("psql"))
            .args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1", "--file=-", "--dbname"])
            .arg(self.url_of(database))
            .env("PGCLIENTENCODING", "UTF8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("running psql")?;
        let mut input = psql.stdin.take().context("psql's input")?;
        let output = std::thread::scope(|scope| {
            // Not before its output is read: a full pipe would stop both. If it ends early, its message says why.
            scope.spawn(move || drop(input.write_all(sql.as_bytes())));
            psql.wait_with_output()
        })?;
        if !output.status.success() {
            let start: String = sql.chars().take(500).collect();
            bail!("psql failed on {start:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let text = String::from_utf8(output.stdout).context("what psql printed")?;
        Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
    }

    /// A connection that stays, to the database `postgres`.
    pub fn application(&self) -> Result<Application> {
        Application::connect(&self.url())
    }

    /// A program that is a client of this server's (`pgbench`, `pg_recvlogical`), without arguments.
    pub fn client_program(name: &str) -> Result<Command> {
        Ok(Command::new(programs()?.join(name)))
    }

    /// Stops it in an orderly way: connections are ended, replication clients first receive everything.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::INT)
    }

    /// Stops it at once, without a checkpoint; the next start recovers.
    pub fn stop_at_once(&mut self) -> Result<()> {
        self.end(Signal::QUIT)
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let mut server = self.server.take().context("the server does not run")?;
        server.signal(signal)?;
        until_blocking("the server to stop", STOP_DEADLINE, || server.ended().transpose()).and_then(|ended| ended).map(drop)
    }

    /// `kill -9` of the server and all that serve its connections. The next start recovers.
    pub fn kill(&mut self) -> Result<()> {
        let server = self.server.take().context("the server does not run")?;
        // A stopped server starts no more children.
        server.signal(Signal::STOP)?;
        let children = children(server.id())?;
        server.kill()?;
        for child in &children {
            match kill_process(*child, Signal::KILL) {
                // It may have ended by itself meanwhile.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error).context("killing a child"),
            }
        }
        until_blocking("the server's children to end", STOP_DEADLINE, || {
            children.iter().all(|child| test_kill_process(*child).is_err()).then_some(())
        })
    }

    /// Stops the server and all its children from running until [`PostgresServer::resume`]; what is sent meanwhile waits in its sockets.
    pub fn pause(&self) -> Result<()> {
        let server = self.process()?;
        server.signal(Signal::STOP)?;
        children(server.id())?.into_iter().try_for_each(|child| kill_process(child, Signal::STOP).context("pausing a child"))
    }

    /// Lets it run again.
    pub fn resume(&self) -> Result<()> {
        let server = self.process()?;
        children(server.id())?.into_iter().try_for_each(|child| kill_process(child, Signal::CONT).context("resuming a child"))?;
        server.signal(Signal::CONT)
    }

    /// Starts it again on the same port with the same data, and waits until it takes connections.
    pub fn start_again(&mut self) -> Result<()> {
        if self.server.is_some() {
            bail!("the server is running");
        }
        let (program, mut arguments) = as_user(&programs()?.join("postgres"))?;
        arguments.extend(["-D".into(), self.data().into_os_string()]);
        let arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
        let mut server = Process::start(&program, &arguments, &[], self.folder.path(), &self.log_file())?;
        let ready = until_blocking("the server to be ready", START_DEADLINE, || match server.ended() {
            Ok(None) => self.says_ready(server.id()).then_some(Ok(())),
            Ok(Some(status)) => Some(Err(anyhow::anyhow!("the server ended with {status}"))),
            Err(error) => Some(Err(error)),
        });
        ready.and_then(|outcome| outcome).with_context(|| self.log_tail())?;
        self.server = Some(server);
        Ok(())
    }

    /// Stops it in an orderly way and starts it again.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// Makes a standby a server that takes writes, on a timeline of its own.
    pub fn promote(&self) -> Result<()> {
        self.execute("SELECT pg_promote(true, 60)").map(drop)
    }

    /// More settings, from the next start on.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        append(&self.data().join("postgresql.conf"), &format!("{setting} = '{}'\n", value.replace('\'', "''")))
    }

    /// The files of the stopped server.
    pub fn cold_copy(&self) -> Result<ColdCopy> {
        if self.server.is_some() {
            bail!("the server is running");
        }
        let folder = Folder::new("rowcast-postgres-copy-")?;
        copy(&self.data(), &folder.path().join("data"))?;
        Ok(ColdCopy(folder))
    }

    /// Puts the files of a copy in the place of the stopped server's.
    pub fn restore(&mut self, saved: &ColdCopy) -> Result<()> {
        if self.server.is_some() {
            bail!("the server is running");
        }
        std::fs::remove_dir_all(self.data()).context("removing the data")?;
        copy(&saved.0.path().join("data"), &self.data())
    }

    /// What the server has said.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.log_file())?)
    }

    /// Where it keeps its data.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// One of PostgreSQL's programs, as the server's user.
    fn program(&self, name: &str) -> Result<Command> {
        let (program, arguments) = as_user(&programs()?.join(name))?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.folder.path());
        Ok(command)
    }

    /// The server writes its id into the first line of this file, and how far it is into the eighth.
    fn says_ready(&self, id: i32) -> bool {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        lines.first() == Some(&id.to_string().as_str()) && matches!(lines.get(7), Some(&("ready" | "standby")))
    }

    fn process(&self) -> Result<&Process> {
        self.server.as_ref().context("the server does not run")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn log_tail(&self) -> String {
        let log = self.log().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("the end of the server's log:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if self.server.is_some() {
            // The children are in groups of their own, out of the guardian's reach; without the server they soon end by themselves.
            drop(self.kill());
        }
    }
}

/// A cluster that is killed with its processes alone loses nothing that the system has; so nothing waits for a disk.
fn configuration(port: u16) -> String {
    format!(
        "listen_addresses = '127.0.0.1'\n\
         port = {port}\n\
         unix_socket_directories = ''\n\
         wal_level = logical\n\
         fsync = off\n\
         shared_buffers = 32MB\n\
         max_prepared_transactions = 10\n\
         timezone = 'UTC'\n\
         log_line_prefix = '%m [%p] '\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_keeps_its_data_through_a_kill_and_forgets_with_a_copy() {
        let mut server = PostgresServer::start().unwrap();
        assert_eq!(server.execute("SHOW wal_level").unwrap(), "logical");
        server.execute("CREATE TABLE t(a int)").unwrap();
        server.stop().unwrap();
        let saved = server.cold_copy().unwrap();
        server.start_again().unwrap();
        server.execute("INSERT INTO t VALUES (7)").unwrap();
        let old = server.id().unwrap();
        server.kill().unwrap();
        assert!(children(old).is_err(), "nobody is left");
        server.start_again().unwrap();
        assert_eq!(server.execute("SELECT * FROM t").unwrap(), "7");
        server.stop().unwrap();
        server.restore(&saved).unwrap();
        server.start_again().unwrap();
        assert_eq!(server.execute("SELECT count(*) FROM t").unwrap(), "0");
    }

    #[test]
    fn an_application_stays_connected_and_hears_of_errors_and_of_the_servers_end() {
        let mut server = PostgresServer::start().unwrap();
        let mut application = server.application().unwrap();
        let outcome = application.run("CREATE TABLE t(a int PRIMARY KEY); INSERT INTO t VALUES (1); SELECT a, 'x' FROM t;").unwrap();
        assert_eq!(outcome, Outcome { lines: vec!["1|x".into()], last_succeeded: true, ..Outcome::default() });
        let statements =
            "BEGIN; INSERT INTO t VALUES (2); INSERT INTO t VALUES (1);\nCOPY t FROM stdin;\n3\n\\.\nCOMMIT; SELECT count(*) FROM t;";
        let outcome = application.run(statements).unwrap();
        assert_eq!((outcome.errors, outcome.lines, outcome.last_succeeded), (vec!["23505".to_owned()], vec!["3".to_owned()], true));
        let outcome = application.run("SELECT 1/0;").unwrap();
        assert!(!outcome.last_succeeded && outcome.newest_error == "division by zero", "{outcome:?}");
        server.stop_at_once().unwrap();
        assert!(application.run("SELECT 1;").is_err());
        server.start_again().unwrap();
        assert_eq!(server.execute("SELECT count(*) FROM t").unwrap(), "3");
    }

    #[test]
    fn a_paused_server_answers_once_it_is_resumed() {
        let server = PostgresServer::start().unwrap();
        server.pause().unwrap();
        let answer = std::thread::scope(|scope| {
            let asking = scope.spawn(|| server.execute("SELECT 1"));
            let begun = std::time::Instant::now();
            until_blocking("a while", Duration::from_secs(60), || {
                assert!(!asking.is_finished());
                (begun.elapsed() > Duration::from_millis(300)).then_some(())
            })
            .unwrap();
            server.resume().unwrap();
            asking.join().unwrap()
        });
        assert_eq!(answer.unwrap(), "1");
    }

    #[test]
    fn a_standby_follows_until_it_is_promoted() {
        let mut server = PostgresServer::start().unwrap();
        server.execute("CREATE TABLE t(a int)").unwrap();
        let standby = server.start_standby().unwrap();
        server.execute("INSERT INTO t VALUES (7)").unwrap();
        until_blocking("the row on the standby", START_DEADLINE, || {
            (standby.execute("SELECT count(*) FROM t").unwrap() == "1").then_some(())
        })
        .unwrap();
        server.kill().unwrap();
        standby.promote().unwrap();
        standby.execute("INSERT INTO t VALUES (8)").unwrap();
    }

    #[test]
    fn tls_and_a_password_are_asked_for() {
        let certificates = Certificates::make().unwrap();
        let options = PostgresOptions { password: Some("secret"), tls: Some(&certificates), ..PostgresOptions::default() };
        let server = PostgresServer::start_with(&options).unwrap();
        assert_eq!(server.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").unwrap(), "t");
        let refused = |url: &str| {
            let output = Command::new(programs().unwrap().join("psql")).args(["--no-psqlrc", "--no-password", url]).output().unwrap();
            String::from_utf8(output.stderr).unwrap()
        };
        assert!(refused(&server.url().replace("=require", "=disable")).contains("no encryption"));
        assert!(refused(&server.url_as("postgres", "wrong", "postgres")).contains("password authentication failed"));
    }

    #[test]
    fn a_server_that_does_not_start_says_why() {
        let options = PostgresOptions { settings: &[("shared_buffers", "nonsense")], ..PostgresOptions::default() };
        let error = format!("{:#}", PostgresServer::start_with(&options).unwrap_err());
        assert!(error.contains("invalid value for parameter \"shared_buffers\""), "{error}");
    }
}
