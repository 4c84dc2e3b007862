//! Test helper: damages caches in every way that a check must survive.

use super::build::Builder;
use crate::types::*;

/// One way to damage a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// A bit of a superblock copy.
    Superblock(usize),
    /// A bit of a volume table copy.
    Volumes(usize),
    /// A bit of block 0 of a bitmap copy.
    BadSegments(usize),
    /// A bit of an anchor slot.
    Anchor(usize),
    /// A bit of a record's header.
    Header(Seq),
    /// A record's header, which cannot be read any more.
    UnreadableHeader(Seq),
    /// A bit of a payload block of a record.
    Payload(Seq, u64),
    /// A payload block, which cannot be read any more.
    UnreadablePayload(Seq, u64),
    /// A bit of a segment's summary.
    Summary(SegmentNo),
    /// A whole segment, zeroed.
    Segment(SegmentNo),
}

impl Damage {
    /// Damages the cache. `bit` chooses which bit of the block.
    pub fn inflict(self, cache: &Builder, bit: u32) {
        let geometry = &cache.superblock.geometry;
        let flip = |offset: u64| cache.disk.flip(offset + u64::from(bit / 8) % BLOCK_BYTES_U64, (bit % 8) as u8);
        match self {
            Damage::Superblock(copy) => flip(geometry.superblock_offset(copy).0),
            Damage::Volumes(copy) => flip(geometry.volumes_offset(copy).0),
            Damage::BadSegments(copy) => flip(geometry.bad_segments_offset(copy, 0).0),
            Damage::Anchor(slot) => flip(geometry.anchor_offset(slot).0),
            Damage::Header(seq) => flip(cache.header_offset(seq)),
            Damage::UnreadableHeader(seq) => cache.disk.make_unreadable(cache.header_offset(seq)),
            Damage::Payload(seq, index) => flip(cache.payload_offset(seq, index)),
            Damage::UnreadablePayload(seq, index) => cache.disk.make_unreadable(cache.payload_offset(seq, index)),
            Damage::Summary(segment) => flip(geometry.summary_offset(segment).0),
            Damage::Segment(segment) => {
                let zeroes = vec![0; geometry.segment_bytes as usize];
                cache.disk.poke(geometry.segment_offset(segment).0, &zeroes);
            }
        }
    }
}

/// Gives a block with a magic number the checksum that its content asks for, so that what reads it looks further.
/// `seed` is zero for superblocks and the secret of the cache for everything else.
pub fn reseal(block: &mut [u8], seed: u32) {
    let crc = crate::format::block_crc(block, seed);
    block[8..12].copy_from_slice(&crc.to_le_bytes());
}
