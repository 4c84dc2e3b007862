//! The io_uring ring of a thread: set-up, the way in and the way out. What an operation is stands in [`super::op`].

use super::op::{Finished, Ops};
use super::timer::now_ns;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

/// Why a runtime could not be made. The message names the cause and the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RtError {
    /// The administrator switched io_uring off.
    #[error(
        "io_uring is not permitted: sysctl kernel.io_uring_disabled is {level}; set it to 0 (`sysctl -w \
         kernel.io_uring_disabled=0`){}",
        if *.level == 1 { ", run as root, or join the group of kernel.io_uring_group" } else { "" }
    )]
    Disabled {
        /// Value of the sysctl: 1 (only with CAP_SYS_ADMIN or a group) or 2 (nobody).
        level: u32,
    },
    /// Something between us and the kernel denies the call.
    #[error(
        "io_uring is not permitted (EPERM) although the kernel has it: a seccomp filter (container runtime, systemd \
         SystemCallFilter=) or security module denies io_uring_setup; allow io_uring_setup, io_uring_enter and \
         io_uring_register there"
    )]
    Denied,
    /// The kernel has no io_uring, or a filter answers as if it had none.
    #[error(
        "this kernel offers no io_uring (ENOSYS): it needs Linux 6.1 or later, CONFIG_IO_URING, and no seccomp filter \
         that hides it"
    )]
    Missing,
    /// The kernel's io_uring lacks something that cannot be done without.
    #[error("the io_uring of this kernel is too old (no {feature}); Linux 6.1 or later is needed")]
    TooOld {
        /// What is missing.
        feature: &'static str,
    },
    /// The kernel refuses memory for the rings.
    #[error("no memory for the io_uring rings ({0}); raise LimitMEMLOCK= / ulimit -l, or use fewer threads")]
    Memory(io::Error),
    /// Anything else.
    #[error("cannot set up {what}: {error}")]
    Other {
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        error: io::Error,
    },
}

impl RtError {
    fn from_setup(error: io::Error) -> RtError {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => match disabled_level() {
                Some(level @ 1..) => RtError::Disabled { level },
                _ => RtError::Denied,
            },
            Some(libc::ENOSYS) => RtError::Missing,
            Some(libc::ENOMEM) => RtError::Memory(error),
            _ => RtError::Other { what: "an io_uring", error },
        }
    }
}

fn disabled_level() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

/// Completions with this bit are the reactor's own: wake-ups and cancellations.
const INTERNAL: u64 = 1 << 63;
const USER_DATA_WAKE: u64 = INTERNAL | 1;
const USER_DATA_CANCEL: u64 = INTERNAL | 2;

/// How a turn ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Submit and take what is there.
    No,
    /// Sleep until something completes.
    Forever,
    /// Sleep until something completes, at most so many nanoseconds.
    AtMost(u64),
}

/// Whether a thread that has nothing to do looks out for a moment before it sleeps. Falling asleep and being woken takes
/// longer than the shortest waits do: one client that waits for each answer is answered sooner. An idle thread, one that
/// waits for a disk, and one for which completions come in heaps sleep at once.
#[derive(Debug)]
struct Lookout {
    /// Mean length of the last waits.
    wait_ns: u64,
    /// Mean number of completions that ended them, times 16.
    ended_by: u64,
    /// Nobody else could run meanwhile.
    alone: bool,
}

impl Lookout {
    /// How long it looks out, and how long waits are for which it does.
    const NS: u64 = 50_000;

    fn new() -> Lookout {
        let alone = std::thread::available_parallelism().map_or(true, |cpus| cpus.get() == 1);
        Lookout { wait_ns: 8 * Lookout::NS, ended_by: 16, alone }
    }
    fn pays(&self) -> bool {
        !self.alone && self.wait_ns < Lookout::NS && self.ended_by <= 24
    }
    /// A wait is over.
    fn waited(&mut self, ns: u64, completions: usize) {
        // A single long wait is enough to stop; it takes a number of short ones to begin again.
        self.wait_ns = (self.wait_ns * 7 + ns.min(8 * Lookout::NS)) / 8;
        self.ended_by = (self.ended_by * 7 + 16 * completions.min(16) as u64) / 8;
    }
}

/// One ring, the operations in flight on it, and the entries that did not fit yet.
pub(super) struct Reactor {
    ring: IoUring,
    pub(super) ops: Ops,
    /// Entries for which the submission queue had no room, oldest first. While it is not empty, new entries queue up
    /// behind it, so that order is kept and none is lost.
    backlog: VecDeque<squeue::Entry>,
    wake_fd: RawFd,
    wake_armed: bool,
    closing: bool,
    lookout: Lookout,
}

