//! What a look at source, broker or cache has found, as people and programs read it.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use rowcast::config::{self, Config};
use rowcast::finding::{Finding, Grade};
use rowcast::source::sqlite;
use serde_json::{Value, json};

use crate::failure::Failure;

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
pub fn require_source(config: &Config) -> Result<(), Failure> {
    let found = sqlite::check(&config.source);
    refuse(config, &found)
}

/// Finds out which settings do not fit the database, whatever is installed in it.
pub fn require_fitting_tables(config: &Config) -> Result<(), Failure> {
    let mut found = sqlite::check(&config.source);
    found.retain(|finding| finding.about.is_some());
    refuse(config, &found)
}

fn refuse(config: &Config, found: &[Finding]) -> Result<(), Failure> {
    let stops: Vec<&Finding> = found.iter().filter(|finding| finding.grade == Grade::Stops).collect();
    if stops.is_empty() { Ok(()) } else { Err(failure(config, &stops)) }
}
