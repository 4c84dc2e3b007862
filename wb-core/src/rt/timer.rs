//! Clocks and timers.

use super::executor::{Core, with_core};
use nix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

#[expect(clippy::disallowed_methods, reason = "this is where Env's time comes from")]
fn clock_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("clocks that every Linux has");
    // Both parts are positive from 1970 and from boot on.
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Monotonic clock, in nanoseconds from an arbitrary origin.
pub fn now_ns() -> u64 {
    clock_ns(ClockId::CLOCK_MONOTONIC)
}

/// Wall-clock time in nanoseconds since 1970.
pub fn wall_ns() -> u64 {
    clock_ns(ClockId::CLOCK_REALTIME)
}

/// Who wants to be woken when; entries that are no longer wanted are removed at once.
#[derive(Default)]
pub(super) struct Timers {
    queue: BTreeMap<(u64, u64), Waker>,
    counter: u64,
}

impl Timers {
    /// Wakes at `deadline_ns`, unless the number that this returns is removed before.
    pub(super) fn add(&mut self, deadline_ns: u64, waker: Waker) -> u64 {
        self.counter += 1;
        self.queue.insert((deadline_ns, self.counter), waker);
        self.counter
    }

    /// Deadline of the first.
    pub(super) fn next_ns(&self) -> Option<u64> {
        self.queue.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Takes out the first if its time has come.
    pub(super) fn pop_due(&mut self, now: u64) -> Option<Waker> {
        let first = self.queue.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

/// Completes at its deadline.
pub struct Sleep {
    deadline_ns: u64,
    registered: Option<(Rc<Core>, u64)>,
}

impl Sleep {
    /// Completes when [`now_ns`] has reached `deadline_ns`.
    pub fn until(deadline_ns: u64) -> Sleep {
        Sleep { deadline_ns, registered: None }
    }
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if now_ns() >= self.deadline_ns {
            return Poll::Ready(());
        }
        match &self.registered {
            // Polled again, or woken just before its time: perhaps by another task.
            Some((core, number)) => {
                let old = core.timers.borrow_mut().queue.insert((self.deadline_ns, *number), cx.waker().clone());
                drop(old);
            }
            None => {
                let add = |core: &Rc<Core>| {
                    (core.clone(), core.timers.borrow_mut().add(self.deadline_ns, cx.waker().clone()))
                };
                self.registered = Some(with_core(add));
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((core, number)) = self.registered.take() {
            let waker = core.timers.borrow_mut().queue.remove(&(self.deadline_ns, number));
            drop(waker);
        }
    }
}

/// Completes after `duration_ns` nanoseconds, counted from this call.
pub fn sleep(duration_ns: u64) -> Sleep {
    Sleep::until(now_ns().saturating_add(duration_ns))
}

/// The time was up first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

/// The result of `future`, or [`Elapsed`] after `duration_ns` nanoseconds; `future` is dropped in both cases.
pub async fn timeout<F: Future>(duration_ns: u64, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut limit = pin!(sleep(duration_ns));
    std::future::poll_fn(move |cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        limit.as_mut().poll(cx).map(|()| Err(Elapsed))
    })
    .await
}
