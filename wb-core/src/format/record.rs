//! Records: the unit of commit. One header block, then up to 248 payload blocks, written together.

use super::*;
use crate::types::*;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: &[u8; 8] = b"WBRECORD";
const WHAT: &str = "record header";

/// Bytes of the fixed part of a header; the entries follow.
pub const FIXED_HEADER_BYTES: usize = 128;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 16;
/// Most blocks of one range entry: 48 bits.
pub const RANGE_BLOCKS_MAX: u64 = (1 << 48) - 1;

/// Fixed part of a record header, 128 bytes; 248 x [`EntryRaw`] fill the block. The CRC covers the 4096 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RecordHeaderRaw {
    pub magic: [u8; 8],
    pub crc: U32,
    pub flags: U32,
    pub uuid: [u8; 16],
    pub epoch: U64,
    pub epoch_start: U64,
    pub seq: U64,
    pub previous_crc: U32,
    pub segment: U32,
    pub offset_blocks: U32,
    pub span: U32,
    pub log_tail: U64,
    pub dirty_tail: U64,
    pub durable: U64,
    pub wall_unix_ns: U64,
    pub entries: U16,
    pub payload_blocks: U16,
    pub chain_crc: U32,
    pub reserved: [u8; 16],
}

/// One entry, 16 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct EntryRaw {
    pub address: U64,
    pub crc: U32,
    pub mask: u8,
    pub kind: u8,
    pub blocks: U16,
}

const _: () = assert!(size_of::<RecordHeaderRaw>() == FIXED_HEADER_BYTES);
const _: () = assert!(size_of::<EntryRaw>() == ENTRY_BYTES);
const _: () = assert!(FIXED_HEADER_BYTES + RECORD_ENTRIES_MAX * ENTRY_BYTES == BLOCK_BYTES);

/// What an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// A slot that was reserved and never filled.
    Void = 0,
    /// Payload that the backing device does not have yet.
    Dirty = 1,
    /// Payload that the backing device has, too.
    Clean = 2,
    /// The range reads as zeroes.
    Zeroes = 3,
    /// The range is unused; its content is undefined.
    Discard = 4,
    /// The range is to be read from the backing device.
    Invalidate = 5,
    /// The range is lost: EIO until overwritten or cleared.
    Poison = 6,
}

impl EntryKind {
    /// The kind of this number.
    pub fn from_u8(value: u8) -> Option<EntryKind> {
        use EntryKind::*;
        [Void, Dirty, Clean, Zeroes, Discard, Invalidate, Poison].get(usize::from(value)).copied()
    }
    /// True for kinds that own a payload slot.
    pub fn has_payload(self) -> bool {
        matches!(self, EntryKind::Void | EntryKind::Dirty | EntryKind::Clean)
    }
    /// The name that tools show.
    pub fn name(self) -> &'static str {
        match self {
            EntryKind::Void => "void",
            EntryKind::Dirty => "dirty",
            EntryKind::Clean => "clean",
            EntryKind::Zeroes => "zeroes",
            EntryKind::Discard => "discard",
            EntryKind::Invalidate => "invalidate",
            EntryKind::Poison => "poison",
        }
    }
}

/// An entry of a record: one payload block, or a range of blocks without payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The block, or the first block of the range.
    pub addr: BlockAddr,
    /// What is said about it.
    pub kind: EntryKind,
    /// CRC-32C of the payload block, unused sectors being zero. 0 for ranges.
    pub crc: u32,
    /// Valid sectors of the payload. Full for ranges.
    pub mask: SectorMask,
    /// Blocks of the range; 1 for payload.
    pub blocks: u64,
}

impl Entry {
    /// A reserved slot.
    pub const VOID: Entry =
        Entry { addr: BlockAddr(0), kind: EntryKind::Void, crc: 0, mask: SectorMask::NONE, blocks: 1 };

