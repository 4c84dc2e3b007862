//! Write-back: the maintenance task and the order of a window.
//!
//! A window: group commit; the oldest dirty records ≤ D; superseded versions dropped; ranges applied in log order; payload
//! read, verified, sorted, merged, written; one FLUSH of the backing device; what failed re-logged; anchor with the new
//! tails in both slots. One window at a time and each block once in it: at most one backing write per block is in flight
//! [v1 of window 1 lands after v2 of window 2].
//!
//! A window takes a zone of the disk: of all that is dirty, wherever it is in the log, what lies there. Zone after zone the
//! disk is swept round and round. The more dirty blocks there are per track, the less each costs, and the whole ring may
//! hold them; the tail follows zone by zone: it passes a segment when nothing in it is newest, durable and dirty any more.
//!
//! While a range is dirty, or a block stuck, a window is a prefix of the log instead, without a gap, and nothing younger than
//! it is on the disk before it is done: so its ranges may be applied whole [a neighbour written early is destroyed by an
//! older discard], and it frees more than what it has to log anew. What a window broken off has written already is
//! written again from the log, in either case.
//!
//! Reclaim runs beside it, for a window of a large cache takes minutes: it touches segments before the dirty tail only,
//! the window those behind it. Anchors and reclaims take turns.

use super::Inner;
use super::config::Shares;
use super::counters::count;
use super::governor::Governor;
use super::policy::{PolicyState, Why, WritebackPolicy};
use super::progress::Progress;
use super::refused::Refused;
use super::sweep::{Stuck, StuckLimits};
use super::window::{Item, RangeItem, Window, WindowLimits, Zone};
use crate::env::{Env, PlantedBug};
use crate::index::RangeKind;
use crate::io::Disk;
use crate::log::head::{Class, Full};
use crate::service::ServiceError;
use crate::sync::{AsyncLock, WaitQueue};
use crate::types::*;
use futures_util::future::{join4, select};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Blocks marked clean without letting others run.
const CLEANED_AT_ONCE: usize = 4096;
/// Zones of the disk, where nothing but more space is wanted: each moves the tail, and costs a FLUSH.
const ZONES: u64 = 16;
/// A zone that is a third of what is dirty or less takes so long at least.
const ZONE_NS_MIN: f64 = 2e9;
/// Segments' worth of blocks in a zone, at least.
const ZONE_SEGMENTS_MIN: usize = 4;
/// Segments that are looked through for a zone, in list lengths.
const ZONE_LOG_LISTS: usize = 16;
/// A look at the clock.
const TICK_NS: u64 = 1_000_000_000;
/// First and longest pause after a window that failed.
const BACKOFF_NS: (u64, u64) = (100_000_000, 10_000_000_000);

pub(super) struct WritebackState {
    pub event: WaitQueue,
    pub space_wanted: AtomicBool,
    /// Everything up to this record is to be written back now.
    pub drain_to: AtomicU64,
    stop: AtomicBool,
    stopped: AtomicBool,
    backoff_ns: AtomicU64,
    /// A try failed, and the next one waits.
    waiting: AtomicBool,
    pub policy: PolicyState,
    /// Blocks moved by compaction since the start.
    pub moved_blocks: AtomicU64,
    pub governor: Governor,
    pub refused: Refused,
    pub last_error: Mutex<Option<String>>,
    /// One reclaim at a time.
    pub reclaiming: AsyncLock,
    /// One sweep over the index at a time.
    pub sweeping: AsyncLock,
    /// How far the window is that is being written.
    pub progress: Progress,
    /// Segments of the next window, at most. Small after one of which too much failed.
    segments_max: AtomicUsize,
    /// Block where the next zone begins.
    cursor: AtomicU64,
    /// Something could not be written: prefixes of the log until nothing is stuck.
    stuck: AtomicBool,
}

impl WritebackState {
    pub fn new(policy: WritebackPolicy) -> WritebackState {
        let governor = Governor::default();
        governor.set_target(policy.read_latency_ns.unwrap_or(0));
        WritebackState {
            event: WaitQueue::new(),
            space_wanted: AtomicBool::new(false),
            drain_to: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            backoff_ns: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            policy: PolicyState::new(policy),
            moved_blocks: AtomicU64::new(0),
            governor,
            refused: Refused::default(),
            last_error: Mutex::new(None),
            reclaiming: AsyncLock::new(),
            sweeping: AsyncLock::new(),
            progress: Progress::default(),
            segments_max: AtomicUsize::new(usize::MAX),
            cursor: AtomicU64::new(0),
            stuck: AtomicBool::new(false),
        }
    }

