//! Loads that are programs on a filesystem: sqlite, and a source tree that is unpacked and built from.

use super::result::Measurement;
use super::shell::{self, Shell};
use anyhow::Context as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

const MOUNT: &str = "/mnt/wb-bench";
/// Transactions per call of sqlite3.
const BATCH: u32 = 20;
const LIMIT: Duration = Duration::from_secs(600);
/// Seed of the source tree.
const SEED: u64 = 20140214;

/// ext4 on the device, mounted.
pub fn make_filesystem(shell: &mut Shell, device: &Path) -> anyhow::Result<()> {
    let device = device.to_str().context("paths of devices are text")?;
    shell.run_for("mkfs.ext4", &["-q", "-F", device], LIMIT)?;
    std::fs::create_dir_all(MOUNT).with_context(|| format!("cannot make {MOUNT}"))?;
    shell.run_for("mount", &["-t", "ext4", device, MOUNT], LIMIT)?;
    Ok(())
}

/// Takes the filesystem away.
pub fn unmount(shell: &mut Shell) -> anyhow::Result<()> {
    shell.run_for("umount", &[MOUNT], LIMIT).map(drop)
}

/// Commits per second of one sqlite3.
pub fn sqlite(_device: &Path, limit: Duration) -> anyhow::Result<Measurement> {
    let path = Path::new(MOUNT).join("bench.db");
    let database = path.to_str().context("the path is text")?;
    let run = |script: &str| shell::run("sqlite3", &["-batch", database, script], LIMIT);
    run("PRAGMA journal_mode=WAL; CREATE TABLE log (id INTEGER PRIMARY KEY, body TEXT);")?;
    let row = format!("INSERT INTO log (body) VALUES ('{}');", "x".repeat(200));
    let script = format!("PRAGMA synchronous=FULL; {}", row.repeat(BATCH as usize));
    // The first call is not counted: it pays for what is read once.
    run(&script)?;
    let begin = Instant::now();
    let (mut commits, mut series) = (0u64, Vec::new());
    while begin.elapsed() < limit {
        let batch = Instant::now();
        run(&script)?;
        commits += u64::from(BATCH);
        series.push((begin.elapsed().as_secs_f64(), f64::from(BATCH) / batch.elapsed().as_secs_f64()));
    }
    let seconds = begin.elapsed().as_secs_f64();
    Ok(Measurement {
        value: commits as f64 / seconds,
        user_flushes: commits,
        seconds,
        series,
        ..Measurement::default()
    })
}

/// Seconds for unpacking sources and building from them.
pub fn source_tree(_device: &Path, files: u32) -> anyhow::Result<Measurement> {
    let (sources, objects) = (Path::new(MOUNT).join("src"), Path::new(MOUNT).join("obj"));
    let begin = Instant::now();
    let mut state = SEED;
    let mut bytes = 0u64;
    for number in 0..files {
        // A small generator of its own, so that every run writes the same tree.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let len = 2048 + (state >> 33) % (30 << 10);
        let dir = sources.join(format!("d{}", number % 50));
        std::fs::create_dir_all(&dir)?;
        let text: Vec<u8> = (0..len).map(|at| ((state >> (at % 48)) as u8) ^ at as u8).collect();
        std::fs::write(dir.join(format!("f{number}.c")), &text)?;
        bytes += len;
    }
    sync_filesystem()?;
    let unpacked = begin.elapsed().as_secs_f64();
    // From the device, as after a fresh checkout on a busy machine.
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the page cache")?;
    std::fs::create_dir_all(&objects)?;
    let mut linked = File::create(objects.join("program"))?;
    for number in 0..files {
        let source = std::fs::read(sources.join(format!("d{}", number % 50)).join(format!("f{number}.c")))?;
        let (temporary, object) = (objects.join("tmp"), objects.join(format!("f{number}.o")));
        std::fs::write(&temporary, &source)?;
        std::fs::rename(&temporary, &object)?;
        linked.write_all(&source)?;
    }
    linked.sync_all()?;
    sync_filesystem()?;
    let seconds = begin.elapsed().as_secs_f64();
    let more = [("unpack_s", unpacked), ("build_s", seconds - unpacked)];
    let more = more.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
    Ok(Measurement { value: seconds, user_write_bytes: bytes * 3, seconds, more, ..Measurement::default() })
}

fn sync_filesystem() -> anyhow::Result<()> {
    let dir = File::open(MOUNT)?;
    nix::unistd::syncfs(&dir).context("cannot sync the filesystem")
}
