//! Start: load the metadata, walk the log from the segment of the dirty tail on, build the index, judge the backing
//! device, make what was found durable, serve.
//!
//! Nothing is written before everything that can be checked has been. Before serving, the cache device is flushed and an
//! anchor with D = head and, unless the stop was proven clean, a new epoch is durable in both slots: what was once read
//! after recovery is never taken back [recovery reads a record from the SSD's volatile cache, the user's FLUSH finds
//! "nothing new", power fails]. Every step may be cut off and repeated.

use super::admission::Admission;
use super::anchors::AnchorState;
use super::attach::{self, AttachError, Backing};
use super::commit::CommitState;
use super::config::{EngineConfig, Shares};
use super::counters::CounterCells;
use super::loading::{Intake, LoadFor, Loaded};
use super::segments::SegmentTable;
use super::tail::{self, Before, OwnTail, TailReport};
use super::warm::WarmState;
use super::writeback::WritebackState;
use super::{Engine, Inner, Served};
use crate::env::{Env, PlantedBug};
use crate::format::{Anchor, BadSegments, PROBES_PER_VOLUME, SegmentStart, Superblock, Volume};
use crate::index::{AddressWidths, Index, IndexConfig, IndexError, RangeMap};
use crate::io::{BufPool, Disk, IoError, PoolClass};
use crate::log::head::{HeadConfig, HeadStart, LiveSegment, LogHead};
use crate::log::scan::read_summary;
use crate::log::{LogScan, ScanError, ScannedSegment, scan};
use crate::meta::{self, CacheMeta, MetaError};
use crate::sync::{StripeLocks, Striped, WaitQueue};
use crate::tail::{Tail, TailError, TailStore};
use crate::types::*;
use futures_util::future::join;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};

const STRIPES: usize = 1024;
/// Most ranges that a log may hold: writers stop at [`EngineConfig::range_pieces`], but a start with a smaller setting
/// than the last one must take what is there.
pub(super) const RANGES_MAX: usize = 1 << 22;

/// What to open.
pub struct OpenOptions<D> {
    /// The cache device, claimed.
    pub cache: Arc<D>,
    /// The backing device, claimed.
    pub backing: Backing<D>,
    /// Settings.
    pub config: EngineConfig,
    /// Boot in which this instance runs.
    pub boot_id: [u8; 16],
    /// Where record buffers are kept so that they survive the process. Without, the death of the process takes what a
    /// power cut may take.
    pub tails: Option<Arc<dyn TailStore>>,
    /// Start although acknowledged writes of an instance that died in this boot cannot be found.
    pub accept_loss: bool,
    /// Refuse writes by users. Write-back of what is in the cache goes on unless the backing device is read-only.
    pub read_only: bool,
    /// Attach a device that looks like another one, or changed.
    pub force: bool,
}

