//! When write-back does what, and why: one decision, from which the maintenance task acts and `status` explains.
//!
//! In this order: space that is needed; a drain; then either the quiet policy, or the watermarks with what goes on between
//! and below them. What nothing presses for goes gently, so that reads of the disk keep their latency ([`super::governor`]).

use super::Inner;
use super::config::Shares;
use crate::env::Env;
use crate::types::*;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

/// What the user wants of write-back. Every part can be changed at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WritebackPolicy {
    /// Write-back begins when this share of the segments holds dirty data ...
    pub start_percent: u32,
    /// ... and goes on until no more than this does.
    pub stop_percent: u32,
    /// Below the start watermark, write back gently: at once above the stop watermark, below it when nobody has asked
    /// anything of the volume for so long. `None`: not at all.
    pub idle_after_ns: Option<u64>,
    /// 99th percentile of read misses that gentle write-back keeps to. `None`: twice what it is without write-back.
    pub read_latency_ns: Option<u64>,
    /// Instead of the watermarks: hold, then write everything back in one burst.
    pub quiet: Option<Quiet>,
}

/// Dirty data is held until one of these is so, then all of it goes back in one burst: the disk can sleep meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiet {
    /// This share of the segments holds dirty data.
    pub percent: u32,
    /// The oldest dirty data is so old, by the wall clock.
    pub age_ns: Option<u64>,
    /// It is between these minutes of the day, UTC: once a day.
    pub window: Option<(u32, u32)>,
}

/// Why write-back works, or why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing is dirty.
    Clean,
    /// The cache device has failed.
    Failed,
    /// The last try failed; a pause.
    Waiting,
    /// What is left is refused by the backing device, or lost; a pause.
    Refused,
    /// Free space is needed.
    Space,
    /// A drain was asked for.
    Drain,
    /// The start watermark was reached.
    Watermark,
    /// Gently, between the watermarks.
    Between,
    /// Gently, because nobody asks anything of the volume.
    Idle,
    /// The quiet policy has waited long enough.
    Burst,
    /// The quiet policy waits.
    Quiet,
    /// Below the watermarks.
    Below,
}

impl Why {
    /// Write-back works.
    pub fn works(self) -> bool {
        matches!(self, Why::Space | Why::Drain | Why::Watermark | Why::Between | Why::Idle | Why::Burst)
    }
    /// Write-back goes as fast as it can.
    pub fn presses(self) -> bool {
        matches!(self, Why::Space | Why::Drain | Why::Watermark | Why::Burst)
    }
}

/// What decisions remember.
#[derive(Default)]
struct Memory {
    /// Between the start and the stop watermark on the way down.
    running: bool,
    /// The burst of the quiet policy goes on up to this record.
    burst_to: Seq,
    /// When it began, by the wall clock: what is dirty behind it is younger.
    burst_ns: u64,
    /// Day on which the window of the quiet policy was last used.
    burst_day: u64,
    /// Requests counted at the last look, and the time when that number last changed.
    requests: Option<u64>,
    busy_ns: u64,
}

/// Settings and memory of the decisions.
pub(super) struct PolicyState {
    policy: Mutex<WritebackPolicy>,
    memory: Mutex<Memory>,
}

const DAY_NS: u64 = 86_400_000_000_000;
const MINUTE_NS: u64 = 60_000_000_000;

impl PolicyState {
    pub fn new(policy: WritebackPolicy) -> PolicyState {
        PolicyState { policy: Mutex::new(policy), memory: Mutex::default() }
    }
    pub fn get(&self) -> WritebackPolicy {
        *self.policy.lock().expect("not poisoned")
    }
    pub fn set(&self, policy: WritebackPolicy) {
        *self.policy.lock().expect("not poisoned") = policy;
    }
    /// A look at the clock.
    pub fn tick(&self, requests: u64, now_ns: u64) {
        self.memory.lock().expect("not poisoned").idle_ns(requests, now_ns);
    }
}

