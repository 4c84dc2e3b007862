use super::*;
use crate::format::{Anchor, BadSegments, Superblock, VolumeTable};
use crate::io::mem::MemDisk;
use futures_util::FutureExt;

fn run<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("a memory disk never waits")
}

fn options(uuid: u8) -> FormatOptions {
    FormatOptions {
        segment_bytes: 64 << 10,
        label: "test".into(),
        uuid: Uuid::from_bytes([uuid; 16]),
        secret: u32::from(uuid) * 0x0101_0101,
        now_unix_ns: 42,
    }
}

fn formatted() -> (MemDisk, Superblock) {
    let disk = MemDisk::new(2 << 20);
    let superblock = run(format(&disk, options(1))).expect("formats");
    (disk, superblock)
}

/// Every state that a power cut during `work` may leave: after each write, every subset of the unflushed writes (64 of
/// them where there are more), and each single one torn.
fn every_cut(start: &MemDisk, work: impl Fn(&MemDisk) -> bool, mut judge: impl FnMut(&MemDisk, &str)) {
    for writes in 0.. {
        let disk = start.after_cut(|_, _| true);
        disk.fail_after_writes(writes);
        let done = work(&disk);
        let pending = disk.pending();
        for (kept, disk) in disk.every_cut(64) {
            judge(&disk, &format!("{writes} writes, kept {kept:#b}"));
        }
        for one in 0..pending {
            for torn in 0..8 {
                let keep = |write, sector| write != one || sector < torn;
                judge(&disk.after_cut(keep), &format!("{writes} writes, {one} torn at {torn}"));
            }
        }
        if done {
            return;
        }
    }
}

#[test]
fn a_fresh_cache_loads() {
    let (disk, superblock) = formatted();
    let meta = run(load(&disk)).expect("loads");
    assert_eq!((&meta.superblock, meta.volumes), (&superblock, VolumeTable::empty()));
    assert_eq!(meta.bad_segments.count(), 0);
    assert_eq!((meta.anchor.generation, meta.notes), (2, Vec::new()));
    assert!(meta.anchor_slots.iter().all(Option::is_some));
}

#[test]
fn format_cut_at_any_write_leaves_old_none_or_new() {
    let (old, _) = formatted();
    let (mut olds, mut nones, mut news) = (0, 0, 0);
    every_cut(
        &old,
        |disk| run(format(disk, options(2))).is_ok(),
        |disk, at| match run(load(disk)) {
            Ok(meta) if meta.superblock.uuid == Uuid::from_bytes([1; 16]) => olds += 1,
            Ok(meta) => {
                assert_eq!(meta.superblock.uuid, Uuid::from_bytes([2; 16]), "{at}");
                assert!(meta.notes.iter().all(|note| note.starts_with("superblock")), "{at}: {:?}", meta.notes);
                news += 1;
            }
            Err(MetaError::NotACache | MetaError::Superblocks(..)) => nones += 1,
            Err(other) => panic!("{at}: {other}"),
        },
    );
    assert!(olds > 0 && nones > 0 && news > 0, "{olds} {nones} {news}");
}

#[test]
fn either_copy_of_everything_may_be_lost() {
    let (disk, superblock) = formatted();
    let geometry = superblock.geometry;
    for copy in 0..2 {
        let damaged = disk.after_cut(|_, _| true);
        damaged.flip(geometry.superblock_offset(copy).0 + 100, 3);
        damaged.flip(geometry.volumes_offset(copy).0 + 5, 0);
        damaged.make_unreadable(geometry.bad_segments_offset(copy, 0).0);
        damaged.flip(geometry.anchor_offset(copy).0 + 4000, 7);
        let meta = run(load(&damaged)).expect("one copy is enough");
        assert_eq!(meta.notes.len(), 4, "{:?}", meta.notes);
        assert_eq!(meta.anchor.generation, if copy == 0 { 1 } else { 2 });
    }
}

#[test]
fn what_cannot_be_used_is_refused_by_name() {
    let (disk, superblock) = formatted();
    let geometry = superblock.geometry;
    let both = |offset: fn(&crate::format::Geometry, usize) -> ByteOffset| {
        let damaged = disk.after_cut(|_, _| true);
        (0..2).for_each(|copy| damaged.flip(offset(&geometry, copy).0 + 20, 1));
        run(load(&damaged))
    };
    assert!(matches!(both(|geometry, copy| geometry.superblock_offset(copy)), Err(MetaError::Superblocks(..))));
    assert!(matches!(both(|geometry, copy| geometry.volumes_offset(copy)), Err(MetaError::Volumes(..))));
    assert!(matches!(both(|geometry, copy| geometry.anchor_offset(copy)), Err(MetaError::Anchors(..))));
    let bitmap = both(|geometry, copy| geometry.bad_segments_offset(copy, 0));
    assert!(matches!(bitmap, Err(MetaError::BadSegments { block: 0, .. })));
    assert_eq!(run(load(&MemDisk::new(1 << 20))), Err(MetaError::NotACache));
    assert_eq!(run(load(&MemDisk::new(512))), Err(MetaError::NotACache));
}

