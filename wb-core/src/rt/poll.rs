//! Readiness of file descriptors that are no sockets and no disks: signals, eventfds, pipes.

use super::op::{Payload, submit_with};
use io_uring::{opcode, types};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

struct PollPayload {
    _fd: Arc<OwnedFd>,
}

impl Payload for PollPayload {
    const CANCEL_ON_DROP: bool = true;
}

/// A descriptor whose readiness can be awaited.
#[derive(Clone, Debug)]
pub struct PollFd {
    fd: Arc<OwnedFd>,
}

impl PollFd {
    /// Takes over any descriptor that poll(2) accepts.
    pub fn new(fd: impl Into<OwnedFd>) -> PollFd {
        PollFd { fd: Arc::new(fd.into()) }
    }

    /// The descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Waits for any of `events` (`POLLIN`, ... of poll(2)), errors and hang-up included; those that occurred.
    pub async fn ready(&self, events: i16) -> io::Result<i16> {
        loop {
            let entry = opcode::PollAdd::new(types::Fd(self.fd.as_raw_fd()), events as u16 as u32).build();
            // SAFETY: the entry points to no memory; the payload keeps the descriptor open.
            let result = unsafe { submit_with(entry, PollPayload { _fd: self.fd.clone() }) }.await.result;
            match result {
                0.. => return Ok(result as i16),
                _ if -result == libc::EINTR || -result == libc::EAGAIN => {}
                _ => return Err(io::Error::from_raw_os_error(-result)),
            }
        }
    }

    /// Waits until reading would not block.
    pub async fn readable(&self) -> io::Result<()> {
        self.ready(libc::POLLIN).await.map(|_| ())
    }
}

/// Signals as something to wait for, instead of handlers.
#[derive(Debug)]
pub struct Signals {
    source: SignalFd,
    /// A second descriptor of the same signalfd, for the ring.
    poll: PollFd,
}

impl Signals {
    /// Takes these signals out of their usual delivery. To be called before any other thread starts: threads inherit
    /// the mask, and one that has the signal unblocked would be killed by it.
    pub fn new(signals: &[Signal]) -> io::Result<Signals> {
        let mask: SigSet = signals.iter().copied().collect();
        mask.thread_block()?;
        let source = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let poll = PollFd::new(std::os::fd::AsFd::as_fd(&source).try_clone_to_owned()?);
        Ok(Signals { source, poll })
    }

    /// The next signal that arrives.
    pub async fn next(&self) -> io::Result<Signal> {
        loop {
            if let Some(info) = self.source.read_signal()? {
                return Ok(Signal::try_from(info.ssi_signo as i32)?);
            }
            self.poll.readable().await?;
        }
    }
}
