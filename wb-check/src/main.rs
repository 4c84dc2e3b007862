//! wb-check: checks, repairs and replays a cache.

mod backup;
mod report;
mod run;

use std::process::ExitCode;
use wb_cli::check_args::CheckArgs;

fn main() -> ExitCode {
    wb_cli::main_with::<CheckArgs, _>(run::run)
}
