//! Tasks that execute requests. They are kept and used again, so that a request allocates no task.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Poll, Waker};
use wb_core::rt;

/// Idle tasks that a connection keeps.
const IDLE_MAX: usize = 32;

/// Where a task waits for its next job.
struct Place<J> {
    job: Cell<Option<J>>,
    waker: Cell<Option<Waker>>,
}

/// The tasks of one connection.
pub(super) struct Workers<J> {
    idle: RefCell<Vec<Rc<Place<J>>>>,
    closed: Cell<bool>,
}

impl<J: 'static> Workers<J> {
    pub(super) fn new() -> Workers<J> {
        Workers { idle: RefCell::default(), closed: Cell::new(false) }
    }

    /// Hands `job` to an idle task, or to a new one that runs jobs by `run`.
    pub(super) fn start<F>(self: &Rc<Self>, job: J, run: impl Fn(J) -> F + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let idle = self.idle.borrow_mut().pop();
        if let Some(place) = idle {
            place.job.set(Some(job));
            if let Some(waker) = place.waker.take() {
                waker.wake();
            }
            return;
        }
        let workers = self.clone();
        rt::spawn(async move {
            let place = Rc::new(Place { job: Cell::new(None), waker: Cell::new(None) });
            let mut next = Some(job);
            while let Some(job) = next {
                run(job).await;
                next = workers.next(&place).await;
            }
        });
    }

    /// Waits for a job; `None` if the task is to end.
    async fn next(&self, place: &Rc<Place<J>>) -> Option<J> {
        if self.closed.get() || self.idle.borrow().len() >= IDLE_MAX {
            return None;
        }
        self.idle.borrow_mut().push(place.clone());
        poll_fn(|cx| match place.job.take() {
            Some(job) => Poll::Ready(Some(job)),
            None if self.closed.get() => Poll::Ready(None),
            None => {
                place.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }

    /// Ends the idle tasks now and the others after their job.
    pub(super) fn close(&self) {
        self.closed.set(true);
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        for place in idle {
            if let Some(waker) = place.waker.take() {
                waker.wake();
            }
        }
    }
}
