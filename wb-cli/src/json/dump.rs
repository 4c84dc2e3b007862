//! `wb-dump --json ...`, one document per subcommand.

use serde::{Deserialize, Serialize};

/// Something on the device that is not as it must be; the rest of the document is shown nevertheless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Which thing ("superblock copy 1", "record 17").
    #[serde(rename = "where")]
    pub place: String,
    /// What is wrong with it.
    pub what: String,
}

/// `wb-dump --json superblock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperblockDump {
    /// UUID of the cache.
    pub uuid: String,
    /// Version of the format.
    pub version: u32,
    /// Label; empty if none.
    pub label: String,
    /// Size of the device when it was formatted.
    pub device_bytes: u64,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Number of segments.
    pub segments: u64,
    /// Generation: +1 each time the superblock is written.
    pub generation: u64,
    /// Feature words as hexadecimal texts.
    pub features: Features,
    /// Offset in bytes of each copy, and whether it is valid.
    pub copies: Vec<SuperblockCopy>,
    /// Volumes of the cache.
    pub volumes: Vec<VolumeDump>,
    /// Segments that are not used any more because the device failed there.
    pub bad_segments: Vec<u64>,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

/// Feature words of a superblock, as hexadecimal texts ("0x0").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// May be ignored.
    pub compat: String,
    /// Unknown ones allow reading only.
    pub ro_compat: String,
    /// Unknown ones allow nothing.
    pub incompat: String,
}

/// One copy of the superblock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuperblockCopy {
    /// Where it lies.
    pub offset_bytes: u64,
    /// Its checksum and fields are right.
    pub valid: bool,
    /// Its generation, if valid.
    pub generation: Option<u64>,
}

/// A volume of the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDump {
    /// Number of the volume; never reused.
    pub id: u16,
    /// UUID that the cache gave it.
    pub uuid: String,
    /// Its name; empty if none.
    pub name: String,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Logical sector: 512 or 4096.
    pub sector_bytes: u32,
    /// What the backing device is known by (serial, WWN, UUID of its partition), as text; empty for a file.
    pub identity: String,
}

/// `wb-dump --json anchor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnchorsDump {
    /// Both slots, in their order on the device.
    pub anchors: Vec<AnchorDump>,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

/// One anchor slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnchorDump {
    /// 0 or 1.
    pub slot: u32,
    /// Where it lies.
    pub offset_bytes: u64,
    /// Its checksum and fields are right. If not, the fields below are as read or 0.
    pub valid: bool,
    /// The newest valid anchor is the current one.
    pub current: bool,
    /// +1 each time an anchor is written.
    pub generation: u64,
    /// Lineage of the log.
    pub epoch: u64,
    /// First record of that lineage.
    pub epoch_start_seq: u64,
    /// Oldest record still valid.
    pub log_tail_seq: u64,
    /// Oldest record not yet written back.
    pub dirty_tail_seq: u64,
    /// Every record up to this one was known to be on stable media.
    pub durable_seq: u64,
    /// Head of the log at a clean stop; `null` if there is no clean mark.
    pub clean_head_seq: Option<u64>,
    /// Boot id of the serving instance; `null` if none served.
    pub boot_id: Option<String>,
    /// When it was written, nanoseconds since 1970.
    pub written_unix_ns: Option<u64>,
}

/// An entry of a record: one block, or a range of blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryDump {
    /// Number of the volume.
    pub volume: u16,
    /// First block.
    pub block: u64,
    /// Number of blocks; more than 1 only for ranges.
    pub blocks: u64,
    /// `void`, `dirty`, `clean`, `zeroes`, `discard`, `invalidate` or `poison`.
    pub kind: String,
    /// Which of the block's eight 512-byte sectors are valid: bit i is sector i.
    pub sectors: u8,
    /// Where the payload lies; `null` if the entry has none.
    pub offset_bytes: Option<u64>,
    /// The payload's checksum is right; `null` if the entry has no payload.
    pub crc_ok: Option<bool>,
    /// `live`, `overwritten` (a newer version is in the log), `dirty` (live, not yet written back), `clean` (live,
    /// written back), `dead` (the record is not part of the log).
    pub state: String,
}

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordDump {
    /// Number of the record.
    pub seq: u64,
    /// Its lineage.
    pub epoch: u64,
    /// Segment it lies in.
    pub segment: u64,
    /// Offset of its header on the device.
    pub offset_bytes: u64,
    /// It is part of the live log: its header proves itself and its place in the chain.
    pub valid: bool,
    /// Why it is not, if it is not.
    pub invalid_because: Option<String>,
    /// Everything up to here was known durable when it was sealed.
    pub durable_seq: u64,
    /// When it was sealed, nanoseconds since 1970.
    pub written_unix_ns: u64,
    /// It closes a flush group.
    pub closes_group: bool,
    /// Its entries. Empty in `log`, where `entry_count` tells their number.
    pub entries: Vec<EntryDump>,
    /// Number of its entries.
    pub entry_count: u32,
}

/// `wb-dump --json segment N`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentDump {
    /// Number of the segment.
    pub segment: u64,
    /// Offset of the segment on the device.
    pub offset_bytes: u64,
    /// The segment ends with a valid summary, so it is closed.
    pub closed: bool,
    /// Records found in it, in order.
    pub records: Vec<RecordDump>,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

/// `wb-dump --json record SEQ`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneRecordDump {
    /// The record.
    pub record: RecordDump,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

/// `wb-dump --json log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogDump {
    /// The records, oldest first, without their entries.
    pub records: Vec<RecordDump>,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

/// One version of a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionDump {
    /// Record that holds it.
    pub seq: u64,
    /// Lineage of the record.
    pub epoch: u64,
    /// When the record was sealed, nanoseconds since 1970.
    pub written_unix_ns: u64,
    /// Segment of the record.
    pub segment: u64,
    /// The entry.
    pub entry: EntryDump,
}

/// `wb-dump --json block ADDR`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDump {
    /// Number of the volume.
    pub volume: u16,
    /// Number of the block.
    pub block: u64,
    /// Every version still in the log, newest first.
    pub versions: Vec<VersionDump>,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

/// `wb-dump --json summary`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SummaryDump {
    /// UUID of the cache.
    pub uuid: String,
    /// Blocks with data that is not yet on the backing device.
    pub dirty_blocks: u64,
    /// Blocks of which the cache holds the newest version, dirty ones included.
    pub cached_blocks: u64,
    /// Blocks whose data is known to be lost.
    pub poisoned_blocks: u64,
    /// Records of the live log.
    pub records: u64,
    /// Newest record; 0 if the log is empty.
    pub head_seq: u64,
    /// Oldest record not yet written back.
    pub dirty_tail_seq: u64,
    /// Oldest record still valid.
    pub log_tail_seq: u64,
    /// Every record up to this one is known to be on stable media.
    pub durable_seq: u64,
    /// Lineage of the log.
    pub epoch: u64,
    /// The cache was stopped cleanly and not used since.
    pub clean_shutdown: bool,
    /// Complete-looking records behind the end of the log: a torn tail.
    pub torn_tail_records: u64,
    /// When the oldest dirty record was sealed, nanoseconds since 1970; `null` if nothing is dirty.
    pub oldest_dirty_unix_ns: Option<u64>,
    /// What is damaged.
    pub damage: Vec<Damage>,
}