    /// Changes what the user wants of write-back.
    pub fn set_policy(&self, policy: WritebackPolicy) {
        self.policy.set(policy);
        self.governor.set_target(policy.read_latency_ns.unwrap_or(0));
        self.event.notify_all();
    }
    /// The last try failed, and the next one waits.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::SeqCst)
    }
    /// What is dirty from `tail` on has been moved behind: a drain that wants some of it goes on to `newest`.
    pub fn move_drain(&self, tail: Seq, newest: Seq) {
        let wanted = |to: u64| (to >= tail.0).then_some(to.max(newest.0));
        let _ = self.drain_to.fetch_update(Ordering::SeqCst, Ordering::SeqCst, wanted);
    }
    /// The engine stops: a window is broken off.
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

enum Work {
    Window,
    Stop,
}

/// What of a window could not be written.
struct Failed {
    /// Payload.
    stuck: Vec<Stuck>,
    /// Blocks of ranges of zeroes, one by one.
    unzeroed: Vec<RangeItem>,
}

/// Why a window did not end.
#[derive(Debug)]
pub(super) enum WindowError {
    /// The backing device fails; the data stays dirty.
    Backing(String),
    /// The cache device fails.
    Cache(String),
    /// More failed than can be logged anew before anything is freed: to be tried in smaller pieces.
    TooLarge(&'static str),
    /// The engine stops.
    Stopped,
}

impl<E: Env> Inner<E> {
    /// A writer waits for room.
    pub(super) fn want_space(&self) {
        if !self.writeback.space_wanted.swap(true, Ordering::SeqCst) {
            self.writeback.event.notify_all();
        }
    }

    /// Runs until the engine stops.
    pub(super) async fn maintain(self: Arc<Self>) {
        let work = join4(self.write_back(), self.make_room(), self.pace_writers(), self.warm_up());
        // The clock is dropped with the end of the work: nobody waits for its next tick.
        select(pin!(work), pin!(self.look_at_the_clock())).await;
        self.writeback.stopped.store(true, Ordering::SeqCst);
        self.writeback.event.notify_all();
    }

    /// Windows, one after the other.
    async fn write_back(self: &Arc<Self>) {
        while let Work::Window = self.writeback.event.wait_until(|| self.next_work()).await {
            let outcome = self.write_back_window().await;
            self.writeback.progress.end(self.env.now_ns());
            self.settle(outcome).await;
        }
    }

    /// Frees what has been written back, as far as it is wanted.
    async fn make_room(self: &Arc<Self>) {
        loop {
            let stop = self.writeback.event.wait_until(|| self.next_reclaim()).await;
            if stop {
                break;
            }
            let outcome = self.reclaim(None, None).await;
            // That it works says nothing about the backing device.
            if outcome.is_err() {
                self.settle(outcome).await;
            }
        }
    }

    async fn settle(&self, outcome: Result<(), WindowError>) {
        let state = &self.writeback;
        let text = match outcome {
            Ok(()) => {
                if state.backoff_ns.swap(0, Ordering::SeqCst) > 0 {
                    tracing::info!("write-back goes on");
                }
                *state.last_error.lock().expect("not poisoned") = None;
                return;
            }
            Err(WindowError::Stopped | WindowError::TooLarge(_)) => return,
            Err(WindowError::Backing(text)) => text,
            Err(WindowError::Cache(text)) => {
                self.fail(text.clone());
                text
            }
        };
        count(&self.counters.writeback_errors, 1);
        let before = state.backoff_ns.load(Ordering::SeqCst);
        let pause_ns = (before * 2).clamp(BACKOFF_NS.0, BACKOFF_NS.1);
        state.backoff_ns.store(pause_ns, Ordering::SeqCst);
        let known = state.last_error.lock().expect("not poisoned").replace(text.clone()).is_some();
        if !known {
            tracing::error!("write-back: {text}; the data stays in the cache, trying again");
        }
        state.waiting.store(true, Ordering::SeqCst);
        self.space.notify_all(); // a stop may wait for writers who wait for room
        // A stop does not wait for it.
        let stop = state.event.wait_until(|| state.is_stopping().then_some(()));
        select(pin!(self.env.sleep(pause_ns)), pin!(stop)).await;
        state.waiting.store(false, Ordering::SeqCst);
    }

