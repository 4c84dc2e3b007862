//! Opening and claiming of devices.
//!
//! A claim lies on the very descriptor that does the I/O: O_EXCL of a block device and flock of either. The kernel keeps
//! an open file alive while requests on it are in flight, also after its process was killed; so a successor that has
//! the claim knows that none of its predecessor's writes can land any more.

use super::blocking::BlockingDisk;
use super::disk::RtDisk;
use super::file::{DeviceFile, DeviceKind};
use super::identity::DeviceIdentity;
use super::thread::pause_ns;
use super::timer::now_ns;
use super::usage::{self, Usage};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat, stat};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Pause between attempts to claim a device.
const RETRY_NS: u64 = 50_000_000;
/// Pause between messages that it is still being waited for.
const REPORT_NS: u64 = 5_000_000_000;

/// Why a device could not be opened. Every message names the device and the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is nothing at this path.
    #[error("{} does not exist; check the path, and that the device is plugged in", .path.display())]
    NotFound {
        /// The path as given.
        path: PathBuf,
    },
    /// The user may not open it.
    #[error("no permission to open {}; run as root or as a user who may access it", .path.display())]
    Permission {
        /// The path as given.
        path: PathBuf,
    },
    /// Neither a block device nor a regular file.
    #[error("{} is a {kind}; name a block device or a regular file", .path.display())]
    WrongType {
        /// The path as given.
        path: PathBuf,
        /// What it is instead.
        kind: &'static str,
    },
    /// The device or its medium is write-protected.
    #[error("{} is read-only; remove the write protection or open it read-only", .path.display())]
    ReadOnly {
        /// The path as given.
        path: PathBuf,
    },
    /// Somebody else uses it.
    #[error("{} is in use: {by}", .path.display())]
    InUse {
        /// The path as given.
        path: PathBuf,
        /// By whom, and what to do about it.
        by: String,
    },
    /// A logical sector size that the format does not know.
    #[error("{} has sectors of {bytes} bytes; only 512 and 4096 are supported, so use another device", .path.display())]
    SectorBytes {
        /// The path as given.
        path: PathBuf,
        /// Its logical sector size.
        bytes: u32,
    },
    /// Anything else.
    #[error("cannot {what} {}: {error}; the kernel log (dmesg) may say more", .path.display())]
    Os {
        /// What was attempted.
        what: &'static str,
        /// The path as given.
        path: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },
}

impl OpenError {
    pub(super) fn os(what: &'static str, path: &Path, error: impl Into<io::Error>) -> OpenError {
        OpenError::Os { what, path: path.into(), error: error.into() }
    }

    fn from_open(path: &Path, errno: Errno) -> OpenError {
        let path = PathBuf::from(path);
        match errno {
            Errno::ENOENT | Errno::ENXIO | Errno::ENODEV | Errno::ENOTDIR => OpenError::NotFound { path },
            Errno::EACCES | Errno::EPERM => OpenError::Permission { path },
            Errno::EROFS => OpenError::ReadOnly { path },
            _ => OpenError::os("open", &path, errno),
        }
    }
}

/// What a device is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Open for writing too.
    pub write: bool,
    /// Nobody else may claim the device while it is open.
    pub claim: bool,
    /// How long to wait for a claim, in nanoseconds: requests of a killed predecessor that are still in flight hold it
    /// for as long as the device takes, and udev takes a lock for some milliseconds when a device appears.
    pub wait_ns: u64,
}

impl Access {
    /// Reads beside whoever uses the device.
    pub const INSPECT: Access = Access { write: false, claim: false, wait_ns: 0 };

    /// Reads and writes, alone.
    pub fn exclusive(wait_ns: u64) -> Access {
        Access { write: true, claim: true, wait_ns }
    }

    /// Reads, and keeps others from claiming it.
    pub fn exclusive_read_only(wait_ns: u64) -> Access {
        Access { write: false, claim: true, wait_ns }
    }
}

/// An open device.
#[derive(Debug)]
pub struct Opened<D> {
    /// For I/O. The claim lasts until all its clones are dropped and their operations have ended.
    pub disk: D,
    /// What tells it from others.
    pub identity: DeviceIdentity,
}

/// Opens a block device or regular file for the ring. Blocks the thread, at most [`Access::wait_ns`] for the claim.
pub fn open_device(path: &Path, access: Access) -> Result<Opened<RtDisk>, OpenError> {
    let (file, identity) = open_file(path, access)?;
    Ok(Opened { disk: RtDisk::new(file), identity })
}

/// [`open_device`] for plain system calls.
pub fn open_blocking(path: &Path, access: Access) -> Result<Opened<BlockingDisk>, OpenError> {
    let (file, identity) = open_file(path, access)?;
    Ok(Opened { disk: BlockingDisk::new(file), identity })
}