impl Reactor {
    /// `wake_fd`: an eventfd that other threads write to; it must outlive the reactor.
    pub(super) fn new(sq_entries: u32, cq_entries: u32, wake_fd: RawFd) -> Result<Reactor, RtError> {
        let ring = set_up(sq_entries, cq_entries)?;
        let params = ring.params();
        if !params.is_feature_nodrop() {
            return Err(RtError::TooOld { feature: "NODROP" });
        }
        if !params.is_feature_ext_arg() {
            return Err(RtError::TooOld { feature: "EXT_ARG" });
        }
        if !params.is_feature_submit_stable() {
            return Err(RtError::TooOld { feature: "SUBMIT_STABLE" });
        }
        Ok(Reactor {
            ring,
            ops: Ops::default(),
            backlog: VecDeque::new(),
            wake_fd,
            wake_armed: false,
            closing: false,
            lookout: Lookout::new(),
        })
    }

    /// Queues an entry. It reaches the kernel at the end of this turn, or earlier if the queue fills up.
    ///
    /// # Safety
    /// What the entry points to stays valid until its completion was taken.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() {
            self.backlog.push_back(entry);
            return;
        }
        // SAFETY: the caller's promise.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            // Full: hand over what is there and go on. If the kernel takes nothing now, the backlog does.
            let _ = self.enter(0, EnterFlags::empty(), None);
            // SAFETY: the caller's promise.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.backlog.push_back(entry);
            }
        }
    }

    /// Asks the kernel to give up an operation; its completion comes in any case.
    pub(super) fn push_cancel(&mut self, user_data: u64) {
        let entry = opcode::AsyncCancel::new(user_data).build().user_data(USER_DATA_CANCEL);
        // SAFETY: the entry points to nothing.
        unsafe { self.push(entry) }
    }

    fn refill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: promised to `push`, when the entry went into the backlog.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    fn arm_wake(&mut self) {
        if !self.wake_armed && !self.closing {
            self.wake_armed = true;
            // A multishot poll reports every later write; the counter itself is never read.
            let entry = opcode::PollAdd::new(types::Fd(self.wake_fd), libc::POLLIN as u32).multi(true).build();
            // SAFETY: the entry points to nothing.
            unsafe { self.push(entry.user_data(USER_DATA_WAKE)) }
        }
    }

    /// Submits what was pushed, waits if asked to, and moves all completions to `finished`.
    pub(super) fn turn(&mut self, wait: Wait, finished: &mut Vec<Finished>) {
        self.arm_wake();
        self.refill();
        let queue = self.ring.submission();
        let (pending, overflow, taskrun) = (!queue.is_empty(), queue.cq_overflow(), queue.taskrun());
        drop(queue);
        let have_some = !self.ring.completion().is_empty();
        let mut wait = if have_some || !self.backlog.is_empty() { Wait::No } else { wait };
        let waits = (wait != Wait::No).then(|| (now_ns(), finished.len()));
        if pending || overflow || taskrun || wait != Wait::No {
            if let Some((now_ns, _)) = waits
                && self.lookout.pays()
            {
                self.submit_and_wait(Wait::No);
                if self.look_out(now_ns, wait) {
                    wait = Wait::No;
                }
            }
            self.submit_and_wait(wait);
        }
        self.reap(finished);
        if let Some((begun_ns, before)) = waits {
            self.lookout.waited(now_ns() - begun_ns, finished.len() - before);
        }
        // What did not fit before has room now that the kernel took a queue full.
        while !self.backlog.is_empty() {
            self.refill();
            self.submit_and_wait(Wait::No);
            self.reap(finished);
        }
    }

    /// True if something completed, or may have.
    fn look_out(&mut self, begun_ns: u64, wait: Wait) -> bool {
        let ns = if let Wait::AtMost(ns) = wait { ns.min(Lookout::NS) } else { Lookout::NS };
        loop {
            if self.ring.submission().taskrun() || !self.ring.completion().is_empty() {
                return true;
            }
            if now_ns() - begun_ns >= ns {
                return false;
            }
            (0..16).for_each(|_| std::hint::spin_loop());
        }
    }

    fn submit_and_wait(&mut self, wait: Wait) {
        let flags = EnterFlags::GETEVENTS;
        let result = match wait {
            Wait::No => self.enter(0, flags, None),
            Wait::Forever => self.enter(1, flags | self.wait_flags(), None),
            Wait::AtMost(ns) => self.enter(1, flags | self.wait_flags(), Some(ns)),
        };
        let Err(error) = result else { return };
        match error.raw_os_error() {
            // A signal, the time limit; completions that must be taken first.
            Some(libc::EINTR | libc::ETIME | libc::EBUSY) => {}
            // The kernel lacks memory for requests; they are still queued. Give it a moment instead of spinning.
            Some(libc::EAGAIN | libc::ENOMEM) => {
                tracing::warn!("io_uring_enter: {error}; trying again");
                super::thread::pause_ns(1_000_000);
            }
            // EBADR: the kernel had to drop completions. Operations would never end: an invariant of this module is gone.
            _ => panic!("io_uring_enter failed: {error}"),
        }
    }

    /// Waiting for sockets, timers and other threads is idleness, waiting for disks is I/O wait. Without this every
    /// idle server thread counts as a CPU in I/O wait.
    fn wait_flags(&self) -> EnterFlags {
        if self.ring.params().is_feature_no_iowait() && self.ops.disk_ops() == 0 {
            EnterFlags::NO_IOWAIT
        } else {
            EnterFlags::empty()
        }
    }

    fn enter(&mut self, min_complete: u32, mut flags: EnterFlags, timeout_ns: Option<u64>) -> io::Result<usize> {
        let to_submit = self.ring.submission().len() as u32;
        let submitter = self.ring.submitter();
        let Some(ns) = timeout_ns else {
            // SAFETY: entries in the queue were pushed under the promise of `push`; no argument.
            return unsafe { submitter.enter::<libc::sigset_t>(to_submit, min_complete, flags.bits(), None) };
        };
        let time = Timespec::new().sec(ns / 1_000_000_000).nsec((ns % 1_000_000_000) as u32);
        let args = SubmitArgs::new().timespec(&time);
        flags |= EnterFlags::EXT_ARG;
        // SAFETY: as above; the argument is of the kind that EXT_ARG announces, and lives until the call returns.
        unsafe { submitter.enter(to_submit, min_complete, flags.bits(), Some(&args)) }
    }

    fn reap(&mut self, finished: &mut Vec<Finished>) {
        for entry in self.ring.completion() {
            let (user_data, result, flags) = (entry.user_data(), entry.result(), entry.flags());
            if user_data & INTERNAL == 0 {
                if let Some(done) = self.ops.complete(user_data, result, flags) {
                    finished.push(done);
                }
            } else if user_data == USER_DATA_WAKE && !io_uring::cqueue::more(flags) {
                self.wake_armed = false;
                assert!(result >= 0 || self.closing, "polling the wake-up descriptor failed: errno {}", -result);
            }
        }
    }

    /// Asks the kernel to give up all waiting. Disk operations run to their end: what was handed over is carried out.
    pub(super) fn cancel_waits(&mut self) {
        self.closing = true;
        for user_data in self.ops.waits() {
            self.push_cancel(user_data);
        }
    }
}

