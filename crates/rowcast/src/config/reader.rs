//! From the text to a [`Config`]: section by section, all of them even if one is wrong.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::document::{Document, Section, hint};
use super::finding::{Error, TablePlaces};
use super::text::{Environment, Text};
use super::{BrokerConfig, CacheConfig, Config};
use crate::broker::rabbitmq::{QueueType, RabbitSettings};
use crate::cache::redis::RedisSettings;
use crate::mapping::{ColumnType, OnChange, Shape, TableSettings, Template, Ttl};
use crate::source::SourceSettings;
use crate::source::postgres::{self, PostgresSettings, Server};
use crate::source::sqlite::{self, Capture, SqliteSettings};

/// Enough for every pipeline: each partition has a queue and a worker of its own.
const PARTITIONS_MAX: i64 = 1024;

/// How many partitions there are if nothing is said.
const PARTITIONS: u16 = 4;

/// The longest name of a pipeline: it becomes part of the names of queues and keys.
const NAME_BYTES_MAX: usize = 100;

/// Every section, with every key that it may have. `docs/configuration.md` describes each; a test compares.
pub(super) const KEYS: [(&str, &[&str]); 5] = [
    ("pipeline", &["name"]),
    ("source", &["url", "capture"]),
    ("broker", &["url", "partitions", "queue"]),
    ("cache", &["url"]),
    ("table", &["name", "key", "value", "columns", "where", "ttl", "on_change"]),
];

/// Takes a filter in the words of a database; the error goes on after "`where`".
type Expression = fn(&str) -> Result<String, String>;

fn known(section: &str) -> &'static [&'static str] {
    KEYS.iter().find(|(name, _)| *name == section).map_or(&[], |(_, keys)| keys)
}

/// Reads and checks the whole file.
pub(super) fn read(text: &str, path: &Path, environment: Environment<'_>) -> Result<Config, Error> {
    let mut document = Document::new(path.display().to_string(), text);
    let root = match DeTable::parse(text) {
        Ok(root) => root.into_inner(),
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            document.wrong(span, format!("this is not TOML: {}", error.message()));
            document.finish()?;
            unreachable!("a finding was just made");
        }
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut reader = Reader { document, root: &root, folder, environment };
    let config = reader.config();
    reader.document.finish()?;
    Ok(config.expect("what cannot be made definite is a finding"))
}

struct Reader<'d> {
    document: Document<'d>,
    root: &'d DeTable<'d>,
    /// Where relative paths begin.
    folder: &'d Path,
    environment: Environment<'d>,
}

impl<'d> Reader<'d> {
    fn config(&mut self) -> Option<Config> {
        let root = Section { name: "the file", place: 0..0, table: self.root };
        self.document.check_keys(&root, &KEYS.map(|(section, _)| section));
        let name = self.pipeline();
        // The other sections are checked all the same.
        let pipeline = name.as_deref().unwrap_or("pipeline").to_owned();
        let source = self.source();
        let broker = self.broker(&pipeline);
        let cache = self.cache(&pipeline);
        let expression: Expression = match &source {
            Some((Database::Sqlite(_), _)) => sqlite::filter_expression,
            Some((Database::Postgres(_), _)) => postgres::filter_expression,
            // Whose words it is in is not known.
            None => |text| Ok(text.to_owned()),
        };
        let (tables, places) = self.tables(expression).into_iter().unzip();
        let (partitions, broker) = broker?;
        let name = name?;
        let source = match source? {
            (Database::Sqlite(path), capture) => {
                SourceSettings::Sqlite(SqliteSettings { tables, capture, ..SqliteSettings::new(self.folder.join(path), &name) })
            }
            (Database::Postgres(server), capture) => {
                let capture = match capture {
                    Capture::Hooks => postgres::Capture::Hooks,
                    Capture::Triggers => postgres::Capture::Log,
                };
                SourceSettings::Postgres(Box::new(PostgresSettings { tables, capture, ..PostgresSettings::new(*server, &name) }))
            }
        };
        Some(Config { pipeline, partitions, source, places, broker, cache: cache? })
    }

