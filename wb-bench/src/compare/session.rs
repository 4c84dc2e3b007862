//! Measures one system: sets it up, checks that it is what is to be measured, runs the workloads, counts what its devices
//! had to do. The same code in the guest and on this host.

use super::apps;
use super::diskstats;
use super::fio::FioJob;
use super::link::{Job, Link, Said};
use super::memory;
use super::result::{Cell, DiskWork, Measurement, Outcome, SystemConfig};
use super::shell::Shell;
use super::systems::{self, Devices, System};
use super::workload::{Kind, PREPARING, Preparation, Workload};
use crate::model_disk::Counts;
use anyhow::{Context as _, anyhow};
use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MIB: f64 = 1048576.0;
/// Distance of the points of a drain curve.
const DRAIN_SAMPLE: Duration = Duration::from_millis(500);

struct Session<'a> {
    job: &'a Job,
    devices: &'a Devices,
    link: &'a mut dyn Link,
    system: Box<dyn System>,
    shell: Shell,
    /// The device under load, while the system is attached.
    target: Option<PathBuf>,
    config_sent: bool,
    /// Memory that was held before the system was set up.
    held_before: u64,
    /// The workload that has left the present state.
    state_of: Option<String>,
}

/// Measures what the job says. An invalid set-up is an error and ends the run; a load that fails is a failed cell.
pub fn run(job: &Job, devices: &Devices, link: &mut dyn Link) -> anyhow::Result<()> {
    let system = systems::by_name(&job.system, job.transport).with_context(|| format!("no system {}", job.system))?;
    let mut session = Session {
        job,
        devices,
        link,
        system,
        shell: Shell::default(),
        target: None,
        config_sent: false,
        held_before: 0,
        state_of: None,
    };
    for device in [&devices.ssd, &devices.disk] {
        diskstats::require_block_device(device)?;
    }
    if job.recover {
        return session.recover();
    }
    for workload in &job.workloads {
        session.link.tell(Said::Progress(format!("{}: {}", job.system, workload.name)))?;
        let outcome = session.workload(workload)?;
        session.cell(workload, outcome)?;
    }
    session.link.tell(Said::Dilate(0.0))?;
    session.destroy()
}

/// What was counted at one moment.
struct Snapshot {
    ssd: DiskWork,
    disk: DiskWork,
    models: Option<[Counts; 2]>,
}

