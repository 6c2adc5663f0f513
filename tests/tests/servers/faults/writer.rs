//! Somebody who writes all the while, from a seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rowcast_testkit::wait::until_blocking;

use super::database::Application;

/// How long it may take to write what a test waits for.
const DEADLINE: Duration = Duration::from_secs(60);

/// A thread that writes until it is told to stop.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Begins to write.
    pub fn start(mut application: Box<dyn Application>, seed: u64) -> Writer {
        let (stop, committed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), committed.clone());
        let thread = std::thread::spawn(move || {
            let mut random = StdRng::seed_from_u64(seed);
            while !stopped.load(SeqCst) {
                if application.transact(&mut random) {
                    counted.fetch_add(1, SeqCst);
                }
                // An application's pace; nobody waits for it.
                std::thread::sleep(Duration::from_millis(random.random_range(1..6)));
            }
            application.leave();
        });
        Writer { stop, committed, thread: Some(thread) }
    }

    /// Waits until so many transactions more are committed.
    pub fn wait_for_more(&self, transactions: u64) {
        let before = self.committed.load(SeqCst);
        let written = || (self.committed.load(SeqCst) >= before + transactions).then_some(());
        until_blocking("the application to write", DEADLINE, written).expect("it writes");
    }

    /// Ends it after the transaction in hand.
    pub fn stop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the writer ends well");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}
