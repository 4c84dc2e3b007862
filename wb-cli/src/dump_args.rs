//! Command line of wb-dump.

use crate::common::{CommonArgs, Example, help_tail};
use crate::exit::Exit;
use crate::harness::Tool;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::str::FromStr;

/// Examples of help and man page.
pub const EXAMPLES: &[Example] = &[
    Example {
        command: "wb-dump segment 42",
        does: "Shows the records and entries of segment 42 of the configured cache.",
    },
    Example {
        command: "wb-dump --cache cache.img summary",
        does: "Counts what the cache holds, and where its log is.",
    },
    Example {
        command: "wb-dump --cache cache.img block 1:4711",
        does: "Shows every version of block 4711 of volume 1 that is still in the log.",
    },
    Example {
        command: "wb-dump --cache cache.img block @1GiB",
        does: "Shows the same for the block that holds byte offset 1 GiB of volume 1.",
    },
    Example { command: "wb-dump --cache cache.img log --from 100 --count 5", does: "Lists the records 100 to 104." },
    Example { command: "wb-dump --json superblock | jq -r .uuid", does: "Gives the cache's UUID to a script." },
];

/// Show what a cache holds
///
/// Reads only, works beside a running daemon, and on damaged images: what is damaged is named, the rest is shown.
/// Beside a daemon the cache changes while it is read; what is shown is then a view of some recent moment.
#[derive(Debug, Clone, Parser)]
#[command(name = "wb-dump", version, max_term_width = 100, after_long_help = help_tail::<Exit>(EXAMPLES))]
pub struct DumpArgs {
    /// The cache device or file; left out, the only one of the config file
    #[arg(long, global = true, value_name = "CACHE")]
    pub cache: Option<PathBuf>,

    /// Options of all tools.
    #[command(flatten)]
    pub common: CommonArgs,

    /// What to show.
    #[command(subcommand)]
    pub what: DumpWhat,
}

/// What to show.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum DumpWhat {
    /// Both superblocks, the volumes, the geometry
    Superblock,
    /// Both anchors: epoch, tails, durable record, clean mark, counters
    Anchor,
    /// One segment: its records, their entries and the state of each
    Segment {
        /// Number of the segment, from 0
        #[arg(value_name = "N")]
        segment: u32,
    },
    /// One record: its header and entries
    Record {
        /// Number of the record
        #[arg(value_name = "SEQ")]
        seq: u64,
    },
    /// Every version of a block that is still in the log, with times
    Block {
        /// BLOCK or VOLUME:BLOCK, the number of a 4 KiB block; or @OFFSET or VOLUME:@OFFSET, in bytes. Without VOLUME, 1
        #[arg(value_name = "ADDR")]
        address: BlockAddress,
    },
    /// The records of the log, one line each, oldest first
    Log {
        /// Begin with this record
        #[arg(long, value_name = "SEQ")]
        from: Option<u64>,
        /// Show at most so many records
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
    /// What the cache holds, in numbers
    Summary,
}

/// A block as typed: volume and block number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockAddress {
    /// Number of the volume, 1 if none was typed.
    pub volume: u16,
    /// Number of the 4 KiB block, below 2^48.
    pub block: u64,
}

impl FromStr for BlockAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<BlockAddress, String> {
        let (volume, place) = match text.split_once(':') {
            Some((volume, place)) => (volume.parse().map_err(|_| format!("{volume:?} is no volume number"))?, place),
            None => (1, text),
        };
        if volume == 0 {
            return Err("volumes are numbered from 1".into());
        }
        let block = match place.strip_prefix('@') {
            Some(offset) => offset.parse::<crate::units::ByteSize>()?.0 / wb_core::BLOCK_BYTES_U64,
            None => parse_number(place).ok_or_else(|| format!("{place:?} is no block number"))?,
        };
        if block >> wb_core::BLOCK_NUMBER_BITS != 0 {
            return Err("block numbers have at most 48 bits".into());
        }
        Ok(BlockAddress { volume, block })
    }
}

fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// What to show of which cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpPlan {
    /// Cache device or file.
    pub cache: PathBuf,
    /// What to show.
    pub what: DumpWhat,
}

impl Tool for DumpArgs {
    type Plan = DumpPlan;
    type Exit = Exit;
    const PROGRAM: &'static str = "wb-dump";
    const MAN_SECTION: &'static str = "8";
    const EXAMPLES: &'static [Example] = EXAMPLES;

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn resolve(self) -> anyhow::Result<DumpPlan> {
        let cache = self.common.cache_or_config(self.cache, "--cache CACHE")?;
        Ok(DumpPlan { cache, what: self.what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_each_form() {
        for (text, volume, block) in [
            ("7", 1, 7),
            ("3:0x10", 3, 16),
            ("@4096", 1, 1),
            ("2:@1GiB", 2, 1 << 18),
            ("@5000", 1, 1),
            ("281474976710655", 1, (1 << 48) - 1),
        ] {
            assert_eq!(text.parse(), Ok(BlockAddress { volume, block }), "{text}");
        }
        for text in ["", ":", "0:5", "x", "1:x", "70000:1", "281474976710656", "-1", "1:2:3", "@"] {
            assert!(text.parse::<BlockAddress>().is_err(), "{text}");
        }
    }
}
