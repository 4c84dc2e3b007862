//! After a start: what the walk did not read, because it lies before the dirty tail, comes into the index while the cache
//! is served. A cache that was written back serves at once, however large it is, and is warm soon after.
//!
//! Nothing of it is needed for being right: the backing device has all of it. What matters is that no old version of a block
//! comes to light. Invariants:
//! * **What is loaded is a suffix of the log.** Segments, records and entries are taken from the newest to the oldest, and a
//!   segment that cannot be read, or does not lead on to the one behind it by number and chain value, ends it, and so does a
//!   record that a repair has put in place of lost ones. So of the versions of a block the newest is there first, and an
//!   entry gives way to every later one.
//! * Ranges are not loaded, for a reader looks into the index first and into the range map second, and would take a range for
//!   newer than payload that came in between. They are applied to the backing device already; here they only keep older
//!   payload from being loaded, and those in the range map are newer than everything unread.
//! * A segment of which anything is in the index counts as read, so that reclaim removes it.
//! * Index entries leave the index only when their segment is reclaimed, the oldest first. So nothing that is known to be
//!   newer is forgotten before what is unread. Reclaim and this take turns.
//! * While it goes on, reclaim takes nothing unless a writer waits or the reserve is touched; then it begins with what is
//!   unread.

use super::Inner;
use super::config::Shares;
use super::ranges::range_kind;
use crate::env::{Env, PlantedBug};
use crate::format::{Entry, EntryKind, RecordHeader};
use crate::index::{IndexError, Piece, RangeMap, Upsert};
use crate::log::chain::{ScannedRecord, records_of_summary};
use crate::log::head::LiveSegment;
use crate::log::scan::{header_at, read_first_header, read_segment, read_summary};
use crate::types::*;
use futures_util::future::{Either, select};
use futures_util::{StreamExt, stream};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Summaries read ahead.
const QUEUE_DEPTH: usize = 32;
/// Segments at which what is to be forgotten may end that are looked at.
const BOUNDARY_TRIES: usize = 4;

/// How far the log has been read back.
pub(super) struct WarmState {
    /// It goes on.
    active: AtomicBool,
    /// Chain value of the record before those that the start has read.
    previous_crc: u32,
    /// Blocks that came into the index.
    blocks: AtomicU64,
}

impl WarmState {
    /// `wanted`: there is something to be read back.
    pub fn new(wanted: bool, previous_crc: u32) -> WarmState {
        WarmState { active: AtomicBool::new(wanted), previous_crc, blocks: AtomicU64::new(0) }
    }
    /// It goes on.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::SeqCst)
    }
}

/// The oldest part of what is unread, given up.
pub(super) struct Forgotten {
    /// Where the log begins then.
    pub log_start: (Seq, SegmentNo),
    /// Good segments before that.
    pub good: u32,
}

/// The records of a segment, and the chain value before them.
struct Found {
    records: Vec<ScannedRecord>,
    previous_crc: u32,
}

impl<E: Env> Inner<E> {
    /// Reads what is unread, until nothing is, or what cannot be read ends it.
    pub(super) async fn warm_up(self: &Arc<Self>) {
        if self.warm.active.load(Ordering::SeqCst) {
            let stop = self.writeback.event.wait_until(|| self.writeback.is_stopping().then_some(()));
            if let Either::Left((all, _)) = select(pin!(self.read_back()), pin!(stop)).await {
                let blocks = self.warm.blocks.load(Ordering::SeqCst);
                let whole = if all { "" } else { "; what is older is given up" };
                tracing::info!("the cache is warm: {blocks} blocks that the backing device has, too{whole}");
            }
        }
        self.warm.active.store(false, Ordering::SeqCst);
        self.writeback.event.notify_all(); // reclaim may take what is still unread
    }