/// Why a cache could not be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its metadata.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// Its log.
    #[error("{0}. Run wb-check to see what is damaged, wb-check --repair to save what proves itself")]
    Log(#[from] ScanError),
    /// The backing device.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A record names a volume that the cache does not have.
    #[error("record {seq} names volume {volume}, which the cache does not have. Run wb-check")]
    UnknownVolume {
        /// The record.
        seq: Seq,
        /// The volume it names.
        volume: VolumeId,
    },
    /// A record names a block beyond the end of its volume.
    #[error("record {seq} names block {block}, beyond the end of its volume. Run wb-check")]
    BeyondEnd {
        /// The record.
        seq: Seq,
        /// The block.
        block: u64,
    },
    /// More zeroed and discarded ranges than any engine would have logged.
    #[error("the log holds more than {RANGES_MAX} zeroed or discarded ranges. Run wb-check")]
    Ranges,
    /// The RAM tail.
    #[error(transparent)]
    Tail(#[from] TailError),
    /// An instance died in this boot, and what it kept in memory is not there.
    #[error(
        "the daemon that served this cache died, and {why}: writes that it acknowledged and did not flush cannot be \
         recovered. Everything that was flushed is on the cache device (all up to record {durable}, and more may be). \
         Only if the rest may be lost, start with --accept-loss; unmount first what uses the volume, for a mounted \
         filesystem does not expect that"
    )]
    TailLost {
        /// What is wrong with the tail.
        why: String,
        /// D, as last anchored.
        durable: Seq,
    },
    /// Writing a record of the RAM tail to where it belongs.
    #[error(
        "writing record {seq} of the RAM tail to offset {offset} of the cache device failed: {error}. Nothing is lost: the tail stays; start again when the device works"
    )]
    TailWrite {
        /// The record.
        seq: Seq,
        /// Where it belongs.
        offset: ByteOffset,
        /// How.
        error: IoError,
    },
    /// A record of the RAM tail cannot be written where it belongs, and there is no other place.
    #[error(
        "record {seq} of the RAM tail cannot be written where it belongs, and no other segment of the cache device is \
         free and good. Nothing is lost while this machine runs: the tail stays. Start again when the device works; \
         --accept-loss starts without what was not flushed"
    )]
    TailNoRoom {
        /// The record.
        seq: Seq,
    },
    /// The log and the RAM tail contradict each other.
    #[error(
        "the log ends at record {head}, the RAM tail at record {tail}. Run wb-check; --accept-loss starts without the tail"
    )]
    TailMismatch {
        /// End of the log.
        head: Seq,
        /// End of the tail.
        tail: Seq,
    },
    /// Too little memory.
    #[error("{bytes} bytes for record buffers cannot be allocated: {error}")]
    Memory {
        /// What was asked for.
        bytes: u64,
        /// The kernel's answer.
        error: std::io::Error,
    },
    /// The cache device.
    #[error("flushing the cache device failed: {0}")]
    Flush(IoError),
    /// The cache device.
    #[error("clearing the outdated summary of segment {segment} failed: {error}")]
    Summary {
        /// The segment in which the log was cut.
        segment: SegmentNo,
        /// How.
        error: IoError,
    },
}

/// What a start found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryReport {
    /// True if the last stop was clean.
    pub clean: bool,
    /// The walk over the log.
    pub scan: LogScan,
    /// What was in the RAM tail of an instance that died in this boot.
    pub tail: Option<TailReport>,
    /// What of its acknowledged writes is lost, as the user accepted.
    pub accepted_loss: Option<AcceptedLoss>,
    /// Time it took.
    pub recovery_ns: u64,
}

/// Records that were acknowledged, not flushed, and given up by a start with [`OpenOptions::accept_loss`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptedLoss {
    /// The first one.
    pub first: Seq,
    /// The last one; unknown if the tail could not be read, and then there may be none at all.
    pub last: Option<Seq>,
}

impl std::fmt::Display for AcceptedLoss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let AcceptedLoss { first, last } = self;
        match last {
            Some(last) if last == first => {
                write!(f, "record {first}, acknowledged and not flushed, is lost, as accepted")
            }
            Some(last) => write!(f, "records {first} to {last}, acknowledged and not flushed, are lost, as accepted"),
            None => write!(f, "what was acknowledged and not flushed from record {first} on is lost, as accepted"),
        }
    }
}

