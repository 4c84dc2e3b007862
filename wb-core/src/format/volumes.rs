//! The volume table: which backing devices a cache serves. One block, in two copies.

use super::*;
use crate::types::*;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: &[u8; 8] = b"WBVOLUME";
const WHAT: &str = "volume table";

/// Most volumes of a cache.
pub const VOLUMES_MAX: usize = 15;

/// Head of the volume table, 64 bytes; [`VOLUMES_MAX`] x [`VolumeRaw`] follow, then zeroes. The CRC covers the block.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct VolumeTableHeaderRaw {
    pub magic: [u8; 8],
    pub crc: U32,
    pub flags: U32,
    pub uuid: [u8; 16],
    pub generation: U64,
    pub count: U16,
    pub next_id: U16,
    pub reserved: [u8; 20],
}

/// One volume, 256 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct VolumeRaw {
    pub id: U16,
    pub flags: U16,
    pub sector_bytes: U32,
    pub size_bytes: U64,
    pub uuid: [u8; 16],
    pub name: [u8; 64],
    pub identity: [u8; 128],
    pub created_unix_ns: U64,
    pub probe_secret: U64,
    pub reserved: [u8; 16],
}

const _: () = assert!(size_of::<VolumeTableHeaderRaw>() == 64);
const _: () = assert!(size_of::<VolumeRaw>() == 256);
const _: () = assert!(64 + VOLUMES_MAX * 256 <= BLOCK_BYTES);

/// A backing device that a cache serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its number; never reused.
    pub id: VolumeId,
    /// Its identity, made when it was first attached.
    pub uuid: Uuid,
    /// Bytes served; the backing device may be larger.
    pub size_bytes: u64,
    /// Logical sector: 512 or 4096.
    pub sector_bytes: u32,
    /// Name for people and exports.
    pub name: String,
    /// Serial number, WWN or UUID of the backing device; empty where it has none.
    pub identity: String,
    /// When it was first attached.
    pub created_unix_ns: u64,
    /// Chooses the random probe blocks.
    pub probe_secret: u64,
}

impl Volume {
    /// Blocks of the volume; the last may be partial.
    pub fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(BLOCK_BYTES_U64)
    }
}

/// The volume table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeTable {
    /// Grows with each rewrite; the newest valid copy counts.
    pub generation: u64,
    /// The number that the next volume will get.
    pub next_id: u16,
    /// The volumes, at most [`VOLUMES_MAX`].
    pub volumes: Vec<Volume>,
}

impl VolumeTable {
    /// A table without volumes.
    pub fn empty() -> VolumeTable {
        VolumeTable { generation: 1, next_id: 1, volumes: Vec::new() }
    }

    /// The volume with this number.
    pub fn get(&self, id: VolumeId) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.id == id)
    }

    /// The block of this table.
    pub fn encode(&self, uuid: Uuid, secret: u32) -> [u8; BLOCK_BYTES] {
        assert!(self.volumes.len() <= VOLUMES_MAX, "volume table is full");
        let mut block = [0u8; BLOCK_BYTES];
        let mut header = VolumeTableHeaderRaw::new_zeroed();
        header.magic = *MAGIC;
        header.uuid = *uuid.as_bytes();
        header.generation = self.generation.into();
        header.count = (self.volumes.len() as u16).into();
        header.next_id = self.next_id.into();
        block[..64].copy_from_slice(header.as_bytes());
        for (slot, volume) in block[64..].chunks_exact_mut(256).zip(&self.volumes) {
            let mut raw = VolumeRaw::new_zeroed();
            raw.id = volume.id.0.into();
            raw.sector_bytes = volume.sector_bytes.into();
            raw.size_bytes = volume.size_bytes.into();
            raw.uuid = *volume.uuid.as_bytes();
            put_text(&mut raw.name, &volume.name);
            put_text(&mut raw.identity, &volume.identity);
            raw.created_unix_ns = volume.created_unix_ns.into();
            raw.probe_secret = volume.probe_secret.into();
            slot.copy_from_slice(raw.as_bytes());
        }
        let crc = crc::block_crc(&block, secret);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// Magic, CRC, cache and every field.
    pub fn decode(block: &[u8; BLOCK_BYTES], uuid: Uuid, secret: u32) -> Result<VolumeTable, FormatError> {
        check_block(block, MAGIC, secret, WHAT)?;
        let header = VolumeTableHeaderRaw::read_from_bytes(&block[..64]).expect("size of the struct");
        check_uuid(header.uuid, uuid, WHAT)?;
        check_counts(WHAT, [header.generation.get()])?;
        let count = usize::from(header.count.get());
        if count > VOLUMES_MAX {
            return Err(bad(WHAT, format!("{count} volumes")));
        }
        let mut volumes: Vec<Volume> = Vec::with_capacity(count);
        for bytes in block[64..].chunks_exact(256).take(count) {
            let raw = VolumeRaw::read_from_bytes(bytes).expect("size of the struct");
            let volume = check_volume(&raw, header.next_id.get())?;
            if volumes.iter().any(|other| other.id == volume.id) {
                return Err(bad(WHAT, format!("volume {} twice", volume.id)));
            }
            volumes.push(volume);
        }
        Ok(VolumeTable { generation: header.generation.get(), next_id: header.next_id.get(), volumes })
    }
}

