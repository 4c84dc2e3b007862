//! Writes.
//!
//! *Reserve last*: the payload is in memory, the merge has been read and checked, the range is locked. Then slots are
//! reserved, filled, published and acknowledged without any wait in between [half-sent NBD write blocks everyone's flush].
//! Of overlapping writes the one later in the log wins in the index, whoever publishes last.
//!
//! Writes of parts of a block merge what the cache has. They hold their block's lock exclusively from before that read
//! until they are published, whole blocks hold it shared [old merge overwrites newer data].

use super::Inner;
use super::counters::count;
use crate::env::{Env, PlantedBug};
use crate::format::{Entry, EntryKind, crc32c};
use crate::io::Buf;
use crate::log::head::{Class, Full, Reservation};
use crate::service::{PayloadSource, ServiceError};
use crate::sync::{LockMode, SharedStripe, StripeGuard, StripeRequest};
use crate::types::*;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Payload of zeroes.
pub(super) struct Zeroes;

impl PayloadSource for Zeroes {
    fn copy_to(&self, _offset: usize, dst: &mut [u8]) -> Result<(), ServiceError> {
        dst.fill(0);
        Ok(())
    }
}

/// A block of which only some sectors are written, merged with what the cache has.
struct Merged {
    block: u64,
    bytes: Buf,
    mask: SectorMask,
}

