//! What a write-back window has to do: the newest durable version of every block in a stretch of the log, or of those of
//! them that lie in a zone of the backing device.
//!
//! Only records ≤ D count, for superseding and for writing back: a version is dropped only if what superseded it is
//! durable [v1 flushed, v2 not: window drops v1, tail passes, power fails, both gone].

use super::Inner;
use super::ranges::range_kind;
use super::writeback::WindowError;
use crate::env::{Env, PlantedBug};
use crate::format::{EntryKind, RecordDesc, SegmentSummary, crc32c};
use crate::index::{RangeKind, SweepAction};
use crate::log::head::LiveSegment;
use crate::log::scan::{header_at, read_first_header, read_range, read_summary};
use crate::types::*;
use futures_util::{StreamExt, stream};
use std::ops::Range;
use std::sync::Arc;

/// Segments whose records are read at once.
const GATHER_READS: usize = 8;

/// Items sorted without letting others run.
const SORTED_AT_ONCE: usize = 1 << 15;

/// A block to be written back: 24 bytes, for a window may be most of the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub addr: BlockAddr,
    /// Slot in the upper 56 bits, mask of valid sectors below.
    place: u64,
    crc: u32,
    crc_known: bool,
}

impl Item {
    /// The CRC is unknown if neither summary nor header could be read and no CRCs are kept.
    pub fn new(addr: BlockAddr, slot: Slot, mask: SectorMask, crc: Option<u32>) -> Item {
        assert!(slot.0 >> 56 == 0, "slot numbers have 56 bits");
        let place = slot.0 << 8 | u64::from(mask.0);
        Item { addr, place, crc: crc.unwrap_or(0), crc_known: crc.is_some() }
    }
    pub fn slot(&self) -> Slot {
        Slot(self.place >> 8)
    }
    pub fn mask(&self) -> SectorMask {
        SectorMask(self.place as u8)
    }
    /// True if these bytes are the payload, as far as can be told.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        !self.crc_known || crc32c(bytes) == self.crc
    }
}

/// A range to be applied, or a poisoned one to be kept.
#[derive(Debug, Clone)]
pub(super) struct RangeItem {
    pub blocks: Range<u64>,
    pub kind: RangeKind,
    pub pos: LogPos,
}

/// Bounds of a window.
#[derive(Debug, Clone, Copy)]
pub(super) struct WindowLimits {
    /// Segments; at least one is taken.
    pub segments: usize,
    /// Items in memory, at least those of a segment.
    pub items: usize,
    /// Ranges.
    pub ranges: usize,
    /// Poisoned blocks: each is logged anew, one by one, before anything is freed.
    pub poisoned: u64,
    /// Of the stretch only this; `None`: all.
    pub zone: Option<Zone>,
}

/// A part of the backing device: from a block on as far as there are so many blocks to be written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Zone {
    pub start: u64,
    pub items: usize,
}

/// A segment of a window.
struct Stretch {
    first_seq: Seq,
    pos: LogPos,
    /// Blocks from the start of the zone on, round the device, that have to be written back until all of the segment is.
    reach: u64,
}

/// A stretch of the log to be written back, from the dirty tail up to `end`: all of it, or what lies in a zone.
pub(super) struct Window {
    /// By address; each block once.
    pub items: Vec<Item>,
    /// In log order.
    pub ranges: Vec<RangeItem>,
    /// Last record of the window.
    pub end: Seq,
    /// Segments that it has records of.
    pub segments: usize,
    /// Blocks of the zone.
    pub blocks: Range<u64>,
    stretches: Vec<Stretch>,
    poisoned: u64,
}

/// How far the dirty tail gets, and when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Step {
    /// Share of the device outside the zone that is to be written back before.
    pub ahead: f64,
    /// Log position of the tail then.
    pub pos: LogPos,
}

/// Parts of the device for which it is foreseen how far the tail gets.
const STEPS: u64 = 32;

