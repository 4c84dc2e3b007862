//! wb-daemon: serves volumes through a cache.

mod run;

use std::process::ExitCode;
use wb_cli::daemon_args::DaemonArgs;

fn main() -> ExitCode {
    wb_cli::main_with::<DaemonArgs, _>(run::run)
}
