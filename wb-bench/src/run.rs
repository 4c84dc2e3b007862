//! What wb-bench does. Its work is not merged yet: until then it says so and touches nothing.

use wb_cli::Context;
use wb_cli::bench_args::BenchPlan;
use wb_cli::exit::Exit;

/// Does what was asked for.
pub fn run(_plan: BenchPlan, _ctx: &mut Context) -> anyhow::Result<Exit> {
    anyhow::bail!("this build of wb-bench cannot do its work yet")
}
