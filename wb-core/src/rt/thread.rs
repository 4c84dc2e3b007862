//! Threads with a runtime of their own.

use super::executor::{Config, Runtime};
use super::reactor::RtError;
use super::remote::Remote;
use std::future::Future;
use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Blocks the thread; for moments in which nothing else can be done.
#[expect(clippy::disallowed_methods, reason = "the runtime waits for the kernel or another thread")]
pub(super) fn pause_ns(duration_ns: u64) {
    thread::sleep(Duration::from_nanos(duration_ns));
}

/// A thread that runs one future on a runtime of its own.
pub struct RuntimeThread<T> {
    remote: Remote,
    thread: thread::JoinHandle<Option<T>>,
}

impl<T: Send + 'static> RuntimeThread<T> {
    /// Starts a thread, makes its runtime, and runs there what `main` returns. Waits only for the runtime to be made.
    #[expect(clippy::disallowed_methods, reason = "the one place where threads of the runtime come from")]
    pub fn start<M, F>(name: &str, config: Config, main: M) -> Result<RuntimeThread<T>, RtError>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (sender, receiver) = mpsc::sync_channel(1);
        // The thread ends without a result only if the runtime could not be made, and then nobody joins it.
        let body = move || match Runtime::new(config) {
            Ok(runtime) => {
                // Nobody hears it only if the starter panicked.
                let _ = sender.send(Ok(runtime.remote()));
                Some(runtime.block_on(async { main().await }))
            }
            Err(error) => {
                let _ = sender.send(Err(error));
                None
            }
        };
        let refused = |error: io::Error| RtError::Other { what: "a thread", error };
        let thread = thread::Builder::new().name(name.into()).spawn(body).map_err(refused)?;
        let ended = || refused(io::Error::other("it ended before it had begun"));
        let remote = receiver.recv().map_err(|_| ended())??;
        Ok(RuntimeThread { remote, thread })
    }

    /// A handle to its runtime.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Waits for the end of the future. The error is the payload of its panic.
    pub fn join(self) -> thread::Result<T> {
        self.thread.join().map(|result| result.expect("a started runtime runs its future to the end"))
    }
}
