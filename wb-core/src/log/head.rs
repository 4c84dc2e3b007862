//! The log head: where the next block goes.
//!
//! Invariants, all held by the one lock of [`LogHead`]:
//! * Record numbers and positions rise together. At most one record is open; it is the newest.
//! * Records are sealed in order, each naming its predecessor's chain value. A record is sealed only when closed and when
//!   every reservation in it has been published: an entry in a sealed record is final.
//! * A record lies within one segment. A segment is opened only if it is free, that is outside the live log, and good.
//! * What was opened out of the reserve is for those who make space alone, to its last block: users write nothing as long
//!   as less than the reserve is free [each block logged anew opens a segment of the reserve, writers fill the rest of it;
//!   the reserve is gone before anything is freed, and everybody waits].
//! * `durable` <= `written` < `next_seq`; `written` is the last record of the unbroken run of completed writes.
//! * Every sealed record beyond `durable` is in `in_flight`, and so in its buffer: the tail has all that the device may
//!   not have. When half of the buffers wait for nothing but a flush, one is asked for.
//! * What is sealed comes out as a [`Submit`] of the call that sealed it, also where that call refuses something, or waits in
//!   `held`. Nothing that a flush wants waits there: neither when it is asked for nor when it is sealed later.
//! * A closed segment's summary is built from exactly the records that were sealed into it.
//! * After a start `live` may lack the oldest part of the log, which holds nothing dirty: it is *unread*. It is read from its
//!   newest segment to its oldest ([`LogHead::read_back`]), or forgotten from the oldest on; so `live` has no gap.

mod questions;
mod sealing;
#[cfg(test)]
mod tests;

use super::record::Record;
use super::scan::ScannedSegment;
use crate::format::*;
use crate::io::Buf;
use crate::tail::Tail;
use crate::types::*;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use uuid::Uuid;

/// Who asks for log space. Users leave a reserve to those who make space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A request of a user.
    User,
    /// Re-logging at the tail: may use the reserve.
    Internal,
}

/// Why nothing could be reserved now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// No free segment for this class: space has to be made first.
    Segments,
    /// All record buffers are on their way to the device.
    Buffers,
}

/// What a reservation gives: consecutive payload slots and entries of one record.
pub struct Reservation {
    /// The record.
    pub record: Arc<Record>,
    /// Index of the first entry.
    pub first_entry: usize,
    /// Index of the first payload block; meaningless for a range entry.
    pub first_payload: usize,
    /// Number of entries: payload blocks, or 1 for a range.
    pub count: usize,
}

impl Reservation {
    /// Block, within the segment, of payload `index` of the reservation.
    pub fn block(&self, index: usize) -> u32 {
        assert!(index < self.count, "payload of the reservation");
        self.record.offset_blocks + 1 + (self.first_payload + index) as u32
    }
    /// Log position of payload `index`.
    pub fn pos(&self, index: usize) -> LogPos {
        LogPos(self.record.pos.0 + 1 + (self.first_payload + index) as u64)
    }
    /// Log position of a range entry: behind every payload reserved before it, before every one after it.
    pub fn range_pos(&self) -> LogPos {
        LogPos(self.record.pos.0 + self.first_payload as u64)
    }
    /// Payload block `index`, to be filled before publishing.
    pub fn payload_mut(&mut self, index: usize) -> &mut [u8] {
        assert!(index < self.count, "payload of the reservation");
        self.record.payload_mut(self.first_payload + index)
    }
    /// Writes entry `index`, before publishing.
    pub fn put_entry(&mut self, index: usize, entry: &Entry) {
        assert!(index < self.count, "entry of the reservation");
        self.record.put_entry(self.first_entry + index, entry);
    }
    /// Makes entry `index` void again and gives what it was, before publishing; for a planted bug.
    pub(crate) fn take_entry(&mut self, index: usize) -> Entry {
        assert!(index < self.count, "entry of the reservation");
        self.record.take_entry(self.first_entry + index)
    }
}

/// Payload blocks of the last record of a segment that is so short that its predecessor waits for it. In a stream the
/// entries of a segment's summary are used up by two full records and one of eight blocks.
const RUNT_BLOCKS_MAX: usize = 16;

