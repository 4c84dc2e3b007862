//! Where everything lies on a cache device.
//!
//! ```text
//! | metadata area 0 | gap | segment 0 | segment 1 | ... | segment n-1 | gap | metadata area 1 |
//! 0                       first_segment                                    device - metadata bytes
//! ```
//! All arithmetic is 64-bit and checked: a geometry that was accepted cannot overflow afterwards.

use crate::types::*;

/// Segment size when the user names none.
pub const SEGMENT_BYTES_DEFAULT: u32 = 2 << 20;
/// Smallest segment: sixteen blocks, used by tests; real devices want MiBs.
pub const SEGMENT_BYTES_MIN: u32 = 64 << 10;
/// Largest segment.
pub const SEGMENT_BYTES_MAX: u32 = 64 << 20;
/// Fewest segments of a cache.
pub const SEGMENTS_MIN: u32 = 8;

const FIXED_METADATA_BLOCKS: u64 = 8;

/// Why a device cannot be divided this way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Segment size outside the limits or not a power of two.
    #[error("segment size {0} is not a power of two between 64 KiB and 64 MiB")]
    SegmentSize(u64),
    /// Not enough room for the fewest segments.
    #[error(
        "{device_bytes} bytes are too small for a cache with segments of {segment_bytes} bytes: {needed_bytes} needed"
    )]
    TooSmall {
        /// Size of the device.
        device_bytes: u64,
        /// Segment size asked for.
        segment_bytes: u32,
        /// Smallest device for it.
        needed_bytes: u64,
    },
    /// More segments than a segment number can name.
    #[error("{0} segments are too many: choose a larger segment size")]
    TooManySegments(u64),
}

/// The layout of a cache device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the device when it was formatted.
    pub device_bytes: u64,
    /// Bytes of a segment, a power of two.
    pub segment_bytes: u32,
    /// Number of segments.
    pub segments: u32,
    /// Offset of segment 0, a multiple of `segment_bytes`.
    pub first_segment: ByteOffset,
    /// Blocks of the bad-segment bitmap in each metadata area.
    pub bad_segment_blocks: u32,
}

impl Geometry {
    /// Divides a device.
    pub fn new(device_bytes: u64, segment_bytes: u64) -> Result<Geometry, GeometryError> {
        let sizes = u64::from(SEGMENT_BYTES_MIN)..=u64::from(SEGMENT_BYTES_MAX);
        if !segment_bytes.is_power_of_two() || !sizes.contains(&segment_bytes) {
            return Err(GeometryError::SegmentSize(segment_bytes));
        }
        let small =
            |needed_bytes| GeometryError::TooSmall { device_bytes, segment_bytes: segment_bytes as u32, needed_bytes };
        // The bitmap is sized for as many segments as the whole device could hold: a few blocks too many, never too few.
        let bitmap_blocks = (device_bytes / segment_bytes).div_ceil(super::BAD_SEGMENTS_PER_BLOCK as u64).max(1);
        let metadata = (FIXED_METADATA_BLOCKS + bitmap_blocks) * BLOCK_BYTES_U64;
        let first = metadata.next_multiple_of(segment_bytes);
        let least = first + u64::from(SEGMENTS_MIN) * segment_bytes + metadata;
        let usable = device_bytes / BLOCK_BYTES_U64 * BLOCK_BYTES_U64;
        let ring = usable.checked_sub(first + metadata).ok_or_else(|| small(least))?;
        let segments = ring / segment_bytes;
        if segments < u64::from(SEGMENTS_MIN) {
            return Err(small(least));
        }
        // One number is kept free, so that "one past the last" has a name too.
        let segments = u32::try_from(segments)
            .ok()
            .filter(|count| *count < u32::MAX)
            .ok_or(GeometryError::TooManySegments(segments))?;
        Ok(Geometry {
            device_bytes,
            segment_bytes: segment_bytes as u32,
            segments,
            first_segment: ByteOffset(first),
            bad_segment_blocks: bitmap_blocks as u32,
        })
    }

