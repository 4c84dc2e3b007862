use super::build::{Builder, Op, VOLUME_BYTES, payload, run, write};
use super::damage::Damage;
use super::*;
use crate::format::EntryKind;
use crate::format::Superblock;
use crate::io::mem::MemDisk;
use crate::meta::{load, write_superblock};

const VERIFY: CheckOptions = CheckOptions { verify_data: true };

fn look(disk: &MemDisk) -> Examination {
    run(examine(disk, VERIFY, &mut |_| {})).expect("a cache")
}

fn options() -> RepairOptions {
    RepairOptions { check: VERIFY, now_unix_ns: 5, boot_id: [0; 16] }
}

fn mend(disk: &MemDisk) -> Result<Report, CheckError> {
    run(repair(disk, &look(disk), options(), &mut Vec::new(), &mut |_| {}))
}

/// A cache with several closed segments, an epoch change, ranges, partial and overwritten blocks; all durable.
fn sample() -> Builder {
    let mut cache = Builder::new();
    for round in 0..12u64 {
        cache.record(&[write(round, round as u8 + 1), write(round + 100, 0x80)]);
        cache.record(&[Op::Write(round + 200, 7, SectorMask(0x0f)), write(round % 3, 0x40 + round as u8)]);
        if round == 5 {
            cache.record(&[Op::Range(EntryKind::Zeroes, 300, 20), Op::Range(EntryKind::Discard, 3, 2)]);
            cache.new_epoch();
        }
    }
    cache.record(&[write(401, 8)]);
    cache.record(&[write(402, 7)]);
    cache.flush();
    cache.record(&[write(400, 9)]);
    cache.new_epoch();
    cache
}

fn severities(report: &Report) -> Vec<(Severity, &str)> {
    report.findings.iter().map(|finding| (finding.severity, finding.place.as_str())).collect()
}

#[test]
fn a_whole_cache_is_clean() {
    let cache = sample();
    let found = look(&cache.disk);
    let report = found.report();
    assert_eq!((report.verdict(), severities(&report)), (Verdict::Clean, vec![]), "{:?}", report.findings);
    assert_eq!(report.records_valid, cache.head.0);
    let blocks = cache.model.len() as u64 - 20;
    assert_eq!(report.dirty_blocks, blocks, "zeroed blocks are ranges");
    assert!(report.verified_blocks > 48);
    assert!(plan(&found).is_empty());
}

#[test]
fn a_torn_tail_is_a_note() {
    let mut cache = sample();
    let torn = cache.record(&[write(1, 0xaa), write(2, 0xbb)]);
    cache.record(&[write(3, 0xcc)]);
    Damage::Payload(torn, 1).inflict(&cache, 99);
    let report = look(&cache.disk).report();
    assert_eq!(report.verdict(), Verdict::Clean, "{:?}", report.findings);
    assert_eq!((report.torn_tail_records, severities(&report)), (1, vec![(Severity::Note, "torn tail")]));
}

#[test]
fn a_rotten_header_under_a_summary_is_restored_without_loss() {
    let cache = sample();
    let seq = Seq(3);
    for damage in [Damage::Header(seq), Damage::UnreadableHeader(seq)] {
        let cache = cache.fork();
        damage.inflict(&cache, 4000);
        let report = look(&cache.disk).report();
        assert_eq!(report.verdict(), Verdict::Errors);
        assert_eq!(severities(&report), [(Severity::Warning, "record 3")]);
        let fixed = mend(&cache.disk).expect("repairs");
        assert_eq!((fixed.verdict(), fixed.lost_records.len(), fixed.lost_blocks.len()), (Verdict::Corrected, 0, 0));
        assert_eq!(look(&cache.disk).report().verdict(), Verdict::Clean);
        assert_eq!(look(&cache.disk).log.live.dirty_blocks(), look(&sample().disk).log.live.dirty_blocks());
    }
}

