//! The rows of the table. The parameters of the devices are those of `wb_core::model::params`, fixed before anything here
//! was tuned; the settings of the engine are its defaults unless a row says otherwise.

use crate::world::*;
use std::rc::Rc;
use wb_core::engine::{EngineConfig, Quiet, WritebackPolicy};
use wb_core::env::Env;
use wb_core::io::{Buf, Disk};
use wb_core::model::{DeviceParams, DiskParams, params};
use wb_core::service::BlockService;

/// Of the loads, and of the bare disk beside them.
pub const DEPTH: u64 = 32;

/// Runs until the dirty tail has moved.
fn next_window(world: &World) {
    let tail = world.engine().status().dirty_tail;
    while world.engine().status().dirty_tail == tail {
        world.run_s(0.1);
    }
}

/// Lets a load of writes fill the cache and go on for some time; then blocks per second over as long again.
fn sustained(world: &World, tally: &Rc<Tally>, warm_s: f64) -> f64 {
    let rate = |from_s: f64| {
        let (from_ns, from) = (world.now_ns(), tally.blocks.get());
        world.run_s(from_s);
        next_window(world);
        (tally.blocks.get() - from) as f64 * SECOND as f64 / (world.now_ns() - from_ns) as f64
    };
    rate(warm_s);
    rate(warm_s)
}

/// The bare disk under the same load, in its steady state.
fn bare(scale: Scale, place: Place, blocks: u64) -> f64 {
    let world = World::bare(scale);
    let tally = write_loop(&world, place, blocks, DEPTH, u64::MAX);
    world.run_s(60.0);
    let from = tally.blocks.get();
    world.run_s(120.0);
    (tally.blocks.get() - from) as f64 / 120.0
}

fn describe(world: &World, config: &EngineConfig) {
    let status = world.engine().status();
    let (disk, ssd) = (world.disk.activity(), world.ssd.activity());
    println!(
        "    {:.0} s, {} MiB written by the user, {} MiB to the SSD, {} MiB to the disk in {} writes and {} flushes; {} MiB \
         dirty; RAM of write-back {} MiB",
        world.now_ns() as f64 / SECOND as f64,
        status.counters.user_write_bytes / MIB,
        ssd.write_bytes / MIB,
        disk.write_bytes / MIB,
        disk.writes,
        disk.flushes,
        status.dirty_bytes / MIB,
        (config.writeback_bytes as u64 + 2 * config.window_bytes as u64) / MIB,
    );
}

/// Rows 1 to 3: a sustained load ÷ the bare disk.
pub fn ratio(name: &str, scale: Scale, load: fn(u64) -> Place, blocks: u64, warm_s: f64) -> f64 {
    let config = EngineConfig::default();
    let world = World::cached(scale, config.clone());
    let tally = write_loop(&world, load(scale.blocks()), blocks, DEPTH, u64::MAX);
    let got = sustained(&world, &tally, warm_s);
    let raw = bare(scale, load(scale.blocks()), blocks);
    println!("{name}: {got:.0} blocks/s, bare disk {raw:.0}: {:.2}", got / raw);
    describe(&world, &config);
    got / raw
}

/// Blocks per second while so many are written.
fn over(world: &World, tally: &Rc<Tally>, blocks: u64) -> f64 {
    let (from_ns, from) = (world.now_ns(), tally.blocks.get());
    while tally.blocks.get() - from < blocks {
        world.run_s(0.5);
    }
    (tally.blocks.get() - from) as f64 * SECOND as f64 / (world.now_ns() - from_ns) as f64
}

/// Row 3: a stream in a full cache ÷ the same on the bare disk, each once over the whole disk: its outer tracks take twice
/// what the inner ones do.
pub fn stream_ratio(scale: Scale) -> f64 {
    const REQUEST_BLOCKS: u64 = 64;
    let config = EngineConfig::default();
    let world = World::cached(scale, config.clone());
    let tally = write_loop(&world, sequential(scale.blocks(), REQUEST_BLOCKS), REQUEST_BLOCKS, DEPTH, u64::MAX);
    over(&world, &tally, 2 * scale.cache_bytes() / BLOCK);
    next_window(&world);
    let got = over(&world, &tally, scale.blocks());
    let disk = World::bare(scale);
    let tally = write_loop(&disk, sequential(scale.blocks(), REQUEST_BLOCKS), REQUEST_BLOCKS, DEPTH, u64::MAX);
    over(&disk, &tally, scale.blocks() / 16);
    let raw = over(&disk, &tally, scale.blocks());
    let mib = |blocks: f64| blocks * BLOCK as f64 / MIB as f64;
    println!("3 sequential 256 KiB: {:.0} MiB/s, bare disk {:.0}: {:.3}", mib(got), mib(raw), got / raw);
    describe(&world, &config);
    got / raw
}

