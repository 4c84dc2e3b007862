//! Admission: how fast writers may use up what is left of the ring while a window is written back.
//!
//! A window frees nothing before its end, and then perhaps little: a segment becomes free when the last zone is written that
//! it has dirty blocks in. So it is foreseen how far the dirty tail gets with each part of the disk, and the rate is the one
//! at which what is left and what becomes free lasts at any time. It is computed anew all the time: a wrong expectation
//! bends the rate and stops nobody.
//! While much is left, writers are not slowed down at all, and pass with one relaxed load; from [`Shares::pace_segments`]
//! on the rate falls without a step.
//!
//! Writers wait in a line of tickets, counted in blocks. Each is woken when its ticket is granted, one after the other, and
//! never all at once. Whoever waits here holds nothing: neither locks nor a reservation. The wait is a matter of manners,
//! not of safety: when nothing is left, writers wait in [`Inner::wait_for_room`] as ever, and re-logging passes both.

use super::Inner;
use super::config::Shares;
use super::window::Step;
use crate::env::Env;
use crate::types::*;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

/// The rate is reconsidered so often, at least and at most.
const TICK_NS: (u64, u64) = (1_000_000, 20_000_000);
/// A window is expected to last so long at least: its end, with FLUSH and anchors, is no moment.
const LEFT_NS_MIN: f64 = 1e9;
/// Nobody is slower than this, in blocks per second: that much does no harm.
const PACE_MIN: f64 = 50.0;

#[derive(Default)]
struct Line {
    /// Blocks asked for, ever.
    asked: u64,
    /// Blocks granted; what is granted and not asked for yet is a burst.
    granted: u64,
    /// What was granted of the next block.
    fraction: f64,
    /// Tickets not granted, in order.
    waiting: VecDeque<(u64, Option<Waker>)>,
}

impl Line {
    /// Grants so many more blocks, of which not more than `burst` are kept for later. Gives who is to be woken.
    fn grant(&mut self, blocks: f64, burst: u64) -> Vec<Waker> {
        let sum = self.fraction + blocks;
        self.granted = (self.granted + sum as u64).min(self.asked + burst);
        self.fraction = sum.fract();
        self.served()
    }
    fn served(&mut self) -> Vec<Waker> {
        let count = self.waiting.partition_point(|(ticket, _)| *ticket <= self.granted);
        self.waiting.drain(..count).filter_map(|(_, waker)| waker).collect()
    }
}

/// What becomes free, and when.
#[derive(Default)]
struct Course {
    /// Dirty blocks outside the window.
    behind: u64,
    /// Log position of the dirty tail.
    tail: LogPos,
    steps: Vec<Step>,
}

impl Course {
    /// Blocks per ns at which `left` blocks and what becomes free always suffice, if the window still takes `left_ns`
    /// and each block behind it `item_ns`.
    fn rate(&self, left: f64, left_ns: f64, item_ns: f64) -> f64 {
        let mut rate = f64::INFINITY;
        let mut room = left;
        for step in &self.steps {
            let after_ns = left_ns + step.ahead * self.behind as f64 * item_ns;
            rate = rate.min(room / after_ns.max(LEFT_NS_MIN));
            room = left + step.pos.0.saturating_sub(self.tail.0) as f64;
        }
        if self.steps.is_empty() { left / left_ns.max(LEFT_NS_MIN) } else { rate }
    }
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Admission {
    paced: AtomicBool,
    line: Mutex<Line>,
    course: Mutex<Course>,
}

impl Admission {
    fn with<R>(&self, change: impl FnOnce(&mut Line) -> R) -> R {
        change(&mut self.line.lock().expect("not poisoned"))
    }

    /// What the window that begins at `tail` and those behind it will free.
    pub fn foresee(&self, behind: u64, tail: LogPos, steps: Vec<Step>) {
        *self.course.lock().expect("not poisoned") = Course { behind, tail, steps };
    }

    /// The dirty tail has moved.
    pub fn tail_is_at(&self, pos: LogPos) {
        self.course.lock().expect("not poisoned").tail = pos;
    }

    /// Writers are being slowed down.
    pub fn is_paced(&self) -> bool {
        self.paced.load(Ordering::Relaxed)
    }

    /// Waits until so many blocks may be written.
    pub async fn admit(&self, blocks: u64) {
        let ticket = self.with(|line| {
            line.asked += blocks;
            let ticket = line.asked;
            (ticket > line.granted).then(|| line.waiting.push_back((ticket, None)));
            ticket
        });
        poll_fn(|cx| {
            self.with(|line| {
                // Read under the lock of the line: who lets everybody go does it under that lock, too.
                if ticket <= line.granted || !self.is_paced() {
                    return Poll::Ready(());
                }
                let at = line.waiting.partition_point(|(other, _)| *other < ticket);
                line.waiting[at].1 = Some(cx.waker().clone());
                Poll::Pending
            })
        })
        .await;
    }

