//! A disk with a volatile write cache, for power cuts of guests: QEMU opens it over NBD.
//!
//! A write lies in the cache until a flush that begins after it has ended (or the write itself says FUA). A power cut keeps
//! each unflushed sector or not, as the seed has it: so later writes may survive and earlier ones not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use wb_core::io::Buf;
use wb_core::service::{BlockService, PayloadSource, ReadData, ServiceError, ServiceInfo};

const SECTOR: usize = 512;

type Sector = [u8; SECTOR];

#[derive(Default)]
struct State {
    /// On the medium, by number of sector; absent ones are zeroes.
    durable: BTreeMap<u64, Sector>,
    /// In the cache: what a read sees.
    cached: BTreeMap<u64, Sector>,
    flushes: u64,
    /// The power is off: what still comes from the guest, which is killed next, fails and has no effect.
    off: bool,
}

/// The disk. Clones are the same one.
#[derive(Clone)]
pub struct VolatileDisk {
    size_bytes: u64,
    state: Arc<Mutex<State>>,
}

impl VolatileDisk {
    /// A disk of zeroes.
    pub fn new(size_bytes: u64) -> VolatileDisk {
        VolatileDisk { size_bytes, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the disk")
    }

    /// From now on everything that comes fails, and has no effect.
    pub fn power_off(&self) {
        self.state().off = true;
    }

    /// As [`VolatileDisk::power_off`], at the next moment at which something is not flushed. False if there was none in
    /// this time; the power is on then.
    pub fn power_off_with_something_unflushed(&self, limit: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            let mut state = self.state();
            if !state.cached.is_empty() {
                state.off = true;
                return true;
            }
            drop(state);
            std::thread::sleep(Duration::from_micros(200));
        }
        false
    }

    /// Power is back, with about a half of the unflushed sectors. Returns how many were lost.
    pub fn power_on(&self, seed: u64) -> usize {
        let mut state = self.state();
        state.off = false;
        let (mut lost, mut random) = (0, seed | 1);
        for (number, bytes) in std::mem::take(&mut state.cached) {
            // xorshift64 (public domain, G. Marsaglia).
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            if random.is_multiple_of(2) {
                state.durable.insert(number, bytes);
            } else {
                lost += 1;
            }
        }
        lost
    }

    /// Flushes so far.
    pub fn flushes(&self) -> u64 {
        self.state().flushes
    }

    /// What an access needs: the power.
    fn powered(&self) -> Result<MutexGuard<'_, State>, ServiceError> {
        Some(self.state()).filter(|state| !state.off).ok_or(ServiceError::Io)
    }

    fn put(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), ServiceError> {
        let mut state = self.powered()?;
        for (index, bytes) in data.chunks_exact(SECTOR).enumerate() {
            let (number, bytes) = (offset / SECTOR as u64 + index as u64, bytes.try_into().expect("a sector"));
            if fua {
                state.cached.remove(&number);
                state.durable.insert(number, bytes);
            } else {
                state.cached.insert(number, bytes);
            }
        }
        Ok(())
    }
}

impl BlockService for VolatileDisk {
    fn info(&self) -> ServiceInfo {
        ServiceInfo { size_bytes: self.size_bytes, sector_bytes: SECTOR as u32, read_only: false }
    }

    async fn read(&self, offset: u64, len: usize) -> Result<ReadData, ServiceError> {
        let mut buf = Buf::unpooled(len);
        let state = self.powered()?;
        for (index, out) in buf.chunks_exact_mut(SECTOR).enumerate() {
            let number = offset / SECTOR as u64 + index as u64;
            match (state.cached.get(&number), state.durable.get(&number)) {
                (Some(bytes), _) | (None, Some(bytes)) => out.copy_from_slice(bytes),
                (None, None) => out.fill(0),
            }
        }
        drop(state);
        Ok(ReadData::new(buf, 0, len))
    }

    async fn write<P: PayloadSource + ?Sized>(
        &self,
        offset: u64,
        len: usize,
        payload: &P,
        fua: bool,
    ) -> Result<(), ServiceError> {
        let mut data = vec![0; len];
        payload.copy_to(0, &mut data)?;
        self.put(offset, &data, fua)
    }

    async fn flush(&self) -> Result<(), ServiceError> {
        let mut state = self.powered()?;
        state.flushes += 1;
        for (number, bytes) in std::mem::take(&mut state.cached) {
            state.durable.insert(number, bytes);
        }
        Ok(())
    }

    async fn discard(&self, _offset: u64, _len: u64, _fua: bool) -> Result<(), ServiceError> {
        Ok(()) // any content is legal, the old one, too
    }

    async fn write_zeroes(&self, offset: u64, len: u64, fua: bool) -> Result<(), ServiceError> {
        let zeroes = vec![0; 1 << 20];
        for at in (0..len).step_by(zeroes.len()) {
            self.put(offset + at, &zeroes[..(len - at).min(zeroes.len() as u64) as usize], fua)?;
        }
        Ok(())
    }
}
