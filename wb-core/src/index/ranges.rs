//! What is known about ranges of blocks without payload: zeroed, discarded, lost, not cached any more.
//!
//! Ranges are not expanded to blocks in the index; they are kept here, per volume, as non-overlapping intervals
//! ("pieces"). A reader takes the newer, by position in the log, of the index entry of a block and the piece that
//! covers it. Pieces stay until the segment of their record is reclaimed, clean or not: else older payload of the
//! block would become visible again.
//!
//! The number of pieces is bounded. What would need more is refused with [`Full`] and changes nothing; the engine
//! then carries the request out synchronously.

use crate::types::{LogPos, SegmentNo, Seq};
use std::collections::BTreeMap;
use std::ops::Range;

/// What a range is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeKind {
    /// Reads as zeroes.
    Zeroes,
    /// Any content; the backing device may forget it.
    Discard,
    /// Its data is lost: EIO until overwritten or cleared.
    Poison,
    /// The newest data is on the backing device.
    Invalidate,
}

/// What is known about every block of an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// What the blocks are.
    pub kind: RangeKind,
    /// Where in the log this was said. Of two pieces the one with the larger position is newer.
    pub pos: LogPos,
    /// The record that says it.
    pub seq: Seq,
    /// The segment of that record.
    pub segment: SegmentNo,
    /// Not yet applied to the backing device.
    pub dirty: bool,
}

impl Piece {
    /// So many blocks of it count as dirty, and as dirty and poison.
    fn weight(&self, blocks: u64) -> (u64, u64) {
        let dirty = if self.dirty { blocks } else { 0 };
        (dirty, if self.kind == RangeKind::Poison { dirty } else { 0 })
    }
}

/// There would be more pieces than the map may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the map of zeroed and discarded ranges is full ({capacity} pieces)")]
pub struct Full {
    /// Most pieces of the map.
    pub capacity: usize,
}

/// Bytes of memory per piece at worst: key and interval in a B-tree whose nodes are half full, and the segment count.
const BYTES_PER_PIECE: u64 = 2 * (8 + size_of::<Span>() as u64) + 2 * 12;

/// Pieces of a change for which memory is kept between changes.
const FRESH_KEPT: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Span {
    end: u64,
    piece: Piece,
}

/// The pieces of one volume.
///
/// Invariants: pieces are not empty and do not overlap; two that touch differ (equal ones are merged); their number
/// is at most the capacity.
pub struct RangeMap {
    /// By first block.
    spans: BTreeMap<u64, Span>,
    capacity: usize,
    dirty_blocks: u64,
    /// Those of them that are poison, which stays dirty until it is overwritten.
    poisoned_blocks: u64,
    /// Number of pieces per segment that has some.
    segments: BTreeMap<SegmentNo, usize>,
    /// New pieces of the change that is being made; kept for its memory.
    fresh: Vec<(Range<u64>, Piece)>,
}

impl RangeMap {
    /// An empty map that will hold at most `capacity` pieces.
    pub fn new(capacity: usize) -> RangeMap {
        RangeMap {
            spans: BTreeMap::new(),
            capacity,
            dirty_blocks: 0,
            poisoned_blocks: 0,
            segments: BTreeMap::new(),
            fresh: Vec::new(),
        }
    }

    /// Most pieces the map holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of memory when full.
    pub fn memory_bytes_max(&self) -> u64 {
        self.capacity as u64 * BYTES_PER_PIECE
    }

    /// Number of pieces.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// True if there is no piece.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Number of blocks of dirty pieces.
    pub fn dirty_blocks(&self) -> u64 {
        self.dirty_blocks
    }

    /// Number of blocks of dirty pieces that are poison: nothing of them can be applied to the backing device.
    pub fn poisoned_blocks(&self) -> u64 {
        self.poisoned_blocks
    }

    /// The piece that covers `block`.
    pub fn lookup(&self, block: u64) -> Option<Piece> {
        let (_, span) = self.spans.range(..=block).next_back()?;
        (block < span.end).then_some(span.piece)
    }

    /// The pieces that overlap `range`, clipped to it, ascending.
    pub fn overlaps(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, Piece)> {
        let first = self.first_overlap(&range);
        self.spans.range(first..range.end.max(first)).map(move |(&start, span)| {
            let clipped = start.max(range.start)..span.end.min(range.end);
            (clipped, span.piece)
        })
    }

