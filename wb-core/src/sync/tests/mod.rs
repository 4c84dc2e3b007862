//! Tests with a seeded executor and with real threads. They are not beside the code because `tests/sync_model.rs`
//! compiles the same sources for shuttle.
#![expect(clippy::disallowed_methods, reason = "real threads are what is tested here")]

mod executor;
mod lock;
mod stripes;
mod wait_queue;
