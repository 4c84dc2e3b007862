//! The engine and the offline tools must agree: on what a crash left, on what is dirty, on what a replay writes; and a
//! repaired cache must be one that the engine serves.

use super::{CheckOptions, LogView, RepairOptions, ReplayOptions, Report, Verdict, examine, repair, replay};
use crate::engine::{Backing, Engine, EngineConfig, OpenOptions};
use crate::meta::{self, FormatOptions};
use crate::service::BlockService;
use crate::sim::{DeviceConfig, FaultPlan, Medium, Sim, SimDevice, SimEnv};
use crate::types::*;
use std::sync::Arc;

const VOLUME_BYTES: u64 = 4 << 20;
const CACHE_BYTES: u64 = 2 << 20;
const VERIFY: CheckOptions = CheckOptions { verify_data: true };

struct World {
    sim: Sim,
    cache: SimDevice,
    backing: SimDevice,
    random: u64,
}

async fn open(env: SimEnv, cache: SimDevice, backing: SimDevice) -> Engine<SimEnv> {
    let options = OpenOptions {
        cache: Arc::new(cache.open(&env)),
        backing: Backing {
            disk: Arc::new(backing.open(&env)),
            path: "backing".into(),
            identity: String::new(),
            name: "vol".into(),
        },
        config: EngineConfig {
            record_buffers: 4,
            read_bytes: 1 << 20,
            window_bytes: 1 << 18,
            range_pieces: 64,
            index_shards: 2,
            policy: crate::engine::WritebackPolicy {
                start_percent: 70,
                stop_percent: 50,
                idle_after_ns: None,
                ..EngineConfig::default().policy
            },
            ..EngineConfig::default()
        },
        boot_id: [0; 16],
        tails: None,
        accept_loss: false,
        read_only: false,
        force: false,
    };
    Engine::open(&env, options).await.unwrap_or_else(|error| panic!("opens: {error}"))
}

impl World {
    fn new(seed: u64) -> World {
        let sim = Sim::new(seed);
        let device = |name: &str, bytes| {
            SimDevice::new(&sim, DeviceConfig::new(name, bytes), Medium::default(), FaultPlan::default())
        };
        let (cache, backing) = (device("cache", CACHE_BYTES), device("backing", VOLUME_BYTES));
        let disk = cache.open(&sim.env());
        let format = async move {
            let options = FormatOptions {
                segment_bytes: 64 << 10,
                label: "test".into(),
                uuid: uuid::Uuid::from_u128(u128::from(seed) + 1),
                secret: seed as u32,
                now_unix_ns: 0,
            };
            meta::format(&disk, options).await.expect("formats");
        };
        sim.run(format).expect("formats");
        World { sim, cache, backing, random: seed }
    }

    fn below(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % below
    }

    /// Runs an engine with a seeded load and cuts the power. `kinds` of 12: without zeroes and discards; of 14: with.
    fn work_and_crash(&mut self, name: &str, kinds: u64) {
        let env = self.sim.group(name);
        let operations: Vec<[u64; 4]> = (0..100)
            .map(|_| {
                let sector = self.below(VOLUME_BYTES / 512);
                let sectors = (1 + self.below(64)).min(VOLUME_BYTES / 512 - sector);
                [self.below(kinds), sector * 512, sectors * 512, self.below(255) + 1]
            })
            .collect();
        let opening = open(env.clone(), self.cache.clone(), self.backing.clone());
        let done = self.sim.start(&env, async move {
            let engine = opening.await;
            let service = engine.volume();
            for [what, offset, len, fill] in operations {
                let result = match what {
                    0..10 => service.write(offset, len as usize, &vec![fill as u8; len as usize][..], what == 9).await,
                    10..12 => service.flush().await,
                    12 => service.write_zeroes(offset, len, false).await,
                    _ => service.discard(offset, len, false).await,
                };
                result.expect("the devices are well");
            }
            // The engine must not end before the crash.
            engine
        });
        self.sim.run_until(|| done.is_done()).expect("works");
        self.sim.kill(&env);
        self.cache.power_cut();
        self.backing.power_cut();
    }

    fn look(&self) -> (Report, LogView) {
        let disk = self.cache.open(&self.sim.env());
        let looking = async move { examine(&disk, VERIFY, &mut |_| {}).await.expect("a cache") };
        let found = self.sim.run(looking).expect("looks");
        (found.report(), found.log)
    }

