//! wb-bench as a library: measures this cache and its peers.
//!
//! A number alone says more about a machine and its hour than about a program. So every run measures the raw device too,
//! in turn with what it is compared with, and what counts are the ratios.

pub mod compare;
pub mod engine;
pub mod env;
pub mod files;
pub mod hotpath;
pub mod load;
pub mod model_disk;
pub mod needs;
pub mod raw;
pub mod run;
pub mod suite;
