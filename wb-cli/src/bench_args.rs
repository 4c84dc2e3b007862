//! Command line of wb-bench.

pub use crate::bench_compare_args::{BlockDevice, CompareTuning, ModelDiskPlan, ReportPlan, TuningPlan};
use crate::bench_compare_args::{ModelDiskArgs, ReportArgs};
use crate::common::{CommonArgs, Example, help_tail};
use crate::error::{NextStep, UsageError};
use crate::exit::Exit;
use crate::harness::Tool;
use crate::units::{ByteSize, TypedDuration};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Examples of help and man page.
pub const EXAMPLES: &[Example] = &[
    Example {
        command: "wb-bench run randwrite --cache cache.img --backing disk.img --bs 4KiB --iodepth 128",
        does: "Measures random writes on the engine, and the raw cache device in the same run.",
    },
    Example {
        command: "wb-bench run sync --nbd-uri 'nbd+unix:///?socket=/run/data.nbd' --size 1GiB",
        does: "Measures write + flush, one at a time, on a running NBD server.",
    },
    Example {
        command: "wb-bench run randread --device /dev/sdb --json",
        does: "Measures random reads of a block device, for a script.",
    },
    Example {
        command: "wb-bench suite --dir /mnt/ssd",
        does: "Measures the project's own goals on the device under /mnt/ssd; takes about ten minutes and 10 GiB.",
    },
    Example {
        command: "wb-bench --compare bcache,dm-cache",
        does: "Compares this cache with two of its peers, under the same load on the same devices.",
    },
    Example {
        command: "wb-bench --compare bcache --only burst,fsync-1 --save result.json --html report.html",
        does: "Compares two workloads only; keeps the result and a report with plots.",
    },
    Example {
        command: "wb-bench --compare dm-writecache --cache-device /dev/sdx --backing-device /dev/sdy",
        does: "Compares on real devices, whose content is lost, after asking.",
    },
    Example {
        command: "wb-bench model-disk --model hdd --size 2GiB --socket hdd.sock --stats hdd.json",
        does: "Serves a disk that is as slow as a rotating one, for QEMU and other NBD clients.",
    },
];

/// Measure this cache and its peers
///
/// `run` measures one workload on the engine in process, on an NBD server, or on a block device; the raw device is
/// measured in the same run, alternating, and what counts is their ratio. Writing workloads overwrite what they run on.
///
/// `--compare` puts other caches beside this one: the same devices, the same load, each cache as its own users would set
/// it up.
///
/// `suite` measures the project's own goals, a table of ratios, on files that it makes and removes.
///
/// Without devices a comparison runs in a virtual machine whose SSD and disk are modelled; `report` shows a saved result
/// again, and `model-disk` serves such a device by itself.
#[derive(Debug, Clone, Parser)]
#[command(name = "wb-bench", version, max_term_width = 100, after_long_help = help_tail::<Exit>(EXAMPLES))]
pub struct BenchArgs {
    /// Options of all tools.
    #[command(flatten)]
    pub common: CommonArgs,

    /// Options of --compare.
    #[command(flatten)]
    pub compare: CompareArgs,

    /// What to do.
    #[command(subcommand)]
    pub command: Option<BenchCommand>,
}

/// Subcommands of wb-bench.
#[derive(Debug, Clone, Subcommand)]
pub enum BenchCommand {
    /// Measure one workload
    Run(Box<RunArgs>),
    /// Measure the project's own goals
    Suite(SuiteArgs),
    /// Count the instructions of the hot path
    Hotpath(HotpathArgs),
    /// Serve a modelled device over NBD, in real time
    ModelDisk(ModelDiskArgs),
    /// Show a recorded comparison again
    Report(ReportArgs),
    /// The measuring side of a comparison, in the guest
    #[command(hide = true)]
    CompareAgent,
}

/// Options of `wb-bench hotpath`.
#[derive(Debug, Clone, Args)]
pub struct HotpathArgs {
    /// Compare with the counts in this file: more than 5 % above is an error
    #[arg(long, value_name = "FILE")]
    pub counts: Option<PathBuf>,

    /// Keep the counts in the file of --counts
    #[arg(long, requires = "counts")]
    pub update: bool,

    /// Run one operation, uncounted: what runs under callgrind
    #[arg(long, value_name = "OPERATION", hide = true, requires = "operations")]
    pub child: Option<String>,

    /// How often --child runs it
    #[arg(long, value_name = "N", hide = true)]
    pub operations: Option<u64>,
}

