//! Reclaim: segments at the log tail become free.
//!
//! Reuse of a segment needs all of: every version in it superseded or written back through records ≤ D; a FLUSH of the
//! backing device after that; its index entries removed; no pins; the anchor that says so durable in both slots.

use super::Inner;
use super::anchors::Tails;
use super::config::Shares;
use super::writeback::WindowError;
use crate::env::Env;
use crate::format::ProbeSet;
use crate::index::Action;
use crate::log::head::LiveSegment;
use crate::types::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl<E: Env> Inner<E> {
    /// Frees as many segments before the dirty tail as are wanted. A window that has been written back moves that tail first.
    pub(super) async fn reclaim(
        self: &Arc<Self>,
        moved: Option<Seq>,
        probes: Option<ProbeSet>,
    ) -> Result<(), WindowError> {
        let _turn = self.writeback.reclaiming.lock().await;
        let dirty_tail = moved.unwrap_or_else(|| self.anchors.tails().1);
        // What is unread is the oldest; what was read back since waits for it.
        let (freed, forgotten) = match self.head.unread_good() {
            0 => (self.choose(dirty_tail), None),
            _ if self.may_forget() && self.is_space_short() => (Vec::new(), Some(self.choose_unread().await)),
            _ => (Vec::new(), None),
        };
        // One after the other, oldest first: what a segment's ranges hide is in segments that are gone by then, or in itself.
        for live in &freed {
            self.remove_entries(live).await;
            // In this order: who holds a pin may have found a slot that only a range of the same segment hides, and looks
            // for that range next [block written, zeroed, both written back, their segment reclaimed between the two
            // looks of a read: the old bytes come back].
            self.segments.wait_unpinned(live.segment).await;
            self.served.ranges.lock().expect("not poisoned").remove_segment(live.segment);
        }
        {
            let ranges = self.served.ranges.lock().expect("not poisoned");
            self.served.range_pieces.store(ranges.len(), Ordering::SeqCst);
        }
        let oldest = self.head.oldest_segments(freed.len() + 1);
        let tails = match (freed.is_empty(), oldest.last()) {
            (true, _) if forgotten.is_some() => {
                let (log_tail, log_tail_segment) = forgotten.as_ref().expect("just seen").log_start;
                Tails { log_tail, log_tail_segment, dirty_tail }
            }
            (false, Some(first)) => {
                assert_eq!(oldest.len(), freed.len() + 1, "the newest segment stays");
                Tails { log_tail: first.first_seq, log_tail_segment: first.segment, dirty_tail }
            }
            _ => {
                let (log_tail, _) = self.anchors.tails();
                Tails { log_tail, log_tail_segment: self.anchors.log_tail_segment(), dirty_tail }
            }
        };
        self.anchor_tails(tails, probes).await.map_err(|error| WindowError::Cache(error.to_string()))?;
        if let Some(live) = self.head.segments_from(dirty_tail, 1).first() {
            self.admission.tail_is_at(live.pos);
        }
        if let Some(forgotten) = forgotten {
            self.head.forget_unread(forgotten.good);
        }
        for live in freed {
            self.segments.set_pos(live.segment, LogPos(0));
            self.head.free_oldest(live.segment);
        }
        self.writeback.space_wanted.store(false, Ordering::SeqCst);
        self.space.notify_all();
        self.writeback.event.notify_all();
        Ok(())
    }

    /// Fewer segments are free than should be, or a writer waits.
    pub(super) fn is_space_short(&self) -> bool {
        let (free, _) = self.head.free_segments();
        free < Shares::of(&self.geometry).free_low || self.writeback.space_wanted.load(Ordering::SeqCst)
    }

    /// The segments to be freed: oldest first, all before the dirty tail, never the newest.
    fn choose(&self, dirty_tail: Seq) -> Vec<LiveSegment> {
        let (free, _) = self.head.free_segments();
        let shares = Shares::of(&self.geometry);
        // Some more than are missing: each reclaim costs two anchors and two flushes of the cache device.
        let missing = if free < shares.free_low { shares.free_low + shares.free_more - free } else { 0 };
        let wanted = (missing as usize).max(usize::from(self.writeback.space_wanted.load(Ordering::SeqCst)));
        let mut oldest = self.head.oldest_segments(wanted + 1);
        oldest.pop();
        let goes = |live: &LiveSegment| !live.summary_in_flight && live.last_seq.is_some_and(|last| last < dirty_tail);
        let count = oldest.iter().take_while(|live| goes(live)).count();
        oldest.truncate(count);
        oldest
    }

    /// What a payload that leaves the index hides must not come to light: the backing device has that payload [block zeroed,
    /// written, both written back; the payload's entry is removed, and a read takes the range that is still there].
    fn forget_ranges_behind(&self, addr: BlockAddr, slot: Slot) {
        let served = &self.served;
        if served.range_pieces.load(Ordering::SeqCst) == 0
            || self.index.lookup(addr).is_none_or(|entry| entry.slot != slot)
        {
            return;
        }
        let (block, pos) = (addr.block(), self.segments.pos(slot));
        let mut ranges = served.ranges.lock().expect("not poisoned");
        // Only ranges of the same segment are still there and older: a few holes, for which the map has room.
        if ranges.punch(block..block + 1, pos).is_err() {
            tracing::error!("the range map is full: block {block} reads as zeroes until its segment is reclaimed");
        }
        served.range_pieces.store(ranges.len(), Ordering::SeqCst);
    }

    async fn remove_entries(self: &Arc<Self>, live: &LiveSegment) {
        // All of it was durable before the dirty tail passed it.
        let Some(records) = self.records_of(live, Seq(u64::MAX)).await else {
            for (addr, entry) in self.entries_by_sweep(live).await {
                self.remove_entry(addr, entry.slot);
            }
            return;
        };
        for record in &records {
            for (entry, block) in record.entries_with_blocks() {
                if let Some(block) = block {
                    self.remove_entry(entry.addr, self.geometry.slot(live.segment, block));
                }
            }
            self.env.yield_point().await;
        }
    }

    fn remove_entry(&self, addr: BlockAddr, slot: Slot) {
        self.forget_ranges_behind(addr, slot);
        // An address outside the index, as that of a void entry, has no entry.
        let _ = self.index.update_if(addr, slot, |entry| {
            assert!(!entry.dirty, "block {addr:?} in slot {slot} was written back before its segment is reused");
            Action::Remove
        });
    }
}
