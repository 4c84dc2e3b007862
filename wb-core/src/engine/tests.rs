//! First light: a seeded walk over one engine on simulated devices, with crashes, against a plain array.

use super::*;
use crate::meta::{self, FormatOptions};
use crate::service::BlockService;
use crate::sim::{DeviceConfig, FaultPlan, Medium, Sim, SimDevice, SimEnv};

const VOLUME_BYTES: u64 = 4 << 20;

fn small() -> EngineConfig {
    EngineConfig {
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
    }
}

async fn open(env: SimEnv, cache: SimDevice, backing: SimDevice) -> Result<Engine<SimEnv>, OpenError> {
    let options = OpenOptions {
        cache: Arc::new(cache.open(&env)),
        backing: Backing {
            disk: Arc::new(backing.open(&env)),
            path: "backing".into(),
            identity: String::new(),
            name: "vol".into(),
        },
        config: small(),
        boot_id: [0; 16],
        tails: None,
        accept_loss: false,
        read_only: false,
        force: false,
    };
    Engine::open(&env, options).await
}

struct World {
    sim: Sim,
    cache: SimDevice,
    backing: SimDevice,
    random: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let sim = Sim::new(seed);
        let cache = SimDevice::new(&sim, DeviceConfig::new("cache", 2 << 20), Medium::default(), FaultPlan::default());
        let backing =
            SimDevice::new(&sim, DeviceConfig::new("backing", VOLUME_BYTES), Medium::default(), FaultPlan::default());
        let format = {
            let disk = cache.open(&sim.env());
            async move {
                let options = FormatOptions {
                    segment_bytes: 64 << 10,
                    label: "test".into(),
                    uuid: uuid::Uuid::from_u128(u128::from(seed) + 1),
                    secret: seed as u32,
                    now_unix_ns: 0,
                };
                meta::format(&disk, options).await.expect("formats");
            }
        };
        sim.run(format).expect("formats");
        World { sim, cache, backing, random: seed }
    }
    fn below(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % below
    }
}

/// One client, depth 1: after each crash the content is that of some moment at or after the last flush.
fn walk(seed: u64) {
    let mut world = World::new(seed);
    let mut now = vec![0u8; VOLUME_BYTES as usize];
    for generation in 0..4u64 {
        let env = world.sim.group(&format!("engine {generation}"));
        let opening = open(env.clone(), world.cache.clone(), world.backing.clone());
        let started = world.sim.start(&env, opening);
        world.sim.run_until(|| started.is_done()).expect("opens");
        let engine = started.take().expect("done").expect("opens");
        let service = engine.volume();
        // Which state is it? `states` are the contents since the last flush, newest last.
        let mut fill = (seed as u8).wrapping_add(generation as u8 * 50);
        let mut states: Vec<(u64, u64, u8)> = Vec::new();
        let mut flushed = now.clone();
        for _ in 0..120 {
            let what = world.below(10);
            let sector = world.below(VOLUME_BYTES / 512);
            let len = (1 + world.below(64)).min(VOLUME_BYTES / 512 - sector) * 512;
            let offset = sector * 512;
            fill = fill.wrapping_add(1).max(1);
            let (range, service, fill) = (offset as usize..(offset + len) as usize, service.clone(), fill);
            match what {
                0..6 => {
                    let data = vec![fill; len as usize];
                    let done = world
                        .sim
                        .start(&env, async move { service.write(offset, data.len(), &data[..], what == 5).await });
                    world.sim.run_until(|| done.is_done()).expect("writes");
                    done.take().expect("done").expect("writes");
                    now[range].fill(fill);
                    states.push((offset, len, fill));
                    if what == 5 {
                        states.clear();
                        flushed = now.clone();
                    }
                }
                6 => {
                    let done = world.sim.start(&env, async move { service.write_zeroes(offset, len, false).await });
                    world.sim.run_until(|| done.is_done()).expect("zeroes");
                    done.take().expect("done").expect("zeroes");
                    now[range].fill(0);
                    states.push((offset, len, 0));
                }
                7 => {
                    let done = world.sim.start(&env, async move { service.flush().await });
                    world.sim.run_until(|| done.is_done()).expect("flushes");
                    done.take().expect("done").expect("flushes");
                    states.clear();
                    flushed = now.clone();
                }
                _ => {
                    let done = world
                        .sim
                        .start(&env, async move { service.read(offset, len as usize).await.map(|data| data.to_vec()) });
                    world.sim.run_until(|| done.is_done()).expect("reads");
                    assert_eq!(done.take().expect("done").expect("reads"), now[range], "seed {seed}: read at {offset}");
                }
            }
        }
        world.sim.kill(&env);
        world.cache.power_cut();
        world.backing.power_cut();
        now = recovered(&world, seed, generation, flushed, &states);
    }
}

