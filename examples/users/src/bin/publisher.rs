//! The guide's first program: an application that writes users to a SQLite database.
//!
//! What writes never talks to a broker, so it works, and takes as long as ever, whether or not one can be reached. Each change is
//! recorded in the database by the model's hooks, and `publisher ship`, a process beside, brings it to RabbitMQ from there.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{ArgGroup, Parser, Subcommand};
use rowcast::broker::rabbitmq::{QueueType, RabbitBroker, RabbitSettings};
use rowcast::mapping::TableSettings;
use rowcast::publisher::{Publisher, Settings};
use rowcast::source::sqlite::{Capture, SqliteSettings, SqliteSource};
use rowcast::stop::Stop;
use sea_orm::DatabaseConnection;
use users::{PARTITIONS, PIPELINE};

/// Writes users to a SQLite database, and ships the changes to RabbitMQ.
#[derive(Parser)]
#[command(name = "publisher")]
struct Arguments {
    /// The database, created if it is not there.
    #[arg(long, global = true, value_name = "FILE", default_value = "db.sqlite")]
    db: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Insert a user.
    Insert { name: String, email: String },
    /// Change a user's name, e-mail address, or both.
    #[command(group = ArgGroup::new("change").required(true).multiple(true))]
    Update {
        id: i64,
        #[arg(long, group = "change")]
        name: Option<String>,
        #[arg(long, group = "change")]
        email: Option<String>,
    },
    /// Delete a user.
    Delete { id: i64 },
    /// Show all users: id, name and e-mail address, separated by tabs.
    List,
    /// Insert many users, as fast as they go.
    Load {
        /// How many.
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        users: u64,
        /// Not faster than this many a second.
        #[arg(long, value_name = "RATE", value_parser = clap::value_parser!(u64).range(1..))]
        per_second: Option<u64>,
    },
    /// Bring the changes to RabbitMQ, those that wait and those to come, until Ctrl-C.
    Ship {
        /// RabbitMQ.
        #[arg(long, env = "BROKER_URL", hide_env_values = true, value_name = "URL", default_value = "amqp://127.0.0.1/%2f")]
        broker: String,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("publisher: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let db = users::open(&arguments.db).await.with_context(|| format!("cannot open {}", arguments.db.display()))?;
    match arguments.command {
        Command::Insert { name, email } => {
            let user = users::insert_user(&db, &name, &email).await?;
            println!("inserted user {}: {} <{}>", user.id, user.name, user.email);
        }
        Command::Update { id, name, email } => {
            let user = users::update_user(&db, id, name.as_deref(), email.as_deref()).await?;
            println!("updated user {}: {} <{}>", user.id, user.name, user.email);
        }
        Command::Delete { id } => {
            users::delete_user(&db, id).await?;
            println!("deleted user {id}");
        }
        Command::List => {
            for user in users::list_users(&db).await? {
                println!("{user}");
            }
        }
        Command::Load { users, per_second } => load(&db, users, per_second).await?,
        Command::Ship { broker } => ship(&arguments.db, &broker).await?,
    }
    db.close().await?;
    Ok(())
}

/// Reads the changes that the hooks have recorded, and those of other programs too where triggers are installed.
async fn ship(path: &Path, broker: &str) -> anyhow::Result<()> {
    users::log_to_stderr();
    let users = TableSettings { key: Some("user:{id}".to_owned()), ..TableSettings::new("users") };
    let database = SqliteSettings { tables: vec![users], capture: Capture::Hooks, ..SqliteSettings::new(path, PIPELINE) };
    let broker = RabbitBroker::new(RabbitSettings::new(broker, PIPELINE, PARTITIONS, QueueType::Quorum)?);
    let publisher = Publisher::new(Settings::new(PIPELINE, PARTITIONS), SqliteSource::new(database)?, broker, Arc::default());
    publisher.run(Stop::when(tokio::signal::ctrl_c())).await?;
    Ok(())
}

/// Rows a transaction at most: large enough that commits do not count, small enough that other writers need not wait long.
const BATCH: u64 = 1_000;

/// How often rows are due where a rate is asked for.
const TICK: Duration = Duration::from_millis(10);

async fn load(db: &DatabaseConnection, total: u64, per_second: Option<u64>) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut reported = started;
    let mut done = 0;
    while done < total {
        let due = per_second.map_or(total, |rate| due(started.elapsed(), rate).min(total));
        let upto = due.min(done + BATCH);
        if upto == done {
            tokio::time::sleep(TICK).await;
            continue;
        }
        users::insert_users(db, (done + 1..=upto).map(|n| (format!("User {n}"), format!("user{n}@example.com")))).await?;
        done = upto;
        if reported.elapsed() >= Duration::from_secs(1) {
            reported = Instant::now();
            eprintln!("{done} of {total} users");
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("inserted {total} users in {seconds:.1} s");
    Ok(())
}

/// How many rows a steady rate has reached after this time.
fn due(elapsed: Duration, per_second: u64) -> u64 {
    let rows = elapsed.as_micros().saturating_mul(per_second.into()) / 1_000_000;
    // The first one is due at once.
    u64::try_from(rows).unwrap_or(u64::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_over_time_and_begins_at_once() {
        assert_eq!(due(Duration::ZERO, 100), 1);
        assert_eq!(due(Duration::from_millis(9), 100), 1);
        assert_eq!(due(Duration::from_millis(10), 100), 2);
        assert_eq!(due(Duration::from_secs(60), 100), 6_001);
        assert_eq!(due(Duration::MAX, u64::MAX), u64::MAX);
    }
}
