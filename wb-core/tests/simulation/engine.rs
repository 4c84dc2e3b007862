//! The engine under crashes.

use crate::{run_plain_seeds, run_plans, run_seeds, seeds, seeds_until_found_by};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use wb_core::check::{self, CheckError, CheckOptions, RepairOptions, ReplayOptions, Report, Severity, Verdict};
use wb_core::engine::{Backing, Engine, EngineConfig, OpenOptions, Quiet, VolumeHandle, WritebackPolicy};
use wb_core::env::PlantedBug;
use wb_core::format::Geometry;
use wb_core::meta::{self, FormatOptions};
use wb_core::sim::offline::{Inspection, Recovered, Tool, ToolReport};
use wb_core::sim::scenario::{self, Running, System};
use wb_core::sim::small;
use wb_core::sim::workload::{Hardship, Mix, Plan};
use wb_core::sim::{SimDisk, SimEnv, SimRng};
use wb_core::types::*;

const VERIFY: CheckOptions = CheckOptions { verify_data: true };

/// The engine, whole or with a planted bug.
#[derive(Clone)]
struct WriteCache(PlantedBug);

#[derive(Clone)]
struct Serving(Engine<SimEnv>);

impl Running for Serving {
    type Service = VolumeHandle<SimEnv>;
    fn service(&self) -> VolumeHandle<SimEnv> {
        self.0.volume()
    }
    async fn drain(&self) -> Result<(), String> {
        self.0.drain().await.map_err(|error| error.to_string())
    }
    async fn stop(&self) -> Result<(), String> {
        self.0.stop().await
    }
    async fn detach(&self) -> Result<(), String> {
        self.0.detach().await
    }
    fn out_of_bounds(&self, tasks_max: usize) -> Option<String> {
        self.0.out_of_bounds(tasks_max)
    }
    fn recovered(&self) -> Option<Recovered> {
        let (status, audit) = (self.0.status(), self.0.audit().expect("nothing sweeps yet"));
        Some(Recovered {
            head: status.recovery.scan.head.0,
            clean: status.recovery.clean,
            dirty_blocks: audit.dirty_blocks,
            poisoned_blocks: audit.poisoned_blocks,
        })
    }
}

/// Settings drawn from the seed, small enough that every limit is met.
fn settings(plan: &Plan, bug: PlantedBug) -> EngineConfig {
    let mut rng = SimRng::derive(plan.seed, "settings");
    // Drawn from another stream, so that old seeds keep the rest of their settings.
    let mut window = SimRng::derive(plan.seed, "window");
    let mut policy = SimRng::derive(plan.seed, "policy");
    let start = rng.pick(&[20, 50, 70]);
    // Write-back that finds something to do all the time commits all the time, and hides what this bug breaks.
    let calm = bug == PlantedBug::ForgetUnfinishedSlots;
    EngineConfig {
        // Without checksums silent faults stay silent: that is what they are for.
        verify_reads: rng.below(4) > 0 || plan.hardship.loses_data() || plan.hardship == Hardship::Vanish,
        record_buffers: rng.range(2, 6) as usize,
        read_bytes: 2 << 20,
        window_bytes: rng.pick(&[256 << 10, 1 << 20]),
        writeback_bytes: window.pick(&[1, 64 * 24, 64 << 20]),
        compact_percent: if calm { 0 } else { window.pick(&[0, 50, 50, 90]) },
        policy: WritebackPolicy {
            start_percent: start,
            stop_percent: start - rng.pick(&[0, 10, 20]),
            idle_after_ns: policy.pick(&[None, Some(0), Some(5_000_000_000)]).filter(|_| !calm),
            read_latency_ns: policy.pick(&[None, Some(1_000_000), Some(50_000_000)]),
            quiet: (policy.below(4) == 0 && !calm).then(|| Quiet {
                percent: policy.pick(&[20, 50, 90]),
                age_ns: policy.pick(&[None, Some(1_000_000_000)]),
                window: policy.pick(&[None, Some((0, 720))]),
            }),
        },
        writeback_depth: rng.pick(&[1, 4, 16]),
        range_pieces: rng.pick(&[16, 64, 1024]),
        index_shards: rng.pick(&[1, 2, 4]),
        anchor_delay_ns: rng.pick(&[1_000_000, 10_000_000]),
        bug,
    }
}

/// Settings small enough for tiny devices.
pub fn small_settings() -> EngineConfig {
    EngineConfig {
        record_buffers: 4,
        read_bytes: 2 << 20,
        window_bytes: 256 << 10,
        range_pieces: 64,
        index_shards: 2,
        // Nothing is written back, and so made durable, that a scenario does not ask for.
        policy: WritebackPolicy {
            start_percent: 70,
            stop_percent: 50,
            idle_after_ns: None,
            ..EngineConfig::default().policy
        },
        ..EngineConfig::default()
    }
}

