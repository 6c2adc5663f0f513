//! Chance that comes from the seed alone, shared by everything in one world.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[derive(Clone)]
pub struct Chance(Arc<Mutex<Inner>>);

struct Inner {
    random: StdRng,
    faulty: bool,
}

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(Arc::new(Mutex::new(Inner { random: StdRng::seed_from_u64(seed), faulty: true })))
    }

    pub fn below(&self, limit: usize) -> usize {
        self.0.lock().unwrap().random.random_range(0..limit)
    }

    /// True with this probability.
    pub fn is(&self, probability: f64) -> bool {
        self.0.lock().unwrap().random.random_bool(probability)
    }

    pub fn pick<T: Clone>(&self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// A fault with this probability, while there are faults at all.
    pub fn fault(&self, probability: f64) -> bool {
        let mut inner = self.0.lock().unwrap();
        inner.faulty && inner.random.random_bool(probability)
    }

    pub fn end_faults(&self) {
        self.0.lock().unwrap().faulty = false;
    }

    pub fn millis(&self, limit: u64) -> Duration {
        Duration::from_millis(self.below(usize::try_from(limit).unwrap()) as u64)
    }

    /// What a real call may do before it is carried out: take its time, so that anything can happen meanwhile, its own
    /// cancellation too.
    pub async fn latency(&self) {
        match self.below(8) {
            0 => tokio::time::sleep(self.millis(20)).await,
            1 | 2 => tokio::task::yield_now().await,
            _ => {}
        }
    }
}
