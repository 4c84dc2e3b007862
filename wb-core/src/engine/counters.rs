//! Lifetime counters.

use crate::format::Counters;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! cells {
    ($($name:ident),*) => {
        /// [`Counters`] that several threads count in.
        #[derive(Default)]
        pub(super) struct CounterCells { $(pub $name: AtomicU64),* }
        impl CounterCells {
            /// Goes on from what an anchor says.
            pub fn from_anchor(counters: Counters) -> CounterCells {
                CounterCells { $($name: AtomicU64::new(counters.$name)),* }
            }
            /// The values now.
            pub fn snapshot(&self) -> Counters {
                Counters { $($name: self.$name.load(Relaxed)),* }
            }
        }
    };
}

cells!(
    user_writes,
    user_write_bytes,
    user_reads,
    user_read_bytes,
    user_flushes,
    read_hits,
    read_misses,
    cache_writes,
    cache_write_bytes,
    cache_flushes,
    backing_writes,
    backing_write_bytes,
    backing_flushes,
    writeback_errors,
    checksum_errors,
    starts
);

/// Adds to a counter.
pub(super) fn count(cell: &AtomicU64, amount: u64) {
    cell.fetch_add(amount, Relaxed);
}
