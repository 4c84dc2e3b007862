//! The whole service (daemon, engine, files) under other people's programs.
//!
//! The cache is a quarter of the volume, so most of what is verified has been through write-back and reclaim.

use serde_json::Value;
use std::path::Path;
use wb_tests::daemon::{Daemon, Place, random_bytes, text};
use wb_tests::mount::Mount;
use wb_tests::programs::{check, run};

const LIBNBD: &str = "libnbd-bin";
const QEMU: &str = "qemu-utils";
const FIO: &str = "fio";

const CACHE_BYTES: u64 = 16 << 20;
const SEGMENT_BYTES: u64 = 256 << 10;
const VOLUME_BYTES: u64 = 64 << 20;

fn small() -> Place {
    Place::new(CACHE_BYTES, SEGMENT_BYTES, VOLUME_BYTES)
}

/// Cleanly stopped, started, drained, stopped: the backing file alone must hold `expected` then.
#[track_caller]
fn backing_holds(place: &Place, daemon: Daemon, expected: &[u8]) {
    daemon.stop();
    assert_eq!(place.assert_clean()["torn_tail_records"], 0, "a clean stop leaves no torn tail");
    let daemon = place.start();
    daemon.drain();
    assert_eq!(daemon.status()["volumes"][0]["dirty_bytes"], 0);
    daemon.stop();
    assert_eq!(place.assert_clean()["dirty_blocks"], 0);
    assert!(std::fs::read(&place.backing).expect("read") == expected, "the backing file differs");
}

#[test]
fn nbdinfo_facts() {
    let place = Place::new(CACHE_BYTES, SEGMENT_BYTES, VOLUME_BYTES + 512);
    let daemon = place.start();
    let json: Value = serde_json::from_str(&check(LIBNBD, "nbdinfo", &["--json", &place.uri()])).expect("JSON");
    let export = &json["exports"][0];
    assert_eq!(export["export-size"], VOLUME_BYTES + 512, "not cut to whole blocks");
    let sizes = ["block_size_minimum", "block_size_preferred", "block_size_maximum"].map(|name| &export[name]);
    assert_eq!(sizes, [512, 4096, 32 << 20]);
    for able in ["can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero", "can_df"] {
        assert_eq!(export[able], true, "{able}");
    }
    assert_eq!(export["is_read_only"], false);
    daemon.stop();
    assert!(!run(LIBNBD, "nbdinfo", &[&place.uri()]).success(), "stopped is stopped");
}

#[test]
fn qemu_io_patterns_down_to_a_sector() {
    let place = small();
    let daemon = place.start();
    let qemu_io = |commands: &[&str]| {
        let uri = place.uri();
        let mut args = vec!["-f", "raw"];
        commands.iter().for_each(|command| args.extend(["-c", command]));
        args.push(&uri);
        run(QEMU, "qemu-io", &args)
    };
    let ran = qemu_io(&[
        "write -P 0x11 0 1M",
        "write -P 0x22 512 512",
        "write -f -P 0x33 7680 1024",
        "write -P 0x44 2097664 3584",
        "write -z 65024 1024",
        "aio_write -P 0x55 3M 256k",
        "aio_flush",
        "write -P 0x66 3145216 1024",
        "discard 4M 1M",
        "flush",
        "write -P 0x77 67108352 512",
    ]);
    assert!(ran.success(), "{}{}", ran.stdout, ran.stderr);
    let reads = [
        "read -P 0x11 0 512",
        "read -P 0x22 512 512",
        "read -P 0x11 1024 6656",
        "read -P 0x33 7680 1024",
        "read -P 0x11 8704 56320",
        "read -P 0 65024 1024",
        "read -P 0x11 66048 982528",
        "read -P 0 2M 512",
        "read -P 0x44 2097664 3584",
        "read -P 0 2101248 512",
        "read -P 0x66 3145216 1024",
        "read -P 0x55 3146240 261632",
        "read -P 0x77 67108352 512",
    ];
    let ran = qemu_io(&reads);
    assert!(ran.success(), "{}{}", ran.stdout, ran.stderr);
    assert!(!qemu_io(&["read -P 0x12 0 512"]).success(), "the check bites");
    // The same out of the backing device: nothing of it is in the log's RAM any more.
    daemon.stop();
    let daemon = place.start();
    daemon.drain();
    let ran = qemu_io(&reads);
    assert!(ran.success(), "{}{}", ran.stdout, ran.stderr);
    daemon.stop();
    let mut args = vec!["-f", "raw"];
    reads.iter().for_each(|command| args.extend(["-c", command]));
    args.push(text(&place.backing));
    check(QEMU, "qemu-io", &args);
}

