//! Write-back: the maintenance task and the writing of windows.
//!
//! A window: group commit; the oldest dirty records ≤ D; superseded versions dropped; ranges applied in log order; payload
//! read, verified, sorted, merged, written; one FLUSH of the backing device; what failed re-logged; anchor with the new
//! tails in both slots. One window at a time and each block once in it: at most one backing write per block is in flight
//! [v1 of window 1 lands after v2 of window 2].

use super::Inner;
use super::config::Shares;
use super::counters::count;
use super::read::overlay;
use super::window::{Item, RangeItem, Window};
use crate::env::{Env, PlantedBug};
use crate::format::crc32c;
use crate::index::RangeKind;
use crate::io::{Buf, Disk, IoError, Slice};
use crate::log::head::{Class, Full};
use crate::service::ServiceError;
use crate::sync::WaitQueue;
use crate::types::*;
use futures_util::{StreamExt, stream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Longest write to the backing device.
const BACKING_WRITE_BYTES_MAX: usize = 1 << 20;
/// Single tries for a block whose only copy cannot be read, and the pause before the second, which then doubles.
const REREADS: u32 = 5;
const REREAD_DELAY_NS: u64 = 10_000_000;
/// First and longest pause after a window that failed.
const BACKOFF_NS: (u64, u64) = (100_000_000, 10_000_000_000);

pub(super) struct WritebackState {
    pub event: WaitQueue,
    pub space_wanted: AtomicBool,
    /// Everything up to this record is to be written back now.
    pub drain_to: AtomicU64,
    /// Write-back by watermark is going on.
    running: AtomicBool,
    stop: AtomicBool,
    stopped: AtomicBool,
    backoff_ns: AtomicU64,
    start_percent: AtomicU64,
    stop_percent: AtomicU64,
    pub last_error: Mutex<Option<String>>,
}

impl WritebackState {
    pub fn new(start_percent: u32, stop_percent: u32) -> WritebackState {
        WritebackState {
            event: WaitQueue::new(),
            space_wanted: AtomicBool::new(false),
            drain_to: AtomicU64::new(0),
            running: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            backoff_ns: AtomicU64::new(0),
            start_percent: AtomicU64::new(start_percent.into()),
            stop_percent: AtomicU64::new(stop_percent.into()),
            last_error: Mutex::new(None),
        }
    }

    /// Start and stop watermark in percent of the segments.
    pub fn watermarks(&self) -> (u64, u64) {
        (self.start_percent.load(Ordering::SeqCst), self.stop_percent.load(Ordering::SeqCst))
    }
    /// Changes them.
    pub fn set_watermarks(&self, start: u64, stop: u64) {
        self.start_percent.store(start, Ordering::SeqCst);
        self.stop_percent.store(stop, Ordering::SeqCst);
        self.event.notify_all();
    }
    /// True while write-back by watermark goes on.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }
}

enum Work {
    Window,
    Reclaim,
    Stop,
}

/// Why a window did not end.
#[derive(Debug)]
pub(super) enum WindowError {
    /// The backing device fails; the data stays dirty.
    Backing(String),
    /// The cache device fails.
    Cache(String),
}

/// A block whose write-back failed.
pub(super) struct Stuck {
    pub item: Item,
    /// Its data; `None` if it is lost.
    pub data: Option<Slice>,
}

impl<E: Env> Inner<E> {
    /// A writer waits for room.
    pub(super) fn want_space(&self) {
        if !self.writeback.space_wanted.swap(true, Ordering::SeqCst) {
            self.writeback.event.notify_all();
        }
    }

    /// Runs until the engine stops.
    pub(super) async fn maintain(self: Arc<Self>) {
        loop {
            let work = self.writeback.event.wait_until(|| self.next_work()).await;
            let outcome = match work {
                Work::Stop => break,
                Work::Window => self.write_back_window().await,
                Work::Reclaim => self.reclaim(self.anchors.tails().1, None).await,
            };
            self.settle(outcome).await;
        }
        self.writeback.stopped.store(true, Ordering::SeqCst);
        self.writeback.event.notify_all();
    }

    async fn settle(&self, outcome: Result<(), WindowError>) {
        let state = &self.writeback;
        let Err(error) = outcome else {
            if state.backoff_ns.swap(0, Ordering::SeqCst) > 0 {
                tracing::info!("write-back goes on");
            }
            *state.last_error.lock().expect("not poisoned") = None;
            return;
        };
        let text = match error {
            WindowError::Backing(text) => text,
            WindowError::Cache(text) => {
                self.fail(text.clone());
                text
            }
        };
        count(&self.counters.writeback_errors, 1);
        let before = state.backoff_ns.load(Ordering::SeqCst);
        let pause_ns = (before * 2).clamp(BACKOFF_NS.0, BACKOFF_NS.1);
        state.backoff_ns.store(pause_ns, Ordering::SeqCst);
        let known = state.last_error.lock().expect("not poisoned").replace(text.clone()).is_some();
        if !known {
            tracing::error!("write-back: {text}; the data stays in the cache, trying again");
        }
        self.env.sleep(pause_ns).await;
    }

    fn next_work(&self) -> Option<Work> {
        let state = &self.writeback;
        if state.stop.load(Ordering::SeqCst) {
            return Some(Work::Stop);
        }
        if self.is_failed() {
            return None;
        }
        let shares = Shares::of(&self.geometry);
        let (free, usable) = self.head.free_segments();
        let (_, dirty_tail) = self.anchors.tails();
        let wanted = state.space_wanted.load(Ordering::SeqCst);
        if wanted && self.head.room(Class::User) != Err(Full::Segments) {
            state.space_wanted.store(false, Ordering::SeqCst);
            self.space.notify_all();
        }
        let has_dirty = dirty_tail <= self.head.newest();
        if free < shares.free_low || wanted {
            let oldest = self.head.oldest_segments(2);
            let reclaimable = oldest.len() == 2
                && !oldest[0].summary_in_flight
                && oldest[0].last_seq.is_some_and(|last| last < dirty_tail);
            if reclaimable {
                return Some(Work::Reclaim);
            }
            if has_dirty {
                return Some(Work::Window);
            }
        }
        if has_dirty && dirty_tail.0 <= state.drain_to.load(Ordering::SeqCst) {
            return Some(Work::Window);
        }
        let dirty = self.head.count_from(dirty_tail) as u64 * 100;
        let (start, stop) = state.watermarks();
        if dirty >= start * u64::from(usable) {
            state.running.store(true, Ordering::SeqCst);
        } else if dirty <= stop * u64::from(usable) {
            state.running.store(false, Ordering::SeqCst);
        }
        (has_dirty && state.running.load(Ordering::SeqCst)).then_some(Work::Window)
    }

    async fn write_back_window(self: &Arc<Self>) -> Result<(), WindowError> {
        let committed = self.commit_to(self.head.newest()).await;
        committed.map_err(|_| WindowError::Cache("group commit failed".into()))?;
        let durable = self.head.durable();
        let (_, dirty_tail) = self.anchors.tails();
        let shares = Shares::of(&self.geometry);
        let segments = self.head.segments_from(dirty_tail, shares.window_segments as usize);
        let window = self.gather(&segments, dirty_tail, durable).await;
        if window.end < dirty_tail {
            return Ok(());
        }
        let stuck = self.write_window(&window).await?;
        if !stuck.is_empty() {
            self.relog(stuck).await?;
        }
        let poison: Vec<RangeItem> =
            window.ranges.iter().filter(|range| range.kind == RangeKind::Poison).cloned().collect();
        self.relog_poison(poison).await?;
        let probes = self.renew_probes(&window).await;
        self.reclaim(window.end.next(), probes).await
    }

    /// Writes ranges and payload, flushes the backing device, marks clean. Gives the blocks that failed.
    async fn write_window(self: &Arc<Self>, window: &Window) -> Result<Vec<Stuck>, WindowError> {
        let late = self.config.has_bug(PlantedBug::DiscardAppliedLate);
        if !late {
            self.apply_ranges(&window.ranges).await?;
        }
        let items: Vec<Item> = window.items.values().copied().collect();
        let mut stuck = Vec::new();
        let batch_blocks = self.window_pool.max_len() / BLOCK_BYTES;
        let stuck_max = self.stuck_max();
        for batch in items.chunks(batch_blocks) {
            self.write_batch(batch, &mut stuck).await;
            let intact = stuck.iter().filter(|stuck| stuck.data.is_some()).count();
            if intact > stuck_max {
                let text = format!("{intact} blocks or more cannot be written to the backing device");
                return Err(WindowError::Backing(text));
            }
        }
        if late {
            self.apply_ranges(&window.ranges).await?;
        }
        let wrote = !items.is_empty() || window.ranges.iter().any(|range| range.kind != RangeKind::Poison);
        if wrote && !self.config.has_bug(PlantedBug::FreeBeforeBackingFlush) {
            count(&self.counters.backing_flushes, 1);
            let flushed = self.served.disk.flush().await;
            flushed.map_err(|error| WindowError::Backing(format!("FLUSH of the backing device failed: {error}")))?;
        }
        let failed: std::collections::BTreeSet<BlockAddr> = stuck.iter().map(|stuck| stuck.item.addr).collect();
        for item in items.iter().filter(|item| !failed.contains(&item.addr)) {
            self.index.set_clean_if(item.addr, item.slot);
        }
        let mut ranges = self.served.ranges.lock().expect("not poisoned");
        for range in window.ranges.iter().filter(|range| range.kind != RangeKind::Poison) {
            if ranges.set_clean(range.blocks.clone(), range.pos).is_err() {
                // It has been applied; only the flag says otherwise, until its segment is reclaimed.
                tracing::debug!("range map full: {:?} stays marked dirty", range.blocks);
            }
        }
        Ok(stuck)
    }

    /// More blocks than this failing in one window mean that the device as a whole fails: then waiting is right. Fewer
    /// are re-logged, and what a window frees is more than what it re-logs.
    fn stuck_max(&self) -> usize {
        self.geometry.record_blocks() as usize / 4
    }

    async fn apply_ranges(&self, ranges: &[RangeItem]) -> Result<(), WindowError> {
        let disk = &self.served.disk;
        for range in ranges {
            let offset = range.blocks.start * BLOCK_BYTES_U64;
            let end = (range.blocks.end * BLOCK_BYTES_U64).min(self.served.volume.size_bytes);
            let len = end.saturating_sub(offset);
            if len == 0 {
                continue;
            }
            let align = u64::from(disk.geometry().align_bytes);
            let result = match range.kind {
                // Only whole units of the device; the rest keeps its old content, which a discard may.
                RangeKind::Discard => {
                    let (from, to) = (offset.next_multiple_of(align), end / align * align);
                    if from < to { disk.discard(from, to - from).await } else { Ok(()) }
                }
                RangeKind::Zeroes => match disk.write_zeroes(offset, len).await {
                    Err(IoError::Unsupported) => self.write_zero_blocks(offset, len).await,
                    result => result,
                },
                _ => continue,
            };
            match result {
                Ok(()) | Err(IoError::Unsupported) => {}
                Err(error) if range.kind == RangeKind::Discard => {
                    tracing::debug!("discard of the backing device at offset {offset} failed: {error}");
                }
                Err(error) => {
                    let text = format!("zeroing {len} bytes of the backing device at offset {offset} failed: {error}");
                    return Err(WindowError::Backing(text));
                }
            }
        }
        Ok(())
    }

    async fn write_zero_blocks(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let zeroes = {
            let mut buf = self.window_pool.alloc(self.window_pool.max_len()).await;
            buf.fill(0);
            buf.freeze()
        };
        let mut at = 0;
        while at < len {
            let step = (len - at).min(zeroes.len() as u64);
            count(&self.counters.backing_writes, 1);
            count(&self.counters.backing_write_bytes, step);
            self.served.disk.write(offset + at, vec![zeroes.slice(0..step as usize)], false).await?;
            at += step;
        }
        Ok(())
    }

    /// Reads a batch from the cache device in the order of the slots, writes it in the order of the addresses.
    async fn write_batch(self: &Arc<Self>, batch: &[Item], stuck: &mut Vec<Stuck>) {
        let data = self.read_batch(batch).await;
        let mut good: Vec<(Item, Slice)> = Vec::with_capacity(batch.len());
        for (item, data) in batch.iter().zip(data) {
            match data {
                Some(data) => good.push((*item, data)),
                None => stuck.push(Stuck { item: *item, data: None }),
            }
        }
        let writes = self.merge_writes(&good);
        let depth = self.config.writeback_depth;
        let mut results =
            stream::iter(writes).map(|members| self.write_run(&good[members.clone()], members)).buffer_unordered(depth);
        let mut failed = Vec::new();
        while let Some((result, members)) = results.next().await {
            if result.is_err() {
                failed.push(members);
            }
        }
        drop(results);
        for member in failed.into_iter().flatten() {
            let (item, data) = good[member].clone();
            // The neighbours of a bad sector are good: each block gets its own try.
            if self.write_run(&good[member..member + 1], member..member + 1).await.0.is_err() {
                // A copy: the batch's memory is needed for the next one.
                let mut copy = Buf::unpooled(BLOCK_BYTES);
                copy.copy_from_slice(&data);
                stuck.push(Stuck { item, data: Some(copy.freeze()) });
                if stuck.len() > self.stuck_max() {
                    return;
                }
            }
        }
    }

    /// Reads and verifies the payload of a batch. `None` where it is lost.
    async fn read_batch(self: &Arc<Self>, batch: &[Item]) -> Vec<Option<Slice>> {
        let mut arena = self.window_pool.alloc(batch.len() * BLOCK_BYTES).await;
        let mut order: Vec<usize> = (0..batch.len()).collect();
        order.sort_by_key(|at| batch[*at].slot);
        let mut runs: Vec<(Vec<usize>, Buf)> = Vec::new();
        let mut at = 0;
        while at < order.len() {
            let mut end = at + 1;
            while end < order.len()
                && batch[order[end]].slot.0 == batch[order[end - 1]].slot.0 + 1
                && (end - at) * BLOCK_BYTES < BACKING_WRITE_BYTES_MAX
            {
                end += 1;
            }
            let rest = arena.split_off((end - at) * BLOCK_BYTES);
            runs.push((order[at..end].to_vec(), std::mem::replace(&mut arena, rest)));
            at = end;
        }
        let mut data: Vec<Option<Slice>> = vec![None; batch.len()];
        let depth = self.config.writeback_depth;
        let mut reads = stream::iter(runs)
            .map(|(members, buf)| async move {
                let offset = self.geometry.slot_offset(batch[members[0]].slot);
                let (result, buf) = self.cache.read(offset.0, buf).await;
                (members, result, buf.freeze())
            })
            .buffer_unordered(depth);
        while let Some((members, result, bytes)) = reads.next().await {
            for (index, member) in members.iter().enumerate() {
                let block = bytes.slice(index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES);
                let item = &batch[*member];
                if result.is_ok() && item.crc.is_none_or(|crc| crc32c(&block) == crc) {
                    data[*member] = Some(block);
                    continue;
                }
                data[*member] = self.reread(item).await;
            }
        }
        data
    }

    /// More tries, alone, for a block that could not be read or was wrong. What fails here is given up for good, so a
    /// passing error gets time to pass.
    async fn reread(&self, item: &Item) -> Option<Slice> {
        let mut buf = Buf::unpooled(BLOCK_BYTES);
        for attempt in 0..REREADS {
            if attempt > 0 {
                self.env.sleep(REREAD_DELAY_NS << (attempt - 1)).await;
            }
            let result;
            (result, buf) = self.cache.read(self.geometry.slot_offset(item.slot).0, buf).await;
            if result.is_ok() && item.crc.is_none_or(|crc| crc32c(&buf) == crc) {
                return Some(buf.freeze());
            }
        }
        count(&self.counters.checksum_errors, 1);
        tracing::error!("block {}: the dirty copy in slot {} is unreadable: it is lost", item.addr.block(), item.slot);
        None
    }

    /// Groups blocks into writes: whole neighbours together, others alone.
    fn merge_writes(&self, good: &[(Item, Slice)]) -> Vec<std::ops::Range<usize>> {
        let mut writes: Vec<std::ops::Range<usize>> = Vec::new();
        for at in 0..good.len() {
            let joins = writes.last().is_some_and(|last| {
                let before = &good[last.end - 1].0;
                let item = &good[at].0;
                before.addr.0 + 1 == item.addr.0
                    && self.all_sectors(before)
                    && self.all_sectors(item)
                    && last.len() * BLOCK_BYTES < BACKING_WRITE_BYTES_MAX
            });
            match writes.last_mut() {
                Some(last) if joins => last.end += 1,
                _ => writes.push(at..at + 1),
            }
        }
        writes
    }

    fn all_sectors(&self, item: &Item) -> bool {
        self.block_mask(item.addr.block()).minus(item.mask).is_empty()
    }

    /// Writes neighbouring whole blocks, or the valid sectors of one.
    async fn write_run(
        &self,
        members: &[(Item, Slice)],
        range: std::ops::Range<usize>,
    ) -> (Result<(), IoError>, std::ops::Range<usize>) {
        let (first, data) = &members[0];
        let offset = first.addr.block() * BLOCK_BYTES_U64;
        let result = if self.all_sectors(first) {
            let bytes = ((self.served.volume.size_bytes - offset) as usize).min(members.len() * BLOCK_BYTES);
            let mut slices: Vec<Slice> = Vec::new();
            for (index, (_, data)) in members.iter().enumerate() {
                let data = data.slice(0..(bytes - index * BLOCK_BYTES).min(BLOCK_BYTES));
                if !slices.last_mut().is_some_and(|last| last.try_extend(&data)) {
                    slices.push(data);
                }
            }
            self.write_backing(offset, bytes, slices).await
        } else {
            self.write_sectors(first, data, offset).await
        };
        if let Err(error) = &result {
            tracing::debug!("write-back at offset {offset} failed: {error}");
        }
        (result, range)
    }

    async fn write_backing(&self, offset: u64, bytes: usize, slices: Vec<Slice>) -> Result<(), IoError> {
        count(&self.counters.backing_writes, 1);
        count(&self.counters.backing_write_bytes, bytes as u64);
        if self.config.has_bug(PlantedBug::TwoBackingWrites) {
            let disk = self.served.disk.clone();
            self.env.spawn(async move {
                let _ = disk.write(offset, slices, false).await;
            });
            return Ok(());
        }
        self.served.disk.write(offset, slices, false).await
    }

    /// Writes the valid sectors of a block; the device is never read to fill a block, unless its alignment demands it.
    async fn write_sectors(&self, item: &Item, data: &Slice, offset: u64) -> Result<(), IoError> {
        let mask = SectorMask(item.mask.0 & self.block_mask(item.addr.block()).0);
        let align = self.served.disk.geometry().align_bytes as usize;
        if align > SECTOR_BYTES {
            let (result, mut buf) = self.served.disk.read(offset, Buf::unpooled(BLOCK_BYTES)).await;
            result?;
            overlay(&mut buf, data, mask);
            return self.write_backing(offset, BLOCK_BYTES, vec![buf.freeze()]).await;
        }
        for (first, sectors) in mask.runs() {
            let bytes = first * SECTOR_BYTES..(first + sectors) * SECTOR_BYTES;
            let at = offset + bytes.start as u64;
            self.write_backing(at, bytes.len(), vec![data.slice(bytes)]).await?;
        }
        Ok(())
    }

    /// Writes back everything that is in the cache now; ends when it is done.
    pub(super) async fn drain(self: &Arc<Self>) -> Result<(), ServiceError> {
        let target = self.head.newest();
        self.commit_to(target).await?;
        self.writeback.drain_to.fetch_max(target.0, Ordering::SeqCst);
        self.writeback.event.notify_all();
        self.writeback
            .event
            .wait_until(|| {
                if self.is_failed() || self.writeback.stopped.load(Ordering::SeqCst) {
                    return Some(Err(ServiceError::Io));
                }
                (self.anchors.tails().1 > target).then_some(Ok(()))
            })
            .await
    }

    /// Ends the maintenance task and waits for it.
    pub(super) async fn stop_maintenance(&self) {
        self.writeback.stop.store(true, Ordering::SeqCst);
        self.writeback.event.notify_all();
        self.writeback.event.wait_until(|| self.writeback.stopped.load(Ordering::SeqCst).then_some(())).await;
    }
}
