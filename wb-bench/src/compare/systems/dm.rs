//! What the device-mapper targets share.

use super::text;
use crate::compare::diskstats::{require_block_device, size_bytes};
use crate::compare::shell::{self, Shell};
use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the target under test.
pub const NAME: &str = "wb-bench";
/// Bytes of device mapper's sectors.
pub const SECTOR_BYTES: u64 = 512;

/// Sectors of a device.
pub fn sectors(device: &Path) -> anyhow::Result<u64> {
    Ok(size_bytes(device)? / SECTOR_BYTES)
}

/// The node of a target.
pub fn node(name: &str) -> PathBuf {
    Path::new("/dev/mapper").join(name)
}

/// Makes a target with this table.
pub fn create(shell: &mut Shell, name: &str, table: &str) -> anyhow::Result<PathBuf> {
    shell.run("dmsetup", &["create", name, "--table", table])?;
    let node = node(name);
    shell::wait_until("the node of a device-mapper target", Duration::from_secs(5), || node.exists())?;
    // Without udev and DM_DISABLE_UDEV, dmsetup makes no node, and a load would fill a plain file.
    require_block_device(&node)?;
    Ok(node)
}

/// A linear piece of a device.
pub fn linear(shell: &mut Shell, name: &str, device: &Path, start: u64, sectors: u64) -> anyhow::Result<PathBuf> {
    create(shell, name, &format!("0 {sectors} linear {} {start}", text(device)))
}

/// Replaces the table of a target that runs.
pub fn reload(shell: &mut Shell, name: &str, table: &str) -> anyhow::Result<()> {
    shell.run("dmsetup", &["suspend", name])?;
    shell.run("dmsetup", &["reload", name, "--table", table])?;
    shell.run("dmsetup", &["resume", name])?;
    Ok(())
}

/// Removes a target if it is there.
pub fn remove(shell: &mut Shell, name: &str) -> anyhow::Result<()> {
    if node(name).exists() {
        shell.run_for("dmsetup", &["remove", "--retry", name], Duration::from_secs(120))?;
    }
    Ok(())
}

/// Status of the target under test, in words; its type must be this one.
pub fn status(target: &str) -> anyhow::Result<Vec<String>> {
    let line = shell::run("dmsetup", &["status", NAME], shell::SETUP_LIMIT)?;
    let words: Vec<String> = line.split_whitespace().map(str::to_string).collect();
    if words.get(2).map(String::as_str) != Some(target) {
        bail!("{NAME} is no {target} target: {line}");
    }
    Ok(words)
}

/// A number of a status line.
pub fn number(words: &[String], at: usize) -> anyhow::Result<u64> {
    let word = words.get(at).with_context(|| format!("the status has no field {at}: {}", words.join(" ")))?;
    word.parse().with_context(|| format!("field {at} of the status is no number: {}", words.join(" ")))
}
