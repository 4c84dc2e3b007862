//! Anchors: where the log begins, what is durable, and whether the last stop was clean. Two slots.

use super::*;
use crate::types::*;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: &[u8; 8] = b"WBANCHOR";
const WHAT: &str = "anchor";
const FLAG_CLEAN: u32 = 1;

/// Probe blocks of each backing device whose CRCs the anchor keeps.
pub const PROBES_PER_VOLUME: usize = 16;

/// An anchor, 4096 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct AnchorRaw {
    pub magic: [u8; 8],
    pub crc: U32,
    pub flags: U32,
    pub uuid: [u8; 16],
    pub generation: U64,
    pub epoch: U64,
    pub epoch_start: U64,
    pub log_tail: U64,
    pub log_tail_segment: U32,
    pub clean_segment: U32,
    pub dirty_tail: U64,
    pub durable: U64,
    pub clean_head: U64,
    pub boot_id: [u8; 16],
    pub ram_tail_id: [u8; 16],
    pub wall_unix_ns: U64,
    pub counters: [U64; 16],
    pub probes: [ProbeSetRaw; VOLUMES_MAX],
    pub dirty_segment_first: U64,
    pub dirty_segment: U32,
    pub dirty_segment_crc: U32,
    pub reserved: [u8; 2736],
}

/// Probe CRCs of one volume, 72 bytes.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ProbeSetRaw {
    pub volume: U16,
    pub known: U16,
    pub reserved: U32,
    pub crcs: [U32; PROBES_PER_VOLUME],
}

const _: () = assert!(size_of::<AnchorRaw>() == BLOCK_BYTES);

/// A segment of the log, and the record that it begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentStart {
    /// The segment.
    pub segment: SegmentNo,
    /// Its first record.
    pub first: Seq,
    /// The chain value of that record, if it is known: no other record with its number is meant.
    pub first_crc: Option<u32>,
}

/// "Everything up to this record is on stable media and nothing follows": void as soon as a later record exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CleanMark {
    /// The head at the clean stop.
    pub head: Seq,
    /// The segment in which the log goes on.
    pub segment: SegmentNo,
}

/// Lifetime counters, kept from start to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Writes by users.
    pub user_writes: u64,
    /// Bytes of them.
    pub user_write_bytes: u64,
    /// Reads by users.
    pub user_reads: u64,
    /// Bytes of them.
    pub user_read_bytes: u64,
    /// Flushes by users.
    pub user_flushes: u64,
    /// Blocks read that the cache had.
    pub read_hits: u64,
    /// Blocks read that it had not.
    pub read_misses: u64,
    /// Writes to the cache device.
    pub cache_writes: u64,
    /// Bytes of them.
    pub cache_write_bytes: u64,
    /// Flushes of the cache device.
    pub cache_flushes: u64,
    /// Writes to backing devices.
    pub backing_writes: u64,
    /// Bytes of them.
    pub backing_write_bytes: u64,
    /// Flushes of backing devices.
    pub backing_flushes: u64,
    /// Write-backs that failed.
    pub writeback_errors: u64,
    /// Payload that failed its CRC.
    pub checksum_errors: u64,
    /// Starts of the daemon on this cache.
    pub starts: u64,
}

impl Counters {
    /// The counters in the order of the format.
    pub fn to_array(self) -> [u64; 16] {
        [
            self.user_writes,
            self.user_write_bytes,
            self.user_reads,
            self.user_read_bytes,
            self.user_flushes,
            self.read_hits,
            self.read_misses,
            self.cache_writes,
            self.cache_write_bytes,
            self.cache_flushes,
            self.backing_writes,
            self.backing_write_bytes,
            self.backing_flushes,
            self.writeback_errors,
            self.checksum_errors,
            self.starts,
        ]
    }
    /// The inverse of [`Counters::to_array`].
    pub fn from_array(values: [u64; 16]) -> Counters {
        let [
            user_writes,
            user_write_bytes,
            user_reads,
            user_read_bytes,
            user_flushes,
            read_hits,
            read_misses,
            cache_writes,
            cache_write_bytes,
            cache_flushes,
            backing_writes,
            backing_write_bytes,
            backing_flushes,
            writeback_errors,
            checksum_errors,
            starts,
        ] = values;
        Counters {
            user_writes,
            user_write_bytes,
            user_reads,
            user_read_bytes,
            user_flushes,
            read_hits,
            read_misses,
            cache_writes,
            cache_write_bytes,
            cache_flushes,
            backing_writes,
            backing_write_bytes,
            backing_flushes,
            writeback_errors,
            checksum_errors,
            starts,
        }
    }
}

