//! What wb-bench does: one workload on one target, the table of the project's own goals, or a comparison.

use crate::engine::{Measured, Setup, write_bytes_max};
use crate::files::{Opened, Scratch};
use crate::load::fio::{self, FioTarget};
use crate::load::nbd::Connection;
use crate::load::pattern::{Access, Zipf};
use crate::load::stats::{Pass, median, median_latency};
use crate::load::target::{Device, NbdServer};
use crate::load::{self, Load};
use crate::raw::{RawKind, RawPasses};
use crate::{compare, hotpath, model_disk, suite};
use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wb_cli::bench_args::{BenchPlan, LoadEngine, RunPlan, Target, Workload};
use wb_cli::exit::Exit;
use wb_cli::json::bench::{BenchResult, DeviceWork};
use wb_cli::output::{self, number, table};
use wb_cli::progress::{Progress, ProgressUnit};
use wb_cli::{Context, NextStep, UsageError, units};
use wb_core::rt::{Config, DeviceKind, Runtime};

/// Bytes of the file that raw passes use.
const RAW_BYTES_MAX: u64 = 1 << 30;

/// Does what was asked for.
pub fn run(plan: BenchPlan, ctx: &mut Context) -> anyhow::Result<Exit> {
    match plan {
        BenchPlan::Run(plan) => {
            let runtime = Runtime::new(Config::default()).context("cannot start the runtime")?;
            let result = runtime.block_on(measure(&plan, ctx.json))?;
            if ctx.json {
                ctx.out.json(&result)?
            } else {
                print(&result, ctx)?
            }
            Ok(Exit::Done)
        }
        BenchPlan::Suite(plan) => suite::run(&plan, ctx),
        BenchPlan::Hotpath(plan) => hotpath::run(&plan, ctx),
        BenchPlan::Compare(plan) => compare::run(&plan, ctx),
        BenchPlan::ModelDisk(plan) => model_disk::run(&plan, ctx),
        BenchPlan::Report(plan) => compare::report(&plan, ctx),
        BenchPlan::CompareAgent => compare::run_agent(),
    }
}

/// The passes of a run, in turn.
#[derive(Default)]
struct Measurement {
    passes: Vec<Pass>,
    /// From fio in place of `passes`.
    by_fio: Vec<fio::FioPass>,
    device: Vec<DeviceWork>,
    raw: RawPasses,
}

async fn measure(plan: &RunPlan, quiet: bool) -> anyhow::Result<BenchResult> {
    let rounds = u64::from(plan.repeat) + 1;
    let measurement = match &plan.target {
        Target::Engine { cache, backing } => {
            if plan.engine == LoadEngine::Fio {
                return Err(UsageError::raise("fio cannot load an engine in this process"))
                    .next_step("serve the cache with wb-daemon and measure it with --nbd-uri and --engine fio");
            }
            agree(plan, &[cache, backing])?;
            on_engine(plan, cache, backing, rounds, quiet).await?
        }
        Target::Nbd { uri } => on_nbd(plan, uri, rounds, quiet).await?,
        Target::Device { path } => {
            if writes(plan) {
                agree(plan, &[path])?;
            }
            on_device(plan, path, rounds, quiet).await?
        }
    };
    Ok(result(plan, measurement))
}

/// Asks before something is overwritten.
fn agree(plan: &RunPlan, lost: &[&PathBuf]) -> anyhow::Result<()> {
    let names: Vec<String> = lost.iter().map(|path| path.display().to_string()).collect();
    for path in lost {
        anyhow::ensure!(path.exists(), "{} does not exist", path.display());
    }
    let question = format!("All data on {} will be lost. Go on?", names.join(" and "));
    if plan.yes || output::confirm(&question, "add --yes to overwrite without being asked")? {
        return Ok(());
    }
    bail!("nothing was changed")
}

fn writes(plan: &RunPlan) -> bool {
    !matches!(plan.workload, Workload::Randread | Workload::Read)
}

fn read_percent(plan: &RunPlan) -> u8 {
    match plan.workload {
        Workload::Randread | Workload::Read => 100,
        Workload::Randwrite | Workload::Write | Workload::Sync => 0,
        Workload::Randrw => plan.read_percent,
        Workload::Zipf => plan.zipf_read_percent,
    }
}

