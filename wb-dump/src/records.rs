//! Records and entries as documents.

use crate::cache::{Cache, damage};
use wb_cli::json::dump::{Damage, EntryDump, RecordDump};
use wb_core::BLOCK_BYTES_U64;
use wb_core::check::LogView;
use wb_core::check::segment::{Payload, SegmentImage};
use wb_core::format::{Entries, Entry, EntryKind, RecordDesc, RecordFlags, RecordHeader, Superblock};
use wb_core::types::*;

/// A record as it was seen, from its header or, if that is damaged, from the segment's summary.
pub struct Seen {
    seq: Seq,
    span: u32,
    epoch: Epoch,
    offset_blocks: u32,
    chain_crc: u32,
    durable: Seq,
    wall_unix_ns: u64,
    flags: RecordFlags,
    entries: Entries,
}

impl From<RecordHeader> for Seen {
    fn from(header: RecordHeader) -> Seen {
        Seen {
            seq: header.seq,
            span: header.span,
            epoch: header.epoch,
            offset_blocks: header.offset_blocks,
            chain_crc: header.chain_crc,
            durable: header.durable,
            wall_unix_ns: header.wall_unix_ns,
            flags: header.flags,
            entries: header.entries.into(),
        }
    }
}

impl Seen {
    fn from_summary(desc: RecordDesc) -> Seen {
        Seen {
            seq: desc.seq,
            span: 1,
            epoch: desc.epoch,
            offset_blocks: desc.offset_blocks,
            chain_crc: desc.chain_crc,
            durable: Seq(0),
            wall_unix_ns: 0,
            flags: desc.flags,
            entries: desc.entries,
        }
    }

    /// Number of the record.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Entries with the block of the segment that holds their payload.
    fn entries_with_blocks(&self) -> impl Iterator<Item = (&Entry, Option<u32>)> {
        let mut next = self.offset_blocks;
        self.entries.iter().map(move |entry| {
            let block = entry.kind.has_payload().then(|| {
                next += 1;
                next
            });
            (entry, block)
        })
    }
}

/// Everything in a segment that is a record: those of the log, and self-valid remains of other times.
pub fn records_in(
    image: &SegmentImage,
    superblock: &Superblock,
    log: Option<&LogView>,
    damages: &mut Vec<Damage>,
) -> Vec<Seen> {
    let mut seen: Vec<Seen> = image.headers(superblock, 0).map(Seen::from).collect();
    let places = log.and_then(|log| log.places(image.segment));
    if let Some(places) = places.filter(|places| places.from_summary)
        && let Ok(summary) = image.summary(superblock)
    {
        for desc in summary.records {
            let known = seen.iter().any(|seen| seen.seq == desc.seq && seen.chain_crc == desc.chain_crc);
            if !known && places.records.iter().any(|place| place.seq == desc.seq) {
                let problem = image.header(superblock, desc.offset_blocks).err();
                let problem = problem.unwrap_or_else(|| "is that of another record".into());
                damages.push(damage(format!("record {}", desc.seq), format!("header: {problem}")));
                seen.push(Seen::from_summary(desc));
            }
        }
    }
    seen.sort_by_key(|seen| seen.offset_blocks);
    seen
}

/// Why a record is not part of the log; `None` if it is.
fn why_invalid(seen: &Seen, image: &SegmentImage, log: Option<&LogView>) -> Option<String> {
    let Some(log) = log else { return Some("the log cannot be walked".into()) };
    if let Some((segment, place)) = log.find(seen.seq)
        && segment == image.segment
        && place.offset_blocks == seen.offset_blocks
        && place.chain_crc == seen.chain_crc
    {
        return None;
    }
    Some(match () {
        () if seen.seq < log.anchor.log_tail => format!("older than the log tail, record {}", log.anchor.log_tail),
        () if seen.seq > log.head => format!("behind the end of the log, record {}", log.head),
        () => "the chain does not run through it".to_owned(),
    })
}

