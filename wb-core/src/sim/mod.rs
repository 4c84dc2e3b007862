//! The deterministic simulator: devices that lose power, virtual time, seeded scheduling.
//!
//! ```text
//! executor   tasks in process groups, clock, seeded choices      rng      the draws
//! disk       devices with a volatile cache and faults            fault    the plan of faults
//! volatile   what a power cut leaves                             medium   sparse content
//! model      the oracle: what a volume may hold                  stamp    contents that say what they are
//! ```
//! A run is fixed by its seed; [`Sim::digest`] proves it. Compiled for tests and with feature `sim` only.

pub mod disk;
pub mod executor;
mod fault;
mod medium;
pub mod model;
mod rng;
mod stamp;
mod volatile;

pub use disk::{Counters, DeviceConfig, SimDevice, SimDisk};
pub use executor::{BreakAt, Sim, SimEnv, SimFailure, Started, Stop};
pub use fault::{AtomicUnit, DiscardEffect, FaultPlan, Latency, NthFault, OpKind};
pub use medium::Medium;
pub use model::{Crash, Initial, Model, Violation, ViolationKind};
pub use rng::{SimRng, mix};
pub use stamp::{Seen, recognise, stamp_sectors};
pub use volatile::Snapshot;

#[cfg(test)]
mod tests;
