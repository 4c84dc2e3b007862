//! The scenarios by which a plausible design loses data, and the lessons L1 to L13, built step by step on the engine.

use crate::engine::{open, open_accepting, small_settings};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wb_core::check::{self, CheckOptions, RepairOptions};
use wb_core::engine::{Engine, EngineConfig};
use wb_core::env::{Env, PlantedBug};
use wb_core::format::Geometry;
use wb_core::io::IoError;
use wb_core::meta::{self, FormatOptions};
use wb_core::service::{BlockService, ServiceError};
use wb_core::sim::{
    BreakAt, Counters, DeviceConfig, FaultPlan, Latency, Medium, NthFault, OpKind, Sim, SimDevice, SimEnv, Stop,
};
use wb_core::types::*;

pub(super) const SEGMENT_BYTES: u64 = 64 << 10;
pub(super) const SEGMENTS: u64 = 12;
const CACHE_BYTES: u64 = (SEGMENTS + 1) * SEGMENT_BYTES + (64 << 10);
/// Payload blocks of a record that fills a segment.
pub(super) const WHOLE: usize = 14;

/// Two devices and the engine on them.
pub(super) struct Bench {
    pub sim: Sim,
    pub cache: SimDevice,
    pub backing: SimDevice,
    pub config: EngineConfig,
    pub geometry: Geometry,
    /// Of the starts that follow.
    pub accept_loss: bool,
}

impl Bench {
    pub fn new(backing_bytes: u64) -> Bench {
        Bench::with_seed(1, backing_bytes)
    }

    pub fn with_seed(seed: u64, backing_bytes: u64) -> Bench {
        Bench::sized(seed, CACHE_BYTES, backing_bytes)
    }

    /// With a cache device of another size.
    pub fn sized(seed: u64, cache_bytes: u64, backing_bytes: u64) -> Bench {
        let sim = Sim::new(seed);
        let device = |name: &str, bytes| {
            SimDevice::new(&sim, DeviceConfig::new(name, bytes), Medium::default(), FaultPlan::default())
        };
        let (cache, backing) = (device("cache", cache_bytes), device("backing", backing_bytes));
        let disk = cache.open(&sim.env());
        let options = FormatOptions {
            segment_bytes: SEGMENT_BYTES,
            label: String::new(),
            uuid: uuid::Uuid::from_u128(5),
            secret: 9,
            now_unix_ns: 0,
        };
        sim.run(async move { meta::format(&disk, options).await.expect("formats") }).expect("formats");
        let geometry = Geometry::new(cache_bytes, SEGMENT_BYTES).expect("a geometry");
        Bench { sim, cache, backing, config: small_settings(), geometry, accept_loss: false }
    }

    /// The machine starts anew with this on the cache device.
    fn restore(&self, medium: Medium) {
        self.sim.lose_memory();
        self.cache.restore(medium);
    }

    /// A start, `work`, and SIGKILL. The error is that of the start.
    pub fn life<T: 'static, F: Future<Output = T>>(
        &self,
        work: impl FnOnce(Engine<SimEnv>, SimEnv) -> F + 'static,
    ) -> Result<T, String> {
        let env = self.sim.group("life");
        let (cache, backing) = (self.cache.open(&env), self.backing.open(&env));
        let (inner, config, accept_loss) = (env.clone(), self.config.clone(), self.accept_loss);
        let task = async move {
            let engine = open_accepting(&inner, cache, backing, config, accept_loss).await?;
            let kept = engine.clone();
            let result = work(engine, inner).await;
            drop(kept);
            Ok(result)
        };
        let started = self.sim.start(&env, task);
        self.sim.run_until(|| started.is_done()).unwrap_or_else(|failure| panic!("{failure}"));
        self.sim.keep_memory();
        self.sim.kill(&env);
        self.sim.run_for(100_000_000).expect("what is in flight ends");
        started.take().expect("it is done")
    }

    /// Power fails; every write that was not durable is there, save those in `lost`.
    pub fn power_cut_losing(&self, lost: &[SegmentNo]) {
        let mut medium = self.cache.view();
        for segment in lost {
            medium.zero(self.geometry.segment_offset(*segment).0, SEGMENT_BYTES);
        }
        self.restore(medium);
        let backing = self.backing.view();
        self.backing.restore(backing);
    }
}

