//! Aligned buffers from fixed pools.
//!
//! A [`Buf`] owns a range of a chunk for reading and writing, exclusively. A [`Slice`] is a read-only, shared view.
//! A chunk goes back to its pool when the last of them is gone; operations in flight keep theirs.

use super::Region;
use crate::types::BLOCK_BYTES;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::future::Future;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

/// Memory of one buffer; returns to its pool when dropped.
struct Chunk {
    ptr: NonNull<u8>,
    len: usize,
    home: Option<(Arc<PoolInner>, usize)>,
}

// SAFETY: a chunk is plain memory. Mutable access goes through `Buf`, whose ranges never overlap.
unsafe impl Send for Chunk {}
// SAFETY: see above; shared access through `Slice` is read-only and its creators promise not to write the range.
unsafe impl Sync for Chunk {}

fn layout(len: usize) -> Layout {
    Layout::from_size_align(len, BLOCK_BYTES).expect("a buffer length that a layout can hold")
}

impl Chunk {
    fn new(len: usize, home: Option<(Arc<PoolInner>, usize)>) -> Chunk {
        assert!(len > 0, "no empty buffers");
        // SAFETY: the layout has a size greater than zero.
        let raw = unsafe { alloc_zeroed(layout(len)) };
        let Some(ptr) = NonNull::new(raw) else { handle_alloc_error(layout(len)) };
        Chunk { ptr, len, home }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some((pool, class)) = self.home.take() {
            let mapped = pool.region.is_none();
            pool.give_back(class, RawChunk { ptr: self.ptr, len: self.len, mapped });
        } else {
            // SAFETY: allocated in `Chunk::new` with this layout, and owned by this chunk alone.
            unsafe { dealloc(self.ptr.as_ptr(), layout(self.len)) }
        }
    }
}

/// Asks the kernel for huge pages under memory that was allocated and not touched yet: tables that are read at random
/// miss the address translation with nearly every access otherwise. A hint, and no more.
pub fn prefer_huge_pages<T>(memory: &mut [std::mem::MaybeUninit<T>]) {
    const PAGE_BYTES: usize = 4096;
    let start = memory.as_mut_ptr().addr().next_multiple_of(PAGE_BYTES);
    let end = (memory.as_mut_ptr().addr() + size_of_val(memory)) / PAGE_BYTES * PAGE_BYTES;
    let at = memory.as_mut_ptr().cast::<libc::c_void>().with_addr(start);
    if start < end {
        // SAFETY: whole pages within memory that is ours alone; the advice changes nothing that can be seen in them.
        let _ = unsafe { libc::madvise(at, end - start, libc::MADV_HUGEPAGE) };
    }
}