/// The load of the pass proper.
fn load_of(plan: &RunPlan, working_set_bytes: u64, write_bytes_max: u64) -> anyhow::Result<Load> {
    let places = working_set_bytes / u64::from(plan.block_bytes);
    anyhow::ensure!(places > 0, "the working set of {working_set_bytes} bytes is smaller than one operation");
    let access = match plan.workload {
        Workload::Write | Workload::Read => Access::Sequential,
        Workload::Zipf => Access::Zipf(Zipf::new(places)),
        _ => Access::Random,
    };
    Ok(Load {
        access,
        block_bytes: plan.block_bytes,
        iodepth: plan.iodepth,
        jobs: plan.jobs,
        threads: plan.threads,
        read_percent: read_percent(plan),
        flush_every: plan.flush_every,
        working_set_bytes,
        runtime: plan.runtime,
        write_bytes_max,
        seed: 0,
    })
}

/// The load in round `round`; round 0 warms up.
fn in_round(load: &Load, plan: &RunPlan, round: u64) -> Load {
    let runtime = if round == 0 { plan.ramp_time } else { plan.runtime };
    Load { runtime, seed: round + 1, ..load.clone() }
}

/// How long a raw pass takes.
fn raw_runtime(plan: &RunPlan) -> Duration {
    (plan.runtime / 4).clamp(Duration::from_millis(300), Duration::from_secs(3))
}

fn progress(rounds: u64, quiet: bool) -> Progress {
    if quiet { Progress::hidden() } else { Progress::new("measuring", rounds, ProgressUnit::Items) }
}

async fn on_engine(
    plan: &RunPlan,
    cache: &Path,
    backing: &Path,
    rounds: u64,
    quiet: bool,
) -> anyhow::Result<Measurement> {
    let (cache, backing) = (Opened::open(cache)?, Opened::open(backing)?);
    cache.write_out(quiet).await?;
    backing.write_out(quiet).await?;
    // Raw passes on a file go to a file of their own beside it; a block device is formatted anew after each anyway.
    let scratch = match cache.kind {
        DeviceKind::Block => None,
        DeviceKind::File => {
            let path = PathBuf::from(format!("{}.raw", cache.path.display()));
            Some(Scratch::new(path, cache.size_bytes().min(RAW_BYTES_MAX))?)
        }
    };
    let own = scratch.as_ref().map(|scratch| Opened::open(scratch.path())).transpose()?;
    let raw = own.as_ref().unwrap_or(&cache);
    raw.write_out(quiet).await?;
    let device = Device::new(raw.disk.clone(), 0);
    let budget = write_bytes_max(&cache.disk);
    let reads = read_percent(plan) > 0;
    let most = if !reads {
        u64::MAX
    } else if writes(plan) {
        budget / 2
    } else {
        budget
    };
    let working_set = plan.size_bytes.unwrap_or(u64::MAX).min(backing.size_bytes()).min(most);
    let filled = if reads { working_set } else { 0 };
    let load = load_of(plan, working_set, budget - filled)?;
    let mut found = Measurement::default();
    let progress = progress(rounds, quiet);
    for round in 0..rounds {
        let mut raw_passes = RawPasses::default();
        let used = raw.size_bytes().min(RAW_BYTES_MAX);
        let target = if round == 0 { &mut raw_passes } else { &mut found.raw };
        target.measure(&device, &RawKind::ALL, used, raw_runtime(plan), round).await?;
        let setup = Setup { verify_reads: plan.verify_reads, threads: plan.threads };
        let measured = Measured::on_devices(&cache.disk, &backing.disk, setup).await?;
        if filled > 0 {
            measured.fill(filled).await?;
        }
        let before = measured.device();
        let pass = load::run(&measured.volume(), &in_round(&load, plan, round)).await?;
        let after = measured.device();
        measured.stop().await?;
        if round > 0 {
            found.passes.push(pass);
            found.device.push(DeviceWork {
                writes: after.writes - before.writes,
                bytes: after.bytes - before.bytes,
                flushes: after.flushes - before.flushes,
            });
        }
        progress.set(round + 1);
    }
    Ok(found)
}