impl<E: Env> Engine<E> {
    /// Opens a cache, recovers its log and serves it. The calling thread's executor runs the maintenance task.
    pub async fn open(env: &E, options: OpenOptions<E::Disk>) -> Result<Engine<E>, OpenError> {
        let started_ns = env.now_ns();
        let mut meta = meta::load(&*options.cache).await?;
        meta.check_writable()?;
        for note in &meta.notes {
            tracing::warn!("{note}");
        }
        let (volume, fresh) =
            attach::choose(&meta.volumes, &options.backing, options.force, || env.random_u64(), env.wall_ns())?;
        let seed = env.random_u64();
        let before = tail::replay(env, &options, &mut meta).await?;
        let geometry = meta.superblock.geometry;
        let what = LoadFor {
            volume: volume.clone(),
            fresh,
            geometry,
            index: IndexConfig {
                slots: geometry.slots(),
                entries: geometry.payload_max(),
                widths: AddressWidths::for_volumes([(volume.id, volume.blocks())]),
                shards: options.config.index_shards,
                seed,
                with_crcs: options.config.verify_reads,
            },
            range_pieces: options.config.range_pieces,
            dirty_tail: meta.anchor.dirty_tail,
            unread: 0,
            now_unix_ns: env.wall_ns(),
        };
        let mut hint = meta.anchor_slots.iter().flatten().map(|anchor| anchor.durable).max().unwrap_or_default();
        if let Before::Replayed { head, .. } = &before {
            hint = hint.max(*head); // all of it is durable now, and the walk must find it
        }
        let walked = load(env, &options, &meta, what, hint);
        // The disk seeks while the SSD is walked.
        let (walked, probed) = join(walked, probe_known(&meta, &volume, &options.backing)).await;
        let (mut found, loaded, start) = walked?;
        let Loaded { index, segments, ranges, live, last, previous_crc, bridged } = loaded;
        // What has misled this start must not mislead the next one.
        meta.anchor.dirty_segment = meta.anchor.dirty_segment.filter(|dirty| dirty.segment == start.segment);
        let unread = geometry.distance(meta.anchor.log_tail_segment, start.segment);
        let unread = (0..unread).map(|step| geometry.segment_after(meta.anchor.log_tail_segment, step));
        let unread_good = unread.filter(|segment| !meta.bad_segments.is_bad(*segment)).count() as u32;
        let (same_epoch, tail_report) = match before {
            Before::Replayed { head, .. } if head != found.head => {
                return Err(OpenError::TailMismatch { head: found.head, tail: head });
            }
            // Nothing is missing: what was written is in the log, and nothing else of this epoch ever was.
            Before::Replayed { report, .. } => (true, Some(report)),
            Before::NoTail => (found.clean, None),
            Before::LossAccepted { .. } => (false, None),
        };
        let first = found.head.next();
        let accepted_loss = match before {
            Before::LossAccepted { head } => Some(AcceptedLoss { first, last: head }),
            _ => None,
        };
        let accepted_loss = accepted_loss.filter(|lost| lost.last.is_none_or(|last| first <= last));
        // An instance that has a tail takes the clean mark back without telling the device.
        found.clean &= matches!(before, Before::NoTail);
        report(&found);
        let head_start = head_start(&meta, &found, same_epoch, live, unread_good, last, &options.config);
        let dirty = index.dirty_len() > 0 || ranges.dirty_blocks() > 0;
        if dirty && options.backing.disk.geometry().read_only {
            return Err(AttachError::ReadOnlyDirty { path: options.backing.path }.into());
        }
        check_probes(&meta, &volume, &options, probed, &index, &ranges)?;
        let (tail, own_tail) = tail::create(env, &options, &meta, &head_start)?;
        let anchor = settle(env, &meta, &options, &volume, fresh, &found, &head_start, own_tail.as_ref()).await?;
        if let Some(lost) = &accepted_loss {
            tracing::warn!("{lost}");
        }
        if let Some(own) = &own_tail {
            own.remove_others();
        }
        let recovery = RecoveryReport {
            clean: found.clean,
            scan: found,
            tail: tail_report,
            accepted_loss,
            recovery_ns: env.now_ns() - started_ns,
        };
        // Where records are lost, or the disk is another one, older copies may be older than what the disk has.
        let warm = WarmState::new(unread_good > 0 && !bridged && !options.force, previous_crc);
        let parts = Parts { index, segments, ranges, head_start, warm, anchor, recovery, tail, own_tail };
        Ok(build(env, meta, options, volume, parts))
    }
}

