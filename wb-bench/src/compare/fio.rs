//! fio makes the load, the same for every system: job files from workloads, results from its JSON and logs.

use super::result::{Latency, Measurement};
use super::shell;
use anyhow::{Context as _, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Seed of jobs: all systems see the same sequence of addresses.
const SEED: u64 = 20140214;
/// Distance of the points of a series.
const SERIES_MS: u64 = 500;
/// fio takes at most 20 percentiles.
const PERCENTILES: [f64; 20] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9, 99.99,
    100.0,
];
/// Time over the job's own that fio may take: it starts slowly on emulated processors, and ends only when the last
/// request has.
const GRACE: Duration = Duration::from_secs(120);

/// A load, in fio's terms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FioJob {
    /// fio's `rw`.
    pub rw: String,
    /// Bytes of an operation.
    pub bs: u64,
    /// Operations in flight per job.
    pub iodepth: u32,
    /// Jobs side by side.
    pub numjobs: u32,
    /// fdatasync after each write.
    pub fdatasync: bool,
    /// Share of reads of mixed loads, in percent.
    pub rwmixread: u32,
    /// Zipfian with this theta, in place of uniform.
    pub zipf: Option<f64>,
    /// Where the region begins that is accessed.
    pub offset: u64,
    /// Its bytes.
    pub size: u64,
    /// End after so many bytes, if that is earlier than `runtime_s`.
    pub io_size: Option<u64>,
    /// End after this time.
    pub runtime_s: u64,
    /// Not counted before.
    pub ramp_s: u64,
    /// Each block once, in place of blocks drawn anew each time.
    pub each_once: bool,
    /// Seed of its addresses. What prepares a load has another one: the same blocks again would be overwrites.
    pub seed: u64,
}

impl FioJob {
    /// 4 KiB, one at a time, over `size` bytes; the rest is set by the caller.
    pub fn new(rw: &str, size: u64, runtime_s: u64) -> FioJob {
        FioJob {
            rw: rw.to_string(),
            bs: 4096,
            iodepth: 1,
            numjobs: 1,
            fdatasync: false,
            rwmixread: 50,
            zipf: None,
            offset: 0,
            size,
            io_size: None,
            runtime_s,
            ramp_s: 0,
            each_once: false,
            seed: SEED,
        }
    }

    /// The job file for a device, as it is shown in the report and run by fio.
    pub fn file(&self, device: &str, logs: &str) -> String {
        let mut text = String::from("[global]\n");
        let mut line = |args: std::fmt::Arguments| writeln!(text, "{args}").expect("writing to a string");
        line(format_args!("ioengine=libaio\ndirect=1\nthread=1\ngroup_reporting=1"));
        if !self.each_once {
            line(format_args!("norandommap=1"));
        }
        // The same addresses in every run, and others with another seed: with randrepeat=1 fio (3.33) takes no seed at all.
        // Payload that neither compresses nor repeats.
        line(format_args!("randrepeat=0\nrandseed={}\nrefill_buffers=1", self.seed));
        line(format_args!("clat_percentiles=1"));
        let list: Vec<String> = PERCENTILES.iter().map(|p| p.to_string()).collect();
        line(format_args!("percentile_list={}", list.join(":")));
        line(format_args!("log_avg_msec={SERIES_MS}\nper_job_logs=0\nwrite_iops_log={logs}\nwrite_bw_log={logs}"));
        line(format_args!("\n[load]\nfilename={device}\nrw={}\nbs={}", self.rw, self.bs));
        line(format_args!("iodepth={}\nnumjobs={}", self.iodepth, self.numjobs));
        line(format_args!("offset={}\nsize={}", self.offset, self.size));
        if let Some(theta) = self.zipf {
            line(format_args!("random_distribution=zipf:{theta}"));
        }
        if self.fdatasync {
            line(format_args!("fdatasync=1"));
        }
        if self.rw.ends_with("rw") {
            line(format_args!("rwmixread={}", self.rwmixread));
        }
        match self.io_size {
            // What is measured by its amount has to be on the device in the end, and not only in somebody's memory.
            Some(bytes) => line(format_args!("io_size={bytes}\nend_fsync=1\nruntime={}", self.runtime_s)),
            None => line(format_args!("time_based=1\nruntime={}", self.runtime_s)),
        }
        if self.ramp_s > 0 {
            line(format_args!("ramp_time={}", self.ramp_s));
        }
        text
    }