pub(super) async fn put(engine: &Engine<SimEnv>, block: u64, blocks: usize, fill: u8) {
    let bytes = vec![fill; blocks * 4096];
    engine.volume().write(block * 4096, bytes.len(), &bytes[..], false).await.expect("writes");
}

/// The first byte of a block.
pub(super) async fn get(engine: &Engine<SimEnv>, block: u64) -> u8 {
    engine.volume().read(block * 4096, 4096).await.expect("reads")[0]
}

/// The epoch: a record that was dropped never comes back, also where no predecessor is known: at the log tail.
///
/// Behind a predecessor the chain of CRCs covers for the epoch: the record that takes number 10 has another header than
/// the lost one, which stale 11 names. But of the record at the log tail nothing is known save number and epoch.
fn lost_record_stale_successor(bug: PlantedBug) -> Result<(u8, u8), String> {
    let mut bench = Bench::new(4 << 20);
    bench.config.bug = bug;
    bench.life(|engine, env| async move {
        put(&engine, 0, WHOLE, 1).await; // record 1 fills segment 0
        put(&engine, 20, WHOLE, 2).await; // record 2 fills segment 1
        env.sleep(5_000_000).await; // both reach the device, and nobody flushes
    })?;
    bench.power_cut_losing(&[SegmentNo(0)]);
    // Record 2 is dropped. Another record 1 takes the place of the lost one; then the log is emptied, and goes on with
    // record 2, in segment 1.
    bench.life(|engine, _| async move {
        put(&engine, 100, 1, 3).await;
        engine.volume().flush().await.expect("flushes");
        engine.drain().await.expect("drains");
        engine.detach().await.expect("detaches");
    })?;
    bench.power_cut_losing(&[]);
    bench.life(|engine, _| async move { (get(&engine, 20).await, get(&engine, 100).await) })
}

#[test]
fn lost_record_10_stale_11_second_crash() {
    assert_eq!(lost_record_stale_successor(PlantedBug::None), Ok((0, 3)));
    let with_bug = lost_record_stale_successor(PlantedBug::SkipEpochBump);
    assert_ne!(with_bug, Ok((0, 3)), "without a new epoch the dropped record counts again");
}

#[test]
fn l3_dropped_records_stay_dropped() {
    let bench = Bench::new(4 << 20);
    let written = bench.life(|engine, env| async move {
        // No more than there are record buffers: else the RAM tail asks for a flush.
        for record in 0..3 {
            put(&engine, record * 20, WHOLE, record as u8 + 1).await;
        }
        env.sleep(5_000_000).await;
    });
    written.expect("starts");
    bench.power_cut_losing(&[SegmentNo(1)]);
    let seen = bench.life(|engine, _| async move {
        put(&engine, 40, 1, 77).await; // what record 3 had written
        engine.volume().flush().await.expect("flushes");
        get(&engine, 0).await
    });
    assert_eq!(seen, Ok(1), "what was written before the lost record is there");
    bench.power_cut_losing(&[]);
    let read = |block| bench.life(move |engine, _| async move { get(&engine, block).await }).expect("starts");
    assert_eq!([0, 20, 40, 41].map(read), [1, 0, 77, 0]);
}

#[test]
fn l1_the_next_overwrite_in_a_wrapped_ring_tears() {
    let bench = Bench::new(4 << 20);
    let free = bench.life(|engine, _| async move {
        // Twice around the ring, written back on the way, then everything flushed.
        for round in 0..30u64 {
            put(&engine, round % 8 * 20, WHOLE, round as u8 + 1).await;
        }
        engine.volume().flush().await.expect("flushes");
        let status = engine.status();
        assert!(status.log_tail > Seq(10), "the ring has wrapped: {status:?}");
    });
    free.expect("starts");
    let before = bench.cache.view();
    let device = bench.cache.clone();
    let overwrite = bench.life(move |engine, env| async move {
        let written = device.counters().write_bytes;
        put(&engine, 0, WHOLE, 99).await;
        // Killed as soon as the record is on its way, before any write-back makes it durable.
        while device.counters().write_bytes == written {
            env.sleep(1_000).await;
        }
    });
    overwrite.expect("starts");
    let after = bench.cache.view();
    // Where that record lies, the old header survived over the new payload; and the other way round.
    for new_header in [false, true] {
        let mut torn = after.clone();
        for segment in (0..SEGMENTS as u32).map(SegmentNo) {
            for block in 0..WHOLE as u32 + 1 {
                let offset = bench.geometry.block_offset(segment, block).0;
                let from = if (block == 0) == new_header { &after } else { &before };
                let mut bytes = vec![0; 4096];
                from.read(offset, &mut bytes);
                torn.write(offset, &bytes);
            }
        }
        bench.restore(torn);
        let read = |block| bench.life(move |engine, _| async move { get(&engine, block).await }).expect("starts");
        assert_eq!([20, 40, 60, 80, 100, 120, 140].map(read), [26, 27, 28, 29, 30, 23, 24]);
        assert!([25, 99].contains(&read(0)), "flushed, or the write that was under way");
    }
}

