//! The executor of a thread: a queue of ready tasks in the order in which they were woken, and the loop that turns it.

use super::op::Finished;
use super::reactor::{Reactor, RtError, Wait};
use super::remote::{Remote, Shared};
use super::task::{JoinHandle, spawn_on};
use super::timer::{Timers, now_ns};
use async_task::Runnable;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Tasks that run before the ring is looked at again, so that a busy queue does not starve completions and timers.
const RUNS_PER_TURN_MAX: usize = 256;

/// How long a runtime that ends waits for operations in flight before it gives up their memory instead.
const CLOSE_WAIT_NS: u64 = 5_000_000_000;

/// Sizes of a runtime's ring.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Entries handed to the kernel at once; more queue up behind. Rounded up to a power of two.
    pub sq_entries: u32,
    /// Completions that fit into the ring; more are kept by the kernel. Rounded up to a power of two.
    pub cq_entries: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config { sq_entries: 256, cq_entries: 4096 }
    }
}

/// An entry of the ready queue.
pub(super) enum Job {
    Task(Runnable),
    /// The future that `block_on` with this number waits for.
    Main(u64),
    /// Sent by another thread.
    Call(Box<dyn FnOnce() + Send>),
}

/// A runtime as its own thread sees it.
///
/// No `RefCell` here is borrowed while foreign code runs (futures, wakers, destructors of what they own).
pub(super) struct Core {
    pub(super) shared: Arc<Shared>,
    ready: RefCell<VecDeque<Job>>,
    /// A waker of every task that lives, so that the end of the runtime can reach them all.
    pub(super) tasks: RefCell<Slab<Waker>>,
    pub(super) reactor: RefCell<Reactor>,
    pub(super) timers: RefCell<Timers>,
    mains: Cell<u64>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// Calls `f` with the runtime that is running on this thread. Panics if there is none.
pub(super) fn with_core<R>(f: impl FnOnce(&Rc<Core>) -> R) -> R {
    CURRENT.with_borrow(|core| f(core.as_ref().expect("called on a thread whose wb_core::rt::Runtime is running")))
}

/// Queues a task that was woken, from whatever thread.
pub(super) fn schedule(shared: &Arc<Shared>, runnable: Runnable) {
    let mut runnable = Some(runnable);
    // `try_with`: wakers may be called while the thread's locals are being destroyed.
    let _ = CURRENT.try_with(|current| {
        if let Some(core) = current.borrow().as_ref()
            && Arc::ptr_eq(&core.shared, shared)
        {
            core.ready.borrow_mut().extend(runnable.take().map(Job::Task));
        }
    });
    if let Some(runnable) = runnable
        && let Err(job) = shared.push(Job::Task(runnable))
    {
        // Its runtime has ended, and with it the future: only the shell is left. It must not be dropped here, because
        // that could be another thread than the future's.
        std::mem::forget(job);
    }
}

/// Makes a runtime the current one of its thread until dropped.
struct Entered;

impl Entered {
    fn enter(core: &Rc<Core>) -> Entered {
        CURRENT.with_borrow_mut(|current| {
            assert!(current.is_none(), "one runtime at a time runs on a thread");
            *current = Some(core.clone());
        });
        Entered
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let core = CURRENT.with_borrow_mut(Option::take);
        drop(core);
    }
}

/// Wakes the future that `block_on` waits for.
struct MainWaker {
    shared: Arc<Shared>,
    number: u64,
    queued: AtomicBool,
}

impl Wake for MainWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let local = CURRENT.try_with(|current| match current.borrow().as_ref() {
            Some(core) if Arc::ptr_eq(&core.shared, &self.shared) => {
                core.ready.borrow_mut().push_back(Job::Main(self.number));
                true
            }
            _ => false,
        });
        if local != Ok(true) {
            // An error means that nobody waits any more.
            let _ = self.shared.push(Job::Main(self.number));
        }
    }
}

impl Core {
    /// Moves what other threads sent to the end of the ready queue.
    pub(super) fn take_remote(&self) {
        self.shared.take(&mut *self.ready.borrow_mut());
    }

    fn pop(&self) -> Option<Job> {
        self.ready.borrow_mut().pop_front()
    }

    /// Runs ready tasks until there are none, `main` is done, or their number for one turn is used up.
    fn run_ready(&self, number: u64, poll_main: &mut dyn FnMut() -> bool) -> bool {
        self.take_remote();
        for _ in 0..RUNS_PER_TURN_MAX {
            let Some(job) = self.pop() else { return false };
            match job {
                Job::Task(runnable) => {
                    runnable.run();
                }
                Job::Main(which) if which == number => {
                    if poll_main() {
                        return true;
                    }
                }
                Job::Main(_) => {} // A late wake-up for a future that is done.
                Job::Call(call) => call(),
            }
        }
        false
    }

    /// Submits, sleeps if nothing is ready, and wakes whom completions and timers concern.
    fn turn(&self, finished: &mut Vec<Finished>) {
        let mut wait = Wait::No;
        if self.ready.borrow().is_empty() && self.shared.may_sleep() {
            wait = match self.timers.borrow().next_ns() {
                None => Wait::Forever,
                Some(deadline) => match deadline.saturating_sub(now_ns()) {
                    0 => Wait::No,
                    ns => Wait::AtMost(ns),
                },
            };
        }
        self.reactor.borrow_mut().turn(wait, finished);
        self.shared.awake();
        finished.drain(..).for_each(Finished::run);
        self.fire_timers();
    }

