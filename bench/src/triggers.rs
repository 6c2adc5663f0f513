//! What rowcast's triggers cost a writer, beside a table without triggers and beside triggers that somebody writes by hand to
//! insert the same columns: same table, same statements, same run.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use rowcast::mapping::TableSettings;
use rowcast::source::sqlite::{self, SqliteSettings};
use rusqlite::Connection;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// How to measure.
#[derive(Clone, Debug, Args)]
pub struct Triggers {
    /// How often everything is measured; the figures are medians of what each round compares.
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// Rows of the table, each of which is inserted, updated and deleted once in a round.
    #[arg(long, default_value_t = 20_000)]
    rows: u32,
    /// Print the figures as one JSON object.
    #[arg(long)]
    json: bool,
}

/// How many rows one transaction writes.
const TRANSACTIONS: [u32; 2] = [1_000, 1];

/// Single-row commits are fewer: each takes ten times as long.
const FEWER: u32 = 10;

/// A table, and what its rows are.
struct Table {
    name: &'static str,
    ddl: &'static str,
    key: &'static str,
    insert: &'static str,
    update: &'static str,
    /// What a trigger puts into the changelog's value columns after an insert, an update and a delete.
    logged: [&'static [&'static str]; 3],
}

const TABLES: [Table; 4] = [
    Table {
        name: "integer key alone",
        ddl: "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT NOT NULL, n INTEGER)",
        key: "t:{id}",
        insert: "INSERT INTO t VALUES(?1, 'Ada Lovelace', ?1)",
        update: "UPDATE t SET n = n + 1 WHERE id = ?1",
        logged: [&["NEW.id"], &["OLD.id", "NEW.id"], &["OLD.id"]],
    },
    Table {
        name: "one UNIQUE text",
        ddl: "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, n INTEGER)",
        key: "t:{id}",
        insert: "INSERT INTO t VALUES(?1, 'Ada Lovelace ' || ?1, ?1)",
        update: "UPDATE t SET n = n + 1 WHERE id = ?1",
        logged: [&["NEW.id"], &["OLD.id"], &["OLD.id"]],
    },
    Table {
        name: "three UNIQUE",
        ddl: "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, n INTEGER, a INTEGER UNIQUE, b TEXT UNIQUE COLLATE NOCASE)",
        key: "t:{id}",
        insert: "INSERT INTO t VALUES(?1, 'Ada Lovelace ' || ?1, ?1, ?1, ?1)",
        update: "UPDATE t SET n = n + 1 WHERE id = ?1",
        logged: [&["NEW.id"], &["OLD.id"], &["OLD.id"]],
    },
    Table {
        name: "key from a UNIQUE text",
        ddl: "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, n INTEGER)",
        key: "t:{name}",
        insert: "INSERT INTO t VALUES(?1, 'Ada Lovelace ' || ?1, ?1)",
        update: "UPDATE t SET n = n + 1 WHERE id = ?1",
        logged: [&["NEW.id", "NULL"], &["OLD.id", "OLD.name"], &["OLD.id", "OLD.name"]],
    },
];

/// Who records the changes.
#[derive(Clone, Copy, Debug)]
enum Who {
    Nobody,
    ByHand,
    Rowcast,
}

const EVERYBODY: [Who; 3] = [Who::Nobody, Who::ByHand, Who::Rowcast];

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Costs {
    /// One line a table, transaction and statement.
    pub lines: Vec<Line>,
}

/// What one statement costs on one table.
#[derive(Debug, Serialize)]
pub struct Line {
    /// The table.
    pub table: &'static str,
    /// Rows in a transaction.
    pub rows_a_transaction: u32,
    /// `insert`, `update` or `delete`.
    pub statement: &'static str,
    /// Processor time of the writer for one row without triggers, in microseconds.
    pub bare_us: f64,
    /// rowcast's triggers : no triggers.
    pub to_bare: f64,
    /// Triggers by hand : no triggers.
    pub by_hand_to_bare: f64,
    /// rowcast's triggers : triggers by hand.
    pub to_by_hand: f64,
}

const STATEMENTS: [&str; 3] = ["insert", "update", "delete"];

