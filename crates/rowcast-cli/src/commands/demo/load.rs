//! The load: inserts, updates and deletes through SeaORM, many in a transaction.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use rowcast::meter::Meter;
use sea_orm::{DatabaseConnection, TransactionTrait};

use super::story::Story;
use super::user;
use crate::numbers::span_us;
use crate::screen::{Moving, Screen};

/// Changes in one transaction: enough that commits do not count, few enough that none waits long for its commit.
const TRANSACTION: u64 = 100;

/// A load with its progress bar.
pub struct Load {
    bar: Moving,
    changes: u64,
}

impl Load {
    /// A load of `changes` that has not begun.
    pub fn new(screen: &Screen, story: &Story, changes: u64) -> anyhow::Result<Load> {
        story.load(changes)?;
        let style = ProgressStyle::with_template("  {bar:40} {human_pos}/{human_len}  {msg}")?.progress_chars("━╸ ");
        let bar = screen.show(ProgressBar::new(changes).with_style(style));
        bar.enable_steady_tick(Duration::from_millis(100));
        Ok(Load { bar, changes })
    }

    /// Writes all of it; `live` are the ids of the users that there are.
    pub async fn write(&self, db: &DatabaseConnection, live: &mut Vec<i64>, meter: &Meter) -> anyhow::Result<()> {
        let mut dice = Dice(1);
        let mut done = 0;
        while done < self.changes {
            let upto = self.changes.min(done + TRANSACTION);
            let txn = db.begin().await?;
            let mut new = Vec::new();
            while done < upto {
                let place = dice.below(live.len().max(1));
                match dice.below(10) {
                    7..=8 if !live.is_empty() => drop(user::rename(&txn, live[place], &format!("User {done}, renamed")).await?),
                    9 if !live.is_empty() => user::delete(&txn, live.swap_remove(place)).await?,
                    _ => new.push(user::new(&format!("User {done}"), &format!("user{done}@example.com"))),
                }
                done += 1;
            }
            live.extend(user::insert_many(&txn, new).await?);
            txn.commit().await?;
            self.bar.set_position(done);
            self.bar.set_message(format!("lag {}", span_us(meter.lag_us.load(Relaxed))));
        }
        self.bar.set_message("written; waiting for the cache");
        Ok(())
    }
}

/// The same numbers every time (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % bound
    }
}
