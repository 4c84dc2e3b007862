//! fio as the source of load: an outside check of what this program measures.

use super::Load;
use super::pattern::{Access, ZIPF_THETA};
use super::stats::Pass;
use anyhow::{Context as _, ensure};
use std::process::Command;
use std::time::Duration;
use wb_cli::NextStep;
use wb_cli::json::bench::LatencyUs;

/// What fio runs on.
#[derive(Debug, Clone)]
pub enum FioTarget {
    /// An NBD server.
    Nbd(String),
    /// A device or file, with direct I/O.
    Device(String),
}

/// What fio measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct FioPass {
    /// Operations per second.
    pub iops: f64,
    /// Bytes per second.
    pub bytes_per_s: f64,
    /// Latency from submission to completion.
    pub latency_us: LatencyUs,
    /// Mean of it.
    pub mean_us: f64,
}

impl FioPass {
    /// Without a histogram: fio gives percentiles only.
    pub fn as_pass(&self, runtime: Duration) -> Pass {
        let mut pass = Pass::new();
        pass.elapsed = runtime;
        pass.ops = (self.iops * runtime.as_secs_f64()) as u64;
        pass.bytes = (self.bytes_per_s * runtime.as_secs_f64()) as u64;
        pass
    }
}

/// The command line.
fn arguments(target: &FioTarget, load: &Load) -> Vec<String> {
    let rw = match (&load.access, load.read_percent) {
        (Access::Sequential, 0) => "write",
        (Access::Sequential, 100) => "read",
        (Access::Sequential, _) => "rw",
        (_, 0) => "randwrite",
        (_, 100) => "randread",
        _ => "randrw",
    };
    let mut args = vec![
        "--name=wb-bench".into(),
        format!("--rw={rw}"),
        format!("--bs={}", load.block_bytes),
        format!("--iodepth={}", load.iodepth),
        format!("--numjobs={}", load.jobs),
        format!("--size={}", load.working_set_bytes),
        format!("--runtime={}ms", load.runtime.as_millis()),
        "--time_based".into(),
        "--thread".into(),
        "--group_reporting".into(),
        "--randrepeat=0".into(),
        "--norandommap".into(),
        "--output-format=json".into(),
    ];
    if load.write_bytes_max < u64::MAX && load.read_percent < 100 {
        args.push(format!("--io_size={}", load.write_bytes_max / u64::from(load.jobs)));
        args.retain(|arg| arg != "--time_based");
    }
    if !matches!(load.read_percent, 0 | 100) {
        args.push(format!("--rwmixread={}", load.read_percent));
    }
    if let Access::Zipf(_) = load.access {
        args.push(format!("--random_distribution=zipf:{ZIPF_THETA}"));
    }
    if let Some(every) = load.flush_every {
        args.push(format!("--fdatasync={every}"));
    }
    match target {
        FioTarget::Nbd(uri) => args.extend(["--ioengine=nbd".into(), format!("--uri={uri}")]),
        FioTarget::Device(path) => {
            args.extend(["--ioengine=io_uring".into(), "--direct=1".into(), format!("--filename={path}")]);
        }
    }
    args
}

/// Runs fio once.
pub fn run(target: &FioTarget, load: &Load) -> anyhow::Result<FioPass> {
    let output = Command::new("fio")
        .args(arguments(target, load))
        .output()
        .context("cannot start fio")
        .next_step("install fio, or leave --engine out")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "fio failed: {}{text}", String::from_utf8_lossy(&output.stderr));
    // Its engines say something before the JSON.
    let start = text.find('{').context("fio printed no JSON")?;
    let json: serde_json::Value = serde_json::from_str(&text[start..]).context("fio printed strange JSON")?;
    parse(&json["jobs"][0])
}

fn parse(job: &serde_json::Value) -> anyhow::Result<FioPass> {
    let figure = |value: &serde_json::Value| value.as_f64().unwrap_or(0.0);
    let (read, write) = (&job["read"], &job["write"]);
    let main = if figure(&write["total_ios"]) >= figure(&read["total_ios"]) { write } else { read };
    ensure!(figure(&main["total_ios"]) > 0.0, "fio did nothing");
    let percentile = |name: &str| figure(&main["clat_ns"]["percentile"][name]) / 1000.0;
    Ok(FioPass {
        iops: figure(&read["iops"]) + figure(&write["iops"]),
        bytes_per_s: figure(&read["bw_bytes"]) + figure(&write["bw_bytes"]),
        latency_us: LatencyUs {
            p50: percentile("50.000000"),
            p99: percentile("99.000000"),
            p999: percentile("99.900000"),
            max: figure(&main["lat_ns"]["max"]) / 1000.0,
        },
        mean_us: figure(&main["lat_ns"]["mean"]) / 1000.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_side_of_a_job_gives_the_latency() {
        let side = |ios: u64, us: u64| {
            serde_json::json!({
                "total_ios": ios, "iops": ios, "bw_bytes": ios * 4096,
                "lat_ns": {"mean": us * 1000, "max": us * 2000},
                "clat_ns": {"percentile": {"50.000000": us * 1000, "99.000000": 0, "99.900000": 0}},
            })
        };
        let pass = parse(&serde_json::json!({"read": side(10, 50), "write": side(30, 70)})).unwrap();
        assert_eq!((pass.iops, pass.bytes_per_s, pass.mean_us, pass.latency_us.p50), (40.0, 40.0 * 4096.0, 70.0, 70.0));
        assert!(parse(&serde_json::json!({"read": side(0, 0), "write": side(0, 0)})).is_err());
    }
}
