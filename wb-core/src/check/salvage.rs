//! The walk over a damaged log: like `log::scan`, but it goes on behind what is lost.
//!
//! Where the chain breaks at or below D, the next record that proves itself is looked for: self-valid, a higher number,
//! and of an epoch that no later epoch cuts off (`Census`). What lies between is a [`Gap`]. Repaired headers that bridge
//! it make the chain whole again, so that the ordinary walk goes through.

use super::census::{Census, NUMBER_MAX};
use super::segment::SegmentImage;
use crate::format::{Anchor, BadSegments, RecordFlags, RecordHeader, SegmentSummary, Superblock};
use crate::io::{Disk, IoError};
use crate::log::chain::records_of_summary;
use crate::log::{ScannedRecord, ScannedSegment, TornTail};
use crate::types::*;

/// Records that are lost, and what to write so that the chain goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// First record lost.
    pub first: Seq,
    /// Last record lost.
    pub last: Seq,
    /// Where the first one would begin.
    pub segment: SegmentNo,
    /// Block within the segment.
    pub offset_blocks: u32,
    /// What is there instead.
    pub reason: String,
    /// Repaired headers to write, in order; empty if none would fit.
    pub bridges: Vec<RecordHeader>,
}

impl Gap {
    /// Records lost.
    pub(super) fn len(&self) -> u64 {
        (self.last.0 + 1).saturating_sub(self.first.0)
    }
}

/// A damaged log with everything that proves itself.
#[derive(Debug, Clone)]
pub struct Salvage {
    /// D.
    pub durable: Seq,
    /// The newest record that counts once the gaps are bridged.
    pub head: Seq,
    /// Chain value of it.
    pub head_chain_crc: u32,
    /// Where the next record goes.
    pub next: (SegmentNo, u32),
    /// What is lost, in order.
    pub gaps: Vec<Gap>,
    /// Present if something > D was cut.
    pub torn: Option<TornTail>,
    /// Segments that the log stepped over though they are not marked bad.
    pub skipped: Vec<SegmentNo>,
}

/// A place in the ring: step from the log tail's segment, and block.
type Place = (u32, u32);

struct Walk<'a> {
    superblock: &'a Superblock,
    anchor: &'a Anchor,
    bad: &'a BadSegments,
    census: &'a Census,
    durable: Seq,
    next: Seq,
    previous_crc: Option<u32>,
    epoch: Option<(Epoch, Seq)>,
    /// Behind the last record accepted, and whether its segment has a summary that counts.
    end: Place,
    closed: bool,
    /// Why the chain did not go on at `end`.
    reason: String,
    gaps: Vec<Gap>,
    skipped: Vec<SegmentNo>,
}

/// Walks the log with all its gaps. `sink` gets every segment with the records that count.
pub async fn salvage<D: Disk>(
    disk: &D,
    superblock: &Superblock,
    anchor: &Anchor,
    bad: &BadSegments,
    census: &Census,
    durable_hint: Seq,
    mut sink: impl FnMut(ScannedSegment),
) -> Result<Salvage, IoError> {
    let mut walk = Walk {
        superblock,
        anchor,
        bad,
        census,
        durable: census.durable(anchor).max(durable_hint).min(NUMBER_MAX),
        next: anchor.log_tail,
        previous_crc: None,
        epoch: None,
        end: (0, 0),
        closed: false,
        reason: "nothing was written there".into(),
        gaps: Vec::new(),
        skipped: Vec::new(),
    };
    let mut torn = None;
    for step in 0..superblock.geometry.segments {
        let image = SegmentImage::read(disk, superblock, walk.segment(step)).await?;
        let (found, cut) = walk.take_segment(step, &image);
        if let Some(found) = found {
            sink(found);
        }
        if let Some(cut) = cut {
            torn = Some(cut);
            break;
        }
    }
    if let Some(torn) = &mut torn {
        torn.dropped_records = walk.count_behind(disk, torn.at).await?;
    } else if walk.durable >= walk.next {
        walk.tail_gap();
    }
    let (step, block) = walk.end;
    Ok(Salvage {
        durable: walk.durable,
        head: Seq(walk.next.0 - 1),
        head_chain_crc: walk.previous_crc.unwrap_or(0),
        next: if walk.closed { (walk.segment(step + 1), 0) } else { (walk.segment(step), block) },
        gaps: walk.gaps,
        torn,
        skipped: walk.skipped,
    })
}