    /// What the engine makes of it: status after recovery, and the content, `None` where a read fails.
    fn serve(&self, name: &str) -> (crate::engine::Status, Vec<Option<Vec<u8>>>) {
        let env = self.sim.group(name);
        let opening = open(env.clone(), self.cache.clone(), self.backing.clone());
        let done = self.sim.start(&env, async move {
            let engine = opening.await;
            let (status, service) = (engine.status(), engine.volume());
            let mut blocks = Vec::new();
            for at in (0..VOLUME_BYTES).step_by(BLOCK_BYTES) {
                blocks.push(service.read(at, BLOCK_BYTES).await.ok().map(|data| data.to_vec()));
            }
            (status, blocks)
        });
        self.sim.run_until(|| done.is_done()).expect("serves");
        let result = done.take().expect("done");
        self.sim.kill(&env);
        result
    }
}

#[test]
fn after_every_crash_check_and_engine_agree() {
    for seed in 0..25 {
        let mut world = World::new(seed);
        for round in 0..3 {
            let ranges = seed % 2 == 1;
            world.work_and_crash(&format!("engine {round}"), if ranges { 14 } else { 12 });
            let (report, log) = world.look();
            assert_eq!(report.verdict(), Verdict::Clean, "seed {seed} round {round}: {:?}", report.findings);
            let media = (world.cache.view(), world.backing.view());
            let (status, _) = world.serve(&format!("reader {round}"));
            assert_eq!((status.recovery.scan.head, status.recovery.clean), (log.head, log.clean), "seed {seed}");
            let dirty = status.dirty_bytes / BLOCK_BYTES_U64;
            // With ranges in the log the engine also counts what they cover.
            let agrees = if ranges { dirty >= report.dirty_blocks } else { dirty == report.dirty_blocks };
            assert!(agrees, "seed {seed} round {round}: {dirty} and {}", report.dirty_blocks);
            world.cache.restore(media.0);
            world.backing.restore(media.1);
        }
    }
}

#[test]
fn replay_makes_the_backing_device_what_the_engine_would_have_served() {
    for seed in 100..120 {
        let mut world = World::new(seed);
        world.work_and_crash("first", 14);
        world.work_and_crash("second", 14);
        let (_, log) = world.look();
        let media = (world.cache.view(), world.backing.view());
        let (_, served) = world.serve("reader");
        world.cache.restore(media.0);
        world.backing.restore(media.1);
        let (cache, backing) = (world.cache.open(&world.sim.env()), world.backing.open(&world.sim.env()));
        let replaying = async move {
            let found = examine(&cache, VERIFY, &mut |_| {}).await.expect("a cache");
            replay(&cache, &backing, &found, &ReplayOptions::default(), &mut |_| {}).await.expect("replays")
        };
        assert!(world.sim.run(replaying).expect("runs").is_complete(), "seed {seed}");
        for (block, expected) in served.iter().enumerate() {
            let addr = BlockAddr::new(VolumeId(1), block as u64);
            // What was discarded may read as anything; of a block written again in part, the rest.
            let discarded = log.live.range(addr).is_some_and(|piece| piece.kind == crate::format::EntryKind::Discard);
            let partial = log.live.block(addr).is_some_and(|version| !version.mask.is_full());
            if discarded || partial {
                continue;
            }
            let found = world.backing.peek(block as u64 * BLOCK_BYTES_U64, BLOCK_BYTES);
            assert!(expected.as_ref() == Some(&found), "seed {seed}: block {block}");
        }
        let (report, log) = world.look();
        assert_eq!((report.verdict(), report.dirty_blocks, log.clean), (Verdict::Clean, 0, true), "seed {seed}");
        let (_, again) = world.serve("after");
        let differs = served.iter().zip(&again).enumerate().find(|(_, (before, after))| before != after);
        if let Some((block, _)) = differs {
            let range = log.live.range(BlockAddr::new(VolumeId(1), block as u64));
            assert!(range.is_some(), "seed {seed}: block {block} reads otherwise after the replay");
        }
    }
}

