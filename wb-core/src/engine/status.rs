//! What a running engine tells about itself, and how it ends.

use super::policy::{Why, WritebackPolicy};
use super::{Engine, Inner, RecoveryReport};
use crate::env::Env;
use crate::format::{Counters, Volume};
use crate::meta;
use crate::service::ServiceError;
use crate::types::*;
use std::sync::atomic::Ordering;
use uuid::Uuid;

/// A running engine, at one moment.
#[derive(Debug, Clone)]
pub struct Status {
    /// The cache.
    pub uuid: Uuid,
    /// The volume.
    pub volume: Volume,
    /// Served read-only.
    pub read_only: bool,
    /// Payload that the backing device does not have yet; zeroed and discarded ranges are not payload.
    pub dirty_bytes: u64,
    /// Bytes in the cache.
    pub cached_bytes: u64,
    /// Segments of the log that were not read into the index: nothing dirty is in them.
    pub unread_segments: u32,
    /// They are being read.
    pub reading_back: bool,
    /// Zeroed and discarded ranges in memory.
    pub range_pieces: usize,
    /// Lifetime counters.
    pub counters: Counters,
    /// Segments free for writing, and all good ones.
    pub free_segments: (u32, u32),
    /// The newest record.
    pub head: Seq,
    /// D.
    pub durable: Seq,
    /// Oldest record not written back.
    pub dirty_tail: Seq,
    /// Oldest valid record.
    pub log_tail: Seq,
    /// Current lineage.
    pub epoch: Epoch,
    /// Memory of the index.
    pub index_bytes: u64,
    /// Why writes fail, if they do.
    pub failure: Option<String>,
    /// Why the last write-back failed, if it did.
    pub writeback_error: Option<String>,
    /// A drain is under way.
    pub draining: bool,
    /// Why write-back works, or why not.
    pub why: Why,
    /// What is wanted of it.
    pub policy: WritebackPolicy,
    /// Blocks of the sweep that is going on, and those of them that are done; `None`: there is none.
    pub window: Option<(u64, u64)>,
    /// Time in which everything dirty would be written back at the pace of this sweep or the last; `None`: not known.
    pub writeback_left_ns: Option<u64>,
    /// Writers are slowed down so that the free space lasts until the end of the sweep.
    pub writers_paced: bool,
    /// Blocks that the backing device refuses; they stay in the cache.
    pub refused_blocks: u64,
    /// Blocks that are lost: reads of them fail until they are overwritten.
    pub poisoned_blocks: u64,
    /// Wall-clock time at which the oldest segment with dirty data was opened, at the latest.
    pub oldest_dirty_unix_ns: Option<u64>,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// What the start found.
    pub recovery: RecoveryReport,
    /// What keeps acknowledged writes over the death of the process; `None`: nothing does.
    pub tail: Option<TailStatus>,
}

/// The RAM tail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailStatus {
    /// Where it lies.
    pub place: String,
    /// Its size.
    pub bytes: u64,
    /// Records that it holds and the device may not have.
    pub records: u64,
}

impl<E: Env> Engine<E> {
    /// A snapshot; its parts may be some microseconds apart.
    pub fn status(&self) -> Status {
        let inner = &self.inner;
        let (log_tail, dirty_tail) = inner.anchors.tails();
        Status {
            uuid: inner.superblock.uuid,
            volume: inner.served.volume.clone(),
            read_only: inner.served.read_only,
            dirty_bytes: inner.index.dirty_len() * BLOCK_BYTES_U64,
            cached_bytes: inner.index.len() * BLOCK_BYTES_U64,
            unread_segments: inner.head.unread_good(),
            reading_back: inner.warm.is_active(),
            range_pieces: inner.served.range_pieces.load(Ordering::SeqCst),
            counters: inner.counters.snapshot(),
            free_segments: inner.head.free_segments(),
            head: inner.head.newest(),
            durable: inner.head.durable().0,
            dirty_tail,
            log_tail,
            epoch: inner.head.epoch().0,
            index_bytes: inner.index.memory_bytes(),
            failure: inner.failure.lock().expect("not poisoned").clone(),
            writeback_error: inner.writeback.last_error.lock().expect("not poisoned").clone(),
            draining: inner.writeback.drain_to.load(Ordering::SeqCst) >= dirty_tail.0,
            why: if inner.writeback.is_waiting() { Why::Waiting } else { inner.why() },
            policy: inner.writeback.policy.get(),
            window: inner.writeback.progress.items(),
            writeback_left_ns: inner.writeback_left_ns(),
            writers_paced: inner.admission.is_paced(),
            refused_blocks: inner.writeback.refused.blocks(),
            poisoned_blocks: inner.served.ranges.lock().expect("not poisoned").poisoned_blocks(),
            oldest_dirty_unix_ns: (dirty_tail <= inner.head.newest())
                .then(|| inner.head.segments_from(dirty_tail, 1).first().map(|live| live.opened_unix_ns))
                .flatten(),
            segment_bytes: inner.geometry.segment_bytes.into(),
            recovery: inner.recovery.clone(),
            tail: inner.tail.as_ref().map(|own| TailStatus {
                place: own.store.describe(own.name),
                bytes: inner.head.buffer_bytes(),
                records: inner.head.newest().0 - inner.head.durable().0.0,
            }),
        }
    }

    /// Writes everything back that is in the cache now. Dropping the future ends the wait, not the work.
    pub async fn drain(&self) -> Result<(), ServiceError> {
        self.inner.drain().await
    }

    /// Changes what is wanted of write-back, at once.
    pub fn set_policy(&self, policy: WritebackPolicy) {
        self.inner.writeback.set_policy(policy);
    }

    /// Ends the service for good: clean stop of a drained cache, which then forgets its backing device.
    pub async fn detach(&self) -> Result<(), String> {
        self.stop().await?;
        let inner = &self.inner;
        let (_, dirty_tail) = inner.anchors.tails();
        if dirty_tail <= inner.head.newest() {
            return Err("the cache holds dirty data again: drain once more".into());
        }
        inner.anchor_empty().await.map_err(|error| error.to_string())?;
        let mut table = meta::load(&*inner.cache).await.map_err(|error| error.to_string())?.volumes;
        table.generation += 1;
        table.volumes.retain(|volume| volume.id != inner.served.volume.id);
        meta::write_volumes(&*inner.cache, &inner.superblock, &table).await.map_err(|error| error.to_string())
    }

    /// Clean stop: requests under way end, later ones are refused, everything becomes durable, the clean mark is set.
    /// Dirty data stays in the cache. An error means that the stop was not clean; the next start recovers.
    pub async fn stop(&self) -> Result<(), String> {
        let inner = &self.inner;
        inner.quiesce().await;
        inner.stop_maintenance().await;
        if let Some(failure) = inner.failure.lock().expect("not poisoned").clone() {
            return Err(failure);
        }
        inner.commit_to(inner.head.newest()).await.map_err(|error| error.to_string())?;
        inner.anchor_clean().await.map_err(|error| error.to_string())?;
        inner.remove_tail();
        Ok(())
    }
}

impl<E: Env> Inner<E> {
    /// The window by its own course, what is dirty behind it by the time that an item takes.
    fn writeback_left_ns(&self) -> Option<u64> {
        let progress = &self.writeback.progress;
        let item_ns = progress.item_ns()?;
        let window = progress.items().map_or(0, |(total, _)| total);
        let behind = self.index.dirty_len().saturating_sub(window) as f64;
        let within_ns = progress.left_ns(self.env.now_ns()).unwrap_or(0.0);
        Some((within_ns + behind * item_ns) as u64)
    }
}
