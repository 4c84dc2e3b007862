//! Modelled devices in real time: a disk behind NBD that takes as long for everything as the device that it models.
//!
//! QEMU opens it as an ordinary disk, so that the caches in a guest meet an SSD and a rotating disk where there is neither.
//! *What* a command costs says [`wb_core::model`], which knows no clock; this module holds the data, the clock, and the
//! dilation: emulated processors are 10 to 20 times slower than real ones, so devices are slowed down with them, else the
//! processor and not the device would be measured.

mod counts;
mod device;
mod run;
mod server;
mod timing;

pub use counts::Counts;
pub use run::run;
pub use server::{ModelServer, Spec, parameters};
