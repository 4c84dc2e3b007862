//! Logs: tracing to stderr.

use crate::error::{NextStep, UsageError};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// Starts logging to stderr. `$WB_LOG` (a tracing filter like `wb_core::log=trace,info`) has precedence over
/// `verbose`, the number of `-v`: warnings, then info, debug, trace. Lines carry no time where the journal adds its own
/// (`$JOURNAL_STREAM`) and colours only on a terminal.
pub fn init(verbose: u8) -> anyhow::Result<()> {
    let filter = match std::env::var("WB_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text)
            .map_err(|e| UsageError::raise(format!("WB_LOG={text:?}: {e}")))
            .next_step("use a level (error, warn, info, debug, trace) or a filter like wb_core=debug,info")?,
        _ => EnvFilter::new(level(verbose)),
    };
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let terminal = std::io::stderr().is_terminal();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal && std::env::var_os("NO_COLOR").is_none())
        .with_target(verbose >= 2)
        .with_timer(MaybeTime { shown: !journal })
        .finish();
    // A second call (several tools in one test process) keeps the first logger.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

/// The filter that `-v` given `verbose` times means.
fn level(verbose: u8) -> &'static str {
    match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    }
}

/// A timestamp that can be left out.
struct MaybeTime {
    shown: bool,
}

impl FormatTime for MaybeTime {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        if self.shown { SystemTime.format_time(w) } else { Ok(()) }
    }
}
