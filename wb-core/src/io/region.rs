//! A piece of memory that somebody else owns, such as a mapped file: buffers can be cut from it, and words in it can be
//! stored and loaded by several threads.

use crate::types::BLOCK_BYTES;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::any::Any;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Zeroed or mapped memory, aligned to 4096 bytes, for as long as its owner lives.
pub struct Region {
    ptr: NonNull<u8>,
    len: usize,
    /// Unmaps when dropped; with it whatever else has to live as long (a file that holds a lock).
    _owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: plain memory, which belongs to no thread. What is shared in it is accessed through atomics (`word`), or by one
// party at a time as the methods demand.
unsafe impl Send for Region {}
// SAFETY: see above.
unsafe impl Sync for Region {}

struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is only unmapped through this, once.
unsafe impl Send for Mapping {}
// SAFETY: see above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `Region` alone refers to the mapping, and is being dropped with it.
        let unmapped = unsafe { munmap(self.ptr.cast(), self.len) };
        assert!(unmapped.is_ok(), "the kernel takes back what it gave");
    }
}

impl Region {
    /// Memory of this process alone: zeroes that cost nothing before they are used.
    pub fn anonymous(len: usize) -> std::io::Result<Region> {
        let bytes = NonZeroUsize::new(len).expect("a region has bytes");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new private mapping touches no memory that anybody has.
        let ptr = unsafe { mmap_anonymous(None, bytes, access, MapFlags::MAP_PRIVATE) }?.cast();
        // SAFETY: just mapped, and nobody else knows of it.
        Ok(unsafe { Region::from_mapping(ptr, len, Box::new(())) })
    }

    /// Takes over a mapping, which is unmapped when the region is dropped, and then `keep`.
    ///
    /// # Safety
    /// `ptr` is the start of a readable and writable mapping of `len` bytes to which nothing in this process refers, and
    /// which stays backed: a file behind it is allocated and never shrinks.
    pub unsafe fn from_mapping(ptr: NonNull<u8>, len: usize, keep: Box<dyn Any + Send + Sync>) -> Region {
        assert!(ptr.as_ptr().addr().is_multiple_of(BLOCK_BYTES) && len > 0, "a mapping begins at a page");
        Region { ptr, len, _owner: Box::new((Mapping { ptr, len }, keep)) }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Address of a range, for buffers that are cut from the region.
    pub(super) fn part(&self, range: Range<usize>) -> NonNull<u8> {
        assert!(range.start <= range.end && range.end <= self.len, "a range within the region");
        // SAFETY: within the mapping.
        unsafe { self.ptr.add(range.start) }
    }

    /// Where in the region an address lies.
    pub fn offset_of(&self, ptr: *const u8) -> usize {
        let offset = ptr.addr().wrapping_sub(self.ptr.as_ptr().addr());
        assert!(offset < self.len, "an address within the region");
        offset
    }

    /// A word that several parties may store and load.
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(size_of::<u64>()) && offset + size_of::<u64>() <= self.len, "a word within");
        // SAFETY: within the mapping and aligned; words at such places are accessed through this method only, or (by
        // `copy_out`, `copy_in`) while nobody else uses the region.
        unsafe { AtomicU64::from_ptr(self.ptr.as_ptr().add(offset).cast()) }
    }

    /// Copies bytes out, while nobody writes them: before the region is used, or after its user has died.
    pub fn copy_out(&self, offset: usize, out: &mut [u8]) {
        let from = self.part(offset..offset + out.len());
        // SAFETY: within the mapping; `out` is memory of its own.
        unsafe { from.copy_to_nonoverlapping(NonNull::from(&mut *out).cast(), out.len()) }
    }

    /// Copies bytes in, while nobody else uses them.
    pub fn copy_in(&self, offset: usize, from: &[u8]) {
        let to = self.part(offset..offset + from.len());
        // SAFETY: within the mapping; `from` is memory of its own.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(from).cast(), from.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn words_and_bytes_are_the_same_memory() {
        let region = Region::anonymous(8192).expect("memory");
        region.word(4096).store(0x0102_0304, Ordering::Release);
        let mut bytes = [0; 8];
        region.copy_out(4096, &mut bytes);
        assert_eq!(u64::from_ne_bytes(bytes), 0x0102_0304);
        region.copy_in(4096, &7u64.to_ne_bytes());
        assert_eq!(region.word(4096).load(Ordering::Acquire), 7);
    }

    #[test]
    #[should_panic(expected = "a word within")]
    fn a_word_beyond_the_end_is_refused() {
        Region::anonymous(4096).expect("memory").word(4096);
    }
}
