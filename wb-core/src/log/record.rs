//! A record in memory: filled by several writers at once, read while it is on its way to the device.

use crate::format::{ENTRY_BYTES, Entry, FIXED_HEADER_BYTES};
use crate::io::buf::SharedChunk;
use crate::io::{Buf, Slice};
use crate::types::*;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use zerocopy::IntoBytes;

/// A record that is open, closed and not yet written, or being written.
pub struct Record {
    /// Its number.
    pub seq: Seq,
    /// Where it goes.
    pub segment: SegmentNo,
    /// Block of its header within the segment.
    pub offset_blocks: u32,
    /// Position of its header in the log.
    pub pos: LogPos,
    chunk: SharedChunk,
    /// Reservations not yet published.
    unpublished: AtomicU32,
    /// Takes no more reservations.
    closed: AtomicBool,
}

impl Record {
    /// An empty record in a buffer of 4 KiB + payload.
    pub fn new(seq: Seq, segment: SegmentNo, offset_blocks: u32, pos: LogPos, buf: Buf) -> Record {
        Record {
            seq,
            segment,
            offset_blocks,
            pos,
            chunk: SharedChunk::new(buf),
            unpublished: AtomicU32::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// Payload blocks that the buffer has room for.
    pub fn capacity(&self) -> usize {
        self.chunk.len() / BLOCK_BYTES - 1
    }

    /// One more reservation; under the head lock.
    pub(super) fn reserved(&self) {
        self.unpublished.fetch_add(1, Ordering::SeqCst);
    }
    /// No more reservations; under the head lock.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
    /// True if everything reserved has been published.
    pub(super) fn complete(&self) -> bool {
        self.unpublished.load(Ordering::SeqCst) == 0
    }
    /// A reservation has been filled. True if the record may be ready to be sealed: ask the head.
    ///
    /// Closing stores `closed`, then reads `unpublished`; publishing lowers `unpublished`, then reads `closed`. Both are
    /// sequentially consistent, so at least one side sees the record complete.
    pub(super) fn published(&self) -> bool {
        let before = self.unpublished.fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "every reservation is published once");
        before == 1 && self.closed.load(Ordering::SeqCst)
    }

    fn payload_range(&self, index: usize) -> Range<usize> {
        assert!(index < self.capacity(), "payload block {index} of the record");
        (index + 1) * BLOCK_BYTES..(index + 2) * BLOCK_BYTES
    }

    /// A payload block of a reservation that is not published yet.
    pub(super) fn payload_mut(&self, index: usize) -> &mut [u8] {
        let range = self.payload_range(index);
        fill(&self.chunk, range)
    }

    /// Writes an entry of a reservation that is not published yet.
    pub(super) fn put_entry(&self, index: usize, entry: &Entry) {
        let at = FIXED_HEADER_BYTES + index * ENTRY_BYTES;
        assert!(index < RECORD_ENTRIES_MAX, "entry {index} of the record");
        fill(&self.chunk, at..at + ENTRY_BYTES).copy_from_slice(entry.encode().as_bytes());
    }

    /// The header block of a complete record, for sealing under the head lock.
    pub(super) fn header_mut(&self) -> &mut [u8] {
        assert!(self.complete(), "sealed when every entry is in place");
        fill(&self.chunk, 0..BLOCK_BYTES)
    }

    /// A payload block that has been published.
    pub fn payload(&self, index: usize) -> Slice {
        self.chunk.slice(self.payload_range(index))
    }

    /// Header and the first `payload_blocks` payload blocks of a sealed record.
    pub fn bytes(&self, payload_blocks: u32) -> Slice {
        self.chunk.slice(0..(1 + payload_blocks as usize) * BLOCK_BYTES)
    }
}

fn fill(chunk: &SharedChunk, range: Range<usize>) -> &mut [u8] {
    chunk.range_mut(range)
}
