//! A disk in memory for tests of the offline tools: volatile until flushed, and cut off at a chosen write.

use super::{Buf, Disk, DiskGeometry, IoError, Slice};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

const PAGE: usize = 4096;
const SECTOR: usize = 512;

type Pages = BTreeMap<u64, Box<[u8; PAGE]>>;

#[derive(Default)]
struct State {
    /// What reads see.
    visible: Pages,
    /// What survives a power cut whatever happens.
    durable: Pages,
    /// Completed and not yet flushed, in order.
    pending: Vec<(u64, Vec<u8>)>,
    writes: u64,
    flushes: u64,
    /// Writes that still succeed; afterwards everything fails as [`IoError::Gone`].
    writes_left: Option<u64>,
    /// Pages that cannot be read.
    unreadable: std::collections::BTreeSet<u64>,
}

/// A disk in memory; clones are the same disk.
#[derive(Clone)]
pub struct MemDisk {
    geometry: DiskGeometry,
    state: Arc<Mutex<State>>,
}

fn put(pages: &mut Pages, offset: u64, bytes: &[u8]) {
    for (at, sector) in bytes.chunks(SECTOR).enumerate() {
        let offset = offset + (at * SECTOR) as u64;
        let page = pages.entry(offset / PAGE as u64).or_insert_with(|| Box::new([0; PAGE]));
        page[offset as usize % PAGE..][..sector.len()].copy_from_slice(sector);
    }
}

impl MemDisk {
    /// A disk of zeroes.
    pub fn new(size_bytes: u64) -> MemDisk {
        let geometry = DiskGeometry {
            size_bytes,
            sector_bytes: 512,
            align_bytes: 512,
            discard: false,
            fua: true,
            read_only: false,
        };
        MemDisk { geometry, state: Arc::default() }
    }
    /// The same content on a disk of another size.
    pub fn resized(&self, size_bytes: u64) -> MemDisk {
        let copy = self.after_cut(|_, _| true);
        MemDisk { geometry: DiskGeometry { size_bytes, ..self.geometry }, ..copy }
    }
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("disk lock")
    }
    /// Number of writes and flushes so far.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.writes, state.flushes)
    }
    /// From now on this many writes succeed, then the device is gone.
    pub fn fail_after_writes(&self, writes: u64) {
        self.state().writes_left = Some(writes);
    }
    /// Reads of this block fail from now on, until it is written.
    pub fn make_unreadable(&self, offset: u64) {
        self.state().unreadable.insert(offset / PAGE as u64);
    }
    /// The disk as it may be found after a power cut: `keep(write, sector)` says which sectors of which unflushed
    /// write (0 being the oldest) made it to the medium.
    pub fn after_cut(&self, mut keep: impl FnMut(usize, usize) -> bool) -> MemDisk {
        let state = self.state();
        let mut pages = state.durable.clone();
        for (number, (offset, bytes)) in state.pending.iter().enumerate() {
            for (at, sector) in bytes.chunks(SECTOR).enumerate() {
                if keep(number, at) {
                    put(&mut pages, offset + (at * SECTOR) as u64, sector);
                }
            }
        }
        let fresh = State { visible: pages.clone(), durable: pages, ..State::default() };
        MemDisk { geometry: self.geometry, state: Arc::new(Mutex::new(fresh)) }
    }
    /// The disks that a power cut now may leave, whole writes only: all of them if there are at most `max`, else none
    /// kept, all kept, each write alone kept and alone lost, and drawn ones up to `max`. Each with the set of the writes
    /// that were kept, bit 0 being the oldest.
    pub fn every_cut(&self, max: usize) -> Vec<(u128, MemDisk)> {
        let writes = self.pending().min(127);
        let all = (1u128 << writes) - 1;
        let mut kept: std::collections::BTreeSet<u128> = if all < max as u128 {
            (0..=all).collect()
        } else {
            let ones = (0..writes).map(|write| 1u128 << write);
            [0, all].into_iter().chain(ones.flat_map(|one| [one, all & !one])).collect()
        };
        let mut state = all as u64 ^ 0x9e37_79b9_7f4a_7c15;
        while kept.len() < max && all >= max as u128 {
            // splitmix64 (public domain, S. Vigna), twice.
            let word = [(); 2].map(|()| {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb)
            });
            kept.insert((u128::from(word[0]) << 64 | u128::from(word[1])) & all);
        }
        let disk = |kept: u128| (kept, self.after_cut(|write, _| kept >> write.min(127) & 1 == 1));
        kept.into_iter().map(disk).collect()
    }
    /// Number of unflushed writes.
    pub fn pending(&self) -> usize {
        self.state().pending.len()
    }
    /// Reads bytes directly.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let state = self.state();
        let byte = |at: u64| state.visible.get(&(at / PAGE as u64)).map_or(0, |page| page[at as usize % PAGE]);
        (offset..offset + len as u64).map(byte).collect()
    }
    /// Changes bytes directly, durably. Offset and length are multiples of 512.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.state();
        put(&mut state.visible, offset, bytes);
        put(&mut state.durable, offset, bytes);
    }
    /// The whole content, for tests with real files.
    pub fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.geometry.size_bytes as usize];
        for (page, content) in &self.state().visible {
            let start = *page as usize * PAGE;
            let len = PAGE.min(bytes.len() - start);
            bytes[start..start + len].copy_from_slice(&content[..len]);
        }
        bytes
    }
    /// Flips one bit, durably.
    pub fn flip(&self, offset: u64, bit: u8) {
        let sector = offset / SECTOR as u64 * SECTOR as u64;
        let mut bytes = self.peek(sector, SECTOR);
        bytes[(offset - sector) as usize] ^= 1 << bit;
        self.poke(sector, &bytes);
    }
    /// True if both disks read the same, blocks of zeroes and blocks never written being equal.
    pub fn same_content(&self, other: &MemDisk) -> bool {
        let (mine, theirs) = (self.state().visible.clone(), other.state().visible.clone());
        let zero = Box::new([0u8; PAGE]);
        mine.keys()
            .chain(theirs.keys())
            .all(|page| mine.get(page).unwrap_or(&zero) == theirs.get(page).unwrap_or(&zero))
    }
}

