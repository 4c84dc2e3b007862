//! The head by itself, in the geometry that everybody uses: segments of 2 MiB, records of 248 blocks.

use super::*;
use crate::tail::TailLayout;

const BUFFERS: usize = 8;

fn head(buffers: usize, segments: u64) -> LogHead {
    let segment_bytes = 2u64 << 20;
    let geometry = Geometry::new(segment_bytes * (segments + 2), segment_bytes).expect("a geometry");
    let superblock = Superblock {
        uuid: Uuid::from_u128(3),
        label: String::new(),
        generation: 1,
        compat: 0,
        ro_compat: 0,
        geometry,
        secret: 4,
        created_unix_ns: 0,
    };
    let layout = TailLayout { buffers, buffer_bytes: (1 + RECORD_ENTRIES_MAX) * BLOCK_BYTES };
    LogHead::new(
        HeadConfig {
            superblock: &superblock,
            bad: BadSegments::none(&geometry),
            tail: Tail::private(layout).expect("memory"),
            reserve_segments: 2,
            wall_unix_ns: Box::new(|| 1),
        },
        HeadStart {
            head: Seq(0),
            chain_crc: 0,
            head_pos: LogPos(0),
            epoch: Epoch(1),
            epoch_start: Seq(1),
            live: VecDeque::new(),
            unread_good: 0,
            open: None,
            next_segment: SegmentNo(0),
            log_tail: Seq(1),
            dirty_tail: Seq(1),
        },
    )
}

/// What is to be written: numbers of records, and segments of summaries.
fn names(submits: &[Submit]) -> Vec<String> {
    let name = |submit: &Submit| match submit {
        Submit::Record { record, .. } => format!("record {}", record.seq),
        Submit::Summary { segment, .. } => format!("summary {segment}"),
    };
    submits.iter().map(name).collect()
}

/// Reserves, fills and publishes.
fn payload(head: &LogHead, blocks: usize) -> Vec<String> {
    let mut submits = Vec::new();
    let mut left = blocks;
    while left > 0 {
        let mut reservation = head.reserve_payload(Class::Internal, left, &mut submits).expect("room");
        for index in 0..reservation.count {
            let addr = BlockAddr::new(VolumeId(1), index as u64);
            reservation.put_entry(index, &Entry::payload(addr, EntryKind::Dirty, 0, SectorMask::FULL));
        }
        left -= reservation.count;
        submits.extend(head.publish(reservation));
    }
    names(&submits)
}

fn range(head: &LogHead) -> Vec<String> {
    let mut submits = Vec::new();
    let mut reservation = head.reserve_range(Class::Internal, &mut submits).expect("room");
    reservation.put_entry(0, &Entry::range(BlockAddr::new(VolumeId(1), 7), EntryKind::Discard, 1));
    submits.extend(head.publish(reservation));
    names(&submits)
}

#[test]
fn the_last_long_record_of_a_segment_waits_for_what_is_behind_it() {
    let head = head(BUFFERS, 16);
    assert_eq!(payload(&head, 248), ["record 1"]);
    assert_eq!(payload(&head, 248), [""; 0]);
    assert_eq!(payload(&head, 8), ["record 2", "record 3", "summary 0"]);
}

/// [a record is full and its payload still being copied; a flush that wants it waits; sealed, it is held back for a runt
/// that nobody writes]
#[test]
fn nothing_that_a_flush_wants_is_held_back() {
    let head = head(BUFFERS, 16);
    payload(&head, 248);
    payload(&head, 247);
    let mut submits = Vec::new();
    let last = head.reserve_payload(Class::User, 1, &mut submits).expect("room");
    assert_eq!((names(&submits), head.newest()), (vec![], Seq(2)));
    assert_eq!(names(&head.close_for_flush(Seq(2), false)), [""; 0], "it is not complete");
    assert_eq!(names(&head.publish(last)), ["record 2"]);
    // What comes after that flush waits as before.
    assert_eq!(payload(&head, 8), ["record 3", "summary 0"]);
    assert_eq!((payload(&head, 248), payload(&head, 248)), (vec!["record 4".to_owned()], vec![]));
}

/// [ranges fill a record; the next write closes it and finds no buffer: what was closed is written by nobody]
#[test]
fn what_a_refused_reservation_has_closed_is_submitted_all_the_same() {
    let head = head(3, 16);
    assert_eq!(payload(&head, 1), [""; 0]);
    for _ in 0..247 {
        assert_eq!(range(&head), [""; 0]);
    }
    assert!(!head.seems_to_have_room(), "its entries are used up");
    let taken: Vec<Buf> =
        std::iter::from_fn(|| head.tail.buffers().try_alloc(head.tail.buffers().max_len())).take(2).collect();
    assert_eq!(taken.len(), 2);
    let mut submits = Vec::new();
    assert_eq!(head.reserve_payload(Class::User, 1, &mut submits).err(), Some(Full::Buffers));
    assert_eq!(names(&submits), ["record 1"]);
    drop(taken);
    assert_eq!(payload(&head, 1), [""; 0], "and it goes on");
}

/// The same at the end of a segment, where no other is free: a record that was held back, a runt and the summary.
#[test]
fn the_end_of_a_segment_is_submitted_although_no_other_is_free() {
    let head = head(24, 8);
    for _ in 0..head.free_segments().1 - 3 {
        payload(&head, 504);
    }
    payload(&head, 248);
    payload(&head, 248);
    payload(&head, 3);
    (0..5).for_each(|_| drop(range(&head)));
    assert_eq!(head.free_segments().0, 2, "the reserve");
    let mut submits = Vec::new();
    assert_eq!(head.reserve_payload(Class::User, 1, &mut submits).err(), Some(Full::Segments));
    let submitted = names(&submits);
    assert_eq!(submitted.len(), 3, "{submitted:?}");
    assert!(submitted[2].starts_with("summary"), "{submitted:?}");
}
