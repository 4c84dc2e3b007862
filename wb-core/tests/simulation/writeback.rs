//! Write-back where something cannot be written back, where nothing presses, and where a disk shall sleep: what is left
//! over holds up nothing else, and costs nothing while nothing can be done about it.

use crate::scenarios::{Bench, WHOLE, get, put};
use wb_core::engine::{Engine, Quiet, WritebackPolicy};
use wb_core::env::Env;
use wb_core::io::IoError;
use wb_core::service::{BlockService, ServiceError};
use wb_core::sim::{FaultPlan, Latency, NthFault, OpKind, SimEnv};
use wb_core::types::*;

const SECOND: u64 = 1_000_000_000;

fn change(engine: &Engine<SimEnv>, to: impl FnOnce(&mut WritebackPolicy)) {
    let mut policy = engine.status().policy;
    to(&mut policy);
    engine.set_policy(policy);
}

/// Blocks on the backing device: a place in the middle of block 100 cannot be written.
fn bad_block_100() -> FaultPlan {
    let place = 100 * BLOCK_BYTES_U64 + 512..100 * BLOCK_BYTES_U64 + 1024;
    FaultPlan { unwritable: std::iter::once(place).collect(), ..FaultPlan::default() }
}

/// [one bad sector below a write of zeroes: the same window for ever, and the ring fills]
#[test]
fn a_bad_sector_below_zeroes_holds_up_nothing_else() {
    let bench = Bench::new(4 << 20);
    let device = bench.backing.clone();
    let done = bench.life(move |engine, env| async move {
        for block in (64..320).step_by(16) {
            put(&engine, block, 16, 7).await;
        }
        engine.drain().await.expect("drains");
        device.set_plan(bad_block_100());
        engine.volume().write_zeroes(64 * 4096, 256 * 4096, false).await.expect("zeroes");
        put(&engine, 70, 1, 9).await;
        // Three times what the ring holds.
        for round in 0..40 {
            put(&engine, 400 + round * WHOLE as u64, WHOLE, round as u8 + 1).await;
        }
        engine.drain().await.expect("drains");
        let status = engine.status();
        assert_eq!((status.refused_blocks, status.dirty_bytes), (1, 0), "all but one block of zeroes");
        assert_eq!((get(&engine, 99).await, get(&engine, 100).await, get(&engine, 70).await), (0, 0, 9));
        let byte = |block: u64| device.peek(block * 4096 + 600, 1)[0];
        assert_eq!((byte(64), byte(70), byte(99), byte(100), byte(101), byte(319)), (0, 9, 0, 7, 0, 0));
        assert_eq!(byte(400 + 39 * WHOLE as u64), 40);
        // It goes when it can.
        device.set_plan(FaultPlan::default());
        env.sleep(61 * SECOND).await;
        engine.drain().await.expect("drains");
        assert_eq!((engine.status().refused_blocks, byte(100)), (0, 0));
    });
    done.expect("starts");
}

/// The same, over a restart in between: what is refused is in the log.
#[test]
fn refused_zeroes_outlive_the_process() {
    let bench = Bench::new(4 << 20);
    let device = bench.backing.clone();
    let first = bench.life(move |engine, _| async move {
        put(&engine, 96, 8, 7).await;
        engine.drain().await.expect("drains");
        device.set_plan(bad_block_100());
        engine.volume().write_zeroes(96 * 4096, 8 * 4096, false).await.expect("zeroes");
        engine.drain().await.expect("drains");
        let status = engine.status();
        assert_eq!(status.refused_blocks, 1, "{status:?}");
    });
    first.expect("starts");
    bench.power_cut_losing(&[]);
    bench.backing.set_plan(FaultPlan::default());
    let device = bench.backing.clone();
    let second = bench.life(move |engine, _| async move {
        assert_eq!(get(&engine, 100).await, 0);
        engine.drain().await.expect("drains");
        assert_eq!(device.peek(100 * 4096 + 600, 1), [0]);
    });
    second.expect("starts");
}

