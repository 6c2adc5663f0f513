//! The scripts, and the loading of them.

use redis::{Cmd, Value, cmd};

use super::connection::Connection;
use super::fault::Fault;

/// One of rowcast's scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// Writes a block.
    Block,
    /// Removes the keys of a block that a full server refused.
    Clear,
    /// Puts another layout into force.
    Layout,
    /// Tries what the others do, and leaves nothing behind.
    Check,
}

impl Script {
    fn text(self) -> &'static str {
        match self {
            Script::Block => concat!(include_str!("begin.lua"), "\n", include_str!("block.lua")),
            Script::Clear => concat!(include_str!("begin.lua"), "\n", include_str!("clear.lua")),
            Script::Layout => include_str!("layout.lua"),
            Script::Check => include_str!("check.lua"),
        }
    }
}

/// The names that the server has given to the scripts, by [`Script`].
#[derive(Debug, Default)]
pub(super) struct Scripts {
    names: [Option<String>; 4],
}

impl Scripts {
    /// The name to call the script by.
    pub(super) async fn name(&mut self, connection: &mut Connection, script: Script) -> Result<String, Fault> {
        if let Some(name) = &self.names[script as usize] {
            return Ok(name.clone());
        }
        let reply = connection.ask(cmd("SCRIPT").arg("LOAD").arg(script.text())).await?;
        let Value::BulkString(name) = reply else { return Err(connection.unexpected("SCRIPT LOAD")) };
        let name = String::from_utf8_lossy(&name).into_owned();
        self.names[script as usize] = Some(name.clone());
        Ok(name)
    }

    /// Sends a command that calls the script; once more if the server has forgotten the script, for then nothing was executed.
    pub(super) async fn call(&mut self, connection: &mut Connection, script: Script, command: &Cmd) -> Result<Value, Fault> {
        match connection.ask(command).await {
            Err(Fault::NoScript) => {
                // The name is a hash of the text: it is the same again, and the command is right as it is.
                self.names[script as usize] = None;
                self.name(connection, script).await?;
                connection.ask(command).await
            }
            answer => answer,
        }
    }
}
