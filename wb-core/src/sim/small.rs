//! Exhaustive small worlds: a short workload, power cut after every single device event, and for each every subset of
//! the writes that were not durable then, up to a bound.

use super::executor::{BreakAt, Stop};
use super::life::{Life, live};
use super::medium::Medium;
use super::model::{Crash, Model};
use super::rng::SimRng;
use super::scenario::{System, World};
use super::volatile::Snapshot;
use super::workload::{Hardship, Plan};

/// What was tried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exhausted {
    /// Device events after which power was cut.
    pub cuts: u64,
    /// Images recovered.
    pub worlds: u64,
    /// Cuts with more undecided writes than could be enumerated; some of their images were drawn.
    pub sampled: u64,
}

/// The images to try for one cut: all, if there are at most `worlds_max`, else some.
fn choices(snapshots: &[Snapshot; 2], worlds_max: u64, rng: &mut SimRng) -> (Vec<u128>, bool) {
    let units = snapshots.iter().map(Snapshot::units).sum::<usize>().min(127) as u32;
    let all = 1u128 << units;
    if all <= u128::from(worlds_max) {
        return ((0..all).collect(), false);
    }
    // None, all, each alone missing, each alone surviving, and random ones.
    let mut chosen = vec![0, all - 1];
    chosen.extend((0..units).flat_map(|unit| [1u128 << unit, all - 1 - (1u128 << unit)]));
    let random = |rng: &mut SimRng| (u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64())) & (all - 1);
    rng.shuffle(&mut chosen);
    chosen.truncate(worlds_max as usize / 2);
    chosen.extend((chosen.len() as u64..worlds_max).map(|_| random(rng)));
    (chosen, true)
}

/// Recovers one image: reads everything, loses power again, reads everything again, drains, compares, stops.
fn recover<S: System>(system: &S, plan: &Plan, media: [Medium; 2], model: Model) -> Vec<String> {
    let mut world = World::new(system.clone(), plan);
    for (device, medium) in world.devices.iter().zip(media) {
        device.restore(medium);
    }
    *world.shared.model.borrow_mut() = model;
    world.sim.lose_memory(); // another boot than that of the run
    let mut idle = plan.clone();
    idle.clients = 0;
    world.plan = idle.into();
    for number in 0..2 {
        world.shared.model.borrow_mut().crash(Crash::PowerCut);
        let last = number == 1;
        let life = Life { number, read_all: true, drain: last, stop: last, last, ..Life::default() };
        let env = world.sim.group(&format!("recovery {number}"));
        let (system, plan) = (world.system.clone(), world.plan.clone());
        let task = live(system, env.clone(), world.devices.clone(), plan, world.shared.clone(), life);
        let started = world.sim.start(&env, task);
        if let Err(failure) = world.sim.run_until(|| started.is_done()) {
            world.shared.fail(failure.to_string());
        }
        if world.shared.failed() {
            break;
        }
        world.sim.kill(&env);
        world.devices.iter().for_each(super::SimDevice::power_cut);
        world.sim.lose_memory();
    }
    world.shared.failures.take()
}

/// Runs the workload of `plan` in one life and cuts power everywhere. `Err` tells the first failure.
pub fn exhaust<S: System>(system: &S, plan: &Plan, worlds_max: u64) -> Result<Exhausted, String> {
    let plan = &Plan { lives: 1, hardship: Hardship::None, ..plan.clone() };
    let mut world = World::new(system.clone(), plan);
    let faults = [&plan.cache_faults, &plan.backing_faults];
    world.format();
    for (device, faults) in world.devices.iter().zip(faults) {
        device.set_plan(super::FaultPlan {
            atomic: faults.atomic,
            latency: faults.latency.clone(),
            ..super::FaultPlan::default()
        });
    }
    world.shared.requests_left.set(plan.requests);
    let life = Life { drain: true, stop: true, ..Life::default() };
    let env = world.sim.group("life");
    let task = live(system.clone(), env.clone(), world.devices.clone(), world.plan.clone(), world.shared.clone(), life);
    let started = world.sim.start(&env, task);
    let mut rng = SimRng::derive(plan.seed, "small world");
    let mut done = Exhausted::default();
    loop {
        let (_, events, _) = world.sim.progress();
        world.sim.set_break(Some(BreakAt::DeviceEvent(events + 1)));
        let stop = world.sim.run_until(|| started.is_done()).map_err(|failure| failure.to_string())?;
        let told = world.shared.failures.borrow().first().cloned();
        if let Some(failure) = told {
            return Err(failure);
        }
        let snapshots = [0, 1].map(|device: usize| world.devices[device].snapshot());
        let (chosen, sampled) = choices(&snapshots, worlds_max, &mut rng);
        done.cuts += 1;
        done.sampled += u64::from(sampled);
        for choice in chosen {
            let first = snapshots[0].units();
            let media = [
                snapshots[0].materialise(|unit| choice >> unit.min(127) & 1 == 1),
                snapshots[1].materialise(|unit| choice >> (first + unit).min(127) & 1 == 1),
            ];
            done.worlds += 1;
            let failures = recover(system, plan, media, world.shared.model.borrow().clone());
            if let Some(failure) = failures.first() {
                return Err(format!("seed {}, device event {events}, subset {choice:#x}: {failure}", plan.seed));
            }
        }
        if stop == Stop::Done {
            return Ok(done);
        }
    }
}

/// A short workload on a tiny device.
pub fn tiny_plan(seed: u64) -> Plan {
    let mut plan = Plan::draw_plain(seed);
    plan.volume_bytes = 128 << 10;
    plan.sector_bytes = 512;
    plan.segment_bytes = 64 << 10;
    plan.segments = 8;
    plan.hot = 0..64;
    plan.clients = 1 + seed % 2;
    plan.requests = 6;
    plan.request_bytes_max = 16 << 10;
    plan.think_ns = 0;
    for faults in [&mut plan.cache_faults, &mut plan.backing_faults] {
        faults.atomic = super::AtomicUnit::Block;
        faults.latency = super::Latency::default();
    }
    plan
}