/// Asks the processor to fetch what `place` refers to, and waits for nothing.
#[inline]
pub fn prefetch<T>(place: &T) {
    // SAFETY: a prefetch of an address that is valid, which it would not even have to be.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(std::ptr::from_ref(place).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// A chunk at rest in its pool. Memory of pools is mapped, not allocated: its pages are zeroes that cost nothing before
/// they are used for the first time, while an aligned allocator would write all of them at start. Or it is a part of a
/// region, which the pool keeps.
struct RawChunk {
    ptr: NonNull<u8>,
    len: usize,
    /// Mapped for this chunk alone.
    mapped: bool,
}

// SAFETY: nobody refers to the memory of a chunk at rest.
unsafe impl Send for RawChunk {}

impl RawChunk {
    fn new(len: usize) -> RawChunk {
        let bytes = NonZeroUsize::new(len).expect("no empty buffers");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new private mapping touches no memory that anybody has.
        match unsafe { mmap_anonymous(None, bytes, access, MapFlags::MAP_PRIVATE) } {
            Ok(ptr) => RawChunk { ptr: ptr.cast(), len, mapped: true },
            Err(_) => handle_alloc_error(layout(len)),
        }
    }
}

impl Drop for RawChunk {
    fn drop(&mut self) {
        if !self.mapped {
            return;
        }
        // SAFETY: mapped in `RawChunk::new` with this length; a chunk that is handed out again is forgotten instead.
        let unmapped = unsafe { munmap(self.ptr.cast(), self.len) };
        assert!(unmapped.is_ok(), "the kernel takes back what it gave");
    }
}

/// Exclusive, aligned bytes: readable and writable. Its start is aligned to 4096 unless split elsewhere.
pub struct Buf {
    chunk: Arc<Chunk>,
    offset: usize,
    len: usize,
}

impl Buf {
    /// A zeroed buffer outside any pool: for tools, start-up and tests.
    pub fn unpooled(len: usize) -> Buf {
        Buf { chunk: Arc::new(Chunk::new(len, None)), offset: 0, len }
    }
    /// Bytes of the buffer.
    pub fn len(&self) -> usize {
        self.len
    }
    /// True for a buffer of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Address of the first byte, for the kernel.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        // SAFETY: the offset is within the chunk.
        unsafe { self.chunk.ptr.as_ptr().add(self.offset) }
    }
    /// Splits off `at..`; `self` keeps `..at`. Both are exclusive.
    pub fn split_off(&mut self, at: usize) -> Buf {
        assert!(at <= self.len, "split within the buffer");
        let tail = Buf { chunk: self.chunk.clone(), offset: self.offset + at, len: self.len - at };
        self.len = at;
        tail
    }
    /// Joins a buffer that was split off the end of this one. Panics if it was not.
    pub fn unsplit(&mut self, tail: Buf) {
        assert!(
            Arc::ptr_eq(&self.chunk, &tail.chunk) && self.offset + self.len == tail.offset,
            "buffers are neighbours of one chunk"
        );
        self.len += tail.len;
    }
    /// Shortens the buffer; the rest returns with the chunk.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "truncation makes shorter");
        self.len = len;
    }
    /// Gives up write access for shared read access.
    pub fn freeze(self) -> Slice {
        Slice { chunk: self.chunk, offset: self.offset, len: self.len }
    }
}

impl std::ops::Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range is within the chunk, initialised at allocation, and nobody else has access to it.
        unsafe { std::slice::from_raw_parts(self.chunk.ptr.as_ptr().add(self.offset), self.len) }
    }
}

impl std::ops::DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; exclusive because ranges of `Buf`s never overlap.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.ptr.as_ptr().add(self.offset), self.len) }
    }
}

/// Shared, read-only bytes.
#[derive(Clone)]
pub struct Slice {
    chunk: Arc<Chunk>,
    offset: usize,
    len: usize,
}

impl Slice {
    /// Bytes of the slice.
    pub fn len(&self) -> usize {
        self.len
    }
    /// True for a slice of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// A part of the slice.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.len, "part within the slice");
        Slice { chunk: self.chunk.clone(), offset: self.offset + range.start, len: range.end - range.start }
    }
    /// Address of the first byte, for the kernel.
    pub fn as_ptr(&self) -> *const u8 {
        // SAFETY: the offset is within the chunk.
        unsafe { self.chunk.ptr.as_ptr().add(self.offset) }
    }
    /// Joins `next` if it is the direct neighbour behind this slice in the same chunk.
    pub fn try_extend(&mut self, next: &Slice) -> bool {
        let neighbours = Arc::ptr_eq(&self.chunk, &next.chunk) && self.offset + self.len == next.offset;
        if neighbours {
            self.len += next.len;
        }
        neighbours
    }
}

impl std::ops::Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: within the chunk, initialised at allocation; no `Buf` overlaps, and `SharedChunk` writes only ranges
        // that have no slice yet.
        unsafe { std::slice::from_raw_parts(self.chunk.ptr.as_ptr().add(self.offset), self.len) }
    }
}

/// A buffer that several writers fill at the same time, each its own range, while filled ranges are read:
/// the buffer of an open record.
pub struct SharedChunk {
    chunk: Arc<Chunk>,
}

