//! wb-dump: shows what a cache holds.

mod cache;
mod records;
mod run;
mod text;
mod time;

use std::process::ExitCode;
use wb_cli::dump_args::DumpArgs;

fn main() -> ExitCode {
    wb_cli::main_with::<DumpArgs, _>(run::run)
}
