//! Tests of `AsyncLock`.

use super::executor::{Tasks, block_on, poll_once, yield_once};
use crate::sync::AsyncLock;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

#[test]
fn waiters_get_the_lock_in_the_order_they_asked() {
    let lock = AsyncLock::new();
    let held = lock.try_lock().unwrap();
    let mut first = lock.lock();
    let mut second = lock.lock();
    assert!(poll_once(&mut first).is_pending());
    assert!(poll_once(&mut second).is_pending());
    drop(held);
    assert!(lock.try_lock().is_none(), "nobody overtakes the queue");
    assert!(poll_once(&mut second).is_pending());
    let Poll::Ready(guard) = poll_once(&mut first) else { panic!("the first in the queue has it") };
    drop(guard);
    assert!(poll_once(&mut second).is_ready());
}

#[test]
fn a_dropped_waiter_passes_on_what_it_was_given() {
    let lock = AsyncLock::new();
    let held = lock.try_lock().unwrap();
    let mut first = lock.lock();
    let mut second = lock.lock();
    assert!(poll_once(&mut first).is_pending());
    assert!(poll_once(&mut second).is_pending());
    drop(held);
    drop(first);
    assert!(poll_once(&mut second).is_ready());
    drop(second);
    assert!(lock.stripe.is_idle());
}

#[test]
fn one_at_a_time_in_any_poll_order() {
    for seed in 0..300 {
        let lock = Rc::new(AsyncLock::new());
        let inside = Rc::new(Cell::new(false));
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut tasks = Tasks::new(seed);
        for id in 0..10 {
            let (lock, inside, order) = (lock.clone(), inside.clone(), order.clone());
            let work = async move {
                for _ in 0..3 {
                    let guard = lock.lock().await;
                    assert!(!inside.replace(true), "alone");
                    let leave = Leave(inside.clone());
                    yield_once().await;
                    order.borrow_mut().push(id);
                    drop(leave);
                    drop(guard);
                }
            };
            if id < 7 { tasks.spawn(work) } else { tasks.spawn_droppable(work) }
        }
        tasks.run();
        assert_eq!(order.borrow().iter().filter(|&&id| id < 7).count(), 21, "seed {seed}");
        assert!(lock.stripe.is_idle(), "seed {seed}");
    }
}

/// Clears the flag even when its task is dropped.
struct Leave(Rc<Cell<bool>>);
impl Drop for Leave {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[test]
fn threads_exclude_each_other() {
    let shared = Arc::new((AsyncLock::new(), AtomicU64::new(0)));
    let count = |shared: Arc<(AsyncLock, AtomicU64)>| {
        for _ in 0..5_000 {
            let guard = block_on(shared.0.lock());
            // Not an atomic increment: two at a time would lose counts.
            let seen = shared.1.load(Ordering::Relaxed);
            std::hint::spin_loop();
            shared.1.store(seen + 1, Ordering::Relaxed);
            drop(guard);
        }
    };
    let threads: Vec<_> = (0..3)
        .map(|_| {
            std::thread::spawn({
                let shared = shared.clone();
                move || count(shared)
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(shared.1.load(Ordering::Relaxed), 15_000);
    assert!(shared.0.stripe.is_idle());
}
