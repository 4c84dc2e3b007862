//! What wb-check does. Its work is not merged yet: until then it says so and touches nothing.

use wb_cli::Context;
use wb_cli::check_args::CheckPlan;
use wb_cli::exit::CheckExit;

/// Does what was asked for.
pub fn run(_plan: CheckPlan, _ctx: &mut Context) -> anyhow::Result<CheckExit> {
    anyhow::bail!("this build of wb-check cannot do its work yet")
}