/// Walks the log from the segment of the dirty tail on, and loads it. What lies before is read while the cache is served
/// ([`super::warm`]). Where the walk fails there, all of the log is walked: the anchor may not know better.
async fn load<E: Env>(
    env: &E,
    options: &OpenOptions<E::Disk>,
    meta: &CacheMeta,
    what: LoadFor,
    hint: Seq,
) -> Result<(LogScan, Loaded, SegmentStart), OpenError> {
    let log_start = meta.anchor.log_start();
    // Where both are the same segment, the log start knows its first record, too.
    let dirty = meta.anchor.dirty_segment.filter(|start| start.segment != log_start.segment);
    for start in dirty.into_iter().chain([log_start]) {
        let unread = what.geometry.distance(log_start.segment, start.segment);
        let mut intake = Intake::new(env, LoadFor { unread, ..what.clone() });
        let mut refused = None;
        let take = async |segment| {
            if refused.is_none() {
                refused = intake.take(segment).await.err();
            }
        };
        match scan(&*options.cache, &meta.superblock, &meta.anchor, &meta.bad_segments, start, hint, take).await {
            Ok(found) => {
                if let Some(error) = refused {
                    return Err(error.into());
                }
                let loaded = intake.finish().await?;
                if unread == 0 || loaded.live.front().is_some_and(|first| first.segment == start.segment) {
                    return Ok((found, loaded, start));
                }
                tracing::warn!("the dirty tail is not in segment {}; walking the whole log", start.segment);
            }
            Err(ScanError::Corrupt { at, reason, .. }) if unread > 0 => {
                // Not two of them in memory at once.
                let _ = intake.finish().await;
                tracing::warn!(
                    "record {at}, in or behind the segment of the dirty tail: {reason}; walking the whole log"
                );
            }
            Err(error) => return Err(error.into()),
        }
    }
    unreachable!("the walk from the log tail gives its result or its error")
}

fn report(found: &LogScan) {
    if let Some(torn) = &found.torn {
        tracing::info!(
            "torn tail: record {} (segment {}, block {}) is incomplete: {}; {} complete records behind it do not count",
            torn.at,
            torn.segment,
            torn.offset_blocks,
            torn.reason,
            torn.dropped_records
        );
    }
    tracing::info!(
        "log: {} records in {} segments, head {}, durable {}, {}",
        found.records,
        found.segments,
        found.head,
        found.durable,
        if found.clean { "clean stop" } else { "recovered" }
    );
}

fn head_start(
    meta: &CacheMeta,
    found: &LogScan,
    same_epoch: bool,
    live: VecDeque<LiveSegment>,
    unread_good: u32,
    last: Option<ScannedSegment>,
    config: &EngineConfig,
) -> HeadStart {
    let geometry = &meta.superblock.geometry;
    let (segment, block) = found.next;
    let goes_on = last.filter(|last| {
        last.segment == segment && block > 0 && !last.from_summary && !meta.bad_segments.is_bad(segment)
    });
    let head_pos = live.back().map_or(LogPos(0), |last_live| match &goes_on {
        Some(_) => LogPos(last_live.pos.0 + u64::from(block)),
        None => LogPos(last_live.pos.0 + u64::from(geometry.segment_blocks())),
    });
    let same_epoch =
        same_epoch || config.has_bug(PlantedBug::SkipEpochBump) || config.has_bug(PlantedBug::ServeBeforeFlush);
    let (epoch, epoch_start) = match same_epoch {
        true => (meta.anchor.epoch, meta.anchor.epoch_start),
        false => (Epoch(meta.anchor.epoch.0 + 1), found.head.next()),
    };
    HeadStart {
        head: found.head,
        chain_crc: found.head_chain_crc,
        head_pos,
        epoch,
        epoch_start,
        live,
        unread_good,
        next_segment: match goes_on {
            Some(_) => geometry.next_segment(segment),
            None => segment,
        },
        open: goes_on.map(|last| (last, block)),
        log_tail: meta.anchor.log_tail,
        dirty_tail: meta.anchor.dirty_tail,
    }
}

/// The probe blocks as they are now, if the anchor says how they were.
async fn probe_known<D: Disk>(
    meta: &CacheMeta,
    volume: &Volume,
    backing: &Backing<D>,
) -> Option<[Result<u32, IoError>; PROBES_PER_VOLUME]> {
    let known = meta.anchor.probes.iter().any(|set| set.volume == volume.id);
    if known { Some(attach::probe_each(&*backing.disk, volume).await) } else { None }
}

