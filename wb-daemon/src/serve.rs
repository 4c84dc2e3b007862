//! `wb-daemon run`: opens both devices, recovers the log, serves the volume until told to stop.

use crate::control_server;
use crate::devices::{self, Devices};
use crate::nbd::{Limits, ListenAddress, NbdServer};
use crate::rates::Rates;
use crate::ublk::{self, UblkDevice};
use anyhow::{Context as _, bail};
use nix::sys::signal::Signal;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing::{error, info, warn};
use wb_cli::config::{self, CacheConfig, ListenAddr, WritebackConfig};
use wb_cli::daemon_args::RunPlan;
use wb_cli::exit::{Exit, ExitStatus as _};
use wb_cli::notify::{Notification, notify};
use wb_core::engine::{Engine, EngineConfig, OpenOptions, VolumeHandle};
use wb_core::format::Counters;
use wb_core::rt::{self, Config, RtEnv, Runtime, RuntimeThread, Signals};
use wb_core::sync::WaitQueue;

/// How long connections may take to end at a stop before they are cut.
const CLOSE_CONNECTIONS_NS: u64 = 5_000_000_000;

/// How the service is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Clean stop; dirty data stays in the cache. A block device that is in use stays, too, and waits for the next start;
    /// with `force` it is taken away from its users.
    Stop {
        /// Take the block device away.
        force: bool,
    },
    /// Clean stop of a drained cache, which forgets its backing device.
    Detach,
    /// Clean stop, and another program takes the place of this one. The block device stays.
    Upgrade,
}

/// A running service, as its main thread sees it.
pub struct Daemon {
    /// What is served.
    pub engine: Engine<RtEnv>,
    /// The NBD export, if there is one.
    pub server: Option<NbdServer<VolumeHandle<RtEnv>>>,
    /// Its settings.
    pub config: CacheConfig,
    /// The settings of write-back, as changed since.
    pub writeback: Cell<WritebackConfig>,
    /// Number of its block device, if it serves one.
    pub ublk: Cell<Option<u32>>,
    /// The program that is to take its place.
    pub successor: RefCell<Option<PathBuf>>,
    /// When it began.
    pub started_ns: u64,
    /// Lifetime counters at that moment.
    pub started_with: Counters,
    /// Rates for `status`.
    pub rates: RefCell<Rates>,
    /// What it is asked to end with, and the limit of the stop.
    ending: Cell<Option<(Ending, Option<u64>)>>,
    asked: WaitQueue,
    outcome: RefCell<Option<Result<String, String>>>,
    ended: WaitQueue,
}

impl Daemon {
    /// Asks for the end; the first to ask decides how. Past `limit_ns` the stop is unclean.
    pub fn end(&self, ending: Ending, limit_ns: Option<u64>) {
        if self.ending.get().is_none() {
            self.ending.set(Some((ending, limit_ns)));
        }
        self.asked.notify_all();
    }

    /// What is being ended with, if anything.
    pub fn ending(&self) -> Option<Ending> {
        self.ending.get().map(|(ending, _)| ending)
    }

    /// Where it can be reached.
    pub fn exports(&self) -> Vec<String> {
        let name = self.config.export_name();
        let nbd = addresses(&self.config).into_iter().map(|address| address.uri(name));
        nbd.chain(self.ublk.get().map(|id| format!("/dev/ublkb{id}"))).collect()
    }

    /// Waits for the end of the service; how it went, in words.
    pub async fn wait_ended(&self) -> Result<String, String> {
        self.ended.wait_until(|| self.outcome.borrow().clone()).await
    }
}

/// Serves until told to stop.
pub fn run(plan: RunPlan) -> anyhow::Result<Exit> {
    abort_on_panic();
    // Before any thread exists, so that all of them leave these signals to the one that reads them.
    let signals = Signals::new(&[Signal::SIGTERM, Signal::SIGINT]).context("cannot watch for signals")?;
    let runtime = Runtime::new(Config::default()).context("cannot start the runtime")?;
    runtime.block_on(serve(plan, signals))
}

/// A broken invariant must end the whole process, whichever thread it is found on: a daemon that goes on with a part of
/// its threads would neither serve nor be restarted.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

