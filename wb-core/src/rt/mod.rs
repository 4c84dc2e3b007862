//! The runtime: one executor and one io_uring ring per thread.
//!
//! A [`Runtime`] belongs to the thread that made it. Tasks stay on that thread and need not be `Send`; their wakers may
//! be called from any thread. Several threads, each with a runtime of its own, share disks and the engine: an operation
//! goes to the ring of the thread that polls it first.
//!
//! One turn of a runtime: run ready tasks in the order in which they were woken, hand everything they pushed to the
//! kernel with one `io_uring_enter`, take the completions, fire the timers. A thread with nothing to do sleeps in that
//! same call; it never spins.
//!
//! This is the only part of the crate that reads clocks, draws random numbers and starts threads; [`RtEnv`] hands them
//! to the engine.

mod beside;
mod blocking;
mod blocking_env;
mod disk;
mod env;
mod executor;
mod file;
mod identity;
mod net;
mod op;
mod open;
mod poll;
mod process;
mod reactor;
mod remote;
mod send;
mod shm;
mod task;
mod thread;
mod timer;
mod usage;

#[cfg(test)]
mod tests;

pub use blocking::{BlockingDisk, block_on_ready};
pub use blocking_env::BlockingEnv;
pub use disk::RtDisk;
pub use env::RtEnv;
pub use executor::{Config, Runtime, spawn, yield_now};
pub use file::DeviceKind;
pub use identity::DeviceIdentity;
pub use net::{Listener, NetError, Shutdown, Stream};
pub use op::{Completion, Op, Payload, submit, submit_with};
pub use open::{Access, OpenError, Opened, open_blocking, open_device};
pub use poll::{PollFd, Signals};
pub use process::{boot_id, set_io_flusher};
pub use reactor::RtError;
pub use remote::{Remote, RuntimeGone};
pub use send::SendQueue;
pub use shm::ShmTails;
pub use task::JoinHandle;
pub use thread::RuntimeThread;
pub use timer::{Elapsed, Sleep, now_ns, sleep, timeout, wall_ns};
pub use usage::{Usage, in_use, same_device};
