//! Write-back measured on model devices in virtual time: the table of docs/PERFORMANCE.md (`make writeback`), and the same
//! rows at a small scale with what must hold.

mod rows;
mod world;

use rows::*;
use wb_core::engine::Quiet;
use world::*;

/// Sixteenth of the smallest disk of the table. Tracks are as long as there, so each holds as many dirty blocks.
const SMALL: Scale = Scale { disk_bytes: 4 * GIB };
/// The disk of the table.
const FULL: Scale = Scale { disk_bytes: 64 * GIB };

#[test]
fn random_writes_go_back_faster_than_the_bare_disk_takes_them() {
    assert!(ratio("1 random 4 KiB", SMALL, |blocks| uniform(blocks, 7), 1, 60.0) >= 8.0);
}

#[test]
fn overwritten_blocks_are_written_back_once() {
    assert!(ratio("2 zipfian 4 KiB", SMALL, |blocks| zipfian(blocks, 7), 1, 60.0) >= 10.0);
}

#[test]
fn a_stream_goes_back_as_fast_as_it_could_have_gone() {
    assert!(stream_ratio(SMALL) >= 0.85);
}

#[test]
fn neighbours_are_merged_whatever_their_order_was() {
    assert!(share_of_large_writes(SMALL) >= 0.9);
}

#[test]
fn a_full_cache_slows_writers_down_and_does_not_stop_them() {
    assert!(largest_gap(SMALL, 60.0, 60.0) <= 100.0);
}

#[test]
fn a_drain_is_as_fast_as_a_sorted_copy() {
    assert!(drain_ratio(SMALL, 64 * MIB) <= 1.15);
}

#[test]
fn reads_do_not_suffer_from_gentle_write_back() {
    assert!(read_latency_ratio(SMALL, 60.0) <= 2.0);
}

#[test]
fn the_time_left_is_told_right() {
    assert!(eta_error(SMALL, 64 * MIB) <= 0.2);
}

#[test]
fn a_quiet_disk_sleeps() {
    let quiet = Quiet { percent: 50, age_ns: Some(12 * 3600 * SECOND), window: None };
    assert!(spin_ups(SMALL, quiet) <= 12);
}

/// The table of docs/PERFORMANCE.md at full size, a row each, with what is aimed at: `make writeback`.
mod table {
    use super::*;

    #[test]
    #[ignore = "minutes: make writeback"]
    fn row_1_random() {
        assert!(ratio("1 random 4 KiB", FULL, |blocks| uniform(blocks, 7), 1, 900.0) >= 4.0);
    }

    #[test]
    #[ignore = "minutes: make writeback"]
    fn row_2_zipfian() {
        assert!(ratio("2 zipfian 4 KiB", FULL, |blocks| zipfian(blocks, 7), 1, 900.0) >= 10.0);
    }

    #[test]
    #[ignore = "minutes: make writeback"]
    fn row_3_sequential() {
        assert!(stream_ratio(FULL) >= 0.95);
    }

    #[test]
    #[ignore = "minutes: make writeback"]
    fn row_4_merged() {
        assert!(share_of_large_writes(FULL) >= 0.9);
    }

    #[test]
    #[ignore = "minutes: make writeback"]
    fn row_5_largest_gap() {
        assert!(largest_gap(FULL, 900.0, 600.0) <= 100.0);
    }

    #[test]
    #[ignore = "minutes: make writeback"]
    fn row_6_read_misses() {
        assert!(read_latency_ratio(FULL, 600.0) <= 2.0);
    }

    #[test]
    #[ignore = "minutes: make writeback"]
    fn row_7_drain() {
        assert!(drain_ratio(FULL, GIB) <= 1.15);
    }

    #[test]
    #[ignore = "minutes: make writeback"]
    fn row_8_time_left() {
        assert!(eta_error(FULL, GIB) <= 0.2);
    }

    #[test]
    #[ignore = "minutes: make writeback"]
    fn row_9_quiet_disk() {
        assert!(spin_ups(FULL, Quiet { percent: 50, age_ns: Some(4 * 3600 * SECOND), window: None }) <= 12);
    }
}