    fn section(&mut self, key: &str, name: &'static str, example: &str) -> Option<Section<'d>> {
        let Some((written, value)) = self.root.get_key_value(key) else {
            self.document.missing(format!("{name} is missing; write for instance\n\n{name}\n{example}"));
            return None;
        };
        match value.get_ref() {
            DeValue::Table(table) => Some(Section { name, place: written.span(), table }),
            _ => {
                self.document.wrong_type(key, value, &format!("a table, which begins with {name}"));
                None
            }
        }
    }

    fn pipeline(&mut self) -> Option<String> {
        let section = self.section("pipeline", "[pipeline]", r#"name = "shop""#)?;
        self.document.check_keys(&section, known("pipeline"));
        let name = self.document.required(&section, "name", r#"name = "shop""#, self.environment)?;
        let possible = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.value.is_empty() || name.value.len() > NAME_BYTES_MAX || !name.value.chars().all(possible) {
            let message = format!(
                "{} cannot be a pipeline's name: it becomes part of the names of queues and keys, and has 1 to {NAME_BYTES_MAX} letters, \
                 digits, - and _",
                name.shown()
            );
            self.document.wrong(name.span, message);
            return None;
        }
        Some(name.value)
    }

    fn source(&mut self) -> Option<(Database, Capture)> {
        const EXAMPLE: &str = r#"url = "sqlite:shop.db""#;
        let section = self.section("source", "[source]", EXAMPLE)?;
        self.document.check_keys(&section, known("source"));
        let capture = self.choice(&section, "capture", &[("triggers", Capture::Triggers), ("hooks", Capture::Hooks)], Capture::Triggers);
        let url = self.document.required(&section, "url", EXAMPLE, self.environment)?;
        match Database::of(&url.value) {
            Ok(Database::Postgres(_)) if section.table.contains_key("capture") && capture == Some(Capture::Triggers) => {
                let span = section.table.get("capture").map_or(section.place.clone(), Spanned::span);
                let message = "PostgreSQL's own log is read, not triggers; leave out `capture`, or write \"hooks\" where the application \
                               records its changes through rowcast-sea-orm";
                self.document.wrong(span, message.to_owned());
                None
            }
            Ok(database) => Some((database, capture?)),
            Err(message) => {
                self.document.wrong(url.span, message);
                None
            }
        }
    }

    fn broker(&mut self, pipeline: &str) -> Option<(u16, BrokerConfig)> {
        const EXAMPLE: &str = r#"url = "amqp://localhost""#;
        let section = self.section("broker", "[broker]", EXAMPLE)?;
        self.document.check_keys(&section, known("broker"));
        let queue = self.choice(&section, "queue", &[("quorum", QueueType::Quorum), ("classic", QueueType::Classic)], QueueType::Quorum);
        let partitions = match section.table.contains_key("partitions") {
            true => self.document.number(&section, "partitions", 1..PARTITIONS_MAX + 1).and_then(|number| u16::try_from(number).ok()),
            false => Some(PARTITIONS),
        };
        let url = self.document.required(&section, "url", EXAMPLE, self.environment)?;
        if url.value == "memory:" {
            return Some((partitions?, BrokerConfig::Memory));
        }
        match RabbitSettings::new(&url.value, pipeline, partitions.unwrap_or(PARTITIONS), queue.unwrap_or_default()) {
            Ok(settings) => Some((partitions?, BrokerConfig::Rabbit(settings))),
            Err(error) => {
                self.document.wrong(url.span, error.to_string());
                None
            }
        }
    }

    fn cache(&mut self, pipeline: &str) -> Option<CacheConfig> {
        const EXAMPLE: &str = r#"url = "redis://localhost""#;
        let section = self.section("cache", "[cache]", EXAMPLE)?;
        self.document.check_keys(&section, known("cache"));
        let url = self.document.required(&section, "url", EXAMPLE, self.environment)?;
        if url.value == "memory:" {
            return Some(CacheConfig::Memory);
        }
        match RedisSettings::new(&url.value, pipeline) {
            Ok(settings) => Some(CacheConfig::Redis(Box::new(settings))),
            Err(error) => {
                self.document.wrong(url.span, error.to_string());
                None
            }
        }
    }

    fn tables(&mut self, expression: Expression) -> Vec<(TableSettings, TablePlaces)> {
        let Some(value) = self.root.get("table") else {
            self.document.missing("no table is named; write for instance\n\n[[table]]\nname = \"users\"".to_owned());
            return Vec::new();
        };
        let elements = match value.get_ref() {
            DeValue::Array(elements) => elements,
            DeValue::Table(_) => {
                self.document.wrong(value.span(), "a table is written [[table]], with two brackets on each side".to_owned());
                return Vec::new();
            }
            _ => {
                self.document.wrong_type("table", value, "written [[table]]");
                return Vec::new();
            }
        };
        let mut tables: Vec<(TableSettings, TablePlaces)> = Vec::new();
        for element in elements.iter() {
            if let Some((name, table)) = self.table(element, expression) {
                if tables.iter().any(|(other, _)| other.name.eq_ignore_ascii_case(&table.name)) {
                    self.document.wrong(name.span.clone(), format!("the table {} is already there; name each table once", name.shown()));
                }
                let places = self.places(&name, element);
                tables.push((table, places));
            }
        }
        tables
    }

    fn table(&mut self, element: &'d Spanned<DeValue<'d>>, expression: Expression) -> Option<(Text, TableSettings)> {
        let DeValue::Table(table) = element.get_ref() else {
            self.document.wrong_type("table", element, "written [[table]]");
            return None;
        };
        let section = Section { name: "[[table]]", place: element.span(), table };
        self.document.check_keys(&section, known("table"));
        let shape = self.choice(&section, "value", &[("json", Shape::Json), ("hash", Shape::Hash)], Shape::Json);
        let key = self.document.text(&section, "key", self.environment);
        if let Some(key) = &key {
            // Which columns there are, and of which type, only the database knows; a whole number is possible everywhere.
            if let Err(error) = Template::configured(&key.value, |_| Some(ColumnType::Integer)) {
                self.document.wrong(key.span.clone(), error.to_string());
            }
        }
        let columns = self.columns(&section);
        let filter = self.filter(&section, expression);
        let ttl = self.ttl(&section);
        let on_change = self.choice(&section, "on_change", &OnChange::WORDS, OnChange::Write);
        let name = self.document.required(&section, "name", r#"name = "users""#, self.environment)?;
        if name.value.is_empty() {
            self.document.wrong(name.span.clone(), "`name` is empty; write the table's name as the database spells it".to_owned());
        }
        let key = key.map(|key| key.value);
        let settings =
            TableSettings { name: name.value.clone(), key, shape: shape?, columns, filter: filter?, ttl: ttl?, on_change: on_change? };
        Some((name, settings))
    }

    /// The filter's expression; which columns there are only the database knows. The outer `None` stands for a finding.
    fn filter(&mut self, section: &Section<'d>, expression: Expression) -> Option<Option<String>> {
        if !section.table.contains_key("where") {
            return Some(None);
        }
        let text = self.document.text(section, "where", self.environment)?;
        match expression(&text.value) {
            Ok(expression) => Some(Some(expression)),
            Err(reason) => {
                self.document.wrong(text.span, format!("`where` {reason}"));
                None
            }
        }
    }

    /// The outer `None` stands for a finding.
    fn ttl(&mut self, section: &Section<'d>) -> Option<Option<Ttl>> {
        if !section.table.contains_key("ttl") {
            return Some(None);
        }
        let text = self.document.text(section, "ttl", self.environment)?;
        match text.value.parse() {
            Ok(ttl) => Some(Some(ttl)),
            Err(error) => {
                self.document.wrong(text.span.clone(), format!("`ttl` is {}, but {error}", text.shown()));
                None
            }
        }
    }

    fn places(&self, name: &Text, element: &Spanned<DeValue<'_>>) -> TablePlaces {
        let setting = |key| element.get_ref().as_table()?.get(key).map(|value| self.document.place(&value.span()));
        TablePlaces { name: self.document.place(&name.span), key: setting("key"), columns: setting("columns"), filter: setting("where") }
    }

    fn columns(&mut self, section: &Section<'d>) -> Option<Vec<String>> {
        let columns = self.document.texts(section, "columns", self.environment)?;
        if columns.is_empty() {
            let place = section.table.get("columns").map_or(section.place.clone(), Spanned::span);
            self.document.wrong(place, "`columns` is empty; leave it out to cache every column".to_owned());
        }
        for (index, column) in columns.iter().enumerate() {
            if columns[..index].iter().any(|other| other.value == column.value) {
                self.document.wrong(column.span.clone(), format!("the column {} is named twice", column.shown()));
            }
        }
        Some(columns.into_iter().map(|column| column.value).collect())
    }

    /// One of a few words; `default` where nothing is said.
    fn choice<T: Copy>(&mut self, section: &Section<'d>, key: &str, words: &[(&str, T)], default: T) -> Option<T> {
        if !section.table.contains_key(key) {
            return Some(default);
        }
        let text = self.document.text(section, key, self.environment)?;
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text.value) {
            return Some(*meaning);
        }
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
        let (last, others) = quoted.split_last().expect("there are words to choose from");
        let near = if text.literal { hint(&text.value, &words) } else { String::new() };
        self.document.wrong(text.span.clone(), format!("`{key}` is {} or {last}, not {}{near}", others.join(", "), text.shown()));
        None
    }
}

/// A database as a URL names it.
#[derive(Clone, Debug)]
pub enum Database {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A database of a PostgreSQL server.
    Postgres(Box<Server>),
}

impl Database {
    /// Which one that is; the error is a sentence for the user, in which no password stands.
    pub fn of(url: &str) -> Result<Database, String> {
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            return Server::parse(url).map(|server| Database::Postgres(Box::new(server)));
        }
        sqlite_path(url).map(|path| Database::Sqlite(PathBuf::from(path)))
    }
}

/// The database file of `sqlite:shop.db`; the error is a sentence for the user.
fn sqlite_path(url: &str) -> Result<&str, String> {
    const SERVERS: [&str; 2] = ["mysql:", "mariadb:"];
    if SERVERS.iter().any(|scheme| url.starts_with(scheme)) {
        return Err("this version of rowcast reads SQLite and PostgreSQL; write for instance sqlite:shop.db or postgres://user@host/shop"
            .to_owned());
    }
    let Some(path) = url.strip_prefix("sqlite:") else {
        return Err("the source's URL is sqlite: and the path of the database file, for instance sqlite:shop.db".to_owned());
    };
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.is_empty() {
        return Err("the source's URL names no file; write for instance sqlite:shop.db".to_owned());
    }
    if path.contains(":memory:") {
        return Err("a SQLite database in memory can be read by nobody but its own program; name a file".to_owned());
    }
    if path.contains('?') {
        return Err("the source's URL is sqlite: and the path of the database file, without a ? and what follows it".to_owned());
    }
    Ok(path)
}
