//! Rates over the last seconds, from counters that are sampled once a second.

use std::collections::VecDeque;
use wb_core::format::Counters;

/// Samples kept: the window of every rate.
const SAMPLES: usize = 6;

/// Samples of the counters.
#[derive(Debug, Default)]
pub struct Rates {
    samples: VecDeque<(u64, Counters)>,
}

/// Bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BytesPerSecond {
    /// Reads by users.
    pub user_read: f64,
    /// Writes by users.
    pub user_write: f64,
    /// Writes to the backing device.
    pub write_back: f64,
}

impl Rates {
    /// Takes a sample.
    pub fn sample(&mut self, now_ns: u64, counters: Counters) {
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((now_ns, counters));
    }

    /// The rates between the oldest sample and now.
    pub fn now(&self, now_ns: u64, counters: &Counters) -> BytesPerSecond {
        let Some((then_ns, then)) = self.samples.front() else { return BytesPerSecond::default() };
        let seconds = now_ns.saturating_sub(*then_ns) as f64 / 1e9;
        if seconds < 0.01 {
            return BytesPerSecond::default();
        }
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        BytesPerSecond {
            user_read: rate(counters.user_read_bytes, then.user_read_bytes),
            user_write: rate(counters.user_write_bytes, then.user_write_bytes),
            write_back: rate(counters.backing_write_bytes, then.backing_write_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_over_the_window() {
        let mut rates = Rates::default();
        let counters = |bytes| Counters { user_write_bytes: bytes, ..Counters::default() };
        for second in 0..10 {
            rates.sample(second * 1_000_000_000, counters(second * 1000));
        }
        let now = rates.now(9_000_000_000, &counters(9000));
        assert_eq!((now.user_write, now.user_read), (1000.0, 0.0));
    }
}
