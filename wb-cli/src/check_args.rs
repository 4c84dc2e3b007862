//! Command line of wb-check.

use crate::common::{CommonArgs, Example, help_tail};
use crate::error::{NextStep, UsageError};
use crate::exit::CheckExit;
use crate::harness::Tool;
use clap::Parser;
use std::path::PathBuf;

/// Examples of help and man page.
pub const EXAMPLES: &[Example] = &[
    Example { command: "wb-check /dev/nvme0n1p3", does: "Checks superblocks, anchors and every record, read-only." },
    Example {
        command: "wb-check --verify-data cache.img",
        does: "Reads every block as well and compares its checksum.",
    },
    Example {
        command: "wb-check --repair --backup cache.saved /dev/nvme0n1p3",
        does: "Shows what it would repair, asks, saves the blocks it replaces, and repairs.",
    },
    Example {
        command: "wb-check --replay --backing /dev/sdb /dev/nvme0n1p3",
        does: "Writes all dirty data to the backing device, so that it can be used without its cache.",
    },
    Example { command: "wb-check --json cache.img | jq .verdict", does: "Gives the verdict to a script." },
];

/// Check, repair or replay a cache that no daemon has open
///
/// Without --repair or --replay nothing is written. Checked are both superblocks, both anchors, the chain of records
/// and every record header; with --verify-data every block's payload as well. What a crash leaves at the end of the log
/// (a torn tail) was never promised to anybody: it is noted and is no error.
///
/// --repair first shows its plan. It salvages every record that proves itself, lists what is lost, and marks lost
/// blocks, so that reading them fails until they are overwritten: old data is never passed off as new. Blocks that a
/// lost record may have overwritten are listed as suspect.
///
/// --replay does what the daemon's write-back does, offline and to the end. It can be interrupted and repeated at any
/// point.
#[derive(Debug, Clone, Parser)]
#[command(name = "wb-check", version, max_term_width = 100, after_long_help = help_tail::<CheckExit>(EXAMPLES))]
pub struct CheckArgs {
    /// The cache device or file; left out, the only one of the config file
    #[arg(value_name = "CACHE")]
    pub cache: Option<PathBuf>,

    /// Repair what is wrong, after showing the plan
    #[arg(long, conflicts_with = "replay")]
    pub repair: bool,

    /// Do not ask before the repair
    #[arg(short, long, requires = "repair")]
    pub yes: bool,

    /// Where --repair saves the blocks it replaces; the default for a file is CACHE.backup beside it
    #[arg(long, value_name = "FILE", requires = "repair")]
    pub backup: Option<PathBuf>,

    /// Verify the checksum of every block's payload, too
    #[arg(long)]
    pub verify_data: bool,

    /// Write all dirty data to the backing device
    #[arg(long)]
    pub replay: bool,

    /// The backing device for --replay; left out, the one that the config file gives this cache
    #[arg(long, value_name = "DEV", requires = "replay")]
    pub backing: Option<PathBuf>,

    /// Options of all tools.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// What to do beside checking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckAction {
    /// Nothing: read-only.
    Verify,
    /// Repair what is wrong.
    Repair {
        /// Do not ask.
        yes: bool,
        /// Where replaced blocks are saved. `None`: beside an image file as `CACHE.backup`; for a block device the tool
        /// must refuse, as there is no place to derive.
        backup: Option<PathBuf>,
    },
    /// Write all dirty data to this backing device.
    Replay {
        /// The backing device.
        backing: PathBuf,
    },
}

/// What to check, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckPlan {
    /// Cache device or file.
    pub cache: PathBuf,
    /// Verify payload checksums.
    pub verify_data: bool,
    /// What to do beside checking.
    pub action: CheckAction,
}

impl CheckArgs {
    /// The backing device of `cache`, from the command line or the config file.
    fn backing_of(&self, cache: &PathBuf) -> anyhow::Result<PathBuf> {
        if let Some(backing) = &self.backing {
            return Ok(backing.clone());
        }
        let known = self
            .common
            .load_config()?
            .and_then(|(_, config)| config.caches.into_iter().find(|c| c.device == *cache).map(|c| c.backing));
        known
            .ok_or_else(|| UsageError::raise(format!("--replay needs the backing device of {}", cache.display())))
            .next_step("name it with --backing DEV")
    }
}

impl Tool for CheckArgs {
    type Plan = CheckPlan;
    type Exit = CheckExit;
    const PROGRAM: &'static str = "wb-check";
    const MAN_SECTION: &'static str = "8";
    const EXAMPLES: &'static [Example] = EXAMPLES;

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn resolve(self) -> anyhow::Result<CheckPlan> {
        let cache = self.common.cache_or_config(self.cache.clone(), "CACHE")?;
        let action = if self.replay {
            let backing = self.backing_of(&cache)?;
            if backing == cache {
                return Err(UsageError::raise(format!("{} is named as cache and as backing device", cache.display())));
            }
            CheckAction::Replay { backing }
        } else if self.repair {
            CheckAction::Repair { yes: self.yes, backup: self.backup }
        } else {
            CheckAction::Verify
        };
        Ok(CheckPlan { cache, verify_data: self.verify_data, action })
    }
}
