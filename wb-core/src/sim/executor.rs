//! The deterministic executor: one thread, seeded order of tasks, virtual time.
//!
//! Every source of nondeterminism is a draw from the seed: which ready task runs next, whether a yield point yields,
//! how long a device takes. Time stands still while tasks run and jumps to the next timer when none is ready, so an
//! hour of waiting costs nothing. All that happens is folded into a digest; two runs of one seed must have the same.
//!
//! Tasks live in **process groups**: one incarnation of an engine with its clients. [`Sim::kill`] is SIGKILL: the tasks
//! of the group are dropped, their timers are gone, nothing they spawn in a destructor ever runs, and device handles
//! opened by the group answer no more.
//!
//! The watchdog turns these kinds of hang into failures with a description: a *stall* (nothing ready, no timer, yet the
//! awaited thing is not done), a *busy loop* (too many polls, at one instant or in one run) and a *crawl* (a limit of
//! virtual time).

use super::env::SimEnv;
use super::rng::SimRng;
use super::tails::Memory;
use crate::env::Env;
use async_task::{Runnable, Task};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::panic::Location;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// Polls at one instant that count as a busy loop.
const POLLS_PER_INSTANT_MAX: u64 = 300_000;
/// Polls that one [`Sim::run_until`] may take: a busy loop that goes over a device lets time advance.
const POLLS_PER_RUN_MAX: u64 = 400_000;
/// Virtual time that one [`Sim::run`] may take: one hour.
const RUN_NS_MAX: u64 = 3_600_000_000_000;

/// Why a run cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SimFailure {
    /// Nothing is ready and no timer is set, yet the awaited thing has not happened.
    #[error("stall at {now_ns} ns: nothing will ever happen again; {tasks}")]
    Stall {
        /// Virtual time.
        now_ns: u64,
        /// The tasks that wait, with the place that spawned each.
        tasks: String,
    },
    /// Tasks keep waking each other while time stands still.
    #[error("busy loop at {now_ns} ns: {polls} polls without time advancing, the last of {task}; {tasks}")]
    BusyLoop {
        /// Virtual time.
        now_ns: u64,
        /// Polls at this instant.
        polls: u64,
        /// The task that ran last.
        task: String,
        /// All tasks.
        tasks: String,
    },
    /// Tasks keep each other and the devices busy, and the awaited thing does not come nearer.
    #[error("not done after {polls} polls; {tasks}")]
    TooManyPolls {
        /// The limit.
        polls: u64,
        /// All tasks.
        tasks: String,
    },
    /// The awaited thing did not happen within the limit of virtual time.
    #[error("not done after {limit_ns} ns of virtual time; {tasks}")]
    TimeLimit {
        /// The limit.
        limit_ns: u64,
        /// All tasks.
        tasks: String,
    },
}

/// Why [`Sim::run_until`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The condition holds.
    Done,
    /// The breakpoint was reached first.
    Break,
}

/// Where a run is to be interrupted, usually for a crash. Counted from the start of the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakAt {
    /// After this many polls of tasks.
    Poll(u64),
    /// When this many device writes, flushes and discards were submitted or completed (each counts as two events).
    DeviceEvent(u64),
    /// At this virtual time.
    TimeNs(u64),
}

/// How the next task is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Any ready task, each time.
    Random,
    /// In order of becoming ready: what production does.
    Fifo,
    /// By a priority drawn per task and redrawn now and then: starves some tasks for long (as in PCT schedulers).
    Priority,
}

pub(super) enum Event {
    Wake(Waker),
    Run(Box<dyn FnOnce() + Send>),
}

struct Ready {
    order: u64,
    task: u64,
    group: u32,
    runnable: Runnable,
}

pub(super) struct TaskInfo {
    pub(super) handle: Task<()>,
    pub(super) place: &'static Location<'static>,
    pub(super) priority: u64,
}

