//! Helpers for tests of whole programs.

pub mod nbd_client;
