//! Our own cache: wb-daemon with its defaults, as a block device.

use super::{Devices, System, Transport, text};
use crate::compare::diskstats::require_block_device;
use crate::compare::shell::{self, Shell};
use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use wb_cli::control::{Client, Reply, Request};
use wb_cli::json::status::{State, Status};

const LIMIT: Duration = Duration::from_secs(60);

/// Our own cache.
pub struct Writeboost {
    transport: Transport,
    daemon: Option<Child>,
    /// Sockets and the daemon's log.
    dir: Option<tempfile::TempDir>,
    device: Option<PathBuf>,
}

impl Writeboost {
    /// Not attached yet.
    pub fn new(transport: Transport) -> Writeboost {
        Writeboost { transport, daemon: None, dir: None, device: None }
    }

    fn path(&self, name: &str) -> anyhow::Result<PathBuf> {
        Ok(self.dir.as_ref().context("wb-daemon does not run")?.path().join(name))
    }

    fn ask(&self, request: &Request) -> anyhow::Result<Reply> {
        Client::connect(&self.path("control")?)?.call(request, |_| {})
    }

    /// What the daemon says of itself.
    pub fn status(&self) -> anyhow::Result<Status> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(*status),
            Reply::Done(text) => bail!("wb-daemon answered '{text}' in place of its status"),
        }
    }

    fn start(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
        self.dir = Some(tempfile::tempdir().context("cannot make a folder for wb-daemon")?);
        let (control, nbd, log) = (self.path("control")?, self.path("nbd")?, self.path("log")?);
        let listen = format!("unix:{}", nbd.display());
        let mut args = vec!["run", "--cache", text(&devices.ssd), "--backing", text(&devices.disk)];
        args.extend(["--name", "bench", "--control", text(&control)]);
        match self.transport {
            Transport::Nbd => args.extend(["--nbd", &listen]),
            Transport::Ublk => args.extend(["--ublk", "0"]),
        }
        shell.record(format!("{} &", shell::command_line("wb-daemon", &args)));
        let file = std::fs::File::create(&log)?;
        let mut command = Command::new("wb-daemon");
        command.args(&args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        self.daemon = Some(command.spawn().context("cannot start wb-daemon")?);
        let mut ended = false;
        let ready = shell::wait_until("wb-daemon to be ready", LIMIT, || {
            ended = self.daemon.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
            ended || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("ready: "))
        });
        if ended || ready.is_err() {
            bail!("wb-daemon is not ready: {}", std::fs::read_to_string(&log).unwrap_or_default().trim());
        }
        let device = match self.transport {
            Transport::Nbd => {
                shell.run("nbd-client", &["-unix", text(&nbd), "/dev/nbd0", "-N", "bench", "-connections", "2"])?;
                PathBuf::from("/dev/nbd0")
            }
            Transport::Ublk => PathBuf::from("/dev/ublkb0"),
        };
        shell::wait_until("the block device of wb-daemon", LIMIT, || {
            crate::compare::diskstats::size_bytes(&device).is_ok_and(|bytes| bytes > 0)
        })?;
        self.device = Some(device.clone());
        Ok(device)
    }
}

impl System for Writeboost {
    fn reasons(&self) -> &'static [&'static str] {
        match self.transport {
            Transport::Ublk => &["wb-format and wb-daemon with their defaults; a ublk device."],
            Transport::Nbd => &[
                "wb-format and wb-daemon with their defaults.",
                "The block device is the kernel's NBD client on the daemon's Unix socket, with two connections.",
            ],
        }
    }

    fn create(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
        // With dirty data of an earlier cache wb-format wants more than --force; that cache was thrown away.
        super::wipe(shell, &devices.ssd, 1 << 20)?;
        super::wipe_end(&devices.ssd, 1 << 20)?;
        shell.run("wb-format", &["--force", text(&devices.ssd)])?;
        self.start(shell, devices)
    }

    fn reattach(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
        self.start(shell, devices)
    }

    fn check(&self, _devices: &Devices) -> anyhow::Result<Vec<String>> {
        require_block_device(self.device.as_deref().context("wb-daemon does not run")?)?;
        let status = self.status()?;
        let volume = status.volumes.first().context("wb-daemon serves no volume")?;
        if !matches!(status.state, State::Ready | State::Draining)
            || volume.read_only
            || volume.counters.checksum_errors > 0
        {
            bail!("wb-daemon is not as it should be: {}", serde_json::to_string(&status)?);
        }
        let settings = serde_json::to_string(&status.settings)?;
        Ok(vec![format!("wb-daemon {}, {}, settings {settings}", status.version, volume.export.join(", "))])
    }

    fn dirty_bytes(&self) -> anyhow::Result<u64> {
        Ok(self.status()?.volumes.iter().map(|volume| volume.dirty_bytes).sum())
    }

    fn start_drain(&mut self, shell: &mut Shell, _devices: &Devices) -> anyhow::Result<()> {
        shell.record("wb-daemon drain");
        self.ask(&Request::Drain { wait: false }).map(drop)
    }

    fn destroy(&mut self, shell: &mut Shell, _devices: &Devices) -> anyhow::Result<()> {
        if self.device.take().is_some() && self.transport == Transport::Nbd {
            shell.run("nbd-client", &["-d", "/dev/nbd0"])?;
        }
        if let Some(mut daemon) = self.daemon.take() {
            // In good order, so that it leaves no device and no shared memory behind; dirty data goes with the cache.
            let stop = Request::Stop { drain: false, force: true, timeout_ms: Some(20_000) };
            if self.ask(&stop).is_err() {
                daemon.kill().context("cannot end wb-daemon")?;
            }
            shell::wait(&mut daemon, LIMIT)?.context("wb-daemon does not end")?;
        }
        self.dir = None;
        Ok(())
    }
}

impl Drop for Writeboost {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            if Path::new("/dev/nbd0").exists() && self.transport == Transport::Nbd {
                let _ = shell::run("nbd-client", &["-d", "/dev/nbd0"], shell::SETUP_LIMIT);
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
