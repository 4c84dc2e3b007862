//! What a transport (NBD, ublk) needs from a volume, and nothing else.

use crate::io::Buf;
use std::future::Future;
use std::ops::Deref;

/// Longest range of one [`BlockService::read`] or [`BlockService::write`], in bytes. Transports split longer requests.
pub const SERVICE_CHUNK_BYTES_MAX: usize = 1 << 20;

/// Why a request failed, by what its sender should be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// Data cannot be read or made durable (EIO).
    #[error("I/O error")]
    Io,
    /// Range outside the volume or not a multiple of its sector (EINVAL, or ENOSPC for writes past the end).
    #[error("range outside the volume or not aligned to its sectors")]
    Invalid,
    /// The volume is served read-only (EPERM / EROFS).
    #[error("the volume is read-only")]
    ReadOnly,
    /// The service is stopping (ESHUTDOWN).
    #[error("the service is stopping")]
    ShuttingDown,
}

/// Size and units of a volume, as a transport advertises them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceInfo {
    /// Bytes of the volume, a multiple of `sector_bytes`.
    pub size_bytes: u64,
    /// Logical sector: 512 or 4096. Every range is a multiple of it.
    pub sector_bytes: u32,
    /// Writes are refused.
    pub read_only: bool,
}

/// Bytes that were read: an aligned buffer and the part of it that was asked for.
pub struct ReadData {
    buf: Buf,
    start: usize,
    len: usize,
}

impl ReadData {
    /// The part `start..start + len` of `buf`.
    pub fn new(buf: Buf, start: usize, len: usize) -> ReadData {
        assert!(start + len <= buf.len(), "part within the buffer");
        ReadData { buf, start, len }
    }
    /// The whole buffer and the part's start and length in it.
    pub fn into_parts(self) -> (Buf, usize, usize) {
        (self.buf, self.start, self.len)
    }
}

impl Deref for ReadData {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buf[self.start..self.start + self.len]
    }
}

/// Payload of a write, wherever it lies: the engine calls [`PayloadSource::copy_to`] once for every byte, straight into
/// the record buffer, so that this is the only copy. It must not wait.
pub trait PayloadSource {
    /// Copies `dst.len()` bytes from `offset` of the request's payload. An error fails the request as [`ServiceError::Io`].
    fn copy_to(&self, offset: usize, dst: &mut [u8]) -> Result<(), ServiceError>;
}

impl PayloadSource for [u8] {
    fn copy_to(&self, offset: usize, dst: &mut [u8]) -> Result<(), ServiceError> {
        dst.copy_from_slice(&self[offset..offset + dst.len()]);
        Ok(())
    }
}

/// A volume as its users see it. Handles are cheap to clone and shared by all connections, so that a flush on one
/// covers what every other has completed.
///
/// Contract: a completed write is visible to every later read; `flush` makes every write durable that completed before
/// it was called; with `fua` the operation is durable when it completes. Ranges are multiples of
/// [`ServiceInfo::sector_bytes`] within the volume, else [`ServiceError::Invalid`].
pub trait BlockService: Clone + Send + Sync + 'static {
    /// Size and units.
    fn info(&self) -> ServiceInfo;
    /// Reads `len` bytes, at most [`SERVICE_CHUNK_BYTES_MAX`].
    fn read(&self, offset: u64, len: usize) -> impl Future<Output = Result<ReadData, ServiceError>>;
    /// Writes `len` bytes, at most [`SERVICE_CHUNK_BYTES_MAX`].
    fn write<P: PayloadSource + ?Sized>(
        &self,
        offset: u64,
        len: usize,
        payload: &P,
        fua: bool,
    ) -> impl Future<Output = Result<(), ServiceError>>;
    /// Makes completed writes durable.
    fn flush(&self) -> impl Future<Output = Result<(), ServiceError>>;
    /// Hints that a range of any length is unused; its content is undefined until rewritten.
    fn discard(&self, offset: u64, len: u64, fua: bool) -> impl Future<Output = Result<(), ServiceError>>;
    /// Makes a range of any length read as zeroes.
    fn write_zeroes(&self, offset: u64, len: u64, fua: bool) -> impl Future<Output = Result<(), ServiceError>>;
}
