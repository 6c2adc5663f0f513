//! `rowcast check`: everything that would stop or harm the pipeline, in one go.

use std::collections::BTreeSet;
use std::path::Path;

use anstyle::Style;
use clap::Args;
use rowcast::broker::rabbitmq::RabbitBroker;
use rowcast::cache::redis::RedisCache;
use rowcast::config::{self, BrokerConfig, CacheConfig, Config};
use rowcast::finding::{Finding, Grade};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::findings;
use crate::output::print;
use crate::source;

/// How to look, and how to tell.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,

    /// Accept a Redis that may evict any key (maxmemory-policy allkeys-*), and with it the checkpoint.
    #[arg(long)]
    may_evict: bool,
}

/// What was found in one of the three parts.
struct Part {
    name: &'static str,
    place: String,
    found: Vec<Finding>,
}

/// Looks everywhere and tells.
pub async fn run(args: &CheckArgs, path: &Path) -> Result<(), Failure> {
    let config = match Config::read(path) {
        Ok(config) => config,
        Err(error) if args.json => {
            print(&format!("{}\n", json!({ "stops": error.findings.len(), "findings": configuration(&error) })))?;
            return Err(Failure::Told(2));
        }
        Err(error) => return Err(error.into()),
    };
    let parts = look(args, &config).await;
    if args.json {
        print(&format!("{}\n", as_json(&config, &parts)))?;
    } else {
        print(&as_text(&config, path, &parts))?;
    }
    let stops = || parts.iter().flat_map(|part| &part.found).filter(|finding| finding.grade == Grade::Stops);
    match stops().next() {
        None => Ok(()),
        Some(_) if stops().any(|finding| config.place(finding).is_some()) => Err(Failure::Told(2)),
        Some(_) => Err(Failure::Told(1)),
    }
}

async fn look(args: &CheckArgs, config: &Config) -> [Part; 3] {
    let found_in_source = source::check(config).await;
    let broker = async {
        match &config.broker {
            BrokerConfig::Memory => Vec::new(),
            BrokerConfig::Rabbit(settings) => RabbitBroker::new(settings.clone()).check().await,
        }
    };
    let cache = async {
        match &config.cache {
            CacheConfig::Memory => Vec::new(),
            CacheConfig::Redis(settings) => {
                let cache = RedisCache::new((**settings).clone());
                let prefixes = prefixes(config);
                let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
                let mut found = cache.check(config.partitions, &prefixes, args.may_evict).await;
                if found.iter().all(|finding| finding.grade != Grade::Stops) {
                    found.extend(findings::other_database(config).await);
                }
                found
            }
        }
    };
    let (broker, cache) = tokio::join!(broker, cache);
    [
        Part { name: "source", place: source::url(config), found: found_in_source },
        Part { name: "broker", place: broker_place(config), found: broker },
        Part { name: "cache", place: cache_place(config), found: cache },
    ]
}

fn broker_place(config: &Config) -> String {
    match &config.broker {
        BrokerConfig::Memory => "memory: in the process that runs the pipeline".to_owned(),
        BrokerConfig::Rabbit(settings) => settings.address(),
    }
}

fn cache_place(config: &Config) -> String {
    match &config.cache {
        CacheConfig::Memory => "memory: in the process that runs the pipeline".to_owned(),
        CacheConfig::Redis(settings) => settings.place(),
    }
}

/// What the keys of the tables begin with, as far as it can be told.
fn prefixes(config: &Config) -> BTreeSet<String> {
    let prefix = |key: &str| key.split('{').next().unwrap_or_default().to_owned();
    config.source.tables().iter().map(|table| table.key.as_deref().map_or_else(|| format!("{}:", table.name), prefix)).collect()
}

fn as_text(config: &Config, path: &Path, parts: &[Part]) -> String {
    let bold = Style::new().bold();
    let mut text = format!("pipeline {}, {}\n", config.pipeline, path.display());
    for part in parts {
        text.push_str(&format!("\n{bold}{:<7}{bold:#} {}\n", part.name, part.place));
        let mut found: Vec<&Finding> = part.found.iter().collect();
        found.sort_by_key(|finding| finding.grade);
        if found.iter().all(|finding| finding.grade == Grade::Notes) {
            text.push_str("  good\n");
        }
        for finding in found {
            text.push_str(&findings::text(config, finding));
        }
    }
    text.push_str(&format!("\n{}\n", summary(parts)));
    text
}

fn count(parts: &[Part], grade: Grade) -> usize {
    parts.iter().flat_map(|part| &part.found).filter(|finding| finding.grade == grade).count()
}

fn summary(parts: &[Part]) -> String {
    let stops = match count(parts, Grade::Stops) {
        0 => "nothing stops the pipeline".to_owned(),
        1 => "1 finding stops the pipeline".to_owned(),
        many => format!("{many} findings stop the pipeline"),
    };
    match count(parts, Grade::Harms) {
        0 => stops,
        1 => format!("{stops}, 1 harms it"),
        many => format!("{stops}, {many} harm it"),
    }
}

fn as_json(config: &Config, parts: &[Part]) -> Value {
    let found = parts.iter().flat_map(|part| part.found.iter().map(|finding| findings::json(config, part.name, finding)));
    json!({
        "pipeline": config.pipeline,
        "stops": count(parts, Grade::Stops),
        "harms": count(parts, Grade::Harms),
        "findings": found.collect::<Vec<_>>(),
    })
}

/// What is wrong with the file itself.
fn configuration(error: &config::Error) -> Vec<Value> {
    let finding = |finding: &config::Finding| {
        let place = finding.place.as_ref();
        json!({
            "part": "configuration",
            "grade": Grade::Stops.name(),
            "message": finding.message,
            "remedy": null,
            "file": place.map(|place| &place.file),
            "line": place.map(|place| place.line),
            "column": place.map(|place| place.column),
        })
    };
    error.findings.iter().map(finding).collect()
}
