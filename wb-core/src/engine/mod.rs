//! The engine: reads, writes, flushes, discards, write-back, reclaim and recovery, generic over [`Env`].
//!
//! Async functions sequence; every change of state happens in a sync method of the log head, the index, the range map or
//! the segment table, and facts are checked again after each await. No lock is held across an await. Logical locks on
//! block ranges ([`crate::sync::StripeLocks`]) may be.

mod admission;
mod anchors;
mod apply;
pub(crate) mod attach;
#[cfg(any(test, feature = "sim"))]
mod audit;
mod commit;
mod compact;
mod config;
mod counters;
mod governor;
mod loading;
mod locate;
mod memory;
mod policy;
mod progress;
mod ranges;
mod read;
mod reclaim;
mod recovery;
mod refused;
mod relog;
mod replay;
mod segments;
mod service;
mod status;
mod sweep;
mod tail;
#[cfg(test)]
mod tests;
mod warm;
mod window;
mod write;
mod writeback;

pub use attach::{AttachError, Backing};
#[cfg(any(test, feature = "sim"))]
pub use audit::Audit;
pub use config::EngineConfig;
pub use policy::{Quiet, Why, WritebackPolicy};
pub use recovery::{AcceptedLoss, OpenError, OpenOptions, RecoveryReport};
pub use service::VolumeHandle;
pub use status::{Status, TailStatus};
pub use tail::TailReport;

use crate::env::Env;
use crate::format::{Geometry, Superblock, Volume};
use crate::index::{Index, RangeMap};
use crate::io::BufPool;
use crate::log::head::LogHead;
use crate::service::ServiceError;
use crate::sync::{StripeLocks, Striped, WaitQueue};
use crate::types::*;
use counters::CounterCells;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A cache being served. Clones are handles to the same cache.
pub struct Engine<E: Env> {
    inner: Arc<Inner<E>>,
}

impl<E: Env> Clone for Engine<E> {
    fn clone(&self) -> Self {
        Engine { inner: self.inner.clone() }
    }
}

/// The backing device that is served.
struct Served<E: Env> {
    volume: Volume,
    disk: Arc<E::Disk>,
    read_only: bool,
    ranges: Mutex<RangeMap>,
    /// Pieces in `ranges`, so that the usual "none" costs no lock.
    range_pieces: AtomicUsize,
    /// Range requests between admission and insertion; each adds at most two pieces.
    range_requests: AtomicUsize,
}

pub(crate) struct Inner<E: Env> {
    env: E,
    config: EngineConfig,
    cache: Arc<E::Disk>,
    superblock: Superblock,
    geometry: Geometry,
    head: LogHead,
    index: Index,
    segments: segments::SegmentTable,
    stripes: StripeLocks,
    pool: BufPool,
    window_pool: BufPool,
    served: Served<E>,
    counters: CounterCells,
    /// The lifetime counter of written bytes when this instance started.
    user_bytes_at_start: u64,
    commit: commit::CommitState,
    /// Writers that wait for log space or for a record buffer.
    space: WaitQueue,
    anchors: anchors::AnchorState,
    writeback: writeback::WritebackState,
    warm: warm::WarmState,
    admission: admission::Admission,
    /// Set for ever by a failed write or flush of the cache device: only a recovery clears it.
    failed: AtomicBool,
    failure: Mutex<Option<String>>,
    stopping: AtomicBool,
    /// Requests under way, counted by each thread where it began them.
    operations: Striped<AtomicU64>,
    idle: WaitQueue,
    recovery: RecoveryReport,
    /// Where the record buffers lie, if they survive the process.
    tail: Option<tail::OwnTail>,
}

/// Counts a request for its lifetime, so that a stop can wait for all of them.
struct Operation<'a, E: Env> {
    inner: &'a Inner<E>,
    /// Where it was counted.
    count: &'a AtomicU64,
}

impl<E: Env> Drop for Operation<'_, E> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
        // Sequentially consistent, as `quiesce` is: if it is not seen here, it will see this request gone.
        if self.inner.stopping.load(Ordering::SeqCst) {
            self.inner.idle.notify_all();
        }
    }
}

impl<E: Env> Inner<E> {
    /// Admits a request unless the service is stopping.
    fn begin(&self) -> Result<Operation<'_, E>, ServiceError> {
        let count = self.operations.mine();
        count.fetch_add(1, Ordering::SeqCst);
        let operation = Operation { inner: self, count };
        if self.stopping.load(Ordering::SeqCst) { Err(ServiceError::ShuttingDown) } else { Ok(operation) }
    }

    fn is_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// Latches a failure of the cache device and wakes everything that waits for it.
    fn fail(&self, what: String) {
        let first = {
            let mut failure = self.failure.lock().expect("not poisoned");
            let first = failure.is_none();
            failure.get_or_insert_with(|| what.clone());
            first
        };
        self.failed.store(true, Ordering::SeqCst);
        if first {
            tracing::error!("cache device: {what}; writes fail until a restart recovers the log");
        }
        self.commit.event.notify_all();
        self.space.notify_all();
        self.writeback.event.notify_all();
    }

    /// The sectors that block `block` of the volume has: all, except in a partial last block.
    fn block_mask(&self, block: u64) -> SectorMask {
        let bytes = self.served.volume.size_bytes.saturating_sub(block * BLOCK_BYTES_U64).min(BLOCK_BYTES_U64);
        SectorMask::range(0, bytes as usize / SECTOR_BYTES)
    }

    fn addr(&self, block: u64) -> BlockAddr {
        BlockAddr::new(self.served.volume.id, block)
    }
}
