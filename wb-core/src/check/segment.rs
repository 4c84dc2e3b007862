//! One segment as it lies on the device: every header and the summary that are valid by themselves.

use crate::format::{RecordHeader, SegmentSummary, Superblock, crc32c};
use crate::io::{Buf, Disk, IoError};
use crate::log::ScannedRecord;
use crate::log::scan::header_at;
use crate::meta::read_at;
use crate::types::*;
use std::collections::BTreeSet;

/// The bytes of a segment.
pub struct SegmentImage {
    /// Which one.
    pub segment: SegmentNo,
    bytes: Buf,
    /// Blocks that could not be read; their bytes here are zero.
    pub unreadable: BTreeSet<u32>,
}

/// How a payload block compares with its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// The CRC matches.
    Good,
    /// It does not.
    Rotten,
    /// The device does not give it.
    Unreadable,
}

impl SegmentImage {
    /// Reads a whole segment; if that fails, block by block. Fails only if the device is gone.
    pub async fn read<D: Disk>(disk: &D, superblock: &Superblock, segment: SegmentNo) -> Result<Self, IoError> {
        let geometry = &superblock.geometry;
        let len = geometry.segment_bytes as usize;
        match read_at(disk, geometry.segment_offset(segment), len).await {
            Ok(bytes) => return Ok(SegmentImage { segment, bytes, unreadable: BTreeSet::new() }),
            Err(IoError::Gone) => return Err(IoError::Gone),
            Err(_) => {}
        }
        let mut image = SegmentImage { segment, bytes: Buf::unpooled(len), unreadable: BTreeSet::new() };
        for block in 0..geometry.segment_blocks() {
            match read_at(disk, geometry.block_offset(segment, block), BLOCK_BYTES).await {
                Ok(bytes) => image.bytes[block as usize * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(&bytes),
                Err(IoError::Gone) => return Err(IoError::Gone),
                Err(_) => {
                    image.unreadable.insert(block);
                }
            }
        }
        Ok(image)
    }

    /// A block's bytes.
    pub fn block(&self, block: u32) -> &[u8] {
        &self.bytes[block as usize * BLOCK_BYTES..][..BLOCK_BYTES]
    }

    /// The self-valid header at a block, or what is wrong there.
    pub fn header(&self, superblock: &Superblock, block: u32) -> Result<RecordHeader, String> {
        if self.unreadable.contains(&block) {
            return Err("cannot be read".into());
        }
        header_at(&self.bytes, superblock, self.segment, block).map_err(|error| error.to_string())
    }

    /// All self-valid headers from block `from` on, in order of position.
    pub fn headers<'a>(
        &'a self,
        superblock: &'a Superblock,
        from: u32,
    ) -> impl Iterator<Item = RecordHeader> + use<'a> {
        (from..superblock.geometry.record_blocks()).filter_map(|block| self.header(superblock, block).ok())
    }

    /// The summary, if it is that of the records which lie there now. In place of a record that it names there may be a
    /// rotten header, or an older one; a newer one means that the summary is of records that were dropped, or of an
    /// earlier lap.
    pub fn current_summary(&self, superblock: &Superblock) -> Result<SegmentSummary, String> {
        let summary = self.summary(superblock)?;
        let newer = summary.records.iter().find_map(|record| {
            let header = self.header(superblock, record.offset_blocks).ok()?;
            let is_newer = (header.epoch, header.seq) > (record.epoch, record.seq);
            is_newer.then(|| format!("is outdated: it has record {} where record {} lies", record.seq, header.seq))
        });
        newer.map_or(Ok(summary), Err)
    }

    /// The summary, or what is wrong with it.
    pub fn summary(&self, superblock: &Superblock) -> Result<SegmentSummary, String> {
        let geometry = &superblock.geometry;
        let first = geometry.record_blocks();
        if self.unreadable.range(first..).next().is_some() {
            return Err("cannot be read".into());
        }
        let bytes = &self.bytes[first as usize * BLOCK_BYTES..];
        SegmentSummary::decode(bytes, geometry, self.segment, superblock.uuid, superblock.secret)
            .map_err(|error| error.to_string())
    }

    /// Compares a payload block with the CRC of its entry.
    pub fn payload(&self, block: u32, crc: u32) -> Payload {
        if self.unreadable.contains(&block) {
            Payload::Unreadable
        } else if crc32c(self.block(block)) == crc {
            Payload::Good
        } else {
            Payload::Rotten
        }
    }

    /// Why a record that is not known to be durable is not complete, if it is not.
    pub fn incomplete(&self, superblock: &Superblock, record: &ScannedRecord) -> Option<String> {
        match self.header(superblock, record.offset_blocks) {
            Ok(header) if header.seq == record.seq && header.chain_crc == record.chain_crc => {}
            Ok(header) => return Some(format!("its header is that of record {}", header.seq)),
            Err(problem) => return Some(problem),
        }
        record.entries_with_blocks().find_map(|(entry, block)| {
            let block = block.filter(|_| !entry.mask.is_empty())?;
            let good = self.payload(block, entry.crc) == Payload::Good;
            (!good).then(|| format!("its payload at block {block} fails its checksum"))
        })
    }
}