fn check_volume(raw: &VolumeRaw, next_id: u16) -> Result<Volume, FormatError> {
    let id = raw.id.get();
    if id == 0 || id >= next_id {
        return Err(bad(WHAT, format!("volume number {id}")));
    }
    let (size_bytes, sector_bytes) = (raw.size_bytes.get(), raw.sector_bytes.get());
    if sector_bytes != 512 && sector_bytes != 4096 {
        return Err(bad(WHAT, format!("sector size {sector_bytes} of volume {id}")));
    }
    let whole = size_bytes.is_multiple_of(u64::from(sector_bytes));
    if size_bytes == 0 || !whole || size_bytes > BLOCK_BYTES_U64 << BLOCK_NUMBER_BITS {
        return Err(bad(WHAT, format!("size {size_bytes} of volume {id}")));
    }
    Ok(Volume {
        id: VolumeId(id),
        uuid: Uuid::from_bytes(raw.uuid),
        size_bytes,
        sector_bytes,
        name: text(&raw.name),
        identity: text(&raw.identity),
        created_unix_ns: raw.created_unix_ns.get(),
        probe_secret: raw.probe_secret.get(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> VolumeTable {
        let volume = |id| Volume {
            id: VolumeId(id),
            uuid: Uuid::from_bytes([id as u8; 16]),
            size_bytes: 512 * 1001,
            sector_bytes: 512,
            name: format!("vol{id}"),
            identity: "wwn-0x5000".into(),
            created_unix_ns: 9,
            probe_secret: 77,
        };
        VolumeTable { generation: 5, next_id: 20, volumes: (1..=15).map(volume).collect() }
    }

    #[test]
    fn round_trip() {
        let uuid = Uuid::from_bytes([1; 16]);
        let block = sample().encode(uuid, 99);
        assert_eq!(VolumeTable::decode(&block, uuid, 99), Ok(sample()));
        assert!(VolumeTable::decode(&block, uuid, 98).is_err(), "seeded by the secret");
        assert!(matches!(
            VolumeTable::decode(&block, Uuid::from_bytes([2; 16]), 99),
            Err(FormatError::OtherCache { .. })
        ));
    }

    #[test]
    fn impossible_volumes_are_refused() {
        let uuid = Uuid::from_bytes([1; 16]);
        for change in [
            (|table: &mut VolumeTable| table.next_id = 3) as fn(&mut VolumeTable),
            |table| table.volumes[0].sector_bytes = 1024,
            |table| table.volumes[0].size_bytes = 513,
            |table| table.volumes[0].size_bytes = 0,
            |table| table.volumes[1].id = VolumeId(1),
        ] {
            let mut table = sample();
            change(&mut table);
            assert!(VolumeTable::decode(&table.encode(uuid, 0), uuid, 0).is_err());
        }
    }
}
