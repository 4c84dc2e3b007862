//! dm-writecache on an SSD.

use super::{Devices, System, dm, text, wipe};
use crate::compare::shell::Shell;
use anyhow::bail;
use std::path::PathBuf;

const BLOCK_BYTES: u64 = 4096;

/// dm-writecache.
pub struct DmWritecache;

fn attach(shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
    let (disk, ssd) = (text(&devices.disk), text(&devices.ssd));
    let sectors = dm::sectors(&devices.disk)?;
    dm::create(shell, dm::NAME, &format!("0 {sectors} writecache s {disk} {ssd} {BLOCK_BYTES} 0"))
}

impl System for DmWritecache {
    fn reasons(&self) -> &'static [&'static str] {
        &[
            "Type 's' (SSD) and blocks of 4096 bytes, the load's and the recommended size \
             (Documentation/admin-guide/device-mapper/writecache.rst).",
            "Watermarks (50 %, 45 %), autocommit and write-back jobs at their defaults: they suit an SSD as they are.",
        ]
    }

    fn create(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
        wipe(shell, &devices.ssd, BLOCK_BYTES)?;
        attach(shell, devices)
    }

    fn reattach(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
        attach(shell, devices)
    }

    fn check(&self, _devices: &Devices) -> anyhow::Result<Vec<String>> {
        let words = dm::status("writecache")?;
        let line = words.join(" ");
        if dm::number(&words, 3)? != 0 {
            bail!("dm-writecache has met an error: {line}");
        }
        Ok(vec![format!("dmsetup status: {line}")])
    }

    fn dirty_bytes(&self) -> anyhow::Result<u64> {
        // "start length writecache error blocks free writeback ..."; it keeps nothing that is clean.
        let words = dm::status("writecache")?;
        Ok(dm::number(&words, 4)?.saturating_sub(dm::number(&words, 5)?) * BLOCK_BYTES)
    }

    fn start_drain(&mut self, shell: &mut Shell, _devices: &Devices) -> anyhow::Result<()> {
        // What `lvconvert --splitcache` does before it waits.
        shell.run("dmsetup", &["message", dm::NAME, "0", "cleaner"]).map(drop)
    }

    fn destroy(&mut self, shell: &mut Shell, _devices: &Devices) -> anyhow::Result<()> {
        dm::remove(shell, dm::NAME)
    }
}
