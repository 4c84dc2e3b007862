//! The order of the device writes of a real engine, judged by a real filesystem: every write and flush of **both** devices
//! is recorded at the reactor while ext4 works on the volume; then power is cut, on paper, at flushes all over the
//! recording. Each time `wb-check` must call what is left a clean cache and write it back, ext4 must mount and check clean, and
//! every file that had been fsynced by then must be there, whole.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use wb_core::engine::{Backing, Engine, EngineConfig, OpenOptions, VolumeHandle, WritebackPolicy};
use wb_core::rt::{Access, Config, RuntimeThread, open_device};
use wb_core::sim::SimRng;
use wb_core::sync::WaitQueue;
use wb_tests::daemon::text;
use wb_tests::mount::Mount;
use wb_tests::nbd_server::TestServer;
use wb_tests::programs::{check, run};
use wb_tests::recorder::{Device, Recording, RecordingDisk, RecordingEnv};
use wb_tests::tool::{self, tool};

/// So small that the ring wraps and write-back runs all the time.
const CACHE_BYTES: u64 = 12 << 20;
const SEGMENT_BYTES: u64 = 256 << 10;
const VOLUME_BYTES: u64 = 64 << 20;
const FILES: u64 = 60;
/// Cuts that are tried, spread over the recording.
const CUTS: usize = 12;

/// An engine over two recording disks, on a thread of its own.
struct Recorded {
    thread: RuntimeThread<()>,
    stop: Arc<(WaitQueue, AtomicBool)>,
}

impl Recorded {
    fn start(cache: &Path, backing: &Path, recording: &Recording) -> (Recorded, VolumeHandle<RecordingEnv>) {
        let disk = |path: &Path, device| {
            let opened = open_device(path, Access::exclusive(0)).expect("our own file");
            Arc::new(RecordingDisk { disk: opened.disk, device, recording: recording.clone() })
        };
        let options = OpenOptions {
            cache: disk(cache, Device::Cache),
            backing: Backing {
                disk: disk(backing, Device::Backing),
                path: "backing".into(),
                identity: String::new(),
                name: "volume".into(),
            },
            config: EngineConfig {
                record_buffers: 8,
                policy: WritebackPolicy { start_percent: 20, stop_percent: 5, ..EngineConfig::default().policy },
                ..EngineConfig::default()
            },
            boot_id: [9; 16],
            // What is left must stand without it, as after a power cut.
            tails: None,
            accept_loss: false,
            read_only: false,
            force: false,
        };
        let stop = Arc::new((WaitQueue::new(), AtomicBool::new(false)));
        let (sender, receiver): (_, Receiver<VolumeHandle<RecordingEnv>>) = channel();
        let wait = stop.clone();
        let main = move || async move {
            let engine = Engine::open(&RecordingEnv, options).await.expect("opens");
            sender.send(engine.volume()).expect("the test waits for it");
            let stopped = || wait.1.load(Ordering::SeqCst).then_some(());
            wait.0.wait_until(stopped).await;
            engine.stop().await.expect("stops");
        };
        let thread = RuntimeThread::start("engine", Config::default(), main).expect("a thread");
        let volume = receiver.recv().expect("the engine opens");
        (Recorded { thread, stop }, volume)
    }

    fn stop(self) {
        self.stop.1.store(true, Ordering::SeqCst);
        self.stop.0.notify_all();
        self.thread.join().expect("no panic of the engine");
    }
}

/// Content of a file of the test, different in each sector.
fn content(number: u64) -> Vec<u8> {
    let mut rng = SimRng::new(number + 1);
    let len = 1 + rng.below(300_000) as usize;
    (0..len).map(|at| if at % 512 < 8 { rng.below(256) as u8 } else { number as u8 ^ (at / 512) as u8 }).collect()
}

fn name(number: u64) -> String {
    format!("dir{}/file{number}", number % 3)
}

/// What was acknowledged: file and the place in the log behind its fsync.
struct Synced {
    number: u64,
    at: usize,
}

fn work(dir: &Path, recording: &Recording) -> Vec<Synced> {
    let mut synced = Vec::new();
    for number in 0..FILES {
        let path = dir.join(name(number));
        let parent = path.parent().expect("a directory");
        if !parent.exists() {
            std::fs::create_dir(parent).expect("a directory");
            File::open(dir).and_then(|dir| dir.sync_all()).expect("synced");
        }
        let mut file = File::create(&path).expect("a file");
        file.write_all(&content(number)).expect("written");
        if number % 4 != 3 {
            file.sync_all().expect("synced");
            File::open(parent).and_then(|dir| dir.sync_all()).expect("synced");
            synced.push(Synced { number, at: recording.now() });
        }
    }
    synced
}

