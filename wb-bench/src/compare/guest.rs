//! Comparisons in a guest: one boot per system and round, so that every system meets a fresh kernel, and one that hangs
//! takes nothing else along.

use super::agent::{DISK, PORT, SSD};
use super::collect::{Collector, Models};
use super::dilation;
use super::link::{Answer, Job, Lines, Said};
use super::result::Outcome;
use super::stop::Stop;
use super::systems::{self, KERNEL, KERNEL_OLD, NULL, OURS, OURS_OLD, Transport};
use super::workload::Sizes;
use crate::model_disk::{ModelServer, Spec};
use anyhow::{Context as _, anyhow, bail};
use std::collections::BTreeMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wb_cli::bench_args::TuningPlan;
use wb_cli::error::NextStep;
use wb_guest::{Disk, Guest, Image, Kernel};

/// Programs that every guest needs.
const PROGRAMS: [&str; 3] = ["fio", "mkfs.ext4", "sqlite3"];
/// How often a guest is booted that does not come up.
const BOOTS_MAX: u32 = 3;
const CPUS: u32 = 2;
const MEMORY_MIB: u32 = 1536;
/// How often it is looked whether the run is to be ended.
const LOOK: Duration = Duration::from_millis(300);
/// Longest silence of a guest: the longest load and its slack.
const SILENCE_MAX: Duration = Duration::from_secs(900);

/// Guests of a comparison.
pub struct Guests {
    /// By series.
    kernels: BTreeMap<&'static str, Kernel>,
    dir: tempfile::TempDir,
    /// Our own programs, as they go into guests.
    programs: Vec<PathBuf>,
    tuning: TuningPlan,
    /// By how much the devices are slowed down.
    dilation: f64,
}

enum End {
    Done,
    PowerCut,
}

/// Programs that a system needs in the guest.
pub fn programs_of(system: &str, transport: Transport) -> &'static [(&'static str, &'static str)] {
    match system {
        OURS | OURS_OLD if transport == Transport::Nbd => &[("nbd-client", "nbd-client")],
        "bcache" => &[("make-bcache", "bcache-tools")],
        "dm-cache" | "dm-writecache" | "dm-writeboost" => &[("dmsetup", "dmsetup")],
        _ => &[],
    }
}

