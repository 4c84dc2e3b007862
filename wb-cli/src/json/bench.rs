//! `wb-bench run --json`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Latency percentiles in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyUs {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Largest.
    pub max: f64,
}

/// What the cache device had to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceWork {
    /// Write commands.
    pub writes: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Flush commands.
    pub flushes: u64,
}

/// One way of using the raw device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct RawResult {
    /// Operations per second.
    pub iops: f64,
    /// Bytes per second.
    pub bytes_per_s: f64,
    /// Latency.
    pub latency_us: LatencyUs,
}

/// One workload, measured. Figures are medians of the repetitions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchResult {
    /// Its name ("randwrite").
    pub workload: String,
    /// What it ran on ("engine", "nbd", "device").
    pub target: String,
    /// Every option, so that the run can be repeated.
    pub options: BTreeMap<String, serde_json::Value>,
    /// Operations per second.
    pub iops: f64,
    /// Bytes per second.
    pub bytes_per_s: f64,
    /// Latency of an operation.
    pub latency_us: LatencyUs,
    /// CPU time per operation in microseconds, of this process.
    pub cpu_us_per_op: Option<f64>,
    /// What the cache device had to do; absent where it cannot be seen.
    pub device: Option<DeviceWork>,
    /// The raw device in the same run: `seq_write_1m`, `rand_write_4k`, `write_flush_4k`, `rand_read_4k`.
    pub raw: BTreeMap<String, RawResult>,
    /// `bytes_per_s` of this run by that of each raw one, and device work per user operation.
    pub ratios: BTreeMap<String, f64>,
    /// `iops` of every repetition.
    pub repetitions_iops: Vec<f64>,
}

/// One row of the table of goals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SuiteRow {
    /// Its number.
    pub row: u8,
    /// What was measured, by what it was divided.
    pub measure: String,
    /// The figure: median of the repetitions.
    pub value: f64,
    /// The goal.
    pub target: f64,
    /// Whether the figure must not exceed the goal (or else must reach it).
    pub at_most: bool,
    /// Whether it does.
    pub reached: bool,
    /// The ratio of every repetition.
    pub repetitions: Vec<f64>,
    /// What the ratio was made of, medians; for people.
    pub of: String,
}

/// `wb-bench suite --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SuiteResult {
    /// Kernel.
    pub kernel: String,
    /// Processor and number of CPUs.
    pub processor: String,
    /// The rows, in order; some have several lines.
    pub rows: Vec<SuiteRow>,
}
