//! Re-logging: what cannot be written back moves from the tail to the head, so that it never pins the ring.

use super::Inner;
use super::sweep::Stuck;
use super::window::RangeItem;
use super::writeback::WindowError;
use crate::env::Env;
use crate::format::crc32c;
use crate::index::RangeKind;
use crate::log::head::{Class, Full, Reservation};
use crate::service::ServiceError;
use crate::sync::{LockMode, StripeRequest};
use std::sync::Arc;

fn cache_error(error: ServiceError) -> WindowError {
    // The stop itself makes everything durable: nothing has failed.
    if error == ServiceError::ShuttingDown {
        return WindowError::Stopped;
    }
    WindowError::Cache(format!("re-logging failed: {error}"))
}

impl<E: Env> Inner<E> {
    /// Moves stuck blocks to the head: intact data as dirty, lost data as poison.
    pub(super) async fn relog(self: &Arc<Self>, stuck: Vec<Stuck>) -> Result<(), WindowError> {
        for stuck in stuck {
            if stuck.data.is_some() {
                let block = stuck.item.addr.block();
                tracing::warn!("block {block} cannot be written to the backing device; it stays in the cache");
            }
            self.relog_one(stuck, Class::Internal).await?;
        }
        self.relogged().await
    }

    /// Makes durable what has been moved, and what had superseded it before.
    pub(super) async fn relogged(self: &Arc<Self>) -> Result<(), WindowError> {
        self.commit_to(self.head.newest()).await.map_err(cache_error)
    }

    /// Moves a block, unless it is superseded. Whoever calls commits at the end. False: users may not write now, and this
    /// has to be no better; whoever may use the reserve waits instead.
    pub(super) async fn relog_one(self: &Arc<Self>, stuck: Stuck, class: Class) -> Result<bool, WindowError> {
        let (addr, slot) = (stuck.item.addr, stuck.item.slot());
        let block = addr.block();
        let exclusive = StripeRequest { volume: addr.volume(), blocks: block..block + 1, mode: LockMode::Exclusive };
        let _locked = self.stripes.acquire(&[exclusive]).await;
        let superseded = self.index.lookup(addr).is_none_or(|current| current.slot != slot)
            || self.piece_at(block).is_some_and(|piece| piece.pos >= self.segments.pos(slot));
        if superseded {
            // What came first is ≤ D once the commit that follows is done; a range leaves the entry in the index.
            self.index.set_clean_if(addr, slot);
            return Ok(true);
        }
        match stuck.data {
            Some(data) => {
                let Some(mut reservation) = self.reserve_one(class).await.map_err(cache_error)? else {
                    return Ok(false);
                };
                reservation.payload_mut(0).copy_from_slice(&data);
                self.put_payload(&mut reservation, 0, addr, stuck.item.mask(), crc32c(&data));
                let submit = self.head.publish(reservation);
                self.submit(submit);
            }
            None => {
                self.relog_range(RangeKind::Poison, block..block + 1).await.map_err(cache_error)?;
                self.index.set_clean_if(addr, slot);
            }
        }
        Ok(true)
    }

    /// Moves ranges to the head, block by block, as far as nothing younger is known: poison, with which nothing else can be
    /// done, and zeroes that the backing device refuses.
    pub(super) async fn relog_ranges(self: &Arc<Self>, ranges: Vec<RangeItem>) -> Result<(), WindowError> {
        if ranges.is_empty() {
            return Ok(());
        }
        for range in ranges {
            let volume = self.served.volume.id;
            let exclusive = StripeRequest { volume, blocks: range.blocks.clone(), mode: LockMode::Exclusive };
            let _locked = self.stripes.acquire(&[exclusive]).await;
            for block in range.blocks.clone() {
                let same = self.piece_at(block).is_some_and(|piece| piece.pos == range.pos);
                let overwritten =
                    self.index.lookup(self.addr(block)).is_some_and(|entry| self.segments.pos(entry.slot) > range.pos);
                if same && !overwritten {
                    self.relog_range(range.kind, block..block + 1).await.map_err(cache_error)?;
                }
            }
        }
        self.commit_to(self.head.newest()).await.map_err(cache_error)
    }

    /// Waits for a buffer, and for a segment only if it may come out of the reserve or is about to be reclaimed.
    async fn reserve_one(self: &Arc<Self>, class: Class) -> Result<Option<Reservation>, ServiceError> {
        self.space
            .wait_until(|| match self.try_reserve(1, class) {
                Ok(None) if class == Class::User && self.head.room(class) == Err(Full::Segments) => {
                    if self.writeback.is_stopping() || !self.has_reclaimable() {
                        return Some(Ok(None));
                    }
                    self.want_space();
                    None
                }
                Ok(None) if self.stops_without_room() => Some(Err(ServiceError::ShuttingDown)),
                outcome => outcome.map(|reservation| reservation.map(Some)).transpose(),
            })
            .await
    }

    /// The engine stops, and nobody frees segments any more: what was to be moved stays where it is.
    fn stops_without_room(&self) -> bool {
        self.writeback.is_stopping() && self.head.room(Class::Internal) == Err(Full::Segments)
    }

    async fn relog_range(self: &Arc<Self>, kind: RangeKind, blocks: std::ops::Range<u64>) -> Result<(), ServiceError> {
        let reserve = || match self.try_reserve_range(Class::Internal) {
            Ok(None) if self.stops_without_room() => Some(Err(ServiceError::ShuttingDown)),
            outcome => outcome.transpose(),
        };
        let reservation = self.space.wait_until(reserve).await?;
        self.publish_range(reservation, kind, blocks);
        Ok(())
    }
}