/// Starts the engine.
pub async fn open(
    env: &SimEnv,
    cache: SimDisk,
    backing: SimDisk,
    config: EngineConfig,
) -> Result<Engine<SimEnv>, String> {
    open_accepting(env, cache, backing, config, false).await
}

/// As [`open`]; `accept_loss` as the option of wb-daemon.
pub async fn open_accepting(
    env: &SimEnv,
    cache: SimDisk,
    backing: SimDisk,
    config: EngineConfig,
    accept_loss: bool,
) -> Result<Engine<SimEnv>, String> {
    let options = OpenOptions {
        cache: Arc::new(cache),
        backing: Backing {
            disk: Arc::new(backing),
            path: "backing".into(),
            identity: String::new(),
            name: "volume".into(),
        },
        config,
        boot_id: env.boot_id(),
        tails: Some(env.tails()),
        accept_loss,
        read_only: false,
        force: false,
    };
    Engine::open(env, options).await.map_err(|error| error.to_string())
}

impl System for WriteCache {
    type Running = Serving;

    fn cache_bytes(&self, plan: &Plan) -> u64 {
        // The segments, and the metadata before and behind them.
        (plan.segments + 1) * plan.segment_bytes + (64 << 10)
    }

    fn keeps_prefix(&self) -> bool {
        true
    }

    fn survives_kill(&self) -> bool {
        true
    }

    async fn format(self, cache: SimDisk, plan: Plan) -> Result<(), String> {
        let options = FormatOptions {
            segment_bytes: plan.segment_bytes,
            label: String::new(),
            uuid: uuid::Uuid::from_u128(u128::from(plan.seed) + 1),
            secret: plan.seed as u32,
            now_unix_ns: 0,
        };
        meta::format(&cache, options).await.map(|_| ()).map_err(|error| error.to_string())
    }

    async fn start(self, env: SimEnv, cache: SimDisk, backing: SimDisk, plan: Plan) -> Result<Serving, String> {
        let engine = open(&env, cache, backing, settings(&plan, self.0)).await;
        if crate::setting("WB_TRACE").is_some() {
            eprintln!("{:#?}", engine.as_ref().map(|engine| engine.status().recovery));
        }
        let engine = engine?;
        Ok(Serving(engine))
    }

    async fn inspect(self, cache: SimDisk, _plan: Plan) -> Result<Inspection, String> {
        let found = check::examine(&cache, VERIFY, &mut |_| {}).await;
        let found = match found {
            Ok(found) => found,
            Err(error) => return Ok(Inspection { problem: Some(error.to_string()), ..Inspection::default() }),
        };
        let report = found.report();
        let problem = report.findings.iter().find(|finding| finding.severity >= Severity::Error);
        let unusable = found.rebuilt_anchor.is_some() || found.no_anchor.is_some() || found.volumes.is_none();
        Ok(Inspection {
            problem: problem.map(|finding| format!("{}: {} ({report:?})", finding.place, finding.what)),
            serves: found.log.refusal.is_none()
                && !unusable
                && found.bad_problem.is_none()
                && found.log.stray_count == 0,
            head: found.log.head.0,
            clean: found.log.clean,
            dirty_blocks: report.dirty_blocks,
            poisoned_blocks: report.poisoned_blocks,
        })
    }