#[test]
fn qemu_img_converts_in_and_out() {
    let place = small();
    let daemon = place.start();
    let (source, out) = (place.path("source"), place.path("out"));
    let mut bytes = random_bytes(1, VOLUME_BYTES as usize);
    // Holes, which it writes as zeroes.
    bytes[5 << 20..9 << 20].fill(0);
    bytes[40 << 20..41 << 20].fill(0);
    std::fs::write(&source, &bytes).expect("written");
    let uri = place.uri();
    let raw = ["-f", "raw", "-O", "raw"];
    check(QEMU, "qemu-img", &[&["convert", "-n"], &raw[..], &[text(&source), &uri]].concat());
    check(QEMU, "qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&source), &uri]);
    check(QEMU, "qemu-img", &[&["convert"], &raw[..], &[&uri, text(&out)]].concat());
    assert!(std::fs::read(&out).expect("read") == bytes);
    backing_holds(&place, daemon, &bytes);
}

#[test]
fn nbdcopy_both_ways() {
    let place = small();
    let daemon = place.start();
    let (source, out) = (place.path("source"), place.path("out"));
    // The second copy finds the volume and the cache full of the first one.
    for seed in [1, 2] {
        let bytes = random_bytes(seed, VOLUME_BYTES as usize);
        std::fs::write(&source, &bytes).expect("written");
        let many = ["--flush", "--connections=4", "--requests=32", "--request-size=65536"];
        check(LIBNBD, "nbdcopy", &[&many[..], &[text(&source), &place.uri()]].concat());
        check(LIBNBD, "nbdcopy", &[&place.uri(), text(&out)]);
        check("diffutils", "cmp", &[text(&source), text(&out)]);
    }
    backing_holds(&place, daemon, &std::fs::read(&source).expect("read"));
}

fn fio(place: &Place, job: &[&str]) {
    let uri = format!("--uri={}", place.uri());
    let common = ["--ioengine=nbd", &uri, "--size=64m", "--thread", "--verify_state_save=0", "--verify_fatal=1"];
    check(FIO, "fio", &[&common[..], job].concat());
}

#[test]
fn fio_verifies_checksums() {
    let place = small();
    let daemon = place.start();
    let sizes = ["--bsrange=512-1m", "--blockalign=512", "--verify=crc32c"];
    fio(
        &place,
        &[&["--name=crc", "--rw=randwrite", "--iodepth=16", "--do_verify=1", "--fsync=50"], &sizes[..]].concat(),
    );
    // Reads, writes and trims at once, of all sizes: no errors. What trims leave is open, so this one verifies nothing.
    let sizes = ["--bsrange=512-1m", "--blockalign=512", "--iodepth=16", "--numjobs=2", "--norandommap"];
    for rw in ["randrw", "randtrim", "trimwrite", "randtrimwrite"] {
        let rw = format!("--rw={rw}");
        fio(&place, &[&["--name=mixed", &rw, "--io_size=32m", "--fsync=100"], &sizes[..]].concat());
    }
    daemon.stop();
    place.assert_clean();
}

/// A lost overwrite is what `--verify=crc32c` alone cannot see: the block of the generation before has a good checksum,
/// too. A pattern that names the generation, and the offset, shows it.
#[test]
fn fio_sees_two_generations() {
    let place = small();
    let mut daemon = place.start();
    let sizes = ["--bsrange=512-1m", "--blockalign=512", "--verify=pattern", "--verify_interval=512"];
    for generation in ["0x11111111%o", "0x22222222%o", "0x33333333%o"] {
        let pattern = format!("--verify_pattern={generation}");
        let job =
            [&["--name=generation", "--rw=randwrite", "--iodepth=16", "--randseed=7", &pattern], &sizes[..]].concat();
        fio(&place, &[&job[..], &["--do_verify=1", "--fsync=40"]].concat());
        // Once more after everything in RAM is gone.
        daemon.stop();
        daemon = place.start();
        fio(&place, &[&job[..], &["--verify_only=1"]].concat());
    }
    // The check bites: one sector of the generation before.
    let mut nbd = daemon.connect();
    let mut sector = nbd.read(8 << 20, 512).expect("read");
    sector.iter_mut().filter(|byte| **byte == 0x33).for_each(|byte| *byte = 0x22);
    nbd.write(8 << 20, &sector, 0).expect("written");
    let uri = format!("--uri={}", place.uri());
    let verify = ["--ioengine=nbd", &uri, "--size=64m", "--thread", "--verify_state_save=0", "--verify_only=1"];
    let job = ["--name=generation", "--rw=randwrite", "--randseed=7", "--verify_pattern=0x33333333%o"];
    let ran = run(FIO, "fio", &[&verify[..], &job[..], &sizes[..]].concat());
    assert!(!ran.success() || ran.stderr.contains("verify"), "fio sees a sector of the generation before");
    daemon.drain();
    daemon.stop();
    place.assert_clean();
}

/// Unpacks this repository's own sources and builds a small C program beside them, twice over; then looks at all of it
/// from every side: through the cache, after a restart, after a kill, and on the backing file alone.
fn filesystem(mkfs: (&str, &str, &[&str]), fsck: (&str, &[&str]), volume_bytes: u64) {
    let (package, mkfs, mkfs_args) = mkfs;
    let (fsck, fsck_args) = fsck;
    let place = Place::new(32 << 20, 512 << 10, volume_bytes);
    let daemon = place.start();
    let mut mount = Mount::attach(&place.path(""), &place.uri());
    check(package, mkfs, &[mkfs_args, &[mount.device()]].concat());
    mount.mount();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let (tree, sums) = (mount.dir.join("tree"), place.path("sums"));
    let script = format!(
        "set -e; mkdir {tree}; cd {sources}
        tar -c --exclude=target --exclude=.git --exclude=./fuzz/work --exclude=./fuzz/artifacts . | tar -x -C {tree}
        cd {tree}; head -c 24M /dev/urandom >random; mkdir build; cd build
        for i in $(seq 40); do echo \"int f$i(int x) {{ return x * $i; }}\" >f$i.c; cc -O2 -g -c f$i.c; done
        ar rcs libf.a f*.o; echo 'int f7(int); int main(void) {{ return f7(6) - 42; }}' >main.c
        cc -o main main.c libf.a; ./main; rm f2*.o; ln main hard; ln -s main soft
        cd ..; find . -type f -exec sha256sum {{}} + >{sums}; sync -f .",
        tree = text(&tree),
        sources = text(sources),
        sums = text(&sums),
    );
    check("gcc", "sh", &["-c", &script]);
    let compare = |dir: &Path| {
        let script = format!("cd {}/tree && sha256sum --check --quiet --strict {}", text(dir), text(&sums));
        check("coreutils", "sh", &["-c", &script]);
    };
    mount.detach();
    daemon.stop();
    place.assert_clean();

    // Through the cache, after a clean restart.
    let daemon = place.start();
    let mut mount = Mount::attach(&place.path(""), &place.uri());
    check(package, fsck, &[fsck_args, &[mount.device()]].concat());
    mount.mount();
    compare(&mount.dir);
    // And what was synced survives a kill in the middle of more.
    check("coreutils", "sh", &["-c", &format!("cp -r {0} {0}-2; sync -f {0}; rm -r {0}-2/wb-*", text(&tree))]);
    daemon.kill();
    drop(mount);
    place.assert_clean();
    let daemon = place.start();
    let mut mount = Mount::attach(&place.path(""), &place.uri());
    // Mounting replays the journal; then the checker must find nothing at all.
    mount.mount();
    compare(&mount.dir);
    mount.unmount();
    check(package, fsck, &[fsck_args, &[mount.device()]].concat());
    mount.detach();

    // The backing file alone.
    daemon.drain();
    daemon.stop();
    assert_eq!(place.assert_clean()["dirty_blocks"], 0);
    check(package, fsck, &[fsck_args, &[text(&place.backing)]].concat());
    let device = check("util-linux", "losetup", &["--read-only", "--find", "--show", text(&place.backing)]);
    let dir = place.path("mnt");
    let mounted = run("util-linux", "mount", &["-o", "ro", device.trim(), text(&dir)]);
    if mounted.success() {
        let result = std::panic::catch_unwind(|| compare(&dir));
        check("util-linux", "umount", &[text(&dir)]);
        check("util-linux", "losetup", &["-d", device.trim()]);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    } else {
        check("util-linux", "losetup", &["-d", device.trim()]);
        panic!("the backing file cannot be mounted: {}", mounted.stderr);
    }
}

#[test]
fn ext4_mounted() {
    filesystem(("e2fsprogs", "mkfs.ext4", &["-q"]), ("e2fsck", &["-f", "-n"]), 256 << 20);
}

#[test]
fn xfs_mounted() {
    filesystem(("xfsprogs", "mkfs.xfs", &["-q"]), ("xfs_repair", &["-n"]), 400 << 20);
}

/// fsx on the volume as a block device, through the page cache: reads, writes, mappings, syncs and dropped pages in a
/// random order, each read compared with what must be there. The daemon is killed or stopped between two rounds.
///
/// Without holes: nbdfuse makes a trim of them, which need not zero anything, and the edges of ours keep what they had.
#[test]
fn fsx_mounted() {
    let place = Place::new(8 << 20, 256 << 10, 16 << 20);
    let (config, artifacts) = (place.path("fsx.toml"), place.path("fsx"));
    std::fs::create_dir(&artifacts).expect("a directory");
    let weights = "read = 20\nwrite = 20\nmapread = 5\nmapwrite = 5\ntruncate = 0\nposix_fadvise = 10\n\
                   invalidate = 1\nfsync = 1\nfdatasync = 1\n";
    std::fs::write(&config, format!("blockmode = true\n[opsize]\nalign = 512\nmax = 131072\n[weights]\n{weights}"))
        .expect("written");
    for seed in ["1", "2", "3"] {
        let daemon = place.start();
        let mut mount = Mount::attach(&place.path(""), &place.uri());
        let options = ["-f", text(&config), "-N", "10000", "-S", seed, "-P", text(&artifacts)];
        check("cargo install fsx", "fsx", &[&options[..], &[mount.device()]].concat());
        let whole = |mount: &mut Mount| {
            check("util-linux", "blockdev", &["--flushbufs", mount.device()]);
            std::fs::read(mount.device()).expect("read")
        };
        let expected = whole(&mut mount);
        if seed == "2" {
            daemon.kill();
            drop(mount);
        } else {
            mount.detach();
            daemon.stop();
        }
        place.assert_clean();
        let daemon = place.start();
        let mut mount = Mount::attach(&place.path(""), &place.uri());
        let found = whole(&mut mount);
        let differ: Vec<usize> =
            (0..found.len() / 512).filter(|at| found[at * 512..][..512] != expected[at * 512..][..512]).collect();
        assert!(differ.is_empty(), "seed {seed}: other content after the restart in sectors {differ:?}");
        mount.detach();
        daemon.drain();
        daemon.stop();
        assert!(std::fs::read(&place.backing).expect("read") == expected, "seed {seed}: the backing file differs");
    }
}
