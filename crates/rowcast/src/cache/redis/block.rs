//! A block as the arguments of its script, and the script's answer.

use redis::{Cmd, Value};

use super::super::{Block, Put, Written, names};
use super::{seen, stored};
use crate::change::Table;
use crate::mapping::Terms;

/// What the scripts for one block are called with.
pub(super) struct BlockArguments<'b> {
    block: &'b Block,
    layout: String,
    checkpoint: String,
    /// The pieces of seen logs that are compared: table, key, length.
    compared: Vec<(&'b Table, String, u64)>,
    pipeline: &'b str,
    piece_bytes: u64,
}

impl<'b> BlockArguments<'b> {
    pub(super) fn new(block: &'b Block, pipeline: &'b str, piece_bytes: u64) -> BlockArguments<'b> {
        assert!(!block.version.0.is_empty() && block.on.as_ref() != Some(&block.version), "every block has a fresh version");
        let compared = block.seen.iter().flat_map(|log| {
            seen::pieces(log.expected, piece_bytes)
                .map(move |(piece, length)| (&log.table, names::seen(pipeline, block.partition, &log.table, &log.run, piece), length))
        });
        BlockArguments {
            block,
            layout: names::layout(pipeline),
            checkpoint: names::checkpoint(pipeline, block.partition),
            compared: compared.collect(),
            pipeline,
            piece_bytes,
        }
    }

    /// rowcast's own keys that the script reads, each with the type it must have.
    pub(super) fn own_keys(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let pieces = self.compared.iter().map(|(_, key, _)| (key.as_str(), "string"));
        [(self.layout.as_str(), "string"), (self.checkpoint.as_str(), "hash")].into_iter().chain(pieces)
    }

    /// The call of `block.lua`.
    pub(super) fn block(&self, script: &str) -> Cmd {
        let Sorted { strings, hashes, gone, groups } = self.sorted();
        let appended = self.appended();
        let appended: Vec<(String, &[u8])> = appended
            .iter()
            .flat_map(|(log, bytes)| {
                seen::appended(log.expected, self.piece_bytes, bytes)
                    .into_iter()
                    .map(|(piece, part)| (names::seen(self.pipeline, self.block.partition, &log.table, &log.run, piece), part))
            })
            .collect();
        let checkpoint = stored::encode(&self.block.version, &self.block.checkpoint);

        let mut command = self.begin(script);
        command.arg(2 * strings.len()).arg(hashes.len() + gone.len()).arg(hashes.len());
        command.arg(groups.len()).arg(appended.len()).arg(self.block.forget.len()).arg(checkpoint.len());
        for (key, value) in strings {
            command.arg(key).arg(value);
        }
        for key in hashes.iter().map(|(key, _)| *key).chain(gone) {
            command.arg(key);
        }
        for (_, fields) in hashes {
            push_fields(&mut command, fields);
        }
        for Group { terms, strings, hashes } in groups {
            // Redis knows no time to live of nothing.
            let ttl_ms = terms.ttl.map_or(String::new(), |ttl| ttl.as_millis().max(1).to_string());
            command.arg(ttl_ms).arg(u8::from(terms.existing)).arg(strings.len()).arg(hashes.len());
            for (key, value) in strings {
                command.arg(key).arg(value);
            }
            for (key, fields) in hashes {
                command.arg(key);
                push_fields(&mut command, fields);
            }
        }
        for (key, bytes) in appended {
            command.arg(key).arg(bytes);
        }
        for (table, run) in &self.block.forget {
            command.arg(names::seen(self.pipeline, self.block.partition, table, run, 0));
        }
        for value in &checkpoint {
            command.arg(value.as_slice());
        }
        command
    }

    /// The call of `clear.lua`.
    pub(super) fn clear(&self, script: &str) -> Cmd {
        let mut command = self.begin(script);
        for (key, _) in self.block.puts.iter().filter(|(key, _)| !names::is_own(key)) {
            command.arg(key.as_str());
        }
        command
    }

    /// What `begin.lua` reads.
    fn begin(&self, script: &str) -> Cmd {
        let (arguments, bytes) = self.size();
        let mut command = Cmd::with_capacity(arguments, bytes);
        command.arg("EVALSHA").arg(script).arg(2).arg(self.layout.as_str()).arg(self.checkpoint.as_str());
        command.arg(self.block.partition.of).arg(self.block.on.as_ref().map_or("", |version| version.0.as_str()));
        command.arg(self.compared.len());
        for (_, key, length) in &self.compared {
            command.arg(key.as_str()).arg(*length);
        }
        command
    }

    /// About how large the command becomes, so that it is not moved while it grows.
    fn size(&self) -> (usize, usize) {
        let (mut arguments, mut bytes) = (64 + 2 * self.compared.len(), 4096 + 128 * self.compared.len());
        for (key, put) in &self.block.puts {
            arguments += 2;
            bytes += key.len();
            match put {
                Put::Text(text, _) => bytes += text.len(),
                Put::Hash(fields, _) => {
                    arguments += 2 * fields.len();
                    bytes += 8 + fields.iter().map(|(field, value)| field.len() + value.len()).sum::<usize>();
                }
                Put::Gone => {}
            }
        }
        (arguments, bytes + self.block.seen.iter().map(|log| 8 * log.hashes.len()).sum::<usize>())
    }

    fn sorted(&self) -> Sorted<'b> {
        let mut sorted =
            Sorted { strings: Vec::with_capacity(self.block.puts.len()), hashes: Vec::new(), gone: Vec::new(), groups: Vec::new() };
        for (key, put) in &self.block.puts {
            let key = key.as_str();
            match put {
                Put::Text(text, terms) if *terms == Terms::default() => sorted.strings.push((key, text.as_slice())),
                Put::Text(text, terms) => sorted.group(terms).strings.push((key, text.as_slice())),
                // A hash without fields is no key at all.
                Put::Hash(fields, _) if fields.is_empty() => sorted.gone.push(key),
                Put::Hash(fields, terms) if *terms == Terms::default() => sorted.hashes.push((key, fields.as_slice())),
                Put::Hash(fields, terms) => sorted.group(terms).hashes.push((key, fields.as_slice())),
                // To remove one of rowcast's own keys is no offence, and nothing happens: no row ever stood there.
                Put::Gone if names::is_own(key) => {}
                Put::Gone => sorted.gone.push(key),
            }
        }
        sorted
    }

    fn appended(&self) -> Vec<(&super::super::SeenAppend, Vec<u8>)> {
        self.block.seen.iter().map(|log| (log, log.hashes.iter().flat_map(|hash| hash.0.to_be_bytes()).collect())).collect()
    }

    /// What either script has answered; `None` where it is nothing that they answer.
    pub(super) fn answer(&self, answer: &Value) -> Option<Answer> {
        let Value::Array(parts) = answer else { return None };
        let (Value::BulkString(word), rest) = parts.split_first()? else { return None };
        Some(match (word.as_slice(), rest) {
            (b"done", []) => Answer::Written(Written::Done),
            (b"overtaken", []) => Answer::Written(Written::Overtaken),
            (b"layout", [Value::BulkString(found)]) => Answer::Layout(String::from_utf8_lossy(found).into_owned()),
            (b"seen", pieces) => Answer::Written(Written::SeenLost(self.tables(pieces)?)),
            _ => return None,
        })
    }

    /// The tables of these compared pieces, counted from 1.
    fn tables(&self, pieces: &[Value]) -> Option<Vec<Table>> {
        let mut tables: Vec<Table> = Vec::new();
        for piece in pieces {
            let Value::Int(number) = piece else { return None };
            let (table, ..) = self.compared.get(usize::try_from(*number).ok()?.checked_sub(1)?)?;
            if tables.last() != Some(table) {
                tables.push((*table).clone());
            }
        }
        (!tables.is_empty()).then_some(tables)
    }
}