    async fn tool(
        self,
        tool: Tool,
        cache: SimDisk,
        backing: SimDisk,
        plan: Plan,
        said: Rc<RefCell<ToolReport>>,
    ) -> Result<(), String> {
        let found = match check::examine(&cache, VERIFY, &mut |_| {}).await {
            Ok(found) => found,
            Err(error) => return refuse(&said, error),
        };
        match tool {
            Tool::Repair => {
                if crate::setting("WB_TRACE").is_some() {
                    eprintln!("{:#?}\n{:#?}\n{:#?}", found.report(), found.log.segments, found.log.gaps);
                }
                // People read what is wrong before they repair it.
                name(&said, &found.report());
                let options = RepairOptions { check: VERIFY, now_unix_ns: 1, boot_id: [0; 16] };
                match check::repair(&cache, &found, options, &mut Vec::new(), &mut |_| {}).await {
                    Ok(report) => name(&said, &report),
                    Err(error) => return refuse(&said, error),
                }
                let again = check::examine(&cache, VERIFY, &mut |_| {}).await.map_err(|error| error.to_string())?;
                match again.report().verdict() {
                    Verdict::Clean => Ok(()),
                    // Two histories that cannot be joined, or entries for a volume that the table never had: it is said
                    // again, and the cache is not served.
                    Verdict::Errors if plan.hardship.is_silent() => {
                        said.borrow_mut().refused = Some(format!("{:?}", again.report().findings));
                        Ok(())
                    }
                    Verdict::Errors
                        if plan.hardship == Hardship::Damage
                            && again.report().findings.iter().any(|left| left.what.contains("cannot be joined")) =>
                    {
                        let mut said = said.borrow_mut();
                        (said.refused, said.unjoinable) = (Some(format!("{:?}", again.report().findings)), true);
                        Ok(())
                    }
                    verdict => Err(format!("after a repair the cache is {verdict:?}: {:?}", again.report().findings)),
                }
            }
            Tool::Replay => {
                let options = ReplayOptions::default();
                let done = check::replay(&cache, &backing, &found, &options, &mut |_| {}).await;
                let done = done.map_err(|error| error.to_string())?;
                if done.is_complete() { Ok(()) } else { Err(format!("{done:?}")) }
            }
        }
    }

    fn damageable(&self, plan: &Plan) -> Vec<Range<u64>> {
        let geometry = Geometry::new(self.cache_bytes(plan), plan.segment_bytes).expect("a geometry");
        let block = |offset: ByteOffset| offset.0..offset.0 + 4096;
        let ring = geometry.segment_offset(SegmentNo(0)).0;
        // The ring five times, so that most damage hits it.
        let mut areas = vec![ring..ring + plan.segments * plan.segment_bytes; 5];
        let copy = (plan.seed & 1) as usize;
        // Not the volume table: where the first attach was cut off, one copy is all there is until it is written again.
        areas.push(block(geometry.superblock_offset(copy)));
        areas.push(block(geometry.anchor_offset(copy)));
        areas.push(block(geometry.bad_segments_offset(copy, 0)));
        areas
    }
}

fn refuse(said: &RefCell<ToolReport>, error: CheckError) -> Result<(), String> {
    match error {
        // Nothing was promised: say so and end.
        CheckError::NoSpace | CheckError::Meta(_) | CheckError::Damaged(_) => {
            said.borrow_mut().refused = Some(error.to_string());
            Ok(())
        }
        other => Err(other.to_string()),
    }
}

/// What a report names as lost.
fn name(said: &RefCell<ToolReport>, report: &Report) {
    let sectors = |addr: &BlockAddr| addr.block() * 8..addr.block() * 8 + 8;
    let mut said = said.borrow_mut();
    said.lost.extend(report.lost_blocks.iter().chain(&report.suspect_blocks).map(sectors));
    said.records_lost |= !report.lost_records.is_empty();
}

#[test]
fn engine_survives_crashes_at_any_step() {
    run_seeds(&WriteCache(PlantedBug::None), "engine", seeds(0..1000));
}

/// The second thousand, for another core.
#[test]
fn engine_survives_crashes_at_any_step_again() {
    run_seeds(&WriteCache(PlantedBug::None), "engine", seeds(20_000..21_000));
}

