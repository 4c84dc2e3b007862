//! Where the newest version of every cached block is: pure, synchronous, model-tested.
//!
//! * [`Index`]: block address -> slot, valid sectors, dirty; 8 bytes per slot of the cache (scheme: [`quotient`],
//!   [`shard`]).
//! * [`CrcTable`]: CRC-32C of the payload of every slot.
//! * [`RangeMap`]: zeroed, discarded, lost and invalidated ranges of a volume.
//!
//! All memory of the first two is allocated and touched at creation, so that a lack of it is a refusal at start and
//! nothing later (not in the simulator, whose tables are mostly empty).
//! The one exception, the shards' stash, is for entries that found no place; see [`shard`]. Range maps grow up to their
//! capacity.

mod crcs;
mod load;
mod memory;
mod permute;
pub mod quotient;
pub mod ranges;
pub mod shard;
#[cfg(test)]
mod tests;

pub use crcs::CrcTable;
pub use load::Loader;
pub use quotient::ADDRESS_BITS_MAX;
pub use ranges::{Full, Piece, RangeKind, RangeMap};
pub use shard::{Action, Sweep, SweepAction};

use crate::types::{BLOCK_NUMBER_BITS, BlockAddr, SectorMask, Slot, VolumeId};
use permute::Permutation;
use quotient::Geometry;
use shard::Shard;
use std::sync::atomic::AtomicU64;

/// Log2 of the most slots an index is made for: 2^40 slots of 4 KiB are 4 PiB.
const SLOT_BITS_MAX: u32 = 40;

/// What the index knows about a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where the payload is.
    pub slot: Slot,
    /// Which sectors of it are valid; never empty.
    pub mask: SectorMask,
    /// Not yet written back.
    pub dirty: bool,
}

/// Why an index was not created or refused a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// The volumes are too many or too large together.
    #[error(
        "the block index cannot address {volume_bits} bits of volume number and {block_bits} bits of block number: at \
         most {ADDRESS_BITS_MAX} together; attach smaller volumes, or fewer"
    )]
    AddressTooWide {
        /// Bits of the largest volume id.
        volume_bits: u32,
        /// Bits of the largest block number.
        block_bits: u32,
    },
    /// No slot at all, or more than 2^40.
    #[error("the block index cannot be made for {slots} slots: 1 to 2^{SLOT_BITS_MAX} are possible")]
    SlotCount {
        /// Slots asked for.
        slots: u64,
    },
    /// Memory is short.
    #[error("no memory for the block index: it needs {bytes} bytes")]
    OutOfMemory {
        /// Bytes of the allocation that failed.
        bytes: u64,
    },
    /// The address does not fit the widths the index was created with.
    #[error("block {0:?} is outside the volumes that the index was created for")]
    Address(BlockAddr),
    /// The slot is not one of those the index was created with.
    #[error("slot {0} is beyond the slots that the index was created for")]
    Slot(Slot),
    /// An entry with no valid sector.
    #[error("an index entry for block {0:?} has no valid sector")]
    EmptyMask(BlockAddr),
    /// More blocks than slots, which takes entries of slots that were reused without removing them.
    #[error("the block index is full")]
    Full,
}

/// Number of bits of block addresses: volume number on top of block number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressWidths {
    /// Bits of the largest volume id.
    pub volume_bits: u32,
    /// Bits of the largest block number.
    pub block_bits: u32,
}

impl AddressWidths {
    /// The widths that these volumes, with their sizes in blocks, need. Volumes that are not attached now but have
    /// data in the cache belong to them.
    pub fn for_volumes(volumes: impl IntoIterator<Item = (VolumeId, u64)>) -> AddressWidths {
        let (mut volume_max, mut block_max) = (0, 0);
        for (volume, blocks) in volumes {
            volume_max = volume_max.max(u64::from(volume.0));
            block_max = block_max.max(blocks.saturating_sub(1));
        }
        AddressWidths { volume_bits: quotient::bits(volume_max), block_bits: quotient::bits(block_max) }
    }

    /// The address with the gap between volume and block removed, if both fit.
    #[inline]
    fn pack(self, addr: BlockAddr) -> Option<u64> {
        let (volume, block) = (u64::from(addr.volume().0), addr.block());
        // Widths are below 64, so wrapping shifts do not wrap.
        let fits = volume.wrapping_shr(self.volume_bits) | block.wrapping_shr(self.block_bits) == 0;
        fits.then_some(volume.wrapping_shl(self.block_bits) | block)
    }

