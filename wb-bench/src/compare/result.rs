//! The recorded result of a comparison: one JSON document that holds what was measured and everything needed to run it
//! again. Tables and the HTML report are made from it alone.

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use wb_cli::error::NextStep;

/// Version of the document; a reader refuses others.
pub const FORMAT: u32 = 1;

/// One run of `wb-bench --compare`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Comparison {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of wb-bench.
    pub version: String,
    /// The command line that repeats the run.
    pub command: String,
    /// Seconds since 1970 when it began.
    pub started_unix_s: u64,
    /// How long it took.
    pub elapsed_s: f64,
    /// False if it was interrupted or a limit of time ended it.
    pub complete: bool,
    /// Where it ran.
    pub setup: Setup,
    /// The systems, in the order of the tables.
    pub systems: Vec<SystemConfig>,
    /// The workloads, in the order of the tables.
    pub workloads: Vec<WorkloadInfo>,
    /// One entry per system, workload and round, in the order of measuring.
    pub cells: Vec<Cell>,
}

/// Where a comparison ran.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Setup {
    /// "guest" or "host".
    pub place: String,
    /// Named facts, for people: processor, kernels, versions, sizes.
    pub facts: BTreeMap<String, String>,
    /// By how much the modelled devices are slower than their originals; 1 for real devices.
    pub dilation: f64,
    /// Parameters of the modelled devices, in their originals' time; null for real ones.
    pub ssd_model: serde_json::Value,
    /// The same of the backing device.
    pub disk_model: serde_json::Value,
}

/// How a system was set up: what was run and written, word by word.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SystemConfig {
    /// Short name ("bcache").
    pub name: String,
    /// Why it was set up like this, with sources.
    pub reasons: Vec<String>,
    /// Commands and writes to sysfs, in order.
    pub commands: Vec<String>,
    /// What the system says of itself afterwards; checked before each workload.
    pub checks: Vec<String>,
}

/// A workload as it was run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct WorkloadInfo {
    /// Short name ("burst").
    pub name: String,
    /// The question it answers.
    pub question: String,
    /// How its state was prepared.
    pub preparation: String,
    /// The fio job file, or what was done in its place.
    pub job: String,
    /// Unit of the value.
    pub unit: String,
    /// True if more is better.
    pub more_is_better: bool,
    /// Share of the dilation that the devices had here; 1 for real devices.
    pub dilation_share: f64,
}

/// Device operations, as the kernel's /proc/diskstats counts them.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct DiskWork {
    /// Read requests.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Discard requests.
    pub discards: u64,
}

impl DiskWork {
    /// What was added since `before`.
    pub fn since(&self, before: &DiskWork) -> DiskWork {
        DiskWork {
            reads: self.reads.saturating_sub(before.reads),
            read_bytes: self.read_bytes.saturating_sub(before.read_bytes),
            writes: self.writes.saturating_sub(before.writes),
            write_bytes: self.write_bytes.saturating_sub(before.write_bytes),
            flushes: self.flushes.saturating_sub(before.flushes),
            discards: self.discards.saturating_sub(before.discards),
        }
    }
}

/// Latency of one operation, in microseconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Latency {
    /// What an operation is ("write", "read", "write + fdatasync": the fdatasync).
    pub of: String,
    /// Mean.
    pub mean_us: f64,
    /// Largest.
    pub max_us: f64,
    /// (percent of the operations, latency they stay below), rising.
    pub percentiles: Vec<(f64, f64)>,
}

impl Latency {
    /// The latency below which `percent` of the operations stay, if it was recorded.
    pub fn at(&self, percent: f64) -> Option<f64> {
        self.percentiles.iter().find(|(p, _)| (p - percent).abs() < 1e-6).map(|(_, us)| *us)
    }
}

