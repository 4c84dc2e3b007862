//! The sweep: the payload of a window goes to the backing device, once across it in the order of addresses.
//!
//! One continuous stream of writes with a constant depth. The payload of the next batch is read from the cache device, in
//! the order of the slots, while this one is written: two batches of memory, and no pause between batches.
//!
//! Invariants:
//! * Each block is in a window once, and is tried again only when its last write has ended: at most one write of a block
//!   is in flight [v1 of window 1 lands after v2 of window 2]. A sweep that is broken off waits for its writes, too.
//! * A block is left out only for a newer version ≤ D. That one lies behind the window and stays dirty.
//! * Nothing is marked clean before the FLUSH that ends the window.
//! * A block is lost only if its device is there and does not have it [the cache device vanishes while a window reads;
//!   poison goes to the RAM tail, the daemon dies, the device returns, and the next start believes the poison].

use super::Inner;
use super::counters::count;
use super::read::overlay;
use super::window::Item;
use super::writeback::WindowError;
use crate::env::{Env, PlantedBug};
use crate::io::{Buf, Disk, IoError, Slice};
use crate::types::*;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, stream};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;

/// Longest write to the backing device.
const BACKING_WRITE_BYTES_MAX: usize = 1 << 20;
/// Blocks of the first batch of a window; each further one has twice as many, so that the disk does not wait for long.
const FIRST_BATCH: usize = 512;
/// Writes in flight where nothing presses.
const GENTLE_DEPTH: usize = 4;
/// Single tries for a block whose only copy cannot be read, and the pause before the second, which then doubles.
const REREADS: u32 = 5;
const REREAD_DELAY_NS: u64 = 10_000_000;

/// A block whose write-back failed.
pub(super) struct Stuck {
    pub item: Item,
    /// Its data; `None` if it is lost.
    pub data: Option<Slice>,
}

/// How many blocks of a window may fail before it is given up.
#[derive(Debug, Clone, Copy)]
pub(super) struct StuckLimits {
    /// Blocks that the backing device refuses.
    pub refused: usize,
    /// Blocks whose only copy is lost.
    pub lost: usize,
}

/// What a batch has to write.
#[derive(Default)]
pub(super) struct Batch {
    pub good: Vec<(Item, Slice)>,
    pub lost: Vec<Item>,
    /// Blocks left out, for something newer is durable.
    outrun: usize,
    /// So much is lost that the window is to be given up.
    pub hopeless: bool,
    /// The cache device is gone, which says nothing about its blocks. Nothing else counts then.
    pub gone: bool,
}

/// Neighbouring whole blocks, or the valid sectors of one.
struct Run {
    members: Vec<(Item, Slice)>,
    /// Times that it failed alone.
    failures: u32,
}

enum Step {
    Read(Batch),
    Written(Run, Result<(), IoError>),
    Due,
}

/// Why a window ends when [`Batch::gone`] is set.
pub(super) fn gone() -> WindowError {
    WindowError::Cache("the cache device is gone".into())
}

/// Its blocks cannot be written now and are to be logged anew. Copies: the batch's memory is needed for the next one.
fn keep(run: Run, stuck: &mut Vec<Stuck>) {
    for (item, data) in run.members {
        let mut copy = Buf::unpooled(BLOCK_BYTES);
        copy.copy_from_slice(&data);
        stuck.push(Stuck { item, data: Some(copy.freeze()) });
    }
}

