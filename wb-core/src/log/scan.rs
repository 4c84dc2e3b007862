//! The walk over the log at start-up and in `wb-check`: what is in the log, what is durable, where it ends.
//!
//! 1. Walk the ring from the log tail, or from the segment of the dirty tail (what lies before it is only cache): a summary
//!    is taken if the chain runs through it, else the segment's headers are read one after the other. The walk ends at the
//!    first place where the chain does not go on.
//! 2. Look behind the end: every self-valid header there that the current epoch allows says how much was durable when
//!    it was sealed. D is the maximum over these, everything walked and the anchors.
//! 3. If D lies beyond the end, something durable is missing: **corruption**, nothing is cut.
//! 4. Else the records > D are read whole and their payload CRCs checked. The first failure is a **torn tail**: the log
//!    ends before it.
//!
//! Summaries are read in ring order with a deep queue; memory is bounded by the records beyond D.

use super::chain::{Broken, Chain, ScannedRecord, records_of_summary};
use crate::format::{Anchor, BadSegments, FormatError, RecordHeader, SegmentStart, SegmentSummary, Superblock, crc32c};
use crate::io::{Buf, Disk, IoError};
use crate::types::*;
use futures_util::{StreamExt, stream};

/// Reads in flight while summaries are read: 2 MiB of buffers, and as many as a fast device can use.
const QUEUE_DEPTH: usize = 256;
/// Segments behind the end of the log that are looked at together.
const BEHIND_STEP: usize = 64;
/// How many segments without any evidence end the search behind the end of the log. Everything ≤ D was durable, so
/// evidence for a damaged record lies right behind it; the margin covers damage of this many segments in a row.
const GAP_SEGMENTS_MAX: usize = 256;

/// A segment of the live log with the records that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedSegment {
    /// The segment.
    pub segment: SegmentNo,
    /// Its records in order; at least one.
    pub records: Vec<ScannedRecord>,
    /// True if they came from its summary: the segment is closed.
    pub from_summary: bool,
    /// Chain value of the record before the first.
    pub previous_crc: u32,
    /// First record of the epoch of the first.
    pub first_epoch_start: Seq,
}

/// Where and why the log was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The record that is missing or torn.
    pub at: Seq,
    /// Where it would be.
    pub segment: SegmentNo,
    /// Block within the segment.
    pub offset_blocks: u32,
    /// What is wrong with it.
    pub reason: String,
    /// Complete records at or behind the cut that do not count.
    pub dropped_records: u64,
}

/// What the walk found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogScan {
    /// D, as far as the media prove it.
    pub durable: Seq,
    /// The newest record that counts.
    pub head: Seq,
    /// Chain value of it.
    pub head_chain_crc: u32,
    /// Where the next record goes: segment and block. The block may be at the segment's end.
    pub next: (SegmentNo, u32),
    /// Records that count.
    pub records: u64,
    /// Segments that hold them.
    pub segments: u32,
    /// Present if something was cut.
    pub torn: Option<TornTail>,
    /// True if the anchor's clean mark holds: nothing was written after it.
    pub clean: bool,
}

/// Why the walk cannot say how the log ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// Reading failed.
    #[error("reading the cache device at offset {offset} failed: {error}")]
    Io {
        /// Where.
        offset: u64,
        /// How.
        error: IoError,
    },
    /// A durable record is damaged or missing.
    #[error(
        "record {at} (segment {segment}, block {offset_blocks}) is damaged though everything up to record {durable} \
         was durable: {reason}"
    )]
    Corrupt {
        /// The record.
        at: Seq,
        /// Where it should be.
        segment: SegmentNo,
        /// Block within the segment.
        offset_blocks: u32,
        /// D.
        durable: Seq,
        /// What is wrong with it.
        reason: String,
    },
}

/// Tries of a read that fails with an error of the medium. A header that cannot be read looks like the end of the log:
/// a passing error must not cut off what was flushed [one EIO on the newest record, D not yet anchored].
const READ_TRIES: usize = 5;

