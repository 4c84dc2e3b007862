//! Which version of each block counts, from the entries of the log in log order. Pure.
//!
//! Memory: about 60 bytes per cached block. That is much more than the engine's index takes, and fine for tools that run
//! while no daemon does.

use crate::format::{Entry, EntryKind};
use crate::types::*;
use std::collections::BTreeMap;

/// The newest payload of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Record that holds it.
    pub seq: Seq,
    /// Where it lies.
    pub slot: Slot,
    /// CRC of the payload.
    pub crc: u32,
    /// Valid sectors.
    pub mask: SectorMask,
    /// The backing device does not have it yet.
    pub dirty: bool,
}

/// The newest range entry over some blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeState {
    /// Behind the last block of the piece.
    pub end: u64,
    /// Zeroes, discard, invalidate or poison.
    pub kind: EntryKind,
    /// Record that says so.
    pub seq: Seq,
    /// It was not yet applied to the backing device.
    pub dirty: bool,
}

/// The state of every block that the log knows of: each is in at most one of the two maps.
#[derive(Debug, Clone, Default)]
pub struct LiveMap {
    blocks: BTreeMap<u64, Version>,
    /// Start -> piece; pieces do not overlap.
    ranges: BTreeMap<u64, RangeState>,
}

impl LiveMap {
    /// An empty map.
    pub fn new() -> LiveMap {
        LiveMap::default()
    }

    /// Takes in an entry of record `seq`; entries come in log order. `slot` is that of its payload, if it owns one.
    pub fn apply(&mut self, entry: &Entry, slot: Option<Slot>, seq: Seq, dirty_tail: Seq) {
        let start = entry.addr.0;
        let above_tail = seq >= dirty_tail;
        match (entry.kind, slot) {
            (EntryKind::Void, _) => {}
            (_, Some(slot)) => {
                self.cut(start, start.saturating_add(1));
                let before = self.blocks.get(&start);
                // A clean copy that takes the place of a dirty one inherits its dirtiness.
                let inherits = before.is_some_and(|version| version.dirty);
                let dirty = above_tail && (entry.kind == EntryKind::Dirty || inherits);
                self.blocks.insert(start, Version { seq, slot, crc: entry.crc, mask: entry.mask, dirty });
            }
            (kind, None) => {
                // The very last volume number would carry over; no cache has it.
                let end = start.saturating_add(entry.blocks);
                self.remove_blocks(start, end);
                self.cut(start, end);
                let dirty = above_tail && matches!(kind, EntryKind::Zeroes | EntryKind::Discard);
                self.ranges.insert(start, RangeState { end, kind, seq, dirty });
            }
        }
    }

    fn remove_blocks(&mut self, start: u64, end: u64) {
        while let Some(block) = self.blocks.range(start..end).next().map(|found| *found.0) {
            self.blocks.remove(&block);
        }
    }

    /// Removes `start..end` from all range pieces.
    fn cut(&mut self, start: u64, end: u64) {
        let mut touched: Vec<(u64, RangeState)> = Vec::new();
        if let Some((from, piece)) = self.ranges.range(..start).next_back()
            && piece.end > start
        {
            touched.push((*from, *piece));
        }
        touched.extend(self.ranges.range(start..end).map(|(from, piece)| (*from, *piece)));
        for (from, piece) in touched {
            self.ranges.remove(&from);
            if from < start {
                self.ranges.insert(from, RangeState { end: start, ..piece });
            }
            if piece.end > end {
                self.ranges.insert(end, piece);
            }
        }
    }

