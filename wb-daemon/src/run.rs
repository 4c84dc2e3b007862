//! What wb-daemon does: serve, or ask a running daemon.

use wb_cli::Context;
use wb_cli::daemon_args::DaemonPlan;
use wb_cli::exit::Exit;

/// Does what was asked for.
pub fn run(plan: DaemonPlan, ctx: &mut Context) -> anyhow::Result<Exit> {
    match plan {
        DaemonPlan::Client { control, requests } => wb_cli::daemon_client::run(&control, &requests, ctx),
        DaemonPlan::Run(plan) => wb_daemon::serve::run(*plan),
    }
}