    /// Runs the load on a block device. The value is operations per second, or MiB/s for large ones.
    pub fn run(&self, device: &Path) -> anyhow::Result<Measurement> {
        super::diskstats::require_block_device(device)?;
        let dir = tempfile::tempdir().context("cannot make a folder for fio")?;
        let (job, out, logs) = (dir.path().join("job.fio"), dir.path().join("out.json"), dir.path().join("log"));
        let text = |path: &Path| path.display().to_string();
        std::fs::write(&job, self.file(&text(device), &text(&logs)))?;
        let mut command = Command::new("fio");
        command.arg("--output-format=json").arg(format!("--output={}", text(&out))).arg(&job).current_dir(dir.path());
        shell::run_command(command, Duration::from_secs(self.runtime_s + self.ramp_s) + GRACE)?;
        let document = std::fs::read_to_string(&out).context("fio wrote no result")?;
        let mut measurement = parse(&document, self)?;
        let log = if self.in_mib() { "log_bw.log" } else { "log_iops.log" };
        let log = std::fs::read_to_string(dir.path().join(log)).unwrap_or_default();
        measurement.series = series(&log, if self.in_mib() { 1.0 / 1024.0 } else { 1.0 });
        Ok(measurement)
    }

    /// True if rates are given in MiB/s and not in operations.
    pub fn in_mib(&self) -> bool {
        self.bs >= 64 << 10
    }
}

/// fio may print warnings before the document.
fn parse(text: &str, job: &FioJob) -> anyhow::Result<Measurement> {
    let begin = text.find("\n{").map_or(0, |at| at + 1);
    let document: Value = serde_json::from_str(&text[begin..]).context("fio's result is no JSON")?;
    let result = document["jobs"].get(0).ok_or_else(|| anyhow!("fio's result has no job"))?;
    match result["error"].as_i64() {
        Some(0) | None => (),
        Some(errno) => bail!("fio met an I/O error: {}", std::io::Error::from_raw_os_error(errno as i32)),
    }
    let number = |section: &str, field: &str| result[section][field].as_f64().unwrap_or(0.0);
    let count = |section: &str, field: &str| result[section][field].as_u64().unwrap_or(0);
    let (writes, reads) = (count("write", "total_ios"), count("read", "total_ios"));
    if writes + reads == 0 {
        bail!("not one operation ended within {} s", job.runtime_s);
    }
    let seconds = number("write", "runtime").max(number("read", "runtime")) / 1000.0;
    let rate = |section| number(section, "iops");
    let mib = |section| number(section, "bw_bytes") / f64::from(1 << 20);
    let value = if job.in_mib() { mib("write") + mib("read") } else { rate("write") + rate("read") };
    let mut more = BTreeMap::new();
    if writes > 0 && reads > 0 {
        more.insert("read_iops".to_string(), rate("read"));
        more.insert("write_iops".to_string(), rate("write"));
    }
    Ok(Measurement {
        value,
        user_writes: writes,
        user_write_bytes: count("write", "io_bytes"),
        user_reads: reads,
        user_read_bytes: count("read", "io_bytes"),
        // Some versions leave total_ios at 0 and count the latencies.
        user_flushes: count("sync", "total_ios").max(result["sync"]["lat_ns"]["N"].as_u64().unwrap_or(0)),
        seconds,
        latency: latency(result, job, writes, reads),
        more,
        ..Measurement::default()
    })
}

fn latency(result: &Value, job: &FioJob, writes: u64, reads: u64) -> Option<Latency> {
    let (of, section) = if job.fdatasync && result["sync"]["lat_ns"]["percentile"].is_object() {
        ("fdatasync after a write", &result["sync"]["lat_ns"])
    } else if reads >= writes {
        ("read", &result["read"]["clat_ns"])
    } else {
        ("write", &result["write"]["clat_ns"])
    };
    let us = |value: &Value| value.as_f64().map(|ns| ns / 1000.0);
    let percentiles = section["percentile"].as_object()?;
    let point = |(percent, ns): (&String, &Value)| Some((percent.parse::<f64>().ok()?, us(ns)?));
    let mut percentiles: Vec<(f64, f64)> = percentiles.iter().filter_map(point).collect();
    percentiles.sort_by(|a, b| a.0.total_cmp(&b.0));
    Some(Latency { of: of.to_string(), mean_us: us(&section["mean"])?, max_us: us(&section["max"])?, percentiles })
}