/// Reads a range of a device into a new buffer.
pub async fn read_range<D: Disk>(disk: &D, offset: ByteOffset, len: usize) -> Result<Buf, ScanError> {
    let mut buf = Buf::unpooled(len);
    for attempt in 1.. {
        let result;
        (result, buf) = disk.read(offset.0, buf).await;
        match result {
            Ok(()) => break,
            Err(IoError::Medium) if attempt < READ_TRIES => {}
            Err(error) => return Err(ScanError::Io { offset: offset.0, error }),
        }
    }
    Ok(buf)
}

/// Reads a whole segment. Blocks that cannot be read are filled with a pattern: one bad sector under some payload must
/// not keep the cache from starting, and one under a header counts as damage there.
pub async fn read_segment<D: Disk>(disk: &D, superblock: &Superblock, segment: SegmentNo) -> Result<Buf, ScanError> {
    let geometry = &superblock.geometry;
    let whole = read_range(disk, geometry.segment_offset(segment), geometry.segment_bytes as usize).await;
    let Err(ScanError::Io { error: IoError::Medium | IoError::Other(_), .. }) = whole else { return whole };
    let mut bytes = Buf::unpooled(geometry.segment_bytes as usize);
    for block in 0..geometry.segment_blocks() {
        let target = &mut bytes[block as usize * BLOCK_BYTES..][..BLOCK_BYTES];
        match read_range(disk, geometry.block_offset(segment, block), BLOCK_BYTES).await {
            Ok(read) => target.copy_from_slice(&read),
            Err(ScanError::Io { error: IoError::Gone, offset }) => {
                return Err(ScanError::Io { error: IoError::Gone, offset });
            }
            // No magic begins so, and zeroes would have the checksum of a block of zeroes.
            Err(_) => target.fill(0xdb),
        }
    }
    Ok(bytes)
}