impl Guests {
    /// Finds kernel and programs.
    pub fn new(tuning: TuningPlan, systems: &[&str]) -> anyhow::Result<Guests> {
        wb_guest::check_programs()?;
        let mut kernels = BTreeMap::from([(KERNEL, Kernel::find_or_download(KERNEL)?)]);
        if systems.iter().any(|name| systems::kernel_of(name) == KERNEL_OLD) {
            let kernel = Kernel::find_or_download(KERNEL_OLD)?;
            if !kernel.modules.join("extra/dm-writeboost.ko").is_file() {
                let missing = anyhow!("dm-writeboost is not built for the guests' kernel {}", kernel.release);
                return Err(missing).next_step("build it: make setup-dm-writeboost");
            }
            kernels.insert(KERNEL_OLD, kernel);
        }
        // Not in /tmp, which may be memory.
        let parent = std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into());
        let dir = tempfile::Builder::new().prefix("wb-compare-").tempdir_in(parent);
        let dir = dir.context("no folder for a comparison")?;
        let programs = programs(dir.path())?;
        let dilation = tuning.dilation.unwrap_or(dilation::LEAST);
        Ok(Guests { kernels, dir, programs, tuning, dilation })
    }

    /// By how much the devices are slowed down: as asked for, or so much that this place is quicker than they are, which
    /// a ublk device with nothing behind it tells.
    pub fn settle(&mut self, collector: &mut Collector, stop: &Stop) -> anyhow::Result<()> {
        let sizes = Sizes { ssd: self.tuning.ssd_bytes, disk: self.tuning.disk_bytes };
        let model = crate::model_disk::parameters(&self.tuning.ssd_model)?;
        let mut fact = "not measured: the factor was given".to_string();
        if self.tuning.dilation.is_none() {
            let job = dilation::job(sizes);
            self.measure(&job, collector, stop)?;
            let result = &mut collector.result;
            result.systems.retain(|system| system.name != NULL);
            let cell = result.cells.pop().context("the null device was measured")?;
            let Outcome::Measured(measured) = cell.outcome else {
                bail!("the null device could not be measured: {:?}", cell.outcome);
            };
            self.dilation = dilation::factor(model.as_ref(), measured.value)?;
            fact = dilation::words(model.as_ref(), measured.value, self.dilation);
            collector.progress(&format!("a ublk device with nothing behind it: {fact}"));
        }
        collector.result.setup.dilation = self.dilation;
        collector.result.setup.facts.insert(dilation::FACT.into(), fact);
        Ok(())
    }

    /// What these guests are, for the result.
    pub fn facts(&self) -> Vec<(String, String)> {
        let qemu = super::shell::run("qemu-system-x86_64", &["--version"], Duration::from_secs(20));
        let qemu = qemu.map(|text| text.lines().next().unwrap_or_default().to_string());
        vec![
            ("guest".into(), format!("{CPUS} CPUs, {MEMORY_MIB} MiB, emulated (TCG), kernel {}", self.releases())),
            ("QEMU".into(), qemu.unwrap_or_else(|why| format!("{why:#}"))),
            (
                "SSD of the guest".into(),
                format!("{} MiB, modelled: {}", self.tuning.ssd_bytes >> 20, self.tuning.ssd_model),
            ),
            (
                "disk of the guest".into(),
                format!("{} MiB, modelled: {}", self.tuning.disk_bytes >> 20, self.tuning.disk_model),
            ),
        ]
    }

    fn releases(&self) -> String {
        let releases: Vec<&str> = self.kernels.values().rev().map(|kernel| kernel.release.as_str()).collect();
        match releases[..] {
            [new, old] => format!("{new}; {old} for dm-writeboost and {OURS_OLD}"),
            _ => releases.join(", "),
        }
    }

    /// Measures one system in one round.
    pub fn measure(&self, job: &Job, collector: &mut Collector, stop: &Stop) -> anyhow::Result<()> {
        let models = self.models(job.sizes)?;
        match self.boot(job, &models, collector, stop)? {
            End::Done => Ok(()),
            End::PowerCut => {
                // QEMU is gone; what it had written is in the models, as on disks that were not cut off in the middle.
                let after = Job { recover: true, ..job.clone() };
                match self.boot(&after, &models, collector, stop)? {
                    End::Done => Ok(()),
                    End::PowerCut => bail!("a second power cut was asked for"),
                }
            }
        }
    }

    fn models(&self, sizes: Sizes) -> anyhow::Result<Models> {
        let start = |name: &str, model: &str, size_bytes: u64| {
            ModelServer::start(&Spec {
                model: model.to_string(),
                size_bytes,
                sector_bytes: 512,
                dilation: 0.0,
                socket: self.dir.path().join(name),
                image: None,
            })
        };
        let tuning = &self.tuning;
        let ssd = start("ssd", &tuning.ssd_model, sizes.ssd)?;
        let disk = start("disk", &tuning.disk_model, sizes.disk)?;
        Ok(Models { ssd, disk, dilation: self.dilation })
    }

    fn guest(&self, job: &Job, link: &Path) -> anyhow::Result<Guest> {
        let mut image = Image::new()?;
        for name in PROGRAMS {
            image.program(name).next_step("install what comparisons need: make setup")?;
        }
        for (name, package) in programs_of(&job.system, job.transport) {
            image.program(name).next_step(format!("install the package {package}"))?;
        }
        for program in &self.programs {
            image.program_file(program)?;
        }
        let script = "echo 0 > /proc/sys/kernel/hung_task_timeout_secs || true\nexec wb-bench compare-agent";
        let series = systems::kernel_of(&job.system);
        let kernel = self.kernels.get(series).with_context(|| format!("no kernel {series} was looked for"))?;
        let mut guest = Guest::new(kernel.clone(), image, script);
        guest.cpus = CPUS;
        guest.memory_mib = MEMORY_MIB;
        // On a busy machine an emulated timer may seem dead to the kernel, which then panics.
        guest.kernel_arguments = "no_timer_check".into();
        guest.modules(systems::modules_of(&job.system, job.transport));
        for (name, node) in [("ssd", SSD), ("disk", DISK)] {
            // A name of its own, for whoever looks at the guest.
            let serial = format!("wb-bench-{}", node.trim_start_matches("/dev/"));
            guest.disk(Disk::nbd(self.dir.path().join(name)).serial(&serial));
        }
        let path = link.display().to_string().replace(',', ",,");
        guest.qemu_arguments.extend(
            [
                "-chardev",
                &format!("socket,id=link,path={path}"),
                "-device",
                &format!("virtserialport,chardev=link,name={PORT}"),
            ]
            .map(String::from),
        );
        Ok(guest)
    }

    /// Boots, again if a guest ends before it has said anything: then nothing was measured, and nothing is lost.
    fn boot(&self, job: &Job, models: &Models, collector: &mut Collector, stop: &Stop) -> anyhow::Result<End> {
        for _ in 1..BOOTS_MAX {
            let mut greeted = false;
            match self.boot_once(job, models, collector, stop, &mut greeted) {
                Err(why) if !greeted && why.downcast_ref::<super::stop::Stopped>().is_none() => {
                    collector.progress(&format!("{}: boots again, because {why:#}", job.system));
                }
                ended => return ended,
            }
        }
        self.boot_once(job, models, collector, stop, &mut false)
    }

    fn boot_once(
        &self,
        job: &Job,
        models: &Models,
        collector: &mut Collector,
        stop: &Stop,
        greeted: &mut bool,
    ) -> anyhow::Result<End> {
        collector.progress(&format!("{}: a guest boots", job.system));
        let path = self.dir.path().join("link");
        // Left over from an earlier boot.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).context("cannot make a socket for the guest")?;
        listener.set_nonblocking(true)?;
        let mut guest = self.guest(job, &path)?;
        guest.limit = stop.left().unwrap_or(Duration::from_secs(24 * 3600)).max(Duration::from_secs(1));
        let running = guest.start()?;
        let ended = connect(&listener, stop).and_then(|stream| talk(stream, job, models, collector, stop, greeted));
        match ended {
            Ok(End::PowerCut) => drop(running.kill()?),
            // It powers itself off; killing it does the same, sooner.
            Ok(End::Done) => drop(running),
            Err(why) if why.downcast_ref::<super::stop::Stopped>().is_some() => return Err(why),
            Err(why) => {
                // What the guest had to say is on its console.
                let console = running.kill().map(|outcome| outcome.console).unwrap_or_default();
                let lines: Vec<&str> = console.lines().collect();
                let tail = lines[lines.len().saturating_sub(25)..].join("\n");
                return Err(why.context(format!(
                    "the guest of {} did not do its work; its console ends with:\n{tail}",
                    job.system
                )));
            }
        }
        ended
    }
}

