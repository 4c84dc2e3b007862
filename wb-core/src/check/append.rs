//! Appending to the log without the engine: range entries only, at the beginning of a free segment.
//!
//! Before anything is appended the log as found is settled as recovery would do it: flush, then anchors in both slots
//! with D = head and a new epoch, so that a torn tail can never come back.

use super::CheckError;
use super::examine::Examination;
use super::repair::Backup;
use crate::format::{Anchor, Entry, RecordFlags, RecordHeader, SummaryUsage};
use crate::io::{Disk, IoError};
use crate::log::scan::read_summary;
use crate::meta::{next_anchor_generation, read_at, write_anchor_both, write_at};
use crate::types::*;

/// What an anchor of these tools says of who served: nobody.
pub(super) fn unserved(anchor: &Anchor, now_unix_ns: u64) -> Anchor {
    Anchor { boot_id: [0; 16], ram_tail_id: [0; 16], wall_unix_ns: now_unix_ns, clean: None, ..anchor.clone() }
}

/// Makes the log end for good where it was found to end. Returns the anchor that says so, with the generation that the
/// next one needs.
pub(super) async fn settle<D: Disk>(
    disk: &D,
    found: &Examination,
    backup: &mut impl Backup,
    now_unix_ns: u64,
) -> Result<Anchor, CheckError> {
    forget_dropped(disk, found, backup).await?;
    disk.flush().await.map_err(CheckError::Cache)?;
    let mut anchor = unserved(&found.log.anchor, now_unix_ns);
    anchor.generation = next_anchor_generation(disk, &found.superblock).await;
    let epoch = anchor.epoch.0.checked_add(1).filter(|_| found.log.head.0 < u64::MAX >> 2);
    anchor.epoch = Epoch(epoch.ok_or_else(|| CheckError::Damaged("its numbers cannot be true".into()))?);
    anchor.epoch_start = found.log.head.next();
    anchor.durable = found.log.head;
    anchor.dirty_segment = anchor.dirty_segment.filter(|start| start.first <= found.log.head);
    anchor.generation = write_anchor_both(disk, &found.superblock, &anchor).await?.saturating_add(1);
    Ok(anchor)
}

/// Clears what would lead on from the end of the log in an epoch to come: the header of the record that was cut off there,
/// and summaries that name such records. What is appended goes to a segment of its own and does not overwrite them, and
/// two epochs later their numbers are below the newest epoch's start again [record 5 dropped; a repair appends another
/// record 5 in the next segment; after the start behind that the walk takes the dropped one, and the other is in its way].
async fn forget_dropped<D: Disk>(disk: &D, found: &Examination, backup: &mut impl Backup) -> Result<(), CheckError> {
    let superblock = &found.superblock;
    let geometry = &superblock.geometry;
    let (last, block) = found.log.next;
    let mut doomed: Vec<ByteOffset> = Vec::new();
    if block > 0 && block < geometry.record_blocks() {
        let offset = geometry.block_offset(last, block);
        let bytes = read_at(disk, offset, BLOCK_BYTES).await;
        let decode = |bytes: &[u8]| {
            RecordHeader::decode(bytes, geometry, last, block, superblock.uuid, superblock.secret).is_ok()
        };
        doomed.extend(bytes.is_ok_and(|bytes| decode(&bytes)).then_some(offset));
    }
    let behind = std::iter::successors(Some(geometry.next_segment(last)), |at| Some(geometry.next_segment(*at)));
    let next_good = behind.take(geometry.segments as usize).find(|segment| !found.bad.is_bad(*segment));
    for segment in std::iter::once(last).chain(next_good) {
        if read_summary(disk, superblock, segment).await.is_ok_and(|summary| summary.last_seq() > found.log.head) {
            let blocks = geometry.record_blocks()..geometry.segment_blocks();
            doomed.extend(blocks.map(|block| geometry.block_offset(segment, block)));
        }
    }
    for offset in doomed {
        save(disk, offset, backup).await?;
        write_at(disk, offset, &[0; BLOCK_BYTES]).await.map_err(CheckError::Cache)?;
    }
    Ok(())
}

/// Appends `entries` to a log that was settled with `anchor`, and makes them durable. Returns the new head.
pub(super) async fn append<D: Disk>(
    disk: &D,
    found: &Examination,
    anchor: &Anchor,
    entries: &[Entry],
    backup: &mut impl Backup,
    now_unix_ns: u64,
) -> Result<Seq, CheckError> {
    let superblock = &found.superblock;
    let geometry = &superblock.geometry;
    let mut segments = free_segments(found);
    let mut segment = segments.next().ok_or(CheckError::NoSpace)?;
    let (mut offset_blocks, mut usage) = (0, SummaryUsage::default());
    let (mut head, mut chain) = (found.log.head, found.log.head_chain_crc);
    for entries in entries.chunks(RECORD_ENTRIES_MAX) {
        if offset_blocks == geometry.record_blocks() || !usage.fits(1, entries.len(), geometry) {
            segment = segments.next().ok_or(CheckError::NoSpace)?;
            (offset_blocks, usage) = (0, SummaryUsage::default());
        }
        let header = RecordHeader {
            flags: RecordFlags(RecordFlags::CLOSES_FLUSH_GROUP),
            epoch: anchor.epoch,
            epoch_start: anchor.epoch_start,
            seq: head.next(),
            previous_crc: chain,
            segment,
            offset_blocks,
            span: 1,
            log_tail: anchor.log_tail,
            dirty_tail: anchor.dirty_tail,
            durable: anchor.durable,
            wall_unix_ns: now_unix_ns,
            payload_blocks: 0,
            chain_crc: 0,
            entries: entries.to_vec(),
        };
        let mut block = header.encode(superblock.uuid, superblock.secret);
        chain = header.seal_into(&mut block, entries.len(), superblock.uuid, superblock.secret);
        let offset = geometry.block_offset(segment, offset_blocks);
        save(disk, offset, backup).await?;
        write_at(disk, offset, &block).await.map_err(CheckError::Cache)?;
        head = head.next();
        offset_blocks += 1;
        usage = SummaryUsage { records: usage.records + 1, entries: usage.entries + entries.len() };
    }
    disk.flush().await.map_err(CheckError::Cache)?;
    Ok(head)
}

/// Segments that the log will use next: not bad, and without a record that counts.
fn free_segments(found: &Examination) -> impl Iterator<Item = SegmentNo> {
    let geometry = found.superblock.geometry;
    let (next, block) = found.log.next;
    let first = if block == 0 { next } else { geometry.next_segment(next) };
    let used: std::collections::BTreeSet<_> = found.log.segments.iter().map(|places| places.segment).collect();
    let ring = std::iter::successors(Some(first), move |segment| Some(geometry.next_segment(*segment)));
    // The ring is used in order: behind the first used segment nothing is free.
    ring.take(geometry.segments as usize)
        .take_while(move |segment| !used.contains(segment))
        .filter(|segment| !found.bad.is_bad(*segment))
}

/// Saves a block before it is replaced; one that cannot be read cannot be saved.
pub(super) async fn save<D: Disk>(disk: &D, offset: ByteOffset, backup: &mut impl Backup) -> Result<(), CheckError> {
    match read_at(disk, offset, BLOCK_BYTES).await {
        Ok(bytes) => backup.save(offset, &bytes).map_err(CheckError::Backup),
        Err(IoError::Gone) => Err(CheckError::Cache(IoError::Gone)),
        Err(_) => Ok(()),
    }
}