#[test]
fn l2_a_tail_pointer_beyond_what_is_there_is_no_panic() {
    let bench = Bench::new(4 << 20);
    let work = bench.life(|engine, _| async move {
        put(&engine, 0, WHOLE, 1).await;
        engine.volume().flush().await.expect("flushes");
        engine.stop().await.expect("stops");
    });
    work.expect("starts");
    for (log_tail, dirty_tail) in [(2, 2), (50, 50), (1, 1 << 40), (1 << 40, 1 << 41)] {
        let medium = bench.cache.view();
        let disk = bench.cache.open(&bench.sim.env());
        let lie = async move {
            let meta = meta::load(&disk).await.expect("loads");
            let mut anchor = meta.anchor.clone();
            (anchor.log_tail, anchor.dirty_tail) = (Seq(log_tail), Seq(dirty_tail));
            anchor.generation += 1;
            meta::write_anchor_both(&disk, &meta.superblock, &anchor).await.expect("writes");
        };
        bench.sim.run(lie).expect("writes");
        let started = bench.life(|engine, _| async move { get(&engine, 0).await });
        if let Ok(byte) = started {
            // The record is there; only a tail behind everything makes the log seem empty.
            assert!(byte == 1 || log_tail > 1, "tails {log_tail} and {dirty_tail}: {byte}");
        }
        bench.restore(medium);
    }
}

/// [a window writes probe blocks back and is broken off; their record is lost at rest and bridged by a repair: the start takes
/// the disk for another one]
#[test]
fn a_repair_that_loses_records_does_not_refuse_the_disk() {
    let bench = Bench::new(16 * 4096); // every block is a probe block
    bench
        .life(|engine, env| async move {
            put(&engine, 0, WHOLE, 1).await; // record 1 fills segment 0
            put(&engine, 14, 1, 2).await;
            engine.volume().flush().await.expect("flushes");
            env.sleep(50_000_000).await; // an anchor tells it
        })
        .expect("starts");
    // The window: written back, and the anchor does not say so yet.
    bench.backing.poke(0, &[1; 4 * 4096]);
    bench.power_cut_losing(&[SegmentNo(0)]);
    let refused = bench.life(|_, _| async {}).expect_err("a durable record is lost");
    assert!(refused.contains("wb-check --repair"), "{refused}");
    let disk = bench.cache.open(&bench.sim.env());
    let verify = CheckOptions { verify_data: true };
    let mend = async move {
        let found = check::examine(&disk, verify, &mut |_| {}).await.expect("readable");
        let options = RepairOptions { check: verify, now_unix_ns: 1, boot_id: [0; 16] };
        check::repair(&disk, &found, options, &mut Vec::new(), &mut |_| {}).await.expect("repairs").lost_records
    };
    assert_eq!(bench.sim.run(mend).expect("repairs"), [Seq(1)]);
    let read = bench.life(|engine, _| async move { (get(&engine, 0).await, get(&engine, 14).await) });
    assert_eq!(read, Ok((1, 2)), "what the window wrote, and what is left of the log");
}

