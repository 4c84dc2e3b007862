//! Progress of long work: a bar with rate and ETA on a terminal, nothing elsewhere.

use crate::units;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// What a [`Progress`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressUnit {
    /// Bytes, with a rate in MB/s.
    Bytes,
    /// Things (segments, records), with a rate per second.
    Items,
}

/// A progress bar on stderr, drawn only if stderr is a terminal. It vanishes when finished or dropped.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// True if bars are drawn at all: stderr is a terminal.
    pub fn is_visible() -> bool {
        std::io::stderr().is_terminal()
    }

    /// A bar for `total` of `unit`; `what` says what is being done ("checking segments").
    pub fn new(what: &str, total: u64, unit: ProgressUnit) -> Progress {
        let bar = if Progress::is_visible() {
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5))
        } else {
            ProgressBar::hidden()
        };
        bar.set_style(style(unit));
        bar.set_message(what.to_string());
        bar.enable_steady_tick(Duration::from_millis(500));
        Progress { bar }
    }

    /// A bar that is never drawn, for `--json` and quiet callers.
    pub fn hidden() -> Progress {
        Progress { bar: ProgressBar::hidden() }
    }

    /// `done` of the total is done.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// `delta` more is done.
    pub fn add(&self, delta: u64) {
        self.bar.inc(delta);
    }

    /// The total is another one than thought.
    pub fn set_total(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// What is being done now.
    pub fn set_message(&self, what: &str) {
        self.bar.set_message(what.to_string());
    }

    /// Writes a line above the bar, to stderr; nothing if the bar is hidden.
    pub fn note(&self, line: &str) {
        self.bar.println(line);
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

fn style(unit: ProgressUnit) -> ProgressStyle {
    let show: fn(u64) -> String = match unit {
        ProgressUnit::Bytes => units::size,
        ProgressUnit::Items => units::count,
    };
    let show_rate: fn(f64) -> String = match unit {
        ProgressUnit::Bytes => units::rate,
        ProgressUnit::Items => |per_s| format!("{}/s", units::count(per_s.max(0.0) as u64)),
    };
    ProgressStyle::with_template("{msg} [{bar:30}] {percent:>3} % {done} of {all}, {speed}, {left} left")
        .expect("the template is a constant")
        .progress_chars("=> ")
        .with_key("done", move |state: &ProgressState, w: &mut dyn std::fmt::Write| {
            let _ = w.write_str(&show(state.pos()));
        })
        .with_key("all", move |state: &ProgressState, w: &mut dyn std::fmt::Write| {
            let _ = w.write_str(&show(state.len().unwrap_or(0)));
        })
        .with_key("speed", move |state: &ProgressState, w: &mut dyn std::fmt::Write| {
            let _ = w.write_str(&show_rate(state.per_sec()));
        })
        .with_key("left", |state: &ProgressState, w: &mut dyn std::fmt::Write| {
            let eta = state.eta();
            let _ = if eta.is_zero() { w.write_char('?') } else { w.write_str(&units::duration(round(eta))) };
        })
}

/// Whole seconds: nobody reads the ETA of a drain in milliseconds.
fn round(eta: Duration) -> Duration {
    Duration::from_secs(eta.as_secs().max(1))
}