/// The fields of a hash.
type Fields = [(String, Vec<u8>)];

/// The puts of a block by what is done for them.
struct Sorted<'b> {
    strings: Vec<(&'b str, &'b [u8])>,
    hashes: Vec<(&'b str, &'b Fields)>,
    gone: Vec<&'b str>,
    /// What is written on terms of its own; one for each terms, of which there are at most as many as tables.
    groups: Vec<Group<'b>>,
}

/// Puts on the same terms.
struct Group<'b> {
    terms: Terms,
    strings: Vec<(&'b str, &'b [u8])>,
    hashes: Vec<(&'b str, &'b Fields)>,
}

impl<'b> Sorted<'b> {
    fn group(&mut self, terms: &Terms) -> &mut Group<'b> {
        let known = self.groups.iter().position(|group| group.terms == *terms);
        let place = known.unwrap_or_else(|| {
            self.groups.push(Group { terms: *terms, strings: Vec::new(), hashes: Vec::new() });
            self.groups.len() - 1
        });
        &mut self.groups[place]
    }
}

/// The fields of a hash, counted.
fn push_fields(command: &mut Cmd, fields: &Fields) {
    command.arg(2 * fields.len());
    for (field, value) in fields {
        command.arg(field.as_str()).arg(value.as_slice());
    }
}

/// What a script has answered.
pub(super) enum Answer {
    /// That.
    Written(Written),
    /// Another layout is in force: this text, empty where there is none.
    Layout(String),
}
