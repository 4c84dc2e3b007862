//! Images whose checksums hold and whose fields lie: everything must end, without a panic, whatever it says.

use super::build::{Builder, Op, run, write};
use super::{CheckOptions, RepairOptions, ReplayOptions, examine, plan, repair, replay};
use crate::format::{Anchor, EntryKind, RecordFlags, RecordHeader, SegmentStart};
use crate::io::mem::MemDisk;
use crate::types::*;
use proptest::prelude::*;

/// Numbers that break sums, and such that nearly fit.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), 0u64..40, Just(u64::MAX), Just(u64::MAX - 1), Just(u64::MAX >> 1), any::<u64>()]
}

fn sample() -> Builder {
    let mut cache = Builder::new();
    for round in 0..8u64 {
        cache.record(&[write(round, round as u8 + 1), write(round + 100, 0x80)]);
        cache.record(&[Op::Range(EntryKind::Zeroes, 300, 20)]);
    }
    cache.new_epoch();
    cache.record(&[write(1, 3)]);
    cache.flush();
    cache.write_anchor();
    cache
}

fn header(cache: &Builder, seq: Seq) -> RecordHeader {
    let (segment, block) = cache.places[&seq];
    let superblock = &cache.superblock;
    let bytes = cache.disk.peek(cache.header_offset(seq), BLOCK_BYTES);
    RecordHeader::decode(&bytes, &superblock.geometry, segment, block, superblock.uuid, superblock.secret)
        .expect("just built")
}

fn lie(header: &mut RecordHeader, field: u8, value: u64) {
    match field {
        0 => header.durable = Seq(value),
        1 => header.log_tail = Seq(value),
        2 => header.dirty_tail = Seq(value),
        3 => header.seq = Seq(value),
        4 => header.epoch = Epoch(value),
        5 => header.epoch_start = Seq(value),
        6 => (header.span, header.flags) = (value as u32, RecordFlags(RecordFlags::REPAIRED)),
        7 => header.payload_blocks = value as u32 & 0xffff,
        8 => header.previous_crc = value as u32,
        9 => (header.chain_crc, header.flags) = (value as u32, RecordFlags(RecordFlags::REPAIRED)),
        _ => {
            for entry in &mut header.entries {
                entry.addr = BlockAddr(value);
                entry.blocks = if entry.kind.has_payload() { 1 } else { value & 0xffff_ffff_ffff };
            }
        }
    }
}

fn lie_in_anchor(anchor: &mut Anchor, field: u8, value: u64) {
    match field {
        0 => anchor.durable = Seq(value),
        1 => anchor.log_tail = Seq(value),
        2 => anchor.dirty_tail = Seq(value),
        3 => anchor.epoch = Epoch(value),
        4 => anchor.epoch_start = Seq(value),
        5 => anchor.log_tail_segment = SegmentNo(value as u32),
        6 => {
            anchor.dirty_segment = Some(SegmentStart {
                segment: SegmentNo(value as u32 % 8),
                first: Seq(value >> 3),
                first_crc: Some(value as u32),
            })
        }
        _ => anchor.generation = value,
    }
}

fn survive(disk: &MemDisk) {
    let verify = CheckOptions { verify_data: true };
    let Ok(found) = run(examine(disk, verify, &mut |_| {})) else { return };
    let report = found.report();
    assert!(report.lost_records.len() <= 1_000_000);
    drop(plan(&found).lines());
    let backing = MemDisk::new(super::build::VOLUME_BYTES);
    let _ = run(replay(&disk.after_cut(|_, _| true), &backing, &found, &ReplayOptions::default(), &mut |_| {}));
    let options = RepairOptions { check: verify, now_unix_ns: 1, boot_id: [0; 16] };
    if run(repair(disk, &found, options, &mut Vec::new(), &mut |_| {})).is_ok() {
        let _ = run(examine(disk, verify, &mut |_| {})).map(|found| found.report());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn headers_that_lie(
        lies in proptest::collection::vec((1u64..18, 0u8..11, number()), 1..4),
        anchors_lost in any::<bool>(),
        volumes_lost in any::<bool>(),
    ) {
        let cache = sample();
        let mut headers = std::collections::BTreeMap::new();
        for (seq, field, value) in lies {
            let header = headers.entry(seq).or_insert_with(|| header(&cache, Seq(seq)));
            lie(header, field, value);
            let block = header.encode(cache.superblock.uuid, cache.superblock.secret);
            cache.disk.poke(cache.header_offset(Seq(seq)), &block);
        }
        let geometry = cache.superblock.geometry;
        for copy in 0..2 {
            if anchors_lost {
                cache.disk.flip(geometry.anchor_offset(copy).0, 0);
            }
            if volumes_lost {
                cache.disk.flip(geometry.volumes_offset(copy).0, 0);
            }
        }
        survive(&cache.disk);
    }

    #[test]
    fn anchors_that_lie(lies in proptest::collection::vec((0u8..8, number()), 1..4)) {
        let cache = sample();
        let mut anchor = cache.anchor.clone();
        lies.into_iter().for_each(|(field, value)| lie_in_anchor(&mut anchor, field, value));
        for slot in 0..2u64 {
            anchor.generation = anchor.generation & !1 | slot;
            let block = anchor.encode(cache.superblock.uuid, cache.superblock.secret);
            cache.disk.poke(cache.superblock.geometry.anchor_offset(slot as usize).0, &block);
        }
        survive(&cache.disk);
    }

    #[test]
    fn blocks_out_of_place(swaps in proptest::collection::vec((0u64..560, 0u64..560), 1..30)) {
        let cache = sample();
        for (from, to) in swaps {
            let block = cache.disk.peek(from * BLOCK_BYTES_U64, BLOCK_BYTES);
            cache.disk.poke(to * BLOCK_BYTES_U64, &block);
        }
        survive(&cache.disk);
    }
}
