//! The promises of `Disk`, held against real files and devices, and what only real ones can show.
#![expect(clippy::disallowed_methods, reason = "threads, and settings of the test run")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use tempfile::{NamedTempFile, TempDir};
use wb_core::disk_conformance;
use wb_core::io::conformance::SIZE_BYTES;
use wb_core::io::{Buf, Disk, IoError};
use wb_core::rt::{
    self, Access, BlockingDisk, Config, OpenError, RtDisk, Runtime, RuntimeThread, Usage, block_on_ready,
    open_blocking, open_device,
};

/// Patience for a claim that is free: other tests start programs, and between fork and exec those hold a copy of every
/// descriptor of this process.
const SECOND_NS: u64 = 1_000_000_000;

/// A place for test images on a real filesystem: /tmp is often a tmpfs.
fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("wb-conformance").tempdir_in("/var/tmp").expect("a directory in /var/tmp")
}

/// An image, not sparse, full of something that is not zero.
fn image(dir: &Path, size: u64) -> PathBuf {
    let path = dir.join("image");
    std::fs::write(&path, vec![0x5a; size as usize]).expect("an image");
    path
}

fn runtime() -> Runtime {
    Runtime::new(Config::default()).expect("io_uring is permitted where the tests run")
}

/// A loop device on an image, detached when dropped.
struct LoopDevice {
    path: PathBuf,
    image: PathBuf,
    _dir: TempDir,
}

impl LoopDevice {
    /// `None`, with a line that says so, where there are no loop devices for us.
    fn new(sector_bytes: u32) -> Option<LoopDevice> {
        let dir = scratch();
        let image = image(dir.path(), SIZE_BYTES);
        let size = sector_bytes.to_string();
        let made = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on", "--sector-size", &size])
            .arg(&image)
            .output();
        match made {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8(output.stdout).expect("a path").trim().into();
                Some(LoopDevice { path, image, _dir: dir })
            }
            other => {
                assert!(std::env::var_os("WB_REQUIRE_LOOP").is_none(), "no loop device: {other:?}");
                eprintln!("SKIPPED: no loop device here ({other:?})");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

fn ring_on<F: Future<Output = ()>>(path: &Path, config: Config, test: impl FnOnce(Arc<RtDisk>) -> F) {
    let disk = open_device(path, Access::exclusive(SECOND_NS)).expect("the image opens").disk;
    Runtime::new(config).expect("io_uring").block_on(test(Arc::new(disk)));
}

fn ring_file<F: Future<Output = ()>>(test: impl FnOnce(Arc<RtDisk>) -> F) {
    let dir = scratch();
    ring_on(&image(dir.path(), SIZE_BYTES), Config::default(), test);
}

/// Queues much smaller than what the suite has in flight.
fn tiny_ring_file<F: Future<Output = ()>>(test: impl FnOnce(Arc<RtDisk>) -> F) {
    let dir = scratch();
    ring_on(&image(dir.path(), SIZE_BYTES), Config { sq_entries: 2, cq_entries: 4 }, test);
}

/// A filesystem that knows neither direct I/O nor holes: everything goes through the page cache.
struct RamFs {
    point: TempDir,
}

impl RamFs {
    /// `None`, with a line that says so, where mounting is not allowed.
    fn new() -> Option<RamFs> {
        let point = tempfile::tempdir().expect("a directory");
        let made = Command::new("mount").args(["-t", "ramfs", "none"]).arg(point.path()).status();
        if made.is_ok_and(|status| status.success()) {
            return Some(RamFs { point });
        }
        assert!(std::env::var_os("WB_REQUIRE_LOOP").is_none(), "mounting is not allowed");
        eprintln!("SKIPPED: mounting is not allowed here");
        None
    }
}

impl Drop for RamFs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.point.path()).status();
    }
}

fn ring_buffered<F: Future<Output = ()>>(test: impl FnOnce(Arc<RtDisk>) -> F) {
    if let Some(ramfs) = RamFs::new() {
        ring_on(&image(ramfs.point.path(), SIZE_BYTES), Config::default(), test);
    }
}

fn blocking_buffered<F: Future<Output = ()>>(test: impl FnOnce(Arc<BlockingDisk>) -> F) {
    if let Some(ramfs) = RamFs::new() {
        blocking_on(&image(ramfs.point.path(), SIZE_BYTES), test);
    }
}

