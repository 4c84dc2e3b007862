//! What wb-dump does. Its work is not merged yet: until then it says so and touches nothing.

use wb_cli::Context;
use wb_cli::dump_args::DumpPlan;
use wb_cli::exit::Exit;

/// Does what was asked for.
pub fn run(_plan: DumpPlan, _ctx: &mut Context) -> anyhow::Result<Exit> {
    anyhow::bail!("this build of wb-dump cannot do its work yet")
}
