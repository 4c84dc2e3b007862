//! The table of goals: every row a ratio inside one run, both sides in turn, median of the repetitions.

mod memory;
mod nbd;
mod reads;
mod start;
mod threads;
mod writes;

use crate::files::{Opened, Scratch};
use crate::load::Load;
use crate::load::pattern::Access;
use crate::load::stats::median;
use crate::load::target::Device;
use anyhow::Context as _;
use std::cell::OnceCell;
use std::path::PathBuf;
use std::time::Duration;
use wb_cli::bench_args::SuitePlan;
use wb_cli::exit::Exit;
use wb_cli::json::bench::{SuiteResult, SuiteRow};
use wb_cli::output::{number, table};
use wb_cli::{Context, NextStep};
use wb_core::rt::{Config, Runtime};

/// Bytes of the file for raw passes, and of the working set of reads.
const RAW_BYTES: u64 = 1 << 30;

/// Where and how rows are measured.
struct Lab {
    plan: SuitePlan,
    quiet: bool,
    files: OnceCell<Files>,
    rows: Vec<SuiteRow>,
}

/// The files of a run, written out before the first pass, removed at the end.
struct Files {
    cache: Opened,
    backing: Opened,
    raw: Opened,
    scratch: [Scratch; 3],
}

impl Files {
    fn open(scratch: [Scratch; 3]) -> anyhow::Result<Files> {
        let [cache, backing, raw] = [0, 1, 2].map(|file: usize| Opened::open(scratch[file].path()));
        Ok(Files { cache: cache?, backing: backing?, raw: raw?, scratch })
    }

    /// The files without their claims, for another program.
    async fn close(self) -> [Scratch; 3] {
        let Files { cache, backing, raw, scratch } = self;
        drop((cache, backing, raw));
        // Tasks of an engine that was stopped may hold on for a moment.
        wb_core::rt::sleep(100_000_000).await;
        scratch
    }
}

impl Lab {
    fn wants(&self, rows: &[u8]) -> bool {
        rows.iter().any(|row| self.plan.rows.contains(row))
    }

