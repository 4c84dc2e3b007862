//! Runs a plan against a system under test: formats, starts, lets clients work, crashes at any step, starts again, and
//! asks the oracle about everything that is read. What a life does is in [`super::life`]; here is when it begins and ends.

use super::disk::{DeviceConfig, SimDevice};
use super::env::SimEnv;
use super::executor::{BreakAt, Sim, Stop};
use super::fault::FaultPlan;
use super::handle::SimDisk;
use super::life::{Life, live};
use super::medium::Medium;
use super::model::{Crash, Initial, Model, Violation};
use super::offline::{Inspection, Recovered, Tool, ToolReport};
use super::rng::SimRng;
use super::workload::{Hardship, Plan};
use crate::env::Env;
use crate::service::BlockService;
use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;

/// What is tested: something that makes a volume out of a cache device and a backing device.
pub trait System: Clone + 'static {
    /// A running instance.
    type Running: Running;
    /// Bytes of a cache device with the segments of `plan`.
    fn cache_bytes(&self, plan: &Plan) -> u64;
    /// Survivors of a power cut are a prefix of the log (else: what a plain disk promises).
    fn keeps_prefix(&self) -> bool;
    /// The death of the process alone loses nothing acknowledged (else: what a power cut may take).
    fn survives_kill(&self) -> bool;
    /// Writes an empty cache.
    fn format(self, cache: SimDisk, plan: Plan) -> impl Future<Output = Result<(), String>> + 'static;
    /// Starts in the process group of `env`, after whatever happened.
    fn start(
        self,
        env: SimEnv,
        cache: SimDisk,
        backing: SimDisk,
        plan: Plan,
    ) -> impl Future<Output = Result<Self::Running, String>> + 'static;
    /// Looks at the devices while nothing runs, after a crash and before the next start: an offline checker.
    fn inspect(self, cache: SimDisk, plan: Plan) -> impl Future<Output = Result<Inspection, String>> + 'static;
    /// Runs an offline tool. What it names it puts into `report` as soon as it has said it.
    fn tool(
        self,
        tool: Tool,
        cache: SimDisk,
        backing: SimDisk,
        plan: Plan,
        report: Rc<RefCell<ToolReport>>,
    ) -> impl Future<Output = Result<(), String>> + 'static {
        let _ = (tool, cache, backing, plan, report);
        std::future::ready(Ok(()))
    }
    /// Areas of the cache device of which damage loses no more than its name: of what is kept in two copies, one.
    fn damageable(&self, plan: &Plan) -> Vec<Range<u64>> {
        let _ = plan;
        Vec::new()
    }
}

/// A running instance of a [`System`].
pub trait Running: Clone + 'static {
    /// The volume.
    type Service: BlockService;
    /// The volume.
    fn service(&self) -> Self::Service;
    /// Writes everything back.
    fn drain(&self) -> impl Future<Output = Result<(), String>>;
    /// Clean stop.
    fn stop(&self) -> impl Future<Output = Result<(), String>>;
    /// Clean stop that forgets the volume, after a drain.
    fn detach(&self) -> impl Future<Output = Result<(), String>> {
        self.stop()
    }
    /// What the start found, if the system can tell. Called at once when it is ready.
    fn recovered(&self) -> Option<Recovered> {
        None
    }
    /// Why a bound of memory or of a queue does not hold, if one does not. Called when a life ends by itself, after all
    /// requests were answered. `tasks_max` is the most tasks that the system had at once in this life.
    fn out_of_bounds(&self, tasks_max: usize) -> Option<String> {
        let _ = tasks_max;
        None
    }
}

/// What happened in a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What is wrong; empty if nothing is.
    pub failures: Vec<String>,
    /// Folds every event.
    pub digest: u64,
    /// Crashes: power cuts and kills.
    pub crashes: u64,
    /// Crashes before the system was ready.
    pub crashes_in_recovery: u64,
    /// Lives that ended without a power cut.
    pub kills: u64,
    /// Requests that were answered.
    pub requests: u64,
    /// Requests that failed because a device did.
    pub errors: u64,
    /// Lives that ended with a clean stop.
    pub stops: u64,
    /// Crashes of offline tools.
    pub crashes_in_tools: u64,
    /// Offline tools that came to their end.
    pub tools: u64,
    /// Times that places of the cache device were damaged at rest.
    pub damaged: u64,
    /// Faults that a device did not tell of.
    pub silent_faults: u64,
    /// Starts that were refused because of damage.
    pub refusals: u64,
    /// Losses that a tool or a failing read named.
    pub named: u64,
    /// Runs that ended because a repair refused.
    pub refused: u64,
    /// Most tasks of the system under test at once, in lives that ended by themselves.
    pub tasks_max: usize,
    /// Virtual time.
    pub virtual_ns: u64,
}