    /// Segments before the dirty tail can be freed: `Some(false)`; the engine stops: `Some(true)`.
    fn next_reclaim(&self) -> Option<bool> {
        let state = &self.writeback;
        if state.is_stopping() {
            return Some(true);
        }
        if self.is_failed() {
            return None;
        }
        let wanted = state.space_wanted.load(Ordering::SeqCst);
        if wanted && self.head.room(Class::User) != Err(Full::Segments) {
            state.space_wanted.store(false, Ordering::SeqCst);
            self.space.notify_all();
        }
        (wanted || self.is_space_short()).then_some(())?;
        (self.has_reclaimable() && (self.head.unread_good() == 0 || self.may_forget())).then_some(false)
    }

    pub(super) fn has_reclaimable(&self) -> bool {
        if self.head.unread_good() > 0 {
            return true;
        }
        let (_, dirty_tail) = self.anchors.tails();
        let oldest = self.head.oldest_segments(2);
        oldest.len() == 2 && !oldest[0].summary_in_flight && oldest[0].last_seq.is_some_and(|last| last < dirty_tail)
    }

    fn next_work(&self) -> Option<Work> {
        match self.writeback.is_stopping() {
            true => Some(Work::Stop),
            false => self.why().works().then_some(Work::Window),
        }
    }

    /// Notices what only time brings, while something is dirty: age, hours, idleness, the end of a pause.
    async fn look_at_the_clock(self: &Arc<Self>) {
        loop {
            self.writeback.event.wait_until(|| (self.anchors.tails().1 <= self.head.newest()).then_some(())).await;
            self.writeback.policy.tick(self.requests(), self.env.now_ns());
            self.writeback.event.notify_all();
            self.env.sleep(TICK_NS).await;
        }
    }

    /// Nothing of what is dirty can be written back now: it was refused lately, and every such place is to be left alone for
    /// a while, or it is lost. A window would only log it anew [one poisoned block, and nobody asks anything: the log goes
    /// round and round at the speed of the devices].
    pub(super) fn nothing_goes(&self) -> bool {
        let (ranges, poisoned) = match self.served.range_pieces.load(Ordering::SeqCst) {
            0 => (0, 0),
            _ => {
                let ranges = self.served.ranges.lock().expect("not poisoned");
                (ranges.dirty_blocks(), ranges.poisoned_blocks())
            }
        };
        let held = self.writeback.refused.blocks() + poisoned;
        held > 0 && self.index.dirty_len() + ranges <= held && self.writeback.refused.all_pause(self.env.now_ns())
    }

    /// Memory of a window's list of items, at most.
    pub(super) fn window_bytes_max(&self) -> u64 {
        let most = (self.geometry.segments as usize + 1) * self.geometry.segment_blocks() as usize;
        (self.list_items().min(most) * size_of::<Item>()) as u64
    }

    /// Items of a window's list, at most.
    fn list_items(&self) -> usize {
        let blocks = self.geometry.segment_blocks() as usize;
        (self.config.writeback_bytes / size_of::<Item>()).max(2 * blocks)
    }

    /// How much a window may take now: a zone, or a prefix of the log.
    fn window_limits(&self) -> WindowLimits {
        let blocks = self.geometry.segment_blocks() as usize;
        let items = self.list_items();
        let limits = WindowLimits {
            segments: ZONE_LOG_LISTS * items.div_ceil(blocks),
            items,
            ranges: self.config.range_pieces,
            poisoned: self.stuck_max() as u64,
            zone: None,
        };
        let ranges_wait = self.served.range_pieces.load(Ordering::SeqCst) > 0
            && self.served.ranges.lock().expect("not poisoned").dirty_blocks() > 0;
        if ranges_wait || self.writeback.stuck.load(Ordering::SeqCst) {
            let cap = self.writeback.segments_max.load(Ordering::SeqCst);
            let most = Shares::of(&self.geometry).window_segments_max as usize;
            return WindowLimits { segments: most.min(cap).min(4 * items.div_ceil(blocks)).max(1), ..limits };
        }
        let most = items - blocks;
        let wanted = match self.why() {
            Why::Drain | Why::Burst => most,
            _ => {
                let lasting = self.writeback.progress.item_ns().map_or(0.0, |item_ns| ZONE_NS_MIN / item_ns) as usize;
                let dirty = self.index.dirty_len() as usize;
                dirty.div_ceil(ZONES as usize).max(lasting.min(dirty / 3)).max(ZONE_SEGMENTS_MIN * blocks).min(most)
            }
        };
        let zone = Zone { start: self.writeback.cursor.load(Ordering::SeqCst), items: wanted };
        WindowLimits { items: (2 * wanted).max(wanted + blocks).min(items), zone: Some(zone), ..limits }
    }