/// Judges one cut.
fn judge(place: &Path, images: [Vec<u8>; 2], synced: &[Synced], cut: usize) {
    let [cache, backing] = ["cut-cache.img", "cut-disk.img"].map(|name| place.join(name));
    for (path, image) in [&cache, &backing].into_iter().zip(&images) {
        std::fs::write(path, image).expect("room for an image");
    }
    let replay = tool::run(tool("wb-check").args(["--json", "--replay", "--backing"]).arg(&backing).arg(&cache));
    assert!(
        matches!(replay.code, 0 | 1),
        "cut at {cut}: wb-check ends with {}: {}{}",
        replay.code,
        replay.stdout,
        replay.stderr
    );
    // Mounting replays the journal; afterwards the checker must find nothing.
    let device = check("util-linux", "losetup", &["--find", "--show", text(&backing)]);
    let (device, dir) = (device.trim(), place.join("mnt"));
    let mounted = run("util-linux", "mount", &[device, text(&dir)]);
    let found = mounted.success().then(|| {
        let differs = |file: &&Synced| std::fs::read(dir.join(name(file.number))).ok() != Some(content(file.number));
        let lost: Vec<u64> =
            synced.iter().filter(|file| file.at <= cut).filter(differs).map(|file| file.number).collect();
        check("util-linux", "umount", &[text(&dir)]);
        lost
    });
    let checked = run("e2fsprogs", "e2fsck", &["-f", "-n", device]);
    check("util-linux", "losetup", &["-d", device]);
    assert_eq!(
        found,
        Some(vec![]),
        "cut at {cut}: not mounted, or files that were synced are not there; {}",
        mounted.stderr
    );
    assert!(checked.success(), "cut at {cut}: {}{}", checked.stdout, checked.stderr);
}

#[test]
fn ext4_survives_power_cuts_at_flushes_of_both_devices_mounted() {
    let dir = tempfile::Builder::new().prefix("wb-test-").tempdir_in("/var/tmp").expect("a directory");
    let [cache, backing] = ["cache.img", "disk.img"].map(|name| -> PathBuf { dir.path().join(name) });
    File::create(&backing).and_then(|file| file.set_len(VOLUME_BYTES)).expect("a sparse file");
    let (size, segment) = (CACHE_BYTES.to_string(), SEGMENT_BYTES.to_string());
    let made = tool::run(tool("wb-format").args(["--size", &size, "--segment-size", &segment]).arg(&cache));
    assert_eq!(made.code, 0, "wb-format: {}", made.stderr);
    let images = [&cache, &backing].map(|path| std::fs::read(path).expect("an image"));

    let recording = Recording::default();
    let (engine, volume) = Recorded::start(&cache, &backing, &recording);
    let server = TestServer::start(volume);
    let mut mount = Mount::attach(dir.path(), &server.uri());
    check("e2fsprogs", "mkfs.ext4", &["-q", mount.device()]);
    mount.mount();
    check("coreutils", "sync", &["-f", text(&mount.dir)]);
    let ready = recording.now();
    let synced = work(&mount.dir, &recording);
    mount.detach();
    drop(server);
    engine.stop();

    let points: Vec<usize> = recording.flush_points().into_iter().filter(|at| *at >= ready).collect();
    let (writes, flushes) = recording.counts();
    assert!(points.len() > 4 * CUTS, "{} flushes while ext4 worked", points.len());
    for cut in 0..CUTS {
        let at = points[(cut + 1) * (points.len() - 1) / CUTS];
        judge(dir.path(), recording.cut(at, cut as u64, images.clone()), &synced, at);
    }
    println!("{writes} writes and {flushes} flushes of both devices, power cut at {CUTS} of {}", points.len());

    // The check bites: a cache device that forgets its flushes loses files that were synced.
    let forgetful = recording.without_flushes(Device::Cache);
    let at = *points.last().expect("points");
    let lossy = std::panic::catch_unwind(|| judge(dir.path(), forgetful.cut(at, 1, images.clone()), &synced, at));
    assert!(lossy.is_err(), "a cache device without flushes is noticed");
}
