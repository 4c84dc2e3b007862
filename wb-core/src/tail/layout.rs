//! Where things lie in a tail. Words are in the byte order of the machine, which the tail never leaves.

use super::{TailError, TailName};
use crate::format::crc32c;
use crate::types::*;
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: &[u8; 8] = b"WBRAMTAI";
/// Version of the layout.
pub const TAIL_VERSION: u32 = 1;
/// Kind in the entry of a range that was reserved and not published. Never on the device.
pub const UNFINISHED_RANGE_KIND: u8 = 0xff;

const CELLS_OFFSET: usize = BLOCK_BYTES;
const CONTROLS_OFFSET: usize = 2 * BLOCK_BYTES;
/// A cache line each, so that writers of one do not slow down those of another.
const CONTROL_BYTES: usize = 64;
/// Most record buffers that a tail may say it has.
const BUFFERS_MAX: usize = 1 << 16;

/// First block of a tail. The CRC is CRC-32C of the 4096 bytes with `crc` as zero.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TailHeaderRaw {
    pub magic: [u8; 8],
    pub crc: U32,
    pub version: U32,
    pub uuid: [u8; 16],
    pub id: [u8; 16],
    pub boot_id: [u8; 16],
    pub epoch: U64,
    pub epoch_start: U64,
    pub buffers: U32,
    pub buffer_bytes: U32,
    pub created_unix_ns: U64,
    pub reserved: [u8; 4000],
}

const _: () = assert!(size_of::<TailHeaderRaw>() == BLOCK_BYTES);

/// Numbers and sizes of a tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailLayout {
    /// Record buffers.
    pub buffers: usize,
    /// Bytes of each, a multiple of 4096.
    pub buffer_bytes: usize,
}

impl TailLayout {
    pub(super) fn cell_offset(&self, number: usize) -> usize {
        CELLS_OFFSET + number * CONTROL_BYTES
    }
    pub(super) fn control_offset(&self, number: usize) -> usize {
        assert!(number < self.buffers, "a buffer of the tail");
        CONTROLS_OFFSET + number * CONTROL_BYTES
    }
    fn headers_offset(&self) -> usize {
        (CONTROLS_OFFSET + self.buffers * CONTROL_BYTES).next_multiple_of(BLOCK_BYTES)
    }
    /// The header of a buffer's record, if it was sealed in recovery.
    pub(super) fn header_offset(&self, number: usize) -> usize {
        assert!(number < self.buffers, "a buffer of the tail");
        self.headers_offset() + number * BLOCK_BYTES
    }
    pub(super) fn buffers_offset(&self) -> usize {
        self.headers_offset() + self.buffers * BLOCK_BYTES
    }
    pub(super) fn buffer_offset(&self, number: usize) -> usize {
        assert!(number < self.buffers, "a buffer of the tail");
        self.buffers_offset() + number * self.buffer_bytes
    }
    /// Bytes of the whole.
    pub fn bytes(&self) -> usize {
        self.buffers_offset() + self.buffers * self.buffer_bytes
    }
}

/// Whose tail it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailIdentity {
    /// The cache and the tail's id.
    pub name: TailName,
    /// Boot in which it lives.
    pub boot_id: [u8; 16],
    /// Epoch of all records in it.
    pub epoch: Epoch,
    /// First record of that epoch.
    pub epoch_start: Seq,
    /// When it was made; for people.
    pub created_unix_ns: u64,
}

impl TailIdentity {
    pub(super) fn encode(&self, layout: &TailLayout) -> [u8; BLOCK_BYTES] {
        let mut raw = TailHeaderRaw::new_zeroed();
        raw.magic = *MAGIC;
        raw.version = TAIL_VERSION.into();
        raw.uuid = *self.name.cache.as_bytes();
        raw.id = *self.name.id.as_bytes();
        raw.boot_id = self.boot_id;
        raw.epoch = self.epoch.0.into();
        raw.epoch_start = self.epoch_start.0.into();
        raw.buffers = (layout.buffers as u32).into();
        raw.buffer_bytes = (layout.buffer_bytes as u32).into();
        raw.created_unix_ns = self.created_unix_ns.into();
        raw.crc = crc32c(raw.as_bytes()).into();
        zerocopy::transmute!(raw)
    }

