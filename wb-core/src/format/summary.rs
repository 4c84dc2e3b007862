//! Segment summaries: the entries of all records of a closed segment, at its end.
//!
//! Start-up reads summaries instead of every header, and the entries of a record whose header has rotted are still
//! known. A summary counts only for a segment all of whose records are <= D, and only if the chain runs through it.

use super::record::decode_entries;
use super::*;
use crate::types::*;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(super) const MAGIC: &[u8; 8] = b"WBSUMARY";
const WHAT: &str = "segment summary";

/// Bytes of the summary's fixed part.
pub const SUMMARY_HEADER_BYTES: usize = 96;
const DESC_BYTES: usize = 8;

/// Fixed part of a summary, 96 bytes; `records` x [`RecordDescRaw`] and then `entries` x `EntryRaw` follow. The CRC
/// covers the whole summary.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SummaryHeaderRaw {
    pub magic: [u8; 8],
    pub crc: U32,
    pub segment: U32,
    pub uuid: [u8; 16],
    pub first_seq: U64,
    pub first_epoch: U64,
    pub first_epoch_start: U64,
    pub previous_crc: U32,
    pub records: U16,
    pub entries: U16,
    pub log_tail: U64,
    pub dirty_tail: U64,
    pub durable: U64,
    pub reserved: [u8; 8],
}

/// One record of a summary, 8 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RecordDescRaw {
    pub chain_crc: U32,
    pub epoch_delta: U16,
    pub entries: u8,
    pub flags: u8,
}

const _: () = assert!(size_of::<SummaryHeaderRaw>() == SUMMARY_HEADER_BYTES);
const _: () = assert!(size_of::<RecordDescRaw>() == DESC_BYTES);

/// What a summary knows of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordDesc {
    /// Number of the record.
    pub seq: Seq,
    /// Its lineage.
    pub epoch: Epoch,
    /// Block of its header within the segment.
    pub offset_blocks: u32,
    /// Chain value: the CRC of its header.
    pub chain_crc: u32,
    /// Flags of its header.
    pub flags: RecordFlags,
    /// Its entries.
    pub entries: Entries,
}

impl RecordDesc {
    /// Payload blocks of the record.
    pub fn payload_blocks(&self) -> u32 {
        self.entries.iter().filter(|entry| entry.kind.has_payload()).count() as u32
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
}

/// The summary of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentSummary {
    /// The segment.
    pub segment: SegmentNo,
    /// First record of the epoch in which the segment begins.
    pub first_epoch_start: Seq,
    /// Chain value of the record before the segment's first.
    pub previous_crc: u32,
    /// Oldest valid record when the segment was closed.
    pub log_tail: Seq,
    /// Oldest record not written back when the segment was closed.
    pub dirty_tail: Seq,
    /// D when the segment was closed.
    pub durable: Seq,
    /// The records, at least one, their numbers rising by one.
    pub records: Vec<RecordDesc>,
}

/// Room taken in a summary; the log head closes a segment before it overflows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SummaryUsage {
    /// Records in the segment.
    pub records: usize,
    /// Entries of all of them.
    pub entries: usize,
}

impl SummaryUsage {
    /// Bytes of a summary with this much in it.
    pub fn bytes(&self) -> usize {
        SUMMARY_HEADER_BYTES + self.records * DESC_BYTES + self.entries * ENTRY_BYTES
    }
    /// True if `records` more records with `entries` more entries fit.
    pub fn fits(&self, records: usize, entries: usize, geometry: &Geometry) -> bool {
        let more = SummaryUsage { records: self.records + records, entries: self.entries + entries };
        more.bytes() <= geometry.summary_blocks() as usize * BLOCK_BYTES
    }
}

/// Largest difference of epochs within a segment; beyond it the log head begins a new one.
pub const EPOCH_DELTA_MAX: u64 = u16::MAX as u64;

impl SegmentSummary {
    /// Number of the first record.
    pub fn first_seq(&self) -> Seq {
        self.records[0].seq
    }
    /// Number of the last record.
    pub fn last_seq(&self) -> Seq {
        self.records[self.records.len() - 1].seq
    }
    /// Chain value of the last record.
    pub fn last_chain_crc(&self) -> u32 {
        self.records[self.records.len() - 1].chain_crc
    }

    /// Writes the summary into `out`, which has exactly its length.
    pub fn encode_into(&self, out: &mut [u8], geometry: &Geometry, uuid: Uuid, secret: u32) {
        let mut builder = SummaryBuilder::new(self.segment, self.previous_crc, self.first_epoch_start);
        self.records.iter().for_each(|record| builder.push_desc(record));
        let tails = SummaryTails { log_tail: self.log_tail, dirty_tail: self.dirty_tail, durable: self.durable };
        builder.encode_into(tails, out, geometry, uuid, secret);
    }

