//! The measuring side in the guest: takes its job from the host over a virtio serial port.

use super::link::{Answer, Lines, Link, Said};
use super::session;
use super::shell;
use super::systems::Devices;
use anyhow::{Context as _, bail};
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;
use wb_cli::exit::Exit;

/// Name of the port.
pub const PORT: &str = "wb-bench-link";
/// The guest's disks, in the order in which QEMU is given them.
pub const SSD: &str = "/dev/vda";
/// The slow one.
pub const DISK: &str = "/dev/vdb";

/// Does what the host says.
pub fn run() -> anyhow::Result<Exit> {
    let port = port()?;
    // A port can be open once only.
    let port = File::options()
        .read(true)
        .write(true)
        .open(&port)
        .with_context(|| format!("cannot open {}", port.display()))?;
    let mut link = Lines::new(port.try_clone()?, port);
    let job = match link.ask(Said::Hello)? {
        Answer::Job(job) => job,
        other => bail!("the host answered {other:?} in place of a job"),
    };
    let devices = Devices { ssd: SSD.into(), disk: DISK.into() };
    let done = facts(&mut link).and_then(|()| session::run(&job, &devices, &mut link));
    match done {
        Ok(()) => link.tell(Said::Done)?,
        Err(why) => {
            link.tell(Said::Failed(format!("{why:#}")))?;
            return Ok(Exit::Failed);
        }
    }
    Ok(Exit::Done)
}

fn facts(link: &mut dyn Link) -> anyhow::Result<()> {
    let limit = Duration::from_secs(20);
    let mut tell = |name: &str, value: String| link.tell(Said::Fact(name.to_string(), value));
    tell("guest kernel", shell::read("/proc/sys/kernel/osrelease")?)?;
    tell("fio", shell::run("fio", &["--version"], limit)?.trim().to_string())?;
    for (name, device) in [("SSD", "vda"), ("disk", "vdb")] {
        let scheduler = shell::read(format!("/sys/block/{device}/queue/scheduler"))?;
        tell(&format!("I/O scheduler of the {name}"), scheduler)?;
    }
    Ok(())
}

/// The port's node, by its name.
fn port() -> anyhow::Result<PathBuf> {
    let ports = std::fs::read_dir("/sys/class/virtio-ports").context("this is no guest of wb-bench --compare")?;
    for entry in ports {
        let entry = entry?;
        if shell::read(entry.path().join("name")).is_ok_and(|name| name == PORT) {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    bail!("this guest has no port {PORT}")
}
