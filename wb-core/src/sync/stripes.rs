//! Locks for block ranges: an array of reader/writer locks over which all blocks are spread.

use super::rw::{LockMode, RwStripe, Ticket};
use crate::types::VolumeId;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Log2 of the blocks that share a stripe: 16 blocks, 64 KiB.
const BLOCKS_PER_STRIPE_BITS: u32 = 4;
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
    stripes: Box<[RwStripe]>,
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

    /// Bytes of memory of the stripes.
    pub fn memory_bytes(&self) -> usize {
        std::mem::size_of_val(&*self.stripes)
    }
}

/// The stripe of a group of blocks. Within an aligned run of `count` groups every group has another stripe; the runs
/// are rotated against each other, so that structures at a fixed stride do not all share one.
fn stripe_of(volume: VolumeId, group: u64, count: usize) -> usize {
    let run = group / count as u64; // a shift: the count is a power of two
    let mixed = (run ^ u64::from(volume.0) << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (group.wrapping_add(mixed) & (count as u64 - 1)) as usize
}

/// Stripes with their modes, ascending, each once: `stripe << 1 | exclusive`.
enum StripeSet {
    Inline { len: u8, stripes: [u16; INLINE_STRIPES] },
    Heap(Vec<u16>),
}

impl StripeSet {
    fn new(requests: &[StripeRequest], count: usize) -> StripeSet {
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

    fn entries(&self) -> &[u16] {
        match self {
            StripeSet::Inline { len, stripes } => &stripes[..usize::from(*len)],
            StripeSet::Heap(heap) => heap,
        }
    }

    fn get(&self, at: usize) -> Option<(usize, LockMode)> {
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
    held: usize,
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "real threads are what is tested here")]
mod tests {
    use super::super::testing::{Rng, Tasks, block_on, poll_once, yield_once};
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI32, Ordering};

    const VOLUME: VolumeId = VolumeId(1);

    fn request(blocks: Range<u64>, mode: LockMode) -> StripeRequest {
        StripeRequest { volume: VOLUME, blocks, mode }
    }

    fn set_of(requests: &[StripeRequest], count: usize) -> Vec<(usize, LockMode)> {
        let set = StripeSet::new(requests, count);
        (0..set.entries().len()).map(|at| set.get(at).unwrap()).collect()
    }

    #[test]
    fn a_set_is_ascending_and_holds_the_stripe_of_every_block_in_the_stricter_mode() {
        let mut rng = Rng(1);
        for _ in 0..2_000 {
            let count = 1 << rng.below(8);
            let requests: Vec<_> = (0..rng.below(4))
                .map(|_| {
                    let start = rng.below(3_000);
                    let mode = if rng.below(2) == 0 { LockMode::Shared } else { LockMode::Exclusive };
                    StripeRequest {
                        volume: VolumeId(rng.below(3) as u16),
                        blocks: start..start + rng.below(1_500),
                        mode,
                    }
                })
                .collect();
            let set = set_of(&requests, count);
            assert!(set.is_sorted_by(|a, b| a.0 < b.0), "ascending, each once");
            for request in &requests {
                for block in request.blocks.clone() {
                    let stripe = stripe_of(request.volume, block >> BLOCKS_PER_STRIPE_BITS, count);
                    let at =
                        set.binary_search_by_key(&stripe, |entry| entry.0).expect("the stripe of a block is taken");
                    assert!(set[at].1 >= request.mode);
                }
            }
            // Nothing that no request asks for, and no stricter than asked.
            for (stripe, mode) in set {
                assert!(requests.iter().any(|request| {
                    let mut blocks = request.blocks.clone();
                    let all = blocks.end.saturating_sub(1) / 16 >= blocks.start / 16 + count as u64 - 1;
                    request.mode == mode
                        && !blocks.is_empty()
                        && (all || blocks.any(|block| stripe_of(request.volume, block >> 4, count) == stripe))
                }));
            }
        }
    }

    #[test]
    fn neighbours_and_fixed_strides_spread_over_the_stripes() {
        let count = 1024;
        let distinct = |groups: &mut dyn Iterator<Item = u64>| {
            let mut stripes: Vec<_> = groups.map(|group| stripe_of(VOLUME, group, count)).collect();
            stripes.sort_unstable();
            stripes.dedup();
            stripes.len()
        };
        assert_eq!(distinct(&mut (4096..5120)), count, "an aligned run uses each stripe once");
        for stride_bits in 1..24 {
            let used = distinct(&mut (0..1024).map(|i| i << stride_bits));
            assert!(used > 300, "stride 2^{stride_bits} uses {used} stripes");
        }
    }

    #[test]
    fn whole_volume_takes_every_stripe_and_empty_ranges_none() {
        let locks = StripeLocks::new(64);
        let all = locks.try_acquire(&[request(0..u64::MAX, LockMode::Exclusive)]).unwrap();
        assert_eq!(all.held, 64);
        let none = locks.try_acquire(&[request(5..5, LockMode::Exclusive)]).unwrap();
        assert_eq!(none.held, 0);
        assert!(locks.try_acquire(&[request(1_000_000..1_000_001, LockMode::Shared)]).is_none());
        drop(all);
        assert!(locks.stripes.iter().all(RwStripe::is_idle));
    }

    #[test]
    fn shared_holders_meet_and_a_queued_writer_is_not_overtaken() {
        let locks = StripeLocks::new(16);
        let first = locks.try_acquire(&[request(0..8, LockMode::Shared)]).unwrap();
        let second = locks.try_acquire(&[request(8..16, LockMode::Shared)]).unwrap();
        let write = [request(0..1, LockMode::Exclusive)];
        let mut writer = locks.acquire(&write);
        assert!(poll_once(&mut writer).is_pending());
        let read = [request(3..4, LockMode::Shared)];
        let mut late = locks.acquire(&read);
        assert!(poll_once(&mut late).is_pending(), "a newcomer waits behind the queued writer");
        drop(first);
        assert!(poll_once(&mut writer).is_pending());
        drop(second);
        let Poll::Ready(guard) = poll_once(&mut writer) else { panic!("the writer's turn") };
        assert!(poll_once(&mut late).is_pending());
        drop(guard);
        assert!(poll_once(&mut late).is_ready());
    }

    #[test]
    fn a_dropped_queued_writer_lets_the_readers_behind_it_in() {
        let locks = StripeLocks::new(16);
        let first = locks.try_acquire(&[request(0..1, LockMode::Shared)]).unwrap();
        let (write, read) = ([request(0..1, LockMode::Exclusive)], [request(0..1, LockMode::Shared)]);
        let mut writer = locks.acquire(&write);
        let mut readers = [locks.acquire(&read), locks.acquire(&read)];
        assert!(poll_once(&mut writer).is_pending());
        assert!(readers.iter_mut().all(|reader| poll_once(reader).is_pending()));
        drop(writer);
        assert!(readers.iter_mut().all(|reader| poll_once(reader).is_ready()));
        drop((first, readers));
        assert!(locks.stripes.iter().all(RwStripe::is_idle));
    }

    fn random_requests(rng: &mut Rng) -> Vec<StripeRequest> {
        (0..1 + rng.below(3))
            .map(|_| {
                let start = rng.below(400);
                let len = if rng.below(20) == 0 { 5_000 } else { 1 + rng.below(60) };
                request(start..start + len, if rng.below(3) == 0 { LockMode::Exclusive } else { LockMode::Shared })
            })
            .collect()
    }

    /// Per block: readers, or -1 for a writer.
    struct Blocks(Vec<AtomicI32>);

    impl Blocks {
        fn new() -> Blocks {
            Blocks((0..5_400).map(|_| AtomicI32::new(0)).collect())
        }
        /// Checks and records that `requests` (their strictest mode per block) are held; `leave` undoes it.
        fn enter(self: &Arc<Self>, requests: &[StripeRequest]) -> Leave {
            let mut held: Vec<(u64, LockMode)> = requests
                .iter()
                .flat_map(|request| request.blocks.clone().map(move |block| (block, request.mode)))
                .collect();
            held.sort_unstable_by(|a, b| b.cmp(a));
            held.dedup_by_key(|entry| entry.0);
            for &(block, mode) in &held {
                match mode {
                    LockMode::Exclusive => assert_eq!(self.0[block as usize].swap(-1, Ordering::Relaxed), 0),
                    LockMode::Shared => assert!(self.0[block as usize].fetch_add(1, Ordering::Relaxed) >= 0),
                }
            }
            Leave(self.clone(), held)
        }
    }

    struct Leave(Arc<Blocks>, Vec<(u64, LockMode)>);

    impl Drop for Leave {
        fn drop(&mut self) {
            for &(block, mode) in &self.1 {
                match mode {
                    LockMode::Exclusive => assert_eq!(self.0.0[block as usize].swap(0, Ordering::Relaxed), -1),
                    LockMode::Shared => assert!(self.0.0[block as usize].fetch_sub(1, Ordering::Relaxed) > 0),
                }
            }
        }
    }

    #[test]
    fn requests_exclude_each_other_and_all_end_in_any_poll_order() {
        for seed in 0..200 {
            let locks = Rc::new(StripeLocks::new(8 << (seed % 3)));
            let blocks = Arc::new(Blocks::new());
            let rng = Rc::new(RefCell::new(Rng(seed ^ 0xabcd)));
            let mut tasks = Tasks::new(seed);
            for id in 0..12 {
                let (locks, blocks, rng) = (locks.clone(), blocks.clone(), rng.clone());
                let work = async move {
                    for _ in 0..5 {
                        let requests = random_requests(&mut rng.borrow_mut());
                        let guard = locks.acquire(&requests).await;
                        let leave = blocks.enter(&requests);
                        let turns = rng.borrow_mut().below(3);
                        for _ in 0..turns {
                            yield_once().await;
                        }
                        drop(leave);
                        drop(guard);
                    }
                };
                if id < 9 { tasks.spawn(work) } else { tasks.spawn_droppable(work) }
            }
            tasks.run();
            assert!(locks.stripes.iter().all(RwStripe::is_idle), "seed {seed}");
        }
    }

    #[test]
    fn threads_exclude_each_other_and_lose_no_wake_up() {
        let locks = Arc::new(StripeLocks::new(8));
        let blocks = Arc::new(Blocks::new());
        let run = |seed: u64, locks: Arc<StripeLocks>, blocks: Arc<Blocks>| {
            let mut rng = Rng(seed);
            for turn in 0..2_000 {
                let requests = random_requests(&mut rng);
                let mut acquire = locks.acquire(&requests);
                if turn % 5 == 0 {
                    drop(poll_once(&mut acquire)); // dropped while queued, or with all it holds
                    continue;
                }
                let guard = block_on(acquire);
                drop(blocks.enter(&requests));
                drop(guard);
            }
        };
        let threads: Vec<_> = (0..4)
            .map(|seed| {
                let (locks, blocks) = (locks.clone(), blocks.clone());
                std::thread::spawn(move || run(seed, locks, blocks))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(locks.stripes.iter().all(RwStripe::is_idle));
    }
}
