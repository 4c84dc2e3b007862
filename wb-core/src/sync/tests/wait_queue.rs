//! Tests of `WaitQueue`.

use super::executor::{Tasks, block_on, poll_once, yield_once};
use crate::sync::{WaitQueue, lock};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
