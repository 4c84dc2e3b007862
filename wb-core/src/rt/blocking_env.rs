//! [`Env`] without a ring: one thread, disks that block it, and a queue for what tasks there are.

use super::blocking::BlockingDisk;
use super::env::random_u64;
use super::thread::pause_ns;
use super::timer::{Timers, now_ns, wall_ns};
use crate::env::Env;
use async_task::Runnable;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

thread_local! {
    static READY: RefCell<VecDeque<Runnable>> = const { RefCell::new(VecDeque::new()) };
    static TIMERS: RefCell<Timers> = RefCell::default();
}

/// The world of a tool that runs where io_uring is not permitted. Everything happens on one thread, wakers included.
#[derive(Debug, Clone, Copy, Default)]
pub struct BlockingEnv;

/// Tells that the main future was woken.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

impl BlockingEnv {
    /// Runs this future, and the tasks besides it, until it is done. Tasks that are left rest until the next call.
    ///
    /// Panics if everything waits and no timer is left that could change that.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let waker = Waker::from(flag.clone());
        loop {
            let main = flag.0.swap(false, Ordering::Acquire);
            if main && let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
            // One round of the queue, so that whoever is ready runs before the main future goes on.
            let ready = READY.with_borrow_mut(std::mem::take);
            if !main && ready.is_empty() {
                wait_for_timer();
            }
            for runnable in ready {
                runnable.run();
            }
        }
    }
}

fn wait_for_timer() {
    let next = TIMERS.with_borrow(Timers::next_ns);
    let next = next.expect("everything waits for something that will never come: a bug in what was run");
    pause_ns(next.saturating_sub(now_ns()));
    while let Some(waker) = TIMERS.with_borrow_mut(|timers| timers.pop_due(now_ns())) {
        waker.wake();
    }
}

impl Env for BlockingEnv {
    type Disk = BlockingDisk;

    fn now_ns(&self) -> u64 {
        now_ns()
    }

    fn wall_ns(&self) -> u64 {
        wall_ns()
    }

    fn random_u64(&self) -> u64 {
        random_u64()
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        // While the thread ends there is no queue any more, and the task is dropped.
        let schedule = |runnable| {
            let _ = READY.try_with(|ready| ready.borrow_mut().push_back(runnable));
        };
        let (runnable, task) = async_task::spawn_local(task, schedule);
        runnable.schedule();
        task.detach();
    }

    async fn sleep(&self, duration_ns: u64) {
        let deadline_ns = now_ns().saturating_add(duration_ns);
        poll_fn(|cx| {
            if now_ns() >= deadline_ns {
                return Poll::Ready(());
            }
            // One that is dropped early leaves its entry, which wakes nobody in its time.
            TIMERS.with_borrow_mut(|timers| timers.add(deadline_ns, cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    async fn yield_now(&self) {
        let mut yielded = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    async fn yield_point(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn tasks_take_turns_and_timers_fire_in_order() {
        let env = BlockingEnv;
        let log = Rc::new(RefCell::new(Vec::new()));
        let start = now_ns();
        env.block_on(async {
            for n in [30u64, 10, 20] {
                let log = log.clone();
                env.spawn(async move {
                    log.borrow_mut().push(n);
                    env.sleep(n * 1_000_000).await;
                    log.borrow_mut().push(100 + n);
                });
            }
            env.yield_now().await;
            assert_eq!(*log.borrow(), [30, 10, 20], "each has run once");
            env.sleep(50_000_000).await;
            // On a busy machine all are due at once, and this future may be looked at first.
            while log.borrow().len() < 6 {
                env.sleep(1_000_000).await;
            }
        });
        assert_eq!(*log.borrow(), [30, 10, 20, 110, 120, 130]);
        assert!(now_ns() - start >= 50_000_000);
    }

    #[test]
    #[should_panic(expected = "will never come")]
    fn waiting_for_nothing_is_a_panic_and_no_hang() {
        BlockingEnv.block_on(std::future::pending::<()>());
    }
}
