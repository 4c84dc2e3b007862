//! Rows 1 to 4, 9 and 10: writes with and without flushes.

use super::{Lab, load_4k, mb_per_s, ratios, raw_device};
use crate::engine::{Measured, Setup, write_bytes_max};
use crate::load::stats::{Pass, median};
use crate::load::{self, Load};
use crate::raw::{RawKind, RawPasses};
use wb_cli::json::bench::DeviceWork;

const SETUP: Setup = Setup { verify_reads: true, threads: 1 };

/// One pass over a cache that is formatted before.
async fn engine_pass(lab: &Lab, load: &Load) -> anyhow::Result<(Pass, DeviceWork)> {
    let files = lab.files().await?;
    let measured = Measured::on_devices(&files.cache.disk, &files.backing.disk, SETUP).await?;
    let before = measured.device();
    let pass = load::run(&measured.volume(), load).await?;
    let after = measured.device();
    measured.stop().await?;
    let work = DeviceWork {
        writes: after.writes - before.writes,
        bytes: after.bytes - before.bytes,
        flushes: after.flushes - before.flushes,
    };
    Ok((pass, work))
}

/// Random writes at depth 128, as fast as they go.
pub async fn stream(lab: &mut Lab) -> anyhow::Result<()> {
    let files = lab.files().await?;
    let (budget, volume, runtime) = (write_bytes_max(&files.cache.disk), files.backing.size_bytes(), lab.plan.runtime);
    let raw = raw_device(files);
    let mut raw_passes = RawPasses::default();
    let (mut rates, mut bytes, mut writes) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..lab.rounds() {
        let mut warm_up = RawPasses::default();
        let into = if round == 0 { &mut warm_up } else { &mut raw_passes };
        let kinds = [RawKind::SeqWrite1m, RawKind::RandWrite4k];
        into.measure(&raw, &kinds, files.raw.size_bytes(), runtime.min(std::time::Duration::from_secs(1)), round)
            .await?;
        let load = Load { write_bytes_max: budget, ..load_4k(128, 1, volume, runtime, round) };
        let (pass, work) = engine_pass(lab, &load).await?;
        if round > 0 {
            rates.push(pass.bytes_per_s());
            bytes.push(work.bytes as f64 / pass.written_bytes as f64);
            writes.push(work.writes as f64 / pass.ops as f64);
        }
    }
    let (seq, rand) = (raw_passes.bytes_per_s(RawKind::SeqWrite1m), raw_passes.bytes_per_s(RawKind::RandWrite4k));
    let of = format!("{} / {}", mb_per_s(&rates), mb_per_s(&seq));
    lab.at_least(
        1,
        "engine 4 KiB random writes, depth 128 / raw sequential 1 MiB writes",
        0.90,
        ratios(&rates, &seq),
        of,
    );
    let of = format!("{} / {}", mb_per_s(&rates), mb_per_s(&rand));
    lab.at_least(2, "the same / raw 4 KiB random writes, depth 128", 5.0, ratios(&rates, &rand), of);
    lab.at_most(9, "cache-device bytes per user byte, stream", 1.02, bytes, String::new());
    lab.at_most(10, "device writes per 4 KiB write, stream", 1.0 / 200.0, writes, String::new());
    Ok(())
}

/// Write + flush, one client and sixteen.
pub async fn flushed(lab: &mut Lab) -> anyhow::Result<()> {
    let files = lab.files().await?;
    let (volume, runtime, raw) = (files.backing.size_bytes(), lab.plan.runtime, raw_device(files));
    let mut raw_passes = Vec::new();
    let (mut one, mut sixteen, mut bytes, mut flushes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..lab.rounds() {
        let raw_load = RawKind::WriteFlush4k.load(files.raw.size_bytes(), runtime, round);
        let by_raw = load::run(&raw, &raw_load).await?;
        let load = Load { flush_every: Some(1), ..load_4k(1, 1, volume, runtime, round) };
        let (alone, work) = engine_pass(lab, &load).await?;
        let load = Load { flush_every: Some(1), ..load_4k(1, 16, volume, runtime, round) };
        let (together, _) = engine_pass(lab, &load).await?;
        if round > 0 {
            raw_passes.push(by_raw.iops());
            one.push(alone.iops());
            sixteen.push(together.iops());
            bytes.push(work.bytes as f64 / alone.written_bytes as f64);
            flushes.push(work.flushes as f64 / alone.flushes as f64);
        }
    }
    let per_s = |values: &[f64]| format!("{:.0}/s", median(values.iter().copied()));
    let of = format!("{} / {}", per_s(&one), per_s(&raw_passes));
    lab.at_least(3, "engine 4 KiB write + flush, depth 1 / raw write + fdatasync", 0.95, ratios(&one, &raw_passes), of);
    let of = format!("{} / {}", per_s(&sixteen), per_s(&one));
    lab.at_least(4, "16 clients each write + flush / one", 7.0, ratios(&sixteen, &one), of);
    lab.at_most(9, "cache-device bytes per user byte, write + flush each", 2.05, bytes, String::new());
    lab.at_most(10, "device flushes per user flush", 1.0, flushes, String::new());
    Ok(())
}
