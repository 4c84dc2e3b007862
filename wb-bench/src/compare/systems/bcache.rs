//! bcache in writeback mode.

use super::{Devices, System, text, wipe};
use crate::compare::diskstats::{kernel_name, size_bytes};
use crate::compare::shell::{self, Shell};
use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SETS: &str = "/sys/fs/bcache";
const LIMIT: Duration = Duration::from_secs(60);

/// bcache.
#[derive(Default)]
pub struct Bcache {
    /// "bcache0".
    name: Option<String>,
    /// Folder of the cache set.
    set: Option<PathBuf>,
}

fn is_uuid(name: &str) -> bool {
    name.len() == 36 && name.bytes().filter(|b| *b == b'-').count() == 4
}

fn sets() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(SETS).into_iter().flatten().flatten();
    let named = |path: &PathBuf| path.file_name().is_some_and(|name| is_uuid(&name.to_string_lossy()));
    entries.map(|entry| entry.path()).filter(named).collect()
}

/// Sizes as bcache prints them: "1.5k", "12.0M", "0".
fn human(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    Some(
        (digits.parse::<f64>().ok()?
            * f64::from(1u32 << (shift % 30))
            * if shift >= 30 { f64::from(1u32 << 30) } else { 1.0 }) as u64,
    )
}

/// bcache takes no device of 512 buckets or fewer (`cache_alloc`: "nbuckets is too small").
fn bucket_bytes(device_bytes: u64) -> u64 {
    let mut bytes = 512 << 10;
    while bytes > 16 << 10 && device_bytes / bytes < 1000 {
        bytes /= 2;
    }
    bytes
}

impl Bcache {
    fn dir(&self) -> anyhow::Result<PathBuf> {
        let name = self.name.as_ref().context("bcache is not attached")?;
        Ok(Path::new("/sys/block").join(name).join("bcache"))
    }

    fn register(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
        let disk = kernel_name(&devices.disk)?;
        let link = Path::new("/sys/class/block").join(&disk).join("bcache/dev");
        let mut refused = Vec::new();
        for device in [&devices.ssd, &devices.disk] {
            // Where udev runs, it may have been quicker: so only what is missing in the end is an error.
            refused.extend(shell.write(Path::new(SETS).join("register"), text(device)).err());
        }
        let there = || link.exists() && !sets().is_empty();
        shell::wait_until("bcache's device", LIMIT, there).with_context(|| format!("registering: {refused:?}"))?;
        let target = std::fs::read_link(&link).with_context(|| format!("cannot read {}", link.display()))?;
        let name = target.file_name().context("bcache's device has a name")?.to_string_lossy().into_owned();
        self.name = Some(name.clone());
        self.set = sets().pop();
        let (dir, set) = (self.dir()?, self.set.clone().context("there is a cache set")?);
        let attached = || shell::read(dir.join("state")).is_ok_and(|state| state != "no cache");
        shell::wait_until("bcache to attach its cache", LIMIT, attached)?;
        shell.write(dir.join("cache_mode"), "writeback")?;
        shell.write(dir.join("sequential_cutoff"), "0")?;
        shell.write(dir.join("writeback_percent"), "40")?;
        shell.write(set.join("congested_read_threshold_us"), "0")?;
        shell.write(set.join("congested_write_threshold_us"), "0")?;
        let node = Path::new("/dev").join(name);
        shell::wait_until("the node of bcache's device", LIMIT, || node.exists())?;
        Ok(node)
    }
}

impl System for Bcache {
    fn reasons(&self) -> &'static [&'static str] {
        &[
            "writeback: the mode in which writes end on the SSD (Documentation/admin-guide/bcache.rst).",
            "sequential_cutoff 0 and congestion thresholds 0: otherwise it bypasses the SSD for long or slow requests; \
             bcache.rst names both under performance, and operators set them (canonical/hotsos#81).",
            "writeback_percent 40, the largest value, in place of 10: the least write-back during bursts, and the longest \
             sorted runs.",
            "Blocks of 4 KiB, the load's size; buckets of 512 KiB, the default, or smaller on an SSD that is too \
             small for a thousand of them.",
        ]
    }

    fn create(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
        for device in [&devices.ssd, &devices.disk] {
            wipe(shell, device, 64 << 10)?;
        }
        let (ssd, disk) = (text(&devices.ssd), text(&devices.disk));
        let bucket = format!("{}k", bucket_bytes(size_bytes(&devices.ssd)?) >> 10);
        shell.run("make-bcache", &["--writeback", "--block", "4k", "--bucket", &bucket, "-C", ssd, "-B", disk])?;
        self.register(shell, devices)
    }

    fn reattach(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
        self.register(shell, devices)
    }

    fn check(&self, _devices: &Devices) -> anyhow::Result<Vec<String>> {
        let dir = self.dir()?;
        let get = |file: &str| shell::read(dir.join(file));
        let (mode, state, cutoff) = (get("cache_mode")?, get("state")?, get("sequential_cutoff")?);
        if !mode.contains("[writeback]") {
            bail!("bcache is not in writeback mode: {mode}");
        }
        if state != "clean" && state != "dirty" {
            bail!("bcache has no cache attached: its state is '{state}'");
        }
        if human(&cutoff) != Some(0) {
            bail!("bcache bypasses sequential requests: sequential_cutoff is {cutoff}");
        }
        let set = self.set.as_ref().context("there is a cache set")?;
        let congested = shell::read(set.join("congested_write_threshold_us"))?;
        let percent = get("writeback_percent")?;
        Ok(vec![format!(
            "cache_mode {mode}, state {state}, sequential_cutoff {cutoff}, congested_write_threshold_us {congested}, \
             writeback_percent {percent}"
        )])
    }

    fn dirty_bytes(&self) -> anyhow::Result<u64> {
        let dir = self.dir()?;
        if shell::read(dir.join("state"))? == "no cache" {
            return Ok(0);
        }
        let text = shell::read(dir.join("dirty_data"))?;
        human(&text).with_context(|| format!("bcache's dirty_data is '{text}'"))
    }

    fn start_drain(&mut self, shell: &mut Shell, _devices: &Devices) -> anyhow::Result<()> {
        shell.write(self.dir()?.join("detach"), "1")
    }

    fn destroy(&mut self, shell: &mut Shell, _devices: &Devices) -> anyhow::Result<()> {
        if let Some(name) = self.name.take() {
            let block = Path::new("/sys/block").join(&name);
            if block.exists() {
                shell.write(block.join("bcache/stop"), "1")?;
                shell::wait_until("bcache's device to stop", LIMIT, || !block.exists())?;
            }
        }
        self.set = None;
        for set in sets() {
            shell.write(set.join("stop"), "1")?;
            shell::wait_until("bcache's cache set to stop", LIMIT, || !set.exists())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_bcache_prints_them() {
        for (text, bytes) in
            [("0", 0), ("0.0k", 0), ("512", 512), ("1.5k", 1536), ("12.0M", 12 << 20), ("2.0G", 2 << 30)]
        {
            assert_eq!(human(text), Some(bytes), "{text}");
        }
        assert_eq!(human("much"), None);
        assert_eq!(
            (bucket_bytes(1 << 40), bucket_bytes(512 << 20), bucket_bytes(256 << 20)),
            (512 << 10, 512 << 10, 256 << 10)
        );
        assert!(is_uuid("0c0ad71e-1c47-4580-8e98-a69eab82966b") && !is_uuid("register"));
    }
}
