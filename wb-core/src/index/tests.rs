//! The index against a map, and full tables.

use super::*;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// The same cases at every run.
pub(super) fn fixed(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(20), failure_persistence: None, ..ProptestConfig::default() }
}

fn index(slots: u64, volume_bits: u32, block_bits: u32, shards: usize, seed: u64) -> Index {
    let widths = AddressWidths { volume_bits, block_bits };
    Index::new(&IndexConfig { slots, entries: slots, widths, shards, seed, with_crcs: false }).unwrap()
}

#[derive(Debug, Clone)]
enum Op {
    Upsert { block: u64, slot: u64, mask: u8, dirty: bool },
    RemoveIf { block: u64, right: bool },
    SetCleanIf { block: u64, right: bool },
    UpdateIf { block: u64, right: bool, slot: u64, mask: u8 },
    Remove { block: u64 },
    Prefetch { block: u64 },
    SweepBegin { shard: usize },
    SweepStep { buckets: usize, modulus: u64 },
    SweepEnd,
}

fn ops(blocks: u64) -> impl Strategy<Value = Vec<Op>> {
    let block = 0..blocks;
    let slot = 0u64..300;
    let mask = prop_oneof![9 => any::<u8>(), 1 => Just(0u8)];
    let op = prop_oneof![
        8 => (block.clone(), slot.clone(), mask.clone(), any::<bool>())
            .prop_map(|(block, slot, mask, dirty)| Op::Upsert { block, slot, mask, dirty }),
        2 => (block.clone(), any::<bool>()).prop_map(|(block, right)| Op::RemoveIf { block, right }),
        1 => (block.clone(), any::<bool>()).prop_map(|(block, right)| Op::SetCleanIf { block, right }),
        1 => (block.clone(), any::<bool>(), slot, mask)
            .prop_map(|(block, right, slot, mask)| Op::UpdateIf { block, right, slot, mask }),
        3 => block.clone().prop_map(|block| Op::Remove { block }),
        1 => block.prop_map(|block| Op::Prefetch { block }),
        1 => (0usize..4).prop_map(|shard| Op::SweepBegin { shard }),
        2 => (1usize..4, 1u64..5).prop_map(|(buckets, modulus)| Op::SweepStep { buckets, modulus }),
        1 => Just(Op::SweepEnd),
    ];
    proptest::collection::vec(op, 1..400)
}

/// The index and what it should hold.
struct Pair<'a> {
    index: &'a Index,
    model: BTreeMap<u64, Entry>,
    blocks: u64,
    /// A sweep, its shard, and the blocks it must still visit.
    sweep: Option<(Sweep<'a>, usize, BTreeMap<u64, ()>)>,
}

