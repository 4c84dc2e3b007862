//! The deterministic simulator: devices that lose power, virtual time, seeded scheduling.
//!
//! ```text
//! executor   tasks in process groups, clock, seeded choices      env      what a group sees of it      rng  the draws
//! disk       devices: the fault model (state, handle: inside)    fault    the plan of faults
//! volatile   what a power cut leaves                             medium   sparse content
//! tails      memory that outlives a process
//! workload   the plan of a run                                   scenario runs a plan against a system under test
//! life       a life from start to stop: what clients do, what is checked
//! offline    damage at rest and offline tools, between two lives
//! costed     devices that cost what real ones cost, for measuring in virtual time
//! small      every power cut of a short run, every subset of what was not durable
//! model      the oracle: what a volume may hold                  stamp    contents that say what they are
//! ```
//! A run is fixed by its seed; [`Sim::digest`] proves it. Compiled for tests and with feature `sim` only.

pub mod costed;
pub mod disk;
mod env;
pub mod executor;
mod fault;
mod handle;
mod life;
mod medium;
pub mod model;
pub mod offline;
mod rng;
pub mod scenario;
pub mod small;
mod stamp;
mod state;
mod tails;
mod volatile;
pub mod workload;

pub use disk::{Counters, DeviceConfig, SimDevice};
pub use env::SimEnv;
pub use executor::{BreakAt, Sim, SimFailure, Started, Stop};
pub use fault::{AtomicUnit, DiscardEffect, FaultPlan, Latency, NthFault, OpKind};
pub use handle::SimDisk;
pub use medium::Medium;
pub use model::{Crash, Initial, Model, Violation, ViolationKind};
pub use rng::{SimRng, mix};
pub use stamp::{Seen, recognise, stamp_sectors};
pub use volatile::Snapshot;

#[cfg(test)]
mod tests;
