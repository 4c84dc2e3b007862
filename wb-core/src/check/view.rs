//! The log as tools see it: where every record lies, which version of each block counts, what is lost.

use super::census::Census;
use super::live::LiveMap;
use super::salvage::{Gap, salvage};
use crate::format::{Anchor, BadSegments, EntryKind, RecordFlags, Superblock, VolumeTable};
use crate::io::{Disk, IoError};
use crate::log::{ScanError, ScannedSegment, TornTail, scan};
use crate::types::*;
use std::collections::BTreeSet;

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordPlace {
    /// Its number.
    pub seq: Seq,
    /// Record numbers it stands for.
    pub span: u32,
    /// Block of its header within the segment.
    pub offset_blocks: u32,
    /// Its chain value.
    pub chain_crc: u32,
}

/// The records of a segment that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentPlaces {
    /// The segment.
    pub segment: SegmentNo,
    /// Its summary counts.
    pub from_summary: bool,
    /// The records in order.
    pub records: Vec<RecordPlace>,
}

/// An entry that cannot be: its volume does not exist, or does not have that block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stray {
    /// The record.
    pub seq: Seq,
    /// The block.
    pub addr: BlockAddr,
}

/// Most strays that are named one by one.
const STRAYS_MAX: usize = 100;

/// The log of a cache.
#[derive(Debug, Clone)]
pub struct LogView {
    /// The anchor gone by.
    pub anchor: Anchor,
    /// D.
    pub durable: Seq,
    /// The newest record that counts.
    pub head: Seq,
    /// Chain value of it.
    pub head_chain_crc: u32,
    /// Where the next record goes.
    pub next: (SegmentNo, u32),
    /// Segments of the log in order.
    pub segments: Vec<SegmentPlaces>,
    /// Which version of each block counts.
    pub live: LiveMap,
    /// Present if something > D was cut.
    pub torn: Option<TornTail>,
    /// The clean mark holds.
    pub clean: bool,
    /// What recovery would refuse with, if it would.
    pub refusal: Option<ScanError>,
    /// What is lost.
    pub gaps: Vec<Gap>,
    /// Segments that the log stepped over though they are not marked bad.
    pub skipped: Vec<SegmentNo>,
    /// Entries that cannot be, the first hundred.
    pub strays: Vec<Stray>,
    /// Number of entries that cannot be.
    pub stray_count: u64,
    /// Records that an earlier repair has bridged.
    pub bridged: Vec<Bridged>,
}

/// Lost records that an earlier repair has bridged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bridged {
    /// First record lost.
    pub first: Seq,
    /// Last record lost.
    pub last: Seq,
    /// The segment of the repaired header.
    pub segment: SegmentNo,
    /// Its block.
    pub offset_blocks: u32,
}

/// Takes in the segments of a log.
struct Collector<'a> {
    superblock: &'a Superblock,
    volumes: Option<&'a VolumeTable>,
    dirty_tail: Seq,
    segments: Vec<SegmentPlaces>,
    live: LiveMap,
    strays: Vec<Stray>,
    stray_count: u64,
    bridged: Vec<Bridged>,
}

impl Collector<'_> {
    fn take(&mut self, found: ScannedSegment) {
        let geometry = &self.superblock.geometry;
        let mut places = Vec::with_capacity(found.records.len());
        for record in &found.records {
            if record.flags.has(RecordFlags::REPAIRED) && record.entries.is_empty() {
                self.bridged.push(Bridged {
                    first: record.seq,
                    last: record.last_seq(),
                    segment: found.segment,
                    offset_blocks: record.offset_blocks,
                });
            }
            for (entry, block) in record.entries_with_blocks() {
                if entry.kind != EntryKind::Void && self.is_stray(entry.addr, entry.blocks) {
                    self.stray_count += 1;
                    if self.strays.len() < STRAYS_MAX {
                        self.strays.push(Stray { seq: record.seq, addr: entry.addr });
                    }
                    continue;
                }
                let slot = block.map(|block| geometry.slot(found.segment, block));
                self.live.apply(entry, slot, record.seq, self.dirty_tail);
            }
            places.push(RecordPlace {
                seq: record.seq,
                span: record.span,
                offset_blocks: record.offset_blocks,
                chain_crc: record.chain_crc,
            });
        }
        self.segments.push(SegmentPlaces { segment: found.segment, from_summary: found.from_summary, records: places });
    }

    fn is_stray(&self, addr: BlockAddr, blocks: u64) -> bool {
        let Some(volumes) = self.volumes else { return false };
        volumes.get(addr.volume()).is_none_or(|volume| addr.block() + blocks > volume.blocks())
    }
}

