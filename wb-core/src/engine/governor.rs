//! How gently write-back must go where nothing presses: the pace at which reads of the disk do not suffer.
//!
//! A feedback on measured latency, not on utilisation. The 99th percentile of read misses is compared with a target: what
//! the user has set, or twice what it was while nothing was written back. Beyond it the pace is halved, well below it
//! rises by a quarter. Without reads nobody can suffer, and only the depth is limited.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Latencies that a percentile is taken of.
const SAMPLES: usize = 200;
/// The pace is reconsidered after so many further reads.
const STEP_SAMPLES: usize = 40;
/// Reads older than this say nothing of now.
const FRESH_NS: u64 = 2_000_000_000;
/// Target while nothing else is known.
const TARGET_AT_FIRST_NS: u64 = 40_000_000;
/// Writes per second: slowest, first, fastest.
const PACES: (f64, f64, f64) = (4.0, 30.0, 20_000.0);

/// The last latencies, oldest overwritten first.
#[derive(Default)]
struct Latencies {
    values: Vec<u64>,
    next: usize,
    /// Since the pace was reconsidered.
    fresh: usize,
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
    }
    fn p99(&self) -> Option<u64> {
        let mut sorted = self.values.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len().saturating_sub(1) * 99 / 100).copied()
    }
}

#[derive(Default)]
struct State {
    /// Without write-back, and with it.
    alone: Latencies,
    beside: Latencies,
    pace: f64,
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
            true => state.beside.push(latency_ns),
            false => state.alone.push(latency_ns),
        });
    }
    fn target(&self, state: &State) -> u64 {
        match self.target_ns.load(Ordering::Relaxed) {
            0 if state.alone.values.len() < STEP_SAMPLES => TARGET_AT_FIRST_NS,
            0 => 2 * state.alone.p99().unwrap_or(TARGET_AT_FIRST_NS),
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
            if state.beside.fresh >= STEP_SAMPLES {
                state.beside.fresh = 0;
                // Of the last reads only: what was before the last change says nothing of it.
                let target_ns = self.target(state) as f64;
                let p99_ns = state.beside.p99().expect("just counted") as f64;
                let factor = if p99_ns > 0.9 * target_ns { 0.5 } else { 1.25 };
                state.pace = (state.pace * factor).clamp(PACES.0, PACES.2);
                if factor < 1.0 {
                    state.beside = Latencies::default();
                }
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
        (0..50).for_each(|_| governor.read(50_000_000, 1, true));
        assert_eq!(governor.pace(2), Some(first / 2.0));
        (0..50).for_each(|_| governor.read(11_000_000, 1, true));
        assert_eq!(governor.pace(2), Some(first / 2.0 * 1.25));
        assert_eq!(governor.pace(10_000_000_000), None);
    }
}
