//! What wb-daemon refuses: a message that names the device and the next step, exit code 1 (2 for what was typed), no panic,
//! and nothing written. And what it must not refuse.

use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use wb_tests::daemon::{Place, random_bytes, text};
use wb_tests::tool::{Ran, run, tool};

const CACHE_BYTES: u64 = 8 << 20;
const SEGMENT_BYTES: u64 = 256 << 10;
const VOLUME_BYTES: u64 = 16 << 20;

/// A cache that has served a volume: flushed data in it, cleanly stopped.
fn used() -> Place {
    let place = Place::new(CACHE_BYTES, SEGMENT_BYTES, VOLUME_BYTES);
    let daemon = place.start();
    let mut nbd = daemon.connect();
    for at in 0..20u64 {
        nbd.write(at * 200 * 1024, &random_bytes(at, 64 << 10), 0).expect("written");
        nbd.flush().expect("flushed");
    }
    nbd.disconnect().expect("a goodbye");
    daemon.stop();
    place
}

/// Runs something that must be refused with this exit code; stderr must hold all of `words`; the files stay as they are.
#[track_caller]
fn refused(files: &[&Path], code: i32, words: &[&str], attempt: impl FnOnce() -> Ran) {
    let before: Vec<_> = files.iter().map(|path| fs::read(path).expect("read")).collect();
    let ran = attempt();
    assert_eq!(ran.code, code, "{}", ran.stderr);
    for word in words {
        assert!(ran.stderr.contains(word), "{word:?} is missing in: {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    for (path, before) in files.iter().zip(before) {
        assert!(fs::read(path).expect("read") == before, "{} was written to", path.display());
    }
}

#[track_caller]
fn start_refused(place: &Place, words: &[&str]) {
    refused(&[&place.cache, &place.backing], 1, words, || place.start_refused());
}

fn resize(path: &Path, bytes: u64) {
    File::options().write(true).open(path).and_then(|file| file.set_len(bytes)).expect("resized");
}

/// Overwrites what is there with something else.
fn spoil(path: &Path, offset: u64, len: usize) {
    let file = File::options().read(true).write(true).open(path).expect("opened");
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).expect("read");
    bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
    file.write_all_at(&bytes, offset).expect("written");
}

#[test]
fn cache_and_backing_swapped() {
    let mut place = used();
    std::mem::swap(&mut place.cache, &mut place.backing);
    start_refused(&place, &[text(&place.backing), "swap"]);
    // Also when the disk was never seen before.
    fs::write(&place.cache, random_bytes(1, VOLUME_BYTES as usize)).expect("written");
    start_refused(&place, &[text(&place.backing), "swap"]);
}

#[test]
fn the_same_device_twice() {
    let mut place = used();
    let backing = std::mem::replace(&mut place.backing, place.cache.clone());
    // The same word twice: what was typed is wrong.
    let words = [text(&place.cache), "both device and backing"];
    refused(&[&place.cache, &backing], 2, &words, || place.start_refused());
    // By another name, too.
    place.backing = place.path("link");
    std::os::unix::fs::symlink(&place.cache, &place.backing).expect("a link");
    start_refused(&place, &["link", "same device"]);
    place.backing = place.path("hard");
    fs::hard_link(&place.cache, &place.backing).expect("a link");
    start_refused(&place, &["hard", "same device"]);
    place.backing = backing;
    place.start().stop();
}

#[test]
fn backing_that_shrank() {
    let place = used();
    resize(&place.backing, VOLUME_BYTES - 4096);
    start_refused(&place, &[text(&place.backing), "shrunk", "Restore its size"]);
    resize(&place.backing, VOLUME_BYTES);
    place.start().stop();
    // One that has grown is served as it was.
    resize(&place.backing, VOLUME_BYTES + (1 << 20));
    let daemon = place.start();
    assert_eq!(daemon.connect().info().size_bytes, VOLUME_BYTES);
    daemon.stop();
    assert!(fs::read_to_string(place.path("daemon.log")).expect("read").contains("larger than recorded"));
}

/// L4: the cache of one disk on another one of the same size.
#[test]
fn l4_backing_replaced_by_another_one() {
    let mut place = Place::new(CACHE_BYTES, SEGMENT_BYTES, VOLUME_BYTES);
    fs::write(&place.backing, random_bytes(1, VOLUME_BYTES as usize)).expect("written");
    let daemon = place.start();
    daemon.connect().write(1 << 20, &[7; 8192], 1).expect("written");
    daemon.stop();
    let own = place.backing.clone();
    place.backing = place.path("other.img");
    fs::write(&place.backing, random_bytes(2, VOLUME_BYTES as usize)).expect("written");
    start_refused(&place, &[text(&place.backing), "another device", "wb-format"]);
    // A copy of the right one, elsewhere, is the right one.
    fs::copy(&own, &place.backing).expect("copied");
    let daemon = place.start();
    assert_eq!(daemon.connect().read(1 << 20, 8192).expect("read"), [7; 8192]);
    daemon.stop();
    // Changed behind the cache's back: here, where it begins.
    spoil(&place.backing, 0, 512);
    start_refused(&place, &[text(&place.backing), "behind the cache's back"]);
}

/// A start that is refused after the log was recovered has stopped cleanly: the next one need not recover anything.
#[test]
fn a_socket_that_cannot_be_made_leaves_a_clean_cache() {
    let place = used();
    fs::create_dir_all(place.path("control.sock")).expect("a directory in its place");
    let ran = place.start_refused();
    assert!(ran.code == 1 && ran.stderr.contains("control.sock"), "{}", ran.stderr);
    let ran = run(tool("wb-dump").args(["--json", "--cache", text(&place.cache), "summary"]));
    let summary: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(summary["clean_shutdown"], true, "{summary}");
}

