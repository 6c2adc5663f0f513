//! The rules of the checkpoint as a seeded random simulation, over the very code that runs in production: publisher, consumer,
//! decision, memory broker and memory cache, with a virtual clock, faults at every await, and a source whose every committed
//! change has a version of its own, so that "went back" is a comparison of numbers.
//!
//! `ROWCAST_SEEDS=2000` sets how many seeds are tried, `ROWCAST_SEED=17` replays one and prints its trace. `scripts/mutate` takes out
//! one rule at a time and shows that this very test notices it.

mod chance;
mod database;
mod faults;
mod world;

use world::World;

/// Seeds that a plain run tries.
const SEEDS: u64 = 300;
/// Steps in which faults happen.
const STEPS: u32 = 150;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn run(seed: u64) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime without I/O");
    runtime.block_on(World::new(seed).run(STEPS))
}

#[test]
fn every_run_converges_and_no_key_goes_back() {
    if let Some(seed) = number("ROWCAST_SEED") {
        tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).without_time().init();
        if let Err(violation) = run(seed) {
            panic!("seed {seed}: {violation}");
        }
        return;
    }
    let first = number("ROWCAST_FIRST_SEED").unwrap_or(0);
    for seed in first..first + number("ROWCAST_SEEDS").unwrap_or(SEEDS) {
        if let Err(violation) = run(seed) {
            panic!("seed {seed}: {violation}\nROWCAST_SEED={seed} replays it with its trace");
        }
    }
}