/// The document of a record. `with_entries` reads no more than what is in `image`.
pub fn record_dump(
    seen: &Seen,
    image: &SegmentImage,
    cache: &Cache,
    log: Option<&LogView>,
    with_entries: bool,
) -> RecordDump {
    let geometry = &cache.superblock.geometry;
    let invalid_because = why_invalid(seen, image, log);
    let in_log = invalid_because.is_none();
    let entries = match with_entries {
        true => seen
            .entries_with_blocks()
            .map(|(entry, block)| entry_dump(seen, entry, block, image, cache, log.filter(|_| in_log)))
            .collect(),
        false => Vec::new(),
    };
    RecordDump {
        seq: seen.seq.0,
        epoch: seen.epoch.0,
        segment: image.segment.0.into(),
        offset_bytes: geometry.block_offset(image.segment, seen.offset_blocks).0,
        valid: in_log,
        invalid_because: invalid_because.or_else(|| bridged(seen)),
        durable_seq: seen.durable.0,
        written_unix_ns: seen.wall_unix_ns,
        closes_group: seen.flags.has(RecordFlags::CLOSES_FLUSH_GROUP),
        entry_count: seen.entries.len() as u32,
        entries,
    }
}

fn bridged(seen: &Seen) -> Option<String> {
    let repaired = seen.flags.has(RecordFlags::REPAIRED) && seen.entries.is_empty();
    repaired.then(|| format!("stands for {} lost records", seen.span))
}

/// The document of an entry; `log` only if its record is part of it.
fn entry_dump(
    seen: &Seen,
    entry: &Entry,
    block: Option<u32>,
    image: &SegmentImage,
    cache: &Cache,
    log: Option<&LogView>,
) -> EntryDump {
    let geometry = &cache.superblock.geometry;
    let state = match log {
        None => "dead",
        Some(log) => state(seen, entry, block.map(|block| geometry.slot(image.segment, block)), log),
    };
    let checked = block.filter(|_| !entry.mask.is_empty());
    EntryDump {
        volume: entry.addr.volume().0,
        block: entry.addr.block(),
        blocks: entry.blocks,
        kind: entry.kind.name().to_owned(),
        sectors: entry.mask.0,
        offset_bytes: block.map(|block| geometry.block_offset(image.segment, block).0),
        crc_ok: checked.map(|block| image.payload(block, entry.crc) == Payload::Good),
        state: state.to_owned(),
    }
}

fn state(seen: &Seen, entry: &Entry, slot: Option<Slot>, log: &LogView) -> &'static str {
    let of = |dirty| if dirty { "dirty" } else { "clean" };
    match (entry.kind, slot) {
        (EntryKind::Void, _) => "dead",
        (_, Some(slot)) => match log.live.block(entry.addr) {
            Some(version) if version.slot == slot => of(version.dirty),
            _ => "overwritten",
        },
        (kind, None) => {
            let piece = log.live.range_pieces(entry.addr, entry.blocks).find(|piece| piece.seq == seen.seq);
            match (piece, kind) {
                (None, _) => "overwritten",
                (Some(piece), EntryKind::Zeroes | EntryKind::Discard) => of(piece.dirty),
                (Some(_), _) => "live",
            }
        }
    }
}

/// The entries of a record that speak of a block, newest last.
pub fn entries_of_block(
    seen: &Seen,
    addr: BlockAddr,
    image: &SegmentImage,
    cache: &Cache,
    log: &LogView,
) -> Vec<EntryDump> {
    let speaks = |entry: &Entry| {
        entry.kind != EntryKind::Void && (entry.addr.0..entry.addr.0.saturating_add(entry.blocks)).contains(&addr.0)
    };
    seen.entries_with_blocks()
        .filter(|(entry, _)| speaks(entry))
        .map(|(entry, block)| {
            let mut shown = entry_dump(seen, entry, block, image, cache, Some(log));
            if entry.blocks > 1 {
                // Of a range, this block is what was asked for.
                let counts = log.live.range(addr).filter(|piece| piece.seq == seen.seq);
                shown.state = match (counts, entry.kind) {
                    (None, _) => "overwritten",
                    (Some(piece), EntryKind::Zeroes | EntryKind::Discard) if piece.dirty => "dirty",
                    (Some(_), EntryKind::Zeroes | EntryKind::Discard) => "clean",
                    (Some(_), _) => "live",
                }
                .to_owned();
            }
            shown
        })
        .collect()
}

/// Bytes of a number of blocks.
pub fn bytes(blocks: u64) -> u64 {
    blocks.saturating_mul(BLOCK_BYTES_U64)
}
