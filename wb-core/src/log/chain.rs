//! The chain of records: which record may follow which. Pure.
//!
//! A record belongs to the live log if it follows its predecessor: next number, the predecessor's chain value, and an
//! epoch that changes only at its recorded start. What the anchor says of the current epoch excludes for ever every
//! record of an older epoch with a number from that start on [lost record 10, stale 11, second crash].

use crate::format::{Anchor, Entries, Entry, RecordFlags, RecordHeader, SegmentStart, SegmentSummary};
use crate::types::*;

/// A record of the live log, from its header or from a summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedRecord {
    /// Number of the record.
    pub seq: Seq,
    /// Record numbers it stands for; 1 unless repaired.
    pub span: u32,
    /// Its lineage.
    pub epoch: Epoch,
    /// Block of its header within the segment.
    pub offset_blocks: u32,
    /// Payload blocks behind the header.
    pub payload_blocks: u32,
    /// Chain value.
    pub chain_crc: u32,
    /// Flags of its header.
    pub flags: RecordFlags,
    /// Its entries.
    pub entries: Entries,
}

impl ScannedRecord {
    /// A repair has put it in place of records that are lost.
    pub fn is_bridge(&self) -> bool {
        self.span > 1 || self.flags.has(RecordFlags::REPAIRED) && self.entries.is_empty()
    }
    /// The last record number it stands for.
    pub fn last_seq(&self) -> Seq {
        Seq(self.seq.0 + u64::from(self.span) - 1)
    }
    /// Block behind the record, within the segment.
    pub fn end_blocks(&self) -> u32 {
        self.offset_blocks + 1 + self.payload_blocks
    }
    /// Entries with the block (within the segment) of their payload, if they own one.
    pub fn entries_with_blocks(&self) -> impl Iterator<Item = (&Entry, Option<u32>)> {
        let mut next = self.offset_blocks;
        self.entries.iter().map(move |entry| {
            let block = entry.kind.has_payload().then(|| {
                next += 1;
                next
            });
            (entry, block)
        })
    }
}

impl From<RecordHeader> for ScannedRecord {
    fn from(header: RecordHeader) -> ScannedRecord {
        ScannedRecord {
            seq: header.seq,
            span: header.span,
            epoch: header.epoch,
            offset_blocks: header.offset_blocks,
            payload_blocks: header.payload_blocks,
            chain_crc: header.chain_crc,
            flags: header.flags,
            entries: header.entries.into(),
        }
    }
}

/// The records of a summary, which all have span 1.
pub fn records_of_summary(summary: SegmentSummary) -> Vec<ScannedRecord> {
    let convert = |record: crate::format::RecordDesc| ScannedRecord {
        seq: record.seq,
        span: 1,
        epoch: record.epoch,
        offset_blocks: record.offset_blocks,
        payload_blocks: record.payload_blocks(),
        chain_crc: record.chain_crc,
        flags: record.flags,
        entries: record.entries,
    };
    summary.records.into_iter().map(convert).collect()
}

/// Why a record does not follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Another number than the next.
    #[error("it is record {found}, not {expected}")]
    Number {
        /// Number found.
        found: Seq,
        /// Number that would follow.
        expected: Seq,
    },
    /// It has the number of the first record, and is another one.
    #[error("it is another record than the one that the anchor names")]
    First,
    /// The predecessor it names is another one.
    #[error("it follows another record than the one before it")]
    Predecessor,
    /// Its epoch is over, or begins elsewhere.
    #[error("its epoch {0} does not hold there")]
    Epoch(Epoch),
}

/// The end of the chain as walked so far.
#[derive(Debug, Clone)]
pub struct Chain {
    next: Seq,
    /// Chain value of the last record; unknown before the first.
    previous_crc: Option<u32>,
    /// Chain value of the first record, if it is known.
    first_crc: Option<u32>,
    epoch: Option<(Epoch, Seq)>,
    current_epoch: Epoch,
    current_start: Seq,
}

impl Chain {
    /// The chain before the first record of a segment.
    pub fn new(anchor: &Anchor, start: SegmentStart) -> Chain {
        Chain {
            next: start.first,
            previous_crc: None,
            first_crc: start.first_crc,
            epoch: None,
            current_epoch: anchor.epoch,
            current_start: anchor.epoch_start,
        }
    }

    /// Number of the record that would follow.
    pub fn next_seq(&self) -> Seq {
        self.next
    }
    /// Number of the last record.
    pub fn head(&self) -> Seq {
        Seq(self.next.0 - 1)
    }
    /// Chain value of the last record; 0 before the first record of a cache.
    pub fn chain_crc(&self) -> u32 {
        self.previous_crc.unwrap_or(0)
    }

    /// Whether records of `epoch` (begun at `start`) may have number `seq` at all, by what the anchor says.
    pub fn epoch_allows(&self, epoch: Epoch, start: Seq, seq: Seq) -> bool {
        match epoch.cmp(&self.current_epoch) {
            std::cmp::Ordering::Less => seq < self.current_start,
            std::cmp::Ordering::Equal => start == self.current_start && seq >= start,
            std::cmp::Ordering::Greater => false,
        }
    }

