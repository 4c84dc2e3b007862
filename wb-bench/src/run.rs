//! What wb-bench does. This version measures nothing itself: it says what a comparison needs, what of it this host
//! lacks, and how to measure meanwhile. It touches no device.

use crate::needs;
use anyhow::anyhow;
use wb_cli::bench_args::{BenchPlan, ComparePlan, RunPlan, Target};
use wb_cli::exit::Exit;
use wb_cli::{Context, NextStep};

/// Does what was asked for.
pub fn run(plan: BenchPlan, _ctx: &mut Context) -> anyhow::Result<Exit> {
    match plan {
        BenchPlan::Run(plan) => measure(&plan),
        BenchPlan::Compare(plan) => compare(&plan),
    }
}

fn measure(plan: &RunPlan) -> anyhow::Result<Exit> {
    let (target, step) = match &plan.target {
        Target::Nbd { uri } => (uri.clone(), format!("measure with `fio --ioengine=nbd --uri='{uri}' ...`")),
        Target::Device { path } => (path.display().to_string(), "measure with fio".into()),
        Target::Engine { cache, .. } => {
            let step = "serve it with `wb-daemon run` and measure with `fio --ioengine=nbd --uri=...`";
            (cache.display().to_string(), step.into())
        }
    };
    Err(anyhow!("cannot measure {target}: this version of wb-bench makes no load of its own yet")).next_step(step)
}

fn compare(plan: &ComparePlan) -> anyhow::Result<Exit> {
    let missing = needs::missing(&needs::of(plan));
    let here = if missing.is_empty() {
        "everything it will need is here".to_string()
    } else {
        let missing: Vec<String> = missing.iter().map(|need| need.to_string()).collect();
        format!("of what it will need, this host lacks {}", missing.join(", "))
    };
    Err(anyhow!("cannot compare: this version of wb-bench runs no comparison yet; {here}"))
        .next_step("measure each cache with fio on the same devices meanwhile")
}
