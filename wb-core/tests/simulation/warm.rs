//! What a start does not read because it is on the backing device already, and what comes back of it while the cache is
//! served: never an old version of anything.

use crate::scenarios::{Bench, SEGMENT_BYTES, WHOLE, get, put};
use wb_core::check::{self, CheckOptions};
use wb_core::engine::Engine;
use wb_core::env::{Env, PlantedBug};
use wb_core::format::SegmentStart;
use wb_core::meta;
use wb_core::service::BlockService;
use wb_core::sim::{FaultPlan, Latency, SimEnv};
use wb_core::types::*;

const SECOND: u64 = 1_000_000_000;

/// Blocks that the backing device is asked for in the meantime.
fn misses(engine: &Engine<SimEnv>) -> u64 {
    engine.status().counters.read_misses
}

async fn stop_clean(engine: &Engine<SimEnv>) {
    engine.drain().await.expect("drains");
    engine.stop().await.expect("stops");
}

/// Segments of the cache that everything here is about: enough for the log not to wrap.
fn bench() -> Bench {
    Bench::sized(1, 40 * SEGMENT_BYTES, 4 << 20)
}

/// [start of a clean, fully written-back cache: the whole cache device is read]
#[test]
fn l10_a_start_of_a_clean_cache_reads_a_few_blocks() {
    const SEGMENTS: u64 = 2000;
    let bench = Bench::sized(1, (SEGMENTS + 4) * SEGMENT_BYTES, 256 << 20);
    let filled = bench.life(|engine, _| async move {
        for block in 0..SEGMENTS - 100 {
            put(&engine, block * WHOLE as u64, WHOLE, block as u8 | 1).await;
        }
        stop_clean(&engine).await;
        engine.status().head.0
    });
    assert_eq!(filled, Ok(SEGMENTS - 100), "a segment each");
    let device = bench.cache.clone();
    let before = device.counters();
    let read = bench.life(move |engine, env| async move {
        let started = device.counters();
        // Served at once, and right: the backing device has everything.
        assert_eq!(get(&engine, 5 * WHOLE as u64).await, 5);
        let cold = misses(&engine);
        while engine.status().unread_segments > 0 {
            env.sleep(1_000_000).await;
        }
        assert_eq!(engine.status().cached_bytes / 4096, (SEGMENTS - 100) * WHOLE as u64, "all of it came back");
        for block in (0..SEGMENTS - 100).step_by(17) {
            assert_eq!(get(&engine, block * WHOLE as u64 + 3).await, block as u8 | 1);
        }
        assert_eq!((cold, misses(&engine)), (1, 1), "and nothing of it is read from the backing device any more");
        (started.reads - before.reads, started.read_bytes - before.read_bytes)
    });
    let (reads, bytes) = read.expect("starts");
    // The walk reads 256 summaries ahead, looks behind the end of the log, and reads two or three segments whole, however
    // large the ring is; with segments of 2 MiB that is some 12 MiB.
    assert!(reads < 400 && bytes < 2 << 20, "{reads} reads of {bytes} bytes before it is served");
}

/// What [`nothing_behind_damage_comes_back`] reads, how many blocks came back, and how many segments are unread at the end.
fn read_behind_damage(bug: PlantedBug) -> Result<([u8; 3], u64, u32), String> {
    let mut bench = bench();
    bench.config.bug = bug;
    bench.life(|engine, _| async move {
        put(&engine, 0, WHOLE, 1).await; // segment 0
        put(&engine, 0, WHOLE, 2).await; // segment 1
        put(&engine, 100, WHOLE, 3).await; // segment 2
        put(&engine, 200, WHOLE, 4).await; // segment 3
        stop_clean(&engine).await;
    })?;
    let mut medium = bench.cache.view();
    medium.zero(bench.geometry.segment_offset(SegmentNo(1)).0, SEGMENT_BYTES);
    bench.sim.lose_memory();
    bench.cache.restore(medium);
    let device = bench.cache.clone();
    bench.life(move |engine, env| async move {
        env.sleep(SECOND).await;
        let cached = engine.status().cached_bytes / 4096;
        let read = [get(&engine, 0).await, get(&engine, 100).await, get(&engine, 200).await];
        // What is given up makes room like everything else: the ring is filled twice.
        let before = device.counters().write_bytes;
        for round in 0..80 {
            put(&engine, 300 + round % 20 * WHOLE as u64, WHOLE, round as u8).await;
        }
        assert!(device.counters().write_bytes - before >= 80 * SEGMENT_BYTES);
        (read, cached, engine.status().unread_segments)
    })
}

