//! The table in a PostgreSQL server of the bench's own.

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rowcast::source::postgres;
use rowcast_testkit::postgres::{Application, PostgresOptions, PostgresServer};
use rowcast_testkit::wait::until_blocking;

use super::{PRIME, TRANSACTION};

/// A commit waits for the disk, as it does by default. Nothing is vacuumed meanwhile, so that two runs do the same.
const SETTINGS: &[(&str, &str)] = &[("fsync", "on"), ("shared_buffers", "128MB"), ("autovacuum", "off"), ("max_wal_size", "4GB")];

/// How long rowcast may take until it has confirmed what is in Redis.
const DEADLINE: Duration = Duration::from_secs(60);

/// A slot beside rowcast's, to be read by `pg_recvlogical`.
const BARE_SLOT: &str = "bare";

/// The server.
#[derive(Debug)]
pub struct Postgres {
    server: PostgresServer,
}

impl Postgres {
    /// Starts it.
    pub fn start() -> anyhow::Result<Postgres> {
        let options = PostgresOptions { settings: SETTINGS, ..PostgresOptions::default() };
        Ok(Postgres { server: PostgresServer::start_with(&options)? })
    }

    /// Runs statements and returns what they print.
    pub fn run(&self, sql: &str) -> anyhow::Result<String> {
        self.server.execute(sql)
    }

    pub(super) fn url(&self) -> String {
        self.server.url()
    }

    pub(super) fn application(&self) -> anyhow::Result<Application> {
        self.server.application()
    }

    pub(super) async fn create(&self, rows: u32) -> anyhow::Result<()> {
        self.run(&format!(
            "CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, email text NOT NULL, city text, \
             balance double precision NOT NULL, active int NOT NULL, version bigint NOT NULL);
             INSERT INTO users SELECT i, 'Ada Lovelace ' || i, 'ada.' || i || '@example.com', \
             (ARRAY['London', 'Paris', 'Geneva', 'Buenos Aires'])[i % 4 + 1], i * 1.25, 1, 0 FROM generate_series(1, {rows}) i;
             VACUUM ANALYZE users; CHECKPOINT"
        ))?;
        self.install().await
    }

    /// What `rowcast install` does.
    pub async fn install(&self) -> anyhow::Result<()> {
        let super::SourceSettings::Postgres(settings) = super::settings(&self.url())? else { anyhow::bail!("this is no server") };
        postgres::install(&settings).await?;
        Ok(())
    }

    pub(super) fn write_backlog(&self, rows: u32, changes: u32) -> anyhow::Result<()> {
        // By the primary key, whatever the planner thinks of it.
        let mut sql = String::from("SET enable_hashjoin = off; SET enable_mergejoin = off;\n");
        for begin in (0..changes).step_by(TRANSACTION as usize) {
            let end = changes.min(begin + TRANSACTION) - 1;
            writeln!(
                sql,
                "UPDATE users SET balance = balance + 1.5, version = version + 1 FROM generate_series({begin}::bigint, {end}) i \
                 WHERE id = 1 + i * {PRIME} % {rows};"
            )?;
        }
        self.run(&sql).map(drop)
    }

    pub(super) fn newest(&self) -> anyhow::Result<(u64, u64)> {
        let end = self.end_of_log()?;
        // The end of a transaction after there is beyond it.
        self.run("SELECT pg_logical_emit_message(true, 'bench', '')")?;
        let (high, low) = end.split_once('/').context("an LSN has two parts")?;
        Ok((u64::from_str_radix(high, 16)? << 32 | u64::from_str_radix(low, 16)?, 0))
    }

    pub(super) fn wait_until_forgotten(&self, newest: u64) -> anyhow::Result<()> {
        let sql = format!(
            "SELECT confirmed_flush_lsn - '0/0' >= {newest} FROM pg_replication_slots WHERE slot_name = 'rowcast_{}'",
            super::PIPELINE
        );
        until_blocking("the slot to advance", DEADLINE, || match self.run(&sql) {
            Ok(answer) => (answer == "t").then_some(Ok(())),
            Err(error) => Some(Err(error)),
        })?
    }

    fn end_of_log(&self) -> anyhow::Result<String> {
        self.run("SELECT pg_current_wal_insert_lsn()")
    }

    /// Makes the slot that [`Postgres::receive_alone`] reads: what is written from now on.
    pub fn prepare_alone(&self) -> anyhow::Result<()> {
        self.run(&format!("SELECT pg_create_logical_replication_slot('{BARE_SLOT}', 'pgoutput')")).map(drop)
    }

    /// Seconds that `pg_recvlogical` takes for the log since [`Postgres::prepare_alone`], decoded for the same publication.
    pub fn receive_alone(&self) -> anyhow::Result<f64> {
        let end = self.end_of_log()?;
        self.run("SELECT pg_logical_emit_message(true, 'bench', '')")?;
        let mut receive = PostgresServer::client_program("pg_recvlogical")?;
        receive.args(["--start", "--no-loop", "--file=/dev/null", "--option=proto_version=1", "--option=messages=true"]);
        receive.args([&format!("--slot={BARE_SLOT}"), &format!("--option=publication_names=rowcast_{}", super::PIPELINE)]);
        receive.args([format!("--endpos={end}"), format!("--dbname={}", self.url())]);
        let took = timed(&mut receive)?;
        self.run(&format!("SELECT pg_drop_replication_slot('{BARE_SLOT}')"))?;
        Ok(took)
    }

    /// Seconds that the server takes to write all rows as JSON.
    pub fn copy_alone(&self) -> anyhow::Result<f64> {
        let copy = "--command=COPY (SELECT row_to_json(users) FROM users) TO STDOUT";
        timed(PostgresServer::client_program("psql")?.args(["--no-psqlrc", copy, "--dbname", &self.url()]))
    }
}

fn timed(command: &mut Command) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let status = command.stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(begun.elapsed().as_secs_f64())
}

/// Commits a change of one row.
pub(super) fn commit(application: &mut Application, id: i64, version: u64) -> anyhow::Result<()> {
    let outcome = application.run(&format!("UPDATE users SET balance = balance + 1.5, version = {version} WHERE id = {id};"))?;
    ensure!(outcome.last_succeeded, "a commit failed: {outcome:?}");
    Ok(())
}
