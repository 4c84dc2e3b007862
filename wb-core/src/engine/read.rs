//! Reads: from memory, from the cache device, from the backing device, merged where a block is in two of them.

use super::Inner;
use super::counters::count;
use super::locate::Location;
use super::segments::Pin;
use crate::env::Env;
use crate::index::Entry as IndexEntry;
use crate::io::{Buf, Disk};
use crate::service::{ReadData, SERVICE_CHUNK_BYTES_MAX, ServiceError};
use crate::types::*;
use futures_util::future::join_all;
use std::sync::Arc;

/// Where a run of neighbouring blocks comes from.
enum Source<'a> {
    /// The backing device.
    Backing,
    /// Nowhere: zeroes, or already copied from memory.
    Done,
    /// Neighbouring, whole slots of the cache device.
    Slots { first: IndexEntry, pos: LogPos, pins: Vec<Pin<'a>>, dirty: Vec<bool> },
    /// A slot of which not all sectors are valid: merged with the backing device.
    Partial { entry: IndexEntry, pos: LogPos, pin: Pin<'a> },
    /// Lost.
    Poison,
}

struct Run<'a> {
    first: u64,
    count: u64,
    source: Source<'a>,
}

impl<E: Env> Inner<E> {
    /// The whole read request.
    pub(super) async fn read(self: &Arc<Self>, offset: u64, len: usize) -> Result<ReadData, ServiceError> {
        let _operation = self.begin()?;
        self.check_range(offset, len as u64)?;
        if len == 0 || len > SERVICE_CHUNK_BYTES_MAX {
            return Err(ServiceError::Invalid);
        }
        count(&self.counters.user_reads, 1);
        count(&self.counters.user_read_bytes, len as u64);
        let first = offset / BLOCK_BYTES_U64;
        let last = (offset + len as u64).div_ceil(BLOCK_BYTES_U64);
        let mut buf = self.pool.alloc((last - first) as usize * BLOCK_BYTES).await;
        self.env.yield_point().await;
        let buf = if last - first == 1 {
            self.read_block(first, buf).await?
        } else {
            let runs = self.plan(first..last, &mut buf);
            self.run_all(runs, buf).await?
        };
        Ok(ReadData::new(buf, (offset - first * BLOCK_BYTES_U64) as usize, len))
    }

    /// Reads one block: the way of [`Inner::plan`] and [`Inner::run_all`] without their lists.
    async fn read_block(self: &Arc<Self>, block: u64, mut buf: Buf) -> Result<Buf, ServiceError> {
        let location = self.locate(block);
        let hit = !matches!(location, Location::Miss);
        count(if hit { &self.counters.read_hits } else { &self.counters.read_misses }, 1);
        let run = |source| Run { first: block, count: 1, source };
        let (result, buf) = match location {
            Location::Slot { entry, pos, pin } if self.whole(block, entry.mask) => {
                if self.copy_from_memory(pos, &mut buf) {
                    return Ok(buf);
                }
                let read = self.read_slots(block, entry, pos, &[entry.dirty], buf).await;
                drop(pin);
                read
            }
            Location::Miss => self.read_backing(block, buf).await,
            Location::Zeroes => {
                buf.fill(0);
                return Ok(buf);
            }
            Location::Poison => self.read_run(run(Source::Poison), buf).await,
            Location::Slot { entry, pos, pin } => self.read_run(run(Source::Partial { entry, pos, pin }), buf).await,
        };
        result.map(|()| buf)
    }

