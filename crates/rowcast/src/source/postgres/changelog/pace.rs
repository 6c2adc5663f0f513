//! How often the changelog is looked at. Nobody says that something was committed: a notification would take a lock of the whole server
//! at every commit of the application, and is not to be had behind a pooler.

use std::time::Duration;

/// After something was found.
const FIRST: Duration = Duration::from_millis(2);
/// Where nothing happens.
const LONGEST: Duration = Duration::from_millis(25);

/// How long until the next look.
#[derive(Debug)]
pub(super) struct Pace {
    wait: Duration,
}

impl Pace {
    pub fn new() -> Pace {
        Pace { wait: FIRST }
    }

    /// Something was found.
    pub fn news(&mut self) -> Duration {
        self.wait = FIRST;
        self.wait
    }

    /// Nothing was.
    pub fn quiet(&mut self) -> Duration {
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_nothing_happens_the_longer_the_wait_up_to_a_bound() {
        let mut pace = Pace::new();
        let waits: Vec<u128> = (0..6).map(|_| pace.quiet().as_millis()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 25, 25]);
        assert_eq!((pace.news().as_millis(), pace.quiet().as_millis()), (2, 2));
    }
}
