//! Writing all dirty data back without the engine.
//!
//! Nothing on the cache changes until everything is on the backing device and flushed; then an anchor says so. A run
//! that was cut off is simply run again.
//!
//! What was lost before stays lost: its entries are logged anew and stay dirty, as write-back of the engine does it [the
//! tail passes a poisoned block, its segment is used again, and a read gets old data from the backing device].

use super::append::{append, settle, unserved};
use super::examine::Examination;
use super::live::Version;
use super::repair::ram_tail_is_alive;
use super::{CheckError, Progress, block_name};
use crate::engine::attach::{probe, probe_all, probe_blocks};
use crate::format::{CleanMark, Entry, EntryKind, Volume, crc32c};
use crate::io::{Buf, Disk, IoError};
use crate::meta::{next_anchor_generation, read_at, write_anchor_both};
use crate::types::*;

/// Blocks of one write to the backing device.
const RUN_BLOCKS_MAX: usize = 256;

/// What is known of the backing device, and of the moment.
#[derive(Debug, Clone, Default)]
pub struct ReplayOptions {
    /// Serial number, WWN or UUID of the backing device; empty where it has none.
    pub identity: String,
    /// Now.
    pub now_unix_ns: u64,
    /// This boot; zero: not known.
    pub boot_id: [u8; 16],
}

/// What was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Blocks with payload written.
    pub blocks: u64,
    /// Blocks made zero or discarded.
    pub range_blocks: u64,
    /// Blocks whose payload fails its checksum or cannot be read; the backing device keeps what it had.
    pub rotten: Vec<BlockAddr>,
    /// Blocks that the backing device did not take.
    pub failed: Vec<(BlockAddr, IoError)>,
    /// Blocks that were lost before.
    pub poisoned: u64,
}

impl ReplayReport {
    /// True if nothing dirty is left.
    pub fn is_complete(&self) -> bool {
        self.rotten.is_empty() && self.failed.is_empty()
    }
}

/// Writes everything dirty that `found`, a fresh look at `cache`, says is dirty. If all of it could be written, the cache
/// is clean afterwards.
pub async fn replay<C: Disk, B: Disk>(
    cache: &C,
    backing: &B,
    found: &Examination,
    options: &ReplayOptions,
    progress: &mut impl FnMut(Progress),
) -> Result<ReplayReport, CheckError> {
    found.check_writable()?;
    refuse_if_damaged(found)?;
    if ram_tail_is_alive(found, options.boot_id) {
        return Err(CheckError::RamTail);
    }
    let Some(volume) = volume_of(found)? else { return Ok(ReplayReport::default()) };
    check_backing(volume, backing, &options.identity)?;
    check_probes(found, volume, backing).await?;
    // Recovered records are made durable before anything relies on them.
    let mut anchor = match found.log.clean {
        true => found.log.anchor.clone(),
        false => settle(cache, found, &mut Vec::new(), options.now_unix_ns).await?,
    };
    let mut run = Replay { cache, backing, found, volume, report: ReplayReport::default() };
    run.report.poisoned = found.log.live.poisoned_blocks();
    run.write_ranges().await?;
    run.write_blocks(progress).await?;
    backing.flush().await.map_err(CheckError::Backing)?;
    let report = run.report;
    let run_wrote_nothing = report.blocks + report.range_blocks == 0;
    if report.is_complete() {
        let mark = CleanMark { head: found.log.head, segment: found.log.next.0 };
        let poison: Vec<(Entry, Seq)> = found
            .log
            .live
            .ranges()
            .filter(|(_, piece)| piece.kind == EntryKind::Poison)
            .map(|(addr, piece)| (Entry::range(addr, EntryKind::Poison, piece.end - addr.0), piece.seq))
            .collect();
        let mut kept = None;
        let oldest = poison.iter().map(|(_, seq)| *seq).min();
        let behind = oldest.filter(|oldest| *oldest >= found.log.anchor.dirty_tail);
        if let Some(oldest) = behind.filter(|_| run_wrote_nothing) {
            // Nothing but what is lost lies behind the tail already: a replay again and again must not use up the ring.
            kept = Some((found.log.head, oldest));
        } else if let Some(oldest) = oldest {
            if found.log.clean {
                anchor = settle(cache, found, &mut Vec::new(), options.now_unix_ns).await?;
            }
            let entries: Vec<Entry> = poison.into_iter().map(|(entry, _)| entry).collect();
            kept = match append(cache, found, &anchor, &entries, &mut Vec::new(), options.now_unix_ns).await {
                Ok(head) => Some((head, found.log.head.next())),
                // Where they are they stay, and with them what is younger, which is then written once more.
                Err(CheckError::NoSpace) => Some((found.log.head, oldest)),
                Err(error) => return Err(error),
            };
        }
        anchor = unserved(&anchor, options.now_unix_ns);
        // The newest anchor must be durable before the other slot is written: a run before this one may have been killed.
        cache.flush().await.map_err(CheckError::Cache)?;
        anchor.generation = next_anchor_generation(cache, &found.superblock).await;
        (anchor.durable, anchor.dirty_tail) = kept.unwrap_or((found.log.head, found.log.head.next()));
        anchor.clean = Some(mark).filter(|_| kept.is_none());
        anchor.dirty_segment = None; // the tail moves, and may move back
        anchor.probes.retain(|probes| probes.volume != volume.id);
        let mut probes = probe_all(backing, volume).await.map_err(CheckError::Backing)?;
        for (crc, block) in probes.crcs.iter_mut().zip(probe_blocks(volume)) {
            // What a discarded block reads as need not be what it reads as next time.
            let piece = found.log.live.range(BlockAddr::new(volume.id, block));
            *crc = crc.filter(|_| piece.is_none_or(|piece| piece.kind != EntryKind::Discard));
        }
        anchor.probes.push(probes);
        write_anchor_both(cache, &found.superblock, &anchor).await?;
    }
    Ok(report)
}