    /// Magic, CRC, cache, place, and every field: records follow one another, their epochs never fall, and together
    /// they fit into the segment.
    pub fn decode(
        bytes: &[u8],
        geometry: &Geometry,
        segment: SegmentNo,
        uuid: Uuid,
        secret: u32,
    ) -> Result<SegmentSummary, FormatError> {
        assert_eq!(bytes.len(), geometry.summary_blocks() as usize * BLOCK_BYTES, "length of a summary");
        check_block(bytes, MAGIC, secret, WHAT)?;
        let raw = SummaryHeaderRaw::read_from_bytes(&bytes[..SUMMARY_HEADER_BYTES]).expect("size of the struct");
        check_uuid(raw.uuid, uuid, WHAT)?;
        if raw.segment.get() != segment.0 {
            return Err(bad(WHAT, format!("written for segment {}, found in {segment}", raw.segment)));
        }
        let usage = SummaryUsage { records: raw.records.get().into(), entries: raw.entries.get().into() };
        if usage.records == 0 || usage.bytes() > bytes.len() {
            return Err(bad(WHAT, format!("{} records, {} entries", usage.records, usage.entries)));
        }
        let starts = raw.first_epoch.get() > 0 && (1..=raw.first_seq.get()).contains(&raw.first_epoch_start.get());
        if !starts || raw.first_seq.get() > u64::MAX - (1 << 17) || raw.first_epoch.get() > u64::MAX - (1 << 17) {
            return Err(bad(WHAT, format!("record {}, epoch {}", raw.first_seq, raw.first_epoch)));
        }
        let (descs, entries) = bytes[SUMMARY_HEADER_BYTES..].split_at(usage.records * DESC_BYTES);
        let entries = decode_entries(entries, usage.entries)?;
        let records = join_records(&raw, descs, entries, geometry)?;
        Ok(SegmentSummary {
            segment,
            first_epoch_start: Seq(raw.first_epoch_start.get()),
            previous_crc: raw.previous_crc.get(),
            log_tail: Seq(raw.log_tail.get()),
            dirty_tail: Seq(raw.dirty_tail.get()),
            durable: Seq(raw.durable.get()),
            records,
        })
    }
}

fn join_records(
    raw: &SummaryHeaderRaw,
    descs: &[u8],
    entries: Vec<Entry>,
    geometry: &Geometry,
) -> Result<Vec<RecordDesc>, FormatError> {
    let mut records = Vec::with_capacity(descs.len() / DESC_BYTES);
    let mut entries = Entries::share(entries);
    let (mut offset, mut epoch) = (0u32, raw.first_epoch.get());
    for (number, bytes) in descs.chunks_exact(DESC_BYTES).enumerate() {
        let desc = RecordDescRaw::read_from_bytes(bytes).expect("size of the struct");
        let own = entries.split_to(desc.entries.into()).filter(|own| own.len() <= RECORD_ENTRIES_MAX);
        let own_epoch = raw.first_epoch.get() + u64::from(desc.epoch_delta.get());
        let Some(own) = own.filter(|_| own_epoch >= epoch) else {
            return Err(bad(WHAT, format!("record {number} has {} entries, epoch {own_epoch}", desc.entries)));
        };
        epoch = own_epoch;
        let record = RecordDesc {
            seq: Seq(raw.first_seq.get() + number as u64),
            epoch: Epoch(epoch),
            offset_blocks: offset,
            chain_crc: desc.chain_crc.get(),
            flags: RecordFlags(desc.flags.into()),
            entries: own,
        };
        offset += 1 + record.payload_blocks();
        records.push(record);
    }
    if offset > geometry.record_blocks() || !entries.is_empty() {
        return Err(bad(WHAT, format!("records of {offset} blocks")));
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_at_both_extremes() {
        let geometry = Geometry::new(64 << 20, 2 << 20).expect("fits");
        let uuid = Uuid::from_bytes([9; 16]);
        let entry = |block| Entry::payload(BlockAddr::new(VolumeId(1), block), EntryKind::Dirty, 7, SectorMask(3));
        for per_record in [1usize, 248] {
            let (mut usage, mut records, mut offset) = (SummaryUsage::default(), Vec::new(), 0);
            while usage.fits(1, per_record, &geometry) && offset + 1 + per_record as u32 <= geometry.record_blocks() {
                records.push(RecordDesc {
                    seq: Seq(100 + records.len() as u64),
                    epoch: Epoch(3 + records.len() as u64 / 2),
                    offset_blocks: offset,
                    chain_crc: records.len() as u32,
                    flags: RecordFlags(1),
                    entries: (0..per_record as u64).map(entry).collect(),
                });
                offset += 1 + per_record as u32;
                usage = SummaryUsage { records: usage.records + 1, entries: usage.entries + per_record };
            }
            assert!(records.len() >= if per_record == 1 { 255 } else { 2 });
            let summary = SegmentSummary {
                segment: SegmentNo(4),
                first_epoch_start: Seq(90),
                previous_crc: 1,
                log_tail: Seq(1),
                dirty_tail: Seq(2),
                durable: Seq(3),
                records,
            };
            let mut bytes = vec![0xff; geometry.summary_blocks() as usize * BLOCK_BYTES];
            summary.encode_into(&mut bytes, &geometry, uuid, 4);
            assert_eq!(SegmentSummary::decode(&bytes, &geometry, SegmentNo(4), uuid, 4), Ok(summary));
            assert!(SegmentSummary::decode(&bytes, &geometry, SegmentNo(5), uuid, 4).is_err());
        }
    }
}