async fn serve(plan: RunPlan, signals: Signals) -> anyhow::Result<Exit> {
    let started_ns = rt::now_ns();
    // Nobody hears it outside a service manager.
    let _ = notify(&Notification::Status("recovering"));
    let devices = devices::open(&plan.cache).await?;
    let (engine, cache_path) = open_engine(&plan, devices).await?;
    lock_memory();
    let begun = begin(plan.cache, engine.clone(), started_ns).await;
    let Serving { daemon, threads, accepting, control, sampler, device } = match begun {
        Ok(serving) => serving,
        Err(error) => {
            // Hardly anything was served: a clean stop spares the next start the recovery.
            if let Err(why) = engine.stop().await {
                warn!("the stop was not clean: {why}");
            }
            return Err(error);
        }
    };
    let status = daemon.engine.status();
    let ready = format!(
        "ready: {} on cache {cache_path}, {} bytes, {}",
        daemon.config.name,
        status.volume.size_bytes,
        daemon.exports().join(", ")
    );
    info!("{ready}");
    info!("ready after {} ms", (rt::now_ns() - started_ns) / 1_000_000);
    let _ = notify(&Notification::Ready(&ready));
    let (ending, limit_ns) = wait_for_end(&daemon, &signals).await;
    let _ = notify(&match ending {
        Ending::Upgrade => Notification::Reloading("changing to another program"),
        _ => Notification::Stopping("making everything durable"),
    });
    let (outcome, device) = finish(&daemon, device, ending, limit_ns).await;
    *daemon.outcome.borrow_mut() = Some(outcome.clone());
    daemon.ended.notify_all();
    // Clients of the control socket get their answer before the process ends.
    rt::yield_now().await;
    rt::sleep(20_000_000).await;
    if ending == Ending::Upgrade && outcome.is_ok() {
        return Err(become_successor(&daemon));
    }
    if let Device::Kept = device {
        // Fetches of the device that stays never end; the kernel takes them back when the process is gone.
        report(&outcome);
        std::process::exit(outcome.map_or(Exit::Failed, |_| Exit::Done).code().into());
    }
    for task in accepting.into_iter().chain([control, sampler]) {
        task.cancel().await;
    }
    threads.stop();
    report(&outcome);
    Ok(outcome.map_or(Exit::Failed, |_| Exit::Done))
}

/// What serves the engine.
struct Serving {
    daemon: Rc<Daemon>,
    threads: Threads,
    accepting: Vec<rt::JoinHandle<()>>,
    control: rt::JoinHandle<()>,
    sampler: rt::JoinHandle<()>,
    device: Option<Ublk>,
}

/// Listens, and serves the block device.
async fn begin(config: CacheConfig, engine: Engine<RtEnv>, started_ns: u64) -> anyhow::Result<Serving> {
    let daemon = Rc::new(daemon(config, engine, started_ns)?);
    let threads = Threads::start(usize::from(daemon.config.threads))?;
    let accepting = listen(&daemon, &threads)?;
    let control = control_server::listen(&daemon)?;
    let sampler = rt::spawn(sample(daemon.clone()));
    // Last: what waits at a device that a killed daemon left is served from here on.
    let device = start_ublk(&daemon, &threads).await?;
    Ok(Serving { daemon, threads, accepting, control, sampler, device })
}

fn report(outcome: &Result<String, String>) {
    match outcome {
        Ok(how) => info!("{how}"),
        Err(why) => error!("the stop was not clean: {why}; the next start recovers the log"),
    }
}

/// Puts another program into this process. Returns only if that fails.
fn become_successor(daemon: &Daemon) -> anyhow::Error {
    use std::os::unix::process::CommandExt;
    let Some(program) = daemon.successor.borrow().clone() else { return anyhow::anyhow!("no program to change to") };
    info!("stopped cleanly; {} takes over", program.display());
    let mut arguments = std::env::args_os();
    let mut command = std::process::Command::new(&program);
    command.arg0(arguments.next().unwrap_or_else(|| program.clone().into_os_string())).args(arguments);
    let error = command.exec();
    anyhow::Error::new(error).context(format!("cannot change to {}; start the daemon again", program.display()))
}

type Ublk = UblkDevice<VolumeHandle<RtEnv>>;

async fn start_ublk(daemon: &Rc<Daemon>, threads: &Threads) -> anyhow::Result<Option<Ublk>> {
    let uuid = daemon.engine.status().uuid;
    let id = match daemon.config.ublk {
        config::Ublk::Off => match ublk::left_behind(uuid).await {
            None => return Ok(None),
            Some(id) => {
                warn!(
                    "/dev/ublkb{id}, which the last daemon of this cache left, is served, too, because its I/O waits; when \
                     nobody uses it any more, a stop of this daemon removes it"
                );
                Some(id)
            }
        },
        config::Ublk::Any => None,
        config::Ublk::Id(id) => Some(id),
    };
    let request = ublk::Request { id, name: daemon.config.name.clone(), uuid };
    let device = UblkDevice::start(daemon.engine.volume(), &request, &threads.remotes()).await?;
    daemon.ublk.set(Some(device.id()));
    Ok(Some(device))
}

