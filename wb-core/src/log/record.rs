//! A record in memory: filled by several writers at once, read while it is on its way to the device.

use crate::format::{ENTRY_BYTES, Entry, EntryRaw, FIXED_HEADER_BYTES};
use crate::io::buf::SharedChunk;
use crate::io::{Buf, Slice};
use crate::tail::{Control, Tail, UNFINISHED_RANGE_KIND};
use crate::types::*;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use zerocopy::FromBytes;

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
    control: Control,
    /// Reservations not yet published.
    unpublished: AtomicU32,
    /// Takes no more reservations.
    closed: AtomicBool,
}

impl Record {
    /// An empty record in a buffer of the tail, of 4 KiB + payload.
    pub fn new(tail: &Tail, seq: Seq, segment: SegmentNo, offset_blocks: u32, pos: LogPos, mut buf: Buf) -> Record {
        let control = tail.open_record(&mut buf, seq, segment, offset_blocks);
        Record {
            seq,
            segment,
            offset_blocks,
            pos,
            chunk: SharedChunk::new(buf),
            control,
            unpublished: AtomicU32::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// Payload blocks that the buffer has room for.
    pub fn capacity(&self) -> usize {
        self.chunk.len() / BLOCK_BYTES - 1
    }

    /// One more reservation, with which so many entries and payload blocks are reserved; under the head lock.
    pub(super) fn reserved(&self, entries: usize, payload: usize) {
        self.control.set_reserved(entries, payload);
        self.unpublished.fetch_add(1, Ordering::SeqCst);
    }
    /// Entry `index` is being reserved for a range, which owns no payload block: a void entry would own one. Before
    /// anything is reserved behind it; under the head lock.
    pub(super) fn mark_range(&self, index: usize) {
        let unfinished = u64::from_le_bytes([0, 0, 0, 0, 0, UNFINISHED_RANGE_KIND, 0, 0]);
        self.chunk.store_pair(Self::entry_at(index), [0, unfinished.to_le()]);
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

    fn entry_at(index: usize) -> usize {
        assert!(index < RECORD_ENTRIES_MAX, "entry {index} of the record");
        FIXED_HEADER_BYTES + index * ENTRY_BYTES
    }

    /// Writes an entry of a reservation, whose payload is in place. From here on it survives the process: what comes
    /// after our death reads the second word last, and believes an entry whose kind, which is in it, is not void.
    pub(super) fn put_entry(&self, index: usize, entry: &Entry) {
        self.chunk.store_pair(Self::entry_at(index), zerocopy::transmute!(entry.encode()));
    }

    /// Takes an entry back that was put; for a planted bug.
    pub(super) fn take_entry(&self, index: usize) -> Entry {
        let at = Self::entry_at(index);
        let raw = EntryRaw::read_from_bytes(fill(&self.chunk, at..at + ENTRY_BYTES)).expect("size of an entry");
        self.put_entry(index, &Entry::VOID);
        Entry::decode(&raw).expect("an entry that was encoded here")
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