/// Our own programs, which lie beside each other. Where there is `strip`, copies without debug information: a guest unpacks
/// them at each boot, with an emulated processor.
fn programs(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let own = std::env::current_exe().context("cannot find wb-bench itself")?;
    let folder = own.parent().context("wb-bench lies in a folder")?;
    let program = |name: &str| {
        let (whole, small) = (folder.join(name), dir.join(name));
        if !whole.is_file() {
            let missing = anyhow!("{name} is not beside wb-bench in {}", folder.display());
            return Err(missing).next_step("build it: make build");
        }
        let paths = [&small, &whole].map(|path| path.display().to_string());
        let stripped = super::shell::run("strip", &["-o", &paths[0], &paths[1]], super::shell::SETUP_LIMIT);
        Ok(if stripped.is_ok() { small } else { whole })
    };
    ["wb-bench", "wb-daemon", "wb-format"].into_iter().map(program).collect()
}

fn connect(listener: &UnixListener, stop: &Stop) -> anyhow::Result<UnixStream> {
    let begin = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(LOOK))?;
                return Ok(stream);
            }
            Err(why) if why.kind() == std::io::ErrorKind::WouldBlock => (),
            Err(why) => return Err(why).context("cannot accept QEMU's connection"),
        }
        stop.check()?;
        if begin.elapsed() > Duration::from_secs(60) {
            bail!("QEMU did not start within a minute");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn talk(
    stream: UnixStream,
    job: &Job,
    models: &Models,
    collector: &mut Collector,
    stop: &Stop,
    greeted: &mut bool,
) -> anyhow::Result<End> {
    let mut lines = Lines::new(stream.try_clone()?, stream);
    let (mut line, mut heard) = (String::new(), Instant::now());
    loop {
        stop.check()?;
        let said = match lines.receive::<Said>(&mut line) {
            Ok(Some(said)) => said,
            Ok(None) => bail!("the guest has ended"),
            Err(why) if timed_out(&why) && heard.elapsed() < SILENCE_MAX => continue,
            Err(why) => return Err(why),
        };
        (heard, *greeted) = (Instant::now(), true);
        match collector.answer(said, Some(models)) {
            Ok(answer) => lines.send(&answer)?,
            Err(Said::Hello) => lines.send(&Answer::Job(Box::new(job.clone())))?,
            Err(Said::PowerCut) => return Ok(End::PowerCut),
            Err(Said::Failed(why)) => return Err(anyhow!(why)),
            Err(_) => {
                lines.send(&Answer::Ok)?;
                return Ok(End::Done);
            }
        }
    }
}

fn timed_out(why: &anyhow::Error) -> bool {
    let kind = why.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(
        kind,
        Some(std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut | std::io::ErrorKind::Interrupted)
    )
}