    /// Judges the first block of what is said to be `name`, in a region of `len` bytes.
    pub(super) fn decode(block: &[u8], name: TailName, len: usize) -> Result<(TailIdentity, TailLayout), TailError> {
        let damaged = |reason: String| TailError::Damaged { name, reason };
        let raw = TailHeaderRaw::read_from_bytes(block).expect("a block");
        if raw.magic != *MAGIC {
            return Err(damaged("it is not complete".into()));
        }
        if raw.version.get() != TAIL_VERSION {
            return Err(TailError::Version { name, found: raw.version.get() });
        }
        if crc32c(TailHeaderRaw { crc: 0.into(), ..raw }.as_bytes()) != raw.crc.get() {
            return Err(damaged("its first block fails its checksum".into()));
        }
        if (Uuid::from_bytes(raw.uuid), Uuid::from_bytes(raw.id)) != (name.cache, name.id) {
            return Err(damaged("it is that of another cache, or of another instance".into()));
        }
        let layout = TailLayout { buffers: raw.buffers.get() as usize, buffer_bytes: raw.buffer_bytes.get() as usize };
        let buffer_max = (1 + RECORD_ENTRIES_MAX) * BLOCK_BYTES;
        let fits = (1..=BUFFERS_MAX).contains(&layout.buffers)
            && layout.buffer_bytes.is_multiple_of(BLOCK_BYTES)
            && (2 * BLOCK_BYTES..=buffer_max).contains(&layout.buffer_bytes);
        if !fits || layout.bytes() != len {
            return Err(damaged(format!("{layout:?} in {len} bytes")));
        }
        let identity = TailIdentity {
            name,
            boot_id: raw.boot_id,
            epoch: Epoch(raw.epoch.get()),
            epoch_start: Seq(raw.epoch_start.get()),
            created_unix_ns: raw.created_unix_ns.get(),
        };
        Ok((identity, layout))
    }
}

/// Words of the control block of a buffer; 64 bytes of which the rest is reserved.
pub struct TailControl;

impl TailControl {
    /// Number of the buffer's record; 0: none. Stored last when the buffer is taken.
    pub const SEQ: usize = 0;
    /// Segment of the record in the upper half, block of its header in the lower.
    pub const PLACE: usize = 8;
    /// Entries reserved so far in the upper half, payload blocks in the lower.
    pub const RESERVED: usize = 16;
    /// The record's number once its header was sealed in recovery: then the header beside the buffer counts.
    pub const SEALED_IN_RECOVERY: usize = 24;

    pub(super) fn place(segment: SegmentNo, offset_blocks: u32) -> u64 {
        u64::from(segment.0) << 32 | u64::from(offset_blocks)
    }
    pub(super) fn reserved(entries: usize, payload: usize) -> u64 {
        (entries as u64) << 32 | payload as u64
    }
    /// Both halves of such a word.
    pub(super) fn halves(word: u64) -> (u32, u32) {
        ((word >> 32) as u32, word as u32)
    }
}

/// What is durable: one of two cells, of 16 bytes each; the higher number of those that check counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurableCell {
    /// D.
    pub seq: Seq,
    /// Chain value of that record.
    pub chain_crc: u32,
}

impl DurableCell {
    /// The second word: the chain value, and a checksum of both.
    pub(super) fn check_word(&self) -> u64 {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.seq.0.to_le_bytes());
        bytes[8..].copy_from_slice(&self.chain_crc.to_le_bytes());
        u64::from(self.chain_crc) << 32 | u64::from(crc32c(&bytes))
    }

    /// Judges both words.
    pub(super) fn decode(seq: u64, check_word: u64) -> Option<DurableCell> {
        let cell = DurableCell { seq: Seq(seq), chain_crc: (check_word >> 32) as u32 };
        (cell.check_word() == check_word).then_some(cell)
    }
}
