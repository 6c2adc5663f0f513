//! What is asked of Redis, command by command.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use redis::{Cmd, Pipeline, Value, cmd, from_redis_value};

use super::super::{Block, Cached, Error, Link, Put, Stored, Written, layout, names};
use super::block::{Answer, BlockArguments};
use super::connection::Connection;
use super::fault::Fault;
use super::script::{Script, Scripts};
use super::{RedisSettings, seen, stored};
use crate::change::{KeyHash, Partition, Run, Table};
use crate::checkpoint::Checkpoint;

/// What a server takes in one argument if it does not say otherwise (`proto-max-bulk-len`).
const ARGUMENT_BYTES_MAX: usize = 512 << 20;

/// How many values are asked for at once.
const VALUES_AT_ONCE: usize = 1000;

/// A connection to Redis.
#[derive(Debug)]
pub struct RedisLink {
    settings: Arc<RedisSettings>,
    connection: Connection,
    scripts: Scripts,
    /// A larger argument would make the server close the connection.
    argument_bytes_max: usize,
}

impl RedisLink {
    pub(super) async fn open(settings: Arc<RedisSettings>) -> Result<RedisLink, Error> {
        let connection = Connection::open(&settings).await?;
        let mut link = RedisLink { settings, connection, scripts: Scripts::default(), argument_bytes_max: ARGUMENT_BYTES_MAX };
        // Says at once what stands in the way: a missing login, data that is still being loaded.
        let layout = names::layout(&link.settings.pipeline);
        link.ask(cmd("EXISTS").arg(layout)).await?;
        link.learn_limits().await?;
        Ok(link)
    }

    /// Servers of other people do not tell, or not everybody, each in words of its own; then the default has to do.
    async fn learn_limits(&mut self) -> Result<(), Error> {
        let answer = self.connection.ask(cmd("CONFIG").arg("GET").arg("proto-max-bulk-len")).await;
        self.connection.check()?;
        let said = answer.ok().and_then(|answer| from_redis_value::<(String, usize)>(answer).ok());
        self.argument_bytes_max = said.map_or(ARGUMENT_BYTES_MAX, |(_, bytes)| bytes);
        Ok(())
    }

    /// A put that the server would never take.
    fn refuse_large(&self, block: &Block) -> Option<Written> {
        let max = self.argument_bytes_max;
        let (key, _) = block.puts.iter().find(|(key, put)| key.len() > max || largest(put) > max)?;
        let reason = format!("it is larger than the {max} bytes that Redis takes (proto-max-bulk-len)");
        Some(Written::Refused { key: key.clone(), reason })
    }

    async fn run(&mut self, arguments: &BlockArguments<'_>, script: Script) -> Result<Value, Fault> {
        let name = self.scripts.name(&mut self.connection, script).await?;
        let command = match script {
            Script::Clear => arguments.clear(&name),
            _ => arguments.block(&name),
        };
        self.scripts.call(&mut self.connection, script, &command).await
    }

    fn written(&mut self, arguments: &BlockArguments<'_>, answer: &Value) -> Result<Written, Error> {
        match arguments.answer(answer) {
            Some(Answer::Written(written)) => Ok(written),
            Some(Answer::Layout(text)) => Ok(Written::Layout(self.decimal(&text)?.unwrap_or(0))),
            None => {
                let fault = self.connection.unexpected("EVALSHA");
                Err(self.connection.error(fault))
            }
        }
    }

    /// Removes the keys of a block for which there was no room.
    async fn clear(&mut self, arguments: &BlockArguments<'_>, full: String) -> Result<Written, Error> {
        match self.run(arguments, Script::Clear).await {
            Ok(answer) => match self.written(arguments, &answer)? {
                Written::Done => Ok(Written::Full(full)),
                other => Ok(other),
            },
            Err(fault) => self.refuse(arguments, fault).await,
        }
    }

    /// The error that a script's fault is; names the key where one of rowcast's own is of another type.
    async fn refuse(&mut self, arguments: &BlockArguments<'_>, fault: Fault) -> Result<Written, Error> {
        let Fault::WrongType(_) = fault else { return Err(self.connection.error(fault)) };
        for (key, must) in arguments.own_keys() {
            let is = self.type_of(key).await?;
            if is != "none" && is != must {
                return Err(Error::Fatal(not_ours(key, &format!("it is a {is}"))));
            }
        }
        Err(self.connection.error(fault))
    }

