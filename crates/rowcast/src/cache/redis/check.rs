//! What would stop or harm the pipeline on this server.
//!
//! What the server says of itself is read from INFO; what it permits is tried, and judged as it is at run time.

use std::collections::HashMap;

use redis::cmd;

use super::super::{Cache, Error, Link, names};
use super::RedisCache;
use super::fault::{CLUSTER, Fault, NEEDS};
use super::link::RedisLink;
use super::script::Script;
use crate::change::Partition;
use crate::finding::{Finding, Grade};

/// The oldest version with everything that is used.
const VERSION_LEAST: u32 = 6;

/// From this share of its memory on a server that evicts nothing is called nearly full, in percent.
const NEARLY_FULL_PERCENT: u64 = 90;

/// Nothing that a template renders ends so.
const NOBODY: &str = "?rowcast-check";

impl RedisCache {
    /// Looks at the server as a consumer with `partitions` would use it, and leaves nothing behind; `prefixes` are what the
    /// tables' keys begin with. `may_evict` says that somebody has accepted a server that evicts any key.
    pub async fn check(&self, partitions: u16, prefixes: &[&str], may_evict: bool) -> Vec<Finding> {
        let mut found = Vec::new();
        let looked = async {
            let mut link = self.connect().await?;
            found.extend(link.check_server(may_evict).await?);
            link.check_commands(prefixes).await?;
            found.extend(link.check_layout(partitions).await?);
            Ok::<(), Error>(())
        };
        if let Err(error) = looked.await {
            found.push(finding(&error));
        }
        // A replica or a cluster refuses a write in words of its own, which say the same less well.
        let told = found.iter().any(|finding| finding.grade == Grade::Stops && finding.remedy.is_some());
        if told {
            found.retain(|finding| finding.grade != Grade::Stops || finding.remedy.is_some());
        }
        found
    }
}

impl RedisLink {
    /// What the server says of itself, where it may be asked.
    async fn check_server(&mut self, may_evict: bool) -> Result<Vec<Finding>, Error> {
        let place = self.place();
        let said = match self.info().await {
            Ok(text) => text,
            Err(Error::Fatal(_)) => {
                let message = format!("Redis at {place} does not permit INFO, so its version, eviction and role were not looked at");
                return Ok(vec![Finding::new(Grade::Notes, message).mend(format!("send `ACL SETUSER {} +info`", self.user()))]);
            }
            Err(error) => return Err(error),
        };
        Ok(Info::of(&said).judge(&place, may_evict))
    }

    async fn info(&mut self) -> Result<String, Error> {
        let answer = self.ask(&cmd("INFO")).await?;
        self.typed("INFO", answer)
    }

    /// Every command that a consumer sends.
    async fn check_commands(&mut self, prefixes: &[&str]) -> Result<(), Error> {
        for prefix in prefixes {
            self.scan(0, prefix).await?;
            self.values(&[format!("{prefix}{NOBODY}")]).await?;
        }
        self.try_writes().await
    }

    async fn check_layout(&mut self, partitions: u16) -> Result<Option<Finding>, Error> {
        let Some(of) = self.layout().await? else { return Ok(None) };
        for partition in Partition::all(of) {
            // One that is not as rowcast wrote it is an error that says so.
            self.load(partition).await?;
        }
        let message = format!(
            "{of} partitions are in force, {partitions} are configured; the next consumer to start puts its own number in force, and every \
             table is resynced"
        );
        Ok((of != partitions)
            .then(|| Finding::new(Grade::Notes, message).mend(format!("write `partitions = {of}` in [broker] to leave all as it is"))))
    }

    async fn try_writes(&mut self) -> Result<(), Error> {
        let key = names::check(self.pipeline());
        match self.run_on(Script::Check, &key).await {
            Ok(answer) => {
                let words: Vec<String> = self.typed("EVALSHA", answer)?;
                debug_assert_eq!(words, ["done"]);
                Ok(())
            }
            Err(fault) => Err(match fault {
                Fault::Full(text) => Error::Lost(text),
                fault => fault.into_error(),
            }),
        }
    }
}

/// An error with what mends it apart, where that is one thing.
fn finding(error: &Error) -> Finding {
    let text = error.to_string();
    if let Some((message, command)) = text.split_once(NEEDS) {
        return Finding::new(Grade::Stops, message.trim_end()).mend(format!("send `{command}`"));
    }
    if text.contains("cannot connect") && matches!(error, Error::Lost(_)) {
        return Finding::new(Grade::Stops, text).mend("start the server, or correct the `url` in [cache]");
    }
    Finding::new(Grade::Stops, text)
}

/// The answer to INFO.
struct Info<'t>(HashMap<&'t str, &'t str>);