/// Compares the probe blocks that nothing dirty in the log will change.
fn check_probes<D>(
    meta: &CacheMeta,
    volume: &Volume,
    options: &OpenOptions<D>,
    probed: Option<[Result<u32, IoError>; PROBES_PER_VOLUME]>,
    index: &Index,
    ranges: &RangeMap,
) -> Result<(), AttachError> {
    let Some(set) = meta.anchor.probes.iter().find(|set| set.volume == volume.id) else { return Ok(()) };
    let path = &options.backing.path;
    let blocks = attach::probe_blocks(volume);
    for ((crc, block), found) in set.crcs.iter().zip(blocks).zip(probed.into_iter().flatten()) {
        let dirty = index.lookup(BlockAddr::new(volume.id, block)).is_some_and(|entry| entry.dirty)
            || ranges.lookup(block).is_some_and(|piece| piece.dirty);
        let Some(crc) = crc.filter(|_| !dirty) else { continue };
        let found = found.map_err(|error| AttachError::Io { path: path.clone(), error })?;
        if found != crc && !options.force {
            return Err(AttachError::Changed { path: path.clone(), block });
        }
    }
    Ok(())
}

/// Makes durable what was found, and says so.
async fn settle<E: Env>(
    env: &E,
    meta: &CacheMeta,
    options: &OpenOptions<E::Disk>,
    volume: &Volume,
    fresh: bool,
    found: &LogScan,
    start: &HeadStart,
    own_tail: Option<&OwnTail>,
) -> Result<Anchor, OpenError> {
    let path = || options.backing.path.clone();
    let mut anchor = meta.anchor.clone();
    anchor.boot_id = options.boot_id;
    anchor.ram_tail_id = own_tail.map_or([0; 16], |own| own.name.id.into_bytes());
    let known = anchor.probes.iter().any(|set| set.volume == volume.id);
    if fresh || options.force || !known {
        let probes = attach::probe_all(&*options.backing.disk, volume).await;
        let probes = probes.map_err(|error| AttachError::Io { path: path(), error })?;
        anchor.probes.retain(|set| set.volume != volume.id);
        anchor.probes.push(probes);
    }
    if fresh {
        let mut table = meta.volumes.clone();
        table.generation += 1;
        table.next_id += 1;
        table.volumes.push(volume.clone());
        meta::write_volumes(&*options.cache, &meta.superblock, &table).await?;
    } else if meta.volumes_uneven {
        // The first attach was cut off between the two copies, or one has rotted. The next damage must not hit the only
        // one that is left. A device that cannot write it again is not worse than it was.
        match meta::write_volumes(&*options.cache, &meta.superblock, &meta.volumes).await {
            Ok(()) => tracing::info!("both copies of the volume table are whole again"),
            Err(error) => tracing::warn!("the second copy of the volume table could not be restored: {error}"),
        }
    }
    if options.config.has_bug(PlantedBug::ServeBeforeFlush) && !fresh {
        return Ok(anchor);
    }
    if !options.config.has_bug(PlantedBug::KeepOutdatedSummaries) {
        forget_summaries(&*options.cache, &meta.superblock, &meta.bad_segments, found).await?;
    }
    options.cache.flush().await.map_err(OpenError::Flush)?;
    anchor.generation += 1;
    anchor.epoch = start.epoch;
    anchor.epoch_start = start.epoch_start;
    anchor.durable = found.head;
    anchor.clean = anchor.clean.filter(|_| found.clean);
    anchor.counters.starts += 1;
    anchor.wall_unix_ns = env.wall_ns();
    anchor.generation = meta::write_anchor_both(&*options.cache, &meta.superblock, &anchor).await?;
    Ok(anchor)
}

