//! Places of the cache device that cannot be written: the daemon that meets one fails writes until it is restarted, and
//! the start moves what the RAM tail holds to other segments. Nothing acknowledged is missing after that.

use crate::engine::open;
use crate::scenarios::{Bench, SEGMENT_BYTES, SEGMENTS};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use wb_core::check::{CheckOptions, Verdict, examine};
use wb_core::engine::Engine;
use wb_core::env::Env;
use wb_core::meta;
use wb_core::service::BlockService;
use wb_core::sim::{FaultPlan, SimEnv, SimRng};
use wb_core::types::*;

const BLOCKS: u64 = 96;

/// What each block may hold: of a write that was not answered, old or new.
type Model = Arc<Mutex<BTreeMap<u64, Vec<u8>>>>;

async fn write(engine: &Engine<SimEnv>, model: &Model, blocks: Range<u64>, fill: u8) -> bool {
    let bytes = vec![fill; ((blocks.end - blocks.start) * 4096) as usize];
    for block in blocks.clone() {
        model.lock().expect("not poisoned").entry(block).or_insert_with(|| vec![0]).push(fill);
    }
    let done = engine.volume().write(blocks.start * 4096, bytes.len(), &bytes[..], false).await.is_ok();
    if done {
        for block in blocks {
            model.lock().expect("not poisoned").insert(block, vec![fill]);
        }
    }
    done
}

/// Reads everything; what was read counts from then on.
async fn compare(engine: &Engine<SimEnv>, model: &Model) {
    for block in 0..BLOCKS {
        let bytes = engine.volume().read(block * 4096, 4096).await.expect("reads");
        let allowed = model.lock().expect("not poisoned").get(&block).cloned().unwrap_or_else(|| vec![0]);
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "block {block} is torn");
        assert!(allowed.contains(&bytes[0]), "block {block}: {} is none of {allowed:?}", bytes[0]);
        model.lock().expect("not poisoned").insert(block, vec![bytes[0]]);
    }
}

fn is_clean(bench: &Bench) -> (bool, String) {
    let disk = bench.cache.open(&bench.sim.env());
    let look = async move { examine(&disk, CheckOptions { verify_data: true }, &mut |_| {}).await };
    let report = bench.sim.run(look).expect("runs").expect("examines").report();
    (report.verdict() == Verdict::Clean, format!("{:?}", report.findings))
}

fn bad_segments(bench: &Bench) -> Vec<SegmentNo> {
    let disk = bench.cache.open(&bench.sim.env());
    let bad = bench.sim.run(async move { meta::load(&disk).await.expect("loads").bad_segments }).expect("runs");
    (0..SEGMENTS as u32).map(SegmentNo).filter(|segment| bad.is_bad(*segment)).collect()
}

#[test]
fn a_place_that_cannot_be_written_does_not_take_what_was_acknowledged() {
    // A header, the payload behind it, a segment's first header, the end of a segment; two in a row.
    let segment = |number: u64| (number + 1) * SEGMENT_BYTES;
    let places: [(Range<u64>, Option<Range<u64>>); 5] = [
        (segment(2) + 4096..segment(2) + 4608, None),
        (segment(1) + 5 * 4096..segment(1) + 6 * 4096, None),
        (segment(2)..segment(2) + 512, None),
        (segment(1) + 13 * 4096..segment(2), None),
        (segment(1)..segment(2), Some(segment(2) + 3 * 4096..segment(2) + 4 * 4096)),
    ];
    for (first, second) in places {
        let places: Vec<Range<u64>> = [first].into_iter().chain(second).collect();
        let bench = Bench::new(4 << 20);
        let start = bench.geometry.segment_offset(SegmentNo(0)).0;
        let shift = |place: &Range<u64>| start + place.start - SEGMENT_BYTES..start + place.end - SEGMENT_BYTES;
        let unwritable: Vec<_> = places.iter().map(shift).collect();
        bench.cache.set_plan(FaultPlan { unwritable, ..FaultPlan::default() });
        let model = Model::default();
        let (own, device) = (model.clone(), bench.cache.clone());
        let answered = bench.life(move |engine, env| async move {
            let mut answered = 0;
            for number in 0..20 {
                answered += u64::from(write(&engine, &own, number * 4..number * 4 + 4, number as u8 + 1).await);
                env.sleep(3_000_000).await;
            }
            assert!(engine.status().failure.is_some(), "{} errors were met", device.counters().errors);
            answered
        });
        assert!(answered.expect("starts") > 2);
        for _ in 0..2 {
            let own = model.clone();
            let read = bench.life(move |engine, _| async move {
                compare(&engine, &own).await;
                assert!(write(&engine, &own, 90..92, 200).await, "writes go on elsewhere");
                engine.volume().flush().await.expect("flushes");
            });
            read.unwrap_or_else(|error| panic!("{places:?}: {error}"));
        }
        assert_eq!(bad_segments(&bench).len(), places.len(), "{places:?}");
        let (clean, findings) = is_clean(&bench);
        assert!(clean, "{places:?}: {findings}");
        bench.power_cut_losing(&[]);
        let own = model.clone();
        let read = bench.life(move |engine, _| async move {
            compare(&engine, &own).await;
            engine.drain().await.expect("drains");
        });
        read.unwrap_or_else(|error| panic!("{places:?}, power cut: {error}"));
    }
}

