//! What wb-dump does: one document per subcommand, printed as JSON or as text.

use crate::cache::{Cache, damage};
use crate::records::{Seen, entries_of_block, record_dump, records_in};
use crate::text;
use anyhow::bail;
use uuid::Uuid;
use wb_cli::Context;
use wb_cli::dump_args::{BlockAddress, DumpPlan, DumpWhat};
use wb_cli::error::NextStep;
use wb_cli::exit::Exit;
use wb_cli::json::dump::*;
use wb_core::check::LogView;
use wb_core::format::Anchor;
use wb_core::types::*;

/// Does what was asked for.
pub fn run(plan: DumpPlan, ctx: &mut Context) -> anyhow::Result<Exit> {
    let cache = Cache::open(&plan.cache)?;
    match plan.what {
        DumpWhat::Superblock => print(ctx, &superblock(&cache), text::superblock)?,
        DumpWhat::Anchor => print(ctx, &anchors(&cache), text::anchors)?,
        DumpWhat::Segment { segment } => print(ctx, &one_segment(&cache, segment)?, text::segment)?,
        DumpWhat::Record { seq } => print(ctx, &one_record(&cache, Seq(seq))?, text::record)?,
        DumpWhat::Block { address } => print(ctx, &block(&cache, address)?, text::block)?,
        DumpWhat::Log { from, count } => print(ctx, &log(&cache, from, count)?, text::log)?,
        DumpWhat::Summary => print(ctx, &summary(&cache)?, text::summary)?,
    }
    Ok(Exit::Done)
}

fn print<T: serde::Serialize>(
    ctx: &mut Context,
    document: &T,
    show: fn(&mut wb_cli::Out, &T) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    match ctx.json {
        true => ctx.out.json(document),
        false => show(&mut ctx.out, document),
    }
}

fn superblock(cache: &Cache) -> SuperblockDump {
    let superblock = &cache.superblock;
    let geometry = superblock.geometry;
    let volume = |volume: &wb_core::format::Volume| VolumeDump {
        id: volume.id.0,
        uuid: volume.uuid.to_string(),
        name: volume.name.clone(),
        size_bytes: volume.size_bytes,
        sector_bytes: volume.sector_bytes,
        identity: volume.identity.clone(),
    };
    let bad = cache.meta.bad_segments().ok();
    let is_bad = |segment: &u32| bad.as_ref().is_some_and(|bad| bad.is_bad(SegmentNo(*segment)));
    SuperblockDump {
        uuid: superblock.uuid.to_string(),
        version: 1,
        label: superblock.label.clone(),
        device_bytes: geometry.device_bytes,
        segment_bytes: geometry.segment_bytes.into(),
        segments: geometry.segments.into(),
        generation: superblock.generation,
        features: Features {
            compat: format!("{:#x}", superblock.compat),
            ro_compat: format!("{:#x}", superblock.ro_compat),
            incompat: "0x0".into(),
        },
        copies: (0..2)
            .map(|copy| SuperblockCopy {
                offset_bytes: geometry.superblock_offset(copy).0,
                valid: cache.meta.superblocks[copy].is_ok(),
                generation: cache.meta.superblocks[copy].as_ref().ok().map(|found| found.generation),
            })
            .collect(),
        volumes: cache.meta.volumes().map(|table| table.volumes.iter().map(volume).collect()).unwrap_or_default(),
        bad_segments: (0..geometry.segments).filter(is_bad).map(u64::from).collect(),
        damage: cache.metadata_damage(),
    }
}

