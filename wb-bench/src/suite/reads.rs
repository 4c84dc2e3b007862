//! Row 5: reads that hit the cache device.

use super::{Lab, load_4k, mb_per_s, ratios, raw_device};
use crate::engine::{Measured, Setup, write_bytes_max};
use crate::load::{self, Load};
use crate::raw::RawKind;

/// Random reads at depth 32, checked and not.
pub async fn hits(lab: &mut Lab) -> anyhow::Result<()> {
    let files = lab.files().await?;
    let (runtime, raw) = (lab.plan.runtime, raw_device(files));
    let working_set = files.raw.size_bytes().min(write_bytes_max(&files.cache.disk));
    let (mut by_raw, mut checked, mut unchecked) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..lab.rounds() {
        for verify_reads in [true, false] {
            let measured =
                Measured::on_devices(&files.cache.disk, &files.backing.disk, Setup { verify_reads, threads: 1 })
                    .await?;
            measured.fill(working_set).await?;
            let raw_pass = load::run(&raw, &RawKind::RandRead4k.load(working_set, runtime, round)).await?;
            let load = Load { read_percent: 100, ..load_4k(32, 1, working_set, runtime, round) };
            let pass = load::run(&measured.volume(), &load).await?;
            measured.stop().await?;
            if round > 0 {
                by_raw.push(raw_pass.bytes_per_s());
                if verify_reads { &mut checked } else { &mut unchecked }.push(pass.bytes_per_s());
            }
        }
    }
    let raw_of = |first: usize| by_raw.iter().copied().skip(first).step_by(2).collect::<Vec<f64>>();
    for (what, passes, raw) in [("verify_reads", &checked, raw_of(0)), ("no verify_reads", &unchecked, raw_of(1))] {
        let measure = format!("engine 4 KiB read hits on the device, depth 32, {what} / raw");
        let of = format!("{} / {}", mb_per_s(passes), mb_per_s(&raw));
        lab.at_least(5, &measure, 0.90, ratios(passes, &raw), of);
    }
    Ok(())
}
