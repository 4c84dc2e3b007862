//! Guests with the workspace's own binaries: see the crate `wb-guest`.

use crate::tool::bin;
use std::time::Duration;
pub use wb_guest::{Disk, Guest, Image, Kernel, Outcome, Running};

/// Programs of this machine that scenarios use.
const PROGRAMS: [&str; 10] =
    ["blkdiscard", "blockdev", "dd", "e2fsck", "fio", "lsblk", "mkfs.ext4", "mkfs.xfs", "sfdisk", "xfs_repair"];
/// The series of kernels that everything is tested on.
pub const KERNEL: &str = "6.12";

/// A guest with busybox alone.
pub fn bare(script: &str) -> Guest {
    Guest::new(Kernel::find(KERNEL).expect("a kernel"), Image::new().expect("an image"), script)
}

/// A guest that has our tools, the programs that scenarios use, and functions for scenarios (`tests/guest/lib.sh`).
pub fn guest(script: &str) -> Guest {
    let kernel = Kernel::find(KERNEL).expect("a kernel");
    let mut image = Image::new().expect("an image");
    for name in PROGRAMS {
        image.program(name).unwrap_or_else(|error| panic!("{error:#}: run `make setup`"));
    }
    for name in ["wb-format", "wb-daemon", "wb-check", "wb-dump", "wb-busy"] {
        image.program_file(&bin(name)).expect("one of our tools");
    }
    image.file("lib.sh", 0o644, include_str!("../guest/lib.sh"));
    let mut guest = Guest::new(kernel, image, &format!(". /lib.sh\n{script}"));
    guest.modules(&["ublk_drv", "xfs"]);
    guest.limit = Duration::from_secs(170);
    guest
}

/// A sparse file as a disk.
pub struct SparseDisk {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
}

impl SparseDisk {
    /// A disk of zeroes.
    pub fn new(bytes: u64) -> SparseDisk {
        // Not in /tmp, which may be memory.
        let parent = std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into());
        let dir = tempfile::Builder::new().prefix("wb-disk-").tempdir_in(parent).expect("a directory");
        let path = dir.path().join("disk.img");
        std::fs::File::create(&path).and_then(|file| file.set_len(bytes)).expect("a sparse file");
        SparseDisk { _dir: dir, path }
    }

    /// For a guest.
    pub fn disk(&self) -> Disk {
        Disk::file(&self.path)
    }
}
