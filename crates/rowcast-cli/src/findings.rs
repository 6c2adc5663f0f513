//! What a look at source, broker or cache has found, as people and programs read it.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use rowcast::cache::redis::RedisCache;
use rowcast::cache::{Cache, Link};
use rowcast::change::Partition;
use rowcast::config::{self, CacheConfig, Config};
use rowcast::finding::{Finding, Grade};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::source;

/// How far the text of a finding is indented.
const INDENT: &str = "          ";

/// A finding for people: its grade, the sentence with its place in the configuration, and what mends it.
pub fn text(config: &Config, finding: &Finding) -> String {
    let style = match finding.grade {
        Grade::Stops => Style::new().bold().fg_color(Some(AnsiColor::Red.into())),
        Grade::Harms => Style::new().bold().fg_color(Some(AnsiColor::Yellow.into())),
        Grade::Notes => Style::new().dimmed(),
    };
    let placed = config::Finding { message: finding.message.clone(), place: config.place(finding).cloned() };
    let mut text = format!("  {style}{:<7}{style:#} ", finding.grade.name());
    // Writing to a String cannot fail.
    let lines = placed.to_string();
    write!(text, "{}", lines.replace('\n', &format!("\n{INDENT}"))).expect("a String takes every write");
    if let Some(remedy) = &finding.remedy {
        write!(text, "\n{INDENT}→ {remedy}").expect("a String takes every write");
    }
    text.push('\n');
    text
}

/// The same for programs.
pub fn json(config: &Config, part: &str, finding: &Finding) -> Value {
    let place = config.place(finding);
    json!({
        "part": part,
        "grade": finding.grade.name(),
        "message": finding.message,
        "remedy": finding.remedy,
        "file": place.map(|place| &place.file),
        "line": place.map(|place| place.line),
        "column": place.map(|place| place.column),
    })
}

/// Findings that stop something, as the way in which a command fails.
pub fn failure(config: &Config, findings: &[&Finding]) -> Failure {
    let placed = |finding: &&Finding| {
        let remedy = finding.remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default();
        config::Finding { message: format!("{}{remedy}", finding.message), place: config.place(finding).cloned() }
    };
    let findings: Vec<config::Finding> = findings.iter().map(placed).collect();
    if findings.iter().any(|finding| finding.place.is_some()) {
        Failure::Configuration(config::Error { findings })
    } else {
        let texts: Vec<String> = findings.iter().map(ToString::to_string).collect();
        Failure::Failed(anyhow::anyhow!(texts.join("\n")))
    }
}

/// Finds out what would stop a publisher before it reaches for any server.
pub async fn require_source(config: &Config) -> Result<(), Failure> {
    let found = source::check(config).await;
    refuse(config, &found)
}

/// Finds out which settings do not fit the database, whatever is installed in it.
pub async fn require_fitting_tables(config: &Config) -> Result<(), Failure> {
    let mut found = source::check(config).await;
    found.retain(|finding| finding.about.is_some());
    refuse(config, &found)
}

/// Whether the cache was filled from another database under the same name: then two of them overwrite each other. `None` too where
/// it cannot be told.
pub async fn other_database(config: &Config) -> Option<Finding> {
    let CacheConfig::Redis(settings) = &config.cache else { return None };
    let own = source::waiting(config).await.ok()??.lineage().to_owned();
    let mut link = RedisCache::new((**settings).clone()).connect().await.ok()?;
    let of = link.layout().await.ok()??;
    for partition in Partition::all(of) {
        let Some(stored) = link.load(partition).await.ok()? else { continue };
        let followed = &stored.checkpoint.lineage.0;
        if source::database_of(followed) != source::database_of(&own) {
            let message = format!(
                "the cache follows another database under the name {} ({followed}; this one is {own}): two databases under one name overwrite \
                 each other's keys, and only one publisher is let in",
                config.pipeline
            );
            let remedy =
                "give this pipeline a name of its own; if this database has taken the place of the other, the next run reads all of it";
            return Some(Finding::new(Grade::Harms, message).mend(remedy));
        }
    }
    None
}

/// Says so in the log, whenever it is found out; nothing waits for it.
pub fn warn_of_other_database(config: &Config) {
    let config = config.clone();
    tokio::spawn(async move {
        if let Some(finding) = other_database(&config).await {
            tracing::warn!("{}; {}", finding.message, finding.remedy.unwrap_or_default());
        }
    });
}

fn refuse(config: &Config, found: &[Finding]) -> Result<(), Failure> {
    let stops: Vec<&Finding> = found.iter().filter(|finding| finding.grade == Grade::Stops).collect();
    if stops.is_empty() { Ok(()) } else { Err(failure(config, &stops)) }
}
