//! [`Env`] on the real machine.

use super::disk::RtDisk;
use super::{beside, executor, timer};
use crate::env::Env;
use std::future::Future;

/// The real world: the kernel's clocks and random numbers, and the runtime of the calling thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct RtEnv;

impl Env for RtEnv {
    type Disk = RtDisk;

    fn now_ns(&self) -> u64 {
        timer::now_ns()
    }

    fn wall_ns(&self) -> u64 {
        timer::wall_ns()
    }

    fn random_u64(&self) -> u64 {
        random_u64()
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        drop(executor::spawn(task)); // Detached.
    }

    fn beside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = T> {
        beside::start(work)
    }

    fn sleep(&self, duration_ns: u64) -> impl Future<Output = ()> {
        timer::sleep(duration_ns)
    }

    fn yield_now(&self) -> impl Future<Output = ()> {
        executor::yield_now()
    }

    fn yield_point(&self) -> impl Future<Output = ()> {
        std::future::ready(())
    }
}

/// A random number of the kernel.
#[expect(clippy::disallowed_methods, reason = "this is where Env's randomness comes from")]
pub(super) fn random_u64() -> u64 {
    let mut bytes = [0u8; 8];
    loop {
        // SAFETY: the pointer and the length describe `bytes`.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        // Requests of up to 256 bytes are answered in full once the pool is initialised; a signal may come before.
        if got == bytes.len() as isize {
            return u64::from_ne_bytes(bytes);
        }
    }
}