/// [one poisoned block, and nobody asks anything: the log goes round and round at the speed of the devices]
#[test]
fn a_lost_block_is_no_reason_to_write() {
    let bench = Bench::new(4 << 20);
    let (cache, backing, geometry) = (bench.cache.clone(), bench.backing.clone(), bench.geometry);
    let done = bench.life(move |engine, env| async move {
        put(&engine, 100, 1, 5).await;
        engine.volume().flush().await.expect("flushes");
        let slot = geometry.block_offset(SegmentNo(0), 1).0;
        cache.make_unreadable(slot..slot + 512);
        engine.drain().await.expect("drains");
        assert_eq!(engine.volume().read(100 * 4096, 4096).await.err(), Some(ServiceError::Io), "it is lost");
        for quiet in [None, Some(Quiet { percent: 90, age_ns: Some(10 * SECOND), window: None })] {
            change(&engine, |policy| (policy.idle_after_ns, policy.quiet) = (Some(0), quiet));
            env.sleep(SECOND).await;
            let before = (cache.counters(), backing.counters());
            env.sleep(120 * SECOND).await;
            let writes = cache.counters().writes - before.0.writes;
            let flushes = backing.counters().flushes - before.1.flushes;
            assert!(writes < 20 && flushes < 5, "{writes} writes and {flushes} flushes for nothing, {quiet:?}");
        }
        // What can be written still is.
        put(&engine, 200, 1, 6).await;
        env.sleep(12 * SECOND).await;
        assert_eq!((engine.status().dirty_bytes, backing.peek(200 * 4096, 1)[0]), (0, 6));
        // Overwritten, it is a block like any other.
        put(&engine, 100, 1, 8).await;
        engine.drain().await.expect("drains");
        assert_eq!((get(&engine, 100).await, backing.peek(100 * 4096, 1)[0]), (8, 8));
    });
    done.expect("starts");
}

/// Refused blocks that nothing is said of any more: the pause of those that are still refused holds.
#[test]
fn a_refused_block_that_was_discarded_is_forgotten() {
    let bench = Bench::new(4 << 20);
    let (cache, device) = (bench.cache.clone(), bench.backing.clone());
    let done = bench.life(move |engine, env| async move {
        let place = |block: u64| block * BLOCK_BYTES_U64..block * BLOCK_BYTES_U64 + 512;
        device.set_plan(FaultPlan { unwritable: vec![place(100), place(300)], ..FaultPlan::default() });
        put(&engine, 100, 1, 1).await;
        put(&engine, 300, 1, 2).await;
        engine.drain().await.expect("drains");
        assert_eq!(engine.status().refused_blocks, 2);
        engine.volume().discard(100 * 4096, 4096, false).await.expect("discards");
        change(&engine, |policy| policy.idle_after_ns = Some(0));
        env.sleep(240 * SECOND).await;
        assert_eq!(engine.status().refused_blocks, 1);
        let before = cache.counters();
        env.sleep(240 * SECOND).await;
        // A try a minute: a record, a commit, two anchors.
        let writes = cache.counters().writes - before.writes;
        assert!((1..60).contains(&writes), "{writes} writes in four minutes");
        assert_eq!(get(&engine, 300).await, 2);
    });
    done.expect("starts");
}

/// A sweep that began while nobody asked anything does not go at full depth when somebody does.
#[test]
fn write_back_stays_gentle_when_the_user_comes_back() {
    let bench = Bench::new(4 << 20);
    let device = bench.backing.clone();
    let done = bench.life(move |engine, env| async move {
        // Every second block: nothing can be merged.
        for block in 0..84 {
            put(&engine, 2 * block, 1, 3).await;
        }
        let slow = Latency { write_ns: 10_000_000..10_000_001, ..Latency::default() };
        device.set_plan(FaultPlan { latency: slow, ..FaultPlan::default() });
        change(&engine, |policy| policy.idle_after_ns = Some(SECOND));
        let before = device.counters().writes;
        while device.counters().writes == before {
            env.sleep(1_000_000).await;
        }
        let begun_ns = env.now_ns();
        while env.now_ns() - begun_ns < 45_000_000 {
            get(&engine, 900).await;
            env.sleep(1_000_000).await;
        }
        // Writes of 10 ms, four in flight; 32 would be through with the zone by now.
        let writes = device.counters().writes - before;
        assert!((4..=24).contains(&writes), "{writes} writes in 45 ms");
    });
    done.expect("starts");
}

