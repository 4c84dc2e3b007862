//! Tests of `StripeLocks`.

use super::executor::{Rng, Tasks, block_on, poll_once, yield_once};
use crate::sync::LockMode;
use crate::sync::rw::RwStripe;
use crate::sync::stripes::*;
use crate::types::VolumeId;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::task::Poll;

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
                StripeRequest { volume: VolumeId(rng.below(3) as u16), blocks: start..start + rng.below(1_500), mode }
            })
            .collect();
        let set = set_of(&requests, count);
        assert!(set.is_sorted_by(|a, b| a.0 < b.0), "ascending, each once");
        for request in &requests {
            for block in request.blocks.clone() {
                let stripe = stripe_of(request.volume, block >> BLOCKS_PER_STRIPE_BITS, count);
                let at = set.binary_search_by_key(&stripe, |entry| entry.0).expect("the stripe of a block is taken");
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

#[test]
fn one_stripe_is_shared_only_where_nobody_is_alone_and_a_refusal_releases_nothing() {
    let locks = StripeLocks::new(64);
    let writer = locks.try_acquire(&[request(3..4, LockMode::Exclusive)]).expect("nobody holds it");
    for _ in 0..3 {
        assert!(locks.try_shared_one(VOLUME, &(4..6)).is_none(), "refused, and the writer holds it still");
    }
    assert!(locks.try_acquire(&[request(3..4, LockMode::Exclusive)]).is_none());
    drop(writer);
    let one = locks.try_shared_one(VOLUME, &(4..6)).expect("free");
    let other = locks.try_shared_one(VOLUME, &(0..16)).expect("shared");
    assert!(locks.try_acquire(&[request(3..4, LockMode::Exclusive)]).is_none(), "both hold it");
    drop((one, other));
    assert!(locks.try_acquire(&[request(3..4, LockMode::Exclusive)]).is_some(), "each was released once");
    assert!(locks.try_shared_one(VOLUME, &(15..17)).is_none() && locks.try_shared_one(VOLUME, &(5..5)).is_none());
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