impl<E: Env> Inner<E> {
    /// Writes the items. Gives those that failed.
    pub(super) async fn sweep(
        self: &Arc<Self>,
        items: &[Item],
        limits: StuckLimits,
    ) -> Result<Vec<Stuck>, WindowError> {
        let mut rest = items;
        let batch_max = self.window_pool.max_len() / BLOCK_BYTES;
        let mut batch = FIRST_BATCH.min(batch_max);
        let mut reading = None;
        let mut ready: VecDeque<Run> = VecDeque::new();
        let mut writing = FuturesUnordered::new();
        let (mut stuck, mut refused, mut lost) = (Vec::new(), 0, 0);
        let mut given_up = None;
        // Gentle write-back: when the next write may go.
        let (mut next_ns, mut pause) = (0, None);
        loop {
            if given_up.is_none() && self.writeback.is_stopping() {
                given_up = Some(WindowError::Stopped);
            }
            if given_up.is_none() {
                if reading.is_none() && !rest.is_empty() {
                    let next;
                    (next, rest) = rest.split_at(batch.min(rest.len()));
                    batch = (2 * batch).min(batch_max);
                    reading = Some(Box::pin(self.read_batch(next, limits.lost)));
                }
                while let Some(due_ns) = self.may_write(writing.len(), next_ns) {
                    let now_ns = self.env.now_ns();
                    if due_ns > now_ns && !ready.is_empty() {
                        pause = Some(Box::pin(self.env.sleep(due_ns - now_ns)));
                        break;
                    }
                    let Some(run) = ready.pop_front() else { break };
                    let spare = refused + run.members.len() <= limits.refused / 2;
                    if spare && self.writeback.refused.pauses(run.members[0].0.addr.block(), now_ns) {
                        refused += run.members.len();
                        keep(run, &mut stuck);
                        continue;
                    }
                    next_ns = self.next_write_ns(now_ns);
                    writing.push(self.write_run(run));
                }
            } else {
                ready.clear();
                reading = None;
                pause = None;
            }
            if reading.is_none() && writing.is_empty() && ready.is_empty() {
                break;
            }
            let step = poll_fn(|cx| {
                if let Some(batch) = reading.as_mut().and_then(|reading| match reading.poll_unpin(cx) {
                    Poll::Ready(batch) => Some(batch),
                    Poll::Pending => None,
                }) {
                    return Poll::Ready(Step::Read(batch));
                }
                if let Poll::Ready(Some((run, result))) = writing.poll_next_unpin(cx) {
                    return Poll::Ready(Step::Written(run, result));
                }
                match pause.as_mut().map(|pause| pause.as_mut().poll(cx)) {
                    Some(Poll::Ready(())) => Poll::Ready(Step::Due),
                    _ => Poll::Pending,
                }
            });
            match step.await {
                Step::Due => pause = None,
                Step::Read(batch) => {
                    reading = None;
                    let done = (batch.outrun + batch.lost.len()) as u64;
                    self.writeback.progress.done(done, self.env.now_ns());
                    lost += batch.lost.len();
                    stuck.extend(batch.lost.into_iter().map(|item| Stuck { item, data: None }));
                    self.merge_writes(batch.good, &mut ready);
                    if batch.gone {
                        given_up.get_or_insert(gone());
                    } else if batch.hopeless || lost > limits.lost {
                        given_up.get_or_insert(WindowError::TooLarge("blocks of the cache device are lost"));
                    }
                }
                Step::Written(run, Ok(())) => {
                    let first = run.members[0].0.addr.block();
                    self.writeback.refused.accept(first..first + run.members.len() as u64);
                    self.writeback.progress.done(run.members.len() as u64, self.env.now_ns());
                }
                // The neighbours of a bad sector are good, and it may pass: each block gets a try alone.
                Step::Written(run, Err(_)) if run.members.len() > 1 || run.failures == 0 => {
                    for member in run.members.into_iter().rev() {
                        ready.push_front(Run { members: vec![member], failures: 1 });
                    }
                }
                Step::Written(run, Err(_)) => {
                    refused += run.members.len();
                    self.writeback.progress.done(run.members.len() as u64, self.env.now_ns());
                    self.writeback.refused.refuse(run.members[0].0.addr.block(), self.env.now_ns());
                    keep(run, &mut stuck);
                    if refused > limits.refused {
                        given_up.get_or_insert(WindowError::TooLarge("blocks cannot be written to the backing device"));
                    }
                }
            }
        }
        match given_up {
            Some(error) => Err(error),
            None => Ok(stuck),
        }
    }

    /// When another write may go, with so many in flight; `None`: not before one of them has ended.
    fn may_write(&self, writing: usize, next_ns: u64) -> Option<u64> {
        // Also when what it began for is over, as when the users of an idle volume are back.
        let gentle = !self.why().presses();
        let depth = if gentle { GENTLE_DEPTH.min(self.config.writeback_depth) } else { self.config.writeback_depth };
        (writing < depth).then_some(if gentle { next_ns } else { 0 })
    }

    /// When gentle write-back may send the write behind one that goes now.
    fn next_write_ns(&self, now_ns: u64) -> u64 {
        now_ns + self.writeback.governor.pace(now_ns).map_or(0, |pace| (1e9 / pace) as u64)
    }

