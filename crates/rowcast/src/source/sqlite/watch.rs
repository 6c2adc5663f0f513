//! Noticing that somebody has committed, within a fraction of a millisecond and in every journal mode.
//!
//! File events say *when to look*, never what happened: the last event of a commit comes before the commit is visible. So
//! after an event `data_version` is looked at again and again until it has been quiet for a while; and now and then anyway.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The first wait after an event, doubled each time.
const FIRST: Duration = Duration::from_micros(100);
const LONGEST: Duration = Duration::from_millis(4);
/// How long after the last event the commit may still be on its way.
const QUIET: Duration = Duration::from_millis(50);
/// How often to look without any event.
const POLL: Duration = Duration::from_millis(20);

/// When to look next.
#[derive(Debug)]
pub(super) struct Pace {
    event: Instant,
    wait: Duration,
    not_before: Instant,
}

impl Pace {
    pub(super) fn new() -> Pace {
        let now = Instant::now();
        Pace { event: now, wait: FIRST, not_before: now }
    }

    /// Something happened to the files.
    pub(super) fn event(&mut self) {
        self.event = Instant::now();
        self.wait = FIRST;
    }

    /// Leaves a moment in which no read transaction is open, so that a writer can start its log anew.
    pub(super) fn pause(&mut self, pause: Duration) {
        self.not_before = Instant::now() + pause;
    }

    /// Whether it is too early to look.
    pub(super) fn is_early(&self) -> bool {
        Instant::now() < self.not_before
    }

    /// Looked in vain.
    pub(super) fn nothing(&mut self) {
        self.wait = if self.event.elapsed() < QUIET { (self.wait * 2).min(LONGEST) } else { POLL };
    }

    /// How long until the next look.
    pub(super) fn wait(&self) -> Duration {
        let early = self.not_before.saturating_duration_since(Instant::now());
        if early > Duration::ZERO { early } else { self.wait }
    }
}

/// A flag that is up while a wake-up is on its way, so that a flood of events is one message.
pub(super) type WakeFlag = Arc<AtomicBool>;

/// A thread that calls `wake` at events on the files of a database; it ends with this.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub(super) struct Watch {
    watches: inotify::Watches,
    descriptor: inotify::WatchDescriptor,
}

#[cfg(target_os = "linux")]
impl Watch {
    /// Watches the directory, since the files beside the database come and go. `wake` returns whether anybody listens.
    pub(super) fn start(path: &Path, flag: WakeFlag, wake: impl Fn() -> bool + Send + 'static) -> std::io::Result<Watch> {
        use inotify::{EventMask, Inotify, WatchMask};
        let path = path.canonicalize()?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let name = path.file_name().unwrap_or_default().to_os_string();
        let mut events = Inotify::init()?;
        let mut watches = events.watches();
        let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE;
        let descriptor = watches.add(directory, mask)?;
        std::thread::Builder::new().name("rowcast-sqlite-watch".to_owned()).spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let Ok(events) = events.read_events_blocking(&mut buffer) else { return };
                let mut ours = false;
                for event in events {
                    if event.mask.contains(EventMask::IGNORED) {
                        return;
                    }
                    let begins = |other: &std::ffi::OsStr| other.as_encoded_bytes().starts_with(name.as_encoded_bytes());
                    ours |= event.name.is_none_or(begins);
                }
                if ours && !flag.swap(true, Ordering::AcqRel) && !wake() {
                    return;
                }
            }
        })?;
        Ok(Watch { watches, descriptor })
    }
}

#[cfg(target_os = "linux")]
impl Drop for Watch {
    fn drop(&mut self) {
        // The removal is itself an event, by which the thread ends. It fails only where the directory is gone, and then the
        // thread has ended already.
        drop(self.watches.remove(self.descriptor.clone()));
    }
}

/// Elsewhere nothing is watched, and the look every few milliseconds has to do.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub(super) struct Watch;

#[cfg(not(target_os = "linux"))]
impl Watch {
    pub(super) fn start(_path: &Path, _flag: WakeFlag, _wake: impl Fn() -> bool + Send + 'static) -> std::io::Result<Watch> {
        Ok(Watch)
    }
}

/// Takes the flag down: an event from now on wakes again.
pub(super) fn listen_again(flag: &WakeFlag) {
    flag.store(false, Ordering::Release);
}