fn set_up(sq_entries: u32, cq_entries: u32) -> Result<IoUring, RtError> {
    let base = |builder: &mut io_uring::Builder| {
        builder.dontfork().setup_clamp().setup_cqsize(cq_entries);
    };
    // Best first. TASKRUN_FLAG tells us without a system call that completions wait to be run.
    let variants: [fn(&mut io_uring::Builder); 4] = [
        |b| {
            b.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all().setup_no_sqarray();
        },
        |b| {
            b.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
        },
        |b| {
            b.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        },
        |_| {},
    ];
    let mut last = None;
    for variant in &variants[first_variant()..] {
        let mut builder = IoUring::builder();
        base(&mut builder);
        variant(&mut builder);
        match builder.build(sq_entries) {
            Ok(ring) => return Ok(ring),
            // EINVAL: a flag that this kernel does not know.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            Err(error) => return Err(RtError::from_setup(error)),
        }
    }
    Err(RtError::from_setup(last.expect("at least one variant was tried")))
}

// Older kernels take the later variants; tests take them on purpose.
#[cfg(test)]
thread_local! {
    pub(super) static FIRST_VARIANT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn first_variant() -> usize {
    #[cfg(test)]
    return FIRST_VARIANT.get();
    #[cfg(not(test))]
    return 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_waits_that_one_completion_ends_are_worth_a_look() {
        let waiting = |ns, completions| {
            let mut lookout = Lookout { alone: false, ..Lookout::new() };
            (0..100).for_each(|_| lookout.waited(ns, completions));
            lookout
        };
        assert!(!Lookout::new().pays(), "not before anything is known");
        let mut lookout = waiting(20_000, 1);
        assert!(lookout.pays());
        lookout.waited(1_000_000_000, 1);
        assert!(!lookout.pays(), "one long wait is enough");
        assert!(!waiting(100_000, 1).pays(), "as for a disk");
        assert!(!waiting(5_000, 8).pays(), "in heaps");
        assert!(!Lookout { alone: true, ..waiting(20_000, 1) }.pays(), "one processor");
    }
}