    /// Reads and verifies the payload of a batch, in the order of the slots.
    pub(super) async fn read_batch(self: &Arc<Self>, items: &[Item], lost_max: usize) -> Batch {
        let mut batch = Batch::default();
        let mut arena = self.window_pool.alloc(items.len() * BLOCK_BYTES).await;
        // As late as possible, for what has been overwritten durably since need not be written.
        let durable = self.head.durable();
        let items: Vec<Item> = items.iter().copied().filter(|item| !self.is_outrun(item, durable)).collect();
        batch.outrun = arena.len() / BLOCK_BYTES - items.len();
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_unstable_by_key(|at| items[*at].slot());
        let mut runs: Vec<(Vec<usize>, Buf)> = Vec::new();
        let mut at = 0;
        while at < order.len() {
            let mut end = at + 1;
            while end < order.len()
                && items[order[end]].slot().0 == items[order[end - 1]].slot().0 + 1
                && (end - at) * BLOCK_BYTES < BACKING_WRITE_BYTES_MAX
            {
                end += 1;
            }
            let rest = arena.split_off((end - at) * BLOCK_BYTES);
            runs.push((order[at..end].to_vec(), std::mem::replace(&mut arena, rest)));
            at = end;
        }
        drop(arena);
        let mut data: Vec<Option<Slice>> = vec![None; items.len()];
        let mut lost = 0;
        {
            let items = &items;
            let mut reads = stream::iter(runs)
                .map(|(members, buf)| async move {
                    let offset = self.geometry.slot_offset(items[members[0]].slot());
                    let (result, buf) = self.cache.read(offset.0, buf).await;
                    (members, result, buf.freeze())
                })
                .buffer_unordered(self.config.writeback_depth);
            'reads: while let Some((members, result, bytes)) = reads.next().await {
                for (index, member) in members.iter().enumerate() {
                    let block = bytes.slice(index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES);
                    if result.is_ok() && items[*member].matches(&block) {
                        data[*member] = Some(block);
                        continue;
                    }
                    let Ok(again) = self.reread(&items[*member]).await else {
                        batch.gone = true;
                        break 'reads;
                    };
                    data[*member] = again;
                    lost += usize::from(data[*member].is_none());
                }
                if lost > lost_max {
                    batch.hopeless = true;
                    break;
                }
            }
        }
        if !batch.hopeless && !batch.gone {
            for (item, data) in items.into_iter().zip(data) {
                match data {
                    Some(data) => batch.good.push((item, data)),
                    None => batch.lost.push(item),
                }
            }
        }
        batch
    }

    /// More tries, alone, for a block that could not be read or was wrong. What fails here is given up for good, so a
    /// passing error gets time to pass. An error if the device is gone.
    async fn reread(&self, item: &Item) -> Result<Option<Slice>, IoError> {
        let mut buf = Buf::unpooled(BLOCK_BYTES);
        for attempt in 0..REREADS {
            if attempt > 0 {
                self.env.sleep(REREAD_DELAY_NS << (attempt - 1)).await;
            }
            let result;
            (result, buf) = self.cache.read(self.geometry.slot_offset(item.slot()).0, buf).await;
            match result {
                Ok(()) if item.matches(&buf) => return Ok(Some(buf.freeze())),
                Err(IoError::Gone) => return Err(IoError::Gone),
                _ => {}
            }
        }
        count(&self.counters.checksum_errors, 1);
        tracing::error!(
            "block {}: the dirty copy in slot {} is unreadable: it is lost",
            item.addr.block(),
            item.slot()
        );
        Ok(None)
    }

    /// Groups blocks into writes: whole neighbours together, others alone.
    fn merge_writes(&self, good: Vec<(Item, Slice)>, runs: &mut VecDeque<Run>) {
        let mut current: Option<Run> = None;
        for member in good {
            let joins = current.as_ref().is_some_and(|run| {
                let before = &run.members[run.members.len() - 1].0;
                before.addr.0 + 1 == member.0.addr.0
                    && self.all_sectors(before)
                    && self.all_sectors(&member.0)
                    && run.members.len() * BLOCK_BYTES < BACKING_WRITE_BYTES_MAX
            });
            match current.as_mut() {
                Some(run) if joins => run.members.push(member),
                _ => runs.extend(current.replace(Run { members: vec![member], failures: 0 })),
            }
        }
        runs.extend(current);
    }

    fn all_sectors(&self, item: &Item) -> bool {
        self.block_mask(item.addr.block()).minus(item.mask()).is_empty()
    }

    async fn write_run(&self, run: Run) -> (Run, Result<(), IoError>) {
        let members = &run.members;
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
        (run, result)
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
        let mask = SectorMask(item.mask().0 & self.block_mask(item.addr.block()).0);
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
}
