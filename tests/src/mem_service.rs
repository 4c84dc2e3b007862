//! A volume in memory, for tests of transports: it records what it is asked, can be held, and can be made to fail.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use wb_core::io::{Buf, BufPool, PoolClass};
use wb_core::service::{BlockService, PayloadSource, ReadData, SERVICE_CHUNK_BYTES_MAX, ServiceError, ServiceInfo};
use wb_core::sync::WaitQueue;

/// One call of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the arguments of the service's methods")]
pub enum Call {
    Read { offset: u64, len: usize },
    Write { offset: u64, len: usize, fua: bool },
    Flush,
    Discard { offset: u64, len: u64, fua: bool },
    WriteZeroes { offset: u64, len: u64, fua: bool },
}

struct Inner {
    info: ServiceInfo,
    bytes: Mutex<Vec<u8>>,
    calls: Mutex<Vec<Call>>,
    recording: AtomicBool,
    failing: Mutex<Option<Range<u64>>>,
    held: AtomicBool,
    released: WaitQueue,
    running: AtomicUsize,
    /// Changes that are complete, and how many of them were when the last flush began.
    changes: AtomicU64,
    flushed_changes: AtomicU64,
    pool: BufPool,
}

/// A volume in memory. Clones are the same volume.
#[derive(Clone)]
pub struct MemService {
    inner: Arc<Inner>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test panics while it holds the volume")
}

impl MemService {
    /// A volume of zeroes.
    pub fn new(size_bytes: u64, sector_bytes: u32) -> MemService {
        MemService::with_info(ServiceInfo { size_bytes, sector_bytes, read_only: false })
    }

    /// A volume of zeroes that is described like this.
    pub fn with_info(info: ServiceInfo) -> MemService {
        let size = usize::try_from(info.size_bytes).expect("a volume that fits the address space");
        let classes = [(4 << 10, 256), (64 << 10, 64), (SERVICE_CHUNK_BYTES_MAX, 8)];
        let inner = Inner {
            info,
            bytes: Mutex::new(vec![0; size]),
            calls: Mutex::default(),
            recording: AtomicBool::new(true),
            failing: Mutex::default(),
            held: AtomicBool::new(false),
            released: WaitQueue::new(),
            running: AtomicUsize::new(0),
            changes: AtomicU64::new(0),
            flushed_changes: AtomicU64::new(0),
            pool: BufPool::new(&classes.map(|(bytes, count)| PoolClass { bytes, count })),
        };
        MemService { inner: Arc::new(inner) }
    }

    /// Stops recording calls, for measurements.
    pub fn without_record(self) -> MemService {
        self.inner.recording.store(false, Ordering::Relaxed);
        self
    }

    /// The calls since the last time this was asked.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *lock(&self.inner.calls))
    }

    /// A part of the volume's bytes.
    pub fn bytes(&self, range: Range<usize>) -> Vec<u8> {
        lock(&self.inner.bytes)[range].to_vec()
    }

    /// Reads and writes that touch this range fail from now on; `None`: none do.
    pub fn fail(&self, range: Option<Range<u64>>) {
        *lock(&self.inner.failing) = range;
    }

    /// Calls that come from now on wait until [`MemService::release`].
    pub fn hold(&self) {
        self.inner.held.store(true, Ordering::SeqCst);
    }

    /// Lets calls go on.
    pub fn release(&self) {
        self.inner.held.store(false, Ordering::SeqCst);
        self.inner.released.notify_all();
    }

    /// Calls that have begun and not ended.
    pub fn running(&self) -> usize {
        self.inner.running.load(Ordering::SeqCst)
    }

    /// Changes that are complete.
    pub fn changes(&self) -> u64 {
        self.inner.changes.load(Ordering::SeqCst)
    }

    /// Changes that a flush covers.
    pub fn flushed_changes(&self) -> u64 {
        self.inner.flushed_changes.load(Ordering::SeqCst)
    }

    async fn begin(&self, call: Call, offset: u64, len: u64) -> Result<Running<'_>, ServiceError> {
        let inner = &*self.inner;
        if inner.recording.load(Ordering::Relaxed) {
            lock(&inner.calls).push(call);
        }
        inner.running.fetch_add(1, Ordering::SeqCst);
        let running = Running(inner);
        if inner.held.load(Ordering::SeqCst) {
            inner.released.wait_until(|| (!inner.held.load(Ordering::SeqCst)).then_some(())).await;
        }
        let end = offset.checked_add(len).ok_or(ServiceError::Invalid)?;
        let sector = u64::from(inner.info.sector_bytes);
        if end > inner.info.size_bytes || !offset.is_multiple_of(sector) || !len.is_multiple_of(sector) {
            return Err(ServiceError::Invalid);
        }
        let failing = lock(&inner.failing).clone();
        if failing.is_some_and(|failing| offset < failing.end && failing.start < end) {
            return Err(ServiceError::Io);
        }
        Ok(running)
    }

    fn change(&self, offset: u64, len: u64, change: impl FnOnce(&mut [u8])) -> Result<(), ServiceError> {
        if self.inner.info.read_only {
            return Err(ServiceError::ReadOnly);
        }
        change(&mut lock(&self.inner.bytes)[offset as usize..][..len as usize]);
        self.inner.changes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Counts a call while it runs.
struct Running<'a>(&'a Inner);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl BlockService for MemService {
    fn info(&self) -> ServiceInfo {
        self.inner.info
    }

    async fn read(&self, offset: u64, len: usize) -> Result<ReadData, ServiceError> {
        assert!(len > 0 && len <= SERVICE_CHUNK_BYTES_MAX, "a read of {len} bytes");
        let _running = self.begin(Call::Read { offset, len }, offset, len as u64).await?;
        let mut buf = self.inner.pool.try_alloc(len).unwrap_or_else(|| Buf::unpooled(len));
        buf.copy_from_slice(&lock(&self.inner.bytes)[offset as usize..][..len]);
        Ok(ReadData::new(buf, 0, len))
    }

    async fn write<P: PayloadSource + ?Sized>(
        &self,
        offset: u64,
        len: usize,
        payload: &P,
        fua: bool,
    ) -> Result<(), ServiceError> {
        assert!(len > 0 && len <= SERVICE_CHUNK_BYTES_MAX, "a write of {len} bytes");
        let _running = self.begin(Call::Write { offset, len, fua }, offset, len as u64).await?;
        let mut result = Ok(());
        self.change(offset, len as u64, |bytes| {
            // Block by block, as the engine takes it.
            for (number, block) in bytes.chunks_mut(4096).enumerate() {
                result = result.and(payload.copy_to(number * 4096, block));
            }
        })?;
        result
    }

    async fn flush(&self) -> Result<(), ServiceError> {
        let covered = self.changes();
        let _running = self.begin(Call::Flush, 0, 0).await?;
        self.inner.flushed_changes.fetch_max(covered, Ordering::SeqCst);
        Ok(())
    }

    async fn discard(&self, offset: u64, len: u64, fua: bool) -> Result<(), ServiceError> {
        let _running = self.begin(Call::Discard { offset, len, fua }, offset, len).await?;
        // Any content is legal; this one is no zeroes and no old data.
        self.change(offset, len, |bytes| bytes.fill(0xdd))
    }

    async fn write_zeroes(&self, offset: u64, len: u64, fua: bool) -> Result<(), ServiceError> {
        let _running = self.begin(Call::WriteZeroes { offset, len, fua }, offset, len).await?;
        self.change(offset, len, |bytes| bytes.fill(0))
    }
}