    async fn type_of(&mut self, key: &str) -> Result<String, Error> {
        let answer = self.ask(cmd("TYPE").arg(key)).await?;
        self.typed("TYPE", answer)
    }

    pub(super) fn pipeline(&self) -> &str {
        &self.settings.pipeline
    }

    pub(super) fn place(&self) -> String {
        self.settings.place()
    }

    pub(super) fn user(&self) -> &str {
        self.settings.login().username().unwrap_or("default")
    }

    /// Calls a script that takes one key and nothing else.
    pub(super) async fn run_on(&mut self, script: Script, key: &str) -> Result<Value, Fault> {
        let name = self.scripts.name(&mut self.connection, script).await?;
        let mut command = cmd("EVALSHA");
        command.arg(name).arg(1).arg(key);
        self.scripts.call(&mut self.connection, script, &command).await
    }

    pub(super) async fn ask(&mut self, command: &Cmd) -> Result<Value, Error> {
        self.connection.ask(command).await.map_err(|fault| self.connection.error(fault))
    }

    /// Asks for one of rowcast's own keys.
    async fn ask_own(&mut self, command: &str, key: &str) -> Result<Value, Error> {
        self.connection.ask(cmd(command).arg(key)).await.map_err(|fault| match fault {
            Fault::WrongType(_) => Error::Fatal(not_ours(key, "it is of another type")),
            fault => self.connection.error(fault),
        })
    }

    pub(super) fn typed<T: redis::FromRedisValue>(&mut self, command: &str, answer: Value) -> Result<T, Error> {
        from_redis_value(answer).map_err(|_| {
            let fault = self.connection.unexpected(command);
            self.connection.error(fault)
        })
    }

    /// Reads a layout; empty is none.
    fn decimal(&self, text: &str) -> Result<Option<u16>, Error> {
        if text.is_empty() {
            return Ok(None);
        }
        match text.parse() {
            Ok(of) if of > 0 => Ok(Some(of)),
            _ => Err(Error::Fatal(not_ours(&names::layout(&self.settings.pipeline), "it is not a number of partitions"))),
        }
    }

    /// Sends one command a key, and hands back each answer with the index of its key.
    async fn ask_keys(&mut self, command: &str, keys: &[String], which: &[usize]) -> Result<Vec<(usize, Result<Value, Fault>)>, Error> {
        let mut answers = Vec::with_capacity(which.len());
        for part in which.chunks(VALUES_AT_ONCE) {
            let mut commands = Pipeline::with_capacity(part.len());
            for index in part {
                commands.cmd(command).arg(keys[*index].as_str());
            }
            let replies = self.connection.ask_each(&commands).await.map_err(|fault| self.connection.error(fault))?;
            answers.extend(part.iter().copied().zip(replies));
        }
        Ok(answers)
    }

    /// Everything that is known of the layout `old`: the keys of its checkpoints, and those that exist.
    async fn old_checkpoints(&mut self, old: Option<u16>) -> Result<Vec<OldCheckpoint>, Error> {
        let mut checkpoints = Vec::new();
        for partition in old.into_iter().flat_map(Partition::all) {
            let fields = self.fields(partition).await?;
            let stored = self.decode(partition, &fields)?;
            checkpoints.push(OldCheckpoint { partition, fields, stored });
        }
        Ok(checkpoints)
    }

    /// A checkpoint as it is written there; empty where there is none.
    async fn fields(&mut self, partition: Partition) -> Result<HashMap<String, String>, Error> {
        let key = names::checkpoint(&self.settings.pipeline, partition);
        let answer = self.ask_own("HGETALL", &key).await?;
        let fields: HashMap<Vec<u8>, Vec<u8>> = self.typed("HGETALL", answer)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(fields.into_iter().map(|(field, value)| (text(field), text(value))).collect())
    }

    fn decode(&self, partition: Partition, fields: &HashMap<String, String>) -> Result<Option<Stored>, Error> {
        if fields.is_empty() {
            return Ok(None);
        }
        let key = names::checkpoint(&self.settings.pipeline, partition);
        stored::decode(fields).map(Some).map_err(|why| Error::Fatal(not_ours(&key, &why)))
    }
}

/// A checkpoint of the layout that is left.
struct OldCheckpoint {
    partition: Partition,
    /// As it is written there; empty where there is none.
    fields: HashMap<String, String>,
    stored: Option<Stored>,
}

