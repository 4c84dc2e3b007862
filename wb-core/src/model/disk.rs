//! A rotating disk.
//!
//! * **Queue.** Up to `queue_depth` commands are in the device, later ones wait at the host. Among the reads it serves the
//!   one that it reaches first (seek and rotation together) of the oldest `read_horizon`, unless one has become too old.
//! * **Write cache.** A write is complete when it has crossed the link and the cache has room. Cached writes go to the
//!   surface when no read waits; also before nearer reads when the cache is full. The nearest of the at most
//!   `cache_entries` goes first; a write of a place that is cached replaces it; writes that continue each other go in one movement.
//! * **FLUSH** is not queued (ATA: FLUSH CACHE EXT): it waits until the device is empty of commands, nothing enters it
//!   meanwhile, and it takes as long as it takes to bring to the surface what is in the cache. Reads behind it wait.
//! * **Read-ahead** goes on behind the last read while nothing else is to be done.

use super::params::DiskParams;
use super::surface::Surface;
use super::{Activity, Command, Completion, CostModel};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

/// Longest write of the cache to the surface in one movement.
const CACHED_RUN_BYTES_MAX: u64 = 4 << 20;
/// A place that passed so short a time ago counts as passing now: rounding, within the gap between sectors.
const ROUNDING_NS: u64 = 2_000;

struct Waiting {
    tag: u64,
    command: Command,
    arrived_ns: u64,
}

/// Something to be done on the surface.
#[derive(Clone, Copy)]
struct Job {
    /// The command that it completes; cached writes have been completed before.
    tag: Option<u64>,
    start: u64,
    end: u64,
    write: bool,
    arrived_ns: u64,
    /// Track and media time of `start`.
    place: (u64, u64),
}

struct Ahead {
    start: u64,
    /// Up to here it has been read at `from_ns`.
    end: u64,
    from_ns: u64,
    /// Still going on.
    active: bool,
}

/// See the head of this file.
pub struct DiskModel {
    params: DiskParams,
    surface: Surface,
    waiting: VecDeque<Waiting>,
    /// Commands in the device, not completed.
    in_device: usize,
    reads: Vec<Job>,
    /// Writes in the device for which the cache has no room, with the time at which they have crossed the link.
    no_room: VecDeque<(u64, Job)>,
    cache: VecDeque<Job>,
    /// First and last byte of what is in `cache`: a write of the same place replaces what is there.
    cached: BTreeMap<u64, u64>,
    cache_bytes: u64,
    flush: Option<u64>,
    current: Option<(Job, u64)>,
    /// Where the arm is.
    track: u64,
    ahead: Option<Ahead>,
    link_free_ns: u64,
    motor_ready_ns: u64,
    last_busy_ns: u64,
    due: BinaryHeap<Reverse<(u64, u64)>>,
    out: Vec<Completion>,
    activity: Activity,
}

impl DiskModel {
    /// A disk that spins, with the arm at its outer edge.
    pub fn new(params: DiskParams, size_bytes: u64) -> DiskModel {
        DiskModel {
            surface: Surface::new(&params, size_bytes),
            params,
            waiting: VecDeque::new(),
            in_device: 0,
            reads: Vec::new(),
            no_room: VecDeque::new(),
            cache: VecDeque::new(),
            cached: BTreeMap::new(),
            cache_bytes: 0,
            flush: None,
            current: None,
            track: 0,
            ahead: None,
            link_free_ns: 0,
            motor_ready_ns: 0,
            last_busy_ns: 0,
            due: BinaryHeap::new(),
            out: Vec::new(),
            activity: Activity::default(),
        }
    }

    fn done(&mut self, at_ns: u64, tag: u64) {
        self.due.push(Reverse((at_ns, tag)));
    }

    /// The link is taken in turns: command and data.
    fn cross_link(&mut self, now_ns: u64, bytes: u64) -> u64 {
        let transfer_ns = bytes * 1_000_000_000 / self.params.link_bytes_per_s;
        self.link_free_ns = self.link_free_ns.max(now_ns) + self.params.command_ns + transfer_ns;
        self.link_free_ns
    }

    /// Takes commands of the host into the device, in order.
    fn admit(&mut self, now_ns: u64) {
        while let Some(front) = self.waiting.front() {
            let is_flush = front.command == Command::Flush;
            if self.flush.is_some() || self.in_device >= self.params.queue_depth || is_flush && self.in_device > 0 {
                return;
            }
            let Waiting { tag, command, arrived_ns } = self.waiting.pop_front().expect("just seen");
            self.in_device += 1;
            match command {
                Command::Flush => self.flush = Some(tag),
                Command::Discard => {
                    let at_ns = self.cross_link(now_ns, 0);
                    self.done(at_ns, tag);
                }
                Command::Read { offset, len } => self.admit_read(now_ns, tag, offset, offset + len, arrived_ns),
                Command::Write { offset, len, fua } => {
                    let crossed_ns = self.cross_link(now_ns, len);
                    let place = self.surface.place(offset);
                    let job = Job { tag: Some(tag), start: offset, end: offset + len, write: true, arrived_ns, place };
                    match fua {
                        true => self.reads.push(job),
                        false => self.no_room.push_back((crossed_ns, job)),
                    }
                }
            }
            self.fill_cache(now_ns);
        }
    }