impl Pair<'_> {
    fn addr(&self, block: u64) -> BlockAddr {
        // Two thirds of the blocks are of volume 1, so that widths matter.
        BlockAddr::new(VolumeId(u16::from(!block.is_multiple_of(3))), block)
    }

    fn shard_of(&self, block: u64) -> usize {
        let packed = self.index.widths.pack(self.addr(block)).unwrap();
        self.index.geometry.split_shard(self.index.permutation.apply(packed)).0
    }

    fn forget_in_sweep(&mut self, block: u64) {
        if let Some((_, _, due)) = &mut self.sweep {
            due.remove(&block);
        }
    }

    fn upsert(&mut self, block: u64, slot: u64, mask: u8, dirty: bool) {
        let (slot, mask) = (Slot(slot), SectorMask(mask));
        let known = self.model.get(&block).copied();
        // In this test a larger slot is later in the log.
        let result = self.index.upsert(self.addr(block), slot, mask, dirty, |existing| {
            assert_eq!(Some(existing), known.map(|entry| entry.slot));
            slot > existing
        });
        let expected = match known {
            Some(entry) if entry.slot >= slot => Ok(Upsert::Stale(entry)),
            _ if slot.0 >= self.index.slots => Err(IndexError::Slot(slot)),
            _ if mask.is_empty() => Err(IndexError::EmptyMask(self.addr(block))),
            Some(entry) => Ok(Upsert::Replaced(entry)),
            None if result == Err(IndexError::Full) => {
                assert_eq!(self.index.stash_len(), self.index.slots, "full only when the stash is");
                return;
            }
            None => Ok(Upsert::Inserted),
        };
        assert_eq!(result, expected);
        if matches!(expected, Ok(Upsert::Inserted | Upsert::Replaced(_))) {
            self.model.insert(block, Entry { slot, mask, dirty });
        }
    }

    /// The slot of a block, or a wrong one.
    fn slot(&self, block: u64, right: bool) -> Slot {
        let slot = self.model.get(&block).map_or(Slot(7), |entry| entry.slot);
        if right { slot } else { Slot(slot.0 ^ 1) }
    }

    fn update(&mut self, block: u64, expected: Slot, new: Entry) {
        let matching = self.model.get(&block).copied().filter(|entry| entry.slot == expected);
        let result = self.index.update_if(self.addr(block), expected, |entry| {
            assert_eq!(Some(entry), matching);
            Action::Set(new)
        });
        if matching.is_some() && new.slot.0 >= self.index.slots {
            assert_eq!(result, Err(IndexError::Slot(new.slot)));
        } else if matching.is_some() && new.mask.is_empty() {
            assert_eq!(result, Err(IndexError::EmptyMask(self.addr(block))));
        } else {
            assert_eq!(result, Ok(matching));
            if matching.is_some() {
                self.model.insert(block, new);
            }
        }
    }

    fn remove_if(&mut self, block: u64, slot: Slot) {
        let expected = self.model.get(&block).is_some_and(|entry| entry.slot == slot);
        assert_eq!(self.index.remove_if(self.addr(block), slot), expected);
        if expected {
            self.model.remove(&block);
            self.forget_in_sweep(block);
        }
    }

    fn begin_sweep(&mut self, shard: usize) {
        let shard = shard % self.index.shard_count();
        if let Some((_, swept, _)) = &self.sweep {
            if *swept == shard {
                assert!(self.index.sweep(shard).is_none(), "one sweep of a shard at a time");
            }
            return;
        }
        let due = self.model.keys().filter(|&&block| self.shard_of(block) == shard).map(|&block| (block, ())).collect();
        self.sweep = Some((self.index.sweep(shard).unwrap(), shard, due));
    }

    /// A step that removes the entries whose slot is a multiple of `modulus` + 1.
    fn step_sweep(&mut self, buckets: usize, modulus: u64) {
        let Some((mut sweep, shard, mut due)) = self.sweep.take() else { return };
        let mut visited = BTreeMap::new();
        let more = sweep.step(buckets, |addr, entry| {
            let block = addr.block();
            assert_eq!((addr, Some(&entry)), (self.addr(block), self.model.get(&block)));
            assert_eq!(visited.insert(block, entry), None, "once per step");
            if entry.slot.0.is_multiple_of(modulus + 1) { SweepAction::Remove } else { SweepAction::Keep }
        });
        for (block, entry) in visited {
            assert_eq!(self.shard_of(block), shard);
            due.remove(&block);
            if entry.slot.0.is_multiple_of(modulus + 1) {
                self.model.remove(&block);
            }
        }
        if more {
            self.sweep = Some((sweep, shard, due));
        } else {
            assert!(due.is_empty(), "not visited: {due:?}");
        }
    }

    fn check(&self, block: u64) {
        assert_eq!(self.index.lookup(self.addr(block)), self.model.get(&block).copied(), "block {block}");
    }

    fn check_all(&self) {
        (0..self.blocks).for_each(|block| self.check(block));
        assert_eq!(self.index.len(), self.model.len() as u64);
        assert_eq!(self.index.is_empty(), self.model.is_empty());
        assert_eq!(self.index.dirty_len(), self.model.values().filter(|entry| entry.dirty).count() as u64);
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Upsert { block, slot, mask, dirty } => self.upsert(block, slot, mask, dirty),
            Op::RemoveIf { block, right } => self.remove_if(block, self.slot(block, right)),
            Op::Remove { block } => self.remove_if(block, self.slot(block, true)),
            Op::SetCleanIf { block, right } => {
                let slot = self.slot(block, right);
                let entry = self.model.get_mut(&block).filter(|entry| entry.slot == slot);
                let found = entry.map(|entry| entry.dirty = false).is_some();
                assert_eq!(self.index.set_clean_if(self.addr(block), slot), found);
            }
            Op::UpdateIf { block, right, slot, mask } => {
                let new = Entry { slot: Slot(slot), mask: SectorMask(mask), dirty: block % 2 == 0 };
                self.update(block, self.slot(block, right), new);
            }
            Op::Prefetch { block } => self.index.prefetch(self.addr(block)),
            Op::SweepBegin { shard } => self.begin_sweep(shard),
            Op::SweepStep { buckets, modulus } => self.step_sweep(buckets, modulus),
            Op::SweepEnd => self.sweep = None,
        }
    }
}

