//! What an engine takes of memory.

use super::Engine;
use crate::env::Env;

impl<E: Env> Engine<E> {
    /// Bytes allocated at start: index, checksums, record buffers, read buffers, write-back window, segment table.
    pub fn memory_bytes(&self) -> u64 {
        let inner = &self.inner;
        let pools = [&inner.pool, &inner.window_pool].map(|pool| pool.memory_bytes()).iter().sum::<u64>();
        inner.index.memory_bytes()
            + pools
            + inner.head.buffer_bytes()
            + inner.stripes.memory_bytes() as u64
            + inner.segments.memory_bytes()
            + inner.window_bytes_max()
    }
}