/// Row 4: 4 KiB in random order within zones of 64 MiB (in proportion on a smaller disk); the share of write-back in large
/// writes.
pub fn share_of_large_writes(scale: Scale) -> f64 {
    let config = EngineConfig::default();
    let world = World::cached(scale, config.clone());
    let zone = scale.disk_bytes / 1024 / BLOCK;
    let tally = write_loop(&world, zones(scale.blocks(), zone, 7), 1, DEPTH, 2 * scale.cache_bytes() / BLOCK);
    while tally.running.get() > 0 {
        world.run_s(1.0);
    }
    let (all, large) = world.disk.written_bytes();
    println!(
        "4 zones of {} MiB: {} of {} MiB in writes of 64 KiB or more: {:.3}",
        zone * BLOCK / MIB,
        large / MIB,
        all / MIB,
        large as f64 / all as f64
    );
    describe(&world, &config);
    large as f64 / all as f64
}

/// Row 5: cache full, open load at 1.2 times the mean rate of the 60 s before: the largest gap, in ms.
pub fn largest_gap(scale: Scale, warm_s: f64, measured_s: f64) -> f64 {
    let config = EngineConfig::default();
    let world = World::cached(scale, config.clone());
    let fill = write_loop(&world, uniform(scale.blocks(), 7), 1, DEPTH, u64::MAX);
    let rate = sustained(&world, &fill, warm_s);
    fill.stop.set(true);
    let open = write_openly(&world, uniform(scale.blocks(), 8), 1.2 * rate, 4096);
    world.run_s(2.0);
    open.gap_ns.set(0);
    open.latencies_ns.borrow_mut().clear();
    let done = open.writes.get();
    world.run_s(measured_s);
    let gap_ms = open.gap_ns.get().max(world.now_ns() - open.last_ns.get()) as f64 / 1e6;
    let latencies = open.latencies_ns.borrow();
    println!(
        "5 open load of {:.0}/s, 1.2 times {rate:.0}: largest gap {gap_ms:.1} ms; {:.0}/s completed; latency p50 {:.1} ms, p99 {:.1} ms",
        1.2 * rate,
        (open.writes.get() - done) as f64 / measured_s,
        percentile(&latencies, 50.0) as f64 / 1e6,
        percentile(&latencies, 99.0) as f64 / 1e6
    );
    describe(&world, &config);
    gap_ms
}

/// Fills the cache with so many random dirty blocks; nothing is written back meanwhile.
fn with_dirty(scale: Scale, bytes: u64) -> (World, Vec<u64>) {
    let policy = WritebackPolicy {
        start_percent: 100,
        stop_percent: 100,
        idle_after_ns: None,
        ..EngineConfig::default().policy
    };
    let config = EngineConfig { policy, ..EngineConfig::default() };
    let world = World::cached(scale, config);
    let mut place = uniform(scale.blocks(), 9);
    let blocks: std::collections::BTreeSet<u64> =
        std::iter::repeat_with(&mut place).take((bytes / BLOCK) as usize).collect();
    let tally = write_loop(&world, uniform(scale.blocks(), 9), 1, DEPTH, bytes / BLOCK);
    while tally.running.get() > 0 {
        world.run_s(0.1);
    }
    (world, blocks.into_iter().collect())
}

/// Row 7: a drain ÷ a program that writes the same blocks sorted and merged with a deep queue and flushes once.
pub fn drain_ratio(scale: Scale, dirty_bytes: u64) -> f64 {
    let (world, blocks) = with_dirty(scale, dirty_bytes);
    let from_ns = world.now_ns();
    let engine = world.engine().clone();
    world.sim.run(async move { engine.drain().await.expect("drained") }).expect("runs");
    let drained_ns = world.now_ns() - from_ns;
    let plain = World::bare(scale);
    let from_ns = plain.now_ns();
    copy_sorted(&plain, &blocks);
    let copied_ns = plain.now_ns() - from_ns;
    let ratio = drained_ns as f64 / copied_ns as f64;
    println!(
        "7 drain of {} MiB: {:.1} s, sorted copy {:.1} s: {ratio:.3}",
        blocks.len() as u64 * BLOCK / MIB,
        drained_ns as f64 / 1e9,
        copied_ns as f64 / 1e9
    );
    ratio
}

/// The program of row 7: sorted blocks, neighbours merged up to 1 MiB, 32 at once, one FLUSH.
fn copy_sorted(world: &World, blocks: &[u64]) {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some((start, len)) if *start + *len == *block && *len < MIB / BLOCK => *len += 1,
            _ => runs.push((*block, 1)),
        }
    }
    let disk = world.disk.clone();
    world
        .sim
        .run(async move {
            use futures_util::StreamExt;
            let write = |(start, len): (u64, u64)| {
                let disk = disk.clone();
                async move {
                    let data = vec![Buf::unpooled((len * BLOCK) as usize).freeze()];
                    disk.write(start * BLOCK, data, false).await.expect("written");
                }
            };
            let mut writes = futures_util::stream::iter(runs).map(write).buffer_unordered(DEPTH as usize);
            while writes.next().await.is_some() {}
            disk.flush().await.expect("flushed");
        })
        .expect("runs");
}

