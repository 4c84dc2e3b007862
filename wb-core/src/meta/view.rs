//! Reading: every copy as it is, and the cache that the newest valid copies describe.

use super::{MetaError, read_at};
use crate::format::{Anchor, BadSegments, FormatError, Geometry, Superblock, VolumeTable};
use crate::io::{Disk, IoError};
use crate::types::*;
use uuid::Uuid;

/// Why a copy of a metadata block cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] IoError),
    /// It was read and is not valid.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The device ends before it.
    #[error("lies beyond the end of the device")]
    BeyondDevice,
    /// Without a superblock nobody knows where it lies or what belongs to the cache.
    #[error("no valid superblock")]
    NoSuperblock,
}

/// Both copies of a block.
pub type Copies<T> = [Result<T, CopyError>; 2];

/// Every copy of every metadata block, for tools that look at damaged caches.
#[derive(Debug, Clone)]
pub struct MetaView {
    /// Size of the device as it is.
    pub device_bytes: u64,
    /// Both superblocks: at offset 0 and in the last block. A copy that belongs to another cache than the one that
    /// counts is still here.
    pub superblocks: Copies<Superblock>,
    /// True for a copy that begins as a superblock does, valid or not.
    pub superblock_magic: [bool; 2],
    /// Both volume tables.
    pub volumes: Copies<VolumeTable>,
    /// Both copies (generation and bits) of each block of the bad-segment bitmap.
    pub bad_segments: Vec<Copies<(u64, Vec<u8>)>>,
    /// Both anchor slots.
    pub anchors: Copies<Anchor>,
}

/// The metadata of a usable cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMeta {
    /// What the cache is.
    pub superblock: Superblock,
    /// Its volumes.
    pub volumes: VolumeTable,
    /// Segments used no more.
    pub bad_segments: BadSegments,
    /// The newest valid anchor. The next one to be written has its generation + 1.
    pub anchor: Anchor,
    /// Both slots, `None` where damaged: D is the maximum over both.
    pub anchor_slots: [Option<Anchor>; 2],
    /// One of the volume tables is damaged or older: the other one alone says what the log belongs to.
    pub volumes_uneven: bool,
    /// Copies that are damaged or older than they should be, for the log.
    pub notes: Vec<String>,
}

impl CacheMeta {
    /// Refuses if the cache has features that allow reading only.
    pub fn check_writable(&self) -> Result<(), MetaError> {
        match self.superblock.ro_compat {
            0 => Ok(()),
            bits => Err(MetaError::ReadOnlyFeatures(bits)),
        }
    }
}

async fn read_block<D: Disk>(disk: &D, offset: ByteOffset) -> Result<[u8; BLOCK_BYTES], CopyError> {
    let end = offset.0.checked_add(BLOCK_BYTES_U64);
    if end.is_none_or(|end| end > disk.geometry().size_bytes) {
        return Err(CopyError::BeyondDevice);
    }
    let buf = read_at(disk, offset, BLOCK_BYTES).await?;
    Ok(buf[..].try_into().expect("a block"))
}

/// Reads one superblock; also says whether the block begins as one.
pub(super) async fn read_superblock<D: Disk>(disk: &D, offset: ByteOffset) -> (Result<Superblock, CopyError>, bool) {
    match read_block(disk, offset).await {
        Ok(block) => {
            let judged = Superblock::unpack(&block).and_then(|unchecked| unchecked.check());
            (judged.map_err(CopyError::from), Superblock::has_magic(&block))
        }
        Err(error) => (Err(error), false),
    }
}

pub(super) async fn read_volumes<D: Disk>(
    disk: &D,
    superblock: &Superblock,
    copy: usize,
) -> Result<VolumeTable, CopyError> {
    let block = read_block(disk, superblock.geometry.volumes_offset(copy)).await?;
    Ok(VolumeTable::decode(&block, superblock.uuid, superblock.secret)?)
}

pub(super) async fn read_bad_segments<D: Disk>(
    disk: &D,
    superblock: &Superblock,
    copy: usize,
    index: u32,
) -> Result<(u64, Vec<u8>), CopyError> {
    let block = read_block(disk, superblock.geometry.bad_segments_offset(copy, index)).await?;
    let (generation, bits) = BadSegments::decode_block(&block, index, superblock.uuid, superblock.secret)?;
    check_bits(&superblock.geometry, index, &bits)?;
    Ok((generation, bits))
}