/// [a record and the summary of its segment are written in one piece and torn, only the summary is left: a start that goes on
/// in the same epoch has other records there, and the summary may be taken for theirs]
#[test]
fn a_summary_without_its_records_voids_the_clean_mark() {
    for segment in [0, 1, 5] {
        let bench = Bench::new(4 << 20);
        bench
            .life(move |engine, env| async move {
                for record in 0..=segment {
                    put(&engine, u64::from(record) * 20, WHOLE, 1).await;
                    if record == 3 {
                        engine.volume().flush().await.expect("flushes"); // there are four record buffers
                    }
                }
                env.sleep(5_000_000).await;
            })
            .expect("starts");
        let mut medium = bench.cache.view();
        for behind in 0..=segment {
            let summary = if behind == segment { 4096 } else { 0 };
            medium.zero(bench.geometry.segment_offset(SegmentNo(behind)).0, SEGMENT_BYTES - summary);
        }
        // The anchors of before: what was flushed is not the matter here.
        let fresh = Bench::new(4 << 20).cache.view();
        let mut bytes = [0; 4096];
        for offset in [0, 1].map(|slot| bench.geometry.anchor_offset(slot).0) {
            fresh.read(offset, &mut bytes);
            medium.write(offset, &bytes);
        }
        bench.restore(medium);
        let found = bench.life(|engine, _| async move { (engine.status().recovery.clean, engine.status().epoch) });
        assert_eq!(found, Ok((false, Epoch(2))), "the summary of segment {segment}");
    }
}

/// [the segment with which the log begins cannot be written: its records are moved, and the anchor's log tail stays in a bad
/// segment with nothing in it; an anchor that then names the next segment for the dirty tail is refused by the next start]
#[test]
fn a_log_that_begins_in_a_bad_segment_goes_on() {
    let bench = Bench::new(4 << 20);
    let start = bench.geometry.segment_offset(SegmentNo(0)).0;
    let unwritable = std::iter::once(start..start + SEGMENT_BYTES).collect();
    bench.cache.set_plan(FaultPlan { unwritable, ..FaultPlan::default() });
    let flushed = bench.life(|engine, _| async move {
        put(&engine, 0, 2, 7).await;
        engine.volume().flush().await.is_ok()
    });
    assert_eq!(flushed, Ok(false));
    let moved = bench.life(|engine, _| async move {
        put(&engine, 50, 1, 8).await;
        engine.drain().await.expect("drains");
        put(&engine, 60, 1, 9).await;
        engine.stop().await.expect("stops");
    });
    assert_eq!(moved, Ok(()));
    let read = |block| bench.life(move |engine, _| async move { get(&engine, block).await }).expect("starts");
    assert_eq!([0, 50, 60].map(read), [7, 8, 9]);
}

fn writes(before: Counters, after: Counters) -> (u64, u64) {
    (after.writes - before.writes, after.write_bytes - before.write_bytes)
}

#[test]
fn l8_a_write_of_4_kib_with_a_flush_costs_8_kib() {
    let bench = Bench::new(4 << 20);
    let device = bench.cache.clone();
    let cost = bench.life(move |engine, _| async move {
        let before = device.counters();
        for block in 0..6 {
            put(&engine, block, 1, 1).await;
            engine.volume().flush().await.expect("flushes");
        }
        writes(before, device.counters())
    });
    assert_eq!(cost, Ok((6, 6 * 8192)));
}

#[test]
fn l9_a_block_in_ram_is_read_without_any_device() {
    let bench = Bench::new(4 << 20);
    let (cache, backing) = (bench.cache.clone(), bench.backing.clone());
    let reads = bench.life(move |engine, _| async move {
        let before = (cache.counters().reads, backing.counters().reads);
        put(&engine, 3, 1, 8).await;
        assert_eq!(get(&engine, 3).await, 8);
        (cache.counters().reads - before.0, backing.counters().reads - before.1)
    });
    assert_eq!(reads, Ok((0, 0)));
}

#[test]
fn l13_an_idle_device_with_periodic_flushes_writes_nothing() {
    let bench = Bench::new(4 << 20);
    let device = bench.cache.clone();
    let cost = bench.life(move |engine, env| async move {
        put(&engine, 0, 1, 1).await;
        engine.volume().flush().await.expect("flushes");
        env.sleep(1_000_000_000).await;
        let before = device.counters();
        for _ in 0..100 {
            engine.volume().flush().await.expect("flushes");
            env.sleep(1_000_000_000).await;
        }
        (writes(before, device.counters()), device.counters().flushes - before.flushes)
    });
    assert_eq!(cost, Ok(((0, 0), 0)));
}

