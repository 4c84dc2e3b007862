//! Sparse content of a simulated device, cheap to clone: pages are shared until one side writes.

use crate::types::{BLOCK_BYTES, BLOCK_BYTES_U64};
use std::collections::BTreeMap;
use std::sync::Arc;

type Page = [u8; BLOCK_BYTES];

/// What a device holds. Pages that were never written, or zeroed as a whole, take no memory and read as zeroes.
#[derive(Clone, Default)]
pub struct Medium {
    pages: BTreeMap<u64, Arc<Page>>,
}

/// The parts of a range that lie in one page each, as (page, start in page, start in range, length).
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let start = (at % BLOCK_BYTES_U64) as usize;
        let count = (BLOCK_BYTES - start).min(len - done);
        let piece = (at / BLOCK_BYTES_U64, start, done, count);
        done += count;
        Some(piece)
    })
}

impl Medium {
    /// Reads `into.len()` bytes.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        for (page, start, done, count) in pieces(offset, into.len()) {
            match self.pages.get(&page) {
                Some(data) => into[done..done + count].copy_from_slice(&data[start..start + count]),
                None => into[done..done + count].fill(0),
            }
        }
    }

    /// Writes `data`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        for (page, start, done, count) in pieces(offset, data.len()) {
            let from = &data[done..done + count];
            match self.pages.get_mut(&page) {
                Some(old) => Arc::make_mut(old)[start..start + count].copy_from_slice(from),
                None => {
                    let mut new = [0; BLOCK_BYTES];
                    new[start..start + count].copy_from_slice(from);
                    self.pages.insert(page, Arc::new(new));
                }
            }
        }
    }

    /// Zeroes `len` bytes, at most what fits the address space of this machine.
    pub fn zero(&mut self, offset: u64, len: u64) {
        let (first, end) = (offset.div_ceil(BLOCK_BYTES_U64), (offset + len) / BLOCK_BYTES_U64);
        if first >= end {
            return self.zero_bytes(offset, len as usize);
        }
        let gone: Vec<u64> = self.pages.range(first..end).map(|(page, _)| *page).collect();
        for page in gone {
            self.pages.remove(&page);
        }
        self.zero_bytes(offset, (first * BLOCK_BYTES_U64 - offset) as usize);
        self.zero_bytes(end * BLOCK_BYTES_U64, (offset + len - end * BLOCK_BYTES_U64) as usize);
    }

    fn zero_bytes(&mut self, offset: u64, len: usize) {
        for (page, start, _, count) in pieces(offset, len) {
            if let Some(old) = self.pages.get_mut(&page) {
                Arc::make_mut(old)[start..start + count].fill(0);
            }
        }
    }

    /// Inverts one bit.
    pub fn flip_bit(&mut self, offset: u64, bit: u8) {
        let mut byte = [0];
        self.read(offset, &mut byte);
        self.write(offset, &[byte[0] ^ 1 << (bit % 8)]);
    }

    /// Number of 4 KiB pages that take memory.
    pub fn pages_used(&self) -> usize {
        self.pages.len()
    }

    /// Pages of the range that would be new if it were written.
    pub fn pages_missing(&self, offset: u64, len: usize) -> usize {
        pieces(offset, len).filter(|(page, ..)| !self.pages.contains_key(page)).count()
    }

    /// The first `len` bytes as an image.
    pub fn image(&self, len: usize) -> Vec<u8> {
        let mut image = vec![0; len];
        self.read(0, &mut image);
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimRng;

    #[test]
    fn behaves_like_an_array() {
        const LEN: usize = 5 * BLOCK_BYTES;
        let mut rng = SimRng::new(3);
        let (mut plain, mut medium) = (vec![0u8; LEN], Medium::default());
        for round in 0..500u64 {
            let start = rng.below(LEN as u64) as usize;
            let len = rng.range(0, (LEN - start) as u64) as usize;
            if rng.below(3) == 0 {
                plain[start..start + len].fill(0);
                medium.zero(start as u64, len as u64);
            } else {
                let data: Vec<u8> = (0..len).map(|at| (round as usize + at) as u8).collect();
                plain[start..start + len].copy_from_slice(&data);
                medium.write(start as u64, &data);
            }
            assert_eq!(medium.image(LEN), plain, "round {round}");
        }
    }

    #[test]
    fn clones_are_independent_and_huge_devices_are_sparse() {
        let mut first = Medium::default();
        first.write((16 << 40) - 4096, &[1; 4096]);
        let second = first.clone();
        first.zero(0, 16 << 40);
        let mut byte = [0];
        second.read((16 << 40) - 1, &mut byte);
        assert_eq!((byte[0], first.pages_used(), second.pages_used()), (1, 0, 1));
    }
}