impl Window {
    /// The dirty tail when all that the window has is on the backing device.
    pub fn tail_after(&self) -> Seq {
        let zone = self.blocks.end - self.blocks.start;
        let kept = self.stretches.iter().find(|stretch| stretch.reach > zone);
        kept.map_or(self.end.next(), |kept| kept.first_seq.min(self.end.next()))
    }
    /// Log position where the window begins.
    pub fn pos(&self) -> LogPos {
        self.stretches.first().map_or(LogPos(0), |first| first.pos)
    }
    /// The course of the dirty tail while this zone and those behind it are written back, round the device.
    pub fn foresee(&self, device_blocks: u64, segment_blocks: u64) -> Vec<Step> {
        let zone = self.blocks.end - self.blocks.start;
        let rest = device_blocks.saturating_sub(zone).max(1);
        let mut steps: Vec<Step> = Vec::new();
        let (mut part, mut pos) = (0, self.pos());
        for stretch in &self.stretches {
            let needs = (stretch.reach.saturating_sub(zone) * STEPS).div_ceil(rest).min(STEPS);
            if needs > part {
                steps.push(Step { ahead: part as f64 / STEPS as f64, pos });
                part = needs;
            }
            pos = LogPos(stretch.pos.0 + segment_blocks);
        }
        steps.push(Step { ahead: part as f64 / STEPS as f64, pos });
        steps
    }
    /// Where an address is among the items, once they are in order.
    fn position(&self, addr: BlockAddr) -> usize {
        self.items.partition_point(|item| item.addr < addr)
    }
    /// True if the block is in the window.
    pub fn contains(&self, addr: BlockAddr) -> bool {
        self.items.get(self.position(addr)).is_some_and(|item| item.addr == addr)
    }
}

impl<E: Env> Inner<E> {
    /// The records of a live segment that have been sealed, from memory, its summary, or its headers; those after
    /// `last` may be missing, for what is not durable need not be on the device yet. `None` if none of these can be read.
    pub(super) async fn records_of(&self, live: &LiveSegment, last: Seq) -> Option<Vec<RecordDesc>> {
        if let Some(records) = self.head.records_of_open(live.segment) {
            return Some(records);
        }
        if live.first_seq > last {
            return Some(Vec::new());
        }
        if let Ok(summary) = read_summary(&*self.cache, &self.superblock, live.segment).await
            && summary.first_seq() == live.first_seq
            && Some(summary.last_seq()) == live.last_seq
            // [the segment's own summary is lost, an older one with the same numbers is left, and the first header is rotten].
            && live.first_crc.is_none_or(|crc| crc == summary.records[0].chain_crc)
            && !self.is_outdated(&summary, live.segment).await
        {
            return Some(summary.records);
        }
        let offset = self.geometry.segment_offset(live.segment);
        let bytes = read_range(&*self.cache, offset, self.geometry.segment_bytes as usize).await.ok()?;
        let (mut records, mut next, mut at) = (Vec::new(), live.first_seq, 0);
        let last = live.last_seq.map_or(last, |end| end.min(last));
        while at < self.geometry.record_blocks() && next <= last {
            let header = header_at(&bytes, &self.superblock, live.segment, at).ok()?;
            if header.seq != next || at == 0 && live.first_crc.is_some_and(|crc| crc != header.chain_crc) {
                return None;
            }
            next = header.last_seq().next();
            at += header.blocks();
            records.push(RecordDesc {
                seq: header.seq,
                epoch: header.epoch,
                offset_blocks: header.offset_blocks,
                chain_crc: header.chain_crc,
                flags: header.flags,
                entries: header.entries.into(),
            });
        }
        Some(records)
    }

    /// True if a summary is of records that were dropped, whose numbers and place others have taken since [power fails,
    /// the log is cut before this segment, it is written again, power fails, the new summary is lost]. The first header
    /// of the segment tells; one that is rotten proves nothing.
    async fn is_outdated(&self, summary: &SegmentSummary, segment: SegmentNo) -> bool {
        let header = read_first_header(&*self.cache, &self.superblock, segment).await;
        matches!(header, Ok(Ok(header)) if header.chain_crc != summary.records[0].chain_crc)
    }

    /// The index entries whose slots are in a segment: the reverse map when nothing else can be read.
    pub(super) async fn entries_by_sweep(&self, live: &LiveSegment) -> Vec<(BlockAddr, crate::index::Entry)> {
        // Reclaim may come here beside a window.
        let _turn = self.writeback.sweeping.lock().await;
        let mut found = Vec::new();
        for shard in 0..self.index.shard_count() {
            let mut sweep = self.index.sweep(shard).expect("one sweep at a time");
            loop {
                let more = sweep.step(1024, |addr, entry| {
                    if self.geometry.slot_parts(entry.slot).0 == live.segment {
                        found.push((addr, entry));
                    }
                    SweepAction::Keep
                });
                if !more {
                    break;
                }
                self.env.yield_now().await;
            }
        }
        found
    }

