//! Summaries that outlive the records they name, in both forms that power cuts leave, against the walk of a start (which
//! is that of a check), against the walk over a damaged log, and against a repair: nothing stale comes back.

use super::build::{Builder, payload, run, write};
use super::damage::Damage;
use super::*;
use crate::format::crc32c;

const VERIFY: CheckOptions = CheckOptions { verify_data: true };

fn summary_of(cache: &Builder, segment: SegmentNo) -> Vec<u8> {
    let geometry = &cache.superblock.geometry;
    cache.disk.peek(geometry.summary_offset(segment).0, geometry.summary_blocks() as usize * BLOCK_BYTES)
}

fn put_summary(cache: &Builder, segment: SegmentNo, bytes: &[u8]) {
    cache.disk.poke(cache.superblock.geometry.summary_offset(segment).0, bytes);
}

/// Segment 0 closed, power failed: its summary survived, its last record did not, and another took its place. Two starts
/// ago. With `more`, the log has gone on into the next segment.
fn last_record_replaced(more: bool) -> Builder {
    let mut cache = Builder::new();
    cache.record(&[write(1, 1), write(2, 2)]);
    cache.record(&[write(3, 3)]);
    cache.flush();
    let mut lost = cache.fork();
    lost.record(&[write(1, 0xee), write(4, 0xee)]);
    lost.close_segment();
    put_summary(&cache, SegmentNo(0), &summary_of(&lost, SegmentNo(0)));
    cache.new_epoch();
    cache.record(&[write(2, 20), write(5, 5)]);
    if more {
        let old = summary_of(&cache, SegmentNo(0));
        cache.close_segment();
        put_summary(&cache, SegmentNo(0), &old);
        cache.record(&[write(6, 6)]);
    }
    cache.new_epoch();
    cache.new_epoch();
    cache
}

/// Segment 1 was dropped whole and written again with records of the same numbers; its new summary was lost, so that the
/// old one is there.
fn segment_replaced(more: bool) -> Builder {
    let mut cache = Builder::new();
    cache.record(&[write(1, 1), write(2, 2)]);
    cache.close_segment();
    cache.flush();
    let mut lost = cache.fork();
    lost.record(&[write(1, 0xee), write(4, 0xee)]);
    lost.record(&[write(7, 0xee)]);
    lost.close_segment();
    let old = summary_of(&lost, SegmentNo(1));
    cache.new_epoch();
    cache.record(&[write(2, 20), write(5, 5)]);
    cache.record(&[write(8, 8)]);
    cache.close_segment();
    put_summary(&cache, SegmentNo(1), &old);
    if more {
        cache.record(&[write(6, 6)]);
    }
    cache.new_epoch();
    cache.new_epoch();
    cache
}

fn images() -> Vec<(String, Builder)> {
    let both = |more| [("last record", last_record_replaced(more)), ("whole segment", segment_replaced(more))];
    let named = |more: bool| both(more).map(|(name, cache)| (format!("{name}, more records behind: {more}"), cache));
    [false, true].into_iter().flat_map(named).collect()
}

fn look(cache: &Builder) -> Examination {
    run(examine(&cache.disk, VERIFY, &mut |_| {})).expect("a cache")
}

/// Every block has what was written last.
fn assert_current(cache: &Builder, found: &Examination, name: &str) {
    for (block, sectors) in &cache.model {
        let fill = sectors[0].expect("whole blocks");
        let version = found.log.live.block(BlockAddr::new(VolumeId(1), *block));
        let version = version.unwrap_or_else(|| panic!("{name}: block {block} is not there"));
        assert_eq!(version.crc, crc32c(&payload(fill, SectorMask::FULL)), "{name}: block {block}");
    }
    assert_eq!(found.log.live.dirty_blocks(), cache.model.len() as u64, "{name}: nothing else is there");
}

#[test]
fn a_start_goes_by_the_records_and_not_by_an_outdated_summary() {
    for (name, cache) in images() {
        let found = look(&cache);
        assert_eq!(found.log.refusal, None, "{name}");
        assert_current(&cache, &found, &name);
        assert_eq!(found.report().verdict(), Verdict::Clean, "{name}: {:?}", found.report().findings);
    }
}

#[test]
fn a_repair_brings_nothing_back_from_an_outdated_summary() {
    for (name, cache) in images() {
        let newest = cache.places.keys().last().copied().expect("records");
        let kinds: [&[Damage]; 4] = [
            &[],
            &[Damage::Anchor(0)],
            &[Damage::Anchor(0), Damage::Anchor(1)],
            &[Damage::Superblock(0), Damage::Anchor(1)],
        ];
        for damage in kinds {
            let cache = cache.fork();
            damage.iter().for_each(|damage| damage.inflict(&cache, 777));
            let options = RepairOptions { check: VERIFY, now_unix_ns: 5, boot_id: [0; 16] };
            let report = run(repair(&cache.disk, &look(&cache), options, &mut Vec::new(), &mut |_| {}));
            let report = report.unwrap_or_else(|error| panic!("{name}, {damage:?}: {error}"));
            assert_ne!(report.verdict(), Verdict::Errors, "{name}, {damage:?}: {:?}", report.findings);
            let found = look(&cache);
            assert_current(&cache, &found, &format!("{name}, {damage:?}"));
            assert!(found.log.head >= newest, "{name}, {damage:?}");
        }
    }
}

#[test]
fn a_gap_before_an_outdated_summary_is_not_bridged_to_it() {
    for (name, cache) in images() {
        let cache = cache.fork();
        Damage::Header(Seq(1)).inflict(&cache, 1234);
        Damage::Payload(Seq(1), 0).inflict(&cache, 1234);
        let options = RepairOptions { check: VERIFY, now_unix_ns: 5, boot_id: [0; 16] };
        let _ = run(repair(&cache.disk, &look(&cache), options, &mut Vec::new(), &mut |_| {}));
        let found = look(&cache);
        let stale = crc32c(&payload(0xee, SectorMask::FULL));
        let back = found.log.live.blocks().find(|(_, version)| version.crc == stale);
        assert_eq!(back, None, "{name}: a dropped record came back");
    }
}