async fn on_nbd(plan: &RunPlan, uri: &str, rounds: u64, quiet: bool) -> anyhow::Result<Measurement> {
    let size_bytes = Connection::open(uri).await.with_context(|| format!("cannot use {uri}"))?.size_bytes;
    let load = load_of(plan, plan.size_bytes.unwrap_or(u64::MAX).min(size_bytes), u64::MAX)?;
    let mut found = Measurement::default();
    let progress = progress(rounds, quiet);
    for round in 0..rounds {
        let load = in_round(&load, plan, round);
        if plan.engine == LoadEngine::Fio {
            let pass = fio::run(&FioTarget::Nbd(uri.into()), &load)?;
            found.by_fio.extend((round > 0).then_some(pass));
        } else {
            let pass = load::run(&NbdServer { uri: uri.into() }, &load).await?;
            found.passes.extend((round > 0).then_some(pass));
        }
        progress.set(round + 1);
    }
    Ok(found)
}

async fn on_device(plan: &RunPlan, path: &Path, rounds: u64, quiet: bool) -> anyhow::Result<Measurement> {
    let opened = if writes(plan) { Opened::open(path)? } else { Opened::open_read_only(path)? };
    if writes(plan) {
        opened.write_out(quiet).await?;
    } else if opened.kind == DeviceKind::File && !crate::files::is_written_out(path)? {
        return Err(anyhow::anyhow!("{} has holes: reading them measures no device", path.display()))
            .next_step("write the file out first, for example with wb-bench run write");
    }
    let size = plan.size_bytes.unwrap_or(u64::MAX).min(opened.size_bytes());
    anyhow::ensure!(size >= 1 << 20, "{} is too small to be measured: {size} bytes", path.display());
    let load = load_of(plan, size, u64::MAX)?;
    // Nothing is written where only reads were asked for.
    let kinds: &[RawKind] = if writes(plan) { &RawKind::ALL } else { &[RawKind::RandRead4k] };
    let mut found = Measurement::default();
    let progress = progress(rounds, quiet);
    for round in 0..rounds {
        let device = Device::new(opened.disk.clone(), 0);
        let mut raw_passes = RawPasses::default();
        let target = if round == 0 { &mut raw_passes } else { &mut found.raw };
        target.measure(&device, kinds, size, raw_runtime(plan), round).await?;
        let load = in_round(&load, plan, round);
        if plan.engine == LoadEngine::Fio {
            let pass = fio::run(&FioTarget::Device(path.display().to_string()), &load)?;
            found.by_fio.extend((round > 0).then_some(pass));
        } else {
            let pass = load::run(&device, &load).await?;
            found.passes.extend((round > 0).then_some(pass));
        }
        progress.set(round + 1);
    }
    Ok(found)
}

fn result(plan: &RunPlan, found: Measurement) -> BenchResult {
    let (name, options) = options(plan);
    let by_fio = !found.by_fio.is_empty();
    let of_fio = |field: fn(&fio::FioPass) -> f64| median(found.by_fio.iter().map(field));
    let rates: Vec<f64> = match by_fio {
        true => found.by_fio.iter().map(|pass| pass.bytes_per_s).collect(),
        false => found.passes.iter().map(Pass::bytes_per_s).collect(),
    };
    let mut ratios = BTreeMap::new();
    for kind in RawKind::ALL {
        let raw = found.raw.bytes_per_s(kind);
        if !raw.is_empty() {
            // Of each round by itself, so that both sides of a ratio saw the same weather.
            ratios.insert(kind.name().to_string(), median(rates.iter().zip(&raw).map(|(rate, raw)| rate / raw)));
        }
    }
    let mut device = None;
    if !found.device.is_empty() {
        let of = |field: fn(&DeviceWork) -> u64| found.device.iter().map(move |work| field(work) as f64);
        let per = |field: fn(&DeviceWork) -> u64, user: fn(&Pass) -> u64| {
            let pairs = of(field).zip(found.passes.iter().map(user)).filter(|(_, user)| *user > 0);
            let values: Vec<f64> = pairs.map(|(work, user)| work / user as f64).collect();
            (!values.is_empty()).then(|| median(values))
        };
        let work = [
            ("device_writes_per_user_write", per(|work| work.writes, |pass| pass.ops - pass.reads)),
            ("device_bytes_per_user_byte", per(|work| work.bytes, |pass| pass.written_bytes)),
            ("device_flushes_per_user_flush", per(|work| work.flushes, |pass| pass.flushes)),
        ];
        ratios.extend(work.into_iter().filter_map(|(name, value)| Some((name.to_string(), value?))));
        device = Some(DeviceWork {
            writes: median(of(|work| work.writes)) as u64,
            bytes: median(of(|work| work.bytes)) as u64,
            flushes: median(of(|work| work.flushes)) as u64,
        });
    }
    BenchResult {
        workload: name,
        target: match plan.target {
            Target::Engine { .. } => "engine",
            Target::Nbd { .. } => "nbd",
            Target::Device { .. } => "device",
        }
        .into(),
        options,
        iops: if by_fio { of_fio(|pass| pass.iops) } else { median(found.passes.iter().map(Pass::iops)) },
        bytes_per_s: median(rates),
        latency_us: match by_fio {
            true => wb_cli::json::bench::LatencyUs {
                p50: of_fio(|pass| pass.latency_us.p50),
                p99: of_fio(|pass| pass.latency_us.p99),
                p999: of_fio(|pass| pass.latency_us.p999),
                max: of_fio(|pass| pass.latency_us.max),
            },
            false => median_latency(found.passes.iter()),
        },
        cpu_us_per_op: match by_fio {
            true => None,
            false => Some(median(found.passes.iter().filter_map(Pass::cpu_us_per_op))),
        },
        device,
        raw: found.raw.results(),
        ratios,
        repetitions_iops: match by_fio {
            true => found.by_fio.iter().map(|pass| pass.iops).collect(),
            false => found.passes.iter().map(Pass::iops).collect(),
        },
    }
}