#[test]
fn a_repaired_cache_is_served_and_what_is_not_named_is_unchanged() {
    for seed in 200..240 {
        let mut world = World::new(seed);
        world.work_and_crash("first", 14);
        world.work_and_crash("second", 14);
        let media = (world.cache.view(), world.backing.view());
        let (_, served) = world.serve("reader");
        world.cache.restore(media.0);
        world.backing.restore(media.1);
        let (_, intact) = world.look();
        for _ in 0..1 + world.below(3) {
            let (offset, bit) = (world.below(CACHE_BYTES), world.below(8) as u8);
            world.cache.flip_bit(offset, bit);
        }
        let disk = world.cache.open(&world.sim.env());
        let repairing = async move {
            let found = examine(&disk, VERIFY, &mut |_| {}).await.expect("a cache");
            let options = RepairOptions { check: VERIFY, now_unix_ns: 9, boot_id: [0; 16] };
            repair(&disk, &found, options, &mut Vec::new(), &mut |_| {}).await.expect("repairs")
        };
        let report = world.sim.run(repairing).expect("runs");
        assert_ne!(report.verdict(), Verdict::Errors, "seed {seed}: {:?}", report.findings);
        assert_eq!(world.look().0.verdict(), Verdict::Clean, "seed {seed}");
        let (_, after) = world.serve("after");
        if !report.lost_records.is_empty() {
            continue;
        }
        for (block, (before, after)) in served.iter().zip(&after).enumerate() {
            let named = report.lost_blocks.contains(&BlockAddr::new(VolumeId(1), block as u64));
            let fine = if named { after.is_none() } else { before == after };
            // A flip beyond D is a torn tail, with or without anything left that tells of it, and discarded blocks may change.
            let addr = BlockAddr::new(VolumeId(1), block as u64);
            let torn = report.findings.iter().any(|finding| finding.place == "torn tail")
                || intact.live.block(addr).is_some_and(|version| version.seq > intact.durable)
                || intact.live.range(addr).is_some_and(|piece| piece.seq > intact.durable);
            assert!(fine || torn, "seed {seed}: block {block}, named {named}: {:?}", report.findings);
        }
    }
}

/// [the tail passes a poisoned block, its segment is used again, and a read gets old data from the backing device]
#[test]
fn a_replay_keeps_what_is_lost() {
    let mut world = World::new(300);
    world.work_and_crash("first", 10);
    let (_, log) = world.look();
    // Beyond D it would be a torn tail.
    let counts = |version: &super::live::Version| version.dirty && version.seq <= log.durable;
    let (lost, version) = log.live.blocks().find(|(_, version)| counts(version)).expect("something is dirty");
    let geometry = crate::format::Geometry::new(CACHE_BYTES, 64 << 10).expect("a geometry");
    let slot = geometry.slot_offset(version.slot).0;
    world.cache.flip_bit(slot, 3);
    let (cache, backing) = (world.cache.open(&world.sim.env()), world.backing.open(&world.sim.env()));
    let replaying = async move {
        let found = examine(&cache, VERIFY, &mut |_| {}).await.expect("a cache");
        let options = RepairOptions { check: VERIFY, now_unix_ns: 9, boot_id: [0; 16] };
        repair(&cache, &found, options, &mut Vec::new(), &mut |_| {}).await.expect("repairs");
        let found = examine(&cache, VERIFY, &mut |_| {}).await.expect("a cache");
        replay(&cache, &backing, &found, &ReplayOptions::default(), &mut |_| {}).await.expect("replays")
    };
    let report = world.sim.run(replaying).expect("runs");
    assert!(report.is_complete() && report.poisoned == 1, "{report:?}");
    let (report, log) = world.look();
    let piece = *log.live.range(lost).expect("it is still known as lost");
    assert_eq!(
        (report.verdict(), report.dirty_blocks, piece.kind),
        (Verdict::Clean, 0, crate::format::EntryKind::Poison)
    );
    assert!(piece.seq >= log.anchor.dirty_tail, "the tail has not passed it");
    // Once round the ring and more, all of it written back.
    let env = world.sim.group("second");
    let opening = open(env.clone(), world.cache.clone(), world.backing.clone());
    let done = world.sim.start(&env, async move {
        let engine = opening.await;
        let service = engine.volume();
        for round in 0..20u64 {
            for at in (0..64).map(|at| at + 64 * (round % 4)).filter(|at| *at != lost.block()) {
                let bytes = [round as u8 + 1; BLOCK_BYTES];
                service.write(at * BLOCK_BYTES_U64, BLOCK_BYTES, &bytes[..], false).await.expect("writes");
            }
            engine.drain().await.expect("drains");
        }
        service.read(lost.block() * BLOCK_BYTES_U64, BLOCK_BYTES).await.map(|data| data[0])
    });
    world.sim.run_until(|| done.is_done()).expect("works");
    assert!(done.take().expect("done").is_err(), "what is lost is not read from the disk");
}