    /// Collects what the records from `from` up to D have to do, as far as the limits reach; always some, if there is any.
    ///
    /// The segment that is being filled comes last and only if it is needed: alone, or if `to` lies in it.
    pub(super) async fn gather(
        self: &Arc<Self>,
        limits: WindowLimits,
        from: Seq,
        to: Seq,
        durable: (Seq, LogPos),
    ) -> Result<Window, WindowError> {
        let start = limits.zone.map_or(0, |zone| zone.start);
        let mut window = Window {
            items: Vec::new(),
            ranges: Vec::new(),
            end: Seq(from.0 - 1),
            segments: 0,
            blocks: start..self.device_blocks(),
            stretches: Vec::new(),
            poisoned: 0,
        };
        let mut closed = self.head.segments_from(from, limits.segments);
        let open = closed.pop_if(|live| live.last_seq.is_none());
        let blocks = self.geometry.segment_blocks() as usize;
        window.items.reserve_exact(limits.items.min((closed.len() + 1) * blocks));
        let mut reads = stream::iter(&closed)
            .map(|live| async move { (live, self.records_of(live, durable.0).await) })
            .buffered(GATHER_READS);
        let mut full = false;
        while let Some((live, records)) = reads.next().await {
            self.gather_segment(live, records, from, durable, &mut window).await?;
            full = !self.has_room(&limits, &mut window).await;
            if full {
                break;
            }
            self.env.yield_point().await;
        }
        drop(reads);
        let wanted = open.filter(|live| !full && (closed.is_empty() || live.first_seq <= to));
        // It may have been closed meanwhile: what counts is how it is now.
        let now = wanted.and_then(|live| self.head.segments_from(live.first_seq, 1).pop());
        if let Some(live) = now {
            let records = self.records_of(&live, durable.0).await;
            self.gather_segment(&live, records, from, durable, &mut window).await?;
        }
        self.put_in_order(&mut window).await;
        if let Some(zone) = limits.zone {
            Self::cut(&mut window, zone.items);
        }
        self.drop_covered(&mut window);
        Ok(window)
    }

    /// Blocks of the volume.
    pub(super) fn device_blocks(&self) -> u64 {
        self.served.volume.size_bytes.div_ceil(BLOCK_BYTES_U64)
    }

    /// Ends the zone where it has so many items. They are in order.
    fn cut(window: &mut Window, items: usize) {
        if let Some(first) = window.items.get(items) {
            window.blocks.end = first.addr.block();
            window.items.truncate(items);
        }
    }

    async fn gather_segment(
        self: &Arc<Self>,
        live: &LiveSegment,
        records: Option<Vec<RecordDesc>>,
        from: Seq,
        durable: (Seq, LogPos),
        window: &mut Window,
    ) -> Result<(), WindowError> {
        window.segments += 1;
        window.stretches.push(Stretch { first_seq: live.first_seq, pos: live.pos, reach: 0 });
        let Some(records) = records else { return self.gather_unreadable(live, durable, window).await };
        // A record that a repair put in place of lost ones stands for all numbers up to the next.
        let ends = records.iter().skip(1).map(|next| Seq(next.seq.0 - 1)).chain([live.last_seq.unwrap_or(durable.0)]);
        let counts = |(record, last): &(&RecordDesc, Seq)| *last >= from && record.seq <= durable.0;
        for (record, last) in records.iter().zip(ends).filter(counts) {
            self.gather_record(live, record, durable, window);
            window.end = window.end.max(last.min(durable.0));
        }
        Ok(())
    }

    /// Whether another segment fits.
    async fn has_room(&self, limits: &WindowLimits, window: &mut Window) -> bool {
        let blocks = self.geometry.segment_blocks() as usize;
        if window.items.len() + blocks > limits.items {
            self.put_in_order(window).await;
            if let Some(zone) = limits.zone {
                Self::cut(window, zone.items);
            }
        }
        // Half a segment's worth of room would mean to sort for every further segment.
        window.items.len() + blocks <= limits.items
            && window.ranges.len() < limits.ranges
            && window.poisoned <= limits.poisoned
    }