fn run_against_model(index: &Index, blocks: u64, ops: Vec<Op>) {
    let mut pair = Pair { index, model: BTreeMap::new(), blocks, sweep: None };
    for (number, op) in ops.into_iter().enumerate() {
        if let Op::Upsert { block, .. } | Op::Remove { block } = op {
            pair.check(block);
        }
        pair.apply(op);
        if number % 16 == 0 {
            pair.check_all();
        }
    }
    pair.check_all();
}

proptest! {
    #![proptest_config(fixed(400))]

    /// Few slots and up to twenty times as many blocks: the table overflows, the stash fills, entries come back.
    #[test]
    fn behaves_like_a_map_when_overfull(slots in 1u64..24, seed: u64, ops in ops(200)) {
        run_against_model(&index(slots, 1, 8, 1, seed), 200, ops);
    }

    #[test]
    fn behaves_like_a_map_with_room(slots in 200u64..400, seed: u64, block_bits in 10u32..48, ops in ops(1000)) {
        run_against_model(&index(slots, 1, block_bits, 1, seed), 1000, ops);
    }

    #[test]
    fn behaves_like_a_map_in_several_shards(seed: u64, block_bits in 10u32..48, ops in ops(300)) {
        let index = index(4 * 4096, 1, block_bits, 4, seed);
        assert_eq!(index.shard_count(), 4);
        run_against_model(&index, 300, ops);
    }
}

/// An overfull index, so that sweeps meet displacement and stash: what stays is visited although others move.
#[test]
fn a_sweep_misses_nothing_while_others_insert() {
    for seed in 0..30u64 {
        let index = index(2000, 0, 40, 1, seed);
        let addr = |i: u64| BlockAddr(i * 977);
        let put = |i: u64| index.upsert(addr(i), Slot(i % 2000), SectorMask::FULL, true, |_| true);
        (0..2300).for_each(|i| _ = put(i).unwrap()); // table of 2208 entries
        assert!(index.stash_len() > 0);
        let mut sweep = index.sweep(0).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        let mut next = 2300;
        while sweep.step(10, |addr, entry| {
            seen.insert(addr.0 / 977);
            if entry.slot.0 % 2 == 0 && addr.0 / 977 >= 2000 { SweepAction::Remove } else { SweepAction::Keep }
        }) {
            for i in next..next + 5 {
                put(i).unwrap();
            }
            assert!(index.remove_if(addr(next), Slot(next % 2000)));
            next += 5;
        }
        assert!((0..2300).all(|i| seen.contains(&i)), "seed {seed}");
        drop(sweep);
        assert!((0..2000).all(|i| index.lookup(addr(i)).is_some_and(|entry| entry.slot == Slot(i))));
    }
}

/// Slots of the largest table that is filled: more where code is optimised.
const FULL_SLOTS_MAX: u64 = if cfg!(debug_assertions) { 2_000_000 } else { 20_000_000 };

