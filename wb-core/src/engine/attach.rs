//! The backing device: is it the one whose data the cache holds, and unchanged?
//!
//! Identity is a serial number or UUID where there is one, the size, the sector size, and CRCs of probe blocks: some in
//! the first and last MiB, some anywhere. They are renewed when write-back touches them and compared at attach where the
//! log holds nothing dirty for them.

use super::Inner;
use super::window::Window;
use crate::env::Env;
use crate::format::{PROBES_PER_VOLUME, ProbeSet, Volume, VolumeTable, crc32c};
use crate::index::RangeKind;
use crate::io::{Buf, Disk, DiskGeometry, IoError};
use crate::types::*;
use futures_util::future::join_all;
use std::sync::Arc;
use uuid::Uuid;

/// A backing device to be attached.
pub struct Backing<D> {
    /// The device, claimed.
    pub disk: Arc<D>,
    /// Its path, for messages.
    pub path: String,
    /// Serial number, WWN or UUID; empty if it has none.
    pub identity: String,
    /// Name of the volume, used when it is attached for the first time.
    pub name: String,
}

/// Why a backing device was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// Provably another device.
    #[error(
        "{path} is not the backing device of this cache: recorded is {recorded}, this is {found}. Name the right device; \
         to give the cache to another one, write the data back first (wb-check --replay) and format the cache anew"
    )]
    Other {
        /// Path of the device.
        path: String,
        /// Identity in the cache.
        recorded: String,
        /// Identity of the device.
        found: String,
    },
    /// Smaller than it was.
    #[error(
        "{path} has shrunk: {found_bytes} bytes, the cache has recorded {recorded_bytes}. Restore its size; data beyond \
         its end would be lost"
    )]
    Shrunk {
        /// Path of the device.
        path: String,
        /// Size in the cache.
        recorded_bytes: u64,
        /// Size of the device.
        found_bytes: u64,
    },
    /// Larger sectors than the volume was given.
    #[error("{path} has sectors of {found} bytes, the volume is served with {recorded}: the device was replaced")]
    Sector {
        /// Path of the device.
        path: String,
        /// Sector size in the cache.
        recorded: u32,
        /// Sector size of the device.
        found: u32,
    },
    /// A probe block differs.
    #[error(
        "{path} was changed behind the cache's back, or is another device: block {block} differs from what the cache \
         wrote. If the change is meant, make the cache anew with wb-format; dirty data that it holds is lost then"
    )]
    Changed {
        /// Path of the device.
        path: String,
        /// Number of the block.
        block: u64,
    },
    /// Not even one sector, or more than the format can name.
    #[error("{path} has {found_bytes} bytes, which is no size for a backing device")]
    Size {
        /// Path of the device.
        path: String,
        /// Size of the device.
        found_bytes: u64,
    },
    /// Read-only, but the cache has data for it.
    #[error("{path} is read-only and the cache holds dirty data for it: make it writable")]
    ReadOnlyDirty {
        /// Path of the device.
        path: String,
    },
    /// No volume number is left.
    #[error("the cache has been given to {0} devices, one after the other: make it anew with wb-format")]
    Numbers(u16),
    /// Several volumes.
    #[error("the cache has {0} volumes; this version serves one")]
    Volumes(usize),
    /// Reading it failed.
    #[error("reading {path} failed: {error}")]
    Io {
        /// Path of the device.
        path: String,
        /// How.
        error: IoError,
    },
}

/// Finds the volume of a device in the table, or makes a new one. True: new.
pub(super) fn choose<D: Disk>(
    table: &VolumeTable,
    backing: &Backing<D>,
    force: bool,
    random: impl FnMut() -> u64,
    now_unix_ns: u64,
) -> Result<(Volume, bool), AttachError> {
    let geometry = backing.disk.geometry();
    match &table.volumes[..] {
        [] => Ok((new_volume(table, backing, geometry, random, now_unix_ns)?, true)),
        [volume] => {
            check_recorded(volume, backing, geometry, force)?;
            Ok((volume.clone(), false))
        }
        several => Err(AttachError::Volumes(several.len())),
    }
}

fn new_volume<D>(
    table: &VolumeTable,
    backing: &Backing<D>,
    geometry: DiskGeometry,
    mut random: impl FnMut() -> u64,
    now_unix_ns: u64,
) -> Result<Volume, AttachError> {
    let sector = u64::from(geometry.sector_bytes);
    let size_bytes = geometry.size_bytes / sector * sector;
    if size_bytes == 0 || size_bytes > BLOCK_BYTES_U64 << BLOCK_NUMBER_BITS {
        return Err(AttachError::Size { path: backing.path.clone(), found_bytes: geometry.size_bytes });
    }
    if table.next_id == u16::MAX {
        return Err(AttachError::Numbers(table.next_id));
    }
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&random().to_le_bytes());
    bytes[8..].copy_from_slice(&random().to_le_bytes());
    Ok(Volume {
        id: VolumeId(table.next_id),
        uuid: uuid::Builder::from_random_bytes(bytes).into_uuid(),
        size_bytes,
        sector_bytes: geometry.sector_bytes,
        name: backing.name.clone(),
        identity: backing.identity.clone(),
        created_unix_ns: now_unix_ns,
        probe_secret: random(),
    })
}

