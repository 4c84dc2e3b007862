//! `wb-daemon status --json`, also the answer on the control socket.

use serde::{Deserialize, Serialize};

/// What the daemon is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Opening devices.
    Starting,
    /// Reading the log; I/O is not served yet.
    Recovering,
    /// Serving I/O.
    Ready,
    /// Serving I/O and writing everything back, as asked for.
    Draining,
    /// Writing everything back in order to forget the backing device.
    Detaching,
    /// Taking no more I/O.
    Stopping,
    /// The cache device failed: writes get EIO, reads and drain go on.
    Degraded,
}

/// State, sizes and counters of a daemon. Counters count from its start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// Why, in words: what is degraded, what a wait waits for.
    pub reason: Option<String>,
    /// Version of the daemon.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Time since its start.
    pub uptime_ms: u64,
    /// UUID of the cache.
    pub uuid: String,
    /// Path of the cache device.
    pub device: String,
    /// Payload the cache can hold.
    pub capacity_bytes: u64,
    /// Bytes of log space free for new records.
    pub free_bytes: u64,
    /// Volumes served.
    pub volumes: Vec<VolumeStatus>,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// Resident memory of the process.
    pub rss_bytes: u64,
    /// How long recovery took at start.
    pub recovery_ms: u64,
    /// The RAM tail; `null` if there is none.
    pub ram_tail: Option<RamTail>,
    /// Current settings: `writeback.start_percent` and so on.
    pub settings: std::collections::BTreeMap<String, serde_json::Value>,
}

/// What keeps acknowledged writes over the death of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamTail {
    /// The file.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Records in it that the cache device may not have.
    pub records: u64,
    /// Records that the start found in the tail of a daemon that had died, and put on the cache device.
    pub recovered_records: u64,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// Path of the backing device.
    pub backing: String,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Logical sector.
    pub sector_bytes: u32,
    /// Writes of clients are refused.
    pub read_only: bool,
    /// Data that is only in the cache.
    pub dirty_bytes: u64,
    /// Data in the cache, dirty or not.
    pub cached_bytes: u64,
    /// Part of the log that is still being read after the start: written back already, so not needed, only fast.
    pub unread_bytes: u64,
    /// How it is served: NBD URIs, device paths.
    pub export: Vec<String>,
    /// Connected clients.
    pub clients: u64,
    /// Age of the oldest data that is only in the cache; `null` if there is none.
    pub oldest_dirty_ms: Option<u64>,
    /// Whether dirty data is being written back, and why or why not, in words.
    pub writeback: String,
    /// Rate of write-back over the last seconds.
    pub writeback_bytes_per_s: f64,
    /// Time until nothing is dirty, by the course of the sweep; `null` if it is not known.
    pub writeback_eta_s: Option<f64>,
    /// Why dirty data is being written back or not, as one word that stays the same: `clean`, `failed`, `waiting`,
    /// `refused`, `space`, `drain`, `watermark`, `between`, `idle`, `burst`, `quiet`, `below`.
    #[serde(default)]
    pub writeback_why: String,
    /// Blocks of the sweep over the backing device that is going on; `null` if there is none.
    #[serde(default)]
    pub sweep_blocks: Option<u64>,
    /// Those of them that are done.
    #[serde(default)]
    pub sweep_done_blocks: Option<u64>,
    /// Writers are slowed down, so that the free space lasts until the end of the sweep.
    #[serde(default)]
    pub writers_paced: bool,
    /// Blocks that the backing device refused lately; they stay in the cache.
    #[serde(default)]
    pub refused_blocks: u64,
    /// Rate of user reads over the last seconds.
    pub user_read_bytes_per_s: f64,
    /// Rate of user writes over the last seconds.
    pub user_write_bytes_per_s: f64,
    /// Counters.
    #[serde(flatten)]
    pub counters: Counters,
}

/// Counters of a volume since the daemon's start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Write requests of clients.
    pub user_writes: u64,
    /// Their bytes.
    pub user_write_bytes: u64,
    /// Read requests of clients.
    pub user_reads: u64,
    /// Their bytes.
    pub user_read_bytes: u64,
    /// Flush requests of clients.
    pub user_flushes: u64,
    /// Blocks read by clients that were in the cache, in RAM or on its device.
    pub read_hits: u64,
    /// Blocks read by clients that came from the backing device.
    pub read_misses: u64,
    /// Write commands to the cache device.
    pub cache_writes: u64,
    /// Their bytes.
    pub cache_write_bytes: u64,
    /// Flush commands to the cache device. A group commit that went out as one FUA write needs none.
    pub cache_flushes: u64,
    /// Write commands to the backing device.
    pub backing_writes: u64,
    /// Their bytes.
    pub backing_write_bytes: u64,
    /// Flush commands to the backing device.
    pub backing_flushes: u64,
    /// Blocks whose write-back failed; each try counts.
    pub writeback_errors: u64,
    /// Blocks whose checksum was wrong.
    pub checksum_errors: u64,
}
