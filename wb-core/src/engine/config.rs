//! Settings of an engine. Everything that takes memory is bounded here and allocated at start.

use super::policy::WritebackPolicy;
use crate::env::PlantedBug;
use crate::format::Geometry;
use crate::io::PoolClass;
use crate::service::SERVICE_CHUNK_BYTES_MAX;
use crate::types::BLOCK_BYTES;

/// Settings of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Check the CRC of every block that is read from the cache device. Costs 4 bytes of memory per slot.
    pub verify_reads: bool,
    /// Record buffers: records that may be open or on their way at once, about 1 MiB each.
    pub record_buffers: usize,
    /// Memory for reads in flight.
    pub read_bytes: usize,
    /// Memory for the payload of write-back, twice.
    pub window_bytes: usize,
    /// Memory for the list of a window's blocks, 24 bytes each: it bounds the size of a window.
    pub writeback_bytes: usize,
    /// When write-back does what.
    pub policy: WritebackPolicy,
    /// The oldest segments are logged anew rather than written back if less than this share of them is live; 0: never.
    pub compact_percent: u32,
    /// Writes to the backing device in flight during write-back.
    pub writeback_depth: usize,
    /// Pieces of zeroed and discarded ranges that are kept in memory.
    pub range_pieces: usize,
    /// Shards of the index.
    pub index_shards: usize,
    /// An anchor with the new D is written when this time has passed after a group commit without another record.
    pub anchor_delay_ns: u64,
    /// Planted bug, for testing the tests. Ignored without feature `sim`.
    pub bug: PlantedBug,
}

impl Default for EngineConfig {
    fn default() -> EngineConfig {
        EngineConfig {
            verify_reads: true,
            record_buffers: 32,
            read_bytes: 64 << 20,
            window_bytes: 64 << 20,
            writeback_bytes: 64 << 20,
            policy: WritebackPolicy {
                start_percent: 20,
                stop_percent: 10,
                idle_after_ns: Some(60_000_000_000),
                read_latency_ns: None,
                quiet: None,
            },
            compact_percent: 50,
            writeback_depth: 32,
            range_pieces: 1 << 16,
            index_shards: 16,
            anchor_delay_ns: 10_000_000,
            bug: PlantedBug::None,
        }
    }
}

impl EngineConfig {
    /// The buffers of reads in flight and of merges. Transports that let clients hold read data must bound each class,
    /// or clients that never take their replies stop everybody's reads and merges.
    pub fn read_buffers(&self) -> Vec<PoolClass> {
        let bytes = self.read_bytes;
        // The longest request may touch one block more than its length.
        let longest = SERVICE_CHUNK_BYTES_MAX + BLOCK_BYTES;
        vec![
            PoolClass { bytes: BLOCK_BYTES, count: (bytes / 8 / BLOCK_BYTES).max(64) },
            PoolClass { bytes: 64 << 10, count: (bytes / 8 / (64 << 10)).max(8) },
            PoolClass { bytes: longest, count: (bytes * 3 / 4 / longest).max(4) },
        ]
    }

    /// True if this bug is planted. Always false without feature `sim`.
    pub fn has_bug(&self, bug: PlantedBug) -> bool {
        cfg!(any(test, feature = "sim")) && self.bug == bug
    }
}

/// How a cache divides its ring, by its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    /// Segments that user writes leave free: the tail can always be advanced with them.
    pub reserve_segments: u32,
    /// Fewer free segments than this make reclaim begin.
    pub free_low: u32,
    /// Reclaim goes on for so many beyond.
    pub free_more: u32,
    /// When fewer than this are free or clean, a window is due whatever else is wanted.
    pub pressure_segments: u32,
    /// When fewer than this are free or clean while a window is written, writers are slowed down.
    pub pace_segments: u32,
    /// Segments of a window, at most: writers need the rest of the ring for the time that it takes.
    pub window_segments_max: u32,
    /// Segments whose payload a batch of a window holds at most: more memory is of no use for a small ring.
    pub batch_segments: u32,
}

impl Shares {
    pub fn of(geometry: &Geometry) -> Shares {
        let segments = geometry.segments;
        let batch_segments = (segments / 16).clamp(1, 16);
        let reserve_segments = (segments / 128).clamp(2, 16);
        let free_low = (reserve_segments + 2 * batch_segments).min(segments / 2);
        Shares {
            reserve_segments,
            free_low,
            free_more: batch_segments / 2,
            pressure_segments: free_low.max(segments / 8),
            pace_segments: (segments / 4).max(free_low),
            window_segments_max: (segments / 2).max(1),
            batch_segments,
        }
    }
}
