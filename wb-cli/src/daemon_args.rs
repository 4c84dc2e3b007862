//! Command line of wb-daemon: `run`, and the subcommands that talk to a running daemon.

use crate::common::{CommonArgs, Example, help_tail};
use crate::config::{CacheConfig, ListenAddr, Ublk};
use crate::control::{Request, Setting};
use crate::error::{NextStep, UsageError};
use crate::exit::Exit;
use crate::harness::Tool;
use crate::paths;
use crate::units::TypedDuration;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Examples of help and man page.
pub const EXAMPLES: &[Example] = &[
    Example {
        command: "wb-daemon run --cache /dev/nvme0n1p3 --backing /dev/sdb --nbd unix:/run/data.nbd",
        does: "Serves /dev/sdb through the cache at nbd+unix:///?socket=/run/data.nbd until it is stopped.",
    },
    Example {
        command: "wb-daemon run --config /etc/writeboost.toml --name data",
        does: "Serves the cache called data as the config file describes it.",
    },
    Example {
        command: "wb-daemon status",
        does: "Shows what the daemon does, and how much data is only in the cache.",
    },
    Example {
        command: "wb-daemon drain",
        does: "Writes all dirty data to the backing device, with progress; ^C ends the waiting, not the work.",
    },
    Example { command: "wb-daemon stop --drain", does: "The same, then stops." },
    Example {
        command: "wb-daemon detach",
        does: "Drains, stops serving and forgets the backing device, which is complete without the cache then.",
    },
    Example {
        command: "wb-daemon run --cache /dev/nvme0n1p3 --backing /dev/sdb --ublk",
        does: "Serves a block device, /dev/ublkb0 if that is free.",
    },
    Example { command: "wb-daemon upgrade", does: "Changes to a newly installed version; /dev/ublkb0 stays mounted." },
    Example { command: "wb-daemon set writeback.start_percent=50", does: "Changes a setting of the running daemon." },
];

/// Serve a disk through a write cache
///
/// `run` attaches a backing device to a cache and serves it over NBD or as a ublk block device. It stays in the
/// foreground; a service manager is told when I/O is served (sd_notify) and a log line says `ready`.
///
/// SIGTERM and SIGINT stop it cleanly: no more I/O is taken, everything acknowledged is made durable, a mark says so.
/// Data not yet written back stays in the cache, and the backing device must not be used without it until
/// `wb-daemon detach`, `wb-daemon drain` or `wb-check --replay` was done.
///
/// The other subcommands talk to a running daemon over its control socket.
#[derive(Debug, Clone, Parser)]
#[command(name = "wb-daemon", version, max_term_width = 100, after_long_help = help_tail::<Exit>(EXAMPLES))]
pub struct DaemonArgs {
    /// Options of all tools.
    #[command(flatten)]
    pub common: CommonArgs,

    /// What to do.
    #[command(subcommand)]
    pub command: DaemonCommand,
}

/// Subcommands of wb-daemon.
#[derive(Debug, Clone, Subcommand)]
pub enum DaemonCommand {
    /// Attach a backing device to a cache and serve it
    ///
    /// Everything comes from the options, or from the config file, whose values the options override. With both --cache
    /// and --backing given, only a config file that is named (--config, $WB_CONFIG) is read. The first attach records the
    /// backing device's identity in the cache; a later attach of another one is refused.
    Run(RunArgs),
    /// Show state, dirty data, hit ratios, throughput, write-back and errors
    Status(SocketArgs),
    /// Write all dirty data to the backing device
    ///
    /// Shows progress, rate and time left. Interrupting the command ends the waiting, not the work.
    Drain(WaitArgs),
    /// Drain, stop serving, and forget the backing device
    ///
    /// Afterwards the backing device is complete without the cache. Refused while clients have it open.
    Detach(WaitArgs),
    /// Stop the daemon cleanly; dirty data stays in the cache
    Stop(StopArgs),
    /// Change to another version of wb-daemon without taking a block device away
    ///
    /// Stops the service cleanly, and starts the new program in the same process, with the same arguments. I/O of a
    /// ublk device waits meanwhile; NBD clients are disconnected. Without --program the file is run that lies now where
    /// the daemon was started from. Returns when the new one is ready.
    Upgrade(UpgradeArgs),
    /// Change a setting of the running daemon
    ///
    /// Settings: writeback.start_percent, stop_percent, idle, idle_seconds, read_latency_ms, quiet_percent,
    /// quiet_age_minutes and quiet_window (each with `writeback.` before it), as in the config file. A change lasts until
    /// the daemon stops; the config file makes it permanent.
    Set(SetArgs),
}

