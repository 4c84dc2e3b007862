//! The files and devices of a measurement: opened alone, and written out before, so that no pass measures a filesystem
//! that allocates.

use anyhow::Context as _;
use nix::unistd::{Whence, lseek};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use wb_cli::NextStep;
use wb_cli::progress::{Progress, ProgressUnit};
use wb_core::io::Disk;
use wb_core::rt::{Access, DeviceKind, RtDisk, open_device};

use crate::load;

/// How long to wait for a claim.
const CLAIM_WAIT_NS: u64 = 2_000_000_000;

/// Bytes of one write when a file is written out.
const PIECE_BYTES: u64 = 1 << 20;

/// An open device or file.
pub struct Opened {
    /// For I/O.
    pub disk: RtDisk,
    /// Where it is.
    pub path: PathBuf,
    /// Block device or file.
    pub kind: DeviceKind,
}

impl Opened {
    /// Opens it, alone.
    pub fn open(path: &Path) -> anyhow::Result<Opened> {
        let opened = open_device(path, Access::exclusive(CLAIM_WAIT_NS))?;
        Ok(Opened { disk: opened.disk, path: path.into(), kind: opened.identity.kind })
    }

    /// Opens it for reading only.
    pub fn open_read_only(path: &Path) -> anyhow::Result<Opened> {
        let opened = open_device(path, Access::exclusive_read_only(CLAIM_WAIT_NS))?;
        Ok(Opened { disk: opened.disk, path: path.into(), kind: opened.identity.kind })
    }

    /// Its size.
    pub fn size_bytes(&self) -> u64 {
        self.disk.geometry().size_bytes
    }

    /// Writes every block if the file has any that was never written; a block device has none.
    pub async fn write_out(&self, quiet: bool) -> anyhow::Result<()> {
        if self.kind == DeviceKind::Block || is_written_out(&self.path)? {
            return Ok(());
        }
        let size = self.size_bytes() / 4096 * 4096;
        let what = format!("writing {} out", self.path.display());
        let progress = if quiet { Progress::hidden() } else { Progress::new(&what, size, ProgressUnit::Bytes) };
        let payload = load::payload();
        let mut at = 0;
        while at < size {
            // Four in flight: the file is written as fast as it can be.
            let pieces = (0..4).map(|n| at + n * PIECE_BYTES).filter(|&at| at < size).map(|at| {
                let len = PIECE_BYTES.min(size - at) as usize;
                self.disk.write(at, vec![payload.slice(0..len)], false)
            });
            for result in futures_util::future::join_all(pieces).await {
                result
                    .with_context(|| format!("writing {} out failed", self.path.display()))
                    .next_step("make room on its filesystem, or measure a smaller file")?;
            }
            at += 4 * PIECE_BYTES;
            progress.set(at.min(size));
        }
        self.disk.flush().await.with_context(|| format!("flushing {} failed", self.path.display()))?;
        anyhow::ensure!(
            is_written_out(&self.path)?,
            "{} was written out and still has holes: its filesystem keeps none of what is written in place",
            self.path.display()
        );
        Ok(())
    }
}

/// True if a file has neither holes nor extents that were reserved and never written: those count as holes for lseek(2)
/// once nothing of them is in the page cache.
pub fn is_written_out(path: &Path) -> anyhow::Result<bool> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let size = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?.len();
    if size == 0 {
        return Ok(true);
    }
    match lseek(&file, 0, Whence::SeekHole) {
        Ok(hole) => Ok(hole as u64 >= size),
        Err(nix::errno::Errno::ENXIO) => Ok(false),
        Err(errno) => Err(errno).with_context(|| format!("cannot look for holes in {}", path.display())),
    }
}

/// A file that is removed when this is dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new file of so many bytes; an old one of this name is replaced.
    pub fn new(path: PathBuf, size_bytes: u64) -> anyhow::Result<Scratch> {
        let failed = || format!("cannot make {}", path.display());
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path).with_context(failed)?;
        let scratch = Scratch(path.clone());
        file.set_len(size_bytes).with_context(failed)?;
        Ok(scratch)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A directory for RAM tails, in shared memory as the daemon's; removed, with what is in it, when this is dropped.
#[derive(Debug)]
pub struct TailDir(PathBuf);

impl TailDir {
    /// A directory of this process that does not exist yet; who keeps a tail makes it.
    pub fn new() -> TailDir {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        TailDir(format!("/dev/shm/wb-bench-{}-{number}", std::process::id()).into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for TailDir {
    fn default() -> TailDir {
        TailDir::new()
    }
}

impl Drop for TailDir {
    fn drop(&mut self) {
        // Nobody may have used it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn holes_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut file = File::create(&path).unwrap();
        file.write_all(&[1; 8192]).unwrap();
        assert!(is_written_out(&path).unwrap());
        file.set_len(1 << 20).unwrap();
        assert!(!is_written_out(&path).unwrap());
    }

    #[test]
    fn scratch_files_vanish() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(dir.path().join("s"), 4096).unwrap();
        assert!(scratch.path().exists());
        let path = scratch.path().to_path_buf();
        drop(scratch);
        assert!(!path.exists());
    }
}