fn refuse_if_damaged(found: &Examination) -> Result<(), CheckError> {
    let problem = match (&found.log.refusal, &found.rebuilt_anchor, &found.stale_below) {
        (Some(refusal), ..) => refusal.to_string(),
        (_, Some(_), _) => "both anchors are damaged".to_owned(),
        (.., Some(_)) => "records are lost".to_owned(),
        _ if !found.outdated.is_empty() => "summaries hide newer records".to_owned(),
        _ if found.log.stray_count > 0 => {
            return Err(CheckError::Damaged("the log names blocks that no volume has".into()));
        }
        _ => return Ok(()),
    };
    Err(CheckError::Damaged(problem))
}

/// The volume that has dirty data; `None` if there is none.
fn volume_of(found: &Examination) -> Result<Option<&Volume>, CheckError> {
    let live = &found.log.live;
    let blocks = live.blocks().filter(|(_, version)| version.dirty).map(|(addr, _)| addr.volume());
    let ranges = live.ranges().filter(|(_, piece)| piece.dirty).map(|(addr, _)| addr.volume());
    let mut dirty: Vec<VolumeId> = blocks.chain(ranges).collect();
    dirty.dedup();
    dirty.sort();
    dirty.dedup();
    let table = found.volumes.as_ref();
    match (&dirty[..], table) {
        ([], table) => Ok(table.and_then(|table| table.volumes.first()).filter(|_| found.log.head.0 > 0)),
        ([only], Some(table)) => Ok(table.get(*only)),
        (_, None) => Err(CheckError::Damaged("both volume tables are damaged, so sizes are not known".into())),
        (several, _) => {
            let ids: Vec<_> = several.iter().map(VolumeId::to_string).collect();
            Err(CheckError::WrongBacking(format!("volumes {} have dirty data; one is expected", ids.join(", "))))
        }
    }
}

fn check_backing<B: Disk>(volume: &Volume, backing: &B, identity: &str) -> Result<(), CheckError> {
    let geometry = backing.geometry();
    let wrong = |problem: String| Err(CheckError::WrongBacking(problem));
    if !identity.is_empty() && !volume.identity.is_empty() && identity != volume.identity {
        return wrong(format!("the backing device is {identity}, the cache holds data of {}", volume.identity));
    }
    if geometry.size_bytes < volume.size_bytes {
        return wrong(format!(
            "the backing device has {} bytes, the cache holds data of one with {}",
            geometry.size_bytes, volume.size_bytes
        ));
    }
    if geometry.sector_bytes > volume.sector_bytes {
        return wrong(format!(
            "the backing device has sectors of {} bytes, the cache holds data of one with {}",
            geometry.sector_bytes, volume.sector_bytes
        ));
    }
    if geometry.read_only {
        return wrong("the backing device is read-only".into());
    }
    Ok(())
}

