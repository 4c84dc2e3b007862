//! What wb-format does. Its work is not merged yet: until then it says so and touches nothing.

use wb_cli::Context;
use wb_cli::exit::Exit;
use wb_cli::format_args::FormatPlan;

/// Does what was asked for.
pub fn run(_plan: FormatPlan, _ctx: &mut Context) -> anyhow::Result<Exit> {
    anyhow::bail!("this build of wb-format cannot do its work yet")
}
