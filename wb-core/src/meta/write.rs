//! Writing: two copies, one after the other, never the one that counts first.

use super::view::{newest, read_anchor, read_bad_segments, read_superblock, read_volumes};
use super::{MetaError, write_at};
use crate::format::{Anchor, BadSegments, Superblock, VolumeTable};
use crate::io::{Disk, IoError};
use crate::types::*;

fn failed(what: &'static str) -> impl Fn(IoError) -> MetaError {
    move |error| MetaError::Io { what, error }
}

/// Both copies, a flush after each. `counts` is the copy that counts now; it is written last. A flush comes first: a
/// process that died may have written that copy and not flushed it.
async fn write_both<D: Disk>(
    disk: &D,
    offsets: [ByteOffset; 2],
    block: &[u8],
    counts: Option<usize>,
    what: &'static str,
) -> Result<(), MetaError> {
    disk.flush().await.map_err(failed(what))?;
    let first = usize::from(counts == Some(0));
    for copy in [first, 1 - first] {
        write_at(disk, offsets[copy], block).await.map_err(failed(what))?;
        disk.flush().await.map_err(failed(what))?;
    }
    Ok(())
}

/// Writes both superblocks; the caller has raised the generation. Durable on return.
pub async fn write_superblock<D: Disk>(disk: &D, superblock: &Superblock) -> Result<(), MetaError> {
    let offsets = [0, 1].map(|copy| superblock.geometry.superblock_offset(copy));
    let copies = [read_superblock(disk, offsets[0]).await.0, read_superblock(disk, offsets[1]).await.0];
    let counts = newest(&copies, |copy| copy.generation);
    write_both(disk, offsets, &superblock.encode(), counts, "writing the superblock").await
}

/// Writes both volume tables; the caller has raised the generation. Durable on return.
pub async fn write_volumes<D: Disk>(disk: &D, superblock: &Superblock, volumes: &VolumeTable) -> Result<(), MetaError> {
    let offsets = [0, 1].map(|copy| superblock.geometry.volumes_offset(copy));
    let copies = [read_volumes(disk, superblock, 0).await, read_volumes(disk, superblock, 1).await];
    let block = volumes.encode(superblock.uuid, superblock.secret);
    write_both(disk, offsets, &block, newest(&copies, |copy| copy.generation), "writing the volume table").await
}

/// Writes every block of the bad-segment bitmap, in both copies; the caller has raised the generation. Durable on
/// return.
pub async fn write_bad_segments<D: Disk>(
    disk: &D,
    superblock: &Superblock,
    bad: &BadSegments,
) -> Result<(), MetaError> {
    for index in 0..superblock.geometry.bad_segment_blocks {
        let offsets = [0, 1].map(|copy| superblock.geometry.bad_segments_offset(copy, index));
        let copies =
            [read_bad_segments(disk, superblock, 0, index).await, read_bad_segments(disk, superblock, 1, index).await];
        let block = bad.encode(index, superblock.uuid, superblock.secret);
        write_both(disk, offsets, &block, newest(&copies, |copy| copy.0), "writing the bad-segment bitmap").await?;
    }
    Ok(())
}

/// Writes one anchor into the slot of its generation, which must be higher than all on the device, and such that the
/// newest *durable* anchor is in the other slot: then that one stays whole if this write tears. No flush: nobody may rely
/// on it before one, and the next anchor goes to the same slot unless there was one.
pub async fn write_anchor_one<D: Disk>(disk: &D, superblock: &Superblock, anchor: &Anchor) -> Result<(), MetaError> {
    let offset = superblock.geometry.anchor_offset((anchor.generation % 2) as usize);
    let block = anchor.encode(superblock.uuid, superblock.secret);
    write_at(disk, offset, &block).await.map_err(failed("writing an anchor"))
}

/// Writes an anchor into both slots, a flush after each: as generation g (that of `anchor`, higher than all on the
/// device) into the slot that does not hold the newest durable one, then as g + 1 into the other. For anchors that raise
/// the epoch or permit reuse: afterwards either slot may be lost. Returns g + 1, the generation of the newest anchor.
pub async fn write_anchor_both<D: Disk>(disk: &D, superblock: &Superblock, anchor: &Anchor) -> Result<u64, MetaError> {
    let mut copy = anchor.clone();
    for generation in [anchor.generation, anchor.generation.saturating_add(1)] {
        copy.generation = generation;
        write_anchor_one(disk, superblock, &copy).await?;
        disk.flush().await.map_err(failed("flushing the cache device"))?;
    }
    Ok(copy.generation)
}

/// The generation for the next anchor, from what the slots hold: for tools that have no newest anchor at hand.
pub async fn next_anchor_generation<D: Disk>(disk: &D, superblock: &Superblock) -> u64 {
    let slots = [read_anchor(disk, superblock, 0).await, read_anchor(disk, superblock, 1).await];
    let newest = slots.iter().flatten().map(|anchor| anchor.generation).max();
    newest.unwrap_or(0).saturating_add(1)
}
