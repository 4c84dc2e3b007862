//! wb-format: writes an empty cache.

mod run;
mod signature;
mod target;

use std::process::ExitCode;
use wb_cli::format_args::FormatArgs;

fn main() -> ExitCode {
    wb_cli::main_with::<FormatArgs, _>(run::run)
}
