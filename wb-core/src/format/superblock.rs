//! The superblock: what a cache is, in two copies.

use super::*;
use crate::types::*;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: &[u8; 8] = b"WBCACHE\0";
const WHAT: &str = "superblock";
const VERSION: u32 = 1;

/// Superblock, 4096 bytes. Its CRC has no seed.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SuperblockRaw {
    pub magic: [u8; 8],
    pub crc: U32,
    pub version: U32,
    pub uuid: [u8; 16],
    pub label: [u8; 64],
    pub generation: U64,
    pub compat: U64,
    pub ro_compat: U64,
    pub incompat: U64,
    pub device_bytes: U64,
    pub segment_bytes: U32,
    pub segments: U32,
    pub first_segment_bytes: U64,
    pub bad_segment_blocks: U32,
    pub secret: U32,
    pub created_unix_ns: U64,
    pub reserved: [u8; 3928],
}

const _: () = assert!(size_of::<SuperblockRaw>() == BLOCK_BYTES);

/// A superblock that has been judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Identity of the cache.
    pub uuid: Uuid,
    /// Name for people, at most 64 bytes.
    pub label: String,
    /// Grows with each rewrite; the newest valid copy counts.
    pub generation: u64,
    /// Feature bits that old versions may ignore.
    pub compat: u64,
    /// Feature bits that old versions may ignore when reading.
    pub ro_compat: u64,
    /// Where everything lies.
    pub geometry: Geometry,
    /// Seeds the CRC of everything in the log. Never shown.
    pub secret: u32,
    /// When it was formatted.
    pub created_unix_ns: u64,
}

impl Superblock {
    /// The block of this superblock.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut raw = SuperblockRaw::new_zeroed();
        raw.magic = *MAGIC;
        raw.version = VERSION.into();
        raw.uuid = *self.uuid.as_bytes();
        put_text(&mut raw.label, &self.label);
        raw.generation = self.generation.into();
        raw.compat = self.compat.into();
        raw.ro_compat = self.ro_compat.into();
        raw.device_bytes = self.geometry.device_bytes.into();
        raw.segment_bytes = self.geometry.segment_bytes.into();
        raw.segments = self.geometry.segments.into();
        raw.first_segment_bytes = self.geometry.first_segment.0.into();
        raw.bad_segment_blocks = self.geometry.bad_segment_blocks.into();
        raw.secret = self.secret.into();
        raw.created_unix_ns = self.created_unix_ns.into();
        raw.crc = crc::block_crc(raw.as_bytes(), 0).into();
        raw.as_bytes().try_into().expect("a block")
    }

    /// First step: magic and CRC.
    pub fn unpack(block: &[u8; BLOCK_BYTES]) -> Result<Unchecked<SuperblockRaw>, FormatError> {
        check_block(block, MAGIC, 0, WHAT)?;
        Ok(Unchecked(SuperblockRaw::read_from_bytes(block).expect("size of the struct")))
    }

    /// True if the block begins as a superblock does, whatever else is wrong with it.
    pub fn has_magic(block: &[u8]) -> bool {
        block.get(..8) == Some(MAGIC.as_slice())
    }
}

impl Unchecked<SuperblockRaw> {
    /// Second step: version, features and geometry. The geometry must be exactly the one that this version would
    /// compute for that device and segment size: nothing in it is taken on trust.
    pub fn check(self) -> Result<Superblock, FormatError> {
        let raw = self.0;
        if raw.version.get() != VERSION {
            return Err(FormatError::Unsupported(format!("version {}", raw.version)));
        }
        if raw.incompat.get() != 0 {
            return Err(FormatError::Unsupported(format!("with incompatible features {:#x}", raw.incompat)));
        }
        let geometry = Geometry::new(raw.device_bytes.get(), raw.segment_bytes.get().into())
            .map_err(|error| bad(WHAT, error.to_string()))?;
        let stored = (raw.segments.get(), raw.first_segment_bytes.get(), raw.bad_segment_blocks.get());
        if stored != (geometry.segments, geometry.first_segment.0, geometry.bad_segment_blocks) {
            return Err(bad(WHAT, format!("geometry {stored:?} is not that of its device and segment size")));
        }
        check_counts(WHAT, [raw.generation.get()])?;
        Ok(Superblock {
            uuid: Uuid::from_bytes(raw.uuid),
            label: text(&raw.label),
            generation: raw.generation.get(),
            compat: raw.compat.get(),
            ro_compat: raw.ro_compat.get(),
            geometry,
            secret: raw.secret.get(),
            created_unix_ns: raw.created_unix_ns.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            uuid: Uuid::from_bytes([7; 16]),
            label: "fast".into(),
            generation: 3,
            compat: 0,
            ro_compat: 0,
            geometry: Geometry::new(1 << 30, 2 << 20).expect("large enough"),
            secret: 0x1234_5678,
            created_unix_ns: 42,
        }
    }

    #[test]
    fn round_trip() {
        let block = sample().encode();
        assert_eq!(Superblock::unpack(&block).expect("valid").check().expect("valid"), sample());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let block = sample().encode();
        for bit in 0..block.len() * 8 {
            let mut copy = block;
            copy[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::unpack(&copy).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn unknown_features_are_refused() {
        let mut raw = SuperblockRaw::read_from_bytes(&sample().encode()).expect("size");
        raw.incompat = 4.into();
        raw.crc = crc::block_crc(raw.as_bytes(), 0).into();
        let block: [u8; BLOCK_BYTES] = raw.as_bytes().try_into().expect("size");
        assert!(matches!(Superblock::unpack(&block).expect("valid").check(), Err(FormatError::Unsupported(_))));
    }
}
