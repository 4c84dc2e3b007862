//! What a dead instance left in its tail.

use super::layout::{DurableCell, TailControl, TailIdentity, TailLayout, UNFINISHED_RANGE_KIND};
use super::{TailError, TailName};
use crate::format::{ENTRY_BYTES, Entry, EntryRaw, FIXED_HEADER_BYTES, RecordFlags, RecordHeader, Superblock, crc32c};
use crate::io::{Buf, Region};
use crate::types::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zerocopy::FromBytes;

/// What a record that was not sealed is sealed with.
#[derive(Debug, Clone, Copy)]
pub struct Seal {
    /// Oldest valid record.
    pub log_tail: Seq,
    /// Oldest record not written back.
    pub dirty_tail: Seq,
    /// Now.
    pub wall_unix_ns: u64,
}

/// A record of the tail, sealed: what belongs on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundRecord {
    /// Its number.
    pub seq: Seq,
    /// Where it belongs.
    pub segment: SegmentNo,
    /// Block of its header within the segment.
    pub offset_blocks: u32,
    /// Payload blocks behind the header.
    pub payload_blocks: u32,
    /// Its header is the one beside the buffer.
    beside: bool,
    buffer: usize,
}

/// A tail that has been judged. Every record in it is sealed, and its payload has the checksums of its entries.
pub struct Examined {
    region: Arc<Region>,
    layout: TailLayout,
    /// Whose it is.
    pub identity: TailIdentity,
    /// D when the instance died.
    pub durable: Seq,
    /// The records beyond D, in order.
    pub records: Vec<FoundRecord>,
    /// Those of them that had not been sealed.
    pub sealed_now: u64,
    /// Reservations that were never filled.
    pub unfinished: u64,
}

impl Examined {
    /// The newest record; D if there is none beyond.
    pub fn head(&self) -> Seq {
        self.records.last().map_or(self.durable, |record| record.seq)
    }

    /// The bytes of a record as they belong on the device.
    pub fn bytes_of(&self, record: &FoundRecord) -> Buf {
        let mut bytes = Buf::unpooled((1 + record.payload_blocks as usize) * BLOCK_BYTES);
        self.region.copy_out(self.layout.buffer_offset(record.buffer), &mut bytes);
        if record.beside {
            self.region.copy_out(self.layout.header_offset(record.buffer), &mut bytes[..BLOCK_BYTES]);
        }
        bytes
    }
}

/// Takes a tail whose instance is dead, and seals in it what was not sealed. May be cut off anywhere and repeated.
/// `ignore_unfinished` is a planted bug: what was reserved and never filled takes no room.
pub fn examine(
    region: Arc<Region>,
    name: TailName,
    superblock: &Superblock,
    seal: Seal,
    ignore_unfinished: bool,
) -> Result<Examined, TailError> {
    if region.len() < 2 * BLOCK_BYTES {
        return Err(TailError::Damaged { name, reason: format!("it has {} bytes", region.len()) });
    }
    let mut block = [0; BLOCK_BYTES];
    region.copy_out(0, &mut block);
    let (identity, layout) = TailIdentity::decode(&block, name, region.len())?;
    let mut found =
        Examined { region, layout, identity, durable: Seq(0), records: Vec::new(), sealed_now: 0, unfinished: 0 };
    let damaged = |reason: String| TailError::Damaged { name, reason };
    let cells = [0, 1].map(|number| found.layout.cell_offset(number));
    let words = |cell: usize| [cell, cell + 8].map(|at| found.region.word(at).load(Ordering::Acquire));
    let cells = cells.map(words).map(|[seq, check]| DurableCell::decode(seq, check));
    let newest = cells.into_iter().flatten().max_by_key(|cell| cell.seq);
    let DurableCell { seq: durable, chain_crc } = newest.ok_or_else(|| damaged("D is not readable".into()))?;
    found.durable = durable;
    let mut sealing =
        Sealing { found: &found, superblock, seal, ignore_unfinished, chain_crc, unsealed: 0, unfinished: 0 };
    let mut records = Vec::new();
    for (expected, (seq, buffer)) in (durable.0 + 1..).zip(sealing.beyond_durable()) {
        if seq.0 != expected {
            return Err(damaged(format!("record {expected} is missing, {seq} follows")));
        }
        records.push(sealing.record(seq, buffer).map_err(|reason| damaged(format!("record {seq}: {reason}")))?);
    }
    let Sealing { unsealed, unfinished, .. } = sealing;
    (found.records, found.sealed_now, found.unfinished) = (records, unsealed, unfinished);
    Ok(found)
}

struct Sealing<'a> {
    found: &'a Examined,
    superblock: &'a Superblock,
    seal: Seal,
    ignore_unfinished: bool,
    /// Chain value of the record before.
    chain_crc: u32,
    unsealed: u64,
    unfinished: u64,
}