/// Options of `wb-bench suite`.
#[derive(Debug, Clone, Args)]
pub struct SuiteArgs {
    /// Directory on the device that is measured; files are made there, and removed
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub dir: PathBuf,

    /// Rows of the table, by number; all if left out
    #[arg(long, value_name = "ROW", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(1..=13))]
    pub rows: Vec<u8>,

    /// Bytes of the cache file
    #[arg(long, value_name = "SIZE", default_value = "4GiB")]
    pub size: ByteSize,

    /// Repetitions, of which the median is shown
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeat: u32,

    /// How long each pass is
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    pub runtime: TypedDuration,

    /// Folder of wb-daemon; left out, that of wb-bench
    #[arg(long, value_name = "DIR")]
    pub programs: Option<PathBuf>,
}

/// What is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Peer {
    /// bcache, writeback mode.
    Bcache,
    /// dm-cache, policy smq, writeback mode.
    DmCache,
    /// dm-writecache.
    DmWritecache,
    /// dm-writeboost, the kernel module.
    DmWriteboost,
    /// The bare cache device: an upper bound.
    RawSsd,
    /// The bare backing device: what there is without cache.
    RawDisk,
}

/// Options of `wb-bench --compare`.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Comparison")]
pub struct CompareArgs {
    /// Compare with these caches
    #[arg(long, value_name = "PEER", value_enum, value_delimiter = ',')]
    pub compare: Vec<Peer>,

    /// Run on this host, with this fast device. All of its content is lost
    #[arg(long, value_name = "DEV", requires_all = ["compare", "backing_device"])]
    pub cache_device: Option<PathBuf>,

    /// Run on this host, with this slow device. All of its content is lost
    #[arg(long, value_name = "DEV", requires_all = ["compare", "cache_device"])]
    pub backing_device: Option<PathBuf>,

    /// Run in a virtual machine with modelled devices; the default where no devices are named
    #[arg(long, requires = "compare", conflicts_with = "cache_device")]
    pub guest: bool,

    /// Run everything, without a limit of time, in place of the quick set
    #[arg(long, requires = "compare")]
    pub full: bool,

    /// Do not ask before the devices are overwritten
    #[arg(short, long, requires = "cache_device")]
    pub yes: bool,

    /// Write a report with plots, one self-contained HTML file
    #[arg(long, value_name = "FILE", requires = "compare")]
    pub html: Option<PathBuf>,

    /// Size and choice of what is run.
    #[command(flatten)]
    pub tuning: CompareTuning,
}

/// Loads, by fio's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Random writes.
    Randwrite,
    /// Random reads.
    Randread,
    /// Sequential writes.
    Write,
    /// Sequential reads.
    Read,
    /// Random reads and writes, mixed.
    Randrw,
    /// Write + flush, each awaited.
    Sync,
    /// Zipfian (0.99) writes, or mixed with --rwmixread.
    Zipf,
}

/// What makes the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LoadEngine {
    /// wb-bench itself.
    #[default]
    Builtin,
    /// fio, as an outside check.
    Fio,
}

/// Options of `wb-bench run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// The load
    #[arg(value_name = "WORKLOAD", value_enum)]
    pub workload: Workload,

    /// Run on the engine in process, with this cache device or file. It is formatted anew
    #[arg(long, value_name = "CACHE", requires = "backing", conflicts_with_all = ["nbd_uri", "device"])]
    pub cache: Option<PathBuf>,

    /// The backing device or file of --cache. Its content is lost
    #[arg(long, value_name = "DEV", requires = "cache")]
    pub backing: Option<PathBuf>,

    /// Run on this NBD server
    #[arg(long, value_name = "URI", conflicts_with = "device")]
    pub nbd_uri: Option<String>,

    /// Run on this block device
    #[arg(long, value_name = "DEV")]
    pub device: Option<PathBuf>,

    /// Bytes per operation
    #[arg(long, value_name = "SIZE", default_value = "4KiB")]
    pub bs: ByteSize,

    /// Operations in flight, per job
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub iodepth: u32,

    /// Jobs side by side
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub numjobs: u32,

    /// Threads over which the jobs are spread
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,

    /// Share of reads in percent; left out, 50 for randrw and none for zipf
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub rwmixread: Option<u8>,

    /// Serve reads of the cache without checking their checksums
    #[arg(long, requires = "cache")]
    pub no_verify_reads: bool,

    /// Flush after every N writes; 0: never. `sync` flushes after each
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub fsync: u32,

    /// Bytes of the working set; left out, as much as the target allows
    #[arg(long, value_name = "SIZE")]
    pub size: Option<ByteSize>,

    /// How long to measure
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    pub runtime: TypedDuration,

    /// How long to warm up before
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    pub ramp_time: TypedDuration,

    /// Repetitions, of which the median is shown
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeat: u32,

    /// What makes the load
    #[arg(long, value_enum, default_value_t = LoadEngine::Builtin)]
    pub engine: LoadEngine,

    /// Do not ask before data is overwritten
    #[arg(short, long)]
    pub yes: bool,
}