/// [block written, written anew, both written back; the segment of the second is damaged; what comes back into the index is
/// the first]
#[test]
fn nothing_behind_damage_comes_back() {
    let read = read_behind_damage(PlantedBug::None);
    assert_eq!(read, Ok(([2, 3, 4], 2 * WHOLE as u64, 0)), "segments 3 and 2 came back, 1 and 0 did not");
    let read = read_behind_damage(PlantedBug::ReadBackPastDamage);
    assert_eq!(read.map(|read| read.0), Ok([1, 3, 4]), "this is what the rule is for");
}

/// What [`what_ranges_hide_does_not_come_back`] reads, and how much of it from the backing device.
fn read_behind_ranges(bug: PlantedBug) -> Result<(Vec<u8>, u64), String> {
    let mut bench = bench();
    bench.config.bug = bug;
    bench.life(|engine, _| async move {
        let volume = engine.volume();
        put(&engine, 0, 10, 1).await;
        volume.write_zeroes(0, 5 * 4096, false).await.expect("zeroes");
        put(&engine, 2, 1, 2).await; // in the same segment, all of it
        put(&engine, 50, WHOLE, 3).await;
        volume.write_zeroes(6 * 4096, 4096, false).await.expect("zeroes");
        put(&engine, 100, WHOLE, 4).await;
        put(&engine, 200, WHOLE, 5).await;
        stop_clean(&engine).await;
    })?;
    bench.life(|engine, env| async move {
        env.sleep(SECOND).await;
        assert_eq!(engine.status().unread_segments, 0);
        let before = misses(&engine);
        let mut read = Vec::new();
        for block in 0..10 {
            read.push(get(&engine, block).await);
        }
        (read, misses(&engine) - before)
    })
}

/// Ranges keep older payload from coming back, in the same segment and in others; younger payload comes back.
#[test]
fn what_ranges_hide_does_not_come_back() {
    // The backing device has the five zeroes.
    assert_eq!(read_behind_ranges(PlantedBug::None), Ok((vec![0, 0, 2, 0, 0, 1, 0, 1, 1, 1], 5)));
    let all = read_behind_ranges(PlantedBug::ReadBackHidden);
    assert_eq!(all, Ok((vec![1, 1, 2, 1, 1, 1, 1, 1, 1, 1], 0)), "this is what the rule is for");
}

/// A writer does not wait for what is read in the background, and is not stopped by it.
#[test]
fn writers_take_the_room_of_what_is_unread() {
    let bench = bench();
    bench
        .life(|engine, _| async move {
            for round in 0..30 {
                put(&engine, round * WHOLE as u64, WHOLE, 1).await;
            }
            stop_clean(&engine).await;
        })
        .expect("starts");
    let cache = bench.cache.clone();
    let lived = bench.life(move |engine, env| async move {
        // A read takes longer than all that is written into the free segments.
        let latency = Latency { read_ns: SECOND..2 * SECOND, ..Latency::default() };
        cache.set_plan(FaultPlan { latency, ..FaultPlan::default() });
        let began_ns = env.now_ns();
        for round in 0..30 {
            put(&engine, round * WHOLE as u64, WHOLE, 2).await;
        }
        let (took_ns, unread) = (env.now_ns() - began_ns, engine.status().unread_segments);
        cache.set_plan(FaultPlan::default());
        engine.drain().await.expect("drains");
        assert_eq!((get(&engine, 0).await, get(&engine, 29 * WHOLE as u64).await), (2, 2));
        (took_ns / SECOND, unread)
    });
    let (seconds, unread) = lived.expect("starts");
    // A reclaim of what was read back takes two reads per segment.
    assert!(seconds < 120 && unread == 0, "{seconds} s, {unread} segments unread");
    let image = bench.backing.view().image(4 << 20);
    assert!((0..30 * WHOLE).all(|block| image[block * 4096] == 2));
}