/// Bits beyond the last segment must be zero, so that a block that decodes can always be used.
fn check_bits(geometry: &Geometry, index: u32, bits: &[u8]) -> Result<(), FormatError> {
    let first = index as usize * bits.len() * 8;
    let known = (geometry.segments as usize).saturating_sub(first);
    match (known..bits.len() * 8).find(|at| bits[at / 8] >> (at % 8) & 1 == 1) {
        Some(at) => Err(FormatError::Field {
            what: "bad-segment bitmap",
            problem: format!("segment {} does not exist", first + at),
        }),
        None => Ok(()),
    }
}

/// Reads an anchor slot. An anchor whose generation belongs into the other slot went astray and does not count.
pub(super) async fn read_anchor<D: Disk>(disk: &D, superblock: &Superblock, slot: usize) -> Result<Anchor, CopyError> {
    let block = read_block(disk, superblock.geometry.anchor_offset(slot)).await?;
    let anchor = Anchor::decode(&block, &superblock.geometry, superblock.uuid, superblock.secret)?;
    if anchor.generation % 2 != slot as u64 {
        let problem = format!("generation {} in slot {slot}", anchor.generation);
        return Err(FormatError::Field { what: "anchor", problem }.into());
    }
    Ok(anchor)
}

/// Reads every copy of every metadata block. Never fails: each copy says for itself what is wrong with it.
pub async fn read_view<D: Disk>(disk: &D) -> MetaView {
    let device_bytes = disk.geometry().size_bytes;
    let (first, first_magic) = read_superblock(disk, ByteOffset(0)).await;
    // Copy 1 lies where the size of the device says; if the device was resized, where copy 0 says.
    let recorded = first.as_ref().map_or(device_bytes, |superblock| superblock.geometry.device_bytes);
    let (last, last_magic) = read_superblock(disk, Geometry::last_superblock_offset(recorded)).await;
    let mut view = MetaView {
        device_bytes,
        superblocks: [first, last],
        superblock_magic: [first_magic, last_magic],
        volumes: [Err(CopyError::NoSuperblock), Err(CopyError::NoSuperblock)],
        bad_segments: Vec::new(),
        anchors: [Err(CopyError::NoSuperblock), Err(CopyError::NoSuperblock)],
    };
    let Some(superblock) = view.superblock().cloned() else { return view };
    for copy in 0..2 {
        view.volumes[copy] = read_volumes(disk, &superblock, copy).await;
        view.anchors[copy] = read_anchor(disk, &superblock, copy).await;
    }
    for index in 0..superblock.geometry.bad_segment_blocks {
        let first = read_bad_segments(disk, &superblock, 0, index).await;
        view.bad_segments.push([first, read_bad_segments(disk, &superblock, 1, index).await]);
    }
    view
}

/// The index of the newest valid copy.
pub(super) fn newest<T>(copies: &Copies<T>, generation: impl Fn(&T) -> u64) -> Option<usize> {
    let of = |copy: usize| copies[copy].as_ref().ok().map(&generation);
    match (of(0), of(1)) {
        (None, None) => None,
        (first, second) if second > first => Some(1),
        _ => Some(0),
    }
}

fn problem<T>(copy: &Result<T, CopyError>) -> String {
    copy.as_ref().err().map_or_else(|| "valid".to_owned(), CopyError::to_string)
}

/// Notes about copies that are damaged or left behind.
fn note<T>(notes: &mut Vec<String>, copies: &Copies<T>, what: &str, generation: impl Fn(&T) -> u64) {
    for (copy, result) in copies.iter().enumerate() {
        if let Err(error) = result {
            notes.push(format!("{what} copy {copy}: {error}"));
        }
    }
    if let [Ok(first), Ok(second)] = copies {
        let (first, second) = (generation(first), generation(second));
        if first != second {
            let older = usize::from(first > second);
            notes.push(format!("{what} copy {older} is older than the other one (generation {})", first.min(second)));
        }
    }
}

impl MetaView {
    /// The superblock that counts: the newest valid one. None if the copies belong to two caches.
    pub fn superblock(&self) -> Option<&Superblock> {
        if self.two_caches().is_some() {
            return None;
        }
        let copy = newest(&self.superblocks, |superblock| superblock.generation)?;
        self.superblocks[copy].as_ref().ok()
    }

