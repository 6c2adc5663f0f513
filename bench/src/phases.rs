//! What is measured, one after the other.

use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rowcast::cache::Cache;
use rowcast::cache::redis::{RedisCache, RedisSettings};
use rowcast::source::Source;
use rowcast::verify;
use rowcast_testkit::rabbitmq::RabbitServer;
use rowcast_testkit::redis::RedisServer;

use crate::bare;
use crate::database::{self, Commit, Database, FIRST_VERSION, Postgres, Sqlite};
use crate::pipeline::{Route, Running};
use crate::report::{CatchUp, Cost, FirstSync, Idle, Lag, Latency, Report};
use crate::usage::{group_cpu_s, now_us};
use crate::{Kind, Plan, child::State};

/// How long an idle pipeline is watched.
const IDLE: Duration = Duration::from_secs(4);

/// How often a plain client looks for a commit.
const LOOK: Duration = Duration::from_micros(200);

/// How long it looks.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);

struct Bench<'p> {
    plan: &'p Plan,
    database: Database,
    rabbit: RabbitServer,
    redis: RedisServer,
    route: Route,
}

/// Measures everything.
pub async fn run(plan: &Plan, kind: Kind) -> anyhow::Result<Report> {
    let folder = match &plan.database_in {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    say("starting the servers, and making the table");
    let rabbit = tokio::task::spawn_blocking(RabbitServer::start).await??;
    let redis = RedisServer::start().await?;
    let database = match kind {
        Kind::Sqlite => Database::Sqlite(Sqlite { path: folder.path().join("users.db") }),
        Kind::Postgres => Database::Postgres(Box::new(tokio::task::spawn_blocking(Postgres::start).await??)),
    };
    database.create(plan.rows).await?;
    let route = Route { source: database.url(), broker: rabbit.url(), cache: redis.url() };
    let bench = Bench { plan, database, rabbit, redis, route };
    let changes = plan.changes(kind);

    say("first sync");
    let first_sync = bench.first_sync()?;
    let copy_s = bench.on_postgres(Postgres::copy_alone)?;
    say("catching up");
    bench.on_postgres(Postgres::prepare_alone)?;
    bench.database.write_backlog(plan.rows, changes)?;
    let catch_up = bench.catch_up(changes, None)?;
    let receive_s = bench.on_postgres(Postgres::receive_alone)?;
    say("the same with one row a message");
    bench.database.write_backlog(plan.rows, plan.single_rows)?;
    let one_a_message = bench.catch_up(plan.single_rows, Some(1))?;
    say("lag");
    write_back()?;
    let (lag, idle) = bench.lag()?;
    say("comparing database and Redis");
    let differences = bench.differences().await?;
    say("the stages and servers alone");
    let name = bench.database.name();
    let apart = bench.database.apart(folder.path())?;
    let mut bare = bare::measure(&apart, plan, &bench.rabbit, &bench.redis).await?;
    let per_s = |count: u32| move |seconds: f64| f64::from(count) / seconds;
    bare.receive_changes_per_s = receive_s.map(per_s(changes));
    bare.copy_rows_per_s = copy_s.map(per_s(plan.rows));
    Ok(Report { database: name, rows: plan.rows, changes, first_sync, catch_up, one_a_message, lag, idle, differences, bare })
}

fn say(what: &str) {
    eprintln!("{what} …");
}

/// Has the kernel write what the phases before left in its memory: hundreds of MiB, for which every fsync of a steady load would
/// wait, though that load did not cause them.
fn write_back() -> anyhow::Result<()> {
    let status = std::process::Command::new("sync").status().context("running sync")?;
    ensure!(status.success(), "sync ended with {status}");
    Ok(())
}

impl Bench<'_> {
    /// Does what only PostgreSQL can do.
    fn on_postgres<T>(&self, does: impl FnOnce(&Postgres) -> anyhow::Result<T>) -> anyhow::Result<Option<T>> {
        match &self.database {
            Database::Postgres(postgres) => does(postgres).map(Some),
            Database::Sqlite(_) => Ok(None),
        }
    }

    fn first_sync(&self) -> anyhow::Result<FirstSync> {
        let rows = u64::from(self.plan.rows);
        let mut running = Running::start(&self.route, None)?;
        let state = running.until("the first sync", |state| state.read >= rows && state.resyncs == 0)?;
        let peak_mib = running.peak_mib()?;
        running.stop()?;
        Ok(FirstSync { rows_per_s: rate(rows, state.began_us, state.read_us), peak_mib })
    }

    /// How long a fresh pipeline takes for what was written before it started.
    fn catch_up(&self, changes: u32, batch_changes: Option<usize>) -> anyhow::Result<CatchUp> {
        let newest = self.database.newest()?;
        let before = self.servers_cpu()?;
        let mut running = Running::start(&self.route, batch_changes)?;
        let state = running.until("the backlog", |state| stands_at(state, newest))?;
        self.database.settle(newest)?;
        let (rowcast_s, after) = (running.cpu_s()?, self.servers_cpu()?);
        let peak_mib = running.peak_mib()?;
        ensure!(state.read == 0, "this was a resync, not a catch-up");
        ensure!(state.changes >= u64::from(changes), "only {} of {changes} changes were applied", state.changes);
        running.stop()?;
        let per_100k = |seconds: f64| seconds * 100_000.0 / f64::from(changes);
        let cost = Cost { rowcast: per_100k(rowcast_s), rabbitmq: per_100k(after.0 - before.0), redis: per_100k(after.1 - before.1) };
        Ok(CatchUp {
            changes_per_s: rate(u64::from(changes), state.began_us, state.changes_us),
            cpu_s_per_100k: cost,
            peak_mib,
            changes_per_message: f64::from(changes) / state.messages.max(1) as f64,
            changes_per_block: f64::from(changes) / state.blocks.max(1) as f64,
        })
    }

    fn lag(&self) -> anyhow::Result<(Lag, Idle)> {
        let Plan { rows, commits_per_second, seconds, .. } = *self.plan;
        let count = commits_per_second * seconds;
        let mut running = Running::start(&self.route, None)?;
        let newest = self.database.newest()?;
        running.until("the pipeline", |state| stands_at(state, newest))?;
        running.record()?;

        let (sender, samples) = sync_channel(1);
        let url = self.redis.url();
        let looker = std::thread::spawn(move || look_for(&url, &samples));
        let before = (running.cpu_s()?, self.servers_cpu()?);
        let commits = self.database.commit_singly(rows, commits_per_second, count, &sender)?;
        drop(sender);
        let by_client = looker.join().map_err(|_| anyhow::anyhow!("the looker panicked"))??;
        let newest = self.database.newest()?;
        running.until("the last commit", |state| stands_at(state, newest))?;
        let after = (running.cpu_s()?, self.servers_cpu()?);

        let mut visible = vec![None; commits.len()];
        for (version, us) in running.visible()? {
            let index = version.checked_sub(FIRST_VERSION).and_then(|index| usize::try_from(index).ok());
            index.and_then(|index| visible.get_mut(index)).context("a version that nobody wrote")?.get_or_insert(us);
        }
        // A commit whose row was written again before it was read has no moment of its own.
        let lags: Vec<i64> = commits.iter().zip(&visible).filter_map(|(commit, visible)| Some((*visible)? - commit.us)).collect();
        let began = commits.first().map_or(0, |commit| commit.us);
        let took_s = commits.last().map_or(0, |commit| commit.us - began) as f64 / 1e6;
        let per_100k = |seconds: f64| seconds * 100_000.0 / f64::from(count);

        let idle_before = running.cpu_s()?;
        std::thread::sleep(IDLE);
        let idle = Idle { cpu_percent: (running.cpu_s()? - idle_before) / IDLE.as_secs_f64() * 100.0 };
        let lag = Lag {
            commits: count,
            commits_per_s: f64::from(count.saturating_sub(1)) / took_s.max(1e-6),
            observed: Latency::of(lags),
            by_plain_client: Latency::of(by_client),
            commit: Latency::of(commits.iter().map(|commit| i64::try_from(commit.took.as_micros()).unwrap_or(i64::MAX)).collect()),
            cpu_s_per_100k: Cost {
                rowcast: per_100k(after.0 - before.0),
                rabbitmq: per_100k(after.1.0 - before.1.0),
                redis: per_100k(after.1.1 - before.1.1),
            },
            peak_mib: running.peak_mib()?,
        };
        running.stop()?;
        Ok((lag, idle))
    }

    /// Processor seconds of RabbitMQ and Redis so far.
    fn servers_cpu(&self) -> anyhow::Result<(f64, f64)> {
        Ok((group_cpu_s(self.rabbit.group()?)?, group_cpu_s(self.redis.id()?)?))
    }

    async fn differences(&self) -> anyhow::Result<u64> {
        let mut source = database::source(&self.route.source)?;
        let start = source.begin(None).await?;
        let mut link = RedisCache::new(RedisSettings::new(&self.route.cache, database::PIPELINE)?).connect().await?;
        let comparison = verify::compare(&mut source, &start.tables, &mut link).await?;
        ensure!(comparison.rows == u64::from(self.plan.rows), "{} rows were compared", comparison.rows);
        Ok(comparison.differences())
    }
}

pub fn stands_at(state: &State, newest: (u64, u64)) -> bool {
    state.positions.iter().all(|position| *position >= newest)
}

fn rate(count: u64, began_us: i64, ended_us: i64) -> f64 {
    count as f64 * 1e6 / (ended_us - began_us).max(1) as f64
}

/// Looks for commits as any application would, and returns how long after the commit each was seen.
fn look_for(url: &str, samples: &Receiver<Commit>) -> anyhow::Result<Vec<i64>> {
    let mut client = redis::Client::open(url)?.get_connection()?;
    let mut lags = Vec::new();
    for commit in samples {
        let deadline = Instant::now() + LOOK_DEADLINE;
        loop {
            let row: Option<String> = redis::cmd("GET").arg(format!("user:{}", commit.id)).query(&mut client)?;
            let now = now_us();
            if row.as_deref().and_then(database::version_in).is_some_and(|version| version >= commit.version) {
                lags.push(now - commit.us);
                break;
            }
            ensure!(Instant::now() < deadline, "user:{} was not seen within {LOOK_DEADLINE:?}", commit.id);
            std::thread::sleep(LOOK);
        }
    }
    Ok(lags)
}
