//! The device or file to be formatted: created where asked for, opened, claimed.

use anyhow::Context as _;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use wb_cli::NextStep;
use wb_cli::error::UsageError;
use wb_cli::progress::{Progress, ProgressUnit};
use wb_core::BLOCK_BYTES_U64;
use wb_core::io::{Buf, Disk};
use wb_core::rt::{Access, BlockingDisk, DeviceKind, block_on_ready, open_blocking};

/// Bytes of one write when a file is written out.
const PIECE_BYTES: u64 = 1 << 20;
/// Requests of a killed daemon may hold the claim for a moment.
const CLAIM_WAIT_NS: u64 = 2_000_000_000;

/// What is to be formatted.
pub struct Target {
    /// Its path, as named.
    pub path: PathBuf,
    /// Open and claimed. After [`Target::resize`] it has its final size.
    disk: Option<BlockingDisk>,
    /// Block device or regular file.
    pub kind: DeviceKind,
    /// The file was made by this run; it is removed if the run fails.
    created: bool,
}

impl Target {
    /// Opens what is there, or creates the file if a size is given. Nothing that exists is changed yet.
    pub fn open(path: &Path, size_bytes: Option<u64>) -> anyhow::Result<Target> {
        let created = match (fs::metadata(path), size_bytes) {
            (Err(error), Some(size)) if error.kind() == ErrorKind::NotFound => create(path, size)?,
            (Err(error), None) if error.kind() == ErrorKind::NotFound => {
                return Err(anyhow::anyhow!("{} does not exist", path.display()))
                    .next_step("name an existing device or file, or give --size to create a file");
            }
            (Ok(meta), Some(_)) if meta.file_type().is_block_device() => {
                return Err(UsageError::raise(format!("--size: {} is a block device", path.display())))
                    .next_step("leave --size out to use all of it, or make a partition of the size wanted");
            }
            _ => false,
        };
        let opened = open_blocking(path, Access::exclusive(CLAIM_WAIT_NS));
        if created && opened.is_err() {
            let _ = fs::remove_file(path);
        }
        let opened = opened?;
        Ok(Target { path: path.to_path_buf(), disk: Some(opened.disk), kind: opened.identity.kind, created })
    }

    /// The open disk.
    pub fn disk(&self) -> &BlockingDisk {
        self.disk.as_ref().expect("open but while it is resized")
    }

    /// Sets the size of a regular file.
    pub fn resize(&mut self, size_bytes: u64) -> anyhow::Result<()> {
        if self.disk().geometry().size_bytes == size_bytes {
            return Ok(());
        }
        let file = OpenOptions::new().write(true).open(&self.path);
        let resized = file.and_then(|file| file.set_len(size_bytes));
        resized.with_context(|| format!("cannot make {} {size_bytes} bytes large", self.path.display()))?;
        // The size of an open disk is fixed, and two claims of one process exclude each other.
        self.disk = None;
        self.disk = Some(open_blocking(&self.path, Access::exclusive(CLAIM_WAIT_NS))?.disk);
        Ok(())
    }

    /// Writes the whole file with zeroes, so that no later write allocates.
    pub fn write_out(&self, quiet: bool) -> anyhow::Result<()> {
        let size = self.disk().geometry().size_bytes / BLOCK_BYTES_U64 * BLOCK_BYTES_U64;
        let progress =
            if quiet { Progress::hidden() } else { Progress::new("writing the file out", size, ProgressUnit::Bytes) };
        let zeroes = Buf::unpooled(PIECE_BYTES as usize).freeze();
        let mut at = 0;
        while at < size {
            let len = PIECE_BYTES.min(size - at);
            let piece = zeroes.slice(0..len as usize);
            block_on_ready(self.disk().write(at, vec![piece], false))
                .with_context(|| format!("writing out {} failed at offset {at}", self.path.display()))
                .next_step("make room on its filesystem, or choose a smaller --size")?;
            at += len;
            progress.set(at);
        }
        block_on_ready(self.disk().flush()).with_context(|| format!("flushing {} failed", self.path.display()))
    }

    /// The work is done: a file that was created stays.
    pub fn keep(mut self) {
        self.created = false;
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.created {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn create(path: &Path, size_bytes: u64) -> anyhow::Result<bool> {
    let failed = || format!("cannot create {}", path.display());
    // It will hold users' data: for its owner only.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(failed)?;
    let sized = file.set_len(size_bytes).with_context(failed);
    if sized.is_err() {
        let _ = fs::remove_file(path);
    }
    sized.map(|()| true)
}
