//! Ranges at write-back: zeroes and discards are applied to the backing device before the payload of their window.

use super::Inner;
use super::counters::count;
use super::window::RangeItem;
use super::writeback::WindowError;
use crate::env::Env;
use crate::index::RangeKind;
use crate::io::{Disk, IoError};
use crate::types::*;
use std::ops::Range;

/// Blocks that are zeroed or discarded at once (1 GiB): a stop waits for no more.
const BLOCKS_AT_ONCE: u64 = 1 << 18;

impl<E: Env> Inner<E> {
    /// Applies the ranges of a window in log order, each whole. Gives the blocks that could not be zeroed, at most so many
    /// [one bad sector below a write of zeroes: the same window for ever, and the ring fills].
    pub(super) async fn apply_ranges(
        &self,
        ranges: &[RangeItem],
        refused_max: usize,
    ) -> Result<Vec<RangeItem>, WindowError> {
        let mut refused = Vec::new();
        for range in ranges {
            match range.kind {
                RangeKind::Discard => self.discard_range(range.blocks.clone()).await?,
                RangeKind::Zeroes => self.zero_range(range, &mut refused, refused_max).await?,
                RangeKind::Poison | RangeKind::Invalidate => {}
            }
        }
        Ok(refused)
    }

    /// The bytes of blocks, which end with the volume.
    fn bytes_of(&self, blocks: &Range<u64>) -> Range<u64> {
        let end = (blocks.end * BLOCK_BYTES_U64).min(self.served.volume.size_bytes);
        blocks.start * BLOCK_BYTES_U64..end
    }

    fn go_on(&self) -> Result<(), WindowError> {
        if self.writeback.is_stopping() { Err(WindowError::Stopped) } else { Ok(()) }
    }

    /// Only whole units of the device; the rest keeps its old content, which a discard may. It is a hint: that it fails
    /// is nobody's loss.
    async fn discard_range(&self, blocks: Range<u64>) -> Result<(), WindowError> {
        let align = u64::from(self.served.disk.geometry().align_bytes);
        let bytes = self.bytes_of(&blocks);
        let end = bytes.end / align * align;
        let mut at = bytes.start.next_multiple_of(align);
        while at < end {
            self.go_on()?;
            let len = (end - at).min(BLOCKS_AT_ONCE * BLOCK_BYTES_U64);
            match self.served.disk.discard(at, len).await {
                Ok(()) => {}
                Err(IoError::Unsupported) => return Ok(()),
                Err(error) => {
                    tracing::debug!("discard of the backing device at offset {at} failed: {error}");
                    return Ok(());
                }
            }
            at += len;
        }
        Ok(())
    }

    /// Where it fails, by halves: what is refused alone, and twice, goes to `refused`.
    async fn zero_range(
        &self,
        range: &RangeItem,
        refused: &mut Vec<RangeItem>,
        refused_max: usize,
    ) -> Result<(), WindowError> {
        let places = &self.writeback.refused;
        // The next one last. With each the number of times that it failed alone.
        let mut todo = vec![(range.blocks.clone(), 0)];
        while let Some((blocks, failures)) = todo.pop() {
            if self.bytes_of(&blocks).is_empty() {
                continue;
            }
            self.go_on()?;
            let count = blocks.end - blocks.start;
            if count > BLOCKS_AT_ONCE {
                let middle = blocks.start + BLOCKS_AT_ONCE;
                todo.extend([(middle..blocks.end, 0), (blocks.start..middle, 0)]);
                continue;
            }
            let hold = RangeItem { blocks: blocks.clone(), ..range.clone() };
            if count == 1 && refused.len() < refused_max / 2 && places.pauses(blocks.start, self.env.now_ns()) {
                refused.push(hold);
                continue;
            }
            let Err(error) = self.zero_bytes(self.bytes_of(&blocks)).await else {
                places.accept(blocks);
                continue;
            };
            if error == IoError::Gone {
                return Err(WindowError::Backing(format!("zeroing blocks of the backing device failed: {error}")));
            }
            if count > 1 {
                let middle = blocks.start + count / 2;
                todo.extend([(middle..blocks.end, 0), (blocks.start..middle, 0)]);
            } else if failures == 0 {
                todo.push((blocks, 1));
            } else {
                tracing::warn!(
                    "block {} cannot be zeroed on the backing device: {error}; it stays in the cache",
                    blocks.start
                );
                places.refuse(blocks.start, self.env.now_ns());
                refused.push(hold);
                if refused.len() > refused_max {
                    return Err(WindowError::TooLarge("blocks cannot be zeroed on the backing device"));
                }
            }
        }
        Ok(())
    }

    async fn zero_bytes(&self, bytes: Range<u64>) -> Result<(), IoError> {
        match self.served.disk.write_zeroes(bytes.start, bytes.end - bytes.start).await {
            Err(IoError::Unsupported) => self.write_zero_blocks(bytes.start, bytes.end - bytes.start).await,
            result => result,
        }
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