#[test]
fn features_that_allow_reading_only_are_honoured() {
    let cache = sample();
    Damage::Header(Seq(3)).inflict(&cache, 4000);
    let superblock = Superblock { ro_compat: 1, ..look(&cache.disk).superblock };
    run(write_superblock(&cache.disk, &superblock)).expect("written");
    let refused = |result: CheckError| assert!(result.to_string().contains("0x1"), "{result}");
    refused(mend(&cache.disk).expect_err("refused"));
    let backing = MemDisk::new(VOLUME_BYTES);
    let (found, options) = (look(&cache.disk), ReplayOptions::default());
    refused(run(replay(&cache.disk, &backing, &found, &options, &mut |_| {})).expect_err("refused"));
    assert_eq!(severities(&look(&cache.disk).report()), [(Severity::Warning, "record 3")], "as it was");
}

#[test]
fn one_rotten_header_of_an_open_segment_loses_that_record_alone() {
    let cache = sample();
    let last = cache.head;
    let open = Seq(last.0 - 1);
    Damage::Header(open).inflict(&cache, 17);
    let report = look(&cache.disk).report();
    assert_eq!(report.verdict(), Verdict::Errors);
    assert_eq!(report.lost_records, [open]);
    let fixed = mend(&cache.disk).expect("repairs");
    assert_eq!(fixed.verdict(), Verdict::Corrected, "{:?}", fixed.findings);
    assert_eq!(fixed.lost_records, [open]);
    assert!(!fixed.suspect_blocks.is_empty());
    let again = look(&cache.disk).report();
    assert_eq!(again.verdict(), Verdict::Clean, "{:?}", again.findings);
    assert_eq!(again.records_valid, last.0, "the bridge counts as a record");
    assert_eq!(look(&cache.disk).log.live.block(BlockAddr::new(VolumeId(1), 400)).expect("kept").seq, last);
}

#[test]
fn four_mib_written_one_flush_one_bit_flipped_in_the_first_record_is_corruption() {
    let mut cache = Builder::new();
    for block in 0..30 {
        cache.record(&[write(block, 1)]);
    }
    cache.flush();
    cache.write_anchor();
    Damage::Header(Seq(1)).inflict(&cache, 77);
    Damage::Summary(cache.places[&Seq(1)].0).inflict(&cache, 300);
    let report = look(&cache.disk).report();
    assert_eq!((report.verdict(), &report.lost_records[..]), (Verdict::Errors, &[Seq(1)][..]));
    assert_eq!(mend(&cache.disk).expect("repairs").verdict(), Verdict::Corrected);
    assert_eq!(look(&cache.disk).report().records_valid, 30);
}

#[test]
fn a_lost_segment_is_bridged() {
    let cache = sample();
    let (segment, _) = cache.places[&Seq(10)];
    Damage::Segment(segment).inflict(&cache, 0);
    let report = look(&cache.disk).report();
    let lost: Vec<Seq> = cache.places.iter().filter(|(_, place)| place.0 == segment).map(|(seq, _)| *seq).collect();
    assert_eq!(report.lost_records, lost);
    let fixed = mend(&cache.disk).expect("repairs");
    assert_eq!(fixed.verdict(), Verdict::Corrected, "{:?}", fixed.findings);
    assert_eq!(look(&cache.disk).report().verdict(), Verdict::Clean);
}

#[test]
fn rotten_payload_is_poisoned_where_dirty_and_read_anew_where_clean() {
    let mut cache = Builder::new();
    let clean = cache.record(&[write(1, 1), write(2, 2)]);
    cache.write_back();
    let dirty = cache.record(&[write(3, 3), write(4, 4)]);
    let old = cache.record(&[write(5, 5)]);
    cache.record(&[write(5, 6)]);
    cache.flush();
    cache.write_anchor();
    for damage in [Damage::Payload(clean, 0), Damage::UnreadablePayload(dirty, 1), Damage::Payload(old, 0)] {
        damage.inflict(&cache, 5);
    }
    let report = look(&cache.disk).report();
    let found = vec![
        (Severity::Error, "volume 1 block 4"),
        (Severity::Warning, "volume 1 block 1"),
        (Severity::Note, "volume 1 block 5"),
    ];
    assert_eq!(severities(&report), found);
    let fixed = mend(&cache.disk).expect("repairs");
    assert_eq!(fixed.verdict(), Verdict::Corrected, "{:?}", fixed.findings);
    assert_eq!((fixed.poisoned_blocks, &fixed.lost_blocks[..]), (1, &[BlockAddr::new(VolumeId(1), 4)][..]));
    let again = look(&cache.disk);
    assert_eq!(again.report().verdict(), Verdict::Clean, "{:?}", again.findings());
    let at = |block| BlockAddr::new(VolumeId(1), block);
    assert_eq!(again.log.live.range(at(4)).expect("poison").kind, EntryKind::Poison);
    assert_eq!(again.log.live.range(at(1)).expect("invalidate").kind, EntryKind::Invalidate);
    assert!(again.log.live.block(at(3)).is_some() && again.log.live.block(at(5)).is_some());
}