impl Walk<'_> {
    fn segment(&self, step: u32) -> SegmentNo {
        let segments = u64::from(self.superblock.geometry.segments);
        SegmentNo(((u64::from(self.anchor.log_tail_segment.0) + u64::from(step)) % segments) as u32)
    }

    fn follows(&self, seq: Seq, previous_crc: u32, epoch: Epoch, start: Seq) -> Result<(), String> {
        if seq != self.next {
            return Err(format!("there is record {seq} in place of {}", self.next));
        }
        if self.previous_crc.is_some_and(|crc| crc != previous_crc) {
            return Err(format!("record {seq} there follows another record than the one before it"));
        }
        let goes_on = match self.epoch {
            None => true,
            Some(same) if same == (epoch, start) => true,
            Some((before, _)) => epoch > before && seq == start,
        };
        match goes_on && self.census.allows(self.anchor, epoch, start, seq) {
            true => Ok(()),
            false => Err(format!("record {seq} there is of epoch {epoch}, which does not hold")),
        }
    }

    /// Whether a record may be the first one behind a gap.
    fn may_resume(&self, seq: Seq, epoch: Epoch, start: Seq) -> bool {
        let rises = self.epoch.is_none_or(|(last, last_start)| {
            (epoch == last && start == last_start) || (epoch > last && start >= self.next)
        });
        seq >= self.next && rises && self.census.allows(self.anchor, epoch, start, seq)
    }

    fn take_segment(&mut self, step: u32, image: &SegmentImage) -> (Option<ScannedSegment>, Option<TornTail>) {
        let summary = image.current_summary(self.superblock).ok().filter(|summary| self.summary_allowed(summary));
        if let Some(summary) = summary {
            let first = &summary.records[0];
            let (seq, crc, epoch, start) = (first.seq, summary.previous_crc, first.epoch, summary.first_epoch_start);
            let follows = self.follows(seq, crc, epoch, start);
            let resumes = follows.is_err() && self.may_resume(seq, epoch, start);
            if resumes && self.next > self.durable {
                return (None, Some(self.torn()));
            }
            if resumes {
                self.open_gap((step, 0), seq, crc, (epoch, start));
            }
            if follows.is_ok() || resumes {
                return self.take_summary(step, image, summary);
            }
        }
        self.take_headers(step, image)
    }

    fn summary_allowed(&self, summary: &SegmentSummary) -> bool {
        let mut epoch = (summary.records[0].epoch, summary.first_epoch_start);
        summary.records.iter().all(|record| {
            if record.epoch != epoch.0 {
                epoch = (record.epoch, record.seq);
            }
            self.census.allows(self.anchor, epoch.0, epoch.1, record.seq)
        })
    }

    fn take_summary(
        &mut self,
        step: u32,
        image: &SegmentImage,
        summary: SegmentSummary,
    ) -> (Option<ScannedSegment>, Option<TornTail>) {
        let (previous_crc, first_epoch_start) = (summary.previous_crc, summary.first_epoch_start);
        let mut records = records_of_summary(summary);
        let bad = records
            .iter()
            .position(|record| record.last_seq() > self.durable && image.incomplete(self.superblock, record).is_some());
        let problem = bad.and_then(|bad| image.incomplete(self.superblock, &records[bad]));
        records.truncate(bad.unwrap_or(records.len()));
        for record in &records {
            if self.epoch.is_none_or(|epoch| epoch.0 != record.epoch) {
                let first = record.offset_blocks == 0;
                self.epoch = Some((record.epoch, if first { first_epoch_start } else { record.seq }));
            }
            self.advance(step, record);
        }
        self.closed = bad.is_none();
        let torn = problem.map(|problem| {
            self.reason = problem;
            self.torn()
        });
        let segment = image.segment;
        let from_summary = bad.is_none();
        let found = ScannedSegment { segment, records, from_summary, previous_crc, first_epoch_start };
        (Some(found).filter(|found| !found.records.is_empty()), torn)
    }

    fn advance(&mut self, step: u32, record: &ScannedRecord) {
        self.next = record.last_seq().next();
        self.previous_crc = Some(record.chain_crc);
        self.end = (step, record.end_blocks());
        self.closed = false;
    }

    fn take_headers(&mut self, step: u32, image: &SegmentImage) -> (Option<ScannedSegment>, Option<TornTail>) {
        let mut found: Option<ScannedSegment> = None;
        let mut offset = 0;
        let mut torn = None;
        while offset < self.superblock.geometry.record_blocks() {
            let here = image.header(self.superblock, offset).and_then(|header| {
                self.follows(header.seq, header.previous_crc, header.epoch, header.epoch_start).map(|()| header)
            });
            let header = match here {
                Ok(header) => header,
                Err(problem) => {
                    if self.end == (step, offset) || (offset == 0 && self.end.0 + 1 >= step) {
                        self.reason = problem;
                    }
                    let mut behind = image.headers(self.superblock, offset);
                    let next = behind.find(|header| self.may_resume(header.seq, header.epoch, header.epoch_start));
                    let Some(header) = next else { break };
                    if self.next > self.durable {
                        torn = Some(self.torn());
                        break;
                    }
                    let place = (step, header.offset_blocks);
                    self.open_gap(place, header.seq, header.previous_crc, (header.epoch, header.epoch_start));
                    header
                }
            };
            let (previous_crc, epoch) = (header.previous_crc, (header.epoch, header.epoch_start));
            let record = ScannedRecord::from(header);
            if record.last_seq() > self.durable
                && let Some(problem) = image.incomplete(self.superblock, &record)
            {
                self.reason = problem;
                torn = Some(self.torn());
                break;
            }
            self.epoch = Some(epoch);
            self.advance(step, &record);
            offset = record.end_blocks();
            let empty = || ScannedSegment {
                segment: image.segment,
                records: Vec::new(),
                from_summary: false,
                previous_crc,
                first_epoch_start: epoch.1,
            };
            found.get_or_insert_with(empty).records.push(record);
        }
        (found, torn)
    }

    fn torn(&self) -> TornTail {
        let (step, block) = self.end;
        let full = self.closed || block >= self.superblock.geometry.record_blocks();
        let (segment, offset_blocks) = if full { (self.segment(step + 1), 0) } else { (self.segment(step), block) };
        TornTail { at: self.next, segment, offset_blocks, reason: self.reason.clone(), dropped_records: 0 }
    }

    /// Complete records at or behind the cut that no longer count.
    async fn count_behind<D: Disk>(&self, disk: &D, cut: Seq) -> Result<u64, IoError> {
        let mut count = 0;
        for step in self.end.0..self.superblock.geometry.segments {
            let image = SegmentImage::read(disk, self.superblock, self.segment(step)).await?;
            let behind = image.headers(self.superblock, 0).filter(|header| {
                header.seq >= cut && self.census.allows(self.anchor, header.epoch, header.epoch_start, header.seq)
            });
            count += behind.count() as u64;
        }
        Ok(count)
    }

    /// Everything from the end to `to`, where record `seq` was found, is lost.
    fn open_gap(&mut self, to: Place, seq: Seq, previous_crc: u32, epoch: (Epoch, Seq)) {
        let lost = seq.0 - self.next.0;
        let positions = self.positions(to, lost);
        let (step, block) = self.end;
        let full = self.closed || block >= self.superblock.geometry.record_blocks();
        let (segment, offset_blocks) = if full { (self.segment(step + 1), 0) } else { (self.segment(step), block) };
        let bridges = match lost {
            0 => Vec::new(),
            _ => self.bridges(&positions, to, seq, previous_crc, epoch),
        };
        self.gaps.push(Gap {
            first: self.next,
            last: Seq(seq.0.max(1) - 1),
            segment,
            offset_blocks,
            reason: self.reason.clone(),
            bridges,
        });
        self.next = seq;
        self.previous_crc = Some(previous_crc);
        self.epoch = None;
    }

    /// D says that more was durable than is left.
    fn tail_gap(&mut self) {
        let seq = self.durable.next();
        let geometry = &self.superblock.geometry;
        let (step, block) = self.end;
        let mut to = (step, geometry.record_blocks());
        if self.closed || block >= geometry.record_blocks() {
            let free = (step + 1..geometry.segments).find(|step| !self.bad.is_bad(self.segment(*step)));
            // A full ring has no place for a header: the gap stays without one.
            to.0 = free.unwrap_or(geometry.segments);
        }
        let newest = (self.anchor.epoch, self.anchor.epoch_start);
        let epoch = self.epoch.filter(|_| newest.1 < self.next || newest.1 > self.durable).unwrap_or(newest);
        // Any value will do as long as the next record names it, too.
        let chain_crc = self.previous_crc.unwrap_or(0) ^ 0x7265_7061;
        self.open_gap(to, seq, chain_crc, epoch);
        if let Some(last) = self.gaps.last().and_then(|gap| gap.bridges.last()) {
            self.end = (to.0, last.offset_blocks + last.blocks());
            self.closed = false;
        }
    }

    /// Where repaired headers must stand: at the beginning of every segment that the gap touches, and if there is none,
    /// where the chain broke. A segment that the log cannot have used is stepped over.
    fn positions(&mut self, to: Place, lost: u64) -> Vec<Place> {
        let (step, block) = self.end;
        let room = !self.closed && block < self.superblock.geometry.record_blocks();
        // Before the first record the segment of the log tail itself needs a header.
        let fresh = self.previous_crc.is_none();
        if to.0 == step {
            return vec![(step, block)];
        }
        if to.0 >= self.superblock.geometry.segments {
            return Vec::new();
        }
        let first = if fresh { step } else { step + 1 };
        let last = u64::from(to.1 > 0);
        let mut between: Vec<u32> = (first..to.0).filter(|step| !self.bad.is_bad(self.segment(*step))).collect();
        if between.len() as u64 + last > lost {
            let skipped: Vec<_> = between.drain(..).map(|step| self.segment(step)).collect();
            self.skipped.extend(skipped);
        }
        let mut positions: Vec<Place> = between.into_iter().map(|step| (step, 0)).collect();
        if to.1 > 0 {
            positions.push((to.0, 0));
        }
        if positions.is_empty() && room {
            positions.push((step, block));
        }
        positions
    }

    /// Headers at `positions` that stand for the lost records up to `seq`, the last one leading over to it.
    fn bridges(
        &self,
        positions: &[Place],
        to: Place,
        seq: Seq,
        previous_crc: u32,
        (epoch, epoch_start): (Epoch, Seq),
    ) -> Vec<RecordHeader> {
        let newer = (epoch, epoch_start);
        // What ran before is not known where the log begins with a gap; an older epoch that begins there will do.
        let before = match self.epoch {
            Some(before) => before,
            None if epoch_start > self.next => (Epoch(epoch.0 - 1), self.next),
            None => newer,
        };
        let before = if epoch_start <= self.next { newer } else { before };
        // A new epoch that begins within the gap must begin with a header of its own.
        let boundary = (before != newer && epoch_start < seq).then_some(epoch_start);
        let mut positions = positions.to_vec();
        if let (Some(_), [only]) = (boundary, &positions[..]) {
            let second = (only.0, only.1 + 1);
            positions.push(second);
        }
        let count = positions.len() as u64;
        if count == 0 || count > seq.0 - self.next.0 {
            return Vec::new();
        }
        // Numbers: the first header of each epoch takes what is left over, the others one each.
        let first_end = boundary.unwrap_or(seq);
        let in_first = (first_end.0 - self.next.0).min(count - u64::from(boundary.is_some()));
        let mut bridges = Vec::new();
        let (mut at, mut chain) = (self.next, self.previous_crc.unwrap_or(0));
        for (number, (step, block)) in positions.iter().enumerate() {
            let number = number as u64;
            let (own_epoch, end, left) = match number < in_first {
                true => (before, first_end, in_first - number),
                false => (newer, seq, count - number),
            };
            let span = end.0 - at.0 - (left - 1);
            let next = positions.get(number as usize + 1);
            let limit = match next {
                Some((same, next)) if same == step => *next,
                None if to.0 == *step => to.1,
                _ => self.superblock.geometry.record_blocks(),
            };
            let is_last = number + 1 == count;
            let chain_crc = if is_last { previous_crc } else { chain.rotate_left(5) ^ 0x6272_6964 };
            bridges.push(RecordHeader {
                flags: RecordFlags(RecordFlags::REPAIRED),
                epoch: own_epoch.0,
                epoch_start: own_epoch.1,
                seq: at,
                previous_crc: chain,
                segment: self.segment(*step),
                offset_blocks: *block,
                span: u32::try_from(span).unwrap_or(u32::MAX),
                log_tail: self.anchor.log_tail,
                dirty_tail: self.anchor.dirty_tail,
                durable: self.durable,
                wall_unix_ns: 0,
                payload_blocks: limit.saturating_sub(block + 1),
                chain_crc,
                entries: Vec::new(),
            });
            (at, chain) = (Seq(at.0 + span), chain_crc);
        }
        bridges
    }
}
