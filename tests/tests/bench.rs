//! wb-bench measures what it says: the figures of a run fit what it was told to do, and it cleans up behind itself.

use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use wb_tests::mem_service::MemService;
use wb_tests::nbd_server::TestServer;
use wb_tests::tool::{run, tool};

/// A file that is written out.
fn file(dir: &Path, name: &str, bytes: usize) -> PathBuf {
    let path = dir.join(name);
    File::create(&path).unwrap().write_all(&vec![7; bytes]).unwrap();
    path
}

fn bench(args: &[&str]) -> Value {
    let quick = ["--json", "--yes", "--runtime", "300ms", "--ramp-time", "50ms", "--repeat", "2"];
    let ran = run(tool("wb-bench").arg("run").args(args).args(quick));
    assert!(ran.success(), "{}", ran.stderr);
    serde_json::from_str(&ran.stdout).expect("one JSON document")
}

fn figure(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a figure, not {value}"))
}

#[test]
fn writes_through_the_engine_are_few_and_large_on_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, backing) = (file(dir.path(), "cache", 256 << 20), file(dir.path(), "backing", 64 << 20));
    let (cache, backing) = (cache.to_str().unwrap(), backing.to_str().unwrap());
    let result = bench(&["randwrite", "--cache", cache, "--backing", backing, "--iodepth", "64"]);
    assert!(figure(&result["iops"]) > 0.0 && result["repetitions_iops"].as_array().unwrap().len() == 2);
    let bytes_per_op = figure(&result["bytes_per_s"]) / figure(&result["iops"]);
    assert!((bytes_per_op - 4096.0).abs() < 1.0, "every operation is 4 KiB: {bytes_per_op}");
    let ratios = &result["ratios"];
    assert!((1.0..1.2).contains(&figure(&ratios["device_bytes_per_user_byte"])), "{ratios}");
    // Two writes per segment of 504 blocks, three where a flush came between. Four would be 0.0079.
    assert!(figure(&ratios["device_writes_per_user_write"]) < 0.007, "{ratios}");
    for raw in ["seq_write_1m", "rand_write_4k", "write_flush_4k", "rand_read_4k"] {
        assert!(figure(&result["raw"][raw]["iops"]) > 0.0 && figure(&ratios[raw]) > 0.0, "{raw}");
    }
    let latency = &result["latency_us"];
    assert!(figure(&latency["p50"]) <= figure(&latency["p99"]) && figure(&latency["p99"]) <= figure(&latency["max"]));
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the file for raw passes is gone: {left:?}");
}

#[test]
fn a_flushed_write_costs_two_blocks_and_reads_hit_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, backing) = (file(dir.path(), "cache", 256 << 20), file(dir.path(), "backing", 32 << 20));
    let (cache, backing) = (cache.to_str().unwrap(), backing.to_str().unwrap());
    let result = bench(&["sync", "--cache", cache, "--backing", backing]);
    let per_byte = figure(&result["ratios"]["device_bytes_per_user_byte"]);
    // Anchors of pauses between operations come on top on a busy machine.
    assert!((2.0..3.0).contains(&per_byte), "header and payload: {per_byte}");
    let reads = bench(&["randread", "--cache", cache, "--backing", backing, "--iodepth", "4"]);
    // But for the anchor that follows the flush before them.
    assert!(figure(&reads["device"]["bytes"]) <= 8192.0, "reads of what is cached write nothing: {}", reads["device"]);
}

#[test]
fn an_nbd_server_is_measured_through_its_socket() {
    let server = TestServer::start(MemService::new(16 << 20, 512).without_record());
    let result = bench(&["randrw", "--nbd-uri", &server.uri(), "--iodepth", "8", "--numjobs", "2", "--fsync", "16"]);
    assert_eq!(result["target"], "nbd");
    assert!(figure(&result["iops"]) > 0.0 && result["raw"].as_object().unwrap().is_empty());
    let by_fio = bench(&["randwrite", "--nbd-uri", &server.uri(), "--iodepth", "8", "--engine", "fio"]);
    assert!(figure(&by_fio["iops"]) > 0.0 && figure(&by_fio["latency_us"]["p50"]) > 0.0);
}

#[test]
fn nothing_is_overwritten_without_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let device = file(dir.path(), "device", 4 << 20);
    let before = std::fs::read(&device).unwrap();
    let ran = run(tool("wb-bench").args(["run", "randwrite", "--device"]).arg(&device));
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("--yes"), "{}", ran.stderr);
    // Reading needs no consent and writes nothing, not even as a raw pass.
    bench(&["randread", "--device", device.to_str().unwrap()]);
    assert_eq!(std::fs::read(&device).unwrap(), before);
}

#[test]
fn a_file_with_holes_is_not_read_as_if_it_were_a_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    File::create(&path).unwrap().set_len(4 << 20).unwrap();
    let ran = run(tool("wb-bench").args(["run", "randread", "--device"]).arg(&path));
    assert!(ran.code == 1 && ran.stderr.contains("holes"), "{}", ran.stderr);
}