/// Fills `index` to its last slot with blocks `addr(0..slots)`, then replaces half of them by others, one by one.
fn fill_and_churn(slots: u64, block_bits: u32, shards: usize, seed: u64, addr: impl Fn(u64) -> u64) {
    let index = index(slots, 0, block_bits, shards, seed);
    let addr = |i: u64| BlockAddr(addr(i) & ((1 << block_bits) - 1));
    for slot in 0..slots {
        let inserted = index.upsert(addr(slot), Slot(slot), SectorMask::FULL, true, |_| false);
        assert_eq!(inserted, Ok(Upsert::Inserted));
    }
    assert_eq!((index.len(), index.stash_len()), (slots, 0), "{slots} slots, {block_bits} bits, seed {seed}");
    let room = (1u64 << block_bits) - slots;
    let churned = (slots / 2).min(room);
    for slot in 0..churned {
        assert!(index.remove_if(addr(slot), Slot(slot)));
        let inserted = index.upsert(addr(slots + slot), Slot(slot), SectorMask(1), false, |_| false);
        assert_eq!(inserted, Ok(Upsert::Inserted));
    }
    assert_eq!((index.len(), index.dirty_len(), index.stash_len()), (slots, slots - churned, 0));
    for slot in (0..slots).step_by(7) {
        let old = (slot >= churned).then_some(Entry { slot: Slot(slot), mask: SectorMask::FULL, dirty: true });
        assert_eq!(index.lookup(addr(slot)), old);
    }
}

