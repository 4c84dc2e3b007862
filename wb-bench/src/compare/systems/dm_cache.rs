//! dm-cache, as LVM's "cache" uses it.

use super::{Devices, System, dm, text, wipe};
use crate::compare::shell::Shell;
use anyhow::bail;
use std::path::PathBuf;

/// Sectors of a cache block: 32 KiB, the smallest that the target takes.
const BLOCK_SECTORS: u64 = 64;
/// Sectors of the metadata device for a fixed part and per block (4 MiB + 16 bytes each, doubled).
const METADATA_FIXED_SECTORS: u64 = 2 * 8192;
const META: &str = "wb-bench-meta";
const DATA: &str = "wb-bench-data";
const FEATURES: &str = "2 metadata2 writeback";

/// dm-cache.
pub struct DmCache;

fn table(devices: &Devices, policy: &str) -> anyhow::Result<String> {
    let (meta, data, disk) = (dm::node(META), dm::node(DATA), &devices.disk);
    Ok(format!(
        "0 {} cache {} {} {} {BLOCK_SECTORS} {FEATURES} {policy}",
        dm::sectors(disk)?,
        text(&meta),
        text(&data),
        text(disk)
    ))
}

/// Migrations may move this many sectors at a time.
const SMQ: &str = "smq 2 migration_threshold 16384";

fn attach(shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
    let all = dm::sectors(&devices.ssd)?;
    let metadata = (METADATA_FIXED_SECTORS + all / BLOCK_SECTORS * 2 * 16 / dm::SECTOR_BYTES).next_multiple_of(8);
    let data = (all - metadata) / BLOCK_SECTORS * BLOCK_SECTORS;
    dm::linear(shell, META, &devices.ssd, 0, metadata)?;
    dm::linear(shell, DATA, &devices.ssd, metadata, data)?;
    dm::create(shell, dm::NAME, &table(devices, SMQ)?)
}

impl System for DmCache {
    fn reasons(&self) -> &'static [&'static str] {
        &[
            "writeback and smq: the mode and the policy that the kernel's documentation recommends for speed \
             (Documentation/admin-guide/device-mapper/cache.rst, cache-policies.rst).",
            "Metadata on the SSD beside the data, as lvmcache(7) places it; metadata format 2, LVM's default.",
            "Cache blocks of 32 KiB, the smallest possible: best for 4 KiB writes. LVM takes 64 KiB or more.",
            "migration_threshold 16384 sectors in place of 2048: lvmcache(7) advises to raise it where migration is \
             what limits.",
        ]
    }

    fn create(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
        // The metadata's superblock: zeroes mean a new cache.
        wipe(shell, &devices.ssd, 4096)?;
        attach(shell, devices)
    }

    fn reattach(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
        attach(shell, devices)
    }

    fn check(&self, _devices: &Devices) -> anyhow::Result<Vec<String>> {
        let words = dm::status("cache")?;
        let line = words.join(" ");
        let has = |word: &str| words.iter().any(|w| w == word);
        if !has("writeback") || !has("smq") && !has("cleaner") {
            bail!("dm-cache is not in writeback mode with smq: {line}");
        }
        if has("Fail") || has("ro") || has("needs_check") {
            bail!("dm-cache has failed: {line}");
        }
        Ok(vec![format!("dmsetup status: {line}")])
    }

    fn dirty_bytes(&self) -> anyhow::Result<u64> {
        // "start length cache MBS U/T CBS U/T RH RM WH WM demotions promotions dirty ..."
        let words = dm::status("cache")?;
        Ok(dm::number(&words, 13)? * dm::number(&words, 5)? * dm::SECTOR_BYTES)
    }

    fn start_drain(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<()> {
        // What `lvconvert --uncache` does.
        dm::reload(shell, dm::NAME, &table(devices, "cleaner 0")?)
    }

    fn destroy(&mut self, shell: &mut Shell, _devices: &Devices) -> anyhow::Result<()> {
        [dm::NAME, DATA, META].into_iter().try_for_each(|name| dm::remove(shell, name))
    }
}
