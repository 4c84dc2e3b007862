//! Newtypes for what must not be mixed up, and the constants of the format.

use std::fmt;

/// Bytes of a cache block: the unit of the index and of payload slots.
pub const BLOCK_BYTES: usize = 4096;
/// [`BLOCK_BYTES`] as `u64`, for offsets.
pub const BLOCK_BYTES_U64: u64 = BLOCK_BYTES as u64;
/// Bytes of a sector, the unit of [`SectorMask`].
pub const SECTOR_BYTES: usize = 512;
/// Sectors of a block.
pub const SECTORS_PER_BLOCK: usize = BLOCK_BYTES / SECTOR_BYTES;
/// Largest number of entries, and so of payload blocks, of one record.
pub const RECORD_ENTRIES_MAX: usize = 248;
/// Bits of a block number within its volume: 2^48 blocks of 4 KiB.
pub const BLOCK_NUMBER_BITS: u32 = 48;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

newtype!(
    /// Number of a volume of a cache; never reused. 0 is no volume.
    VolumeId(u16)
);
newtype!(
    /// Number of a segment, 0 being the first of the ring.
    SegmentNo(u32)
);
newtype!(
    /// Number of a 4 KiB slot of the ring: segment x blocks per segment + block within the segment.
    /// Slots that hold record headers or summaries have numbers too.
    Slot(u64)
);
newtype!(
    /// Number of a record, +1 each. 0 is "before the first record".
    Seq(u64)
);
newtype!(
    /// Lineage of records; a new one begins at every start that was not proven clean.
    Epoch(u64)
);
newtype!(
    /// Offset in bytes on a device.
    ByteOffset(u64)
);
newtype!(
    /// Position in the endless log, in blocks: segment ordinal x blocks per segment + block within the segment.
    /// Two versions of a block compare by it. It lives in memory only and is assigned anew at each start.
    LogPos(u64)
);

impl Seq {
    /// The record after this one.
    pub fn next(self) -> Seq {
        Seq(self.0.checked_add(1).expect("record numbers do not wrap"))
    }
}

/// Address of a block: volume in the upper 16 bits, block number in the lower 48.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct BlockAddr(pub u64);

impl BlockAddr {
    /// Address of `block` of `volume`. Panics if the block number has more than 48 bits.
    pub fn new(volume: VolumeId, block: u64) -> BlockAddr {
        assert!(block >> BLOCK_NUMBER_BITS == 0, "block number has more than 48 bits");
        BlockAddr(u64::from(volume.0) << BLOCK_NUMBER_BITS | block)
    }
    /// The volume of the block.
    pub fn volume(self) -> VolumeId {
        VolumeId((self.0 >> BLOCK_NUMBER_BITS) as u16)
    }
    /// The block's number within its volume.
    pub fn block(self) -> u64 {
        self.0 & ((1 << BLOCK_NUMBER_BITS) - 1)
    }
}

impl fmt::Debug for BlockAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.volume(), self.block())
    }
}

/// Which of the eight sectors of a block are valid; bit i is sector i.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct SectorMask(pub u8);

impl SectorMask {
    /// All sectors.
    pub const FULL: SectorMask = SectorMask(0xff);
    /// No sector.
    pub const NONE: SectorMask = SectorMask(0);

    /// Sectors `first..first + count` of a block. Panics outside the block.
    pub fn range(first: usize, count: usize) -> SectorMask {
        assert!(first + count <= SECTORS_PER_BLOCK, "sector range within a block");
        SectorMask((((1u16 << count) - 1) << first) as u8)
    }
    /// True if every sector is valid.
    pub fn is_full(self) -> bool {
        self.0 == 0xff
    }
    /// True if no sector is valid.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// True if sector `index` is valid.
    pub fn has(self, index: usize) -> bool {
        self.0 >> index & 1 == 1
    }
    /// The union of both.
    pub fn union(self, other: SectorMask) -> SectorMask {
        SectorMask(self.0 | other.0)
    }
    /// The sectors of `self` that are not in `other`.
    pub fn minus(self, other: SectorMask) -> SectorMask {
        SectorMask(self.0 & !other.0)
    }
    /// Maximal runs of valid sectors as (first, count).
    pub fn runs(self) -> impl Iterator<Item = (usize, usize)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < SECTORS_PER_BLOCK && !self.has(at) {
                at += 1;
            }
            let first = at;
            while at < SECTORS_PER_BLOCK && self.has(at) {
                at += 1;
            }
            (at > first).then_some((first, at - first))
        })
    }
}

impl fmt::Debug for SectorMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SectorMask({:08b})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_runs_cover_the_mask() {
        for bits in 0..=255u8 {
            let mut seen = SectorMask::NONE;
            for (first, count) in SectorMask(bits).runs() {
                assert!(count > 0);
                seen = seen.union(SectorMask::range(first, count));
            }
            assert_eq!(seen.0, bits);
        }
    }

    #[test]
    fn addresses_keep_volume_and_block_apart() {
        let addr = BlockAddr::new(VolumeId(3), (1 << 48) - 1);
        assert_eq!((addr.volume(), addr.block()), (VolumeId(3), (1 << 48) - 1));
    }
}
