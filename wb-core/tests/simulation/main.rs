//! Seeded runs in the simulator: crashes at any step, and an oracle for everything that is read.
//!
//! `WB_SEED=n` replays one seed (with `WB_TRACE=1` every event is printed), `WB_SEEDS=n WB_SEED_START=s` run a range.

mod engine;
mod large;
mod reference;
mod scenarios;
mod unwritable;
mod warm;
mod writeback;

use peak_alloc::PeakAlloc;
use std::ops::Range;
use wb_core::sim::scenario::{self, Outcome, System};
use wb_core::sim::workload::Plan;

/// Counts what is allocated: engine, oracle and simulated devices.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes that a run allocates at most: twice what any of 100 000 took. Its devices have up to 2 and 3 MiB, and the engine
/// reserves buffers of 3 MiB.
const MEMORY_BYTES_MAX: usize = 24 << 20;

/// True if no other test runs in this process: under nextest, and where a range of seeds is asked for.
#[expect(clippy::disallowed_methods, reason = "how tests are run is the caller's choice, not the system's")]
fn is_alone() -> bool {
    std::env::var_os("NEXTEST").is_some() || setting("WB_SEEDS").is_some()
}

/// A number from the environment; empty counts as absent.
#[expect(clippy::disallowed_methods, reason = "which seeds to run is the caller's choice, not the system's")]
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// The seeds to run: what the environment says, or `default`.
fn seeds(default: Range<u64>) -> Range<u64> {
    if let Some(seed) = setting("WB_SEED") {
        return seed..seed + 1;
    }
    let start = setting("WB_SEED_START").unwrap_or(default.start);
    start..start + setting("WB_SEEDS").unwrap_or(default.end - default.start)
}

/// Runs seeds; panics with the story of the first that fails, and the numbers of all.
fn run_seeds<S: System>(system: &S, name: &str, seeds: impl Iterator<Item = u64>) {
    run_plans(system, name, seeds, Plan::draw);
}

/// As [`run_seeds`], with the plans that seeds meant before there were offline tools and silent faults.
fn run_plain_seeds<S: System>(system: &S, name: &str, seeds: impl Iterator<Item = u64>) {
    run_plans(system, name, seeds, Plan::draw_plain);
}

/// As [`run_seeds`], with plans of another kind.
fn run_plans<S: System>(system: &S, name: &str, seeds: impl Iterator<Item = u64>, plan: fn(u64) -> Plan) {
    let (mut ran, mut sum) = (0u64, Outcome::default());
    let mut failed: Vec<(u64, String)> = Vec::new();
    let mut most = (0, 0);
    for plan in seeds.map(plan) {
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        if setting("WB_TRACE").is_some() {
            scenario::run_traced(system, &plan, true);
        }
        match scenario::run_plan(system, &plan) {
            Ok(outcome) => sum.add(&outcome),
            Err(story) => failed.push((plan.seed, story)),
        }
        let bytes = MEMORY.peak_usage() - before;
        if bytes > MEMORY_BYTES_MAX && is_alone() {
            failed.push((plan.seed, format!("WB_SEED={} took {bytes} bytes of memory", plan.seed)));
        }
        most = most.max((bytes, plan.seed));
        ran += 1;
        if failed.len() >= 10 {
            break;
        }
    }
    let (bytes, seed) = most;
    println!("{name}: {ran} seeds, {}, at most {} MiB (seed {seed}), {} failed", sum.line(), bytes >> 20, failed.len());
    if let Some((first, story)) = failed.first() {
        let all: Vec<u64> = failed.iter().map(|(seed, _)| *seed).collect();
        for (_, story) in &failed[1..] {
            println!("{story}");
        }
        panic!("WB_SEED={first}\n{story}\nfailing seeds: {all:?}\nWB_SEED={first}");
    }
}

/// The number of seeds after which a bug shows, and how; `None` if `max` seeds do not show it.
fn seeds_until_found<S: System>(system: &S, max: u64) -> Option<(u64, String)> {
    seeds_until_found_by(system, max, Plan::draw)
}

/// As [`seeds_until_found`], with plans made for the bug.
fn seeds_until_found_by<S: System>(system: &S, max: u64, plan: impl Fn(u64) -> Plan) -> Option<(u64, String)> {
    (0..max).find_map(|seed| {
        let failures = scenario::run_caught(system, &plan(seed)).failures;
        failures.into_iter().next().map(|failure| (seed + 1, failure))
    })
}