    /// A payload entry.
    pub fn payload(addr: BlockAddr, kind: EntryKind, crc: u32, mask: SectorMask) -> Entry {
        assert!(kind.has_payload(), "a payload kind");
        Entry { addr, kind, crc, mask, blocks: 1 }
    }
    /// A range entry.
    pub fn range(addr: BlockAddr, kind: EntryKind, blocks: u64) -> Entry {
        assert!(!kind.has_payload() && blocks > 0 && blocks <= RANGE_BLOCKS_MAX, "a range");
        Entry { addr, kind, crc: 0, mask: SectorMask::FULL, blocks }
    }
    /// The sixteen bytes. The length of a range is 48 bits: the lower 16 in `blocks`, the upper 32 in `crc`.
    pub fn encode(&self) -> EntryRaw {
        let (crc, blocks) = match self.kind.has_payload() {
            true => (self.crc, 0),
            false => ((self.blocks >> 16) as u32, self.blocks as u16),
        };
        EntryRaw {
            address: self.addr.0.into(),
            crc: crc.into(),
            mask: self.mask.0,
            kind: self.kind as u8,
            blocks: blocks.into(),
        }
    }
    /// Judges the sixteen bytes.
    pub fn decode(raw: &EntryRaw) -> Result<Entry, FormatError> {
        let kind = EntryKind::from_u8(raw.kind).ok_or_else(|| bad(WHAT, format!("entry kind {}", raw.kind)))?;
        let addr = BlockAddr(raw.address.get());
        let range_blocks = u64::from(raw.crc.get()) << 16 | u64::from(raw.blocks.get());
        if kind == EntryKind::Void {
            return Ok(Entry { mask: SectorMask(raw.mask), addr, crc: raw.crc.get(), ..Entry::VOID });
        }
        if addr.volume().0 == 0 {
            return Err(bad(WHAT, "entry of volume 0"));
        }
        if kind.has_payload() {
            if raw.mask == 0 || raw.blocks.get() != 0 {
                return Err(bad(WHAT, format!("payload entry with mask {:#x}, length {}", raw.mask, raw.blocks)));
            }
            return Ok(Entry::payload(addr, kind, raw.crc.get(), SectorMask(raw.mask)));
        }
        if range_blocks == 0 || addr.block() + range_blocks > 1 << BLOCK_NUMBER_BITS {
            return Err(bad(WHAT, format!("range of {range_blocks} blocks at {addr:?}")));
        }
        Ok(Entry::range(addr, kind, range_blocks))
    }
}

/// Flag bits of a record header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordFlags(pub u32);

impl RecordFlags {
    /// The record was sealed for a FLUSH or FUA.
    pub const CLOSES_FLUSH_GROUP: u32 = 1;
    /// Written by repair in place of a lost header: `chain_crc` is what the next record names as its predecessor, and
    /// `span` record numbers are taken.
    pub const REPAIRED: u32 = 2;

    /// True if the bit is set.
    pub fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }
}

/// A record header that has been judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHeader {
    /// Flag bits.
    pub flags: RecordFlags,
    /// Lineage.
    pub epoch: Epoch,
    /// First record of the lineage.
    pub epoch_start: Seq,
    /// Number of this record.
    pub seq: Seq,
    /// Chain value of the record before.
    pub previous_crc: u32,
    /// Where the record lies.
    pub segment: SegmentNo,
    /// Block of the header within its segment.
    pub offset_blocks: u32,
    /// Record numbers that this header stands for: 1, more only in a repaired one.
    pub span: u32,
    /// Oldest valid record when this one was sealed.
    pub log_tail: Seq,
    /// Oldest record not written back when this one was sealed.
    pub dirty_tail: Seq,
    /// D when this one was sealed.
    pub durable: Seq,
    /// Wall-clock time of sealing; for people.
    pub wall_unix_ns: u64,
    /// Payload blocks behind the header. In a repaired header possibly more than entries name.
    pub payload_blocks: u32,
    /// What the next record names as its predecessor: the header's own CRC unless repaired.
    pub chain_crc: u32,
    /// The entries, in log order; payload entries own the slots behind the header in turn.
    pub entries: Vec<Entry>,
}

impl RecordHeader {
    /// Blocks of the record, header included.
    pub fn blocks(&self) -> u32 {
        1 + self.payload_blocks
    }
    /// The last record number that this header stands for.
    pub fn last_seq(&self) -> Seq {
        Seq(self.seq.0 + u64::from(self.span) - 1)
    }
    /// Entries with the block (within the segment) of their payload, if they own one.
    pub fn entries_with_blocks(&self) -> impl Iterator<Item = (&Entry, Option<u32>)> {
        let mut next = self.offset_blocks;
        self.entries.iter().map(move |entry| {
            let block = entry.kind.has_payload().then(|| {
                next += 1;
                next
            });
            (entry, block)
        })
    }