/// What a walk over the log needs to know.
#[derive(Debug, Clone, Copy)]
pub struct LogSource<'a> {
    /// The superblock.
    pub superblock: &'a Superblock,
    /// The volumes; without them entries are not judged.
    pub volumes: Option<&'a VolumeTable>,
    /// The bad segments.
    pub bad: &'a BadSegments,
    /// The anchor to go by.
    pub anchor: &'a Anchor,
    /// D as known from both anchors.
    pub durable_hint: Seq,
}

impl LogView {
    /// Walks the log as recovery does; where recovery would refuse, on behind what is lost. A census that was already
    /// taken is used in place of a new one.
    pub async fn read<D: Disk>(
        disk: &D,
        source: LogSource<'_>,
        census: Option<&Census>,
        progress: &mut impl FnMut(u64),
    ) -> Result<LogView, IoError> {
        let LogSource { superblock, volumes, bad, anchor, durable_hint } = source;
        let collector = || Collector {
            superblock,
            volumes,
            dirty_tail: anchor.dirty_tail,
            segments: Vec::new(),
            live: LiveMap::new(),
            strays: Vec::new(),
            stray_count: 0,
            bridged: Vec::new(),
        };
        let mut taken = collector();
        let walked =
            scan(disk, superblock, anchor, bad, anchor.log_start(), durable_hint, async |found| taken.take(found))
                .await;
        let refusal = match walked {
            Ok(scan) => {
                let mut view = LogView::new(anchor.clone(), taken);
                (view.durable, view.head, view.head_chain_crc, view.next) =
                    (scan.durable, scan.head, scan.head_chain_crc, scan.next);
                (view.torn, view.clean) = (scan.torn, scan.clean);
                return Ok(view);
            }
            Err(ScanError::Io { error: IoError::Gone, .. }) => return Err(IoError::Gone),
            Err(refusal) => refusal,
        };
        let own;
        let census = match census {
            Some(census) => census,
            None => {
                own = Census::take(disk, superblock, progress).await?;
                &own
            }
        };
        let mut taken = collector();
        let saved = salvage(disk, superblock, anchor, bad, census, durable_hint, |found| taken.take(found)).await?;
        let mut view = LogView::new(anchor.clone(), taken);
        (view.durable, view.head, view.head_chain_crc, view.next) =
            (saved.durable, saved.head, saved.head_chain_crc, saved.next);
        (view.torn, view.gaps, view.skipped) = (saved.torn, saved.gaps, saved.skipped);
        view.refusal = Some(refusal);
        Ok(view)
    }

    fn new(anchor: Anchor, taken: Collector<'_>) -> LogView {
        LogView {
            anchor,
            durable: Seq(0),
            head: Seq(0),
            head_chain_crc: 0,
            next: (SegmentNo(0), 0),
            segments: taken.segments,
            live: taken.live,
            torn: None,
            clean: false,
            refusal: None,
            gaps: Vec::new(),
            skipped: Vec::new(),
            strays: taken.strays,
            stray_count: taken.stray_count,
            bridged: taken.bridged,
        }
    }

    /// Records that count.
    pub fn records(&self) -> u64 {
        self.segments.iter().map(|segment| segment.records.len() as u64).sum()
    }
    /// The segment that holds record `seq`, and its place there.
    pub fn find(&self, seq: Seq) -> Option<(SegmentNo, RecordPlace)> {
        let behind = self.segments.partition_point(|segment| segment.records[0].seq <= seq);
        let segment = &self.segments[behind.checked_sub(1)?];
        let behind = segment.records.partition_point(|record| record.seq <= seq);
        let place = segment.records[behind.checked_sub(1)?];
        (seq.0 < place.seq.0.saturating_add(place.span.into())).then_some((segment.segment, place))
    }
    /// The records of a segment that count; none if it is not part of the log.
    pub fn places(&self, segment: SegmentNo) -> Option<&SegmentPlaces> {
        self.segments.iter().find(|places| places.segment == segment)
    }
    /// Blocks whose newest version is older than a lost record, and which that record may therefore have overwritten.
    pub fn suspects(&self) -> BTreeSet<BlockAddr> {
        let lost = self.gaps.iter().filter(|gap| gap.last >= self.anchor.dirty_tail).map(|gap| gap.last).max();
        let Some(lost) = lost else { return BTreeSet::new() };
        self.live.blocks().filter(|(_, version)| version.seq < lost).map(|(addr, _)| addr).collect()
    }
}