pub(super) struct Group {
    name: String,
    alive: Arc<AtomicBool>,
    pub(super) tasks: BTreeMap<u64, TaskInfo>,
    /// Most tasks at once so far.
    pub(super) tasks_max: usize,
}

pub(super) struct State {
    pub(super) rng: SimRng,
    pub(super) env_rng: SimRng,
    style: Style,
    pub(super) yield_ppm: u32,
    pub(super) now_ns: u64,
    next_number: u64,
    pub(super) timers: BTreeMap<(u64, u64), Event>,
    ready: VecDeque<Ready>,
    /// Runnables of killed groups, to be dropped outside the lock.
    graveyard: Vec<Runnable>,
    pub(super) yielders: BTreeMap<u64, (u64, Waker)>,
    pub(super) groups: Vec<Group>,
    polls: u64,
    polls_at_instant: u64,
    /// Polls of a driver that only looks whether the awaited thing is done: no work of the system under test.
    excused_polls: u64,
    device_events: u64,
    break_at: Option<BreakAt>,
    digest: u64,
    trace: bool,
    /// Runs that take too long are failures.
    limited: bool,
}

impl State {
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn note(&mut self, who: &str, what: &str, a: u64, b: u64) {
        let tag = who
            .bytes()
            .chain(what.bytes())
            .fold(0u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)));
        for word in [tag, self.now_ns, a, b] {
            self.digest = (self.digest ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        if self.trace {
            eprintln!("{:>14} {who} {what} {a} {b}", self.now_ns);
        }
    }

    fn polls_of_the_system(&self) -> u64 {
        self.polls - self.excused_polls
    }

    fn break_reached(&self) -> bool {
        match self.break_at {
            None => false,
            Some(BreakAt::Poll(count)) => self.polls >= count,
            Some(BreakAt::DeviceEvent(count)) => self.device_events >= count,
            Some(BreakAt::TimeNs(time)) => self.now_ns >= time,
        }
    }

    fn wake_yielders(&mut self) -> Vec<Waker> {
        let oldest = self.ready.iter().map(|ready| ready.order).min().unwrap_or(u64::MAX);
        let due: Vec<u64> =
            self.yielders.iter().filter(|(_, (since, _))| *since <= oldest).map(|(number, _)| *number).collect();
        due.iter().filter_map(|number| self.yielders.remove(number)).map(|(_, waker)| waker).collect()
    }

    fn next_ready(&mut self) -> Option<Ready> {
        if self.ready.is_empty() {
            return None;
        }
        let at = match self.style {
            Style::Fifo => 0,
            Style::Random => self.rng.below(self.ready.len() as u64) as usize,
            Style::Priority => {
                let of = |ready: &Ready| {
                    let task = self.groups[ready.group as usize].tasks.get(&ready.task);
                    (task.map_or(0, |task| task.priority), std::cmp::Reverse(ready.order))
                };
                (0..self.ready.len()).max_by_key(|&at| of(&self.ready[at])).expect("one is ready")
            }
        };
        let ready = if at == 0 { self.ready.pop_front() } else { self.ready.swap_remove_back(at) };
        if self.style == Style::Priority
            && self.rng.chance_ppm(30_000)
            && let Some(next) = &ready
        {
            let priority = self.rng.next_u64();
            if let Some(task) = self.groups[next.group as usize].tasks.get_mut(&next.task) {
                task.priority = priority;
            }
        }
        ready
    }

    fn describe_tasks(&self) -> String {
        let mut text = String::new();
        for group in self.groups.iter().filter(|group| group.alive.load(Ordering::Relaxed)) {
            let mut places: BTreeMap<String, u32> = BTreeMap::new();
            for task in group.tasks.values() {
                *places.entry(format!("{}:{}", task.place.file(), task.place.line())).or_default() += 1;
            }
            let list: Vec<String> = places.iter().map(|(place, count)| format!("{count} from {place}")).collect();
            text += &format!("[{}: {} tasks: {}] ", group.name, group.tasks.len(), list.join(", "));
        }
        text += &format!("{} timers, {} ready", self.timers.len(), self.ready.len());
        text
    }
}