/// Options of `wb-daemon run`.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// The cache device or file
    #[arg(long, value_name = "CACHE")]
    pub cache: Option<PathBuf>,

    /// The backing device or file
    #[arg(long, value_name = "DEV")]
    pub backing: Option<PathBuf>,

    /// Name of the cache; selects a section of the config file, names sockets and the NBD export
    #[arg(long, value_name = "NAME", value_parser = paths::parse_name)]
    pub name: Option<String>,

    /// Serve NBD here: unix:PATH or HOST:PORT. May be given several times
    #[arg(long, value_name = "ADDRESS")]
    pub nbd: Vec<ListenAddr>,

    /// Serve a block device /dev/ublkbID; without ID any free number. Needs root and the module ublk_drv of Linux 6.5
    /// or later
    #[arg(long, value_name = "ID", num_args = 0..=1)]
    pub ublk: Option<Option<u32>>,

    /// Refuse writes of clients
    #[arg(long)]
    pub read_only: bool,

    /// Directory of the RAM tail, which keeps acknowledged writes when the daemon dies, on a tmpfs
    #[arg(long, value_name = "DIR")]
    pub tail_dir: Option<PathBuf>,

    /// Start although the RAM tail of a daemon that died cannot be found. Writes that it acknowledged and did not flush
    /// are lost
    #[arg(long)]
    pub accept_loss: bool,

    /// Path of the control socket
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

/// Which daemon to talk to.
#[derive(Debug, Clone, Default, Args)]
pub struct SocketArgs {
    /// Path of the daemon's control socket
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// Name of the daemon's cache
    #[arg(long, value_name = "NAME", value_parser = paths::parse_name)]
    pub name: Option<String>,
}

/// Options of `drain` and `detach`.
#[derive(Debug, Clone, Default, Args)]
pub struct WaitArgs {
    /// Which daemon.
    #[command(flatten)]
    pub socket: SocketArgs,

    /// Begin the work and return at once
    #[arg(long)]
    pub no_wait: bool,
}

/// Options of `stop`.
#[derive(Debug, Clone, Default, Args)]
pub struct StopArgs {
    /// Which daemon.
    #[command(flatten)]
    pub socket: SocketArgs,

    /// Write all dirty data to the backing device first
    #[arg(long)]
    pub drain: bool,

    /// Stop unclean if it takes longer than this, such as 90s or 5min; the next start recovers
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<TypedDuration>,

    /// Take a ublk device away although it is mounted or open: its users get I/O errors
    #[arg(long)]
    pub force: bool,
}

/// Options of `upgrade`.
#[derive(Debug, Clone, Default, Args)]
pub struct UpgradeArgs {
    /// Which daemon.
    #[command(flatten)]
    pub socket: SocketArgs,

    /// The wb-daemon to change to
    #[arg(long, value_name = "PATH")]
    pub program: Option<PathBuf>,
}

/// Options of `set`.
#[derive(Debug, Clone, Args)]
pub struct SetArgs {
    /// Which daemon.
    #[command(flatten)]
    pub socket: SocketArgs,

    /// The setting and its new value
    #[arg(value_name = "KEY=VALUE", required = true)]
    pub settings: Vec<Setting>,
}

/// What to serve, complete and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct RunPlan {
    /// The cache, as the config file would describe it.
    pub cache: CacheConfig,
    /// Start although acknowledged writes cannot be found.
    pub accept_loss: bool,
}

/// What wb-daemon is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum DaemonPlan {
    /// Serve.
    Run(Box<RunPlan>),
    /// Ask a running daemon.
    Client {
        /// Its control socket.
        control: PathBuf,
        /// What to ask, in this order.
        requests: Vec<Request>,
    },
}

impl Tool for DaemonArgs {
    type Plan = DaemonPlan;
    type Exit = Exit;
    const PROGRAM: &'static str = "wb-daemon";
    const MAN_SECTION: &'static str = "8";
    const EXAMPLES: &'static [Example] = EXAMPLES;
    const VERBOSE: u8 = 1;

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn resolve(self) -> anyhow::Result<DaemonPlan> {
        let common = &self.common;
        let (socket, requests) = match self.command {
            DaemonCommand::Run(args) => return Ok(DaemonPlan::Run(Box::new(args.resolve(common)?))),
            DaemonCommand::Status(socket) => (socket, vec![Request::Status]),
            DaemonCommand::Drain(args) => (args.socket, vec![Request::Drain { wait: !args.no_wait }]),
            DaemonCommand::Detach(args) => (args.socket, vec![Request::Detach { wait: !args.no_wait }]),
            DaemonCommand::Stop(args) => {
                let timeout_ms = args.timeout.map(|t| t.0.as_millis().try_into().unwrap_or(u64::MAX));
                (args.socket, vec![Request::Stop { drain: args.drain, timeout_ms, force: args.force }])
            }
            DaemonCommand::Upgrade(args) => {
                // The daemon has another working directory.
                let program = args.program.map(|path| std::path::absolute(&path).unwrap_or(path));
                (args.socket, vec![Request::Upgrade { program }])
            }
            DaemonCommand::Set(args) => (args.socket, args.settings.into_iter().map(Request::Set).collect()),
        };
        Ok(DaemonPlan::Client { control: socket.resolve(common)?, requests })
    }
}