/// [a trickle into one segment: once its first write is old, each later one would be written back at once]
#[test]
fn the_age_of_data_is_not_that_of_its_segment() {
    let mut bench = Bench::new(4 << 20);
    let quiet = Quiet { percent: 90, age_ns: Some(180 * SECOND), window: None };
    bench.config.policy = WritebackPolicy { quiet: Some(quiet), ..bench.config.policy };
    let device = bench.backing.clone();
    let done = bench.life(move |engine, env| async move {
        let (mut bursts, mut before) = (0, device.counters().writes);
        for minute in 0..50 {
            put(&engine, minute * 3, 1, 1).await;
            engine.volume().flush().await.expect("flushes");
            env.sleep(60 * SECOND).await;
            let now = device.counters().writes;
            bursts += u64::from(now > before);
            before = now;
        }
        assert!((5..=17).contains(&bursts), "{bursts} bursts in 50 minutes at an age of three");
    });
    done.expect("starts");
}

/// [the ring is full, the backing device fails, writers wait for room, and the stop for them]
#[test]
fn a_stop_does_not_wait_for_a_backing_device_that_fails() {
    let bench = Bench::new(4 << 20);
    let device = bench.backing.clone();
    let done = bench.life(move |engine, env| async move {
        let fault = NthFault { op: OpKind::Write, nth: 1, forever: true, error: IoError::Medium };
        device.set_plan(FaultPlan { nth: vec![fault], ..FaultPlan::default() });
        let writer = engine.clone();
        let before = engine.status().counters.user_writes;
        env.spawn(async move {
            for block in 0..1000 {
                let bytes = [1; 4096];
                if writer.volume().write(block * 4096, 4096, &bytes[..], false).await.is_err() {
                    return;
                }
            }
            panic!("a full ring takes no more");
        });
        env.sleep(30 * SECOND).await;
        let written = engine.status().counters.user_writes;
        env.sleep(SECOND).await;
        assert_eq!(engine.status().counters.user_writes, written, "the writer waits");
        assert!((100..300).contains(&(written - before)), "for room");
        let begun_ns = env.now_ns();
        engine.stop().await.expect("a clean stop, with dirty data");
        assert!(env.now_ns() - begun_ns < 11 * SECOND, "a pause of write-back at most");
    });
    done.expect("starts");
}

/// [a probe block is discarded, and reads differently at the next start: refused for good]
#[test]
fn a_discarded_probe_block_says_nothing() {
    let bench = Bench::new(4 << 20);
    let first = bench.life(|engine, _| async move {
        put(&engine, 5, 1, 1).await;
        engine.drain().await.expect("drains");
        engine.volume().discard(0, 4 << 20, false).await.expect("discards");
        engine.drain().await.expect("drains");
    });
    first.expect("starts");
    bench.power_cut_losing(&[]);
    for block in 0..1024 {
        bench.backing.poke(block * 4096, &[block as u8; 4096]);
    }
    let second = bench.life(|engine, _| async move {
        put(&engine, 6, 1, 2).await;
        get(&engine, 6).await
    });
    assert_eq!(second, Ok(2));
}

/// Blocks of the window that begins when so many segments are dirty.
fn window_with_dirty(segments: u64) -> u64 {
    let bench = Bench::new(4 << 20);
    let blocks = bench.life(move |engine, env| async move {
        for round in 0..segments {
            put(&engine, round * WHOLE as u64, WHOLE, 1).await;
        }
        change(&engine, |policy| (policy.start_percent, policy.stop_percent) = (1, 0));
        loop {
            if let Some((blocks, _)) = engine.status().window {
                return blocks;
            }
            env.sleep(100_000).await;
        }
    });
    blocks.expect("starts")
}

/// [the write-back batch shrinks to one segment as the cache fills]
#[test]
fn l12_a_window_grows_as_the_cache_fills() {
    let windows = [1, 2, 4, 8].map(window_with_dirty);
    assert!(windows.is_sorted_by(|less, more| less < more) && windows[3] > 4 * windows[0], "{windows:?}");
}