impl Disk for MemDisk {
    fn geometry(&self) -> DiskGeometry {
        self.geometry
    }
    async fn read(&self, offset: u64, mut buf: Buf) -> (Result<(), IoError>, Buf) {
        assert!(offset.is_multiple_of(512) && offset + buf.len() as u64 <= self.geometry.size_bytes, "range");
        let pages = offset / PAGE as u64..(offset + buf.len() as u64).div_ceil(PAGE as u64);
        if self.state().unreadable.range(pages).next().is_some() {
            return (Err(IoError::Medium), buf);
        }
        let state = self.state();
        for (at, sector) in buf.chunks_mut(SECTOR).enumerate() {
            let offset = offset + (at * SECTOR) as u64;
            match state.visible.get(&(offset / PAGE as u64)) {
                Some(page) => sector.copy_from_slice(&page[offset as usize % PAGE..][..SECTOR]),
                None => sector.fill(0),
            }
        }
        drop(state);
        (Ok(()), buf)
    }
    async fn write(&self, mut offset: u64, data: Vec<Slice>, fua: bool) -> Result<(), IoError> {
        let mut state = self.state();
        match &mut state.writes_left {
            Some(0) => return Err(IoError::Gone),
            Some(left) => *left -= 1,
            None => {}
        }
        state.writes += 1;
        for piece in data {
            assert!(offset.is_multiple_of(512) && piece.len().is_multiple_of(512), "whole sectors");
            assert!(offset + piece.len() as u64 <= self.geometry.size_bytes, "within the device");
            put(&mut state.visible, offset, &piece);
            for page in offset / PAGE as u64..(offset + piece.len() as u64).div_ceil(PAGE as u64) {
                state.unreadable.remove(&page);
            }
            match fua {
                true => put(&mut state.durable, offset, &piece),
                false => state.pending.push((offset, piece.to_vec())),
            }
            offset += piece.len() as u64;
        }
        Ok(())
    }
    async fn flush(&self) -> Result<(), IoError> {
        let mut state = self.state();
        if state.writes_left == Some(0) {
            return Err(IoError::Gone);
        }
        state.flushes += 1;
        for (offset, bytes) in std::mem::take(&mut state.pending) {
            put(&mut state.durable, offset, &bytes);
        }
        Ok(())
    }
    async fn discard(&self, _offset: u64, _len: u64) -> Result<(), IoError> {
        Err(IoError::Unsupported)
    }
    async fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<(), IoError> {
        Err(IoError::Unsupported)
    }
}