fn anchors(cache: &Cache) -> AnchorsDump {
    let current = cache.meta.anchor().map(|anchor| anchor.generation);
    let dump = |slot: usize| {
        let offset_bytes = cache.superblock.geometry.anchor_offset(slot).0;
        let found = cache.meta.anchors[slot].as_ref().ok();
        let number = |of: fn(&Anchor) -> u64| found.map_or(0, of);
        AnchorDump {
            slot: slot as u32,
            offset_bytes,
            valid: found.is_some(),
            current: found.is_some() && found.map(|anchor| anchor.generation) == current,
            generation: number(|anchor| anchor.generation),
            epoch: number(|anchor| anchor.epoch.0),
            epoch_start_seq: number(|anchor| anchor.epoch_start.0),
            log_tail_seq: number(|anchor| anchor.log_tail.0),
            dirty_tail_seq: number(|anchor| anchor.dirty_tail.0),
            durable_seq: number(|anchor| anchor.durable.0),
            clean_head_seq: found.and_then(|anchor| anchor.clean).map(|mark| mark.head.0),
            boot_id: found
                .filter(|anchor| anchor.boot_id != [0; 16])
                .map(|anchor| Uuid::from_bytes(anchor.boot_id).to_string()),
            written_unix_ns: found.map(|anchor| anchor.wall_unix_ns).filter(|time| *time > 0),
        }
    };
    AnchorsDump { anchors: (0..2).map(dump).collect(), damage: cache.metadata_damage() }
}

fn one_segment(cache: &Cache, number: u32) -> anyhow::Result<SegmentDump> {
    let geometry = &cache.superblock.geometry;
    if number >= geometry.segments {
        bail!("there is no segment {number}: the cache has segments 0 to {}", geometry.segments - 1);
    }
    let segment = SegmentNo(number);
    let mut walked = cache.walk();
    let image = cache.segment(segment)?;
    let mut damages = std::mem::take(&mut walked.damage);
    damages.extend(image.unreadable.iter().map(|block| damage(format!("block {block}"), "cannot be read")));
    let seen = records_in(&image, &cache.superblock, walked.log(), &mut damages);
    let records = seen.iter().map(|seen| record_dump(seen, &image, cache, walked.log(), true)).collect();
    let closed = image.summary(&cache.superblock).is_ok_and(|summary| {
        let first = walked.log().and_then(|log| log.places(segment)).map(|places| places.records[0].seq);
        first.is_none_or(|first| first == summary.first_seq())
    });
    Ok(SegmentDump {
        segment: number.into(),
        offset_bytes: geometry.segment_offset(segment).0,
        closed,
        records,
        damage: damages,
    })
}

fn one_record(cache: &Cache, seq: Seq) -> anyhow::Result<OneRecordDump> {
    let mut walked = cache.walk();
    let mut damages = std::mem::take(&mut walked.damage);
    let place = walked.log().and_then(|log| log.find(seq));
    // What is not in the log may still lie somewhere.
    let segments: Vec<SegmentNo> = match place {
        Some((segment, _)) => vec![segment],
        None => (0..cache.superblock.geometry.segments).map(SegmentNo).collect(),
    };
    for segment in segments {
        let image = cache.segment(segment)?;
        let seen = records_in(&image, &cache.superblock, walked.log(), &mut damages);
        let dumps: Vec<_> = seen
            .iter()
            .filter(|seen| seen.seq() <= seq)
            .map(|seen| record_dump(seen, &image, cache, walked.log(), true))
            .collect();
        // A repaired header stands for several numbers.
        let covered = place.map_or(seq, |(_, place)| place.seq);
        let exact = |dump: &RecordDump| dump.seq == covered.0 && (dump.valid || place.is_none());
        if let Some(record) = dumps.into_iter().find(exact) {
            return Ok(OneRecordDump { record, damage: damages });
        }
    }
    let range = walked.log().map_or_else(String::new, |log| match log.records() {
        0 => ": the log is empty".to_owned(),
        _ => format!(": the log has records {} to {}", log.anchor.log_tail, log.head),
    });
    Err(anyhow::anyhow!("record {seq} is not on the device{range}")).next_step("list records with `wb-dump log`")
}

/// The log, or an error if it cannot be walked.
fn need_log(log: Option<&LogView>, damages: &[Damage]) -> anyhow::Result<()> {
    if log.is_some() {
        return Ok(());
    }
    let what: Vec<_> = damages.iter().map(|damage| format!("{}: {}", damage.place, damage.what)).collect();
    Err(anyhow::anyhow!("the log cannot be walked: {}", what.join("; "))).next_step("see what is left with `wb-check`")
}

