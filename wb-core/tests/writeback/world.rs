//! The engine on devices that cost what real ones cost, in virtual time, and the loads.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use wb_core::engine::{Backing, Engine, EngineConfig, OpenOptions};
use wb_core::env::Env;
use wb_core::io::{Buf, Disk};
use wb_core::meta::{self, FormatOptions};
use wb_core::model::params;
use wb_core::service::BlockService;
use wb_core::sim::costed::{CostedDisk, CostedEnv, stamp_block};
use wb_core::sim::{Sim, SimEnv, SimRng};

pub const SECOND: u64 = 1_000_000_000;
pub const BLOCK: u64 = 4096;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// Sizes of the devices: the cache is an eighth of the disk.
#[derive(Clone, Copy)]
pub struct Scale {
    pub disk_bytes: u64,
}

impl Scale {
    pub fn cache_bytes(self) -> u64 {
        self.disk_bytes / 8
    }
    pub fn blocks(self) -> u64 {
        self.disk_bytes / BLOCK
    }
}

/// A world with the model disk alone, or with an engine before it.
pub struct World {
    pub sim: Sim,
    pub env: SimEnv,
    pub disk: CostedDisk,
    pub ssd: CostedDisk,
    pub engine: Option<Engine<CostedEnv>>,
}

impl World {
    /// The bare disk.
    pub fn bare(scale: Scale) -> World {
        World::with_disk(scale, params::by_name("hdd").expect("known"))
    }

    fn with_disk(scale: Scale, disk: wb_core::model::DeviceParams) -> World {
        let sim = Sim::measuring(1);
        let env = sim.env();
        let disk = CostedDisk::new(&env, &disk, scale.disk_bytes);
        let ssd = CostedDisk::new(&env, &params::by_name("sata-ssd").expect("known"), scale.cache_bytes());
        World { sim, env, disk, ssd, engine: None }
    }

    /// A freshly formatted cache before the disk.
    pub fn cached(scale: Scale, config: EngineConfig) -> World {
        World::cached_with(scale, config, params::by_name("hdd").expect("known"))
    }

    pub fn cached_with(scale: Scale, config: EngineConfig, disk: wb_core::model::DeviceParams) -> World {
        let mut world = World::with_disk(scale, disk);
        let (env, cache, backing) = (world.env.clone(), world.ssd.clone(), world.disk.clone());
        let opened = world.sim.run(async move {
            let options = FormatOptions {
                segment_bytes: 2 * MIB,
                label: String::new(),
                uuid: uuid::Uuid::from_u128(1),
                secret: 1,
                now_unix_ns: 0,
            };
            meta::format(&cache, options).await.expect("format");
            let options = OpenOptions {
                cache: Arc::new(cache),
                backing: Backing {
                    disk: Arc::new(backing),
                    path: "disk".into(),
                    identity: String::new(),
                    name: "disk".into(),
                },
                config,
                boot_id: [0; 16],
                tails: None,
                accept_loss: false,
                read_only: false,
                force: false,
            };
            Engine::open(&CostedEnv(env), options).await.expect("open")
        });
        world.engine = Some(opened.expect("runs"));
        world
    }

    pub fn engine(&self) -> &Engine<CostedEnv> {
        self.engine.as_ref().expect("a world with an engine")
    }

    /// Runs for some seconds of virtual time.
    pub fn run_s(&self, seconds: f64) {
        self.sim.run_for((seconds * SECOND as f64) as u64).expect("runs");
    }

    pub fn now_ns(&self) -> u64 {
        self.env.now_ns()
    }
}

/// Where the next operation goes, in blocks.
pub type Place = Box<dyn FnMut() -> u64>;

pub fn uniform(blocks: u64, seed: u64) -> Place {
    let mut rng = SimRng::new(seed);
    Box::new(move || rng.below(blocks))
}

