//! What storage costs: devices as pure models of time.
//!
//! A model knows no clock, does no I/O and holds no data: commands go in with the time at which they arrive, completions
//! come out with the time at which they happen. So one model serves the simulator in virtual time and a server in real
//! time, and both mean the same device.
//!
//! ```text
//! params   the figures of each device, with their sources: fixed before anything was tuned against them
//! disk     a rotating disk: seek curve, rotational position, zones, command queue, volatile cache, FLUSH, standby
//! surface  its geometry: which track, when does a place pass under the head
//! ssd      flash: cost per command and per byte, parallelism, volatile cache
//! net      a network volume: latency, limits of operations and bytes per second
//! ```

pub mod disk;
mod net;
pub mod params;
mod ssd;
mod surface;
#[cfg(test)]
mod tests;

pub use disk::DiskModel;
pub use net::NetModel;
pub use params::{DeviceParams, DiskParams, NetParams, SsdParams};
pub use ssd::SsdModel;

/// A command as the host sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Reads `len` bytes at `offset`.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Writes `len` bytes at `offset`.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Completes when it is on stable media.
        fua: bool,
    },
    /// Makes what was completed before it stable.
    Flush,
    /// Discards or zeroes without a transfer of data.
    Discard,
}

/// A command that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The tag it was submitted with.
    pub tag: u64,
    /// When.
    pub at_ns: u64,
}

/// What a device did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Activity {
    /// Read commands.
    pub reads: u64,
    /// Write commands.
    pub writes: u64,
    /// Bytes of write commands.
    pub write_bytes: u64,
    /// FLUSH commands.
    pub flushes: u64,
    /// Times at which a sleeping disk had to start its motor.
    pub spin_ups: u64,
}

/// A device as a model of time.
///
/// Times never go back: `submit` and `poll` are called with the present, and `poll` must be called at [`next_ns`] or
/// soon after; a completion says when it was due.
///
/// [`next_ns`]: CostModel::next_ns
pub trait CostModel: Send {
    /// A command arrives. `tag` comes back with its completion.
    fn submit(&mut self, now_ns: u64, tag: u64, command: Command);
    /// When something will happen next inside the device, if nothing more arrives. `None`: it has nothing to do.
    fn next_ns(&self) -> Option<u64>;
    /// Lets the device do everything it does up to now. What is done, in order of time.
    fn poll(&mut self, now_ns: u64) -> Vec<Completion>;
    /// Bytes that are completed and not on stable media.
    fn volatile_bytes(&self) -> u64;
    /// Counters.
    fn activity(&self) -> Activity;
}

/// A model of the device that the parameters describe, with this many bytes.
pub fn build(params: &DeviceParams, size_bytes: u64) -> Box<dyn CostModel> {
    match params {
        DeviceParams::Disk(params) => Box::new(DiskModel::new(params.clone(), size_bytes)),
        DeviceParams::Ssd(params) => Box::new(SsdModel::new(params.clone())),
        DeviceParams::Net(params) => Box::new(NetModel::new(params.clone())),
    }
}
