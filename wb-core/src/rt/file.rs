//! An open device or file, and what it demands of those who read and write it.

use super::open::OpenError;
use crate::io::{Buf, DiskGeometry, IoError, Slice};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// What a path may lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// A block device.
    Block,
    /// A regular file.
    File,
}

/// Largest alignment that [`DiskGeometry::align_bytes`] may ask for.
const ALIGN_BYTES_MAX: u32 = 4096;

/// Bytes of one system call; the kernel's own limit lies just below 2 GiB.
pub(super) const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// An open descriptor with its geometry. Shared by the disk and its operations in flight, so that the descriptor stays
/// open, and a claim on it held, until the last of them has ended.
#[derive(Debug)]
pub(super) struct DeviceFile {
    pub(super) fd: OwnedFd,
    pub(super) kind: DeviceKind,
    pub(super) geometry: DiskGeometry,
    /// Alignment of memory addresses.
    memory_align: usize,
}

nix::ioctl_read_bad!(block_sector_bytes, libc::BLKSSZGET, libc::c_int);
nix::ioctl_read_bad!(block_physical_bytes, nix::request_code_none!(0x12, 123), libc::c_uint);
nix::ioctl_read!(block_size_bytes, 0x12, 114, u64);
nix::ioctl_read_bad!(block_read_only, nix::request_code_none!(0x12, 94), libc::c_int);

/// Units of direct I/O.
struct Alignment {
    offset: u32,
    memory: usize,
}

impl DeviceFile {
    /// Asks the kernel about an open descriptor. Direct I/O is switched off where it cannot be had.
    pub(super) fn new(fd: OwnedFd, kind: DeviceKind, path: &Path, writable: bool) -> Result<DeviceFile, OpenError> {
        match kind {
            DeviceKind::Block => DeviceFile::block(fd, path, writable),
            DeviceKind::File => DeviceFile::regular(fd, path, writable),
        }
    }

    fn block(fd: OwnedFd, path: &Path, writable: bool) -> Result<DeviceFile, OpenError> {
        let failed = |errno: nix::errno::Errno| OpenError::os("ask for the size of", path, errno);
        let (mut sector, mut size, mut read_only) = (0, 0, 0);
        // SAFETY: these requests write an int, a u64 and an int; the descriptor is a block device.
        unsafe {
            block_sector_bytes(fd.as_raw_fd(), &mut sector).map_err(failed)?;
            block_size_bytes(fd.as_raw_fd(), &mut size).map_err(failed)?;
            block_read_only(fd.as_raw_fd(), &mut read_only).map_err(failed)?;
        }
        if writable && read_only != 0 {
            return Err(OpenError::ReadOnly { path: path.into() });
        }
        if sector != 512 && sector != 4096 {
            return Err(OpenError::SectorBytes { path: path.into(), bytes: sector as u32 });
        }
        let sector_bytes = sector as u32;
        let memory = direct_alignment(&fd).flatten().map_or(sector_bytes as usize, |align| align.memory);
        let geometry = DiskGeometry {
            size_bytes: size / u64::from(sector_bytes) * u64::from(sector_bytes),
            sector_bytes,
            align_bytes: sector_bytes,
            discard: has_discard(&fd),
            fua: has_fua(&fd, DeviceKind::Block),
            read_only: !writable,
        };
        let file = DeviceFile { fd, kind: DeviceKind::Block, geometry, memory_align: memory };
        if !file.is_direct() {
            tracing::warn!("{}: no direct I/O; reads and writes go through the page cache", path.display());
        }
        Ok(file)
    }

    fn regular(fd: OwnedFd, path: &Path, writable: bool) -> Result<DeviceFile, OpenError> {
        let meta = std::fs::File::from(fd.try_clone().map_err(|error| OpenError::os("duplicate", path, error))?);
        let size = meta.metadata().map_err(|error| OpenError::os("ask for the size of", path, error))?.size();
        let size_bytes = size / 512 * 512;
        if size_bytes != size {
            tracing::warn!("{}: the last {} bytes are no whole sector and are ignored", path.display(), size % 512);
        }
        let fits = |align: &Alignment| align.offset <= ALIGN_BYTES_MAX && size_bytes % u64::from(align.offset) == 0;
        let direct = is_direct(fd.as_raw_fd());
        let ask = || direct_alignment(&fd).unwrap_or_else(|| probe_alignment(&meta));
        let align = if direct { ask().filter(fits) } else { None };
        let align = align.unwrap_or_else(|| {
            tracing::warn!(
                "{}: no direct I/O on this file (its filesystem, or a size of {size} bytes that is no multiple of the \
                 filesystem's block, does not allow it); reads and writes go through the page cache",
                path.display()
            );
            Alignment { offset: 512, memory: 1 }
        });
        if direct && align.memory == 1 {
            clear_direct(&fd).map_err(|errno| OpenError::os("switch off direct I/O on", path, errno))?;
        }
        let geometry = DiskGeometry {
            size_bytes,
            sector_bytes: 512,
            align_bytes: align.offset.max(512),
            discard: writable && has_holes(&fd),
            fua: has_fua(&fd, DeviceKind::File),
            read_only: !writable,
        };
        Ok(DeviceFile { fd, kind: DeviceKind::File, geometry, memory_align: align.memory })
    }