    fn fire_timers(&self) {
        if self.timers.borrow().next_ns().is_none() {
            return;
        }
        let now = now_ns();
        loop {
            let due = self.timers.borrow_mut().pop_due(now);
            let Some(waker) = due else { return };
            waker.wake();
        }
    }

    /// Drops all tasks, on this thread. Afterwards no waker leads to a future any more.
    fn drop_tasks(&self) {
        loop {
            // A task that is not queued yet gets into the queue by being woken.
            let wakers: Vec<Waker> = self.tasks.borrow().iter().map(|(_, waker)| waker.clone()).collect();
            wakers.into_iter().for_each(Waker::wake);
            self.take_remote();
            while let Some(job) = self.pop() {
                drop(job);
            }
            if self.tasks.borrow().is_empty() {
                return;
            }
            // Another thread is between marking a task as woken and sending it here; it will not be long.
            super::thread::pause_ns(10_000);
        }
    }

    /// Ends all operations. False if some did not end in time.
    fn end_operations(&self) -> bool {
        let mut finished = Vec::new();
        let deadline = now_ns() + CLOSE_WAIT_NS;
        self.reactor.borrow_mut().cancel_waits();
        loop {
            let left_ns = deadline.saturating_sub(now_ns());
            let wait = match self.reactor.borrow().ops.in_flight() {
                0 => return true,
                _ if left_ns == 0 => return false,
                _ => Wait::AtMost(left_ns),
            };
            self.reactor.borrow_mut().turn(wait, &mut finished);
            finished.drain(..).for_each(Finished::run);
        }
    }
}

/// The executor and the ring of one thread.
pub struct Runtime {
    core: Rc<Core>,
}

impl Runtime {
    /// Makes a runtime for the calling thread, on which it stays.
    pub fn new(config: Config) -> Result<Runtime, RtError> {
        let eventfd = |errno: nix::errno::Errno| RtError::Other { what: "an eventfd", error: io::Error::from(errno) };
        let shared = Arc::new(Shared::new().map_err(eventfd)?);
        let reactor = Reactor::new(config.sq_entries, config.cq_entries, shared.wake_fd())?;
        let core = Core {
            shared,
            ready: RefCell::default(),
            tasks: RefCell::default(),
            reactor: RefCell::new(reactor),
            timers: RefCell::default(),
            mains: Cell::new(0),
        };
        Ok(Runtime { core: Rc::new(core) })
    }

    /// A handle for other threads.
    pub fn remote(&self) -> Remote {
        Remote { shared: self.core.shared.clone() }
    }

    /// Puts a task on the queue of this runtime; it runs when [`Runtime::block_on`] does.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        spawn_on(&self.core, future)
    }

    /// Runs this future, and the tasks besides it, until it is done. Tasks that are left rest until the next call.
    ///
    /// A panic of any task comes out here. Panics if a runtime is already running on this thread.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let _entered = Entered::enter(&self.core);
        let number = self.core.mains.get() + 1;
        self.core.mains.set(number);
        let main = Arc::new(MainWaker { shared: self.core.shared.clone(), number, queued: AtomicBool::new(false) });
        let waker = Waker::from(main.clone());
        waker.wake_by_ref();
        let mut future = pin!(future);
        let mut output = None;
        let mut poll_main = || {
            main.queued.store(false, Ordering::Release);
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(value) => output = Some(value),
                Poll::Pending => {}
            }
            output.is_some()
        };
        let mut finished = Vec::new();
        while !self.core.run_ready(number, &mut poll_main) {
            self.core.turn(&mut finished);
        }
        // What was pushed last goes out even if nobody runs this runtime again.
        self.core.reactor.borrow_mut().turn(Wait::No, &mut finished);
        finished.drain(..).for_each(Finished::run);
        output.expect("the loop ends with it")
    }
}

impl Drop for Runtime {
    /// Drops all tasks and waits for operations in flight: sockets and the like are cancelled, disk operations are
    /// carried out. If a device keeps some for longer than a few seconds, their memory and the ring are given up, never freed below the kernel's hands.
    fn drop(&mut self) {
        // A runtime is dropped on its thread, but perhaps while another one runs there.
        let outer = CURRENT.with_borrow_mut(|current| current.replace(self.core.clone()));
        self.core.drop_tasks();
        let ended = self.core.end_operations();
        // What abandoned operations owned may have spawned or woken something.
        self.core.drop_tasks();
        drop(self.core.shared.close());
        CURRENT.with_borrow_mut(|current| *current = outer);
        if !ended {
            let left = self.core.reactor.borrow().ops.in_flight();
            tracing::error!("{left} operations did not end; their memory is given up");
            std::mem::forget(self.core.clone());
        }
    }
}

/// Puts a task on the queue of the current thread's runtime. Panics if none is running.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    with_core(|core| spawn_on(core, future))
}

/// Lets every task that is ready now, woken here or by another thread, run once before the caller goes on.
pub fn yield_now() -> impl Future<Output = ()> {
    YieldNow { yielded: false }
}

struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        // The queue is in order of waking: whoever is in it now is in front of us.
        with_core(|core| core.take_remote());
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