#[test]
fn a_tail_without_a_place_is_refused_until_its_loss_is_accepted() {
    let mut bench = Bench::new(4 << 20);
    // Dirty data fills the log as far as writers may, and stays there: what is free then is the reserve alone.
    bench.config.policy.start_percent = 100;
    bench.config.policy.stop_percent = 100;
    bench.config.compact_percent = 0;
    let model = Model::default();
    let (own, device, geometry) = (model.clone(), bench.cache.clone(), bench.geometry);
    let durable = bench.life(move |engine, env| async move {
        for number in 0..4 {
            assert!(write(&engine, &own, number * 14..number * 14 + 14, number as u8 + 1).await, "there is room");
            engine.volume().flush().await.expect("flushes");
        }
        env.sleep(50_000_000).await; // both anchors know
        // From here on no segment takes anything. What is answered is in memory only.
        let all = geometry.segment_offset(SegmentNo(0)).0..geometry.segment_offset(SegmentNo(SEGMENTS as u32 - 1)).0;
        device.set_plan(FaultPlan {
            unwritable: std::iter::once(all.start..all.end + SEGMENT_BYTES).collect(),
            ..FaultPlan::default()
        });
        let durable = own.lock().expect("not poisoned").clone();
        for number in 0..3 {
            assert!(
                write(&engine, &own, number * 14..number * 14 + 14, 100 + number as u8).await,
                "answered from memory"
            );
        }
        durable
    });
    let durable = durable.expect("starts");
    // Refused, again and again: nothing is lost by that.
    for _ in 0..2 {
        let error = bench.life(|_, _| async {}).expect_err("no place for the tail");
        assert!(error.contains("no other segment") && error.contains("--accept-loss"), "{error}");
    }
    // The device works again. Its bad segments stay bad; the tail is still there.
    let free = SEGMENTS as usize - 4;
    assert_eq!(bad_segments(&bench).len(), free, "each was tried");
    bench.accept_loss = true;
    let own = Arc::new(Mutex::new(durable));
    let lost = bench.life(move |engine, _| async move {
        compare(&engine, &own).await;
        engine.status().recovery.accepted_loss
    });
    let lost = lost.expect("starts").expect("a loss");
    assert_eq!(lost.to_string(), "records 5 to 7, acknowledged and not flushed, are lost, as accepted");
    // It was the loss of that tail, not of any that follows.
    bench.accept_loss = false;
    bench.cache.set_plan(FaultPlan::default());
    let none = bench.life(|engine, _| async move {
        engine.drain().await.expect("drains");
        engine.status().recovery.accepted_loss
    });
    assert_eq!(none, Ok(None));
    let (clean, findings) = is_clean(&bench);
    assert!(clean, "{findings}");
}

