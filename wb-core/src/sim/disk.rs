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

use super::executor::{Core, SimEnv};
use super::fault::{AtomicUnit, DiscardEffect, FaultPlan, OpKind};
use super::medium::Medium;
use super::rng::SimRng;
use super::volatile::{Content, Pending, Snapshot, VolatileCache, tear};
use crate::io::{Buf, Disk, DiskGeometry, IoError, Slice};
use crate::types::SECTOR_BYTES;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

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

/// What a device did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads submitted.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes and zeroes submitted.
    pub writes: u64,
    /// Bytes written or zeroed.
    pub write_bytes: u64,
    /// Flushes submitted.
    pub flushes: u64,
    /// Discards submitted.
    pub discards: u64,
    /// Writes submitted with FUA.
    pub fua_writes: u64,
    /// Operations failed on purpose.
    pub errors: u64,
    /// Silent faults: rot, lost, misdirected, lies.
    pub silent_faults: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// Writes that a power cut tore.
    pub torn_writes: u64,
    /// Writes that a power cut made vanish.
    pub vanished_writes: u64,
}

/// A write on its way.
struct InFlight {
    write: Option<Pending>,
    fua: bool,
    /// Cleared when the process that asked is killed.
    alive: Arc<AtomicBool>,
}

struct DeviceState {
    config: DeviceConfig,
    plan: FaultPlan,
    rng: SimRng,
    stable: Medium,
    view: Medium,
    cache: VolatileCache,
    in_flight: BTreeMap<u64, InFlight>,
    unreadable: BTreeSet<u64>,
    next_id: u64,
    op_counts: [u64; 4],
    gone: bool,
    read_only: bool,
    counters: Counters,
}

impl DeviceState {
    /// Whether an operation fails, and how.
    fn fault(&mut self, op: OpKind) -> Option<IoError> {
        self.op_counts[op as usize] += 1;
        let count = self.op_counts[op as usize];
        if self.gone {
            return Some(IoError::Gone);
        }
        let by_number = |fault: &&super::fault::NthFault| {
            fault.op == op && (count == fault.nth || fault.forever && count > fault.nth)
        };
        if let Some(fault) = self.plan.nth.iter().find(by_number) {
            let error = fault.error;
            self.counters.errors += 1;
            return Some(error);
        }
        let ppm = match op {
            OpKind::Read => self.plan.read_error_ppm,
            OpKind::Write | OpKind::Discard => self.plan.write_error_ppm,
            OpKind::Flush => self.plan.flush_error_ppm,
        };
        let fails = self.rng.chance_ppm(ppm);
        self.counters.errors += u64::from(fails);
        fails.then_some(IoError::Medium)
    }

    fn in_area(&self, offset: u64, len: u64) -> bool {
        self.plan.area.as_ref().is_none_or(|area| area.start <= offset && offset + len <= area.end)
    }

    /// A write becomes visible.
    fn apply(&mut self, mut write: Pending) {
        let len = write.content.len();
        if self.in_area(write.offset, len) {
            if self.rng.chance_ppm(self.plan.lost_write_ppm) {
                self.counters.silent_faults += 1;
                return;
            }
            if self.rng.chance_ppm(self.plan.misdirected_write_ppm) {
                self.counters.silent_faults += 1;
                let area = self.plan.area.clone().unwrap_or(0..self.config.size_bytes);
                let align = u64::from(self.config.align_bytes);
                let choices = (area.end - area.start - len) / align + 1;
                write.offset = area.start + self.rng.below(choices) * align;
            }
        }
        let sectors = write.offset / SECTOR..(write.offset + len) / SECTOR;
        if !self.unreadable.is_empty() {
            self.unreadable.retain(|sector| !sectors.contains(sector));
        }
        if self.in_area(write.offset, len) && self.rng.chance_ppm(self.plan.latent_ppm) {
            self.unreadable.insert(self.rng.range(sectors.start, sectors.end - 1));
        }
        write.content.apply(&mut self.view, write.offset);
        self.cache.push(write);
    }

