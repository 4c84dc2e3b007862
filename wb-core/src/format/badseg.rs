//! The bad-segment bitmap: segments that failed a write and are used no more. Blocks in two copies each.

use super::*;
use crate::types::*;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: &[u8; 8] = b"WBBADSEG";
const WHAT: &str = "bad-segment bitmap";

/// Segments that one block of the bitmap speaks of.
pub const BAD_SEGMENTS_PER_BLOCK: usize = (BLOCK_BYTES - 64) * 8;

/// One block of the bitmap, 4096 bytes. Bit i of byte j (LSB first) stands for segment index x 32256 + 8 j + i.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BadSegmentBlock {
    pub magic: [u8; 8],
    pub crc: U32,
    pub index: U32,
    pub uuid: [u8; 16],
    pub generation: U64,
    pub reserved: [u8; 24],
    pub bits: [u8; BLOCK_BYTES - 64],
}

const _: () = assert!(size_of::<BadSegmentBlock>() == BLOCK_BYTES);

/// Which segments are bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadSegments {
    /// Grows with each rewrite; for each block the newest valid copy counts.
    pub generation: u64,
    bits: Vec<u8>,
    segments: u32,
}

impl BadSegments {
    /// No bad segments.
    pub fn none(geometry: &Geometry) -> BadSegments {
        let bytes = geometry.bad_segment_blocks as usize * (BLOCK_BYTES - 64);
        BadSegments { generation: 1, bits: vec![0; bytes], segments: geometry.segments }
    }
    /// True if the segment is used no more.
    pub fn is_bad(&self, segment: SegmentNo) -> bool {
        assert!(segment.0 < self.segments, "segment within the ring");
        self.bits[segment.0 as usize / 8] >> (segment.0 % 8) & 1 == 1
    }
    /// Marks a segment.
    pub fn mark(&mut self, segment: SegmentNo) {
        assert!(segment.0 < self.segments, "segment within the ring");
        self.bits[segment.0 as usize / 8] |= 1 << (segment.0 % 8);
    }
    /// Number of bad segments.
    pub fn count(&self) -> u32 {
        self.bits.iter().map(|byte| byte.count_ones()).sum()
    }
    /// The block `index` of the bitmap.
    pub fn encode(&self, index: u32, uuid: Uuid, secret: u32) -> [u8; BLOCK_BYTES] {
        let mut raw = BadSegmentBlock::new_zeroed();
        raw.magic = *MAGIC;
        raw.index = index.into();
        raw.uuid = *uuid.as_bytes();
        raw.generation = self.generation.into();
        let size = raw.bits.len();
        raw.bits.copy_from_slice(&self.bits[index as usize * size..][..size]);
        raw.crc = crc::block_crc(raw.as_bytes(), secret).into();
        raw.as_bytes().try_into().expect("a block")
    }
    /// Magic, CRC, cache, index; bits beyond the last segment must be zero. Gives generation and bits.
    pub fn decode_block(
        block: &[u8; BLOCK_BYTES],
        index: u32,
        uuid: Uuid,
        secret: u32,
    ) -> Result<(u64, Vec<u8>), FormatError> {
        check_block(block, MAGIC, secret, WHAT)?;
        let raw = BadSegmentBlock::read_from_bytes(block).expect("size of the struct");
        check_uuid(raw.uuid, uuid, WHAT)?;
        if raw.index.get() != index {
            return Err(bad(WHAT, format!("block {} where {index} belongs", raw.index)));
        }
        check_counts(WHAT, [raw.generation.get()])?;
        Ok((raw.generation.get(), raw.bits.to_vec()))
    }
    /// Puts together what [`BadSegments::decode_block`] gave for every block, in order.
    pub fn from_blocks(geometry: &Geometry, blocks: Vec<(u64, Vec<u8>)>) -> Result<BadSegments, FormatError> {
        let mut whole = BadSegments::none(geometry);
        whole.generation = blocks.iter().map(|block| block.0).max().unwrap_or(1);
        whole.bits = blocks.into_iter().flat_map(|block| block.1).collect();
        assert_eq!(whole.bits.len(), geometry.bad_segment_blocks as usize * (BLOCK_BYTES - 64), "every block");
        let beyond =
            (geometry.segments as usize..whole.bits.len() * 8).find(|at| whole.bits[at / 8] >> (at % 8) & 1 == 1);
        match beyond {
            Some(at) => Err(bad(WHAT, format!("segment {at} does not exist"))),
            None => Ok(whole),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let geometry = Geometry::new(8 << 30, 64 << 10).expect("fits");
        let uuid = Uuid::from_bytes([3; 16]);
        let mut bad = BadSegments::none(&geometry);
        bad.mark(SegmentNo(0));
        bad.mark(SegmentNo(geometry.segments - 1));
        let blocks = (0..geometry.bad_segment_blocks)
            .map(|index| BadSegments::decode_block(&bad.encode(index, uuid, 5), index, uuid, 5).expect("valid"))
            .collect();
        assert_eq!(BadSegments::from_blocks(&geometry, blocks), Ok(bad.clone()));
        assert_eq!((bad.count(), bad.is_bad(SegmentNo(1))), (2, false));
        assert!(BadSegments::decode_block(&bad.encode(0, uuid, 5), 1, uuid, 5).is_err());
    }
}
