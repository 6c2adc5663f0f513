//! A real redis-server on a free port in a temporary folder.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{Process, free_port};
use crate::wait::until;

/// How long a server may take to answer after its start.
const START: Duration = Duration::from_secs(60);

/// How long a plain client waits; a busy machine is no fault of the server's.
const PATIENCE: Duration = Duration::from_secs(30);

/// A redis-server that ends with the test. It saves nothing by itself.
#[derive(Debug)]
pub struct RedisServer {
    folder: TempDir,
    port: u16,
    arguments: Vec<String>,
    process: Option<Process>,
}

/// What a server held at some moment.
#[derive(Clone, Debug)]
pub struct Dump(Vec<u8>);

impl RedisServer {
    /// Starts an empty one.
    pub async fn start() -> Result<RedisServer> {
        RedisServer::start_with(&[]).await
    }

    /// Starts an empty one with more settings (`["--maxmemory", "10mb"]`).
    pub async fn start_with(arguments: &[&str]) -> Result<RedisServer> {
        let mut refused = None;
        // Somebody else may take the free port before the server does.
        for _ in 0..3 {
            let mut server = RedisServer {
                folder: tempfile::tempdir()?,
                port: free_port()?,
                arguments: arguments.iter().map(ToString::to_string).collect(),
                process: None,
            };
            match server.run().await {
                Ok(()) => return Ok(server),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| anyhow::anyhow!("no attempt was made")))
    }

    /// Where to connect.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// The same with a login.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("redis://{user}:{password}@127.0.0.1:{}/0", self.port)
    }

    /// The port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's process id.
    pub fn id(&self) -> Result<i32> {
        Ok(self.process()?.id())
    }

    /// A plain client, as any application has one.
    pub async fn client(&self) -> Result<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
        Ok(Client::open(self.url())?.get_multiplexed_async_connection_with_config(&config).await?)
    }

    /// Sends one command on a connection of its own.
    pub async fn query<T: FromRedisValue>(&self, command: &[&str]) -> Result<T> {
        let (name, arguments) = command.split_first().context("a command has a name")?;
        let mut client = self.client().await?;
        redis::cmd(name).arg(arguments).query_async(&mut client).await.with_context(|| format!("{command:?}"))
    }

    /// `CONFIG SET`.
    pub async fn set(&self, setting: &str, value: &str) -> Result<()> {
        self.query(&["CONFIG", "SET", setting, value]).await
    }

    /// Stops the server from running until [`RedisServer::resume`]; what is sent meanwhile waits in its socket.
    pub fn pause(&self) -> Result<()> {
        self.process()?.signal(Signal::STOP)
    }

    /// Lets it run again.
    pub fn resume(&self) -> Result<()> {
        self.process()?.signal(Signal::CONT)
    }

    /// `kill -9`. What was not saved is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("the server does not run")?.kill()
    }

    /// Starts a killed server on the same port, with what was last saved.
    pub async fn start_again(&mut self) -> Result<()> {
        self.run().await
    }

    /// Kills it and starts it on the same port with everything that it held.
    pub async fn restart(&mut self) -> Result<()> {
        let dump = self.save().await?;
        self.roll_back(&dump).await
    }

    /// Kills it and starts it on the same port with nothing.
    pub async fn restart_empty(&mut self) -> Result<()> {
        self.kill()?;
        match std::fs::remove_file(self.dump_file()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.run().await
    }

    /// `SAVE`: what it holds now.
    pub async fn save(&self) -> Result<Dump> {
        self.query::<()>(&["SAVE"]).await?;
        Ok(Dump(std::fs::read(self.dump_file())?))
    }

    /// Kills it and starts it on the same port with what it held at the moment of `dump`.
    pub async fn roll_back(&mut self, dump: &Dump) -> Result<()> {
        self.kill()?;
        std::fs::write(self.dump_file(), &dump.0)?;
        self.run().await
    }

    /// The user and system time that it has spent.
    pub async fn cpu(&self) -> Result<Duration> {
        let seconds = |text: String| text.parse::<f64>().context("seconds");
        let user = seconds(self.info("cpu", "used_cpu_user").await?)?;
        Ok(Duration::from_secs_f64(user + seconds(self.info("cpu", "used_cpu_sys").await?)?))
    }

    /// One value of `INFO`.
    pub async fn info(&self, section: &str, name: &str) -> Result<String> {
        let text: String = self.query(&["INFO", section]).await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(value.with_context(|| format!("INFO {section} without {name}"))?.to_owned())
    }

    /// What the server has said.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.log_file())?)
    }

    /// Where it keeps its files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    async fn run(&mut self) -> Result<()> {
        let port = self.port.to_string();
        let folder = self.folder.path().as_os_str();
        let mut arguments: Vec<&OsStr> = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]
            .iter()
            .map(|argument| OsStr::new(*argument))
            .collect();
        arguments.push(folder);
        arguments.extend(self.arguments.iter().map(OsStr::new));
        let mut process = Process::start(Path::new("redis-server"), &arguments, &[], self.folder.path(), &self.log_file())?;
        // Only data that is loaded counts as an answer, and only from this very process: another's may have taken the port.
        let id = process.id().to_string();
        let answers = async || {
            let loaded = self.query::<String>(&["PING"]).await.is_ok();
            loaded && self.info("server", "process_id").await.is_ok_and(|answering| answering == id)
        };
        let started = until("redis-server to answer", START, || {
            let ended = process.ended();
            let answers = &answers;
            async move { if !matches!(ended, Ok(None)) { Some(false) } else { answers().await.then_some(true) } }
        });
        if !started.await.is_ok_and(|started| started) {
            drop(process);
            bail!("redis-server did not start; it said:\n{}", self.log()?);
        }
        self.process = Some(process);
        Ok(())
    }

    fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the server does not run")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn dump_file(&self) -> PathBuf {
        self.folder.path().join("dump.rdb")
    }
}
