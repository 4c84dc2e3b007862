//! One reader/writer lock with a queue: what [`super::AsyncLock`] and [`super::StripeLocks`] are made of.
//!
//! The whole state is one word: readers, a writer bit, and a bit that says that someone is queued. Free locks are
//! taken and released with one atomic operation on it. While the queued bit is set nobody overtakes: newcomers queue
//! too, and whoever releases hands the lock to the front of the queue, so neither side starves. The queue is behind a
//! mutex that only waiters, and those who release a lock with waiters, touch.

use super::lock;
use super::prim::{AtomicU32, Mutex, Ordering};
use std::collections::VecDeque;
use std::task::Waker;

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockMode {
    /// With other shared holders.
    Shared,
    /// Alone.
    Exclusive,
}

const WRITER: u32 = 1 << 31;
/// Set while the queue has an entry that was not given the lock yet. Changed under the queue's mutex only.
const QUEUED: u32 = 1 << 30;
const READERS: u32 = QUEUED - 1;

/// Place in a queue. Tickets of one lock are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

#[derive(Default)]
struct Queue {
    next_ticket: u64,
    /// Sorted by ticket. Those who were given the lock and did not come yet to take it are a prefix.
    waiters: VecDeque<Waiter>,
    /// Length of that prefix.
    granted: usize,
}

struct Waiter {
    ticket: Ticket,
    mode: LockMode,
    /// `None` once the lock was given to it.
    waker: Option<Waker>,
}

/// A reader/writer lock for tasks, without data. Not held through a guard: the users above pair every successful
/// acquisition with one [`RwStripe::release`], every ticket with one successful [`RwStripe::poll`] or one
/// [`RwStripe::cancel`].
#[derive(Default)]
#[repr(align(64))]
pub(super) struct RwStripe {
    word: AtomicU32,
    queue: Mutex<Queue>,
}

/// The word after acquisition in `mode`, if nobody who holds the lock forbids it.
fn acquired(word: u32, mode: LockMode) -> Option<u32> {
    match mode {
        LockMode::Exclusive => (word & (WRITER | READERS) == 0).then_some(word | WRITER),
        LockMode::Shared => {
            assert!(word & READERS < READERS, "fewer than 2^30 readers");
            (word & WRITER == 0).then_some(word + 1)
        }
    }
}

impl RwStripe {
    /// Takes the lock if it is free for `mode` and nobody is queued.
    pub fn try_acquire(&self, mode: LockMode) -> bool {
        let step = |word: u32| if word & QUEUED == 0 { acquired(word, mode) } else { None };
        self.word.fetch_update(Ordering::Acquire, Ordering::Relaxed, step).is_ok()
    }

    /// Takes the lock (`None`), or queues for it.
    pub fn acquire_or_queue(&self, mode: LockMode, waker: &Waker) -> Option<Ticket> {
        if self.try_acquire(mode) {
            return None;
        }
        let mut queue = lock(&self.queue);
        // Taking it or announcing ourselves is one step, so that a release in between is noticed.
        let step = |word: u32| match acquired(word, mode) {
            Some(taken) if word & QUEUED == 0 => Some(taken),
            _ => Some(word | QUEUED),
        };
        let before = self.word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, step).expect("a step is always taken");
        if before & QUEUED == 0 && acquired(before, mode).is_some() {
            return None;
        }
        let ticket = Ticket(queue.next_ticket);
        queue.next_ticket += 1;
        queue.waiters.push_back(Waiter { ticket, mode, waker: Some(waker.clone()) });
        Some(ticket)
    }

    /// True if the queued acquisition was given the lock; its ticket is then used up. Else `waker` will be woken.
    pub fn poll(&self, ticket: Ticket, waker: &Waker) -> bool {
        let mut queue = lock(&self.queue);
        let at = queue.position(ticket);
        match &mut queue.waiters[at].waker {
            Some(known) if known.will_wake(waker) => false,
            Some(known) => {
                let old = std::mem::replace(known, waker.clone());
                drop(queue);
                drop(old); // may end a task, which may come back here: not under the mutex
                false
            }
            None => {
                queue.remove(at);
                true
            }
        }
    }

    /// Gives up a queued acquisition; if it was given the lock meanwhile, the lock is passed on.
    pub fn cancel(&self, ticket: Ticket) {
        let mut queue = lock(&self.queue);
        let at = queue.position(ticket);
        let waiter = queue.remove(at);
        drop(queue);
        if waiter.waker.is_none() {
            self.release(waiter.mode);
        } else {
            // It may have been the front that held back others, or the last one queued.
            self.hand_over();
        }
    }

    /// Gives the lock back and hands it to whom it now suits at the front of the queue.
    pub fn release(&self, mode: LockMode) {
        let before = match mode {
            LockMode::Exclusive => self.word.fetch_and(!WRITER, Ordering::AcqRel),
            LockMode::Shared => self.word.fetch_sub(1, Ordering::AcqRel),
        };
        match mode {
            LockMode::Exclusive => assert!(before & WRITER != 0 && before & READERS == 0, "held exclusively"),
            LockMode::Shared => assert!(before & WRITER == 0 && before & READERS != 0, "held shared"),
        }
        // A reader that is not the last changes nothing for the front of the queue, which waits for all of them.
        if before & QUEUED != 0 && before & READERS <= 1 {
            self.hand_over();
        }
    }

    /// Gives the lock to the front of the queue, as far as modes allow, one at a time so that waking happens outside
    /// the mutex and needs no memory.
    fn hand_over(&self) {
        loop {
            let waker = {
                let mut queue = lock(&self.queue);
                let at = queue.granted;
                let Some(front) = queue.waiters.get_mut(at) else {
                    self.word.fetch_and(!QUEUED, Ordering::AcqRel);
                    return;
                };
                let mode = front.mode;
                let step = |word: u32| acquired(word, mode);
                if self.word.fetch_update(Ordering::AcqRel, Ordering::Relaxed, step).is_err() {
                    return; // a holder is left, who will call this again
                }
                let waker = front.waker.take().expect("not given the lock yet");
                queue.granted += 1;
                if queue.granted == queue.waiters.len() {
                    self.word.fetch_and(!QUEUED, Ordering::AcqRel);
                }
                waker
            };
            waker.wake();
        }
    }

    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        let queue = lock(&self.queue);
        self.word.load(Ordering::SeqCst) == 0 && queue.waiters.is_empty() && queue.granted == 0
    }
}

impl Queue {
    fn position(&self, ticket: Ticket) -> usize {
        self.waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket).expect("a ticket is in the queue until used")
    }

    fn remove(&mut self, at: usize) -> Waiter {
        if at < self.granted {
            self.granted -= 1;
        }
        self.waiters.remove(at).expect("position within the queue")
    }
}
