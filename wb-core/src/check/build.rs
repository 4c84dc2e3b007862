//! Test helper: builds caches record by record, with exactly the content that a test wants, without the engine.

use crate::format::*;
use crate::io::mem::MemDisk;
use crate::meta;
use crate::types::*;
use futures_util::FutureExt;
use std::collections::BTreeMap;
use uuid::Uuid;

/// The result of a future on a disk that never waits.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a memory disk never waits")
}

/// Size of the volume of a test cache: its last block has five sectors.
pub const VOLUME_BYTES: u64 = 1000 * BLOCK_BYTES_U64 + 5 * 512;

/// What a record of a test says.
#[derive(Debug, Clone, Copy)]
pub enum Op {
    /// Payload: every byte of the block is the second number; the sectors of the mask are valid.
    Write(u64, u8, SectorMask),
    /// The same, clean.
    Clean(u64, u8),
    /// A range: kind, first block, number of blocks.
    Range(EntryKind, u64, u64),
}

/// A whole block of one value.
pub fn write(block: u64, fill: u8) -> Op {
    Op::Write(block, fill, SectorMask::FULL)
}

/// The payload of [`Op::Write`]: unused sectors are zero.
pub fn payload(fill: u8, mask: SectorMask) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    for (first, count) in mask.runs() {
        bytes[first * SECTOR_BYTES..(first + count) * SECTOR_BYTES].fill(fill);
    }
    bytes
}

/// A cache that grows. What the model knows is what a reader must see after a full write-back.
#[derive(Clone)]
pub struct Builder {
    /// The cache device. Everything written is on stable media at once.
    pub disk: MemDisk,
    /// Its superblock.
    pub superblock: Superblock,
    /// The anchor as last written.
    pub anchor: Anchor,
    /// D: what the next header will say.
    pub durable: Seq,
    /// Newest record.
    pub head: Seq,
    /// Where each record lies.
    pub places: BTreeMap<Seq, (SegmentNo, u32)>,
    /// Block -> bytes per sector; a sector not in it is not known to the log.
    pub model: BTreeMap<u64, [Option<u8>; 8]>,
    chain: u32,
    segment: SegmentNo,
    offset: u32,
    summary: Option<SegmentSummary>,
}

impl Builder {
    /// An empty cache of 32 segments of 64 KiB with one volume.
    pub fn new() -> Builder {
        let disk = MemDisk::new(32 * (64 << 10) + (256 << 10));
        let options = meta::FormatOptions {
            segment_bytes: 64 << 10,
            label: "test".into(),
            uuid: Uuid::from_bytes([7; 16]),
            secret: 0x5ec2_e700,
            now_unix_ns: 1,
        };
        let superblock = run(meta::format(&disk, options)).expect("formats");
        let volume = Volume {
            id: VolumeId(1),
            uuid: Uuid::from_bytes([8; 16]),
            size_bytes: VOLUME_BYTES,
            sector_bytes: 512,
            name: "data".into(),
            identity: "serial:disk".into(),
            created_unix_ns: 1,
            probe_secret: 1,
        };
        let table = VolumeTable { generation: 2, next_id: 2, volumes: vec![volume] };
        run(meta::write_volumes(&disk, &superblock, &table)).expect("writes");
        let anchor = run(meta::load(&disk)).expect("loads").anchor;
        let mut builder = Builder {
            disk,
            superblock,
            anchor,
            durable: Seq(0),
            head: Seq(0),
            places: BTreeMap::new(),
            model: BTreeMap::new(),
            chain: 0,
            segment: SegmentNo(0),
            offset: 0,
            summary: None,
        };
        builder.anchor.clean = None;
        builder.write_anchor();
        builder
    }

    /// A copy on a disk of its own.
    pub fn fork(&self) -> Builder {
        Builder { disk: self.disk.after_cut(|_, _| true), ..self.clone() }
    }

    fn settle(&self) {
        run(crate::io::Disk::flush(&self.disk)).expect("flushes");
    }

    /// Appends a record.
    pub fn record(&mut self, ops: &[Op]) -> Seq {
        let geometry = self.superblock.geometry;
        let count = ops.iter().filter(|op| !matches!(op, Op::Range(..))).count() as u32;
        let usage = SummaryUsage {
            records: self.summary.as_ref().map_or(0, |summary| summary.records.len()),
            entries: self.summary.as_ref().map_or(0, |summary| summary.records.iter().map(|r| r.entries.len()).sum()),
        };
        if self.offset + 1 + count > geometry.record_blocks() || !usage.fits(1, ops.len(), &geometry) {
            self.close_segment();
        }
        let (mut entries, mut bytes) = (Vec::new(), Vec::new());
        for op in ops {
            let addr = |block| BlockAddr::new(VolumeId(1), block);
            match *op {
                Op::Write(block, fill, mask) => {
                    let data = payload(fill, mask);
                    entries.push(Entry::payload(addr(block), EntryKind::Dirty, crc32c(&data), mask));
                    bytes.extend(data);
                }
                Op::Clean(block, fill) => {
                    let data = payload(fill, SectorMask::FULL);
                    entries.push(Entry::payload(addr(block), EntryKind::Clean, crc32c(&data), SectorMask::FULL));
                    bytes.extend(data);
                }
                Op::Range(kind, block, blocks) => entries.push(Entry::range(addr(block), kind, blocks)),
            }
            self.remember(op);
        }
        self.write_record(entries, bytes, count)
    }

