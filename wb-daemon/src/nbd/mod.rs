//! Volumes over NBD (network block device), on Unix sockets and TCP.
//!
//! [`codec`] knows the protocol and does no I/O; the rest moves its bytes.

pub mod codec;