    fn begin(&self) {
        self.with(|line| {
            line.granted = line.asked;
            line.fraction = 0.0;
        });
        self.paced.store(true, Ordering::SeqCst);
    }

    /// Lets everybody go who waits.
    fn end(&self) {
        let woken = self.with(|line| {
            self.paced.store(false, Ordering::SeqCst);
            line.granted = line.asked;
            line.served()
        });
        woken.into_iter().for_each(Waker::wake);
    }

    /// Blocks until the next ticket is due; `None`: nobody waits.
    fn next(&self) -> Option<u64> {
        self.with(|line| line.waiting.front().map(|(ticket, _)| ticket.saturating_sub(line.granted)))
    }
}

impl<E: Env> Inner<E> {
    /// Blocks that users may still write before something has to be freed that is not written back yet.
    pub(super) fn blocks_left(&self) -> u64 {
        let shares = Shares::of(&self.geometry);
        let (_, dirty_tail) = self.anchors.tails();
        let (_, usable) = self.head.free_segments();
        let dirty = self.head.count_from(dirty_tail) as u64;
        let left = u64::from(usable).saturating_sub(dirty + u64::from(shares.reserve_segments));
        left * u64::from(self.geometry.record_blocks())
    }

    /// Blocks per second that writers may have; `None`: as many as they want.
    fn pace(&self) -> Option<f64> {
        if self.is_failed() || self.stopping.load(Ordering::SeqCst) {
            return None;
        }
        let left_ns = self.writeback.progress.left_ns(self.env.now_ns())?;
        let blocks = u64::from(self.geometry.record_blocks());
        let (left, full) = (self.blocks_left(), u64::from(Shares::of(&self.geometry).pace_segments) * blocks);
        if left >= full {
            return None;
        }
        let item_ns = self.writeback.progress.item_ns().unwrap_or(0.0);
        let lasting = 1e9 * self.admission.course.lock().expect("not poisoned").rate(left as f64, left_ns, item_ns);
        // Without a step where it begins.
        Some((lasting / (1.0 - left as f64 / full as f64)).max(PACE_MIN))
    }

    /// Lets writers in at the pace, whenever there is one. Runs until the engine stops.
    pub(super) async fn pace_writers(self: &Arc<Self>) {
        loop {
            let stop = self
                .writeback
                .event
                .wait_until(|| match self.writeback.is_stopping() {
                    true => Some(true),
                    false => self.pace().map(|_| false),
                })
                .await;
            if stop {
                return;
            }
            self.admission.begin();
            let mut last_ns = self.env.now_ns();
            while let Some(pace) = self.pace().filter(|_| !self.writeback.is_stopping()) {
                let due_ns = self.admission.next().map_or(TICK_NS.1, |blocks| (blocks as f64 / pace * 1e9) as u64);
                self.env.sleep(due_ns.clamp(TICK_NS.0, TICK_NS.1)).await;
                let now_ns = self.env.now_ns();
                let blocks = pace * now_ns.saturating_sub(last_ns) as f64 / 1e9;
                last_ns = now_ns;
                let burst = (pace * TICK_NS.1 as f64 / 1e9) as u64 + 1;
                let woken = self.admission.with(|line| line.grant(blocks, burst));
                woken.into_iter().for_each(Waker::wake);
            }
            self.admission.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_are_served_in_order_and_a_pause_earns_no_more_than_a_burst() {
        let mut line = Line::default();
        line.grant(1000.0, 8);
        assert_eq!(line.granted, 8);
        for ticket in [10, 12, 20] {
            line.asked = ticket;
            line.waiting.push_back((ticket, Some(Waker::noop().clone())));
        }
        assert_eq!(line.grant(1.5, 8).len(), 0);
        assert_eq!(line.grant(0.5, 8).len(), 1); // 10
        assert_eq!(line.grant(9.0, 8).len(), 1); // 19: 12
        assert_eq!(line.grant(0.9, 8).len(), 0);
        assert_eq!(line.grant(0.2, 8).len(), 1); // 20
        assert!(line.waiting.is_empty());
    }

    #[test]
    fn the_rate_is_what_lasts_at_any_time() {
        let step = |ahead: f64, pos: u64| Step { ahead, pos: LogPos(pos) };
        // 1000 blocks behind the window, each 10 ms: it ends in 2 s, half of the others at 7 s, all at 12 s.
        let course = |steps: &[Step]| Course { behind: 1000, tail: LogPos(100), steps: steps.to_vec() };
        let rate = |steps: &[Step]| course(steps).rate(600.0, 2e9, 1e7) * 1e9;
        assert_eq!(rate(&[step(0.0, 100)]), 300.0);
        // Nothing becomes free for 12 s.
        assert_eq!(rate(&[step(0.0, 100), step(1.0, 10_000)]), 50.0);
        // Much at 2 s; then the next is at 7 s.
        assert_eq!(rate(&[step(0.0, 900), step(0.5, 1000), step(1.0, 2000)]), 1500.0 / 12.0);
    }
}
