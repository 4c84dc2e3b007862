//! A volatile write cache: what was written and is not yet durable, and what a power cut leaves of it.

use super::fault::AtomicUnit;
use super::medium::Medium;
use super::rng::SimRng;
use crate::types::{BLOCK_BYTES, SECTOR_BYTES};
use std::collections::BTreeSet;
use std::sync::Arc;

const SECTOR: u64 = SECTOR_BYTES as u64;

/// What a write puts on the medium.
#[derive(Clone)]
pub(super) enum Content {
    Data(Arc<[u8]>),
    Zeroes(u64),
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        match self {
            Content::Data(data) => data.len() as u64,
            Content::Zeroes(len) => *len,
        }
    }

    /// Puts the part `start..start + len` of this content, which lies at `offset`, on the medium.
    fn apply_part(&self, medium: &mut Medium, offset: u64, start: u64, len: u64) {
        match self {
            Content::Data(data) => medium.write(offset + start, &data[start as usize..(start + len) as usize]),
            Content::Zeroes(_) => medium.zero(offset + start, len),
        }
    }

    pub(super) fn apply(&self, medium: &mut Medium, offset: u64) {
        self.apply_part(medium, offset, 0, self.len());
    }
}

/// A write that took effect and is not durable.
#[derive(Clone)]
pub(super) struct Pending {
    pub(super) id: u64,
    pub(super) offset: u64,
    pub(super) content: Content,
    /// The device has said that it is done; a flush that starts now covers it.
    pub(super) completed: bool,
    /// A failed flush lost it: no later flush makes it durable.
    pub(super) doomed: bool,
    /// Sectors (numbers on the device) of which a newer version is durable already.
    superseded: BTreeSet<u64>,
}

impl Pending {
    pub(super) fn new(id: u64, offset: u64, content: Content, completed: bool) -> Pending {
        Pending { id, offset, content, completed, doomed: false, superseded: BTreeSet::new() }
    }

    fn sectors(&self) -> std::ops::Range<u64> {
        self.offset / SECTOR..(self.offset + self.content.len()) / SECTOR
    }

    fn overlaps(&self, other: &Pending) -> bool {
        let (mine, theirs) = (self.sectors(), other.sectors());
        mine.start < theirs.end && theirs.start < mine.end
    }

    /// Bytes of this write that stay whole in a power cut, as ranges on the device.
    fn units(&self, atomic: AtomicUnit) -> Vec<(u64, u64)> {
        let unit = match atomic {
            AtomicUnit::Sector => SECTOR,
            AtomicUnit::Block => BLOCK_BYTES as u64,
            AtomicUnit::Write => return vec![(self.offset, self.content.len())],
        };
        let end = self.offset + self.content.len();
        let mut units = Vec::with_capacity((self.content.len() / unit) as usize + 1);
        let mut at = self.offset;
        while at < end {
            let next = ((at / unit + 1) * unit).min(end);
            units.push((at, next - at));
            at = next;
        }
        units
    }

    /// Puts a range of this write on the medium, save sectors with a newer durable version.
    fn apply_range(&self, medium: &mut Medium, at: u64, len: u64) {
        if self.superseded.is_empty() {
            return self.content.apply_part(medium, self.offset, at - self.offset, len);
        }
        for sector in at / SECTOR..(at + len) / SECTOR {
            if !self.superseded.contains(&sector) {
                self.content.apply_part(medium, self.offset, sector * SECTOR - self.offset, SECTOR);
            }
        }
    }

    fn apply_all(&self, medium: &mut Medium) {
        self.apply_range(medium, self.offset, self.content.len());
    }
}

/// How a power cut treats the volatile writes as a whole; each style finds other bugs.
#[derive(Debug, Clone, Copy)]
enum CutStyle {
    /// The cache was written out in order up to some write.
    Prefix,
    /// The youngest writes were lucky, the older ones were not.
    Suffix,
    /// Each for itself, in any order.
    Independent,
    /// All made it.
    All,
    /// None made it.
    None,
}

/// Result of a power cut.
pub(super) struct CutResult {
    pub(super) kept: u64,
    pub(super) lost: u64,
    pub(super) torn: u64,
    /// Atomic units that were being written: candidates for unreadable sectors.
    pub(super) torn_units: Vec<(u64, u64)>,
}

/// All volatile writes of a device, in the order in which they took effect.
#[derive(Clone, Default)]
pub(super) struct VolatileCache {
    writes: Vec<Pending>,
}

impl VolatileCache {
    pub(super) fn push(&mut self, write: Pending) {
        self.writes.push(write);
    }

    pub(super) fn len(&self) -> usize {
        self.writes.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.writes.iter().map(|write| write.content.len()).sum()
    }

    pub(super) fn clear(&mut self) {
        self.writes.clear();
    }

    pub(super) fn complete(&mut self, id: u64) {
        if let Some(write) = self.writes.iter_mut().find(|write| write.id == id) {
            write.completed = true;
        }
    }

    /// Identities of the writes that a flush submitted now covers.
    pub(super) fn completed(&self) -> BTreeSet<u64> {
        self.writes.iter().filter(|write| write.completed && !write.doomed).map(|write| write.id).collect()
    }

