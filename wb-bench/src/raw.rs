//! The raw device: what the same bytes cost without a cache. Measured in the same run, in turn with what it is compared
//! with.

use crate::load::pattern::Access;
use crate::load::stats::{Pass, median, median_latency};
use crate::load::target::Device;
use crate::load::{self, Load};
use std::collections::BTreeMap;
use std::time::Duration;
use wb_cli::json::bench::RawResult;

/// One way of using a raw device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RawKind {
    /// 1 MiB writes, one after the other, 8 in flight.
    SeqWrite1m,
    /// 4 KiB writes anywhere, 128 in flight.
    RandWrite4k,
    /// 4 KiB write, then flush, one at a time.
    WriteFlush4k,
    /// 4 KiB reads anywhere, 32 in flight.
    RandRead4k,
}

impl RawKind {
    /// All of them.
    pub const ALL: [RawKind; 4] =
        [RawKind::SeqWrite1m, RawKind::RandWrite4k, RawKind::WriteFlush4k, RawKind::RandRead4k];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            RawKind::SeqWrite1m => "seq_write_1m",
            RawKind::RandWrite4k => "rand_write_4k",
            RawKind::WriteFlush4k => "write_flush_4k",
            RawKind::RandRead4k => "rand_read_4k",
        }
    }

    /// The load.
    pub fn load(self, working_set_bytes: u64, runtime: Duration, seed: u64) -> Load {
        let random = Load {
            access: Access::Random,
            block_bytes: 4096,
            iodepth: 128,
            jobs: 1,
            threads: 1,
            read_percent: 0,
            flush_every: None,
            working_set_bytes,
            runtime,
            write_bytes_max: u64::MAX,
            seed,
        };
        match self {
            RawKind::SeqWrite1m => Load { access: Access::Sequential, block_bytes: 1 << 20, iodepth: 8, ..random },
            RawKind::RandWrite4k => random,
            RawKind::WriteFlush4k => Load { iodepth: 1, flush_every: Some(1), ..random },
            RawKind::RandRead4k => Load { iodepth: 32, read_percent: 100, ..random },
        }
    }
}

/// The passes over a raw device so far.
#[derive(Debug, Default)]
pub struct RawPasses(BTreeMap<RawKind, Vec<Pass>>);

impl RawPasses {
    /// Measures each of `kinds` once, for `runtime`.
    pub async fn measure(
        &mut self,
        device: &Device,
        kinds: &[RawKind],
        working_set_bytes: u64,
        runtime: Duration,
        seed: u64,
    ) -> anyhow::Result<()> {
        for &kind in kinds {
            let pass = load::run(device, &kind.load(working_set_bytes, runtime, seed)).await?;
            self.0.entry(kind).or_default().push(pass);
        }
        Ok(())
    }

    /// Bytes per second of every pass of a kind.
    pub fn bytes_per_s(&self, kind: RawKind) -> Vec<f64> {
        self.0.get(&kind).map_or_else(Vec::new, |passes| passes.iter().map(Pass::bytes_per_s).collect())
    }

    /// Medians, for JSON.
    pub fn results(&self) -> BTreeMap<String, RawResult> {
        let result = |passes: &Vec<Pass>| RawResult {
            iops: median(passes.iter().map(Pass::iops)),
            bytes_per_s: median(passes.iter().map(Pass::bytes_per_s)),
            latency_us: median_latency(passes.iter()),
        };
        self.0.iter().map(|(kind, passes)| (kind.name().to_string(), result(passes))).collect()
    }
}
