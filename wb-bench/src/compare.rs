//! `wb-bench --compare`. This version says what a comparison needs, what of it this host lacks, and touches no device.

use crate::needs;
use anyhow::anyhow;
use wb_cli::NextStep;
use wb_cli::bench_args::ComparePlan;
use wb_cli::exit::Exit;

/// Says what is missing.
pub fn run(plan: &ComparePlan) -> anyhow::Result<Exit> {
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