    pub(super) fn doom(&mut self, ids: &BTreeSet<u64>) {
        self.writes.iter_mut().filter(|write| ids.contains(&write.id)).for_each(|write| write.doomed = true);
    }

    /// Makes the writes `ids` durable: `stable` gets them, and no older version of their sectors can come back.
    pub(super) fn make_durable(&mut self, ids: &BTreeSet<u64>, stable: &mut Medium) {
        if ids.is_empty() {
            return;
        }
        let writes = std::mem::take(&mut self.writes);
        let mut left: Vec<Pending> = Vec::new();
        for write in writes {
            if !ids.contains(&write.id) {
                left.push(write);
                continue;
            }
            write.apply_all(stable);
            for older in left.iter_mut().filter(|older| older.overlaps(&write)) {
                let common =
                    write.sectors().start.max(older.sectors().start)..write.sectors().end.min(older.sectors().end);
                older.superseded.extend(common);
            }
        }
        self.writes = left;
    }

    /// Power fails: `in_flight` are writes that have not taken effect yet. What survives goes to `stable`.
    pub(super) fn power_cut(
        &mut self,
        in_flight: Vec<Pending>,
        atomic: AtomicUnit,
        stable: &mut Medium,
        rng: &mut SimRng,
    ) -> CutResult {
        let mut writes = std::mem::take(&mut self.writes);
        writes.extend(in_flight);
        let style = rng.pick(&[
            CutStyle::Independent,
            CutStyle::Independent,
            CutStyle::Prefix,
            CutStyle::Suffix,
            CutStyle::All,
            CutStyle::None,
        ]);
        let torn_ppm = rng.pick(&[0, 100_000, 500_000, 1_000_000]);
        let keep_ppm = rng.pick(&[50_000, 500_000, 950_000]);
        let boundary = rng.below(writes.len() as u64 + 1) as usize;
        let mut result = CutResult { kept: 0, lost: 0, torn: 0, torn_units: Vec::new() };
        let mut survivors = Vec::new();
        for (at, write) in writes.iter().enumerate() {
            let (keep, at_boundary) = match style {
                CutStyle::All => (true, false),
                CutStyle::None => (false, false),
                CutStyle::Prefix => (at < boundary, at == boundary),
                CutStyle::Suffix => (at >= boundary, at + 1 == boundary),
                CutStyle::Independent => (rng.chance_ppm(keep_ppm), true),
            };
            if at_boundary && rng.chance_ppm(torn_ppm) {
                survivors.push((at, tear(write.units(atomic), rng)));
                result.torn += 1;
                let units = write.units(atomic);
                result.torn_units.push(rng.pick(&units));
            } else if keep {
                survivors.push((at, vec![(write.offset, write.content.len())]));
                result.kept += 1;
            } else {
                result.lost += 1;
            }
        }
        // A cache writes back in any order: each sector may end up with any of its versions.
        if matches!(style, CutStyle::Independent) && rng.below(2) == 0 {
            rng.shuffle(&mut survivors);
        }
        for (at, ranges) in survivors {
            for (offset, len) in ranges {
                writes[at].apply_range(stable, offset, len);
            }
        }
        result
    }

    /// The atomic units of all volatile writes, in order, for exhaustive tests.
    pub(super) fn units(&self, in_flight: &[Pending], atomic: AtomicUnit) -> Vec<(Pending, u64, u64)> {
        let all = self.writes.iter().chain(in_flight);
        all.flat_map(|write| write.units(atomic).into_iter().map(|(at, len)| (write.clone(), at, len))).collect()
    }
}

/// Which units of a torn write survive: a beginning, an end, or any of them. Never all and never none, if there are
/// two at least.
pub(super) fn tear(mut units: Vec<(u64, u64)>, rng: &mut SimRng) -> Vec<(u64, u64)> {
    if units.len() < 2 {
        return if rng.below(2) == 0 { units } else { Vec::new() };
    }
    let count = rng.range(1, units.len() as u64 - 1) as usize;
    match rng.below(3) {
        0 => {}
        1 => units.reverse(),
        _ => rng.shuffle(&mut units),
    }
    units.truncate(count);
    units
}

/// The state of a device at one moment: what is durable and what might be. Cheap to take.
#[derive(Clone)]
pub struct Snapshot {
    pub(super) stable: Medium,
    pub(super) units: Vec<(Pending, u64, u64)>,
}

impl Snapshot {
    /// Number of atomic units that are not durable yet; 2^n images are possible.
    pub fn units(&self) -> usize {
        self.units.len()
    }

    /// Where unit `index` lies: offset and length in bytes.
    pub fn unit(&self, index: usize) -> (u64, u64) {
        (self.units[index].1, self.units[index].2)
    }

    /// The image that a power cut leaves if exactly the units that `keep` chooses survive. All subsets together are all
    /// images that the contract of the device allows, for every order of writing back.
    pub fn materialise(&self, mut keep: impl FnMut(usize) -> bool) -> Medium {
        let mut medium = self.stable.clone();
        for (index, (write, at, len)) in self.units.iter().enumerate() {
            if keep(index) {
                write.apply_range(&mut medium, *at, *len);
            }
        }
        medium
    }
}
