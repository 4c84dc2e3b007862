//! Places of the backing device that refuse writes, with a growing pause for each.
//!
//! A block that is refused is logged anew and stays dirty. Without a pause it would be tried and logged again as fast as
//! the devices permit. So its region is left alone for a while: meanwhile its blocks are logged anew untried where a
//! window has them anyway, and when nothing else is dirty, nothing is done.
//!
//! Invariant: a region is known as long as one of its blocks is held, that is, refused or logged anew untried, and not written
//! since: that its neighbours are written says nothing of it. Of too many regions the first is forgotten, which costs a
//! try. A window that has all of the dirty log tells which blocks these are [a refused block is discarded: nothing ever
//! writes its region, whose pause is over for good, and what else is refused is logged anew without a pause].

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Blocks of a region: what one bad place of a disk is likely to concern, and bits of a set.
const REGION_BLOCKS: u64 = 16;
/// First and longest pause.
const PAUSE_NS: (u64, u64) = (100_000_000, 60_000_000_000);
/// Regions that are remembered; more mean a device that fails as a whole.
const REGIONS_MAX: usize = 1024;

#[derive(Debug, Clone, Copy, Default)]
struct Region {
    pause_ns: u64,
    retry_ns: u64,
    /// Blocks that are held, a bit each.
    held: u16,
}

fn bit(block: u64) -> u16 {
    1 << (block % REGION_BLOCKS)
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Refused {
    regions: Mutex<BTreeMap<u64, Region>>,
    /// Their number, so that the usual "none" costs no lock.
    count: AtomicU64,
    /// Blocks that are held.
    blocks: AtomicU64,
}

impl Refused {
    fn with<R>(&self, change: impl FnOnce(&mut BTreeMap<u64, Region>) -> R) -> R {
        let mut regions = self.regions.lock().expect("not poisoned");
        let result = change(&mut regions);
        self.count.store(regions.len() as u64, Ordering::SeqCst);
        self.blocks.store(regions.values().map(|region| u64::from(region.held.count_ones())).sum(), Ordering::SeqCst);
        result
    }
    fn look<R>(&self, look: impl FnOnce(&BTreeMap<u64, Region>) -> R) -> R {
        look(&self.regions.lock().expect("not poisoned"))
    }
    fn any(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }
    /// A block was refused, alone and twice.
    pub fn refuse(&self, block: u64, now_ns: u64) {
        self.with(|regions| {
            if regions.len() >= REGIONS_MAX && !regions.contains_key(&(block / REGION_BLOCKS)) {
                regions.pop_first();
            }
            let region = regions.entry(block / REGION_BLOCKS).or_default();
            region.held |= bit(block);
            if region.retry_ns <= now_ns {
                region.pause_ns = (region.pause_ns * 2).clamp(PAUSE_NS.0, PAUSE_NS.1);
                region.retry_ns = now_ns + region.pause_ns;
            }
        });
    }
    /// Blocks were written.
    pub fn accept(&self, blocks: Range<u64>) {
        if !self.any() || blocks.is_empty() {
            return;
        }
        let within = |number: u64| {
            let first = number * REGION_BLOCKS;
            let (from, to) = (blocks.start.max(first) - first, blocks.end.min(first + REGION_BLOCKS) - first);
            (from..to).fold(0, |set, block| set | bit(block))
        };
        self.with(|regions| {
            regions
                .range_mut(blocks.start / REGION_BLOCKS..=(blocks.end - 1) / REGION_BLOCKS)
                .for_each(|(number, region)| region.held &= !within(*number));
            regions.retain(|_, region| region.held != 0);
        });
    }
    /// The block is to be left alone now.
    pub fn pauses(&self, block: u64, now_ns: u64) -> bool {
        self.any()
            && self.look(|regions| regions.get(&(block / REGION_BLOCKS)).is_some_and(|region| region.retry_ns > now_ns))
    }
    /// A window is done that logged these blocks anew. If it had all that is dirty, no other is held.
    pub fn relogged(&self, blocks: &[u64], all: bool) {
        if blocks.is_empty() && !self.any() {
            return;
        }
        self.with(|regions| {
            if all {
                regions.values_mut().for_each(|region| region.held = 0);
            }
            for block in blocks {
                if let Some(region) = regions.get_mut(&(block / REGION_BLOCKS)) {
                    region.held |= bit(*block);
                }
            }
            if all {
                regions.retain(|_, region| region.held != 0);
            }
        });
    }
    /// Blocks that are held because they could not be written.
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::SeqCst)
    }
    /// No region may be tried now.
    pub fn all_pause(&self, now_ns: u64) -> bool {
        !self.any() || self.look(|regions| regions.values().all(|region| region.retry_ns > now_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_a_write_succeeds() {
        let refused = Refused::default();
        let mut now_ns = 0;
        for expected in [PAUSE_NS.0, 2 * PAUSE_NS.0, 4 * PAUSE_NS.0] {
            refused.refuse(17, now_ns);
            refused.refuse(18, now_ns); // the same region, at the same time
            assert!(refused.pauses(16, now_ns + expected - 1) && refused.all_pause(now_ns));
            assert!(!refused.pauses(16, now_ns + expected) && !refused.pauses(15, now_ns));
            assert!(!refused.all_pause(now_ns + expected));
            now_ns += expected;
        }
        refused.accept(19..40);
        assert!(refused.blocks() == 2 && !refused.all_pause(now_ns), "neighbours are no news");
        refused.accept(0..18);
        refused.accept(18..19);
        assert!(refused.blocks() == 0 && refused.all_pause(now_ns), "nothing waits");
        (0..40).for_each(|_| {
            now_ns += 100_000_000_000;
            refused.refuse(1, now_ns);
        });
        assert!(!refused.pauses(1, now_ns + PAUSE_NS.1));
    }

    /// [a refused block is discarded]: see the head of the file.
    #[test]
    fn what_is_dirty_no_more_is_held_no_more() {
        let refused = Refused::default();
        for block in [5, 100, 101] {
            refused.refuse(block, 0);
        }
        refused.relogged(&[5, 100, 101], true);
        assert_eq!(refused.blocks(), 3);
        // A window without them says nothing of them.
        refused.relogged(&[], false);
        assert_eq!(refused.blocks(), 3);
        // One that has all that is dirty does.
        refused.relogged(&[5], true);
        assert_eq!(refused.blocks(), 1);
        assert!(refused.pauses(5, 0) && !refused.pauses(100, 0));
        refused.accept(0..200);
        assert_eq!(refused.blocks(), 0);
    }
}
