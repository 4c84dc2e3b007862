//! Filling an index at a start: tens of millions of entries, of which each lies in another cache line than the one before.
//!
//! The table is divided into regions of 256 KiB, and entries are parked by region until enough of one have come together.
//! Then that region is filled: it fits the processor's cache, its pages the cache of the address translation, and the
//! processor waits for many lines at once. An entry whose home bucket is full of others is looked at last, for its other
//! bucket's line has to come, too.
//!
//! Entries of one block stay in order but for those last ones; so an entry gives way only to one that is later in the log,
//! as everywhere else.

use super::shard::AtHome;
use super::{Action, Entry, Index, IndexError};
use crate::types::{BlockAddr, SectorMask, Slot};

/// Log2 of the buckets of a region: 4096 lines.
const REGION_BITS: u32 = 12;
/// Entries parked in all regions together, if there are many: 16 MiB.
const PARKED_MAX: usize = 1 << 20;
/// Entries whose line is on its way while one is looked at.
const AHEAD: usize = 16;

/// An entry on its way into the table.
#[derive(Debug, Clone, Copy, Default)]
struct Parked {
    /// Its home bucket within the shard.
    bucket: usize,
    /// Packed with the home key.
    word: u64,
}

/// An index that is being filled. Only what is put in by this is in it, and nothing is ever removed; it is nobody else's
/// until [`Loader::finish`].
pub struct Loader {
    index: Index,
    regions_per_shard: usize,
    /// Room for `room` entries for each region.
    parked: Vec<Parked>,
    lens: Vec<u32>,
    room: usize,
    /// Entries of the region that is being filled whose home bucket is full.
    elsewhere: Vec<Parked>,
    error: Option<IndexError>,
}

impl Loader {
    /// Begins with an empty index.
    pub fn new(index: Index) -> Loader {
        assert!(index.is_empty(), "an index of which nothing was removed");
        let regions_per_shard = index.geometry.buckets().div_ceil(1 << REGION_BITS);
        let regions = regions_per_shard * index.shards.len();
        let room = (PARKED_MAX / regions).clamp(32, 2048);
        Loader {
            regions_per_shard,
            parked: vec![Parked::default(); regions * room],
            lens: vec![0; regions],
            room,
            elsewhere: Vec::with_capacity(room),
            error: None,
            index,
        }
    }

    /// Sets the CRC of a slot, if the index keeps them.
    #[inline]
    pub fn set_crc(&self, slot: Slot, crc: u32) {
        if let Some(crcs) = self.index.crcs() {
            crcs.set(slot, crc);
        }
    }

    /// Puts a version of a block in. `newer(a, b)` says that slot `a` is later in the log than slot `b`.
    #[inline]
    pub fn put(
        &mut self,
        addr: BlockAddr,
        slot: Slot,
        mask: SectorMask,
        dirty: bool,
        newer: &impl Fn(Slot, Slot) -> bool,
    ) {
        let Some(permuted) = self.index.widths.pack(addr).map(|packed| self.index.permutation.apply(packed)) else {
            return self.refuse(IndexError::Address(addr));
        };
        if slot.0 >= self.index.slots || mask.is_empty() {
            return self.refuse(if mask.is_empty() { IndexError::EmptyMask(addr) } else { IndexError::Slot(slot) });
        }
        let (shard, quotient) = self.index.geometry.split_shard(permuted);
        let home = self.index.geometry.home(quotient);
        let region = shard * self.regions_per_shard + (home.bucket >> REGION_BITS);
        let at = self.lens[region] as usize;
        let word = self.index.geometry.pack(home.key, Entry { slot, mask, dirty });
        self.parked[region * self.room + at] = Parked { bucket: home.bucket, word };
        self.lens[region] = at as u32 + 1;
        if at + 1 == self.room {
            self.fill(region, newer);
        }
    }

    /// Brings the parked entries of a region into the table.
    fn fill(&mut self, region: usize, newer: &impl Fn(Slot, Slot) -> bool) {
        let Index { geometry, shards, stashed, slots, .. } = &self.index;
        let shard = &shards[region / self.regions_per_shard];
        let parked = &self.parked[region * self.room..][..self.lens[region] as usize];
        parked.iter().take(AHEAD).for_each(|ahead| shard.prefetch_bucket(ahead.bucket));
        for (at, &Parked { bucket, word }) in parked.iter().enumerate() {
            if let Some(ahead) = parked.get(at + AHEAD) {
                shard.prefetch_bucket(ahead.bucket);
            }
            let slot = geometry.unpack(word).slot;
            let is_newer = |before: Entry| newer(slot, before.slot);
            if let AtHome::Full = shard.load_at_home(geometry, bucket, word, is_newer) {
                shard.prefetch_bucket(geometry.other_bucket(bucket, word));
                self.elsewhere.push(Parked { bucket, word });
            }
        }
        self.lens[region] = 0;
        for Parked { bucket, word } in self.elsewhere.drain(..) {
            let entry = geometry.unpack(word);
            let change = |before: Option<Entry>| match before {
                Some(before) if !newer(entry.slot, before.slot) => Ok(Action::Keep),
                _ => Ok(Action::Set(entry)),
            };
            let quotient = geometry.quotient_of(bucket, word);
            if let Err(error) = shard.modify(geometry, quotient, stashed, *slots, change) {
                self.error.get_or_insert(error);
            }
        }
    }

