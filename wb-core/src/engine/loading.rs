//! Index, range map and list of segments, made from the log as the walk finds it.
//!
//! The walk goes on reading while what it found is entered beside it: segments are handed over in batches, one batch at a
//! time and in log order.

use super::ranges::range_kind;
use super::recovery::{OpenError, RANGES_MAX};
use super::segments::SegmentTable;
use crate::env::Env;
use crate::format::{Entry, EntryKind, Geometry, Volume};
use crate::index::{Index, IndexConfig, IndexError, Loader, Piece, RangeMap};
use crate::log::ScannedSegment;
use crate::log::head::LiveSegment;
use crate::types::*;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;

/// Segments of a batch: some milliseconds of work, a few MiB of memory. Simulated rings have up to 24 segments: several
/// batches there, too.
const BATCH_SEGMENTS: usize = if cfg!(feature = "sim") { 3 } else { 128 };

/// What to load for.
#[derive(Clone)]
pub(super) struct LoadFor {
    pub volume: Volume,
    /// The volume is not in the table yet: nothing in the log can be for it.
    pub fresh: bool,
    pub geometry: Geometry,
    pub index: IndexConfig,
    pub range_pieces: usize,
    pub dirty_tail: Seq,
    /// Segments of the log before the one where the walk begins.
    pub unread: u32,
    pub now_unix_ns: u64,
}

/// The log as it is loaded.
struct Loading {
    what: LoadFor,
    index: Loader,
    segments: SegmentTable,
    ranges: RangeMap,
    live: VecDeque<LiveSegment>,
    next_pos: u64,
    previous_crc: u32,
    bridged: bool,
    last: Option<ScannedSegment>,
    error: Option<OpenError>,
}

/// The log when it is loaded.
pub(super) struct Loaded {
    pub index: Index,
    pub segments: SegmentTable,
    pub ranges: RangeMap,
    pub live: VecDeque<LiveSegment>,
    /// The newest segment.
    pub last: Option<ScannedSegment>,
    /// Chain value of the record before the walk began.
    pub previous_crc: u32,
    /// Some of it stands for records that are lost.
    pub bridged: bool,
}

/// Positions of slots of live segments: later in the log, newer.
fn is_newer(segments: &SegmentTable) -> impl Fn(Slot, Slot) -> bool {
    |slot, before| segments.pos(slot) > segments.pos(before)
}

impl Loading {
    fn new(what: LoadFor) -> Result<Loading, IndexError> {
        Ok(Loading {
            index: Loader::new(Index::new(&what.index)?),
            segments: SegmentTable::new(what.geometry),
            ranges: RangeMap::new(RANGES_MAX.max(2 * what.range_pieces)),
            live: VecDeque::new(),
            next_pos: (u64::from(what.unread) + 1) * u64::from(what.geometry.segment_blocks()),
            previous_crc: 0,
            bridged: false,
            last: None,
            error: None,
            what,
        })
    }

    fn add_all(&mut self, batch: Vec<ScannedSegment>) {
        for segment in batch {
            if self.error.is_none()
                && let Err(error) = self.add(segment)
            {
                self.error = Some(error);
            }
        }
    }

    fn add(&mut self, scanned: ScannedSegment) -> Result<(), OpenError> {
        let pos = LogPos(self.next_pos);
        self.next_pos += u64::from(self.what.geometry.segment_blocks());
        self.segments.set_pos(scanned.segment, pos);
        if self.live.is_empty() {
            self.previous_crc = scanned.previous_crc;
        }
        for record in &scanned.records {
            let dirty = record.seq >= self.what.dirty_tail;
            self.bridged |= record.is_bridge();
            let mut payload = 0;
            for (entry, block) in record.entries_with_blocks() {
                let range_pos = LogPos(pos.0 + u64::from(record.offset_blocks) + payload);
                payload += u64::from(block.is_some());
                if entry.kind == EntryKind::Void {
                    continue;
                }
                self.check_entry(record.seq, entry)?;
                match block {
                    Some(block) => self.add_payload(&scanned, entry, block, dirty),
                    None => self.add_range(&scanned, record.seq, entry, range_pos, dirty)?,
                }
            }
        }
        self.live.push_back(LiveSegment {
            segment: scanned.segment,
            pos,
            first_seq: scanned.records[0].seq,
            first_crc: Some(scanned.records[0].chain_crc),
            last_seq: scanned.records.last().map(|record| record.last_seq()),
            opened_unix_ns: self.what.now_unix_ns,
            summary_in_flight: false,
        });
        self.last = Some(scanned);
        Ok(())
    }