/// Compares the probe blocks that the log holds nothing dirty for.
async fn check_probes<B: Disk>(found: &Examination, volume: &Volume, backing: &B) -> Result<(), CheckError> {
    let Some(known) = found.log.anchor.probes.iter().find(|probes| probes.volume == volume.id) else { return Ok(()) };
    for (crc, block) in known.crcs.iter().zip(probe_blocks(volume)) {
        let addr = BlockAddr::new(volume.id, block);
        let live = &found.log.live;
        let dirty = live.block(addr).is_some_and(|version| version.dirty)
            || live.range(addr).is_some_and(|piece| piece.dirty || piece.kind == EntryKind::Poison);
        let Some(crc) = crc.filter(|_| !dirty) else { continue };
        if probe(backing, volume, block).await.map_err(CheckError::Backing)? != crc {
            return Err(CheckError::WrongBacking(format!(
                "the backing device was changed behind the cache's back, or is another device: block {block} differs \
                 from what the cache wrote"
            )));
        }
    }
    Ok(())
}

struct Replay<'a, C: Disk, B: Disk> {
    cache: &'a C,
    backing: &'a B,
    found: &'a Examination,
    volume: &'a Volume,
    report: ReplayReport,
}

impl<C: Disk, B: Disk> Replay<'_, C, B> {
    /// Bytes of the volume behind block `block`: 4096, less in the last one.
    fn bytes_at(&self, block: u64) -> u64 {
        (self.volume.size_bytes - block * BLOCK_BYTES_U64).min(BLOCK_BYTES_U64)
    }

    /// What is left of zeroes and discards: no block of it has younger payload, so that their order does not matter.
    async fn write_ranges(&mut self) -> Result<(), CheckError> {
        let live = self.found.log.live.ranges();
        for (addr, piece) in live.filter(|(_, piece)| piece.dirty && piece.kind != EntryKind::Poison) {
            let start = addr.block() * BLOCK_BYTES_U64;
            let end = ((piece.end - addr.0 + addr.block()) * BLOCK_BYTES_U64).min(self.volume.size_bytes);
            let result = match piece.kind {
                EntryKind::Zeroes => self.zero(start, end).await,
                // A hint: that it fails is nobody's loss.
                EntryKind::Discard => match self.backing.discard(start, end - start).await {
                    Err(IoError::Gone) => Err(IoError::Gone),
                    _ => Ok(()),
                },
                _ => continue,
            };
            match result {
                Ok(()) => self.report.range_blocks += piece.end - addr.0,
                Err(IoError::Gone) => return Err(CheckError::Backing(IoError::Gone)),
                Err(error) => self.report.failed.push((addr, error)),
            }
        }
        Ok(())
    }

    async fn zero(&self, start: u64, end: u64) -> Result<(), IoError> {
        match self.backing.write_zeroes(start, end - start).await {
            Err(IoError::Unsupported) => {}
            other => return other,
        }
        let zeroes = Buf::unpooled(RUN_BLOCKS_MAX * BLOCK_BYTES).freeze();
        let mut at = start;
        while at < end {
            let len = (end - at).min(zeroes.len() as u64);
            self.backing.write(at, vec![zeroes.slice(0..len as usize)], false).await?;
            at += len;
        }
        Ok(())
    }

    /// All dirty payload by address, neighbours in one write.
    async fn write_blocks(&mut self, progress: &mut impl FnMut(Progress)) -> Result<(), CheckError> {
        let total = self.found.log.live.dirty_blocks();
        let found = self.found;
        let mut dirty = found.log.live.blocks().filter(|(_, version)| version.dirty).peekable();
        let mut done = 0;
        while let Some((addr, version)) = dirty.next() {
            progress(Progress { what: "writing to the backing device", done, total });
            let mut run = vec![(addr, *version)];
            while run.len() < RUN_BLOCKS_MAX
                && let Some((next, version)) = dirty.next_if(|(next, _)| next.0 == addr.0 + run.len() as u64)
            {
                run.push((next, *version));
            }
            done += run.len() as u64;
            self.write_run(&run).await?;
        }
        progress(Progress { what: "writing to the backing device", done, total });
        Ok(())
    }

    async fn write_run(&mut self, run: &[(BlockAddr, Version)]) -> Result<(), CheckError> {
        let mut bytes = Buf::unpooled(run.len() * BLOCK_BYTES);
        // Whole blocks that stand together go out in one write: (first, count) within the run.
        let mut whole: Vec<(usize, usize)> = Vec::new();
        for (at, (addr, version)) in run.iter().enumerate() {
            let Some(payload) = self.payload(*addr, version).await? else { continue };
            bytes[at * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(&payload);
            let len = self.bytes_at(addr.block());
            if !version.mask.is_full() || len < BLOCK_BYTES_U64 {
                self.write_part(*addr, version.mask, &payload).await?;
                continue;
            }
            match whole.last_mut() {
                Some((first, count)) if *first + *count == at => *count += 1,
                _ => whole.push((at, 1)),
            }
        }
        let bytes = bytes.freeze();
        for (first, count) in whole {
            let addr = run[first].0;
            let data = bytes.slice(first * BLOCK_BYTES..(first + count) * BLOCK_BYTES);
            let offset = addr.block() * BLOCK_BYTES_U64;
            let result = self.backing.write(offset, vec![data.clone()], false).await;
            if count == 1 || matches!(result, Ok(()) | Err(IoError::Gone)) {
                self.note(addr, count as u64, result)?;
                continue;
            }
            // The neighbours of a bad sector are good.
            for at in 0..count {
                let block = data.slice(at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES);
                let result = self.backing.write(offset + (at * BLOCK_BYTES) as u64, vec![block], false).await;
                self.note(BlockAddr(addr.0 + at as u64), 1, result)?;
            }
        }
        Ok(())
    }

    fn note(&mut self, addr: BlockAddr, blocks: u64, result: Result<(), IoError>) -> Result<(), CheckError> {
        match result {
            Ok(()) => self.report.blocks += blocks,
            Err(IoError::Gone) => return Err(CheckError::Backing(IoError::Gone)),
            Err(error) => self.report.failed.extend((0..blocks).map(|at| (BlockAddr(addr.0 + at), error))),
        }
        Ok(())
    }

    /// The payload of a version, if it proves itself.
    async fn payload(&mut self, addr: BlockAddr, version: &Version) -> Result<Option<Buf>, CheckError> {
        let offset = self.found.superblock.geometry.slot_offset(version.slot);
        match read_at(self.cache, offset, BLOCK_BYTES).await {
            Ok(payload) if crc32c(&payload) == version.crc => return Ok(Some(payload)),
            Err(IoError::Gone) => return Err(CheckError::Cache(IoError::Gone)),
            Ok(_) | Err(_) => {}
        }
        tracing::warn!("{}: its payload is lost; run wb-check --repair --verify-data", block_name(addr));
        self.report.rotten.push(addr);
        Ok(None)
    }

    /// The valid sectors of a block; a device that takes only larger pieces gets them merged into what it has.
    async fn write_part(&mut self, addr: BlockAddr, mask: SectorMask, payload: &[u8]) -> Result<(), CheckError> {
        let start = addr.block() * BLOCK_BYTES_U64;
        let len = self.bytes_at(addr.block()) as usize;
        let align = self.backing.geometry().align_bytes as usize;
        let result = match align <= SECTOR_BYTES {
            true => self.write_sectors(start, len, mask, payload).await,
            false => self.merge_sectors(start, len.next_multiple_of(align), mask, payload).await,
        };
        self.note(addr, 1, result)
    }

    async fn write_sectors(&self, start: u64, len: usize, mask: SectorMask, payload: &[u8]) -> Result<(), IoError> {
        for (first, count) in mask.runs() {
            let from = first * SECTOR_BYTES;
            let to = ((first + count) * SECTOR_BYTES).min(len);
            if from >= to {
                continue;
            }
            let mut data = Buf::unpooled(to - from);
            data.copy_from_slice(&payload[from..to]);
            self.backing.write(start + from as u64, vec![data.freeze()], false).await?;
        }
        Ok(())
    }

    async fn merge_sectors(&self, start: u64, len: usize, mask: SectorMask, payload: &[u8]) -> Result<(), IoError> {
        let mut whole = read_at(self.backing, ByteOffset(start), len).await?;
        for (first, count) in mask.runs() {
            let from = first * SECTOR_BYTES;
            let to = ((first + count) * SECTOR_BYTES).min(len);
            if from < to {
                whole[from..to].copy_from_slice(&payload[from..to]);
            }
        }
        self.backing.write(start, vec![whole.freeze()], false).await
    }
}
