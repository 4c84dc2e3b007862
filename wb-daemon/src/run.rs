//! What wb-daemon does. Its work is not merged yet: until then it says so and touches nothing.

use wb_cli::Context;
use wb_cli::daemon_args::DaemonPlan;
use wb_cli::exit::Exit;

/// Does what was asked for.
pub fn run(_plan: DaemonPlan, _ctx: &mut Context) -> anyhow::Result<Exit> {
    anyhow::bail!("this build of wb-daemon cannot do its work yet")
}