/// CRCs of a volume's probe blocks, as last written; `None` where not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeSet {
    /// The volume.
    pub volume: VolumeId,
    /// CRC-32C of each probe block.
    pub crcs: [Option<u32>; PROBES_PER_VOLUME],
}

/// An anchor that has been judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Grows with each anchor written; the newest valid slot counts.
    pub generation: u64,
    /// Current lineage.
    pub epoch: Epoch,
    /// First record of it. A record of an older epoch with this number or a higher one is invalid for ever.
    pub epoch_start: Seq,
    /// Oldest valid record: the first of `log_tail_segment`. One past the head if the log is empty.
    pub log_tail: Seq,
    /// The segment that begins with it.
    pub log_tail_segment: SegmentNo,
    /// Oldest record not written back.
    pub dirty_tail: Seq,
    /// The segment that holds the dirty tail, or the newest one if that lies behind it: a start need not read anything
    /// before. `None`: not known.
    pub dirty_segment: Option<SegmentStart>,
    /// D.
    pub durable: Seq,
    /// Present after a clean stop.
    pub clean: Option<CleanMark>,
    /// Boot in which the serving instance ran.
    pub boot_id: [u8; 16],
    /// Names the RAM tail of the serving instance; zero: none.
    pub ram_tail_id: [u8; 16],
    /// When it was written; for people.
    pub wall_unix_ns: u64,
    /// Lifetime counters.
    pub counters: Counters,
    /// Probe CRCs.
    pub probes: Vec<ProbeSet>,
}

impl Anchor {
    /// The anchor of a freshly formatted cache: an empty log, epoch 1, the next record is 1 in segment 0.
    pub fn first() -> Anchor {
        Anchor {
            generation: 1,
            epoch: Epoch(1),
            epoch_start: Seq(1),
            log_tail: Seq(1),
            log_tail_segment: SegmentNo(0),
            dirty_tail: Seq(1),
            dirty_segment: None,
            durable: Seq(0),
            clean: Some(CleanMark { head: Seq(0), segment: SegmentNo(0) }),
            boot_id: [0; 16],
            ram_tail_id: [0; 16],
            wall_unix_ns: 0,
            counters: Counters::default(),
            probes: Vec::new(),
        }
    }

    /// Where the log begins.
    pub fn log_start(&self) -> SegmentStart {
        let unknown = SegmentStart { segment: self.log_tail_segment, first: self.log_tail, first_crc: None };
        let same = |start: &SegmentStart| (start.segment, start.first) == (unknown.segment, unknown.first);
        self.dirty_segment.filter(same).unwrap_or(unknown)
    }

    /// The block of this anchor.
    pub fn encode(&self, uuid: Uuid, secret: u32) -> [u8; BLOCK_BYTES] {
        assert!(self.probes.len() <= VOLUMES_MAX, "probes of each volume once");
        let mut raw = AnchorRaw::new_zeroed();
        raw.magic = *MAGIC;
        raw.uuid = *uuid.as_bytes();
        raw.generation = self.generation.into();
        raw.epoch = self.epoch.0.into();
        raw.epoch_start = self.epoch_start.0.into();
        raw.log_tail = self.log_tail.0.into();
        raw.log_tail_segment = self.log_tail_segment.0.into();
        raw.dirty_tail = self.dirty_tail.0.into();
        if let Some(start) = self.dirty_segment {
            raw.dirty_segment_first = start.first.0.into();
            raw.dirty_segment = start.segment.0.into();
            raw.dirty_segment_crc = start.first_crc.unwrap_or(0).into();
        }
        raw.durable = self.durable.0.into();
        if let Some(clean) = self.clean {
            raw.flags = FLAG_CLEAN.into();
            raw.clean_head = clean.head.0.into();
            raw.clean_segment = clean.segment.0.into();
        }
        raw.boot_id = self.boot_id;
        raw.ram_tail_id = self.ram_tail_id;
        raw.wall_unix_ns = self.wall_unix_ns.into();
        raw.counters = self.counters.to_array().map(U64::from);
        for (slot, probes) in raw.probes.iter_mut().zip(&self.probes) {
            slot.volume = probes.volume.0.into();
            let known = probes.crcs.iter().enumerate().filter(|(_, crc)| crc.is_some());
            slot.known = known.fold(0u16, |bits, (at, _)| bits | 1 << at).into();
            slot.crcs = probes.crcs.map(|crc| crc.unwrap_or(0).into());
        }
        raw.crc = crc::block_crc(raw.as_bytes(), secret).into();
        raw.as_bytes().try_into().expect("a block")
    }

