//! Disks on the ring.

use super::file::{DeviceFile, DeviceKind, TRANSFER_BYTES_MAX};
use super::net::is_retry;
use super::op::{Payload, submit_with};
use crate::io::{Buf, Disk, DiskGeometry, IoError, Slice};
use io_uring::{opcode, squeue, types};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Pieces per vectored write; the kernel's UIO_MAXIOV.
const IOV_MAX: usize = 1024;

/// Bytes of one discard or zeroing of a block device, so that no single operation takes minutes.
const RANGE_BYTES_MAX: u64 = 1 << 30;

/// Answers without progress before an operation is given up.
const RETRIES_MAX: u32 = 1000;

/// BLOCK_URING_CMD_DISCARD of linux/blkdev.h: `_IO(0x12, 0)`, from Linux 6.12 on.
const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;

/// A device or file, used through the ring of whichever thread polls an operation first. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct RtDisk {
    file: Arc<DeviceFile>,
    /// The kernel has refused [`BLOCK_URING_CMD_DISCARD`].
    no_discard_command: Arc<AtomicBool>,
}

/// What an operation in flight owns; the file keeps the descriptor open and the claim on it held.
struct DiskPayload<T> {
    _file: Arc<DeviceFile>,
    data: T,
}

impl<T: 'static> Payload for DiskPayload<T> {
    const DISK: bool = true;
}

/// Pieces of a write and the vectors that describe a part of them.
struct Pieces {
    data: Vec<Slice>,
    vectors: Vec<libc::iovec>,
}

impl Pieces {
    /// Describes the pieces from byte `skip` on, as many as one call takes.
    fn aim(&mut self, mut skip: usize) {
        self.vectors.clear();
        let mut room = TRANSFER_BYTES_MAX;
        for piece in &self.data {
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let part = &piece[skip..piece.len().min(skip.saturating_add(room))];
            self.vectors.push(libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
            room -= part.len();
            skip = 0;
            if room == 0 || self.vectors.len() == IOV_MAX {
                return;
            }
        }
    }
}

/// Counts answers without progress.
struct Patience(u32);

impl Patience {
    /// Takes an answer of the kernel apart: bytes moved, 0 for "again", or an error.
    fn judge(&mut self, result: i32, file: &DeviceFile) -> Result<usize, IoError> {
        let moved = match result {
            1.. => file.whole(result as usize),
            // The end of a file that has become shorter: those sectors are gone.
            0 => return Err(IoError::Medium),
            _ if is_retry(result) => 0,
            _ => return Err(IoError::from_errno(-result)),
        };
        self.0 = if moved > 0 { 0 } else { self.0 + 1 };
        if self.0 > RETRIES_MAX { Err(IoError::Medium) } else { Ok(moved) }
    }
}

impl RtDisk {
    pub(super) fn new(file: DeviceFile) -> RtDisk {
        RtDisk { file: Arc::new(file), no_discard_command: Arc::default() }
    }

    fn fd(&self) -> types::Fd {
        types::Fd(self.file.raw())
    }

    fn payload<T: 'static>(&self, data: T) -> DiskPayload<T> {
        DiskPayload { _file: self.file.clone(), data }
    }

    /// Runs an entry that points to no memory until it gives an answer other than "again".
    async fn call(&self, entry: impl Fn() -> squeue::Entry) -> Result<(), IoError> {
        for _ in 0..RETRIES_MAX {
            // SAFETY: the entry points to no memory; the payload keeps the descriptor open.
            let result = unsafe { submit_with(entry(), self.payload(())) }.await.result;
            match result {
                0.. => return Ok(()),
                _ if is_retry(result) => {}
                _ => return Err(IoError::from_errno(-result)),
            }
        }
        Err(IoError::Medium)
    }

