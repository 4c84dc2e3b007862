//! Operations in flight: a slab of slots, and the future that waits for one.
//!
//! What the kernel reads or writes while an operation runs (its *payload*: buffers, vectors, file descriptors) belongs
//! to the [`Op`] future. If that future is dropped early, the payload moves into the slab and stays there until the
//! completion arrives: memory in flight is never freed, and no descriptor number is reused below a queued entry.

use super::executor::{Core, with_core};
use io_uring::squeue;
use slab::Slab;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// What an operation owns until it ends, and what becomes of it if nobody waits any more.
///
/// The kernel holds pointers into the payload, so whatever they point to must stay where it is when the payload itself
/// moves: on the heap, not inside it.
pub trait Payload: 'static {
    /// Dropping the future asks the kernel to give the operation up: for waits that may never end (sockets, polls).
    /// Disk operations run to their end.
    const CANCEL_ON_DROP: bool = false;
    /// The operation waits for a disk; decides whether a sleeping thread counts as waiting for I/O.
    const DISK: bool = false;
    /// The operation ended with `result` after its future was dropped.
    fn abandoned(self, _result: i32)
    where
        Self: Sized,
    {
    }
}

impl Payload for () {}

/// How an operation ended.
#[derive(Debug)]
pub struct Completion<T> {
    /// As of the system call of the same name: a count or zero, or a negated errno.
    pub result: i32,
    /// `IORING_CQE_F_*`.
    pub flags: u32,
    /// What the operation owned.
    pub payload: T,
}

enum State {
    Waiting(Option<Waker>),
    /// The future is gone; the payload waits here for the completion.
    Abandoned(Box<dyn FnOnce(i32)>),
    Done {
        result: i32,
        flags: u32,
    },
}

struct Slot {
    state: State,
    serial: u32,
    disk: bool,
}

/// What is left to do, outside of all borrows, for an operation that ended.
pub(super) enum Finished {
    Wake(Waker),
    Abandoned(Box<dyn FnOnce(i32)>, i32),
}

impl Finished {
    pub(super) fn run(self) {
        match self {
            Finished::Wake(waker) => waker.wake(),
            Finished::Abandoned(then, result) => then(result),
        }
    }
}

/// All operations of a ring that have not ended, or whose end nobody has seen yet.
#[derive(Default)]
pub(super) struct Ops {
    slots: Slab<Slot>,
    serial: u32,
    in_flight: usize,
    disk_ops: usize,
}

/// Index in the lower half; above it a serial number, so that a late cancellation cannot hit the slot's next user.
fn user_data(index: usize, serial: u32) -> u64 {
    u64::from(serial) << 32 | index as u64
}

impl Ops {
    /// Operations whose completion has not arrived.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Those of them that wait for a disk.
    pub(super) fn disk_ops(&self) -> usize {
        self.disk_ops
    }

    /// Operations in flight that wait for no disk.
    pub(super) fn waits(&self) -> Vec<u64> {
        let waits = |slot: &Slot| !slot.disk && !matches!(slot.state, State::Done { .. });
        self.slots.iter().filter(|(_, slot)| waits(slot)).map(|(index, slot)| user_data(index, slot.serial)).collect()
    }

    fn insert(&mut self, disk: bool) -> u64 {
        // 31 bits: the topmost bit of `user_data` marks the reactor's own entries.
        self.serial = (self.serial + 1) & 0x7fff_ffff;
        self.in_flight += 1;
        self.disk_ops += usize::from(disk);
        let slot = Slot { state: State::Waiting(None), serial: self.serial, disk };
        user_data(self.slots.insert(slot), self.serial)
    }

    fn slot(&mut self, user_data: u64) -> &mut Slot {
        let slot = &mut self.slots[(user_data & 0xffff_ffff) as usize];
        assert!(u64::from(slot.serial) == user_data >> 32, "an operation's slot is its own until its future is gone");
        slot
    }

    fn remove(&mut self, user_data: u64) -> Slot {
        self.slots.remove((user_data & 0xffff_ffff) as usize)
    }

