//! On-disk format, version 1. `docs/FORMAT.md` is the specification; a test compares its tables with these structs.
//!
//! Pure code: no I/O, no clock. Every block is decoded in two steps: bytes -> [`Unchecked<T>`] (magic and CRC hold)
//! -> `T` (every field has been judged against what is known of the cache). Only a `T` reaches the engine.

mod anchor;
mod badseg;
mod crc;
mod entries;
mod geometry;
mod record;
mod summary;
mod summary_builder;
mod superblock;
mod volumes;

pub use anchor::{Anchor, AnchorRaw, CleanMark, Counters, PROBES_PER_VOLUME, ProbeSet, ProbeSetRaw, SegmentStart};
pub use badseg::{BAD_SEGMENTS_PER_BLOCK, BadSegmentBlock, BadSegments};
#[cfg(any(test, feature = "sim", feature = "testing"))]
pub(crate) use crc::block_crc;
pub use crc::crc32c;
pub use entries::Entries;
pub use geometry::{
    Geometry, GeometryError, SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENTS_MIN,
};
pub use record::{
    ENTRY_BYTES, Entry, EntryKind, EntryRaw, FIXED_HEADER_BYTES, RANGE_BLOCKS_MAX, RecordFlags, RecordHeader,
    RecordHeaderRaw,
};
pub use summary::{
    EPOCH_DELTA_MAX, RecordDesc, RecordDescRaw, SUMMARY_HEADER_BYTES, SegmentSummary, SummaryHeaderRaw, SummaryUsage,
};
pub use summary_builder::{SummaryBuilder, SummaryTails};
pub use superblock::{Superblock, SuperblockRaw};
pub use volumes::{VOLUMES_MAX, Volume, VolumeRaw, VolumeTable, VolumeTableHeaderRaw};

use uuid::Uuid;

/// Why a block was not accepted, by what it says about the block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The magic number is missing: this was never such a block, or its first sector is gone.
    #[error("not a {what} (magic number missing)")]
    Magic {
        /// Kind of block expected.
        what: &'static str,
    },
    /// The checksum does not match the content.
    #[error("{what} fails its checksum")]
    Checksum {
        /// Kind of block expected.
        what: &'static str,
    },
    /// The block belongs to another cache.
    #[error("{what} belongs to cache {found}, not {expected}")]
    OtherCache {
        /// Kind of block expected.
        what: &'static str,
        /// UUID in the block.
        found: Uuid,
        /// UUID of this cache.
        expected: Uuid,
    },
    /// The format version or an incompatible feature is unknown.
    #[error("format {0} is not known to this version: use a newer writeboost")]
    Unsupported(String),
    /// Magic and checksum hold but a field is impossible: a bug or malice, never wear.
    #[error("{what}: {problem}")]
    Field {
        /// Kind of block expected.
        what: &'static str,
        /// Field and value.
        problem: String,
    },
}

/// A block whose magic and checksum hold, and nothing else is known about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unchecked<T>(T);

impl<T> Unchecked<T> {
    /// The raw struct, for tools that show damaged images.
    pub fn raw(&self) -> &T {
        &self.0
    }
}

/// No number that grows by one gets so far; one that is there would overflow sooner or later.
const COUNT_MAX: u64 = 1 << 62;

/// Checks numbers that grow by one.
fn check_counts(what: &'static str, counts: impl IntoIterator<Item = u64>) -> Result<(), FormatError> {
    match counts.into_iter().find(|count| *count > COUNT_MAX) {
        Some(count) => Err(bad(what, format!("{count} cannot be true"))),
        None => Ok(()),
    }
}

fn bad(what: &'static str, problem: impl Into<String>) -> FormatError {
    FormatError::Field { what, problem: problem.into() }
}

/// Checks magic (first 8 bytes) and seeded CRC (bytes 8..12) of a block.
fn check_block(bytes: &[u8], magic: &[u8; 8], seed: u32, what: &'static str) -> Result<(), FormatError> {
    if &bytes[..8] != magic {
        return Err(FormatError::Magic { what });
    }
    let stored = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
    if crc::block_crc(bytes, seed) != stored {
        return Err(FormatError::Checksum { what });
    }
    Ok(())
}

fn check_uuid(found: [u8; 16], expected: Uuid, what: &'static str) -> Result<(), FormatError> {
    let found = Uuid::from_bytes(found);
    if found == expected { Ok(()) } else { Err(FormatError::OtherCache { what, found, expected }) }
}

/// UTF-8 text from a zero-padded field; what is not UTF-8 is replaced.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Text into a zero-padded field, cut at a character boundary if too long.
fn put_text(field: &mut [u8], value: &str) {
    field.fill(0);
    let mut end = value.len().min(field.len());
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    field[..end].copy_from_slice(&value.as_bytes()[..end]);
}
