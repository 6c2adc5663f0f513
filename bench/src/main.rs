//! Measures SQLite or PostgreSQL → RabbitMQ → Redis on servers of its own: how fast a backlog is caught up, how soon a commit is visible,
//! and what it costs, beside what the same servers do alone in the same run.

mod bare;
mod child;
mod database;
mod memory;
mod phases;
mod pipeline;
mod report;
mod triggers;
mod usage;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Measures SQLite or PostgreSQL → RabbitMQ → Redis on servers of its own.
#[derive(Debug, Parser)]
#[command(name = "rowcast-bench")]
struct Arguments {
    #[command(flatten)]
    plan: Plan,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What is measured.
#[derive(Clone, Debug, Args)]
struct Plan {
    /// Rows of the table.
    #[arg(long, default_value_t = 200_000)]
    rows: u32,
    /// Changes of the catch-up. By default each row is changed once, in PostgreSQL 500,000 changes are made.
    #[arg(long)]
    changes: Option<u32>,
    /// Rows that are changed for the comparison with one row a message.
    #[arg(long, default_value_t = 20_000)]
    single_rows: u32,
    /// Single-row commits a second while the lag is measured.
    #[arg(long, default_value_t = 1_000)]
    commits_per_second: u32,
    /// For how long.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Folder in which a SQLite file is made, so that it can have a disk of its own, as a database server mostly has.
    #[arg(long)]
    database_in: Option<PathBuf>,
    /// Print the figures as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Which database is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A file.
    Sqlite,
    /// A server.
    Postgres,
}

impl Plan {
    /// How many changes the catch-up has.
    fn changes(&self, kind: Kind) -> u32 {
        self.changes.unwrap_or(match kind {
            Kind::Sqlite => self.rows,
            Kind::Postgres => 500_000,
        })
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The pipeline as a process of its own, told what to do on its standard input.
    #[command(hide = true)]
    Pipeline(Pipeline),
    /// The same with PostgreSQL in the place of SQLite.
    Postgres(Plan),
    /// The peak memory of rowcast's process by the size of a PostgreSQL table and of one transaction.
    Memory(memory::Memory),
    /// What the triggers cost a writer, in processor time, beside none and beside some written by hand.
    Triggers(triggers::Triggers),
}

/// What the process of the pipeline is told.
#[derive(Clone, Debug, Args)]
struct Pipeline {
    /// The database's URL.
    #[arg(long)]
    source: String,
    /// RabbitMQ's URL.
    #[arg(long)]
    broker: String,
    /// Redis' URL.
    #[arg(long)]
    cache: String,
    /// Changes in one message at most.
    #[arg(long)]
    batch_changes: Option<usize>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let (plan, database) = match arguments.command {
        Some(Command::Pipeline(pipeline)) => return child::run(&pipeline),
        Some(Command::Memory(plan)) => return runtime()?.block_on(memory::run(&plan)),
        Some(Command::Triggers(plan)) => return triggers::run(&plan),
        Some(Command::Postgres(plan)) => (plan, Kind::Postgres),
        None => (arguments.plan, Kind::Sqlite),
    };
    anyhow::ensure!(plan.rows > 0 && plan.single_rows <= plan.rows, "--rows must be at least 1, and no less than --single-rows");
    anyhow::ensure!(plan.commits_per_second > 0 && plan.seconds > 0, "--commits-per-second and --seconds must be at least 1");
    anyhow::ensure!(
        database == Kind::Postgres || plan.changes.is_none_or(|changes| changes <= plan.rows),
        "--changes must not be more than --rows: of a row that was changed twice SQLite's changelog ships the newer state alone"
    );
    let report = runtime()?.block_on(phases::run(&plan, database))?;
    if plan.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}