/// A device write that the head wants done. Whoever gets one submits it.
pub enum Submit {
    /// A sealed record.
    Record {
        /// The record.
        record: Arc<Record>,
        /// Its payload blocks.
        payload_blocks: u32,
        /// Write through: everything before it is durable already, and so it will be, too.
        fua: bool,
    },
    /// The summary of a segment that has been closed.
    Summary {
        /// The segment.
        segment: SegmentNo,
        /// Its summary.
        bytes: Buf,
    },
}

/// A segment of the live log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveSegment {
    /// The segment.
    pub segment: SegmentNo,
    /// Position of its first block.
    pub pos: LogPos,
    /// First record.
    pub first_seq: Seq,
    /// Chain value of the first record, once it is sealed.
    pub first_crc: Option<u32>,
    /// Last record, once no more can follow in this segment.
    pub last_seq: Option<Seq>,
    /// When it was opened, wall clock; for people.
    pub opened_unix_ns: u64,
    /// Its summary is on its way to the device: the segment must not be reused yet.
    pub summary_in_flight: bool,
}

struct OpenSegment {
    segment: SegmentNo,
    pos: LogPos,
    /// Where the next record begins.
    next_block: u32,
    usage: SummaryUsage,
}

struct OpenRecord {
    record: Arc<Record>,
    payload: usize,
    entries: usize,
    /// Payload blocks that segment, buffer and entry table have room for.
    payload_max: usize,
}

enum SealItem {
    Record { record: Arc<Record>, payload_blocks: u32, entries: usize, flush_group: bool, fua: bool },
    CloseSegment,
}

/// The segment that records are sealed into.
struct SegmentBuilder {
    summary: SummaryBuilder,
    /// It gets a summary when it is closed.
    summarise: bool,
}

/// A sealed record that is not durable yet.
struct InFlight {
    record: Arc<Record>,
    end: LogPos,
    chain_crc: u32,
    /// D that its header tells.
    tells: Seq,
    written: bool,
}

/// What recovery hands to the head.
pub struct HeadStart {
    /// The newest record of the log.
    pub head: Seq,
    /// Its chain value.
    pub chain_crc: u32,
    /// Position behind it.
    pub head_pos: LogPos,
    /// Epoch of the next record.
    pub epoch: Epoch,
    /// First record of it.
    pub epoch_start: Seq,
    /// The live log, oldest first, from the segment on where the walk began.
    pub live: VecDeque<LiveSegment>,
    /// Good segments of the log before that.
    pub unread_good: u32,
    /// The last segment, if the log goes on in it, and the block where.
    pub open: Option<(ScannedSegment, u32)>,
    /// Where to look for a free segment first.
    pub next_segment: SegmentNo,
    /// Tails, as anchored.
    pub log_tail: Seq,
    /// See `log_tail`.
    pub dirty_tail: Seq,
}

struct HeadState {
    segment: Option<OpenSegment>,
    open: Option<OpenRecord>,
    next_seq: Seq,
    /// Position behind the last segment opened.
    next_pos: LogPos,
    /// Where to look for a free segment.
    next_segment: SegmentNo,
    to_seal: VecDeque<SealItem>,
    /// Sealed and kept back: the last long record of a segment, which goes out with the runt and the summary behind it
    /// as one write. Whoever wants it durable takes it earlier.
    held: Vec<Submit>,
    /// A flush of everything up to here was asked for: none of that is held.
    flush_wanted: Seq,
    /// The sealed records beyond D, in order, without a gap.
    in_flight: VecDeque<InFlight>,
    chain_crc: u32,
    builder: Option<SegmentBuilder>,
    written: (Seq, LogPos),
    durable: (Seq, LogPos),
    live: VecDeque<LiveSegment>,
    /// Good segments of the log before `live`.
    unread_good: u32,
    free_segments: u32,
    /// D that a header or an anchor on the device tells.
    told_durable: Seq,
    tails: (Seq, Seq),
    epoch: (Epoch, Seq),
}

/// The log head.
pub struct LogHead {
    geometry: Geometry,
    uuid: Uuid,
    secret: u32,
    /// Segments that users leave free.
    reserve_segments: u32,
    /// Record buffers that users leave to internal writers.
    reserve_buffers: usize,
    bad: BadSegments,
    tail: Tail,
    /// Written records that may wait for a flush before one is asked for.
    unflushed_max: u64,
    /// Segments that are not bad.
    usable_segments: u32,
    wall_unix_ns: Box<dyn Fn() -> u64 + Send + Sync>,
    state: Mutex<HeadState>,
    /// The open record takes payload: a hint that costs no lock.
    open_has_room: AtomicBool,
    /// [`HeadState::durable`]'s position, or an earlier one: what lies before it is not in memory any more.
    durable_pos: AtomicU64,
}

