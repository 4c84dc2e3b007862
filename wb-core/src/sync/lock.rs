//! A lock that may be held across awaits.

use super::rw::{LockMode, RwStripe, Ticket};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Mutual exclusion of tasks, first come first served. It guards a sequence of actions (writing an anchor), not data:
/// state still changes in sync methods only.
#[derive(Default)]
pub struct AsyncLock {
    pub(super) stripe: RwStripe,
}

impl AsyncLock {
    /// A free lock.
    pub fn new() -> AsyncLock {
        AsyncLock::default()
    }

    /// Waits for the lock. A task that holds it and asks again waits for ever.
    pub fn lock(&self) -> AsyncLockFuture<'_> {
        AsyncLockFuture { lock: self, ticket: None }
    }

    /// Takes the lock if it is free and nobody waits for it.
    pub fn try_lock(&self) -> Option<AsyncLockGuard<'_>> {
        self.stripe.try_acquire(LockMode::Exclusive).then(|| AsyncLockGuard { lock: self })
    }
}

/// Future of [`AsyncLock::lock`].
#[must_use = "futures do nothing unless awaited"]
pub struct AsyncLockFuture<'a> {
    lock: &'a AsyncLock,
    ticket: Option<Ticket>,
}

impl<'a> Future for AsyncLockFuture<'a> {
    type Output = AsyncLockGuard<'a>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<AsyncLockGuard<'a>> {
        let stripe = &self.lock.stripe;
        match self.ticket {
            None => self.ticket = stripe.acquire_or_queue(LockMode::Exclusive, cx.waker()),
            Some(ticket) if stripe.poll(ticket, cx.waker()) => self.ticket = None,
            Some(_) => {}
        }
        if self.ticket.is_some() { Poll::Pending } else { Poll::Ready(AsyncLockGuard { lock: self.lock }) }
    }
}

impl Drop for AsyncLockFuture<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.lock.stripe.cancel(ticket);
        }
    }
}

/// Holds an [`AsyncLock`] until dropped.
#[must_use = "the lock is released when the guard is dropped"]
pub struct AsyncLockGuard<'a> {
    lock: &'a AsyncLock,
}

impl Drop for AsyncLockGuard<'_> {
    fn drop(&mut self) {
        self.lock.stripe.release(LockMode::Exclusive);
    }
}
