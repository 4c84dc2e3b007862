//! Runs a plan against a system under test: formats, starts, lets clients work, crashes at any step, starts again,
//! and asks the oracle about everything that is read.

use super::disk::{DeviceConfig, SimDevice};
use super::env::SimEnv;
use super::executor::{BreakAt, Sim, Stop};
use super::fault::FaultPlan;
use super::handle::SimDisk;
use super::medium::Medium;
use super::model::{Crash, Initial, Model, Violation};
use super::offline::{Inspection, Recovered, Tool, ToolReport};
use super::rng::{SimRng, mix};
use super::workload::{Hardship, Plan, Request, RequestKind};
use crate::env::Env;
use crate::service::{BlockService, ServiceError};
use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;

/// Bytes of one read when everything is read.
const VERIFY_BYTES: u64 = 128 << 10;

/// So long the driver looks often whether the clients are done.
const WATCH_CLOSELY_NS: u64 = 5_000_000_000;

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

    fn violations(&self, context: &str, found: Vec<Violation>) {
        for violation in found {
            self.fail(format!("{context}: {violation}"));
        }
    }
}

/// One client or check within a life.
struct Client<V> {
    env: SimEnv,
    service: V,
    plan: Rc<Plan>,
    shared: Rc<Shared>,
    errors: bool,
    losses: bool,
}

impl<V: BlockService> Client<V> {
    async fn work(self, mut rng: SimRng) {
        while self.shared.requests_left.get() > 0 && !self.shared.failed() {
            self.shared.requests_left.set(self.shared.requests_left.get() - 1);
            let request = self.plan.request(&mut rng);
            self.perform(request).await;
            self.shared.answered.set(self.shared.answered.get() + 1);
            if self.plan.think_ns > 0 && rng.below(4) == 0 {
                self.env.sleep(rng.below(self.plan.think_ns)).await;
            }
        }
        self.shared.clients_running.set(self.shared.clients_running.get() - 1);
    }

    async fn perform(&self, request: Request) {
        let Request { kind, sectors } = request;
        let (offset, len) = (sectors.start * 512, (sectors.end - sectors.start) * 512);
        let model = &self.shared.model;
        let (op, result) = match kind {
            RequestKind::Read => return self.read(sectors.start, sectors.end, "read").await,
            RequestKind::Write | RequestKind::WriteFua => {
                let fua = kind == RequestKind::WriteFua;
                let op = model.borrow_mut().begin_write(sectors.clone(), fua);
                let mut payload = vec![0; len as usize];
                model.borrow().fill(op, sectors.start, &mut payload);
                (op, self.service.write(offset, payload.len(), &payload[..], fua).await)
            }
            RequestKind::Zeroes => {
                let op = model.borrow_mut().begin_zeroes(sectors, false);
                (op, self.service.write_zeroes(offset, len, false).await)
            }
            RequestKind::Discard => {
                let op = model.borrow_mut().begin_discard(sectors);
                (op, self.service.discard(offset, len, false).await)
            }
            RequestKind::Flush => {
                let op = model.borrow_mut().begin_flush();
                (op, self.service.flush().await)
            }
        };
        model.borrow_mut().end(op, result.is_ok());
        self.note_error(kind, offset, len, result);
    }

    fn note_error(&self, kind: RequestKind, offset: u64, len: u64, result: Result<(), ServiceError>) {
        let Err(error) = result else { return };
        self.shared.errors.set(self.shared.errors.get() + 1);
        if !((self.errors || self.losses) && error == ServiceError::Io) {
            self.shared.fail(format!("{kind:?} of {len} bytes at {offset} failed without a reason: {error}"));
        }
    }

    async fn read(&self, first: u64, end: u64, what: &str) {
        let (offset, len) = (first * 512, (end - first) * 512);
        let op = self.shared.model.borrow_mut().begin_read(first..end);
        match self.service.read(offset, len as usize).await {
            Ok(data) => {
                let found = self.shared.model.borrow_mut().end_read(op, &data);
                self.shared.violations(what, found);
            }
            Err(error) => {
                self.shared.model.borrow_mut().end(op, false);
                self.note_error(RequestKind::Read, offset, len, Err(error));
            }
        }
    }

    async fn read_all(&self, what: &str) {
        let sectors = self.plan.sectors();
        let mut at = 0;
        while at < sectors && !self.shared.failed() {
            let end = (at + VERIFY_BYTES / 512).min(sectors);
            let errors = self.shared.errors.get();
            self.read(at, end, what).await;
            if self.losses && self.shared.errors.get() > errors {
                self.name_losses(at..end, what).await;
            }
            at = end;
        }
    }

    /// Reads block by block what could not be read as a whole: each that fails is named by that as lost.
    async fn name_losses(&self, sectors: Range<u64>, what: &str) {
        let mut at = sectors.start;
        while at < sectors.end && !self.shared.failed() {
            let end = (at + 8).min(sectors.end);
            let errors = self.shared.errors.get();
            self.read(at, end, what).await;
            if self.shared.errors.get() > errors {
                self.shared.model.borrow_mut().lose(at..end);
                self.shared.named.set(self.shared.named.get() + 1);
            }
            at = end;
        }
    }
}

/// How a life is meant to go on when the system is ready.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Life {
    pub(super) number: u64,
    pub(super) read_all: bool,
    pub(super) drain: bool,
    pub(super) stop: bool,
    /// The stop forgets the volume.
    pub(super) detach: bool,
    /// Requests, starts and stops may fail for a while.
    pub(super) errors: bool,
    /// What fails may be lost for good.
    pub(super) losses: bool,
    pub(super) last: bool,
}