/// Failed with the silent and the passing faults, and why.
#[test]
fn hard_seeds_that_failed_once() {
    let story = [
        // A record that a repair put in place of several lost ones, the dirty tail among their numbers: write-back found
        // nothing to do there, and did so again and again.
        10_020,
        // The volume table was lost, so the disk was attached anew, with the number of the volume that the log named.
        11_353, 12_599,
        // A rotten block was covered by a discard while its payload was read again and again: it stayed dirty in the
        // index, and reclaim panicked.
        718,
        // The disk was gone for 20 s while the driver looked every 50 us whether the clients were done: 400 000 polls, all
        // but a few its own, and the watchdog took them for a busy loop of the engine.
        502_932,
        // A bit of the newest flushed record rotted while the start read it, within the 10 ms in which nothing else tells
        // that it was flushed: cut as a torn tail, which is the one exception of promise 5. The oracle did not know that
        // rot may strike in a start, too.
        2_005_993,
        // An anchor that told of D, not flushed, then the next one in the other slot: power failed, both were torn, and
        // no anchor was left.
        2_013_229,
        // A dropped record 5 stood at the end of the log. A repair appended another record 5 in the next segment; two epochs
        // later the dropped one was taken for part of the log again, and the start refused for good.
        2_010_731,
        // Compaction opened the segments of the reserve block by block, and writers filled the rest of each: nothing was
        // left for write-back to work with, and all waited for each other.
        550,
        // A window met a segment that was closed and whose last record was on its way: neither summary nor that header was
        // there to be read. The index was asked instead, and with it came blocks beyond D, read from the cache device
        // before they were on it: what had been in their slots before went to the disk as theirs. It takes
        // `verify_reads` off.
        4_005_588,
        // The cache device vanished while a window read what it had to write. The blocks were taken for lost, and the poison
        // went to the RAM tail; the process died, the device returned, and the start believed it.
        4_049_220,
        // Zeroed, written, both written back: reclaim took the payload's entry out of the index, and until it had removed the
        // range, too, reads got zeroes. The longer it waited for readers in between, the likelier.
        6_008_837, 7_004_570,
        // The flush of an anchor failed and dropped a record; that of a group commit beside it succeeded, and the record
        // counted as durable. It takes a device that makes durable no more what a failed flush should have.
        9_006_265,
        // After a clean stop record 2 was torn by a power cut and could not be read; the start believed the clean mark and kept
        // the epoch. Another record 2 in its place was lost in the next power cut, and the first one counted.
        14_023_227,
        // What is read back after a start ended within a segment, for there were too many ranges: it was freed with entries in
        // the index, and used again.
        15_007_065,
        // A record and the summary of its segment were written in one piece and torn: only the summary was left. The clean mark
        // was believed, other records came there in the same epoch, and a walk that began there took the summary for theirs.
        15_093_728,
        // The summary of a segment and its first header were lost, and an older summary with the same numbers was left: reclaim
        // took its entries for those of the segment, and what was in the segment stayed in the index.
        19_002_736,
    ];
    run_seeds(&WriteCache(PlantedBug::None), "hard seeds that failed once", story.into_iter());
}

#[test]
fn engine_runs_are_repeatable() {
    for seed in 0..10 {
        let plan = Plan::draw(seed);
        let run = || scenario::run_caught(&WriteCache(PlantedBug::None), &plan);
        assert_eq!(run(), run(), "seed {seed}");
    }
}

/// Long runs: `WB_SEEDS` and `WB_SEED_START` say how long (`tests/soak.sh` runs them in pieces, on every core).
#[test]
fn soak() {
    run_seeds(&WriteCache(PlantedBug::None), "engine", seeds(1000..1100));
}

/// The process dies again and again, sometimes with the power: nothing acknowledged may be missing after a kill.
fn killing_plan(seed: u64) -> Plan {
    let mut plan = Plan::draw_plain(seed);
    let mut rng = SimRng::derive(seed, "kills");
    plan.crash_percent = 100;
    plan.power_cut_percent = rng.pick(&[0, 0, 20, 50]);
    plan.lives = rng.range(3, 8);
    plan.mix.flush = rng.pick(&[0, 0, plan.mix.flush]);
    plan
}

#[test]
fn nothing_acknowledged_is_missing_after_kills() {
    run_plans(&WriteCache(PlantedBug::None), "engine, killed", seeds(0..300), killing_plan);
}

/// Seeds that failed once, and why. When a change of the generator gives them another meaning they are worth little.
#[test]
fn seeds_that_failed_once() {
    let story = [
        // Segment closed, power failed: the summary survived, its last record did not. Two starts later the summary
        // counted again and pointed at the data of the record that had taken the place.
        2639,
        // One EIO on the newest header at a start, D not anchored yet: a flushed record was cut off as a torn tail.
        4842,
        // Two EIOs in a row on a dirty block at write-back, which would have passed: poisoned for ever.
        2782, 2987, 3602, 3931,
        // A segment of dropped records was written again with records of the same numbers; its new summary was lost in
        // the next power cut, and reclaim took the old one: index entries stayed in a free segment.
        897,
        // The log was cut exactly at a segment's end: the summary of the segment behind it named dropped records, was
        // not cleared, and counted two starts later. The log then seemed to break behind it.
        1_013_680,
    ];
    run_plain_seeds(&WriteCache(PlantedBug::None), "seeds that failed once", story.into_iter());
}

/// Outdated summaries are cleared at a start, and the walk does not go by one that is left nevertheless.
#[test]
fn outdated_summaries_do_no_harm_where_they_are_left() {
    let story = [2639, 897, 1_013_680];
    run_plain_seeds(&WriteCache(PlantedBug::KeepOutdatedSummaries), "summaries left", story.into_iter());
}

#[test]
fn small_worlds_survive_every_power_cut() {
    let mut total = small::Exhausted::default();
    for seed in seeds(0..6) {
        let done = small::exhaust(&WriteCache(PlantedBug::None), &small::tiny_plan(seed), 24);
        let done = done.unwrap_or_else(|failure| panic!("WB_SEED={seed} {failure}\nWB_SEED={seed}"));
        total.cuts += done.cuts;
        total.worlds += done.worlds;
        total.sampled += done.sampled;
    }
    println!("{total:?}");
}