/// A segment is closed while a window's group commit goes on: its summary and its last record are on their way when the
/// window looks for its records. What is beyond D is left for later, and not taken from slots that do not have it yet.
#[test]
fn a_segment_closed_while_a_window_begins_is_taken_up_to_d() {
    let mut bench = Bench::new(4 << 20);
    bench.config.verify_reads = false; // a checksum would notice
    bench.config.policy.start_percent = 1;
    bench.config.policy.stop_percent = 0;
    let plan = |write_ns, flush_ns| FaultPlan {
        latency: Latency { write_ns: write_ns..write_ns + 1, flush_ns: flush_ns..flush_ns + 1, ..Latency::default() },
        ..FaultPlan::default()
    };
    let cache = bench.cache.clone();
    let work = move |engine: Engine<SimEnv>, env: SimEnv| async move {
        cache.set_plan(plan(5_000_000, 100_000));
        put(&engine, 0, 5, 1).await; // opens a segment: enough for a window to begin
        env.sleep(1_000_000).await; // its group commit waits for record 1
        cache.set_plan(plan(100_000_000, 100_000));
        put(&engine, 100, 8, 2).await; // record 2 fills the segment
        env.sleep(20_000_000).await; // the window ends, and record 2 is still on its way
        let early = engine.status().dirty_bytes / 4096;
        cache.set_plan(FaultPlan::default());
        engine.drain().await.expect("drains");
        early
    };
    let early = bench.life(work).expect("starts");
    assert_eq!(early, 8, "record 1 has been written back, record 2 has not");
    let image = bench.backing.view().image(4 << 20);
    let at = |block: usize| image[block * 4096];
    assert_eq!((0..5).map(at).collect::<Vec<_>>(), [1; 5]);
    assert_eq!((100..108).map(at).collect::<Vec<_>>(), [2; 8]);
}

/// The first attach is cut off between the two copies of the volume table: the next start completes the pair, so that
/// either may be lost afterwards.
#[test]
fn a_first_attach_cut_off_anywhere_leaves_no_single_volume_table() {
    let mut uneven = 0;
    for cut in 0.. {
        let bench = Bench::new(4 << 20);
        let env = bench.sim.group("first attach");
        let (cache, backing) = (bench.cache.open(&env), bench.backing.open(&env));
        let (inner, config) = (env.clone(), bench.config.clone());
        let started = bench.sim.start(&env, async move { open(&inner, cache, backing, config).await.map(|_| ()) });
        let (_, events, _) = bench.sim.progress();
        bench.sim.set_break(Some(BreakAt::DeviceEvent(events + cut)));
        let stop = bench.sim.run_until(|| started.is_done()).expect("attaches");
        bench.sim.set_break(None);
        bench.sim.kill(&env);
        bench.cache.power_cut();
        bench.backing.power_cut();
        bench.sim.lose_memory();
        let disk = bench.cache.open(&bench.sim.env());
        let uneven_now = bench.sim.run(async move { meta::load(&disk).await.expect("loads").volumes_uneven });
        uneven += u64::from(uneven_now.expect("loads"));
        bench
            .life(|engine, _| async move {
                put(&engine, 3, 1, 8).await;
                engine.volume().flush().await.expect("flushes");
            })
            .expect("starts");
        bench.power_cut_losing(&[]);
        let whole = bench.cache.view();
        for copy in 0..2 {
            let mut damaged = whole.clone();
            damaged.zero(bench.geometry.volumes_offset(copy).0, 4096);
            bench.restore(damaged);
            let read = bench.life(|engine, _| async move { get(&engine, 3).await });
            assert_eq!(read, Ok(8), "cut at event {cut}, then copy {copy} is lost");
        }
        if stop == Stop::Done {
            break;
        }
    }
    assert!(uneven > 0, "no cut hit between the two copies");
}

fn fails_for_ever(op: OpKind) -> FaultPlan {
    let fault = NthFault { op, nth: 1, forever: true, error: IoError::Medium };
    FaultPlan { nth: vec![fault], ..FaultPlan::default() }
}

/// Counts warnings and errors.
#[derive(Clone, Default)]
struct LogLines(Arc<AtomicU64>);

impl tracing::Subscriber for LogLines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= tracing::Level::INFO
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// What is logged, from info on, while `work` runs.
fn log_lines(work: impl FnOnce()) -> u64 {
    let lines = LogLines::default();
    tracing::subscriber::with_default(lines.clone(), work);
    lines.0.load(Ordering::Relaxed)
}

#[test]
fn l6_a_failing_cache_device_gives_eio_and_no_spin() {
    let lines = log_lines(failing_cache_device);
    assert!((1..20).contains(&lines), "{lines} log lines for 200 failing writes and a minute of waiting");
}