/// What clients and driver share.
pub(super) struct Shared {
    pub(super) model: RefCell<Model>,
    pub(super) failures: RefCell<Vec<String>>,
    pub(super) requests_left: Cell<u64>,
    pub(super) clients_running: Cell<u64>,
    pub(super) ready: Cell<bool>,
    pub(super) answered: Cell<u64>,
    pub(super) errors: Cell<u64>,
    /// The last start was refused because of damage.
    pub(super) refused: Cell<bool>,
    /// Losses named by reads that fail.
    pub(super) named: Cell<u64>,
    /// Most tasks of the system under test at once, in lives that ended by themselves.
    pub(super) tasks_max: Cell<usize>,
    /// What the offline checker expects of the next start.
    pub(super) expected: RefCell<Option<Inspection>>,
}

impl Shared {
    pub(super) fn fail(&self, what: String) {
        self.failures.borrow_mut().push(what);
    }

    pub(super) fn failed(&self) -> bool {
        !self.failures.borrow().is_empty()
    }

    pub(super) fn violations(&self, context: &str, found: Vec<Violation>) {
        for violation in found {
            self.fail(format!("{context}: {violation}"));
        }
    }
}

pub(super) struct World<S> {
    pub(super) system: S,
    pub(super) plan: Rc<Plan>,
    pub(super) sim: Sim,
    pub(super) rng: SimRng,
    /// What happens between lives draws from here, so that it leaves the rest of a run as it is.
    pub(super) offline_rng: SimRng,
    /// What the cache device held at an earlier time.
    pub(super) past: Medium,
    /// Blocks were put back to what they had been in an earlier life.
    pub(super) stale: bool,
    /// The last life ended without a power cut: what it kept in memory is there.
    pub(super) powered: bool,
    /// A repair refused: nothing more is to be seen.
    pub(super) given_up: bool,
    pub(super) devices: [SimDevice; 2],
    pub(super) shared: Rc<Shared>,
    pub(super) outcome: Outcome,
}

impl Outcome {
    /// Adds the counts of another run.
    pub fn add(&mut self, other: &Outcome) {
        self.crashes += other.crashes;
        self.crashes_in_recovery += other.crashes_in_recovery;
        self.crashes_in_tools += other.crashes_in_tools;
        self.kills += other.kills;
        self.requests += other.requests;
        self.errors += other.errors;
        self.stops += other.stops;
        self.tools += other.tools;
        self.damaged += other.damaged;
        self.silent_faults += other.silent_faults;
        self.refusals += other.refusals;
        self.named += other.named;
        self.refused += other.refused;
        self.tasks_max = self.tasks_max.max(other.tasks_max);
        self.virtual_ns += other.virtual_ns;
    }

    /// The counts in one line.
    pub fn line(&self) -> String {
        format!(
            "{} crashes ({} in recovery, {} in offline tools), {} ends without power cut, {} requests, {} failed by devices, {} clean stops, {} \
             offline tools, damaged {} times, {} silent faults, {} starts refused, {} losses named, {} repairs refused, \
             at most {} tasks",
            self.crashes,
            self.crashes_in_recovery,
            self.crashes_in_tools,
            self.kills,
            self.requests,
            self.errors,
            self.stops,
            self.tools,
            self.damaged,
            self.silent_faults,
            self.refusals,
            self.named,
            self.refused,
            self.tasks_max
        )
    }
}

