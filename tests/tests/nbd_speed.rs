//! The cost of the NBD server itself: a volume in memory against `nbdkit null`, under the same fio, in one run.
//!
//! Not part of the ordinary tests: `cargo test --release -p wb-tests --test nbd_speed -- --ignored --nocapture`.

use serde_json::Value;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wb_tests::mem_service::MemService;
use wb_tests::nbd_server::TestServer;
use wb_tests::programs::check;

/// A `nbdkit null` on a Unix socket; ends when dropped.
struct Nbdkit {
    child: Child,
    uri: String,
    _dir: tempfile::TempDir,
}

impl Nbdkit {
    fn start() -> Nbdkit {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("null.sock");
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--unix"]).arg(&path).args(["null", "64M"]);
        let child = command.stdin(Stdio::null()).spawn().expect("install the package nbdkit");
        let begin = Instant::now();
        while !path.exists() {
            assert!(begin.elapsed() < Duration::from_secs(10), "nbdkit does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Nbdkit { child, uri: format!("nbd+unix:///?socket={}", path.display()), _dir: dir }
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of a process in seconds, user and system, of all its threads.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a living process");
    let fields: Vec<&str> = stat[stat.rfind(')').expect("a name in parentheses")..].split_whitespace().collect();
    // Fields 14 and 15 of proc(5), in ticks of 10 ms.
    let ticks = |field: &str| field.parse::<f64>().expect("a number");
    (ticks(fields[12]) + ticks(fields[13])) / 100.0
}

/// What one run of fio against a server gave.
struct Run {
    /// Mean latency.
    latency_us: f64,
    /// Operations per second.
    iops: f64,
    /// CPU time of the server per operation; hardly depends on what else runs on the machine.
    cpu_us: f64,
}

fn fio(uri: &str, server_pid: u32, rw: &str, depth: u32, block_bytes: u32) -> Run {
    let cpu_before = cpu_seconds(server_pid);
    let args = [
        "--name=speed",
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        "--size=64m",
        &format!("--rw={rw}"),
        &format!("--bs={block_bytes}"),
        &format!("--iodepth={depth}"),
        "--time_based",
        "--runtime=2",
        "--thread",
        "--output-format=json",
    ];
    let output = check("fio", "fio", &args);
    // The engine says something before the JSON.
    let start = output.find('{').expect("JSON of fio");
    let json: Value = serde_json::from_str(&output[start..]).expect("JSON of fio");
    let side = &json["jobs"][0][if rw.ends_with("read") { "read" } else { "write" }];
    let figure = |value: &Value| value.as_f64().expect("a figure of fio");
    let cpu_us = (cpu_seconds(server_pid) - cpu_before) * 1e6 / figure(&side["total_ios"]);
    Run { latency_us: figure(&side["lat_ns"]["mean"]) / 1000.0, iops: figure(&side["iops"]), cpu_us }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
#[ignore = "a measurement of two minutes, for release builds on a quiet machine"]
fn latency_and_rate_against_nbdkit_null() {
    if cfg!(debug_assertions) {
        panic!("measure release builds: cargo test --release");
    }
    let ours = TestServer::start(MemService::new(64 << 20, 512).without_record());
    let null = Nbdkit::start();
    for (rw, depth, block_bytes) in [
        ("randread", 1, 4096),
        ("randwrite", 1, 4096),
        ("randread", 32, 4096),
        ("randwrite", 32, 4096),
        ("read", 4, 256 << 10),
        ("write", 4, 256 << 10),
    ] {
        // In turns, so that both see the same weather.
        let pids = (std::process::id(), null.child.id());
        let rounds: Vec<(Run, Run)> = (0..5)
            .map(|_| {
                let ours = fio(&ours.uri(), pids.0, rw, depth, block_bytes);
                (ours, fio(&null.uri, pids.1, rw, depth, block_bytes))
            })
            .collect();
        let compare = |what: &str, of: fn(&Run) -> f64| {
            let ours = median(rounds.iter().map(|round| of(&round.0)).collect());
            let null = median(rounds.iter().map(|round| of(&round.1)).collect());
            println!("  {what}: {ours:.2} against {null:.2} = {:.2}x", ours / null);
            (ours, null)
        };
        println!("{rw}, {block_bytes} B, depth {depth}");
        let (our_us, null_us) = compare("latency us", |run| run.latency_us);
        compare("IOPS", |run| run.iops);
        compare("server CPU us/op", |run| run.cpu_us);
        assert!(our_us < 3.0 * null_us, "an order of magnitude that nobody meant");
    }
}