    /// Where the first piece that overlaps a range begins, if one does that begins before it; else where the range
    /// begins.
    fn first_overlap(&self, range: &Range<u64>) -> u64 {
        let before = self.spans.range(..range.start).next_back();
        before.filter(|(_, span)| span.end > range.start && !range.is_empty()).map_or(range.start, |(&start, _)| start)
    }

    /// Says that the blocks of `range` are `piece`, except where something newer is known: later records may have
    /// been published first. Among equal positions the last insertion counts.
    pub fn insert(&mut self, range: Range<u64>, piece: Piece) -> Result<(), Full> {
        self.change(range, |known| match known {
            Some(known) if known.pos > piece.pos => Some(known),
            _ => Some(piece),
        })
    }

    /// Forgets what is older than `newer_than` about the blocks of `range`, because a write at that position
    /// supersedes it. When full (a hole needs one more piece) the older piece stays: readers still take the newer of
    /// the two, but whoever applies pieces to the backing device must do so too.
    pub fn punch(&mut self, range: Range<u64>, newer_than: LogPos) -> Result<(), Full> {
        if !self.overlaps(range.clone()).any(|(_, known)| known.pos < newer_than) {
            return Ok(()); // by far the most frequent case: every write asks
        }
        self.change(range, |known| known.filter(|known| known.pos >= newer_than))
    }

    /// Marks clean what was said at `pos` about the blocks of `range`. When full (a part of a piece is one more
    /// piece) it stays dirty, which costs applying it again.
    pub fn set_clean(&mut self, range: Range<u64>, pos: LogPos) -> Result<(), Full> {
        self.change(range, |known| {
            known.map(|known| if known.pos == pos { Piece { dirty: false, ..known } } else { known })
        })
    }

    /// Forgets all pieces whose record is in `segment`, which is about to be reused; returns how many. The caller has
    /// seen to it that they are applied to the backing device or superseded.
    pub fn remove_segment(&mut self, segment: SegmentNo) -> usize {
        let Some(count) = self.segments.remove(&segment) else { return 0 };
        let (dirty_blocks, poisoned_blocks) = (&mut self.dirty_blocks, &mut self.poisoned_blocks);
        self.spans.retain(|&start, span| {
            let stays = span.piece.segment != segment;
            if !stays {
                let (dirty, poisoned) = span.piece.weight(span.end - start);
                *dirty_blocks -= dirty;
                *poisoned_blocks -= poisoned;
            }
            stays
        });
        count
    }

    /// Replaces what is known about every block of `range`. Computes the new pieces first, so that it can refuse.
    fn change(&mut self, range: Range<u64>, to: impl Fn(Option<Piece>) -> Option<Piece>) -> Result<(), Full> {
        if range.is_empty() {
            return Ok(());
        }
        let (old_start, old_count) = self.compute(&range, to);
        if self.spans.len() - old_count + self.fresh.len() > self.capacity {
            return Err(Full { capacity: self.capacity });
        }
        for _ in 0..old_count {
            let (&start, _) = self.spans.range(old_start..).next().expect("counted before");
            let span = self.spans.remove(&start).expect("just found");
            self.count(start..span.end, span.piece, false);
        }
        let mut fresh = std::mem::take(&mut self.fresh);
        for (blocks, piece) in fresh.drain(..) {
            self.count(blocks.clone(), piece, true);
            let before = self.spans.insert(blocks.start, Span { end: blocks.end, piece });
            assert!(before.is_none(), "pieces do not overlap");
        }
        fresh.shrink_to(FRESH_KEPT);
        self.fresh = fresh;
        Ok(())
    }

