//! `wb-bench --compare`: this cache and its peers, side by side: the same devices, the same load, each in its proper
//! set-up, and everything that was done written down.
//!
//! ```text
//! workload   what is run, and the question that it answers
//! systems    how each cache is set up, checked and taken apart
//! session    measures one system: the same code in the guest and on this host
//! link       what the measuring side and the watching side say to each other
//! guest      boots guests with modelled devices; host: real devices here
//! dilation   by how much modelled devices are slowed down
//! memory     memory per cached GiB, from two sizes
//! result     the recorded result, from which tables and report are made
//! ```

mod agent;
mod apps;
mod collect;
mod dilation;
mod diskstats;
mod fio;
mod guest;
mod host;
mod link;
mod memory;
mod report;
pub mod result;
mod session;
mod shell;
mod stop;
mod systems;
mod workload;

use crate::needs;
use anyhow::{Context as _, anyhow};
use collect::Collector;
use guest::Guests;
use host::Host;
use link::Job;
use result::{Comparison, FORMAT, Setup};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use stop::{Stop, Stopped};
use systems::{OURS, OURS_OLD, Transport};
use wb_cli::bench_args::{ComparePlan, Peer, Place, ReportPlan};
use wb_cli::exit::Exit;
use wb_cli::{Context, NextStep, UsageError};
use workload::{Preparation, Scale, Sizes, Workload};

pub use agent::run as run_agent;

/// Limit of the quick set.
const QUICK_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Where it runs.
enum Somewhere {
    Guests(Box<Guests>),
    Host(Host),
}

/// Compares.
pub fn run(plan: &ComparePlan, ctx: &mut Context) -> anyhow::Result<Exit> {
    let missing = needs::missing(&needs::of(plan));
    if !missing.is_empty() {
        let names: Vec<String> = missing.iter().map(|need| need.to_string()).collect();
        let step = match plan.place {
            Place::Guest => "install what is missing (make setup), then try again",
            Place::Host { .. } => "install what is missing, or run it in a guest: leave the devices out",
        };
        return Err(anyhow!("cannot compare: this host lacks {}", names.join(", "))).next_step(step);
    }
    let tuning = &plan.tuning;
    let limit = tuning.limit.or((!plan.full).then_some(QUICK_LIMIT));
    let stop = Stop::new(limit)?;
    let systems = systems_of(plan);
    let (mut place, sizes) = match &plan.place {
        Place::Guest => {
            let guests = Guests::new(tuning.clone(), &systems)?;
            (Somewhere::Guests(Box::new(guests)), Sizes { ssd: tuning.ssd_bytes, disk: tuning.disk_bytes })
        }
        Place::Host { cache_device, backing_device, yes } => {
            let host = Host::new(cache_device, backing_device, *yes)?;
            let sizes = host.sizes()?;
            (Somewhere::Host(host), sizes)
        }
    };
    let scale = if plan.full { Scale::Full } else { Scale::Quick };
    let mut workloads = workload::list(scale, sizes);
    if matches!(plan.place, Place::Host { .. }) {
        // Only a guest can have its power cut, and SSDs of two sizes.
        workloads.retain(|w| !matches!(w.kind, workload::Kind::Recovery(_) | workload::Kind::Memory(_)));
    }
    let workloads = choose(workloads, &tuning.only)?;
    let rounds = tuning.rounds.unwrap_or(if plan.full { 3 } else { 2 });
    let jobs = jobs(&systems, &workloads, rounds, sizes, tuning.reverse, tuning.transport.into());
    let expected = jobs.iter().map(|job| job.workloads.len()).sum();
    let mut collector = Collector::new(empty(plan, &place, &workloads)?, expected);
    let began = Instant::now();
    let settled = match &mut place {
        Somewhere::Guests(guests) => guests.settle(&mut collector, &stop),
        Somewhere::Host(_) => Ok(()),
    };
    let ended = settled.and_then(|()| {
        jobs.iter().try_for_each(|job| {
            stop.check()?;
            match &place {
                Somewhere::Guests(guests) => guests.measure(job, &mut collector, &stop),
                Somewhere::Host(host) => host.measure(job, &mut collector, &stop),
            }
        })
    });
    let measured = collector.result.cells.len();
    memory::merge(&mut collector.result);
    let mut result = collector.result;
    result.elapsed_s = began.elapsed().as_secs_f64();
    result.complete = ended.is_ok();
    // The order of the tables, whatever the order of measuring was.
    result.systems.sort_by_key(|system| systems.iter().position(|name| *name == system.name));
    finish(plan, &result, ctx)?;
    match ended {
        Ok(()) => Ok(Exit::Done),
        Err(why) if why.downcast_ref::<Stopped>() == Some(&Stopped::Limit) => {
            let missing = format!("{} of {expected} measurements are missing", expected - measured);
            Err(why.context(missing)).next_step("raise it with --limit, or run less with --only and --rounds")
        }
        Err(why) => Err(why),
    }
}

/// Shows a recorded result.
pub fn report(plan: &ReportPlan, ctx: &mut Context) -> anyhow::Result<Exit> {
    let result = Comparison::load(&plan.result)?;
    if let Some(path) = &plan.html {
        report::write_html(path, &result)?;
    }
    if let Some(path) = &plan.picture {
        report::write_picture(path, &result)?;
    }
    if let Some(path) = &plan.against {
        report::print_against(&result, &Comparison::load(path)?, plan.markdown, &mut ctx.out)?;
    } else if ctx.json {
        ctx.out.json(&result)?;
    } else {
        report::print(&result, plan.markdown, &mut ctx.out)?;
    }
    Ok(Exit::Done)
}