    /// A write failed: some of its units were written, others not.
    fn apply_mix(&mut self, write: &Pending) {
        let units = self.cache_units(write);
        for (offset, len) in tear(units, &mut self.rng) {
            let start = (offset - write.offset) as usize;
            let content = match &write.content {
                Content::Data(data) => Content::Data(data[start..start + len as usize].into()),
                Content::Zeroes(_) => Content::Zeroes(len),
            };
            content.apply(&mut self.view, offset);
            self.next_id += 1;
            self.cache.push(Pending::new(self.next_id, offset, content, true));
        }
    }

    fn cache_units(&self, write: &Pending) -> Vec<(u64, u64)> {
        let one = VolatileCache::default();
        one.units(std::slice::from_ref(write), AtomicUnit::Sector).into_iter().map(|(_, at, len)| (at, len)).collect()
    }

    fn complete_write(&mut self, id: u64, error: Option<IoError>) -> Result<(), IoError> {
        // Not there: power failed meanwhile.
        let Some(request) = self.in_flight.remove(&id) else { return Err(IoError::Gone) };
        let error = if self.gone { Some(IoError::Gone) } else { error };
        if let Some(error) = error {
            if let Some(write) = &request.write
                && error != IoError::ReadOnly
                && error != IoError::NoSpace
            {
                self.apply_mix(write);
            }
            return Err(error);
        }
        if let Some(mut write) = request.write {
            write.completed = true;
            self.apply(write);
        }
        self.cache.complete(id);
        if request.fua {
            if self.rng.chance_ppm(self.plan.lie_fua_ppm) {
                self.counters.silent_faults += 1;
            } else {
                self.cache.make_durable(&BTreeSet::from([id]), &mut self.stable);
            }
        }
        Ok(())
    }

    fn complete_flush(&mut self, covered: &BTreeSet<u64>, error: Option<IoError>) -> Result<(), IoError> {
        let error = if self.gone { Some(IoError::Gone) } else { error };
        if let Some(error) = error {
            if self.plan.flush_error_drops {
                self.cache.doom(covered);
            }
            return Err(error);
        }
        if self.rng.chance_ppm(self.plan.lie_flush_ppm) {
            self.counters.silent_faults += 1;
            return Ok(());
        }
        self.cache.make_durable(covered, &mut self.stable);
        Ok(())
    }

    fn complete_read(
        &mut self,
        offset: u64,
        buf: &mut Buf,
        early: bool,
        error: Option<IoError>,
    ) -> Result<(), IoError> {
        let len = buf.len() as u64;
        if self.gone {
            return Err(IoError::Gone);
        }
        if let Some(error) = error {
            return Err(error);
        }
        let sectors = offset / SECTOR..(offset + len) / SECTOR;
        if self.unreadable.range(sectors).next().is_some() {
            self.counters.errors += 1;
            return Err(IoError::Medium);
        }
        if !early {
            self.view.read(offset, buf);
        }
        Ok(())
    }

    fn flip_bit(&mut self, offset: u64, bit: u8) {
        self.stable.flip_bit(offset, bit);
        self.view.flip_bit(offset, bit);
    }

    fn power_cut(&mut self) -> (u64, u64, u64) {
        let requests = std::mem::take(&mut self.in_flight);
        let writes = requests.into_values().filter_map(|request| request.write).collect();
        let cut = self.cache.power_cut(writes, self.plan.atomic, &mut self.stable, &mut self.rng);
        for (offset, len) in cut.torn_units {
            if self.rng.chance_ppm(self.plan.torn_unreadable_ppm) {
                self.unreadable.extend(offset / SECTOR..(offset + len) / SECTOR);
            }
        }
        self.view = self.stable.clone();
        self.counters.power_cuts += 1;
        self.counters.torn_writes += cut.torn;
        self.counters.vanished_writes += cut.lost;
        (cut.kept, cut.lost, cut.torn)
    }

    fn check_range(&self, offset: u64, len: u64) {
        let align = u64::from(self.config.align_bytes);
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.config.size_bytes);
        assert!(
            len > 0 && fits && offset.is_multiple_of(align) && len.is_multiple_of(align),
            "{}: range {offset}+{len} is empty, unaligned ({align}) or outside the device of {} bytes",
            self.config.name,
            self.config.size_bytes
        );
    }
}

/// A simulated device: medium, volatile cache, faults. It survives the processes that open it. Clones are handles.
#[derive(Clone)]
pub struct SimDevice {
    core: Arc<Core>,
    name: Arc<str>,
    state: Arc<Mutex<DeviceState>>,
}