impl<S: System> World<S> {
    pub(super) fn new(system: S, plan: &Plan) -> World<S> {
        let sim = Sim::new(plan.seed);
        let initial = if plan.filled { Initial::Stamps } else { Initial::Zeroes };
        let model = Model::new(plan.sectors(), plan.seed, initial);
        let mut content = Medium::default();
        if plan.filled {
            let mut image = vec![0; plan.volume_bytes as usize];
            model.fill_initial(0, &mut image);
            content.write(0, &image);
        }
        let cache = DeviceConfig::new("cache", system.cache_bytes(plan));
        let backing = DeviceConfig {
            sector_bytes: plan.sector_bytes,
            align_bytes: plan.sector_bytes,
            ..DeviceConfig::new("backing", plan.volume_bytes)
        };
        let devices = [
            SimDevice::new(&sim, cache, Medium::default(), FaultPlan::default()),
            SimDevice::new(&sim, backing, content, FaultPlan::default()),
        ];
        let shared = Shared {
            model: RefCell::new(model),
            failures: RefCell::default(),
            requests_left: Cell::new(0),
            clients_running: Cell::new(0),
            ready: Cell::new(false),
            answered: Cell::new(0),
            errors: Cell::new(0),
            refused: Cell::new(false),
            named: Cell::new(0),
            tasks_max: Cell::new(0),
            expected: RefCell::default(),
        };
        let rng = SimRng::derive(plan.seed, "scenario");
        let plan = Rc::new(plan.clone());
        World {
            system,
            offline_rng: SimRng::derive(plan.seed, "offline"),
            plan,
            sim,
            rng,
            past: Medium::default(),
            stale: false,
            powered: false,
            given_up: false,
            devices,
            shared: Rc::new(shared),
            outcome: Outcome::default(),
        }
    }

