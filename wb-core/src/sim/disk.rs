//! Simulated devices. This is the fault model; each class is a switch of [`FaultPlan`] or a method of [`SimDevice`].
//!
//! **What always holds.** Reads and writes take a drawn time and complete in any order. A write becomes visible to reads
//! somewhere between its submission and its completion. It is *volatile* until a flush that was submitted after its
//! completion succeeds, or from the start if it has FUA (which says nothing about other writes).
//!
//! | class | what happens | what an engine can do |
//! |---|---|---|
//! | power cut | every volatile write and every write in flight persists, vanishes or tears at the atomic unit (512, 4096 or never), each for itself and in any order: a sector holds one of its versions since its last flush | everything flushed survives; a prefix of the rest |
//! | kill of the process | requests in flight take effect, do not, or tear; everything completed stays | nothing acknowledged is lost, if it is kept outside the process |
//! | read error | EIO, once, at random or from the n-th on | fails that request; clean data comes from the other device |
//! | write error | EIO, and any mix of old and new sectors in its range | rewrite elsewhere, the data is still in memory |
//! | unwritable place | each write that touches it fails, and leaves it as it is | as a write error; the next start moves what was meant for it |
//! | flush error | EIO; nothing became durable, and with `flush_error_drops` no later flush makes it so either | latch: only a rewrite, or a recovery that proves what is there, clears it |
//! | latent sector error | a sector cannot be read until it is written again | the block is named, the rest goes on |
//! | unreadable after a tear | the unit being written when power failed gives EIO instead of old or new | beyond D: a torn tail. Below D it cannot happen |
//! | bit rot | a bit of what was durable is inverted, silently | checksum: EIO for a dirty block, the backing device for a clean one |
//! | lost write | acknowledged, never done | checksum and record number; what was flushed is gone: a named loss |
//! | misdirected write | acknowledged, done elsewhere: one place stale, another destroyed | as lost, twice |
//! | lying flush or FUA | acknowledged, not done | nothing, until power fails; then a refusal or a named loss, never silence |
//! | discard | reads zeroes, old or random data afterwards, volatile like a write | trust nothing that was discarded |
//! | device gone | every operation, also in flight, fails with [`IoError::Gone`], until it returns, with or without its volatile cache | latch as for a failed flush |
//! | device full | writes to new 4 KiB pages fail with [`IoError::NoSpace`] | as a write error |
//! | read-only | writes fail with [`IoError::ReadOnly`] | reads go on |
//! | stall | an operation takes very long | others go on |
//!
//! Not simulated: short transfers (they are continued below [`Disk`], and tested there), tears inside a sector, and
//! errors reported for an earlier operation.
//!
//! [`IoError::Gone`]: crate::io::IoError::Gone
//! [`IoError::NoSpace`]: crate::io::IoError::NoSpace
//! [`IoError::ReadOnly`]: crate::io::IoError::ReadOnly
//! [`Disk`]: crate::io::Disk

use super::env::SimEnv;
use super::executor::Core;
use super::fault::FaultPlan;
use super::handle::SimDisk;
use super::medium::Medium;
use super::rng::SimRng;
pub use super::state::Counters;
use super::state::{DeviceState, InFlight};
use super::volatile::{Pending, Snapshot, VolatileCache};
use crate::types::SECTOR_BYTES;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SECTOR: u64 = SECTOR_BYTES as u64;

/// Size and units of a simulated device.
#[derive(Debug, Clone)]
pub struct DeviceConfig {
    /// Shown in traces and errors; also names its stream of draws.
    pub name: String,
    /// Bytes.
    pub size_bytes: u64,
    /// 512 or 4096.
    pub sector_bytes: u32,
    /// What offsets and lengths must be multiples of.
    pub align_bytes: u32,
    /// Whether discard is offered.
    pub discard: bool,
}

impl DeviceConfig {
    /// A device with 512-byte sectors that offers discard.
    pub fn new(name: &str, size_bytes: u64) -> DeviceConfig {
        DeviceConfig { name: name.into(), size_bytes, sector_bytes: 512, align_bytes: 512, discard: true }
    }
}

/// A simulated device: medium, volatile cache, faults. It survives the processes that open it. Clones are handles.
#[derive(Clone)]
pub struct SimDevice {
    pub(super) core: Arc<Core>,
    name: Arc<str>,
    state: Arc<Mutex<DeviceState>>,
}

impl SimDevice {
    pub(super) fn note(&self, what: &str, a: u64, b: u64) {
        self.core.note(&self.name, what, a, b);
    }