/// Opens, reads everything and finds the prefix that it is.
fn recovered(world: &World, seed: u64, generation: u64, flushed: Vec<u8>, states: &[(u64, u64, u8)]) -> Vec<u8> {
    let env = world.sim.group(&format!("reader {generation}"));
    let opening = open(env.clone(), world.cache.clone(), world.backing.clone());
    let whole = world.sim.start(&env, async move {
        let engine = opening.await.expect("opens after a crash");
        let service = engine.volume();
        let mut whole = Vec::new();
        for at in (0..VOLUME_BYTES).step_by(1 << 20) {
            whole.extend_from_slice(&service.read(at, 1 << 20).await.expect("reads"));
        }
        engine.stop().await.expect("stops");
        whole
    });
    world.sim.run_until(|| whole.is_done()).expect("reads");
    let whole = whole.take().expect("done");
    world.sim.kill(&env);
    // A state, or one in the middle of a write: its blocks are not one record.
    let mut candidate = flushed;
    for (offset, len, fill) in states {
        if candidate == whole {
            return whole;
        }
        let before = candidate.clone();
        candidate[*offset as usize..(offset + len) as usize].fill(*fill);
        if whole.iter().zip(before.iter().zip(&candidate)).all(|(byte, (old, new))| byte == old || byte == new) {
            return whole;
        }
    }
    if candidate != whole {
        let differs = candidate.iter().zip(&whole).position(|(a, b)| a != b).expect("differs");
        panic!(
            "seed {seed} generation {generation}: no prefix; byte {differs} is {} not {}",
            whole[differs], candidate[differs]
        );
    }
    whole
}

#[test]
fn survivors_of_a_crash_are_a_prefix() {
    let seeds = option_env!("WB_SEED").and_then(|seed| seed.parse().ok()).map_or(0..40, |seed| seed..seed + 1);
    for seed in seeds {
        walk(seed);
    }
}

/// [block written, zeroed, both written back, their segment reclaimed between the two looks of a read: the old bytes come
/// back]: the first look is done here, and reclaim runs while its pin is held.
#[test]
fn a_pin_keeps_the_ranges_of_its_segment() {
    let world = World::new(7);
    let env = world.sim.group("engine");
    let (inner_env, opening) = (env.clone(), open(env.clone(), world.cache.clone(), world.backing.clone()));
    let done = world.sim.start(&env, async move {
        let engine = opening.await.expect("opens");
        let service = engine.volume();
        service.write(0, 4096, &[1; 4096][..], false).await.expect("writes");
        service.write_zeroes(0, 4096, false).await.expect("zeroes");
        for block in 16..64 {
            service.write(block * 4096, 4096, &[2; 4096][..], false).await.expect("writes");
        }
        engine.drain().await.expect("drains");
        let inner = engine.inner.clone();
        assert!(inner.piece_at(0).is_some(), "the range is kept until then, too");
        let pin = inner
            .index
            .lookup_with(inner.addr(0), |entry| entry.map(|entry| inner.segments.pin(entry.slot)))
            .expect("what is superseded stays in the index until its segment is reclaimed");
        let reclaiming = inner.clone();
        inner_env.spawn(async move {
            reclaiming.writeback.space_wanted.store(true, std::sync::atomic::Ordering::SeqCst);
            reclaiming.reclaim(None, None).await.expect("reclaims");
        });
        inner_env.sleep(1_000_000_000).await;
        assert!(inner.piece_at(0).is_some(), "the second look finds what hides the slot");
        drop(pin);
        inner_env.sleep(1_000_000_000).await;
        assert!(inner.piece_at(0).is_none(), "reclaimed");
        assert_eq!(service.read(0, 4096).await.expect("reads")[0], 0);
    });
    world.sim.run_until(|| done.is_done()).expect("runs");
    done.take().expect("done");
}

/// [block zeroed, written, both written back; the payload's entry is removed, and a read takes the range that is still
/// there]: reclaim has removed the entries of the segment and waits for the pin of a neighbour.
#[test]
fn what_a_payload_hides_does_not_come_to_light_when_it_is_reclaimed() {
    let world = World::new(8);
    let env = world.sim.group("engine");
    let (inner_env, opening) = (env.clone(), open(env.clone(), world.cache.clone(), world.backing.clone()));
    let done = world.sim.start(&env, async move {
        let engine = opening.await.expect("opens");
        let service = engine.volume();
        service.write_zeroes(0, 2 * 4096, false).await.expect("zeroes");
        for block in 0..64 {
            service.write(block * 4096, 4096, &[5; 4096][..], false).await.expect("writes");
        }
        engine.drain().await.expect("drains");
        let inner = engine.inner.clone();
        let neighbour = inner
            .index
            .lookup_with(inner.addr(1), |entry| entry.map(|entry| inner.segments.pin(entry.slot)))
            .expect("in the index");
        let reclaiming = inner.clone();
        inner_env.spawn(async move {
            reclaiming.writeback.space_wanted.store(true, std::sync::atomic::Ordering::SeqCst);
            reclaiming.reclaim(None, None).await.expect("reclaims");
        });
        inner_env.sleep(1_000_000_000).await;
        assert!(inner.index.lookup(inner.addr(0)).is_none(), "removed");
        assert_eq!(service.read(0, 4096).await.expect("reads")[0], 5);
        drop(neighbour);
        inner_env.sleep(1_000_000_000).await;
        assert_eq!(service.read(0, 4096).await.expect("reads")[0], 5);
    });
    world.sim.run_until(|| done.is_done()).expect("runs");
    done.take().expect("done");
}