    pub(super) fn format(&mut self) {
        let env = self.sim.group("format");
        let format = self.system.clone().format(self.devices[0].open(&env), (*self.plan).clone());
        match self.sim.run(format) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.shared.fail(format!("format: {error}")),
            Err(failure) => self.shared.fail(format!("format: {failure}")),
        }
        self.sim.kill(&env);
    }

    /// A step somewhere ahead; near ones are as likely as far ones.
    fn draw_break(&mut self) -> BreakAt {
        let (polls, events, now_ns) = self.sim.progress();
        let ahead = |rng: &mut SimRng, bits: u64| {
            let bits = rng.range(1, bits);
            rng.below(1 << bits) + 1
        };
        match self.rng.below(3) {
            0 => BreakAt::Poll(polls + ahead(&mut self.rng, 13)),
            1 => BreakAt::DeviceEvent(events + ahead(&mut self.rng, 11)),
            _ => BreakAt::TimeNs(now_ns + ahead(&mut self.rng, 30)),
        }
    }

    /// A step not far ahead, for what takes few of them.
    pub(super) fn draw_break_near(&mut self) -> BreakAt {
        let (polls, events, _) = self.sim.progress();
        match self.offline_rng.below(2) {
            0 => BreakAt::Poll(polls + 1 + self.offline_rng.below(200)),
            _ => BreakAt::DeviceEvent(events + 1 + self.offline_rng.below(60)),
        }
    }

    fn draw_life(&mut self, number: u64) -> (Life, bool) {
        let last = number + 1 == self.plan.lives;
        let crash = !last && self.rng.below(100) < self.plan.crash_percent;
        let mut life = Life {
            number,
            read_all: last || self.rng.below(4) > 0,
            drain: last || self.rng.below(4) == 0,
            stop: last || self.rng.below(2) == 0,
            detach: self.plan.tools_percent > 0 && self.offline_rng.below(100) < self.plan.tools_percent,
            errors: self.plan.hardship.is_passing() && !last,
            losses: self.plan.hardship.loses_data(),
            last,
        };
        // What detaches has drained before.
        life.drain |= life.detach && life.stop;
        (life, crash)
    }

    fn set_faults(&mut self, life: Life) {
        let silent = life.losses && !life.last;
        for (device, faults) in self.devices.iter().zip([&self.plan.cache_faults, &self.plan.backing_faults]) {
            let mut faults = faults.clone();
            if !life.errors {
                (faults.read_error_ppm, faults.write_error_ppm, faults.flush_error_ppm) = (0, 0, 0);
            }
            if !silent {
                let FaultPlan { atomic, latency, discard, no_write_zeroes, .. } = faults;
                faults = FaultPlan {
                    atomic,
                    latency,
                    discard,
                    no_write_zeroes,
                    read_error_ppm: faults.read_error_ppm,
                    write_error_ppm: faults.write_error_ppm,
                    flush_error_ppm: faults.flush_error_ppm,
                    flush_error_drops: faults.flush_error_drops,
                    torn_unreadable_ppm: faults.torn_unreadable_ppm,
                    ..FaultPlan::default()
                };
            }
            device.set_plan(faults);
        }
    }

    /// Lets a device vanish, or run full, some time in this life. Such a life may wait for it for ever: it is to end by a
    /// crash after some seconds.
    fn trouble(&mut self, life: Life, env: &SimEnv) -> Option<BreakAt> {
        let device = self.devices[self.offline_rng.below(2) as usize].clone();
        let now_ns = self.sim.progress().2;
        let ahead = |rng: &mut SimRng, bits: u64| 1u64 << rng.range(10, bits);
        let mut ends_ns = ahead(&mut self.offline_rng, 36);
        match self.plan.hardship {
            Hardship::Vanish if life.errors => {
                let (leaves_ns, stays_ns) = (ahead(&mut self.offline_rng, 28), ahead(&mut self.offline_rng, 33));
                // A device that lost its cache and returned unnoticed would be one that lies.
                let loses_cache = self.offline_rng.below(3) == 0;
                let sleeper = env.clone();
                env.spawn(async move {
                    sleeper.sleep(leaves_ns).await;
                    device.vanish(loses_cache);
                    sleeper.sleep(stays_ns).await;
                    if !loses_cache {
                        device.come_back();
                    }
                });
            }
            Hardship::Full if life.errors => {
                // Not long: a disk that refuses a few blocks is tried again and again, without a pause.
                ends_ns = ahead(&mut self.offline_rng, 30);
                let pages = device.view().pages_used() + self.offline_rng.below(64) as usize;
                device.set_plan(FaultPlan { thin_pages_max: Some(pages), ..device.plan() });
            }
            _ => return None,
        }
        Some(BreakAt::TimeNs(now_ns + ends_ns))
    }

    fn life(&mut self, number: u64) {
        let (life, crash) = self.draw_life(number);
        self.set_faults(life);
        self.shared.requests_left.set(self.plan.requests);
        self.shared.ready.set(false);
        let env = self.sim.group(&format!("life {number}"));
        let in_recovery = self.rng.below(4) == 0;
        if crash && in_recovery {
            let at = self.draw_break();
            self.sim.set_break(Some(at));
        }
        let trouble = self.trouble(life, &env);
        if trouble.is_some() {
            self.sim.set_break(trouble);
        }
        let task =
            live(self.system.clone(), env.clone(), self.devices.clone(), self.plan.clone(), self.shared.clone(), life);
        let started = self.sim.start(&env, task);
        let shared = self.shared.clone();
        let over = || started.is_done() || shared.failed();
        let mut stop = self.sim.run_until(|| over() || shared.ready.get());
        if let Ok(Stop::Done) = stop {
            if crash && !in_recovery && trouble.is_none() {
                let at = self.draw_break();
                self.sim.set_break(Some(at));
            }
            stop = self.sim.run_until(over);
        }
        self.sim.set_break(None);
        match stop {
            Err(failure) => self.shared.fail(format!("life {number}: {failure}")),
            Ok(Stop::Break) => {
                self.outcome.crashes += 1;
                self.outcome.crashes_in_recovery += u64::from(!self.shared.ready.get());
            }
            Ok(Stop::Done) => self.outcome.stops += u64::from(life.stop),
        }
        self.end_life(&env);
        self.outcome.refusals += u64::from(self.shared.refused.get());
        if !self.shared.failed() {
            self.between_lives(number);
        }
    }

    fn end_life(&mut self, env: &SimEnv) {
        let power_cut = self.rng.below(100) < self.plan.power_cut_percent;
        if power_cut {
            self.sim.lose_memory();
        } else {
            self.sim.keep_memory();
        }
        self.sim.kill(env);
        self.outcome.kills += u64::from(!power_cut);
        for device in &self.devices {
            device.come_back();
            if power_cut {
                device.power_cut();
            } else {
                device.settle_killed();
            }
        }
        let crash = if power_cut || !self.system.survives_kill() { Crash::PowerCut } else { Crash::Kill };
        self.shared.model.borrow_mut().crash(crash);
        self.powered = !power_cut;
    }
}