    async fn read_into(&self, offset: u64, mut buf: Buf) -> (Result<(), IoError>, Buf) {
        let (mut at, mut patience) = (0, Patience(0));
        while at < buf.len() {
            let len = (buf.len() - at).min(TRANSFER_BYTES_MAX) as u32;
            // SAFETY: `at` is within the buffer.
            let start = unsafe { buf.as_mut_ptr().add(at) };
            let entry = opcode::Read::new(self.fd(), start, len).offset(offset + at as u64).build();
            // SAFETY: the payload owns the memory, exclusively and on the heap, and keeps the descriptor open.
            let done = unsafe { submit_with(entry, self.payload(buf)) }.await;
            buf = done.payload.data;
            match patience.judge(done.result, &self.file) {
                Ok(moved) => at += moved,
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    async fn write_slice(&self, offset: u64, mut data: Slice, flags: i32) -> Result<(), IoError> {
        let (mut at, mut patience) = (0, Patience(0));
        while at < data.len() {
            let part = &data[at..data.len().min(at + TRANSFER_BYTES_MAX)];
            let entry = opcode::Write::new(self.fd(), part.as_ptr(), part.len() as u32)
                .offset(offset + at as u64)
                .rw_flags(flags)
                .build();
            // SAFETY: the payload keeps the slice's chunk, which lies on the heap, and the descriptor open.
            let done = unsafe { submit_with(entry, self.payload(data)) }.await;
            data = done.payload.data;
            at += patience.judge(done.result, &self.file)?;
        }
        Ok(())
    }

    async fn write_pieces(&self, offset: u64, data: Vec<Slice>, flags: i32) -> Result<(), IoError> {
        let len: usize = data.iter().map(Slice::len).sum();
        let mut pieces = Pieces { vectors: Vec::with_capacity(data.len().min(IOV_MAX)), data };
        let (mut at, mut patience) = (0, Patience(0));
        while at < len {
            pieces.aim(at);
            let entry = opcode::Writev::new(self.fd(), pieces.vectors.as_ptr(), pieces.vectors.len() as u32)
                .offset(offset + at as u64)
                .rw_flags(flags)
                .build();
            // SAFETY: vectors and chunks lie on the heap, and the payload keeps both, and the descriptor open.
            let done = unsafe { submit_with(entry, self.payload(pieces)) }.await;
            pieces = done.payload.data;
            at += patience.judge(done.result, &self.file)?;
        }
        Ok(())
    }

    async fn fallocate(&self, offset: u64, len: u64, mode: i32) -> Result<(), IoError> {
        let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
        self.call(|| opcode::Fallocate::new(self.fd(), len).offset(offset).mode(mode).build()).await
    }

    async fn discard_block(&self, offset: u64, len: u64) -> Result<(), IoError> {
        if !self.no_discard_command.load(Ordering::Relaxed) {
            let mut command = [0; 16];
            command[..8].copy_from_slice(&len.to_ne_bytes()); // `addr3` of the entry lies there.
            let entry =
                || opcode::UringCmd16::new(self.fd(), BLOCK_URING_CMD_DISCARD).cmd(command).addr(Some(offset)).build();
            match self.call(entry).await {
                // An older kernel.
                Err(IoError::Unsupported | IoError::Other(libc::EINVAL)) => {
                    self.no_discard_command.store(true, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        self.fallocate(offset, len, libc::FALLOC_FL_PUNCH_HOLE).await
    }

    async fn zero_range(&self, offset: u64, len: u64) -> Result<(), IoError> {
        match (self.fallocate(offset, len, libc::FALLOC_FL_ZERO_RANGE).await, self.file.kind) {
            // Some filesystems know holes only, which read as zeroes too.
            (Err(IoError::Unsupported), DeviceKind::File) => {
                self.fallocate(offset, len, libc::FALLOC_FL_PUNCH_HOLE).await
            }
            (result, _) => result,
        }
    }

    /// Pieces of a range, so that no call takes too long.
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
        let end = offset + len;
        (offset..end).step_by(RANGE_BYTES_MAX as usize).map(move |at| (at, RANGE_BYTES_MAX.min(end - at)))
    }
}

impl Disk for RtDisk {
    fn geometry(&self) -> DiskGeometry {
        self.file.geometry
    }

    async fn read(&self, offset: u64, mut buf: Buf) -> (Result<(), IoError>, Buf) {
        if let Err(error) = self.file.check(offset, buf.len() as u64, self.file.geometry.align_bytes) {
            return (Err(error), buf);
        }
        if self.file.takes(buf.as_mut_ptr(), buf.len()) {
            return self.read_into(offset, buf).await;
        }
        let (result, straight) = self.read_into(offset, Buf::unpooled(buf.len())).await;
        buf.copy_from_slice(&straight);
        (result, buf)
    }

    async fn write(&self, offset: u64, mut data: Vec<Slice>, fua: bool) -> Result<(), IoError> {
        let len: usize = data.iter().map(Slice::len).sum();
        self.file.check_change(offset, len as u64, self.file.geometry.align_bytes)?;
        if len == 0 {
            return Ok(());
        }
        let flags = if fua { libc::RWF_DSYNC } else { 0 };
        if let Some(straight) = self.file.straighten(&data) {
            return self.write_slice(offset, straight, flags).await;
        }
        if data.len() == 1 {
            return self.write_slice(offset, data.remove(0), flags).await;
        }
        self.write_pieces(offset, data, flags).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        if self.file.geometry.read_only {
            return Ok(());
        }
        self.call(|| opcode::Fsync::new(self.fd()).flags(types::FsyncFlags::DATASYNC).build()).await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.file.check_change(offset, len, self.file.geometry.sector_bytes)?;
        if !self.file.geometry.discard {
            return Err(IoError::Unsupported);
        }
        for (at, len) in self.pieces(offset, len) {
            match self.file.kind {
                DeviceKind::Block => self.discard_block(at, len).await?,
                DeviceKind::File => self.fallocate(at, len, libc::FALLOC_FL_PUNCH_HOLE).await?,
            }
        }
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.file.check_change(offset, len, self.file.geometry.sector_bytes)?;
        for (at, len) in self.pieces(offset, len) {
            self.zero_range(at, len).await?;
        }
        Ok(())
    }
}
