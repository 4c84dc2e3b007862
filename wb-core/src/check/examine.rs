//! Looking at everything, changing nothing. The result is what reports, plans and repairs go by.

use super::census::Census;
use super::report::{Finding, Report, Severity};
use super::segment::{Payload, SegmentImage};
use super::view::{LogSource, LogView, SegmentPlaces};
use super::{CheckError, CheckOptions, Progress, block_name};
use crate::format::{
    Anchor, BadSegments, RecordFlags, RecordHeader, SegmentStart, SegmentSummary, Superblock, VolumeTable,
};
use crate::io::{Disk, IoError};
use crate::log::ScannedRecord;
use crate::log::chain::records_of_summary;
use crate::meta::{MetaError, MetaView, read_view};
use crate::types::*;

/// Most findings of one kind that are named one by one.
const FINDINGS_MAX: usize = 1000;

/// Most lost records that are listed: a hostile image can claim any number.
const LOST_MAX: usize = 1_000_000;

/// A header that is rotten though the summary knows the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderDamage {
    /// What is wrong with it.
    pub problem: String,
    /// What to write in its place.
    pub header: RecordHeader,
}

/// A payload that fails its checksum or cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rot {
    /// The block.
    pub addr: BlockAddr,
    /// Record that holds the version.
    pub seq: Seq,
    /// Where it lies.
    pub slot: Slot,
    /// It is the version that counts.
    pub live: bool,
    /// And the backing device does not have it.
    pub dirty: bool,
    /// The device does not give it at all.
    pub unreadable: bool,
}

/// Everything that was seen.
#[derive(Debug, Clone)]
pub struct Examination {
    /// Every copy of the metadata.
    pub meta: MetaView,
    /// The superblock that counts.
    pub superblock: Superblock,
    /// The volume table, if a copy is left.
    pub volumes: Option<VolumeTable>,
    /// The bad segments; none if the bitmap is lost.
    pub bad: BadSegments,
    /// What is wrong with the bitmap, if it is lost.
    pub bad_problem: Option<String>,
    /// The anchor was rebuilt from the log: both slots are lost, or an epoch exists that neither knows.
    pub rebuilt_anchor: Option<String>,
    /// No anchor could be rebuilt.
    pub no_anchor: Option<String>,
    /// The log.
    pub log: LogView,
    /// Rotten headers under summaries.
    pub headers: Vec<HeaderDamage>,
    /// Segments whose summary counts though newer records lie there: what was read of the log is not to be trusted.
    pub outdated: Vec<SegmentNo>,
    /// Closed segments without a valid summary.
    pub summaries: Vec<(SegmentNo, String)>,
    /// Rotten payload.
    pub rot: Vec<Rot>,
    /// Bridged records that are lost below the dirty tail of their repair: older copies must not be read.
    pub stale_below: Option<Seq>,
    /// Payload blocks verified.
    pub verified_blocks: u64,
}

impl Examination {
    /// Refuses caches with features that only newer versions may change.
    pub(super) fn check_writable(&self) -> Result<(), CheckError> {
        match self.superblock.ro_compat {
            0 => Ok(()),
            bits => Err(MetaError::ReadOnlyFeatures(bits).into()),
        }
    }
}

/// Looks at everything.
pub async fn examine<D: Disk>(
    disk: &D,
    options: CheckOptions,
    progress: &mut impl FnMut(Progress),
) -> Result<Examination, CheckError> {
    let mut found = survey(disk, progress).await?;
    found.verify(disk, options, progress).await.map_err(CheckError::Cache)?;
    found.look_at_bridges(disk).await.map_err(CheckError::Cache)?;
    Ok(found)
}

