//! What the simulator compares with the offline checker. Compiled for tests and with feature `sim` only.

use super::Engine;
use crate::env::Env;
use crate::index::{RangeKind, SweepAction};
use crate::types::*;
use std::sync::atomic::Ordering;

/// Pieces that poison may add to the range map beyond what requests may: it is not asked whether there is room.
const RANGES_OF_RELOG: usize = 64;

/// A count of what an engine holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audit {
    /// Blocks whose newest version is payload that the backing device does not have.
    pub dirty_blocks: u64,
    /// Blocks whose newest version is "lost".
    pub poisoned_blocks: u64,
}

impl<E: Env> Engine<E> {
    /// A bound of memory or of a queue that does not hold although every request has been answered, if there is one.
    /// `tasks_max`: the most tasks that the engine had at once.
    pub fn out_of_bounds(&self, tasks_max: usize) -> Option<String> {
        let inner = &self.inner;
        let under_way: u64 = inner.operations.all().map(|count| count.load(Ordering::SeqCst)).sum();
        if under_way > 0 {
            return Some(format!("{under_way} requests count as under way, and all were answered"));
        }
        let (free, all) = (inner.pool.free_largest(), inner.pool.count());
        if free < all {
            return Some(format!("{} buffers of reads were not given back", all - free));
        }
        let (pieces, max) = (inner.served.range_pieces.load(Ordering::SeqCst), inner.config.range_pieces);
        if pieces > max + RANGES_OF_RELOG {
            return Some(format!("{pieces} pieces in the range map, the limit for requests is {max}"));
        }
        let (records, buffers) = (inner.head.newest().0 - inner.head.durable().0.0, inner.config.record_buffers);
        if records > buffers as u64 {
            return Some(format!("{records} records are kept for a flush, in {buffers} buffers"));
        }
        // One for each write of a record, one for maintenance, one for a round of group commit, a few for anchors and reclaim.
        if tasks_max > buffers + 8 {
            return Some(format!("{tasks_max} tasks at once, with {buffers} record buffers"));
        }
        None
    }

    /// Counts block by block. `None` while write-back sweeps the index, too; never right after a start.
    pub fn audit(&self) -> Option<Audit> {
        let inner = &self.inner;
        let mut dirty = Vec::new();
        for shard in 0..inner.index.shard_count() {
            let mut sweep = inner.index.sweep(shard)?;
            while sweep.step(1024, |addr, entry| {
                if entry.dirty {
                    dirty.push((addr, entry.slot));
                }
                SweepAction::Keep
            }) {}
        }
        let hidden = |(addr, slot): &(BlockAddr, Slot)| {
            inner.piece_at(addr.block()).is_some_and(|piece| piece.pos >= inner.segments.pos(*slot))
        };
        let dirty_blocks = dirty.iter().filter(|found| !hidden(found)).count() as u64;
        let pieces: Vec<_> = {
            let ranges = inner.served.ranges.lock().expect("not poisoned");
            ranges.overlaps(0..1 << BLOCK_NUMBER_BITS).collect()
        };
        let poison = pieces.into_iter().filter(|(_, piece)| piece.kind == RangeKind::Poison);
        let poisoned_blocks = poison
            .flat_map(|(blocks, piece)| blocks.map(move |block| (block, piece.pos)))
            .filter(|(block, pos)| {
                inner.index.lookup(inner.addr(*block)).is_none_or(|entry| inner.segments.pos(entry.slot) < *pos)
            })
            .count() as u64;
        Some(Audit { dirty_blocks, poisoned_blocks })
    }
}