/// What the load runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The engine in process.
    Engine {
        /// Cache device or file.
        cache: PathBuf,
        /// Backing device or file.
        backing: PathBuf,
    },
    /// An NBD server.
    Nbd {
        /// Its URI.
        uri: String,
    },
    /// A block device.
    Device {
        /// Its path.
        path: PathBuf,
    },
}

/// One workload to measure, complete and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPlan {
    /// The load.
    pub workload: Workload,
    /// What it runs on.
    pub target: Target,
    /// Bytes per operation, a multiple of 512.
    pub block_bytes: u32,
    /// Operations in flight per job.
    pub iodepth: u32,
    /// Jobs side by side.
    pub jobs: u32,
    /// Threads over which the jobs are spread.
    pub threads: u32,
    /// Share of reads of `randrw`, in percent.
    pub read_percent: u8,
    /// Share of reads of `zipf`, in percent.
    pub zipf_read_percent: u8,
    /// Check what is read from the cache.
    pub verify_reads: bool,
    /// Flush after so many writes.
    pub flush_every: Option<u32>,
    /// Bytes of the working set.
    pub size_bytes: Option<u64>,
    /// Time of measuring.
    pub runtime: Duration,
    /// Time of warming up.
    pub ramp_time: Duration,
    /// Repetitions.
    pub repeat: u32,
    /// What makes the load.
    pub engine: LoadEngine,
    /// Overwrite without asking.
    pub yes: bool,
}

/// The table of goals, complete and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuitePlan {
    /// Where files are made.
    pub dir: PathBuf,
    /// Rows, ascending, each once.
    pub rows: Vec<u8>,
    /// Bytes of the cache file.
    pub size_bytes: u64,
    /// Repetitions.
    pub repeat: u32,
    /// Time of each pass.
    pub runtime: Duration,
    /// Folder of wb-daemon.
    pub programs: Option<PathBuf>,
}

/// Counting of instructions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HotpathPlan {
    /// Counts to compare with.
    pub counts: Option<PathBuf>,
    /// Write them.
    pub update: bool,
    /// Operation and number, below callgrind.
    pub child: Option<(String, u64)>,
}

/// Rows of the table of goals.
pub const SUITE_ROWS: u8 = 13;

/// Where a comparison runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    /// In a virtual machine with modelled devices.
    Guest,
    /// On this host, with these devices, whose content is lost.
    Host {
        /// The fast device.
        cache_device: PathBuf,
        /// The slow device.
        backing_device: PathBuf,
        /// Overwrite without asking.
        yes: bool,
    },
}

/// A comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct ComparePlan {
    /// What to compare with, each once.
    pub peers: Vec<Peer>,
    /// Where.
    pub place: Place,
    /// Everything, in place of the quick set.
    pub full: bool,
    /// Report to write.
    pub html: Option<PathBuf>,
    /// Size and choice of what is run.
    pub tuning: TuningPlan,
}

/// What wb-bench is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum BenchPlan {
    /// Measure one workload.
    Run(Box<RunPlan>),
    /// Measure the project's own goals.
    Suite(SuitePlan),
    /// Count instructions.
    Hotpath(HotpathPlan),
    /// Compare with peers.
    Compare(Box<ComparePlan>),
    /// Serve a modelled device.
    ModelDisk(ModelDiskPlan),
    /// Show a recorded comparison.
    Report(ReportPlan),
    /// Measure what the host at the other end of a serial port says.
    CompareAgent,
}

