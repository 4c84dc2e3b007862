//! dm-writeboost, the kernel module that is packaged as dm-writeboost-dkms.

use super::{Devices, System, dm, text, wipe};
use crate::compare::shell::Shell;
use std::path::PathBuf;

/// dm-writeboost.
pub struct DmWriteboost;

/// Size of a page of its superblock area.
const SUPERBLOCK_BYTES: u64 = 4096;

fn attach(shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
    let (disk, ssd) = (text(&devices.disk), text(&devices.ssd));
    let sectors = dm::sectors(&devices.disk)?;
    dm::create(shell, dm::NAME, &format!("0 {sectors} writeboost {disk} {ssd} 2 writeback_threshold 70"))
}

impl System for DmWriteboost {
    fn reasons(&self) -> &'static [&'static str] {
        &["writeback_threshold 70: write-back while the disk is less than 70 % busy, the value that its README shows."]
    }

    fn create(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
        wipe(shell, &devices.ssd, SUPERBLOCK_BYTES)?;
        attach(shell, devices)
    }

    fn reattach(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
        attach(shell, devices)
    }

    fn check(&self, _devices: &Devices) -> anyhow::Result<Vec<String>> {
        Ok(vec![format!("dmsetup status: {}", dm::status("writeboost")?.join(" "))])
    }

    fn dirty_bytes(&self) -> anyhow::Result<u64> {
        // "start length writeboost cursor_pos nr_cache_blocks nr_segments current_id last_flushed_id last_written_back_id
        // nr_dirty_blocks ..."
        Ok(dm::number(&dm::status("writeboost")?, 9)? * 4096)
    }

    fn start_drain(&mut self, shell: &mut Shell, _devices: &Devices) -> anyhow::Result<()> {
        // Writes everything back before it returns, so it must not be waited for here.
        shell.record(format!("dmsetup message {} 0 drop_caches &", dm::NAME));
        let mut command = std::process::Command::new("dmsetup");
        command.args(["message", dm::NAME, "0", "drop_caches"]);
        command.spawn().map(drop).map_err(anyhow::Error::from)
    }

    fn destroy(&mut self, shell: &mut Shell, _devices: &Devices) -> anyhow::Result<()> {
        dm::remove(shell, dm::NAME)
    }
}