/// Clears summaries that name records which do not count any more: that of the segment in which the log was cut, and
/// that of the segment behind it, which begins with the record after the cut where the cut is at a segment's end.
/// Durable before the new epoch is: from the epoch after that on, nothing would tell those records from the ones that
/// take their place [segment closed, power fails, its summary survives and its last record does not; a new record takes
/// its place; two starts later the summary counts again and its entries point at other data].
///
/// Segments further behind need nothing: their summaries name a predecessor that no new record has as its chain value.
async fn forget_summaries<D: Disk>(
    cache: &D,
    superblock: &Superblock,
    bad: &BadSegments,
    found: &LogScan,
) -> Result<(), OpenError> {
    let geometry = &superblock.geometry;
    if found.clean {
        return Ok(());
    }
    let behind = (0..geometry.segments).scan(found.next.0, |at, _| {
        *at = geometry.next_segment(*at);
        Some(*at)
    });
    // Bad segments in between are walked, too, if they lead on.
    let behind: Vec<SegmentNo> = behind.collect();
    let until_good = behind.iter().position(|segment| !bad.is_bad(*segment)).map_or(behind.len(), |at| at + 1);
    for segment in std::iter::once(found.next.0).chain(behind.into_iter().take(until_good)) {
        let Ok(summary) = read_summary(cache, superblock, segment).await else { continue };
        if summary.last_seq() <= found.head {
            continue;
        }
        let offset = geometry.summary_offset(segment);
        let zeroes = vec![0; geometry.summary_blocks() as usize * BLOCK_BYTES];
        match meta::write_at(cache, offset, &zeroes).await {
            Err(error) if bad.is_bad(segment) => {
                tracing::warn!("{}", OpenError::Summary { segment, error });
            }
            result => result.map_err(|error| OpenError::Summary { segment, error })?,
        }
    }
    Ok(())
}

struct Parts {
    index: Index,
    segments: SegmentTable,
    ranges: RangeMap,
    head_start: HeadStart,
    warm: WarmState,
    anchor: Anchor,
    recovery: RecoveryReport,
    tail: Tail,
    own_tail: Option<OwnTail>,
}

fn build<E: Env>(env: &E, meta: CacheMeta, options: OpenOptions<E::Disk>, volume: Volume, parts: Parts) -> Engine<E> {
    let geometry = meta.superblock.geometry;
    let config = options.config;
    // Small segments are written back in small windows: their memory need not be larger than what they can hold.
    let window_segments = Shares::of(&geometry).batch_segments as usize;
    let window_bytes = config.window_bytes.min(window_segments * geometry.segment_bytes as usize).max(1 << 16);
    let window_pool = BufPool::new(&[PoolClass { bytes: window_bytes / BLOCK_BYTES * BLOCK_BYTES, count: 2 }]);
    let wall = env.clone();
    let head = LogHead::new(
        HeadConfig {
            superblock: &meta.superblock,
            bad: meta.bad_segments,
            tail: parts.tail,
            reserve_segments: Shares::of(&geometry).reserve_segments,
            wall_unix_ns: Box::new(move || wall.wall_ns()),
        },
        parts.head_start,
    );
    let range_pieces = AtomicUsize::new(parts.ranges.len());
    let read_only = options.read_only || options.backing.disk.geometry().read_only;
    let inner = Arc::new(Inner {
        env: env.clone(),
        cache: options.cache,
        geometry,
        head,
        index: parts.index,
        segments: parts.segments,
        stripes: StripeLocks::new(STRIPES),
        pool: BufPool::new(&config.read_buffers()),
        window_pool,
        served: Served {
            volume,
            disk: options.backing.disk,
            read_only,
            ranges: Mutex::new(parts.ranges),
            range_pieces,
            range_requests: AtomicUsize::new(0),
        },
        user_bytes_at_start: parts.anchor.counters.user_write_bytes,
        counters: CounterCells::from_anchor(parts.anchor.counters),
        commit: CommitState::new(),
        space: WaitQueue::new(),
        anchors: AnchorState::new(parts.anchor),
        writeback: WritebackState::new(config.policy),
        warm: parts.warm,
        admission: Admission::default(),
        failed: AtomicBool::new(false),
        failure: Mutex::new(None),
        stopping: AtomicBool::new(false),
        operations: Striped::default(),
        idle: WaitQueue::new(),
        recovery: parts.recovery,
        tail: parts.own_tail,
        superblock: meta.superblock,
        config,
    });
    let maintenance = inner.clone();
    env.spawn(async move { maintenance.maintain().await });
    Engine { inner }
}
