//! Discards and write-zeroes: range entries in the log and in the range map.

use super::Inner;
use super::write::Zeroes;
use crate::env::Env;
use crate::format::{Entry, EntryKind, RANGE_BLOCKS_MAX};
use crate::index::{Piece, RangeKind};
use crate::log::head::{Class, Reservation};
use crate::service::{SERVICE_CHUNK_BYTES_MAX, ServiceError};
use crate::sync::{LockMode, StripeRequest};
use crate::types::*;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How a range is written in the log.
fn entry_kind(kind: RangeKind) -> EntryKind {
    match kind {
        RangeKind::Zeroes => EntryKind::Zeroes,
        RangeKind::Discard => EntryKind::Discard,
        RangeKind::Poison => EntryKind::Poison,
        RangeKind::Invalidate => EntryKind::Invalidate,
    }
}

/// What a range entry of the log says. `None` for payload.
pub(super) fn range_kind(kind: EntryKind) -> Option<RangeKind> {
    match kind {
        EntryKind::Zeroes => Some(RangeKind::Zeroes),
        EntryKind::Discard => Some(RangeKind::Discard),
        EntryKind::Poison => Some(RangeKind::Poison),
        EntryKind::Invalidate => Some(RangeKind::Invalidate),
        EntryKind::Void | EntryKind::Dirty | EntryKind::Clean => None,
    }
}

/// Counts a range request between admission and insertion.
struct Admitted<'a>(&'a AtomicUsize);

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<E: Env> Inner<E> {
    /// Whole blocks inside a byte range. The last block of the volume counts as whole if the range reaches its end.
    fn whole_blocks(&self, offset: u64, len: u64) -> Range<u64> {
        let end = offset + len;
        let first = offset.div_ceil(BLOCK_BYTES_U64);
        let last =
            if end == self.served.volume.size_bytes { end.div_ceil(BLOCK_BYTES_U64) } else { end / BLOCK_BYTES_U64 };
        first..last.max(first)
    }

    /// Discards the whole blocks of a range.
    pub(super) async fn discard(self: &Arc<Self>, offset: u64, len: u64, fua: bool) -> Result<(), ServiceError> {
        let _operation = self.begin()?;
        self.check_range(offset, len)?;
        self.check_writable()?;
        let blocks = self.whole_blocks(offset, len);
        if blocks.is_empty() {
            return Ok(());
        }
        match self.log_range(RangeKind::Discard, blocks).await? {
            Some(seq) if fua => self.commit_to(seq).await,
            // A discard is a hint: when the range map is full the old content stays, which is legal.
            _ => Ok(()),
        }
    }

    /// Zeroes a range, exactly.
    pub(super) async fn write_zeroes(self: &Arc<Self>, offset: u64, len: u64, fua: bool) -> Result<(), ServiceError> {
        let _operation = self.begin()?;
        self.check_range(offset, len)?;
        self.check_writable()?;
        if len == 0 {
            return Ok(());
        }
        let blocks = self.whole_blocks(offset, len);
        let (start, end) = (blocks.start * BLOCK_BYTES_U64, blocks.end * BLOCK_BYTES_U64);
        let mut last = Seq(0);
        if blocks.is_empty() {
            last = self.zero_by_payload(offset, offset + len).await?;
        } else {
            if offset < start {
                last = last.max(self.zero_by_payload(offset, start).await?);
            }
            last = last.max(match self.log_range(RangeKind::Zeroes, blocks).await? {
                Some(seq) => seq,
                None => self.zero_by_payload(start, end.min(offset + len)).await?,
            });
            if end < offset + len {
                last = last.max(self.zero_by_payload(end, offset + len).await?);
            }
        }
        if fua { self.commit_to(last).await } else { Ok(()) }
    }

    /// Zeroes a range with payload: its edges, or all of it when the range map is full.
    async fn zero_by_payload(self: &Arc<Self>, from: u64, to: u64) -> Result<Seq, ServiceError> {
        let (mut at, mut last) = (from, Seq(0));
        while at < to {
            let len = (to - at).min(SERVICE_CHUNK_BYTES_MAX as u64);
            last = self.write_range(at, len as usize, &Zeroes).await?;
            at += len;
        }
        Ok(last)
    }

    /// Logs a range of whole blocks. `None` if the range map has no room for it.
    async fn log_range(self: &Arc<Self>, kind: RangeKind, blocks: Range<u64>) -> Result<Option<Seq>, ServiceError> {
        assert!(blocks.end - blocks.start <= RANGE_BLOCKS_MAX, "a range within a volume");
        let requests = self.served.range_requests.fetch_add(1, Ordering::SeqCst) + 1;
        let _admitted = Admitted(&self.served.range_requests);
        let pieces = self.served.range_pieces.load(Ordering::SeqCst);
        if pieces + 2 * requests > self.config.range_pieces {
            return Ok(None);
        }
        let volume = self.served.volume.id;
        let shared = StripeRequest { volume, blocks: blocks.clone(), mode: LockMode::Shared };
        loop {
            self.wait_for_room().await?;
            let _locked = self.stripes.acquire(std::slice::from_ref(&shared)).await;
            self.env.yield_point().await;
            if let Some(reservation) = self.try_reserve_range(Class::User)? {
                let seq = reservation.record.seq;
                self.env.yield_point().await;
                self.publish_range(reservation, kind, blocks);
                return Ok(Some(seq));
            }
        }
    }

    /// Reserves a range entry if there is room.
    pub(super) fn try_reserve_range(self: &Arc<Self>, class: Class) -> Result<Option<Reservation>, ServiceError> {
        if self.is_failed() {
            return Err(ServiceError::Io);
        }
        let mut submit = Vec::new();
        let reservation = self.head.reserve_range(class, &mut submit).ok();
        if let Some(reservation) = &reservation {
            self.reserved(reservation);
        }
        self.submit(submit);
        Ok(reservation)
    }

    /// Writes the entry of a reserved range and makes it visible.
    pub(super) fn publish_range(self: &Arc<Self>, mut reservation: Reservation, kind: RangeKind, blocks: Range<u64>) {
        reservation.put_entry(0, &Entry::range(self.addr(blocks.start), entry_kind(kind), blocks.end - blocks.start));
        let piece = Piece {
            kind,
            pos: reservation.range_pos(),
            seq: reservation.record.seq,
            segment: reservation.record.segment,
            dirty: true,
        };
        self.insert_piece(blocks, piece);
        let submit = self.head.publish(reservation);
        self.submit(submit);
    }

    pub(super) fn insert_piece(&self, blocks: Range<u64>, piece: Piece) {
        let mut ranges = self.served.ranges.lock().expect("not poisoned");
        ranges.insert(blocks, piece).expect("admission left room in the range map");
        self.served.range_pieces.store(ranges.len(), Ordering::SeqCst);
    }
}