/// What became of the block device.
enum Device {
    /// Removed, or there was none.
    Gone,
    /// It stays for the next daemon.
    Kept,
}

/// Removes the block device, or leaves it to the next daemon if somebody uses it.
async fn dispose(device: Ublk, ending: Ending) -> (Device, String) {
    let path = format!("/dev/ublkb{}", device.id());
    let users = match ending {
        Ending::Upgrade => vec!["another program takes over".into()],
        Ending::Stop { force: true } => Vec::new(),
        Ending::Stop { force: false } | Ending::Detach => ublk::users_of(device.id()).await,
    };
    if !users.is_empty() {
        device.park();
        return (Device::Kept, format!("; {path} stays ({}), its I/O waits for the next start", users.join(", ")));
    }
    match device.remove().await {
        Ok(()) => (Device::Gone, String::new()),
        Err(error) => (Device::Kept, format!("; {path} could not be removed: {error}")),
    }
}

async fn open_engine(plan: &RunPlan, devices: Devices) -> anyhow::Result<(Engine<RtEnv>, String)> {
    let cache_path = devices.cache_path.clone();
    let options = OpenOptions {
        cache: Arc::new(devices.cache),
        backing: devices.backing,
        config: engine_config(&plan.cache),
        boot_id: rt::boot_id(),
        tails: Some(Arc::new(rt::ShmTails::new(&plan.cache.tail_dir()))),
        accept_loss: plan.accept_loss,
        read_only: plan.cache.read_only,
        force: false,
    };
    let engine = Engine::open(&RtEnv, options).await.with_context(|| format!("cannot serve {cache_path}"))?;
    Ok((engine, cache_path))
}

fn engine_config(cache: &CacheConfig) -> EngineConfig {
    EngineConfig {
        verify_reads: cache.verify_reads,
        window_bytes: cache.writeback.window.0 as usize,
        writeback_bytes: cache.writeback.memory.0 as usize,
        compact_percent: cache.writeback.compact_percent.into(),
        policy: cache.writeback.policy(),
        index_shards: 16.max(4 * usize::from(cache.threads)).next_power_of_two(),
        ..EngineConfig::default()
    }
}

fn daemon(config: CacheConfig, engine: Engine<RtEnv>, started_ns: u64) -> anyhow::Result<Daemon> {
    let limits = Limits { read_buffers: engine_config(&config).read_buffers(), ..Limits::default() };
    let (server, nbd_bytes) = if config.nbd_addresses().is_empty() {
        (None, 0)
    } else {
        let (name, description) = (config.export_name(), config.backing.display().to_string());
        let bytes = limits.memory_bytes();
        (Some(NbdServer::new(engine.volume(), name, &description, limits)?), bytes)
    };
    let engine_bytes = engine.memory_bytes();
    let total = engine_bytes + nbd_bytes;
    info!("memory: {engine_bytes} bytes for the engine, {nbd_bytes} for NBD, {total} in all");
    if let Some(most) = config.memory.filter(|most| most.0 < total) {
        bail!("{total} bytes of memory are needed, the config file allows {}: raise memory", most.0);
    }
    let started_with = engine.status().counters;
    Ok(Daemon {
        writeback: Cell::new(config.writeback),
        engine,
        server,
        config,
        ublk: Cell::new(None),
        successor: RefCell::new(None),
        started_ns,
        started_with,
        rates: RefCell::default(),
        ending: Cell::new(None),
        asked: WaitQueue::new(),
        outcome: RefCell::new(None),
        ended: WaitQueue::new(),
    })
}

fn addresses(config: &CacheConfig) -> Vec<ListenAddress> {
    let convert = |address: ListenAddr| match address {
        ListenAddr::Unix(path) => ListenAddress::Unix(path),
        ListenAddr::Tcp { host, port } => ListenAddress::Tcp { host, port },
    };
    config.nbd_addresses().into_iter().map(convert).collect()
}

