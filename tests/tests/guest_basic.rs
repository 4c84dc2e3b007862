//! The harness of guests itself: that it tells success from failure, and leaves nothing running.
//!
//! `make test` runs this file; `make guest` all tests in files named `guest_*`.

use std::time::{Duration, Instant};
use wb_tests::guest::{self, Guest, SparseDisk, bare, guest};

fn short(script: &str) -> Guest {
    let mut guest = bare(script);
    guest.limit = Duration::from_secs(60);
    guest
}

#[test]
fn a_guest_boots_runs_its_scenario_and_gives_back_what_it_made() {
    let script = "
        [ -c /dev/ublk-control ] || fail 'no ublk'
        wb-format --size 64MiB /tmp/cache --json > /out/format
        uname -r > /out/release
    ";
    let outcome = guest(script).run().expect("QEMU runs");
    outcome.check().expect("success");
    assert!(outcome.artefact("release").expect("a file").starts_with(guest::KERNEL));
    assert!(outcome.artefact("format").expect("a file").contains("\"uuid\""));
}

#[test]
fn failures_of_a_scenario_and_of_its_kernel_are_not_taken_for_success() {
    let outcome = short("echo so far; false; echo never").run().expect("QEMU runs");
    let error = format!("{:#}", outcome.check().expect_err("a failing command ends the scenario"));
    assert!(error.contains("failed with 1") && error.contains("so far") && !error.contains("never"), "{error}");

    let outcome = short("echo c > /proc/sysrq-trigger").run().expect("QEMU runs");
    let error = format!("{:#}", outcome.check().expect_err("the kernel panics"));
    assert!(error.contains("trouble in the guest's kernel") && outcome.exit.is_none(), "{error}");
}

#[test]
fn a_guest_that_hangs_is_killed_and_one_can_be_killed_at_any_moment() {
    let mut hanging = short("sleep 1000");
    hanging.limit = Duration::from_secs(3);
    let begun = Instant::now();
    let outcome = hanging.run().expect("QEMU runs");
    assert!(outcome.timed_out && outcome.check().is_err() && begun.elapsed() < Duration::from_secs(20));

    let mut running = short("echo begun; sleep 1000").start().expect("QEMU starts");
    running.wait_line("begun").expect("it comes that far");
    let outcome = running.kill().expect("it can be killed");
    assert!(!outcome.timed_out && outcome.exit.is_none(), "{}", outcome.console);
}

/// The life of a block device in short; `guest_ublk` has it at length.
#[test]
fn a_block_device_is_made_mounted_upgraded_killed_taken_over_and_removed() {
    let script = "
        wb-format /dev/vda > /dev/null
        start data /dev/vda /dev/vdb --ublk
        grep -q WRITEBOOST_NAME=data /run/writeboost/ublkb0.env
        wb-daemon status | grep 'served as /dev/ublkb0'
        dd if=/dev/urandom of=/tmp/pattern bs=1M count=8 2> /dev/null
        dd if=/tmp/pattern of=/dev/ublkb0 bs=1M oflag=direct conv=fsync 2> /dev/null
        dd if=/dev/ublkb0 bs=64k count=128 iflag=direct 2> /dev/null | cmp - /tmp/pattern
        mkfs.ext4 -q /dev/ublkb0
        mkdir -p /mnt
        mount -t ext4 /dev/ublkb0 /mnt
        cp /tmp/pattern /mnt/a
        must_fail 'ublkb0 is mounted at /mnt' wb-daemon stop
        must_fail 'ublkb0 is mounted at /mnt' wb-daemon detach
        wb-daemon upgrade
        sync
        kill -9 $(pid data)
        cp /mnt/a /mnt/b &
        copy=$!
        start data /dev/vda /dev/vdb --ublk
        wait $copy || fail 'the copy failed while the daemon was dead'
        umount /mnt
        mount -t ext4 /dev/ublkb0 /mnt
        cmp /mnt/a /tmp/pattern && cmp /mnt/b /tmp/pattern
        umount /mnt
        sleep 1000 < /dev/ublkb0 &
        sleep 0.2
        must_fail 'sleep (process .*) has it open' wb-daemon stop
        kill $!
        wb-daemon stop
        within 5 gone data
        removed 0
        wb-check --verify-data /dev/vda
    ";
    let (ssd, disk) = (SparseDisk::new(256 << 20), SparseDisk::new(1 << 30));
    let mut guest = guest(script);
    guest.disk(ssd.disk()).disk(disk.disk());
    guest.run().expect("QEMU runs").check().unwrap_or_else(|error| panic!("{error:#}"));
}