#[test]
fn without_direct_io_any_sector_is_reached_and_holes_are_not_promised() {
    let Some(ramfs) = RamFs::new() else { return };
    let path = image(ramfs.point.path(), SIZE_BYTES);
    let disk = open_blocking(&path, Access::exclusive(SECOND_NS)).expect("it opens").disk;
    assert_eq!(disk.geometry().align_bytes, 512);
    assert!(!disk.geometry().discard);
    assert_eq!(block_on_ready(disk.write_zeroes(0, 4096)), Err(IoError::Unsupported));
}

/// Direct I/O, or what passes for it, in memory.
fn ring_tmpfs<F: Future<Output = ()>>(test: impl FnOnce(Arc<RtDisk>) -> F) {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
    ring_on(&image(dir.path(), SIZE_BYTES), Config::default(), test);
}

fn ring_loop<F: Future<Output = ()>>(test: impl FnOnce(Arc<RtDisk>) -> F) {
    if let Some(device) = LoopDevice::new(512) {
        ring_on(&device.path, Config::default(), test);
    }
}

fn ring_loop_4k<F: Future<Output = ()>>(test: impl FnOnce(Arc<RtDisk>) -> F) {
    if let Some(device) = LoopDevice::new(4096) {
        ring_on(&device.path, Config::default(), test);
    }
}

fn blocking_on<F: Future<Output = ()>>(path: &Path, test: impl FnOnce(Arc<BlockingDisk>) -> F) {
    let disk = open_blocking(path, Access::exclusive(SECOND_NS)).expect("the image opens").disk;
    block_on_ready(test(Arc::new(disk)));
}

fn blocking_file<F: Future<Output = ()>>(test: impl FnOnce(Arc<BlockingDisk>) -> F) {
    let dir = scratch();
    blocking_on(&image(dir.path(), SIZE_BYTES), test);
}

fn blocking_loop<F: Future<Output = ()>>(test: impl FnOnce(Arc<BlockingDisk>) -> F) {
    if let Some(device) = LoopDevice::new(512) {
        blocking_on(&device.path, test);
    }
}

disk_conformance!(on_ring_file, super::ring_file);
disk_conformance!(on_tiny_ring_file, super::tiny_ring_file);
disk_conformance!(on_ring_buffered, super::ring_buffered);
disk_conformance!(on_ring_tmpfs, super::ring_tmpfs);
disk_conformance!(on_ring_loop, super::ring_loop);
disk_conformance!(on_ring_loop_4k, super::ring_loop_4k);
disk_conformance!(on_blocking_file, super::blocking_file);
disk_conformance!(on_blocking_buffered, super::blocking_buffered);
disk_conformance!(on_blocking_loop, super::blocking_loop);

