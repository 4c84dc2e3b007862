//! `wb-format --json`.

use serde::{Deserialize, Serialize};

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formatted {
    /// Path of the device or file, as it was named.
    pub device: String,
    /// UUID of the new cache.
    pub uuid: String,
    /// Its label; empty if none.
    pub label: String,
    /// Size of the device or file.
    pub device_bytes: u64,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Number of segments.
    pub segments: u64,
}