impl SimDevice {
    fn note(&self, what: &str, a: u64, b: u64) {
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

    fn lock(&self) -> MutexGuard<'_, DeviceState> {
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

/// A handle of one process on a [`SimDevice`].
#[derive(Clone)]
pub struct SimDisk {
    device: SimDevice,
    alive: Arc<AtomicBool>,
    cut: Arc<AtomicBool>,
    read_only: bool,
}

/// Where a device puts the answer of one operation.
struct Slot<T> {
    shared: Arc<Mutex<(Option<T>, Option<Waker>)>>,
}

impl<T> Slot<T> {
    fn new() -> (Slot<T>, Slot<T>) {
        let shared = Arc::new(Mutex::new((None, None)));
        (Slot { shared: shared.clone() }, Slot { shared })
    }

    fn answer(&self, value: T) {
        let mut slot = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        slot.0 = Some(value);
        let waker = slot.1.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Slot<T> {
    type Output = T;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut slot = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.0.take() {
            Some(value) => Poll::Ready(value),
            None => {
                slot.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let fold = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
    let sum = words.iter().fold(0, |hash, word| fold(hash, u64::from_le_bytes(*word)));
    rest.iter().fold(sum, |hash, byte| fold(hash, u64::from(*byte)))
}

impl SimDisk {
    /// This handle falls silent: its requests are never answered. Those in flight still take effect.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    /// The device behind the handle.
    pub fn device(&self) -> &SimDevice {
        &self.device
    }

    fn silent(&self) -> bool {
        self.cut.load(Ordering::Relaxed) || !self.alive.load(Ordering::Relaxed)
    }

    /// Runs `complete` when the device is done and answers with its result, unless the handle was cut meanwhile.
    async fn answer<T: Send + 'static>(
        &self,
        what: &'static str,
        offset: u64,
        delay_ns: u64,
        complete: impl FnOnce(&mut DeviceState) -> (T, u64) + Send + 'static,
    ) -> T {
        let (slot, answer) = Slot::new();
        let (handle, device) = (self.clone(), self.device.clone());
        self.device.core.after(delay_ns, move || {
            let mut state = device.lock();
            let (value, digest) = complete(&mut state);
            drop(state);
            device.note(what, offset, digest);
            if what != "read" {
                device.core.device_event();
            }
            if !handle.silent() {
                answer.answer(value);
            }
        });
        slot.await
    }

    /// Writes `content`: registers it, draws its fate, and answers when it is done.
    async fn submit_write(
        &self,
        what: &'static str,
        offset: u64,
        content: Content,
        fua: bool,
        keep: Vec<Slice>,
    ) -> Result<(), IoError> {
        let (id, delay_ns, error) = {
            let mut state = self.device.lock();
            state.check_range(offset, content.len());
            state.next_id += 1;
            let id = state.next_id;
            state.counters.writes += 1;
            state.counters.write_bytes += content.len();
            state.counters.fua_writes += u64::from(fua);
            let mut error = state.fault(OpKind::Write);
            if error.is_none() && (state.read_only || self.read_only) {
                error = Some(IoError::ReadOnly);
            }
            if error.is_none()
                && let Some(max) = state.plan.thin_pages_max
                && state.view.pages_used() + state.view.pages_missing(offset, content.len() as usize) > max
            {
                error = Some(IoError::NoSpace);
            }
            let plan = state.plan.latency.clone();
            let delay_ns = plan.draw(OpKind::Write, &mut state.rng);
            let write = Pending::new(id, offset, content, false);
            // Some writes are visible at once, others when they complete.
            let write = if error.is_none() && !state.gone && state.rng.chance_ppm(250_000) {
                state.apply(write);
                None
            } else {
                Some(write)
            };
            state.in_flight.insert(id, InFlight { write, fua, alive: self.alive.clone() });
            (id, delay_ns, error)
        };
        self.device.note(what, offset, id);
        self.device.core.device_event();
        self.answer(what, offset, delay_ns, move |state| {
            // The memory of a request in flight belongs to the device until here.
            drop(keep);
            let result = state.complete_write(id, error);
            let failed = u64::from(result.is_err());
            (result, id << 1 | failed)
        })
        .await
    }
}

impl Disk for SimDisk {
    fn geometry(&self) -> DiskGeometry {
        let state = self.device.lock();
        let DeviceConfig { size_bytes, sector_bytes, align_bytes, discard, .. } = state.config;
        DiskGeometry { size_bytes, sector_bytes, align_bytes, discard, read_only: self.read_only }
    }

    async fn read(&self, offset: u64, mut buf: Buf) -> (Result<(), IoError>, Buf) {
        if self.silent() {
            return std::future::pending().await;
        }
        let (delay_ns, error, early) = {
            let mut state = self.device.lock();
            let len = buf.len() as u64;
            state.check_range(offset, len);
            state.counters.reads += 1;
            state.counters.read_bytes += len;
            let error = state.fault(OpKind::Read);
            if state.in_area(offset, len) && state.plan.rot_ppm > 0 {
                let ppm = state.plan.rot_ppm;
                if state.rng.chance_ppm(ppm) {
                    let at = offset + state.rng.below(len);
                    let bit = state.rng.below(8) as u8;
                    state.flip_bit(at, bit);
                    state.counters.silent_faults += 1;
                }
            }
            // What is seen of a write that overlaps the read in time: nothing, or all.
            let early = state.rng.below(2) == 0;
            if early {
                state.view.read(offset, &mut buf);
            }
            let plan = state.plan.latency.clone();
            (plan.draw(OpKind::Read, &mut state.rng), error, early)
        };
        self.answer("read", offset, delay_ns, move |state| {
            let result = state.complete_read(offset, &mut buf, early, error);
            let digest = if result.is_ok() { hash(&buf) } else { 1 };
            ((result, buf), digest)
        })
        .await
    }

    async fn write(&self, offset: u64, data: Vec<Slice>, fua: bool) -> Result<(), IoError> {
        if self.silent() {
            return std::future::pending().await;
        }
        let mut bytes = Vec::with_capacity(data.iter().map(Slice::len).sum());
        data.iter().for_each(|slice| bytes.extend_from_slice(slice));
        self.device.note("payload", bytes.len() as u64, hash(&bytes));
        let what = if fua { "write fua" } else { "write" };
        self.submit_write(what, offset, Content::Data(bytes.into()), fua, data).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        if self.silent() {
            return std::future::pending().await;
        }
        let (covered, delay_ns, error) = {
            let mut state = self.device.lock();
            state.counters.flushes += 1;
            let error = state.fault(OpKind::Flush);
            let plan = state.plan.latency.clone();
            (state.cache.completed(), plan.draw(OpKind::Flush, &mut state.rng), error)
        };
        self.device.note("flush", covered.len() as u64, 0);
        self.device.core.device_event();
        let count = covered.len() as u64;
        self.answer("flushed", count, delay_ns, move |state| {
            let result = state.complete_flush(&covered, error);
            let failed = u64::from(result.is_err());
            (result, failed)
        })
        .await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        if self.silent() {
            return std::future::pending().await;
        }
        let (supported, content) = {
            let mut state = self.device.lock();
            state.check_range(offset, len);
            state.counters.discards += 1;
            let content = match state.plan.discard {
                DiscardEffect::Zeroes => Some(Content::Zeroes(len)),
                DiscardEffect::Old => None,
                DiscardEffect::Random => {
                    // A huge range is filled at its ends only: nobody may rely on any of it.
                    let count = len.min(1 << 20) as usize;
                    let fill = state.rng.next_u64().to_le_bytes();
                    Some(Content::Data(fill.iter().copied().cycle().take(count).collect::<Vec<u8>>().into()))
                }
            };
            (state.config.discard && !self.read_only, content)
        };
        if !supported {
            return Err(IoError::Unsupported);
        }
        match content {
            Some(content) => self.submit_write("discard", offset, content, false, Vec::new()).await,
            None => self.answer("discard", offset, 1000, |_| (Ok(()), 0)).await,
        }
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        if self.silent() {
            return std::future::pending().await;
        }
        if self.device.lock().plan.no_write_zeroes {
            return Err(IoError::Unsupported);
        }
        self.submit_write("zeroes", offset, Content::Zeroes(len), false, Vec::new()).await
    }
}