fn finish(plan: &ComparePlan, result: &Comparison, ctx: &mut Context) -> anyhow::Result<()> {
    if result.cells.is_empty() {
        return Ok(());
    }
    if let Some(path) = &plan.tuning.save {
        let mut text = serde_json::to_string(result)?;
        text.push('\n');
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &plan.html {
        report::write_html(path, result)?;
    }
    if ctx.json {
        return ctx.out.json(result);
    }
    report::print(result, false, &mut ctx.out)
}

/// Ourselves, the peers, and the bare devices, which are the bounds of every run.
fn systems_of(plan: &ComparePlan) -> Vec<&'static str> {
    let raw = |peer: &Peer| matches!(peer, Peer::RawSsd | Peer::RawDisk);
    let peers = plan.peers.iter().filter(|peer| !raw(peer)).map(|peer| systems::name_of(*peer));
    let mut systems: Vec<&str> = [OURS].into_iter().chain(peers).collect();
    if plan.place == Place::Guest && plan.peers.contains(&Peer::DmWriteboost) {
        // It has a kernel of its own there; so it gets a partner on the same one.
        systems.push(OURS_OLD);
    }
    systems.extend(["raw-ssd", "raw-disk"]);
    systems
}

/// The workloads named, and before each what it continues.
fn choose(list: Vec<Workload>, only: &[String]) -> anyhow::Result<Vec<Workload>> {
    if let Some(unknown) = only.iter().find(|name| !list.iter().any(|w| w.name == **name)) {
        let names: Vec<&str> = list.iter().map(|w| w.name.as_str()).collect();
        return Err(UsageError::raise(format!("--only {unknown}: there is no such workload in this set")))
            .next_step(format!("use some of {}", names.join(", ")));
    }
    if only.is_empty() {
        return Ok(list);
    }
    let mut wanted: Vec<String> = only.to_vec();
    // From the last to the first, since each continues one before it.
    for workload in list.iter().rev() {
        if let Preparation::Continue(before) = &workload.preparation
            && wanted.contains(&workload.name)
        {
            wanted.push(before.clone());
        }
    }
    Ok(list.into_iter().filter(|w| wanted.contains(&w.name)).collect())
}

/// One job per system and round. The order turns, and every other round runs backwards, so that no system always follows
/// the same one.
fn jobs(
    systems: &[&str],
    workloads: &[Workload],
    rounds: u32,
    sizes: Sizes,
    reverse: bool,
    transport: Transport,
) -> Vec<Job> {
    let mut jobs = Vec::new();
    for round in 0..rounds {
        let mut order = systems.to_vec();
        order.rotate_left(round as usize % systems.len());
        if (round % 2 == 1) != reverse {
            order.reverse();
        }
        for system in order {
            let of_round = |w: &&Workload| {
                // What only the first round measures, later ones leave out, and what continues it with it.
                w.repeated || round == 0
            };
            let on = |w: &&Workload| w.on_raw || !systems::is_raw(system);
            let mine = workloads.iter().filter(of_round).filter(on).cloned();
            let (memory, rest): (Vec<_>, Vec<_>) = mine.partition(|w| matches!(w.kind, workload::Kind::Memory(_)));
            let job = |workloads, sizes| Job {
                system: system.to_string(),
                transport: systems::transport_of(system, transport),
                workloads,
                round,
                sizes,
                recover: false,
            };
            jobs.push(job(rest, sizes));
            if let [memory] = &memory[..] {
                jobs.extend(memory::SSD_BYTES.map(|ssd| job(vec![memory::sized(memory, ssd)], Sizes { ssd, ..sizes })));
            }
        }
    }
    jobs.retain(|job| !job.workloads.is_empty());
    jobs
}

fn empty(plan: &ComparePlan, place: &Somewhere, workloads: &[Workload]) -> anyhow::Result<Comparison> {
    let limit = Duration::from_secs(20);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let mut facts = vec![
        ("processor".to_string(), format!("{processors} x {}", model.trim_start_matches([' ', '\t', ':']))),
        ("kernel of the host".to_string(), shell::read("/proc/sys/kernel/osrelease")?),
        ("fio".to_string(), shell::run("fio", &["--version"], limit)?.trim().to_string()),
    ];
    let mut setup = Setup { place: "host".into(), dilation: 1.0, ..Setup::default() };
    match place {
        Somewhere::Guests(guests) => {
            facts.extend(guests.facts());
            setup.place = "guest".into();
            setup.ssd_model = parameters(&plan.tuning.ssd_model)?;
            setup.disk_model = parameters(&plan.tuning.disk_model)?;
        }
        Somewhere::Host(host) => facts.extend(host.facts()),
    }
    setup.facts = facts.into_iter().collect();
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    Ok(Comparison {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_string(),
        command: shell::command_line("wb-bench", &words),
        started_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        elapsed_s: 0.0,
        complete: false,
        setup,
        systems: Vec::new(),
        workloads: workloads.iter().map(Workload::info).collect(),
        cells: Vec::new(),
    })
}

/// A model's parameters as they are printed: a name and a value each.
fn parameters(name: &str) -> anyhow::Result<serde_json::Value> {
    let parameters = crate::model_disk::parameters(name)?;
    Ok(serde_json::json!({ "name": name, "parameters": format!("{parameters:#?}") }))
}

#[cfg(test)]
mod tests;