    /// Blocks of a segment, summary included.
    pub fn segment_blocks(&self) -> u32 {
        self.segment_bytes / BLOCK_BYTES as u32
    }
    /// Blocks of the summary at a segment's end: 4 KiB for each MiB, at least one.
    pub fn summary_blocks(&self) -> u32 {
        (self.segment_blocks() / 256).max(1)
    }
    /// Blocks of a segment that records may use.
    pub fn record_blocks(&self) -> u32 {
        self.segment_blocks() - self.summary_blocks()
    }
    /// Number of slots of the ring.
    pub fn slots(&self) -> u64 {
        u64::from(self.segments) * u64::from(self.segment_blocks())
    }
    /// Payload blocks that the records of a segment can hold at most: what its blocks and its summary have room for.
    pub fn segment_payload_max(&self) -> u32 {
        let (blocks, summary) = (self.record_blocks(), self.summary_blocks() * BLOCK_BYTES as u32);
        let of_records = |records: u32| {
            let by_blocks = (blocks - records).min(records * RECORD_ENTRIES_MAX as u32);
            let descs = super::SUMMARY_HEADER_BYTES + records as usize * size_of::<super::RecordDescRaw>();
            by_blocks.min((summary as usize).saturating_sub(descs) as u32 / super::ENTRY_BYTES as u32)
        };
        (1..blocks).map(of_records).max().unwrap_or(0)
    }
    /// Payload blocks that the whole ring can hold at most: the most blocks that an index can have to know.
    pub fn payload_max(&self) -> u64 {
        u64::from(self.segments) * u64::from(self.segment_payload_max())
    }
    fn segment_shift(&self) -> u32 {
        // A segment is a power of two of at least one block.
        self.segment_bytes.trailing_zeros() - BLOCK_BYTES.trailing_zeros()
    }
    /// Offset of a segment. Panics for a segment that does not exist.
    pub fn segment_offset(&self, segment: SegmentNo) -> ByteOffset {
        assert!(segment.0 < self.segments, "segment {segment} of {}", self.segments);
        ByteOffset(self.first_segment.0 + u64::from(segment.0) * u64::from(self.segment_bytes))
    }
    /// Offset of a block of a segment.
    pub fn block_offset(&self, segment: SegmentNo, block: u32) -> ByteOffset {
        assert!(block < self.segment_blocks(), "block {block} within its segment");
        ByteOffset(self.segment_offset(segment).0 + u64::from(block) * BLOCK_BYTES_U64)
    }
    /// Offset of a segment's summary.
    pub fn summary_offset(&self, segment: SegmentNo) -> ByteOffset {
        self.block_offset(segment, self.record_blocks())
    }
    /// The slot of a block of a segment.
    pub fn slot(&self, segment: SegmentNo, block: u32) -> Slot {
        assert!(segment.0 < self.segments && block < self.segment_blocks(), "slot within the ring");
        Slot(u64::from(segment.0) * u64::from(self.segment_blocks()) + u64::from(block))
    }
    /// Segment and block of a slot.
    pub fn slot_parts(&self, slot: Slot) -> (SegmentNo, u32) {
        assert!(slot.0 < self.slots(), "slot within the ring");
        (SegmentNo((slot.0 >> self.segment_shift()) as u32), slot.0 as u32 & (self.segment_blocks() - 1))
    }
    /// Offset of a slot.
    pub fn slot_offset(&self, slot: Slot) -> ByteOffset {
        assert!(slot.0 < self.slots(), "slot within the ring");
        ByteOffset(self.first_segment.0 + slot.0 * BLOCK_BYTES_U64)
    }
    /// The segment after this one in the ring.
    pub fn next_segment(&self, segment: SegmentNo) -> SegmentNo {
        SegmentNo(if segment.0 + 1 == self.segments { 0 } else { segment.0 + 1 })
    }
    /// The segment `steps` after this one in the ring.
    pub fn segment_after(&self, segment: SegmentNo, steps: u32) -> SegmentNo {
        SegmentNo(((u64::from(segment.0) + u64::from(steps)) % u64::from(self.segments)) as u32)
    }
    /// Steps from one segment to another in the ring.
    pub fn distance(&self, from: SegmentNo, to: SegmentNo) -> u32 {
        let ahead = u64::from(to.0) + u64::from(self.segments) - u64::from(from.0);
        (ahead % u64::from(self.segments)) as u32
    }