/// A stop does not wait for it either, and the next start goes on from the same place.
#[test]
fn a_stop_while_it_is_read_back_loses_nothing() {
    let bench = bench();
    bench
        .life(|engine, _| async move {
            for round in 0..30 {
                put(&engine, round * WHOLE as u64, WHOLE, round as u8 + 1).await;
            }
            stop_clean(&engine).await;
        })
        .expect("starts");
    let cache = bench.cache.clone();
    let stopped = bench.life(move |engine, env| async move {
        let latency = Latency { read_ns: 100 * SECOND..101 * SECOND, ..Latency::default() };
        cache.set_plan(FaultPlan { latency, ..FaultPlan::default() });
        put(&engine, 500, 1, 99).await;
        engine.stop().await.expect("stops");
        cache.set_plan(FaultPlan::default());
        env.now_ns()
    });
    assert!(stopped.expect("starts") < 50 * SECOND, "it did not wait for a read");
    let warm = bench.life(|engine, env| async move {
        env.sleep(SECOND).await;
        for round in 0..30 {
            assert_eq!(get(&engine, round * WHOLE as u64).await, round as u8 + 1);
        }
        assert_eq!(get(&engine, 500).await, 99);
        engine.status().unread_segments
    });
    assert_eq!(warm, Ok(0));
}

/// An anchor that names another segment for the dirty tail costs a second walk, and nothing else.
#[test]
fn a_wrong_segment_of_the_dirty_tail_costs_another_walk() {
    let bench = bench();
    bench
        .life(|engine, _| async move {
            for round in 0..6 {
                put(&engine, round * WHOLE as u64, WHOLE, round as u8 + 1).await;
            }
            engine.drain().await.expect("drains");
            put(&engine, 500, 1, 99).await;
            engine.stop().await.expect("stops");
        })
        .expect("starts");
    let disk = bench.cache.open(&bench.sim.env());
    let lie = async move {
        let meta = meta::load(&disk).await.expect("loads");
        let mut anchor = meta.anchor.clone();
        let right = anchor.dirty_segment.expect("known");
        assert_ne!(right.segment, anchor.log_tail_segment);
        anchor.dirty_segment = Some(SegmentStart { segment: SegmentNo(2), ..right });
        anchor.generation += 1;
        meta::write_anchor_both(&disk, &meta.superblock, &anchor).await.expect("writes");
    };
    bench.sim.run(lie).expect("writes");
    let (disk, verify) = (bench.cache.open_read_only(&bench.sim.env()), CheckOptions { verify_data: true });
    let said = async move { check::examine(&disk, verify, &mut |_| {}).await.expect("readable").report().findings };
    let said = bench.sim.run(said).expect("looks");
    assert!(said.len() == 1 && said[0].what.contains("segment 2 does not begin with the record 6"), "{said:?}");
    let read = bench.life(|engine, _| async move {
        assert_eq!((engine.status().unread_segments, engine.status().dirty_bytes), (0, 4096));
        (get(&engine, 0).await, get(&engine, 5 * WHOLE as u64).await, get(&engine, 500).await)
    });
    assert_eq!(read, Ok((1, 6, 99)));
}

/// [more ranges than the map takes: what is read back ends within a segment, which is freed with entries in the index; it is
/// used again, and they seem newer than what is in it]
#[test]
fn a_segment_read_in_part_is_reclaimed_like_any_other() {
    let mut bench = bench();
    bench.config.range_pieces = 64;
    bench
        .life(|engine, _| async move {
            for round in 0..4 {
                put(&engine, 500, 4, 3).await;
                for piece in 0..5 {
                    engine.volume().write_zeroes((round * 40 + piece * 4) * 4096, 4096, false).await.expect("zeroes");
                }
                put(&engine, 600 + 20 * round, WHOLE - 3, 5).await;
                engine.drain().await.expect("drains");
            }
            for round in 0..8 {
                put(&engine, 300 + round * WHOLE as u64, WHOLE, 9).await;
            }
            stop_clean(&engine).await;
        })
        .expect("starts");
    bench.config.range_pieces = 8;
    let lived = bench.life(|engine, env| async move {
        env.sleep(SECOND).await;
        let unread = engine.status().unread_segments;
        // Round the ring, twice.
        for round in 0..80u64 {
            put(&engine, 300 + round % 8 * WHOLE as u64, WHOLE, round as u8).await;
        }
        for round in 0..4 {
            for block in 0..WHOLE as u64 - 3 {
                assert_eq!(get(&engine, 600 + 20 * round + block).await, 5, "block {block} of round {round}");
            }
        }
        unread
    });
    assert!(lived.expect("starts") > 0, "it ended early");
}
