//! What the server may use: everything is bounded, and allocated or reserved at start.

use super::budget::Budget;
use super::codec::wire::PAYLOAD_BYTES_MAX;
use std::sync::Arc;
use wb_core::engine::EngineConfig;
use wb_core::io::{BufPool, PoolClass};
use wb_core::service::SERVICE_CHUNK_BYTES_MAX;
use wb_core::types::BLOCK_BYTES;

/// Bytes of a read-ahead buffer. Every connection has one; a header and a small payload arrive in it with one call.
pub(super) const AHEAD_BYTES: usize = 8 << 10;
/// Bytes of a read-ahead buffer of a busy connection, as long as there are some.
pub(super) const AHEAD_BYTES_BUSY: usize = 64 << 10;
/// Large read-ahead buffers of a server.
const AHEAD_BUSY_COUNT: usize = 128;
/// Bytes of the buffers that take long payloads.
pub(super) const PIECE_BYTES: usize = 128 << 10;

/// Bounds of a server. [`Limits::default`] suits a daemon with one volume.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections served at the same time; more are closed at once.
    pub connections: usize,
    /// Requests of one connection that may be in work or waiting for their reply to be taken.
    pub requests_per_connection: usize,
    /// Bytes of long write payloads, and separately of buffers with read data, that one connection may hold. At least
    /// a little more than the maximum payload of 32 MiB.
    pub bytes_per_connection: u64,
    /// Bytes of long write payloads of all connections: memory of the server itself. At least 40 MiB, so that the
    /// maximum payload leaves something free.
    pub write_bytes: u64,
    /// The buffers that the service reads into: clients hold read data until they take it, and must leave some of each
    /// class. In ascending order. Enough of the largest class for the maximum payload in chunks, and an eighth for the
    /// service and another one for other clients.
    pub read_buffers: Vec<PoolClass>,
    /// Time for a whole handshake; then the connection is closed.
    pub handshake_ns: u64,
    /// A client that holds memory for which others wait is cut if it takes or sends nothing for so long, plus the time
    /// that its bytes need on a line of 4 MiB/s.
    pub stall_ns: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 1024,
            requests_per_connection: 128,
            bytes_per_connection: 64 << 20,
            write_bytes: 64 << 20,
            read_buffers: EngineConfig::default().read_buffers(),
            handshake_ns: 10_000_000_000,
            stall_ns: 10_000_000_000,
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
    #[error("an NBD server needs at least {0} bytes of memory for {1}")]
    Memory(u64, &'static str),
}

/// The split of a read into equal chunks, as (bytes of a chunk, number of chunks); the last may be a little shorter.
/// Equal, so that all need buffers of the same class.
pub(super) fn read_split(len: u32) -> (u32, u32) {
    let count = len.div_ceil(SERVICE_CHUNK_BYTES_MAX as u32).max(1);
    (len.div_ceil(count).next_multiple_of(BLOCK_BYTES as u32), count)
}

/// The longest chunk, and the block more that it may touch.
const READ_BUFFER_BYTES: usize = SERVICE_CHUNK_BYTES_MAX + BLOCK_BYTES;

impl Limits {
    pub(super) fn check(&self) -> Result<(), LimitsError> {
        if self.connections == 0 || self.requests_per_connection == 0 {
            return Err(LimitsError::Nothing);
        }
        let payload = u64::from(PAYLOAD_BYTES_MAX);
        let largest = self.read_buffers.last().map_or(0, |class| class.bytes as u64);
        let longest_read = largest * u64::from(read_split(PAYLOAD_BYTES_MAX).1);
        if largest < READ_BUFFER_BYTES as u64 {
            return Err(LimitsError::Memory(READ_BUFFER_BYTES as u64, "each of the longest buffers of reads"));
        }
        if self.bytes_per_connection < payload.max(longest_read) {
            return Err(LimitsError::Memory(payload.max(longest_read), "one connection"));
        }
        if self.write_budget().charge_max() < payload {
            return Err(LimitsError::Memory(payload + payload / 4, "write payloads"));
        }
        let budgets = self.read_budgets();
        if budgets.last().is_none_or(|(_, budget)| budget.charge_max() < longest_read) {
            return Err(LimitsError::Memory(longest_read / 3 * 4, "the longest buffers of reads"));
        }
        Ok(())
    }

    /// What clients may hold of each class of read buffers: all but an eighth.
    pub(super) fn read_budgets(&self) -> Vec<(usize, Arc<Budget>)> {
        let budget = |class: &PoolClass| {
            Budget::new((class.count - class.count.div_ceil(8)) as u64 * class.bytes as u64, class.bytes as u64)
        };
        self.read_buffers.iter().map(|class| (class.bytes, budget(class))).collect()
    }

    pub(super) fn write_budget(&self) -> Arc<Budget> {
        Budget::new(self.write_bytes, PIECE_BYTES as u64)
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
        let limits = Limits::default;
        assert_eq!(limits().check(), Ok(()));
        let refused = |limits: Limits| matches!(limits.check(), Err(LimitsError::Memory(..)));
        assert!(refused(Limits { bytes_per_connection: 32 << 20, ..limits() }), "buffers are longer than their data");
        assert!(refused(Limits { write_bytes: 36 << 20, ..limits() }));
        assert!(refused(Limits { read_buffers: vec![], ..limits() }));
        assert!(refused(Limits { read_buffers: vec![PoolClass { bytes: 1 << 20, count: 99 }], ..limits() }));
        assert!(refused(Limits { read_buffers: vec![PoolClass { bytes: 2 << 20, count: 40 }], ..limits() }));
        assert_eq!(Limits { connections: 0, ..limits() }.check(), Err(LimitsError::Nothing));
        assert_eq!(limits().memory_bytes(), (2048 + 128) * (8 << 10) + 128 * (64 << 10) + (64 << 20));
    }

    #[test]
    fn chunks_of_a_long_read_are_of_one_class() {
        for len in [512, 4096, 1 << 20, (1 << 20) + 512, (2 << 20) + 4096, (31 << 20) + 512, 32 << 20] {
            let (chunk, count) = read_split(len);
            let last = len - chunk.min(len) * (count - 1);
            assert!(last > 0 && last <= chunk && chunk as usize <= SERVICE_CHUNK_BYTES_MAX, "{len}");
            assert!(count == 1 || last as usize > SERVICE_CHUNK_BYTES_MAX / 4, "{len}: {chunk} x {count}");
        }
    }
}