/// Row 6: p99 of read misses beside gentle write-back ÷ without. Write-back has more to do than it gets done meanwhile.
pub fn read_latency_ratio(scale: Scale, measured_s: f64) -> f64 {
    let held =
        WritebackPolicy { start_percent: 85, stop_percent: 80, idle_after_ns: None, ..EngineConfig::default().policy };
    let world = World::cached(scale, EngineConfig { policy: held, ..EngineConfig::default() });
    // Even blocks are written, odd ones are read: every read is a miss.
    let mut even = uniform(scale.blocks() / 2, 9);
    let tally = write_loop(&world, Box::new(move || 2 * even()), 1, DEPTH, scale.cache_bytes() / BLOCK * 3 / 4);
    while tally.running.get() > 0 {
        world.run_s(0.1);
    }
    let mut odd = uniform(scale.blocks() / 2, 10);
    let reads = read_loop(&world, Box::new(move || 2 * odd() + 1), 1, 5_000_000);
    let p99 = |warm_s: f64| {
        world.run_s(warm_s);
        reads.latencies_ns.borrow_mut().clear();
        world.run_s(measured_s);
        percentile(&reads.latencies_ns.borrow(), 99.0) as f64 / 1e6
    };
    let alone = p99(10.0);
    let (before, writes) = (world.now_ns(), world.disk.activity().writes);
    world.engine().set_policy(WritebackPolicy { idle_after_ns: Some(0), ..held });
    let beside = p99(60.0);
    let rate = (world.disk.activity().writes - writes) as f64 * SECOND as f64 / (world.now_ns() - before) as f64;
    println!(
        "6 p99 of read misses: {alone:.1} ms without write-back, {beside:.1} ms beside {rate:.0} writes/s of it ({:?}): {:.2}",
        world.engine().status().why,
        beside / alone
    );
    assert!(world.engine().status().window.is_some(), "write-back is at work to the end");
    beside / alone
}

/// Row 8: error of the expected time left at a quarter and at half of a drain, the larger one.
pub fn eta_error(scale: Scale, dirty_bytes: u64) -> f64 {
    let (world, _) = with_dirty(scale, dirty_bytes);
    let engine = world.engine().clone();
    let ended = Rc::new(std::cell::Cell::new(0));
    let (end, env) = (ended.clone(), world.env.clone());
    world.env.spawn(async move {
        engine.drain().await.expect("drained");
        end.set(env.now_ns());
    });
    let mut said = Vec::new();
    for share in [4, 2] {
        let status = loop {
            world.run_s(0.05);
            let status = world.engine().status();
            if status.window.is_some_and(|(total, done)| total > 0 && done * share >= total) {
                break status;
            }
        };
        said.push((world.now_ns(), status.writeback_left_ns.expect("known by now")));
    }
    while ended.get() == 0 {
        world.run_s(0.1);
    }
    let errors: Vec<f64> =
        said.iter().map(|(now, left)| (*left as f64 / (ended.get() - now) as f64 - 1.0).abs()).collect();
    println!(
        "8 time left of a drain of {} MiB: wrong by {:.1} % at 25 %, by {:.1} % at 50 %",
        dirty_bytes / MIB,
        errors[0] * 100.0,
        errors[1] * 100.0
    );
    errors[0].max(errors[1])
}

/// Row 9: starts of the motor in 24 hours of 1 MiB of writes per minute, under the quiet policy.
pub fn spin_ups(scale: Scale, quiet: Quiet) -> u64 {
    let DeviceParams::Disk(disk) = params::by_name("hdd").expect("known") else { panic!("a disk") };
    let disk = DeviceParams::Disk(DiskParams { standby_after_ns: Some(600 * SECOND), ..disk });
    let policy = WritebackPolicy { quiet: Some(quiet), ..EngineConfig::default().policy };
    let world = World::cached_with(scale, EngineConfig { policy, ..EngineConfig::default() }, disk);
    let (volume, env) = (world.engine().volume(), world.env.clone());
    let mut place = uniform(scale.blocks(), 11);
    world.env.spawn(async move {
        loop {
            for _ in 0..MIB / BLOCK {
                volume
                    .write(place() * BLOCK, BLOCK as usize, &vec![7; BLOCK as usize][..], false)
                    .await
                    .expect("written");
            }
            volume.flush().await.expect("flushed");
            env.sleep(60 * SECOND).await;
        }
    });
    world.run_s(24.0 * 3600.0);
    let starts = world.disk.activity().spin_ups;
    println!("9 quiet policy {quiet:?}: the motor started {starts} times in 24 h");
    describe(&world, &EngineConfig::default());
    assert!(world.disk.activity().writes > 0, "something was written back");
    starts
}
