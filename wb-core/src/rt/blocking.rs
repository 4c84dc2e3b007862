//! Disks without a ring, for tools where io_uring is not permitted. Every future is ready when first polled.

use super::file::{DeviceFile, DeviceKind, TRANSFER_BYTES_MAX};
use crate::io::{Buf, Disk, DiskGeometry, IoError, Slice};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Bytes of one discard or zeroing, as for [`super::RtDisk`].
const RANGE_BYTES_MAX: u64 = 1 << 30;

nix::ioctl_write_ptr_bad!(block_discard, nix::request_code_none!(0x12, 119), [u64; 2]);

/// A device or file read and written with plain system calls, which block the thread. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct BlockingDisk {
    file: Arc<DeviceFile>,
}

/// The result of a future that never waits, such as all of [`BlockingDisk`] and compositions of them. Panics if it waits.
pub fn block_on_ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a future that was to be ready at once waits for something"),
    }
}

/// The class of the error of the system call just made.
fn last_error() -> IoError {
    IoError::from_errno(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// Repeats a call until it moves bytes or fails; `Ok` is the number of whole units moved.
fn transfer(file: &DeviceFile, mut call: impl FnMut() -> isize) -> Result<usize, IoError> {
    loop {
        match call() {
            0 => return Err(IoError::Medium), // The file has become shorter.
            moved @ 1.. => match file.whole(moved as usize) {
                0 => return Err(IoError::Medium),
                whole => return Ok(whole),
            },
            _ => match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                errno => return Err(IoError::from_errno(errno.unwrap_or(libc::EIO))),
            },
        }
    }
}

impl BlockingDisk {
    pub(super) fn new(file: DeviceFile) -> BlockingDisk {
        BlockingDisk { file: Arc::new(file) }
    }

    fn read_now(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        let mut at = 0;
        while at < buf.len() {
            let rest = &mut buf[at..];
            let len = rest.len().min(TRANSFER_BYTES_MAX);
            at += transfer(&self.file, || {
                // SAFETY: pointer and length describe a part of the buffer.
                unsafe { libc::pread(self.file.raw(), rest.as_mut_ptr().cast(), len, (offset + at as u64) as i64) }
            })?;
        }
        Ok(())
    }

    fn write_now(&self, offset: u64, data: &[u8], flags: i32) -> Result<(), IoError> {
        let mut at = 0;
        while at < data.len() {
            let rest = &data[at..data.len().min(at + TRANSFER_BYTES_MAX)];
            let vector = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
            at += transfer(&self.file, || {
                // SAFETY: one vector, which describes a part of the data; it is only read.
                unsafe { libc::pwritev2(self.file.raw(), &raw const vector, 1, (offset + at as u64) as i64, flags) }
            })?;
        }
        Ok(())
    }

    fn fallocate(&self, offset: u64, len: u64, mode: i32) -> Result<(), IoError> {
        let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
        loop {
            // SAFETY: no pointers.
            if unsafe { libc::fallocate(self.file.raw(), mode, offset as i64, len as i64) } == 0 {
                return Ok(());
            }
            if io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
                return Err(last_error());
            }
        }
    }

    fn discard_now(&self, offset: u64, len: u64) -> Result<(), IoError> {
        if self.file.kind == DeviceKind::File {
            return self.fallocate(offset, len, libc::FALLOC_FL_PUNCH_HOLE);
        }
        // SAFETY: BLKDISCARD reads start and length in bytes; the descriptor is a block device.
        match unsafe { block_discard(self.file.raw(), &[offset, len]) } {
            Ok(_) => Ok(()),
            Err(errno) => Err(IoError::from_errno(errno as i32)),
        }
    }

    fn zero_now(&self, offset: u64, len: u64) -> Result<(), IoError> {
        match (self.fallocate(offset, len, libc::FALLOC_FL_ZERO_RANGE), self.file.kind) {
            (Err(IoError::Unsupported), DeviceKind::File) => self.fallocate(offset, len, libc::FALLOC_FL_PUNCH_HOLE),
            (result, _) => result,
        }
    }
}

/// Applies `to` to pieces of a range, so that a signal can end the tool in between.
fn in_pieces(offset: u64, len: u64, to: impl Fn(u64, u64) -> Result<(), IoError>) -> Result<(), IoError> {
    let end = offset + len;
    (offset..end).step_by(RANGE_BYTES_MAX as usize).try_for_each(|at| to(at, RANGE_BYTES_MAX.min(end - at)))
}

impl Disk for BlockingDisk {
    fn geometry(&self) -> DiskGeometry {
        self.file.geometry
    }

    async fn read(&self, offset: u64, mut buf: Buf) -> (Result<(), IoError>, Buf) {
        let checked = self.file.check(offset, buf.len() as u64, self.file.geometry.align_bytes);
        let result = checked.and_then(|()| {
            if self.file.takes(buf.as_mut_ptr(), buf.len()) {
                return self.read_now(offset, &mut buf);
            }
            let mut straight = Buf::unpooled(buf.len());
            self.read_now(offset, &mut straight)?;
            buf.copy_from_slice(&straight);
            Ok(())
        });
        (result, buf)
    }

    async fn write(&self, offset: u64, data: Vec<Slice>, fua: bool) -> Result<(), IoError> {
        let len: usize = data.iter().map(Slice::len).sum();
        self.file.check_change(offset, len as u64, self.file.geometry.align_bytes)?;
        if len == 0 {
            return Ok(());
        }
        let flags = if fua { libc::RWF_DSYNC } else { 0 };
        let straight = self.file.straighten(&data);
        let mut at = offset;
        for piece in straight.as_ref().map_or(&data[..], std::slice::from_ref) {
            self.write_now(at, piece, flags)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        if self.file.geometry.read_only {
            return Ok(());
        }
        // SAFETY: no pointers.
        while unsafe { libc::fdatasync(self.file.raw()) } != 0 {
            if io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
                return Err(last_error());
            }
        }
        Ok(())
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.file.check_change(offset, len, self.file.geometry.sector_bytes)?;
        if !self.file.geometry.discard {
            return Err(IoError::Unsupported);
        }
        in_pieces(offset, len, |at, len| self.discard_now(at, len))
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.file.check_change(offset, len, self.file.geometry.sector_bytes)?;
        in_pieces(offset, len, |at, len| self.zero_now(at, len))
    }
}