    /// Sorts by address and keeps the newest version of each block. In pieces, for a million items take a while and others
    /// have the same thread.
    async fn put_in_order(&self, window: &mut Window) {
        let pos = |item: &Item| self.segments.pos(item.slot());
        let order = |a: &Item, b: &Item| a.addr.cmp(&b.addr).then_with(|| pos(b).cmp(&pos(a)));
        let mut pieces: Vec<Range<usize>> = std::iter::once(0..window.items.len()).collect();
        while let Some(piece) = pieces.pop() {
            if piece.len() <= SORTED_AT_ONCE {
                window.items[piece].sort_unstable_by(order);
                continue;
            }
            let middle = piece.len() / 2;
            window.items[piece.clone()].select_nth_unstable_by(middle, order);
            pieces.extend([piece.start + middle..piece.end, piece.start..piece.start + middle]);
            self.env.yield_now().await;
        }
        window.items.dedup_by_key(|item| item.addr);
    }

    /// A range supersedes older payload of the same window also where a younger range, not durable yet, hides it.
    fn drop_covered(&self, window: &mut Window) {
        let mut dropped = false;
        for at in 0..window.ranges.len() {
            let range = window.ranges[at].clone();
            let first = window.position(self.addr(range.blocks.start));
            let end = range.blocks.end;
            let covered = window.items[first..].iter_mut().take_while(|item| item.addr.block() < end);
            for item in covered.filter(|item| !item.mask().is_empty()) {
                if self.segments.pos(item.slot()) <= range.pos {
                    self.index.set_clean_if(item.addr, item.slot());
                    item.place &= !0xff;
                    dropped = true;
                }
            }
        }
        if dropped {
            window.items.retain(|item| !item.mask().is_empty());
        }
    }

    /// By the index, which has the newest versions alone: what it has that is not durable yet waits for a later window,
    /// and what that superseded here is gone from it, so that it has to become durable before this window counts.
    async fn gather_unreadable(
        self: &Arc<Self>,
        live: &LiveSegment,
        durable: (Seq, LogPos),
        window: &mut Window,
    ) -> Result<(), WindowError> {
        tracing::error!("segment {}: neither summary nor headers can be read; using the index", live.segment);
        for (addr, entry) in self.entries_by_sweep(live).await {
            let (_, block) = self.geometry.slot_parts(entry.slot);
            let crc = self.index.crcs().map(|crcs| crcs.get(entry.slot));
            let pos = LogPos(live.pos.0 + u64::from(block));
            if pos < durable.1 {
                self.gather_payload(Item::new(addr, entry.slot, entry.mask, crc), pos, durable, window);
            }
        }
        let pieces: Vec<_> = {
            let ranges = self.served.ranges.lock().expect("not poisoned");
            ranges.overlaps(0..1 << BLOCK_NUMBER_BITS).filter(|(_, piece)| piece.segment == live.segment).collect()
        };
        for (blocks, piece) in pieces.into_iter().filter(|(_, piece)| piece.dirty && piece.seq <= durable.0) {
            self.push_range(RangeItem { blocks, kind: piece.kind, pos: piece.pos }, window);
        }
        window.ranges.sort_by_key(|range| range.pos);
        let committed = self.commit_to(self.head.newest()).await;
        committed.map_err(|_| WindowError::Cache("group commit failed".into()))?;
        if let Some(last) = live.last_seq {
            window.end = window.end.max(last.min(durable.0));
        }
        Ok(())
    }

    fn push_range(&self, range: RangeItem, window: &mut Window) {
        if range.kind == RangeKind::Poison {
            window.poisoned += range.blocks.end - range.blocks.start;
        }
        window.ranges.push(range);
    }

    fn gather_record(&self, live: &LiveSegment, record: &RecordDesc, durable: (Seq, LogPos), window: &mut Window) {
        let mut payload = 0;
        for (entry, block) in record.entries_with_blocks() {
            match (entry.kind, block) {
                // A clean one may have inherited the dirtiness of what it superseded.
                (EntryKind::Dirty | EntryKind::Clean, Some(block)) => {
                    let slot = self.geometry.slot(live.segment, block);
                    let pos = LogPos(live.pos.0 + u64::from(block));
                    self.gather_payload(Item::new(entry.addr, slot, entry.mask, Some(entry.crc)), pos, durable, window);
                }
                (kind, None) => {
                    let Some(kind) = range_kind(kind) else { continue };
                    let pos = LogPos(live.pos.0 + u64::from(record.offset_blocks) + payload);
                    let blocks = entry.addr.block()..entry.addr.block() + entry.blocks;
                    self.gather_range(RangeItem { blocks, kind, pos }, durable, window);
                }
                _ => {}
            }
            payload += u64::from(block.is_some());
        }
    }

