//! `rowcast init`: a configuration from what stands in the database.

mod keys;

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use rowcast::config::Database;
use rowcast::source::postgres::{self, Server};
use rowcast::source::sqlite::{self, Table};

use self::keys::{Candidate, Key, plain};
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

/// What there is to be written.
struct Found {
    /// The pipeline's name.
    name: String,
    /// The database, for people.
    place: String,
    /// The lines of `[source]`.
    source: String,
    /// What can be cached, and what cannot and why.
    usable: Vec<Candidate>,
    left_out: Vec<(String, String)>,
    /// Whether `where` may be set.
    filters: bool,
    advice: Option<String>,
}

/// Writes the configuration.
pub async fn run(args: &InitArgs, config: &Path) -> Result<(), Failure> {
    let found = match Database::of(&args.url).map_err(Failure::Wrong)? {
        Database::Sqlite(database) => in_file(&database, config)?,
        Database::Postgres(server) => on_server(&args.url, &server).await?,
    };
    if found.usable.is_empty() {
        return Err(Failure::Failed(nothing_usable(&found)));
    }
    write(config, &configuration(&found), args.force)?;
    eprintln!("wrote {} with {} of {}", config.display(), count(found.usable.len() as u64, "table", "tables"), found.place);
    for (name, trouble) in &found.left_out {
        eprintln!("left out {name}: {trouble}");
    }
    if let Some(advice) = &found.advice {
        eprintln!("advice: {advice}");
    }
    eprintln!("next: look through {}, then `rowcast install`, `rowcast check` and `rowcast run`", config.display());
    Ok(())
}

fn in_file(database: &Path, config: &Path) -> Result<Found, Failure> {
    let inspection = sqlite::inspect(database).map_err(anyhow::Error::from)?;
    let (usable, unusable): (Vec<&Table>, Vec<&Table>) =
        inspection.tables.iter().map(|table| &table.table).partition(|table| table.trouble.is_none());
    const VIEW: &str = "it is a view, which has no rows of its own; map the tables that it reads";
    let tables = unusable.iter().map(|table| (on_one_line(&table.name), table.trouble.clone().unwrap_or_default()));
    let left_out = tables.chain(inspection.views.iter().map(|view| (on_one_line(view), VIEW.to_owned()))).collect();
    let advice = (inspection.journal_mode != "wal").then(|| {
        format!(
            "{} is in journal mode {}, in which readers and writers wait for each other; sqlite3 {} \"PRAGMA journal_mode = wal\" \
             changes that for good",
            database.display(),
            inspection.journal_mode,
            database.display()
        )
    });
    let url = quoted(&format!("sqlite:{}", located(database, config)?.display()));
    let source = [
        line(&format!("url = {url}"), "a relative path counts from the folder of this file"),
        line("# capture = \"hooks\"", "where the application records its changes through rowcast-sea-orm; else by triggers"),
    ];
    Ok(Found {
        name: inspection.changelog.as_ref().and_then(|changelog| changelog.pipeline.clone()).unwrap_or_else(|| pipeline_name(database)),
        place: database.display().to_string(),
        source: source.concat(),
        usable: usable.iter().map(|table| Candidate { name: table.name.clone(), schema: table.mapped() }).collect(),
        left_out,
        filters: true,
        advice,
    })
}

async fn on_server(url: &str, server: &Server) -> Result<Found, Failure> {
    let inspection = postgres::inspect(server).await.map_err(anyhow::Error::from)?;
    let (usable, unusable): (Vec<_>, Vec<_>) = inspection.tables.into_iter().partition(|table| table.trouble.is_none());
    // A password that was typed does not go into a file.
    let (url, comment) = match &server.password {
        Some(_) => (without_password(url), "the password is to be in the environment variable PGPASSWORD"),
        None => (url.to_owned(), "add ?sslmode=verify-full for TLS with a verified certificate"),
    };
    let name = Some(plain(&server.database)).filter(|name| !name.is_empty()).unwrap_or_else(|| "pipeline".to_owned());
    Ok(Found {
        name,
        place: server.place(),
        source: [
            line(&format!("url = {}", quoted(&url)), comment),
            line("# capture = \"hooks\"", "where the application records its changes through rowcast-sea-orm; else from the server's log"),
        ]
        .concat(),
        usable: usable.into_iter().map(|found| Candidate { name: found.table.name.clone(), schema: found.table.mapped() }).collect(),
        left_out: unusable.into_iter().map(|found| (on_one_line(&found.table.name), found.trouble.unwrap_or_default())).collect(),
        filters: false,
        advice: None,
    })
}

