//! Where the newest version of a block is.

use super::Inner;
use super::counters::count;
use super::segments::Pin;
use crate::env::Env;
use crate::format::crc32c;
use crate::index::{Entry as IndexEntry, Piece, RangeKind};
use crate::io::{Buf, Disk};
use crate::service::ServiceError;
use crate::types::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where the newest version of a block is.
pub(super) enum Location<'a> {
    /// Not in the cache: the backing device has it.
    Miss,
    /// Reads as zeroes (zeroed, or discarded).
    Zeroes,
    /// Lost.
    Poison,
    /// In a slot, which cannot be reused while the pin lives.
    Slot { entry: IndexEntry, pos: LogPos, pin: Pin<'a> },
}

impl<E: Env> Inner<E> {
    /// The newest range that covers a block.
    pub(super) fn piece_at(&self, block: u64) -> Option<Piece> {
        if self.served.range_pieces.load(Ordering::SeqCst) == 0 {
            return None;
        }
        self.served.ranges.lock().expect("not poisoned").lookup(block)
    }

    /// Looks a block up and pins the slot it finds.
    ///
    /// The index comes first, the ranges second. A range that appears in between is newer and counts; one that is younger
    /// than the pinned slot cannot disappear in between: the pin keeps its segment, and reclaim, which goes from the oldest
    /// on, removes the ranges of a segment only when no pin is left on it.
    pub(super) fn locate(&self, block: u64) -> Location<'_> {
        let found = self.index.lookup_with(self.addr(block), |entry| {
            entry.map(|entry| (entry, self.segments.pos(entry.slot), self.segments.pin(entry.slot)))
        });
        let piece = self.piece_at(block);
        match (found, piece) {
            (Some((entry, pos, pin)), piece) if piece.as_ref().is_none_or(|piece| pos > piece.pos) => {
                Location::Slot { entry, pos, pin }
            }
            (_, Some(piece)) => match piece.kind {
                RangeKind::Zeroes | RangeKind::Discard => Location::Zeroes,
                RangeKind::Poison => Location::Poison,
                RangeKind::Invalidate => Location::Miss,
            },
            (_, None) => Location::Miss,
        }
    }

    /// Copies a slot that has not been written to the device yet. False if it has.
    pub(super) fn copy_from_memory(&self, pos: LogPos, out: &mut [u8]) -> bool {
        let Some(record) = self.head.record_at(pos) else { return false };
        let index = (pos.0 - record.pos.0 - 1) as usize;
        out.copy_from_slice(&record.payload(index));
        drop(record);
        // The buffer may have been kept from the pool by this reader alone.
        self.space.notify_all();
        true
    }

    /// The block in a slot, whose sectors outside the mask are zero. Wrong bytes are never returned.
    pub(super) async fn read_slot(
        self: &Arc<Self>,
        entry: &IndexEntry,
        pos: LogPos,
        mut buf: Buf,
    ) -> (Result<(), ServiceError>, Buf) {
        assert_eq!(buf.len(), BLOCK_BYTES, "one block");
        if self.copy_from_memory(pos, &mut buf) {
            return (Ok(()), buf);
        }
        let (result, buf) = self.cache.read(self.geometry.slot_offset(entry.slot).0, buf).await;
        if let Err(error) = result {
            tracing::error!("reading slot {} of the cache device failed: {error}", entry.slot);
            return (Err(ServiceError::Io), buf);
        }
        let checked = self.check_slot(entry.slot, pos, &buf);
        (checked, buf)
    }

    /// Checks a payload block that was read from the cache device.
    pub(super) fn check_slot(&self, slot: Slot, pos: LogPos, bytes: &[u8]) -> Result<(), ServiceError> {
        let right = match self.index.crcs() {
            Some(crcs) => crc32c(bytes) == crcs.get(slot),
            // After a failed write only what was durable before may be believed unchecked.
            None => !self.is_failed() || pos < self.head.durable().1,
        };
        if right {
            return Ok(());
        }
        count(&self.counters.checksum_errors, 1);
        tracing::error!("slot {slot} of the cache device fails its checksum");
        Err(ServiceError::Io)
    }

    /// Reads blocks of the backing device. Beyond the end of the volume there are zeroes.
    pub(super) async fn read_backing(&self, block: u64, mut buf: Buf) -> (Result<(), ServiceError>, Buf) {
        let offset = block * BLOCK_BYTES_U64;
        let there = self.served.volume.size_bytes.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut rest = buf.split_off(there);
        rest.fill(0);
        if there == 0 {
            buf.unsplit(rest);
            return (Ok(()), buf);
        }
        let sent_ns = self.env.now_ns();
        let (result, mut buf) = self.served.disk.read(offset, buf).await;
        let now_ns = self.env.now_ns();
        self.writeback.governor.read(now_ns - sent_ns, now_ns, self.writeback.progress.items().is_some());
        buf.unsplit(rest);
        let result = result.map_err(|error| {
            tracing::error!("reading the backing device at offset {offset} failed: {error}");
            ServiceError::Io
        });
        (result, buf)
    }

    /// What the cache knows of a block: its bytes, and which sectors of them count. For merging.
    pub(super) async fn cached_block(self: &Arc<Self>, block: u64) -> Result<(Buf, SectorMask), ServiceError> {
        let mut buf = self.pool.alloc(BLOCK_BYTES).await;
        self.env.yield_point().await;
        match self.locate(block) {
            Location::Miss => {
                buf.fill(0);
                Ok((buf, SectorMask::NONE))
            }
            Location::Zeroes => {
                buf.fill(0);
                Ok((buf, self.block_mask(block)))
            }
            Location::Poison => Err(ServiceError::Io),
            Location::Slot { entry, pos, pin } => {
                let (result, mut buf) = self.read_slot(&entry, pos, buf).await;
                drop(pin);
                match result {
                    Ok(()) => Ok((buf, entry.mask)),
                    // The backing device has a clean block's sectors, too: a merge can do without the cached ones.
                    Err(_) if !entry.dirty => {
                        buf.fill(0);
                        Ok((buf, SectorMask::NONE))
                    }
                    Err(error) => {
                        tracing::error!("block {block} is dirty and its cached sectors are unreadable");
                        Err(error)
                    }
                }
            }
        }
    }
}