    fn unpack(self, packed: u64) -> BlockAddr {
        BlockAddr((packed >> self.block_bits) << BLOCK_NUMBER_BITS | (packed & ((1 << self.block_bits) - 1)))
    }
}

/// What an [`Index`] is made for.
#[derive(Debug, Clone)]
pub struct IndexConfig {
    /// Slots of the cache, payload or not. Slot numbers are below.
    pub slots: u64,
    /// Blocks that can be in the cache at once: slots that can hold payload. The table is sized for them. More find
    /// their place, too, as long as there are no more than slots; slowly, if many.
    pub entries: u64,
    /// See [`AddressWidths::for_volumes`].
    pub widths: AddressWidths,
    /// Number of separately locked parts wanted; at least four per thread keep them from waiting for each other.
    /// Rounded up to a power of two; less for small caches.
    pub shards: usize,
    /// Any number that users of the volumes cannot know, so that they cannot choose blocks that collide. The index
    /// lives in memory only: a new number each time is fine.
    pub seed: u64,
    /// Whether to keep a CRC per slot.
    pub with_crcs: bool,
}

/// What [`Index::upsert`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upsert {
    /// The block had no entry.
    Inserted,
    /// The new version superseded this one.
    Replaced(Entry),
    /// The entry that is there, this one, is newer and stays.
    Stale(Entry),
}

/// The block index. Every method locks one shard for a few dozen instructions.
pub struct Index {
    widths: AddressWidths,
    permutation: Permutation,
    geometry: Geometry,
    shards: Vec<Shard>,
    crcs: Option<CrcTable>,
    /// Entries in all stashes, which the number of slots bounds.
    stashed: AtomicU64,
    slots: u64,
}

impl Index {
    /// Allocates and touches all memory.
    pub fn new(config: &IndexConfig) -> Result<Index, IndexError> {
        let AddressWidths { volume_bits, block_bits } = config.widths;
        if volume_bits > 16 || block_bits > BLOCK_NUMBER_BITS || volume_bits + block_bits > ADDRESS_BITS_MAX {
            return Err(IndexError::AddressTooWide { volume_bits, block_bits });
        }
        if config.slots == 0 || config.slots > 1 << SLOT_BITS_MAX {
            return Err(IndexError::SlotCount { slots: config.slots });
        }
        let address_bits = (volume_bits + block_bits).max(1);
        let entries = config.entries.clamp(1, config.slots);
        let geometry = Geometry::new(address_bits, config.slots, entries, config.shards);
        let bytes = geometry.table_bytes();
        let mut shards = Vec::new();
        let shard_count = 1usize << geometry.shard_bits();
        shards.try_reserve_exact(shard_count).map_err(|_| IndexError::OutOfMemory { bytes })?;
        for _ in 0..shard_count {
            shards.push(Shard::new(&geometry).map_err(|_| IndexError::OutOfMemory { bytes })?);
        }
        Ok(Index {
            widths: config.widths,
            permutation: Permutation::new(address_bits, config.seed),
            geometry,
            shards,
            crcs: if config.with_crcs { Some(CrcTable::new(config.slots)?) } else { None },
            stashed: AtomicU64::new(0),
            slots: config.slots,
        })
    }

    /// Bytes of memory of the index and the CRC table.
    pub fn memory_bytes(&self) -> u64 {
        let fixed = size_of::<Index>() + self.shards.len() * size_of::<Shard>();
        self.geometry.table_bytes() + fixed as u64 + self.crcs.as_ref().map_or(0, CrcTable::memory_bytes)
    }

    /// The CRC of every slot, if the index was created with them.
    pub fn crcs(&self) -> Option<&CrcTable> {
        self.crcs.as_ref()
    }

    /// Shard and quotient of an address.
    #[inline]
    fn locate(&self, addr: BlockAddr) -> Option<(&Shard, u64)> {
        let permuted = self.permutation.apply(self.widths.pack(addr)?);
        let (shard, quotient) = self.geometry.split_shard(permuted);
        Some((&self.shards[shard], quotient))
    }

    /// Runs `read` with the block's entry under the lock of its shard: what it does with the slot (pin its segment)
    /// happens before any change of the entry. `read` must not use the index.
    pub fn lookup_with<R>(&self, addr: BlockAddr, read: impl FnOnce(Option<Entry>) -> R) -> R {
        match self.locate(addr) {
            Some((shard, quotient)) => shard.lookup_with(&self.geometry, quotient, read),
            None => read(None),
        }
    }