/// What one workload gave on one system in one round.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Measurement {
    /// The figure that is compared, in the workload's unit.
    pub value: f64,
    /// Writes of the user.
    pub user_writes: u64,
    /// Their bytes.
    pub user_write_bytes: u64,
    /// Reads of the user.
    pub user_reads: u64,
    /// Their bytes.
    pub user_read_bytes: u64,
    /// FLUSHes of the user (fdatasync).
    pub user_flushes: u64,
    /// Duration.
    pub seconds: f64,
    /// Latencies.
    pub latency: Option<Latency>,
    /// (seconds, operations per second or MiB/s, as the workload's unit says).
    pub series: Vec<(f64, f64)>,
    /// (seconds, MiB dirty), while draining.
    pub drain: Vec<(f64, f64)>,
    /// What the SSD had to do.
    pub ssd: DiskWork,
    /// What the disk had to do.
    pub disk: DiskWork,
    /// What the SSD's model counted; null for real devices.
    pub ssd_model: serde_json::Value,
    /// What the disk's model counted; null for real devices.
    pub disk_model: serde_json::Value,
    /// Further figures, by name.
    pub more: BTreeMap<String, f64>,
}

/// How a cell ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Measured.
    Measured(Box<Measurement>),
    /// The question does not apply, and why.
    NotApplicable(String),
    /// It did not end as it should.
    Failed(String),
}

/// One system, one workload, one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Name of the system.
    pub system: String,
    /// Name of the workload.
    pub workload: String,
    /// Which repetition, from 0.
    pub round: u32,
    /// How it ended.
    pub outcome: Outcome,
}

/// Median and extremes of the repetitions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Median; the mean of the middle two where their number is even.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// How many.
    pub count: usize,
}

impl Spread {
    /// Of these values, if there are any.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let count = values.len();
        let median = (values[(count - 1) / 2] + values[count / 2]) / 2.0;
        Some(Spread { median, min, max, count })
    }
}

impl Comparison {
    /// Reads a recorded result.
    pub fn load(path: &Path) -> anyhow::Result<Comparison> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let result: Comparison = serde_json::from_str(&text)
            .with_context(|| format!("{} is no result of wb-bench --compare", path.display()))
            .next_step("name a file that `wb-bench --compare ... --save FILE` wrote")?;
        if result.format != FORMAT {
            bail!("{} has format {}, this wb-bench reads {FORMAT}", path.display(), result.format);
        }
        Ok(result)
    }

    /// Measurements of one system and workload, by round.
    pub fn measured(&self, system: &str, workload: &str) -> Vec<&Measurement> {
        let of = |cell: &&Cell| cell.system == system && cell.workload == workload;
        self.cells.iter().filter(of).filter_map(measured_of).collect()
    }

    /// Median and spread of the compared figure.
    pub fn spread(&self, system: &str, workload: &str) -> Option<Spread> {
        Spread::of(self.measured(system, workload).iter().map(|m| m.value))
    }

    /// Median and spread of a figure derived from each measurement.
    pub fn spread_by(&self, system: &str, workload: &str, f: impl Fn(&Measurement) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.measured(system, workload).into_iter().filter_map(f))
    }

    /// Why there is no figure.
    pub fn why_not(&self, system: &str, workload: &str) -> Option<(bool, &str)> {
        let of = |cell: &&Cell| cell.system == system && cell.workload == workload;
        self.cells.iter().filter(of).find_map(|cell| match &cell.outcome {
            Outcome::NotApplicable(why) => Some((false, why.as_str())),
            Outcome::Failed(why) => Some((true, why.as_str())),
            Outcome::Measured(_) => None,
        })
    }
}

fn measured_of(cell: &Cell) -> Option<&Measurement> {
    match &cell.outcome {
        Outcome::Measured(m) => Some(m),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        let spread = Spread::of([3.0, 1.0, 2.0]).expect("values");
        assert_eq!((spread.median, spread.min, spread.max, spread.count), (2.0, 1.0, 3.0, 3));
        assert_eq!(Spread::of([1.0, 2.0]).expect("values").median, 1.5);
        assert_eq!(Spread::of([f64::NAN]), None);
    }
}
