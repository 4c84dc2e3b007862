//! wb-bench: measures this cache and its peers.

mod needs;
mod run;

use std::process::ExitCode;
use wb_cli::bench_args::BenchArgs;

fn main() -> ExitCode {
    wb_cli::main_with::<BenchArgs, _>(run::run)
}