/// What environment, devices and executor share.
pub(super) struct Core {
    state: Mutex<State>,
    pub(super) memory: Mutex<Memory>,
}

impl Core {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.lock().now_ns
    }

    /// Folds an event into the digest.
    pub(super) fn note(&self, who: &str, what: &str, a: u64, b: u64) {
        self.lock().note(who, what, a, b);
    }

    /// The poll of the task that calls this is not counted as one of the system under test.
    pub(super) fn excuse_poll(&self) {
        self.lock().excused_polls += 1;
    }

    /// Counts an event at which a power cut makes a difference.
    pub(super) fn device_event(&self) {
        self.lock().device_events += 1;
    }

    /// Runs `event` after `delay_ns`, whoever may have died by then.
    pub(super) fn after(&self, delay_ns: u64, event: impl FnOnce() + Send + 'static) {
        let mut state = self.lock();
        let key = (state.now_ns.saturating_add(delay_ns), state.number());
        state.timers.insert(key, Event::Run(Box::new(event)));
    }

    pub(super) fn schedule(&self, group: u32, task: u64, runnable: Runnable) {
        let mut state = self.lock();
        if state.groups[group as usize].alive.load(Ordering::Relaxed) {
            let order = state.number();
            state.ready.push_back(Ready { order, task, group, runnable });
        } else {
            state.graveyard.push(runnable);
        }
    }

    fn bury(&self) {
        loop {
            let dead = std::mem::take(&mut self.lock().graveyard);
            if dead.is_empty() {
                return;
            }
            drop(dead);
        }
    }
}

/// The result of a task started with [`Sim::start`].
pub struct Started<T> {
    slot: Rc<RefCell<Option<T>>>,
}

impl<T> Started<T> {
    /// True when the task has ended and its result was not taken.
    pub fn is_done(&self) -> bool {
        self.slot.borrow().is_some()
    }
    /// The result, once.
    pub fn take(&self) -> Option<T> {
        self.slot.borrow_mut().take()
    }
}

/// A simulation: executor, clock, randomness. Used on one thread.
pub struct Sim {
    seed: u64,
    root: SimEnv,
}

impl Sim {
    /// A world whose every choice follows from `seed`.
    pub fn new(seed: u64) -> Sim {
        let mut rng = SimRng::derive(seed, "executor");
        let style = rng.pick(&[Style::Random, Style::Random, Style::Fifo, Style::Priority]);
        let yield_ppm = rng.pick(&[0, 20_000, 200_000, 500_000]);
        let alive = Arc::new(AtomicBool::new(true));
        let root = Group { name: "root".into(), alive: alive.clone(), tasks: BTreeMap::new(), tasks_max: 0 };
        let state = State {
            rng,
            env_rng: SimRng::derive(seed, "env"),
            style,
            yield_ppm,
            now_ns: 0,
            next_number: 0,
            timers: BTreeMap::new(),
            ready: VecDeque::new(),
            graveyard: Vec::new(),
            yielders: BTreeMap::new(),
            groups: vec![root],
            polls: 0,
            polls_at_instant: 0,
            excused_polls: 0,
            device_events: 0,
            break_at: None,
            digest: seed,
            trace: false,
            limited: true,
        };
        let core = Arc::new(Core { state: Mutex::new(state), memory: Mutex::default() });
        Sim { seed, root: SimEnv { core, group: 0, alive } }
    }

    /// A world for measuring in virtual time: tasks run in the order of becoming ready, as in production, and a run may
    /// take as long as it wants.
    pub fn measuring(seed: u64) -> Sim {
        let sim = Sim::new(seed);
        let mut state = sim.core().lock();
        (state.style, state.yield_ppm, state.limited) = (Style::Fifo, 0, false);
        drop(state);
        sim
    }

