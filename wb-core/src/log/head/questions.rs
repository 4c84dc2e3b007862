//! What others ask the head, and what they tell it of segments and anchors.

use super::*;

impl LogHead {
    /// Bytes of the record buffers and of what the tail needs besides.
    pub fn buffer_bytes(&self) -> u64 {
        self.tail.bytes()
    }
    /// The newest record that has a reservation; 0 before the first.
    pub fn newest(&self) -> Seq {
        Seq(self.lock().next_seq.0 - 1)
    }
    /// Last of the unbroken run of written records, and the position behind it.
    pub fn written(&self) -> (Seq, LogPos) {
        self.lock().written
    }
    /// D, and the position behind it.
    pub fn durable(&self) -> (Seq, LogPos) {
        self.lock().durable
    }
    /// D as the device itself tells it, by a header or an anchor.
    pub fn told_durable(&self) -> Seq {
        self.lock().told_durable
    }
    /// An anchor with this D is on the device.
    pub fn anchored(&self, durable: Seq, log_tail: Seq, dirty_tail: Seq) {
        let mut state = self.lock();
        state.told_durable = state.told_durable.max(durable);
        state.tails = (log_tail, dirty_tail);
    }
    /// Free segments, and all that can ever be free.
    pub fn free_segments(&self) -> (u32, u32) {
        (self.lock().free_segments, self.usable_segments)
    }
    /// Current epoch and its first record.
    pub fn epoch(&self) -> (Epoch, Seq) {
        self.lock().epoch
    }
    /// The segment in which the log goes on.
    pub fn next_segment(&self) -> SegmentNo {
        let state = self.lock();
        state.segment.as_ref().map_or(state.next_segment, |open| open.segment)
    }

    /// The segment that would be opened next, if there is a free one.
    pub fn next_free_segment(&self) -> Option<SegmentNo> {
        let state = self.lock();
        let mut segment = state.next_segment;
        while state.free_segments > 0 && self.bad.is_bad(segment) {
            segment = self.geometry.next_segment(segment);
        }
        (state.free_segments > 0).then_some(segment)
    }

    /// The record in memory that holds this position, if it is not durable yet.
    pub fn record_at(&self, pos: LogPos) -> Option<Arc<Record>> {
        if pos.0 < self.durable_pos.load(Ordering::Acquire) {
            return None;
        }
        let state = self.lock();
        if pos < state.durable.1 {
            return None;
        }
        let holds = |record: &Arc<Record>| record.pos < pos && pos.0 <= record.pos.0 + RECORD_ENTRIES_MAX as u64;
        let open = state.open.iter().map(|open| &open.record);
        let closed = state.to_seal.iter().filter_map(|item| match item {
            SealItem::Record { record, .. } => Some(record),
            SealItem::CloseSegment => None,
        });
        let flying = state.in_flight.iter().map(|entry| &entry.record);
        // The newest record that begins before the position: later ones begin behind it.
        flying.chain(closed).chain(open).filter(|record| holds(record)).max_by_key(|record| record.pos).cloned()
    }

    /// The live segments from the oldest on, at most `count`.
    pub fn oldest_segments(&self, count: usize) -> Vec<LiveSegment> {
        self.lock().live.iter().take(count).cloned().collect()
    }
    /// The live segments that hold records from `seq` on, at most `count`.
    pub fn segments_from(&self, seq: Seq, count: usize) -> Vec<LiveSegment> {
        let state = self.lock();
        let ends_before = |live: &&LiveSegment| live.last_seq.is_some_and(|last| last < seq);
        state.live.iter().skip_while(ends_before).take(count).cloned().collect()
    }
    /// How many live segments hold records from `seq` on.
    pub fn count_from(&self, seq: Seq) -> usize {
        let state = self.lock();
        state.live.len() - state.live.partition_point(|live| live.last_seq.is_some_and(|last| last < seq))
    }
    /// The records sealed into the segment that is being filled, if it is this one.
    pub fn records_of_open(&self, segment: SegmentNo) -> Option<Vec<RecordDesc>> {
        let state = self.lock();
        let builder = state.builder.as_ref().filter(|builder| builder.summary.segment() == segment);
        builder.map(|builder| builder.summary.records())
    }
    /// The oldest segment that has been read; what is before it in the log is unread.
    pub fn oldest(&self) -> Option<LiveSegment> {
        self.lock().live.front().cloned()
    }
    /// The newest segment that begins with this record or an older one.
    pub fn newest_from(&self, seq: Seq) -> Option<LiveSegment> {
        let state = self.lock();
        let count = state.live.partition_point(|live| live.first_seq <= seq);
        count.checked_sub(1).map(|at| state.live[at].clone())
    }
    /// Puts an unread segment in front of the live log: it has been read, and its last record is the one before those that
    /// had been. Between it and the oldest one there are only bad segments that hold nothing.
    pub fn read_back(&self, live: LiveSegment) {
        let mut state = self.lock();
        let follows = state.live.front().map(|oldest| (oldest.first_seq, oldest.pos));
        let fits = follows.is_some_and(|(seq, pos)| live.last_seq.is_some_and(|last| last < seq) && live.pos < pos);
        assert!(fits, "what is read back is older");
        if !self.bad.is_bad(live.segment) {
            state.unread_good = state.unread_good.checked_sub(1).expect("an unread segment");
        }
        state.live.push_front(live);
    }
    /// Good segments of the log that are unread.
    pub fn unread_good(&self) -> u32 {
        self.lock().unread_good
    }
    /// Frees unread segments, the oldest ones. The anchor that says so is durable in both slots.
    pub fn forget_unread(&self, good: u32) {
        let mut state = self.lock();
        state.unread_good = state.unread_good.checked_sub(good).expect("unread segments");
        state.free_segments += good;
    }
    /// Whether a segment may be used.
    pub fn is_bad(&self, segment: SegmentNo) -> bool {
        self.bad.is_bad(segment)
    }

    /// Takes the oldest segment out of the live log. The anchor that says so is durable in both slots, nothing is
    /// pinned or indexed in it.
    pub fn free_oldest(&self, segment: SegmentNo) {
        let mut state = self.lock();
        assert!(state.live.len() > 1, "the newest segment stays");
        assert_eq!(state.unread_good, 0, "what is unread is older");
        let oldest = state.live.pop_front().expect("more than one");
        assert_eq!(oldest.segment, segment, "segments are freed in ring order");
        assert!(!oldest.summary_in_flight, "nothing is on its way to a free segment");
        assert!(oldest.last_seq.is_some_and(|last| last < state.tails.0), "the log tail has passed it");
        if !self.bad.is_bad(segment) {
            state.free_segments += 1;
        }
    }
}
