//! Ranges at write-back: zeroes and discards are applied to the backing device before the payload of their window.

use super::Inner;
use super::counters::count;
use super::window::RangeItem;
use super::writeback::WindowError;
use crate::env::Env;
use crate::index::RangeKind;
use crate::io::{Disk, IoError};
use crate::types::*;

impl<E: Env> Inner<E> {
    /// Applies the ranges of a window in log order, each whole.
    pub(super) async fn apply_ranges(&self, ranges: &[RangeItem]) -> Result<(), WindowError> {
        let disk = &self.served.disk;
        for range in ranges {
            let offset = range.blocks.start * BLOCK_BYTES_U64;
            let end = (range.blocks.end * BLOCK_BYTES_U64).min(self.served.volume.size_bytes);
            let len = end.saturating_sub(offset);
            if len == 0 {
                continue;
            }
            let align = u64::from(disk.geometry().align_bytes);
            let result = match range.kind {
                // Only whole units of the device; the rest keeps its old content, which a discard may.
                RangeKind::Discard => {
                    let (from, to) = (offset.next_multiple_of(align), end / align * align);
                    if from < to { disk.discard(from, to - from).await } else { Ok(()) }
                }
                RangeKind::Zeroes => match disk.write_zeroes(offset, len).await {
                    Err(IoError::Unsupported) => self.write_zero_blocks(offset, len).await,
                    result => result,
                },
                _ => continue,
            };
            match result {
                Ok(()) | Err(IoError::Unsupported) => {}
                Err(error) if range.kind == RangeKind::Discard => {
                    tracing::debug!("discard of the backing device at offset {offset} failed: {error}");
                }
                Err(error) => {
                    let text = format!("zeroing {len} bytes of the backing device at offset {offset} failed: {error}");
                    return Err(WindowError::Backing(text));
                }
            }
        }
        Ok(())
    }

    async fn write_zero_blocks(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let zeroes = {
            let mut buf = self.window_pool.alloc(self.window_pool.max_len()).await;
            buf.fill(0);
            buf.freeze()
        };
        let mut at = 0;
        while at < len {
            let step = (len - at).min(zeroes.len() as u64);
            count(&self.counters.backing_writes, 1);
            count(&self.counters.backing_write_bytes, step);
            self.served.disk.write(offset + at, vec![zeroes.slice(0..step as usize)], false).await?;
            at += step;
        }
        Ok(())
    }
}