impl SharedChunk {
    /// Takes over a whole buffer.
    pub fn new(buf: Buf) -> SharedChunk {
        assert!(buf.offset == 0 && buf.len == buf.chunk.len, "a whole buffer");
        SharedChunk { chunk: buf.chunk }
    }
    /// Bytes of the buffer.
    pub fn len(&self) -> usize {
        self.chunk.len
    }
    /// Never empty.
    pub fn is_empty(&self) -> bool {
        false
    }
    /// Write access to a range.
    ///
    /// Until the returned borrow ends nobody else may read or write the range. `log::record` alone uses this, and the
    /// log head guarantees it there: a range is handed to one reservation, and read only after that reservation was
    /// published (release / acquire); the header belongs to whoever seals, under the head lock.
    #[expect(clippy::mut_from_ref, reason = "disjoint ranges of shared memory, see above")]
    pub(crate) fn range_mut(&self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.chunk.len, "range within the buffer");
        // SAFETY: within the chunk; exclusivity is the log head's invariant, see above.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.ptr.as_ptr().add(range.start), range.end - range.start) }
    }
    /// Stores sixteen bytes at `at`: the first eight, then, with release order, the last eight. Whoever looks at the
    /// memory later, be it another process after the death of this one, and finds the last eight, finds the first eight
    /// and everything that was stored before. Exclusive as [`SharedChunk::range_mut`] is.
    pub(crate) fn store_pair(&self, at: usize, pair: [u64; 2]) {
        assert!(at.is_multiple_of(8) && at + 16 <= self.chunk.len, "two words within the buffer");
        // SAFETY: within the chunk and aligned, which begins at a page; nobody accesses these words otherwise meanwhile.
        let words = unsafe {
            let first = self.chunk.ptr.as_ptr().add(at).cast::<u64>();
            [AtomicU64::from_ptr(first), AtomicU64::from_ptr(first.add(1))]
        };
        words[0].store(pair[0], Ordering::Relaxed);
        words[1].store(pair[1], Ordering::Release);
    }
    /// Address of the buffer.
    pub fn as_ptr(&self) -> *const u8 {
        self.chunk.ptr.as_ptr()
    }
    /// Read access to a range that has been filled and published.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.chunk.len, "range within the buffer");
        Slice { chunk: self.chunk.clone(), offset: range.start, len: range.end - range.start }
    }
}

/// Size and number of the buffers of one class.
#[derive(Debug, Clone, Copy)]
pub struct PoolClass {
    /// Bytes of each buffer, a multiple of 4096.
    pub bytes: usize,
    /// Number of buffers.
    pub count: usize,
}

struct Class {
    bytes: usize,
    count: usize,
    free: Mutex<(Vec<RawChunk>, Vec<Waker>)>,
}

struct PoolInner {
    classes: Vec<Class>,
    /// What the chunks are parts of, if they are.
    region: Option<Arc<Region>>,
}

impl PoolInner {
    fn give_back(&self, class: usize, chunk: RawChunk) {
        // All that wait are woken: a waker may be a stale one of a future that was served meanwhile, and waking only
        // that one would leave a buffer free and its taker asleep.
        let waiters = {
            let mut free = self.classes[class].free.lock().expect("pool lock");
            free.0.push(chunk);
            std::mem::take(&mut free.1)
        };
        waiters.into_iter().for_each(Waker::wake);
    }
}

/// A fixed set of buffers, all allocated at start.
#[derive(Clone)]
pub struct BufPool {
    inner: Arc<PoolInner>,
}

impl BufPool {
    /// Allocates all buffers of `classes`, which are in ascending order of size.
    pub fn new(classes: &[PoolClass]) -> BufPool {
        assert!(classes.windows(2).all(|pair| pair[0].bytes < pair[1].bytes), "classes ascend");
        let fill = |class: &PoolClass| {
            let chunks = (0..class.count).map(|_| RawChunk::new(class.bytes));
            Class { bytes: class.bytes, count: class.count, free: Mutex::new((chunks.collect(), Vec::new())) }
        };
        BufPool { inner: Arc::new(PoolInner { classes: classes.iter().map(fill).collect(), region: None }) }
    }

    /// One class of buffers, side by side in a region from `offset` on. Nobody else may use these bytes, except as
    /// [`SharedChunk`] says.
    pub fn within(region: &Arc<Region>, offset: usize, class: PoolClass) -> BufPool {
        let PoolClass { bytes, count } = class;
        assert!(bytes.is_multiple_of(BLOCK_BYTES) && offset.is_multiple_of(BLOCK_BYTES), "aligned buffers");
        let chunk = |number: usize| {
            let start = offset + number * bytes;
            RawChunk { ptr: region.part(start..start + bytes), len: bytes, mapped: false }
        };
        let chunks = (0..count).rev().map(chunk).collect();
        let classes = vec![Class { bytes, count, free: Mutex::new((chunks, Vec::new())) }];
        BufPool { inner: Arc::new(PoolInner { classes, region: Some(region.clone()) }) }
    }

