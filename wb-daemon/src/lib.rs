//! The parts of the Writeboost daemon, as a library: so that tests and fuzzers reach them without the program.

pub mod control_server;
pub mod devices;
pub mod nbd;
pub mod rates;
pub mod serve;
pub mod ublk;