    #[inline]
    fn check_entry(&self, seq: Seq, entry: &Entry) -> Result<(), OpenError> {
        if self.what.fresh || entry.addr.volume() != self.what.volume.id {
            return Err(OpenError::UnknownVolume { seq, volume: entry.addr.volume() });
        }
        let end = entry.addr.block() + entry.blocks;
        if end > self.what.volume.blocks() { Err(OpenError::BeyondEnd { seq, block: end - 1 }) } else { Ok(()) }
    }

    #[inline]
    fn add_payload(&mut self, scanned: &ScannedSegment, entry: &Entry, block: u32, dirty: bool) {
        let slot = self.what.geometry.slot(scanned.segment, block);
        let newer = is_newer(&self.segments);
        self.index.set_crc(slot, entry.crc);
        let mut dirty = dirty;
        if dirty && entry.kind != EntryKind::Dirty {
            // A clean entry that supersedes a dirty one, not written back yet, inherits its dirtiness.
            self.index.settle(&newer);
            dirty = self.index.lookup(entry.addr).is_some_and(|before| before.dirty);
        }
        self.index.put(entry.addr, slot, entry.mask, dirty, &newer);
    }

    fn add_range(
        &mut self,
        scanned: &ScannedSegment,
        seq: Seq,
        entry: &Entry,
        pos: LogPos,
        dirty: bool,
    ) -> Result<(), OpenError> {
        let kind = range_kind(entry.kind).expect("an entry without payload is a range");
        let piece = Piece { kind, pos, seq, segment: scanned.segment, dirty };
        let first = entry.addr.block();
        self.ranges.insert(first..first + entry.blocks, piece).map_err(|_| OpenError::Ranges)
    }

    fn finish(self) -> Result<Loaded, OpenError> {
        let Loading { index, segments, ranges, live, previous_crc, bridged, last, error, .. } = self;
        if let Some(error) = error {
            return Err(error);
        }
        let index = index.finish(&is_newer(&segments))?;
        Ok(Loaded { index, segments, ranges, live, last, previous_crc, bridged })
    }
}

type Work<'a> = Pin<Box<dyn Future<Output = Result<Loading, IndexError>> + 'a>>;

/// Takes the segments that the walk finds, and loads them beside it.
pub(super) struct Intake<'a, E: Env> {
    env: &'a E,
    batch: Vec<ScannedSegment>,
    /// The batch before, or the making of the index; always there.
    work: Option<Work<'a>>,
}

impl<'a, E: Env> Intake<'a, E> {
    /// Begins: allocates and touches the index while the walk makes its first reads.
    pub fn new(env: &'a E, what: LoadFor) -> Intake<'a, E> {
        let work: Work<'a> = Box::pin(env.beside(move || Loading::new(what)));
        Intake { env, batch: Vec::new(), work: Some(work) }
    }

    /// Takes the next segment in.
    pub async fn take(&mut self, segment: ScannedSegment) -> Result<(), IndexError> {
        self.batch.push(segment);
        if self.batch.len() < BATCH_SEGMENTS { Ok(()) } else { self.hand_over().await }
    }

    async fn hand_over(&mut self) -> Result<(), IndexError> {
        let mut loading = self.work.take().expect("work is handed over one at a time").await?;
        let batch = std::mem::take(&mut self.batch);
        self.work = Some(Box::pin(self.env.beside(move || {
            loading.add_all(batch);
            Ok(loading)
        })));
        Ok(())
    }

    /// Loads the rest.
    pub async fn finish(mut self) -> Result<Loaded, OpenError> {
        self.hand_over().await?;
        self.work.take().expect("just handed over").await?.finish()
    }
}
