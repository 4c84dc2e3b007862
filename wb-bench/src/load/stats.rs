//! What a pass measured.

use hdrhistogram::Histogram;
use nix::sys::resource::{UsageWho, getrusage};
use std::time::Duration;
use wb_cli::json::bench::LatencyUs;

/// Longest latency that is told apart from longer ones: ten minutes.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// One pass.
#[derive(Debug, Clone)]
pub struct Pass {
    /// Latency of every operation, in nanoseconds.
    pub latency_ns: Histogram<u64>,
    /// Operations.
    pub ops: u64,
    /// Those of them that read.
    pub reads: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes that operations asked for.
    pub flushes: u64,
    /// Time from the first operation to the end of the last, final flush included.
    pub elapsed: Duration,
    /// CPU time of this process, user and system.
    pub cpu: Option<Duration>,
}

impl Pass {
    /// Nothing measured yet.
    pub fn new() -> Pass {
        let latency_ns = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("bounds that are constants");
        Pass {
            latency_ns,
            ops: 0,
            reads: 0,
            bytes: 0,
            written_bytes: 0,
            flushes: 0,
            elapsed: Duration::ZERO,
            cpu: None,
        }
    }

    /// One operation more.
    pub fn record(&mut self, latency: Duration, bytes: u64, read: bool) {
        self.latency_ns.saturating_record((latency.as_nanos() as u64).max(1));
        self.ops += 1;
        self.bytes += bytes;
        self.reads += u64::from(read);
        self.written_bytes += if read { 0 } else { bytes };
    }

    /// What another thread did in the same pass.
    pub fn add(&mut self, other: &Pass) -> anyhow::Result<()> {
        self.latency_ns.add(&other.latency_ns)?;
        self.ops += other.ops;
        self.reads += other.reads;
        self.bytes += other.bytes;
        self.written_bytes += other.written_bytes;
        self.flushes += other.flushes;
        Ok(())
    }

    /// Operations per second.
    pub fn iops(&self) -> f64 {
        self.ops as f64 / self.elapsed.as_secs_f64()
    }

    /// Bytes per second.
    pub fn bytes_per_s(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64()
    }

    /// CPU time per operation in microseconds.
    pub fn cpu_us_per_op(&self) -> Option<f64> {
        self.cpu.filter(|_| self.ops > 0).map(|cpu| cpu.as_secs_f64() * 1e6 / self.ops as f64)
    }

    /// Percentiles.
    pub fn latency_us(&self) -> LatencyUs {
        let at = |percentile: f64| self.latency_ns.value_at_percentile(percentile) as f64 / 1000.0;
        LatencyUs { p50: at(50.0), p99: at(99.0), p999: at(99.9), max: self.latency_ns.max() as f64 / 1000.0 }
    }
}

impl Default for Pass {
    fn default() -> Pass {
        Pass::new()
    }
}

/// CPU time of this process at a moment.
#[derive(Debug, Clone, Copy)]
pub struct Cpu(Duration);

impl Cpu {
    /// Now.
    pub fn now() -> Cpu {
        let usage = getrusage(UsageWho::RUSAGE_SELF).expect("the kernel knows this process");
        let of = |time: nix::sys::time::TimeVal| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000);
        Cpu(of(usage.user_time()) + of(usage.system_time()))
    }
    /// CPU time since then.
    pub fn since(self) -> Duration {
        Cpu::now().0.saturating_sub(self.0)
    }
}

/// The median; of an even number, the mean of the two in the middle. Panics if there is none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    assert!(!values.is_empty(), "a median of something");
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Medians of percentiles.
pub fn median_latency<'a>(passes: impl Iterator<Item = &'a Pass> + Clone) -> LatencyUs {
    let of = |field: fn(LatencyUs) -> f64| median(passes.clone().map(|pass| field(pass.latency_us())));
    LatencyUs { p50: of(|l| l.p50), p99: of(|l| l.p99), p999: of(|l| l.p999), max: of(|l| l.max) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn passes_add_up() {
        let (mut one, mut two) = (Pass::new(), Pass::new());
        one.record(Duration::from_micros(10), 4096, false);
        two.record(Duration::from_micros(30), 4096, true);
        one.add(&two).unwrap();
        one.elapsed = Duration::from_secs(2);
        assert_eq!((one.ops, one.reads, one.written_bytes, one.iops()), (2, 1, 4096, 1.0));
        assert_eq!(one.bytes_per_s(), 4096.0);
        assert!((one.latency_us().max - 30.0).abs() < 0.1);
    }
}
