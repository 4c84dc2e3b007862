//! More of wb-bench's command line: what a comparison runs, modelled devices, recorded results.

use crate::error::UsageError;
use crate::units::{ByteSize, TypedDuration};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// How our own cache becomes a block device of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum BlockDevice {
    /// A ublk device.
    #[default]
    Ublk,
    /// The kernel's NBD client on a Unix socket; the only way on kernels before 6.5.
    Nbd,
}

/// Size and choice of what a comparison runs.
#[derive(Debug, Clone, Default, Args)]
pub struct CompareTuning {
    /// Run only these workloads, with what they continue
    #[arg(long, value_name = "WORKLOAD", value_delimiter = ',', requires = "compare")]
    pub only: Vec<String>,

    /// Repetitions of the workloads that are repeated; the order of the systems turns with each [default: 2, 3 with --full]
    #[arg(long, value_name = "N", requires = "compare", value_parser = clap::value_parser!(u32).range(1..=20))]
    pub rounds: Option<u32>,

    /// Begin with the last system in place of the first
    #[arg(long, requires = "compare")]
    pub reverse: bool,

    /// End the run after this time with what there is [default: 20min, none with --full]
    #[arg(long, value_name = "DURATION", requires = "compare")]
    pub limit: Option<TypedDuration>,

    /// Write the result as JSON, for `wb-bench report`
    #[arg(long, value_name = "FILE", requires = "compare")]
    pub save: Option<PathBuf>,

    /// The guest's SSD is modelled on this one [default: sata-ssd]
    #[arg(long, value_name = "MODEL", requires = "compare", conflicts_with = "cache_device")]
    pub ssd_model: Option<String>,

    /// The guest's disk is modelled on this one [default: hdd]
    #[arg(long, value_name = "MODEL", requires = "compare", conflicts_with = "cache_device")]
    pub disk_model: Option<String>,

    /// Bytes of the guest's SSD [default: 256MiB]
    #[arg(long, value_name = "SIZE", requires = "compare", conflicts_with = "cache_device")]
    pub ssd_size: Option<ByteSize>,

    /// Bytes of the guest's disk [default: 2GiB]
    #[arg(long, value_name = "SIZE", requires = "compare", conflicts_with = "cache_device")]
    pub disk_size: Option<ByteSize>,

    /// How many times slower than their originals the guest's devices are, because its processor is emulated; left out,
    /// so much that an empty ublk device does three times what the modelled SSD does
    #[arg(long, value_name = "FACTOR", requires = "compare", conflicts_with = "cache_device")]
    pub dilation: Option<f64>,

    /// How our own cache becomes a block device [default: ublk]
    #[arg(long, value_name = "KIND", value_enum, requires = "compare")]
    pub transport: Option<BlockDevice>,
}

/// Size and choice of what a comparison runs, complete.
#[derive(Debug, Clone, PartialEq)]
pub struct TuningPlan {
    /// Only these workloads; empty: all of the set.
    pub only: Vec<String>,
    /// Repetitions, if not the set's own.
    pub rounds: Option<u32>,
    /// Begin with the last system.
    pub reverse: bool,
    /// Limit of time, if not the set's own.
    pub limit: Option<Duration>,
    /// Where the result is written.
    pub save: Option<PathBuf>,
    /// Model of the SSD.
    pub ssd_model: String,
    /// Model of the disk.
    pub disk_model: String,
    /// Bytes of the SSD.
    pub ssd_bytes: u64,
    /// Bytes of the disk.
    pub disk_bytes: u64,
    /// How many times slower, if it is not to be found out.
    pub dilation: Option<f64>,
    /// How our own cache becomes a block device.
    pub transport: BlockDevice,
}

/// Smallest modelled SSD: every peer can be made on it.
const SSD_BYTES_MIN: u64 = 128 << 20;