fn failing_cache_device() {
    let bench = Bench::new(4 << 20);
    let device = bench.cache.clone();
    let attempts = bench.life(move |engine, env| async move {
        put(&engine, 0, 1, 1).await;
        engine.volume().flush().await.expect("flushes");
        device.set_plan(fails_for_ever(OpKind::Write));
        let before = device.counters();
        let volume = engine.volume();
        for round in 0..200u64 {
            let written = volume.write(4096 * (round % 8), 4096, &[2; 4096][..], true).await;
            assert_eq!(written, Err(ServiceError::Io), "round {round}");
        }
        env.sleep(60_000_000_000).await;
        let tries = device.counters().writes - before.writes;
        assert!(engine.status().failure.is_some(), "status says why");
        assert!(volume.read(4096 * 100, 4096).await.is_ok(), "reads go on");
        tries
    });
    let attempts = attempts.expect("starts");
    assert!(attempts < 100, "{attempts} writes to a device that fails");
}

#[test]
fn l7_a_failing_disk_keeps_its_blocks_dirty_and_is_retried_slowly() {
    let lines = log_lines(failing_disk);
    assert!((1..20).contains(&lines), "{lines} log lines in two minutes of tries");
}

fn failing_disk() {
    let bench = Bench::new(4 << 20);
    let device = bench.backing.clone();
    let done = bench.life(move |engine, env| async move {
        for round in 0..4 {
            put(&engine, round * 20, WHOLE, 5).await;
        }
        device.set_plan(fails_for_ever(OpKind::Write));
        let before = device.counters();
        let draining = engine.clone();
        env.spawn(async move {
            let _ = draining.drain().await;
        });
        env.sleep(120_000_000_000).await;
        let (status, tries) = (engine.status(), device.counters().writes - before.writes);
        assert!(status.writeback_error.is_some(), "status says why");
        assert_eq!(status.dirty_bytes, 4 * WHOLE as u64 * 4096, "everything is still dirty");
        assert!(tries < 5000, "{tries} writes in two minutes");
        device.set_plan(FaultPlan::default());
        engine.drain().await.expect("drains now");
        assert_eq!(engine.status().dirty_bytes, 0);
    });
    done.expect("starts");
    assert_eq!(bench.backing.stable().image(1 << 20)[60 * 4096], 5);
}

#[test]
fn blkdiscard_of_16_tib() {
    let bench = Bench::new(16 << 40);
    let device = bench.cache.clone();
    let (cost, pieces) = bench
        .life(move |engine, _| async move {
            put(&engine, 7, 1, 1).await;
            put(&engine, (16 << 28) - 1, 1, 2).await;
            engine.volume().flush().await.expect("flushes");
            let before = device.counters();
            engine.volume().discard(0, 16 << 40, false).await.expect("discards");
            put(&engine, 9, 1, 3).await;
            engine.volume().flush().await.expect("flushes");
            let cost = writes(before, device.counters());
            assert_eq!((get(&engine, 9).await, get(&engine, 7).await), (3, 0));
            (cost, engine.status().range_pieces)
        })
        .expect("starts");
    assert!(cost.1 <= 3 * 8192 && pieces <= 3, "{cost:?}, {pieces} pieces");
    let after = bench.life(|engine, _| async move {
        let found = (get(&engine, 9).await, get(&engine, (16 << 28) - 1).await);
        engine.drain().await.expect("drains");
        found
    });
    assert_eq!(after, Ok((3, 0)));
}

#[test]
fn blocks_beyond_2_4_and_almost_16_tib_are_written_and_written_back() {
    let bench = Bench::new(16 << 40);
    let blocks = [0, (2 << 28) - 1, 2 << 28, (4 << 28) + 5, (16 << 28) - 1];
    let work = bench.life(move |engine, _| async move {
        for (number, block) in blocks.into_iter().enumerate() {
            put(&engine, block, 1, number as u8 + 1).await;
        }
        engine.volume().flush().await.expect("flushes");
    });
    work.expect("starts");
    bench.power_cut_losing(&[]);
    let work = bench.life(move |engine, _| async move {
        for (number, block) in blocks.into_iter().enumerate() {
            assert_eq!(get(&engine, block).await, number as u8 + 1);
        }
        engine.drain().await.expect("drains");
    });
    work.expect("starts");
    for (number, block) in blocks.into_iter().enumerate() {
        assert_eq!(bench.backing.peek(block * 4096, 1), [number as u8 + 1]);
    }
}
