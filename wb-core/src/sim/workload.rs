//! What a simulated run does, drawn from its seed: geometry, faults, clients and their requests.

use super::fault::{AtomicUnit, DiscardEffect, FaultPlan, Latency};
use super::rng::SimRng;
use std::ops::Range;

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// `read`
    Read,
    /// `write`
    Write,
    /// `write` with FUA
    WriteFua,
    /// `write_zeroes`
    Zeroes,
    /// `discard`
    Discard,
    /// `flush`
    Flush,
}

/// What goes wrong in a run beside crashes; one class each, so that the oracle can be exact about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hardship {
    /// Nothing: both devices keep every promise, and no request may fail.
    None,
    /// Reads, writes and flushes of both devices fail, at random.
    Errors,
    /// As `Errors`, and what a failed flush should have made durable is gone in the next power cut.
    DroppedFlushes,
    /// What a power cut tears on the cache device cannot be read afterwards.
    UnreadableTears,
    /// A device vanishes, and returns as it was or after the crash without its volatile cache.
    Vanish,
    /// A thinly provisioned device has no space left.
    Full,
    /// The cache device acknowledges flushes and FUA that it does not do.
    Lies,
    /// Writes to the cache device are acknowledged and lost, or land elsewhere.
    StrayWrites,
    /// Sectors of the cache device become unreadable when they are written, bits rot.
    Decay,
    /// Between two lives, places of the cache device that hold durable data are damaged.
    Damage,
}

impl Hardship {
    /// Every class, for reports.
    pub const ALL: [Hardship; 10] = [
        Hardship::None,
        Hardship::Errors,
        Hardship::DroppedFlushes,
        Hardship::UnreadableTears,
        Hardship::Vanish,
        Hardship::Full,
        Hardship::Lies,
        Hardship::StrayWrites,
        Hardship::Decay,
        Hardship::Damage,
    ];

    /// Requests and starts may fail for a while, nothing is lost.
    pub fn is_passing(self) -> bool {
        matches!(self, Hardship::Errors | Hardship::DroppedFlushes | Hardship::Vanish | Hardship::Full)
    }

    /// The cache device breaks promises that nobody can check: after a crash any older state of it is possible.
    pub fn is_silent(self) -> bool {
        matches!(self, Hardship::Lies | Hardship::StrayWrites | Hardship::Decay)
    }

    /// Data may be lost, but only by name: a refusal to start, a read that fails, a report of the checker.
    pub fn loses_data(self) -> bool {
        matches!(self, Hardship::Lies | Hardship::StrayWrites | Hardship::Decay | Hardship::Damage)
    }
}

/// Shares of the kinds of requests.
#[derive(Debug, Clone)]
pub struct Mix {
    /// Reads.
    pub read: u64,
    /// Writes.
    pub write: u64,
    /// Writes with FUA.
    pub fua: u64,
    /// Writes of zeroes.
    pub zeroes: u64,
    /// Discards.
    pub discard: u64,
    /// Flushes.
    pub flush: u64,
}

impl Mix {
    fn draw(rng: &mut SimRng) -> Mix {
        Mix {
            read: rng.pick(&[1, 5, 20]),
            write: rng.pick(&[10, 30, 60]),
            fua: rng.pick(&[0, 1, 5]),
            zeroes: rng.pick(&[0, 1, 5]),
            discard: rng.pick(&[0, 0, 1, 5]),
            flush: rng.pick(&[0, 1, 5, 20]),
        }
    }

    fn pick(&self, rng: &mut SimRng) -> RequestKind {
        let shares = [
            (self.read, RequestKind::Read),
            (self.write, RequestKind::Write),
            (self.fua, RequestKind::WriteFua),
            (self.zeroes, RequestKind::Zeroes),
            (self.discard, RequestKind::Discard),
            (self.flush, RequestKind::Flush),
        ];
        let mut at = rng.below(shares.iter().map(|(share, _)| share).sum::<u64>().max(1));
        for (share, kind) in shares {
            if at < share {
                return kind;
            }
            at -= share;
        }
        RequestKind::Write
    }
}