fn options(plan: &RunPlan) -> (String, BTreeMap<String, serde_json::Value>) {
    let name = format!("{:?}", plan.workload).to_lowercase();
    let mut options = BTreeMap::from([
        ("bs".to_string(), serde_json::json!(plan.block_bytes)),
        ("iodepth".into(), plan.iodepth.into()),
        ("numjobs".into(), plan.jobs.into()),
        ("threads".into(), plan.threads.into()),
        ("rwmixread".into(), read_percent(plan).into()),
        ("fsync".into(), plan.flush_every.unwrap_or(0).into()),
        ("size".into(), serde_json::json!(plan.size_bytes)),
        ("runtime_s".into(), plan.runtime.as_secs_f64().into()),
        ("ramp_time_s".into(), plan.ramp_time.as_secs_f64().into()),
        ("repeat".into(), plan.repeat.into()),
        ("verify_reads".into(), plan.verify_reads.into()),
        ("engine".into(), format!("{:?}", plan.engine).to_lowercase().into()),
    ]);
    let target = match &plan.target {
        Target::Engine { cache, backing } => {
            vec![("cache", cache.display().to_string()), ("backing", backing.display().to_string())]
        }
        Target::Nbd { uri } => vec![("nbd_uri", uri.clone())],
        Target::Device { path } => vec![("device", path.display().to_string())],
    };
    options.extend(target.into_iter().map(|(key, value)| (key.to_string(), value.into())));
    (name, options)
}

fn print(result: &BenchResult, ctx: &mut Context) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut rows = table(["", "IOPS", "rate", "p50 µs", "p99 µs", "p99.9 µs", "max µs", "ratio"]);
    let us = |value: f64| number(format!("{value:.1}"));
    let of = &result.latency_us;
    rows.add_row([
        comfy_table::Cell::new(format!("{} ({})", result.workload, result.target)),
        number(format!("{:.0}", result.iops)),
        number(units::rate(result.bytes_per_s)),
        us(of.p50),
        us(of.p99),
        us(of.p999),
        us(of.max),
        number(""),
    ]);
    for (name, raw) in &result.raw {
        let of = &raw.latency_us;
        rows.add_row([
            comfy_table::Cell::new(format!("raw {name}")),
            number(format!("{:.0}", raw.iops)),
            number(units::rate(raw.bytes_per_s)),
            us(of.p50),
            us(of.p99),
            us(of.p999),
            us(of.max),
            number(result.ratios.get(name).map_or(String::new(), |ratio| format!("{ratio:.2}"))),
        ]);
    }
    ctx.out.table(&rows)?;
    if let Some(cpu) = result.cpu_us_per_op {
        writeln!(ctx.out, "CPU per operation: {cpu:.2} µs, load included")?;
    }
    for (name, value) in result.ratios.iter().filter(|(name, _)| name.starts_with("device_")) {
        writeln!(ctx.out, "{}: {value:.4}", name.replace('_', " "))?;
    }
    writeln!(
        ctx.out,
        "medians of {} repetitions; ratios are of each repetition by itself",
        result.repetitions_iops.len()
    )?;
    Ok(())
}
