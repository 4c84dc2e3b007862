//! Doing what the plan says.
//!
//! Phase 1 writes metadata copies and headers in place of ones that are lost; it changes no block that proves itself.
//! Phase 2 looks again, and appends to the log: what is lost, what is to be read from the backing device, what was
//! poisoned in a part of the log that is dropped. Every write may be the last one: the next run finds what is left to
//! do, because nothing is known but what lies on the device.

use super::append::{append, save, settle, unserved};
use super::examine::{Examination, examine};
use super::plan::plan;
use super::report::Report;
use super::salvage::Gap;
use super::{CheckError, CheckOptions, Progress};
use crate::format::{Anchor, Entry, EntryKind, RecordHeader, VolumeTable};
use crate::io::Disk;
use crate::meta::{
    next_anchor_generation, write_anchor_both, write_at, write_bad_segments, write_superblock, write_volumes,
};
use crate::types::*;

/// Where blocks go before they are replaced.
pub trait Backup {
    /// Saves a block, durably before it returns. The error is for people.
    fn save(&mut self, offset: ByteOffset, block: &[u8]) -> Result<(), String>;
}

impl Backup for Vec<(ByteOffset, Vec<u8>)> {
    fn save(&mut self, offset: ByteOffset, block: &[u8]) -> Result<(), String> {
        self.push((offset, block.to_vec()));
        Ok(())
    }
}

/// How to repair.
#[derive(Debug, Clone, Copy)]
pub struct RepairOptions {
    /// What to look at; payload is repaired only if it is verified.
    pub check: CheckOptions,
    /// Now.
    pub now_unix_ns: u64,
    /// This boot, to tell whether writes of a dead daemon are still in memory. Zero: not known.
    pub boot_id: [u8; 16],
}

/// True if a daemon that died in this boot left acknowledged writes in memory. A clean mark does not say otherwise: it
/// stays from the start on until the first record is on the device, and what is acknowledged may lie in memory before
/// that. A clean stop leaves no tail.
///
/// All anchors that can be read are asked: the one that the log goes by may be one that was made up for two that are lost.
pub fn ram_tail_is_alive(found: &Examination, boot_id: [u8; 16]) -> bool {
    let names = |anchor: &Anchor| anchor.ram_tail_id != [0; 16] && boot_id != [0; 16] && anchor.boot_id == boot_id;
    std::iter::once(&found.log.anchor).chain(found.meta.anchors.iter().flatten()).any(names)
}

/// Repairs what `found`, a fresh look at `disk`, says is wrong. The report names everything that was wrong, what of it
/// is corrected, and what is lost.
pub async fn repair<D: Disk>(
    disk: &D,
    found: &Examination,
    options: RepairOptions,
    backup: &mut impl Backup,
    progress: &mut impl FnMut(Progress),
) -> Result<Report, CheckError> {
    let before = found.report();
    if plan(found).is_empty() {
        return Ok(before);
    }
    found.check_writable()?;
    if ram_tail_is_alive(found, options.boot_id) {
        return Err(CheckError::RamTail);
    }
    let cleared;
    let found = match clear_outdated(disk, found, backup).await? {
        true => {
            cleared = examine(disk, options.check, progress).await?;
            &cleared
        }
        false => found,
    };
    repair_in_place(disk, found, options, backup).await?;
    let second = examine(disk, options.check, progress).await?;
    let mut before = merge(before, second.report());
    if needs_append(&second) && second.log.refusal.is_none() {
        repair_by_append(disk, &second, options, backup).await?;
    }
    let after = examine(disk, options.check, progress).await?.report();
    before.lost_blocks.sort();
    before.lost_blocks.dedup();
    Ok(before.after_repair(after))
}

/// What the second look saw that the first could not.
fn merge(mut first: Report, second: Report) -> Report {
    first.lost_blocks.extend(second.lost_blocks);
    for finding in second.findings {
        if !first.findings.iter().any(|own| own.place == finding.place && own.what == finding.what) {
            first.findings.push(finding);
        }
    }
    first
}

