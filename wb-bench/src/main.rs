//! wb-bench: measures this cache and its peers.

use std::process::ExitCode;
use wb_cli::bench_args::BenchArgs;

fn main() -> ExitCode {
    wb_cli::main_with::<BenchArgs, _>(wb_bench::run::run)
}