impl Link for RedisLink {
    async fn layout(&mut self) -> Result<Option<u16>, Error> {
        let key = names::layout(&self.settings.pipeline);
        let answer = self.ask_own("GET", &key).await?;
        let text: Option<Vec<u8>> = self.typed("GET", answer)?;
        self.decimal(&String::from_utf8_lossy(&text.unwrap_or_default()))
    }

    async fn take_over(&mut self, old: Option<u16>, of: u16, fresh: &mut (dyn FnMut() -> Run + Send)) -> Result<bool, Error> {
        if self.layout().await? != old {
            return Ok(false);
        }
        let before = self.old_checkpoints(old).await?;
        let known: Vec<Checkpoint> = before.iter().filter_map(|old| Some(old.stored.as_ref()?.checkpoint.clone())).collect();
        let after = layout::follow(&known, of, fresh);

        let pipeline = Arc::clone(&self.settings.pipeline);
        // A checkpoint of the old layout that is one of the new layout too was just written.
        let removed: Vec<Partition> =
            before.iter().map(|old| old.partition).filter(|old| after.iter().all(|(new, _)| new != old)).collect();
        let forgotten: Vec<String> = before
            .iter()
            .filter_map(|old| Some((&old.partition, old.stored.as_ref()?)))
            .flat_map(|(partition, stored)| {
                let runs = stored.checkpoint.resyncs.iter().map(|(table, resync)| (table, &resync.run));
                runs.map(|(table, run)| names::seen(&pipeline, *partition, table, run, 0)).collect::<Vec<_>>()
            })
            .collect();

        let name = self.scripts.name(&mut self.connection, Script::Layout).await.map_err(|fault| self.connection.error(fault))?;
        let mut command = cmd("EVALSHA");
        command.arg(name).arg(1).arg(names::layout(&pipeline));
        command.arg(old.map(|of| of.to_string()).unwrap_or_default()).arg(of);
        command.arg(after.first().map_or("", |(_, stored)| &stored.checkpoint.lineage.0));
        command.arg(before.len()).arg(after.len()).arg(removed.len()).arg(forgotten.len());
        for old in &before {
            command.arg(names::checkpoint(&pipeline, old.partition));
            for field in ["lineage", "mappings", "old_keys"] {
                command.arg(old.fields.get(field).map_or("", String::as_str));
            }
        }
        for (partition, stored) in &after {
            let values = stored::encode(&stored.version, &stored.checkpoint);
            command.arg(values.len()).arg(names::checkpoint(&pipeline, *partition));
            for value in &values {
                command.arg(value.as_slice());
            }
        }
        for partition in removed {
            command.arg(names::checkpoint(&pipeline, partition));
        }
        for key in forgotten {
            command.arg(key);
        }
        let answer =
            self.scripts.call(&mut self.connection, Script::Layout, &command).await.map_err(|fault| self.connection.error(fault))?;
        match &self.typed::<Vec<String>>("EVALSHA", answer)?[..] {
            [word] if word == "done" => Ok(true),
            [word] if word == "overtaken" => Ok(false),
            _ => {
                let fault = self.connection.unexpected("EVALSHA");
                Err(self.connection.error(fault))
            }
        }
    }

    async fn load(&mut self, partition: Partition) -> Result<Option<Stored>, Error> {
        let fields = self.fields(partition).await?;
        self.decode(partition, &fields)
    }

    async fn write(&mut self, block: &Block) -> Result<Written, Error> {
        if let Some(refused) = names::refuse_own(&block.puts).or_else(|| self.refuse_large(block)) {
            return Ok(refused);
        }
        let settings = Arc::clone(&self.settings);
        let arguments = BlockArguments::new(block, &settings.pipeline, settings.seen_piece_bytes);
        match self.run(&arguments, Script::Block).await {
            Ok(answer) => self.written(&arguments, &answer),
            Err(Fault::Full(text)) => self.clear(&arguments, text).await,
            Err(fault) => self.refuse(&arguments, fault).await,
        }
    }