/// Zeroes summaries that hide newer records, durably. True if there were any: then the log is another one than was seen.
async fn clear_outdated<D: Disk>(disk: &D, found: &Examination, backup: &mut impl Backup) -> Result<bool, CheckError> {
    let geometry = &found.superblock.geometry;
    for segment in found.outdated.iter().filter(|_| found.no_anchor.is_none()) {
        for block in geometry.record_blocks()..geometry.segment_blocks() {
            save(disk, geometry.block_offset(*segment, block), backup).await?;
        }
        let zeroes = vec![0; geometry.summary_blocks() as usize * BLOCK_BYTES];
        write_at(disk, geometry.summary_offset(*segment), &zeroes).await.map_err(CheckError::Cache)?;
    }
    if plan(found).outdated == 0 {
        return Ok(false);
    }
    disk.flush().await.map_err(CheckError::Cache)?;
    Ok(true)
}

async fn repair_in_place<D: Disk>(
    disk: &D,
    found: &Examination,
    options: RepairOptions,
    backup: &mut impl Backup,
) -> Result<(), CheckError> {
    let plan = plan(found);
    let superblock = &found.superblock;
    let geometry = &superblock.geometry;
    let pairs = [
        (plan.superblocks, [geometry.superblock_offset(0), geometry.superblock_offset(1)]),
        (plan.volumes, [geometry.volumes_offset(0), geometry.volumes_offset(1)]),
        (plan.anchors || bridges(found), [geometry.anchor_offset(0), geometry.anchor_offset(1)]),
    ];
    for offset in pairs.into_iter().filter(|pair| pair.0).flat_map(|pair| pair.1) {
        save(disk, offset, backup).await?;
    }
    if plan.superblocks {
        write_superblock(disk, superblock).await?;
    }
    if plan.volumes {
        let mut table = found.volumes.clone().unwrap_or_else(VolumeTable::empty);
        table.generation = table.generation.saturating_add(1);
        write_volumes(disk, superblock, &table).await?;
    }
    if plan.bad_segments {
        for copy in 0..2 {
            for index in 0..geometry.bad_segment_blocks {
                save(disk, geometry.bad_segments_offset(copy, index), backup).await?;
            }
        }
        let mut bad = found.bad.clone();
        bad.generation = bad.generation.saturating_add(1);
        found.log.skipped.iter().for_each(|segment| bad.mark(*segment));
        write_bad_segments(disk, superblock, &bad).await?;
    }
    if plan.anchors || bridges(found) {
        let mut anchor = found.log.anchor.clone();
        if probes_are_void(found) {
            anchor.probes.clear();
        }
        if found.misleads() || a_bridge_takes_the_place(found) {
            anchor.dirty_segment = None;
        }
        if found.rebuilt_anchor.is_some() {
            anchor = unserved(&anchor, options.now_unix_ns);
        }
        disk.flush().await.map_err(CheckError::Cache)?;
        anchor.generation = next_anchor_generation(disk, superblock).await;
        write_anchor_both(disk, superblock, &anchor).await?;
    }
    if found.no_anchor.is_some() {
        return Ok(());
    }
    let bridges = found.log.gaps.iter().flat_map(|gap| &gap.bridges);
    for header in found.headers.iter().map(|damage| &damage.header).chain(bridges) {
        write_header(disk, found, header, backup).await?;
    }
    disk.flush().await.map_err(CheckError::Cache)
}

/// True if a record is lost that was not known to be written back: a window that was broken off may have written its blocks,
/// and nothing in the log tells any more which [record written back, power fails before the anchor says so, the record is
/// lost: a probe block differs, and the start takes the disk for another one]. The next attach probes the disk anew. Before
/// the gap is bridged, for a second run would not see it.
fn probes_are_void(found: &Examination) -> bool {
    bridges(found) && found.log.gaps.iter().any(|gap| gap.last >= found.log.anchor.dirty_tail)
}