    async fn commit_all(self: &Arc<Self>) -> Result<(), WindowError> {
        let committed = self.commit_to(self.head.newest()).await;
        committed.map_err(|_| WindowError::Cache("group commit failed".into()))
    }

    async fn write_back_window(self: &Arc<Self>) -> Result<(), WindowError> {
        let expected = self.window_limits();
        let expected = expected.zone.map_or(expected.items, |zone| zone.items) as u64;
        self.writeback.progress.prepare(self.index.dirty_len().min(expected), self.env.now_ns());
        self.commit_all().await?;
        if self.make_space().await? {
            self.commit_all().await?;
        }
        let (_, dirty_tail) = self.anchors.tails();
        let durable = self.head.durable();
        // A range that is durable is in the map by now.
        let limits = self.window_limits();
        let to = Seq(self.writeback.drain_to.load(Ordering::SeqCst));
        let window = self.gather(limits, dirty_tail, to, durable).await?;
        if window.end < dirty_tail {
            return Ok(());
        }
        if limits.zone.is_some() && !window.ranges.is_empty() {
            self.writeback.stuck.store(true, Ordering::SeqCst);
            return Ok(());
        }
        self.writeback.progress.begin(window.items.len() as u64, self.env.now_ns());
        self.admission.foresee(
            self.index.dirty_len().saturating_sub(window.items.len() as u64),
            window.pos(),
            window.foresee(self.device_blocks(), self.geometry.segment_blocks().into()),
        );
        self.writeback.event.notify_all(); // writers may have to be slowed down
        match limits.zone {
            Some(_) => self.write_zone(&window, dirty_tail).await,
            None => self.write_prefix(&window, durable.0).await,
        }
    }

    /// A part of the disk.
    async fn write_zone(self: &Arc<Self>, window: &Window, dirty_tail: Seq) -> Result<(), WindowError> {
        let Failed { stuck, unzeroed: _ } = match self.write_window(window).await {
            Err(WindowError::TooLarge(_)) => {
                self.writeback.stuck.store(true, Ordering::SeqCst);
                return Ok(());
            }
            result => result?,
        };
        // They stay where they are: a prefix of the log takes them next, which frees space for what it logs anew.
        self.writeback.stuck.store(!stuck.is_empty(), Ordering::SeqCst);
        let next = if window.blocks.end < self.device_blocks() { window.blocks.end } else { 0 };
        self.writeback.cursor.store(next, Ordering::SeqCst);
        let probes = self.renew_probes(window).await;
        let tail = match stuck.is_empty() {
            true if self.config.has_bug(PlantedBug::TailPassesOtherZones) => window.end.next(),
            true => window.tail_after().max(dirty_tail),
            false => dirty_tail,
        };
        if tail > dirty_tail || probes.is_some() {
            self.reclaim(Some(tail), probes).await?;
        }
        Ok(())
    }

    /// The oldest part of the log.
    async fn write_prefix(self: &Arc<Self>, window: &Window, durable: Seq) -> Result<(), WindowError> {
        let failed = match self.write_window(window).await {
            Err(WindowError::TooLarge(what)) => return self.take_less(window.segments, what),
            result => result?,
        };
        let Failed { stuck, unzeroed } = failed;
        let mut refused: Vec<u64> =
            stuck.iter().filter(|stuck| stuck.data.is_some()).map(|stuck| stuck.item.addr.block()).collect();
        refused.extend(unzeroed.iter().map(|range| range.blocks.start));
        self.writeback.stuck.store(!stuck.is_empty(), Ordering::SeqCst);
        if !stuck.is_empty() {
            self.relog(stuck).await?;
        }
        let poison = window.ranges.iter().filter(|range| range.kind == RangeKind::Poison);
        self.relog_ranges(poison.clone().cloned().chain(unzeroed).collect()).await?;
        // What is left there of it has been overwritten.
        self.ranges_are_clean(poison);
        self.writeback.refused.relogged(&refused, window.end >= durable);
        let probes = self.renew_probes(window).await;
        self.reclaim(Some(window.end.next()), probes).await?;
        let cap = &self.writeback.segments_max;
        let _ = cap.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |cap| Some(cap.saturating_mul(2)));
        Ok(())
    }

