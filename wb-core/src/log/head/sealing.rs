//! Sealing: a record that is closed and complete gets its header, a segment that is closed its summary.

use super::*;

impl LogHead {
    /// Seals what is closed and complete, in order, up to the first record that is not.
    pub(super) fn seal_ready(&self, state: &mut HeadState, submit: &mut Vec<Submit>) {
        while let Some(item) = state.to_seal.front() {
            match item {
                SealItem::Record { record, .. } if !record.complete() => return,
                SealItem::Record { .. } => {
                    let Some(SealItem::Record { record, payload_blocks, entries, flush_group, fua }) =
                        state.to_seal.pop_front()
                    else {
                        unreachable!("the front is a record")
                    };
                    self.seal(state, &record, payload_blocks, entries, flush_group);
                    let sealed_seq = record.seq;
                    let sealed = Submit::Record { record, payload_blocks, fua };
                    // [a record is full and its payload still being copied; a flush that wants it waits; sealed, it is held
                    // back for a runt that nobody writes].
                    let wanted = flush_group || sealed_seq <= state.flush_wanted;
                    if !wanted && self.runt_follows(state) {
                        state.held.push(sealed);
                    } else {
                        submit.append(&mut state.held);
                        submit.push(sealed);
                    }
                }
                SealItem::CloseSegment => {
                    state.to_seal.pop_front();
                    submit.append(&mut state.held);
                    submit.extend(self.close_segment(state));
                }
            }
        }
    }

    fn seal(
        &self,
        state: &mut HeadState,
        record: &Arc<Record>,
        payload_blocks: u32,
        entries: usize,
        flush_group: bool,
    ) {
        let (epoch, epoch_start) = state.epoch;
        let previous_crc = state.chain_crc;
        let header = RecordHeader {
            flags: RecordFlags(if flush_group { RecordFlags::CLOSES_FLUSH_GROUP } else { 0 }),
            epoch,
            epoch_start,
            seq: record.seq,
            previous_crc,
            segment: record.segment,
            offset_blocks: record.offset_blocks,
            span: 1,
            log_tail: state.tails.0,
            dirty_tail: state.tails.1,
            durable: state.durable.0,
            wall_unix_ns: (self.wall_unix_ns)(),
            payload_blocks,
            chain_crc: 0,
            entries: Vec::new(),
        };
        let block = record.header_mut();
        state.chain_crc = header.seal_into(block, entries, self.uuid, self.secret);
        let fresh = state.builder.as_ref().is_none_or(|builder| builder.summary.segment() != record.segment);
        if fresh {
            assert!(state.builder.is_none() && record.offset_blocks == 0, "the segment before was closed");
            let summary = SummaryBuilder::new(record.segment, previous_crc, epoch_start);
            state.builder = Some(SegmentBuilder { summary, summarise: true });
            let live = state.live.iter_mut().rev().find(|live| live.segment == record.segment);
            live.expect("a segment that is being filled is live").first_crc = Some(state.chain_crc);
        }
        let own = &block[FIXED_HEADER_BYTES..][..entries * ENTRY_BYTES];
        let summary = &mut state.builder.as_mut().expect("just ensured").summary;
        summary.push(record.seq, epoch, record.offset_blocks, state.chain_crc, header.flags, own);
        let end = LogPos(record.pos.0 + 1 + u64::from(payload_blocks));
        let (chain_crc, tells) = (state.chain_crc, state.durable.0);
        state.in_flight.push_back(InFlight { record: record.clone(), end, chain_crc, tells, written: false });
    }

    fn close_segment(&self, state: &mut HeadState) -> Option<Submit> {
        let SegmentBuilder { summary, summarise } = state.builder.take()?;
        if !summarise || summary.is_empty() {
            return None;
        }
        let segment = summary.segment();
        let live = state.live.iter_mut().rev().find(|live| live.segment == segment);
        live.expect("a segment that is being closed is live").summary_in_flight = true;
        let mut bytes = Buf::unpooled(self.geometry.summary_blocks() as usize * BLOCK_BYTES);
        let tails = SummaryTails { log_tail: state.tails.0, dirty_tail: state.tails.1, durable: state.durable.0 };
        summary.encode_into(tails, &mut bytes, &self.geometry, self.uuid, self.secret);
        Some(Submit::Summary { segment, bytes })
    }
}