/// The URL with a variable in the place of the password.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
    let authority = rest.find(['/', '?']).unwrap_or(rest.len());
    match rest[..authority].rfind('@').map(|at| (&rest[..at], &rest[at..])) {
        Some((login, host)) if login.contains(':') => {
            let user = login.split_once(':').map_or(login, |(user, _)| user);
            format!("{scheme}://{user}:${{PGPASSWORD}}{host}")
        }
        // It stands behind the question mark.
        _ => {
            let (before, parameters) = rest.split_once('?').unwrap_or((rest, ""));
            let parameter = |parameter: &str| {
                if parameter.starts_with("password=") { "password=${PGPASSWORD}".to_owned() } else { parameter.to_owned() }
            };
            format!("{scheme}://{before}?{}", parameters.split('&').map(parameter).collect::<Vec<_>>().join("&"))
        }
    }
}

fn nothing_usable(found: &Found) -> anyhow::Error {
    if found.left_out.is_empty() {
        return anyhow!("{} has no tables; create them first, then run `rowcast init` again", found.place);
    }
    let reasons: Vec<String> = found.left_out.iter().map(|(name, trouble)| format!("\n  {name}: {trouble}")).collect();
    anyhow!("no table of {} can be cached:{}", found.place, reasons.concat())
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

fn configuration(found: &Found) -> String {
    let mut text = [
        "# rowcast keeps a Redis cache in step with this database through RabbitMQ.\n",
        "#\n",
        "# In every text ${NAME} stands for an environment variable, and \"file:/run/secrets/x\" for what is in that file.\n",
        "# A line that begins with # shows a setting that could be made. `rowcast check` looks through all of it.\n",
        "\n[pipeline]\n",
        &line(&format!("name = {}", quoted(&found.name)), "becomes part of the names of queues and of rowcast's own keys"),
        "\n[source]\n",
        &found.source,
        "\n[broker]\n",
        &line("url = \"amqp://localhost\"", "amqp://user:password@host:5672/vhost, amqps:// for TLS; \"memory:\" for a first try"),
        &line("# partitions = 4", "so many consumers can share the work"),
        &line("# queue = \"classic\"", "else \"quorum\", which a cluster replicates"),
        "\n[cache]\n",
        &line("url = \"redis://localhost\"", "redis://user:password@host:6379/0, rediss:// for TLS; \"memory:\" for a first try"),
    ]
    .concat();
    for (table, key) in found.usable.iter().zip(keys::choose(&found.usable)) {
        text.push_str(&table_text(table, &key, found.filters));
    }
    for (name, trouble) in &found.left_out {
        text.push_str(&format!("\n# {name} cannot be cached: {trouble}\n"));
    }
    text
}

fn table_text(table: &Candidate, key: &Key, filters: bool) -> String {
    let columns: Vec<String> = table.schema.columns.iter().map(|column| quoted(&column.name)).collect();
    let mut text = format!("\n[[table]]\nname = {}\n", quoted(&table.name));
    for reason in &key.reasons {
        text.push_str(&format!("# {}\n", on_one_line(reason)));
    }
    text.push_str(&line(&format!("{}key = {}", if key.default { "# " } else { "" }, quoted(&key.text)), "the Redis key of a row"));
    text.push_str(&line("# value = \"hash\"", "a hash with a field a column; else \"json\", one object in a string"));
    text.push_str(&line(&format!("# columns = [{}]", columns.join(", ")), "what is cached, in this order; else all"));
    if filters {
        text.push_str(&line("# where = \"deleted_at IS NULL\"", "an SQL expression; rows that do not match are absent from the cache"));
    }
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
