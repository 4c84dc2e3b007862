//! A tiny executor for tests: seeded poll order, spurious polls, dropped tasks; and one that blocks a thread.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

/// A small seeded generator (splitmix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

struct Ready(AtomicBool);

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Task<'a> {
    future: Pin<Box<dyn Future<Output = ()> + 'a>>,
    ready: Arc<Ready>,
    droppable: bool,
}

/// Tasks that are polled in an order drawn from a seed, now and then without having been woken.
pub struct Tasks<'a> {
    rng: Rng,
    tasks: Vec<Task<'a>>,
}

impl<'a> Tasks<'a> {
    pub fn new(seed: u64) -> Tasks<'a> {
        Tasks { rng: Rng(seed), tasks: Vec::new() }
    }

    /// Adds a task that must end.
    pub fn spawn(&mut self, future: impl Future<Output = ()> + 'a) {
        let ready = Arc::new(Ready(AtomicBool::new(true)));
        self.tasks.push(Task { future: Box::pin(future), ready, droppable: false });
    }

    /// Adds a task that is dropped at a random time if it has not ended by itself.
    pub fn spawn_droppable(&mut self, future: impl Future<Output = ()> + 'a) {
        self.spawn(future);
        self.tasks.last_mut().expect("just added").droppable = true;
    }

    /// Runs until all have ended. Panics when those left wait and nobody was woken: a lost wake-up or a deadlock.
    pub fn run(&mut self) {
        while !self.tasks.is_empty() {
            let at = self.rng.below(self.tasks.len() as u64) as usize;
            let stuck = self.tasks.iter().all(|task| !task.ready.0.load(Ordering::SeqCst));
            let task = &mut self.tasks[at];
            if task.droppable && (stuck || self.rng.below(20) == 0) {
                drop(self.tasks.swap_remove(at));
                continue;
            }
            assert!(!stuck || self.tasks.iter().any(|task| task.droppable), "{} tasks wait for ever", self.tasks.len());
            let task = &mut self.tasks[at];
            let spurious = !stuck && self.rng.below(10) == 0;
            if task.ready.0.swap(false, Ordering::SeqCst) || spurious {
                let waker = Waker::from(task.ready.clone());
                if task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                    drop(self.tasks.swap_remove(at));
                }
            }
        }
    }
}

/// Pending once.
pub async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Polls once with a waker that does nothing.
pub fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs one future on this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}