/// L5: the cache device cut off, or grown.
#[test]
fn cache_truncated_or_grown() {
    for bytes in [0, 512, 4096, 1 << 20, CACHE_BYTES - 4096, CACHE_BYTES + 4096, 2 * CACHE_BYTES] {
        let place = used();
        resize(&place.cache, bytes);
        start_refused(&place, &[text(&place.cache)]);
        // Nothing is lost by it, where nothing was cut off.
        if bytes > CACHE_BYTES {
            resize(&place.cache, CACHE_BYTES);
            place.start().stop();
        }
    }
}

#[test]
fn random_bytes_for_a_cache() {
    let place = used();
    for seed in 0..3 {
        fs::write(&place.cache, random_bytes(seed, CACHE_BYTES as usize)).expect("written");
        start_refused(&place, &[text(&place.cache), "not a Writeboost cache", "wb-format"]);
    }
}

#[test]
fn no_device_at_all() {
    let mut place = used();
    let backing = place.backing.clone();
    place.backing = place.path("missing.img");
    refused(&[&place.cache], 1, &["missing.img", "does not exist"], || place.start_refused());
    place.backing = place.path("").to_path_buf();
    refused(&[&place.cache], 1, &["is a directory", "block device or a regular file"], || place.start_refused());
    place.backing = place.path("empty.img");
    fs::write(&place.backing, []).expect("written");
    start_refused(&place, &["empty.img"]);
    place.backing = backing;
    place.start().stop();
}

#[test]
fn misspelt_key_in_the_config_file() {
    let place = used();
    let config = place.path("writeboost.toml");
    let write = |key: &str| {
        let (cache, backing) = (text(&place.cache), text(&place.backing));
        let text = format!("[[cache]]\ndevice = \"{cache}\"\nbacking = \"{backing}\"\n{key} = true\n");
        fs::write(&config, text).expect("written");
    };
    for (key, meant) in [("read_onyl", "read_only"), ("verify_read", "verify_reads")] {
        write(key);
        let words = [text(&config), key, meant];
        refused(&[&place.cache, &place.backing], 2, &words, || {
            run(tool("wb-daemon").args(["run", "--config"]).arg(&config))
        });
    }
}

#[test]
fn a_second_daemon_on_the_same_devices() {
    let place = used();
    let daemon = place.start();
    // Neither may take the other's socket away.
    let attempt = |cache: &Path, backing: &Path, name: &str| {
        let socket = format!("unix:{}", place.path(name).display());
        let mut command = tool("wb-daemon");
        command.arg("run").arg("--cache").arg(cache).arg("--backing").arg(backing).args(["--nbd", &socket]);
        run(command.arg("--control").arg(place.path(&format!("{name}.control"))))
    };
    let other = Place::new(CACHE_BYTES, SEGMENT_BYTES, VOLUME_BYTES);
    let mut same_backing = None;
    refused(&[&other.cache, &other.backing], 1, &[text(&place.cache), "in use"], || {
        std::thread::scope(|scope| {
            // Each waits ten seconds for what a killed predecessor might leave.
            let cache = scope.spawn(|| attempt(&place.cache, &other.backing, "second"));
            same_backing = Some(attempt(&other.cache, &place.backing, "third"));
            cache.join().expect("no panic")
        })
    });
    refused(&[], 1, &[text(&place.backing), "in use"], || same_backing.expect("it ran"));
    // The first one never noticed.
    assert_eq!(daemon.connect().read(0, 4096).expect("read"), random_bytes(0, 4096));
    assert_eq!(daemon.status()["state"], "ready");
    daemon.stop();
}

/// Records of a segment, as wb-dump tells.
fn records(place: &Place, segment: u32) -> Vec<u64> {
    let ran = run(tool("wb-dump").args(["--json", "--cache", text(&place.cache), "segment", &segment.to_string()]));
    let dump: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stderr));
    let records = dump["records"].as_array().expect("records");
    records
        .iter()
        .filter(|record| record["valid"] == true)
        .filter_map(|record| record["offset_bytes"].as_u64())
        .collect()
}

/// Killed, so that the next start must read the log.
fn killed() -> Place {
    let place = used();
    let daemon = place.start();
    daemon.connect().write(12 << 20, &[9; 4096], 1).expect("written");
    daemon.kill();
    place.assert_clean();
    place
}

#[test]
fn a_cache_that_is_corrupt_in_the_middle() {
    let place = Place::new(CACHE_BYTES, SEGMENT_BYTES, VOLUME_BYTES);
    let daemon = place.start();
    let mut nbd = daemon.connect();
    for at in 0..5 {
        nbd.write(at << 20, &[at as u8; 4096], 1).expect("written");
    }
    daemon.kill();
    // All in one segment that is not closed, so that no summary stands in for the header.
    let headers = records(&place, 0);
    assert!(headers.len() >= 5, "a record for each durable write");
    spoil(&place.cache, headers[1] + 200, 16);
    start_refused(&place, &[text(&place.cache), "wb-check"]);
    let (code, report) = place.check();
    assert_eq!((code, &report["verdict"]), (4, &"errors".into()), "wb-check agrees: {report:#}");
}

#[test]
fn either_superblock_destroyed() {
    for offset in [0, CACHE_BYTES - 4096] {
        let place = killed();
        spoil(&place.cache, offset, 4096);
        let daemon = place.start();
        assert_eq!(daemon.connect().read(12 << 20, 4096).expect("read"), [9; 4096]);
        daemon.stop();
    }
    let place = killed();
    spoil(&place.cache, 0, 4096);
    spoil(&place.cache, CACHE_BYTES - 4096, 4096);
    start_refused(&place, &[text(&place.cache)]);
}
