//! Locks for block ranges: an array of reader/writer locks over which all blocks are spread.

use super::rw::{LockMode, RwStripe, Ticket};
use crate::types::VolumeId;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Log2 of the blocks that share a stripe: 16 blocks, 64 KiB.
pub(super) const BLOCKS_PER_STRIPE_BITS: u32 = 4;
/// Most stripes there may be: a stripe and its mode are kept in 16 bits.
const STRIPES_MAX: usize = 1 << 15;
/// Requests up to this many stripes need no memory of their own.
const INLINE_STRIPES: usize = 32;

/// One range of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripeRequest {
    /// Volume of the range.
    pub volume: VolumeId,
    /// Block numbers of the range. An empty range asks for nothing.
    pub blocks: Range<u64>,
    /// Exclusive for blocks of which only a part is written, or which must not change; shared for whole blocks, among
    /// which the place in the log decides.
    pub mode: LockMode,
}

/// A fixed number of reader/writer locks ("stripes") for the blocks of all volumes: 16 neighbouring blocks share one,
/// and so do, rarely, blocks far apart, which costs waiting but never correctness.
///
/// A request takes its stripes in ascending order, each stripe once, so that two requests never wait for each other
/// in a circle. Hence a task must not ask for more while it holds a guard. Each stripe is first come first served.
/// Without contention a stripe costs one atomic operation to take and one to release, and up to 32 stripes need no
/// allocation.
pub struct StripeLocks {
    pub(super) stripes: Box<[RwStripe]>,
}

impl StripeLocks {
    /// `count` stripes of 64 bytes or more each. Panics unless `count` is a power of two and at most 32768.
    pub fn new(count: usize) -> StripeLocks {
        assert!(count.is_power_of_two() && count <= STRIPES_MAX, "{count} stripes: not a power of two up to 32768");
        StripeLocks { stripes: (0..count).map(|_| RwStripe::default()).collect() }
    }

    /// Waits for all blocks of `requests`, which may overlap: the stricter mode counts.
    pub fn acquire(&self, requests: &[StripeRequest]) -> StripeAcquire<'_> {
        let set = StripeSet::new(requests, self.stripes.len());
        StripeAcquire { guard: Some(StripeGuard { locks: self, set, held: 0 }), ticket: None }
    }

    /// Takes all blocks of `requests` if nobody holds or waits for any of them.
    pub fn try_acquire(&self, requests: &[StripeRequest]) -> Option<StripeGuard<'_>> {
        let mut guard = StripeGuard { locks: self, set: StripeSet::new(requests, self.stripes.len()), held: 0 };
        while let Some((stripe, mode)) = guard.next() {
            if !self.stripes[stripe].try_acquire(mode) {
                return None; // the guard gives back what it has
            }
            guard.held += 1;
        }
        Some(guard)
    }

    /// Takes blocks that lie in one stripe, shared, if nobody excludes that: what nearly every write of whole blocks
    /// asks for, in a few instructions.
    #[inline]
    pub fn try_shared_one(&self, volume: VolumeId, blocks: &Range<u64>) -> Option<SharedStripe<'_>> {
        let group = blocks.start >> BLOCKS_PER_STRIPE_BITS;
        if blocks.is_empty() || (blocks.end - 1) >> BLOCKS_PER_STRIPE_BITS != group {
            return None;
        }
        let stripe = &self.stripes[stripe_of(volume, group, self.stripes.len())];
        // `then`, not `then_some`: a guard that is made and not returned would release what it never had.
        stripe.try_acquire(LockMode::Shared).then(|| SharedStripe(stripe))
    }

    /// Bytes of memory of the stripes.
    pub fn memory_bytes(&self) -> usize {
        std::mem::size_of_val(&*self.stripes)
    }
}

/// Holds one stripe, shared, until dropped.
#[must_use = "the stripe is released when the guard is dropped"]
pub struct SharedStripe<'a>(&'a RwStripe);

impl Drop for SharedStripe<'_> {
    fn drop(&mut self) {
        self.0.release(LockMode::Shared);
    }
}

