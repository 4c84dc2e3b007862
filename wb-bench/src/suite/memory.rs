//! Row 8: memory of the index.

use super::Lab;
use crate::engine::{Measured, Setup};
use wb_core::format::{Geometry, SEGMENT_BYTES_DEFAULT, SUMMARY_HEADER_BYTES};
use wb_core::types::{BLOCK_BYTES, RECORD_ENTRIES_MAX};

/// Payload blocks that a segment can hold at most: what its blocks and its summary have room for.
fn payload_max(geometry: &Geometry) -> u64 {
    let blocks = geometry.record_blocks() as usize;
    let summary = geometry.summary_blocks() as usize * BLOCK_BYTES - SUMMARY_HEADER_BYTES;
    // Records of 248 entries, 16 bytes each, and 8 for the record.
    let most = (1..=blocks).map(|records| {
        let by_blocks = (blocks - records).min(records * RECORD_ENTRIES_MAX);
        by_blocks.min(summary.saturating_sub(8 * records) / 16)
    });
    most.max().unwrap_or(0) as u64
}

/// Bytes of index per payload slot of a cache of 16 GiB.
pub async fn index(lab: &mut Lab) -> anyhow::Result<()> {
    const CACHE_BYTES: u64 = 16 << 30;
    let geometry = Geometry::new(CACHE_BYTES, SEGMENT_BYTES_DEFAULT.into())?;
    let slots = u64::from(geometry.segments) * payload_max(&geometry);
    for (verify_reads, goal, what) in [(false, 9.0, "without"), (true, 13.0, "with")] {
        let measured = Measured::on_null(CACHE_BYTES, CACHE_BYTES, Setup { verify_reads, threads: 1 }).await?;
        let per_slot = measured.index_bytes() as f64 / slots as f64;
        measured.stop().await?;
        let measure = format!("index bytes / payload slots, {what} verify_reads");
        lab.at_most(8, &measure, goal, vec![per_slot], format!("{slots} payload slots, 16 GiB"));
    }
    Ok(())
}
