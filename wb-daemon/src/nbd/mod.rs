//! Volumes over NBD (network block device), on Unix sockets and TCP.
//!
//! [`codec`] knows the protocol and does no I/O; the rest moves its bytes on the runtime of [`wb_core::rt`].
//!
//! A connection is three kinds of tasks on one thread. The *reader* receives ahead into a buffer of the pool, judges each
//! request, waits for the memory that it needs and hands it to a *worker*, which calls the service. The *writer* sends
//! whatever replies are ready with one call. No request waits for another one's reply, and no byte of payload is copied
//! between the kernel and the service: the service gets slices of the receive buffers, and the socket gets the buffers
//! that the service read into.
//!
//! A write reaches the service only when its payload is complete. Everything is bounded: requests and bytes per
//! connection and in all (see [`Limits`]). A reply that its client does not take keeps its share until it is taken, until
//! the connection ends, or until others have waited too long for that memory.

mod budget;
pub mod codec;
mod conn;
mod execute;
mod inbox;
mod limits;
mod listen;
mod outbox;
mod payload;
mod pressure;
mod server;
mod workers;

pub use limits::{Limits, LimitsError};
pub use listen::{BadListenAddress, ListenAddress};
pub use server::NbdServer;