/// Looks at metadata and chain only, as a start of the daemon does.
pub async fn survey<D: Disk>(disk: &D, progress: &mut impl FnMut(Progress)) -> Result<Examination, CheckError> {
    let meta = read_view(disk).await;
    let superblock = meta.usable_superblock()?.clone();
    let segments = u64::from(superblock.geometry.segments);
    let (bad, bad_problem) = match meta.bad_segments() {
        Ok(bad) => (bad, None),
        Err(problem) => (BadSegments::none(&superblock.geometry), Some(problem.to_string())),
    };
    let mut tell = |done| progress(Progress { what: "reading the log", done, total: segments });
    let mut chosen = choose_anchor(disk, &meta, &superblock, &mut tell).await.map_err(CheckError::Cache)?;
    let mut log = read_log(disk, &meta, &superblock, &bad, &chosen, &mut tell).await?;
    if log.refusal.is_some() && chosen.rebuilt.is_none() {
        let census = Census::take(disk, &superblock, &mut tell).await.map_err(CheckError::Cache)?;
        if census.newest_epoch().is_some_and(|epoch| epoch > chosen.anchor.epoch) {
            // Both slots held the anchor of that epoch before its first record was written.
            chosen = from_census(census);
            log = read_log(disk, &meta, &superblock, &bad, &chosen, &mut tell).await?;
        }
    }
    Ok(Examination {
        volumes: meta.volumes().cloned(),
        meta,
        superblock,
        bad,
        bad_problem,
        rebuilt_anchor: chosen.rebuilt,
        no_anchor: chosen.impossible,
        log,
        headers: Vec::new(),
        outdated: Vec::new(),
        summaries: Vec::new(),
        rot: Vec::new(),
        stale_below: None,
        verified_blocks: 0,
    })
}

struct ChosenAnchor {
    anchor: Anchor,
    rebuilt: Option<String>,
    impossible: Option<String>,
    census: Option<Census>,
}

/// The newest anchor; if there is none, one made from the log.
async fn choose_anchor<D: Disk>(
    disk: &D,
    meta: &MetaView,
    superblock: &Superblock,
    progress: &mut impl FnMut(u64),
) -> Result<ChosenAnchor, IoError> {
    if let Some(anchor) = meta.anchor() {
        return Ok(ChosenAnchor { anchor: anchor.clone(), rebuilt: None, impossible: None, census: None });
    }
    Ok(from_census(Census::take(disk, superblock, progress).await?))
}

async fn read_log<D: Disk>(
    disk: &D,
    meta: &MetaView,
    superblock: &Superblock,
    bad: &BadSegments,
    chosen: &ChosenAnchor,
    progress: &mut impl FnMut(u64),
) -> Result<LogView, CheckError> {
    let durable = meta.anchors.iter().flatten().map(|anchor| anchor.durable).max();
    let source = LogSource {
        superblock,
        volumes: meta.volumes(),
        bad,
        anchor: &chosen.anchor,
        durable_hint: durable.unwrap_or(Seq(0)),
    };
    LogView::read(disk, source, chosen.census.as_ref(), progress).await.map_err(CheckError::Cache)
}

fn from_census(census: Census) -> ChosenAnchor {
    let (anchor, impossible) = match census.rebuild_anchor() {
        Ok(anchor) => (anchor, None),
        Err(problem) => (Anchor { clean: None, ..Anchor::first() }, Some(problem)),
    };
    let rebuilt = Some(match census.records {
        0 => "no record is left to rebuild them from: the log counts as empty".to_owned(),
        records => format!(
            "rebuilt from the newest of {records} records: epoch {}, log tail {}, dirty tail {}; what was written back \
             since is written back again",
            anchor.epoch, anchor.log_tail, anchor.dirty_tail
        ),
    });
    ChosenAnchor { anchor, rebuilt, impossible, census: Some(census) }
}

impl Examination {
    /// Every header under a summary, and with `verify_data` every payload.
    async fn verify<D: Disk>(
        &mut self,
        disk: &D,
        options: CheckOptions,
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), IoError> {
        let total = self.log.segments.len() as u64;
        let segments = std::mem::take(&mut self.log.segments);
        for (number, places) in segments.iter().enumerate() {
            progress(Progress { what: "verifying segments", done: number as u64, total });
            // Headers that count without a summary have just been verified by the walk.
            let last = number + 1 == segments.len();
            if places.from_summary || options.verify_data || !last {
                let image = SegmentImage::read(disk, &self.superblock, places.segment).await?;
                self.verify_segment(&image, places, options, last);
            }
        }
        self.log.segments = segments;
        Ok(())
    }

