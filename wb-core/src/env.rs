//! Everything the engine takes from the outside world: devices, clock, randomness, tasks.
//!
//! The same engine runs on io_uring threads ([`crate::rt`]) and in the deterministic simulator (`crate::sim`).
//! Nothing else in this crate may read a clock, draw a random number or start a thread.

use crate::io::Disk;
use std::future::Future;

/// The world the engine runs in. Clones are handles to the same world.
///
/// Futures handed to [`Env::spawn`] stay on the thread that spawned them and need not be `Send`; wakers may be
/// called from any thread.
pub trait Env: Clone + Send + Sync + 'static {
    /// What cache and backing devices are.
    type Disk: Disk;

    /// Monotonic clock, in nanoseconds from an arbitrary origin.
    fn now_ns(&self) -> u64;

    /// Wall-clock time in nanoseconds since 1970. Shown to people; the hours of the quiet policy go by it, and nothing that
    /// has to be right.
    fn wall_ns(&self) -> u64;

    /// A random number.
    fn random_u64(&self) -> u64;

    /// Runs `task` on the calling thread's executor, detached.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// Does work that waits for nothing, beside the calling thread where there are threads: it begins at once and may run
    /// while the caller goes on. Here, and so in the simulator, it is done before this returns.
    fn beside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = T> {
        std::future::ready(work())
    }

    /// Completes after `duration_ns` nanoseconds.
    fn sleep(&self, duration_ns: u64) -> impl Future<Output = ()>;

    /// Lets every task that is ready now run once before the caller goes on.
    fn yield_now(&self) -> impl Future<Output = ()>;

    /// A place where, on a machine with several threads, another thread could run. Nothing in production; in the
    /// simulator a seeded choice to run other tasks first. Stands before every critical section, so that one thread
    /// covers the interleavings of many.
    fn yield_point(&self) -> impl Future<Output = ()>;
}

/// A planted bug, compiled in only with feature `sim`: each must be found by the simulator within a stated number of
/// seeds, which tests the tester. Production builds have none and the checks vanish.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum PlantedBug {
    /// The engine as it is.
    #[default]
    None,
    /// Recovery goes on in the old epoch.
    SkipEpochBump,
    /// FLUSH is acknowledged before the device flush.
    AckFlushEarly,
    /// A segment is reused before the backing device was flushed.
    FreeBeforeBackingFlush,
    /// Write-back counts records beyond D as superseding.
    SupersedeBeyondDurable,
    /// Serving begins before the recovered tail is flushed.
    ServeBeforeFlush,
    /// Partial writes do not exclude full ones.
    UnlockedMerge,
    /// Discards and zeroes are applied to the backing device after younger payload.
    DiscardAppliedLate,
    /// A write is acknowledged before its entry is published in the RAM tail.
    AckBeforePublication,
    /// Recovery from the RAM tail gives no room to slots that were reserved and never filled.
    ForgetUnfinishedSlots,
    /// A write to the backing device is taken for done as soon as it is submitted, so that the next one of the same
    /// block may be in flight with it.
    TwoBackingWrites,
    /// The dirty tail passes what lies outside the zone that was written back.
    TailPassesOtherZones,
    /// Recovery leaves summaries that name dropped records.
    KeepOutdatedSummaries,
    /// What is read back after a start goes on behind a segment that cannot be read.
    ReadBackPastDamage,
    /// What is read back after a start does not ask whether a later range hides it.
    ReadBackHidden,
}
