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

/// How long the server is left alone after it has refused something for now: at first, and at most.
const REFUSED_FIRST: Duration = Duration::from_millis(200);
const REFUSED_LONGEST: Duration = Duration::from_secs(3);

/// How often in a row the server has refused something for now.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    count: u32,
}

impl Refusals {
    /// Once more; returns how long to leave it alone.
    pub fn another(&mut self) -> Duration {
        let wait = REFUSED_FIRST * 2_u32.pow(self.count.min(8));
        self.count = self.count.saturating_add(1);
        wait.min(REFUSED_LONGEST)
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

    #[test]
    fn what_is_refused_again_and_again_is_asked_for_less_often_up_to_a_bound() {
        let mut refusals = Refusals::default();
        let waits: Vec<u128> = (0..20).map(|_| refusals.another().as_millis()).collect();
        assert_eq!(waits[..6], [200, 400, 800, 1600, 3000, 3000]);
        assert_eq!(waits[19], 3000);
    }
}
