//! One connection, every reply of which is read. When it is over it stays over.

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, RedisError, ServerError, Value, cmd};

use super::super::Error;
use super::RedisSettings;
use super::fault::{Fault, judge};

/// A connection that is logged in.
#[derive(Debug)]
pub(super) struct Connection {
    /// The client library's connection, or why there is none any more. After a time-out an answer may come late, and the
    /// command be executed later still: nothing that is sent on the same connection could be told from it.
    open: Result<MultiplexedConnection, String>,
    /// Host and port, for messages.
    place: String,
    /// The Redis user, for messages.
    user: String,
}

impl Connection {
    /// Connects, which resolves the name again, and logs in.
    pub(super) async fn open(settings: &RedisSettings) -> Result<Connection, Error> {
        let place = settings.place();
        let fails = |error: RedisError| {
            let tls = if settings.is_tls() { " (the URL asks for TLS, on whose port something else may listen)" } else { "" };
            let text = format!("Redis at {place}: cannot connect: {error}{tls}");
            if text.contains("invalid peer certificate") {
                return Error::Fatal(format!(
                    "{text}. If the server's certificate is not signed by an authority that this system trusts, add its authority to the \
                     system's certificates, or name a file of authorities with the environment variable SSL_CERT_FILE"
                ));
            }
            if error.kind() == redis::ErrorKind::InvalidClientConfig { Error::Fatal(text) } else { Error::Lost(text) }
        };
        let client = Client::open(settings.without_login()).map_err(fails)?;
        // Its own default would be to give up after half a second.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(settings.connect_timeout))
            .set_response_timeout(Some(settings.response_timeout));
        let open = client.get_multiplexed_async_connection_with_config(&config).await.map_err(fails)?;
        let user = settings.login().username().unwrap_or("default").to_owned();
        let mut connection = Connection { open: Ok(open), place, user };
        connection.log_in(settings).await.map_err(|fault| connection.error(fault))?;
        Ok(connection)
    }

    async fn log_in(&mut self, settings: &RedisSettings) -> Result<(), Fault> {
        let login = settings.login();
        if let Some(password) = login.password() {
            let mut command = cmd("AUTH");
            if let Some(user) = login.username() {
                command.arg(user);
            }
            self.ask_ok(command.arg(password), "AUTH").await?;
        }
        if login.db() != 0 {
            self.ask_ok(cmd("SELECT").arg(login.db()), "SELECT").await?;
        }
        Ok(())
    }

    async fn ask_ok(&mut self, command: &Cmd, name: &str) -> Result<(), Fault> {
        match self.ask(command).await? {
            Value::Okay => Ok(()),
            _ => Err(self.unexpected(name)),
        }
    }

    /// Sends a command and waits for its answer.
    pub(super) async fn ask(&mut self, command: &Cmd) -> Result<Value, Fault> {
        let open = self.open.as_mut().map_err(|why| Fault::Lost(why.clone()))?;
        match open.send_packed_command(command).await {
            Ok(Value::ServerError(error)) => Err(self.judge(&error)),
            Ok(value) => Ok(value),
            Err(error) => Err(self.fails(&error)),
        }
    }

    /// Sends commands together; each has an answer of its own.
    pub(super) async fn ask_each(&mut self, commands: &Pipeline) -> Result<Vec<Result<Value, Fault>>, Fault> {
        let open = self.open.as_mut().map_err(|why| Fault::Lost(why.clone()))?;
        let values = match open.send_packed_commands(commands, 0, commands.len()).await {
            Ok(values) => values,
            Err(error) => return Err(self.fails(&error)),
        };
        if values.len() != commands.len() {
            let text = format!("Redis at {}: {} answers to {} commands", self.place, values.len(), commands.len());
            return Err(self.over(text));
        }
        let judged = values.into_iter().map(|value| match value {
            Value::ServerError(error) => Err(self.judge(&error)),
            value => Ok(value),
        });
        Ok(judged.collect())
    }

    /// Whether the connection is still there.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.open.as_ref().map(drop).map_err(|why| Error::Lost(why.clone()))
    }

    /// An answer of a kind that its command never gives. It is not shown, for it may hold somebody's data.
    pub(super) fn unexpected(&mut self, command: &str) -> Fault {
        self.over(format!("Redis at {}: the answer to {command} is not one that rowcast understands", self.place))
    }

    /// The error that a fault is, where nothing better can be made of it. A caller that is told [`Error::Lost`] has to connect
    /// anew, whether this connection would still do or not: a name may lead to another server by now.
    pub(super) fn error(&mut self, fault: Fault) -> Error {
        let error = fault.into_error();
        if let Error::Lost(text) = &error {
            self.open = Err(text.clone());
        }
        error
    }

    fn judge(&self, error: &ServerError) -> Fault {
        let text = match error.details() {
            Some(details) => format!("{} {details}", error.code()),
            None => error.code().to_owned(),
        };
        judge(&text, &self.place, &self.user)
    }

    fn fails(&mut self, error: &RedisError) -> Fault {
        self.over(if error.is_timeout() {
            format!("Redis at {} did not answer in time; what was sent may yet be executed", self.place)
        } else if error.kind() == redis::ErrorKind::Parse {
            format!(
                "what answers at {} does not speak as Redis does: does the cache's URL name another server's port? (Redis listens at 6379 \
                 unless it is told otherwise)",
                self.place
            )
        } else {
            format!("Redis at {}: {error}", self.place)
        })
    }

    fn over(&mut self, text: String) -> Fault {
        self.open = Err(text.clone());
        Fault::Lost(text)
    }
}