    /// Whether transfers bypass the page cache.
    pub(super) fn is_direct(&self) -> bool {
        is_direct(self.fd.as_raw_fd())
    }

    pub(super) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Refuses what the contract of `Disk` does not allow, before it can do harm: a write behind the end would make a
    /// file longer.
    pub(super) fn check(&self, offset: u64, len: u64, align_bytes: u32) -> Result<(), IoError> {
        let align = u64::from(align_bytes);
        let within = offset.checked_add(len).is_some_and(|end| end <= self.geometry.size_bytes);
        if !within || !offset.is_multiple_of(align) || !len.is_multiple_of(align) {
            return Err(IoError::Other(libc::EINVAL));
        }
        Ok(())
    }

    /// [`DeviceFile::check`] for what changes the device.
    pub(super) fn check_change(&self, offset: u64, len: u64, align_bytes: u32) -> Result<(), IoError> {
        if self.geometry.read_only {
            return Err(IoError::ReadOnly);
        }
        self.check(offset, len, align_bytes)
    }

    /// Whether direct I/O takes memory at this address and of this length.
    pub(super) fn takes(&self, address: *const u8, len: usize) -> bool {
        self.memory_align == 1
            || (address.addr().is_multiple_of(self.memory_align)
                && len.is_multiple_of(self.geometry.align_bytes as usize))
    }

    /// How many of `moved` bytes count after a short transfer: direct I/O goes on at aligned offsets only.
    pub(super) fn whole(&self, moved: usize) -> usize {
        moved - moved % self.geometry.align_bytes as usize
    }

    /// All pieces in one aligned buffer, if some of them cannot be handed to the kernel as they are.
    pub(super) fn straighten(&self, data: &[Slice]) -> Option<Slice> {
        if data.iter().all(|piece| self.takes(piece.as_ptr(), piece.len())) {
            return None;
        }
        let mut buf = Buf::unpooled(data.iter().map(Slice::len).sum());
        let mut at = 0;
        for piece in data {
            buf[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        Some(buf.freeze())
    }
}

fn is_direct(fd: RawFd) -> bool {
    // SAFETY: the descriptor is open; the call reads its flags.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags & libc::O_DIRECT != 0
}

fn clear_direct(fd: &OwnedFd) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags - OFlag::O_DIRECT)).map(|_| ())
}

/// What statx says (Linux 6.1 and some filesystems): `None` if nothing, `Some(None)` if there is no direct I/O.
fn direct_alignment(fd: &OwnedFd) -> Option<Option<Alignment>> {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: an empty path with AT_EMPTY_PATH means the descriptor itself; the kernel fills the structure.
    let result = unsafe {
        libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, stat.as_mut_ptr())
    };
    // SAFETY: zeroes are valid, and the kernel writes valid values.
    let stat = unsafe { stat.assume_init() };
    let known = result == 0 && stat.stx_mask & libc::STATX_DIOALIGN != 0;
    known.then(|| {
        let (offset, memory) = (stat.stx_dio_offset_align, stat.stx_dio_mem_align.max(1) as usize);
        (offset != 0).then_some(Alignment { offset, memory })
    })
}

/// For filesystems that do direct I/O but do not say how: the smallest unit in which a read succeeds.
fn probe_alignment(file: &std::fs::File) -> Option<Alignment> {
    let mut buf = Buf::unpooled(ALIGN_BYTES_MAX as usize);
    let size = file.metadata().ok()?.size();
    [512u32, 1024, 2048, 4096].into_iter().find_map(|unit| {
        let readable = size >= 2 * u64::from(unit);
        let worked = readable && file.read_exact_at(&mut buf[..unit as usize], u64::from(unit)).is_ok();
        worked.then_some(Alignment { offset: unit, memory: ALIGN_BYTES_MAX as usize })
    })
}

/// Whether the filesystem makes holes, by its kind. Trying it would change the file's times, and a file is not to be
/// changed in any way before it has been judged. Filesystems not known here count as making none.
fn has_holes(fd: &OwnedFd) -> bool {
    use nix::sys::statfs::{
        BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC,
        fstatfs,
    };
    let known =
        [BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC];
    fstatfs(fd).is_ok_and(|answer| known.contains(&answer.filesystem_type()))
}

/// Whether the device, or the one below a file, has forced unit access. Unknown (a filesystem over several devices)
/// counts as no.
fn has_fua(fd: &OwnedFd, kind: DeviceKind) -> bool {
    let Ok(stat) = nix::sys::stat::fstat(fd) else { return false };
    let device = match kind {
        DeviceKind::Block => stat.st_rdev,
        DeviceKind::File => stat.st_dev,
    };
    super::identity::sys_queue(device, "fua").is_some_and(|value| value == "1")
}

fn has_discard(fd: &OwnedFd) -> bool {
    let Ok(stat) = nix::sys::stat::fstat(fd) else { return false };
    super::identity::sys_queue(stat.st_rdev, "discard_max_bytes").is_some_and(|value| value != "0")
}
