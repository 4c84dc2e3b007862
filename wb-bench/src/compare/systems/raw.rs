//! Bare devices: the bounds of every run.

use super::{Devices, System};
use crate::compare::diskstats::require_block_device;
use crate::compare::shell::Shell;
use anyhow::bail;
use std::path::PathBuf;

/// A bare device.
pub enum Raw {
    /// What the SSD alone would do.
    Ssd,
    /// What there is without a cache.
    Disk,
}

impl Raw {
    fn device(&self, devices: &Devices) -> PathBuf {
        match self {
            Raw::Ssd => devices.ssd.clone(),
            Raw::Disk => devices.disk.clone(),
        }
    }
}

impl System for Raw {
    fn reasons(&self) -> &'static [&'static str] {
        match self {
            Raw::Ssd => &[
                "The SSD without any cache: no cache can be faster than its device allows, unless it writes less or in another order.",
            ],
            Raw::Disk => &["The disk without any cache: what a cache has to be better than."],
        }
    }

    fn create(&mut self, _shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
        Ok(self.device(devices))
    }

    fn reattach(&mut self, _shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
        Ok(self.device(devices))
    }

    fn check(&self, devices: &Devices) -> anyhow::Result<Vec<String>> {
        let device = self.device(devices);
        require_block_device(&device)?;
        Ok(vec![format!("{} is a block device", device.display())])
    }

    fn dirty_bytes(&self) -> anyhow::Result<u64> {
        bail!("a bare device has no dirty data")
    }

    fn start_drain(&mut self, _shell: &mut Shell, _devices: &Devices) -> anyhow::Result<()> {
        bail!("a bare device has nothing to write back")
    }

    fn destroy(&mut self, _shell: &mut Shell, _devices: &Devices) -> anyhow::Result<()> {
        Ok(())
    }
}
