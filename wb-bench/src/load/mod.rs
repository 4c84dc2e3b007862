//! Making load and timing it: jobs of so many operations in flight each, closed loop, on one or several threads.

pub mod fio;
pub mod nbd;
pub mod pattern;
pub mod stats;
pub mod target;

use anyhow::Context as _;
use futures_util::future::join_all;
use pattern::{Access, Places};
use stats::{Cpu, Pass};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};
use target::{Io, Target};
use wb_core::io::{Buf, Slice};
use wb_core::rt::{self, Config, RuntimeThread};
use wb_core::sync::WaitQueue;

/// What one pass does.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where operations go.
    pub access: Access,
    /// Bytes of an operation.
    pub block_bytes: u32,
    /// Operations in flight per job.
    pub iodepth: u32,
    /// Jobs side by side.
    pub jobs: u32,
    /// Threads over which the jobs are spread.
    pub threads: u32,
    /// Share of reads, in percent.
    pub read_percent: u8,
    /// Flush after so many writes of a job; the flush counts as a part of the last of them.
    pub flush_every: Option<u32>,
    /// Bytes of the working set, from offset 0 on.
    pub working_set_bytes: u64,
    /// The pass ends after this time, ...
    pub runtime: Duration,
    /// ... or when so much was written, whichever comes first.
    pub write_bytes_max: u64,
    /// Random numbers begin with it.
    pub seed: u64,
}

impl Load {
    fn writes(&self) -> bool {
        self.read_percent < 100
    }
}

/// What the operations of a pass share, on all threads.
struct Shared {
    load: Load,
    written: AtomicU64,
    begin: Instant,
    /// Threads besides the first that are done.
    done: AtomicU32,
    one_done: WaitQueue,
}

/// What the operations of one thread share.
struct Local {
    pass: RefCell<Pass>,
    failure: RefCell<Option<anyhow::Error>>,
    stop: Cell<bool>,
}

/// Bytes that writes take their payload from.
const PAYLOAD_BYTES: usize = 4 << 20;

/// Random bytes, the same for every pass, so that a device that compresses gains nothing.
pub fn payload() -> Slice {
    let mut buf = Buf::unpooled(PAYLOAD_BYTES);
    let mut rng = pattern::Rng::new(1);
    buf.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&rng.draw().to_le_bytes()));
    buf.freeze()
}

/// Runs a pass. What was written is flushed at its end, and the time of that counts: a pass does not end with data on
/// its way.
pub async fn run<T: Target>(target: &T, load: &Load) -> anyhow::Result<Pass> {
    let shared = Arc::new(Shared {
        load: load.clone(),
        written: AtomicU64::new(0),
        begin: Instant::now(),
        done: AtomicU32::new(0),
        one_done: WaitQueue::new(),
    });
    let cpu = Cpu::now();
    let threads = load.threads.clamp(1, load.jobs);
    let mut others = Vec::new();
    for thread in 1..threads {
        let (target, shared) = (target.clone(), shared.clone());
        let main = move || async move {
            let pass = run_jobs(&target, &shared, thread, threads).await;
            shared.done.fetch_add(1, SeqCst);
            shared.one_done.notify_all();
            pass
        };
        others.push(RuntimeThread::start(&format!("load-{thread}"), Config::default(), main)?);
    }
    let first = run_jobs(target, &shared, 0, threads).await;
    // Not by joining, which would stop this thread: others may wait for what runs on it.
    shared.one_done.wait_until(|| (shared.done.load(SeqCst) == threads - 1).then_some(())).await;
    let mut pass = first?;
    for other in others {
        let other = other.join().map_err(|_| anyhow::anyhow!("a load thread has panicked"))??;
        pass.add(&other)?;
    }
    if load.writes() {
        target.open().await?.flush().await?;
    }
    pass.elapsed = shared.begin.elapsed();
    pass.cpu = Some(cpu.since());
    Ok(pass)
}

async fn run_jobs<T: Target>(target: &T, shared: &Arc<Shared>, thread: u32, threads: u32) -> anyhow::Result<Pass> {
    let local = Rc::new(Local { pass: RefCell::new(Pass::new()), failure: RefCell::default(), stop: Cell::new(false) });
    let payload = payload();
    let mut tasks = Vec::new();
    for job in (thread..shared.load.jobs).step_by(threads as usize) {
        let io = target.open().await?;
        let places = places(&shared.load, job);
        let job = Rc::new(Job { io, places: RefCell::new(places), writes: Cell::new(0), payload: payload.clone() });
        for slot in 0..shared.load.iodepth {
            let (shared, local, job) = (shared.clone(), local.clone(), job.clone());
            tasks.push(rt::spawn(async move {
                if let Err(error) = operate(&shared, &local, &job, slot).await {
                    local.stop.set(true);
                    local.failure.borrow_mut().get_or_insert(error);
                }
            }));
        }
    }
    join_all(tasks).await;
    match local.failure.take() {
        Some(error) => Err(error),
        None => Ok(local.pass.replace(Pass::new())),
    }
}

fn places(load: &Load, job: u32) -> Places {
    let count = (load.working_set_bytes / u64::from(load.block_bytes)).max(1);
    Places::new(load.access.clone(), count, job.into(), load.jobs.into(), load.seed)
}

/// One job, shared by its operations in flight.
struct Job<I> {
    io: I,
    places: RefCell<Places>,
    writes: Cell<u32>,
    payload: Slice,
}

/// One operation in flight after the other, until the pass ends.
async fn operate<I: Io>(shared: &Shared, local: &Local, job: &Job<I>, slot: u32) -> anyhow::Result<()> {
    let load = &shared.load;
    let len = load.block_bytes as usize;
    let mut at = slot as usize * 4096;
    while !local.stop.get() {
        let begin = Instant::now();
        if begin.duration_since(shared.begin) >= load.runtime {
            break;
        }
        let (place, reads) = {
            let mut places = job.places.borrow_mut();
            (places.draw(), places.chance(load.read_percent))
        };
        let offset = place * u64::from(load.block_bytes);
        if reads {
            job.io.read(offset, len).await.with_context(|| format!("reading at offset {offset} failed"))?;
        } else {
            if shared.written.fetch_add(len as u64, Relaxed) + len as u64 > load.write_bytes_max {
                break;
            }
            at = if at + 4096 + len > job.payload.len() { 0 } else { at + 4096 };
            let payload = if len <= job.payload.len() { job.payload.slice(at..at + len) } else { job.payload.clone() };
            job.io.write(offset, payload, len).await.with_context(|| format!("writing at offset {offset} failed"))?;
            if let Some(every) = load.flush_every {
                job.writes.set(job.writes.get() + 1);
                if job.writes.get().is_multiple_of(every) {
                    job.io.flush().await.context("flushing failed")?;
                    local.pass.borrow_mut().flushes += 1;
                }
            }
        }
        local.pass.borrow_mut().record(begin.elapsed(), len as u64, reads);
        // An operation that never had to wait must not keep the others from their turn.
        rt::yield_now().await;
    }
    Ok(())
}

/// Writes a working set once, in order, in large pieces.
pub async fn fill<T: Target>(target: &T, bytes: u64) -> anyhow::Result<()> {
    let load = Load {
        access: Access::Sequential,
        block_bytes: (1 << 20).min(bytes) as u32,
        iodepth: 8,
        jobs: 1,
        threads: 1,
        read_percent: 0,
        flush_every: None,
        working_set_bytes: bytes,
        runtime: Duration::MAX,
        write_bytes_max: bytes,
        seed: 0,
    };
    run(target, &load).await.map(drop)
}
