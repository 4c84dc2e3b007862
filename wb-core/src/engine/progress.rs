//! How far the window is that is being written back, and how long it will still take.
//!
//! A disk is slower towards its end in the order of addresses, down to half: who divides what is left by the mean rate so
//! far is wrong by a third at a quarter of the way. So the rate is taken for a straight line over the sweep, fitted to
//! what was measured so far.

use std::sync::Mutex;

/// What an item costs before anything is known.
const ITEM_NS_AT_FIRST: f64 = 100_000.0;
/// A window tells nothing of its rate before it has run so long.
const TELLS_AFTER_NS: u64 = 300_000_000;
/// Parts of a window in which the rate is measured, and how many of them a line is drawn through, at least.
const PARTS: u64 = 64;
const PARTS_MIN: usize = 6;

#[derive(Debug, Clone, Default)]
struct State {
    /// A window is being prepared or written.
    active: bool,
    total: u64,
    done: u64,
    started_ns: u64,
    /// Time of the last change.
    last_ns: u64,
    /// Items done and the time, each time that another part was complete.
    marks: Vec<(u64, u64)>,
    /// Mean time of an item in the last window; 0: unknown.
    item_ns: f64,
}

impl State {
    fn item_ns(&self) -> f64 {
        let elapsed_ns = self.last_ns.saturating_sub(self.started_ns);
        if self.done > 0 && elapsed_ns >= TELLS_AFTER_NS {
            return elapsed_ns as f64 / self.done as f64;
        }
        if self.item_ns > 0.0 { self.item_ns } else { ITEM_NS_AT_FIRST }
    }

    fn mark(&mut self) {
        let before = self.marks.last().map_or(0, |(done, _)| *done);
        if (self.done - before) * PARTS >= self.total.max(PARTS) {
            self.marks.push((self.done, self.last_ns));
        }
    }

    /// Rate at the start and at the end of the sweep, in items per ns: a line through what was measured.
    fn line(&self) -> Option<(f64, f64)> {
        // The first part went into the cache of the device.
        let points: Vec<(f64, f64)> = self
            .marks
            .windows(2)
            .filter(|pair| pair[1].1 > pair[0].1)
            .map(|pair| {
                let middle = (pair[0].0 + pair[1].0) as f64 / 2.0 / self.total as f64;
                (middle, (pair[1].0 - pair[0].0) as f64 / (pair[1].1 - pair[0].1) as f64)
            })
            .collect();
        if points.len() < PARTS_MIN {
            return None;
        }
        let count = points.len() as f64;
        let mean = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / count, sum.1 + point.1 / count));
        let spread: f64 = points.iter().map(|point| (point.0 - mean.0).powi(2)).sum();
        let slope = points.iter().map(|point| (point.0 - mean.0) * (point.1 - mean.1)).sum::<f64>() / spread;
        let at = |x: f64| (mean.1 + slope * (x - mean.0)).clamp(mean.1 / 2.5, mean.1 * 2.5);
        Some((at(0.0), at(1.0)))
    }

    fn left_ns(&self) -> f64 {
        let left = self.total.saturating_sub(self.done) as f64;
        let Some((start, end)) = self.line() else { return left * self.item_ns() };
        // The integral of 1 ÷ (a + b x) from here to 1.
        let here = start + (end - start) * self.done as f64 / self.total as f64;
        let slope = end - start;
        if slope.abs() < here * 1e-3 {
            return left / here;
        }
        self.total as f64 * (end / here).ln() / slope
    }
}

/// Shared by write-back, admission and status.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<State>);

impl Progress {
    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.0.lock().expect("not poisoned"))
    }
    /// A window is going to be gathered, of about so many items.
    pub fn prepare(&self, expected: u64, now_ns: u64) {
        self.with(|state| {
            let item_ns = state.item_ns;
            let fresh = State { active: true, total: expected, item_ns, ..State::default() };
            *state = State { started_ns: now_ns, last_ns: now_ns, ..fresh };
        });
    }
    /// Its items are known.
    pub fn begin(&self, items: u64, now_ns: u64) {
        self.with(|state| (state.total, state.started_ns, state.last_ns) = (items, now_ns, now_ns));
    }
    /// So many more items are done.
    pub fn done(&self, items: u64, now_ns: u64) {
        self.with(|state| {
            (state.done, state.last_ns) = (state.done + items, now_ns);
            state.mark();
        });
    }
    /// The window ended, one way or another.
    pub fn end(&self, now_ns: u64) {
        self.with(|state| {
            state.last_ns = now_ns;
            if state.done > 0 {
                state.item_ns = state.item_ns();
            }
            state.active = false;
        });
    }
    /// Expected time to the end of the window; `None`: there is none.
    pub fn left_ns(&self, now_ns: u64) -> Option<f64> {
        self.with(|state| {
            let since_ns = now_ns.saturating_sub(state.last_ns) as f64;
            state.active.then(|| state.left_ns().max(since_ns))
        })
    }
    /// Items of the window and those done; `None`: there is none.
    pub fn items(&self) -> Option<(u64, u64)> {
        self.with(|state| state.active.then_some((state.total, state.done)))
    }
    /// Mean time of an item, in this window or the last.
    pub fn item_ns(&self) -> Option<f64> {
        self.with(|state| (state.done > 0 || state.item_ns > 0.0).then(|| state.item_ns()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time at which a share of a sweep is done on a disk whose rate falls from 1 to `inner` along the way.
    fn at_ns(share: f64, inner: f64, total_ns: f64) -> u64 {
        let slope = inner - 1.0;
        (total_ns * (1.0 + slope * share).ln() / inner.ln()) as u64
    }

    #[test]
    fn the_time_left_is_right_on_a_disk_that_gets_slower() {
        for (inner, tolerance) in [(0.48, 0.05), (0.8, 0.05), (1.0001, 0.02)] {
            let progress = Progress::default();
            progress.begin(100_000, 0);
            progress.with(|state| state.active = true);
            for step in 1..=1000u64 {
                let now_ns = at_ns(step as f64 / 1000.0, inner, 100e9);
                progress.done(100, now_ns);
                if step == 250 || step == 500 {
                    let (left, real) = (progress.left_ns(now_ns).expect("active"), 100e9 - now_ns as f64);
                    assert!((left / real - 1.0).abs() < tolerance, "{inner} {step}: {left} instead of {real}");
                }
            }
        }
    }
}
