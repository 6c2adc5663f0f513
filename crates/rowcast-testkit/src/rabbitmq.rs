//! A real RabbitMQ server of the test's own: own ports, own folder, own epmd, gone with the test.

use std::ffi::{OsStr, OsString};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::folder::Folder;
use crate::process::{Process, free_port};
use crate::wait::until_blocking;

/// Where Debian keeps the scripts. Its wrappers in /usr/sbin insist on being root or the user `rabbitmq`.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

/// On two busy cores a start takes ten seconds.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// A clean stop flushes what is in memory.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// A server. Its blocking methods are for tests; call them from a blocking thread where other tasks must go on meanwhile.
#[derive(Debug)]
pub struct RabbitServer {
    port: u16,
    distribution_port: u16,
    epmd_port: u16,
    server: Option<Process>,
    /// Ours, because the one that a server starts would outlive it.
    _epmd: Process,
    /// Last, so that nobody writes into it any more when it goes.
    folder: Folder,
}

impl RabbitServer {
    /// Starts a server and waits until it listens.
    pub fn start() -> Result<RabbitServer> {
        RabbitServer::start_with("")
    }

    /// The same with more lines in its configuration.
    pub fn start_with(settings: &str) -> Result<RabbitServer> {
        // Between the choice of a port and its use somebody else may take it.
        match RabbitServer::try_start(settings) {
            Ok(server) => Ok(server),
            Err(first) => RabbitServer::try_start(settings).with_context(|| format!("the second start; the first one failed: {first:#}")),
        }
    }

    fn try_start(settings: &str) -> Result<RabbitServer> {
        let folder = Folder::new("rowcast-rabbitmq-")?;
        let (port, distribution_port, epmd_port) = (free_port()?, free_port()?, free_port()?);
        write(folder.path(), "rabbitmq.conf", &(configuration(port) + settings))?;
        write(folder.path(), "enabled_plugins", "[].\n")?;
        let cookie = write(folder.path(), ".erlang.cookie", "ROWCASTTESTKIT")?;
        std::fs::set_permissions(cookie, std::fs::Permissions::from_mode(0o400))?;
        let epmd_arguments = ["-port".into(), epmd_port.to_string(), "-address".into(), "127.0.0.1".into()].map(OsString::from);
        let epmd_arguments: Vec<&OsStr> = epmd_arguments.iter().map(OsString::as_os_str).collect();
        let epmd = Process::start(Path::new("epmd"), &epmd_arguments, &[], folder.path(), &folder.path().join("epmd.log"))?;
        until_blocking("epmd to listen", START_DEADLINE, || TcpStream::connect(("127.0.0.1", epmd_port)).ok())?;
        let mut server = RabbitServer { port, distribution_port, epmd_port, server: None, _epmd: epmd, folder };
        server.start_again()?;
        Ok(server)
    }

    /// The port of AMQP, the same for the whole life of this value.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process group in which the server and its helpers run.
    pub fn group(&self) -> Result<i32> {
        Ok(self.server.as_ref().context("the server is not running")?.id())
    }

    /// The URL of the default vhost.
    pub fn url(&self) -> String {
        self.url_through(self.port)
    }

    /// The same through a proxy that listens on `port`.
    pub fn url_through(&self, port: u16) -> String {
        format!("amqp://guest:guest@127.0.0.1:{port}/%2f")
    }

    /// Stops it in an orderly way; connections are told.
    pub fn stop(&mut self) -> Result<()> {
        let server = self.server.take().context("the server is not running")?;
        // The script passes it on to the server and waits for it.
        server.signal(Signal::TERM)?;
        let mut server = server;
        until_blocking("the server to stop", STOP_DEADLINE, || server.ended().transpose()).map(|_| ())
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.server.take().context("the server is not running")?.kill()
    }

    /// Starts it again on the same port with the same data, and waits until it listens.
    pub fn start_again(&mut self) -> Result<()> {
        if self.server.is_some() {
            bail!("the server is running");
        }
        let environment = self.environment();
        let environment: Vec<(&str, &OsStr)> = environment.iter().map(|(name, value)| (*name, value.as_os_str())).collect();
        let program = Path::new(SCRIPTS).join("rabbitmq-server");
        let log = self.folder.path().join("server.log");
        let mut server = Process::start(&program, &[], &environment, self.folder.path(), &log)?;
        let listening = until_blocking("the server to listen", START_DEADLINE, || match server.ended() {
            Ok(None) => TcpStream::connect(("127.0.0.1", self.port)).ok().map(|_| Ok(())),
            Ok(Some(status)) => Some(Err(anyhow::anyhow!("the server ended with {status}"))),
            Err(error) => Some(Err(error)),
        });
        listening.and_then(|outcome| outcome).with_context(|| self.log_tail())?;
        self.server = Some(server);
        Ok(())
    }

    /// Runs `rabbitmqctl` against this server and returns what it prints. It takes about a second.
    pub fn control(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(Path::new(SCRIPTS).join("rabbitmqctl"))
            .arg("--quiet")
            .args(arguments)
            .envs(self.environment())
            .current_dir(self.folder.path())
            .output()
            .context("running rabbitmqctl")?;
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            bail!("rabbitmqctl {arguments:?} failed with {}: {stdout}{stderr}", output.status);
        }
        Ok(stdout.into_owned())
    }

    /// Raises or clears the memory alarm: publishers are blocked while it stands.
    pub fn set_alarm(&self, raised: bool) -> Result<()> {
        let watermark = if raised { "0.000001" } else { "0.4" };
        self.control(&["set_vm_memory_high_watermark", watermark]).map(|_| ())
    }

    fn environment(&self) -> Vec<(&'static str, OsString)> {
        let path = |name: &str| self.folder.path().join(name).into_os_string();
        vec![
            ("HOME", self.folder.path().as_os_str().to_owned()),
            ("ERL_EPMD_PORT", self.epmd_port.to_string().into()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
            ("RABBITMQ_NODENAME", "rowcast@localhost".into()),
            ("RABBITMQ_DIST_PORT", self.distribution_port.to_string().into()),
            // rabbitmqctl listens too; by default on a port derived from the server's, which may not exist.
            ("RABBITMQ_CTL_DIST_PORT_MIN", "30000".into()),
            ("RABBITMQ_CTL_DIST_PORT_MAX", "32000".into()),
            ("RABBITMQ_MNESIA_BASE", path("mnesia")),
            ("RABBITMQ_LOG_BASE", path("log")),
            ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
            ("RABBITMQ_CONF_ENV_FILE", path("no-rabbitmq-env.conf")),
            ("RABBITMQ_PID_FILE", path("pid")),
            // Schedulers that spin while they wait would take the cores from the tests.
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none".into()),
        ]
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        format!("the end of the server's log:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
    }
}

/// Small and quiet: a write-ahead log of 16 MB instead of 512, no statistics, the log on the output.
fn configuration(port: u16) -> String {
    format!(
        "listeners.tcp.1 = 127.0.0.1:{port}\n\
         disk_free_limit.absolute = 1MB\n\
         raft.wal_max_size_bytes = 16000000\n\
         collect_statistics = none\n\
         log.file = false\n\
         log.console = true\n\
         log.console.level = warning\n"
    )
}

fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