    /// True if what lies at `pos` may supersede.
    fn supersedes(&self, pos: LogPos, durable: (Seq, LogPos)) -> bool {
        pos < durable.1 || self.config.has_bug(PlantedBug::SupersedeBeyondDurable)
    }

    fn gather_payload(&self, item: Item, pos: LogPos, durable: (Seq, LogPos), window: &mut Window) {
        let slot = item.slot();
        let wanted = self.index.lookup_with(item.addr, |current| match current {
            Some(current) if current.slot == slot => current.dirty,
            Some(current) => {
                let newer = self.segments.pos(current.slot);
                newer < pos || !self.supersedes(newer, durable)
            }
            // Nothing newer is in the index: what there was has been superseded by a range or poisoned.
            None => false,
        });
        if !wanted || item.mask().is_empty() {
            return;
        }
        let covered = self.piece_at(item.addr.block()).filter(|piece| piece.pos >= pos);
        if covered.is_some_and(|piece| self.supersedes(piece.pos, durable)) {
            self.index.set_clean_if(item.addr, slot);
            return;
        }
        // Round the device from the start of the zone.
        let (block, start) = (item.addr.block(), window.blocks.start);
        let distance = if block >= start { block - start } else { block + self.device_blocks() - start };
        let stretch = window.stretches.last_mut().expect("the segment of the item");
        stretch.reach = stretch.reach.max(distance + 1);
        if window.blocks.contains(&block) {
            window.items.push(item);
        }
    }

    /// True if something newer than an item of a window has become durable since it was gathered: then it need not be
    /// written. What is newer lies behind the window and stays dirty.
    pub(super) fn is_outrun(&self, item: &Item, durable: (Seq, LogPos)) -> bool {
        self.index.lookup_with(item.addr, |current| {
            current.is_some_and(|current| {
                let newer = self.segments.pos(current.slot);
                newer > self.segments.pos(item.slot()) && self.supersedes(newer, durable)
            })
        })
    }

    /// A range is applied whole, unless all of it has been superseded durably or applied before: younger payload in it is
    /// written back later, as everything younger is.
    fn gather_range(&self, range: RangeItem, durable: (Seq, LogPos), window: &mut Window) {
        let pieces = {
            let ranges = self.served.ranges.lock().expect("not poisoned");
            ranges.overlaps(range.blocks.clone()).map(|(_, piece)| piece).collect::<Vec<_>>()
        };
        let own = pieces.iter().any(|piece| piece.pos == range.pos && piece.dirty);
        let hidden = pieces.iter().any(|piece| piece.pos > range.pos && !self.supersedes(piece.pos, durable));
        if own || hidden {
            self.push_range(range, window);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments of 10 blocks and 5 records from record 1 on, that reach so far from the start of a zone of 100 blocks on a
    /// device of 1060.
    fn window(reaches: &[u64]) -> Window {
        let stretch = |(at, reach): (usize, &u64)| Stretch {
            first_seq: Seq(1 + 5 * at as u64),
            pos: LogPos(10 * (1 + at as u64)),
            reach: *reach,
        };
        Window {
            items: Vec::new(),
            ranges: Vec::new(),
            end: Seq(5 * reaches.len() as u64),
            segments: reaches.len(),
            blocks: 500..600,
            stretches: reaches.iter().enumerate().map(stretch).collect(),
            poisoned: 0,
        }
    }

    #[test]
    fn the_tail_stops_before_what_another_zone_has() {
        assert_eq!(window(&[100, 0, 99]).tail_after(), Seq(16));
        assert_eq!(window(&[100, 0, 101, 3]).tail_after(), Seq(11));
        assert_eq!(window(&[1060, 1]).tail_after(), Seq(1));
    }

    #[test]
    fn the_course_of_the_tail_is_foreseen() {
        let step = |ahead: f64, pos: u64| Step { ahead, pos: LogPos(pos) };
        assert_eq!(window(&[100, 0, 99]).foresee(1060, 10), [step(0.0, 40)]);
        // Half of the rest of the device, then all of it.
        let window = window(&[50, 580, 300, 1060, 1]);
        assert_eq!(window.foresee(1060, 10), [step(0.0, 20), step(0.5, 40), step(1.0, 60)]);
    }
}