#[test]
fn clean_copies_older_than_a_lost_clean_record_are_dropped() {
    let mut cache = Builder::new();
    cache.record(&[write(1, 1), write(2, 2)]);
    let lost = cache.record(&[write(1, 9)]);
    cache.record(&[write(3, 3)]);
    cache.write_back();
    cache.record(&[write(4, 4)]);
    cache.new_epoch();
    Damage::Header(lost).inflict(&cache, 40);
    let fixed = mend(&cache.disk).expect("repairs");
    assert_eq!(fixed.verdict(), Verdict::Corrected, "{:?}", fixed.findings);
    let again = look(&cache.disk);
    assert_eq!(again.report().verdict(), Verdict::Clean, "{:?}", again.findings());
    let at = |block| BlockAddr::new(VolumeId(1), block);
    assert!(again.log.live.block(at(1)).is_none(), "the backing device has 9, the log had 1");
    assert!(again.log.live.block(at(4)).expect("dirty").dirty);
}

#[test]
fn both_anchors_gone_are_rebuilt_from_the_log() {
    let mut cache = sample();
    cache.write_back();
    cache.record(&[write(500, 1)]);
    cache.flush();
    cache.record(&[write(501, 1)]);
    let before = look(&cache.disk);
    for slot in 0..2 {
        Damage::Anchor(slot).inflict(&cache, 600);
    }
    assert!(matches!(run(load(&cache.disk)), Err(MetaError::Anchors(..))));
    let fixed = mend(&cache.disk).expect("repairs");
    assert_eq!(fixed.verdict(), Verdict::Corrected, "{:?}", fixed.findings);
    let anchor = run(load(&cache.disk)).expect("loads").anchor;
    assert_eq!((anchor.dirty_tail, anchor.epoch, anchor.clean), (before.log.anchor.dirty_tail, Epoch(3), None));
    let again = look(&cache.disk);
    assert_eq!((again.log.head, again.report().verdict()), (before.log.head, Verdict::Clean));
    assert_eq!(again.log.live.dirty_blocks(), 2);
}

#[test]
fn an_empty_cache_without_anchors_is_repaired_to_an_empty_one() {
    let cache = Builder::new();
    Damage::Anchor(0).inflict(&cache, 1);
    Damage::Anchor(1).inflict(&cache, 1);
    assert_eq!(mend(&cache.disk).expect("repairs").verdict(), Verdict::Corrected);
    assert_eq!(look(&cache.disk).report().verdict(), Verdict::Clean);
}

#[test]
fn either_copy_of_the_metadata_is_restored() {
    for copy in 0..2 {
        for damage in [Damage::Superblock(copy), Damage::Volumes(copy), Damage::BadSegments(copy), Damage::Anchor(copy)]
        {
            let mut cache = sample();
            cache.stop();
            damage.inflict(&cache, 1234);
            let report = look(&cache.disk).report();
            assert_eq!((report.verdict(), report.findings.len()), (Verdict::Errors, 1), "{damage:?}");
            assert_eq!(mend(&cache.disk).expect("repairs").verdict(), Verdict::Corrected, "{damage:?}");
            let again = look(&cache.disk);
            assert_eq!((again.report().verdict(), again.log.clean), (Verdict::Clean, true), "{damage:?}");
        }
    }
}