fn open_file(path: &Path, access: Access) -> Result<(DeviceFile, DeviceIdentity), OpenError> {
    // Looked at before it is opened: opening a FIFO or a terminal blocks or has side effects.
    let kind = kind_of(path, stat(path).map_err(|errno| OpenError::from_open(path, errno))?.st_mode)?;
    let fd = if access.claim { claim(path, kind, access)? } else { open_fd(path, kind, access)? };
    let file = DeviceFile::new(fd, kind, path, access.write)?;
    let identity = DeviceIdentity::of(&file, path)?;
    Ok((file, identity))
}

fn kind_of(path: &Path, mode: libc::mode_t) -> Result<DeviceKind, OpenError> {
    let kind = match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
        SFlag::S_IFBLK => return Ok(DeviceKind::Block),
        SFlag::S_IFREG => return Ok(DeviceKind::File),
        SFlag::S_IFDIR => "directory",
        SFlag::S_IFCHR => "character device",
        SFlag::S_IFIFO => "FIFO",
        SFlag::S_IFSOCK => "socket",
        _ => "file of unknown type",
    };
    Err(OpenError::WrongType { path: path.into(), kind })
}

fn open_fd(path: &Path, kind: DeviceKind, access: Access) -> Result<OwnedFd, OpenError> {
    try_open(path, kind, access).map_err(|errno| OpenError::from_open(path, errno))?.map_or_else(
        || Err(OpenError::InUse { path: path.into(), by: "it was replaced while being opened; try again".into() }),
        Ok,
    )
}

/// `None` if the path leads to something else by now.
fn try_open(path: &Path, kind: DeviceKind, access: Access) -> nix::Result<Option<OwnedFd>> {
    let mut flags = OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    flags |= if access.write { OFlag::O_RDWR } else { OFlag::O_RDONLY };
    if access.claim && kind == DeviceKind::Block {
        flags |= OFlag::O_EXCL;
    }
    let fd = match open(path, flags | OFlag::O_DIRECT, Mode::empty()) {
        // This filesystem does no direct I/O.
        Err(Errno::EINVAL) => open(path, flags, Mode::empty())?,
        other => other?,
    };
    let same = kind_of(path, fstat(&fd)?.st_mode).is_ok_and(|opened| opened == kind);
    Ok(same.then_some(fd))
}

/// Opens and claims; tries again while the claim is held by what may let go of it soon.
fn claim(path: &Path, kind: DeviceKind, access: Access) -> Result<OwnedFd, OpenError> {
    let start = now_ns();
    let mut reported = None;
    loop {
        refuse_if_used(path)?;
        match try_claim(path, kind, access) {
            Ok(Some(fd)) => {
                if reported.is_some() {
                    tracing::info!("{}: claimed after {} ms", path.display(), (now_ns() - start) / 1_000_000);
                }
                return Ok(fd);
            }
            Ok(None) | Err(Errno::EBUSY) => {}
            Err(errno) => return Err(OpenError::from_open(path, errno)),
        }
        let waited = now_ns() - start;
        if waited >= access.wait_ns {
            let by = "another process has claimed it (is a second wb-daemon, wb-check --repair or a mount running? \
                      `fuser -v` and `lsblk` may tell); stop that one first";
            return Err(OpenError::InUse { path: path.into(), by: by.into() });
        }
        if reported.is_none_or(|at: u64| now_ns() - at >= REPORT_NS) {
            reported = Some(now_ns());
            tracing::info!(
                "{}: waiting for another process, or requests in flight of one that was killed, to let go of it; \
                 {} s left",
                path.display(),
                (access.wait_ns - waited).div_ceil(1_000_000_000)
            );
        }
        pause_ns(RETRY_NS.min(access.wait_ns - waited));
    }
}

/// `None` if somebody else holds the lock.
fn try_claim(path: &Path, kind: DeviceKind, access: Access) -> nix::Result<Option<OwnedFd>> {
    let Some(fd) = try_open(path, kind, access)? else { return Ok(None) };
    // The lock must live and die with the open file description, which `nix::fcntl::Flock` unlocks when it is dropped.
    // SAFETY: no pointers.
    match Errno::result(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(Some(fd)),
        Err(Errno::EWOULDBLOCK | Errno::EINTR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What the kernel itself does with a device does not end by waiting.
fn refuse_if_used(path: &Path) -> Result<(), OpenError> {
    match usage::in_use(path) {
        Ok(users) => match users.into_iter().next() {
            Some(usage) => Err(OpenError::InUse { path: path.into(), by: advice(&usage) }),
            None => Ok(()),
        },
        // Without /proc or /sys the claim itself has to do.
        Err(error) => {
            tracing::warn!("{}: cannot tell whether it is in use: {error}", path.display());
            Ok(())
        }
    }
}

fn advice(usage: &Usage) -> String {
    match usage {
        Usage::Mounted { at, .. } => format!("mounted at {}; unmount it first", at.display()),
        Usage::Swap => "it is swap space; `swapoff` it first".into(),
        Usage::Holder { device, by } => {
            format!("{device} is part of the block device {by}; take that one down first (dmsetup, mdadm, lvchange)")
        }
        Usage::Loop { device } => format!("the loop device {device} shows it; `losetup -d {device}` first"),
    }
}