/// The locks of a write while it is under way.
enum Locked<'a> {
    One(#[expect(dead_code, reason = "held, not looked at")] SharedStripe<'a>),
    All(#[expect(dead_code, reason = "held, not looked at")] StripeGuard<'a>),
}

/// The bytes of a write, by block.
#[derive(Clone)]
struct Extent {
    offset: u64,
    len: usize,
}

impl Extent {
    fn blocks(&self) -> Range<u64> {
        self.offset / BLOCK_BYTES_U64..(self.offset + self.len as u64).div_ceil(BLOCK_BYTES_U64)
    }
    /// The bytes of `block` that are written: start within the block, length.
    fn within(&self, block: u64) -> (usize, usize) {
        let start = block * BLOCK_BYTES_U64;
        let from = self.offset.max(start);
        let to = (self.offset + self.len as u64).min(start + BLOCK_BYTES_U64);
        ((from - start) as usize, (to - from) as usize)
    }
    fn is_partial(&self, block: u64) -> bool {
        let start = block * BLOCK_BYTES_U64;
        start < self.offset || start + BLOCK_BYTES_U64 > self.offset + self.len as u64
    }
    /// True if no block is partial.
    fn is_whole(&self) -> bool {
        (self.offset | self.len as u64).is_multiple_of(BLOCK_BYTES_U64)
    }
}

impl<E: Env> Inner<E> {
    /// Refuses ranges outside the volume or not aligned to its sectors.
    pub(super) fn check_range(&self, offset: u64, len: u64) -> Result<(), ServiceError> {
        let sector = u64::from(self.served.volume.sector_bytes);
        let end = offset.checked_add(len).ok_or(ServiceError::Invalid)?;
        let aligned = offset.is_multiple_of(sector) && len.is_multiple_of(sector);
        if aligned && end <= self.served.volume.size_bytes { Ok(()) } else { Err(ServiceError::Invalid) }
    }

    /// Refuses what may not change the volume now.
    pub(super) fn check_writable(&self) -> Result<(), ServiceError> {
        if self.served.read_only {
            return Err(ServiceError::ReadOnly);
        }
        if self.is_failed() { Err(ServiceError::Io) } else { Ok(()) }
    }

    /// Writes a range that lies within the volume. Gives the last record that holds some of it.
    ///
    /// Waits for room in the log without holding a lock: whoever makes room may need the locks for re-logging.
    pub(super) async fn write_range<P: PayloadSource + ?Sized>(
        self: &Arc<Self>,
        offset: u64,
        len: usize,
        payload: &P,
    ) -> Result<Seq, ServiceError> {
        let whole = Extent { offset, len };
        let blocks = whole.blocks();
        let mut next = blocks.start;
        let mut last = Seq(0);
        let mut refused = false;
        if self.admission.is_paced() {
            self.admission.admit(blocks.end - blocks.start).await;
        }
        while next < blocks.end {
            if refused || !self.head.seems_to_have_room() {
                self.wait_for_room().await?;
            }
            let done = (next * BLOCK_BYTES_U64).saturating_sub(offset);
            let rest = Extent { offset: offset + done, len: len - done as usize };
            // Nearly every write of whole blocks lies in one stripe that nobody holds alone.
            let one = if rest.is_whole() { self.try_lock_one(&rest) } else { None };
            let _locked = match one {
                Some(one) => Locked::One(one),
                None => {
                    let (locks, count) = self.locks_for(&rest);
                    Locked::All(self.stripes.acquire(&locks[..count]).await)
                }
            };
            let merged = if rest.is_whole() { Vec::new() } else { self.merge_edges(&whole, &rest, payload).await? };
            while next < blocks.end {
                self.env.yield_point().await;
                let Some(reservation) = self.try_reserve((blocks.end - next) as usize, Class::User)? else {
                    refused = true;
                    break; // no room after all: wait for it without the locks, and merge anew
                };
                last = reservation.record.seq;
                let count = reservation.count as u64;
                self.env.yield_point().await;
                self.fill_and_publish(reservation, next, &whole, payload, &merged)?;
                next += count;
            }
        }
        Ok(last)
    }

    fn try_lock_one(&self, extent: &Extent) -> Option<SharedStripe<'_>> {
        self.stripes.try_shared_one(self.served.volume.id, &extent.blocks())
    }

    /// All blocks shared, and those at the edges exclusively if only a part of them is written: so many requests.
    fn locks_for(&self, extent: &Extent) -> ([StripeRequest; 3], usize) {
        let volume = self.served.volume.id;
        let blocks = extent.blocks();
        let all = |blocks| StripeRequest { volume, blocks, mode: LockMode::Shared };
        if extent.is_whole() {
            return ([all(blocks), all(0..0), all(0..0)], 1);
        }
        let edge = |edge: u64| {
            let alone = extent.is_partial(edge) && !self.config.has_bug(PlantedBug::UnlockedMerge);
            let blocks = if alone { edge..edge + 1 } else { edge..edge };
            StripeRequest { volume, blocks, mode: LockMode::Exclusive }
        };
        let edges = (edge(blocks.start), edge(blocks.end - 1));
        ([all(blocks), edges.0, edges.1], 3)
    }

    /// Merges the first and last block of `rest` if only a part of them is written.
    async fn merge_edges<P: PayloadSource + ?Sized>(
        self: &Arc<Self>,
        whole: &Extent,
        rest: &Extent,
        payload: &P,
    ) -> Result<Vec<Merged>, ServiceError> {
        let blocks = rest.blocks();
        let mut merged: Vec<Merged> = Vec::new();
        for block in [blocks.start, blocks.end - 1] {
            if !rest.is_partial(block) || merged.iter().any(|other| other.block == block) {
                continue;
            }
            let (start, len) = rest.within(block);
            let (mut bytes, mask) = self.cached_block(block).await?;
            let from = (block * BLOCK_BYTES_U64 + start as u64 - whole.offset) as usize;
            payload.copy_to(from, &mut bytes[start..start + len])?;
            let mask = mask.union(SectorMask::range(start / SECTOR_BYTES, len / SECTOR_BYTES));
            merged.push(Merged { block, bytes, mask });
        }
        Ok(merged)
    }

    /// Waits until a user may reserve something.
    pub(super) async fn wait_for_room(self: &Arc<Self>) -> Result<(), ServiceError> {
        self.space
            .wait_until(|| {
                if self.is_failed() {
                    return Some(Err(ServiceError::Io));
                }
                // Nothing makes room while the backing device fails: a stop does not wait for that.
                if self.stopping.load(Ordering::SeqCst) && self.writeback.is_waiting() {
                    return Some(Err(ServiceError::ShuttingDown));
                }
                match self.head.room(Class::User) {
                    Ok(()) => return Some(Ok(())),
                    Err(Full::Segments) => self.want_space(),
                    Err(Full::Buffers) => {} // the next record that is written frees one
                }
                None
            })
            .await
    }

    /// Reserves up to `blocks` payload slots if there is room.
    pub(super) fn try_reserve(
        self: &Arc<Self>,
        blocks: usize,
        class: Class,
    ) -> Result<Option<Reservation>, ServiceError> {
        if self.is_failed() {
            return Err(ServiceError::Io);
        }
        let mut submit = Vec::new();
        let reservation = self.head.reserve_payload(class, blocks, &mut submit).ok();
        if let Some(reservation) = &reservation {
            self.reserved(reservation);
        }
        self.submit(submit);
        Ok(reservation)
    }

    /// The segment of a reservation is live from now on.
    pub(super) fn reserved(&self, reservation: &Reservation) {
        let record = &reservation.record;
        self.segments.set_pos(record.segment, LogPos(record.pos.0 - u64::from(record.offset_blocks)));
        if record.offset_blocks == 0 && reservation.first_entry == 0 {
            self.writeback.event.notify_all(); // a new segment: the watermarks may have been crossed
        }
    }

    fn fill_and_publish<P: PayloadSource + ?Sized>(
        self: &Arc<Self>,
        mut reservation: Reservation,
        first: u64,
        extent: &Extent,
        payload: &P,
        merged: &[Merged],
    ) -> Result<(), ServiceError> {
        let mut outcome = Ok(());
        for index in 0..reservation.count {
            let block = first + index as u64;
            let out = reservation.payload_mut(index);
            let mask = match merged.iter().find(|merged| merged.block == block) {
                Some(merged) => {
                    out.copy_from_slice(&merged.bytes);
                    merged.mask
                }
                None => {
                    let from = (block * BLOCK_BYTES_U64 - extent.offset) as usize;
                    outcome = outcome.and_then(|()| payload.copy_to(from, out));
                    SectorMask::FULL
                }
            };
            if outcome.is_err() {
                reservation.put_entry(index, &Entry::VOID);
                continue;
            }
            let crc = crc32c(out);
            self.put_payload(&mut reservation, index, self.addr(block), mask, crc);
        }
        if self.config.has_bug(PlantedBug::AckBeforePublication) {
            self.publish_late(reservation);
            return outcome;
        }
        let submit = self.head.publish(reservation);
        self.submit(submit);
        outcome
    }

    /// The planted bug: everything is in place and visible, only the entries come later.
    fn publish_late(self: &Arc<Self>, mut reservation: Reservation) {
        let entries: Vec<Entry> = (0..reservation.count).map(|index| reservation.take_entry(index)).collect();
        let this = self.clone();
        self.env.spawn(async move {
            this.env.sleep(1000).await;
            entries.iter().enumerate().for_each(|(index, entry)| reservation.put_entry(index, entry));
            let submit = this.head.publish(reservation);
            this.submit(submit);
        });
    }

    /// Writes the entry of a filled payload block and makes it visible, unless something later in the log already is.
    pub(super) fn put_payload(
        &self,
        reservation: &mut Reservation,
        index: usize,
        addr: BlockAddr,
        mask: SectorMask,
        crc: u32,
    ) {
        reservation.put_entry(index, &Entry::payload(addr, EntryKind::Dirty, crc, mask));
        let slot = self.geometry.slot(reservation.record.segment, reservation.block(index));
        let pos = reservation.pos(index);
        if let Some(crcs) = self.index.crcs() {
            crcs.set(slot, crc);
        }
        let published = self.index.upsert(addr, slot, mask, true, |existing| self.segments.pos(existing) < pos);
        published.expect("the index has room for every slot of the ring");
    }

    /// The whole write request.
    pub(super) async fn write<P: PayloadSource + ?Sized>(
        self: &Arc<Self>,
        offset: u64,
        len: usize,
        payload: &P,
        fua: bool,
    ) -> Result<(), ServiceError> {
        let _operation = self.begin()?;
        self.check_range(offset, len as u64)?;
        self.check_writable()?;
        let counters = &*self.counters;
        count(&counters.user_writes, 1);
        count(&counters.user_write_bytes, len as u64);
        if len == 0 {
            return Ok(());
        }
        let last = self.write_range(offset, len, payload).await?;
        if fua { self.commit_to(last).await } else { Ok(()) }
    }

    /// Makes everything durable that was completed before.
    pub(super) async fn flush(self: &Arc<Self>) -> Result<(), ServiceError> {
        let _operation = self.begin()?;
        count(&self.counters.user_flushes, 1);
        self.commit_to(self.head.newest()).await
    }

    /// True if no request is under way, once no more are admitted: then none that was counted as ended comes back.
    fn is_idle(&self) -> bool {
        self.operations.all().all(|count| count.load(Ordering::SeqCst) == 0)
    }

    /// Stops admitting requests and waits until those under way are done.
    pub(super) async fn quiesce(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.space.notify_all();
        self.idle.wait_until(|| self.is_idle().then_some(())).await;
    }
}
