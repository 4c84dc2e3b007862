//! Lifetime counters.

use crate::format::Counters;
use crate::sync::Striped;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// [`Counters`] that several threads count in, each in a part of its own: dereferenced, the calling thread's.
pub(super) struct CounterCells(Striped<Cells>);

impl std::ops::Deref for CounterCells {
    type Target = Cells;
    fn deref(&self) -> &Cells {
        self.0.mine()
    }
}

macro_rules! cells {
    ($($name:ident),*) => {
        /// A thread's part of the counters.
        #[derive(Default)]
        pub(super) struct Cells { $(pub $name: AtomicU64),* }
        impl CounterCells {
            /// Goes on from what an anchor says.
            pub fn from_anchor(counters: Counters) -> CounterCells {
                let cells = Striped::<Cells>::default();
                $(count(&cells.mine().$name, counters.$name);)*
                CounterCells(cells)
            }
            /// The values now.
            pub fn snapshot(&self) -> Counters {
                let sum = |of: fn(&Cells) -> &AtomicU64| self.0.all().map(|cells| of(cells).load(Relaxed)).sum();
                Counters { $($name: sum(|cells| &cells.$name)),* }
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
