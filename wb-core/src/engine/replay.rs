//! The records of a RAM tail go to the device: each to its place, or, where that cannot be written, to another.
//!
//! A place that refuses a record after several tries makes its segment bad: that is durable in the bitmap first. Then
//! the record's old header is made to be none, and so is a summary of that segment which names it: the walk cannot go on
//! there. The record and all behind it are sealed again, each for a new place in the good segments that follow in the
//! ring. Numbers, entries and payload stay; the chain of CRCs is a new one from there on, so nothing that was written at
//! the old places can follow it.
//!
//! **Why it may be cut off anywhere.** Nothing here touches a record ≤ D, and the tail stays as it is until both anchors
//! name the next one: a second start does all of it again. What the first one left in a segment that the second passes
//! over (it is bad by then, too) is unmade before anything is written behind it: the walk looks into bad segments.
//! After a power cut the tail is gone, and what is on the device is the log up to D and some prefix of what follows.

use super::recovery::OpenError;
use crate::env::Env;
use crate::format::{RecordHeader, SegmentSummary, SummaryUsage, Superblock};
use crate::io::{Buf, Disk, IoError};
use crate::log::ScanError;
use crate::log::scan::read_range;
use crate::meta::{self, CacheMeta};
use crate::tail::{Examined, FoundRecord};
use crate::types::*;
use futures_util::{StreamExt, stream};

/// Writes in flight during the replay.
const REPLAY_DEPTH: usize = 8;
/// Tries of a write before its place counts as bad, and the pause before the second, which then doubles.
pub(super) const WRITE_TRIES: u32 = 4;
pub(super) const WRITE_RETRY_DELAY_NS: u64 = 5_000_000;

/// True if another try, or another place, may help.
pub(super) fn is_of_the_place(error: IoError) -> bool {
    matches!(error, IoError::Medium | IoError::Other(_))
}

/// Puts every record of the tail on the device, durably. Gives how many had to go to another place.
pub(super) async fn write_all<E: Env>(
    env: &E,
    cache: &E::Disk,
    meta: &mut CacheMeta,
    found: &Examined,
) -> Result<u64, OpenError> {
    if found.records.is_empty() {
        return Ok(0);
    }
    let geometry = meta.superblock.geometry;
    let in_place = |(index, record): (usize, FoundRecord)| async move {
        let offset = geometry.block_offset(record.segment, record.offset_blocks);
        (index, write(env, cache, offset, found.bytes_of(&record)).await)
    };
    let outcomes: Vec<(usize, Result<(), IoError>)> = stream::iter(found.records.iter().copied().enumerate())
        .map(in_place)
        .buffer_unordered(REPLAY_DEPTH)
        .collect()
        .await;
    let failed =
        outcomes.into_iter().filter_map(|(index, outcome)| Some((index, outcome.err()?))).min_by_key(|at| at.0);
    let moved = match failed {
        None => 0,
        Some((first, error)) if is_of_the_place(error) => {
            Mover { env, cache, meta, found }.move_from(first, error).await?;
            (found.records.len() - first) as u64
        }
        Some((first, error)) => return Err(refusal(&found.records[first], &geometry, error)),
    };
    cache.flush().await.map_err(OpenError::Flush)?;
    Ok(moved)
}

fn refusal(record: &FoundRecord, geometry: &crate::format::Geometry, error: IoError) -> OpenError {
    let offset = geometry.block_offset(record.segment, record.offset_blocks);
    OpenError::TailWrite { seq: record.seq, offset, error }
}

