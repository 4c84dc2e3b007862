//! A modelled device as a transport sees it: bytes in memory or in a sparse file, times from the model.

use super::counts::Counts;
use super::timing::Timing;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wb_core::io::{Buf, BufPool, PoolClass};
use wb_core::model::{Command, CostModel};
use wb_core::rt;
use wb_core::service::{BlockService, PayloadSource, ReadData, SERVICE_CHUNK_BYTES_MAX, ServiceError, ServiceInfo};
use wb_core::sync::WaitQueue;

/// A day: with nothing to do, the driver looks again then.
const IDLE_NS: u64 = 86_400_000_000_000;

struct Inner {
    info: ServiceInfo,
    data: File,
    timing: Mutex<Timing>,
    /// A command came in or the clock was changed: the driver has to look again.
    changed: WaitQueue,
    /// A command is done.
    done: WaitQueue,
    pool: BufPool,
}

/// A modelled device. Clones are the same device.
#[derive(Clone)]
pub struct ModelDevice {
    inner: Arc<Inner>,
}

/// Gives up a command if its request is dropped.
struct InFlight<'a> {
    inner: &'a Inner,
    tag: u64,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.inner.timing().forget(self.tag);
    }
}

impl Inner {
    fn timing(&self) -> MutexGuard<'_, Timing> {
        // Counters and times: whole after every statement, so a panic elsewhere does not spoil them.
        self.timing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ModelDevice {
    /// A device with these bytes behind it.
    pub fn new(
        model: Box<dyn CostModel>,
        dilation: f64,
        size_bytes: u64,
        sector_bytes: u32,
        data: File,
    ) -> ModelDevice {
        let classes = [(4 << 10, 64), (64 << 10, 32), (SERVICE_CHUNK_BYTES_MAX, 16)];
        let inner = Inner {
            info: ServiceInfo { size_bytes, sector_bytes, read_only: false },
            data,
            timing: Mutex::new(Timing::new(model, dilation, rt::now_ns())),
            changed: WaitQueue::new(),
            done: WaitQueue::new(),
            pool: BufPool::new(&classes.map(|(bytes, count)| PoolClass { bytes, count })),
        };
        ModelDevice { inner: Arc::new(inner) }
    }

    /// Counters.
    pub fn counts(&self) -> Counts {
        self.inner.timing().counts()
    }

    /// Slows the device down by this factor from now on; 0: nothing takes any time.
    pub fn dilate(&self, dilation: f64) {
        self.inner.timing().dilate(dilation, rt::now_ns());
        self.inner.changed.notify_all();
        self.inner.done.notify_all();
    }

    /// Completes everything that is in the device, and from now on everything at once.
    pub fn release(&self) {
        self.inner.timing().release();
        self.inner.done.notify_all();
    }

    /// Lets the device go on when its time has come. Runs as a task beside the server, for ever.
    pub async fn drive(self) {
        loop {
            let (any, next_ns) = {
                let mut timing = self.inner.timing();
                let any = timing.poll(rt::now_ns());
                (any, timing.next_ns())
            };
            if any {
                self.inner.done.notify_all();
            }
            let now_ns = rt::now_ns();
            let wait_ns = next_ns.map_or(IDLE_NS, |at_ns| at_ns.saturating_sub(now_ns));
            if wait_ns == 0 {
                rt::yield_now().await;
                continue;
            }
            // Until then, or until something new makes the next event come sooner.
            let sooner = || (self.inner.timing().next_ns() != next_ns).then_some(());
            let _ = rt::timeout(wait_ns, self.inner.changed.wait_until(sooner)).await;
        }
    }

    /// Takes as long as the command takes.
    async fn pass(&self, command: Command) {
        let inner = &*self.inner;
        let (tag, others_done) = inner.timing().submit(command, rt::now_ns());
        inner.changed.notify_all();
        if others_done {
            inner.done.notify_all();
        }
        let _in_flight = InFlight { inner, tag };
        inner.done.wait_until(|| inner.timing().take_done(tag).then_some(())).await;
    }

    fn judge(&self, offset: u64, len: u64) -> Result<(), ServiceError> {
        let info = &self.inner.info;
        let end = offset.checked_add(len).ok_or(ServiceError::Invalid)?;
        let sector = u64::from(info.sector_bytes);
        let fits = end <= info.size_bytes && offset.is_multiple_of(sector) && len.is_multiple_of(sector);
        if fits { Ok(()) } else { Err(ServiceError::Invalid) }
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), ServiceError> {
        use nix::fcntl::{FallocateFlags, fallocate};
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let whole = |n: u64| i64::try_from(n).map_err(|_| ServiceError::Invalid);
        fallocate(&self.inner.data, flags, whole(offset)?, whole(len)?).map_err(|_| ServiceError::Io)
    }
}

impl BlockService for ModelDevice {
    fn info(&self) -> ServiceInfo {
        self.inner.info
    }

    async fn read(&self, offset: u64, len: usize) -> Result<ReadData, ServiceError> {
        self.judge(offset, len as u64)?;
        self.pass(Command::Read { offset, len: len as u64 }).await;
        let mut buf = self.inner.pool.try_alloc(len).unwrap_or_else(|| Buf::unpooled(len));
        self.inner.data.read_exact_at(&mut buf[..len], offset).map_err(|_| ServiceError::Io)?;
        Ok(ReadData::new(buf, 0, len))
    }

    async fn write<P: PayloadSource + ?Sized>(
        &self,
        offset: u64,
        len: usize,
        payload: &P,
        fua: bool,
    ) -> Result<(), ServiceError> {
        self.judge(offset, len as u64)?;
        {
            let mut buf = self.inner.pool.try_alloc(len).unwrap_or_else(|| Buf::unpooled(len));
            payload.copy_to(0, &mut buf[..len])?;
            self.inner.data.write_all_at(&buf[..len], offset).map_err(|_| ServiceError::Io)?;
        }
        self.pass(Command::Write { offset, len: len as u64, fua }).await;
        Ok(())
    }

    async fn flush(&self) -> Result<(), ServiceError> {
        self.pass(Command::Flush).await;
        Ok(())
    }

    async fn discard(&self, offset: u64, len: u64, _fua: bool) -> Result<(), ServiceError> {
        self.judge(offset, len)?;
        self.punch(offset, len)?;
        self.pass(Command::Discard).await;
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64, _fua: bool) -> Result<(), ServiceError> {
        self.judge(offset, len)?;
        self.punch(offset, len)?;
        self.pass(Command::Discard).await;
        Ok(())
    }
}
