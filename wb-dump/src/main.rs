//! wb-dump: shows what a cache holds.

mod run;

use std::process::ExitCode;
use wb_cli::dump_args::DumpArgs;

fn main() -> ExitCode {
    wb_cli::main_with::<DumpArgs, _>(run::run)
}