    /// Takes note of a completion.
    pub(super) fn complete(&mut self, user_data: u64, result: i32, flags: u32) -> Option<Finished> {
        assert!(!io_uring::cqueue::more(flags), "operations complete once");
        self.in_flight -= 1;
        let slot = self.slot(user_data);
        let disk = slot.disk;
        let finished = match std::mem::replace(&mut slot.state, State::Done { result, flags }) {
            State::Waiting(waker) => waker.map(Finished::Wake),
            State::Abandoned(then) => {
                self.remove(user_data);
                Some(Finished::Abandoned(then, result))
            }
            State::Done { .. } => unreachable!("an operation completes once"),
        };
        self.disk_ops -= usize::from(disk);
        finished
    }
}

/// An operation that was handed to the ring of this thread; completes with its [`Completion`].
#[must_use = "dropping it abandons the operation"]
pub struct Op<T: Payload> {
    core: Rc<Core>,
    user_data: u64,
    /// `None` once the completion was handed out.
    payload: Option<T>,
}

// The payload may move: see `Payload`.
impl<T: Payload> Unpin for Op<T> {}

impl<T: Payload> Future for Op<T> {
    type Output = Completion<T>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completion<T>> {
        assert!(self.payload.is_some(), "an operation is polled until it is done");
        let mut reactor = self.core.reactor.borrow_mut();
        let slot = reactor.ops.slot(self.user_data);
        match &mut slot.state {
            State::Done { result, flags } => {
                let (result, flags) = (*result, *flags);
                reactor.ops.remove(self.user_data);
                drop(reactor);
                let payload = self.payload.take().expect("checked above");
                Poll::Ready(Completion { result, flags, payload })
            }
            State::Waiting(waker) => {
                let old = match waker {
                    Some(waker) if waker.will_wake(cx.waker()) => None,
                    _ => waker.replace(cx.waker().clone()),
                };
                // Outside of the borrow: dropping a waker may run anything.
                drop(reactor);
                drop(old);
                Poll::Pending
            }
            State::Abandoned(_) => unreachable!("its future is here"),
        }
    }
}

impl<T: Payload> Drop for Op<T> {
    fn drop(&mut self) {
        let Some(payload) = self.payload.take() else { return };
        let mut reactor = self.core.reactor.borrow_mut();
        let slot = reactor.ops.slot(self.user_data);
        if let State::Done { result, .. } = slot.state {
            reactor.ops.remove(self.user_data);
            drop(reactor);
            payload.abandoned(result);
            return;
        }
        slot.state = State::Abandoned(Box::new(move |result| payload.abandoned(result)));
        if T::CANCEL_ON_DROP {
            reactor.push_cancel(self.user_data);
        }
    }
}

/// Hands an entry to the ring of the current thread. It reaches the kernel at the end of this turn; the future need
/// not be polled for that. `user_data` of the entry is overwritten.
///
/// # Safety
/// Everything the entry points or refers to (memory, file descriptors) is kept valid by `payload`, also while the
/// payload moves, or by the caller until the operation has ended; dropping the future does not end it. The entry
/// completes exactly once (no multishot, no `CQE_SKIP_SUCCESS`).
///
/// Panics outside of a runtime.
pub unsafe fn submit_with<T: Payload>(entry: squeue::Entry, payload: T) -> Op<T> {
    with_core(|core| {
        let mut reactor = core.reactor.borrow_mut();
        let user_data = reactor.ops.insert(T::DISK);
        // SAFETY: the `Op` keeps the payload until the completion was taken, in itself or in the slab.
        unsafe { reactor.push(entry.user_data(user_data)) };
        drop(reactor);
        Op { core: core.clone(), user_data, payload: Some(payload) }
    })
}

/// [`submit_with`] for an entry whose memory the caller keeps.
///
/// # Safety
/// As for [`submit_with`].
pub unsafe fn submit(entry: squeue::Entry) -> Op<()> {
    // SAFETY: the caller's promise.
    unsafe { submit_with(entry, ()) }
}