/// A life that is killed after some time, wherever it is.
fn short_life(bench: &Bench, model: &Model, rng: &mut SimRng) -> Result<(), String> {
    let env = bench.sim.group("short");
    let (cache, backing) = (bench.cache.open(&env), bench.backing.open(&env));
    let (inner, config, own, seed) = (env.clone(), bench.config.clone(), model.clone(), rng.next_u64());
    let started = bench.sim.start(&env, async move {
        let engine = open(&inner, cache, backing, config).await?;
        let mut rng = SimRng::new(seed);
        compare(&engine, &own).await;
        loop {
            let first = rng.below(BLOCKS - 14);
            let blocks = first..first + rng.range(1, 14);
            if !write(&engine, &own, blocks, rng.range(1, 255) as u8).await || rng.below(6) == 0 {
                let _ = engine.volume().flush().await;
                inner.sleep(rng.below(20_000_000)).await;
            }
        }
    });
    let short = rng.below(3) > 0;
    bench.sim.run_for(rng.range(1_000, if short { 3_000_000 } else { 150_000_000 })).map_err(|e| e.to_string())?;
    bench.sim.keep_memory();
    bench.sim.kill(&env);
    bench.sim.run_for(100_000_000).map_err(|error| error.to_string())?;
    match started.take() {
        Some(Err(error)) => Err(error),
        Some(Ok(())) | None => Ok(()),
    }
}

fn lives_with_unwritable_places(seed: u64) -> Result<u64, String> {
    let mut rng = SimRng::new(seed);
    let bench = Bench::with_seed(seed, 4 << 20);
    let model = Model::default();
    let places = rng.range(1, 2);
    let unwritable = (0..places)
        .map(|_| {
            let segment = SegmentNo(rng.below(SEGMENTS) as u32);
            let from = bench.geometry.block_offset(segment, rng.below(14) as u32).0 + rng.below(8) * 512;
            from..from + rng.pick(&[512, 4096, 20_000])
        })
        .collect();
    bench.cache.set_plan(FaultPlan { unwritable, ..FaultPlan::default() });
    for life in 0..12 {
        short_life(&bench, &model, &mut rng).map_err(|error| format!("seed {seed}, life {life}: {error}"))?;
    }
    let own = model.clone();
    let last = bench.life(move |engine, _| async move { compare(&engine, &own).await });
    last.map_err(|error| format!("seed {seed}, last life: {error}"))?;
    let (clean, findings) = is_clean(&bench);
    if clean { Ok(bad_segments(&bench).len() as u64) } else { Err(format!("seed {seed}: {findings}")) }
}

#[test]
fn nothing_acknowledged_is_missing_where_places_cannot_be_written() {
    let mut bad = 0;
    for seed in crate::seeds(0..60) {
        bad += lives_with_unwritable_places(seed).unwrap_or_else(|story| panic!("{story}"));
    }
    assert!(bad > 0, "some place was met");
}

/// [records of ranges are short, and their entries are many: moved, they fit one segment and not its summary, and every
/// later start ends at the first write]
#[test]
fn moved_records_of_ranges_do_not_overfill_a_summary() {
    let mut bench = Bench::new(4 << 20);
    bench.config.range_pieces = 4096;
    bench.config.record_buffers = 6;
    // The first two segments cannot be written.
    let start = bench.geometry.segment_offset(SegmentNo(0)).0;
    bench.cache.set_plan(FaultPlan {
        unwritable: std::iter::once(start..start + 2 * SEGMENT_BYTES).collect(),
        ..FaultPlan::default()
    });
    let answered = bench.life(|engine, _| async move {
        let mut answered = 0;
        for block in 0..480u64 {
            // Apart from each other: neighbours would be one piece.
            answered += u64::from(engine.volume().discard(2 * block * 4096, 4096, false).await.is_ok());
        }
        answered
    });
    assert_eq!(answered, Ok(480), "all of it in memory: records of 248, 1 and 231 ranges");
    for fill in [1, 2] {
        let done = bench.life(move |engine, _| async move {
            assert!(write(&engine, &Model::default(), 90..92, fill).await, "writes go on");
            engine.volume().flush().await.expect("flushes");
        });
        done.expect("starts");
    }
    let (clean, findings) = is_clean(&bench);
    assert!(clean, "{findings}");
}
