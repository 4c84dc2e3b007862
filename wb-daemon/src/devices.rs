//! Opening and judging both devices before anything is written.

use anyhow::{Context as _, bail};
use std::path::Path;
use std::sync::Arc;
use wb_cli::config::CacheConfig;
use wb_cli::error::NextStep;
use wb_core::engine::Backing;
use wb_core::format::Superblock;
use wb_core::io::{Buf, Disk};
use wb_core::rt::{self, Access, OpenError, RtDisk, open_device};
use wb_core::types::BLOCK_BYTES;

/// How long to wait for claims: requests in flight of a killed predecessor hold them.
const CLAIM_WAIT_NS: u64 = 10_000_000_000;

/// Both devices, claimed.
pub struct Devices {
    /// The cache device.
    pub cache: RtDisk,
    /// Its path, for messages.
    pub cache_path: String,
    /// The backing device.
    pub backing: Backing<RtDisk>,
}

/// Opens both devices, alone, and refuses what is visibly wrong. Nothing is written.
pub async fn open(config: &CacheConfig) -> anyhow::Result<Devices> {
    let (cache_path, backing_path) = (config.device.display().to_string(), config.backing.display().to_string());
    if rt::same_device(&config.device, &config.backing).unwrap_or(false) {
        return Err(anyhow::anyhow!("{cache_path} and {backing_path} are the same device"))
            .next_step("name two devices: --cache is the fast one, --backing holds the data");
    }
    let cache = open_device(&config.device, Access::exclusive(CLAIM_WAIT_NS))
        .with_context(|| format!("cannot use the cache device {cache_path}"))?;
    let backing = match open_device(&config.backing, Access::exclusive(CLAIM_WAIT_NS)) {
        Err(OpenError::ReadOnly { .. }) => open_device(&config.backing, Access::exclusive_read_only(CLAIM_WAIT_NS)),
        other => other,
    }
    .with_context(|| format!("cannot use the backing device {backing_path}"))?;
    let usages = rt::in_use(&config.backing).unwrap_or_default();
    if let Some(usage) = usages.first() {
        return Err(anyhow::anyhow!("the backing device {backing_path} is in use ({usage:?})"))
            .next_step("unmount it, or stop what uses it: it may be changed through the cache only");
    }
    if is_cache(&backing.disk).await {
        return Err(anyhow::anyhow!("{backing_path} is a Writeboost cache device, not a backing device"))
            .next_step("swap them: --cache names the cache device, --backing the one that holds the data");
    }
    let identity = backing.identity.serial.clone().unwrap_or_default();
    let backing = Backing { disk: Arc::new(backing.disk), path: backing_path, identity, name: config.name.clone() };
    Ok(Devices { cache: cache.disk, cache_path, backing })
}

async fn is_cache(disk: &RtDisk) -> bool {
    if disk.geometry().size_bytes < BLOCK_BYTES as u64 {
        return false;
    }
    let (result, buf) = disk.read(0, Buf::unpooled(BLOCK_BYTES)).await;
    result.is_ok() && Superblock::has_magic(&buf)
}

/// Makes the directory of a socket if it is missing.
pub fn make_parent(path: &Path) -> anyhow::Result<()> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
    if parent.exists() {
        return Ok(());
    }
    if parent.parent().is_some_and(|grandparent| !grandparent.exists()) {
        bail!("cannot make {}: {} does not exist", path.display(), parent.display());
    }
    std::fs::create_dir(parent).with_context(|| format!("cannot make the directory {}", parent.display()))
}
