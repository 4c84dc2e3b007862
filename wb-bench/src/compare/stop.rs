//! When a run is to be ended: by a signal, or because its time is up.

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The run was ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// By SIGINT or SIGTERM.
    #[error("interrupted")]
    Interrupted,
    /// By its limit of time.
    #[error("the limit of time is reached")]
    Limit,
}

/// Tells when to stop.
#[derive(Debug, Clone)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

impl Stop {
    /// Takes SIGINT and SIGTERM from here on. To be called before other threads start, so that they leave the signals
    /// alone.
    pub fn new(limit: Option<Duration>) -> anyhow::Result<Stop> {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
        signals.thread_block().context("cannot take signals")?;
        let asked = Arc::new(AtomicBool::new(false));
        let told = asked.clone();
        let watch = move || {
            // The second one ends the process at once: whoever sends it does not want to wait.
            if signals.wait().is_ok() {
                told.store(true, Ordering::SeqCst);
            }
            if signals.wait().is_ok() {
                std::process::exit(130);
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(watch).context("cannot watch for signals")?;
        Ok(Stop { asked, deadline: limit.map(|limit| Instant::now() + limit) })
    }

    /// An error if it is time to stop.
    pub fn check(&self) -> Result<(), Stopped> {
        if self.asked.load(Ordering::SeqCst) {
            return Err(Stopped::Interrupted);
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Stopped::Limit);
        }
        Ok(())
    }

    /// Time that is left, if it is limited.
    pub fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}