/// Runs `plan`. The outcome depends on nothing else.
pub fn run<S: System>(system: &S, plan: &Plan) -> Outcome {
    run_traced(system, plan, false)
}

/// As [`run`]; prints every event to stderr if `trace`.
pub fn run_traced<S: System>(system: &S, plan: &Plan, trace: bool) -> Outcome {
    let mut world = World::new(system.clone(), plan);
    world.sim.set_trace(trace);
    world.format();
    let mut tries = 0;
    let mut number = 0;
    while number < plan.lives && !world.shared.failed() && !world.given_up {
        let refusals = world.outcome.refusals;
        world.life(number);
        // A last life that was refused is lived again, now that the cache has been repaired.
        if number + 1 == plan.lives && world.outcome.refusals > refusals && !world.shared.failed() {
            tries += 1;
            if tries < 3 {
                continue;
            }
            match plan.hardship.is_silent() {
                true => world.outcome.refused += 1,
                false => world.shared.fail("the last start is refused, whatever is repaired".into()),
            }
        }
        number += 1;
    }
    let World { sim, devices, shared, mut outcome, .. } = world;
    outcome.silent_faults = devices.iter().map(|device| device.counters().silent_faults).sum();
    outcome.named += shared.named.get();
    outcome.tasks_max = shared.tasks_max.get();
    outcome.failures = shared.failures.take();
    outcome.failures.truncate(4);
    outcome.requests = shared.answered.get();
    outcome.errors = shared.errors.get();
    outcome.digest = sim.digest();
    outcome.virtual_ns = sim.progress().2;
    outcome
}

/// A smaller plan that fails too, as far as simple cuts find one.
pub fn shrink<S: System>(system: &S, plan: &Plan) -> Plan {
    let cuts: [fn(&mut Plan); 15] = [
        |plan| plan.lives = (plan.lives - 1).max(1),
        |plan| plan.lives = (plan.lives - 1).max(1),
        |plan| plan.lives = (plan.lives - 1).max(1),
        |plan| plan.hardship = Hardship::None,
        |plan| plan.tools_percent = 0,
        |plan| plan.clients = 1,
        |plan| plan.requests = (plan.requests / 2).max(1),
        |plan| plan.requests = (plan.requests / 2).max(1),
        |plan| plan.requests = (plan.requests / 2).max(1),
        |plan| plan.mix.discard = 0,
        |plan| plan.mix.zeroes = 0,
        |plan| plan.mix.fua = 0,
        |plan| plan.mix.read = 0,
        |plan| plan.request_bytes_max = 4096,
        |plan| plan.think_ns = 0,
    ];
    let mut best = plan.clone();
    for cut in cuts {
        let mut smaller = best.clone();
        cut(&mut smaller);
        if !run_caught(system, &smaller).failures.is_empty() {
            best = smaller;
        }
    }
    best
}

/// As [`run`]; a panic of the system under test is a failure like others.
pub fn run_caught<S: System>(system: &S, plan: &Plan) -> Outcome {
    let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(system, plan)));
    attempt.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Outcome { failures: vec![format!("panic: {}", text.unwrap_or_default())], ..Outcome::default() }
    })
}

/// Runs one seed; on failure the story, with the seed first and last.
pub fn run_seed<S: System>(system: &S, seed: u64) -> Result<Outcome, String> {
    run_plan(system, &Plan::draw(seed))
}

/// Runs a plan; on failure the story, with the seed first and last.
pub fn run_plan<S: System>(system: &S, plan: &Plan) -> Result<Outcome, String> {
    let seed = plan.seed;
    let outcome = run_caught(system, plan);
    if outcome.failures.is_empty() {
        return Ok(outcome);
    }
    let smaller = shrink(system, plan);
    let outcome = Outcome { failures: [outcome.failures, run_caught(system, &smaller).failures].concat(), ..outcome };
    let mut story = format!("WB_SEED={seed} fails\n{plan:?}\nsmaller, and fails too: {smaller:?}\n");
    for failure in &outcome.failures {
        // A String takes every write.
        let _ = writeln!(story, "  {failure}");
    }
    let _ = write!(story, "replay: WB_SEED={seed}");
    Err(story)
}