#[test]
fn several_threads_share_a_disk() {
    let dir = scratch();
    let disk = open_device(&image(dir.path(), SIZE_BYTES), Access::exclusive(SECOND_NS)).expect("it opens").disk;
    let threads: Vec<_> = (0..4u64)
        .map(|thread| {
            let disk = disk.clone();
            let work = move || async move {
                for round in 0..100u64 {
                    let offset = (round * 4 + thread) * 4096;
                    let mut buf = Buf::unpooled(4096);
                    buf.fill(thread as u8 + 1);
                    disk.write(offset, vec![buf.freeze()], round % 10 == 0).await.expect("written");
                    let (result, buf) = disk.read(offset, Buf::unpooled(4096)).await;
                    result.expect("read");
                    assert!(buf.iter().all(|byte| *byte == thread as u8 + 1));
                }
            };
            RuntimeThread::start("io", Config::default(), work).expect("a thread")
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}

#[test]
fn the_end_of_a_runtime_waits_for_its_disks() {
    let dir = scratch();
    let path = image(dir.path(), SIZE_BYTES);
    let disk = open_device(&path, Access::exclusive(SECOND_NS)).expect("it opens").disk;
    let runtime = runtime();
    let mut buf = Buf::unpooled(4 << 20);
    buf.fill(0x11);
    let data = buf.freeze();
    let _detached = runtime.spawn({
        let disk = disk.clone();
        async move { disk.write(0, vec![data], true).await.expect("written") }
    });
    runtime.block_on(rt::yield_now());
    drop(disk);
    drop(runtime);
    let written = std::fs::read(&path).expect("the image");
    assert!(written[..4 << 20].iter().all(|byte| *byte == 0x11), "what the kernel had been given was carried out");
}

#[test]
fn memory_at_odd_addresses_is_carried_all_the_same() {
    let dir = scratch();
    let path = image(dir.path(), SIZE_BYTES);
    let check = |written: &[u8]| {
        let file = std::fs::read(&path).expect("the image");
        assert!(file[4096..4096 + written.len()] == *written && file[4095] == 0x5a);
    };
    let mut buf = Buf::unpooled(3 * 4096);
    buf.iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8);
    let whole = buf.freeze();
    let pieces = || vec![whole.slice(1..100), whole.slice(100..100), whole.slice(100..8193)];
    {
        let disk = open_blocking(&path, Access::exclusive(SECOND_NS)).expect("it opens").disk;
        block_on_ready(disk.write(4096, pieces(), false)).expect("written");
        check(&whole[1..8193]);
    }
    let disk = open_device(&path, Access::exclusive(SECOND_NS)).expect("it opens").disk;
    runtime().block_on(async {
        disk.write(4096, vec![whole.slice(3..8195)], false).await.expect("written");
        check(&whole[3..8195]);
        let mut head = Buf::unpooled(4096 + 8);
        let odd = head.split_off(8);
        let (result, odd) = disk.read(4096, odd).await;
        result.expect("read");
        assert!(odd[..] == whole[3..4099]);
    });
}

/// Ranges that the contract forbids come back as errors and change nothing; a file never grows.
#[test]
fn bad_ranges_are_refused() {
    let dir = scratch();
    let path = image(dir.path(), SIZE_BYTES);
    let disk = Rc::new(open_device(&path, Access::exclusive(SECOND_NS)).expect("it opens").disk);
    runtime().block_on(async {
        let bad = Err(IoError::Other(libc::EINVAL));
        for (offset, len) in [(SIZE_BYTES, 4096), (SIZE_BYTES - 512, 4096), (1, 512), (0, 100), (u64::MAX - 511, 512)] {
            assert_eq!(disk.write(offset, vec![Buf::unpooled(len).freeze()], false).await, bad);
            assert_eq!(disk.read(offset, Buf::unpooled(len)).await.0, bad);
            assert_eq!(disk.discard(offset, len as u64).await, bad);
            assert_eq!(disk.write_zeroes(offset, len as u64).await, bad);
        }
        assert_eq!(disk.write(0, vec![], false).await, Ok(()), "nothing is nothing");
    });
    assert!(std::fs::read(&path).expect("the image") == vec![0x5a; SIZE_BYTES as usize]);
}

#[test]
fn a_file_that_shrinks_is_an_error_and_no_endless_loop() {
    let dir = scratch();
    let path = image(dir.path(), SIZE_BYTES);
    let disk = open_device(&path, Access::INSPECT).expect("it opens").disk;
    let blocking = open_blocking(&path, Access::INSPECT).expect("it opens").disk;
    std::fs::OpenOptions::new().write(true).open(&path).expect("it opens").set_len(1 << 20).expect("shrunk");
    assert_eq!(block_on_ready(blocking.read(2 << 20, Buf::unpooled(4096))).0, Err(IoError::Medium));
    runtime().block_on(async {
        assert_eq!(disk.read(2 << 20, Buf::unpooled(4096)).await.0, Err(IoError::Medium));
        assert_eq!(disk.read((1 << 20) - 4096, Buf::unpooled(8192)).await.0, Err(IoError::Medium));
        assert_eq!(disk.read((1 << 20) - 4096, Buf::unpooled(4096)).await.0, Ok(()));
    });
}

#[test]
fn read_only_disks_refuse_changes() {
    let dir = scratch();
    let path = image(dir.path(), SIZE_BYTES);
    let disk = open_device(&path, Access::INSPECT).expect("it opens").disk;
    assert!(disk.geometry().read_only);
    runtime().block_on(async {
        let data = vec![Buf::unpooled(4096).freeze()];
        assert_eq!(disk.write(0, data, false).await, Err(IoError::ReadOnly));
        assert_eq!(disk.discard(0, 4096).await, Err(IoError::ReadOnly));
        assert_eq!(disk.write_zeroes(0, 4096).await, Err(IoError::ReadOnly));
        assert_eq!(disk.read(0, Buf::unpooled(4096)).await.0, Ok(()));
    });
}

#[test]
fn sizes_that_are_no_whole_blocks_are_reached_to_their_last_sector() {
    let dir = scratch();
    let size = SIZE_BYTES + 3 * 512 + 100;
    let path = image(dir.path(), size);
    let disk = open_device(&path, Access::exclusive(SECOND_NS)).expect("it opens").disk;
    let geometry = disk.geometry();
    assert_eq!((geometry.size_bytes, geometry.align_bytes), (SIZE_BYTES + 3 * 512, 512));
    runtime().block_on(async {
        let mut buf = Buf::unpooled(512);
        buf.fill(1);
        disk.write(SIZE_BYTES + 2 * 512, vec![buf.freeze()], true).await.expect("written");
        let (result, buf) = disk.read(SIZE_BYTES + 2 * 512, Buf::unpooled(512)).await;
        assert!(result.is_ok() && buf.iter().all(|byte| *byte == 1));
    });
    let file = std::fs::read(&path).expect("the image");
    assert_eq!(file.len() as u64, size);
    assert!(file[SIZE_BYTES as usize + 3 * 512..].iter().all(|byte| *byte == 0x5a), "what is no sector stays");
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let dir = scratch();
    let message = |path: &Path| open_device(path, Access::INSPECT).expect_err("refused").to_string();
    assert!(message(dir.path()).contains("is a directory"), "{}", message(dir.path()));
    assert!(message(Path::new("/dev/null")).contains("/dev/null is a character device; name a block device"));
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    assert!(message(&fifo).contains("is a FIFO"), "and opening it does not hang");
    let missing = dir.path().join("missing");
    assert!(matches!(open_device(&missing, Access::INSPECT), Err(OpenError::NotFound { .. })));
}

#[test]
fn a_claim_keeps_others_out_until_it_is_dropped() {
    let dir = scratch();
    let path = image(dir.path(), SIZE_BYTES);
    let first = open_device(&path, Access::exclusive(SECOND_NS)).expect("it opens");
    let refused = open_device(&path, Access::exclusive(0)).expect_err("claimed");
    assert!(refused.to_string().contains("is in use: another process has claimed it"), "{refused}");
    assert!(open_blocking(&path, Access::exclusive_read_only(0)).is_err());
    open_device(&path, Access::INSPECT).expect("reading beside it is allowed");
    let waiter = std::thread::spawn({
        let path = path.clone();
        move || {
            let start = rt::now_ns();
            open_device(&path, Access::exclusive(20 * SECOND_NS)).expect("it is let go of");
            rt::now_ns() - start
        }
    });
    std::thread::sleep(std::time::Duration::from_millis(200));
    drop(first);
    let waited = waiter.join().expect("no panic");
    assert!((100_000_000..10 * SECOND_NS).contains(&waited), "{waited} ns");
}

/// As after a kill: the kernel lets go of a process's open files only when its requests have ended.
#[test]
fn requests_in_flight_hold_the_claim_after_the_disk_is_dropped() {
    let Some(device) = LoopDevice::new(512) else { return };
    let disk = open_device(&device.path, Access::exclusive(SECOND_NS)).expect("it opens").disk;
    let runtime = runtime();
    let data = Buf::unpooled(8 << 20).freeze();
    let _detached = runtime.spawn(async move {
        let _ = disk.write(0, vec![data], true).await;
    });
    runtime.block_on(rt::yield_now());
    // The write was handed over and nobody has taken its completion: its payload, and with it the claim, is still there.
    assert!(open_device(&device.path, Access::exclusive(0)).is_err());
    drop(runtime);
    open_device(&device.path, Access::exclusive(SECOND_NS)).expect("free with its end");
}

#[test]
fn block_devices_are_claimed_and_told_apart() {
    let Some(device) = LoopDevice::new(4096) else { return };
    let other = NamedTempFile::new().expect("a file");
    other.as_file().set_len(SIZE_BYTES).expect("sized");
    let opened = open_device(&device.path, Access::exclusive(SECOND_NS)).expect("it opens");
    assert_eq!(opened.identity.size_bytes, SIZE_BYTES);
    assert_eq!((opened.identity.sector_bytes, opened.identity.align_bytes), (4096, 4096));
    assert_eq!(opened.identity.kind, rt::DeviceKind::Block);
    assert!(opened.identity.device_number.is_some_and(|(major, _)| major == 7));
    assert!(opened.disk.geometry().discard);
    let refused = open_device(&device.path, Access::exclusive(0)).expect_err("claimed");
    assert!(matches!(refused, OpenError::InUse { .. }), "{refused}");
    // The file below a loop device is in use, and the same device.
    let refused = open_device(&device.image, Access::exclusive(0)).expect_err("in use").to_string();
    assert!(refused.contains("losetup -d /dev/loop"), "{refused}");
    assert!(matches!(rt::in_use(&device.image).expect("it exists")[..], [Usage::Loop { .. }]));
    assert!(rt::same_device(&device.path, &device.image).expect("both exist"));
    assert!(rt::same_device(&device.path, &device.path).expect("both exist"));
    assert!(!rt::same_device(&device.path, other.path()).expect("both exist"));
    assert!(!rt::same_device(&device.image, other.path()).expect("both exist"));
    let link = other.path().with_extension("hardlink");
    std::fs::hard_link(other.path(), &link).expect("a link");
    assert!(rt::same_device(&link, other.path()).expect("both exist"));
    std::fs::remove_file(&link).expect("removed");
}

#[test]
fn mounted_devices_are_refused_with_their_mount_point() {
    let Some(device) = LoopDevice::new(512) else { return };
    let made = Command::new("mkfs.ext4").arg("-q").arg(&device.path).status().is_ok_and(|status| status.success());
    let point = scratch();
    let mount =
        |command: &str, args: &[&Path]| Command::new(command).args(args).status().is_ok_and(|status| status.success());
    if !made || !mount("mount", &[&device.path, point.path()]) {
        eprintln!("SKIPPED: no mkfs.ext4, or mounting is not allowed here");
        return;
    }
    let users = rt::in_use(&device.path);
    let start = rt::now_ns();
    let refused = open_device(&device.path, Access::exclusive(60 * SECOND_NS));
    let waited = rt::now_ns() - start;
    assert!(mount("umount", &[point.path()]));
    let at = point.path().to_path_buf();
    assert!(matches!(&users.expect("it exists")[..], [Usage::Mounted { at: found, .. }] if *found == at));
    let refused = refused.expect_err("mounted").to_string();
    assert!(refused.contains(&format!("mounted at {}; unmount it first", at.display())), "{refused}");
    assert!(waited < 10 * SECOND_NS, "waiting would not help");
}

/// Thin space that runs out below a file.
#[test]
fn a_full_filesystem_is_no_space() {
    let point = tempfile::tempdir().expect("a directory");
    let mounted = |command: &mut Command| command.status().is_ok_and(|status| status.success());
    if !mounted(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1M", "none"]).arg(point.path())) {
        eprintln!("SKIPPED: mounting is not allowed here");
        return;
    }
    let path = point.path().join("image");
    std::fs::File::create(&path).expect("a file").set_len(16 << 20).expect("sized");
    let write_all = async |disk: &RtDisk| {
        for block in 0..(16u64 << 20) / 65536 {
            disk.write(block * 65536, vec![Buf::unpooled(65536).freeze()], false).await?;
        }
        Ok(())
    };
    let result = {
        let disk = open_device(&path, Access::exclusive(SECOND_NS)).expect("it opens").disk;
        runtime().block_on(write_all(&disk))
    };
    let blocking = {
        let disk = open_blocking(&path, Access::exclusive(SECOND_NS)).expect("it opens").disk;
        block_on_ready(disk.write(8 << 20, vec![Buf::unpooled(4 << 20).freeze()], false))
    };
    assert!(mounted(Command::new("umount").arg(point.path())));
    assert_eq!(result, Err(IoError::NoSpace));
    assert_eq!(blocking, Err(IoError::NoSpace));
}
