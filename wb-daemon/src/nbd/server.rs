//! The server: one export, any number of listeners, any number of threads.

use super::budget::Budget;
use super::codec::Export;
use super::conn;
use super::limits::{Limits, LimitsError, Pools};
use super::pressure::Pressure;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use tracing::{error, warn};
use wb_core::rt::{self, JoinHandle, Listener, Remote, Stream, now_ns};
use wb_core::service::BlockService;
use wb_core::sync::WaitQueue;

/// Pause after an error of accept, which mostly means that descriptors have run out.
const ACCEPT_PAUSE_NS: u64 = 100_000_000;
/// Distance of log lines that a client could cause at will.
const LOG_PAUSE_NS: u64 = 10_000_000_000;
/// Time for connections to end after they were cut.
const ABORT_WAIT_NS: u64 = 1_000_000_000;

/// How far the life of a server has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Phase {
    Serving,
    /// Nothing new is accepted; what is in work is finished.
    Stopping,
    /// The time for that is over: connections are cut.
    Aborting,
}

const PHASES: [Phase; 3] = [Phase::Serving, Phase::Stopping, Phase::Aborting];

/// What all connections of a server share, on all threads.
pub(super) struct Shared<S> {
    pub(super) service: S,
    pub(super) export: Export,
    pub(super) limits: Limits,
    pub(super) pools: Pools,
    /// For each class of the service's read buffers, by their length.
    pub(super) read_budgets: Vec<(usize, Arc<Budget>)>,
    pub(super) write_budget: Arc<Budget>,
    pub(super) pressure: Pressure,
    connections: AtomicUsize,
    phase: AtomicU8,
    /// Notified when `phase` or `connections` changes in a way that somebody waits for.
    changed: WaitQueue,
    next_log_ns: AtomicU64,
}

impl<S> Shared<S> {
    pub(super) fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Acquire))]
    }

    pub(super) async fn reached(&self, phase: Phase) {
        self.changed.wait_until(|| (self.phase() >= phase).then_some(())).await;
    }

    fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
        self.changed.notify_all();
    }

    /// True at most once in a while.
    pub(super) fn may_log(&self) -> bool {
        let now = now_ns();
        let due = |next| (next <= now).then_some(now + LOG_PAUSE_NS);
        self.next_log_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, due).is_ok()
    }
}

/// Counts a connection while it lives.
struct Admission<S>(Arc<Shared<S>>);

impl<S> Admission<S> {
    fn new(shared: &Arc<Shared<S>>) -> Option<Admission<S>> {
        let limit = shared.limits.connections;
        let one_more = |count: usize| (count < limit).then_some(count + 1);
        shared.connections.fetch_update(Ordering::AcqRel, Ordering::Relaxed, one_more).ok()?;
        Some(Admission(shared.clone()))
    }
}

impl<S> Drop for Admission<S> {
    fn drop(&mut self) {
        if self.0.connections.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_all();
        }
    }
}

/// A volume as an NBD export. Clones are handles to the same server, for all threads.
pub struct NbdServer<S> {
    shared: Arc<Shared<S>>,
}

impl<S> Clone for NbdServer<S> {
    fn clone(&self) -> NbdServer<S> {
        NbdServer { shared: self.shared.clone() }
    }
}

impl<S: BlockService> NbdServer<S> {
    /// A server for `service` under `name`; clients reach it by the empty name as well. Allocates
    /// [`Limits::memory_bytes`].
    pub fn new(service: S, name: &str, description: &str, limits: Limits) -> Result<NbdServer<S>, LimitsError> {
        limits.check()?;
        let info = service.info();
        let export = Export {
            name: name.to_owned(),
            description: description.to_owned(),
            size_bytes: info.size_bytes,
            sector_bytes: info.sector_bytes,
            read_only: info.read_only,
        };
        let shared = Shared {
            service,
            export,
            pools: limits.pools(),
            read_budgets: limits.read_budgets(),
            write_budget: limits.write_budget(),
            pressure: Pressure::new(limits.stall_ns),
            limits,
            connections: AtomicUsize::new(0),
            phase: AtomicU8::new(Phase::Serving as u8),
            changed: WaitQueue::new(),
            next_log_ns: AtomicU64::new(0),
        };
        Ok(NbdServer { shared: Arc::new(shared) })
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Bytes of long write payloads and of buffers with read data that are held now.
    pub fn bytes_in_flight(&self) -> u64 {
        let reads = self.shared.read_budgets.iter().map(|(_, budget)| budget.used());
        reads.sum::<u64>() + self.shared.write_budget.used()
    }

    /// Serves a connection in a task of the calling thread's runtime, until it ends. It is closed at once if there are
    /// too many or the server stops.
    pub fn serve_connection(&self, stream: Stream) -> JoinHandle<()> {
        let shared = self.shared.clone();
        let admission = Admission::new(&shared);
        rt::spawn(async move {
            if admission.is_some() {
                // Boxed, because the future of a connection is large and every spawn would move it.
                Box::pin(conn::serve(shared, stream)).await;
            } else if shared.may_log() {
                warn!(
                    "NBD connection from {} closed: {} connections are open, which is the limit",
                    stream.peer(),
                    shared.limits.connections
                );
            }
        })
    }

    /// Accepts connections and gives each to `serve`, until the server stops. Then the listener is closed, and the file
    /// of a Unix socket removed.
    pub async fn accept(&self, listener: Listener, mut serve: impl FnMut(Stream)) {
        let shared = &self.shared;
        let accept = async {
            loop {
                match listener.accept().await {
                    Ok(stream) => serve(stream),
                    Err(why) => {
                        if shared.may_log() {
                            warn!("NBD connections wait, because one could not be accepted: {why}");
                        }
                        rt::sleep(ACCEPT_PAUSE_NS).await;
                    }
                }
            }
        };
        let stopping = shared.reached(Phase::Stopping);
        futures_util::future::select(std::pin::pin!(accept), std::pin::pin!(stopping)).await;
    }

    /// For [`NbdServer::accept`]: hands connections to the runtimes of these threads in turn.
    pub fn round_robin(&self, threads: Vec<Remote>) -> impl FnMut(Stream) + use<S> {
        assert!(!threads.is_empty(), "at least one thread serves");
        let server = self.clone();
        let mut next = 0;
        move |stream| {
            let server = server.clone();
            let call = move || drop(server.serve_connection(stream));
            if let Err(gone) = threads[next].run(call) {
                error!("an NBD connection is lost: {gone}");
            }
            next = (next + 1) % threads.len();
        }
    }

    /// Stops: nothing new is accepted, requests that come now get ESHUTDOWN, those in work are finished and answered,
    /// idle connections are closed. After `limit_ns` the others are cut. Returns how many connections are left even
    /// then: their requests hang in the service.
    pub async fn stop(&self, limit_ns: u64) -> usize {
        let shared = &self.shared;
        let ended = || shared.changed.wait_until(|| (self.connections() == 0).then_some(()));
        shared.advance(Phase::Stopping);
        if rt::timeout(limit_ns, ended()).await.is_err() {
            warn!("{} NBD connections did not end in time and are cut", self.connections());
            shared.advance(Phase::Aborting);
            // What is left is counted below.
            let _ = rt::timeout(ABORT_WAIT_NS, ended()).await;
        }
        self.connections()
    }
}