fn check_recorded<D>(
    volume: &Volume,
    backing: &Backing<D>,
    geometry: DiskGeometry,
    force: bool,
) -> Result<(), AttachError> {
    let path = backing.path.clone();
    let both = !volume.identity.is_empty() && !backing.identity.is_empty();
    if both && volume.identity != backing.identity && !force {
        let describe = |uuid: Uuid, identity: &str, size: u64| format!("{identity} ({size} bytes, volume {uuid})");
        return Err(AttachError::Other {
            path,
            recorded: describe(volume.uuid, &volume.identity, volume.size_bytes),
            found: format!("{} ({} bytes)", backing.identity, geometry.size_bytes),
        });
    }
    if geometry.size_bytes < volume.size_bytes {
        return Err(AttachError::Shrunk { path, recorded_bytes: volume.size_bytes, found_bytes: geometry.size_bytes });
    }
    if geometry.sector_bytes > volume.sector_bytes {
        return Err(AttachError::Sector { path, recorded: volume.sector_bytes, found: geometry.sector_bytes });
    }
    if geometry.size_bytes / volume.sector_bytes as u64 > volume.size_bytes / volume.sector_bytes as u64 {
        tracing::warn!("{path} is larger than recorded; the recorded {} bytes are served", volume.size_bytes);
    }
    Ok(())
}

/// The probe blocks of a volume: four in the first MiB, four in the last, eight anywhere.
pub fn probe_blocks(volume: &Volume) -> [u64; PROBES_PER_VOLUME] {
    let blocks = volume.blocks();
    let mut state = volume.probe_secret;
    let mut random = move |below: u64| {
        // splitmix64 (public domain, S. Vigna): any fixed mixing function serves.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % below
    };
    let mib = blocks.min(256);
    std::array::from_fn(|at| match at {
        0 => 0,
        1..4 => random(mib),
        4 => blocks - 1,
        5..8 => blocks - 1 - random(mib),
        _ => random(blocks),
    })
}

/// CRC of a block of a device, cut at the end of the volume.
pub(crate) async fn probe<D: Disk>(disk: &D, volume: &Volume, block: u64) -> Result<u32, IoError> {
    let offset = block * BLOCK_BYTES_U64;
    let len = (volume.size_bytes - offset).min(BLOCK_BYTES_U64) as usize;
    let (result, buf) = disk.read(offset, Buf::unpooled(len)).await;
    result.map(|()| crc32c(&buf))
}

/// All probes of a device as it is now, read at once: a rotating disk has them in half the time that one after the other
/// takes.
pub(crate) async fn probe_each<D: Disk>(disk: &D, volume: &Volume) -> [Result<u32, IoError>; PROBES_PER_VOLUME] {
    let crcs = join_all(probe_blocks(volume).map(|block| probe(disk, volume, block))).await;
    crcs.try_into().unwrap_or_else(|_| unreachable!("one each"))
}

/// The same, all or nothing.
pub(crate) async fn probe_all<D: Disk>(disk: &D, volume: &Volume) -> Result<ProbeSet, IoError> {
    let mut crcs = [None; PROBES_PER_VOLUME];
    for (crc, probed) in crcs.iter_mut().zip(probe_each(disk, volume).await) {
        *crc = Some(probed?);
    }
    Ok(ProbeSet { volume: volume.id, crcs })
}

impl<E: Env> Inner<E> {
    /// Reads the probe blocks that a window has written. `None` if there are none.
    pub(super) async fn renew_probes(&self, window: &Window) -> Option<ProbeSet> {
        let volume = &self.served.volume;
        let mut set = self.anchors.probes(volume.id)?;
        let mut touched = false;
        for (crc, block) in set.crcs.iter_mut().zip(probe_blocks(volume)) {
            let ranges = window.ranges.iter().filter(|range| range.blocks.contains(&block));
            // What a discarded block reads as need not be what it reads as next time.
            if ranges.clone().any(|range| range.kind == RangeKind::Discard) {
                *crc = None;
                touched = true;
            } else if window.contains(self.addr(block)) || ranges.count() > 0 {
                *crc = probe(&*self.served.disk, volume, block).await.ok();
                touched = true;
            }
        }
        touched.then_some(set)
    }
}
