//! A guest as it is to be: kernel, image, disks, scenario. And how QEMU is told.

use crate::disk::Disk;
use crate::image::Image;
use crate::kernel::{Kernel, cache_dir};
use crate::outcome::Outcome;
use crate::running::Running;
use crate::{find_program, modules};
use anyhow::Context as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const INIT: &str = include_str!("init.sh");
const END: &str = include_str!("end.sh");

/// How the guest's CPUs come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// By translation: everywhere, 10 to 20 times slower.
    Tcg,
    /// By the host's CPU.
    Kvm,
}

impl Accelerator {
    /// `$WB_GUEST_ACCEL` (`tcg`, `kvm`); else KVM where a guest has booted with it, which is tried once and remembered.
    pub fn best(kernel: &Kernel) -> Accelerator {
        match std::env::var("WB_GUEST_ACCEL").as_deref() {
            Ok("kvm") => return Accelerator::Kvm,
            Ok("tcg") => return Accelerator::Tcg,
            _ => {}
        }
        if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return Accelerator::Tcg;
        }
        // Where a device exists, guests do not boot for sure: on some virtual machines it never gets anywhere.
        let known = cache_dir().join("kvm");
        let works = match std::fs::read_to_string(&known).ok().as_deref().map(str::trim) {
            Some("works") => true,
            Some("does not work") => false,
            _ => {
                let works = Accelerator::try_kvm(kernel).is_ok();
                // Only a hint for the next time.
                let _ = std::fs::write(&known, if works { "works" } else { "does not work" });
                works
            }
        };
        if works { Accelerator::Kvm } else { Accelerator::Tcg }
    }

    fn try_kvm(kernel: &Kernel) -> anyhow::Result<()> {
        let mut guest = Guest::new(kernel.clone(), Image::new()?, "true");
        guest.accelerator = Accelerator::Kvm;
        guest.limit = Duration::from_secs(15);
        guest.run()?.check()
    }
}

/// A guest that can be run.
pub struct Guest {
    kernel: Kernel,
    /// What is in it.
    pub image: Image,
    modules: Vec<String>,
    modules_on_demand: Vec<String>,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory_mib: u32,
    /// It is killed when it has run this long.
    pub limit: Duration,
    /// How its CPUs come about.
    pub accelerator: Accelerator,
    /// Print the console as it comes.
    pub echo: bool,
    /// More arguments of the kernel.
    pub kernel_arguments: String,
    /// More arguments of QEMU.
    pub qemu_arguments: Vec<String>,
}

impl Guest {
    /// A guest with two CPUs, 1 GiB and no disks, whose scenario is this script.
    pub fn new(kernel: Kernel, mut image: Image, script: &str) -> Guest {
        image.file("scenario", 0o755, script).file("init", 0o755, INIT).file("end", 0o755, END);
        Guest {
            kernel,
            image,
            modules: ["virtio_pci", "virtio_blk", "virtio_console"].map(String::from).to_vec(),
            modules_on_demand: Vec::new(),
            disks: Vec::new(),
            cpus: 2,
            memory_mib: 1024,
            limit: Duration::from_secs(180),
            accelerator: Accelerator::Tcg,
            echo: std::env::var_os("WB_GUEST_ECHO").is_some(),
            kernel_arguments: String::new(),
            qemu_arguments: Vec::new(),
        }
    }

    /// Modules to be loaded before the scenario; what they depend on comes along.
    pub fn modules(&mut self, names: &[&str]) -> &mut Guest {
        self.modules.extend(names.iter().map(|name| (*name).to_owned()));
        self
    }

    /// Modules that the scenario loads with modprobe.
    pub fn modules_on_demand(&mut self, names: &[&str]) -> &mut Guest {
        self.modules_on_demand.extend(names.iter().map(|name| (*name).to_owned()));
        self
    }

    /// Adds a disk.
    pub fn disk(&mut self, disk: Disk) -> &mut Guest {
        self.disks.push(disk);
        self
    }

    /// Runs it to its end.
    pub fn run(&mut self) -> anyhow::Result<Outcome> {
        self.start()?.wait()
    }

    /// Starts it. It is killed when the calling thread ends.
    pub fn start(&mut self) -> anyhow::Result<Running> {
        crate::check_programs()?;
        // Not in /tmp, which may be memory.
        let parent = std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into());
        let work =
            tempfile::Builder::new().prefix("wb-guest-").tempdir_in(parent).context("no directory for a guest")?;
        let mut order = String::new();
        for module in modules::in_order(&self.kernel, &self.modules)? {
            self.image.file(&format!("lib/modules/{}.ko", module.name), 0o644, module.bytes);
            order += &format!("{}\n", module.name);
        }
        self.image.file("lib/modules/order", 0o644, order);
        let (dir, mut dependencies, mut before) =
            (format!("lib/modules/{}", self.kernel.release), String::new(), String::new());
        for module in modules::in_order(&self.kernel, &self.modules_on_demand)? {
            self.image.file(&format!("{dir}/{}.ko", module.name), 0o644, module.bytes);
            // All that come before: more than it needs, and in the right order.
            dependencies += &format!("{0}.ko:{before}\n", module.name);
            before = format!(" {}.ko{before}", module.name);
        }
        self.image.file(&format!("{dir}/modules.dep"), 0o644, dependencies);
        std::fs::write(work.path().join("initramfs"), self.image.archive()?).context("cannot write the initramfs")?;
        let mut command = self.command(work.path())?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ok(Running::new(child.context("cannot start QEMU")?, work, self.limit, self.echo))
    }

    fn command(&self, work: &Path) -> anyhow::Result<Command> {
        let qemu = find_program("qemu-system-x86_64").context("QEMU is missing: apt-get install qemu-system-x86")?;
        // The kernel kills it when its parent dies, however that happens.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(qemu);
        let accelerator = match self.accelerator {
            Accelerator::Tcg => "tcg,thread=multi",
            Accelerator::Kvm => "kvm",
        };
        let cpu = if self.accelerator == Accelerator::Kvm { "host" } else { "max" };
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none"]);
        command.args(["-accel", accelerator, "-cpu", cpu, "-smp", &self.cpus.to_string()]);
        command.args(["-m", &format!("{}M", self.memory_mib), "-serial", "stdio"]);
        command.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(work.join("initramfs"));
        let arguments = "console=ttyS0 loglevel=4 panic=-1 oops=panic mitigations=off";
        command.args(["-append", &format!("{arguments} {}", self.kernel_arguments)]);
        let out = work.join("out.tar").display().to_string().replace(',', ",,");
        command.args(["-device", "virtio-serial-pci", "-chardev", &format!("file,id=out,path={out}")]);
        command.args(["-device", "virtserialport,chardev=out,name=out"]);
        for (number, disk) in self.disks.iter().enumerate() {
            command.args(disk.arguments(number));
        }
        command.args(&self.qemu_arguments);
        Ok(command)
    }
}