fn block(cache: &Cache, address: BlockAddress) -> anyhow::Result<BlockDump> {
    let mut walked = cache.walk();
    let mut damages = std::mem::take(&mut walked.damage);
    need_log(walked.log(), &damages)?;
    let log = walked.log().expect("just looked");
    let addr = BlockAddr::new(VolumeId(address.volume), address.block);
    let mut versions = Vec::new();
    for places in &log.segments {
        let image = cache.segment(places.segment)?;
        for seen in records_in(&image, &cache.superblock, Some(log), &mut damages) {
            let entries = entries_of_block(&seen, addr, &image, cache, log);
            if entries.is_empty() {
                continue;
            }
            let record = record_dump(&seen, &image, cache, Some(log), false);
            versions.extend(entries.into_iter().filter(|_| record.valid).map(|entry| VersionDump {
                seq: record.seq,
                epoch: record.epoch,
                written_unix_ns: record.written_unix_ns,
                segment: record.segment,
                entry,
            }));
        }
    }
    versions.reverse();
    Ok(BlockDump { volume: address.volume, block: address.block, versions, damage: damages })
}

fn log(cache: &Cache, from: Option<u64>, count: Option<u64>) -> anyhow::Result<LogDump> {
    let mut walked = cache.walk();
    let mut damages = std::mem::take(&mut walked.damage);
    need_log(walked.log(), &damages)?;
    let log = walked.log().expect("just looked");
    let (from, count) = (from.unwrap_or(0), count.unwrap_or(u64::MAX));
    let mut records: Vec<RecordDump> = Vec::new();
    for places in &log.segments {
        let last = places.records.last().expect("a segment of the log has records");
        if last.seq.0 + u64::from(last.span) <= from || records.len() as u64 >= count {
            continue;
        }
        let image = cache.segment(places.segment)?;
        let seen: Vec<Seen> = records_in(&image, &cache.superblock, Some(log), &mut damages);
        let dumps = seen.iter().map(|seen| record_dump(seen, &image, cache, Some(log), false));
        let room = count - records.len() as u64;
        records.extend(dumps.filter(|dump| dump.valid && dump.seq >= from).take(room as usize));
    }
    Ok(LogDump { records, damage: damages })
}

fn summary(cache: &Cache) -> anyhow::Result<SummaryDump> {
    let mut walked = cache.walk();
    let damages = std::mem::take(&mut walked.damage);
    need_log(walked.log(), &damages)?;
    let log = walked.log().expect("just looked");
    let dirty_blocks = log.live.blocks().filter(|(_, version)| version.dirty).map(|(_, version)| version.seq);
    let dirty_ranges = log.live.ranges().filter(|(_, piece)| piece.dirty).map(|(_, piece)| piece.seq);
    let oldest = dirty_blocks.chain(dirty_ranges).min();
    let mut oldest_dirty_unix_ns = None;
    if let Some((segment, place)) = oldest.and_then(|seq| log.find(seq)) {
        let image = cache.segment(segment)?;
        let header = image.header(&cache.superblock, place.offset_blocks).ok();
        oldest_dirty_unix_ns = header.map(|header| header.wall_unix_ns).filter(|time| *time > 0);
    }
    Ok(SummaryDump {
        uuid: cache.superblock.uuid.to_string(),
        dirty_blocks: log.live.dirty_blocks(),
        cached_blocks: log.live.cached_blocks(),
        poisoned_blocks: log.live.poisoned_blocks(),
        records: log.records(),
        head_seq: log.head.0,
        dirty_tail_seq: log.anchor.dirty_tail.0,
        log_tail_seq: log.anchor.log_tail.0,
        durable_seq: log.durable.0,
        epoch: log.anchor.epoch.0,
        clean_shutdown: log.clean,
        torn_tail_records: log.torn.as_ref().map_or(0, |torn| torn.dropped_records),
        oldest_dirty_unix_ns,
        damage: damages,
    })
}
