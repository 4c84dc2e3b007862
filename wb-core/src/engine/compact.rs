//! Compaction: the oldest segments are freed by logging anew what is live in them, if that is little.
//!
//! Where blocks are overwritten again and again, most of an old segment is superseded. To write the rest to the disk would
//! cost a seek for each; to log it anew costs the cache device a share of a large write. The log then holds more different
//! dirty blocks before it is full, so that a sweep has more to write per track of the disk, and each block has more time
//! to be overwritten once more.
//!
//! No block is moved more often than users write: without a limit, a log of a few scattered blocks would be moved on and on
//! for nothing, and the cache device would be worn by it. And a drain that begins meanwhile is told how far the log has
//! grown [a block is moved behind the drain's target: the drain ends, and the disk does not have it].
//!
//! It is re-logging as of stuck blocks, with the same rules: under the block's lock, only what is still the newest version,
//! durable before the dirty tail passes the old place. But it never touches the reserve, which is for what has no other
//! way: where users could not write, a step ends, and a window makes space. Windows with ranges are left to write-back.

use super::Inner;
use super::config::Shares;
use super::sweep::{Stuck, gone};
use super::window::{Window, WindowLimits};
use super::writeback::WindowError;
use crate::env::Env;
use crate::log::head::Class;
use crate::types::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Fewer dirty segments than this are not compacted: the last one is being filled, and each holds a header at least.
const SEGMENTS_MIN: u64 = 4;

impl<E: Env> Inner<E> {
    /// True if so little of the dirty log is live that logging it anew is worth a try.
    pub(super) fn may_compact(&self) -> bool {
        let (_, dirty_tail) = self.anchors.tails();
        let segments = self.head.count_from(dirty_tail) as u64;
        let written = self.counters.snapshot().user_write_bytes - self.user_bytes_at_start;
        let moved = self.writeback.moved_blocks.load(Ordering::SeqCst);
        segments >= SEGMENTS_MIN
            && moved < written / BLOCK_BYTES_U64
            && self.is_sparse(self.index.dirty_len(), segments)
    }

    fn is_sparse(&self, live: u64, segments: u64) -> bool {
        live * 100 < segments * u64::from(self.geometry.record_blocks()) * u64::from(self.config.compact_percent)
    }

    /// Compacts as long as space is short, and not for long: the disk idles meanwhile. True: some was made.
    pub(super) async fn make_space(self: &Arc<Self>) -> Result<bool, WindowError> {
        let (_, dirty_tail) = self.anchors.tails();
        if dirty_tail.0 <= self.writeback.drain_to.load(Ordering::SeqCst) {
            return Ok(false);
        }
        let most = u64::from(Shares::of(&self.geometry).pace_segments) * u64::from(self.geometry.record_blocks());
        let from = self.head.count_from(dirty_tail);
        let enough = from.saturating_sub((self.geometry.segments as usize / 8).max(1));
        let mut made = false;
        while self.blocks_left() < most && self.head.count_from(self.anchors.tails().1) > enough && self.may_compact() {
            if self.writeback.is_stopping() || !self.compact().await? {
                break;
            }
            made = true;
        }
        Ok(made)
    }

    /// One step. False: the oldest segments have too much that is live, or ranges, or a block that cannot be read.
    pub(super) async fn compact(self: &Arc<Self>) -> Result<bool, WindowError> {
        let shares = Shares::of(&self.geometry);
        let durable = self.head.durable();
        let (_, dirty_tail) = self.anchors.tails();
        let limits = WindowLimits {
            segments: 4 * shares.reserve_segments as usize,
            items: (shares.reserve_segments as usize - 1) * self.geometry.record_blocks() as usize,
            ranges: 1,
            poisoned: 0,
            zone: None,
        };
        let window = self.gather(limits, dirty_tail, Seq(0), durable).await?;
        let live = window.items.len();
        if window.end < dirty_tail || !window.ranges.is_empty() || !self.is_sparse(live as u64, window.segments as u64)
        {
            return Ok(false);
        }
        let moved = self.move_all(&window).await?;
        self.relogged().await?;
        // A drain that wants something of this window wants it where it is now.
        self.writeback.move_drain(dirty_tail, self.head.newest());
        if !moved {
            return Ok(false);
        }
        self.reclaim(Some(window.end.next()), None).await?;
        Ok(true)
    }

    /// Logs the items anew. False: some cannot be read, or there is no room left for them beside the reserve.
    async fn move_all(self: &Arc<Self>, window: &Window) -> Result<bool, WindowError> {
        for items in window.items.chunks(self.window_pool.max_len() / BLOCK_BYTES) {
            let batch = self.read_batch(items, 0).await;
            if batch.gone {
                return Err(gone());
            }
            if batch.hopeless || !batch.lost.is_empty() {
                return Ok(false);
            }
            for (item, data) in batch.good {
                if !self.relog_one(Stuck { item, data: Some(data) }, Class::User).await? {
                    return Ok(false);
                }
                self.writeback.moved_blocks.fetch_add(1, Ordering::SeqCst);
            }
        }
        Ok(true)
    }
}