    /// The seed of this world.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How tasks are scheduled, for the line printed at the head of a run.
    pub fn describe(&self) -> String {
        let state = self.core().lock();
        format!("schedule {:?}, yield points yield {} ppm", state.style, state.yield_ppm)
    }

    fn core(&self) -> &Arc<Core> {
        &self.root.core
    }

    /// The environment outside every engine: for drivers and devices.
    pub fn env(&self) -> SimEnv {
        self.root.clone()
    }

    /// A new process group, alive until [`Sim::kill`].
    pub fn group(&self, name: &str) -> SimEnv {
        let alive = Arc::new(AtomicBool::new(true));
        let mut state = self.core().lock();
        let group = state.groups.len() as u32;
        state.groups.push(Group { name: name.into(), alive: alive.clone(), tasks: BTreeMap::new(), tasks_max: 0 });
        SimEnv { core: self.core().clone(), group, alive }
    }

    /// SIGKILL for a process group: its device handles fall silent, then its tasks are dropped.
    pub fn kill(&self, env: &SimEnv) {
        env.alive.store(false, Ordering::Relaxed);
        let mut state = self.core().lock();
        state.note("", "kill", u64::from(env.group), 0);
        let tasks = std::mem::take(&mut state.groups[env.group as usize].tasks);
        let (dead, ready) = std::mem::take(&mut state.ready).into_iter().partition(|ready| ready.group == env.group);
        state.ready = ready;
        drop(state);
        let dead: VecDeque<Ready> = dead;
        drop(tasks);
        drop(dead);
        self.core().bury();
    }

