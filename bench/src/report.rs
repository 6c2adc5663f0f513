//! The figures, and how they read.

use std::fmt;

use serde::Serialize;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Which database.
    pub database: &'static str,
    /// Rows of the table.
    pub rows: u32,
    /// Changes of the catch-up.
    pub changes: u32,
    /// An empty Redis is filled.
    pub first_sync: FirstSync,
    /// A backlog is caught up.
    pub catch_up: CatchUp,
    /// The same with one row a message.
    pub one_a_message: CatchUp,
    /// Single-row commits at a steady rate.
    pub lag: Lag,
    /// Nothing is written.
    pub idle: Idle,
    /// Keys that differ from their rows at the end.
    pub differences: u64,
    /// Stages and servers alone.
    pub bare: Bare,
}

/// An empty Redis is filled.
#[derive(Debug, Serialize)]
pub struct FirstSync {
    /// From the start of the pipeline to the last row's block.
    pub rows_per_s: f64,
    /// VmHWM of the pipeline's process.
    pub peak_mib: f64,
}

/// A backlog is caught up.
#[derive(Debug, Serialize)]
pub struct CatchUp {
    /// From the start of the pipeline to the last change's block.
    pub changes_per_s: f64,
    /// What it cost.
    pub cpu_s_per_100k: Cost,
    /// VmHWM of the pipeline's process.
    pub peak_mib: f64,
    /// How many changes a message held.
    pub changes_per_message: f64,
    /// How many changes a block held.
    pub changes_per_block: f64,
}

/// Processor seconds for 100,000 changes.
#[derive(Debug, Serialize)]
pub struct Cost {
    /// Publisher and consumer in one process.
    pub rowcast: f64,
    /// All of the broker's processes.
    pub rabbitmq: f64,
    /// The cache.
    pub redis: f64,
}

/// Single-row commits at a steady rate.
#[derive(Debug, Serialize)]
pub struct Lag {
    /// How many.
    pub commits: u32,
    /// The rate that the writer came to.
    pub commits_per_s: f64,
    /// From the commit's return to Redis' answer to the block, told by the consumer's observer.
    pub observed: Latency,
    /// From the commit's return to the moment in which a plain client saw the row; a sample.
    pub by_plain_client: Latency,
    /// What a commit took the writer.
    pub commit: Latency,
    /// What it cost.
    pub cpu_s_per_100k: Cost,
    /// VmHWM of the pipeline's process.
    pub peak_mib: f64,
}

/// Nothing is written.
#[derive(Debug, Serialize)]
pub struct Idle {
    /// Of one core.
    pub cpu_percent: f64,
}

/// Percentiles in milliseconds.
#[derive(Debug, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: usize,
    /// Half of them were no longer.
    pub p50_ms: f64,
    /// 99 of 100 were no longer.
    pub p99_ms: f64,
    /// None was longer.
    pub max_ms: f64,
}

impl Latency {
    /// Of these spans in microseconds.
    pub fn of(mut spans_us: Vec<i64>) -> Latency {
        spans_us.sort_unstable();
        let at = |share: usize| spans_us.get((spans_us.len() * share).div_ceil(100).saturating_sub(1)).map_or(0.0, |us| *us as f64 / 1e3);
        Latency { count: spans_us.len(), p50_ms: at(50), p99_ms: at(99), max_ms: at(100) }
    }
}