    /// The files; made when the first row needs them.
    async fn files(&self) -> anyhow::Result<&Files> {
        if self.files.get().is_none() {
            let make = |name: &str, bytes: u64| Scratch::new(self.path(name), bytes);
            let size = self.plan.size_bytes;
            let scratch = [make("cache", size)?, make("backing", size)?, make("raw", RAW_BYTES.min(size / 2))?];
            let files = Files::open(scratch)?;
            for file in [&files.cache, &files.backing, &files.raw] {
                file.write_out(self.quiet).await?;
            }
            let _ = self.files.set(files);
        }
        Ok(self.files.get().expect("just made"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.plan.dir.join(format!("wb-bench-{}.{name}", std::process::id()))
    }

    /// wb-daemon, beside this program.
    fn daemon(&self) -> anyhow::Result<PathBuf> {
        let dir = match &self.plan.programs {
            Some(dir) => dir.clone(),
            None => {
                let own = std::env::current_exe().context("cannot find this program")?;
                own.parent().context("this program has no folder")?.to_path_buf()
            }
        };
        let path = dir.join("wb-daemon");
        if path.is_file() {
            return Ok(path);
        }
        Err(anyhow::anyhow!("{} is missing", path.display())).next_step("build it, or name its folder with --programs")
    }

    fn rounds(&self) -> u64 {
        u64::from(self.plan.repeat) + 1
    }

    /// A figure that must be at least the goal.
    fn at_least(&mut self, row: u8, measure: &str, target: f64, repetitions: Vec<f64>, of: String) {
        self.add(row, measure, (target, false), repetitions, of);
    }

    /// A figure that must not exceed the goal.
    fn at_most(&mut self, row: u8, measure: &str, target: f64, repetitions: Vec<f64>, of: String) {
        self.add(row, measure, (target, true), repetitions, of);
    }

    fn add(&mut self, row: u8, measure: &str, goal: (f64, bool), repetitions: Vec<f64>, of: String) {
        let (target, at_most) = goal;
        let value = median(repetitions.iter().copied());
        let reached = if at_most { value <= target } else { value >= target };
        if self.plan.rows.contains(&row) {
            self.rows.push(SuiteRow { row, measure: measure.into(), value, target, at_most, reached, repetitions, of });
        }
        if !self.quiet {
            eprintln!("row {row}: {measure}: {value:.4} (goal {target})");
        }
    }
}

/// A load of 4 KiB operations.
fn load_4k(iodepth: u32, jobs: u32, working_set_bytes: u64, runtime: Duration, seed: u64) -> Load {
    Load {
        access: Access::Random,
        block_bytes: 4096,
        iodepth,
        jobs,
        threads: 1,
        read_percent: 0,
        flush_every: None,
        working_set_bytes,
        runtime,
        write_bytes_max: u64::MAX,
        seed,
    }
}

/// `a[i] / b[i]`.
fn ratios(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a / b).collect()
}

fn mb_per_s(values: &[f64]) -> String {
    format!("{:.0} MB/s", median(values.iter().copied()) / 1e6)
}

fn raw_device(files: &Files) -> Device {
    Device::new(files.raw.disk.clone(), 0)
}

/// Measures the rows asked for.
pub fn run(plan: &SuitePlan, ctx: &mut Context) -> anyhow::Result<Exit> {
    let mut lab = Lab { plan: plan.clone(), quiet: ctx.json, files: OnceCell::new(), rows: Vec::new() };
    let runtime = Runtime::new(Config::default()).context("cannot start the runtime")?;
    runtime.block_on(async {
        if lab.wants(&[1, 2, 9, 10]) {
            writes::stream(&mut lab).await?;
        }
        if lab.wants(&[3, 4, 9, 10]) {
            writes::flushed(&mut lab).await?;
        }
        if lab.wants(&[5]) {
            reads::hits(&mut lab).await?;
        }
        if lab.wants(&[6, 7]) {
            nbd::against_null(&mut lab).await?;
        }
        if lab.wants(&[8]) {
            memory::index(&mut lab).await?;
        }
        lab.files.take();
        if lab.wants(&[11]) {
            start::full_cache(&mut lab).await?;
        }
        if lab.wants(&[12]) {
            threads::instructions(&mut lab)?;
        }
        if lab.wants(&[13]) {
            threads::two_against_one(&mut lab).await?;
        }
        anyhow::Ok(())
    })?;
    lab.rows.sort_by_key(|row| row.row);
    let result = SuiteResult { kernel: kernel(), processor: processor(), rows: lab.rows };
    if ctx.json {
        ctx.out.json(&result)?
    } else {
        print(&result, ctx)?
    }
    Ok(Exit::Done)
}

fn kernel() -> String {
    nix::sys::utsname::uname().map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned())
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("")
        .trim_start_matches(['\t', ':', ' ']);
    let cpus = std::thread::available_parallelism().map_or(0, |count| count.get());
    format!("{model}, {cpus} CPUs")
}

fn print(result: &SuiteResult, ctx: &mut Context) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut rows = table(["#", "measure", "goal", "found", "min .. max", "", "of"]);
    for row in &result.rows {
        let (low, high) = row.repetitions.iter().fold((f64::MAX, f64::MIN), |(l, h), &v| (l.min(v), h.max(v)));
        rows.add_row([
            number(row.row),
            comfy_table::Cell::new(&row.measure),
            number(format!("{} {}", if row.at_most { "≤" } else { "≥" }, short(row.target))),
            number(short(row.value)),
            number(format!("{} .. {}", short(low), short(high))),
            comfy_table::Cell::new(if row.reached { "reached" } else { "missed" }),
            comfy_table::Cell::new(&row.of),
        ]);
    }
    ctx.out.table(&rows)?;
    writeln!(ctx.out, "{}, Linux {}", result.processor, result.kernel)?;
    Ok(())
}

/// Three digits that mean something.
fn short(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        0.1.. => format!("{value:.3}"),
        _ => format!("{value:.5}"),
    }
}