#[test]
fn full_tables_need_no_stash() {
    for (seed, slots) in [1, 2, 7, 8, 100, 1000, 4096, 16_384, 65_521, 1_000_000].into_iter().enumerate() {
        for shards in [1, 16] {
            // Blocks in sequence, far apart, and scattered (an odd factor is a bijection of the addresses).
            fill_and_churn(slots, 48, shards, seed as u64, |i| i);
            fill_and_churn(slots, 48, shards, seed as u64, |i| i << 20);
            fill_and_churn(slots, 48, shards, seed as u64, |i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
    }
}

#[test]
fn a_large_full_table_needs_no_stash() {
    fill_and_churn(FULL_SLOTS_MAX, 48, 16, 5, |i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
}

/// Few remainders: the cache is as large as the volume, or half of it, or the volume is tiny.
#[test]
fn full_tables_need_no_stash_when_the_volume_is_hardly_larger_than_the_cache() {
    let bits_max = if cfg!(debug_assertions) { 19 } else { 21 };
    for block_bits in [4, 10, 14, 17, bits_max] {
        for slots in [1u64 << block_bits, (1 << block_bits) * 2 / 3, 1 << (block_bits - 1), 1 << (block_bits - 3)] {
            for shards in [1, 16] {
                fill_and_churn(slots, block_bits, shards, 1, |i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                fill_and_churn(slots, block_bits, shards, 2, |i| i);
            }
        }
    }
}

#[test]
fn small_full_tables_need_a_stash_hardly_ever() {
    let mut stashed = 0;
    for seed in 0..2000 {
        let slots = 1 + seed % 64;
        let index = index(slots, 0, 40, 1, seed);
        for slot in 0..slots {
            index.upsert(BlockAddr(slot * 12_345), Slot(slot), SectorMask::FULL, true, |_| false).unwrap();
        }
        assert_eq!(index.len(), slots);
        stashed += u64::from(index.stash_len() > 0);
    }
    assert!(stashed <= 20, "{stashed} of 2000 small tables");
}

#[test]
fn most_entries_are_in_their_home_bucket() {
    let slots = 200_000;
    let index = index(slots, 0, 48, 1, 3);
    for slot in 0..slots {
        index.upsert(BlockAddr(slot), Slot(slot), SectorMask::FULL, true, |_| false).unwrap();
    }
    let at_home = (0..slots).filter(|&slot| index.is_at_home(BlockAddr(slot))).count() as f64 / slots as f64;
    assert!(at_home > 0.75, "{at_home}");
}

#[test]
fn refusals_name_what_is_wrong() {
    let config = |slots, volume_bits, block_bits| IndexConfig {
        slots,
        entries: slots,
        widths: AddressWidths { volume_bits, block_bits },
        shards: 1,
        seed: 0,
        with_crcs: true,
    };
    let error = |config: &IndexConfig| Index::new(config).err();
    assert_eq!(error(&config(8, 2, 48)), Some(IndexError::AddressTooWide { volume_bits: 2, block_bits: 48 }));
    assert_eq!(error(&config(8, 17, 1)), Some(IndexError::AddressTooWide { volume_bits: 17, block_bits: 1 }));
    assert!(matches!(error(&config(8, u32::MAX, u32::MAX)), Some(IndexError::AddressTooWide { .. })));
    assert_eq!(error(&config(0, 1, 40)), Some(IndexError::SlotCount { slots: 0 }));
    assert!(matches!(error(&config(1 << 41, 1, 40)), Some(IndexError::SlotCount { .. })));
    let index = Index::new(&config(8, 1, 40)).unwrap();
    assert_eq!(index.crcs().unwrap().memory_bytes(), 32);
    assert!(index.memory_bytes() > 32 + 128);
    for outside in [BlockAddr::new(VolumeId(2), 0), BlockAddr::new(VolumeId(1), 1 << 40), BlockAddr(u64::MAX)] {
        let refused = index.upsert(outside, Slot(0), SectorMask::FULL, true, |_| true);
        assert_eq!(refused, Err(IndexError::Address(outside)));
        assert_eq!(index.lookup(outside), None);
        assert!(!index.remove_if(outside, Slot(0)) && !index.set_clean_if(outside, Slot(0)));
        index.prefetch(outside);
    }
    assert!(index.is_empty());
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    // 2^53 bytes: more than a process can address.
    assert!(Shard::new(&Geometry::new(49, 1 << 50, 1 << 50, 1)).is_err());
}

#[test]
fn widths_follow_the_volumes() {
    let widths = AddressWidths::for_volumes([(VolumeId(1), 1 << 30), (VolumeId(5), (1 << 30) + 1)]);
    assert_eq!(widths, AddressWidths { volume_bits: 3, block_bits: 31 });
    let addr = BlockAddr::new(VolumeId(5), 1 << 30);
    assert_eq!(widths.pack(addr), Some(5 << 31 | 1 << 30));
    assert_eq!(widths.unpack(5 << 31 | 1 << 30), addr);
    assert_eq!(AddressWidths::for_volumes([]), AddressWidths { volume_bits: 0, block_bits: 0 });
}

/// Threads publish versions of the same blocks in any order: the latest of each wins, and no pin is taken on another.
#[expect(clippy::disallowed_methods, reason = "threads are what is tested here")]
#[test]
fn threads_agree_on_the_latest_version() {
    const BLOCKS: u64 = 500;
    let index = index(100_000, 0, 40, 8, 9);
    let wrong = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (index, wrong) = (&index, &wrong);
            scope.spawn(move || {
                for turn in 0..20_000u64 {
                    // Slot = turn x 4 + thread: unique, and later is larger.
                    let (block, slot) = ((turn * 7 + thread * 13) % BLOCKS, Slot(turn * 4 + thread));
                    index.prefetch(BlockAddr(block));
                    index.upsert(BlockAddr(block), slot, SectorMask::FULL, true, |old| slot > old).unwrap();
                    let visible = index.lookup(BlockAddr(block)).is_some_and(|entry| entry.slot >= slot);
                    wrong.fetch_add(u64::from(!visible), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(wrong.load(Ordering::Relaxed), 0);
    assert_eq!((index.len(), index.dirty_len()), (BLOCKS, BLOCKS));
    for block in 0..BLOCKS {
        let latest = (0..4u64)
            .flat_map(|thread| (0..20_000u64).map(move |turn| (turn, thread)))
            .filter(|(turn, thread)| (turn * 7 + thread * 13) % BLOCKS == block)
            .map(|(turn, thread)| turn * 4 + thread)
            .max();
        assert_eq!(index.lookup(BlockAddr(block)).map(|entry| entry.slot.0), latest);
    }
}