pub(super) async fn live<S: System>(
    system: S,
    env: SimEnv,
    devices: [SimDevice; 2],
    plan: Rc<Plan>,
    shared: Rc<Shared>,
    life: Life,
) {
    let [cache, backing] = &devices;
    let start = system.clone().start(env.clone(), cache.open(&env), backing.open(&env), (*plan).clone());
    let running = match start.await {
        Ok(running) => running,
        Err(_) if life.errors => return,
        Err(error) if life.losses => return note_refusal(&plan, &shared, life, error),
        Err(error) => return shared.fail(format!("life {}: start refused: {error}", life.number)),
    };
    compare_with_checker(&running, &plan, &shared, life);
    // What rots while the start reads it may be the newest flushed record, of which nothing else tells that it was.
    name_silent_losses(&plan, cache, &shared);
    shared.ready.set(true);
    let client = || Client {
        env: env.clone(),
        service: running.service(),
        plan: plan.clone(),
        shared: shared.clone(),
        errors: life.errors,
        losses: life.losses,
    };
    if life.read_all {
        client().read_all(&format!("life {}, read after start", life.number)).await;
        let found = shared.model.borrow().check_prefix();
        if system.keeps_prefix() {
            shared.violations(&format!("life {}, prefix of the log", life.number), found);
        }
    }
    shared.clients_running.set(plan.clients);
    for number in 0..plan.clients {
        let rng = SimRng::new(mix(plan.seed ^ mix(life.number << 8 | number)));
        env.spawn(client().work(rng));
    }
    wait_for_clients(&env, &shared).await;
    if life.last {
        client().read_all("last life, read at the end").await;
    }
    let mut drained = false;
    if life.drain {
        match running.drain().await {
            Ok(()) => drained = true,
            Err(_) if life.errors || life.losses && !life.last => {}
            Err(error) => shared.fail(format!("life {}: drain failed: {error}", life.number)),
        }
    }
    if life.last {
        compare_backing(backing, &plan, &shared);
    }
    // Tasks that are not the system's: the clients, this one, and the one that lets a device vanish.
    let own_tasks = plan.clients as usize + 2;
    shared.tasks_max.set(shared.tasks_max.get().max(env.tasks_max().saturating_sub(own_tasks)));
    if let Some(problem) = running.out_of_bounds(env.tasks_max().saturating_sub(own_tasks)) {
        shared.fail(format!("life {}: {problem}", life.number));
    }
    if life.stop {
        let op = shared.model.borrow_mut().begin_flush();
        let result = if life.detach && drained { running.detach().await } else { running.stop().await };
        shared.model.borrow_mut().end(op, result.is_ok());
        match result {
            Err(error) if !life.errors && !life.losses => {
                shared.fail(format!("life {}: stop failed: {error}", life.number))
            }
            _ => {}
        }
    }
}

/// Looks now and then. A device that is gone for a minute is no work of the system under test, which waits as well.
async fn wait_for_clients(env: &SimEnv, shared: &Shared) {
    let start_ns = env.now_ns();
    while shared.clients_running.get() > 0 {
        let waited_ns = env.now_ns() - start_ns;
        env.sleep(if waited_ns < WATCH_CLOSELY_NS { 50_000 } else { 5_000_000 }).await;
        env.core().excuse_poll();
    }
}

/// Where the cache device lied or rotted, what it holds after a crash may be any older state; what a tool says to be lost
/// is then too much to say.
pub(super) fn name_silent_losses(plan: &Plan, cache: &SimDevice, shared: &Shared) {
    let counters = cache.counters();
    if plan.hardship.is_silent() && counters.silent_faults + counters.errors > 0 {
        shared.model.borrow_mut().lose_all();
    }
}

/// A start was refused where data may be lost: the checker must have expected it.
fn note_refusal(plan: &Plan, shared: &Shared, life: Life, error: String) {
    shared.refused.set(true);
    let exact = plan.hardship == Hardship::Damage;
    if exact && shared.expected.borrow_mut().take().is_some_and(|found| found.serves) {
        shared.fail(format!("life {}: start refused, yet the checker finds a cache that serves: {error}", life.number));
    }
}

/// The offline checker and the start must agree on what a crash left. Only where the devices do not change their mind:
/// a start under errors may see less.
fn compare_with_checker<R: Running>(running: &R, plan: &Plan, shared: &Shared, life: Life) {
    let Some(expected) = shared.expected.borrow_mut().take() else { return };
    if life.errors || plan.hardship.is_silent() {
        return;
    }
    let Some(found) = running.recovered() else { return };
    let Inspection { head, clean, dirty_blocks, poisoned_blocks, .. } = expected;
    let said = Recovered { head, clean, dirty_blocks, poisoned_blocks };
    if !expected.serves || said != found {
        shared.fail(format!("life {}: the checker said {expected:?}, the start found {found:?}", life.number));
    }
}

/// After a drain the backing device alone holds everything, durably.
fn compare_backing(backing: &SimDevice, plan: &Plan, shared: &Shared) {
    let image = backing.stable().image(plan.volume_bytes as usize);
    let op = shared.model.borrow_mut().begin_read(0..plan.sectors());
    let found = shared.model.borrow_mut().end_read(op, &image);
    shared.violations("backing device after the drain", found);
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