/// fio's log lines are "ms, value, direction, ...", one per job and direction; those of one moment are added up.
fn series(log: &str, factor: f64) -> Vec<(f64, f64)> {
    let mut sums: BTreeMap<u64, f64> = BTreeMap::new();
    for line in log.lines() {
        let mut fields = line.split(',').map(str::trim);
        let (Some(ms), Some(value)) = (fields.next(), fields.next()) else { continue };
        if let (Ok(ms), Ok(value)) = (ms.parse::<u64>(), value.parse::<f64>()) {
            *sums.entry((ms + SERIES_MS / 2) / SERIES_MS).or_default() += value * factor;
        }
    }
    sums.into_iter().map(|(slot, sum)| ((slot * SERIES_MS) as f64 / 1000.0, sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_file_says_what_runs() {
        let mut job = FioJob::new("randrw", 1 << 20, 5);
        (job.zipf, job.fdatasync, job.rwmixread) = (Some(0.99), true, 70);
        let text = job.file("/dev/x", "log");
        for line in ["rw=randrw", "rwmixread=70", "random_distribution=zipf:0.99", "fdatasync=1", "time_based=1"] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        job.io_size = Some(4096);
        let text = job.file("/dev/x", "log");
        assert!(text.contains("io_size=4096\nend_fsync=1\nruntime=5") && !text.contains("time_based"), "{text}");
    }

    #[test]
    fn jobs_of_one_moment_are_added_up() {
        let log = "500, 10, 1, 4096, 0\n502, 20, 1, 4096, 0\n1001, 5, 0, 4096, 0\n";
        assert_eq!(series(log, 1.0), [(0.5, 30.0), (1.0, 5.0)]);
    }

    #[test]
    fn results_are_taken_from_the_right_fields() {
        let text = r#"fio: a warning
{"jobs":[{"error":0,
 "write":{"total_ios":40,"io_bytes":163840,"iops":20.0,"bw_bytes":81920,"runtime":2000,
   "clat_ns":{"mean":1000.0,"max":5000,"percentile":{"50.000000":900,"100.000000":5000}}},
 "read":{"total_ios":0,"io_bytes":0,"iops":0.0,"bw_bytes":0,"runtime":0,"clat_ns":{}},
 "sync":{"total_ios":0,"lat_ns":{"N":40,"mean":7000.0,"max":9000,"percentile":{"50.000000":6000}}}}]}"#;
        let mut job = FioJob::new("randwrite", 1 << 20, 2);
        let plain = parse(text, &job).expect("a result");
        assert_eq!((plain.value, plain.user_writes, plain.user_flushes, plain.seconds), (20.0, 40, 40, 2.0));
        let latency = plain.latency.expect("latency");
        assert_eq!((latency.of.as_str(), latency.at(50.0), latency.max_us), ("write", Some(0.9), 5.0));
        job.fdatasync = true;
        let synced = parse(text, &job).expect("a result").latency.expect("latency");
        assert_eq!((synced.at(50.0), synced.mean_us), (Some(6.0), 7.0));
        job.bs = 1 << 20;
        assert_eq!(parse(text, &job).expect("a result").value, 0.078125);
    }

    #[test]
    fn an_error_of_fio_and_an_empty_result_are_errors() {
        let job = FioJob::new("randwrite", 1 << 20, 2);
        let failed = parse(r#"{"jobs":[{"error":5,"write":{"total_ios":9}}]}"#, &job).expect_err("EIO");
        assert!(failed.to_string().contains("I/O error"), "{failed}");
        assert!(parse(r#"{"jobs":[{"error":0}]}"#, &job).is_err());
        assert!(parse(r#"{"jobs":[]}"#, &job).is_err());
    }
}
