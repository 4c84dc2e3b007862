//! Anchors: one writer at a time, generations rising.
//!
//! At any time one slot holds an anchor that is known to be durable, and only the other one is written. An anchor that was
//! written without a flush is therefore followed by one in the same slot [anchor told in slot 0 and not flushed, the next
//! one on its way to slot 1, power fails: both slots torn, no anchor at all].

use super::Inner;
use super::counters::count;
use crate::env::Env;
use crate::format::{Anchor, CleanMark, ProbeSet, SegmentStart};
use crate::meta::{self, MetaError};
use crate::sync::AsyncLock;
use crate::types::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

pub(super) struct AnchorState {
    lock: AsyncLock,
    current: Mutex<Anchor>,
    /// The newest anchor was not flushed; the durable one is in the other slot. Changed by the holder of the lock.
    volatile: AtomicBool,
}

impl AnchorState {
    pub fn new(anchor: Anchor) -> AnchorState {
        AnchorState { lock: AsyncLock::new(), current: Mutex::new(anchor), volatile: AtomicBool::new(false) }
    }
    /// Waits until no anchor is being written. If one failed, the engine has by then, too.
    pub async fn settled(&self) {
        drop(self.lock.lock().await);
    }
    /// Log tail and dirty tail, as last anchored.
    pub fn tails(&self) -> (Seq, Seq) {
        let current = self.current.lock().expect("not poisoned");
        (current.log_tail, current.dirty_tail)
    }
    /// The probe CRCs of a volume, as last anchored.
    pub fn probes(&self, volume: VolumeId) -> Option<ProbeSet> {
        self.current.lock().expect("not poisoned").probes.iter().find(|set| set.volume == volume).copied()
    }
    /// The segment that begins with the log tail, as last anchored.
    pub fn log_tail_segment(&self) -> SegmentNo {
        self.current.lock().expect("not poisoned").log_tail_segment
    }
}

/// New tails for an anchor that permits reuse.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tails {
    pub log_tail: Seq,
    pub log_tail_segment: SegmentNo,
    pub dirty_tail: Seq,
}

impl<E: Env> Inner<E> {
    fn next_anchor(&self) -> Anchor {
        let mut anchor = self.anchors.current.lock().expect("not poisoned").clone();
        // Even and odd generations have a slot each.
        anchor.generation += if self.anchors.volatile.load(Ordering::SeqCst) { 2 } else { 1 };
        anchor.durable = self.head.durable().0;
        anchor.clean = None;
        anchor.counters = self.counters.snapshot();
        anchor.wall_unix_ns = self.env.wall_ns();
        anchor
    }

    fn anchored(&self, anchor: Anchor) {
        self.head.anchored(anchor.durable, anchor.log_tail, anchor.dirty_tail);
        *self.anchors.current.lock().expect("not poisoned") = anchor;
    }

    /// Tells the device what is durable. One slot, no flush; a failure only delays the knowledge.
    pub(super) async fn anchor_durable(self: &Arc<Self>) {
        let _turn = self.anchors.lock.lock().await;
        if self.head.told_durable() >= self.head.durable().0 {
            return; // told meanwhile, perhaps by the clean mark, which a later anchor would void
        }
        let anchor = self.next_anchor();
        count(&self.counters.cache_writes, 1);
        count(&self.counters.cache_write_bytes, BLOCK_BYTES_U64);
        match meta::write_anchor_one(&*self.cache, &self.superblock, &anchor).await {
            Ok(()) => {
                self.anchors.volatile.store(true, Ordering::SeqCst);
                self.anchored(anchor);
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }

    /// Anchors new tails in both slots: on return, reuse of everything before the log tail is permitted.
    pub(super) async fn anchor_tails(
        self: &Arc<Self>,
        tails: Tails,
        probes: Option<ProbeSet>,
    ) -> Result<(), MetaError> {
        let _turn = self.anchors.lock.lock().await;
        let mut anchor = self.next_anchor();
        assert!(tails.log_tail >= anchor.log_tail && tails.dirty_tail >= anchor.dirty_tail, "tails never fall");
        assert!(tails.log_tail <= tails.dirty_tail, "what is dirty stays in the log");
        assert!(tails.dirty_tail.0 <= anchor.durable.0 + 1, "only durable records are written back");
        anchor.log_tail = tails.log_tail;
        anchor.log_tail_segment = tails.log_tail_segment;
        anchor.dirty_tail = tails.dirty_tail;
        // Of a record that is durable, so that its place is known to hold it.
        let start = self.head.newest_from(tails.dirty_tail.min(anchor.durable));
        anchor.dirty_segment = start
            .filter(|live| live.first_seq >= tails.log_tail)
            // Zero is how the format says "not known".
            .filter(|live| live.first_crc.is_some_and(|crc| crc != 0))
            .map(|live| SegmentStart { segment: live.segment, first: live.first_seq, first_crc: live.first_crc });
        self.write_both(anchor, probes).await
    }

    /// Anchors the clean mark: nothing was written after `head`, all of it is durable.
    pub(super) async fn anchor_clean(self: &Arc<Self>) -> Result<(), MetaError> {
        let _turn = self.anchors.lock.lock().await;
        let mut anchor = self.next_anchor();
        assert_eq!(self.head.newest(), anchor.durable, "a clean stop leaves nothing behind");
        anchor.clean = Some(CleanMark { head: anchor.durable, segment: self.head.next_segment() });
        anchor.ram_tail_id = [0; 16];
        self.write_both(anchor, None).await
    }

    /// After a drain: an empty log, so that the volume can be forgotten. Nothing may be logged any more.
    pub(super) async fn anchor_empty(self: &Arc<Self>) -> Result<(), MetaError> {
        let _turn = self.anchors.lock.lock().await;
        let mut anchor = self.next_anchor();
        let head = self.head.newest();
        assert!(head == anchor.durable && anchor.dirty_tail > head, "everything has been written back");
        let Some(segment) = self.head.next_free_segment() else { return Err(MetaError::NoFreeSegment) };
        anchor.log_tail = head.next();
        anchor.log_tail_segment = segment;
        anchor.dirty_tail = head.next();
        anchor.dirty_segment = None;
        anchor.clean = Some(CleanMark { head, segment });
        anchor.probes.clear();
        self.write_both(anchor, None).await
    }

    async fn write_both(self: &Arc<Self>, mut anchor: Anchor, probes: Option<ProbeSet>) -> Result<(), MetaError> {
        if let Some(probes) = probes {
            anchor.probes.retain(|set| set.volume != probes.volume);
            anchor.probes.push(probes);
        }
        let block = anchor.encode(self.superblock.uuid, self.superblock.secret);
        let read = Anchor::decode(&block, &self.geometry, self.superblock.uuid, self.superblock.secret);
        assert!(read.is_ok_and(|read| read == anchor), "what is written can be read: {anchor:?}");
        count(&self.counters.cache_writes, 2);
        count(&self.counters.cache_write_bytes, 2 * BLOCK_BYTES_U64);
        count(&self.counters.cache_flushes, 2);
        match meta::write_anchor_both(&*self.cache, &self.superblock, &anchor).await {
            Ok(generation) => anchor.generation = generation,
            Err(error) => {
                // Before the lock is free: see `AnchorState::settled`.
                self.fail(error.to_string());
                return Err(error);
            }
        }
        self.anchors.volatile.store(false, Ordering::SeqCst);
        self.anchored(anchor);
        Ok(())
    }
}
