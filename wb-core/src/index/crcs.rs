//! The CRC of every slot.

use super::IndexError;
use super::memory::{NoMemory, zeroed};
use crate::types::Slot;
use std::sync::atomic::{AtomicU32, Ordering};

/// CRC-32C of the payload of every slot, 4 bytes each.
///
/// Accesses are not ordered by themselves. A CRC is set before its slot is published in the index and read after the
/// slot was found there; the shard's lock orders the two.
pub struct CrcTable {
    crcs: Vec<AtomicU32>,
}

impl CrcTable {
    /// A table of zeroes, allocated and touched.
    pub fn new(slots: u64) -> Result<CrcTable, IndexError> {
        let error = IndexError::OutOfMemory { bytes: slots.saturating_mul(4) };
        let len = usize::try_from(slots).map_err(|_| error)?;
        let crcs = zeroed(len).map_err(|NoMemory| error)?;
        Ok(CrcTable { crcs })
    }

    /// Sets the CRC of a slot. Panics if there is no such slot.
    pub fn set(&self, slot: Slot, crc: u32) {
        self.crcs[slot.0 as usize].store(crc, Ordering::Relaxed);
    }

    /// The CRC last set, 0 if none was. Panics if there is no such slot.
    pub fn get(&self, slot: Slot) -> u32 {
        self.crcs[slot.0 as usize].load(Ordering::Relaxed)
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> u64 {
        std::mem::size_of_val(&*self.crcs) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_keep_their_own_crc() {
        let table = CrcTable::new(1000).unwrap();
        (0..1000).for_each(|slot| table.set(Slot(slot), slot as u32 ^ 0xdead_beef));
        assert!((0..1000).all(|slot| table.get(Slot(slot)) == slot as u32 ^ 0xdead_beef));
        assert_eq!(table.memory_bytes(), 4000);
    }

    #[test]
    fn too_much_memory_is_an_error() {
        assert!(matches!(CrcTable::new(1 << 61), Err(IndexError::OutOfMemory { .. })));
    }
}