    /// Too much of a window failed to be logged anew: smaller ones free something before that is too much. In one of a
    /// single segment it means that the device as a whole fails, and waiting is right.
    fn take_less(&self, segments: usize, what: &str) -> Result<(), WindowError> {
        if segments > 1 {
            tracing::info!("write-back: many {what}: going on in smaller steps");
            self.writeback.segments_max.store(segments / 8, Ordering::SeqCst);
            return Ok(());
        }
        Err(WindowError::Backing(format!("more than {} {what}", self.stuck_max())))
    }

    /// Writes ranges and payload, flushes the backing device, marks clean. Gives what failed.
    async fn write_window(self: &Arc<Self>, window: &Window) -> Result<Failed, WindowError> {
        let late = self.config.has_bug(PlantedBug::DiscardAppliedLate);
        let mut unzeroed = Vec::new();
        if !late {
            unzeroed = self.apply_ranges(&window.ranges, self.stuck_max()).await?;
        }
        let lost = if window.segments > 1 { self.stuck_max() } else { usize::MAX };
        let stuck = self.sweep(&window.items, StuckLimits { refused: self.stuck_max(), lost }).await?;
        if late {
            unzeroed = self.apply_ranges(&window.ranges, self.stuck_max()).await?;
        }
        let wrote = !window.items.is_empty() || window.ranges.iter().any(|range| range.kind != RangeKind::Poison);
        if wrote && !self.config.has_bug(PlantedBug::FreeBeforeBackingFlush) {
            count(&self.counters.backing_flushes, 1);
            let flushed = self.served.disk.flush().await;
            flushed.map_err(|error| WindowError::Backing(format!("FLUSH of the backing device failed: {error}")))?;
        }
        self.mark_clean(window, &stuck).await;
        Ok(Failed { stuck, unzeroed })
    }

    /// What is still the version that was written is clean now.
    async fn mark_clean(&self, window: &Window, stuck: &[Stuck]) {
        let failed: std::collections::BTreeSet<BlockAddr> = stuck.iter().map(|stuck| stuck.item.addr).collect();
        for items in window.items.chunks(CLEANED_AT_ONCE) {
            for item in items.iter().filter(|item| !failed.contains(&item.addr)) {
                self.index.set_clean_if(item.addr, item.slot());
            }
            if items.len() == CLEANED_AT_ONCE {
                self.env.yield_now().await;
            }
        }
        self.ranges_are_clean(window.ranges.iter().filter(|range| range.kind != RangeKind::Poison));
    }

    fn ranges_are_clean<'a>(&self, items: impl Iterator<Item = &'a RangeItem>) {
        let mut ranges = self.served.ranges.lock().expect("not poisoned");
        for range in items {
            if ranges.set_clean(range.blocks.clone(), range.pos).is_err() {
                // It has been applied; only the flag says otherwise, until its segment is reclaimed.
                tracing::debug!("range map full: {:?} stays marked dirty", range.blocks);
            }
        }
    }

    /// More blocks than this failing in one window mean that the device as a whole fails: then waiting is right. Fewer
    /// are re-logged, and what a window frees is more than what it re-logs.
    fn stuck_max(&self) -> usize {
        self.geometry.record_blocks() as usize / 4
    }

    /// Writes back everything that is in the cache now; ends when it is done.
    pub(super) async fn drain(self: &Arc<Self>) -> Result<(), ServiceError> {
        let target = self.head.newest();
        self.commit_to(target).await?;
        self.writeback.drain_to.fetch_max(target.0, Ordering::SeqCst);
        self.writeback.event.notify_all();
        self.writeback
            .event
            .wait_until(|| {
                if self.is_failed() || self.writeback.stopped.load(Ordering::SeqCst) {
                    return Some(Err(ServiceError::Io));
                }
                // Compaction may have moved what is wanted.
                let to = self.writeback.drain_to.load(Ordering::SeqCst).max(target.0);
                (self.anchors.tails().1.0 > to).then_some(Ok(()))
            })
            .await
    }

    /// Ends the maintenance task and waits for it.
    pub(super) async fn stop_maintenance(&self) {
        self.writeback.stop.store(true, Ordering::SeqCst);
        self.writeback.event.notify_all();
        self.space.notify_all();
        self.writeback.event.wait_until(|| self.writeback.stopped.load(Ordering::SeqCst).then_some(())).await;
    }
}
