//! Whether rowcast's memory grows with the table or with a transaction: each is measured at an eighth of its size, and whole.

use clap::Args;
use rowcast_testkit::rabbitmq::RabbitServer;
use rowcast_testkit::redis::RedisServer;

use crate::database::{Database, Postgres};
use crate::phases::stands_at;
use crate::pipeline::{Route, Running};

/// What is measured.
#[derive(Clone, Debug, Args)]
pub struct Memory {
    /// Rows of the table, which are narrow.
    #[arg(long, default_value_t = 4_000_000)]
    rows: u32,
    /// Rows that one transaction changes.
    #[arg(long, default_value_t = 2_000_000)]
    changes: u32,
}

/// Measures, and prints a line a size.
pub async fn run(plan: &Memory) -> anyhow::Result<()> {
    anyhow::ensure!(
        plan.rows >= 8 && plan.changes >= 8 && plan.changes <= plan.rows,
        "--changes must not be more than --rows, nor below 8"
    );
    for part in [8, 1] {
        let (rows, changes) = (plan.rows / part, plan.changes / part);
        let rabbit = tokio::task::spawn_blocking(RabbitServer::start).await??;
        let redis = RedisServer::start().await?;
        let postgres = tokio::task::spawn_blocking(Postgres::start).await??;
        let columns = "id bigint PRIMARY KEY, version bigint NOT NULL";
        postgres.run(&format!("CREATE TABLE users ({columns}); INSERT INTO users SELECT i, 0 FROM generate_series(1, {rows}) i"))?;
        postgres.install().await?;
        let database = Database::Postgres(Box::new(postgres));
        let route = Route { source: database.url(), broker: rabbit.url(), cache: redis.url() };

        let mut running = Running::start(&route, None)?;
        running.until("the first sync", |state| state.read >= u64::from(rows) && state.resyncs == 0)?;
        let first_sync_mib = running.peak_mib()?;
        running.stop()?;

        let mut running = Running::start(&route, None)?;
        let newest = database.newest()?;
        running.until("the pipeline", |state| stands_at(state, newest))?;
        if let Database::Postgres(postgres) = &database {
            postgres.run(&format!("UPDATE users SET version = 1 WHERE id <= {changes}"))?;
        }
        let newest = database.newest()?;
        let state = running.until("the transaction", |state| stands_at(state, newest))?;
        anyhow::ensure!(state.changes >= u64::from(changes), "only {} of {changes} changes were applied", state.changes);
        let transaction_mib = running.peak_mib()?;
        running.stop()?;
        println!("first sync of {rows} rows {first_sync_mib:.1} MiB, one transaction of {changes} changes {transaction_mib:.1} MiB");
    }
    Ok(())
}