    /// Magic, CRC, cache, and every field.
    pub fn decode(
        block: &[u8; BLOCK_BYTES],
        geometry: &Geometry,
        uuid: Uuid,
        secret: u32,
    ) -> Result<Anchor, FormatError> {
        check_block(block, MAGIC, secret, WHAT)?;
        let raw = AnchorRaw::read_from_bytes(block).expect("size of the struct");
        check_uuid(raw.uuid, uuid, WHAT)?;
        if raw.log_tail_segment.get() >= geometry.segments || raw.clean_segment.get() >= geometry.segments {
            return Err(bad(WHAT, format!("log tail in segment {}", raw.log_tail_segment)));
        }
        let (log, dirty, durable) = (raw.log_tail.get(), raw.dirty_tail.get(), raw.durable.get());
        if log == 0 || dirty < log || durable.checked_add(1).is_none_or(|next| next < dirty) {
            return Err(bad(WHAT, format!("log tail {log}, dirty tail {dirty}, durable {durable}")));
        }
        let (first, segment) = (raw.dirty_segment_first.get(), raw.dirty_segment.get());
        if first > 0 && (first < log || first > dirty.min(durable) || segment >= geometry.segments) {
            return Err(bad(
                WHAT,
                format!("dirty tail {dirty} in segment {segment}, which begins with record {first}"),
            ));
        }
        let dirty_segment = (first > 0).then_some(SegmentStart {
            segment: SegmentNo(segment),
            first: Seq(first),
            first_crc: Some(raw.dirty_segment_crc.get()).filter(|crc| *crc != 0),
        });
        if raw.epoch.get() == 0 || raw.epoch_start.get() == 0 {
            return Err(bad(WHAT, format!("epoch {} from record {}", raw.epoch, raw.epoch_start)));
        }
        check_counts(WHAT, [raw.generation, raw.epoch, raw.epoch_start, raw.durable, raw.clean_head].map(U64::get))?;
        let clean = (raw.flags.get() & FLAG_CLEAN != 0)
            .then(|| CleanMark { head: Seq(raw.clean_head.get()), segment: SegmentNo(raw.clean_segment.get()) });
        let probes = raw.probes.iter().filter(|set| set.volume.get() != 0).map(|set| {
            let known = set.known.get();
            let mut crcs = [None; PROBES_PER_VOLUME];
            for (at, crc) in crcs.iter_mut().enumerate().filter(|(at, _)| known >> at & 1 == 1) {
                *crc = Some(set.crcs[at].get());
            }
            ProbeSet { volume: VolumeId(set.volume.get()), crcs }
        });
        Ok(Anchor {
            generation: raw.generation.get(),
            epoch: Epoch(raw.epoch.get()),
            epoch_start: Seq(raw.epoch_start.get()),
            log_tail: Seq(log),
            log_tail_segment: SegmentNo(raw.log_tail_segment.get()),
            dirty_tail: Seq(dirty),
            dirty_segment,
            durable: Seq(durable),
            clean,
            boot_id: raw.boot_id,
            ram_tail_id: raw.ram_tail_id,
            wall_unix_ns: raw.wall_unix_ns.get(),
            counters: Counters::from_array(raw.counters.map(U64::get)),
            probes: probes.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let geometry = Geometry::new(64 << 20, 2 << 20).expect("fits");
        let uuid = Uuid::from_bytes([9; 16]);
        let mut anchor = Anchor::first();
        anchor.durable = Seq(77);
        anchor.dirty_tail = Seq(70);
        anchor.dirty_segment = Some(SegmentStart { segment: SegmentNo(3), first: Seq(68), first_crc: Some(7) });
        anchor.counters = Counters::from_array(std::array::from_fn(|at| at as u64 + 1));
        let mut crcs = [None; PROBES_PER_VOLUME];
        crcs[0] = Some(0);
        crcs[15] = Some(8);
        anchor.probes = (1..=15).map(|id| ProbeSet { volume: VolumeId(id), crcs }).collect();
        let block = anchor.encode(uuid, 4);
        assert_eq!(Anchor::decode(&block, &geometry, uuid, 4), Ok(anchor.clone()));
        for (first, segment) in [(71, 3), (68, geometry.segments)] {
            let start = Some(SegmentStart { segment: SegmentNo(segment), first: Seq(first), first_crc: Some(7) });
            let wrong = Anchor { dirty_segment: start, ..anchor.clone() };
            assert!(Anchor::decode(&wrong.encode(uuid, 4), &geometry, uuid, 4).is_err());
        }
        for generation in [1 << 62, (1 << 62) + 1] {
            let huge = Anchor { generation, ..anchor.clone() };
            assert_eq!(Anchor::decode(&huge.encode(uuid, 4), &geometry, uuid, 4).is_ok(), generation == 1 << 62);
        }
        anchor.dirty_tail = Seq(0);
        assert!(Anchor::decode(&anchor.encode(uuid, 4), &geometry, uuid, 4).is_err());
    }
}