    /// Looks every block up, copies what is in memory and groups the rest into runs.
    fn plan<'a>(self: &'a Arc<Self>, blocks: std::ops::Range<u64>, buf: &mut Buf) -> Vec<Run<'a>> {
        let mut runs: Vec<Run<'a>> = Vec::new();
        let (mut hits, total) = (0, blocks.end - blocks.start);
        for block in blocks.clone() {
            let out = &mut buf[(block - blocks.start) as usize * BLOCK_BYTES..][..BLOCK_BYTES];
            let source = match self.locate(block) {
                Location::Miss => Source::Backing,
                Location::Zeroes => {
                    out.fill(0);
                    Source::Done
                }
                Location::Poison => Source::Poison,
                Location::Slot { entry, pos, pin } if self.whole(block, entry.mask) => {
                    if self.copy_from_memory(pos, out) {
                        Source::Done
                    } else {
                        Source::Slots { first: entry, pos, pins: vec![pin], dirty: vec![entry.dirty] }
                    }
                }
                Location::Slot { entry, pos, pin } => Source::Partial { entry, pos, pin },
            };
            hits += u64::from(!matches!(source, Source::Backing));
            push(&mut runs, block, source, &self.geometry);
        }
        count(&self.counters.read_hits, hits);
        count(&self.counters.read_misses, total - hits);
        runs
    }

    /// True if the slot has every sector that the block has.
    fn whole(&self, block: u64, mask: SectorMask) -> bool {
        mask.is_full() || self.block_mask(block).minus(mask).is_empty()
    }

    async fn run_all(self: &Arc<Self>, mut runs: Vec<Run<'_>>, mut buf: Buf) -> Result<Buf, ServiceError> {
        if runs.len() == 1 {
            let (result, buf) = self.read_run(runs.remove(0), buf).await;
            return result.map(|()| buf);
        }
        let mut parts = Vec::with_capacity(runs.len());
        for run in &runs {
            let rest = buf.split_off(run.count as usize * BLOCK_BYTES);
            parts.push(std::mem::replace(&mut buf, rest));
        }
        let reads = runs.into_iter().zip(parts).map(|(run, part)| self.read_run(run, part));
        let mut whole: Option<Buf> = None;
        let mut outcome = Ok(());
        for (result, part) in join_all(reads).await {
            outcome = outcome.and(result);
            match &mut whole {
                Some(whole) => whole.unsplit(part),
                None => whole = Some(part),
            }
        }
        outcome.map(|()| whole.expect("a request has blocks"))
    }

    async fn read_run(self: &Arc<Self>, run: Run<'_>, part: Buf) -> (Result<(), ServiceError>, Buf) {
        match run.source {
            Source::Done => (Ok(()), part),
            Source::Backing => self.read_backing(run.first, part).await,
            Source::Poison => {
                tracing::warn!("block {} was lost: read refused until it is overwritten", run.first);
                (Err(ServiceError::Io), part)
            }
            Source::Partial { entry, pos, pin } => {
                let outcome = self.read_partial(run.first, entry, pos, part).await;
                drop(pin);
                outcome
            }
            Source::Slots { first, pos, pins, dirty } => {
                let outcome = self.read_slots(run.first, first, pos, &dirty, part).await;
                drop(pins);
                outcome
            }
        }
    }

    async fn read_slots(
        self: &Arc<Self>,
        first_block: u64,
        first: IndexEntry,
        pos: LogPos,
        dirty: &[bool],
        part: Buf,
    ) -> (Result<(), ServiceError>, Buf) {
        let (result, mut part) = self.cache.read(self.geometry.slot_offset(first.slot).0, part).await;
        if let Err(error) = &result {
            tracing::error!("reading slot {} of the cache device failed: {error}", first.slot);
        }
        for (index, dirty) in dirty.iter().enumerate() {
            let (slot, pos) = (Slot(first.slot.0 + index as u64), LogPos(pos.0 + index as u64));
            let bytes = &part[index * BLOCK_BYTES..][..BLOCK_BYTES];
            if result.is_ok() && self.check_slot(slot, pos, bytes).is_ok() {
                continue;
            }
            let block = first_block + index as u64;
            let again = self.recover_block(block, slot, pos, *dirty, &mut part, index).await;
            if again.is_err() {
                return (again, part);
            }
        }
        (Ok(()), part)
    }

    /// A whole cached block could not be read with its neighbours or is wrong: alone once more, then the backing device
    /// if the block is clean.
    async fn recover_block(
        self: &Arc<Self>,
        block: u64,
        slot: Slot,
        pos: LogPos,
        dirty: bool,
        part: &mut Buf,
        index: usize,
    ) -> Result<(), ServiceError> {
        let buf = self.pool.alloc(BLOCK_BYTES).await;
        let (result, buf) = self.cache.read(self.geometry.slot_offset(slot).0, buf).await;
        let right = result.is_ok() && self.check_slot(slot, pos, &buf).is_ok();
        let buf = if right {
            buf
        } else if dirty {
            tracing::error!("block {block} is dirty and its cached copy in slot {slot} is unreadable");
            return Err(ServiceError::Io);
        } else {
            tracing::warn!("block {block}: cached copy in slot {slot} is unreadable, reading the backing device");
            let (result, buf) = self.read_backing(block, buf).await;
            result?;
            buf
        };
        part[index * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(&buf);
        Ok(())
    }

    async fn read_partial(
        self: &Arc<Self>,
        block: u64,
        entry: IndexEntry,
        pos: LogPos,
        part: Buf,
    ) -> (Result<(), ServiceError>, Buf) {
        let (result, mut part) = self.read_backing(block, part).await;
        if result.is_err() {
            return (result, part);
        }
        let cached = self.pool.alloc(BLOCK_BYTES).await;
        let (result, cached) = self.read_slot(&entry, pos, cached).await;
        match result {
            Ok(()) => overlay(&mut part, &cached, entry.mask),
            Err(_) if !entry.dirty => {} // the backing device has these sectors, too
            Err(error) => {
                tracing::error!("block {block} is dirty and its cached sectors in slot {} are unreadable", entry.slot);
                return (Err(error), part);
            }
        }
        (Ok(()), part)
    }
}

/// Copies the sectors of `mask`.
pub(super) fn overlay(out: &mut [u8], from: &[u8], mask: SectorMask) {
    for (first, count) in mask.runs() {
        let bytes = first * SECTOR_BYTES..(first + count) * SECTOR_BYTES;
        out[bytes.clone()].copy_from_slice(&from[bytes]);
    }
}

/// Adds a block to the last run if it goes on there.
fn push<'a>(runs: &mut Vec<Run<'a>>, block: u64, source: Source<'a>, geometry: &crate::format::Geometry) {
    if let Some(run) = runs.last_mut() {
        match (&mut run.source, source) {
            (Source::Backing, Source::Backing) | (Source::Done, Source::Done) => return run.count += 1,
            (Source::Slots { first, pins, dirty, .. }, Source::Slots { first: next, pos, pins: pin, dirty: is }) => {
                let follows = first.slot.0 + run.count == next.slot.0;
                let same_segment = geometry.slot_parts(first.slot).0 == geometry.slot_parts(next.slot).0;
                if follows && same_segment {
                    pins.extend(pin);
                    dirty.extend(is);
                    return run.count += 1;
                }
                let source = Source::Slots { first: next, pos, pins: pin, dirty: is };
                return runs.push(Run { first: block, count: 1, source });
            }
            (_, source) => return runs.push(Run { first: block, count: 1, source }),
        }
    }
    runs.push(Run { first: block, count: 1, source });
}
