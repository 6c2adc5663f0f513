//! `rowcast init`: a configuration from what stands in the database.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use rowcast::config::sqlite_path;
use rowcast::mapping::{ColumnType, Template};
use rowcast::source::sqlite::{self, Inspection, Table};

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
    for table in &unusable {
        eprintln!("left out {}: {}", table.name, table.trouble.as_deref().unwrap_or_default());
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
    eprintln!("next: look through {}, then `rowcast install` and `rowcast run`", config.display());
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
    for table in usable {
        text.push_str(&table_text(table));
    }
    for table in unusable {
        text.push_str(&format!("\n# {} cannot be cached: {}\n", table.name, table.trouble.as_deref().unwrap_or_default()));
    }
    text
}

fn table_text(table: &Table) -> String {
    let key: Vec<String> = table.primary_key().iter().map(|column| format!(":{{{column}}}")).collect();
    let default = format!("{}{}", table.name, key.concat());
    // A name that no key can begin with needs another one.
    let (comment, key) = if Template::configured(&default, |_| Some(ColumnType::Integer)).is_ok() {
        ("# ", default)
    } else {
        ("", format!("{}{}", plain(&table.name), key.concat()))
    };
    let columns: Vec<String> = table.columns.iter().filter(|column| !column.generated).map(|column| quoted(&column.name)).collect();
    [
        "\n[[table]]\n".to_owned(),
        format!("name = {}\n", quoted(&table.name)),
        line(&format!("{comment}key = {}", quoted(&key)), "the Redis key of a row"),
        line("# value = \"hash\"", "else \"json\""),
        line(&format!("# columns = [{}]", columns.join(", ")), "else all"),
        line("# where = \"deleted_at IS NULL\"", "an SQL expression; rows that do not match are absent from the cache"),
        line("# ttl = \"1h\"", "how long a row stands after it was written last; else for good"),
        line("# on_change = \"evict\"", "or \"refresh\", where the application fills keys itself; else \"write\""),
    ]
    .concat()
}

/// A line with its comment, so that the comments stand in one column where there is room.
fn line(setting: &str, comment: &str) -> String {
    format!("{setting:<33} # {comment}\n")
}

fn pipeline_name(database: &Path) -> String {
    database.file_stem().map(|stem| plain(&stem.to_string_lossy())).filter(|name| !name.is_empty()).unwrap_or_else(|| "pipeline".to_owned())
}

/// Letters, digits, - and _ of a name.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).take(100).collect()
}

/// A TOML string. JSON's escapes are TOML's, too.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a text becomes JSON")
}