impl Session<'_> {
    fn cell(&mut self, workload: &Workload, outcome: Outcome) -> anyhow::Result<()> {
        let (system, name) = (self.job.system.clone(), workload.name.clone());
        self.link.tell(Said::Cell(Box::new(Cell { system, workload: name, round: self.job.round, outcome })))
    }

    fn workload(&mut self, workload: &Workload) -> anyhow::Result<Outcome> {
        if systems::is_raw(&self.job.system) && !workload.on_raw {
            return Ok(Outcome::NotApplicable("a bare device has no cache".into()));
        }
        if self.job.system == "raw-ssd" && workload.begins_at() >= self.job.sizes.ssd {
            return Ok(Outcome::NotApplicable("it goes to a part of the disk that the SSD is too small for".into()));
        }
        match &workload.preparation {
            Preparation::Continue(before) if self.state_of.as_ref() != Some(before) => {
                return Ok(Outcome::Failed(format!("'{before}', which it continues, has failed")));
            }
            Preparation::Continue(_) => (),
            Preparation::Fresh | Preparation::After(_) => {
                self.state_of = None;
                self.create()?;
            }
        }
        let mut prepared = None;
        if let Preparation::After(load) = &workload.preparation
            // A bare device has no state that a load could bring about.
            && !systems::is_raw(&self.job.system)
        {
            self.link.tell(Said::Dilate(PREPARING))?;
            let target = self.target()?;
            match load.run(&target) {
                Ok(done) => prepared = Some(done.user_write_bytes as f64 / MIB),
                Err(why) => return Ok(Outcome::Failed(format!("preparing: {why:#}"))),
            }
        }
        self.link.tell(Said::Dilate(workload.dilation_share))?;
        match self.measure(workload) {
            Ok(mut measurement) => {
                // Less than was asked for where its time was up: a cache that let most of it go to the disk.
                measurement.more.extend(prepared.map(|mib| ("prepared_mib".to_string(), mib)));
                // A system that lost its mode meanwhile was not measured at all.
                if !matches!(workload.kind, Kind::Drain { .. }) {
                    self.system.check(self.devices).with_context(|| format!("after '{}'", workload.name))?;
                }
                self.state_of = Some(workload.name.clone());
                if matches!(workload.kind, Kind::Drain { .. }) && measurement.more.get("dirty_before_mib") == Some(&0.0)
                {
                    return Ok(Outcome::NotApplicable("nothing was dirty: the cache had taken nothing".into()));
                }
                Ok(Outcome::Measured(Box::new(measurement)))
            }
            Err(why) => {
                self.state_of = None;
                Ok(Outcome::Failed(format!("{why:#}")))
            }
        }
    }

    fn target(&self) -> anyhow::Result<PathBuf> {
        self.target.clone().ok_or_else(|| anyhow!("{} is not attached", self.job.system))
    }

    /// Makes the cache anew. Nobody waits for modelled devices meanwhile.
    fn create(&mut self) -> anyhow::Result<()> {
        self.link.tell(Said::Dilate(0.0))?;
        self.destroy()?;
        self.held_before = diskstats::memory_held_bytes()?;
        self.shell.start_recording();
        let created = self.system.create(&mut self.shell, self.devices);
        let commands = self.shell.take_recorded();
        let target = created.with_context(|| format!("cannot set up {}", self.job.system))?;
        diskstats::require_block_device(&target)?;
        let checks = self.system.check(self.devices).with_context(|| format!("{} is not set up", self.job.system))?;
        self.target = Some(target);
        if !self.config_sent {
            self.config_sent = true;
            let reasons = self.system.reasons().iter().map(|reason| reason.to_string()).collect();
            let name = self.job.system.clone();
            self.link.tell(Said::Config(SystemConfig { name, reasons, commands, checks }))?;
        }
        Ok(())
    }

    fn destroy(&mut self) -> anyhow::Result<()> {
        self.target = None;
        let destroyed = self.system.destroy(&mut self.shell, self.devices);
        destroyed.with_context(|| format!("cannot take {} apart", self.job.system))
    }

    fn snapshot(&mut self) -> anyhow::Result<Snapshot> {
        let models = self.link.counts()?;
        let (ssd, disk) = match &models {
            // The kernel counts a flush without data as a write, too; the models do not.
            Some([ssd, disk]) => (ssd.into(), disk.into()),
            None => (diskstats::of(&self.devices.ssd)?, diskstats::of(&self.devices.disk)?),
        };
        Ok(Snapshot { ssd, disk, models })
    }

    fn measure(&mut self, workload: &Workload) -> anyhow::Result<Measurement> {
        let target = self.target()?;
        if matches!(workload.kind, Kind::Sqlite { .. } | Kind::Tree { .. }) {
            self.link.tell(Said::Dilate(0.0))?;
            apps::make_filesystem(&mut self.shell, &target)?;
            self.link.tell(Said::Dilate(workload.dilation_share))?;
        }
        let before = self.snapshot()?;
        let mut measured = match &workload.kind {
            Kind::Fio(job) => job.run(&target)?,
            Kind::Drain { seconds } => self.drain(Duration::from_secs(*seconds))?,
            Kind::Sqlite { seconds } => apps::sqlite(&target, Duration::from_secs(*seconds))?,
            Kind::Tree { files } => apps::source_tree(&target, *files)?,
            Kind::Recovery(job) => return self.power_cut(job, &target),
            Kind::Memory(job) => memory::measure(job, &target, self.job.sizes.ssd, self.held_before)?,
        };
        let after = self.snapshot()?;
        measured.ssd = after.ssd.since(&before.ssd);
        measured.disk = after.disk.since(&before.disk);
        // What the system holds beyond what was held without it; the kernel's own changes are in it, too.
        let held = diskstats::memory_held_bytes()?.saturating_sub(self.held_before) as f64 / MIB;
        measured.more.insert("memory_mib".into(), held);
        if let (Some(before), Some(after)) = (before.models, after.models) {
            measured.ssd_model = serde_json::to_value(after[0].since(&before[0]))?;
            measured.disk_model = serde_json::to_value(after[1].since(&before[1]))?;
        }
        if matches!(workload.kind, Kind::Sqlite { .. } | Kind::Tree { .. }) {
            self.link.tell(Said::Dilate(0.0))?;
            apps::unmount(&mut self.shell)?;
        }
        Ok(measured)
    }

    fn drain(&mut self, limit: Duration) -> anyhow::Result<Measurement> {
        let first = self.system.dirty_bytes()?;
        let begin = Instant::now();
        self.system.start_drain(&mut self.shell, self.devices)?;
        let mut curve = vec![(0.0, first as f64 / MIB)];
        let mut left = first;
        while left > 0 && begin.elapsed() < limit {
            std::thread::sleep(DRAIN_SAMPLE);
            left = self.system.dirty_bytes()?;
            curve.push((begin.elapsed().as_secs_f64(), left as f64 / MIB));
        }
        let seconds = begin.elapsed().as_secs_f64();
        let drained = first.saturating_sub(left) as f64 / MIB;
        let more = [("dirty_before_mib", first), ("dirty_after_mib", left)];
        let mut more: BTreeMap<String, f64> =
            more.into_iter().map(|(name, bytes)| (name.to_string(), bytes as f64 / MIB)).collect();
        if drained > 0.0 {
            // Of everything, at the rate of what was watched.
            more.insert("until_clean_s".into(), seconds * first as f64 / MIB / drained);
        }
        Ok(Measurement { value: drained / seconds, seconds, drain: curve, more, ..Measurement::default() })
    }

    /// Does not return in a guest: the load is cut off with everything else.
    fn power_cut(&mut self, job: &FioJob, target: &Path) -> anyhow::Result<Measurement> {
        job.run(target)?;
        self.link.tell(Said::PowerCut)?;
        Err(anyhow!("only a guest's power can be cut"))
    }

    /// After the power cut: from the first step of attaching to the first answered read.
    fn recover(&mut self) -> anyhow::Result<()> {
        let workload = self.job.workloads.iter().find(|w| matches!(w.kind, Kind::Recovery(_)));
        let workload = workload.context("a recovery belongs to a workload")?;
        self.link.tell(Said::Progress(format!("{}: {} after a power cut", self.job.system, workload.name)))?;
        self.link.tell(Said::Dilate(workload.dilation_share))?;
        let before = self.snapshot()?;
        let begin = Instant::now();
        let first_io = self.system.reattach(&mut self.shell, self.devices).and_then(|target| {
            let attached = begin.elapsed();
            first_read(&target)?;
            Ok((attached, begin.elapsed()))
        });
        let outcome = match first_io {
            Ok((attached, first_read)) => {
                let after = self.snapshot()?;
                let dirty = self.system.dirty_bytes().unwrap_or(0) as f64 / MIB;
                let more = [("attached_s", attached.as_secs_f64()), ("dirty_mib", dirty)];
                let mut measured = Measurement { value: first_read.as_secs_f64(), ..Measurement::default() };
                measured.more = more.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
                measured.seconds = measured.value;
                (measured.ssd, measured.disk) = (after.ssd.since(&before.ssd), after.disk.since(&before.disk));
                self.system.check(self.devices)?;
                Outcome::Measured(Box::new(measured))
            }
            Err(why) => Outcome::Failed(format!("{why:#}")),
        };
        let workload = workload.clone();
        self.cell(&workload, outcome)?;
        self.link.tell(Said::Dilate(0.0))?;
        self.destroy()
    }
}

/// One block past the page cache.
fn first_read(target: &Path) -> anyhow::Result<()> {
    let open = std::fs::File::options().read(true).custom_flags(nix::libc::O_DIRECT).open(target);
    let file = open.with_context(|| format!("cannot open {}", target.display()))?;
    // Aligned by hand, as O_DIRECT wants it.
    let mut bytes = vec![0u8; 8192];
    let start = bytes.as_ptr().align_offset(4096);
    file.read_exact_at(&mut bytes[start..start + 4096], 0).with_context(|| format!("cannot read {}", target.display()))
}