    /// Writes the header's fixed part and CRC into `block`, whose entries are already in place (the log head lets
    /// every writer fill its own). Unused entries are zeroed. Returns the CRC, which is the chain value.
    pub fn seal_into(&self, block: &mut [u8], entries: usize, uuid: Uuid, secret: u32) -> u32 {
        assert!(block.len() == BLOCK_BYTES && entries <= RECORD_ENTRIES_MAX, "a header block");
        block[FIXED_HEADER_BYTES + entries * ENTRY_BYTES..].fill(0);
        let repaired = self.flags.has(RecordFlags::REPAIRED);
        let raw = RecordHeaderRaw {
            magic: *MAGIC,
            crc: 0.into(),
            flags: self.flags.0.into(),
            uuid: *uuid.as_bytes(),
            epoch: self.epoch.0.into(),
            epoch_start: self.epoch_start.0.into(),
            seq: self.seq.0.into(),
            previous_crc: self.previous_crc.into(),
            segment: self.segment.0.into(),
            offset_blocks: self.offset_blocks.into(),
            span: self.span.into(),
            log_tail: self.log_tail.0.into(),
            dirty_tail: self.dirty_tail.0.into(),
            durable: self.durable.0.into(),
            wall_unix_ns: self.wall_unix_ns.into(),
            entries: (entries as u16).into(),
            payload_blocks: (self.payload_blocks as u16).into(),
            chain_crc: if repaired { self.chain_crc } else { 0 }.into(),
            reserved: [0; 16],
        };
        block[..FIXED_HEADER_BYTES].copy_from_slice(raw.as_bytes());
        let crc = crc::block_crc(block, secret);
        block[8..12].copy_from_slice(&crc.to_le_bytes());
        if repaired { self.chain_crc } else { crc }
    }

    /// The whole header block, entries included.
    pub fn encode(&self, uuid: Uuid, secret: u32) -> [u8; BLOCK_BYTES] {
        let mut block = [0u8; BLOCK_BYTES];
        for (at, entry) in self.entries.iter().enumerate() {
            block[FIXED_HEADER_BYTES + at * ENTRY_BYTES..][..ENTRY_BYTES].copy_from_slice(entry.encode().as_bytes());
        }
        self.seal_into(&mut block, self.entries.len(), uuid, secret);
        block
    }

    /// First step: magic and seeded CRC.
    pub fn unpack(block: &[u8], secret: u32) -> Result<Unchecked<RecordHeaderRaw>, FormatError> {
        assert!(block.len() == BLOCK_BYTES, "a header block");
        check_block(block, MAGIC, secret, WHAT)?;
        Ok(Unchecked(RecordHeaderRaw::read_from_bytes(&block[..FIXED_HEADER_BYTES]).expect("size of the struct")))
    }

    /// Both steps for a header found at `segment`, `offset_blocks`: it must belong to this cache, name this place and
    /// fit into its segment. Whether it belongs to the live log is for the walk to say.
    pub fn decode(
        block: &[u8],
        geometry: &Geometry,
        segment: SegmentNo,
        offset_blocks: u32,
        uuid: Uuid,
        secret: u32,
    ) -> Result<RecordHeader, FormatError> {
        let raw = Self::unpack(block, secret)?.0;
        check_uuid(raw.uuid, uuid, WHAT)?;
        if (raw.segment.get(), raw.offset_blocks.get()) != (segment.0, offset_blocks) {
            return Err(bad(
                WHAT,
                format!(
                    "written for segment {} block {}, found at segment {segment} block {offset_blocks}",
                    raw.segment, raw.offset_blocks
                ),
            ));
        }
        let flags = RecordFlags(raw.flags.get());
        let repaired = flags.has(RecordFlags::REPAIRED);
        let count = usize::from(raw.entries.get());
        let payload_blocks = u32::from(raw.payload_blocks.get());
        let room = geometry.record_blocks().checked_sub(offset_blocks + 1);
        if count > RECORD_ENTRIES_MAX || room.is_none_or(|room| payload_blocks > room) {
            return Err(bad(WHAT, format!("{count} entries, {payload_blocks} payload blocks")));
        }
        let span = raw.span.get();
        let spans = span == 1 || (repaired && span > 0);
        if !spans || raw.seq.get() == 0 || raw.seq.get().checked_add(u64::from(span)).is_none() {
            return Err(bad(WHAT, format!("record {} spanning {span}", raw.seq)));
        }
        if raw.epoch.get() == 0 || raw.epoch_start.get() == 0 || raw.epoch_start > raw.seq {
            return Err(bad(WHAT, format!("epoch {} from record {}", raw.epoch, raw.epoch_start)));
        }
        let entries = decode_entries(&block[FIXED_HEADER_BYTES..], count)?;
        let owned = entries.iter().filter(|entry| entry.kind.has_payload()).count() as u32;
        if owned != payload_blocks && !(repaired && owned < payload_blocks) {
            return Err(bad(WHAT, format!("{payload_blocks} payload blocks, entries for {owned}")));
        }
        Ok(RecordHeader {
            flags,
            epoch: Epoch(raw.epoch.get()),
            epoch_start: Seq(raw.epoch_start.get()),
            seq: Seq(raw.seq.get()),
            previous_crc: raw.previous_crc.get(),
            segment,
            offset_blocks,
            span,
            log_tail: Seq(raw.log_tail.get()),
            dirty_tail: Seq(raw.dirty_tail.get()),
            durable: Seq(raw.durable.get()),
            wall_unix_ns: raw.wall_unix_ns.get(),
            payload_blocks,
            chain_crc: if repaired { raw.chain_crc.get() } else { raw.crc.get() },
            entries,
        })
    }
}

