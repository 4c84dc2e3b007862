//! The deterministic simulator: devices that lose power, virtual time, seeded scheduling.
//!
//! ```text
//! executor   tasks in process groups, clock, seeded choices      rng      the draws
//! disk       devices with a volatile cache and faults            fault    the plan of faults
//! volatile   what a power cut leaves                             medium   sparse content
//! ```
//! A run is fixed by its seed; [`Sim::digest`] proves it. Compiled for tests and with feature `sim` only.

pub mod disk;
pub mod executor;
mod fault;
mod medium;
mod rng;
mod volatile;

pub use disk::{Counters, DeviceConfig, SimDevice, SimDisk};
pub use executor::{BreakAt, Sim, SimEnv, SimFailure, Started, Stop};
pub use fault::{AtomicUnit, DiscardEffect, FaultPlan, Latency, NthFault, OpKind};
pub use medium::Medium;
pub use rng::{SimRng, mix};
pub use volatile::Snapshot;

#[cfg(test)]
mod tests;
