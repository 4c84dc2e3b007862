//! Command line of wb-format.

use crate::common::{CommonArgs, Example, help_tail};
use crate::error::UsageError;
use crate::exit::Exit;
use crate::harness::Tool;
use crate::units::ByteSize;
use clap::Parser;
use std::path::PathBuf;
use uuid::Uuid;
use wb_core::format::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};

/// Examples of help and man page.
pub const EXAMPLES: &[Example] = &[
    Example { command: "wb-format /dev/nvme0n1p3", does: "Makes the whole partition a cache." },
    Example {
        command: "wb-format --size 1GiB --label test cache.img",
        does: "Creates a file of 1 GiB, written out completely, and makes it a cache.",
    },
    Example {
        command: "wb-format --force /dev/nvme0n1p3",
        does: "Overwrites a filesystem or partition table that was found there.",
    },
    Example {
        command: "wb-format --discard-dirty 6d1f7c1e-0f0b-4a55-9a55-2f6c2c3b8f10 /dev/nvme0n1p3",
        does: "Formats a cache anew although its dirty data, which no disk has, is lost with it.",
    },
];

/// Write an empty cache to a block device or file
///
/// Makes CACHE an empty Writeboost cache: a superblock in two copies, two anchors, and a log of segments behind them.
/// Everything that was on the device is lost. The backing device is not touched; it is named when wb-daemon first
/// attaches it.
///
/// A device is refused if it is in use or mounted, always; and if it holds a known signature (filesystem, partition
/// table, RAID, LVM, another cache), unless --force is given. A cache that holds data which has not yet been written to
/// its backing device needs --discard-dirty with that cache's UUID, too, or the UUID typed on the terminal.
///
/// Regular files are written out in full, so that later writes do not allocate.
#[derive(Debug, Clone, Parser)]
#[command(name = "wb-format", version, max_term_width = 100, after_long_help = help_tail::<Exit>(EXAMPLES))]
pub struct FormatArgs {
    /// The device or file to make a cache. All of its content is lost
    #[arg(value_name = "CACHE")]
    pub cache: PathBuf,

    /// Size of the file to create. A block device is always used as a whole: make a partition of the size wanted
    #[arg(long, value_name = "SIZE")]
    pub size: Option<ByteSize>,

    /// Unit of reuse of the log: a power of two, 64KiB to 64MiB
    #[arg(long, value_name = "SIZE", default_value = "2MiB")]
    pub segment_size: ByteSize,

    /// A label for people, at most 64 bytes
    #[arg(long, value_name = "LABEL")]
    pub label: Option<String>,

    /// Overwrite a known signature. Never overrides "in use" or "mounted"
    #[arg(long)]
    pub force: bool,

    /// The cache with this UUID may be overwritten although it holds dirty data
    #[arg(long, value_name = "UUID")]
    pub discard_dirty: Option<Uuid>,

    /// Options of all tools.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Longest label in bytes.
pub const LABEL_BYTES_MAX: usize = 64;

/// What to format, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatPlan {
    /// Device or file.
    pub cache: PathBuf,
    /// Size in bytes, a multiple of 4096; `None`: all of the device or file.
    pub size_bytes: Option<u64>,
    /// Bytes of a segment, a power of two.
    pub segment_bytes: u64,
    /// Label, empty if none.
    pub label: String,
    /// Overwrite a known signature.
    pub force: bool,
    /// The dirty cache that may be overwritten.
    pub discard_dirty: Option<Uuid>,
}

impl Tool for FormatArgs {
    type Plan = FormatPlan;
    type Exit = Exit;
    const PROGRAM: &'static str = "wb-format";
    const MAN_SECTION: &'static str = "8";
    const EXAMPLES: &'static [Example] = EXAMPLES;

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn resolve(self) -> anyhow::Result<FormatPlan> {
        let segment_bytes = self.segment_size.0;
        if !segment_bytes.is_power_of_two()
            || !(u64::from(SEGMENT_BYTES_MIN)..=u64::from(SEGMENT_BYTES_MAX)).contains(&segment_bytes)
        {
            return Err(UsageError::raise(format!(
                "--segment-size {}: use a power of two from {} to {}",
                self.segment_size,
                ByteSize(SEGMENT_BYTES_MIN.into()),
                ByteSize(SEGMENT_BYTES_MAX.into())
            )));
        }
        if let Some(size) = self.size
            && size.0 % 4096 != 0
        {
            return Err(UsageError::raise(format!("--size {} bytes: use a multiple of 4096", size.0)));
        }
        let label = self.label.unwrap_or_default();
        if label.len() > LABEL_BYTES_MAX || label.chars().any(char::is_control) {
            return Err(UsageError::raise(format!(
                "--label: use at most {LABEL_BYTES_MAX} bytes without control characters"
            )));
        }
        Ok(FormatPlan {
            cache: self.cache,
            size_bytes: self.size.map(|s| s.0),
            segment_bytes,
            label,
            force: self.force,
            discard_dirty: self.discard_dirty,
        })
    }
}
