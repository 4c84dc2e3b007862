//! Waiting for a condition over state that this module does not know.

use super::lock;
use super::prim::{AtomicUsize, Mutex, Ordering, fence};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Tasks that wait for a condition. Whoever may have made it true calls [`WaitQueue::notify_all`] afterwards.
///
/// No wake-up is lost: a waiter registers before it tests the condition, a notifier changes the state before it looks
/// for waiters. Everyone registered is woken, in the order of registration, so a dropped waiter takes nothing from
/// the others. With no waiter, a notification costs a fence and a load.
#[derive(Default)]
pub struct WaitQueue {
    /// Length of `State::waiters`, readable without the mutex.
    pub(super) registered: AtomicUsize,
    pub(super) state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) next_ticket: u64,
    /// Sorted by ticket, since tickets only grow.
    waiters: Vec<(u64, Waker)>,
    /// An empty vector whose capacity the next notification reuses.
    spare: Vec<(u64, Waker)>,
}

impl WaitQueue {
    /// A queue with nobody in it.
    pub fn new() -> WaitQueue {
        WaitQueue::default()
    }

    /// Wakes every waiter, which then tests its condition again. Call it after the change, outside any lock that a
    /// condition takes.
    pub fn notify_all(&self) {
        // Pairs with the fence in `register`: either we see the waiter, or it sees the change made before this call.
        fence(Ordering::SeqCst);
        if self.registered.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut woken = {
            let mut state = lock(&self.state);
            let spare = std::mem::take(&mut state.spare);
            self.registered.store(0, Ordering::Relaxed);
            std::mem::replace(&mut state.waiters, spare)
        };
        // Outside the mutex: waking may run or drop other tasks, which may come back here.
        for (_, waker) in woken.drain(..) {
            waker.wake();
        }
        let mut state = lock(&self.state);
        if state.spare.capacity() < woken.capacity() {
            state.spare = woken;
        }
    }

    /// Completes with the value of `condition` as soon as it has one. `condition` runs at every poll, on the task
    /// that waits; it must not touch this queue.
    pub fn wait_until<T, F: FnMut() -> Option<T>>(&self, condition: F) -> WaitUntil<'_, F> {
        WaitUntil { queue: self, condition, ticket: None }
    }

    fn register(&self, ticket: &mut Option<u64>, waker: &Waker) {
        let mut state = lock(&self.state);
        let known = ticket.and_then(|ticket| state.waiters.binary_search_by_key(&ticket, |waiter| waiter.0).ok());
        let mut old = None;
        if let Some(at) = known {
            if !state.waiters[at].1.will_wake(waker) {
                old = Some(std::mem::replace(&mut state.waiters[at].1, waker.clone()));
            }
        } else {
            let new = state.next_ticket;
            state.next_ticket += 1;
            state.waiters.push((new, waker.clone()));
            *ticket = Some(new);
            self.registered.store(state.waiters.len(), Ordering::Relaxed);
        }
        drop(state);
        drop(old); // may end a task, which may come back here: not under the mutex
        fence(Ordering::SeqCst);
    }

    fn deregister(&self, ticket: &mut Option<u64>) {
        let Some(ticket) = ticket.take() else { return };
        let mut state = lock(&self.state);
        if let Ok(at) = state.waiters.binary_search_by_key(&ticket, |waiter| waiter.0) {
            let (_, waker) = state.waiters.remove(at);
            self.registered.store(state.waiters.len(), Ordering::Relaxed);
            drop(state);
            drop(waker); // as in `register`
        }
    }
}

/// Future of [`WaitQueue::wait_until`].
#[must_use = "futures do nothing unless awaited"]
pub struct WaitUntil<'a, F> {
    queue: &'a WaitQueue,
    condition: F,
    ticket: Option<u64>,
}

// The condition is never pinned.
impl<F> Unpin for WaitUntil<'_, F> {}

impl<T, F: FnMut() -> Option<T>> Future for WaitUntil<'_, F> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = self.get_mut();
        let mut value = (this.condition)();
        if value.is_none() {
            this.queue.register(&mut this.ticket, cx.waker());
            value = (this.condition)();
        }
        match value {
            Some(value) => {
                this.queue.deregister(&mut this.ticket);
                Poll::Ready(value)
            }
            None => Poll::Pending,
        }
    }
}

impl<F> Drop for WaitUntil<'_, F> {
    fn drop(&mut self) {
        self.queue.deregister(&mut self.ticket);
    }
}
