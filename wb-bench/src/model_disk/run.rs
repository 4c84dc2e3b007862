//! `wb-bench model-disk`: serves until it is told to end, then says what was done to the device.

use super::server::{ModelServer, Spec};
use anyhow::Context as _;
use nix::sys::signal::Signal;
use std::io::Write as _;
use std::path::Path;
use wb_cli::Context;
use wb_cli::bench_args::ModelDiskPlan;
use wb_cli::exit::Exit;
use wb_core::rt::{Config, Runtime, Signals};
use wb_daemon::nbd::ListenAddress;

/// Serves. SIGUSR1 writes the counters to the file of `--stats`; SIGINT and SIGTERM do so, too, and end it.
pub fn run(plan: &ModelDiskPlan, ctx: &mut Context) -> anyhow::Result<Exit> {
    let watched = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1];
    let signals = Signals::new(&watched).context("cannot watch for signals")?;
    let server = ModelServer::start(&Spec {
        model: plan.model.clone(),
        size_bytes: plan.size_bytes,
        sector_bytes: plan.sector_bytes,
        dilation: plan.dilation,
        socket: plan.socket.clone(),
        image: plan.image.clone(),
    })?;
    let uri = ListenAddress::Unix(plan.socket.clone()).uri("");
    tracing::info!("ready: {} as {uri}", plan.model);
    if !ctx.json {
        writeln!(ctx.out, "{} serves {uri}, {}x slower than its original", plan.model, plan.dilation)?;
        ctx.out.flush()?;
    }
    let runtime = Runtime::new(Config::default()).context("cannot start the runtime")?;
    loop {
        let signal = runtime.block_on(signals.next()).context("cannot wait for signals")?;
        let counts = server.counts();
        if let Some(path) = &plan.stats {
            write_stats(path, &serde_json::to_string_pretty(&counts)?)?;
        }
        if signal != Signal::SIGUSR1 {
            ctx.out.json(&counts)?;
            return Ok(Exit::Done);
        }
    }
}

/// Whole or not at all, for those who read it meanwhile.
fn write_stats(path: &Path, text: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}
