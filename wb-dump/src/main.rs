//! wb-dump: shows what a cache holds.

use std::process::ExitCode;
use wb_cli::dump_args::DumpArgs;

fn main() -> ExitCode {
    wb_cli::main_with::<DumpArgs, _>(wb_dump::run::run)
}
