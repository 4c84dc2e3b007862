//! What a simulated device may do wrong, and how fast it is.

use super::rng::SimRng;
use crate::io::IoError;
use std::ops::Range;

/// The unit that a power cut does not tear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AtomicUnit {
    /// One sector of 512 bytes.
    #[default]
    Sector,
    /// An aligned block of 4096 bytes.
    Block,
    /// A write as a whole.
    Write,
}

/// What a discarded range reads as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiscardEffect {
    /// Zeroes.
    #[default]
    Zeroes,
    /// What was there.
    Old,
    /// Anything.
    Random,
}

/// Kinds of device operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpKind {
    /// `read`
    Read,
    /// `write` and `write_zeroes`
    Write,
    /// `flush`
    Flush,
    /// `discard`
    Discard,
}

/// "The n-th operation fails": the exhaustive error test of SQLite and OCF.
#[derive(Debug, Clone, Copy)]
pub struct NthFault {
    /// Which operations are counted.
    pub op: OpKind,
    /// The first is 1. Counted from the creation of the device or the last `FaultPlan` set.
    pub nth: u64,
    /// All later ones fail too.
    pub forever: bool,
    /// The error they get.
    pub error: IoError,
}

/// How long operations take, in virtual nanoseconds; each draws from its range.
#[derive(Debug, Clone)]
pub struct Latency {
    /// Reads.
    pub read_ns: Range<u64>,
    /// Writes, zeroes and discards.
    pub write_ns: Range<u64>,
    /// Flushes.
    pub flush_ns: Range<u64>,
    /// Share of operations that take `stall_ns` longer.
    pub stall_ppm: u32,
    /// See `stall_ppm`; 30 s is not unheard of.
    pub stall_ns: u64,
}

impl Default for Latency {
    fn default() -> Latency {
        Latency {
            read_ns: 20_000..100_000,
            write_ns: 10_000..100_000,
            flush_ns: 20_000..400_000,
            stall_ppm: 0,
            stall_ns: 0,
        }
    }
}

impl Latency {
    /// A disk: a hundred times slower than the default.
    pub fn slow() -> Latency {
        Latency {
            read_ns: 200_000..15_000_000,
            write_ns: 200_000..15_000_000,
            flush_ns: 500_000..40_000_000,
            stall_ppm: 0,
            stall_ns: 0,
        }
    }

    pub(super) fn draw(&self, op: OpKind, rng: &mut SimRng) -> u64 {
        let range = match op {
            OpKind::Read => &self.read_ns,
            OpKind::Write | OpKind::Discard => &self.write_ns,
            OpKind::Flush => &self.flush_ns,
        };
        let stall_ns = if rng.chance_ppm(self.stall_ppm) { self.stall_ns } else { 0 };
        rng.range(range.start, range.end.max(range.start)) + stall_ns
    }
}

/// The faults of a device. The default device honours every promise and tears at 512 bytes when power fails.
/// Classes and what is recoverable under each: [`crate::sim::disk`].
#[derive(Debug, Clone, Default)]
pub struct FaultPlan {
    /// What a power cut does not tear.
    pub atomic: AtomicUnit,
    /// How long operations take.
    pub latency: Latency,
    /// Share of reads that fail with EIO.
    pub read_error_ppm: u32,
    /// Share of writes that fail with EIO and leave a mix of old and new.
    pub write_error_ppm: u32,
    /// Share of flushes that fail with EIO.
    pub flush_error_ppm: u32,
    /// What a failed flush should have made durable is made durable by no later flush (only by a rewrite).
    pub flush_error_drops: bool,
    /// Operations that fail by number.
    pub nth: Vec<NthFault>,
    /// Bytes that cannot be written: each write that touches them fails with EIO, leaves them as they are, and a mix of
    /// old and new beside them.
    pub unwritable: Vec<Range<u64>>,
    /// Share of writes after which one of their sectors cannot be read until written again.
    pub latent_ppm: u32,
    /// Share of reads before which one bit of their range has rotted, for good.
    pub rot_ppm: u32,
    /// Share of writes that are acknowledged and go nowhere.
    pub lost_write_ppm: u32,
    /// Share of writes that are acknowledged and land at another address.
    pub misdirected_write_ppm: u32,
    /// Where latent errors, rot, lost and misdirected writes may strike; everywhere if absent.
    pub area: Option<Range<u64>>,
    /// Share of flushes that are acknowledged and do nothing.
    pub lie_flush_ppm: u32,
    /// Share of FUA writes that are treated as ordinary ones.
    pub lie_fua_ppm: u32,
    /// Share of torn atomic units that cannot be read after the power cut, instead of holding old or new data.
    pub torn_unreadable_ppm: u32,
    /// What discards do.
    pub discard: DiscardEffect,
    /// `write_zeroes` is not supported.
    pub no_write_zeroes: bool,
    /// 4 KiB pages that the thin device can hold; writes beyond fail with [`IoError::NoSpace`].
    pub thin_pages_max: Option<usize>,
}

impl FaultPlan {
    /// True if a range touches a place that cannot be written.
    pub(super) fn is_unwritable(&self, offset: u64, len: u64) -> bool {
        self.unwritable.iter().any(|place| place.start < offset + len && offset < place.end)
    }
}