impl Sealing<'_> {
    fn word(&self, buffer: usize, word: usize) -> u64 {
        self.found.region.word(self.found.layout.control_offset(buffer) + word).load(Ordering::Acquire)
    }

    /// Number and buffer of the records beyond D, in order.
    fn beyond_durable(&self) -> Vec<(Seq, usize)> {
        let all = (0..self.found.layout.buffers).map(|buffer| (Seq(self.word(buffer, TailControl::SEQ)), buffer));
        let mut beyond: Vec<(Seq, usize)> = all.filter(|(seq, _)| *seq > self.found.durable).collect();
        beyond.sort_unstable();
        beyond
    }

    fn record(&mut self, seq: Seq, buffer: usize) -> Result<FoundRecord, String> {
        let (segment, offset_blocks) = TailControl::halves(self.word(buffer, TailControl::PLACE));
        let segment = SegmentNo(segment);
        let geometry = &self.superblock.geometry;
        let max = (self.found.layout.buffer_bytes / BLOCK_BYTES - 1) as u32;
        if segment.0 >= geometry.segments || offset_blocks >= geometry.record_blocks() {
            return Err(format!("it would lie in segment {segment}, block {offset_blocks}"));
        }
        let at = |offset: usize| {
            let mut block = [0; BLOCK_BYTES];
            self.found.region.copy_out(offset, &mut block);
            block
        };
        let layout = &self.found.layout;
        let in_place = at(layout.buffer_offset(buffer));
        let beside = self.word(buffer, TailControl::SEALED_IN_RECOVERY) == seq.0;
        let sealed = if beside { at(layout.header_offset(buffer)) } else { in_place };
        let Superblock { uuid, secret, .. } = *self.superblock;
        let header = RecordHeader::decode(&sealed, geometry, segment, offset_blocks, uuid, secret);
        let (header, beside) = match header {
            Ok(header) if header.seq == seq => (header, beside),
            Ok(header) => return Err(format!("its header is that of record {}", header.seq)),
            Err(error) if beside => return Err(error.to_string()),
            Err(_) => (self.seal_now(seq, buffer, segment, offset_blocks, &in_place)?, true),
        };
        if (header.epoch, header.epoch_start) != (self.found.identity.epoch, self.found.identity.epoch_start) {
            return Err(format!("it has epoch {}", header.epoch));
        }
        if header.previous_crc != self.chain_crc {
            return Err("it follows another record than the one before it".into());
        }
        if header.payload_blocks > max || offset_blocks + header.blocks() > geometry.record_blocks() {
            return Err(format!("{} payload blocks from block {offset_blocks} on", header.payload_blocks));
        }
        self.chain_crc = header.chain_crc;
        let payload_blocks = header.payload_blocks;
        let record = FoundRecord { seq, segment, offset_blocks, payload_blocks, beside, buffer };
        self.check_payload(&record, &header)?;
        Ok(record)
    }

    fn check_payload(&self, record: &FoundRecord, header: &RecordHeader) -> Result<(), String> {
        let bytes = self.found.bytes_of(record);
        for (entry, block) in header.entries_with_blocks() {
            let Some(block) = block.filter(|_| !entry.mask.is_empty()) else { continue };
            let start = (block - record.offset_blocks) as usize * BLOCK_BYTES;
            if crc32c(&bytes[start..start + BLOCK_BYTES]) != entry.crc {
                return Err(format!("block {} was published and fails its checksum", entry.addr.block()));
            }
        }
        Ok(())
    }

    /// Seals a record that was never sealed: no byte of it has been sent. The new header lies beside the buffer, whose
    /// own entries stay as they are.
    fn seal_now(
        &mut self,
        seq: Seq,
        buffer: usize,
        segment: SegmentNo,
        offset_blocks: u32,
        in_place: &[u8],
    ) -> Result<RecordHeader, String> {
        let (entries, payload) = TailControl::halves(self.word(buffer, TailControl::RESERVED));
        if entries as usize > RECORD_ENTRIES_MAX {
            return Err(format!("{entries} entries"));
        }
        let entries = self.entries(in_place, entries as usize)?;
        let owned = entries.iter().filter(|entry| entry.kind.has_payload()).count() as u32;
        if owned != payload && !self.ignore_unfinished {
            return Err(format!("{payload} payload blocks are reserved, entries for {owned}"));
        }
        let mut header = RecordHeader {
            flags: RecordFlags::default(),
            epoch: self.found.identity.epoch,
            epoch_start: self.found.identity.epoch_start,
            seq,
            previous_crc: self.chain_crc,
            segment,
            offset_blocks,
            span: 1,
            log_tail: self.seal.log_tail,
            dirty_tail: self.seal.dirty_tail,
            durable: self.found.durable,
            wall_unix_ns: self.seal.wall_unix_ns,
            payload_blocks: owned,
            chain_crc: 0,
            entries,
        };
        let block = header.encode(self.superblock.uuid, self.superblock.secret);
        header.chain_crc = u32::from_le_bytes(block[8..12].try_into().expect("four bytes"));
        // Whole before it is said to be there; and there before a byte of it is sent.
        self.found.region.copy_in(self.found.layout.header_offset(buffer), &block);
        let control = self.found.layout.control_offset(buffer);
        self.found.region.word(control + TailControl::SEALED_IN_RECOVERY).store(seq.0, Ordering::Release);
        self.unsealed += 1;
        Ok(header)
    }

    /// The entries that were published, and voids where a payload block was reserved and never filled.
    fn entries(&mut self, block: &[u8], count: usize) -> Result<Vec<Entry>, String> {
        let raws = block[FIXED_HEADER_BYTES..].chunks_exact(ENTRY_BYTES).take(count);
        let mut entries = Vec::with_capacity(count);
        for raw in raws {
            let raw = EntryRaw::read_from_bytes(raw).expect("size of an entry");
            if raw.kind == UNFINISHED_RANGE_KIND {
                self.unfinished += 1;
                continue;
            }
            let entry = match Entry::decode(&raw) {
                // The first word may be there already.
                Ok(entry) if entry.kind == Entry::VOID.kind => {
                    self.unfinished += 1;
                    if self.ignore_unfinished {
                        continue;
                    }
                    Entry::VOID
                }
                Ok(entry) => entry,
                Err(error) => return Err(error.to_string()),
            };
            entries.push(entry);
        }
        Ok(entries)
    }
}