/// A write that is tried several times.
async fn write<E: Env>(env: &E, cache: &E::Disk, offset: ByteOffset, bytes: Buf) -> Result<(), IoError> {
    let bytes = bytes.freeze();
    let mut attempt = 0;
    loop {
        match cache.write(offset.0, vec![bytes.clone()], false).await {
            Err(error) if is_of_the_place(error) && attempt + 1 < WRITE_TRIES => {
                env.sleep(WRITE_RETRY_DELAY_NS << attempt).await;
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

struct Mover<'a, E: Env> {
    env: &'a E,
    cache: &'a E::Disk,
    meta: &'a mut CacheMeta,
    found: &'a Examined,
}

impl<E: Env> Mover<'_, E> {
    /// Record `first` of the tail cannot be written where it belongs: it and all behind it get other places.
    async fn move_from(&mut self, first: usize, error: IoError) -> Result<(), OpenError> {
        let record = self.found.records[first];
        self.give_up(record.segment, record.offset_blocks, record.seq, error).await?;
        let mut previous_crc = self.header(&record).previous_crc;
        let mut place = (self.next_good(record.segment, record.seq, error).await?, 0);
        let mut usage = SummaryUsage::default();
        let mut index = first;
        while let Some(record) = self.found.records.get(index) {
            let mut header = self.header(record);
            let geometry = self.meta.superblock.geometry;
            let fits =
                place.1 + header.blocks() <= geometry.record_blocks() && usage.fits(1, header.entries.len(), &geometry);
            if place.1 > 0 && !fits {
                place = (self.next_good(place.0, record.seq, error).await?, 0);
                usage = SummaryUsage::default();
            }
            (header.segment, header.offset_blocks) = place;
            header.previous_crc = previous_crc;
            match self.write_sealed(record, &header).await {
                Ok(chain_crc) => {
                    previous_crc = chain_crc;
                    place.1 += header.blocks();
                    usage.records += 1;
                    usage.entries += header.entries.len();
                    index += 1;
                }
                Err(again) if is_of_the_place(again) => {
                    self.give_up(place.0, place.1, record.seq, again).await?;
                    place = (self.next_good(place.0, record.seq, again).await?, 0);
                    usage = SummaryUsage::default();
                }
                Err(error) => return Err(refusal(record, &self.meta.superblock.geometry, error)),
            }
        }
        Ok(())
    }

    /// The header that a record of the tail has there.
    fn header(&self, record: &FoundRecord) -> RecordHeader {
        let superblock = &self.meta.superblock;
        let bytes = self.found.bytes_of(record);
        let header = RecordHeader::decode(
            &bytes[..BLOCK_BYTES],
            &superblock.geometry,
            record.segment,
            record.offset_blocks,
            superblock.uuid,
            superblock.secret,
        );
        header.expect("a record of an examined tail is sealed for its place")
    }

    /// Writes a record under another header. Gives its chain value.
    async fn write_sealed(&self, record: &FoundRecord, header: &RecordHeader) -> Result<u32, IoError> {
        let superblock = &self.meta.superblock;
        let mut bytes = self.found.bytes_of(record);
        // The entries are there, and stay.
        let entries = header.entries.len();
        let chain_crc = header.seal_into(&mut bytes[..BLOCK_BYTES], entries, superblock.uuid, superblock.secret);
        let offset = superblock.geometry.block_offset(header.segment, header.offset_blocks);
        write(self.env, self.cache, offset, bytes).await?;
        Ok(chain_crc)
    }

    /// A segment refused a record: it is used no more, and what may be of the record there is none.
    async fn give_up(
        &mut self,
        segment: SegmentNo,
        offset_blocks: u32,
        seq: Seq,
        error: IoError,
    ) -> Result<(), OpenError> {
        self.mark_bad(segment, seq, error).await?;
        if self.unmake(segment, offset_blocks, seq).await? {
            return Ok(());
        }
        let offset = self.meta.superblock.geometry.block_offset(segment, offset_blocks);
        Err(OpenError::TailWrite { seq, offset, error })
    }

    async fn mark_bad(&mut self, segment: SegmentNo, seq: Seq, error: IoError) -> Result<(), OpenError> {
        tracing::error!(
            "cache device: segment {segment} cannot be written ({error}); it is used no more, and record {seq} and \
             those behind it go elsewhere"
        );
        // What was written before stays where it is: the walk must find that.
        self.cache.flush().await.map_err(OpenError::Flush)?;
        if !self.meta.bad_segments.is_bad(segment) {
            let mut bad = self.meta.bad_segments.clone();
            bad.mark(segment);
            bad.generation += 1;
            meta::write_bad_segments(self.cache, &self.meta.superblock, &bad).await?;
            self.meta.bad_segments = bad;
        }
        Ok(())
    }

    /// The next segment that may be written. None that is passed over may go on with the log.
    async fn next_good(&mut self, after: SegmentNo, seq: Seq, error: IoError) -> Result<SegmentNo, OpenError> {
        let geometry = self.meta.superblock.geometry;
        let mut segment = geometry.next_segment(after);
        // The live log is an arc of the ring that begins at the log tail; behind D there is nothing else.
        while segment != self.meta.anchor.log_tail_segment {
            // An old summary in a segment that is filled anew would hide what is in it.
            let unmade = self.unmake(segment, 0, seq).await?;
            if unmade && !self.meta.bad_segments.is_bad(segment) {
                return Ok(segment);
            }
            if !unmade {
                self.mark_bad(segment, seq, error).await?;
                let offset = geometry.block_offset(segment, 0);
                return Err(OpenError::TailWrite { seq, offset, error });
            }
            segment = geometry.next_segment(segment);
        }
        Err(OpenError::TailNoRoom { seq })
    }

    /// Makes sure that no valid header of record `seq` or a later one stands at a place that is given up, and that the
    /// segment's summary names none. False: there still is one, and it cannot be overwritten.
    async fn unmake(&self, segment: SegmentNo, offset_blocks: u32, seq: Seq) -> Result<bool, OpenError> {
        let geometry = self.meta.superblock.geometry;
        // The magic number is enough, and the rest may be what cannot be written.
        let zeroes_bytes = (self.cache.geometry().align_bytes as usize).min(BLOCK_BYTES);
        let places = [(geometry.block_offset(segment, offset_blocks), true), (geometry.summary_offset(segment), false)];
        for zeroed in [false, true] {
            let mut gone = true;
            for (offset, is_header) in places {
                if zeroed {
                    // That it failed shows below, if it matters.
                    let _ = write(self.env, self.cache, offset, Buf::unpooled(zeroes_bytes)).await;
                    self.cache.flush().await.map_err(OpenError::Flush)?;
                }
                let last = self.last_seq_at(segment, offset_blocks, is_header).await;
                gone &= last.map_or(zeroed, |last| last < seq);
            }
            if gone {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The last record that a header or a summary stands for; 0 if there is none, an error if it cannot be read.
    async fn last_seq_at(&self, segment: SegmentNo, offset_blocks: u32, is_header: bool) -> Result<Seq, ScanError> {
        let superblock = &self.meta.superblock;
        let Superblock { geometry, uuid, secret, .. } = superblock;
        if !is_header {
            let len = geometry.summary_blocks() as usize * BLOCK_BYTES;
            let bytes = read_range(self.cache, geometry.summary_offset(segment), len).await?;
            let summary = SegmentSummary::decode(&bytes, geometry, segment, *uuid, *secret);
            return Ok(summary.map_or(Seq(0), |summary| summary.last_seq()));
        }
        let bytes = read_range(self.cache, geometry.block_offset(segment, offset_blocks), BLOCK_BYTES).await?;
        let header = RecordHeader::decode(&bytes, geometry, segment, offset_blocks, *uuid, *secret);
        Ok(header.map_or(Seq(0), |header| header.last_seq()))
    }
}
