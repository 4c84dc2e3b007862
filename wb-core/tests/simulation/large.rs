//! Cache devices beyond 2 and 4 TiB: real writes there, recovery, the offline checker, write-back [L11: a segment offset
//! computed in 32 bits overwrote the superblock].

use crate::engine::{open, small_settings};
use wb_core::check::{self, CheckOptions, Verdict};
use wb_core::format::Geometry;
use wb_core::meta::{self, FormatOptions};
use wb_core::service::BlockService;
use wb_core::sim::{DeviceConfig, FaultPlan, Medium, Sim, SimDevice};
use wb_core::types::*;

const TIB: u64 = 1 << 40;
/// Blocks that are written: the rest of the segment before the boundary, and as much behind it. Few, because each touches
/// another page of an index made for all of the device.
const BLOCKS: u64 = 300;

fn fill(block: u64) -> [u8; 4096] {
    let mut bytes = [block as u8; 4096];
    bytes[..8].copy_from_slice(&block.to_le_bytes());
    bytes
}

/// A life on both devices, which ends by a power cut that takes everything not flushed.
fn life(sim: &Sim, devices: &[SimDevice; 2], first: bool) {
    let env = sim.group("life");
    let (cache, backing) = (devices[0].open(&env), devices[1].open(&env));
    let inner = env.clone();
    let started = sim.start(&env, async move {
        let mut config = small_settings();
        config.window_bytes = 2 << 20;
        let engine = open(&inner, cache, backing, config).await.expect("starts");
        let volume = engine.volume();
        if first {
            for block in 0..BLOCKS {
                volume.write(block * 4096, 4096, &fill(block)[..], false).await.expect("writes");
            }
            volume.flush().await.expect("flushes");
            return;
        }
        for block in 0..BLOCKS {
            assert_eq!(&volume.read(block * 4096, 4096).await.expect("reads")[..], fill(block), "block {block}");
        }
        engine.drain().await.expect("drains");
        engine.stop().await.expect("stops");
    });
    sim.run_until(|| started.is_done()).unwrap_or_else(|failure| panic!("{failure}"));
    sim.kill(&env);
    sim.lose_memory();
    devices.iter().for_each(SimDevice::power_cut);
}

fn look(sim: &Sim, cache: &SimDevice) -> check::Report {
    let disk = cache.open_read_only(&sim.env());
    let looking = async move { check::examine(&disk, CheckOptions { verify_data: true }, &mut |_| {}).await };
    sim.run(looking).expect("looks").expect("a cache").report()
}

/// A log that begins in the segment before `boundary`.
fn log_across(boundary: u64, segment_bytes: u64) {
    let sim = Sim::new(1);
    let cache_bytes = boundary + (64 << 20);
    let device = |name: &str, bytes| {
        SimDevice::new(&sim, DeviceConfig::new(name, bytes), Medium::default(), FaultPlan::default())
    };
    let devices = [device("cache", cache_bytes), device("backing", BLOCKS * 4096)];
    let geometry = Geometry::new(cache_bytes, segment_bytes).expect("a geometry");
    let first = (0..geometry.segments).rev().map(SegmentNo).find(|at| geometry.segment_offset(*at).0 < boundary);
    let first = first.expect("a segment before the boundary");
    let disk = devices[0].open(&sim.env());
    let prepare = async move {
        let options = FormatOptions {
            segment_bytes,
            label: String::new(),
            uuid: uuid::Uuid::from_u128(11),
            secret: 11,
            now_unix_ns: 0,
        };
        meta::format(&disk, options).await.expect("formats");
        // As after a log that has come that far around the ring.
        let meta = meta::load(&disk).await.expect("loads");
        let mut anchor = meta.anchor.clone();
        anchor.log_tail_segment = first;
        anchor.generation += 1;
        meta::write_anchor_both(&disk, &meta.superblock, &anchor).await.expect("writes");
    };
    sim.run(prepare).expect("formats");
    let ring = geometry.segment_offset(SegmentNo(0)).0 as usize;
    life(&sim, &devices, true);
    let beyond = geometry.segment_offset(SegmentNo(first.0 + 1)).0;
    assert!(beyond >= boundary && devices[0].peek(beyond, 4096) != [0; 4096], "records beyond the boundary");
    assert_eq!(
        devices[0].peek(ring as u64, segment_bytes as usize),
        vec![0; segment_bytes as usize],
        "none at the start"
    );
    let report = look(&sim, &devices[0]);
    assert_eq!((report.verdict(), report.dirty_blocks), (Verdict::Clean, BLOCKS), "{:?}", report.findings);
    life(&sim, &devices, false);
    let report = look(&sim, &devices[0]);
    assert_eq!((report.verdict(), report.dirty_blocks), (Verdict::Clean, 0), "{:?}", report.findings);
    for block in 0..BLOCKS {
        assert_eq!(devices[1].peek(block * 4096, 4096), fill(block));
    }
}

#[test]
fn l11_the_log_goes_on_beyond_2_tib() {
    log_across(2 * TIB, 512 << 10);
}

#[test]
fn l11_the_log_goes_on_beyond_4_tib() {
    log_across(4 * TIB, 1 << 20);
}