/// What the head is built from.
pub struct HeadConfig<'a> {
    /// The cache.
    pub superblock: &'a Superblock,
    /// Segments used no more.
    pub bad: BadSegments,
    /// The record buffers, and what survives the process.
    pub tail: Tail,
    /// Segments that users leave free.
    pub reserve_segments: u32,
    /// Wall clock for the headers.
    pub wall_unix_ns: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl LogHead {
    /// The head of a recovered log.
    pub fn new(config: HeadConfig<'_>, start: HeadStart) -> LogHead {
        let HeadConfig { superblock, bad, tail, reserve_segments, wall_unix_ns } = config;
        let geometry = superblock.geometry;
        let usable = geometry.segments - bad.count();
        let live_good = start.live.iter().filter(|live| !bad.is_bad(live.segment)).count() as u32;
        let mut state = HeadState {
            segment: None,
            open: None,
            next_seq: start.head.next(),
            next_pos: LogPos(start.live.back().map_or(0, |last| last.pos.0) + u64::from(geometry.segment_blocks())),
            next_segment: start.next_segment,
            to_seal: VecDeque::new(),
            held: Vec::new(),
            flush_wanted: Seq(0),
            in_flight: VecDeque::new(),
            chain_crc: start.chain_crc,
            builder: None,
            written: (start.head, start.head_pos),
            durable: (start.head, start.head_pos),
            live: start.live,
            unread_good: start.unread_good,
            free_segments: usable - live_good - start.unread_good,
            told_durable: start.head,
            tails: (start.log_tail, start.dirty_tail),
            epoch: (start.epoch, start.epoch_start),
        };
        if let Some((scanned, next_block)) = start.open {
            state.go_on_in(scanned, next_block, start.epoch, &geometry);
        }
        LogHead {
            geometry,
            uuid: superblock.uuid,
            secret: superblock.secret,
            reserve_segments,
            reserve_buffers: 1,
            bad,
            // One buffer is the open record's, one the reserve; of the others half may wait.
            unflushed_max: (tail.buffers().count() as u64).saturating_sub(2).div_ceil(2).max(1),
            tail,
            usable_segments: usable,
            wall_unix_ns,
            open_has_room: AtomicBool::new(false),
            durable_pos: AtomicU64::new(state.durable.1.0),
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HeadState> {
        self.state.lock().expect("the head lock is not poisoned")
    }

    /// Reserves up to `blocks` payload slots in one record. What comes out must be published without waiting. What is added
    /// to `submit` has to be submitted, also if nothing could be reserved: to make room, a record may have been closed.
    pub fn reserve_payload(&self, class: Class, blocks: usize, submit: &mut Vec<Submit>) -> Result<Reservation, Full> {
        assert!(blocks > 0, "something to reserve");
        let mut state = self.lock();
        self.ensure_open(&mut state, class, 1, submit)?;
        let open = state.open.as_mut().expect("just ensured");
        let count = blocks.min(open.payload_max - open.payload);
        let reservation =
            Reservation { record: open.record.clone(), first_entry: open.entries, first_payload: open.payload, count };
        open.payload += count;
        open.entries += count;
        open.record.reserved(open.entries, open.payload);
        if open.payload == open.payload_max {
            self.close_open(&mut state, false, false);
        }
        self.hint(state.open.is_some());
        Ok(reservation)
    }

    /// Written only when it changes, so that its cache line stays with all threads.
    fn hint(&self, has_room: bool) {
        if self.open_has_room.load(Ordering::Relaxed) != has_room {
            self.open_has_room.store(has_room, Ordering::Relaxed);
        }
    }

    /// Whether it is worth trying to reserve a payload block without waiting. Takes no lock, and may be wrong either way.
    pub fn seems_to_have_room(&self) -> bool {
        self.open_has_room.load(Ordering::Relaxed)
    }

    /// Whether a payload block could be reserved now: exactly what [`LogHead::reserve_payload`] would find. Others may
    /// take the room before the caller does.
    pub fn room(&self, class: Class) -> Result<(), Full> {
        let state = self.lock();
        let (keep_buffers, keep_segments) = self.keeps(class);
        if state.free_segments < keep_segments {
            return Err(Full::Segments);
        }
        if state.open.as_ref().is_some_and(|open| open.payload < open.payload_max) {
            return Ok(());
        }
        if self.tail.buffers().free_largest() <= keep_buffers {
            return Err(Full::Buffers);
        }
        let fits = state.segment.as_ref().is_some_and(|segment| {
            let (mut next_block, mut usage) = (segment.next_block, segment.usage);
            if let Some(open) = &state.open {
                next_block += 1 + open.payload as u32;
                usage = SummaryUsage { records: usage.records + 1, entries: usage.entries + open.entries };
            }
            self.fits_record(next_block, usage)
        });
        if fits || state.free_segments > keep_segments { Ok(()) } else { Err(Full::Segments) }
    }

    /// Whether a record with a payload block fits into a segment from `next_block` on.
    fn fits_record(&self, next_block: u32, usage: SummaryUsage) -> bool {
        self.geometry.record_blocks().saturating_sub(next_block) >= 2 && self.summary_room(usage) >= 1
    }

    /// Record buffers and segments that a class leaves to others.
    fn keeps(&self, class: Class) -> (usize, u32) {
        match class {
            Class::User => (self.reserve_buffers, self.reserve_segments),
            Class::Internal => (0, 0),
        }
    }

    /// Reserves one range entry. `submit`: see [`LogHead::reserve_payload`].
    pub fn reserve_range(&self, class: Class, submit: &mut Vec<Submit>) -> Result<Reservation, Full> {
        let mut state = self.lock();
        self.ensure_open(&mut state, class, 0, submit)?;
        let fits = {
            let open = state.open.as_ref().expect("just ensured");
            let usage = state.segment.as_ref().expect("an open record has a segment").usage;
            open.entries < RECORD_ENTRIES_MAX && usage.fits(1, open.entries + 1, &self.geometry)
        };
        if !fits {
            self.close_open(&mut state, false, false);
            self.seal_ready(&mut state, submit);
            self.ensure_open(&mut state, class, 0, submit)?;
        }
        let usage = state.segment.as_ref().expect("an open record has a segment").usage;
        let summary_room = self.summary_room(usage);
        let open = state.open.as_mut().expect("just ensured");
        let reservation = Reservation {
            record: open.record.clone(),
            first_entry: open.entries,
            first_payload: open.payload,
            count: 1,
        };
        open.record.mark_range(open.entries);
        open.entries += 1;
        // A range takes an entry that payload can then not have.
        let by_summary = summary_room.saturating_sub(open.entries);
        let by_entries = RECORD_ENTRIES_MAX - open.entries;
        open.payload_max = open.payload_max.min(open.payload + by_entries.min(by_summary));
        open.record.reserved(open.entries, open.payload);
        let has_room = open.payload < open.payload_max;
        self.hint(has_room);
        Ok(reservation)
    }

    /// Entries that one more record of a segment may have by its summary.
    fn summary_room(&self, usage: SummaryUsage) -> usize {
        let total = self.geometry.summary_blocks() as usize * BLOCK_BYTES;
        let used = SummaryUsage { records: usage.records + 1, entries: usage.entries }.bytes();
        total.saturating_sub(used) / ENTRY_BYTES
    }

    fn ensure_open(
        &self,
        state: &mut HeadState,
        class: Class,
        payload: usize,
        submit: &mut Vec<Submit>,
    ) -> Result<(), Full> {
        if state.free_segments < self.keeps(class).1 {
            return Err(Full::Segments);
        }
        if let Some(open) = &state.open {
            if open.payload + payload <= open.payload_max {
                return Ok(());
            }
            self.close_open(state, false, false);
            self.hint(false);
            self.seal_ready(state, submit);
        }
        let fits = state.segment.as_ref().is_some_and(|segment| self.fits_record(segment.next_block, segment.usage));
        if self.tail.buffers().free_largest() <= self.keeps(class).0 {
            return Err(Full::Buffers);
        }
        if !fits {
            self.open_segment(state, class, submit)?;
        }
        let buf = self.tail.buffers().try_alloc(self.tail.buffers().max_len()).ok_or(Full::Buffers)?;
        let segment = state.segment.as_ref().expect("a segment is open");
        let pos = LogPos(segment.pos.0 + u64::from(segment.next_block));
        let record = Arc::new(Record::new(&self.tail, state.next_seq, segment.segment, segment.next_block, pos, buf));
        let room = (self.geometry.record_blocks() - segment.next_block - 1) as usize;
        let payload_max = room.min(record.capacity()).min(RECORD_ENTRIES_MAX).min(self.summary_room(segment.usage));
        state.next_seq = state.next_seq.next();
        state.open = Some(OpenRecord { record, payload: 0, entries: 0, payload_max });
        Ok(())
    }

    fn open_segment(&self, state: &mut HeadState, class: Class, submit: &mut Vec<Submit>) -> Result<(), Full> {
        if state.free_segments <= self.keeps(class).1 {
            return Err(Full::Segments);
        }
        self.end_segment(state);
        self.seal_ready(state, submit);
        let mut segment = state.next_segment;
        while self.bad.is_bad(segment) {
            segment = self.geometry.next_segment(segment);
        }
        // The live log is an arc of the ring, so the segment behind its end is its beginning or free.
        assert!(state.live.front().is_none_or(|oldest| oldest.segment != segment), "a free segment is not live");
        let pos = state.next_pos;
        state.next_pos = LogPos(pos.0 + u64::from(self.geometry.segment_blocks()));
        state.next_segment = self.geometry.next_segment(segment);
        state.free_segments -= 1;
        let first_seq = state.next_seq;
        let opened_unix_ns = (self.wall_unix_ns)();
        let live = LiveSegment {
            segment,
            pos,
            first_seq,
            first_crc: None,
            last_seq: None,
            opened_unix_ns,
            summary_in_flight: false,
        };
        state.live.push_back(live);
        state.segment = Some(OpenSegment { segment, pos, next_block: 0, usage: SummaryUsage::default() });
        Ok(())
    }

    /// Closes the open record: no more reservations go into it.
    fn close_open(&self, state: &mut HeadState, flush_group: bool, fua: bool) {
        let Some(open) = state.open.take() else { return };
        let segment = state.segment.as_mut().expect("an open record has a segment");
        assert!(open.entries > 0, "a record is opened for an entry");
        segment.next_block += 1 + open.payload as u32;
        segment.usage.records += 1;
        segment.usage.entries += open.entries;
        assert!(segment.next_block <= self.geometry.record_blocks(), "a record lies within its segment");
        let full = !self.fits_record(segment.next_block, segment.usage);
        open.record.close();
        state.to_seal.push_back(SealItem::Record {
            record: open.record,
            payload_blocks: open.payload as u32,
            entries: open.entries,
            flush_group,
            fua,
        });
        if full {
            // Now and not when the next one is opened, so that its summary goes out with its last record.
            self.end_segment(state);
        }
    }

    /// No more records go into the open segment, if there is one.
    fn end_segment(&self, state: &mut HeadState) {
        if state.segment.take().is_some() {
            let last = Seq(state.next_seq.0 - 1);
            state.live.back_mut().expect("the open segment is live").last_seq = Some(last);
            state.to_seal.push_back(SealItem::CloseSegment);
        }
    }

    /// True if nothing is closed behind what was sealed last, and the segment has room for a runt only.
    fn runt_follows(&self, state: &HeadState) -> bool {
        let room = state.segment.as_ref().map_or(0, |segment| {
            let blocks = self.geometry.record_blocks().saturating_sub(segment.next_block + 1) as usize;
            blocks.min(self.summary_room(segment.usage))
        });
        // Of so few buffers none may lie idle.
        state.to_seal.is_empty() && (1..=RUNT_BLOCKS_MAX).contains(&room) && self.tail.buffers().count() > 3
    }

    /// Publishes a filled reservation. What comes back has to be submitted.
    pub fn publish(&self, reservation: Reservation) -> Vec<Submit> {
        let mut submit = Vec::new();
        if reservation.record.published() {
            let mut state = self.lock();
            self.seal_ready(&mut state, &mut submit);
        }
        submit
    }

    /// Closes the open record for a flush of everything up to `wanted`, if that includes it. All of it will be written
    /// without further ado. `fua`: the device can write one through, where that saves the flush.
    pub fn close_for_flush(&self, wanted: Seq, fua: bool) -> Vec<Submit> {
        let mut state = self.lock();
        let mut submit = Vec::new();
        state.flush_wanted = state.flush_wanted.max(wanted);
        if state.open.as_ref().is_some_and(|open| open.record.seq <= wanted) {
            let alone = fua && state.open.as_ref().is_some_and(|open| state.durable.0.next() == open.record.seq);
            self.close_open(&mut state, true, alone);
            self.hint(false);
            self.seal_ready(&mut state, &mut submit);
        }
        // Somebody wants it durable, or short of buffers: it waits for no runt.
        submit.append(&mut state.held);
        submit
    }

    /// A record has been written; with `fua` it is durable if everything before it is. Gives the record up to which the
    /// device should be flushed because buffers run short.
    pub fn record_written(&self, seq: Seq, fua: bool) -> Option<Seq> {
        let mut state = self.lock();
        let first = state.in_flight.front().expect("a record in flight").record.seq;
        let at = (seq.0 - first.0) as usize;
        state.in_flight[at].written = true;
        state.told_durable = state.told_durable.max(state.in_flight[at].tells);
        let end = state.in_flight[at].end;
        let mut next = (state.written.0.0 + 1 - first.0) as usize;
        while let Some(entry) = state.in_flight.get(next).filter(|entry| entry.written) {
            state.written = (entry.record.seq, entry.end);
            next += 1;
        }
        let mut freed = VecDeque::new();
        if fua && state.durable.0.next() == seq {
            freed = self.raise_durable(&mut state, (seq, end));
        }
        let wanted = (state.written.0.0 - state.durable.0.0 >= self.unflushed_max).then_some(state.written.0);
        drop(state);
        drop(freed); // their buffers go back to the pool outside the lock
        wanted
    }

    /// The device was flushed after every record up to `written` had been written.
    pub fn flushed(&self, written: (Seq, LogPos)) {
        let mut state = self.lock();
        assert!(written.0 <= state.written.0, "only written records become durable");
        if written.0 > state.durable.0 {
            let freed = self.raise_durable(&mut state, written);
            drop(state);
            drop(freed);
        }
    }

    /// Gives the records that need no buffer any more. The tail knows of the new D before any of them is free.
    fn raise_durable(&self, state: &mut HeadState, durable: (Seq, LogPos)) -> VecDeque<InFlight> {
        let first = state.in_flight.front().expect("what becomes durable was in flight").record.seq;
        let rest = state.in_flight.split_off((durable.0.0 + 1 - first.0) as usize);
        let freed = std::mem::replace(&mut state.in_flight, rest);
        let last = freed.back().expect("D rises");
        assert_eq!(last.record.seq, durable.0, "in flight is all beyond D without a gap");
        self.tail.set_durable(durable.0, last.chain_crc);
        state.durable = durable;
        self.durable_pos.store(durable.1.0, Ordering::Release);
        freed
    }

    /// The summary of a segment is written, or will never be.
    pub fn summary_done(&self, segment: SegmentNo) {
        let mut state = self.lock();
        let live = state.live.iter_mut().rev().find(|live| live.segment == segment);
        live.expect("a segment stays live until its summary is written").summary_in_flight = false;
    }
}

impl HeadState {
    fn go_on_in(&mut self, scanned: ScannedSegment, next_block: u32, epoch: Epoch, geometry: &Geometry) {
        let live = self.live.back_mut().expect("the last segment is live");
        assert_eq!(live.segment, scanned.segment, "the log goes on in its last segment");
        live.last_seq = None;
        let first = &scanned.records[0];
        let entries = scanned.records.iter().map(|record| record.entries.len()).sum();
        let usage = SummaryUsage { records: scanned.records.len(), entries };
        // A repaired record, or an epoch too far from the first one's, has no place in a summary, and more than a summary has
        // room for [records of a RAM tail were moved into one segment] makes none.
        let summarise =
            scanned.records.iter().all(|record| record.span == 1 && !record.flags.has(RecordFlags::REPAIRED))
                && epoch.0 - first.epoch.0 <= EPOCH_DELTA_MAX
                && usage.bytes() <= geometry.summary_blocks() as usize * BLOCK_BYTES;
        self.segment = Some(OpenSegment { segment: scanned.segment, pos: live.pos, next_block, usage });
        let mut summary = SummaryBuilder::new(scanned.segment, scanned.previous_crc, scanned.first_epoch_start);
        for record in scanned.records {
            summary.push_desc(&RecordDesc {
                seq: record.seq,
                epoch: record.epoch,
                offset_blocks: record.offset_blocks,
                chain_crc: record.chain_crc,
                flags: record.flags,
                entries: record.entries,
            });
        }
        self.builder = Some(SegmentBuilder { summary, summarise });
    }
}