impl Tool for BenchArgs {
    type Plan = BenchPlan;
    type Exit = Exit;
    const PROGRAM: &'static str = "wb-bench";
    const MAN_SECTION: &'static str = "1";
    const EXAMPLES: &'static [Example] = EXAMPLES;

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn resolve(self) -> anyhow::Result<BenchPlan> {
        match (self.command, self.compare.compare.is_empty()) {
            (Some(BenchCommand::Run(args)), true) => Ok(BenchPlan::Run(Box::new(args.resolve()?))),
            (Some(BenchCommand::Suite(args)), true) => Ok(BenchPlan::Suite(args.resolve()?)),
            (Some(BenchCommand::Hotpath(args)), true) => Ok(BenchPlan::Hotpath(HotpathPlan {
                counts: args.counts,
                update: args.update,
                child: args.child.zip(args.operations),
            })),
            (None, false) => Ok(BenchPlan::Compare(Box::new(self.compare.resolve()?))),
            (Some(BenchCommand::ModelDisk(args)), true) => Ok(BenchPlan::ModelDisk(args.resolve()?)),
            (Some(BenchCommand::Report(args)), true) => Ok(BenchPlan::Report(args.resolve())),
            (Some(BenchCommand::CompareAgent), true) => Ok(BenchPlan::CompareAgent),
            (Some(_), false) => Err(UsageError::raise("a subcommand and --compare exclude each other")),
            (None, true) => Err(UsageError::raise("nothing to measure named"))
                .next_step("use `wb-bench run WORKLOAD ...` or `wb-bench --compare bcache,dm-cache`"),
        }
    }
}

impl RunArgs {
    fn resolve(self) -> anyhow::Result<RunPlan> {
        let target = match (self.cache, self.backing, self.nbd_uri, self.device) {
            (Some(cache), Some(backing), None, None) if cache == backing => {
                return Err(UsageError::raise(format!("{} is named as cache and as backing device", cache.display())));
            }
            (Some(cache), Some(backing), None, None) => Target::Engine { cache, backing },
            (None, None, Some(uri), None) => Target::Nbd { uri },
            (None, None, None, Some(path)) => Target::Device { path },
            _ => {
                return Err(UsageError::raise("nothing to run on named"))
                    .next_step("use --cache CACHE --backing DEV, or --nbd-uri URI, or --device DEV");
            }
        };
        let block_bytes = match u32::try_from(self.bs.0) {
            Ok(bytes @ 512..=0x200_0000) if bytes % 512 == 0 => bytes,
            _ => return Err(UsageError::raise(format!("--bs {}: use a multiple of 512 up to 32MiB", self.bs))),
        };
        let flush_every = match self.workload {
            Workload::Sync => Some(self.fsync.max(1)),
            _ => (self.fsync > 0).then_some(self.fsync),
        };
        Ok(RunPlan {
            workload: self.workload,
            target,
            block_bytes,
            iodepth: self.iodepth,
            jobs: self.numjobs,
            threads: self.threads,
            read_percent: self.rwmixread.unwrap_or(50),
            zipf_read_percent: self.rwmixread.unwrap_or(0),
            verify_reads: !self.no_verify_reads,
            flush_every,
            size_bytes: self.size.map(|s| s.0),
            runtime: self.runtime.0,
            ramp_time: self.ramp_time.0,
            repeat: self.repeat,
            engine: self.engine,
            yes: self.yes,
        })
    }
}

impl SuiteArgs {
    fn resolve(self) -> anyhow::Result<SuitePlan> {
        if self.size.0 < 256 << 20 {
            return Err(UsageError::raise(format!("--size {}: use 256MiB or more", self.size)));
        }
        let mut rows = if self.rows.is_empty() { (1..=SUITE_ROWS).collect() } else { self.rows };
        rows.sort_unstable();
        rows.dedup();
        Ok(SuitePlan {
            dir: self.dir,
            rows,
            size_bytes: self.size.0,
            repeat: self.repeat,
            runtime: self.runtime.0,
            programs: self.programs,
        })
    }
}

impl CompareArgs {
    fn resolve(self) -> anyhow::Result<ComparePlan> {
        let place = match (self.cache_device, self.backing_device) {
            (Some(cache), Some(backing)) if cache == backing => {
                return Err(UsageError::raise(format!("{} is named as cache and as backing device", cache.display())));
            }
            (Some(cache_device), Some(backing_device)) => Place::Host { cache_device, backing_device, yes: self.yes },
            _ => Place::Guest,
        };
        let mut peers = self.compare;
        peers.sort();
        peers.dedup();
        Ok(ComparePlan { peers, place, full: self.full, html: self.html, tuning: self.tuning.resolve()? })
    }
}
