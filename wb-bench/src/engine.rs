//! An engine to be measured: formatted anew, its write-back held, its device counted.

use crate::env::{BenchDisk, BenchEnv, Counted};
use crate::files::TailDir;
use crate::load;
use anyhow::Context as _;
use std::sync::Arc;
use uuid::Uuid;
use wb_cli::json::bench::DeviceWork;
use wb_core::engine::{Backing, Engine, EngineConfig, OpenOptions, VolumeHandle, WritebackPolicy};
use wb_core::env::Env;
use wb_core::format::SEGMENT_BYTES_DEFAULT;
use wb_core::io::Disk;
use wb_core::meta::{self, FormatOptions};
use wb_core::rt::{RtDisk, ShmTails};
use wb_core::tail::TailStore;

/// How an engine under measurement is set up.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// Check every block that is read.
    pub verify_reads: bool,
    /// Threads that will use it; decides the number of index shards, as in the daemon.
    pub threads: u32,
}

/// An engine over an empty cache.
pub struct Measured {
    engine: Engine<BenchEnv>,
    counted: Counted,
    _tails: Option<TailDir>,
}

impl Measured {
    /// Formats `cache` and serves it over `backing`.
    pub async fn on_devices(cache: &RtDisk, backing: &RtDisk, setup: Setup) -> anyhow::Result<Measured> {
        let counted = Counted::default();
        let cache = BenchDisk::Real(cache.clone(), counted.clone());
        let backing = BenchDisk::Real(backing.clone(), Counted::default());
        let tails = TailDir::new();
        let engine = open(BenchEnv::Real, cache, backing, setup, Some(&tails)).await?;
        Ok(Measured { engine, counted, _tails: Some(tails) })
    }

    /// The same in any world.
    pub async fn open(env: BenchEnv, cache: BenchDisk, backing: BenchDisk, setup: Setup) -> anyhow::Result<Measured> {
        let engine = open(env, cache, backing, setup, None).await?;
        Ok(Measured { engine, counted: Counted::default(), _tails: None })
    }

    /// The same over devices of these sizes that take no time.
    pub async fn on_null(cache_bytes: u64, backing_bytes: u64, setup: Setup) -> anyhow::Result<Measured> {
        let (cache, backing) = (BenchDisk::null(cache_bytes), BenchDisk::null(backing_bytes));
        Measured::open(BenchEnv::Real, cache, backing, setup).await
    }

    /// What load is made on.
    pub fn volume(&self) -> VolumeHandle<BenchEnv> {
        self.engine.volume()
    }

    /// What the cache device was asked to do so far.
    pub fn device(&self) -> DeviceWork {
        self.counted.work()
    }

    /// Memory of the index.
    pub fn index_bytes(&self) -> u64 {
        self.engine.status().index_bytes
    }

    /// Writes a working set, so that reads of it hit the cache device: everything is durable afterwards, and no record
    /// is left in memory.
    pub async fn fill(&self, bytes: u64) -> anyhow::Result<()> {
        load::fill(&self.volume(), bytes).await
    }

    /// Stops it.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.engine.stop().await.map_err(anyhow::Error::msg).context("the measured engine did not stop cleanly")
    }
}

async fn open(
    env: BenchEnv,
    cache: BenchDisk,
    backing: BenchDisk,
    setup: Setup,
    tails: Option<&TailDir>,
) -> anyhow::Result<Engine<BenchEnv>> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&env.random_u64().to_le_bytes());
    bytes[8..].copy_from_slice(&env.random_u64().to_le_bytes());
    let options = FormatOptions {
        segment_bytes: SEGMENT_BYTES_DEFAULT.into(),
        label: "wb-bench".into(),
        uuid: Uuid::from_bytes(bytes),
        secret: env.random_u64() as u32,
        now_unix_ns: env.wall_ns(),
    };
    meta::format(&cache, options).await.context("cannot format the cache")?;
    let config = EngineConfig {
        verify_reads: setup.verify_reads,
        // Write-back is held: no load here may write more than half of the cache.
        policy: WritebackPolicy {
            start_percent: 100,
            stop_percent: 100,
            idle_after_ns: None,
            ..EngineConfig::default().policy
        },
        index_shards: 16.max(4 * setup.threads as usize).next_power_of_two(),
        ..EngineConfig::default()
    };
    let backing = Backing {
        disk: Arc::new(backing),
        path: "the backing device".into(),
        identity: String::new(),
        name: "bench".into(),
    };
    let options = OpenOptions {
        cache: Arc::new(cache),
        backing,
        config,
        boot_id: [1; 16],
        tails: tails.map(|dir| Arc::new(ShmTails::new(dir.path())) as Arc<dyn TailStore>),
        accept_loss: false,
        read_only: false,
        force: false,
    };
    Engine::open(&env, options).await.context("cannot open the cache")
}

/// Bytes that a pass may write to a cache device of this size.
pub fn write_bytes_max(cache: &impl Disk) -> u64 {
    cache.geometry().size_bytes / 2
}
