//! The RAM tail of the real daemon: what it keeps, and what is refused when it is not there.

use std::os::unix::fs::PermissionsExt;
use wb_tests::daemon::{Place, random_bytes};
use wb_tests::tool::{run, tool};

/// The cache is so large that the tests stay below the share of dirty data at which write-back begins: that would make
/// durable what they want in memory only.
fn place() -> Place {
    Place::new(64 << 20, 256 << 10, 24 << 20)
}

#[test]
fn unflushed_writes_survive_kills_and_a_clean_stop_leaves_nothing() {
    let place = place();
    let data = random_bytes(1, 3 << 20);
    for (round, part) in data.chunks(1 << 20).enumerate() {
        let daemon = place.start();
        let mut nbd = daemon.connect();
        nbd.write((round << 20) as u64, part, 0).expect("written");
        // A part of a block over what is in memory only, and a range.
        nbd.write((round << 20) as u64 + 512, &part[512..1024], 0).expect("written");
        assert_eq!(place.tails().len(), 1, "one tail for the daemon that runs");
        let status = daemon.status();
        assert_eq!(status["ram_tail"]["path"], place.tails()[0].to_str().expect("a path"));
        let recovered = status["ram_tail"]["recovered_records"].as_u64().expect("a number");
        assert_eq!(recovered > 0, round > 0, "{status:#}");
        assert!(daemon.kill(), "it ran");
        place.assert_clean();
    }
    let daemon = place.start();
    let mut nbd = daemon.connect();
    for (round, part) in data.chunks(1 << 20).enumerate() {
        assert!(nbd.read((round << 20) as u64, 1 << 20).expect("read") == part, "MiB {round}");
    }
    daemon.stop();
    assert_eq!(place.tails(), Vec::<std::path::PathBuf>::new());
    // Nothing is in memory any more, so nothing can be missing.
    place.start().stop();
}

#[test]
fn files_are_for_their_owner_alone() {
    let place = place();
    let daemon = place.start();
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&place.tail_dir()), mode(&place.tails()[0])), (0o700, 0o600));
    daemon.stop();
    std::fs::set_permissions(place.tail_dir(), PermissionsExt::from_mode(0o777)).expect("changed");
    let ran = place.start_refused();
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("open to others"), "{}", ran.stderr);
}

#[test]
fn a_missing_tail_is_refused_until_the_loss_is_accepted() {
    let place = place();
    let (flushed, unflushed) = (random_bytes(1, 1 << 20), random_bytes(2, 1 << 20));
    let daemon = place.start();
    let mut nbd = daemon.connect();
    nbd.write(0, &flushed, 0).expect("written");
    nbd.flush().expect("flushed");
    nbd.write(4 << 20, &unflushed, 0).expect("written");
    daemon.kill();
    let tail = place.tails().pop().expect("one tail");
    let (content, image) = (std::fs::read(&tail).expect("read"), std::fs::read(&place.cache).expect("read"));
    std::fs::remove_file(&tail).expect("removed");
    let refused = |expected: &str| {
        let ran = place.start_refused();
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        assert!(ran.stderr.contains(expected) && ran.stderr.contains("--accept-loss"), "{}", ran.stderr);
        assert!(std::fs::read(&place.cache).expect("read") == image, "nothing is written");
    };
    refused("is gone");
    // A torn one, and one whose data has changed.
    std::fs::write(&tail, &content[..4096]).expect("written");
    refused("damaged");
    let mut changed = content.clone();
    let at = changed.windows(512).position(|bytes| *bytes == unflushed[..512]).expect("the data is in the tail");
    changed[at] ^= 1;
    std::fs::write(&tail, &changed).expect("written");
    refused("fails its checksum");
    // wb-check may look, and must not repair or replay while acknowledged writes are in memory only.
    place.assert_clean();
    let ran = run(tool("wb-check").args(["--replay", "--backing"]).arg(&place.backing).arg(&place.cache));
    assert!(ran.code != 0 && ran.stderr.contains("memory"), "{}", ran.stderr);
    // The right one: everything is there.
    std::fs::write(&tail, &content).expect("written");
    let daemon = place.start();
    let mut nbd = daemon.connect();
    assert!(nbd.read(0, 1 << 20).expect("read") == flushed);
    assert!(nbd.read(4 << 20, 1 << 20).expect("read") == unflushed);
    nbd.write(8 << 20, &unflushed, 0).expect("written");
    daemon.kill();
    // Accepted: the flushed part is there, and the cache goes on.
    place.tails().iter().for_each(|tail| std::fs::remove_file(tail).expect("removed"));
    let daemon = place.start_with(&["--accept-loss"]);
    let mut nbd = daemon.connect();
    assert!(nbd.read(0, 1 << 20).expect("read") == flushed);
    assert!(nbd.read(4 << 20, 1 << 20).expect("read") == unflushed, "durable since the start that recovered it");
    assert!(daemon.log().contains("on is lost, as accepted"), "{}", daemon.log());
    daemon.stop();
    place.assert_clean();
    place.start().stop();
}

#[test]
fn leftovers_of_earlier_starts_are_removed_and_other_caches_left_alone() {
    let place = place();
    let daemon = place.start();
    let own = place.tails().pop().expect("one tail");
    daemon.kill();
    let name = own.file_name().and_then(|name| name.to_str()).expect("a name");
    let (cache, id) = name.split_once('.').expect("CACHE.ID.tail");
    let stale = own.with_file_name(format!("{cache}.00000000-0000-4000-8000-000000000001.tail"));
    let foreign = own.with_file_name(format!("00000000-0000-4000-8000-000000000002.{id}"));
    for path in [&stale, &foreign] {
        std::fs::write(path, "?").expect("written");
    }
    let daemon = place.start();
    let left = place.tails();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(foreign.exists() && !stale.exists() && !own.exists());
    daemon.stop();
}

/// The pause that a user of the volume sees: from the kill to the first answer, under a second. On a machine that is busy
/// with others' work, one of five has to be; the rest of the limit allows for that.
#[test]
fn the_pause_from_a_kill_to_the_first_answer_is_short() {
    let place = Place::new(256 << 20, 2 << 20, 256 << 20);
    let data = random_bytes(1, 24 << 20);
    let mut pauses = Vec::new();
    for _ in 0..5 {
        let daemon = place.start();
        let mut nbd = daemon.connect();
        for (index, part) in data.chunks(1 << 20).enumerate() {
            nbd.write((index << 20) as u64, part, 0).expect("written");
        }
        let begun = std::time::Instant::now();
        daemon.kill();
        let daemon = place.start();
        let mut nbd = daemon.connect();
        assert!(nbd.read(0, 4096).expect("read") == data[..4096]);
        pauses.push((begun.elapsed().as_millis(), daemon.status()["recovery_ms"].as_u64().expect("a number")));
        daemon.kill();
    }
    eprintln!("from the kill to the first answer, and recovery within it, in ms: {pauses:?}");
    pauses.sort_unstable();
    assert!(pauses[0].0 < 1000 && pauses[2].0 < 10_000, "{pauses:?}");
}