    fn admit_read(&mut self, now_ns: u64, tag: u64, start: u64, end: u64, arrived_ns: u64) {
        let cached = |job: &Job| job.start <= start && end <= job.end;
        let hit = self.cache.iter().any(cached)
            || self.ahead.as_ref().is_some_and(|ahead| ahead.start <= start && end <= ahead.end);
        if hit {
            let at_ns = self.cross_link(now_ns, end - start);
            return self.done(at_ns, tag);
        }
        let place = self.surface.place(start);
        self.reads.push(Job { tag: Some(tag), start, end, write: false, arrived_ns, place });
    }

    /// Writes enter the cache in order, as long as it has room.
    fn fill_cache(&mut self, now_ns: u64) {
        while let Some((crossed_ns, job)) = self.no_room.front().copied() {
            let bytes = job.end - job.start;
            if self.cached.get(&job.start) == Some(&job.end) {
                self.no_room.pop_front();
                self.done(now_ns.max(crossed_ns), job.tag.expect("a write of the host"));
                continue;
            }
            let full = self.cache_bytes + bytes > self.params.cache_bytes
                || self.cache.len() >= self.params.cache_entries && !self.continues(&job);
            if self.cache_bytes > 0 && full {
                return;
            }
            self.no_room.pop_front();
            self.cache_bytes += bytes;
            self.done(now_ns.max(crossed_ns), job.tag.expect("a write of the host"));
            match self.cache.back_mut() {
                Some(last) if last.end == job.start && job.end - last.start <= CACHED_RUN_BYTES_MAX => {
                    last.end = job.end;
                    self.cached.insert(last.start, last.end);
                }
                _ => {
                    self.cache.push_back(Job { tag: None, ..job });
                    self.cached.insert(job.start, job.end);
                }
            }
        }
    }

    /// Whether a write goes on where the last cached one ends.
    fn continues(&self, job: &Job) -> bool {
        self.cache.back().is_some_and(|last| last.end == job.start && job.end - last.start <= CACHED_RUN_BYTES_MAX)
    }

    /// When a job started now would begin to transfer.
    fn reach_ns(&self, job: &Job, now_ns: u64) -> u64 {
        let (track, media_ns) = job.place;
        let there_ns = now_ns + self.surface.seek_ns(track.abs_diff(self.track), job.write);
        let wait_ns = self.surface.wait_ns(media_ns, there_ns);
        if wait_ns + ROUNDING_NS >= self.params.revolution_ns { there_ns } else { there_ns + wait_ns }
    }

