//! The parts of the Writeboost daemon, as a library: so that tests and fuzzers reach them without the program.

pub mod nbd;