/// Judges `count` entries at the start of `bytes`.
pub(super) fn decode_entries(bytes: &[u8], count: usize) -> Result<Vec<Entry>, FormatError> {
    // Pushed one by one into room made before: a start decodes tens of millions, and a list collected from results grows
    // step by step.
    let mut entries = Vec::with_capacity(count);
    for raw in bytes.chunks_exact(ENTRY_BYTES).take(count) {
        entries.push(Entry::decode(EntryRaw::ref_from_bytes(raw).expect("size of the struct"))?);
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UUID: Uuid = Uuid::from_bytes([9; 16]);

    fn geometry() -> Geometry {
        Geometry::new(64 << 20, 2 << 20).expect("fits")
    }

    fn sample() -> RecordHeader {
        let entries = vec![
            Entry::payload(BlockAddr::new(VolumeId(1), 5), EntryKind::Dirty, 77, SectorMask::FULL),
            Entry::range(BlockAddr::new(VolumeId(1), 9), EntryKind::Discard, RANGE_BLOCKS_MAX - 9),
            Entry::VOID,
        ];
        let mut header = RecordHeader {
            flags: RecordFlags(RecordFlags::CLOSES_FLUSH_GROUP),
            epoch: Epoch(2),
            epoch_start: Seq(10),
            seq: Seq(12),
            previous_crc: 5,
            segment: SegmentNo(3),
            offset_blocks: 7,
            span: 1,
            log_tail: Seq(1),
            dirty_tail: Seq(2),
            durable: Seq(11),
            wall_unix_ns: 1,
            payload_blocks: 2,
            chain_crc: 0,
            entries,
        };
        header.chain_crc = u32::from_le_bytes(header.encode(UUID, 4)[8..12].try_into().expect("four"));
        header
    }

    fn decode(block: &[u8]) -> Result<RecordHeader, FormatError> {
        RecordHeader::decode(block, &geometry(), SegmentNo(3), 7, UUID, 4)
    }

    #[test]
    fn round_trip() {
        assert_eq!(decode(&sample().encode(UUID, 4)), Ok(sample()));
        let blocks: Vec<_> = sample().entries_with_blocks().map(|(_, block)| block).collect();
        assert_eq!(blocks, [Some(8), None, Some(9)]);
    }

    #[test]
    fn place_and_secret_are_part_of_the_proof() {
        let block = sample().encode(UUID, 4);
        assert!(RecordHeader::decode(&block, &geometry(), SegmentNo(3), 8, UUID, 4).is_err());
        assert!(RecordHeader::decode(&block, &geometry(), SegmentNo(3), 7, UUID, 5).is_err());
    }

    proptest! {
        #[test]
        fn valid_crc_over_noise_never_panics(fixed in proptest::collection::vec(any::<u8>(), 128), rest in any::<[u8; 32]>()) {
            let mut block = sample().encode(UUID, 4);
            block[12..128].copy_from_slice(&fixed[12..]);
            block[16..32].copy_from_slice(UUID.as_bytes());
            block[128..160].copy_from_slice(&rest);
            block[60..68].copy_from_slice(&sample().encode(UUID, 4)[60..68]);
            let crc = crc::block_crc(&block, 4);
            block[8..12].copy_from_slice(&crc.to_le_bytes());
            let _ = decode(&block);
        }
    }
}
