//! What the simulator compares with the offline checker. Compiled for tests and with feature `sim` only.

use super::Engine;
use crate::env::Env;
use crate::index::{RangeKind, SweepAction};
use crate::types::*;

/// A count of what an engine holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audit {
    /// Blocks whose newest version is payload that the backing device does not have.
    pub dirty_blocks: u64,
    /// Blocks whose newest version is "lost".
    pub poisoned_blocks: u64,
}

impl<E: Env> Engine<E> {
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
