//! The source of a configuration, whichever it is, as the commands ask it.

use rowcast::config::Config;
use rowcast::finding::Finding;
use rowcast::source::postgres::{self, Capture, PostgresSettings};
use rowcast::source::sqlite::{self, SqliteSettings};
use rowcast::source::{Backlog, Error, SingleRow, SingleRowError, SourceSettings};

/// What waits in the source for delivery.
pub enum Waiting {
    /// Rows of a changelog.
    Changelog(Backlog),
    /// The server's log.
    Log(Box<postgres::Waiting>),
}

impl Waiting {
    /// Whose history it is (or the beginning of its name, up to a colon).
    pub fn lineage(&self) -> &str {
        match self {
            Waiting::Changelog(waiting) => &waiting.lineage,
            Waiting::Log(waiting) => &waiting.lineage,
        }
    }

    /// The first part of the newest position.
    pub fn newest(&self) -> u64 {
        match self {
            Waiting::Changelog(waiting) => waiting.newest,
            Waiting::Log(waiting) => waiting.end,
        }
    }
}

/// Whether a checkpoint's lineage is the one that a source names: all of it, or up to its last colon.
pub fn is_of(lineage: &str, named: &str) -> bool {
    lineage == named || named.ends_with(':') && lineage.starts_with(named)
}

/// The database that a lineage is of, whatever became of its history.
pub fn database_of(lineage: &str) -> String {
    if lineage.starts_with("postgres:") { postgres::database_of(lineage) } else { sqlite::database_of(lineage).to_owned() }
}

/// Where it is, for people.
pub fn place(config: &Config) -> String {
    match &config.source {
        SourceSettings::Sqlite(settings) => settings.path.display().to_string(),
        SourceSettings::Postgres(settings) => settings.server.place(),
    }
}

/// Whether the application itself writes into what `rowcast install` makes.
pub fn is_hooked(config: &Config) -> bool {
    matches!(&config.source, SourceSettings::Postgres(settings) if settings.capture == Capture::Hooks)
}

/// The same as its URL begins.
pub fn url(config: &Config) -> String {
    let scheme = match &config.source {
        SourceSettings::Sqlite(_) => "sqlite:",
        SourceSettings::Postgres(_) => "postgres://",
    };
    format!("{scheme}{}", place(config))
}

/// What a unit of "behind" is called, one and several.
pub fn units(config: &Config) -> (&'static str, &'static str) {
    match &config.source {
        SourceSettings::Sqlite(_) => ("changelog row", "changelog rows"),
        SourceSettings::Postgres(settings) => match settings.capture {
            Capture::Log => ("byte of the server's log", "bytes of the server's log"),
            Capture::Hooks => ("read of the changelog", "reads of the changelog"),
        },
    }
}

/// Everything that would stop or harm the pipeline.
pub async fn check(config: &Config) -> Vec<Finding> {
    match &config.source {
        SourceSettings::Sqlite(settings) => sqlite::check(settings),
        SourceSettings::Postgres(settings) => postgres::check(settings).await,
    }
}

/// What keeps the tables from being followed.
pub async fn misfits(config: &Config) -> Vec<Finding> {
    match &config.source {
        SourceSettings::Sqlite(settings) => sqlite::misfits(settings),
        SourceSettings::Postgres(settings) => postgres::misfits(settings).await,
    }
}

/// The statements that installing would execute.
pub async fn plan(config: &Config) -> Result<Vec<String>, Error> {
    match &config.source {
        SourceSettings::Sqlite(settings) => sqlite::plan(settings),
        SourceSettings::Postgres(settings) => postgres::plan(settings).await,
    }
}

/// Installs, and tells what was done.
pub async fn install(config: &Config) -> Result<Vec<String>, Error> {
    match &config.source {
        SourceSettings::Sqlite(settings) => sqlite::install(settings).map(|report| report.notes),
        SourceSettings::Postgres(settings) => postgres::install(settings).await.map(done),
    }
}

/// Uninstalls, and tells what was done.
pub async fn uninstall(config: &Config) -> Result<Vec<String>, Error> {
    match &config.source {
        SourceSettings::Sqlite(settings) => sqlite::uninstall(&settings.path).map(|report| report.notes),
        SourceSettings::Postgres(settings) => postgres::uninstall(settings).await.map(done),
    }
}

fn done(report: postgres::Report) -> Vec<String> {
    report.statements.into_iter().map(|statement| format!("ran {statement}")).collect()
}

/// What waits for delivery; `None` where nothing is installed.
pub async fn waiting(config: &Config) -> Result<Option<Waiting>, Error> {
    match &config.source {
        SourceSettings::Sqlite(SqliteSettings { path, .. }) => {
            sqlite::inspect(path).map(|inspection| inspection.changelog.map(Waiting::Changelog))
        }
        SourceSettings::Postgres(settings) => match settings.capture {
            Capture::Log => postgres::waiting(settings).await.map(|waiting| waiting.map(|waiting| Waiting::Log(Box::new(waiting)))),
            Capture::Hooks => postgres::changelog::waiting(settings).await.map(|waiting| waiting.map(Waiting::Changelog)),
        },
    }
}

/// One row of the table at this place among the configured ones.
pub async fn single_row(config: &Config, table: usize, key: &[String]) -> Result<SingleRow, SingleRowError> {
    match &config.source {
        SourceSettings::Sqlite(settings) => sqlite::single_row(settings, table, key),
        SourceSettings::Postgres(settings) => postgres::single_row(settings, table, key).await,
    }
}

/// How many rows the tables have (PostgreSQL: about how many).
pub async fn count_rows(config: &Config, names: Vec<String>) -> Result<Vec<u64>, Error> {
    match &config.source {
        SourceSettings::Sqlite(settings) => {
            let path = settings.path.clone();
            let counting = tokio::task::spawn_blocking(move || {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                sqlite::count_rows(&path, &names)
            });
            match counting.await {
                Ok(counted) => counted,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        SourceSettings::Postgres(settings) => count_in(settings, &names).await,
    }
}

async fn count_in(settings: &PostgresSettings, names: &[String]) -> Result<Vec<u64>, Error> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    postgres::count_rows(settings, &names).await
}