    fn two_caches(&self) -> Option<(Uuid, Uuid)> {
        match &self.superblocks {
            [Ok(first), Ok(last)] if first.uuid != last.uuid => Some((first.uuid, last.uuid)),
            _ => None,
        }
    }

    /// The volume table that counts.
    pub fn volumes(&self) -> Option<&VolumeTable> {
        let copy = newest(&self.volumes, |table| table.generation)?;
        self.volumes[copy].as_ref().ok()
    }

    /// The anchor that counts.
    pub fn anchor(&self) -> Option<&Anchor> {
        let copy = newest(&self.anchors, |anchor| anchor.generation)?;
        self.anchors[copy].as_ref().ok()
    }

    /// The bitmap that counts, or the first of its blocks that is damaged in both copies.
    pub fn bad_segments(&self) -> Result<BadSegments, MetaError> {
        let superblock = self.superblock().ok_or(MetaError::NotACache)?;
        let blocks = self.bad_segments.iter().enumerate().map(|(block, copies)| {
            let chosen = newest(copies, |copy| copy.0).and_then(|copy| copies[copy].clone().ok());
            let damaged =
                || MetaError::BadSegments { block: block as u32, problems: (problem(&copies[0]), problem(&copies[1])) };
            chosen.ok_or_else(damaged)
        });
        let blocks = blocks.collect::<Result<Vec<_>, _>>()?;
        BadSegments::from_blocks(&superblock.geometry, blocks).map_err(MetaError::Unsupported)
    }

    /// The superblock to go by, or why the device cannot be used at all.
    pub fn usable_superblock(&self) -> Result<&Superblock, MetaError> {
        if let Some((first, last)) = self.two_caches() {
            return Err(MetaError::TwoCaches(first, last));
        }
        let unsupported = self.superblocks.iter().find_map(|copy| match copy {
            Err(CopyError::Format(error @ FormatError::Unsupported(_))) => Some(error.clone()),
            _ => None,
        });
        if let Some(error) = unsupported {
            return Err(MetaError::Unsupported(error));
        }
        let Some(superblock) = self.superblock() else { return Err(self.why_no_superblock()) };
        let recorded_bytes = superblock.geometry.device_bytes;
        if recorded_bytes != self.device_bytes {
            return Err(MetaError::Resized { recorded_bytes, actual_bytes: self.device_bytes });
        }
        Ok(superblock)
    }

    fn why_no_superblock(&self) -> MetaError {
        match &self.superblocks {
            [Err(CopyError::Io(error)), Err(CopyError::Io(_))] => {
                MetaError::Io { what: "reading both superblocks", error: *error }
            }
            [first, last] if self.superblock_magic != [false, false] => {
                MetaError::Superblocks(problem(first), problem(last))
            }
            _ => MetaError::NotACache,
        }
    }

    /// What a start needs: every kind of block at least once.
    pub fn judge(&self) -> Result<CacheMeta, MetaError> {
        let superblock = self.usable_superblock()?.clone();
        let [first, last] = &self.volumes;
        let volumes = self.volumes().ok_or_else(|| MetaError::Volumes(problem(first), problem(last)))?;
        let [first, last] = &self.anchors;
        let anchor = self.anchor().ok_or_else(|| MetaError::Anchors(problem(first), problem(last)))?;
        Ok(CacheMeta {
            volumes: volumes.clone(),
            bad_segments: self.bad_segments()?,
            anchor: anchor.clone(),
            anchor_slots: [self.anchors[0].clone().ok(), self.anchors[1].clone().ok()],
            volumes_uneven: !matches!(&self.volumes, [Ok(first), Ok(last)] if first == last),
            notes: self.notes(),
            superblock,
        })
    }

    /// Copies that are damaged or older than they should be.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        note(&mut notes, &self.superblocks, "superblock", |superblock| superblock.generation);
        note(&mut notes, &self.volumes, "volume table", |table| table.generation);
        for (index, copies) in self.bad_segments.iter().enumerate() {
            note(&mut notes, copies, &format!("bad-segment bitmap block {index}"), |copy| copy.0);
        }
        // Anchors differ by design: only damage is worth a word.
        note(&mut notes, &self.anchors, "anchor", |_| 0);
        notes
    }
}

/// Reads the metadata of a cache.
pub async fn load<D: Disk>(disk: &D) -> Result<CacheMeta, MetaError> {
    read_view(disk).await.judge()
}