    /// The payload that counts for a block.
    pub fn block(&self, addr: BlockAddr) -> Option<&Version> {
        self.blocks.get(&addr.0)
    }
    /// The range piece that counts for a block.
    pub fn range(&self, addr: BlockAddr) -> Option<&RangeState> {
        self.ranges.range(..=addr.0).next_back().map(|found| found.1).filter(|piece| piece.end > addr.0)
    }
    /// The range pieces that count for some of `blocks` blocks from `addr` on.
    pub fn range_pieces(&self, addr: BlockAddr, blocks: u64) -> impl Iterator<Item = &RangeState> {
        let first = self.ranges.range(..addr.0).next_back().filter(|found| found.1.end > addr.0);
        first.into_iter().chain(self.ranges.range(addr.0..addr.0.saturating_add(blocks))).map(|found| found.1)
    }
    /// True if the payload in `slot` is the one that counts for `addr`.
    pub fn is_live(&self, addr: BlockAddr, slot: Slot) -> bool {
        self.block(addr).is_some_and(|version| version.slot == slot)
    }
    /// All blocks with payload, by address.
    pub fn blocks(&self) -> impl Iterator<Item = (BlockAddr, &Version)> {
        self.blocks.iter().map(|(addr, version)| (BlockAddr(*addr), version))
    }
    /// All range pieces, by address.
    pub fn ranges(&self) -> impl Iterator<Item = (BlockAddr, &RangeState)> {
        self.ranges.iter().map(|(addr, piece)| (BlockAddr(*addr), piece))
    }
    /// Blocks with payload.
    pub fn cached_blocks(&self) -> u64 {
        self.blocks.len() as u64
    }
    /// Blocks with payload that the backing device does not have yet.
    pub fn dirty_blocks(&self) -> u64 {
        self.blocks.values().filter(|version| version.dirty).count() as u64
    }
    /// Blocks that are lost.
    pub fn poisoned_blocks(&self) -> u64 {
        let poison = self.ranges.iter().filter(|(_, piece)| piece.kind == EntryKind::Poison);
        poison.map(|(start, piece)| piece.end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addr(block: u64) -> BlockAddr {
        BlockAddr::new(VolumeId(1), block)
    }

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Model {
        None,
        Payload(u64, bool),
        Range(EntryKind, u64, bool),
    }

    proptest! {
        #[test]
        fn agrees_with_an_array(
            ops in proptest::collection::vec((0u8..7, 0u64..40, 1u64..12), 1..60),
            dirty_tail in 1u64..60,
        ) {
            let mut live = LiveMap::new();
            let mut model = [Model::None; 64];
            for (at, (kind, start, blocks)) in ops.into_iter().enumerate() {
                let seq = at as u64 + 1;
                let kind = EntryKind::from_u8(kind).expect("a kind");
                let entry = match kind {
                    EntryKind::Void => Entry::VOID,
                    _ if kind.has_payload() => Entry::payload(addr(start), kind, 5, SectorMask::FULL),
                    _ => Entry::range(addr(start), kind, blocks),
                };
                live.apply(&entry, kind.has_payload().then_some(Slot(seq)), Seq(seq), Seq(dirty_tail));
                let above = seq >= dirty_tail;
                match kind {
                    EntryKind::Void => {}
                    EntryKind::Dirty => model[start as usize] = Model::Payload(seq, above),
                    EntryKind::Clean => {
                        let was = matches!(model[start as usize], Model::Payload(_, true));
                        model[start as usize] = Model::Payload(seq, above && was);
                    }
                    _ => {
                        let dirty = above && matches!(kind, EntryKind::Zeroes | EntryKind::Discard);
                        model[start as usize..(start + blocks) as usize].fill(Model::Range(kind, seq, dirty));
                    }
                }
            }
            for (block, expected) in model.iter().enumerate() {
                let at = addr(block as u64);
                let found = match (live.block(at), live.range(at)) {
                    (None, None) => Model::None,
                    (Some(version), None) => Model::Payload(version.seq.0, version.dirty),
                    (None, Some(piece)) => Model::Range(piece.kind, piece.seq.0, piece.dirty),
                    (Some(_), Some(_)) => panic!("block {block} is in both maps"),
                };
                prop_assert_eq!(found, *expected);
            }
            let poisoned = model.iter().filter(|state| matches!(state, Model::Range(EntryKind::Poison, ..))).count();
            prop_assert_eq!(live.poisoned_blocks(), poisoned as u64);
        }
    }
}
