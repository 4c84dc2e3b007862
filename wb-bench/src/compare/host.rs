//! Comparisons on this host, on real devices.

use super::collect::Collector;
use super::diskstats;
use super::link::{Answer, Job, Link, Said};
use super::session;
use super::stop::Stop;
use super::systems::Devices;
use super::workload::Sizes;
use anyhow::{anyhow, bail};
use std::path::Path;
use wb_cli::error::NextStep;
use wb_cli::output::confirm;
use wb_core::rt::Usage;

/// Devices of a comparison on this host.
pub struct Host {
    devices: Devices,
}

impl Host {
    /// Says what will be lost, and asks.
    pub fn new(cache: &Path, backing: &Path, yes: bool) -> anyhow::Result<Host> {
        for device in [cache, backing] {
            diskstats::require_block_device(device)?;
            let users = wb_core::rt::in_use(device)?;
            if !users.is_empty() {
                let users: Vec<String> = users.iter().map(used_by).collect();
                return Err(anyhow!("{} is in use: {}", device.display(), users.join(", ")))
                    .next_step("free it, or name another device");
            }
        }
        if wb_core::rt::same_device(cache, backing)? {
            bail!("{} and {} are the same device", cache.display(), backing.display());
        }
        let question = format!("All data on {} and {} will be lost. Go on?", cache.display(), backing.display());
        if !yes && !confirm(&question, "add --yes to overwrite without being asked")? {
            bail!("nothing was changed");
        }
        Ok(Host { devices: Devices { ssd: cache.to_path_buf(), disk: backing.to_path_buf() } })
    }

    /// Sizes of the devices.
    pub fn sizes(&self) -> anyhow::Result<Sizes> {
        let whole = |bytes: u64| bytes & !((1 << 20) - 1);
        let size = |device| diskstats::size_bytes(device).map(whole);
        Ok(Sizes { ssd: size(&self.devices.ssd)?, disk: size(&self.devices.disk)? })
    }

    /// What these devices are.
    pub fn facts(&self) -> Vec<(String, String)> {
        let fact = |name: &str, device: &Path| {
            let kernel_name = diskstats::kernel_name(device).unwrap_or_default();
            let model = super::shell::read(format!("/sys/class/block/{kernel_name}/device/model")).unwrap_or_default();
            let bytes = diskstats::size_bytes(device).unwrap_or(0);
            (name.to_string(), format!("{} {model}, {} MiB", device.display(), bytes >> 20))
        };
        vec![fact("SSD", &self.devices.ssd), fact("disk", &self.devices.disk)]
    }

    /// Measures one system in one round.
    pub fn measure(&self, job: &Job, collector: &mut Collector, stop: &Stop) -> anyhow::Result<()> {
        session::run(job, &self.devices, &mut Here { collector, stop })
    }
}

fn used_by(usage: &Usage) -> String {
    match usage {
        Usage::Mounted { device, at } => format!("{device} is mounted at {}", at.display()),
        Usage::Swap => "it is swap space".into(),
        Usage::Holder { device, by } => format!("{device} is part of {by}"),
        Usage::Loop { device } => format!("it is shown as {device}"),
        other => format!("{other:?}"),
    }
}

/// Both sides in one thread.
struct Here<'a> {
    collector: &'a mut Collector,
    stop: &'a Stop,
}

impl Link for Here<'_> {
    fn ask(&mut self, said: Said) -> anyhow::Result<Answer> {
        self.stop.check()?;
        Ok(self.collector.answer(said, None).unwrap_or(Answer::Ok))
    }
}