/// True if the record with which a start begins is lost, or a bridge comes to its place. Only then: a start that begins
/// behind what is lost goes on before, during and after the repair.
fn a_bridge_takes_the_place(found: &Examination) -> bool {
    let Some(start) = found.log.anchor.dirty_segment else { return false };
    let takes = |header: &RecordHeader| header.segment == start.segment && header.offset_blocks == 0;
    let is_lost = |gap: &Gap| (gap.first..=gap.last).contains(&start.first);
    bridges(found) && found.log.gaps.iter().any(|gap| is_lost(gap) || gap.bridges.iter().any(takes))
}

/// True if lost records are bridged.
fn bridges(found: &Examination) -> bool {
    found.no_anchor.is_none() && found.log.gaps.iter().any(|gap| !gap.bridges.is_empty())
}

async fn write_header<D: Disk>(
    disk: &D,
    found: &Examination,
    header: &RecordHeader,
    backup: &mut impl Backup,
) -> Result<(), CheckError> {
    let superblock = &found.superblock;
    let offset = superblock.geometry.block_offset(header.segment, header.offset_blocks);
    save(disk, offset, backup).await?;
    let block = header.encode(superblock.uuid, superblock.secret);
    write_at(disk, offset, &block).await.map_err(CheckError::Cache)
}

fn needs_append(found: &Examination) -> bool {
    found.no_anchor.is_none() && (found.stale_below.is_some() || found.rot.iter().any(|rot| rot.live))
}

/// The segment with which the log begins once everything clean before the dirty tail is dropped.
fn tail_without_clean(found: &Examination) -> (Seq, SegmentNo) {
    let dirty_tail = found.log.anchor.dirty_tail;
    let behind = found.log.segments.partition_point(|places| places.records[0].seq <= dirty_tail);
    let places = &found.log.segments[behind.saturating_sub(1)];
    (places.records[0].seq, places.segment)
}

async fn repair_by_append<D: Disk>(
    disk: &D,
    found: &Examination,
    options: RepairOptions,
    backup: &mut impl Backup,
) -> Result<(), CheckError> {
    let mut anchor = settle(disk, found, backup, options.now_unix_ns).await?;
    let mut tail = (anchor.log_tail, anchor.log_tail_segment);
    let mut entries: Vec<Entry> = Vec::new();
    if let Some(below) = found.stale_below {
        tail = tail_without_clean(found);
        let live = found.log.live.blocks();
        let stale = live.filter(|(_, version)| version.seq < below && version.seq >= tail.0 && !version.dirty);
        entries.extend(stale.map(|(addr, _)| Entry::range(addr, EntryKind::Invalidate, 1)));
        // What was lost before stays lost although its entry leaves the log.
        let poison = found.log.live.ranges().filter(|(_, piece)| piece.kind == EntryKind::Poison && piece.seq < tail.0);
        entries.extend(poison.map(|(addr, piece)| Entry::range(addr, EntryKind::Poison, piece.end - addr.0)));
    }
    let mut rot: Vec<(BlockAddr, EntryKind)> = found
        .rot
        .iter()
        .filter(|rot| rot.live)
        .map(|rot| (rot.addr, if rot.dirty { EntryKind::Poison } else { EntryKind::Invalidate }))
        .collect();
    rot.sort_by_key(|(addr, _)| *addr);
    rot.dedup();
    // Neighbours in one entry: there may be many.
    let mut rest = &rot[..];
    while let Some(&(addr, kind)) = rest.first() {
        let end = rest.iter().zip(0..).take_while(|(own, at)| **own == (BlockAddr(addr.0 + at), kind)).count();
        entries.push(Entry::range(addr, kind, end as u64));
        rest = &rest[end..];
    }
    let head = append(disk, found, &anchor, &entries, backup, options.now_unix_ns).await?;
    anchor.durable = head;
    (anchor.log_tail, anchor.log_tail_segment) = tail;
    anchor.dirty_segment = None; // it may begin anew there
    write_anchor_both(disk, &found.superblock, &anchor).await?;
    Ok(())
}
