//! Work that waits for nothing, on a thread of its own.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;

/// What worker and waiter share.
#[derive(Default)]
struct Ending {
    ended: bool,
    waiter: Option<Waker>,
}

/// Tells the waiter, also when the work panics.
struct Ends(Arc<Mutex<Ending>>);

impl Drop for Ends {
    fn drop(&mut self) {
        let waiter = {
            let mut ending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            ending.ended = true;
            ending.waiter.take()
        };
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

/// The result of work that is under way.
struct Beside<T> {
    ending: Arc<Mutex<Ending>>,
    thread: Option<thread::JoinHandle<T>>,
}

impl<T> Future for Beside<T> {
    type Output = T;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        {
            let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
            if !ending.ended {
                ending.waiter = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        let thread = self.thread.take().expect("not polled again after it was ready");
        match thread.join() {
            Ok(result) => Poll::Ready(result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Starts `work` on a thread of its own. A panic there is one of whoever waits for it.
#[expect(clippy::disallowed_methods, reason = "the runtime gives the engine threads")]
pub(super) fn start<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = T> {
    let ending = Arc::<Mutex<Ending>>::default();
    let ends = Ends(ending.clone());
    let body = move || {
        let _ends = ends;
        work()
    };
    let thread = thread::Builder::new().name("wb-beside".into()).spawn(body).expect("the kernel gives a thread");
    Beside { ending, thread: Some(thread) }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Runtime};
    use super::*;

    #[test]
    fn work_is_done_while_the_caller_goes_on_and_its_panic_is_the_callers() {
        let runtime = Runtime::new(Config::default()).expect("a runtime");
        let (sender, receiver) = std::sync::mpsc::channel();
        let sum = runtime.block_on(async {
            let work = start(move || receiver.recv().expect("the caller goes on") + 1);
            sender.send(41).expect("the work listens");
            work.await
        });
        assert_eq!(sum, 42);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(async { start(|| panic!("as planned")).await });
        }));
        assert!(caught.is_err(), "a panic is not lost");
    }
}