/// Measures.
pub fn run(plan: &Triggers) -> anyhow::Result<()> {
    anyhow::ensure!(plan.rounds > 0 && plan.rows >= 10_000, "--rounds must be at least 1, and --rows at least 10000");
    let mut lines = Vec::new();
    for table in &TABLES {
        for rows_a_transaction in TRANSACTIONS {
            let rows = if rows_a_transaction == 1 { plan.rows / FEWER } else { plan.rows };
            let mut rounds: Vec<[[f64; 3]; 3]> = Vec::new();
            for _ in 0..plan.rounds {
                // One after the other in every round, so that whatever else the machine does meets all of them.
                let mut round = [[0.0; 3]; 3];
                for (who, spans) in EVERYBODY.into_iter().zip(&mut round) {
                    *spans = measure(table, who, rows, rows_a_transaction)?;
                }
                rounds.push(round);
            }
            for (index, statement) in STATEMENTS.into_iter().enumerate() {
                let of = |compare: &dyn Fn(&[[f64; 3]; 3]) -> f64| median(rounds.iter().map(compare).collect());
                lines.push(Line {
                    table: table.name,
                    rows_a_transaction,
                    statement,
                    bare_us: of(&|round| round[0][index] * 1e6 / f64::from(rows)),
                    to_bare: of(&|round| round[2][index] / round[0][index]),
                    by_hand_to_bare: of(&|round| round[1][index] / round[0][index]),
                    to_by_hand: of(&|round| round[2][index] / round[1][index]),
                });
            }
        }
    }
    let costs = Costs { lines };
    if plan.json {
        println!("{}", serde_json::to_string(&costs)?);
    } else {
        print!("{costs}");
    }
    Ok(())
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Processor seconds of this thread.
fn now() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0)).as_secs_f64()
}

/// Processor seconds for inserts, updates and deletes of all rows of a fresh table.
fn measure(table: &Table, who: Who, rows: u32, rows_a_transaction: u32) -> anyhow::Result<[f64; 3]> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("bench.db");
    let connection = Connection::open(&path)?;
    connection.execute_batch(&format!("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; {}", table.ddl))?;
    prepare(&connection, &path, table, who)?;
    let mut spans = [0.0; 3];
    for (sql, span) in [table.insert, table.update, "DELETE FROM t WHERE id = ?1"].into_iter().zip(&mut spans) {
        let mut statement = connection.prepare(sql)?;
        let begun = now();
        for begin in (0..rows).step_by(rows_a_transaction as usize) {
            if rows_a_transaction > 1 {
                connection.execute_batch("BEGIN")?;
            }
            for index in begin..rows.min(begin + rows_a_transaction) {
                statement.execute([index + 1])?;
            }
            if rows_a_transaction > 1 {
                connection.execute_batch("COMMIT")?;
            }
        }
        *span = now() - begun;
    }
    Ok(spans)
}

fn prepare(connection: &Connection, path: &Path, table: &Table, who: Who) -> anyhow::Result<()> {
    match who {
        Who::Nobody => {}
        Who::ByHand => {
            connection.execute_batch("CREATE TABLE log(id INTEGER PRIMARY KEY, tbl, op, at, v1, v2, v3, v4)")?;
            for ((event, op), values) in [("INSERT", 'I'), ("UPDATE", 'U'), ("DELETE", 'D')].into_iter().zip(table.logged) {
                let columns = &["v1", "v2"][..values.len()];
                connection.execute_batch(&format!(
                    "CREATE TRIGGER log_{op} AFTER {event} ON t BEGIN INSERT INTO log(tbl, op, at, {}) \
                     VALUES(1, '{op}', CAST((julianday('now')-2440587.5)*86400000 AS INTEGER), {}); END",
                    columns.join(", "),
                    values.join(", ")
                ))?;
            }
        }
        Who::Rowcast => {
            let mapped = TableSettings { key: Some(table.key.to_owned()), ..TableSettings::new("t") };
            sqlite::install(&SqliteSettings { tables: vec![mapped], ..SqliteSettings::new(path, "bench") })?;
        }
    }
    Ok(())
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<24}{:>6}  {:<8}{:>10}{:>12}{:>12}{:>20}", "table", "rows", "", "bare", "by hand", "rowcast", "rowcast : by hand")?;
        for line in &self.lines {
            writeln!(
                f,
                "{:<24}{:>6}  {:<8}{:>7.2} µs{:>12.2}{:>12.2}{:>20.3}",
                line.table, line.rows_a_transaction, line.statement, line.bare_us, line.by_hand_to_bare, line.to_bare, line.to_by_hand
            )?;
        }
        Ok(())
    }
}