    async fn seen(&mut self, partition: Partition, table: &Table, run: &Run, length: u64) -> Result<Option<Vec<KeyHash>>, Error> {
        let mut hashes = Vec::new();
        for (piece, piece_length) in seen::pieces(length, self.settings.seen_piece_bytes) {
            let key = names::seen(&self.settings.pipeline, partition, table, run, piece);
            let answer = self.ask_own("GET", &key).await?;
            let bytes = self.typed::<Option<Vec<u8>>>("GET", answer)?.unwrap_or_default();
            if bytes.len() as u64 != piece_length {
                return Ok(None);
            }
            let (eights, rest) = bytes.as_chunks::<8>();
            if !rest.is_empty() {
                return Ok(None);
            }
            // Whatever room it took beyond, it would keep for the whole sweep.
            hashes.reserve_exact(eights.len());
            hashes.extend(eights.iter().map(|eight| KeyHash(u64::from_be_bytes(*eight))));
        }
        Ok(Some(hashes))
    }

    async fn scan(&mut self, cursor: u64, prefix: &str) -> Result<(u64, Vec<String>), Error> {
        let mut command = cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(glob(prefix)).arg("COUNT").arg(1000);
        let answer = self.ask(&command).await?;
        let (cursor, keys): (u64, Vec<Vec<u8>>) = self.typed("SCAN", answer)?;
        // A key that is not text was not written by rowcast, which is what a sweep looks for.
        let keys = keys.into_iter().filter_map(|key| String::from_utf8(key).ok()).filter(|key| !names::is_own(key));
        Ok((cursor, keys.collect()))
    }

    async fn values(&mut self, keys: &[String]) -> Result<Vec<Option<Cached>>, Error> {
        let mut values: Vec<Option<Cached>> = vec![None; keys.len()];
        let mut pending: Vec<usize> = (0..keys.len()).collect();
        while !pending.is_empty() {
            let mut no_strings = Vec::new();
            for (index, answer) in self.ask_keys("GET", keys, &pending).await? {
                match answer {
                    Ok(answer) => values[index] = self.typed::<Option<Vec<u8>>>("GET", answer)?.map(Cached::Text),
                    Err(Fault::WrongType(_)) => no_strings.push(index),
                    Err(fault) => return Err(self.connection.error(fault)),
                }
            }
            let mut neither = Vec::new();
            for (index, answer) in self.ask_keys("HGETALL", keys, &no_strings).await? {
                match answer {
                    Ok(answer) => {
                        let fields: BTreeMap<Vec<u8>, Vec<u8>> = self.typed("HGETALL", answer)?;
                        let text = |field: Vec<u8>| String::from_utf8_lossy(&field).into_owned();
                        let fields: BTreeMap<String, Vec<u8>> = fields.into_iter().map(|(field, value)| (text(field), value)).collect();
                        values[index] = (!fields.is_empty()).then_some(Cached::Hash(fields));
                    }
                    Err(Fault::WrongType(_)) => neither.push(index),
                    Err(fault) => return Err(self.connection.error(fault)),
                }
            }
            pending.clear();
            for (index, answer) in self.ask_keys("TYPE", keys, &neither).await? {
                let answer = answer.map_err(|fault| self.connection.error(fault))?;
                match self.typed::<String>("TYPE", answer)? {
                    // It has changed since; once more.
                    kind if kind == "string" || kind == "hash" => pending.push(index),
                    kind if kind == "none" => values[index] = None,
                    kind => values[index] = Some(Cached::Other(kind)),
                }
            }
        }
        Ok(values)
    }
}

/// The length of the largest argument that a put becomes.
fn largest(put: &Put) -> usize {
    match put {
        Put::Text(text, _) => text.len(),
        Put::Hash(fields, _) => fields.iter().map(|(field, value)| field.len().max(value.len())).max().unwrap_or(0),
        Put::Gone => 0,
    }
}

/// Every key that begins with `prefix`, to the letter, as a pattern.
pub(super) fn glob(prefix: &str) -> String {
    let mut pattern = String::with_capacity(prefix.len() + 1);
    for c in prefix.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('*');
    pattern
}

/// Says what is wrong with one of rowcast's own keys, and what mends it.
fn not_ours(key: &str, why: &str) -> String {
    format!(
        "the Redis key {key} is not as rowcast wrote it: {why}. Was it changed by hand, or written by a newer version? \
         DEL {key} mends it: what it vouched for is then read again from the source"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_matches_itself_to_the_letter() {
        assert_eq!(glob("user:"), "user:*");
        assert_eq!(glob(r"a*b?[c]\"), r"a\*b\?\[c\]\\*");
    }
}
