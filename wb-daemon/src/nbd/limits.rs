//! What the server may use: everything is bounded, and allocated or reserved at start.

use super::codec::wire::PAYLOAD_BYTES_MAX;
use wb_core::io::{BufPool, PoolClass};

/// Bytes of a read-ahead buffer. Every connection has one; a header and a small payload arrive in it with one call.
pub(super) const AHEAD_BYTES: usize = 16 << 10;
/// Bytes of a read-ahead buffer of a busy connection, as long as there are some.
pub(super) const AHEAD_BYTES_BUSY: usize = 64 << 10;
/// Large read-ahead buffers of a server.
const AHEAD_BUSY_COUNT: usize = 128;
/// Bytes of the buffers that take long payloads.
pub(super) const PIECE_BYTES: usize = 128 << 10;

/// Bounds of a server. [`Limits::default`] suits a daemon with one volume.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections served at the same time; more are closed at once.
    pub connections: usize,
    /// Requests of one connection that may be in work or waiting for their reply to be taken.
    pub requests_per_connection: usize,
    /// Bytes of long write payloads, and separately of read data, that one connection may hold. At least the maximum
    /// payload, 32 MiB.
    pub bytes_per_connection: u64,
    /// Bytes of long write payloads of all connections: memory of the server itself, at least twice the maximum payload.
    pub write_bytes: u64,
    /// Bytes of read data of all connections: memory that the service hands out, which must have as much. At least
    /// twice the maximum payload.
    pub read_bytes: u64,
    /// Time for a whole handshake; then the connection is closed.
    pub handshake_ns: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 1024,
            requests_per_connection: 128,
            bytes_per_connection: 64 << 20,
            write_bytes: 128 << 20,
            read_bytes: 128 << 20,
            handshake_ns: 10_000_000_000,
        }
    }
}

/// Limits that cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// No connection, or no request, would be served.
    #[error("an NBD server needs at least one connection, and one request on it")]
    Nothing,
    /// The maximum payload, which every server must take, would not fit.
    #[error("an NBD server needs at least {} MiB per connection and {} MiB in all", PAYLOAD_BYTES_MAX >> 20, PAYLOAD_BYTES_MAX >> 19)]
    Memory,
}

impl Limits {
    pub(super) fn check(&self) -> Result<(), LimitsError> {
        let payload = u64::from(PAYLOAD_BYTES_MAX);
        if self.connections == 0 || self.requests_per_connection == 0 {
            return Err(LimitsError::Nothing);
        }
        // Twice: see `Budget`, a connection never holds more than it leaves free.
        if self.bytes_per_connection < payload || self.write_bytes.min(self.read_bytes) < 2 * payload {
            return Err(LimitsError::Memory);
        }
        Ok(())
    }

    /// Bytes of memory that a server with these limits allocates at start.
    pub fn memory_bytes(&self) -> u64 {
        let classes = [self.ahead_classes(), self.piece_classes()].concat();
        classes.iter().map(|class| class.bytes as u64 * class.count as u64).sum()
    }

    /// Two small ones per connection: one that it reads into, and one that still holds the start of a payload.
    fn ahead_classes(&self) -> Vec<PoolClass> {
        vec![
            PoolClass { bytes: AHEAD_BYTES, count: 2 * self.connections + AHEAD_BUSY_COUNT },
            PoolClass { bytes: AHEAD_BYTES_BUSY, count: AHEAD_BUSY_COUNT },
        ]
    }

    fn piece_classes(&self) -> Vec<PoolClass> {
        let count = usize::try_from(self.write_bytes.div_ceil(PIECE_BYTES as u64)).expect("fits the address space");
        vec![PoolClass { bytes: PIECE_BYTES, count }]
    }

    pub(super) fn pools(&self) -> Pools {
        Pools { ahead: BufPool::new(&self.ahead_classes()), pieces: BufPool::new(&self.piece_classes()) }
    }
}

/// Memory that all connections receive into.
#[derive(Clone)]
pub(super) struct Pools {
    /// Read-ahead buffers. What waits for one waits only for requests in work, never for a client: each connection
    /// without a running request holds at most two small ones, and there are that many.
    pub(super) ahead: BufPool,
    /// Buffers of long payloads. Whoever takes some has charged them to the write budget, which is as large as this
    /// pool: so nobody waits here while holding some.
    pub(super) pieces: BufPool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_cannot_take_the_maximum_payload_are_refused() {
        let limits = Limits::default();
        assert_eq!(limits.check(), Ok(()));
        assert_eq!(Limits { bytes_per_connection: 1 << 20, ..limits }.check(), Err(LimitsError::Memory));
        assert_eq!(Limits { read_bytes: 63 << 20, ..limits }.check(), Err(LimitsError::Memory));
        assert_eq!(Limits { connections: 0, ..limits }.check(), Err(LimitsError::Nothing));
        assert_eq!(limits.memory_bytes(), (2048 + 128) * (16 << 10) + 128 * (64 << 10) + (128 << 20));
    }
}