/// The stripe of a group of blocks. Within an aligned run of `count` groups every group has another stripe; the runs
/// are rotated against each other, so that structures at a fixed stride do not all share one.
pub(super) fn stripe_of(volume: VolumeId, group: u64, count: usize) -> usize {
    let run = group / count as u64; // a shift: the count is a power of two
    let mixed = (run ^ u64::from(volume.0) << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (group.wrapping_add(mixed) & (count as u64 - 1)) as usize
}

/// Stripes with their modes, ascending, each once: `stripe << 1 | exclusive`.
pub(super) enum StripeSet {
    Inline { len: u8, stripes: [u16; INLINE_STRIPES] },
    Heap(Vec<u16>),
}

impl StripeSet {
    pub(super) fn new(requests: &[StripeRequest], count: usize) -> StripeSet {
        let mut set = StripeSet::Inline { len: 0, stripes: [0; INLINE_STRIPES] };
        for request in requests.iter().filter(|request| !request.blocks.is_empty()) {
            let exclusive = u16::from(request.mode == LockMode::Exclusive);
            let first = request.blocks.start >> BLOCKS_PER_STRIPE_BITS;
            let last = (request.blocks.end - 1) >> BLOCKS_PER_STRIPE_BITS;
            if last - first >= count as u64 - 1 {
                (0..count).for_each(|stripe| set.push((stripe as u16) << 1 | exclusive));
            } else {
                (first..=last).for_each(|group| {
                    set.push((stripe_of(request.volume, group, count) as u16) << 1 | exclusive);
                });
            }
        }
        set.normalise();
        set
    }

    fn push(&mut self, entry: u16) {
        match self {
            StripeSet::Inline { len, stripes } if usize::from(*len) < INLINE_STRIPES => {
                stripes[usize::from(*len)] = entry;
                *len += 1;
            }
            StripeSet::Inline { stripes, .. } => {
                let mut heap = Vec::with_capacity(4 * INLINE_STRIPES);
                heap.extend_from_slice(stripes);
                heap.push(entry);
                *self = StripeSet::Heap(heap);
            }
            StripeSet::Heap(heap) => heap.push(entry),
        }
    }

    /// Sorts and keeps of each stripe the entry with the stricter mode, which sorts last.
    fn normalise(&mut self) {
        let entries = match self {
            StripeSet::Inline { len, stripes } => &mut stripes[..usize::from(*len)],
            StripeSet::Heap(heap) => &mut heap[..],
        };
        if entries.len() < 2 {
            return; // the most frequent request: one block
        }
        entries.sort_unstable();
        let mut kept = 0;
        for at in 0..entries.len() {
            if entries.get(at + 1).is_none_or(|next| next >> 1 != entries[at] >> 1) {
                entries[kept] = entries[at];
                kept += 1;
            }
        }
        match self {
            StripeSet::Inline { len, .. } => *len = kept as u8,
            StripeSet::Heap(heap) => heap.truncate(kept),
        }
    }

    pub(super) fn entries(&self) -> &[u16] {
        match self {
            StripeSet::Inline { len, stripes } => &stripes[..usize::from(*len)],
            StripeSet::Heap(heap) => heap,
        }
    }

    pub(super) fn get(&self, at: usize) -> Option<(usize, LockMode)> {
        let entry = *self.entries().get(at)?;
        let mode = if entry & 1 == 1 { LockMode::Exclusive } else { LockMode::Shared };
        Some((usize::from(entry >> 1), mode))
    }
}

/// Future of [`StripeLocks::acquire`].
#[must_use = "futures do nothing unless awaited"]
pub struct StripeAcquire<'a> {
    /// Holds the first `held` stripes of the request. `None` after completion.
    guard: Option<StripeGuard<'a>>,
    /// Place in the queue of the next stripe.
    ticket: Option<Ticket>,
}

impl<'a> Future for StripeAcquire<'a> {
    type Output = StripeGuard<'a>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<StripeGuard<'a>> {
        let this = self.get_mut();
        let guard = this.guard.as_mut().expect("not polled after completion");
        while let Some((stripe, mode)) = guard.next() {
            let stripe = &guard.locks.stripes[stripe];
            match this.ticket {
                None => this.ticket = stripe.acquire_or_queue(mode, cx.waker()),
                Some(ticket) if stripe.poll(ticket, cx.waker()) => this.ticket = None,
                Some(_) => return Poll::Pending,
            }
            if this.ticket.is_some() {
                return Poll::Pending;
            }
            guard.held += 1;
        }
        Poll::Ready(this.guard.take().expect("taken once"))
    }
}

impl Drop for StripeAcquire<'_> {
    fn drop(&mut self) {
        if let (Some(ticket), Some(guard)) = (self.ticket, &self.guard) {
            let (stripe, _) = guard.next().expect("a ticket belongs to the next stripe");
            guard.locks.stripes[stripe].cancel(ticket);
        }
    }
}

/// Holds the stripes of a request until dropped.
#[must_use = "the stripes are released when the guard is dropped"]
pub struct StripeGuard<'a> {
    locks: &'a StripeLocks,
    set: StripeSet,
    pub(super) held: usize,
}

impl StripeGuard<'_> {
    /// The stripe to take next.
    fn next(&self) -> Option<(usize, LockMode)> {
        self.set.get(self.held)
    }
}

impl Drop for StripeGuard<'_> {
    fn drop(&mut self) {
        for at in (0..self.held).rev() {
            let (stripe, mode) = self.set.get(at).expect("held stripes are in the set");
            self.locks.stripes[stripe].release(mode);
        }
    }
}
