//! wb-dump as a library: the binary is a thin `main`, and fuzzers call the same code.

mod cache;
mod records;
pub mod run;
mod text;
mod time;
