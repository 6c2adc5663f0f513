//! `rowcast init`: a configuration from what stands in the database.

mod keys;

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use rowcast::config::sqlite_path;
use rowcast::source::sqlite::{self, Inspection, Table};

use self::keys::{Key, plain};
use crate::failure::Failure;
use crate::numbers::count;

/// What to write, and over what.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The database, for instance sqlite:app.db.
    #[arg(value_name = "URL")]
    url: String,

    /// Overwrite the configuration file if it is there.
    #[arg(long)]
    force: bool,
}

/// Writes the configuration.
pub fn run(args: &InitArgs, config: &Path) -> Result<(), Failure> {
    let database = Path::new(sqlite_path(&args.url).map_err(Failure::Wrong)?);
    let inspection = sqlite::inspect(database).map_err(anyhow::Error::from)?;
    let (usable, unusable): (Vec<&Table>, Vec<&Table>) =
        inspection.tables.iter().map(|table| &table.table).partition(|table| table.trouble.is_none());
    if usable.is_empty() {
        return Err(Failure::Failed(nothing_usable(database, &unusable)));
    }
    let text = configuration(&located(database, config)?, database, &inspection, &usable, &unusable);
    write(config, &text, args.force)?;
    eprintln!("wrote {} with {} of {}", config.display(), count(usable.len() as u64, "table", "tables"), database.display());
    for (name, trouble) in left_out(&inspection, &unusable) {
        eprintln!("left out {name}: {trouble}");
    }
    if inspection.journal_mode != "wal" {
        eprintln!(
            "advice: {} is in journal mode {}, in which readers and writers wait for each other; sqlite3 {} \"PRAGMA journal_mode = wal\" \
             changes that for good",
            database.display(),
            inspection.journal_mode,
            database.display()
        );
    }
    eprintln!("next: look through {}, then `rowcast install`, `rowcast check` and `rowcast run`", config.display());
    Ok(())
}

fn nothing_usable(database: &Path, unusable: &[&Table]) -> anyhow::Error {
    if unusable.is_empty() {
        return anyhow!("{} has no tables; create them first, then run `rowcast init` again", database.display());
    }
    let reasons: Vec<String> =
        unusable.iter().map(|table| format!("\n  {}: {}", table.name, table.trouble.as_deref().unwrap_or_default())).collect();
    anyhow!("no table of {} can be cached:{}", database.display(), reasons.concat())
}

/// The database's path as the configuration has to write it, which counts from its own folder.
fn located(database: &Path, config: &Path) -> anyhow::Result<PathBuf> {
    match config.parent() {
        None => Ok(database.to_owned()),
        Some(folder) if folder.as_os_str().is_empty() => Ok(database.to_owned()),
        Some(_) => std::path::absolute(database).with_context(|| format!("cannot tell where {} is", database.display())),
    }
}

fn write(config: &Path, text: &str, force: bool) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let mut file = match options.open(config) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Failure::Wrong(format!(
                "{} is already there; --force overwrites it, --config names another file",
                config.display()
            )));
        }
        Err(error) => return Err(anyhow!(error).context(format!("cannot write {}", config.display())).into()),
    };
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", config.display()))?;
    Ok(())
}

fn configuration(url: &Path, database: &Path, inspection: &Inspection, usable: &[&Table], unusable: &[&Table]) -> String {
    let name = inspection.changelog.as_ref().and_then(|changelog| changelog.pipeline.clone()).unwrap_or_else(|| pipeline_name(database));
    let mut text = [
        "# rowcast keeps a Redis cache in step with this database through RabbitMQ.\n",
        "#\n",
        "# In every text ${NAME} stands for an environment variable, and \"file:/run/secrets/x\" for what is in that file.\n",
        "# A line that begins with # shows a setting that could be made. `rowcast check` looks through all of it.\n",
        "\n[pipeline]\n",
        &line(&format!("name = {}", quoted(&name)), "becomes part of the names of queues and of rowcast's own keys"),
        "\n[source]\n",
        &line(&format!("url = {}", quoted(&format!("sqlite:{}", url.display()))), "a relative path counts from the folder of this file"),
        &line("# capture = \"hooks\"", "where the application records its changes through rowcast-sea-orm; else by triggers"),
        "\n[broker]\n",
        &line("url = \"amqp://localhost\"", "amqp://user:password@host:5672/vhost, amqps:// for TLS; \"memory:\" for a first try"),
        &line("# partitions = 4", "so many consumers can share the work"),
        &line("# queue = \"classic\"", "else \"quorum\", which a cluster replicates"),
        "\n[cache]\n",
        &line("url = \"redis://localhost\"", "redis://user:password@host:6379/0, rediss:// for TLS; \"memory:\" for a first try"),
    ]
    .concat();
    for (table, key) in usable.iter().zip(keys::choose(usable)) {
        text.push_str(&table_text(table, &key));
    }
    for (name, trouble) in left_out(inspection, unusable) {
        text.push_str(&format!("\n# {name} cannot be cached: {trouble}\n"));
    }
    text
}

/// What is not in the configuration, and why.
fn left_out<'i>(inspection: &'i Inspection, unusable: &[&'i Table]) -> Vec<(String, &'i str)> {
    const VIEW: &str = "it is a view, which has no rows of its own; map the tables that it reads";
    let tables = unusable.iter().map(|table| (on_one_line(&table.name), table.trouble.as_deref().unwrap_or_default()));
    tables.chain(inspection.views.iter().map(|view| (on_one_line(view), VIEW))).collect()
}

fn table_text(table: &Table, key: &Key) -> String {
    let columns: Vec<String> = table.columns.iter().map(|column| quoted(&column.name)).collect();
    let mut text = format!("\n[[table]]\nname = {}\n", quoted(&table.name));
    for reason in &key.reasons {
        text.push_str(&format!("# {}\n", on_one_line(reason)));
    }
    text.push_str(&line(&format!("{}key = {}", if key.default { "# " } else { "" }, quoted(&key.text)), "the Redis key of a row"));
    text.push_str(&line("# value = \"hash\"", "a hash with a field a column; else \"json\", one object in a string"));
    text.push_str(&line(&format!("# columns = [{}]", columns.join(", ")), "what is cached, in this order; else all"));
    text.push_str(&line("# where = \"deleted_at IS NULL\"", "an SQL expression; rows that do not match are absent from the cache"));
    text.push_str(&line("# ttl = \"1h\"", "how long a row stands after it was written last; else for good"));
    text.push_str(&line("# on_change = \"evict\"", "or \"refresh\", where the application fills keys itself; else \"write\""));
    text
}

/// A comment ends with its line.
fn on_one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A line with its comment, so that the comments stand in one column where there is room.
fn line(setting: &str, comment: &str) -> String {
    format!("{setting:<33} # {comment}\n")
}

fn pipeline_name(database: &Path) -> String {
    database.file_stem().map(|stem| plain(&stem.to_string_lossy())).filter(|name| !name.is_empty()).unwrap_or_else(|| "pipeline".to_owned())
}

/// A TOML string. JSON's escapes are TOML's, too.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a text becomes JSON")
}