impl<'t> Info<'t> {
    fn of(text: &'t str) -> Info<'t> {
        Info(text.lines().filter_map(|line| line.trim_end().split_once(':')).collect())
    }

    fn get(&self, name: &str) -> &'t str {
        self.0.get(name).copied().unwrap_or_default()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name).parse().ok()
    }

    fn judge(&self, place: &str, may_evict: bool) -> Vec<Finding> {
        [
            self.version(place),
            self.role(place),
            self.cluster(place),
            self.eviction(place, may_evict),
            self.fullness(place),
            self.saving(place),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn version(&self, place: &str) -> Option<Finding> {
        let version = self.get("redis_version");
        let major: u32 = version.split('.').next()?.parse().ok()?;
        let message = format!("Redis at {place} has version {version}, and {VERSION_LEAST}.0 or later is needed");
        (major < VERSION_LEAST).then(|| Finding::new(Grade::Stops, message).mend("upgrade the server, or use Valkey"))
    }

    fn role(&self, place: &str) -> Option<Finding> {
        if self.get("role") != "slave" {
            return None;
        }
        let message = format!("Redis at {place} is a replica, which takes no writes");
        let master = format!("{}:{}", self.get("master_host"), self.get("master_port"));
        Some(Finding::new(Grade::Stops, message).mend(format!("name its master in the cache's URL: {master}")))
    }

    fn cluster(&self, place: &str) -> Option<Finding> {
        let message = || format!("Redis at {place}:{CLUSTER}");
        (self.get("redis_mode") == "cluster").then(|| Finding::of_sentence(Grade::Stops, &message()))
    }

    fn eviction(&self, place: &str, may_evict: bool) -> Option<Finding> {
        let policy = self.get("maxmemory_policy");
        if !policy.starts_with("allkeys-") {
            return None;
        }
        if self.number("maxmemory") == Some(0) {
            let message = format!("Redis at {place} has maxmemory-policy {policy}, which will count as soon as maxmemory is set");
            return Some(Finding::new(Grade::Notes, message).mend("send `CONFIG SET maxmemory-policy noeviction`"));
        }
        let message = format!(
            "Redis at {place} has maxmemory-policy {policy}, under which it may evict the checkpoint: every table is then resynced, and \
             meanwhile a key may show an older state"
        );
        let remedy = "send `CONFIG SET maxmemory-policy noeviction` (or volatile-lru, which spares keys without a ttl), and let redis.conf say so, too";
        Some(if may_evict {
            Finding::new(Grade::Harms, message).mend(remedy)
        } else {
            Finding::new(Grade::Stops, message).mend(format!("{remedy}; `rowcast check --may-evict` accepts it"))
        })
    }

    fn fullness(&self, place: &str) -> Option<Finding> {
        let (used, most) = (self.number("used_memory")?, self.number("maxmemory").filter(|most| *most > 0)?);
        if used.saturating_mul(100) < most.saturating_mul(NEARLY_FULL_PERCENT) {
            return None;
        }
        let message = format!("Redis at {place} uses {} of {} MiB, and takes no writes when it is full", used >> 20, most >> 20);
        Some(Finding::new(Grade::Harms, message).mend("raise maxmemory, or remove keys that nobody needs"))
    }

    fn saving(&self, place: &str) -> Option<Finding> {
        if self.get("rdb_last_bgsave_status") == "err" {
            let message = format!("Redis at {place} could not save to disk the last time, and may refuse writes because of that");
            return Some(Finding::new(Grade::Harms, message).mend("see its log and the space on its disk"));
        }
        if self.get("aof_enabled") == "1" {
            return None;
        }
        let message = format!(
            "Redis at {place} keeps no append-only file: after a crash it begins with its last snapshot, or with nothing, and what it has \
             lost is read again from the source"
        );
        Some(Finding::new(Grade::Notes, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(info: &str, may_evict: bool) -> Vec<(Grade, String)> {
        let found = Info::of(info).judge("cache:6379", may_evict);
        found.into_iter().map(|finding| (finding.grade, format!("{} → {}", finding.message, finding.remedy.unwrap_or_default()))).collect()
    }

    const GOOD: &str =
        "redis_version:7.0.15\r\nrole:master\r\nredis_mode:standalone\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n";

    #[test]
    fn a_server_as_it_should_be_is_not_complained_of() {
        assert_eq!(judged(GOOD, false), []);
        assert_eq!(judged("", false).len(), 1, "only that nothing is said of an append-only file");
    }

    #[track_caller]
    fn is(from: &str, to: &str, grade: Grade, says: &str) {
        assert!(GOOD.contains(from));
        let found = judged(&GOOD.replace(from, to), false);
        assert!(found.len() == 1 && found[0].0 == grade && found[0].1.contains(says), "{found:?}");
    }

    #[test]
    fn what_stands_in_the_way_is_named_with_its_remedy() {
        is("7.0.15", "5.0.3", Grade::Stops, "upgrade");
        is("role:master", "role:slave\r\nmaster_host:10.0.0.7\r\nmaster_port:6380", Grade::Stops, "10.0.0.7:6380");
        is("standalone", "cluster", Grade::Stops, "not in cluster mode");
        is("maxmemory:0\r\nmaxmemory_policy:noeviction", "maxmemory:9\r\nmaxmemory_policy:allkeys-lru", Grade::Stops, "may evict");
        is("noeviction", "allkeys-lru", Grade::Notes, "as soon as");
        is("maxmemory:0", "maxmemory:104857600\r\nused_memory:104000000", Grade::Harms, "raise maxmemory");
        is("aof_enabled:1", "aof_enabled:1\r\nrdb_last_bgsave_status:err", Grade::Harms, "disk");
        is("aof_enabled:1", "aof_enabled:0", Grade::Notes, "read again from the source");
    }

    #[test]
    fn eviction_may_be_accepted() {
        let info = GOOD.replace("maxmemory:0\r\nmaxmemory_policy:noeviction", "maxmemory:9\r\nmaxmemory_policy:allkeys-lru");
        assert_eq!(judged(&info, true)[0].0, Grade::Harms);
    }
}