#[test]
fn l5_another_size_is_refused_with_both_sizes() {
    let (disk, _) = formatted();
    for size in [1u64 << 20, (2 << 20) - 512, 3 << 20] {
        let expected = MetaError::Resized { recorded_bytes: 2 << 20, actual_bytes: size };
        assert_eq!(run(load(&disk.resized(size))), Err(expected));
    }
}

#[test]
fn a_cache_whose_first_superblock_is_gone_is_found_by_its_last() {
    let (disk, superblock) = formatted();
    disk.poke(0, &[0; BLOCK_BYTES]);
    assert_eq!(run(load(&disk)).expect("found").superblock, superblock);
}

#[test]
fn superblocks_of_two_caches_are_refused() {
    let (disk, superblock) = formatted();
    let other = Superblock { uuid: Uuid::from_bytes([8; 16]), generation: 9, ..superblock };
    disk.poke(0, &other.encode());
    assert!(matches!(run(load(&disk)), Err(MetaError::TwoCaches(..))));
}

#[test]
fn anchors_cut_at_any_write_leave_the_old_or_the_new_one() {
    let (start, superblock) = formatted();
    for both in [false, true] {
        every_cut(
            &start,
            |disk| {
                let meta = run(load(disk)).expect("loads");
                let next = Anchor { generation: meta.anchor.generation + 1, durable: Seq(7), ..meta.anchor };
                match both {
                    true => run(write_anchor_both(disk, &superblock, &next)).is_ok(),
                    false => run(write_anchor_one(disk, &superblock, &next)).is_ok(),
                }
            },
            |disk, at| {
                let anchor = run(load(disk)).expect(at).anchor;
                assert!(anchor.durable == Seq(0) || (anchor.durable == Seq(7) && anchor.generation >= 3), "{at}");
            },
        );
    }
}

#[test]
fn after_both_either_anchor_may_be_lost_and_the_next_goes_on() {
    let (disk, superblock) = formatted();
    let newest = Anchor { generation: 3, durable: Seq(9), ..Anchor::first() };
    assert_eq!(run(write_anchor_both(&disk, &superblock, &newest)), Ok(4));
    for slot in 0..2 {
        let damaged = disk.after_cut(|_, _| true);
        damaged.flip(superblock.geometry.anchor_offset(slot).0, 0);
        let anchor = run(load(&damaged)).expect("the other slot").anchor;
        assert_eq!(anchor.durable, Seq(9));
        let next = Anchor { generation: anchor.generation + 1, durable: Seq(10), ..anchor };
        run(write_anchor_one(&damaged, &superblock, &next)).expect("writes");
        assert_eq!(run(load(&damaged)).expect("both").anchor.durable, Seq(10));
    }
}

#[test]
fn tables_cut_at_any_write_leave_the_old_or_the_new_one_even_if_a_copy_was_damaged() {
    let (whole, superblock) = formatted();
    for damaged in [None, Some(0), Some(1)] {
        let start = whole.after_cut(|_, _| true);
        if let Some(copy) = damaged {
            start.flip(superblock.geometry.volumes_offset(copy).0 + 30, 0);
            start.flip(superblock.geometry.bad_segments_offset(copy, 0).0 + 30, 0);
            start.flip(superblock.geometry.superblock_offset(copy).0 + 30, 0);
        }
        let table = VolumeTable { generation: 2, next_id: 5, volumes: Vec::new() };
        let mut bad = BadSegments::none(&superblock.geometry);
        bad.generation = 2;
        bad.mark(SegmentNo(3));
        let newer = Superblock { generation: 2, label: "new".into(), ..superblock.clone() };
        let mut last = None;
        every_cut(
            &start,
            |disk| {
                run(write_volumes(disk, &superblock, &table)).is_ok()
                    && run(write_bad_segments(disk, &superblock, &bad)).is_ok()
                    && run(write_superblock(disk, &newer)).is_ok()
            },
            |disk, at| last = Some(run(load(disk)).unwrap_or_else(|error| panic!("{damaged:?} {at}: {error}"))),
        );
        let last = last.expect("judged");
        assert_eq!((last.volumes, last.bad_segments, last.superblock), (table, bad, newer));
        assert_eq!(last.notes, Vec::<String>::new(), "both copies are whole again");
    }
}
