//! `wb-check --json`.

use serde::{Deserialize, Serialize};

/// The verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No error; notes are possible.
    Clean,
    /// Errors were found, all are corrected.
    Corrected,
    /// Errors are left.
    Errors,
}

/// How bad a finding is, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Normal, worth knowing: a torn tail after a crash.
    Note,
    /// Nothing is lost, but redundancy is gone: one of two copies destroyed.
    Warning,
    /// Data is lost or the cache cannot be used as it is.
    Error,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which thing ("superblock copy 1", "record 17", "volume 1 block 4711").
    #[serde(rename = "where")]
    pub place: String,
    /// What is wrong, or was done.
    pub what: String,
    /// It was corrected by this run.
    pub corrected: bool,
}

/// A block of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlockRef {
    /// Number of the volume.
    pub volume: u16,
    /// Number of the 4 KiB block.
    pub block: u64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Path of the cache, as it was named.
    pub device: String,
    /// UUID of the cache; `null` if no superblock could be read.
    pub uuid: Option<String>,
    /// The verdict.
    pub verdict: Verdict,
    /// Everything found, worst first.
    pub findings: Vec<Finding>,
    /// Records of the live log that proved themselves.
    pub records_valid: u64,
    /// Records that a repair dropped or would drop.
    pub records_dropped: u64,
    /// Complete-looking records behind the end of the log: written, never promised durable.
    pub torn_tail_records: u64,
    /// Blocks with data that is not yet on the backing device.
    pub dirty_blocks: u64,
    /// Blocks marked as lost: reading them fails until they are overwritten.
    pub poisoned_blocks: u64,
    /// Blocks whose newest data is lost.
    pub lost_blocks: Vec<BlockRef>,
    /// Records that are lost.
    pub lost_records: Vec<u64>,
    /// Blocks that a lost record may have overwritten, so that their data may be old.
    pub suspect_blocks: Vec<BlockRef>,
    /// Blocks whose payload was verified (`--verify-data`).
    pub verified_blocks: u64,
    /// Blocks written to the backing device (`--replay`).
    pub replayed_blocks: u64,
    /// File that holds what a repair replaced.
    pub backup: Option<String>,
}
