//! The part of the simulator that can watch a real daemon, too: the oracle and its stamped sectors.
//!
//! Stands in for the whole simulator where only feature `testing` is on, so that programs built beside such tests are
//! the ones that are installed.

pub mod model;
mod rng;
mod stamp;

pub use model::{Crash, Initial, Model, Violation, ViolationKind};
pub use rng::{SimRng, mix};
pub use stamp::{Seen, recognise, stamp_sectors};