    /// Leaves in `fresh` the pieces that replace those that overlap or touch `range`: whole pieces, the parts outside
    /// included. Returns where the first of the latter begins and their number.
    fn compute(&mut self, range: &Range<u64>, to: impl Fn(Option<Piece>) -> Option<Piece>) -> (u64, usize) {
        let fresh = &mut self.fresh;
        fresh.clear();
        let mut add = |blocks: Range<u64>, piece: Option<Piece>| {
            let Some(piece) = piece.filter(|_| !blocks.is_empty()) else { return };
            match fresh.last_mut() {
                Some((last, same)) if *same == piece && last.end == blocks.start => last.end = blocks.end,
                _ => fresh.push((blocks, piece)),
            }
        };
        // Touching neighbours belong to it: they may become equal to what is next to them.
        let before = self.spans.range(..range.start).next_back().filter(|(_, span)| span.end >= range.start);
        let old_start = before.map_or(range.start, |(&start, _)| start);
        let mut old_count = 0;
        let mut done = range.start;
        for (&start, span) in self.spans.range(old_start..=range.end) {
            old_count += 1;
            add(start..span.end.min(range.start), Some(span.piece));
            add(done..start.min(range.end), to(None));
            add(start.max(range.start)..span.end.min(range.end), to(Some(span.piece)));
            add(start.max(range.end)..span.end, Some(span.piece));
            done = done.max(span.end.min(range.end));
        }
        add(done..range.end, to(None));
        (old_start, old_count)
    }

