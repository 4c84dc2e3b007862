//! What other threads may do to a runtime: wake its tasks and send it work.

use super::executor::Job;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// The runtime this was meant for is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the runtime of that thread has ended")]
pub struct RuntimeGone;

struct Inbox {
    jobs: Vec<Job>,
    open: bool,
}

/// The part of a runtime that all threads share.
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    /// The inbox may hold something; spares the owner the lock.
    pending: AtomicBool,
    /// The owner sleeps, or is about to: whoever takes this flag down has to write to `wake`.
    sleeping: AtomicBool,
    wake: EventFd,
}

impl Shared {
    pub(super) fn new() -> nix::Result<Shared> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Shared {
            inbox: Mutex::new(Inbox { jobs: Vec::new(), open: true }),
            pending: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            wake,
        })
    }

    pub(super) fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().expect("nothing panics under the inbox lock")
    }

    /// Queues a job from any thread and wakes the owner if it sleeps. Gives the job back if the runtime has ended.
    pub(super) fn push(&self, job: Job) -> Result<(), Job> {
        {
            let mut inbox = self.inbox();
            if !inbox.open {
                return Err(job);
            }
            inbox.jobs.push(job);
        }
        // Sequential consistency pairs this store and load with those of `may_sleep`: either the owner sees the job, or
        // this thread sees that the owner sleeps.
        self.pending.store(true, Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) {
            // EAGAIN: the counter is full, so that the owner is being woken anyway.
            let _ = self.wake.write(1);
        }
        Ok(())
    }

    /// Moves all jobs to `into`, in order.
    pub(super) fn take(&self, into: &mut impl Extend<Job>) {
        if self.pending.load(Ordering::Relaxed) && self.pending.swap(false, Ordering::SeqCst) {
            into.extend(self.inbox().jobs.drain(..));
        }
    }

    /// The owner is about to sleep. False if there is something to do first.
    pub(super) fn may_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        if self.pending.load(Ordering::SeqCst) {
            self.sleeping.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// The owner is awake again.
    pub(super) fn awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// No more jobs; gives back those that were never taken.
    pub(super) fn close(&self) -> Vec<Job> {
        let mut inbox = self.inbox();
        inbox.open = false;
        std::mem::take(&mut inbox.jobs)
    }
}

/// A handle to a runtime for other threads.
#[derive(Clone)]
pub struct Remote {
    pub(super) shared: Arc<Shared>,
}

impl Remote {
    /// Runs `call` on the runtime's thread, between its tasks; it may spawn there. Nothing waits for it.
    pub fn run(&self, call: impl FnOnce() + Send + 'static) -> Result<(), RuntimeGone> {
        self.shared.push(Job::Call(Box::new(call))).map_err(|_| RuntimeGone)
    }
}
