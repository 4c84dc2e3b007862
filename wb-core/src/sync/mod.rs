//! Waiting and mutual exclusion between tasks, on several threads and in the deterministic simulator alike.
//!
//! Nothing here knows an executor, a clock or a thread: a task that must wait leaves its [`std::task::Waker`] and is
//! polled again. The critical sections below are a few instructions long, contain no user code and are never held
//! across an await or while waking.
//!
//! | type | for |
//! |---|---|
//! | [`WaitQueue`] | waiting until a condition over someone else's state holds |
//! | [`AsyncLock`] | one task at a time, first come first served, across awaits |
//! | [`StripeLocks`] | readers and writers of block ranges |
//!
//! All of them survive a dropped future: it leaves the queue, and what it had been given meanwhile goes to the next.

mod lock;
mod prim;
mod rw;
mod striped;
mod stripes;
#[cfg(test)]
mod tests;
mod wait_queue;

pub use lock::{AsyncLock, AsyncLockGuard};
pub use rw::LockMode;
pub use striped::Striped;
pub use stripes::{SharedStripe, StripeAcquire, StripeGuard, StripeLocks, StripeRequest};
pub use wait_queue::{WaitQueue, WaitUntil};

use prim::{Mutex, MutexGuard};

/// Locks a mutex of this crate. One that a panic left locked guards a broken invariant, so the panic spreads.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a panic elsewhere left this state inconsistent")
}