    fn verify_segment(&mut self, image: &SegmentImage, places: &SegmentPlaces, options: CheckOptions, last: bool) {
        let summary = image.summary(&self.superblock);
        if places.from_summary {
            let Ok(summary) = &summary else { return };
            if image.current_summary(&self.superblock).is_err() {
                self.outdated.push(image.segment);
                return;
            }
            self.compare_headers(image, summary);
        } else if !last && !places.records.iter().any(|record| record.span > 1) {
            let stale = |summary: &SegmentSummary| summary.first_seq() != places.records[0].seq;
            match &summary {
                Err(problem) => self.summaries.push((places.segment, problem.clone())),
                Ok(summary) if stale(summary) => {
                    self.summaries.push((places.segment, "is that of an earlier use".into()));
                }
                Ok(_) => {}
            }
        }
        if !options.verify_data {
            return;
        }
        let records: Vec<ScannedRecord> = match (places.from_summary, summary) {
            (true, Ok(summary)) => records_of_summary(summary),
            _ => {
                let headers = places.records.iter().map(|place| image.header(&self.superblock, place.offset_blocks));
                headers.flatten().map(ScannedRecord::from).collect()
            }
        };
        for record in &records {
            self.verify_payload(image, record);
        }
    }

    fn compare_headers(&mut self, image: &SegmentImage, summary: &SegmentSummary) {
        let mut previous_crc = summary.previous_crc;
        let mut epoch = (summary.records[0].epoch, summary.first_epoch_start);
        for record in &summary.records {
            if record.epoch != epoch.0 {
                epoch = (record.epoch, record.seq);
            }
            let problem = match image.header(&self.superblock, record.offset_blocks) {
                Ok(header) if header.seq == record.seq && header.chain_crc == record.chain_crc => {
                    let agree = record.entries == header.entries && header.epoch == record.epoch;
                    (!agree).then(|| "does not say what the segment's summary says".to_owned())
                }
                Ok(header) => Some(format!("there is record {} in its place", header.seq)),
                Err(problem) => Some(problem),
            };
            if let Some(problem) = problem {
                let header = RecordHeader {
                    flags: RecordFlags(record.flags.0 | RecordFlags::REPAIRED),
                    epoch: epoch.0,
                    epoch_start: epoch.1,
                    seq: record.seq,
                    previous_crc,
                    segment: image.segment,
                    offset_blocks: record.offset_blocks,
                    span: 1,
                    log_tail: summary.log_tail,
                    dirty_tail: summary.dirty_tail,
                    durable: summary.durable,
                    wall_unix_ns: 0,
                    payload_blocks: record.payload_blocks(),
                    chain_crc: record.chain_crc,
                    entries: record.entries.to_vec(),
                };
                self.headers.push(HeaderDamage { problem, header });
            }
            previous_crc = record.chain_crc;
        }
    }

    fn verify_payload(&mut self, image: &SegmentImage, record: &ScannedRecord) {
        for (entry, block) in record.entries_with_blocks() {
            let Some(block) = block.filter(|_| !entry.mask.is_empty()) else { continue };
            self.verified_blocks += 1;
            let state = image.payload(block, entry.crc);
            if state == Payload::Good {
                continue;
            }
            let slot = self.superblock.geometry.slot(image.segment, block);
            let live = self.log.live.is_live(entry.addr, slot);
            let dirty = live && self.log.live.block(entry.addr).is_some_and(|version| version.dirty);
            let unreadable = state == Payload::Unreadable;
            self.rot.push(Rot { addr: entry.addr, seq: record.seq, slot, live, dirty, unreadable });
        }
    }

    /// Finds the newest record number below which clean copies must not be read, because a record that was lost after it
    /// had been written back may have had newer data.
    async fn look_at_bridges<D: Disk>(&mut self, disk: &D) -> Result<(), IoError> {
        for bridged in self.log.bridged.clone() {
            let image = SegmentImage::read(disk, &self.superblock, bridged.segment).await?;
            let Ok(header) = image.header(&self.superblock, bridged.offset_blocks) else { continue };
            if bridged.first < header.dirty_tail && self.has_stale(bridged.last, header.dirty_tail) {
                self.stale_below = self.stale_below.max(Some(bridged.last));
            }
        }
        for gap in &self.log.gaps {
            if gap.first < self.log.anchor.dirty_tail && self.has_stale(gap.last, self.log.anchor.dirty_tail) {
                self.stale_below = self.stale_below.max(Some(gap.last));
            }
        }
        Ok(())
    }

