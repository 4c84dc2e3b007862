//! Waiting for a condition over state that this module does not know.

use super::lock;
use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::task::{Context, Poll, Waker};

/// Tasks that wait for a condition. Whoever may have made it true calls [`WaitQueue::notify_all`] afterwards.
///
/// No wake-up is lost: a waiter registers before it tests the condition, a notifier changes the state before it looks
/// for waiters. Everyone registered is woken, in the order of registration, so a dropped waiter takes nothing from
/// the others. With no waiter, a notification costs a fence and a load.
#[derive(Default)]
pub struct WaitQueue {
    /// Length of `State::waiters`, readable without the mutex.
    registered: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_ticket: u64,
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "real threads are what is tested here")]
mod tests {
    use super::super::testing::{Tasks, block_on, poll_once, yield_once};
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::Arc;

    #[test]
    fn a_true_condition_registers_nobody() {
        let queue = WaitQueue::new();
        assert_eq!(block_on(queue.wait_until(|| Some(7))), 7);
        assert_eq!(lock(&queue.state).next_ticket, 0);
    }

    #[test]
    fn a_change_between_test_and_registration_is_seen() {
        // The condition turns true after its first evaluation without any notification.
        let queue = WaitQueue::new();
        let mut evaluated = 0;
        let got = poll_once(&mut queue.wait_until(|| {
            evaluated += 1;
            (evaluated == 2).then_some(())
        }));
        assert!(got.is_ready());
        assert_eq!(queue.registered.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn polls_without_progress_register_once_and_drop_deregisters() {
        let queue = WaitQueue::new();
        let mut first = queue.wait_until(|| None::<()>);
        let mut second = queue.wait_until(|| None::<()>);
        for _ in 0..3 {
            assert!(poll_once(&mut first).is_pending());
            assert!(poll_once(&mut second).is_pending());
        }
        assert_eq!(queue.registered.load(Ordering::Relaxed), 2);
        drop(first);
        assert_eq!(queue.registered.load(Ordering::Relaxed), 1);
        queue.notify_all();
        assert_eq!(queue.registered.load(Ordering::Relaxed), 0);
        drop(second);
    }

    #[test]
    fn tokens_are_handed_over_in_any_poll_order_and_dropped_waiters_take_none() {
        for seed in 0..300 {
            let queue = Rc::new(WaitQueue::new());
            let tokens = Rc::new(Cell::new(0u32));
            let taken = Rc::new(Cell::new(0u32));
            let mut tasks = Tasks::new(seed);
            for _ in 0..8 {
                let (queue, tokens, taken) = (queue.clone(), tokens.clone(), taken.clone());
                tasks.spawn(async move {
                    for _ in 0..4 {
                        queue.wait_until(|| tokens.get().checked_sub(1).map(|left| tokens.set(left))).await;
                        taken.set(taken.get() + 1);
                    }
                });
            }
            for _ in 0..3 {
                let queue = queue.clone();
                tasks.spawn_droppable(async move { queue.wait_until(|| None).await });
            }
            for _ in 0..2 {
                let (queue, tokens) = (queue.clone(), tokens.clone());
                tasks.spawn(async move {
                    for _ in 0..16 {
                        tokens.set(tokens.get() + 1);
                        queue.notify_all();
                        yield_once().await;
                    }
                });
            }
            tasks.run();
            assert_eq!((taken.get(), tokens.get()), (32, 0), "seed {seed}");
        }
    }

    #[test]
    fn threads_lose_no_wake_up() {
        let shared = Arc::new((WaitQueue::new(), AtomicUsize::new(0)));
        const TURNS: usize = 20_000;
        // Each thread waits for its turn: a single lost wake-up stops both for ever.
        let player = |me: usize| {
            let shared = shared.clone();
            move || {
                for turn in (me..TURNS).step_by(2) {
                    block_on(shared.0.wait_until(|| (shared.1.load(Ordering::Relaxed) == turn).then_some(())));
                    shared.1.store(turn + 1, Ordering::Relaxed);
                    shared.0.notify_all();
                }
            }
        };
        let other = std::thread::spawn(player(1));
        player(0)();
        other.join().unwrap();
        assert_eq!(shared.1.load(Ordering::Relaxed), TURNS);
    }
}