    /// Bytes of each of the two metadata areas.
    pub fn metadata_bytes(&self) -> u64 {
        (FIXED_METADATA_BLOCKS + u64::from(self.bad_segment_blocks)) * BLOCK_BYTES_U64
    }
    fn metadata_block(&self, copy: usize, block: u64) -> ByteOffset {
        assert!(copy < 2, "two copies");
        let area =
            if copy == 0 { 0 } else { self.device_bytes / BLOCK_BYTES_U64 * BLOCK_BYTES_U64 - self.metadata_bytes() };
        ByteOffset(area + block * BLOCK_BYTES_U64)
    }
    /// Offset of the superblock's copy 0 or 1. Copy 1 is the last block of the device, where it can be found without
    /// knowing the geometry.
    pub fn superblock_offset(&self, copy: usize) -> ByteOffset {
        match copy {
            0 => ByteOffset(0),
            _ => Self::last_superblock_offset(self.device_bytes),
        }
    }
    /// Where a device of this size has its second superblock.
    pub fn last_superblock_offset(device_bytes: u64) -> ByteOffset {
        ByteOffset((device_bytes / BLOCK_BYTES_U64 * BLOCK_BYTES_U64).saturating_sub(BLOCK_BYTES_U64))
    }
    /// Offset of the volume table's copy 0 or 1.
    pub fn volumes_offset(&self, copy: usize) -> ByteOffset {
        self.metadata_block(copy, 1)
    }
    /// Offset of anchor slot 0 or 1.
    pub fn anchor_offset(&self, slot: usize) -> ByteOffset {
        self.metadata_block(slot, 2)
    }
    /// Offset of block `block` of the bad-segment bitmap's copy 0 or 1. The area's last block is left to the superblock.
    pub fn bad_segments_offset(&self, copy: usize, block: u32) -> ByteOffset {
        assert!(block < self.bad_segment_blocks, "a block of the bitmap");
        self.metadata_block(copy, 3 + u64::from(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_do_not_overlap() {
        for device in [3 << 20, 1 << 30, 2u64 << 40, (4u64 << 40) + 12345 * 4096, 16u64 << 40, 64u64 << 40] {
            for segment in [64u64 << 10, 2 << 20, 64 << 20] {
                let Ok(geometry) = Geometry::new(device, segment) else { continue };
                let end = geometry.segment_offset(SegmentNo(geometry.segments - 1)).0 + segment;
                assert!(geometry.metadata_bytes() <= geometry.first_segment.0);
                assert!(end <= geometry.volumes_offset(1).0 - BLOCK_BYTES_U64, "{geometry:?}");
                assert_eq!(geometry.first_segment.0 % segment, 0);
                let last = geometry.bad_segment_blocks - 1;
                assert!(geometry.bad_segments_offset(1, last).0 < geometry.superblock_offset(1).0);
                assert!(geometry.superblock_offset(1).0 + BLOCK_BYTES_U64 <= device);
                assert!(
                    geometry.bad_segment_blocks as u64 * super::super::BAD_SEGMENTS_PER_BLOCK as u64
                        >= u64::from(geometry.segments)
                );
                let slot = geometry.slot(SegmentNo(geometry.segments - 1), geometry.record_blocks() - 1);
                let (no, block) = geometry.slot_parts(slot);
                assert_eq!(geometry.block_offset(no, block), geometry.slot_offset(slot));
            }
        }
    }

    #[test]
    fn too_small_says_how_much_is_needed() {
        let Err(GeometryError::TooSmall { needed_bytes, .. }) = Geometry::new(1 << 20, 2 << 20) else {
            panic!("1 MiB is too small")
        };
        assert!(Geometry::new(needed_bytes, 2 << 20).is_ok());
        assert!(Geometry::new(needed_bytes - 4096, 2 << 20).is_err());
        assert!(Geometry::new(u64::MAX, 64 << 10).is_err());
        assert!(Geometry::new(0, 64 << 10).is_err());
    }
}