#[test]
fn both_volume_tables_gone_is_left_and_said() {
    let cache = sample();
    (0..2).for_each(|copy| Damage::Volumes(copy).inflict(&cache, 999));
    let before = cache.disk.after_cut(|_, _| true);
    let report = mend(&cache.disk).expect("looks");
    assert_eq!(report.verdict(), Verdict::Errors);
    assert!(cache.disk.same_content(&before), "nothing was written");
}

#[test]
fn a_check_writes_nothing() {
    let cache = sample();
    Damage::Header(Seq(3)).inflict(&cache, 9);
    Damage::Anchor(0).inflict(&cache, 9);
    let counts = cache.disk.counts();
    look(&cache.disk);
    assert_eq!(cache.disk.counts(), counts);
}

fn every_damage(cache: &Builder) -> Vec<Damage> {
    let records = cache.places.keys().flat_map(|seq| {
        [
            Damage::Header(*seq),
            Damage::UnreadableHeader(*seq),
            Damage::Payload(*seq, 0),
            Damage::UnreadablePayload(*seq, 0),
        ]
    });
    let segments: std::collections::BTreeSet<_> = cache.places.values().map(|place| place.0).collect();
    let segments = segments.into_iter().flat_map(|segment| [Damage::Summary(segment), Damage::Segment(segment)]);
    let copies = (0..2).flat_map(|copy| {
        [Damage::Superblock(copy), Damage::Volumes(copy), Damage::BadSegments(copy), Damage::Anchor(copy)]
    });
    records.chain(segments).chain(copies).collect()
}

/// Repairs, cutting the power after each write; of the unflushed ones every subset survives (16 where there are more), or
/// each in part. Each time another run must finish the work, and lose no block that the run without a cut keeps.
fn repair_with_cuts(start: &MemDisk, what: &str) {
    let whole = start.after_cut(|_, _| true);
    mend(&whole).expect("repairs");
    let whole = look(&whole).log;
    for writes in 0.. {
        let disk = start.after_cut(|_, _| true);
        disk.fail_after_writes(writes);
        let done = mend(&disk).is_ok();
        let torn = (u128::MAX, disk.after_cut(|write, sector| (write + sector) % 2 == 0));
        for (kept, left) in disk.every_cut(16).into_iter().chain([torn]) {
            let what = format!("{what}, cut after {writes} writes, kept {kept:#b}");
            mend(&left).unwrap_or_else(|error| panic!("{what}: {error}"));
            let found = look(&left);
            assert_eq!(found.report().verdict(), Verdict::Clean, "{what}: {:?}", found.findings());
            for (addr, version) in whole.live.blocks() {
                let same = found.log.live.block(addr).is_some_and(|again| again.slot == version.slot);
                assert!(same, "{what}: {addr:?} of record {}", version.seq);
            }
        }
        if done {
            return;
        }
    }
}

#[test]
fn whatever_is_damaged_is_clean_after_a_repair_and_no_other_block_changes() {
    let mut whole = sample();
    whole.write_anchor();
    let before = look(&whole.disk);
    for damage in every_damage(&whole) {
        let cache = whole.fork();
        damage.inflict(&cache, 321);
        let fixed = mend(&cache.disk).expect("repairs");
        assert_ne!(fixed.verdict(), Verdict::Errors, "{damage:?}: {:?}", fixed.findings);
        let after = look(&cache.disk);
        assert_eq!(after.report().verdict(), Verdict::Clean, "{damage:?}: {:?}", after.findings());
        // Every block either has its newest version, or is named.
        for (addr, version) in before.log.live.blocks() {
            let lost_record = fixed.lost_records.contains(&version.seq);
            let named = fixed.lost_blocks.contains(&addr);
            let same = after.log.live.block(addr).is_some_and(|found| found.slot == version.slot);
            assert!(same || lost_record || named, "{damage:?}: {addr:?} of record {}", version.seq);
        }
    }
}

