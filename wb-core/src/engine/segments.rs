//! Positions and pins of segments.
//!
//! A pinned segment is not reused. A reader pins under the same shard lock under which it looked the slot up; reclaim
//! removes the index entries first and then waits for the pins, so no reader can pin after that.

use crate::format::Geometry;
use crate::sync::WaitQueue;
use crate::types::*;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

struct Cell {
    /// Position of the segment's first block; 0 while it is free.
    pos: AtomicU64,
    pins: AtomicU32,
}

pub(super) struct SegmentTable {
    geometry: Geometry,
    cells: Box<[Cell]>,
    unpinned: WaitQueue,
}

/// Keeps a segment from being reused.
pub(super) struct Pin<'a> {
    table: &'a SegmentTable,
    segment: SegmentNo,
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let before = self.table.cells[self.segment.0 as usize].pins.fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "a pin is released once");
        if before == 1 {
            self.table.unpinned.notify_all();
        }
    }
}

impl SegmentTable {
    pub fn new(geometry: Geometry) -> SegmentTable {
        let cells = (0..geometry.segments).map(|_| Cell { pos: AtomicU64::new(0), pins: AtomicU32::new(0) });
        SegmentTable { geometry, cells: cells.collect(), unpinned: WaitQueue::new() }
    }

    /// Bytes of the table.
    pub fn memory_bytes(&self) -> u64 {
        (self.cells.len() * size_of::<Cell>()) as u64
    }

    /// Notes where a segment's first block lies in the log; 0: it is free.
    pub fn set_pos(&self, segment: SegmentNo, pos: LogPos) {
        let cell = &self.cells[segment.0 as usize].pos;
        // Every reservation comes here, and only the first of a segment changes anything.
        if cell.load(Ordering::SeqCst) != pos.0 {
            cell.store(pos.0, Ordering::SeqCst);
        }
    }

    /// Position of a slot. The caller knows that the segment is live: it holds a pin, a shard lock with an index entry
    /// in it, or a reservation.
    pub fn pos(&self, slot: Slot) -> LogPos {
        let (segment, block) = self.geometry.slot_parts(slot);
        let first = self.cells[segment.0 as usize].pos.load(Ordering::SeqCst);
        assert!(first > 0, "slot {slot} is in a live segment");
        LogPos(first + u64::from(block))
    }

    /// Pins the segment of a slot; under the shard lock of the lookup.
    pub fn pin(&self, slot: Slot) -> Pin<'_> {
        let (segment, _) = self.geometry.slot_parts(slot);
        self.cells[segment.0 as usize].pins.fetch_add(1, Ordering::SeqCst);
        Pin { table: self, segment }
    }

    /// Waits until nobody pins the segment.
    pub async fn wait_unpinned(&self, segment: SegmentNo) {
        let cell = &self.cells[segment.0 as usize];
        self.unpinned.wait_until(|| (cell.pins.load(Ordering::SeqCst) == 0).then_some(())).await;
    }
}
