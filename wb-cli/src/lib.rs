//! What the Writeboost tools share: options, config file, exit codes, output, logs, JSON documents, control socket.
//!
//! A tool is three steps. clap parses what was typed (`FormatArgs`, ...); [`Tool::resolve`] turns it, with the config
//! file, into what it means (`FormatPlan`, ...); the tool's own `run` does it. [`main_with`] ties them together, so
//! that a `main.rs` holds one call:
//!
//! ```no_run
//! # use wb_cli::{Context, exit::Exit, format_args::{FormatArgs, FormatPlan}};
//! fn run(plan: FormatPlan, ctx: &mut Context) -> anyhow::Result<Exit> {
//!     // ... do it, write results with `writeln!(ctx.out, ...)?` or `ctx.out.json(&document)?`
//!     Ok(Exit::Done)
//! }
//! fn main() -> std::process::ExitCode {
//!     wb_cli::main_with::<FormatArgs, _>(run)
//! }
//! ```

pub mod bench_args;
pub mod bench_compare_args;
pub mod check_args;
pub mod common;
pub mod config;
mod config_error;
pub mod control;
pub mod daemon_args;
pub mod daemon_client;
pub mod dump_args;
pub mod error;
pub mod exit;
pub mod format_args;
mod harness;
pub mod json;
pub mod logging;
pub mod notify;
pub mod output;
pub mod paths;
pub mod progress;
pub mod units;

pub use common::CommonArgs;
pub use error::{NextStep, UsageError};
pub use harness::{Context, Tool, main_with};
pub use output::Out;
