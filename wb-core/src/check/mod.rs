//! The offline side: checking a cache, repairing it, writing its dirty data back, showing it.
//!
//! Everything works on any image, read-only unless it is [`repair`] or [`replay`], and without the engine.

mod append;
#[cfg(any(test, feature = "sim", feature = "testing"))]
pub mod build;
pub mod census;
#[cfg(any(test, feature = "sim", feature = "testing"))]
pub mod damage;
#[cfg(test)]
mod engine_tests;
mod examine;
#[cfg(test)]
mod hostile_tests;
pub mod live;
mod plan;
mod repair;
mod replay;
mod report;
pub mod salvage;
pub mod segment;
#[cfg(test)]
mod tests;
pub mod view;

pub use examine::{Examination, HeaderDamage, Rot, examine, survey};
pub use plan::{Plan, plan};
pub use repair::{Backup, RepairOptions, ram_tail_is_alive, repair};
pub use replay::{ReplayOptions, ReplayReport, replay};
pub use report::{Finding, Report, Severity, Verdict};
pub use view::{LogSource, LogView};

use crate::io::{Disk, IoError};
use crate::meta::MetaError;
use crate::types::*;

/// What to check, beside metadata, chain and headers.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// Compare every payload with its checksum.
    pub verify_data: bool,
}

/// Where a long operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub what: &'static str,
    /// How much of it is done.
    pub done: u64,
    /// Of how much.
    pub total: u64,
}

/// Why a check, repair or replay could not be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// Not a usable cache.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The cache device failed.
    #[error("the cache device failed: {0}")]
    Cache(IoError),
    /// The backing device failed.
    #[error("the backing device failed: {0}")]
    Backing(IoError),
    /// The backup could not be written; nothing was changed.
    #[error("the backup cannot be written: {0}; nothing further was changed")]
    Backup(String),
    /// The daemon died in this boot and its last writes are still in memory.
    #[error(
        "the daemon died and its last acknowledged writes are still in memory: start wb-daemon once, so that it saves \
         them, or restart the machine to give them up"
    )]
    RamTail,
    /// The log has no place for a record.
    #[error("the log has no free segment for the records of the repair; write the dirty data back first with --replay")]
    NoSpace,
    /// Replay needs a log that is whole.
    #[error("{0}; run wb-check --repair first")]
    Damaged(String),
    /// The backing device is not the one, or cannot take the data.
    #[error("{0}")]
    WrongBacking(String),
}

/// Checks a cache. `Err` means that there was nothing to check; whatever is wrong with a cache is in the report.
pub async fn check<D: Disk>(
    disk: &D,
    options: CheckOptions,
    progress: &mut impl FnMut(Progress),
) -> Result<Report, CheckError> {
    Ok(examine(disk, options, progress).await?.report())
}

/// How people write a block.
fn block_name(addr: BlockAddr) -> String {
    format!("volume {} block {}", addr.volume(), addr.block())
}
