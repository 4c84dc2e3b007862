//! The summary of a segment that is being filled: entries are taken over as they lie in the headers of its records.

use super::record::decode_entries;
use super::summary::{MAGIC, RecordDescRaw, SummaryHeaderRaw};
use super::*;
use crate::types::*;
use zerocopy::{FromZeros, IntoBytes};

/// A record without its entries.
#[derive(Debug, Clone, Copy)]
struct Desc {
    seq: Seq,
    epoch: Epoch,
    offset_blocks: u32,
    chain_crc: u32,
    flags: RecordFlags,
    entries: usize,
}

/// What a summary says of the log at the time when its segment was closed.
#[derive(Debug, Clone, Copy)]
pub struct SummaryTails {
    /// Oldest valid record.
    pub log_tail: Seq,
    /// Oldest record not written back.
    pub dirty_tail: Seq,
    /// D.
    pub durable: Seq,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct SummaryBuilder {
    segment: SegmentNo,
    previous_crc: u32,
    first_epoch_start: Seq,
    records: Vec<Desc>,
    /// The sixteen bytes of every entry.
    entries: Vec<u8>,
}

impl SummaryBuilder {
    /// Of a segment whose first record follows one with chain value `previous_crc`, in an epoch begun at
    /// `first_epoch_start`.
    pub fn new(segment: SegmentNo, previous_crc: u32, first_epoch_start: Seq) -> SummaryBuilder {
        let entries = Vec::with_capacity(2 * BLOCK_BYTES);
        SummaryBuilder { segment, previous_crc, first_epoch_start, records: Vec::new(), entries }
    }

    /// The segment.
    pub fn segment(&self) -> SegmentNo {
        self.segment
    }

    /// True if no record is in it yet.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Takes the next record in, whose entries are these bytes.
    pub fn push(
        &mut self,
        seq: Seq,
        epoch: Epoch,
        offset_blocks: u32,
        chain_crc: u32,
        flags: RecordFlags,
        entries: &[u8],
    ) {
        assert!(entries.len().is_multiple_of(ENTRY_BYTES), "whole entries");
        let count = entries.len() / ENTRY_BYTES;
        self.records.push(Desc { seq, epoch, offset_blocks, chain_crc, flags, entries: count });
        self.entries.extend_from_slice(entries);
    }

    /// Takes a record over that was read.
    pub fn push_desc(&mut self, record: &RecordDesc) {
        let mut bytes = Vec::with_capacity(record.entries.len() * ENTRY_BYTES);
        record.entries.iter().for_each(|entry| bytes.extend_from_slice(entry.encode().as_bytes()));
        self.push(record.seq, record.epoch, record.offset_blocks, record.chain_crc, record.flags, &bytes);
    }

    /// The records so far.
    pub fn records(&self) -> Vec<RecordDesc> {
        let all = decode_entries(&self.entries, self.entries.len() / ENTRY_BYTES);
        let mut all = Entries::share(all.expect("entries that were encoded here"));
        let with_entries = |desc: &Desc| RecordDesc {
            seq: desc.seq,
            epoch: desc.epoch,
            offset_blocks: desc.offset_blocks,
            chain_crc: desc.chain_crc,
            flags: desc.flags,
            entries: all.split_to(desc.entries).expect("as many as were put in"),
        };
        self.records.iter().map(with_entries).collect()
    }

    /// Writes the summary into `out`, which has exactly its length.
    pub fn encode_into(&self, tails: SummaryTails, out: &mut [u8], geometry: &Geometry, uuid: Uuid, secret: u32) {
        assert_eq!(out.len(), geometry.summary_blocks() as usize * BLOCK_BYTES, "length of a summary");
        let entries = self.entries.len() / ENTRY_BYTES;
        let usage = SummaryUsage { records: self.records.len(), entries };
        assert!(usage.bytes() <= out.len() && !self.records.is_empty(), "the head closes a segment in time");
        out.fill(0);
        let first = &self.records[0];
        let mut raw = SummaryHeaderRaw::new_zeroed();
        raw.magic = *MAGIC;
        raw.segment = self.segment.0.into();
        raw.uuid = *uuid.as_bytes();
        raw.first_seq = first.seq.0.into();
        raw.first_epoch = first.epoch.0.into();
        raw.first_epoch_start = self.first_epoch_start.0.into();
        raw.previous_crc = self.previous_crc.into();
        raw.records = (self.records.len() as u16).into();
        raw.entries = (entries as u16).into();
        raw.log_tail = tails.log_tail.0.into();
        raw.dirty_tail = tails.dirty_tail.0.into();
        raw.durable = tails.durable.0.into();
        out[..SUMMARY_HEADER_BYTES].copy_from_slice(raw.as_bytes());
        let mut at = SUMMARY_HEADER_BYTES;
        for record in &self.records {
            let delta = record.epoch.0 - first.epoch.0;
            let desc = RecordDescRaw {
                chain_crc: record.chain_crc.into(),
                epoch_delta: u16::try_from(delta).expect("the head begins a segment in time").into(),
                entries: record.entries as u8,
                flags: record.flags.0 as u8,
            };
            let bytes = desc.as_bytes();
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        }
        out[at..at + self.entries.len()].copy_from_slice(&self.entries);
        let crc = crc::block_crc(out, secret);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
    }
}
