//! Write-back of a daemon that runs: its settings are changed, and its disk has a bad part.

use serde_json::Value;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};
use wb_tests::daemon::{Daemon, Place, random_bytes};

const MIB: u64 = 1 << 20;

/// Waits until `status` says so.
#[track_caller]
fn wait(daemon: &Daemon, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let volume = daemon.status()["volumes"][0].take();
        if holds(&volume) {
            return volume;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "not {what}: {volume:#}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn dirty(volume: &Value) -> u64 {
    volume["dirty_bytes"].as_u64().expect("a number")
}

#[track_caller]
fn set(daemon: &Daemon, setting: &str, value: &str) {
    let ran = daemon.control(&["set", &format!("{setting}={value}")]);
    assert_eq!(ran.code, 0, "set {setting}={value}: {}", ran.stderr);
}

fn content(file: &Path, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    std::fs::File::open(file).and_then(|file| file.read_exact_at(&mut bytes, offset)).expect("readable");
    bytes
}

#[test]
fn settings_of_write_back_change_at_once() {
    let place = Place::new(64 * MIB, MIB, 256 * MIB);
    let daemon = place.start();
    let mut client = daemon.connect();
    let data = random_bytes(1, 5 << 20);
    client.write(8 * MIB, &data, 0).expect("written");
    client.flush().expect("flushed");
    let held = wait(&daemon, "holding", |volume| volume["writeback_why"] == "below");
    assert_eq!((dirty(&held), content(&place.backing, 8 * MIB, 4096)), (5 * MIB, vec![0; 4096]), "{held:#}");

    // The watermarks have an order, and a refusal changes nothing.
    let refused = daemon.control(&["set", "writeback.start_percent=5"]);
    assert!(refused.code == 1 && refused.stderr.contains("change the other one first"), "{}", refused.stderr);
    set(&daemon, "writeback.stop_percent", "1");
    assert_eq!(dirty(&wait(&daemon, "gentle", |volume| volume["writeback_why"] != "below")), 5 * MIB);
    set(&daemon, "writeback.start_percent", "2");
    wait(&daemon, "written back", |volume| dirty(volume) <= 64 * MIB / 100);
    assert_eq!(daemon.status()["settings"]["writeback.start_percent"], 2);

    // Quiet: it waits for its share, and then writes back everything.
    set(&daemon, "writeback.quiet_percent", "50");
    client.write(64 * MIB, &data, 0).expect("written");
    client.flush().expect("flushed");
    wait(&daemon, "quiet", |volume| volume["writeback_why"] == "quiet" && dirty(volume) >= 5 * MIB);
    set(&daemon, "writeback.quiet_percent", "5");
    wait(&daemon, "clean", |volume| volume["writeback_why"] == "clean" && dirty(volume) == 0);
    drop(client);
    assert_eq!(content(&place.backing, 8 * MIB, data.len()), data);
    assert_eq!(content(&place.backing, 64 * MIB, data.len()), data);
    daemon.stop();
    place.assert_clean();
}

#[test]
fn a_drain_writes_the_rest_beside_what_the_disk_refuses() {
    let place = Place::new(64 * MIB, MIB, 256 * MIB);
    let daemon = place.start_limited(128 * MIB);
    let mut client = daemon.connect();
    let good: Vec<(u64, Vec<u8>)> = (0..200).map(|at| (at * 149 * 4096, random_bytes(1 + at, 4096))).collect();
    let bad: Vec<(u64, Vec<u8>)> =
        (0..5).map(|at| (160 * MIB + at * 512 * 4096, random_bytes(1000 + at, 4096))).collect();
    for (offset, data) in good.iter().chain(&bad) {
        client.write(*offset, data, 0).expect("written");
    }
    client.flush().expect("flushed");

    let drained = daemon.control(&["drain"]);
    assert!(drained.code == 1 && drained.stderr.contains("refuses 5 blocks"), "{}: {}", drained.code, drained.stderr);
    assert!(daemon.log().contains("cannot be written to the backing device"), "{}", daemon.log());
    let left = daemon.status()["volumes"][0].take();
    assert_eq!((dirty(&left), left["refused_blocks"].as_u64()), (5 * 4096, Some(5)), "{left:#}");
    for (offset, data) in &good {
        assert_eq!(&content(&place.backing, *offset, data.len()), data, "at {offset}");
    }
    for (offset, data) in &bad {
        assert_eq!(&client.read(*offset, data.len() as u32).expect("from the cache"), data, "at {offset}");
    }

    // The disk is well again.
    daemon.lift_limit();
    let begun = Instant::now();
    while daemon.control(&["drain"]).code != 0 {
        assert!(begun.elapsed() < Duration::from_secs(90), "still refused: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(client);
    for (offset, data) in &bad {
        assert_eq!(&content(&place.backing, *offset, data.len()), data, "at {offset}");
    }
    daemon.stop();
    place.assert_clean();
}