    fn has_stale(&self, last: Seq, dirty_tail: Seq) -> bool {
        self.log.live.blocks().any(|(_, version)| version.seq < last && version.seq < dirty_tail && !version.dirty)
    }

    /// Everything found, worst first.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.judge_metadata(&mut findings);
        self.judge_log(&mut findings);
        self.judge_payload(&mut findings);
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        findings
    }

    fn judge_metadata(&self, out: &mut Vec<Finding>) {
        let mut add = |severity, place: String, what: String| {
            out.push(Finding { severity, place, what, corrected: false });
        };
        for (copy, result) in self.meta.superblocks.iter().enumerate() {
            if let Err(problem) = result {
                add(Severity::Warning, format!("superblock copy {copy}"), problem.to_string());
            }
        }
        // A crash while a copy is written leaves it torn: only after a clean stop is it damage.
        let one_copy = if self.log.clean { Severity::Warning } else { Severity::Note };
        let both = self.volumes.is_none();
        for (copy, result) in self.meta.volumes.iter().enumerate() {
            if let Err(problem) = result {
                let severity = if both { Severity::Error } else { one_copy };
                add(severity, format!("volume table copy {copy}"), problem.to_string());
            }
        }
        for (index, copies) in self.meta.bad_segments.iter().enumerate() {
            let both = copies.iter().all(Result::is_err);
            for (copy, result) in copies.iter().enumerate() {
                if let Err(problem) = result {
                    let severity = if both { Severity::Error } else { one_copy };
                    add(severity, format!("bad-segment bitmap block {index} copy {copy}"), problem.to_string());
                }
            }
        }
        for (slot, result) in self.meta.anchors.iter().enumerate() {
            if let Err(problem) = result {
                let severity = if self.rebuilt_anchor.is_some() { Severity::Error } else { one_copy };
                add(severity, format!("anchor slot {slot}"), problem.to_string());
            }
        }
        if let Some(how) = &self.rebuilt_anchor {
            add(Severity::Error, "anchors".into(), how.clone());
        }
        if let (true, Some(SegmentStart { segment, first, .. })) = (self.misleads(), self.log.anchor.dirty_segment) {
            let what = format!(
                "segment {segment} does not begin with the record {first} that they name: a start has to walk the whole log"
            );
            add(Severity::Warning, "anchors".into(), what);
        }
        if let Some(problem) = &self.no_anchor {
            add(Severity::Error, "anchors".into(), format!("cannot be rebuilt: {problem}"));
        }
        if self.bad.count() > 0 {
            add(Severity::Note, "bad segments".into(), format!("{} segments are used no more", self.bad.count()));
        }
    }

    /// True if the anchor names a segment for the dirty tail that does not begin with the record that it says.
    pub(super) fn misleads(&self) -> bool {
        let whole = self.rebuilt_anchor.is_none() && self.log.refusal.is_none() && self.log.gaps.is_empty();
        let is_there = |start: SegmentStart| {
            self.log.segments.iter().any(|places| {
                let first = &places.records[0];
                (places.segment, first.seq) == (start.segment, start.first)
                    && start.first_crc.is_none_or(|crc| crc == first.chain_crc)
            })
        };
        whole && self.log.anchor.dirty_segment.is_some_and(|start| !is_there(start))
    }

    fn judge_log(&self, out: &mut Vec<Finding>) {
        let mut add = |severity, place: String, what: String| {
            out.push(Finding { severity, place, what, corrected: false });
        };
        for gap in &self.log.gaps {
            let place = match gap.first >= gap.last {
                true => format!("record {}", gap.first),
                false => format!("records {} to {}", gap.first, gap.last),
            };
            let how = if gap.bridges.is_empty() { "; the log cannot be joined across it" } else { "" };
            let what = format!("lost (segment {}, block {}: {}){how}", gap.segment, gap.offset_blocks, gap.reason);
            add(Severity::Error, place, what);
        }
        if let (Some(refusal), true) = (&self.log.refusal, self.log.gaps.is_empty()) {
            add(Severity::Error, "log".into(), refusal.to_string());
        }
        for segment in &self.log.skipped {
            add(Severity::Warning, format!("segment {segment}"), "is not marked bad, yet the log steps over it".into());
        }
        for damage in &self.headers {
            let header = &damage.header;
            let place = format!("record {}", header.seq);
            let what = format!(
                "header (segment {}, block {}) {}; the segment's summary has its content",
                header.segment, header.offset_blocks, damage.problem
            );
            add(Severity::Warning, place, what);
        }
        for segment in &self.outdated {
            let what = "its summary is outdated: it hides newer records that lie there";
            add(Severity::Error, format!("segment {segment}"), what.into());
        }
        for (segment, problem) in self.summaries.iter().take(FINDINGS_MAX) {
            add(Severity::Note, format!("segment {segment}"), format!("summary {problem}; its headers are complete"));
        }
        for stray in &self.log.strays {
            let what = format!("has an entry for {}, which does not exist", block_name(stray.addr));
            add(Severity::Error, format!("record {}", stray.seq), what);
        }
        if let Some(torn) = &self.log.torn {
            let what = format!(
                "the log ends before record {} (segment {}, block {}: {}); {} complete records behind it do not count",
                torn.at, torn.segment, torn.offset_blocks, torn.reason, torn.dropped_records
            );
            add(Severity::Note, "torn tail".into(), what);
        }
        for bridged in &self.log.bridged {
            let place = format!("records {} to {}", bridged.first, bridged.last);
            add(Severity::Note, place, "were lost; an earlier repair has bridged them".into());
        }
        if let Some(below) = self.stale_below {
            let what = format!("clean copies older than record {below} may be older than the backing device");
            add(Severity::Error, "log".into(), what);
        }
    }

    fn judge_payload(&self, out: &mut Vec<Finding>) {
        for rot in self.rot.iter().take(FINDINGS_MAX) {
            let how = if rot.unreadable { "cannot be read" } else { "fails its checksum" };
            let (severity, rest) = match (rot.live, rot.dirty) {
                (true, true) => (Severity::Error, "it is the only copy"),
                (true, false) => (Severity::Warning, "the backing device has it"),
                _ => (Severity::Note, "a newer version counts"),
            };
            out.push(Finding {
                severity,
                place: block_name(rot.addr),
                what: format!("payload in record {} {how}; {rest}", rot.seq),
                corrected: false,
            });
        }
        if self.rot.len() > FINDINGS_MAX {
            out.push(Finding {
                severity: Severity::Error,
                place: "payload".into(),
                what: format!("{} more blocks are rotten", self.rot.len() - FINDINGS_MAX),
                corrected: false,
            });
        }
        let poisoned = self.log.live.poisoned_blocks();
        if poisoned > 0 {
            out.push(Finding {
                severity: Severity::Note,
                place: "poison".into(),
                what: format!("{poisoned} blocks are marked as lost until they are overwritten"),
                corrected: false,
            });
        }
    }

    /// Blocks whose newest data is lost.
    pub fn lost_blocks(&self) -> Vec<BlockAddr> {
        let mut lost: Vec<_> = self.rot.iter().filter(|rot| rot.dirty).map(|rot| rot.addr).collect();
        lost.sort();
        lost.dedup();
        lost
    }

    /// The report.
    pub fn report(&self) -> Report {
        let torn = self.log.torn.as_ref().map_or(0, |torn| torn.dropped_records);
        Report {
            uuid: self.superblock.uuid,
            findings: self.findings(),
            records_valid: self.log.records(),
            records_dropped: self.log.gaps.iter().fold(0u64, |sum, gap| sum.saturating_add(gap.len())),
            torn_tail_records: torn,
            dirty_blocks: self.log.live.dirty_blocks(),
            poisoned_blocks: self.log.live.poisoned_blocks(),
            lost_blocks: self.lost_blocks(),
            lost_records: self
                .log
                .gaps
                .iter()
                .flat_map(|gap| (gap.first.0..=gap.last.0).map(Seq))
                .take(LOST_MAX)
                .collect(),
            suspect_blocks: self.log.suspects().into_iter().collect(),
            verified_blocks: self.verified_blocks,
        }
    }
}