    /// The block's entry.
    pub fn lookup(&self, addr: BlockAddr) -> Option<Entry> {
        self.lookup_with(addr, |entry| entry)
    }

    /// Looks at the block's entry and changes it, in one step under the lock of its shard. Returns the entry as it
    /// was. `change` must not use the index. After an error nothing has changed.
    pub fn modify(
        &self,
        addr: BlockAddr,
        change: impl FnOnce(Option<Entry>) -> Action,
    ) -> Result<Option<Entry>, IndexError> {
        let (shard, quotient) = self.locate(addr).ok_or(IndexError::Address(addr))?;
        let checked = |before: Option<Entry>| match change(before) {
            Action::Set(entry) if entry.slot.0 >= self.slots => Err(IndexError::Slot(entry.slot)),
            Action::Set(entry) if entry.mask.is_empty() => Err(IndexError::EmptyMask(addr)),
            action => Ok(action),
        };
        shard.modify(&self.geometry, quotient, &self.stashed, self.slots, checked)
    }

    /// Publishes a version of a block. An existing entry gives way only if `newer`, given its slot, says that the new
    /// version is later in the log; so versions may be published in any order.
    pub fn upsert(
        &self,
        addr: BlockAddr,
        slot: Slot,
        mask: SectorMask,
        dirty: bool,
        newer: impl FnOnce(Slot) -> bool,
    ) -> Result<Upsert, IndexError> {
        let mut stale = false;
        let before = self.modify(addr, |existing| {
            stale = existing.is_some_and(|existing| !newer(existing.slot));
            if stale { Action::Keep } else { Action::Set(Entry { slot, mask, dirty }) }
        })?;
        Ok(match before {
            None => Upsert::Inserted,
            Some(existing) if stale => Upsert::Stale(existing),
            Some(existing) => Upsert::Replaced(existing),
        })
    }

    /// Changes the block's entry if its payload is in `expected`. Returns the entry as it was, `None` if it was
    /// another or there was none.
    pub fn update_if(
        &self,
        addr: BlockAddr,
        expected: Slot,
        change: impl FnOnce(Entry) -> Action,
    ) -> Result<Option<Entry>, IndexError> {
        let before = self.modify(addr, |existing| match existing {
            Some(entry) if entry.slot == expected => change(entry),
            _ => Action::Keep,
        })?;
        Ok(before.filter(|entry| entry.slot == expected))
    }

    /// Removes the block's entry if its payload is in `slot`; true if it was.
    pub fn remove_if(&self, addr: BlockAddr, slot: Slot) -> bool {
        // An address outside the index has no entry.
        self.update_if(addr, slot, |_| Action::Remove).is_ok_and(|before| before.is_some())
    }

    /// Marks the block's entry clean if its payload is in `slot`; true if it was there, clean or dirty.
    pub fn set_clean_if(&self, addr: BlockAddr, slot: Slot) -> bool {
        self.update_if(addr, slot, |_| Action::SetClean).is_ok_and(|before| before.is_some())
    }

    /// Starts loading the two cache lines in which the block may be, for a use soon. Takes no lock.
    pub fn prefetch(&self, addr: BlockAddr) {
        if let Some((shard, quotient)) = self.locate(addr) {
            shard.prefetch(&self.geometry, quotient);
        }
    }

    /// Number of shards, for [`Index::sweep`].
    pub fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// Begins to visit all entries of a shard. `None` while another sweep of it is going on. Panics if there is no
    /// such shard.
    pub fn sweep(&self, shard: usize) -> Option<Sweep<'_>> {
        Sweep::begin(self, shard)
    }

    /// Number of entries. Entries that other threads change at this moment may be counted or not.
    pub fn len(&self) -> u64 {
        self.shards.iter().map(Shard::len).sum()
    }

    /// True if there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of dirty entries, as exact as [`Index::len`].
    pub fn dirty_len(&self) -> u64 {
        self.shards.iter().map(Shard::dirty_len).sum()
    }

    /// Number of entries that found no place in the table; 0 unless the hash is bad or slots were reused wrongly.
    pub fn stash_len(&self) -> u64 {
        self.stashed.load(std::sync::atomic::Ordering::Relaxed)
    }

    #[cfg(test)]
    fn is_at_home(&self, addr: BlockAddr) -> bool {
        self.locate(addr).is_some_and(|(shard, quotient)| shard.is_at_home(&self.geometry, quotient))
    }
}