#[test]
fn repair_may_be_cut_off_at_every_write() {
    let mut whole = sample();
    whole.write_back();
    whole.record(&[write(1, 0x77), write(700, 0x78)]);
    whole.record(&[write(2, 0x79)]);
    whole.new_epoch();
    let last = whole.head;
    let pairs = [
        vec![Damage::Anchor(0), Damage::Anchor(1), Damage::Header(Seq(4))],
        vec![Damage::Superblock(0), Damage::Volumes(1), Damage::Payload(last, 0)],
        vec![Damage::Segment(whole.places[&Seq(9)].0), Damage::Payload(Seq(last.0 - 1), 1)],
        vec![Damage::Header(Seq(last.0 - 1)), Damage::Payload(Seq(20), 0)],
        vec![Damage::Segment(whole.places[&Seq(1)].0)],
        vec![Damage::Segment(whole.places[&last].0)],
    ];
    for damages in pairs {
        let cache = whole.fork();
        damages.iter().for_each(|damage| damage.inflict(&cache, 1000));
        repair_with_cuts(&cache.disk, &format!("{damages:?}"));
    }
}

#[test]
fn two_damages_at_once_never_make_repair_fail() {
    let mut whole = sample();
    whole.write_anchor();
    let all = every_damage(&whole);
    for (at, first) in all.iter().enumerate().step_by(11) {
        for second in all.iter().skip(at + 1).step_by(7) {
            let cache = whole.fork();
            first.inflict(&cache, 100);
            second.inflict(&cache, 3000);
            let same_pair = matches!(
                (first, second),
                (Damage::Volumes(_), Damage::Volumes(_)) | (Damage::Superblock(_), Damage::Superblock(_))
            );
            if same_pair {
                continue;
            }
            let fixed = mend(&cache.disk).unwrap_or_else(|error| panic!("{first:?} {second:?}: {error}"));
            assert_ne!(fixed.verdict(), Verdict::Errors, "{first:?} {second:?}: {:?}", fixed.findings);
            let again = look(&cache.disk).report();
            assert_eq!(again.verdict(), Verdict::Clean, "{first:?} {second:?}: {:?}", again.findings);
        }
    }
}

fn backing() -> MemDisk {
    let disk = MemDisk::new(VOLUME_BYTES);
    for block in 0..1000u64 {
        disk.poke(block * BLOCK_BYTES_U64, &payload(0xee, SectorMask::FULL));
    }
    disk
}

fn replay_now(cache: &MemDisk, disk: &MemDisk) -> Result<ReplayReport, CheckError> {
    let options = ReplayOptions { identity: "serial:disk".into(), now_unix_ns: 3, boot_id: [0; 16] };
    run(replay(cache, disk, &look(cache), &options, &mut |_| {}))
}

fn assert_replayed(cache: &Builder, disk: &MemDisk, what: &str) {
    for (block, sectors) in &cache.model {
        for (at, fill) in sectors.iter().enumerate() {
            let Some(fill) = fill else { continue };
            let offset = block * BLOCK_BYTES_U64 + (at * SECTOR_BYTES) as u64;
            if offset < VOLUME_BYTES {
                assert!(disk.peek(offset, 512).iter().all(|byte| byte == fill), "{what}: block {block} sector {at}");
            }
        }
    }
}

#[test]
fn replay_writes_the_newest_version_of_everything_and_leaves_the_rest() {
    let mut cache = sample();
    cache.record(&[Op::Range(EntryKind::Zeroes, 990, 11), write(995, 4), Op::Write(1000, 6, SectorMask(0x1c))]);
    cache.flush();
    let disk = backing();
    let report = replay_now(&cache.disk, &disk).expect("replays");
    assert!(report.is_complete());
    assert_replayed(&cache, &disk, "after replay");
    assert!(disk.peek(600 * BLOCK_BYTES_U64, 4096).iter().all(|byte| *byte == 0xee), "not in the log");
    let found = look(&cache.disk);
    assert_eq!((found.log.live.dirty_blocks(), found.report().verdict(), found.log.clean), (0, Verdict::Clean, true));
    assert_eq!(replay_now(&cache.disk, &disk).expect("again").blocks, 0);
}

