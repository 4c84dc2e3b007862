//! How gently write-back must go where nothing presses: the pace at which reads of the disk do not suffer.
//!
//! A feedback on measured latency, not on utilisation. Each read miss is compared with a target for the 99th percentile:
//! what the user has set, or twice what it was while nothing was written back. One beyond it lowers the pace, one within
//! it raises the pace by so much less that both keep the balance where somewhat less than a percent is beyond [a
//! percentile of the last reads, compared from time to time: half of the time it was beyond the target]. Without reads
//! nobody can suffer, and only the depth is limited.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Reads without write-back that a percentile is taken of, and after how many further ones it is taken anew.
const SAMPLES: usize = 1000;
const STEP_SAMPLES: usize = 40;
/// Reads older than this say nothing of now.
const FRESH_NS: u64 = 2_000_000_000;
/// Target while nothing else is known.
const TARGET_AT_FIRST_NS: u64 = 40_000_000;
/// Writes per second: slowest, first, fastest.
const PACES: (f64, f64, f64) = (4.0, 30.0, 20_000.0);
/// The share of reads beyond the target at which the pace stays as it is: less than the percent that may be.
const BEYOND: f64 = 0.004;
/// What a read beyond the target does to the pace.
const FALL: f64 = 0.85;
/// What one within it does before the first that was beyond.
const FIRST_RISE: f64 = 1.01;

/// The last latencies without write-back, oldest overwritten first.
#[derive(Default)]
struct Latencies {
    values: Vec<u64>,
    next: usize,
    /// Since the percentile was taken.
    fresh: usize,
    p99_ns: Option<u64>,
}

impl Latencies {
    fn push(&mut self, latency_ns: u64) {
        if self.values.len() < SAMPLES {
            self.values.push(latency_ns);
        } else {
            self.values[self.next] = latency_ns;
        }
        self.next = (self.next + 1) % SAMPLES;
        self.fresh += 1;
        if self.fresh >= STEP_SAMPLES {
            self.fresh = 0;
            let mut sorted = self.values.clone();
            sorted.sort_unstable();
            self.p99_ns = Some(sorted[(sorted.len() - 1) * 99 / 100]);
        }
    }
}

#[derive(Default)]
struct State {
    alone: Latencies,
    pace: f64,
    /// A read was beyond the target.
    suffered: bool,
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Governor {
    state: Mutex<State>,
    last_read_ns: AtomicU64,
    /// What the user has set; 0: nothing.
    target_ns: AtomicU64,
}

impl Governor {
    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock().expect("not poisoned"))
    }
    /// Sets the target; 0: twice what it is without write-back.
    pub fn set_target(&self, target_ns: u64) {
        self.target_ns.store(target_ns, Ordering::Relaxed);
    }
    /// A read of the disk is done.
    pub fn read(&self, latency_ns: u64, now_ns: u64, writing_back: bool) {
        self.last_read_ns.store(now_ns, Ordering::Relaxed);
        self.with(|state| match writing_back {
            true => self.learn(state, latency_ns),
            false => state.alone.push(latency_ns),
        });
    }
    fn learn(&self, state: &mut State, latency_ns: u64) {
        let beyond = latency_ns > self.target(state);
        state.suffered |= beyond;
        let factor = match (beyond, state.suffered) {
            (true, _) => FALL,
            (false, true) => FALL.powf(-BEYOND / (1.0 - BEYOND)),
            (false, false) => FIRST_RISE,
        };
        state.pace = (state.pace.max(PACES.0) * factor).clamp(PACES.0, PACES.2);
    }
    fn target(&self, state: &State) -> u64 {
        match self.target_ns.load(Ordering::Relaxed) {
            0 => state.alone.p99_ns.map_or(TARGET_AT_FIRST_NS, |p99_ns| 2 * p99_ns),
            target_ns => target_ns,
        }
    }
    /// Writes per second that may be sent now; `None`: nobody reads.
    pub fn pace(&self, now_ns: u64) -> Option<f64> {
        if now_ns.saturating_sub(self.last_read_ns.load(Ordering::Relaxed)) > FRESH_NS {
            self.with(|state| state.pace = state.pace.clamp(PACES.1, PACES.2));
            return None;
        }
        Some(self.with(|state| {
            if state.pace == 0.0 {
                state.pace = PACES.1;
            }
            state.pace
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_falls_when_reads_suffer_and_rises_when_they_do_not() {
        let governor = Governor::default();
        (0..200).for_each(|_| governor.read(10_000_000, 1, false));
        let first = governor.pace(2).expect("somebody reads");
        (0..50).for_each(|_| governor.read(19_000_000, 1, true));
        assert!(governor.pace(2).expect("reads") > 1.6 * first, "fast, as long as nobody has suffered");
        governor.read(50_000_000, 1, true);
        let fallen = governor.pace(2).expect("reads");
        // As many as may be beyond the target, and it stays what it is; with fewer it rises.
        for _ in 0..10 {
            (0..996).for_each(|_| governor.read(19_000_000, 1, true));
            (0..4).for_each(|_| governor.read(21_000_000, 1, true));
        }
        let held = governor.pace(2).expect("reads");
        assert!((held / fallen - 1.0).abs() < 0.05, "{held} {fallen}");
        (0..1000).for_each(|_| governor.read(11_000_000, 1, true));
        assert!(governor.pace(2).expect("reads") > 1.8 * held);
        assert_eq!(governor.pace(10_000_000_000), None);
    }
}