    /// True if nothing is unread at the end.
    async fn read_back(self: &Arc<Self>) -> bool {
        let Some(oldest) = self.head.oldest() else { return true };
        let log_start = self.anchors.log_tail_segment();
        let unread = self.geometry.distance(log_start, oldest.segment);
        let backwards = (0..unread).rev().map(|step| self.geometry.segment_after(log_start, step));
        let summary = async |segment| (segment, read_summary(&*self.cache, &self.superblock, segment).await);
        let mut summaries = pin!(stream::iter(backwards).map(summary).buffered(QUEUE_DEPTH));
        let mut hidden = RangeMap::new(self.config.range_pieces);
        let mut previous_crc = self.warm.previous_crc;
        while let Some((segment, summary)) = summaries.next().await {
            let _turn = self.writeback.reclaiming.lock().await;
            let Some(after) = self.head.oldest().filter(|_| self.is_unread(segment)) else { return false };
            let past_damage = self.config.has_bug(PlantedBug::ReadBackPastDamage);
            let leads_on =
                |last: Seq, chain_crc| past_damage || last.next() == after.first_seq && chain_crc == previous_crc;
            let found = match summary {
                Ok(summary) if leads_on(summary.last_seq(), summary.last_chain_crc()) => {
                    let previous_crc = summary.previous_crc;
                    Some(Found { records: records_of_summary(summary), previous_crc })
                }
                _ => self.found_by_headers(segment, after.first_seq, previous_crc).await,
            };
            let Some(found) = found else {
                // A bad segment need not have a part of the log.
                if self.head.is_bad(segment) || past_damage {
                    continue;
                }
                tracing::warn!(
                    "segment {segment} of the cache device is damaged before the dirty tail, in what is only cache. \
                     Run wb-check when the daemon is stopped"
                );
                return false;
            };
            let pos = LogPos(
                after.pos.0
                    - u64::from(self.geometry.distance(segment, after.segment))
                        * u64::from(self.geometry.segment_blocks()),
            );
            // What a bridge stands for may have had newer versions of anything before it.
            let bridge = found.records.iter().rposition(ScannedRecord::is_bridge).map_or(0, |at| at + 1);
            let whole = self.load_back(segment, pos, &found.records[bridge..], &mut hidden).await && bridge == 0;
            // Also if it ended early: its entries must leave the index before it is used again.
            self.head.read_back(LiveSegment {
                segment,
                pos,
                first_seq: found.records[0].seq,
                first_crc: Some(found.records[0].chain_crc),
                last_seq: found.records.last().map(ScannedRecord::last_seq),
                opened_unix_ns: self.env.wall_ns(),
                summary_in_flight: false,
            });
            if !whole {
                return false;
            }
            previous_crc = found.previous_crc;
            self.env.yield_now().await;
        }
        true
    }

    /// True if a segment lies between the log tail and the oldest segment that was read.
    fn is_unread(&self, segment: SegmentNo) -> bool {
        let log_start = self.anchors.log_tail_segment();
        let oldest = self.head.oldest().expect("the newest segment stays");
        self.geometry.distance(log_start, segment) < self.geometry.distance(log_start, oldest.segment)
    }

    /// The records of a segment by their headers, if they lead on to record `after`, whose predecessor has that chain value.
    async fn found_by_headers(&self, segment: SegmentNo, after: Seq, previous_crc: u32) -> Option<Found> {
        let bytes = read_segment(&*self.cache, &self.superblock, segment).await.ok()?;
        let (mut records, mut at, mut before): (Vec<ScannedRecord>, u32, u32) = (Vec::new(), 0, 0);
        while at < self.geometry.record_blocks() {
            let header: RecordHeader = header_at(&bytes, &self.superblock, segment, at).ok()?;
            match records.last() {
                None => before = header.previous_crc,
                Some(last) if header.seq == last.last_seq().next() && header.previous_crc == last.chain_crc => {}
                Some(_) => return None,
            }
            let record = ScannedRecord::from(header);
            at = record.end_blocks();
            let (next, chain_crc) = (record.last_seq().next(), record.chain_crc);
            records.push(record);
            if next >= after {
                return (next == after && chain_crc == previous_crc).then_some(Found { records, previous_crc: before });
            }
        }
        None
    }

