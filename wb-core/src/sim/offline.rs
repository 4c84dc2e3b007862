//! What happens to the devices between two lives: damage at rest, and offline tools that crash, too.

use super::Medium;
use super::executor::Stop;
use super::fault::FaultPlan;
use super::life::{Life, live, name_silent_losses};
use super::model::Crash;
use super::scenario::{System, World};
use super::workload::Hardship;
use std::ops::Range;

/// An offline tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// Repairs the cache device.
    Repair,
    /// Writes everything dirty to the backing device.
    Replay,
}

/// What an offline tool said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolReport {
    /// Sectors of 512 bytes whose newest content is lost.
    pub lost: Vec<Range<u64>>,
    /// Records are lost, so that any sector may be older than it was.
    pub records_lost: bool,
    /// Why the tool did nothing, if it refused.
    pub refused: Option<String>,
    /// It repaired what it could, and what is left are two histories that cannot be joined.
    pub unjoinable: bool,
}

/// What an offline checker says of a cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// What is worse than worth knowing, if anything is.
    pub problem: Option<String>,
    /// A start is expected to serve it.
    pub serves: bool,
    /// The newest record.
    pub head: u64,
    /// The last stop was clean.
    pub clean: bool,
    /// Blocks that the backing device does not have.
    pub dirty_blocks: u64,
    /// Blocks that are known to be lost.
    pub poisoned_blocks: u64,
}

/// What a start made of a cache: to be compared with [`Inspection`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// See [`Inspection::head`].
    pub head: u64,
    /// See [`Inspection::clean`].
    pub clean: bool,
    /// See [`Inspection::dirty_blocks`].
    pub dirty_blocks: u64,
    /// See [`Inspection::poisoned_blocks`].
    pub poisoned_blocks: u64,
}

impl<S: System> World<S> {
    /// Everything that happens between the end of a life and the next start.
    pub(super) fn between_lives(&mut self, number: u64) {
        name_silent_losses(&self.plan, &self.devices[0], &self.shared);
        let tools = self.offline_rng.below(100) < self.plan.tools_percent;
        let mut damaged = false;
        if self.plan.hardship == Hardship::Damage && number + 1 < self.plan.lives {
            self.lose_power();
            damaged = self.settle(number) && self.damage_at_rest();
        }
        self.inspect(number);
        if self.shared.failed() {
            return;
        }
        let refused = self.shared.refused.take();
        if refused || damaged && self.offline_rng.below(2) == 0 {
            self.use_tool(Tool::Repair);
        } else if tools && !self.plan.hardship.loses_data() {
            let tool = if self.offline_rng.below(3) == 0 { Tool::Repair } else { Tool::Replay };
            self.use_tool(tool);
        }
    }

    /// The machine loses power, too, if it has not yet: what a process left in memory is gone.
    fn lose_power(&mut self) {
        if !std::mem::replace(&mut self.powered, false) {
            return;
        }
        self.sim.lose_memory();
        self.devices.iter().for_each(super::SimDevice::power_cut);
        self.shared.model.borrow_mut().crash(Crash::PowerCut);
    }

    /// A start that ends as soon as the system is ready, so that everything there is has been said to be durable.
    fn settle(&mut self, number: u64) -> bool {
        let env = self.sim.group("settle");
        let life =
            Life { number, read_all: false, drain: false, stop: false, detach: false, last: false, ..Life::default() };
        let life = Life { losses: true, ..life };
        self.shared.ready.set(false);
        self.shared.expected.take();
        let plan = self.plan.clone();
        let task = live(self.system.clone(), env.clone(), self.devices.clone(), plan, self.shared.clone(), life);
        let started = self.sim.start(&env, task);
        let shared = self.shared.clone();
        if let Err(failure) = self.sim.run_until(|| started.is_done() || shared.ready.get()) {
            self.shared.fail(format!("settling after life {number}: {failure}"));
        }
        self.sim.lose_memory();
        self.sim.kill(&env);
        self.devices.iter().for_each(super::SimDevice::power_cut);
        self.shared.model.borrow_mut().crash(Crash::PowerCut);
        !self.shared.refused.get()
    }

    /// Damages one to three places of the cache device. What was there before is remembered, so that it can come back as
    /// stale data later.
    fn damage_at_rest(&mut self) -> bool {
        let areas = self.system.damageable(&self.plan);
        let device = self.devices[0].clone();
        let now = device.view();
        let past = std::mem::replace(&mut self.past, now.clone());
        if areas.is_empty() {
            return false;
        }
        for _ in 0..self.offline_rng.range(1, 3) {
            // Small areas hold metadata: each of them is as likely as the whole ring.
            let area = self.offline_rng.pick(&(0..areas.len()).collect::<Vec<_>>());
            let Range { start, end } = areas[area];
            let blocks = (end - start) / 4096;
            let at = start + self.offline_rng.below(blocks) * 4096;
            let len = (4096 << self.offline_rng.below(4)).min(end - at);
            self.damage_one(&device, &past, at, len as usize);
        }
        self.outcome.damaged += 1;
        true
    }

