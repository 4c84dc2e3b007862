//! Reading and writing what lies outside the log: superblock, volume table, bad-segment bitmap, anchors.
//!
//! Everything here exists twice. Rules that hold for every writer:
//! * The copy that counts now is never written first: a torn write leaves it. Between the two copies lies a flush.
//! * Generations rise with each write; the newest valid copy counts.
//! * The anchor of generation g lives in slot g % 2. The next anchor always goes to the slot that does not hold the newest
//!   durable one, and an anchor found in the wrong slot (a misdirected write) does not count.

mod format;
#[cfg(test)]
mod tests;
mod view;
mod write;

pub use format::{FormatOptions, format, wipe};
pub use view::{CacheMeta, Copies, CopyError, MetaView, load, read_view};
pub use write::{
    next_anchor_generation, write_anchor_both, write_anchor_one, write_bad_segments, write_superblock, write_volumes,
};

use crate::format::{FormatError, GeometryError};
use crate::io::{Buf, Disk, IoError};
use crate::types::*;
use uuid::Uuid;

/// Why the metadata of a cache cannot be used, by what the user can do about it. The caller names the device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// Neither superblock is there.
    #[error("not a Writeboost cache (no superblock at its start or end); wb-format makes one")]
    NotACache,
    /// There were superblocks, and both are unreadable or damaged. Without their secret nothing in the log can be told
    /// from user data.
    #[error("both superblocks are damaged ({0}; {1}); restore one of them from a backup")]
    Superblocks(String, String),
    /// Superblocks of two caches.
    #[error("the first superblock belongs to cache {0}, the last to cache {1}; restore the one that is wrong")]
    TwoCaches(Uuid, Uuid),
    /// Not the size it was formatted with.
    #[error(
        "the device has {actual_bytes} bytes, its superblock says {recorded_bytes}: a partition or image that was \
         resized or cut short; restore its size, or format it anew"
    )]
    Resized {
        /// Size in the superblock.
        recorded_bytes: u64,
        /// Size of the device.
        actual_bytes: u64,
    },
    /// A newer format.
    #[error(transparent)]
    Unsupported(FormatError),
    /// Both copies of the volume table.
    #[error(
        "both volume tables are damaged ({0}; {1}); sizes and identities of the volumes are known nowhere else: \
         restore one from the backup of a repair, or format the cache anew if its data is not needed"
    )]
    Volumes(String, String),
    /// Both copies of a block of the bad-segment bitmap.
    #[error("both copies of block {block} of the bad-segment bitmap are damaged ({0}; {1}); run wb-check --repair", .problems.0, .problems.1)]
    BadSegments {
        /// Which block.
        block: u32,
        /// What is wrong with copy 0 and copy 1.
        problems: (String, String),
    },
    /// Both anchors.
    #[error("both anchors are damaged ({0}; {1}); run wb-check --repair")]
    Anchors(String, String),
    /// The ring has no segment to begin an empty log in.
    #[error("no segment of the cache is free")]
    NoFreeSegment,
    /// The cache may be read, not written, by this version.
    #[error("the cache has features {0:#x} that this version can only read: use a newer writeboost")]
    ReadOnlyFeatures(u64),
    /// The device cannot be divided so.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The device failed.
    #[error("{what}: {error}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// How it failed.
        error: IoError,
    },
}

/// Reads `len` bytes at `offset`, both multiples of 4096.
pub(crate) async fn read_at<D: Disk>(disk: &D, offset: ByteOffset, len: usize) -> Result<Buf, IoError> {
    let (result, buf) = disk.read(offset.0, Buf::unpooled(len)).await;
    result.map(|()| buf)
}

/// Writes `bytes`, whole blocks, at `offset`.
pub(crate) async fn write_at<D: Disk>(disk: &D, offset: ByteOffset, bytes: &[u8]) -> Result<(), IoError> {
    let mut buf = Buf::unpooled(bytes.len());
    buf.copy_from_slice(bytes);
    disk.write(offset.0, vec![buf.freeze()], false).await
}
