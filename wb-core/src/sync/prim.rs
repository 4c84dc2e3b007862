//! What this module is built on. The model test (`tests/sync_model.rs`) compiles the same sources on shuttle's versions.

pub use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
pub use std::sync::{Mutex, MutexGuard};