    fn damage_one(&mut self, device: &super::SimDevice, past: &Medium, at: u64, len: usize) {
        match self.offline_rng.below(5) {
            0 | 1 => device.flip_bit(at + self.offline_rng.below(4096), self.offline_rng.below(8) as u8),
            2 => {
                let sector = at + self.offline_rng.below(8) * 512;
                device.make_unreadable(sector..sector + 512);
            }
            3 => {
                // Writes that were acknowledged and never done.
                let mut old = vec![0; len];
                past.read(at, &mut old);
                self.stale |= old != device.peek(at, len);
                device.poke(at, &old);
            }
            _ => {
                // A write that was meant for another place.
                let size = device.config().size_bytes;
                let from = self.offline_rng.below((size - len as u64) / 512) * 512;
                let other = device.peek(from, len);
                device.poke(at, &other);
            }
        }
    }

    /// What the offline checker says; the next start is compared with it.
    fn inspect(&mut self, number: u64) {
        self.shared.expected.take();
        if self.shared.failed() {
            return;
        }
        self.quiet_devices();
        let disk = self.devices[0].open_read_only(&self.sim.env());
        match self.sim.run(self.system.clone().inspect(disk, (*self.plan).clone())) {
            Ok(Ok(found)) => {
                let may_be_wrong = self.plan.hardship.loses_data();
                if let Some(problem) = found.problem.as_ref().filter(|_| !may_be_wrong) {
                    self.shared.fail(format!("after life {number}, checker: {problem}"));
                }
                // A start after a kill finds more than what lies on the devices.
                if !self.powered {
                    *self.shared.expected.borrow_mut() = Some(found);
                }
            }
            Ok(Err(error)) => self.shared.fail(format!("after life {number}, checker: {error}")),
            Err(failure) => self.shared.fail(format!("after life {number}, checker: {failure}")),
        }
    }

    /// No new faults; what is damaged stays so.
    pub(super) fn quiet_devices(&mut self) {
        for device in &self.devices {
            let FaultPlan { atomic, latency, discard, no_write_zeroes, .. } = device.plan();
            device.set_plan(FaultPlan { atomic, latency, discard, no_write_zeroes, ..FaultPlan::default() });
        }
    }

    /// Runs a tool to its end, crashing up to three times on the way, and tells the oracle what it named.
    pub(super) fn use_tool(&mut self, tool: Tool) {
        self.lose_power();
        self.quiet_devices();
        self.shared.expected.take();
        let mut crashes = if self.offline_rng.below(2) == 0 { self.offline_rng.range(1, 3) } else { 0 };
        loop {
            let env = self.sim.group("tool");
            if crashes > 0 {
                crashes -= 1;
                let at = self.draw_break_near();
                self.sim.set_break(Some(at));
            }
            let (cache, backing) = (self.devices[0].open(&env), self.devices[1].open(&env));
            let report = std::rc::Rc::new(std::cell::RefCell::new(ToolReport::default()));
            let work = self.system.clone().tool(tool, cache, backing, (*self.plan).clone(), report.clone());
            let started = self.sim.start(&env, work);
            let stop = self.sim.run_until(|| started.is_done());
            self.sim.set_break(None);
            self.sim.kill(&env);
            // What a tool said before it crashed counts: people have read it.
            self.take_report(&report.borrow());
            match (stop, started.take()) {
                (Ok(Stop::Break), _) => {
                    self.outcome.crashes += 1;
                    self.outcome.crashes_in_tools += 1;
                    self.devices.iter().for_each(super::SimDevice::power_cut);
                    continue;
                }
                (Ok(_), Some(Ok(()))) => self.outcome.tools += 1,
                (Ok(_), Some(Err(error))) => self.shared.fail(format!("{tool:?}: {error}")),
                (Ok(_), None) => self.shared.fail(format!("{tool:?} has no result")),
                (Err(failure), _) => self.shared.fail(format!("{tool:?}: {failure}")),
            }
            break;
        }
        // What a tool has done is durable when it ends.
        self.devices.iter().for_each(super::SimDevice::power_cut);
    }

    fn take_report(&mut self, report: &ToolReport) {
        let mut model = self.shared.model.borrow_mut();
        for lost in &report.lost {
            let end = lost.end.min(model.sector_count());
            model.lose(lost.start.min(end)..end);
        }
        if report.records_lost {
            model.lose_all();
        }
        drop(model);
        self.outcome.named += report.lost.len() as u64;
        // What an earlier repair or start put in place of something may be undone by that alone.
        if report.unjoinable && self.plan.hardship == Hardship::Damage && !self.stale {
            self.shared
                .fail(format!("a repair cannot join the log, and nothing stale came back: {:?}", report.refused));
        }
        if report.refused.is_some() {
            self.outcome.refused += 1;
            self.given_up = true;
        }
    }
}
