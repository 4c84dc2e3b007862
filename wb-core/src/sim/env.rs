//! What a process group sees of the simulation: its [`Env`].

use super::executor::{Core, Event, TaskInfo};
use crate::env::Env;
use async_task::Runnable;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

/// Virtual wall clock at the start of each run: 2026-01-01, in nanoseconds.
const WALL_START_NS: u64 = 1_767_225_600_000_000_000;

/// The world of the simulation as one process group sees it. Clones are handles to the same.
#[derive(Clone)]
pub struct SimEnv {
    pub(super) core: Arc<Core>,
    pub(super) group: u32,
    pub(super) alive: Arc<AtomicBool>,
}

impl SimEnv {
    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// False once the group was killed.
    pub fn alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// Most tasks of the group at once so far.
    pub fn tasks_max(&self) -> usize {
        self.core.lock().groups[self.group as usize].tasks_max
    }

    pub(super) fn alive_flag(&self) -> Arc<AtomicBool> {
        self.alive.clone()
    }

    #[track_caller]
    pub(super) fn spawn_at(&self, future: impl Future<Output = ()> + 'static) {
        if !self.alive() {
            return;
        }
        let place = Location::caller();
        let (core, group) = (self.core.clone(), self.group);
        let number = core.lock().number();
        let scheduler = Arc::downgrade(&core);
        let schedule = move |runnable: Runnable| {
            // Without a simulation nothing can run any more; dropping the runnable drops the future.
            if let Some(core) = scheduler.upgrade() {
                core.schedule(group, number, runnable);
            }
        };
        let (runnable, handle) = async_task::spawn_local(future, schedule);
        let mut state = core.lock();
        let priority = state.rng.next_u64();
        let this = &mut state.groups[group as usize];
        this.tasks.insert(number, TaskInfo { handle, place, priority });
        this.tasks_max = this.tasks_max.max(this.tasks.len());
        drop(state);
        runnable.schedule();
    }
}

impl Env for SimEnv {
    type Disk = super::handle::SimDisk;

    fn now_ns(&self) -> u64 {
        self.core.now_ns()
    }

    fn wall_ns(&self) -> u64 {
        WALL_START_NS + self.core.now_ns()
    }

    fn random_u64(&self) -> u64 {
        self.core.lock().env_rng.next_u64()
    }

    #[track_caller]
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawn_at(task);
    }

    fn sleep(&self, duration_ns: u64) -> impl Future<Output = ()> {
        let until_ns = self.core.now_ns().saturating_add(duration_ns);
        Sleep { core: self.core.clone(), until_ns, key: None, done: false }
    }

    fn yield_now(&self) -> impl Future<Output = ()> {
        YieldNow { core: self.core.clone(), number: None }
    }

    fn yield_point(&self) -> impl Future<Output = ()> {
        YieldPoint { core: self.core.clone() }
    }
}

struct Sleep {
    core: Arc<Core>,
    until_ns: u64,
    key: Option<(u64, u64)>,
    done: bool,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let core = self.core.clone();
        let mut state = core.lock();
        if self.done || self.key.is_some_and(|key| !state.timers.contains_key(&key)) {
            self.done = true;
            self.key = None;
            return Poll::Ready(());
        }
        let until_ns = self.until_ns.max(state.now_ns);
        let key = *self.key.get_or_insert_with(|| (until_ns, state.number()));
        state.timers.insert(key, Event::Wake(cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        // A timer nobody waits for must not move the clock.
        if let Some(key) = self.key {
            let timer = self.core.lock().timers.remove(&key);
            drop(timer);
        }
    }
}

struct YieldNow {
    core: Arc<Core>,
    number: Option<u64>,
}

impl Future for YieldNow {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let core = self.core.clone();
        let mut state = core.lock();
        match self.number {
            None => {
                let number = state.number();
                // Everything that became ready before has a smaller order and runs first.
                state.yielders.insert(number, (number, cx.waker().clone()));
                self.number = Some(number);
                Poll::Pending
            }
            Some(number) => match state.yielders.get_mut(&number) {
                Some((_, waker)) => {
                    waker.clone_from(cx.waker());
                    Poll::Pending
                }
                None => Poll::Ready(()),
            },
        }
    }
}

impl Drop for YieldNow {
    fn drop(&mut self) {
        let waiting = self.number.and_then(|number| self.core.lock().yielders.remove(&number));
        drop(waiting);
    }
}

struct YieldPoint {
    core: Arc<Core>,
}

impl Future for YieldPoint {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.core.lock();
        let ppm = state.yield_ppm;
        let yields = state.rng.chance_ppm(ppm);
        drop(state);
        if !yields {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