/// The self-valid header at the beginning of a segment, read alone; one that cannot be read is none.
pub async fn read_first_header<D: Disk>(
    disk: &D,
    superblock: &Superblock,
    segment: SegmentNo,
) -> Result<Result<RecordHeader, String>, ScanError> {
    match read_range(disk, superblock.geometry.segment_offset(segment), BLOCK_BYTES).await {
        Ok(bytes) => Ok(header_at(&bytes, superblock, segment, 0).map_err(|error| error.to_string())),
        Err(ScanError::Io { error: error @ (IoError::Medium | IoError::Other(_)), .. }) => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

/// The self-valid header at a block of a segment that was read whole.
pub fn header_at(
    bytes: &[u8],
    superblock: &Superblock,
    segment: SegmentNo,
    offset_blocks: u32,
) -> Result<RecordHeader, FormatError> {
    let block = &bytes[offset_blocks as usize * BLOCK_BYTES..][..BLOCK_BYTES];
    RecordHeader::decode(block, &superblock.geometry, segment, offset_blocks, superblock.uuid, superblock.secret)
}

/// Whether every payload of a record in a segment that was read whole has its CRC. Gives the first block that has not.
pub fn first_bad_payload(bytes: &[u8], record: &ScannedRecord) -> Option<u32> {
    record.entries_with_blocks().find_map(|(entry, block)| {
        let block = block?;
        let payload = &bytes[block as usize * BLOCK_BYTES..][..BLOCK_BYTES];
        let counts = !entry.mask.is_empty();
        (counts && crc32c(payload) != entry.crc).then_some(block)
    })
}

struct Walk<'a, D: Disk> {
    disk: &'a D,
    superblock: &'a Superblock,
    anchor: &'a Anchor,
    bad: &'a BadSegments,
    /// The segments that the walk may come to, in ring order.
    ring: Vec<SegmentNo>,
    chain: Chain,
    durable: Seq,
    /// Segments whose records are not yet known to be ≤ D.
    pending: std::collections::VecDeque<ScannedSegment>,
    next: (SegmentNo, u32),
    records: u64,
    segments: u32,
    /// Chain value of the last record that was handed over.
    kept_crc: u32,
    /// Why the chain does not go on at `next`.
    reason: String,
    /// A summary behind the end names records that would go on with the log: something was written there.
    summary_behind: bool,
}

/// Walks the log from `start` on, which is its beginning or a later segment of it. `sink` gets every segment in log order,
/// with the records that count.
///
/// `durable_hint` is D as known from elsewhere (both anchors; the caller passes their maximum).
pub async fn scan<D: Disk>(
    disk: &D,
    superblock: &Superblock,
    anchor: &Anchor,
    bad: &BadSegments,
    start: SegmentStart,
    durable_hint: Seq,
    mut sink: impl AsyncFnMut(ScannedSegment),
) -> Result<LogScan, ScanError> {
    let geometry = &superblock.geometry;
    let before = geometry.distance(anchor.log_tail_segment, start.segment);
    let ring = (0..geometry.segments - before).map(|step| geometry.segment_after(start.segment, step));
    let mut walk = Walk {
        disk,
        superblock,
        anchor,
        bad,
        ring: ring.collect(),
        chain: Chain::new(anchor, start),
        durable: anchor.durable.max(durable_hint),
        pending: Default::default(),
        next: (start.segment, 0),
        records: 0,
        segments: 0,
        kept_crc: 0,
        reason: "nothing was written there".into(),
        summary_behind: false,
    };
    let walked = walk.walk_ring(&mut sink).await?;
    let behind = walk.look_behind(walked).await?;
    if walk.durable > walk.chain.head() {
        let (segment, offset_blocks) = walk.next;
        return Err(ScanError::Corrupt {
            at: walk.chain.next_seq(),
            segment,
            offset_blocks,
            durable: walk.durable,
            reason: walk.reason,
        });
    }
    let mut torn = (behind > 0).then(|| walk.torn_here(walk.chain.next_seq(), behind));
    if let Some(at) = walk.verify_tail(&mut sink, behind).await? {
        torn = Some(at);
    }
    let head = torn_at(&torn).map_or(walk.chain.head(), |at| Seq(at.0 - 1));
    // [record 2 and its summary are written in one piece and torn: the summary is whole, the header is not; a start that goes
    // on in the same epoch has other records there, and the summary may be taken for theirs].
    let marked = torn.is_none() && !walk.summary_behind && anchor.clean.is_some_and(|mark| mark.head == head);
    let clean = marked && walk.next_is_readable().await?;
    Ok(LogScan {
        durable: walk.durable,
        head,
        head_chain_crc: walk.kept_crc,
        next: walk.next,
        records: walk.records,
        segments: walk.segments,
        clean,
        torn,
    })
}

fn torn_at(torn: &Option<TornTail>) -> Option<Seq> {
    torn.as_ref().map(|torn| torn.at)
}

impl<D: Disk> Walk<'_, D> {
    /// True if the place where the log goes on can be read. What cannot may be a record after all, written since the clean
    /// mark, and be one again when what is written there next is lost: only a new epoch excludes it then [clean stop, start,
    /// record 2 torn and unreadable in a power cut; another record 2 there in the same epoch, lost in the next power cut; the
    /// first one can be read again, and counts].
    async fn next_is_readable(&self) -> Result<bool, ScanError> {
        let geometry = &self.superblock.geometry;
        let (mut segment, mut block) = self.next;
        // The log goes on in good segments only.
        for _ in 0..geometry.segments {
            if block < geometry.record_blocks() && !self.bad.is_bad(segment) {
                break;
            }
            (segment, block) = (geometry.next_segment(segment), 0);
        }
        // The summary behind it, too: one that was written with such a record, and cannot be read now, may be read later.
        let summary_bytes = geometry.summary_blocks() as usize * BLOCK_BYTES;
        for (offset, len) in
            [(geometry.block_offset(segment, block), BLOCK_BYTES), (geometry.summary_offset(segment), summary_bytes)]
        {
            match read_range(self.disk, offset, len).await {
                Ok(_) => {}
                Err(error @ ScanError::Io { error: IoError::Gone, .. }) => return Err(error),
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn torn_here(&self, at: Seq, dropped_records: u64) -> TornTail {
        let (segment, offset_blocks) = self.next;
        TornTail { at, segment, offset_blocks, reason: self.reason.clone(), dropped_records }
    }

    /// Step 1. Gives the number of ring positions, from the start, that the walk has looked at and left behind.
    async fn walk_ring(&mut self, sink: &mut impl AsyncFnMut(ScannedSegment)) -> Result<u32, ScanError> {
        let ring = self.ring.clone();
        let (disk, superblock) = (self.disk, self.superblock);
        let mut summaries = stream::iter(ring.iter().copied())
            .map(|segment| read_summary(disk, superblock, segment))
            .buffered(QUEUE_DEPTH);
        let mut position = 0;
        // The chain before the last segment, if that one was taken from its summary.
        let mut before: Option<Chain> = None;
        while let Some(summary) = summaries.next().await {
            let segment = ring[position as usize];
            let chain = self.chain.clone();
            let mut found = self.take_segment(segment, summary.ok()).await?;
            if found.is_none()
                && !self.bad.is_bad(segment)
                && let Some(before) = before.take()
                && self.retake_by_headers(before).await?
            {
                let summary = read_summary(disk, superblock, segment).await;
                found = self.take_segment(segment, summary.ok()).await?;
            }
            match found {
                Some(found) => {
                    before = found.from_summary.then_some(chain);
                    self.pending.push_back(found);
                }
                None if self.bad.is_bad(segment) => {}
                None => break,
            }
            position += 1;
            self.release(sink, 1).await;
        }
        if let Some(before) = before {
            self.retake_by_headers(before).await?;
        }
        Ok(position)
    }

    async fn take_segment(
        &mut self,
        segment: SegmentNo,
        summary: Option<SegmentSummary>,
    ) -> Result<Option<ScannedSegment>, ScanError> {
        let Some(summary) = summary.filter(|summary| self.chain.accept_summary(summary).is_ok()) else {
            return self.walk_headers(segment).await;
        };
        self.durable = self.durable.max(summary.durable);
        self.next = (self.superblock.geometry.next_segment(segment), 0);
        let (previous_crc, first_epoch_start) = (summary.previous_crc, summary.first_epoch_start);
        let records = records_of_summary(summary);
        Ok(Some(ScannedSegment { segment, records, from_summary: true, previous_crc, first_epoch_start }))
    }

    /// Where the walk ends behind a segment that was taken from its summary, its headers must agree: a summary may be
    /// older than the records [segment closed, power fails, its summary survives and its last record does not, another
    /// takes its place]. Headers win if one of them is valid there, follows, and is another record. True if they did.
    async fn retake_by_headers(&mut self, before: Chain) -> Result<bool, ScanError> {
        let Some(last) = self.pending.back().filter(|last| last.from_summary) else { return Ok(false) };
        let (segment, old) = (last.segment, last.records.clone());
        let kept = (std::mem::replace(&mut self.chain, before), self.next, self.reason.clone());
        let found = self.walk_headers(segment).await?;
        let other = found.as_ref().is_some_and(|found| {
            found.records.iter().zip(&old).any(|(new, old)| new.chain_crc != old.chain_crc && new.epoch > old.epoch)
        });
        if other {
            *self.pending.back_mut().expect("just seen") = found.expect("it has records");
        } else {
            (self.chain, self.next, self.reason) = kept;
        }
        Ok(other)
    }

    /// Walks the headers of a segment from its first block.
    async fn walk_headers(&mut self, segment: SegmentNo) -> Result<Option<ScannedSegment>, ScanError> {
        let geometry = self.superblock.geometry;
        // The first header alone tells most of the segments that are not part of the log.
        let probe = read_first_header(self.disk, self.superblock, segment).await?;
        let (previous_crc, first_epoch_start) = match self.try_accept(probe, true) {
            Ok(header) => (header.previous_crc, header.epoch_start),
            Err(reason) => {
                self.reason = reason;
                return Ok(None);
            }
        };
        let bytes = read_segment(self.disk, self.superblock, segment).await?;
        let mut records: Vec<ScannedRecord> = Vec::new();
        let mut offset = 0;
        while offset < geometry.record_blocks() {
            let header = header_at(&bytes, self.superblock, segment, offset).map_err(|error| error.to_string());
            match self.try_accept(header, false) {
                Ok(header) => {
                    let record = ScannedRecord::from(header);
                    offset = record.end_blocks();
                    records.push(record);
                }
                Err(reason) => {
                    self.reason = reason;
                    break;
                }
            }
        }
        if records.is_empty() {
            return Ok(None);
        }
        self.next = (segment, offset);
        Ok(Some(ScannedSegment { segment, records, from_summary: false, previous_crc, first_epoch_start }))
    }

    fn try_accept(&mut self, header: Result<RecordHeader, String>, only_probe: bool) -> Result<RecordHeader, String> {
        let header = header?;
        let mut chain = self.chain.clone();
        chain.accept(&header).map_err(|broken: Broken| broken.to_string())?;
        if !only_probe {
            self.chain = chain;
            self.durable = self.durable.max(header.durable);
        }
        Ok(header)
    }

    /// Hands over what is known to be ≤ D, save the last `keep` segments.
    async fn release(&mut self, sink: &mut impl AsyncFnMut(ScannedSegment), keep: usize) {
        while self.pending.len() > keep && self.pending.front().is_some_and(|first| last_seq(first) <= self.durable) {
            let segment = self.pending.pop_front().expect("front exists");
            self.count(&segment);
            sink(segment).await;
        }
    }

    fn count(&mut self, segment: &ScannedSegment) {
        self.records += segment.records.len() as u64;
        self.segments += 1;
        self.kept_crc = segment.records.last().expect("a segment of the log has records").chain_crc;
    }

    /// Step 2. Counts the complete records behind the end and raises D by what they say.
    async fn look_behind(&mut self, walked: u32) -> Result<u64, ScanError> {
        let geometry = self.superblock.geometry;
        let mut behind = 0;
        // The rest of the segment in which the log ends, if it ends within one.
        let (segment, offset) = self.next;
        if offset > 0 && offset < geometry.record_blocks() {
            behind += self.look_into(segment, offset).await?;
            self.summary_behind |= self.summary_is_evidence(segment).await;
        }
        let rest = self.ring[walked as usize..].to_vec();
        // The segment at the break is searched whole: its first header may be the one that has rotted.
        let Some((first, rest)) = rest.split_first() else { return Ok(behind) };
        behind += self.look_into(*first, 0).await?;
        self.summary_behind |= self.summary_is_evidence(*first).await;
        let mut without = 0;
        for some in rest.chunks(BEHIND_STEP) {
            let this = &*self;
            let found: Vec<Result<(bool, bool), ScanError>> = stream::iter(some.iter().copied())
                .map(|segment| this.begins_with_evidence(segment))
                .buffered(QUEUE_DEPTH)
                .collect()
                .await;
            for (segment, evidence) in some.iter().zip(found) {
                let (by_summary, by_header) = evidence?;
                self.summary_behind |= by_summary;
                if by_summary || by_header {
                    behind += self.look_into(*segment, 0).await?;
                    without = 0;
                } else {
                    without += 1;
                }
            }
            if without > GAP_SEGMENTS_MAX {
                break;
            }
        }
        Ok(behind)
    }

    /// Whether summary or first header of a segment are evidence.
    async fn begins_with_evidence(&self, segment: SegmentNo) -> Result<(bool, bool), ScanError> {
        if self.summary_is_evidence(segment).await {
            return Ok((true, false));
        }
        let header = read_first_header(self.disk, self.superblock, segment).await?;
        Ok((false, header.is_ok_and(|header| self.is_evidence(header.epoch, header.last_seq()))))
    }

    async fn summary_is_evidence(&self, segment: SegmentNo) -> bool {
        let summary = read_summary(self.disk, self.superblock, segment).await;
        summary.is_ok_and(|summary| {
            let last = &summary.records[summary.records.len() - 1];
            self.is_evidence(last.epoch, last.seq)
        })
    }

    /// A record behind the end counts as evidence if its epoch is the current one (or a later one, which would mean that
    /// both anchors are stale) and its number lies beyond the end.
    fn is_evidence(&self, epoch: Epoch, seq: Seq) -> bool {
        seq >= self.chain.next_seq() && (epoch >= self.anchor.epoch || seq < self.anchor.epoch_start)
    }

    async fn look_into(&mut self, segment: SegmentNo, from_blocks: u32) -> Result<u64, ScanError> {
        let geometry = self.superblock.geometry;
        let bytes = read_segment(self.disk, self.superblock, segment).await?;
        let mut found = 0;
        for offset in from_blocks..geometry.record_blocks() {
            let Ok(header) = header_at(&bytes, self.superblock, segment, offset) else { continue };
            if !self.is_evidence(header.epoch, header.last_seq()) {
                continue;
            }
            self.durable = self.durable.max(header.durable);
            if header.epoch > self.anchor.epoch {
                // An epoch is anchored in both slots before its first record is written.
                self.durable = self.durable.max(header.last_seq());
                self.reason = format!("record {} is of epoch {}, which no anchor knows", header.seq, header.epoch);
            }
            found += 1;
        }
        Ok(found)
    }

    /// Step 4. Reads what is > D whole and cuts at the first record that is not complete.
    async fn verify_tail(
        &mut self,
        sink: &mut impl AsyncFnMut(ScannedSegment),
        behind: u64,
    ) -> Result<Option<TornTail>, ScanError> {
        self.release(sink, 0).await;
        let pending = std::mem::take(&mut self.pending);
        let total: u64 = pending.iter().map(|segment| segment.records.len() as u64).sum();
        let mut kept = 0;
        for mut segment in pending {
            let bytes = read_segment(self.disk, self.superblock, segment.segment).await?;
            let bad = segment.records.iter().position(|record| {
                record.last_seq() > self.durable && self.incomplete(&bytes, segment.segment, record).is_some()
            });
            let Some(bad) = bad else {
                kept += segment.records.len() as u64;
                self.count(&segment);
                sink(segment).await;
                continue;
            };
            let torn = segment.records[bad].clone();
            self.reason = self.incomplete(&bytes, segment.segment, &torn).expect("it was incomplete");
            segment.records.truncate(bad);
            segment.from_summary = false;
            kept += bad as u64;
            self.next = (segment.segment, torn.offset_blocks);
            if !segment.records.is_empty() {
                self.count(&segment);
                sink(segment).await;
            }
            return Ok(Some(self.torn_here(torn.seq, total - kept - 1 + behind)));
        }
        Ok(None)
    }

    fn incomplete(&self, bytes: &[u8], segment: SegmentNo, record: &ScannedRecord) -> Option<String> {
        match header_at(bytes, self.superblock, segment, record.offset_blocks) {
            Ok(header) if header.seq == record.seq && header.chain_crc == record.chain_crc => {
                first_bad_payload(bytes, record).map(|block| format!("its payload at block {block} fails its checksum"))
            }
            Ok(header) => Some(format!("its header is that of record {}", header.seq)),
            Err(error) => Some(error.to_string()),
        }
    }
}

fn last_seq(segment: &ScannedSegment) -> Seq {
    segment.records.last().expect("a segment of the log has records").last_seq()
}

/// The summary of a segment, if it has a valid one.
pub async fn read_summary<D: Disk>(
    disk: &D,
    superblock: &Superblock,
    segment: SegmentNo,
) -> Result<SegmentSummary, String> {
    let geometry = &superblock.geometry;
    let len = geometry.summary_blocks() as usize * BLOCK_BYTES;
    let bytes = read_range(disk, geometry.summary_offset(segment), len).await.map_err(|error| error.to_string())?;
    SegmentSummary::decode(&bytes, geometry, segment, superblock.uuid, superblock.secret)
        .map_err(|error| error.to_string())
}
