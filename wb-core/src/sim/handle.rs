//! A process's handle on a simulated device: the [`Disk`] of the simulator.

use super::disk::{DeviceConfig, SimDevice};
use super::fault::{DiscardEffect, OpKind};
use super::state::{DeviceState, InFlight};
use super::volatile::{Content, Pending};
use crate::io::{Buf, Disk, DiskGeometry, IoError, Slice};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// A handle of one process on a [`SimDevice`].
#[derive(Clone)]
pub struct SimDisk {
    pub(super) device: SimDevice,
    pub(super) alive: Arc<AtomicBool>,
    pub(super) cut: Arc<AtomicBool>,
    pub(super) read_only: bool,
}

/// Where a device puts the answer of one operation.
struct Slot<T> {
    shared: Arc<Mutex<(Option<T>, Option<Waker>)>>,
}

impl<T> Slot<T> {
    fn new() -> (Slot<T>, Slot<T>) {
        let shared = Arc::new(Mutex::new((None, None)));
        (Slot { shared: shared.clone() }, Slot { shared })
    }

    fn answer(&self, value: T) {
        let mut slot = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        slot.0 = Some(value);
        let waker = slot.1.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Slot<T> {
    type Output = T;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut slot = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        match slot.0.take() {
            Some(value) => Poll::Ready(value),
            None => {
                slot.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Of a payload, for the digest of events. Four sums side by side: one alone waits for its own multiplication.
fn hash(bytes: &[u8]) -> u64 {
    let fold = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
    let (words, rest) = bytes.as_chunks::<8>();
    let (lines, words) = words.as_chunks::<4>();
    let mut sums = [0, 1, 2, 3];
    for line in lines {
        for (sum, word) in sums.iter_mut().zip(line) {
            *sum = fold(*sum, u64::from_le_bytes(*word));
        }
    }
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    sums.into_iter().chain(words).chain(rest.iter().map(|byte| u64::from(*byte))).fold(0, fold)
}

impl SimDisk {
    /// This handle falls silent: its requests are never answered. Those in flight still take effect.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }

    /// The device behind the handle.
    pub fn device(&self) -> &SimDevice {
        &self.device
    }

    fn silent(&self) -> bool {
        self.cut.load(Ordering::Relaxed) || !self.alive.load(Ordering::Relaxed)
    }

    /// Runs `complete` when the device is done and answers with its result, unless the handle was cut meanwhile.
    async fn answer<T: Send + 'static>(
        &self,
        what: &'static str,
        offset: u64,
        delay_ns: u64,
        complete: impl FnOnce(&mut DeviceState) -> (T, u64) + Send + 'static,
    ) -> T {
        let (slot, answer) = Slot::new();
        let (handle, device) = (self.clone(), self.device.clone());
        self.device.core.after(delay_ns, move || {
            let mut state = device.lock();
            let (value, digest) = complete(&mut state);
            drop(state);
            device.note(what, offset, digest);
            if what != "read" {
                device.core.device_event();
            }
            if !handle.silent() {
                answer.answer(value);
            }
        });
        slot.await
    }

    /// Writes `content`: registers it, draws its fate, and answers when it is done.
    async fn submit_write(
        &self,
        what: &'static str,
        offset: u64,
        content: Content,
        fua: bool,
        keep: Vec<Slice>,
    ) -> Result<(), IoError> {
        let (id, delay_ns, error) = {
            let mut state = self.device.lock();
            state.check_range(offset, content.len());
            state.next_id += 1;
            let id = state.next_id;
            state.counters.writes += 1;
            state.counters.write_bytes += content.len();
            state.counters.fua_writes += u64::from(fua);
            let mut error = state.fault(OpKind::Write);
            if error.is_none() && state.plan.is_unwritable(offset, content.len()) {
                state.counters.errors += 1;
                error = Some(IoError::Medium);
            }
            if error.is_none() && (state.read_only || self.read_only) {
                error = Some(IoError::ReadOnly);
            }
            if error.is_none()
                && let Some(max) = state.plan.thin_pages_max
                && state.view.pages_used() + state.view.pages_missing(offset, content.len() as usize) > max
            {
                error = Some(IoError::NoSpace);
            }
            let plan = state.plan.latency.clone();
            let delay_ns = plan.draw(OpKind::Write, &mut state.rng);
            let write = Pending::new(id, offset, content, false);
            // Some writes are visible at once, others when they complete.
            let write = if error.is_none() && !state.gone && state.rng.chance_ppm(250_000) {
                state.apply(write);
                None
            } else {
                Some(write)
            };
            state.in_flight.insert(id, InFlight { write, fua, alive: self.alive.clone() });
            (id, delay_ns, error)
        };
        self.device.note(what, offset, id);
        self.device.core.device_event();
        self.answer(what, offset, delay_ns, move |state| {
            // The memory of a request in flight belongs to the device until here.
            drop(keep);
            let result = state.complete_write(id, error);
            let failed = u64::from(result.is_err());
            (result, id << 1 | failed)
        })
        .await
    }
}

impl Disk for SimDisk {
    fn geometry(&self) -> DiskGeometry {
        let state = self.device.lock();
        let DeviceConfig { size_bytes, sector_bytes, align_bytes, discard, .. } = state.config;
        DiskGeometry { size_bytes, sector_bytes, align_bytes, discard, fua: true, read_only: self.read_only }
    }

    async fn read(&self, offset: u64, mut buf: Buf) -> (Result<(), IoError>, Buf) {
        if self.silent() {
            return std::future::pending().await;
        }
        let (delay_ns, error, early) = {
            let mut state = self.device.lock();
            let len = buf.len() as u64;
            state.check_range(offset, len);
            state.counters.reads += 1;
            state.counters.read_bytes += len;
            let error = state.fault(OpKind::Read);
            if state.in_area(offset, len) && state.plan.rot_ppm > 0 {
                let ppm = state.plan.rot_ppm;
                if state.rng.chance_ppm(ppm) {
                    let at = offset + state.rng.below(len);
                    let bit = state.rng.below(8) as u8;
                    state.flip_bit(at, bit);
                    state.counters.silent_faults += 1;
                }
            }
            // What is seen of a write that overlaps the read in time: nothing, or all.
            let early = state.rng.below(2) == 0;
            if early {
                state.view.read(offset, &mut buf);
            }
            let plan = state.plan.latency.clone();
            (plan.draw(OpKind::Read, &mut state.rng), error, early)
        };
        self.answer("read", offset, delay_ns, move |state| {
            let result = state.complete_read(offset, &mut buf, early, error);
            let digest = if result.is_ok() { hash(&buf) } else { 1 };
            ((result, buf), digest)
        })
        .await
    }

    async fn write(&self, offset: u64, data: Vec<Slice>, fua: bool) -> Result<(), IoError> {
        if self.silent() {
            return std::future::pending().await;
        }
        let mut bytes = Vec::with_capacity(data.iter().map(Slice::len).sum());
        data.iter().for_each(|slice| bytes.extend_from_slice(slice));
        self.device.note("payload", bytes.len() as u64, hash(&bytes));
        let what = if fua { "write fua" } else { "write" };
        self.submit_write(what, offset, Content::Data(bytes.into()), fua, data).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        if self.silent() {
            return std::future::pending().await;
        }
        let (covered, delay_ns, error) = {
            let mut state = self.device.lock();
            state.counters.flushes += 1;
            let error = state.fault(OpKind::Flush);
            let plan = state.plan.latency.clone();
            (state.cache.completed(), plan.draw(OpKind::Flush, &mut state.rng), error)
        };
        self.device.note("flush", covered.len() as u64, 0);
        self.device.core.device_event();
        let count = covered.len() as u64;
        self.answer("flushed", count, delay_ns, move |state| {
            let result = state.complete_flush(&covered, error);
            let failed = u64::from(result.is_err());
            (result, failed)
        })
        .await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        if self.silent() {
            return std::future::pending().await;
        }
        let (supported, content) = {
            let mut state = self.device.lock();
            state.check_range(offset, len);
            state.counters.discards += 1;
            let content = match state.plan.discard {
                DiscardEffect::Zeroes => Some(Content::Zeroes(len)),
                DiscardEffect::Old => None,
                DiscardEffect::Random => {
                    // A huge range is filled at its ends only: nobody may rely on any of it.
                    let count = len.min(1 << 20) as usize;
                    let fill = state.rng.next_u64().to_le_bytes();
                    Some(Content::Data(fill.iter().copied().cycle().take(count).collect::<Vec<u8>>().into()))
                }
            };
            (state.config.discard && !self.read_only, content)
        };
        if !supported {
            return Err(IoError::Unsupported);
        }
        match content {
            Some(content) => self.submit_write("discard", offset, content, false, Vec::new()).await,
            None => self.answer("discard", offset, 1000, |_| (Ok(()), 0)).await,
        }
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        if self.silent() {
            return std::future::pending().await;
        }
        if self.device.lock().plan.no_write_zeroes {
            return Err(IoError::Unsupported);
        }
        self.submit_write("zeroes", offset, Content::Zeroes(len), false, Vec::new()).await
    }
}