/// Everything that fixes a run besides the seed of its choices. Printed before the run; a smaller plan that still fails
/// is a better story.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Seed of every choice below this level.
    pub seed: u64,
    /// Bytes of the backing device.
    pub volume_bytes: u64,
    /// Logical sector of the backing device: 512 or 4096.
    pub sector_bytes: u32,
    /// Bytes of a cache segment.
    pub segment_bytes: u64,
    /// Segments of the cache.
    pub segments: u64,
    /// The backing device holds stamps, not zeroes, before the first write.
    pub filled: bool,
    /// Clients at once.
    pub clients: u64,
    /// Requests of each life, all clients together.
    pub requests: u64,
    /// Starts of the system under test; the last ends with a drain and a clean stop.
    pub lives: u64,
    /// Of a hundred lives, so many end by a crash at any step (others run to their end).
    pub crash_percent: u64,
    /// Of a hundred crashes, so many are power cuts (others kill the process).
    pub power_cut_percent: u64,
    /// Shares of requests.
    pub mix: Mix,
    /// Largest request in bytes.
    pub request_bytes_max: u64,
    /// Sectors that half of the requests go to.
    pub hot: Range<u64>,
    /// Longest pause of a client between two requests.
    pub think_ns: u64,
    /// Faults of the cache device, until the last life.
    pub cache_faults: FaultPlan,
    /// Faults of the backing device, until the last life.
    pub backing_faults: FaultPlan,
    /// What goes wrong besides.
    pub hardship: Hardship,
    /// Of a hundred pauses between two lives, so many are used to run an offline tool; and of a hundred lives that
    /// drain, so many end by detaching the volume.
    pub tools_percent: u64,
}

/// A drawn request.
#[derive(Debug, Clone)]
pub struct Request {
    /// What.
    pub kind: RequestKind,
    /// Where, in sectors of 512 bytes.
    pub sectors: Range<u64>,
}

impl Plan {
    /// The plan of a seed: that of [`Plan::draw_plain`] with more that can go wrong.
    pub fn draw(seed: u64) -> Plan {
        let mut plan = Plan::draw_plain(seed);
        let mut rng = SimRng::derive(seed, "hardship");
        plan.tools_percent = rng.pick(&[0, 0, 20, 50]);
        if plan.hardship == Hardship::Errors || rng.below(2) == 0 {
            return plan;
        }
        plan.hardship = rng.pick(&Hardship::ALL[2..]);
        plan.put_hardship(&mut rng);
        plan
    }

    /// Sets the faults that a class of hardship needs.
    fn put_hardship(&mut self, rng: &mut SimRng) {
        let (cache, backing) = (&mut self.cache_faults, &mut self.backing_faults);
        match self.hardship {
            Hardship::DroppedFlushes => {
                for faults in [cache, backing] {
                    faults.flush_error_ppm = rng.pick(&[10_000, 100_000]);
                    faults.flush_error_drops = true;
                }
                // What such a flush dropped may stay readable as long as the power does. No start can tell.
                self.power_cut_percent = 100;
            }
            Hardship::UnreadableTears => cache.torn_unreadable_ppm = rng.pick(&[100_000, 1_000_000]),
            Hardship::Lies => {
                cache.lie_flush_ppm = rng.pick(&[0, 100_000, 1_000_000]);
                cache.lie_fua_ppm = if cache.lie_flush_ppm == 0 { 1_000_000 } else { rng.pick(&[0, 500_000]) };
            }
            Hardship::StrayWrites => {
                cache.lost_write_ppm = rng.pick(&[0, 2_000, 20_000]);
                cache.misdirected_write_ppm =
                    if cache.lost_write_ppm == 0 { 5_000 } else { rng.pick(&[0, 2_000, 20_000]) };
            }
            Hardship::Decay => {
                cache.latent_ppm = rng.pick(&[0, 2_000, 20_000]);
                cache.rot_ppm = if cache.latent_ppm == 0 { 5_000 } else { rng.pick(&[0, 1_000, 10_000]) };
            }
            _ => {}
        }
    }