    fn judge(&self, seq: Seq, previous_crc: u32, epoch: Epoch, start: Seq, chain_crc: u32) -> Result<(), Broken> {
        if seq != self.next {
            return Err(Broken::Number { found: seq, expected: self.next });
        }
        if self.previous_crc.is_none() && self.first_crc.is_some_and(|crc| crc != chain_crc) {
            return Err(Broken::First);
        }
        if self.previous_crc.is_some_and(|crc| crc != previous_crc) {
            return Err(Broken::Predecessor);
        }
        let follows = match self.epoch {
            None => true,
            Some(same) if same == (epoch, start) => true,
            Some((before, _)) => epoch > before && seq == start,
        };
        if !follows || !self.epoch_allows(epoch, start, seq) {
            return Err(Broken::Epoch(epoch));
        }
        Ok(())
    }

    /// Goes on over a record if it follows.
    pub fn accept(&mut self, header: &RecordHeader) -> Result<(), Broken> {
        self.judge(header.seq, header.previous_crc, header.epoch, header.epoch_start, header.chain_crc)?;
        self.next = header.last_seq().next();
        self.previous_crc = Some(header.chain_crc);
        self.epoch = Some((header.epoch, header.epoch_start));
        Ok(())
    }

    /// Goes on over all records of a summary if its first one follows and no epoch in it is over.
    pub fn accept_summary(&mut self, summary: &SegmentSummary) -> Result<(), Broken> {
        let first = &summary.records[0];
        self.judge(first.seq, summary.previous_crc, first.epoch, summary.first_epoch_start, first.chain_crc)?;
        let mut epoch = (first.epoch, summary.first_epoch_start);
        for record in &summary.records {
            if record.epoch != epoch.0 {
                epoch = (record.epoch, record.seq);
            }
            if !self.epoch_allows(epoch.0, epoch.1, record.seq) {
                return Err(Broken::Epoch(record.epoch));
            }
        }
        self.next = summary.last_seq().next();
        self.previous_crc = Some(summary.last_chain_crc());
        self.epoch = Some(epoch);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(seq: u64, previous_crc: u32, epoch: u64, start: u64, chain_crc: u32) -> RecordHeader {
        RecordHeader {
            flags: RecordFlags::default(),
            epoch: Epoch(epoch),
            epoch_start: Seq(start),
            seq: Seq(seq),
            previous_crc,
            segment: SegmentNo(0),
            offset_blocks: 0,
            span: 1,
            log_tail: Seq(1),
            dirty_tail: Seq(1),
            durable: Seq(0),
            wall_unix_ns: 0,
            payload_blocks: 0,
            chain_crc,
            entries: Vec::new(),
        }
    }

    fn anchor(epoch: u64, start: u64) -> Anchor {
        Anchor { epoch: Epoch(epoch), epoch_start: Seq(start), log_tail: Seq(5), ..Anchor::first() }
    }

    #[test]
    fn follows_number_predecessor_and_epoch() {
        let start = |first_crc| SegmentStart { segment: SegmentNo(0), first: Seq(5), first_crc };
        let mut chain = Chain::new(&anchor(2, 7), start(Some(51)));
        assert_eq!(chain.accept(&header(5, 99, 1, 1, 50)), Err(Broken::First), "another record 5");
        assert_eq!(chain.accept(&header(5, 99, 1, 1, 51)), Ok(()));
        let mut chain = Chain::new(&anchor(2, 7), start(None));
        assert_eq!(chain.accept(&header(5, 99, 1, 1, 50)), Ok(()), "the first one's predecessor is not known");
        assert!(matches!(chain.accept(&header(7, 50, 1, 1, 70)), Err(Broken::Number { .. })));
        assert_eq!(chain.accept(&header(6, 51, 1, 1, 60)), Err(Broken::Predecessor));
        assert_eq!(chain.accept(&header(6, 50, 1, 1, 60)), Ok(()));
        assert_eq!(chain.accept(&header(7, 60, 1, 1, 70)), Err(Broken::Epoch(Epoch(1))), "over since epoch 2");
        assert_eq!(chain.accept(&header(7, 60, 2, 6, 70)), Err(Broken::Epoch(Epoch(2))), "begins elsewhere");
        assert_eq!(chain.accept(&header(7, 60, 3, 7, 70)), Err(Broken::Epoch(Epoch(3))), "not yet begun");
        assert_eq!(chain.accept(&header(7, 60, 2, 7, 70)), Ok(()));
        assert_eq!(chain.accept(&header(8, 70, 1, 1, 80)), Err(Broken::Epoch(Epoch(1))), "never falls");
        assert_eq!((chain.head(), chain.chain_crc()), (Seq(7), 70));
    }
}