#[test]
fn replay_may_be_cut_off_at_every_write_of_either_device() {
    let cache = sample();
    for writes in 0..400 {
        let (device, disk) = (cache.fork().disk, backing());
        match writes % 2 {
            0 => device.fail_after_writes(writes / 2),
            _ => disk.fail_after_writes(writes / 2),
        }
        let done = replay_now(&device, &disk).is_ok();
        // What survives on one device has nothing to do with what survives on the other.
        let disks = disk.every_cut(6);
        let devices = device.every_cut(6);
        for at in 0..disks.len().max(devices.len()) {
            let (kept, device) = &devices[at % devices.len()];
            let (kept_of_disk, disk) = &disks[at % disks.len()];
            let [device, disk] = &[device, disk].map(|disk| disk.after_cut(|_, _| true));
            let what = format!("cut after {writes}, kept {kept:#b} and {kept_of_disk:#b}");
            let before = look(device);
            assert_eq!(before.report().verdict(), Verdict::Clean, "{what}");
            if before.log.live.dirty_blocks() == 0 {
                assert_replayed(&cache, disk, "clean means written");
            }
            assert!(replay_now(device, disk).expect("the second run finishes").is_complete());
            assert_replayed(&cache, disk, &what);
        }
        if done && writes > 300 {
            return;
        }
    }
}

#[test]
fn replay_refuses_the_wrong_backing_device_and_damaged_logs() {
    let cache = sample();
    let wrong = |disk: &MemDisk, identity: &str| {
        let options = ReplayOptions { identity: identity.into(), ..ReplayOptions::default() };
        run(replay(&cache.disk, disk, &look(&cache.disk), &options, &mut |_| {})).expect_err("refused")
    };
    let small = MemDisk::new(VOLUME_BYTES - 512);
    assert!(matches!(wrong(&small, "serial:disk"), CheckError::WrongBacking(_)));
    assert!(matches!(wrong(&backing(), "serial:other"), CheckError::WrongBacking(_)));
    assert_eq!(small.counts().0, 0);
    let open = cache.head;
    Damage::Header(Seq(open.0 - 1)).inflict(&cache, 8);
    assert!(matches!(wrong(&backing(), "serial:disk"), CheckError::Damaged(_)));
}

#[test]
fn replay_names_rotten_blocks_writes_the_others_and_stays_dirty() {
    let mut cache = Builder::new();
    let seq = cache.record(&[write(1, 1), write(2, 2)]);
    cache.new_epoch();
    Damage::Payload(seq, 0).inflict(&cache, 1);
    let disk = backing();
    let report = replay_now(&cache.disk, &disk).expect("goes on");
    assert_eq!((report.blocks, &report.rotten[..]), (1, &[BlockAddr::new(VolumeId(1), 1)][..]));
    assert!(disk.peek(2 * 4096, 4096).iter().all(|byte| *byte == 2));
    assert!(disk.peek(4096, 4096).iter().all(|byte| *byte == 0xee));
    assert_eq!(look(&cache.disk).log.live.dirty_blocks(), 2);
}

#[test]
fn writes_of_a_dead_daemon_in_memory_stop_repair_and_replay() {
    for clean in [false, true] {
        in_memory(clean);
    }
}

/// `clean`: the daemon began on a clean log, and none of its own records is on the device yet.
fn in_memory(clean: bool) {
    let mut cache = sample();
    (cache.anchor.boot_id, cache.anchor.ram_tail_id) = ([5; 16], [6; 16]);
    match clean {
        true => cache.stop(),
        false => cache.write_anchor(),
    }
    Damage::Superblock(0).inflict(&cache, 1);
    let found = look(&cache.disk);
    assert_eq!(found.log.clean, clean);
    let repairs = RepairOptions { boot_id: [5; 16], ..options() };
    let result = run(repair(&cache.disk, &found, repairs, &mut Vec::new(), &mut |_| {}));
    assert_eq!(result, Err(CheckError::RamTail));
    let here = ReplayOptions { boot_id: [5; 16], ..ReplayOptions::default() };
    assert_eq!(run(replay(&cache.disk, &backing(), &found, &here, &mut |_| {})), Err(CheckError::RamTail));
    let other_boot = RepairOptions { boot_id: [9; 16], ..options() };
    assert!(run(repair(&cache.disk, &found, other_boot, &mut Vec::new(), &mut |_| {})).is_ok());
}