    /// Starts `future` in a group; its result can be taken when it is done.
    #[track_caller]
    pub fn start<T: 'static>(&self, env: &SimEnv, future: impl Future<Output = T> + 'static) -> Started<T> {
        let slot = Rc::new(RefCell::new(None));
        let result = slot.clone();
        env.spawn_at(async move {
            let value = future.await;
            *result.borrow_mut() = Some(value);
        });
        Started { slot }
    }

    /// Runs `future` in the root group to its end.
    #[track_caller]
    pub fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Result<T, SimFailure> {
        let started = self.start(&self.root, future);
        let break_at = self.core().lock().break_at.take();
        let result = self.run_until(|| started.is_done());
        self.core().lock().break_at = break_at;
        result.map(|_| started.take().expect("the condition was that it is done"))
    }

    /// Runs until `done`, or to the breakpoint, which is then cleared.
    pub fn run_until(&self, done: impl Fn() -> bool) -> Result<Stop, SimFailure> {
        let limited = self.core().lock().limited;
        let limit_ns = if limited { self.core().now_ns().saturating_add(RUN_NS_MAX) } else { u64::MAX };
        let polls_max = if limited { self.core().lock().polls_of_the_system() + POLLS_PER_RUN_MAX } else { u64::MAX };
        loop {
            if done() {
                return Ok(Stop::Done);
            }
            let mut state = self.core().lock();
            if state.polls_of_the_system() > polls_max {
                return Err(SimFailure::TooManyPolls { polls: POLLS_PER_RUN_MAX, tasks: state.describe_tasks() });
            }
            if state.break_reached() {
                state.break_at = None;
                return Ok(Stop::Break);
            }
            drop(state);
            if self.poll_one()? {
                continue;
            }
            if !self.advance(limit_ns)? {
                let state = self.core().lock();
                return Err(SimFailure::Stall { now_ns: state.now_ns, tasks: state.describe_tasks() });
            }
        }
    }

    /// Runs tasks until none is ready, without letting time advance.
    pub fn run_until_stalled(&self) -> Result<(), SimFailure> {
        while self.poll_one()? {}
        Ok(())
    }

    /// Runs for `duration_ns` of virtual time.
    pub fn run_for(&self, duration_ns: u64) -> Result<(), SimFailure> {
        let env = self.env();
        self.run(async move { env.sleep(duration_ns).await })
    }

    /// Interrupts the next [`Sim::run_until`] there.
    pub fn set_break(&self, at: Option<BreakAt>) {
        self.core().lock().break_at = at;
    }

    /// Polls, device events and virtual time so far: the scales that [`BreakAt`] counts on.
    pub fn progress(&self) -> (u64, u64, u64) {
        let state = self.core().lock();
        (state.polls, state.device_events, state.now_ns)
    }

    /// A number that two runs of the same seed share and two different runs almost surely do not.
    pub fn digest(&self) -> u64 {
        self.core().lock().digest
    }

    /// Prints every event to stderr.
    pub fn set_trace(&self, on: bool) {
        self.core().lock().trace = on;
    }

    /// Runs one ready task; false if there is none.
    fn poll_one(&self) -> Result<bool, SimFailure> {
        let core = self.core();
        let mut state = core.lock();
        let woken = if state.yielders.is_empty() { Vec::new() } else { state.wake_yielders() };
        if !woken.is_empty() {
            drop(state);
            woken.into_iter().for_each(Waker::wake);
            state = core.lock();
        }
        let Some(Ready { task, group, runnable, .. }) = state.next_ready() else { return Ok(false) };
        state.polls += 1;
        state.polls_at_instant += 1;
        state.note("", "poll", task, u64::from(group));
        if state.limited && state.polls_at_instant > POLLS_PER_INSTANT_MAX {
            let place = state.groups[group as usize].tasks.get(&task).map(|task| task.place.to_string());
            let failure = SimFailure::BusyLoop {
                now_ns: state.now_ns,
                polls: state.polls_at_instant,
                task: place.unwrap_or_default(),
                tasks: state.describe_tasks(),
            };
            // The runnable is dropped outside the lock: its future may take it.
            state.graveyard.push(runnable);
            drop(state);
            core.bury();
            return Err(failure);
        }
        drop(state);
        runnable.run();
        let mut state = core.lock();
        let tasks = &mut state.groups[group as usize].tasks;
        let ended =
            if tasks.get(&task).is_some_and(|task| task.handle.is_finished()) { tasks.remove(&task) } else { None };
        drop(state);
        drop(ended);
        core.bury();
        Ok(true)
    }

    /// Lets time jump to the next timer and fires it; false if there is none.
    fn advance(&self, limit_ns: u64) -> Result<bool, SimFailure> {
        let mut state = self.core().lock();
        let Some((&(time_ns, _), _)) = state.timers.first_key_value() else { return Ok(false) };
        if time_ns > limit_ns {
            return Err(SimFailure::TimeLimit { limit_ns: RUN_NS_MAX, tasks: state.describe_tasks() });
        }
        // A breakpoint in time stops the clock there, before a later timer fires.
        if let Some(BreakAt::TimeNs(stop_ns)) = state.break_at
            && stop_ns > state.now_ns
            && stop_ns < time_ns
        {
            state.now_ns = stop_ns;
            return Ok(true);
        }
        let (_, event) = state.timers.pop_first().expect("there is a first timer");
        if time_ns > state.now_ns {
            state.now_ns = time_ns;
            state.polls_at_instant = 0;
        }
        drop(state);
        match event {
            Event::Wake(waker) => waker.wake(),
            Event::Run(run) => run(),
        }
        self.core().bury();
        Ok(true)
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // Tasks and timers hold the core that holds them.
        let mut state = self.core().lock();
        let mut tasks = Vec::new();
        for group in &mut state.groups {
            group.alive.store(false, Ordering::Relaxed);
            tasks.push(std::mem::take(&mut group.tasks));
        }
        let ready = std::mem::take(&mut state.ready);
        let timers = std::mem::take(&mut state.timers);
        drop(state);
        drop(tasks);
        drop(ready);
        drop(timers);
        self.core().bury();
        let yielders = std::mem::take(&mut self.core().lock().yielders);
        drop(yielders);
    }
}