    fn nearest<'a>(&self, jobs: impl Iterator<Item = &'a Job>, now_ns: u64) -> Option<(usize, u64)> {
        jobs.enumerate().map(|(at, job)| (at, self.reach_ns(job, now_ns))).min_by_key(|(_, reach_ns)| *reach_ns)
    }

    /// The next thing for the arm, and when it begins to transfer.
    fn choose(&mut self, now_ns: u64) -> Option<(Job, u64)> {
        let nearly_full = !self.no_room.is_empty();
        let old = |job: &Job| job.arrived_ns + self.params.age_max_ns < now_ns;
        let oldest = (0..self.reads.len()).min_by_key(|at| self.reads[*at].arrived_ns);
        let read = match oldest {
            Some(at) if old(&self.reads[at]) => Some((at, self.reach_ns(&self.reads[at], now_ns))),
            _ => self.nearest(self.reads.iter().take(self.params.read_horizon), now_ns),
        };
        let cached = match read {
            Some(_) if !nearly_full => None,
            _ => self.nearest(self.cache.iter(), now_ns),
        };
        match (read, cached) {
            (Some((at, reach_ns)), cached) if cached.is_none_or(|(_, other)| reach_ns <= other) => {
                Some((self.reads.remove(at), reach_ns))
            }
            (_, Some((at, reach_ns))) => {
                let job = self.cache.remove(at).expect("was chosen");
                self.cached.remove(&job.start);
                Some((job, reach_ns))
            }
            _ => None,
        }
    }

    /// What read-ahead gives a job: the time at which its last byte is in the buffer.
    fn by_read_ahead(&self, job: &Job, now_ns: u64) -> Option<u64> {
        let ahead = self.ahead.as_ref().filter(|ahead| ahead.active && !job.write)?;
        let within = ahead.start <= job.start && job.start <= self.ahead_reached(ahead, now_ns);
        let last_ns = self.surface.place(job.end).1.saturating_sub(self.surface.place(ahead.end).1) + ahead.from_ns;
        within.then_some(last_ns.max(now_ns))
    }

    fn ahead_reached(&self, ahead: &Ahead, now_ns: u64) -> u64 {
        let rate = self.params.inner_bytes_per_s; // the least it can be
        let bytes = u128::from(now_ns.saturating_sub(ahead.from_ns)) * u128::from(rate) / 1_000_000_000;
        ahead.end + (bytes as u64).min(self.params.read_ahead_bytes)
    }

    fn start_job(&mut self, now_ns: u64) {
        if self.current.is_some() {
            return;
        }
        let start_ns = now_ns.max(self.motor_ready_ns);
        let ahead = (0..self.reads.len()).find_map(|at| Some((at, self.by_read_ahead(&self.reads[at], now_ns)?)));
        if let Some((at, end_ns)) = ahead {
            let job = self.reads.remove(at);
            self.current = Some((job, end_ns));
            return;
        }
        let Some((job, reach_ns)) = self.choose(start_ns) else { return };
        if let Some(mut ahead) = self.ahead.take().filter(|ahead| ahead.active) {
            ahead.end = self.ahead_reached(&ahead, now_ns);
            ahead.active = false;
            self.ahead = Some(ahead);
        }
        let (_, from_ns) = self.surface.place(job.start);
        let (_, to_ns) = self.surface.place(job.end);
        self.current = Some((job, reach_ns + to_ns.saturating_sub(from_ns)));
    }

    fn end_job(&mut self, now_ns: u64) {
        let Some((job, _)) = self.current.take_if(|(_, end_ns)| *end_ns <= now_ns) else { return };
        self.track = self.surface.place(job.end).0;
        self.last_busy_ns = now_ns;
        match job.tag {
            Some(tag) if job.write => self.done(now_ns, tag),
            Some(tag) => {
                let at_ns = self.cross_link(now_ns, job.end - job.start);
                self.done(at_ns, tag);
                self.ahead = Some(Ahead { start: job.start, end: job.end, from_ns: now_ns, active: true });
            }
            None => self.cache_bytes -= job.end - job.start,
        }
    }

    fn end_flush(&mut self, now_ns: u64) {
        if self.flush.is_some() && self.cache.is_empty() && self.current.is_none() {
            let tag = self.flush.take().expect("just seen");
            let at_ns = self.cross_link(now_ns, 0);
            self.done(at_ns, tag);
        }
    }

    /// Everything that happens at this moment.
    fn step(&mut self, now_ns: u64) {
        while let Some(Reverse((at_ns, tag))) = self.due.peek().copied().filter(|due| due.0.0 <= now_ns) {
            self.due.pop();
            self.in_device -= 1;
            self.last_busy_ns = now_ns;
            self.out.push(Completion { tag, at_ns });
        }
        self.end_job(now_ns);
        self.fill_cache(now_ns);
        self.end_flush(now_ns);
        self.admit(now_ns);
        self.start_job(now_ns);
        self.end_flush(now_ns);
    }

    fn advance(&mut self, now_ns: u64) {
        while let Some(at_ns) = self.next_ns().filter(|at_ns| *at_ns <= now_ns) {
            self.step(at_ns);
        }
    }
}

impl CostModel for DiskModel {
    fn submit(&mut self, now_ns: u64, tag: u64, command: Command) {
        self.advance(now_ns);
        match command {
            Command::Read { .. } => self.activity.reads += 1,
            Command::Write { len, .. } => {
                self.activity.writes += 1;
                self.activity.write_bytes += len;
            }
            Command::Flush => self.activity.flushes += 1,
            Command::Discard => {}
        }
        let idle = self.next_ns().is_none();
        let asleep = |after_ns| now_ns >= self.last_busy_ns.saturating_add(after_ns);
        if idle && self.params.standby_after_ns.is_some_and(asleep) {
            self.activity.spin_ups += 1;
            self.motor_ready_ns = now_ns + self.params.spin_up_ns;
            self.ahead = None;
        }
        self.last_busy_ns = now_ns;
        self.waiting.push_back(Waiting { tag, command, arrived_ns: now_ns });
        self.step(now_ns);
    }

    fn next_ns(&self) -> Option<u64> {
        let due = self.due.peek().map(|due| due.0.0);
        let end = self.current.as_ref().map(|(_, end_ns)| *end_ns);
        due.into_iter().chain(end).min()
    }

    fn poll(&mut self, now_ns: u64) -> Vec<Completion> {
        self.advance(now_ns);
        std::mem::take(&mut self.out)
    }

    fn volatile_bytes(&self) -> u64 {
        self.cache_bytes
    }

    fn activity(&self) -> Activity {
        self.activity
    }
}