    fn remember(&mut self, op: &Op) {
        match *op {
            Op::Write(block, fill, mask) => {
                let sectors = self.model.entry(block).or_default();
                (0..8).filter(|at| mask.has(*at)).for_each(|at| sectors[at] = Some(fill));
            }
            Op::Range(EntryKind::Zeroes, block, blocks) => {
                self.model.extend((block..block + blocks).map(|block| (block, [Some(0); 8])));
            }
            Op::Range(EntryKind::Discard, block, blocks) => {
                self.model.retain(|known, _| !(block..block + blocks).contains(known));
            }
            _ => {}
        }
    }

    fn write_record(&mut self, entries: Vec<Entry>, bytes: Vec<u8>, payload_blocks: u32) -> Seq {
        let geometry = self.superblock.geometry;
        let (uuid, secret) = (self.superblock.uuid, self.superblock.secret);
        let seq = self.head.next();
        let header = RecordHeader {
            flags: RecordFlags(RecordFlags::CLOSES_FLUSH_GROUP),
            epoch: self.anchor.epoch,
            epoch_start: self.anchor.epoch_start,
            seq,
            previous_crc: self.chain,
            segment: self.segment,
            offset_blocks: self.offset,
            span: 1,
            log_tail: self.anchor.log_tail,
            dirty_tail: self.anchor.dirty_tail,
            durable: self.durable,
            wall_unix_ns: 1000 + seq.0,
            payload_blocks,
            chain_crc: 0,
            entries: entries.clone(),
        };
        let mut block = header.encode(uuid, secret);
        let previous = self.chain;
        self.chain = header.seal_into(&mut block, entries.len(), uuid, secret);
        let offset = geometry.block_offset(self.segment, self.offset).0;
        self.disk.poke(offset, &block);
        self.disk.poke(offset + BLOCK_BYTES_U64, &bytes);
        self.places.insert(seq, (self.segment, self.offset));
        let summary = self.summary.get_or_insert_with(|| SegmentSummary {
            segment: self.segment,
            first_epoch_start: self.anchor.epoch_start,
            previous_crc: previous,
            log_tail: Seq(1),
            dirty_tail: Seq(1),
            durable: Seq(0),
            records: Vec::new(),
        });
        summary.records.push(RecordDesc {
            seq,
            epoch: self.anchor.epoch,
            offset_blocks: self.offset,
            chain_crc: self.chain,
            flags: header.flags,
            entries: entries.into(),
        });
        self.head = seq;
        self.offset += 1 + payload_blocks;
        seq
    }

    /// Writes the summary of the open segment and goes on in the next.
    pub fn close_segment(&mut self) {
        let geometry = self.superblock.geometry;
        if let Some(mut summary) = self.summary.take() {
            (summary.log_tail, summary.dirty_tail) = (self.anchor.log_tail, self.anchor.dirty_tail);
            summary.durable = self.durable;
            let mut bytes = vec![0; geometry.summary_blocks() as usize * BLOCK_BYTES];
            summary.encode_into(&mut bytes, &geometry, self.superblock.uuid, self.superblock.secret);
            self.disk.poke(geometry.summary_offset(self.segment).0, &bytes);
        }
        self.segment = geometry.next_segment(self.segment);
        self.offset = 0;
    }

    /// A FLUSH of a user: everything up to the head is durable. Only later headers and anchors say so.
    pub fn flush(&mut self) {
        self.durable = self.head;
    }

    /// Writes the anchor to both slots, with D.
    pub fn write_anchor(&mut self) {
        self.anchor.durable = self.durable;
        self.anchor.generation += 1;
        self.anchor.generation =
            run(meta::write_anchor_both(&self.disk, &self.superblock, &self.anchor)).expect("writes");
        self.settle();
    }

    /// Everything so far is on the backing device.
    pub fn write_back(&mut self) {
        self.flush();
        self.anchor.dirty_tail = self.head.next();
        self.write_anchor();
    }

    /// The log begins with the segment of record `seq`, its first.
    pub fn drop_before(&mut self, seq: Seq) {
        let (segment, offset) = self.places[&seq];
        assert_eq!(offset, 0, "the first record of a segment");
        (self.anchor.log_tail, self.anchor.log_tail_segment) = (seq, segment);
        self.write_anchor();
    }

    /// A start after an unclean stop with the head that is now.
    pub fn new_epoch(&mut self) {
        self.flush();
        self.anchor.epoch = Epoch(self.anchor.epoch.0 + 1);
        self.anchor.epoch_start = self.head.next();
        self.write_anchor();
    }

    /// A clean stop.
    pub fn stop(&mut self) {
        self.flush();
        self.anchor.clean = Some(CleanMark { head: self.head, segment: self.segment });
        self.write_anchor();
    }

    /// Offset of a record's header on the device.
    pub fn header_offset(&self, seq: Seq) -> u64 {
        let (segment, block) = self.places[&seq];
        self.superblock.geometry.block_offset(segment, block).0
    }

    /// Offset of the payload block `index` of a record.
    pub fn payload_offset(&self, seq: Seq, index: u64) -> u64 {
        self.header_offset(seq) + (1 + index) * BLOCK_BYTES_U64
    }
}

impl Default for Builder {
    fn default() -> Builder {
        Builder::new()
    }
}
