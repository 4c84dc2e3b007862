//! The on-disk format and the engine of Writeboost, a log-structured SSD write cache.
//!
//! `docs/ARCHITECTURE.md` is the map of this crate, `docs/FORMAT.md` the specification of what it writes.
//! Clock, randomness and threads enter through [`env::Env`] alone; the lints in `clippy.toml` hold that.

pub mod check;
pub mod engine;
pub mod env;
pub mod format;
pub mod index;
pub mod io;
pub mod log;
pub mod meta;
#[cfg(any(test, feature = "model"))]
pub mod model;
pub mod rt;
pub mod service;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
#[cfg(all(feature = "testing", not(any(test, feature = "sim"))))]
#[path = "sim/oracle.rs"]
pub mod sim;
pub mod sync;
pub mod tail;
pub mod types;

pub use types::*;
