//! Detaching: the disk is complete without the cache then, or nothing has changed.

use std::time::{Duration, Instant};
use wb_tests::daemon::{Daemon, Place, random_bytes};

fn place() -> Place {
    Place::new(16 << 20, 256 << 10, 24 << 20)
}

/// The server takes a moment to see that a client has gone.
fn wait_for_no_clients(daemon: &Daemon) {
    let begun = Instant::now();
    while daemon.status()["volumes"][0]["clients"] != 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "it is still connected");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn it_is_refused_while_clients_are_connected_and_the_service_goes_on() {
    let place = place();
    let daemon = place.start();
    let data = random_bytes(1, 2 << 20);
    let mut nbd = daemon.connect();
    nbd.write(0, &data, 0).expect("written");
    let ran = daemon.control(&["detach"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("1 NBD clients are connected"), "{}", ran.stderr);
    assert!(nbd.read(0, 2 << 20).expect("still served") == data);
    nbd.disconnect().expect("a good end");
    wait_for_no_clients(&daemon);
    let ran = daemon.control(&["detach"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    daemon.ended();
    assert!(std::fs::read(&place.backing).expect("read")[..2 << 20] == data[..]);
    assert_eq!(place.assert_clean()["dirty_blocks"], 0);
    // It has forgotten its disk: another one is taken.
    std::fs::write(&place.backing, vec![7; 24 << 20]).expect("written");
    let daemon = place.start();
    assert!(daemon.connect().read(0, 4096).expect("read").iter().all(|byte| *byte == 7));
    daemon.stop();
}

#[test]
fn without_waiting_it_is_done_when_everything_is_on_the_disk() {
    let place = place();
    let daemon = place.start();
    let data = random_bytes(2, 2 << 20);
    let mut nbd = daemon.connect();
    nbd.write(0, &data, 0).expect("written");
    nbd.disconnect().expect("a good end");
    wait_for_no_clients(&daemon);
    let ran = daemon.control(&["detach", "--no-wait"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("then detaching"), "{}", ran.stdout);
    daemon.ended();
    assert!(std::fs::read(&place.backing).expect("read")[..2 << 20] == data[..]);
    assert_eq!(place.assert_clean()["dirty_blocks"], 0);
}

#[test]
fn a_cache_whose_last_writes_are_in_memory_only_is_not_formatted() {
    use wb_tests::tool::{run, tool};
    let place = Place::new(64 << 20, 256 << 10, 24 << 20);
    let daemon = place.start();
    let data = random_bytes(3, 512 << 10);
    daemon.connect().write(0, &data, 0).expect("written");
    daemon.kill();
    let ran = run(tool("wb-format").arg("--force").arg(&place.cache));
    assert!(ran.code != 0 && ran.stderr.contains("in memory"), "{}", ran.stderr);
    let daemon = place.start();
    assert!(daemon.connect().read(0, 512 << 10).expect("read") == data);
    daemon.stop();
}