impl CompareTuning {
    /// What was typed -> what it means.
    pub fn resolve(self) -> anyhow::Result<TuningPlan> {
        let plan = TuningPlan {
            only: self.only,
            rounds: self.rounds,
            reverse: self.reverse,
            limit: self.limit.map(|limit| limit.0),
            save: self.save,
            ssd_model: self.ssd_model.unwrap_or_else(|| "sata-ssd".into()),
            disk_model: self.disk_model.unwrap_or_else(|| "hdd".into()),
            ssd_bytes: self.ssd_size.map_or(256 << 20, |size| size.0),
            disk_bytes: self.disk_size.map_or(2 << 30, |size| size.0),
            dilation: self.dilation,
            transport: self.transport.unwrap_or_default(),
        };
        if let Some(factor) = plan.dilation.filter(|factor| !(0.01..=10_000.0).contains(factor)) {
            return Err(UsageError::raise(format!("--dilation {factor}: use a factor from 0.01 to 10000")));
        }
        let whole = |bytes: u64| bytes.is_multiple_of(1 << 20);
        if plan.ssd_bytes < SSD_BYTES_MIN || !whole(plan.ssd_bytes) || !whole(plan.disk_bytes) {
            return Err(UsageError::raise("--ssd-size: use whole MiB, at least 128MiB"));
        }
        if plan.disk_bytes < plan.ssd_bytes * 4 {
            return Err(UsageError::raise("--disk-size: use at least four times the SSD's size"));
        }
        Ok(plan)
    }
}

/// Options of `wb-bench model-disk`.
#[derive(Debug, Clone, Args)]
pub struct ModelDiskArgs {
    /// What to model: sata-ssd, nvme-plp, hdd, network, or none (takes no time)
    #[arg(long, value_name = "MODEL")]
    pub model: String,

    /// Bytes of the device
    #[arg(long, value_name = "SIZE")]
    pub size: ByteSize,

    /// Unix socket to listen on, for its owner only
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,

    /// How many times slower than its original it is
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub dilation: f64,

    /// Sparse file that holds the data; left out, memory
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,

    /// Logical sector, 512 or 4096
    #[arg(long, value_name = "BYTES", default_value_t = 512)]
    pub sector: u32,

    /// Write what was done to it to this file, at the end and on SIGUSR1
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
}

/// A modelled device to serve.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelDiskPlan {
    /// Name of the model.
    pub model: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Logical sector.
    pub sector_bytes: u32,
    /// How many times slower.
    pub dilation: f64,
    /// Where to listen.
    pub socket: PathBuf,
    /// File with the data.
    pub image: Option<PathBuf>,
    /// File for the counters.
    pub stats: Option<PathBuf>,
}

impl ModelDiskArgs {
    /// What was typed -> what it means.
    pub fn resolve(self) -> anyhow::Result<ModelDiskPlan> {
        if ![512, 4096].contains(&self.sector) {
            return Err(UsageError::raise(format!("--sector {}: use 512 or 4096", self.sector)));
        }
        if self.size.0 == 0 || !self.size.0.is_multiple_of(4096) {
            return Err(UsageError::raise(format!("--size {}: use a multiple of 4096 bytes", self.size)));
        }
        if !(0.0..=10_000.0).contains(&self.dilation) {
            return Err(UsageError::raise(format!("--dilation {}: use a factor from 0 to 10000", self.dilation)));
        }
        Ok(ModelDiskPlan {
            model: self.model,
            size_bytes: self.size.0,
            sector_bytes: self.sector,
            dilation: self.dilation,
            socket: self.socket,
            image: self.image,
            stats: self.stats,
        })
    }
}

/// Options of `wb-bench report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// What `--save` wrote
    #[arg(value_name = "RESULT")]
    pub result: PathBuf,

    /// Write the report with plots, one self-contained HTML file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Write one small picture of the main figures, an SVG
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,

    /// Print the figures of RESULT beside those of another run, and whether they agree
    #[arg(long, value_name = "RESULT")]
    pub against: Option<PathBuf>,

    /// Print the tables as Markdown
    #[arg(long)]
    pub markdown: bool,
}

/// A recorded comparison to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportPlan {
    /// The recorded result.
    pub result: PathBuf,
    /// HTML to write.
    pub html: Option<PathBuf>,
    /// Another recorded comparison.
    pub against: Option<PathBuf>,
    /// Picture to write.
    pub picture: Option<PathBuf>,
    /// Tables as Markdown.
    pub markdown: bool,
}

impl ReportArgs {
    /// What was typed -> what it means.
    pub fn resolve(self) -> ReportPlan {
        ReportPlan {
            result: self.result,
            html: self.html,
            against: self.against,
            picture: self.picture,
            markdown: self.markdown,
        }
    }
}
