//! Giving a pipeline up.

use redis::cmd;

use super::super::Error;
use super::link::{RedisLink, glob};

impl RedisLink {
    /// Removes every key that begins with `prefix`, rowcast's own too. For a pipeline that nobody runs any more, and for a prefix
    /// that nobody else uses: whose a key is, is not asked.
    pub async fn remove(&mut self, prefix: &str) -> Result<(), Error> {
        let mut cursor = 0_u64;
        loop {
            let mut scan = cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(glob(prefix)).arg("COUNT").arg(1000);
            let answer = self.ask(&scan).await?;
            let (next, keys): (u64, Vec<Vec<u8>>) = self.typed("SCAN", answer)?;
            if !keys.is_empty() {
                let answer = self.ask(cmd("UNLINK").arg(keys)).await?;
                self.typed::<u64>("UNLINK", answer)?;
            }
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }
}
