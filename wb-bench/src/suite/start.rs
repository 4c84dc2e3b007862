//! Row 11: the start after a SIGKILL with a full cache of 64 GiB, against a plain loop that reads the same summaries.
//!
//! The image is sparse: superblocks, anchors, volume table and one real summary per segment, valid in every respect, with
//! nothing between them. All is dirty and durable, as after a kill of a daemon whose disk is slow.

use super::nbd::{Server, format};
use super::{Lab, ratios};
use crate::files::{Opened, Scratch, TailDir};
use crate::load::pattern::Rng;
use crate::load::stats::median;
use anyhow::Context as _;
use futures_util::stream::{self, StreamExt};
use std::time::Instant;
use wb_core::format::{
    Entry, EntryKind, Geometry, RecordDesc, RecordFlags, SegmentSummary, Superblock, Volume, VolumeTable,
};
use wb_core::io::{Buf, Disk};
use wb_core::meta;
use wb_core::rt::RtDisk;
use wb_core::types::*;

const CACHE_BYTES: u64 = 64 << 30;
/// The volume is larger than the cache, so that blocks can all be different and lie apart.
const VOLUME_BYTES: u64 = 256 << 30;
/// Reads in flight of the plain loop.
const PLAIN_DEPTH: usize = 256;
/// Segments that are free, as an engine leaves some.
const FREE_SEGMENTS: u32 = 64;

/// Payload blocks of the records of a segment.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    records: fn(&Geometry) -> Vec<usize>,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "full records", records: |_| vec![248, 248, 8] },
    Shape { name: "8 KiB records", records: |geometry| vec![1; geometry.record_blocks() as usize / 2] },
];

/// Blocks of the volume, each once, in no order: a full-period sequence over the next power of two.
struct Blocks {
    state: u64,
    mask: u64,
}

impl Blocks {
    fn new(blocks: u64) -> Blocks {
        assert!(blocks.is_power_of_two(), "the volume is 2^n blocks");
        Blocks { state: 1, mask: blocks - 1 }
    }

    fn draw(&mut self) -> u64 {
        // Full period: odd increment, factor = 1 modulo 4 (Hull and Dobell). Its low bits are weak, and this is a
        // permutation that stirs them.
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407) & self.mask;
        let half = self.mask.count_ones() / 2;
        self.state ^ self.state >> half
    }
}

/// Writes the image of a full cache.
async fn make_image(disk: &RtDisk, shape: Shape) -> anyhow::Result<Superblock> {
    format(disk).await?;
    let loaded = meta::load(disk).await.context("cannot read the new cache")?;
    let (superblock, mut anchor) = (loaded.superblock, loaded.anchor);
    let volume = Volume {
        id: VolumeId(loaded.volumes.next_id),
        uuid: uuid::Uuid::from_bytes([7; 16]),
        size_bytes: VOLUME_BYTES,
        sector_bytes: 512,
        name: "bench".into(),
        identity: String::new(),
        created_unix_ns: 1,
        probe_secret: 1,
    };
    let table = VolumeTable {
        generation: loaded.volumes.generation + 1,
        next_id: loaded.volumes.next_id + 1,
        volumes: vec![volume.clone()],
    };
    meta::write_volumes(disk, &superblock, &table).await.context("cannot write the volume table")?;
    let geometry = superblock.geometry;
    let mut blocks = Blocks::new(VOLUME_BYTES / BLOCK_BYTES_U64);
    let mut rng = Rng::new(11);
    let (mut seq, mut chain) = (Seq(0), 0u32);
    let sizes = (shape.records)(&geometry);
    let mut pending = Vec::new();
    for segment in (0..geometry.segments - FREE_SEGMENTS).map(SegmentNo) {
        let previous_crc = chain;
        let (mut records, mut offset_blocks) = (Vec::new(), 0);
        for &payload in &sizes {
            seq = seq.next();
            chain = rng.draw() as u32;
            let entry = |_| {
                let addr = BlockAddr::new(volume.id, blocks.draw());
                Entry::payload(addr, EntryKind::Dirty, rng.draw() as u32, SectorMask::FULL)
            };
            let entries = (0..payload).map(entry).collect();
            let flags = RecordFlags(0);
            records.push(RecordDesc { seq, epoch: anchor.epoch, offset_blocks, chain_crc: chain, flags, entries });
            offset_blocks += 1 + payload as u32;
        }
        let summary = SegmentSummary {
            segment,
            first_epoch_start: anchor.epoch_start,
            previous_crc,
            log_tail: Seq(1),
            dirty_tail: Seq(1),
            durable: Seq(records[0].seq.0 - 1),
            records,
        };
        let mut bytes = Buf::unpooled(geometry.summary_blocks() as usize * BLOCK_BYTES);
        summary.encode_into(&mut bytes, &geometry, superblock.uuid, superblock.secret);
        pending.push(disk.write(geometry.summary_offset(segment).0, vec![bytes.freeze()], false));
        if pending.len() == 64 {
            for result in futures_util::future::join_all(std::mem::take(&mut pending)).await {
                result.context("cannot write a summary")?;
            }
        }
    }
    for result in futures_util::future::join_all(pending).await {
        result.context("cannot write a summary")?;
    }
    anchor.generation += 1;
    anchor.durable = seq;
    anchor.clean = None;
    meta::write_anchor_both(disk, &superblock, &anchor).await.context("cannot write the anchor")?;
    Ok(superblock)
}

/// Reads every summary, and looks at nothing. Seconds.
async fn plain_loop(disk: &RtDisk, superblock: &Superblock) -> anyhow::Result<f64> {
    let geometry = superblock.geometry;
    let len = geometry.summary_blocks() as usize * BLOCK_BYTES;
    let begin = Instant::now();
    let mut reads = stream::iter((0..geometry.segments - FREE_SEGMENTS).map(SegmentNo))
        .map(|segment| disk.read(geometry.summary_offset(segment).0, Buf::unpooled(len)))
        .buffer_unordered(PLAIN_DEPTH);
    while let Some((result, _)) = reads.next().await {
        result.context("cannot read a summary")?;
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// Both images.
pub async fn full_cache(lab: &mut Lab) -> anyhow::Result<()> {
    let program = lab.daemon()?;
    for shape in SHAPES {
        let cache = Scratch::new(lab.path("full"), CACHE_BYTES)?;
        let backing = Scratch::new(lab.path("sparse"), VOLUME_BYTES)?;
        let superblock = make_image(&Opened::open(cache.path())?.disk, shape).await?;
        let tails = TailDir::new();
        let (mut starts, mut loops) = (Vec::new(), Vec::new());
        for round in 0..lab.rounds() {
            let plain = plain_loop(&Opened::open(cache.path())?.disk, &superblock).await?;
            let (server, took) = Server::daemon(&program, cache.path(), backing.path(), &tails, lab.path("sock"))?;
            drop(server); // by SIGKILL
            if round > 0 {
                loops.push(plain);
                starts.push(took.as_secs_f64());
            }
        }
        let of = |values: &[f64]| median(values.iter().copied());
        let of = format!("{:.2} s / {:.2} s", of(&starts), of(&loops));
        let measure = format!("start with a full 64 GiB cache, {} / plain reads of its summaries", shape.name);
        lab.at_most(11, &measure, 2.0, ratios(&starts, &loops), of);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_drawn_once_each() {
        let mut blocks = Blocks::new(1 << 12);
        let mut drawn: Vec<u64> = (0..1 << 12).map(|_| blocks.draw()).collect();
        drawn.sort_unstable();
        assert!(drawn.into_iter().eq(0..1 << 12));
    }
}
