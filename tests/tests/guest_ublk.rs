//! The block device /dev/ublkbN, under a real kernel.

use wb_tests::guest::{Disk, guest};

const MIB: u64 = 1 << 20;

/// A sparse file as a disk, with the directory it lies in.
fn sparse(bytes: u64) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir =
        tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into())).expect("a directory");
    let path = dir.path().join("disk.img");
    std::fs::File::create(&path).and_then(|file| file.set_len(bytes)).expect("a sparse file");
    (dir, path)
}

/// Runs a script with /dev/vda as SSD (256 MiB) and /dev/vdb as disk (1 GiB).
#[track_caller]
fn run(script: &str) -> wb_tests::guest::Outcome {
    let ((_a, ssd), (_b, disk)) = (sparse(256 * MIB), sparse(1024 * MIB));
    let mut guest = guest(script);
    guest.disk(Disk::file(&ssd).serial("ssd")).disk(Disk::file(&disk).serial("disk"));
    let outcome = guest.run().expect("QEMU runs");
    outcome.check().unwrap_or_else(|error| panic!("{error:#}"));
    outcome
}

#[test]
fn a_block_device_appears_takes_io_and_goes_away_without_a_trace() {
    run("
        wb-format /dev/vda
        start data /dev/vda /dev/vdb --ublk
        [ -b /dev/ublkb0 ] || fail 'no block device'
        grep -q WRITEBOOST_NAME=data /run/writeboost/ublkb0.env
        lsblk -D -t /dev/ublkb0
        dd if=/dev/urandom of=/tmp/pattern bs=1M count=8
        dd if=/tmp/pattern of=/dev/ublkb0 bs=1M oflag=direct conv=fsync
        dd if=/dev/ublkb0 bs=64k count=128 iflag=direct | cmp - /tmp/pattern
        wb-daemon status
        wb-daemon stop
        within 5 gone data
        removed 0
        wb-check /dev/vda
    ");
}
