//! Places of the backing device that refuse writes, with a growing pause for each.
//!
//! A block that is refused is logged anew and stays dirty. Without a pause it would be tried and logged again as fast as
//! the devices permit. So its region is left alone for a while: meanwhile its blocks are logged anew untried where a
//! window has them anyway, and when nothing else is dirty, nothing is done.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Blocks of a region: what one bad place of a disk is likely to concern.
const REGION_BLOCKS: u64 = 16;
/// First and longest pause.
const PAUSE_NS: (u64, u64) = (100_000_000, 60_000_000_000);
/// Regions that are remembered; more mean a device that fails as a whole.
const REGIONS_MAX: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Region {
    pause_ns: u64,
    retry_ns: u64,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Refused {
    regions: Mutex<BTreeMap<u64, Region>>,
    /// Their number, so that the usual "none" costs no lock.
    count: AtomicU64,
    /// Blocks that the last window logged anew because they were refused.
    blocks: AtomicU64,
}

impl Refused {
    fn with<R>(&self, change: impl FnOnce(&mut BTreeMap<u64, Region>) -> R) -> R {
        let mut regions = self.regions.lock().expect("not poisoned");
        let result = change(&mut regions);
        self.count.store(regions.len() as u64, Ordering::SeqCst);
        result
    }
    fn any(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }
    /// A block was refused, alone and twice.
    pub fn refuse(&self, block: u64, now_ns: u64) {
        self.with(|regions| {
            if regions.len() >= REGIONS_MAX {
                regions.pop_first();
            }
            let region = regions.entry(block / REGION_BLOCKS).or_insert(Region { pause_ns: 0, retry_ns: 0 });
            if region.retry_ns <= now_ns {
                region.pause_ns = (region.pause_ns * 2).clamp(PAUSE_NS.0, PAUSE_NS.1);
                region.retry_ns = now_ns + region.pause_ns;
            }
        });
    }
    /// A block was written.
    pub fn accept(&self, block: u64) {
        if self.any() {
            self.with(|regions| regions.remove(&(block / REGION_BLOCKS)));
        }
    }
    /// The block is to be left alone now.
    pub fn pauses(&self, block: u64, now_ns: u64) -> bool {
        self.any()
            && self.with(|regions| regions.get(&(block / REGION_BLOCKS)).is_some_and(|region| region.retry_ns > now_ns))
    }
    /// A window is done that logged so many refused blocks anew.
    pub fn relogged(&self, blocks: u64) {
        self.blocks.store(blocks, Ordering::SeqCst);
    }
    /// Blocks that the last window could not write.
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::SeqCst)
    }
    /// No region may be tried now.
    pub fn all_pause(&self, now_ns: u64) -> bool {
        self.any() && self.with(|regions| regions.values().all(|region| region.retry_ns > now_ns))
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
            now_ns += expected;
        }
        refused.accept(20);
        assert!(!refused.pauses(17, now_ns) && !refused.all_pause(now_ns));
        (0..40).for_each(|_| {
            now_ns += 100_000_000_000;
            refused.refuse(1, now_ns);
        });
        assert!(!refused.pauses(1, now_ns + PAUSE_NS.1));
    }
}
