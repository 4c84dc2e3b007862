//! What a simulated device knows, and what its operations do to it. All sync; the awaiting is in [`super::handle`].

use super::disk::DeviceConfig;
use super::fault::{AtomicUnit, FaultPlan, NthFault, OpKind};
use super::medium::Medium;
use super::rng::SimRng;
use super::volatile::{Content, Pending, VolatileCache, tear};
use crate::io::{Buf, IoError};
use crate::types::SECTOR_BYTES;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const SECTOR: u64 = SECTOR_BYTES as u64;

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
pub(super) struct InFlight {
    pub(super) write: Option<Pending>,
    pub(super) fua: bool,
    /// Cleared when the process that asked is killed.
    pub(super) alive: Arc<AtomicBool>,
}

pub(super) struct DeviceState {
    pub(super) config: DeviceConfig,
    pub(super) plan: FaultPlan,
    pub(super) rng: SimRng,
    pub(super) stable: Medium,
    pub(super) view: Medium,
    pub(super) cache: VolatileCache,
    pub(super) in_flight: BTreeMap<u64, InFlight>,
    pub(super) unreadable: BTreeSet<u64>,
    pub(super) next_id: u64,
    pub(super) op_counts: [u64; 4],
    pub(super) gone: bool,
    pub(super) read_only: bool,
    pub(super) counters: Counters,
}

impl DeviceState {
    /// Whether an operation fails, and how.
    pub(super) fn fault(&mut self, op: OpKind) -> Option<IoError> {
        self.op_counts[op as usize] += 1;
        let count = self.op_counts[op as usize];
        if self.gone {
            return Some(IoError::Gone);
        }
        let by_number =
            |fault: &&NthFault| fault.op == op && (count == fault.nth || fault.forever && count > fault.nth);
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

    pub(super) fn in_area(&self, offset: u64, len: u64) -> bool {
        self.plan.area.as_ref().is_none_or(|area| area.start <= offset && offset + len <= area.end)
    }

    /// A write becomes visible.
    pub(super) fn apply(&mut self, mut write: Pending) {
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
            self.counters.silent_faults += 1;
        }
        write.content.apply(&mut self.view, write.offset);
        self.cache.push(write);
    }

    /// A write failed: some of its units were written, others not.
    pub(super) fn apply_mix(&mut self, write: &Pending) {
        let units = self.cache_units(write);
        for (offset, len) in tear(units, &mut self.rng) {
            if self.plan.is_unwritable(offset, len) {
                continue;
            }
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

    pub(super) fn cache_units(&self, write: &Pending) -> Vec<(u64, u64)> {
        let one = VolatileCache::default();
        one.units(std::slice::from_ref(write), AtomicUnit::Sector).into_iter().map(|(_, at, len)| (at, len)).collect()
    }

    pub(super) fn complete_write(&mut self, id: u64, error: Option<IoError>) -> Result<(), IoError> {
        // Not there: power failed meanwhile.
        let Some(request) = self.in_flight.remove(&id) else { return Err(IoError::Gone) };
        let error = if self.gone { Some(IoError::Gone) } else { error };
        // What became visible at once can be flushed from here on, however the request ends.
        self.cache.complete(id);
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
        if request.fua {
            if self.rng.chance_ppm(self.plan.lie_fua_ppm) {
                self.counters.silent_faults += 1;
            } else {
                self.cache.make_durable(&BTreeSet::from([id]), &mut self.stable);
            }
        }
        Ok(())
    }

    pub(super) fn complete_flush(&mut self, covered: &BTreeSet<u64>, error: Option<IoError>) -> Result<(), IoError> {
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

    pub(super) fn complete_read(
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

    pub(super) fn flip_bit(&mut self, offset: u64, bit: u8) {
        self.stable.flip_bit(offset, bit);
        self.view.flip_bit(offset, bit);
    }

    pub(super) fn power_cut(&mut self) -> (u64, u64, u64) {
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

    pub(super) fn check_range(&self, offset: u64, len: u64) {
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