    #[cold]
    fn refuse(&mut self, error: IndexError) {
        self.error.get_or_insert(error);
    }

    /// Brings in what is parked.
    pub fn settle(&mut self, newer: &impl Fn(Slot, Slot) -> bool) {
        (0..self.lens.len()).for_each(|region| self.fill(region, newer));
    }

    /// The entry of a block, once [`Loader::settle`] was called.
    pub fn lookup(&self, addr: BlockAddr) -> Option<Entry> {
        self.index.lookup(addr)
    }

    /// The index, with everything in it, or the first error.
    pub fn finish(mut self, newer: &impl Fn(Slot, Slot) -> bool) -> Result<Index, IndexError> {
        self.settle(newer);
        match self.error {
            None => Ok(self.index),
            Some(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AddressWidths, IndexConfig};
    use super::*;
    use std::collections::BTreeMap;

    fn empty(slots: u64, shards: usize, seed: u64) -> Index {
        let widths = AddressWidths { volume_bits: 0, block_bits: 40 };
        Index::new(&IndexConfig { slots, entries: slots, widths, shards, seed, with_crcs: true }).unwrap()
    }

    /// Blocks come again and again, also while older versions of them wait; tables are filled to their last slot.
    #[test]
    fn a_loaded_index_has_the_newest_version_of_every_block() {
        for (slots, shards, blocks) in
            [(64, 1, 16), (64, 1, 64), (3000, 1, 3000), (60_000, 1, 60_000), (40_000, 4, 100)]
        {
            for seed in 0..20u64 {
                let mut loader = Loader::new(empty(slots, shards, seed));
                let mut model = BTreeMap::new();
                let mut state = seed;
                let mut draw = |below: u64| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 33) % below
                };
                // The slot is the position in the log; the first come in order, the rest as they like.
                let later = |a: Slot, b: Slot| a > b;
                for slot in 0..slots {
                    let block = if blocks == slots { slot } else { draw(blocks) };
                    let slot = if draw(10) == 0 { Slot(draw(slots)) } else { Slot(slot) };
                    let (mask, dirty) = (SectorMask(1 + draw(255) as u8), draw(2) == 0);
                    let entry = Entry { slot, mask, dirty };
                    loader.set_crc(slot, slot.0 as u32);
                    loader.put(BlockAddr(block * 977), slot, mask, dirty, &later);
                    let known = model.entry(block).or_insert(entry);
                    if later(slot, known.slot) {
                        *known = entry;
                    }
                }
                let index = loader.finish(&later).unwrap();
                assert_eq!((index.len(), index.stash_len()), (model.len() as u64, 0));
                assert_eq!(index.dirty_len(), model.values().filter(|entry| entry.dirty).count() as u64);
                for (block, entry) in model {
                    let found = index.lookup(BlockAddr(block * 977)).unwrap();
                    assert_eq!(found.slot, entry.slot, "block {block} of {blocks}, {slots} slots, seed {seed}");
                    assert_eq!((found.mask, found.dirty), (entry.mask, entry.dirty));
                    // It is an index as any other now.
                    assert!(index.remove_if(BlockAddr(block * 977), entry.slot));
                }
                assert!(index.is_empty());
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let later = |a: Slot, b: Slot| a > b;
        let load = |addr, slot, mask| {
            let mut loader = Loader::new(empty(64, 1, 1));
            loader.put(addr, Slot(slot), mask, true, &later);
            loader.finish(&later).map(|index| index.len())
        };
        assert_eq!(load(BlockAddr(1), 0, SectorMask::FULL), Ok(1));
        assert_eq!(load(BlockAddr(1 << 45), 0, SectorMask::FULL), Err(IndexError::Address(BlockAddr(1 << 45))));
        assert_eq!(load(BlockAddr(1), 64, SectorMask::FULL), Err(IndexError::Slot(Slot(64))));
        assert_eq!(load(BlockAddr(1), 0, SectorMask(0)), Err(IndexError::EmptyMask(BlockAddr(1))));
    }
}