/// Zipfian with exponent 0.99 (Gray et al., "Quickly generating billion-record synthetic databases"), ranks scattered over
/// the disk by a fixed permutation, as fio and YCSB do.
pub fn zipfian(blocks: u64, seed: u64) -> Place {
    const THETA: f64 = 0.99;
    let zeta = |n: u64| (1..=n).map(|i| 1.0 / (i as f64).powf(THETA)).sum::<f64>();
    let (zeta_n, zeta_2) = (zeta(blocks), zeta(2));
    let alpha = 1.0 / (1.0 - THETA);
    let eta = (1.0 - (2.0 / blocks as f64).powf(1.0 - THETA)) / (1.0 - zeta_2 / zeta_n);
    let mut rng = SimRng::new(seed);
    Box::new(move || {
        let u = (rng.below(1 << 53) as f64 + 0.5) / (1u64 << 53) as f64;
        let uz = u * zeta_n;
        let rank = match uz {
            uz if uz < 1.0 => 0,
            uz if uz < 1.0 + 0.5f64.powf(THETA) => 1,
            _ => (blocks as f64 * (eta * u - eta + 1.0).powf(alpha)) as u64,
        };
        // An odd factor permutes a power of two; sizes here are such.
        assert!(blocks.is_power_of_two());
        rank.min(blocks - 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks
    })
}

/// One after the other, round and round, in requests of so many blocks.
pub fn sequential(blocks: u64, step: u64) -> Place {
    let mut at = 0;
    Box::new(move || {
        let here = at;
        at = (at + step) % blocks;
        here
    })
}

/// 4 KiB in random order within a zone, each block once, zone after zone.
pub fn zones(blocks: u64, zone_blocks: u64, seed: u64) -> Place {
    let mut rng = SimRng::new(seed);
    let mut zone = 0;
    let mut order: Vec<u64> = Vec::new();
    Box::new(move || {
        if order.is_empty() {
            order = (zone..zone + zone_blocks).collect();
            for at in (1..order.len()).rev() {
                order.swap(at, rng.below(at as u64 + 1) as usize);
            }
            zone = (zone + zone_blocks) % blocks;
        }
        order.pop().expect("filled")
    })
}

/// What a load did.
#[derive(Default)]
pub struct Tally {
    pub writes: Cell<u64>,
    pub blocks: Cell<u64>,
    pub last_ns: Cell<u64>,
    /// Largest time without a completed write, since it was reset.
    pub gap_ns: Cell<u64>,
    pub latencies_ns: RefCell<Vec<u64>>,
    pub stop: Cell<bool>,
    pub running: Cell<u64>,
    version: Cell<u64>,
}

impl Tally {
    fn wrote(&self, now_ns: u64, blocks: u64) {
        self.writes.set(self.writes.get() + 1);
        self.blocks.set(self.blocks.get() + blocks);
        self.gap_ns.set(self.gap_ns.get().max(now_ns - self.last_ns.get()));
        self.last_ns.set(now_ns);
    }
    fn payload(&self, block: u64, blocks: u64) -> Vec<u8> {
        let mut bytes = vec![0; (blocks * BLOCK) as usize];
        self.version.set(self.version.get() % ((1 << 34) - 1) + 1);
        for (at, out) in bytes.chunks_mut(BLOCK as usize).enumerate() {
            stamp_block(block + at as u64, self.version.get(), out);
        }
        bytes
    }
}

/// A closed loop of writes on the engine or on the bare disk: `depth` at once, until the tally says stop or `count` are done.
pub fn write_loop(world: &World, place: Place, blocks: u64, depth: u64, count: u64) -> Rc<Tally> {
    let tally = Rc::new(Tally::default());
    tally.last_ns.set(world.now_ns());
    let place = Rc::new(RefCell::new(place));
    let left = Rc::new(Cell::new(count));
    for _ in 0..depth {
        let (tally, place, left) = (tally.clone(), place.clone(), left.clone());
        let volume = world.engine.as_ref().map(Engine::volume);
        let (disk, env) = (world.disk.clone(), world.env.clone());
        tally.running.set(tally.running.get() + 1);
        world.env.spawn(async move {
            while !tally.stop.get() && left.get() > 0 {
                left.set(left.get() - 1);
                let block = place.borrow_mut()();
                let bytes = tally.payload(block, blocks);
                match &volume {
                    Some(volume) => volume.write(block * BLOCK, bytes.len(), &bytes[..], false).await.expect("written"),
                    None => {
                        let mut buf = Buf::unpooled(bytes.len());
                        buf.copy_from_slice(&bytes);
                        disk.write(block * BLOCK, vec![buf.freeze()], false).await.expect("written");
                    }
                }
                tally.wrote(env.now_ns(), blocks);
            }
            tally.running.set(tally.running.get() - 1);
        });
    }
    tally
}

/// An open loop: so many 4 KiB writes per second, whatever becomes of them; at most `outstanding_max` wait at once.
pub fn write_openly(world: &World, mut place: Place, per_second: f64, outstanding_max: u64) -> Rc<Tally> {
    let tally = Rc::new(Tally::default());
    tally.last_ns.set(world.now_ns());
    let (env, shared) = (world.env.clone(), tally.clone());
    let volume = world.engine().volume();
    world.env.spawn(async move {
        let started_ns = env.now_ns();
        let mut sent = 0u64;
        while !shared.stop.get() {
            let due_ns = started_ns + (sent as f64 / per_second * SECOND as f64) as u64;
            env.sleep(due_ns.saturating_sub(env.now_ns())).await;
            sent += 1;
            if shared.running.get() >= outstanding_max {
                continue;
            }
            let block = place();
            shared.running.set(shared.running.get() + 1);
            let (tally, volume, clock) = (shared.clone(), volume.clone(), env.clone());
            env.spawn(async move {
                let bytes = tally.payload(block, 1);
                let sent_ns = clock.now_ns();
                volume.write(block * BLOCK, bytes.len(), &bytes[..], false).await.expect("written");
                tally.wrote(clock.now_ns(), 1);
                tally.latencies_ns.borrow_mut().push(clock.now_ns() - sent_ns);
                tally.running.set(tally.running.get() - 1);
            });
        }
    });
    tally
}

/// A closed loop of 4 KiB reads, each after a pause; latencies are kept.
pub fn read_loop(world: &World, place: Place, depth: u64, pause_ns: u64) -> Rc<Tally> {
    let tally = Rc::new(Tally::default());
    let place = Rc::new(RefCell::new(place));
    for _ in 0..depth {
        let (tally, place) = (tally.clone(), place.clone());
        let (volume, env) = (world.engine().volume(), world.env.clone());
        world.env.spawn(async move {
            while !tally.stop.get() {
                let block = place.borrow_mut()();
                let sent_ns = env.now_ns();
                volume.read(block * BLOCK, BLOCK as usize).await.expect("read");
                tally.latencies_ns.borrow_mut().push(env.now_ns() - sent_ns);
                env.sleep(pause_ns).await;
            }
        });
    }
    tally
}

/// The value below which so many percent lie.
pub fn percentile(values: &[u64], percent: f64) -> u64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    values[((values.len() - 1) as f64 * percent / 100.0) as usize]
}