#[test]
fn planted_bugs_are_found() {
    let bugs = [
        (PlantedBug::AckFlushEarly, 20),
        (PlantedBug::FreeBeforeBackingFlush, 20),
        (PlantedBug::ServeBeforeFlush, 400),
        (PlantedBug::UnlockedMerge, 40),
        (PlantedBug::DiscardAppliedLate, 80),
        (PlantedBug::TwoBackingWrites, 80),
        (PlantedBug::TailPassesOtherZones, 80),
        (PlantedBug::ReadBackHidden, 1000),
    ];
    for (bug, max) in bugs {
        assert_found(bug, max, Plan::draw_plain);
    }
}

/// A planted bug shows within `max` seeds, and in that run it is the bug that shows: without it all is well.
fn assert_found(bug: PlantedBug, max: u64, plan: fn(u64) -> Plan) {
    let found = seeds_until_found_by(&WriteCache(bug), max, plan);
    println!("{bug:?}: found after {found:?}");
    let (seeds, _) = found.unwrap_or_else(|| panic!("{bug:?} was not found in {max} seeds"));
    let sound = scenario::run_caught(&WriteCache(PlantedBug::None), &plan(seeds - 1));
    assert_eq!(sound.failures, [""; 0], "seed {} fails without {bug:?} too", seeds - 1);
}

/// Few blocks, overwritten all the time and hardly ever flushed, while a slow disk is written: most of the other plans
/// have nothing that supersedes without being durable.
fn overwriting_plan(seed: u64) -> Plan {
    let mut plan = Plan::draw_plain(seed);
    plan.hot = 0..128;
    plan.mix = Mix { read: 1, write: 100, fua: 0, zeroes: 0, discard: 0, flush: 1 };
    plan.request_bytes_max = 8192;
    (plan.segments, plan.segment_bytes) = (8, 64 << 10);
    (plan.clients, plan.requests, plan.lives) = (4, 200, 6);
    plan.think_ns = 2_000_000;
    (plan.crash_percent, plan.power_cut_percent) = (100, 100);
    plan.hardship = Hardship::None;
    plan
}

#[test]
fn planted_superseding_beyond_durable_is_found() {
    assert_found(PlantedBug::SupersedeBeyondDurable, 1000, overwriting_plan);
}

/// Lives of a few long writes, hardly ever flushed, of which many end by detaching the volume: the log goes on in a segment
/// where a record of the same number may lie that was dropped after a power cut, with no predecessor that would tell.
fn detaching_plan(seed: u64) -> Plan {
    let mut plan = Plan::draw_plain(seed);
    plan.mix = Mix { read: 1, write: 10, fua: 0, zeroes: 0, discard: 0, flush: 0 };
    (plan.segments, plan.segment_bytes) = (12, 64 << 10);
    (plan.volume_bytes, plan.hot, plan.request_bytes_max) = (512 * 4096, 0..4096, 128 << 10);
    (plan.clients, plan.requests, plan.lives, plan.think_ns) = (1, 4, 10, 20_000_000);
    (plan.crash_percent, plan.power_cut_percent, plan.tools_percent) = (50, 100, 60);
    plan.hardship = Hardship::None;
    plan
}

#[test]
fn planted_skipping_of_the_epoch_is_found() {
    assert_found(PlantedBug::SkipEpochBump, 2000, detaching_plan);
}

/// Few blocks, overwritten and written back again and again, and damage between the lives.
fn damaged_plan(seed: u64) -> Plan {
    let mut plan = Plan::draw_plain(seed);
    plan.mix = Mix { read: 5, write: 20, fua: 1, zeroes: 0, discard: 0, flush: 2 };
    (plan.segments, plan.segment_bytes) = (12, 64 << 10);
    (plan.hot, plan.request_bytes_max) = (0..256, 32 << 10);
    (plan.clients, plan.requests, plan.lives) = (2, 60, 8);
    (plan.crash_percent, plan.power_cut_percent) = (30, 100);
    plan.hardship = Hardship::Damage;
    plan
}

#[test]
fn planted_reading_back_past_damage_is_found() {
    assert_found(PlantedBug::ReadBackPastDamage, 100, damaged_plan);
}

#[test]
fn planted_bugs_of_the_ram_tail_are_found() {
    assert_found(PlantedBug::AckBeforePublication, 40, killing_plan);
    assert_found(PlantedBug::ForgetUnfinishedSlots, 400, killing_plan);
}