/// Stages and servers alone.
#[derive(Debug, Serialize)]
pub struct Bare {
    /// rowcast's source alone: what has changed, as rows of JSON.
    pub source_changes_per_s: f64,
    /// The publisher with the memory broker: the same, and mapping and batches.
    pub publisher_changes_per_s: f64,
    /// The same messages through RabbitMQ's quorum queues: persistent, confirmed, consumed and acked meanwhile.
    pub rabbitmq_changes_per_s: f64,
    /// RabbitMQ's processor seconds for 100,000 changes of that.
    pub rabbitmq_cpu_s_per_100k: f64,
    /// The same rows by MSET, 1,000 at once, on one connection.
    pub mset_changes_per_s: f64,
    /// Redis' processor seconds for 100,000 changes of that.
    pub redis_cpu_s_per_100k: f64,
    /// From publishing to delivery: a message for each commit, RabbitMQ and the writer without rowcast.
    pub rabbitmq_lag: Latency,
    /// The same rows by SET, 1,000 in a pipeline, on one connection.
    pub set_changes_per_s: f64,
    /// PostgreSQL's `pg_recvlogical` of what was caught up.
    pub receive_changes_per_s: Option<f64>,
    /// PostgreSQL's `COPY` of every row by `row_to_json`.
    pub copy_rows_per_s: Option<f64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { catch_up, one_a_message, lag, bare, .. } = self;
        let speed = catch_up.changes_per_s;
        writeln!(f, "{}, {} rows, {} changes to catch up", self.database, self.rows, self.changes)?;
        writeln!(f, "first sync       {:>9.0} rows/s", self.first_sync.rows_per_s)?;
        writeln!(f, "catching up      {catch_up}")?;
        writeln!(f, "one row a message{one_a_message}   1 : {:.1}", speed / one_a_message.changes_per_s)?;
        writeln!(f, "lag at {:.0} commits/s", lag.commits_per_s)?;
        writeln!(f, "  observed       {}", lag.observed)?;
        writeln!(f, "  plain client   {}", lag.by_plain_client)?;
        writeln!(f, "  (the commit    {})", lag.commit)?;
        writeln!(f, "  (RabbitMQ alone, beside the same writer: {})", bare.rabbitmq_lag)?;
        writeln!(f, "CPU seconds for 100,000 changes")?;
        writeln!(f, "  catching up    {}", catch_up.cpu_s_per_100k)?;
        writeln!(f, "  one a message  {}", one_a_message.cpu_s_per_100k)?;
        writeln!(f, "  single commits {}", lag.cpu_s_per_100k)?;
        writeln!(f, "idle             {:>9.2} % of a core", self.idle.cpu_percent)?;
        writeln!(
            f,
            "peak memory      {:>9.1} MiB first sync, {:.1} catching up, {:.1} single commits",
            self.first_sync.peak_mib, catch_up.peak_mib, lag.peak_mib
        )?;
        writeln!(f, "alone, and what of it rowcast reaches end to end")?;
        for (name, alone) in [
            ("the source", Some(bare.source_changes_per_s)),
            ("publisher", Some(bare.publisher_changes_per_s)),
            ("pg_recvlogical", bare.receive_changes_per_s),
            ("RabbitMQ", Some(bare.rabbitmq_changes_per_s)),
            ("Redis MSET", Some(bare.mset_changes_per_s)),
            ("Redis SET", Some(bare.set_changes_per_s)),
        ] {
            if let Some(alone) = alone {
                writeln!(f, "  {name:<15}{alone:>9.0} changes/s {:>5.0} %", 100.0 * speed / alone)?;
            }
        }
        if let Some(alone) = bare.copy_rows_per_s {
            writeln!(
                f,
                "  {:<15}{alone:>9.0} rows/s    {:>5.0} % by the first sync",
                "COPY of JSON",
                100.0 * self.first_sync.rows_per_s / alone
            )?;
        }
        writeln!(
            f,
            "  CPU, rowcast's share to the servers' alone: RabbitMQ {:.2} : {:.2}, Redis {:.2} : {:.2}",
            catch_up.cpu_s_per_100k.rabbitmq, bare.rabbitmq_cpu_s_per_100k, catch_up.cpu_s_per_100k.redis, bare.redis_cpu_s_per_100k
        )?;
        writeln!(f, "differences      {:>9}", self.differences)
    }
}

impl fmt::Display for CatchUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CatchUp { changes_per_s, changes_per_message, changes_per_block, .. } = self;
        write!(f, "{changes_per_s:>9.0} changes/s ({changes_per_message:.0} a message, {changes_per_block:.0} a block)")
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.2} rowcast, {:.2} RabbitMQ, {:.2} Redis", self.rowcast, self.rabbitmq, self.redis)
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms of {}", self.p50_ms, self.p99_ms, self.max_ms, self.count)
    }
}