fn listen(daemon: &Rc<Daemon>, threads: &Threads) -> anyhow::Result<Vec<rt::JoinHandle<()>>> {
    let mut tasks = Vec::new();
    let Some(server) = &daemon.server else { return Ok(tasks) };
    for address in addresses(&daemon.config) {
        if let ListenAddress::Unix(path) = &address {
            devices::make_parent(path)?;
        }
        for listener in address.open().with_context(|| format!("cannot listen on {address}"))? {
            let server = server.clone();
            let hand_out = server.round_robin(threads.remotes());
            tasks.push(rt::spawn(async move { server.accept(listener, hand_out).await }));
        }
    }
    Ok(tasks)
}

async fn sample(daemon: Rc<Daemon>) {
    loop {
        daemon.rates.borrow_mut().sample(rt::now_ns(), daemon.engine.status().counters);
        rt::sleep(1_000_000_000).await;
    }
}

async fn wait_for_end(daemon: &Rc<Daemon>, signals: &Signals) -> (Ending, Option<u64>) {
    let by_signal = async {
        match signals.next().await {
            Ok(signal) => info!("{signal}: stopping"),
            Err(error) => error!("signals cannot be read: {error}; stopping"),
        }
        daemon.end(Ending::Stop { force: false }, daemon.config.stop_timeout.map(|limit| nanoseconds(limit.0)));
        std::future::pending::<()>().await
    };
    let asked = daemon.asked.wait_until(|| daemon.ending.get());
    match futures_util::future::select(std::pin::pin!(by_signal), std::pin::pin!(asked)).await {
        futures_util::future::Either::Left(_) => unreachable!("a signal asks for the end and waits"),
        futures_util::future::Either::Right((ending, _)) => ending,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}

async fn finish(
    daemon: &Rc<Daemon>,
    device: Option<Ublk>,
    ending: Ending,
    limit_ns: Option<u64>,
) -> (Result<String, String>, Device) {
    if let Some(server) = &daemon.server {
        let left = server.stop(CLOSE_CONNECTIONS_NS).await;
        if left > 0 {
            warn!("requests of {left} connections do not end");
        }
    }
    let (device, note) = match device {
        Some(device) => dispose(device, ending).await,
        None => (Device::Gone, String::new()),
    };
    let stop = async {
        match (ending, &device) {
            // Somebody has opened the device since the detach was asked for.
            (Ending::Detach, Device::Kept) => {
                daemon.engine.stop().await?;
                Err(format!("not detached{note}"))
            }
            (Ending::Detach, Device::Gone) => {
                daemon.engine.detach().await?;
                Ok("detached: the backing device holds everything, the cache has forgotten it".into())
            }
            _ => {
                daemon.engine.stop().await?;
                Ok(format!("stopped cleanly; dirty data stays in the cache{note}"))
            }
        }
    };
    let outcome = match limit_ns {
        None => stop.await,
        Some(limit_ns) => match rt::timeout(limit_ns, stop).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("it took longer than {} ms", limit_ns / 1_000_000)),
        },
    };
    (outcome, device)
}

/// The threads that serve connections, each with its own ring.
struct Threads {
    threads: Vec<RuntimeThread<()>>,
    stop: Arc<(AtomicBool, WaitQueue)>,
}

impl Threads {
    fn start(count: usize) -> anyhow::Result<Threads> {
        let stop = Arc::new((AtomicBool::new(false), WaitQueue::new()));
        let mut threads = Vec::new();
        for number in 0..count {
            let stop = stop.clone();
            let main = move || async move {
                stop.1.wait_until(|| stop.0.load(Ordering::SeqCst).then_some(())).await;
            };
            let thread = RuntimeThread::start(&format!("wb-nbd-{number}"), Config::default(), main);
            threads.push(thread.context("cannot start a thread")?);
        }
        Ok(Threads { threads, stop })
    }

    fn remotes(&self) -> Vec<rt::Remote> {
        self.threads.iter().map(|thread| thread.remote().clone()).collect()
    }

    fn stop(self) {
        self.stop.0.store(true, Ordering::SeqCst);
        self.stop.1.notify_all();
        for thread in self.threads {
            if thread.join().is_err() {
                error!("a thread ended with a panic");
            }
        }
    }
}

/// The daemon is below the page cache of what is on its volume: it must neither be paged out nor wait for write-out.
fn lock_memory() {
    use nix::sys::mman::{MlockAllFlags, mlockall};
    // MCL_ONFAULT: lock what is used, do not touch the rest now.
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    let all = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault;
    if let Err(error) = mlockall(all) {
        warn!("memory cannot be locked ({error}): raise LimitMEMLOCK or ulimit -l");
    }
    if let Err(error) = rt::set_io_flusher() {
        warn!("the kernel does not take this process for an I/O flusher ({error}): it needs CAP_SYS_RESOURCE");
    }
}