impl Memory {
    /// How long nobody has asked anything, as far as it was looked at, if so many requests have been counted.
    fn idle_ns(&mut self, requests: u64, now_ns: u64) -> u64 {
        if self.requests != Some(requests) {
            (self.requests, self.busy_ns) = (Some(requests), now_ns);
        }
        now_ns.saturating_sub(self.busy_ns)
    }
}

impl<E: Env> Inner<E> {
    /// What is to be done now, and why.
    pub(super) fn why(&self) -> Why {
        if self.is_failed() {
            return Why::Failed;
        }
        let (_, dirty_tail) = self.anchors.tails();
        let newest = self.head.newest();
        let state = &self.writeback;
        let mut memory = state.policy.memory.lock().expect("not poisoned");
        if dirty_tail > newest {
            memory.running = false;
            return Why::Clean;
        }
        let (_, usable) = self.head.free_segments();
        let dirty = self.head.count_from(dirty_tail) as u64;
        let usable = u64::from(usable);
        // What is free or can be freed at once.
        let left = usable.saturating_sub(dirty);
        let wanted = state.space_wanted.load(Ordering::SeqCst) && !self.has_reclaimable();
        if left < u64::from(Shares::of(&self.geometry).pressure_segments) || wanted {
            return Why::Space;
        }
        if dirty_tail.0 <= state.drain_to.load(Ordering::SeqCst) {
            return Why::Drain;
        }
        if self.nothing_goes() {
            return Why::Refused;
        }
        let policy = state.policy.get();
        if let Some(quiet) = policy.quiet {
            memory.running = false;
            return self.quiet(
                quiet,
                &mut memory,
                dirty * 100 >= u64::from(quiet.percent) * usable,
                dirty_tail,
                newest,
            );
        }
        if dirty * 100 >= u64::from(policy.start_percent) * usable {
            memory.running = true;
        } else if dirty * 100 <= u64::from(policy.stop_percent) * usable {
            memory.running = false;
        }
        if memory.running {
            return Why::Watermark;
        }
        let Some(idle_after_ns) = policy.idle_after_ns else { return Why::Below };
        if dirty * 100 > u64::from(policy.stop_percent) * usable {
            return Why::Between;
        }
        // As it is now, not as of the last tick [the first write after an hour in which nothing was dirty: it goes back at once].
        let idle_ns = memory.idle_ns(self.requests(), self.env.now_ns());
        if idle_ns >= idle_after_ns { Why::Idle } else { Why::Below }
    }

    /// Requests since the start or before.
    pub(super) fn requests(&self) -> u64 {
        let now = self.counters.snapshot();
        now.user_reads + now.user_writes
    }

    fn quiet(&self, quiet: Quiet, memory: &mut Memory, full: bool, dirty_tail: Seq, newest: Seq) -> Why {
        if dirty_tail <= memory.burst_to {
            return Why::Burst;
        }
        let wall_ns = self.env.wall_ns();
        let opened = self.head.segments_from(dirty_tail, 1).pop().map_or(wall_ns, |live| live.opened_unix_ns);
        // [a trickle into one segment: once its first write is old, each later one would be written back at once]
        let oldest = opened.max(memory.burst_ns);
        let old = quiet.age_ns.is_some_and(|age_ns| wall_ns.saturating_sub(oldest) >= age_ns);
        let (day, minute) = (wall_ns / DAY_NS, (wall_ns % DAY_NS / MINUTE_NS) as u32);
        let within = quiet.window.is_some_and(|(from, to)| match from <= to {
            true => (from..to).contains(&minute),
            false => minute >= from || minute < to,
        });
        let today = within && memory.burst_day != day;
        if full || old || today {
            if today {
                memory.burst_day = day;
            }
            (memory.burst_to, memory.burst_ns) = (newest, wall_ns);
            return Why::Burst;
        }
        Why::Quiet
    }
}