    /// Bytes of the largest buffer.
    pub fn max_len(&self) -> usize {
        self.inner.classes.last().map_or(0, |class| class.bytes)
    }

    /// Bytes of all buffers.
    pub fn memory_bytes(&self) -> u64 {
        self.inner.classes.iter().map(|class| class.bytes as u64 * class.count as u64).sum()
    }

    /// Number of buffers of the largest class.
    pub fn count(&self) -> usize {
        self.inner.classes.last().map_or(0, |class| class.count)
    }

    /// Number of buffers of the largest class that are free now.
    pub fn free_largest(&self) -> usize {
        self.inner.classes.last().map_or(0, |class| class.free.lock().expect("pool lock").0.len())
    }

    /// A buffer of `len` bytes if one is free, from the smallest class that fits. Content is arbitrary.
    pub fn try_alloc(&self, len: usize) -> Option<Buf> {
        assert!(len > 0 && len <= self.max_len(), "a length that the pool serves");
        let fits = self.inner.classes.iter().enumerate().filter(|(_, class)| class.bytes >= len);
        for (number, class) in fits {
            let raw = class.free.lock().expect("pool lock").0.pop();
            if let Some(raw) = raw {
                return Some(self.hand_out(number, raw, len));
            }
        }
        None
    }

    /// A buffer of `len` bytes; waits in line until one of its class is free.
    pub fn alloc(&self, len: usize) -> impl Future<Output = Buf> + use<> {
        AllocFuture { pool: self.clone(), len }
    }

    fn hand_out(&self, class: usize, raw: RawChunk, len: usize) -> Buf {
        let raw = std::mem::ManuallyDrop::new(raw);
        let chunk = Chunk { ptr: raw.ptr, len: raw.len, home: Some((self.inner.clone(), class)) };
        Buf { chunk: Arc::new(chunk), offset: 0, len }
    }
}

struct AllocFuture {
    pool: BufPool,
    len: usize,
}

impl Future for AllocFuture {
    type Output = Buf;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Buf> {
        if let Some(buf) = self.pool.try_alloc(self.len) {
            return Poll::Ready(buf);
        }
        let number = self.pool.inner.classes.iter().position(|class| class.bytes >= self.len).expect("a class fits");
        let class = &self.pool.inner.classes[number];
        let mut free = class.free.lock().expect("pool lock");
        if let Some(raw) = free.0.pop() {
            drop(free);
            return Poll::Ready(self.pool.hand_out(number, raw, self.len));
        }
        free.1.push(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_return_when_the_last_part_is_gone() {
        let pool = BufPool::new(&[PoolClass { bytes: 8192, count: 1 }]);
        let mut head = pool.try_alloc(8192).expect("one is free");
        let tail = head.split_off(4096);
        let slice = tail.freeze().slice(0..512);
        drop(head);
        assert!(pool.try_alloc(1).is_none(), "the slice keeps the chunk");
        drop(slice);
        assert!(pool.try_alloc(1).is_some());
    }

    #[test]
    fn memory_of_pools_costs_nothing_before_it_is_used() {
        let resident_kib = || {
            let status = std::fs::read_to_string("/proc/self/status").expect("a Linux system");
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line of proc(5)");
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
        };
        let before = resident_kib();
        let pool = BufPool::new(&[PoolClass { bytes: 1 << 20, count: 512 }]);
        let buf = pool.try_alloc(1 << 20).expect("all are free");
        assert!(buf.iter().all(|&byte| byte == 0) && buf.as_ptr().addr().is_multiple_of(BLOCK_BYTES));
        // Other tests run at the same time, and use less than this.
        assert!(resident_kib() < before + (256 << 10), "half of the pool");
    }

    #[test]
    fn split_parts_join_again() {
        let mut head = Buf::unpooled(8192);
        let mut tail = head.split_off(4096);
        tail.fill(7);
        head.unsplit(tail);
        assert_eq!((head.len(), head[4096], head[0]), (8192, 7, 0));
    }
}