    /// A device that holds `medium`. Its draws follow from the simulation's seed and its name.
    pub fn new(sim: &super::Sim, config: DeviceConfig, medium: Medium, plan: FaultPlan) -> SimDevice {
        assert!(config.size_bytes.is_multiple_of(u64::from(config.sector_bytes)), "a size in whole sectors");
        let name = config.name.as_str().into();
        let state = DeviceState {
            rng: SimRng::derive(sim.seed(), &config.name),
            config,
            plan,
            view: medium.clone(),
            stable: medium,
            cache: VolatileCache::default(),
            in_flight: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            next_id: 0,
            op_counts: [0; 4],
            gone: false,
            read_only: false,
            counters: Counters::default(),
        };
        SimDevice { core: sim.env().core().clone(), name, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, DeviceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A handle for the process group of `env`; it falls silent when the group is killed.
    pub fn open(&self, env: &SimEnv) -> SimDisk {
        SimDisk {
            device: self.clone(),
            alive: env.alive_flag(),
            cut: Arc::new(AtomicBool::new(false)),
            read_only: false,
        }
    }

    /// As [`SimDevice::open`], read-only.
    pub fn open_read_only(&self, env: &SimEnv) -> SimDisk {
        SimDisk { read_only: true, ..self.open(env) }
    }

    /// Sets the faults from now on; counting for [`super::NthFault`] starts anew.
    pub fn set_plan(&self, plan: FaultPlan) {
        let mut state = self.lock();
        state.plan = plan;
        state.op_counts = [0; 4];
    }

    /// The faults as they are set.
    pub fn plan(&self) -> FaultPlan {
        self.lock().plan.clone()
    }

    /// Power fails: handles of live processes should be dead or cut by now. See the table above.
    pub fn power_cut(&self) {
        let mut state = self.lock();
        let (kept, lost, torn) = state.power_cut();
        drop(state);
        self.note("power cut", kept << 32 | lost, torn);
    }

    /// Ends the requests in flight of killed processes: each takes effect, does not, or tears. A successor may open the
    /// device only after this (that is what claims on the open file description are for). Without this call they go on
    /// and land at their time, like the direct writes of a zombie.
    pub fn settle_killed(&self) {
        let mut state = self.lock();
        let dead = |request: &InFlight| !request.alive.load(Ordering::Relaxed);
        let ids: Vec<u64> = state.in_flight.iter().filter(|(_, request)| dead(request)).map(|(id, _)| *id).collect();
        let mut applied = 0;
        for id in ids {
            let Some(InFlight { write, fua, alive }) = state.in_flight.remove(&id) else { continue };
            state.cache.complete(id);
            match state.rng.below(3) {
                0 => {}
                1 => {
                    if let Some(write) = &write {
                        state.apply_mix(write);
                    }
                }
                _ => {
                    applied += 1;
                    state.in_flight.insert(id, InFlight { write, fua, alive });
                    // The killed process does not hear of an error.
                    let _ = state.complete_write(id, None);
                }
            }
        }
        drop(state);
        self.note("settle", applied, 0);
    }

    /// The device vanishes: every operation fails until [`SimDevice::come_back`]. With `loses_cache` its volatile cache
    /// is lost as in a power cut.
    pub fn vanish(&self, loses_cache: bool) {
        let mut state = self.lock();
        state.gone = true;
        if loses_cache {
            // Requests in flight stay registered: they are answered, with an error.
            let in_flight = std::mem::take(&mut state.in_flight);
            state.power_cut();
            state.in_flight = in_flight;
        }
        drop(state);
        self.note("vanish", u64::from(loses_cache), 0);
    }

    /// The device is there again.
    pub fn come_back(&self) {
        self.lock().gone = false;
        self.note("come back", 0, 0);
    }

    /// The device refuses writes, or no longer does.
    pub fn set_read_only(&self, on: bool) {
        self.lock().read_only = on;
    }

    /// Inverts a bit of what is stored, silently.
    pub fn flip_bit(&self, offset: u64, bit: u8) {
        self.lock().flip_bit(offset, bit);
    }

    /// These bytes cannot be read until they are written again.
    pub fn make_unreadable(&self, range: Range<u64>) {
        self.lock().unreadable.extend(range.start / SECTOR..range.end.div_ceil(SECTOR));
    }

    /// What a read would return now, without any fault.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.lock().view.read(offset, &mut bytes);
        bytes
    }

    /// Changes what is stored, durably, behind everyone's back.
    pub fn poke(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        state.view.write(offset, data);
        state.stable.write(offset, data);
    }

    /// What reads see now, as a medium.
    pub fn view(&self) -> Medium {
        self.lock().view.clone()
    }

    /// What is durable now.
    pub fn stable(&self) -> Medium {
        self.lock().stable.clone()
    }

    /// Replaces everything, as if the device had been swapped for one with this content.
    pub fn restore(&self, medium: Medium) {
        let mut state = self.lock();
        state.stable = medium.clone();
        state.view = medium;
        state.cache.clear();
        state.in_flight.clear();
        state.unreadable.clear();
    }

    /// What is durable and what might be.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let in_flight: Vec<Pending> = state.in_flight.values().filter_map(|request| request.write.clone()).collect();
        Snapshot { stable: state.stable.clone(), units: state.cache.units(&in_flight, state.plan.atomic) }
    }

    /// Number and bytes of writes that are visible and not durable.
    pub fn volatile(&self) -> (usize, u64) {
        let state = self.lock();
        (state.cache.len(), state.cache.bytes())
    }

    /// What the device did so far.
    pub fn counters(&self) -> Counters {
        self.lock().counters
    }

    /// Size and units.
    pub fn config(&self) -> DeviceConfig {
        self.lock().config.clone()
    }
}
