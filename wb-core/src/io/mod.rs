//! Devices and the buffers that travel to them.

pub mod buf;
#[cfg(any(test, feature = "sim", feature = "testing"))]
pub mod conformance;
#[cfg(any(test, feature = "sim", feature = "testing"))]
pub mod mem;
mod region;

pub use buf::{Buf, BufPool, PoolClass, Slice};
pub use region::Region;

use std::future::Future;

/// What went wrong with a device, by what the caller should do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// These sectors could not be read or written; others may.
    #[error("medium error (EIO)")]
    Medium,
    /// The device is gone; nothing will work until it is back.
    #[error("the device is gone")]
    Gone,
    /// No space behind this address (thin provisioning, full filesystem below a file).
    #[error("no space left on the device")]
    NoSpace,
    /// The device refuses writes.
    #[error("the device is read-only")]
    ReadOnly,
    /// The device cannot do this at all (for example discard); do without.
    #[error("not supported by the device")]
    Unsupported,
    /// Any other error number.
    #[error("I/O error {0}")]
    Other(i32),
}

impl IoError {
    /// The class of an error number.
    pub fn from_errno(errno: i32) -> IoError {
        match errno {
            libc::EIO | libc::EILSEQ | libc::ENODATA | libc::EREMOTEIO | libc::ETIMEDOUT => IoError::Medium,
            libc::ENODEV | libc::ENXIO | libc::ENOMEDIUM | libc::ENOLINK | libc::ESHUTDOWN | libc::EBADF => {
                IoError::Gone
            }
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => IoError::NoSpace,
            libc::EROFS | libc::EPERM | libc::EACCES => IoError::ReadOnly,
            libc::EOPNOTSUPP | libc::ENOTTY | libc::ENOSYS => IoError::Unsupported,
            other => IoError::Other(other),
        }
    }
}

/// Size and units of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskGeometry {
    /// Bytes of the device, a multiple of `sector_bytes`.
    pub size_bytes: u64,
    /// Logical sector size: 512 or 4096. What a user of this device may address.
    pub sector_bytes: u32,
    /// Alignment that `read` and `write` need for offset and length: a multiple of `sector_bytes`, at most 4096.
    pub align_bytes: u32,
    /// Whether [`Disk::discard`] does something.
    pub discard: bool,
    /// A write with `fua` is one command of the device. Where it is not, the kernel makes it a write and a flush, one
    /// after the other, in a work queue of its own: no command is saved, and measured on a virtio disk it took 3 ms
    /// where write, then flush took 0.1.
    pub fua: bool,
    /// Opened read-only.
    pub read_only: bool,
}

/// A device or file. All offsets and lengths are multiples of `align_bytes` and within the device.
///
/// Contract, held by one conformance suite on every implementation:
/// * A completed write is seen by every read that starts later.
/// * Reads and writes are all or error: short transfers are continued below this trait.
/// * `flush` makes every write durable that completed before `flush` was called.
/// * A write with `fua` is durable when it completes; it says nothing about earlier writes.
/// * A failed write leaves any mix of old and new sectors in its range, and nothing else.
/// * Dropping the future of an operation does not stop the operation; its buffer lives until it ends.
pub trait Disk: Send + Sync + 'static {
    /// Size and units; constant while open.
    fn geometry(&self) -> DiskGeometry;

    /// Reads `buf.len()` bytes at `offset`. The buffer comes back in both cases.
    fn read(&self, offset: u64, buf: Buf) -> impl Future<Output = (Result<(), IoError>, Buf)>;

    /// Writes `data`, one piece after the other, at `offset`.
    fn write(&self, offset: u64, data: Vec<Slice>, fua: bool) -> impl Future<Output = Result<(), IoError>>;

    /// Makes completed writes durable.
    fn flush(&self) -> impl Future<Output = Result<(), IoError>>;

    /// Hints that the range is not needed. Its content is undefined afterwards.
    fn discard(&self, offset: u64, len: u64) -> impl Future<Output = Result<(), IoError>>;

    /// Makes the range read as zeroes. [`IoError::Unsupported`] if the device has no such command: write zeroes then.
    fn write_zeroes(&self, offset: u64, len: u64) -> impl Future<Output = Result<(), IoError>>;
}
