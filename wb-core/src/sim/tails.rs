//! Memory of the simulated machine that outlives processes: where RAM tails are kept. A kill leaves it as it was at that
//! moment, a power cut empties it and begins another boot.

use super::env::SimEnv;
use super::executor::Sim;
use crate::io::Region;
use crate::tail::{TailError, TailName, TailStore};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// The machine's memory.
#[derive(Default)]
pub(super) struct Memory {
    tails: BTreeMap<TailName, Arc<Region>>,
    boot: u64,
}

/// What processes see of it.
struct SimTails(SimEnv);

impl SimTails {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        lock(&self.0.core.memory)
    }
}

fn lock(memory: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

fn copy(region: &Region) -> Region {
    let mut bytes = vec![0; region.len()];
    region.copy_out(0, &mut bytes);
    let copy = Region::anonymous(bytes.len()).expect("memory for a small tail");
    copy.copy_in(0, &bytes);
    copy
}

impl TailStore for SimTails {
    fn create(&self, name: TailName, bytes: usize) -> Result<Arc<Region>, TailError> {
        let region = Arc::new(Region::anonymous(bytes).expect("memory for a small tail"));
        let before = self.lock().tails.insert(name, region.clone());
        assert!(before.is_none(), "each tail has an id of its own");
        Ok(region)
    }

    fn open(&self, name: TailName) -> Result<Option<Arc<Region>>, TailError> {
        Ok(self.lock().tails.get(&name).cloned())
    }

    fn remove(&self, name: TailName) -> Result<(), TailError> {
        self.lock().tails.remove(&name);
        Ok(())
    }

    fn list(&self, cache: Uuid) -> Result<Vec<TailName>, TailError> {
        Ok(self.lock().tails.keys().filter(|name| name.cache == cache).copied().collect())
    }

    fn describe(&self, name: TailName) -> String {
        format!("the RAM tail {name}")
    }
}

impl SimEnv {
    /// The machine's memory, as this process sees it.
    pub fn tails(&self) -> Arc<dyn TailStore> {
        Arc::new(SimTails(self.clone()))
    }

    /// Names the boot of the machine.
    pub fn boot_id(&self) -> [u8; 16] {
        u128::from(lock(&self.core.memory).boot + 1).to_le_bytes()
    }
}

impl Sim {
    /// The moment of a kill: nothing that the dying process still does to its memory counts.
    pub fn keep_memory(&self) {
        let env = self.env();
        let mut memory = lock(&env.core.memory);
        memory.tails.values_mut().for_each(|region| *region = Arc::new(copy(region)));
    }

    /// A power cut: memory is empty, and another boot begins.
    pub fn lose_memory(&self) {
        let env = self.env();
        let mut memory = lock(&env.core.memory);
        memory.boot += 1;
        memory.tails.clear();
    }

    /// Tails that lie in memory.
    pub fn tails_left(&self) -> usize {
        lock(&self.env().core.memory).tails.len()
    }
}
