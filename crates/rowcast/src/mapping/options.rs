//! What a table may say beyond key and columns: how long a row stands, and what a change does to its key. Pure.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

/// How long a row stands in the cache after it was written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ttl {
    seconds: NonZeroU32,
}

/// A text that is no time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a time to live is a whole number and s, m, h or d, such as \"90s\", \"15m\", \"1h\" or \"7d\", from 1s to 3650d")]
pub struct NotTtl;

/// The units, the largest first, with their seconds.
const UNITS: [(char, u32); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// Ten years: what is to stand longer needs no time to live.
const SECONDS_MAX: u32 = 3_650 * 86_400;

impl Ttl {
    /// As a duration: whole seconds, at least one.
    pub fn duration(self) -> Duration {
        Duration::from_secs(u64::from(self.seconds.get()))
    }
}

impl FromStr for Ttl {
    type Err = NotTtl;

    fn from_str(text: &str) -> Result<Ttl, NotTtl> {
        let (unit, seconds) = UNITS.into_iter().find(|(unit, _)| text.ends_with(*unit)).ok_or(NotTtl)?;
        let digits = text.strip_suffix(unit).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit())).ok_or(NotTtl)?;
        let number: u32 = digits.parse().map_err(|_| NotTtl)?;
        let seconds = number.checked_mul(seconds).filter(|seconds| *seconds <= SECONDS_MAX).ok_or(NotTtl)?;
        Ok(Ttl { seconds: NonZeroU32::new(seconds).ok_or(NotTtl)? })
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.seconds.get();
        let (unit, size) = UNITS.into_iter().find(|(_, size)| seconds.is_multiple_of(*size)).unwrap_or(('s', 1));
        write!(f, "{}{unit}", seconds / size)
    }
}

/// What a change does to the key of its row. A row that is gone, or does not match the filter, has no key in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OnChange {
    /// The key holds the row.
    #[default]
    Write,
    /// The key holds the row if it was there before; the application fills the keys that it wants.
    Refresh,
    /// The key goes, and the application fills it again when it wants it.
    Evict,
}

impl OnChange {
    /// The words of the configuration, with what they mean.
    pub const WORDS: [(&'static str, OnChange); 3] =
        [("write", OnChange::Write), ("refresh", OnChange::Refresh), ("evict", OnChange::Evict)];

    /// The word of the configuration.
    pub fn word(self) -> &'static str {
        match self {
            OnChange::Write => "write",
            OnChange::Refresh => "refresh",
            OnChange::Evict => "evict",
        }
    }
}

/// On which terms a value is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// How long it stands: set afresh by every write. Without one a plain write makes the key stay, and a write to an existing key
    /// leaves it the time that it has.
    pub ttl: Option<Duration>,
    /// Whether it is written only where the key exists.
    pub existing: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_reads_as_one_would_write_it() {
        for (text, seconds, printed) in [
            ("90s", 90, "90s"),
            ("15m", 900, "15m"),
            ("1h", 3600, "1h"),
            ("7d", 604_800, "7d"),
            ("60s", 60, "1m"),
            ("3650d", 315_360_000, "3650d"),
        ] {
            let ttl: Ttl = text.parse().unwrap();
            assert_eq!((ttl.duration(), ttl.to_string().as_str()), (Duration::from_secs(seconds), printed));
            assert_eq!(printed.parse(), Ok(ttl));
        }
    }

    #[test]
    fn what_is_no_time_to_live_is_refused() {
        for text in ["", "s", "1", "0s", "-1s", "+1s", "1.5h", "1h30m", "1 h", "1w", "1H", "3651d", "99999999999d", "1ms"] {
            assert_eq!(text.parse::<Ttl>(), Err(NotTtl), "{text}");
        }
    }
}
