//! Everything on the ring that is valid by itself, whatever the anchors say: which epochs there were, the newest record,
//! where segments begin. From it both anchors can be rebuilt, and stale records told from lost ones.

use super::segment::SegmentImage;
use crate::format::{Anchor, Superblock};
use crate::io::{Disk, IoError};
use crate::types::*;
use std::collections::BTreeMap;

/// No log gets that far. Fields that only a hostile image can have are cut down to it, so that sums cannot overflow.
pub(super) const NUMBER_MAX: Seq = Seq(u64::MAX >> 2);

/// What a header or summary knew when it was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Knowledge {
    epoch: Epoch,
    epoch_start: Seq,
    last: Seq,
    log_tail: Seq,
    dirty_tail: Seq,
    durable: Seq,
}

/// What the ring holds.
#[derive(Debug, Clone, Default)]
pub struct Census {
    /// Each epoch of which a record is left, with its first record.
    epochs: BTreeMap<Epoch, Seq>,
    newest: Option<Knowledge>,
    /// First record and epoch -> segments that begin with it.
    firsts: Vec<(Seq, Epoch, SegmentNo)>,
    /// D by each header that is left, with epoch and number of it.
    durables: Vec<(Epoch, Seq, Seq)>,
    /// Records that are valid by themselves.
    pub records: u64,
}

impl Census {
    /// Reads the whole ring. `progress` is told the number of segments read.
    pub async fn take<D: Disk>(
        disk: &D,
        superblock: &Superblock,
        progress: &mut impl FnMut(u64),
    ) -> Result<Census, IoError> {
        let mut census = Census::default();
        for segment in (0..superblock.geometry.segments).map(SegmentNo) {
            let image = SegmentImage::read(disk, superblock, segment).await?;
            census.add(&image, superblock);
            progress(u64::from(segment.0) + 1);
        }
        Ok(census)
    }

    fn add(&mut self, image: &SegmentImage, superblock: &Superblock) {
        let mut highest: BTreeMap<Epoch, (Seq, Seq)> = BTreeMap::new();
        for header in image.headers(superblock, 0) {
            self.records += 1;
            self.learn(Knowledge {
                epoch: header.epoch,
                epoch_start: header.epoch_start,
                last: header.last_seq(),
                log_tail: header.log_tail,
                dirty_tail: header.dirty_tail,
                durable: header.durable,
            });
            if header.offset_blocks == 0 {
                self.firsts.push((header.seq, header.epoch, image.segment));
            }
            let entry = highest.entry(header.epoch).or_insert((header.last_seq(), header.durable));
            *entry = (entry.0.max(header.last_seq()), entry.1.max(header.durable));
        }
        if let Ok(summary) = image.current_summary(superblock) {
            let (first, last) = (&summary.records[0], &summary.records[summary.records.len() - 1]);
            self.firsts.push((first.seq, first.epoch, image.segment));
            let change = summary.records.iter().rev().find(|record| record.epoch != last.epoch);
            let epoch_start = change.map_or(summary.first_epoch_start, |record| record.seq.next());
            self.learn(Knowledge {
                epoch: last.epoch,
                epoch_start,
                last: last.seq,
                log_tail: summary.log_tail,
                dirty_tail: summary.dirty_tail,
                durable: summary.durable,
            });
            let entry = highest.entry(last.epoch).or_insert((last.seq, summary.durable));
            *entry = (entry.0.max(last.seq), entry.1.max(summary.durable));
        }
        self.durables.extend(highest.into_iter().map(|(epoch, (last, durable))| (epoch, last, durable)));
    }

    fn learn(&mut self, found: Knowledge) {
        self.epochs.entry(found.epoch).or_insert(found.epoch_start);
        let key = |known: &Knowledge| (known.epoch, known.last);
        if self.newest.as_ref().is_none_or(|newest| key(newest) < key(&found)) {
            self.newest = Some(found);
        }
    }

    /// The latest epoch of which a record is left.
    pub fn newest_epoch(&self) -> Option<Epoch> {
        self.newest.map(|newest| newest.epoch)
    }

    /// Whether record `seq` of `epoch`, begun at `start`, may be part of the log that `anchor` describes: no later epoch
    /// began at or before it.
    pub fn allows(&self, anchor: &Anchor, epoch: Epoch, start: Seq, seq: Seq) -> bool {
        if epoch > anchor.epoch || seq < start {
            return false;
        }
        if epoch == anchor.epoch {
            return start == anchor.epoch_start;
        }
        let later = self.epochs.range((std::ops::Bound::Excluded(epoch), std::ops::Bound::Included(anchor.epoch)));
        seq < anchor.epoch_start && later.into_iter().all(|(_, later_start)| seq < *later_start)
    }

    /// D by the headers of records that may be part of the log.
    pub fn durable(&self, anchor: &Anchor) -> Seq {
        let count = |(epoch, last, durable): &(Epoch, Seq, Seq)| {
            let start = self.epochs.get(epoch).copied().unwrap_or(*last);
            // Some record of that segment counts if the oldest it could be does.
            (*last >= anchor.log_tail && *epoch <= anchor.epoch && start <= *last).then_some(*durable)
        };
        self.durables.iter().filter_map(count).max().unwrap_or(Seq(0)).max(anchor.durable).min(NUMBER_MAX)
    }

    /// An anchor that says what the newest record knew, for a cache that has lost both. With no record at all: that of
    /// an empty log.
    pub fn rebuild_anchor(&self) -> Result<Anchor, String> {
        let Some(newest) = self.newest else { return Ok(Anchor { clean: None, ..Anchor::first() }) };
        let mut tails = self.firsts.iter().filter(|(seq, epoch, _)| *seq == newest.log_tail && *epoch <= newest.epoch);
        // Of two segments that begin with that record, the one of the later epoch is not stale.
        let tail = tails.by_ref().max_by_key(|(_, epoch, _)| *epoch);
        let Some((_, _, segment)) = tail else {
            return self.rebuild_from_oldest(newest);
        };
        Ok(Self::anchor_of(newest, newest.log_tail, *segment))
    }

    /// The segment of the log tail does not begin with a valid record. The oldest segment after it will do if what lies
    /// between is on the backing devices.
    fn rebuild_from_oldest(&self, newest: Knowledge) -> Result<Anchor, String> {
        let range = newest.log_tail..=newest.dirty_tail;
        let later = self.firsts.iter().filter(|(seq, epoch, _)| range.contains(seq) && *epoch <= newest.epoch);
        match later.min_by_key(|(seq, epoch, _)| (*seq, std::cmp::Reverse(*epoch))) {
            Some((seq, _, segment)) => Ok(Self::anchor_of(newest, *seq, *segment)),
            None => Err(format!(
                "record {}, with which the log begins, is lost together with both anchors and everything up to the \
                 dirty tail, record {}",
                newest.log_tail, newest.dirty_tail
            )),
        }
    }

    fn anchor_of(newest: Knowledge, log_tail: Seq, segment: SegmentNo) -> Anchor {
        // No header of ours says otherwise; one of an image that was made to mislead may.
        let log_tail = log_tail.max(Seq(1));
        let dirty_tail = newest.dirty_tail.max(log_tail).min(NUMBER_MAX);
        let log_tail = log_tail.min(dirty_tail);
        Anchor {
            epoch: newest.epoch,
            epoch_start: newest.epoch_start,
            log_tail,
            log_tail_segment: segment,
            dirty_tail,
            durable: newest.durable.min(NUMBER_MAX).max(Seq(dirty_tail.0 - 1)),
            clean: None,
            ..Anchor::first()
        }
    }
}