    /// Keeps the counters when a piece comes or goes.
    fn count(&mut self, blocks: Range<u64>, piece: Piece, comes: bool) {
        let (dirty, poisoned) = piece.weight(blocks.end - blocks.start);
        let pieces = self.segments.entry(piece.segment).or_insert(0);
        if comes {
            *pieces += 1;
            self.dirty_blocks += dirty;
            self.poisoned_blocks += poisoned;
        } else {
            *pieces -= 1;
            self.dirty_blocks -= dirty;
            self.poisoned_blocks -= poisoned;
            if *pieces == 0 {
                self.segments.remove(&piece.segment);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::tests::fixed;
    use proptest::prelude::*;

    const BLOCKS: u64 = 48;

    fn piece(pos: u64) -> Piece {
        let kind = [RangeKind::Zeroes, RangeKind::Discard, RangeKind::Poison, RangeKind::Invalidate][pos as usize % 4];
        Piece {
            kind,
            pos: LogPos(pos),
            seq: Seq(pos / 2),
            segment: SegmentNo(pos as u32 / 4),
            dirty: !pos.is_multiple_of(3),
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Insert(Range<u64>, u64),
        Punch(Range<u64>, u64),
        SetClean(Range<u64>, u64),
        RemoveSegment(u32),
    }

    fn op() -> impl Strategy<Value = Op> {
        let range = (0..BLOCKS, 0..BLOCKS / 2).prop_map(|(start, len)| start..(start + len).min(BLOCKS));
        let pos = 0u64..24;
        prop_oneof![
            6 => (range.clone(), pos.clone()).prop_map(|(range, pos)| Op::Insert(range, pos)),
            2 => (range.clone(), pos.clone()).prop_map(|(range, pos)| Op::Punch(range, pos)),
            2 => (range, pos).prop_map(|(range, pos)| Op::SetClean(range, pos)),
            1 => (0u32..6).prop_map(Op::RemoveSegment),
        ]
    }

    /// The same, block by block.
    #[derive(Clone, PartialEq, Debug)]
    struct Model(Vec<Option<Piece>>);

    impl Model {
        /// Maximal runs of equal blocks.
        fn runs(&self) -> Vec<(Range<u64>, Piece)> {
            let mut runs: Vec<(Range<u64>, Piece)> = Vec::new();
            for (block, piece) in self.0.iter().enumerate().filter_map(|(block, piece)| Some((block as u64, (*piece)?)))
            {
                match runs.last_mut() {
                    Some((range, same)) if range.end == block && *same == piece => range.end = block + 1,
                    _ => runs.push((block..block + 1, piece)),
                }
            }
            runs
        }

        fn apply(&mut self, op: &Op) {
            match op {
                Op::Insert(range, pos) => range.clone().for_each(|block| {
                    let known = &mut self.0[block as usize];
                    if known.is_none_or(|known| known.pos.0 <= *pos) {
                        *known = Some(piece(*pos));
                    }
                }),
                Op::Punch(range, pos) => range.clone().for_each(|block| {
                    self.0[block as usize] = self.0[block as usize].filter(|known| known.pos.0 >= *pos);
                }),
                Op::SetClean(range, pos) => range.clone().for_each(|block| {
                    if let Some(known) = self.0[block as usize].as_mut().filter(|known| known.pos.0 == *pos) {
                        known.dirty = false;
                    }
                }),
                Op::RemoveSegment(segment) => {
                    self.0.iter_mut().for_each(|known| *known = known.filter(|known| known.segment.0 != *segment));
                }
            }
        }
    }

    fn check(map: &RangeMap, model: &Model, window: Range<u64>) {
        let runs = model.runs();
        assert_eq!(map.overlaps(0..u64::MAX).collect::<Vec<_>>(), runs);
        assert_eq!((map.len(), map.is_empty()), (runs.len(), runs.is_empty()));
        let dirty = model.0.iter().flatten().filter(|piece| piece.dirty).count() as u64;
        let poisoned = model.0.iter().flatten().filter(|piece| piece.dirty && piece.kind == RangeKind::Poison).count();
        assert_eq!((map.dirty_blocks(), map.poisoned_blocks()), (dirty, poisoned as u64));
        for block in 0..BLOCKS {
            assert_eq!(map.lookup(block), model.0[block as usize]);
        }
        assert_eq!(map.lookup(BLOCKS), None);
        let clipped: Vec<_> = runs
            .into_iter()
            .map(|(range, piece)| (range.start.max(window.start)..range.end.min(window.end), piece))
            .filter(|(range, _)| !range.is_empty())
            .collect();
        assert_eq!(map.overlaps(window).collect::<Vec<_>>(), clipped);
        let counted: usize = map.segments.values().sum();
        assert_eq!(counted, map.len());
        assert!(map.segments.values().all(|&count| count > 0));
    }

    proptest! {
        #![proptest_config(fixed(600))]

        #[test]
        fn behaves_like_an_array_of_blocks(
            capacity in prop_oneof![1usize..6, 6usize..60],
            ops in proptest::collection::vec((op(), 0..BLOCKS, 0..BLOCKS), 1..120),
        ) {
            let mut map = RangeMap::new(capacity);
            let mut model = Model(vec![None; BLOCKS as usize]);
            for (op, start, len) in ops {
                let mut after = model.clone();
                after.apply(&op);
                let result = match op.clone() {
                    Op::Insert(range, pos) => map.insert(range, piece(pos)),
                    Op::Punch(range, pos) => map.punch(range, LogPos(pos)),
                    Op::SetClean(range, pos) => map.set_clean(range, LogPos(pos)),
                    Op::RemoveSegment(segment) => {
                        let before = model.runs().iter().filter(|(_, piece)| piece.segment.0 == segment).count();
                        prop_assert_eq!(map.remove_segment(SegmentNo(segment)), before);
                        Ok(())
                    }
                };
                // Refused exactly when the result would not fit; then nothing has changed.
                if after.runs().len() > capacity {
                    prop_assert_eq!(result, Err(Full { capacity }));
                } else {
                    prop_assert_eq!(result, Ok(()));
                    model = after;
                }
                check(&map, &model, start..start.saturating_add(len));
            }
        }
    }

    #[test]
    fn an_older_range_published_late_fills_the_gaps_only() {
        let mut map = RangeMap::new(10);
        map.insert(10..20, piece(5)).unwrap();
        map.insert(0..30, piece(4)).unwrap();
        let pieces: Vec<_> = map.overlaps(0..100).collect();
        assert_eq!(pieces, [(0..10, piece(4)), (10..20, piece(5)), (20..30, piece(4))]);
    }

    #[test]
    fn ends_of_the_number_space_and_empty_ranges_are_ranges_too() {
        let mut map = RangeMap::new(4);
        map.insert(7..7, piece(1)).unwrap();
        assert!(map.is_empty());
        map.insert(0..u64::MAX, piece(1)).unwrap();
        map.punch(u64::MAX - 1..u64::MAX, LogPos(2)).unwrap();
        map.punch(0..1, LogPos(2)).unwrap();
        assert_eq!(map.overlaps(0..u64::MAX).collect::<Vec<_>>(), [(1..u64::MAX - 1, piece(1))]);
        assert_eq!(map.overlaps(5..5).count(), 0);
        assert_eq!(map.dirty_blocks(), u64::MAX - 2);
        assert_eq!(map.lookup(u64::MAX), None);
    }

    #[test]
    fn consecutive_pieces_of_one_record_are_one() {
        let mut map = RangeMap::new(1);
        for part in 0..1000 {
            map.insert(part * 65_535..(part + 1) * 65_535, piece(8)).unwrap();
        }
        assert_eq!((map.len(), map.dirty_blocks()), (1, 65_535_000));
    }
}
