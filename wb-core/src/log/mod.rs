//! The log: how it is walked after a start, and how it grows.

pub mod chain;
pub mod head;
pub mod record;
pub mod scan;

pub use chain::{Broken, Chain, ScannedRecord};
pub use scan::{LogScan, ScanError, ScannedSegment, TornTail, scan};
