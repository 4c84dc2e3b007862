//! What a write-back window has to do: the newest durable version of every block in a stretch of the log.
//!
//! Only records ≤ D count, for superseding and for writing back: a version is dropped only if what superseded it is
//! durable [v1 flushed, v2 not: window drops v1, tail passes, power fails, both gone].

use super::Inner;
use super::ranges::range_kind;
use crate::env::{Env, PlantedBug};
use crate::format::{Entry, EntryKind, RecordDesc, SegmentSummary};
use crate::index::{RangeKind, SweepAction};
use crate::log::head::LiveSegment;
use crate::log::scan::{header_at, read_first_header, read_range, read_summary};
use crate::types::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// A block to be written back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub addr: BlockAddr,
    pub slot: Slot,
    pub mask: SectorMask,
    /// CRC of the payload; unknown if neither summary nor header could be read and no CRCs are kept.
    pub crc: Option<u32>,
    pub pos: LogPos,
}

/// A range to be applied, or a poisoned one to be kept.
#[derive(Debug, Clone)]
pub(super) struct RangeItem {
    pub blocks: Range<u64>,
    pub kind: RangeKind,
    pub pos: LogPos,
}

/// A stretch of the log to be written back.
pub(super) struct Window {
    /// By address; each block once.
    pub items: BTreeMap<BlockAddr, Item>,
    /// In log order.
    pub ranges: Vec<RangeItem>,
    /// Last record of the window.
    pub end: Seq,
}

impl<E: Env> Inner<E> {
    /// The records of a live segment that have been sealed, from memory, its summary, or its headers. `None` if none
    /// of these can be read.
    pub(super) async fn records_of(&self, live: &LiveSegment) -> Option<Vec<RecordDesc>> {
        if let Some(records) = self.head.records_of_open(live.segment) {
            return Some(records);
        }
        if let Ok(summary) = read_summary(&*self.cache, &self.superblock, live.segment).await
            && summary.first_seq() == live.first_seq
            && Some(summary.last_seq()) == live.last_seq
            && !self.is_outdated(&summary, live.segment).await
        {
            return Some(summary.records);
        }
        let offset = self.geometry.segment_offset(live.segment);
        let bytes = read_range(&*self.cache, offset, self.geometry.segment_bytes as usize).await.ok()?;
        let (mut records, mut next, mut at) = (Vec::new(), live.first_seq, 0);
        while at < self.geometry.record_blocks() && live.last_seq.is_none_or(|last| next <= last) {
            let header = header_at(&bytes, &self.superblock, live.segment, at).ok()?;
            if header.seq != next {
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
                entries: header.entries,
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
        let mut found = Vec::new();
        for shard in 0..self.index.shard_count() {
            let mut sweep = self.index.sweep(shard).expect("only the maintenance task sweeps");
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

    /// Collects what the records of `segments` from `from` up to D have to do.
    pub(super) async fn gather(
        self: &Arc<Self>,
        segments: &[LiveSegment],
        from: Seq,
        durable: (Seq, LogPos),
    ) -> Window {
        let mut window = Window { items: BTreeMap::new(), ranges: Vec::new(), end: Seq(from.0 - 1) };
        for live in segments {
            let Some(records) = self.records_of(live).await else {
                self.gather_unreadable(live, durable, &mut window).await;
                continue;
            };
            // A record that a repair put in place of lost ones stands for all numbers up to the next.
            let ends =
                records.iter().skip(1).map(|next| Seq(next.seq.0 - 1)).chain([live.last_seq.unwrap_or(durable.0)]);
            let counts = |(record, last): &(&RecordDesc, Seq)| *last >= from && record.seq <= durable.0;
            for (record, last) in records.iter().zip(ends).filter(counts) {
                self.gather_record(live, record, durable, &mut window);
                window.end = window.end.max(last.min(durable.0));
            }
            self.env.yield_point().await;
        }
        // A range supersedes older payload of the same window also where a younger range, not durable yet, hides it.
        for range in &window.ranges {
            let (first, end) = (self.addr(range.blocks.start), range.blocks.end);
            let older: Vec<BlockAddr> = window
                .items
                .range(first..)
                .take_while(|(addr, _)| addr.block() < end)
                .filter(|(_, item)| item.pos <= range.pos)
                .map(|(addr, _)| *addr)
                .collect();
            for addr in older {
                let item = window.items.remove(&addr).expect("just seen");
                self.index.set_clean_if(addr, item.slot);
            }
        }
        window
    }

    async fn gather_unreadable(self: &Arc<Self>, live: &LiveSegment, durable: (Seq, LogPos), window: &mut Window) {
        tracing::error!("segment {}: neither summary nor headers can be read; using the index", live.segment);
        for (addr, entry) in self.entries_by_sweep(live).await {
            let (_, block) = self.geometry.slot_parts(entry.slot);
            let crc = self.index.crcs().map(|crcs| crcs.get(entry.slot));
            let payload = Entry { addr, kind: EntryKind::Dirty, crc: crc.unwrap_or(0), mask: entry.mask, blocks: 1 };
            self.gather_payload(live, &payload, block, durable, window);
            if let Some(item) = window.items.get_mut(&addr).filter(|item| item.slot == entry.slot) {
                item.crc = crc;
            }
        }
        let pieces: Vec<_> = {
            let ranges = self.served.ranges.lock().expect("not poisoned");
            ranges.overlaps(0..1 << BLOCK_NUMBER_BITS).filter(|(_, piece)| piece.segment == live.segment).collect()
        };
        for (blocks, piece) in pieces.into_iter().filter(|(_, piece)| piece.dirty) {
            window.ranges.push(RangeItem { blocks, kind: piece.kind, pos: piece.pos });
        }
        window.ranges.sort_by_key(|range| range.pos);
        if let Some(last) = live.last_seq {
            window.end = window.end.max(last.min(durable.0));
        }
    }

    fn gather_record(&self, live: &LiveSegment, record: &RecordDesc, durable: (Seq, LogPos), window: &mut Window) {
        let mut payload = 0;
        for (entry, block) in record.entries_with_blocks() {
            match (entry.kind, block) {
                (EntryKind::Dirty, Some(block)) => self.gather_payload(live, entry, block, durable, window),
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

    fn gather_payload(
        &self,
        live: &LiveSegment,
        entry: &Entry,
        block: u32,
        durable: (Seq, LogPos),
        window: &mut Window,
    ) {
        let slot = self.geometry.slot(live.segment, block);
        let pos = LogPos(live.pos.0 + u64::from(block));
        let wanted = self.index.lookup_with(entry.addr, |current| match current {
            Some(current) if current.slot == slot => current.dirty,
            Some(current) => {
                let newer = self.segments.pos(current.slot);
                newer < pos || !self.supersedes(newer, durable)
            }
            // Nothing newer is in the index: what there was has been superseded by a range or poisoned.
            None => false,
        });
        if !wanted {
            return;
        }
        let covered = self.piece_at(entry.addr.block()).filter(|piece| piece.pos >= pos);
        if covered.is_some_and(|piece| self.supersedes(piece.pos, durable)) {
            self.index.set_clean_if(entry.addr, slot);
            return;
        }
        let item = Item { addr: entry.addr, slot, mask: entry.mask, crc: Some(entry.crc), pos };
        let newest = window.items.entry(entry.addr).or_insert(item);
        if newest.pos < pos {
            *newest = item;
        }
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
            window.ranges.push(range);
        }
    }
}