    /// The plan of a seed as it was drawn before there were other hardships than failing requests.
    pub fn draw_plain(seed: u64) -> Plan {
        let mut rng = SimRng::derive(seed, "plan");
        let sector_bytes = rng.pick(&[512, 512, 4096]);
        let odd_bytes = if sector_bytes == 512 { rng.below(8) * 512 } else { 0 };
        let volume_bytes = rng.range(32, 512) * 4096 + odd_bytes;
        let unit = u64::from(sector_bytes) / 512;
        let sectors = volume_bytes / 512;
        let hot_start = rng.below(sectors / unit) * unit;
        let hot = hot_start..(hot_start + unit * rng.pick(&[1, 8, 64])).min(sectors);
        let errors = rng.below(100) < 25;
        let faults = |rng: &mut SimRng, slow: bool| {
            let ppm = |rng: &mut SimRng| if errors { rng.pick(&[0, 0, 2_000, 30_000]) } else { 0 };
            let mut latency = if slow { Latency::slow() } else { Latency::default() };
            latency.stall_ppm = rng.pick(&[0, 0, 1_000]);
            latency.stall_ns = 2_000_000_000;
            FaultPlan {
                atomic: rng.pick(&[AtomicUnit::Sector, AtomicUnit::Block, AtomicUnit::Write]),
                latency,
                read_error_ppm: ppm(rng),
                write_error_ppm: ppm(rng),
                flush_error_ppm: ppm(rng),
                discard: rng.pick(&[DiscardEffect::Zeroes, DiscardEffect::Old, DiscardEffect::Random]),
                no_write_zeroes: rng.below(3) == 0,
                ..FaultPlan::default()
            }
        };
        let cache_faults = faults(&mut rng, false);
        let slow = rng.below(2) == 0;
        let backing_faults = faults(&mut rng, slow);
        Plan {
            seed,
            volume_bytes,
            sector_bytes,
            segment_bytes: rng.pick(&[64 << 10, 64 << 10, 128 << 10]),
            segments: rng.pick(&[8, 10, 12, 16, 24]),
            filled: rng.below(2) == 0,
            clients: rng.pick(&[1, 1, 2, 4, 8]),
            requests: rng.pick(&[5, 20, 60, 200]),
            lives: rng.range(2, 6),
            crash_percent: rng.pick(&[50, 90, 100]),
            power_cut_percent: rng.pick(&[50, 100, 100]),
            mix: Mix::draw(&mut rng),
            request_bytes_max: rng.pick(&[4096, 16 << 10, 128 << 10]),
            hot,
            think_ns: rng.pick(&[0, 0, 100_000, 20_000_000]),
            cache_faults,
            backing_faults,
            hardship: if errors { Hardship::Errors } else { Hardship::None },
            tools_percent: 0,
        }
    }

    /// Sectors of 512 bytes of the volume.
    pub fn sectors(&self) -> u64 {
        self.volume_bytes / 512
    }

    /// A request of a client.
    pub fn request(&self, rng: &mut SimRng) -> Request {
        let kind = self.mix.pick(rng);
        let unit = u64::from(self.sector_bytes) / 512;
        let units_max = match kind {
            RequestKind::Discard | RequestKind::Zeroes if rng.below(4) == 0 => self.sectors() / unit,
            _ => self.request_bytes_max / 512 / unit,
        };
        let within = if rng.below(2) == 0 { self.hot.clone() } else { 0..self.sectors() };
        let first = within.start + rng.below((within.end - within.start) / unit) * unit;
        // Small requests are as likely as large ones.
        let bits = rng.below(u64::from(units_max.max(1).ilog2()) + 1);
        let units = 1 + rng.below(1 << bits);
        Request { kind, sectors: first..(first + units.min(units_max.max(1)) * unit).min(self.sectors()) }
    }
}
