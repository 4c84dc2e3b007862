//! The synchronisation primitives under shuttle: every atomic operation and mutex is a place where another thread may
//! run, schedules are drawn at random and by PCT (few preemptions at random depths), and a lost wake-up shows as a
//! deadlock, which shuttle reports with the schedule that leads to it.
//!
//! The sources of `wb_core::sync` are compiled once more, on shuttle's versions of [`prim`]. What shuttle does not
//! model is weak memory: it runs everything sequentially consistent.

#[path = "../src/sync/lock.rs"]
mod async_lock;
#[allow(dead_code)]
#[path = "../src/sync/rw.rs"]
mod rw;
#[allow(dead_code)]
#[path = "../src/sync/stripes.rs"]
mod stripes;
#[allow(dead_code)]
#[path = "../src/sync/wait_queue.rs"]
mod wait_queue;

/// Where the sources take their primitives from.
mod prim {
    pub use shuttle::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
    pub use shuttle::sync::{Mutex, MutexGuard};
}

mod types {
    pub use wb_core::types::VolumeId;
}

use async_lock::AsyncLock;
use prim::{AtomicU32, AtomicUsize, Mutex, MutexGuard, Ordering};
use rw::LockMode;
use shuttle::future::block_on;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use stripes::{StripeLocks, StripeRequest};
use wait_queue::WaitQueue;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("not poisoned")
}

/// Schedules per test and strategy.
const SCHEDULES: usize = 3_000;

fn check(test: impl Fn() + Send + Sync + Clone + 'static) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    let runner = |seeded: bool| {
        let mut config = shuttle::Config::new();
        config.stack_size = 256 << 10;
        let test = test.clone();
        if seeded {
            shuttle::Runner::new(RandomScheduler::new_from_seed(1, SCHEDULES), config).run(test);
        } else {
            shuttle::Runner::new(PctScheduler::new_from_seed(2, 3, SCHEDULES), config).run(test);
        }
    };
    runner(true);
    runner(false);
}

fn spawn_all(threads: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = threads.into_iter().map(shuttle::thread::spawn).collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
}

/// Polls once and drops the future, as a cancelled task does.
fn poll_and_drop<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
    match Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

#[test]
fn a_wait_queue_loses_no_wake_up() {
    check(|| {
        let shared = Arc::new((WaitQueue::new(), AtomicUsize::new(0)));
        let take = |shared: &(WaitQueue, AtomicUsize)| {
            shared.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |tokens| tokens.checked_sub(1)).ok()
        };
        let mut threads: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
        for _ in 0..2 {
            let shared = shared.clone();
            threads.push(Box::new(move || _ = block_on(shared.0.wait_until(|| take(&shared)))));
        }
        let cancelled = shared.clone();
        threads.push(Box::new(move || assert!(poll_and_drop(cancelled.0.wait_until(|| None::<()>)).is_none())));
        for _ in 0..2 {
            let shared = shared.clone();
            threads.push(Box::new(move || {
                shared.1.fetch_add(1, Ordering::SeqCst);
                shared.0.notify_all();
            }));
        }
        spawn_all(threads);
        assert_eq!(shared.1.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn a_task_lock_excludes_and_is_always_passed_on() {
    check(|| {
        let shared = Arc::new((AsyncLock::new(), AtomicU32::new(0)));
        let enter = |shared: &(AsyncLock, AtomicU32)| {
            let seen = shared.1.load(Ordering::SeqCst);
            shared.1.store(seen + 1, Ordering::SeqCst);
        };
        let mut threads: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
        for _ in 0..3 {
            let shared = shared.clone();
            threads.push(Box::new(move || {
                let guard = block_on(shared.0.lock());
                enter(&shared);
                drop(guard);
            }));
        }
        let given_up = Arc::new(AtomicU32::new(0));
        let (cancelled, count) = (shared.clone(), given_up.clone());
        threads.push(Box::new(move || match poll_and_drop(cancelled.0.lock()) {
            Some(guard) => {
                enter(&cancelled);
                drop(guard);
            }
            None => _ = count.fetch_add(1, Ordering::SeqCst),
        }));
        spawn_all(threads);
        assert_eq!(shared.1.load(Ordering::SeqCst) + given_up.load(Ordering::SeqCst), 4);
        assert!(shared.0.try_lock().is_some());
    });
}

#[test]
fn stripes_exclude_do_not_deadlock_and_are_always_passed_on() {
    check(|| {
        // Per stripe: readers, or 1000 for a writer.
        let shared = Arc::new((StripeLocks::new(2), [AtomicU32::new(0), AtomicU32::new(0)]));
        let request = |block: u64, mode| StripeRequest { volume: types::VolumeId(0), blocks: block..block + 1, mode };
        let enter = |shared: &(StripeLocks, [AtomicU32; 2]), requests: &[StripeRequest]| {
            let cell = |request: &StripeRequest| &shared.1[request.blocks.start as usize / 16];
            for request in requests {
                let weight = if request.mode == LockMode::Exclusive { 1000 } else { 1 };
                let before = cell(request).fetch_add(weight, Ordering::SeqCst);
                assert!(if weight == 1 { before < 1000 } else { before == 0 });
            }
            for request in requests {
                let weight = if request.mode == LockMode::Exclusive { 1000 } else { 1 };
                cell(request).fetch_sub(weight, Ordering::SeqCst);
            }
        };
        use LockMode::{Exclusive, Shared};
        let work = [
            vec![request(16, Exclusive), request(0, Shared)],
            vec![request(0, Exclusive), request(16, Shared)],
            vec![request(0, Shared), request(16, Shared)],
            vec![request(0, Exclusive)],
        ];
        let mut threads: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
        for (id, requests) in work.into_iter().enumerate() {
            let shared = shared.clone();
            threads.push(Box::new(move || {
                if id == 3 {
                    drop(poll_and_drop(shared.0.acquire(&requests)));
                } else {
                    let guard = block_on(shared.0.acquire(&requests));
                    enter(&shared, &requests);
                    drop(guard);
                }
            }));
        }
        spawn_all(threads);
        assert!(shared.0.stripes.iter().all(rw::RwStripe::is_idle));
    });
}
