//! Making an empty cache.
//!
//! Order of writes: both old superblocks go (flush), then everything but the superblocks is written (flush), then
//! superblock 1 (flush), then superblock 0 (flush). A power cut leaves the old cache recognisable by a superblock that
//! is left while nothing else has changed; or no superblock; or a complete new cache.
//!
//! The ring is not cleared. Records and summaries of earlier formats do not count: they name another UUID, and their
//! CRCs were begun with another secret. Both are fresh with each format.

use super::view::read_superblock;
use super::{MetaError, write_anchor_both, write_at};
use crate::format::{Anchor, BadSegments, Geometry, Superblock, VolumeTable};
use crate::io::{Disk, IoError};
use crate::types::*;
use uuid::Uuid;

/// What a new cache is to be.
#[derive(Debug, Clone)]
pub struct FormatOptions {
    /// Bytes of a segment, a power of two.
    pub segment_bytes: u64,
    /// Name for people, at most 64 bytes of UTF-8.
    pub label: String,
    /// Fresh random identity.
    pub uuid: Uuid,
    /// Fresh random seed of everything in the log.
    pub secret: u32,
    /// Now.
    pub now_unix_ns: u64,
}

fn failed(error: IoError) -> MetaError {
    MetaError::Io { what: "formatting", error }
}

/// Writes an empty cache over whatever is on the device; asking first is the caller's job. Durable on return.
pub async fn format<D: Disk>(disk: &D, options: FormatOptions) -> Result<Superblock, MetaError> {
    let geometry = Geometry::new(disk.geometry().size_bytes, options.segment_bytes)?;
    let superblock = Superblock {
        uuid: options.uuid,
        label: options.label,
        generation: 1,
        compat: 0,
        ro_compat: 0,
        geometry,
        secret: options.secret,
        created_unix_ns: options.now_unix_ns,
    };
    remove_superblocks(disk, &geometry).await?;
    write_body(disk, &superblock, options.now_unix_ns).await?;
    for copy in [1, 0] {
        write_at(disk, geometry.superblock_offset(copy), &superblock.encode()).await.map_err(failed)?;
        disk.flush().await.map_err(failed)?;
    }
    Ok(superblock)
}

/// Makes a device no cache any more: zeroes both superblocks, durably. For callers that are about to overwrite the rest.
pub async fn wipe<D: Disk>(disk: &D) -> Result<(), MetaError> {
    let last = Geometry::last_superblock_offset(disk.geometry().size_bytes);
    for offset in [ByteOffset(0), last] {
        write_at(disk, offset, &[0; BLOCK_BYTES]).await.map_err(failed)?;
    }
    disk.flush().await.map_err(failed)
}

/// Zeroes every superblock that could be found later: both of this size, and the last one of a cache that was made
/// when the device was smaller.
async fn remove_superblocks<D: Disk>(disk: &D, geometry: &Geometry) -> Result<(), MetaError> {
    let mut offsets = vec![geometry.superblock_offset(0), geometry.superblock_offset(1)];
    if let (Ok(old), _) = read_superblock(disk, ByteOffset(0)).await {
        let last = old.geometry.superblock_offset(1);
        if last.0 < geometry.superblock_offset(1).0 {
            offsets.push(last);
        }
    }
    for offset in offsets {
        write_at(disk, offset, &[0; BLOCK_BYTES]).await.map_err(failed)?;
    }
    disk.flush().await.map_err(failed)
}

/// Everything but the superblocks.
async fn write_body<D: Disk>(disk: &D, superblock: &Superblock, now_unix_ns: u64) -> Result<(), MetaError> {
    let (geometry, uuid, secret) = (&superblock.geometry, superblock.uuid, superblock.secret);
    let volumes = VolumeTable::empty().encode(uuid, secret);
    let bad = BadSegments::none(geometry);
    for copy in 0..2 {
        write_at(disk, geometry.volumes_offset(copy), &volumes).await.map_err(failed)?;
        for index in 0..geometry.bad_segment_blocks {
            let block = bad.encode(index, uuid, secret);
            write_at(disk, geometry.bad_segments_offset(copy, index), &block).await.map_err(failed)?;
        }
    }
    let anchor = Anchor { wall_unix_ns: now_unix_ns, ..Anchor::first() };
    write_anchor_both(disk, superblock, &anchor).await?;
    Ok(())
}
