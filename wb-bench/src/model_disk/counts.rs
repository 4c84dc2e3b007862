//! What was done to a modelled device.

use serde::{Deserialize, Serialize};

/// Counters since the server began. Names are stable: scripts read them from the file of `--stats`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Read commands.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write commands.
    pub writes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Write commands with FUA.
    pub fua_writes: u64,
    /// FLUSH commands.
    pub flushes: u64,
    /// Discard and write-zeroes commands.
    pub discards: u64,
    /// Reads and writes that do not begin where the one before them ended.
    pub jumps: u64,
    /// Seconds, in the model's own time, in which at least one command was in the device.
    pub busy_s: f64,
    /// Seconds, in the model's own time, for which commands were in the device, all added up.
    pub command_s: f64,
    /// Completed bytes that a power cut would take; not a counter but the present state.
    pub volatile_bytes: u64,
}

impl Counts {
    /// What was added since `before`; the present state stays as it is.
    pub fn since(&self, before: &Counts) -> Counts {
        Counts {
            reads: self.reads - before.reads,
            read_bytes: self.read_bytes - before.read_bytes,
            writes: self.writes - before.writes,
            write_bytes: self.write_bytes - before.write_bytes,
            fua_writes: self.fua_writes - before.fua_writes,
            flushes: self.flushes - before.flushes,
            discards: self.discards - before.discards,
            jumps: self.jumps - before.jumps,
            busy_s: self.busy_s - before.busy_s,
            command_s: self.command_s - before.command_s,
            volatile_bytes: self.volatile_bytes,
        }
    }
}
