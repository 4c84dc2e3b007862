//! One life of a system under test: it starts, everything is read, clients work, it drains and stops; and the oracle is
//! asked about everything that is read. That it may end anywhere is the business of [`super::scenario`].

use super::disk::SimDevice;
use super::env::SimEnv;
use super::offline::{Inspection, Recovered};
use super::rng::{SimRng, mix};
use super::scenario::{Running, Shared, System};
use super::workload::{Hardship, Plan, Request, RequestKind};
use crate::env::Env;
use crate::service::{BlockService, ServiceError};
use std::ops::Range;
use std::rc::Rc;

/// Bytes of one read when everything is read.
const VERIFY_BYTES: u64 = 128 << 10;

/// So long the driver looks often whether the clients are done.
const WATCH_CLOSELY_NS: u64 = 5_000_000_000;

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
    let mut said = Recovered { head, clean, dirty_blocks, poisoned_blocks };
    // Damage before the dirty tail, in what is only cache, keeps nobody from serving the rest.
    let serves = expected.serves || plan.hardship == Hardship::Damage;
    if !expected.serves {
        said.clean = found.clean; // the checker trusts no clean mark behind damage
    }
    if !serves || said != found {
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