    /// Brings the payload of a segment into the index, from the newest on. False: it has what cannot be, or too many ranges,
    /// and what is older was not brought in.
    async fn load_back(
        &self,
        segment: SegmentNo,
        pos: LogPos,
        records: &[ScannedRecord],
        hidden: &mut RangeMap,
    ) -> bool {
        let see_all = self.config.has_bug(PlantedBug::ReadBackHidden);
        self.segments.set_pos(segment, pos);
        for record in records.iter().rev() {
            let entries: Vec<_> = record.entries_with_blocks().collect();
            for (entry, block) in entries.into_iter().rev().filter(|(entry, _)| entry.kind != EntryKind::Void) {
                let loaded = match (block, range_kind(entry.kind)) {
                    (None, Some(kind)) => {
                        let first = entry.addr.block();
                        let piece = Piece { kind, pos: LogPos(1), seq: record.seq, segment, dirty: false };
                        hidden.insert(first..first + entry.blocks, piece).map_err(|full| full.to_string())
                    }
                    (Some(block), _) if see_all || hidden.lookup(entry.addr.block()).is_none() => {
                        self.load_entry(entry, self.geometry.slot(segment, block)).map_err(|error| error.to_string())
                    }
                    _ => Ok(()),
                };
                if let Err(error) = loaded {
                    tracing::warn!("record {} in segment {segment}, before the dirty tail: {error}", record.seq);
                    return false;
                }
            }
            self.env.yield_point().await;
        }
        true
    }

    fn load_entry(&self, entry: &Entry, slot: Slot) -> Result<(), IndexError> {
        if let Some(crcs) = self.index.crcs() {
            crcs.set(slot, entry.crc);
        }
        let newer = |before: Slot| self.segments.pos(slot) > self.segments.pos(before);
        match self.index.upsert(entry.addr, slot, entry.mask, false, newer)? {
            Upsert::Inserted => {
                self.warm.blocks.fetch_add(1, Ordering::Relaxed);
            }
            Upsert::Stale(_) => {}
            Upsert::Replaced(before) => panic!("slot {slot} is read back, and older than all else, as {before:?}"),
        }
        Ok(())
    }

    /// Reclaim may take what is unread: a writer waits for space, or it will not be read any more.
    pub(super) fn may_forget(&self) -> bool {
        !self.warm.active.load(Ordering::SeqCst)
            || self.writeback.space_wanted.load(Ordering::SeqCst)
            // Write-back lives on the reserve where it logs anew what the disk refuses.
            || self.head.free_segments().0 < Shares::of(&self.geometry).reserve_segments
    }

    /// What of the unread segments is to be given up: the oldest ones, as many as are missing, and some more.
    pub(super) async fn choose_unread(&self) -> Forgotten {
        let oldest = self.head.oldest().expect("the newest segment stays");
        let log_start = self.anchors.log_tail_segment();
        let unread = self.geometry.distance(log_start, oldest.segment);
        let wanted = (Shares::of(&self.geometry).free_low).max(unread / 8).max(1);
        let (mut good, mut tries) = (0, BOUNDARY_TRIES);
        for step in 0..unread {
            let segment = self.geometry.segment_after(log_start, step);
            if good >= wanted && tries > 0 {
                tries -= 1;
                if let Some(first) = self.first_seq_of(segment, oldest.first_seq).await {
                    return Forgotten { log_start: (first, segment), good };
                }
            }
            good += u32::from(!self.head.is_bad(segment));
        }
        Forgotten { log_start: (oldest.first_seq, oldest.segment), good: self.head.unread_good() }
    }

    /// The first record of an unread segment, if summary and header agree on it.
    async fn first_seq_of(&self, segment: SegmentNo, before: Seq) -> Option<Seq> {
        let summary = read_summary(&*self.cache, &self.superblock, segment).await.ok()?;
        let header = read_first_header(&*self.cache, &self.superblock, segment).await.ok()?.ok()?;
        let (log_tail, _) = self.anchors.tails();
        let agree = header.seq == summary.first_seq() && header.chain_crc == summary.records[0].chain_crc;
        (agree && header.seq > log_tail && header.seq < before).then_some(header.seq)
    }
}
