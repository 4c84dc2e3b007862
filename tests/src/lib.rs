//! Helpers for tests of whole programs.

pub mod daemon;
pub mod fuzz;
pub mod guest;
pub mod mem_service;
pub mod mount;
pub mod nbd_client;
pub mod nbd_server;
pub mod programs;
pub mod recorder;
pub mod tool;
pub mod volatile_disk;