impl RunArgs {
    fn resolve(self, common: &CommonArgs) -> anyhow::Result<RunPlan> {
        let mut cache = self.base(common)?;
        if let Some(name) = self.name {
            cache.name = name;
        }
        if !self.nbd.is_empty() {
            cache.nbd = Some(self.nbd);
        }
        if let Some(id) = self.ublk {
            cache.ublk = id.map_or(Ublk::Any, Ublk::Id);
        }
        if let Some(control) = self.control {
            cache.control = Some(control);
        }
        if let Some(tail_dir) = self.tail_dir {
            cache.tail_dir = Some(tail_dir);
        }
        cache.read_only |= self.read_only;
        cache.check().map_err(UsageError::raise)?;
        Ok(RunPlan { cache, accept_loss: self.accept_loss })
    }

    /// The section that the options build upon.
    fn base(&self, common: &CommonArgs) -> anyhow::Result<CacheConfig> {
        // Both devices typed: the default config file, which may be about other caches, has no say.
        let complete = self.cache.is_some() && self.backing.is_some();
        let config = if complete && common.config.is_none() { None } else { common.load_config()? };
        let Some((path, config)) = config else {
            return self.without_config();
        };
        let fits = |c: &&CacheConfig| {
            self.name.as_ref().is_none_or(|name| c.name == *name)
                && self.cache.as_ref().is_none_or(|device| c.device == *device)
                && self.backing.as_ref().is_none_or(|backing| c.backing == *backing)
        };
        let found: Vec<&CacheConfig> = config.caches.iter().filter(fits).collect();
        match found[..] {
            [section] => Ok(section.clone()),
            [] if complete => self.without_config(),
            [] => {
                Err(UsageError::raise(format!("{} has no [[cache]] that fits the options", path.display()))).next_step(
                    format!("name both --cache and --backing, or one of the names there: {}", names(&config.caches)),
                )
            }
            _ => Err(UsageError::raise(format!("{} has several caches", path.display())))
                .next_step(format!("name one with --name: {}", names(&config.caches))),
        }
    }

    fn without_config(&self) -> anyhow::Result<CacheConfig> {
        match (&self.cache, &self.backing) {
            (Some(cache), Some(backing)) => {
                let name = self.name.clone().unwrap_or_else(|| paths::name_for(backing));
                Ok(CacheConfig::new(name, cache.clone(), backing.clone()))
            }
            (None, _) => Err(UsageError::raise("no cache device named, and there is no config file"))
                .next_step("name it with --cache CACHE, or a config file with --config FILE"),
            (_, None) => Err(UsageError::raise("no backing device named, and there is no config file"))
                .next_step("name it with --backing DEV, or a config file with --config FILE"),
        }
    }
}

impl SocketArgs {
    /// The socket: named; that of the named or only cache of the config file; or the only one in the run directory.
    fn resolve(self, common: &CommonArgs) -> anyhow::Result<PathBuf> {
        if let Some(path) = self.control {
            return Ok(path);
        }
        let config = common.load_config()?;
        let caches = config.map(|(_, config)| config.caches).unwrap_or_default();
        if let Some(name) = self.name {
            let section = caches.iter().find(|c| c.name == name);
            return Ok(section.map_or_else(|| paths::control_socket(&name), CacheConfig::control_path));
        }
        match &caches[..] {
            [only] => Ok(only.control_path()),
            [] => only_running(),
            _ => Err(UsageError::raise("the config file has several caches"))
                .next_step(format!("name one with --name: {}", names(&caches))),
        }
    }
}

/// The only control socket in the run directory.
fn only_running() -> anyhow::Result<PathBuf> {
    let dir = paths::run_dir();
    let mut sockets: Vec<PathBuf> =
        std::fs::read_dir(&dir).map(|entries| entries.flatten().map(|e| e.path()).collect()).unwrap_or_default();
    sockets.retain(|path| path.extension().is_some_and(|e| e == "sock"));
    sockets.sort();
    match &sockets[..] {
        [only] => Ok(only.clone()),
        [] => Err(UsageError::raise(format!("no daemon named, and {} has no control socket", dir.display())))
            .next_step("name the daemon's socket with --control PATH, or start one with `wb-daemon run`"),
        _ => {
            let known: Vec<_> = sockets.iter().filter_map(|s| s.file_stem()).map(|s| s.to_string_lossy()).collect();
            Err(UsageError::raise("several daemons run"))
                .next_step(format!("name one with --name: {}", known.join(", ")))
        }
    }
}

fn names(caches: &[CacheConfig]) -> String {
    caches.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ")
}
