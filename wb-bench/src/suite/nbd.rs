//! Rows 6 and 7: the daemon over NBD against a server that does nothing, both under the same fio.

use super::{Files, Lab, load_4k, ratios};
use crate::engine::write_bytes_max;
use crate::files::{Opened, TailDir};
use crate::load::Load;
use crate::load::fio::{self, FioTarget};
use crate::load::stats::median;
use anyhow::Context as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wb_cli::NextStep;
use wb_core::env::Env;
use wb_core::format::SEGMENT_BYTES_DEFAULT;
use wb_core::meta::{self, FormatOptions};
use wb_core::rt::{RtDisk, RtEnv};

/// How long a server may take to be ready.
const READY_MAX: Duration = Duration::from_secs(120);

/// A server that is killed when this is dropped.
pub(super) struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    fn nbdkit_null(socket: PathBuf, bytes: u64) -> anyhow::Result<Server> {
        let child = Command::new("nbdkit")
            .args(["--foreground", "--unix"])
            .arg(&socket)
            .args(["null", &bytes.to_string()])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start nbdkit")
            .next_step("install the package nbdkit")?;
        let server = Server { child, socket };
        let begin = Instant::now();
        while !server.socket.exists() {
            anyhow::ensure!(begin.elapsed() < READY_MAX, "nbdkit does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// wb-daemon, its write-back held; and the time from its start until it said that it is ready.
    pub(super) fn daemon(
        program: &Path,
        cache: &Path,
        backing: &Path,
        tails: &TailDir,
        socket: PathBuf,
    ) -> anyhow::Result<(Server, Duration)> {
        let config = socket.with_extension("toml");
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        let text = format!(
            "[[cache]]\ndevice = {}\nbacking = {}\nname = \"bench\"\nnbd = [{}]\ncontrol = {}\n\
             tail_dir = {}\n\
             [cache.writeback]\nstart_percent = 100\nstop_percent = 100\n",
            quoted(cache),
            quoted(backing),
            quoted(Path::new(&format!("unix:{}", socket.display()))),
            quoted(&socket.with_extension("control")),
            quoted(tails.path()),
        );
        std::fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let begin = Instant::now();
        let child = Command::new(program)
            .arg("run")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Server { child, socket };
        let log = BufReader::new(server.child.stderr.take().context("no log of wb-daemon")?);
        let mut said = Vec::new();
        let mut lines = log.lines();
        for line in lines.by_ref() {
            let line = line.context("cannot read the log of wb-daemon")?;
            if line.contains("ready: ") {
                let took = begin.elapsed();
                // Somebody has to take what it says from now on.
                std::thread::spawn(move || lines.for_each(drop));
                let _ = std::fs::remove_file(&config);
                return Ok((server, took));
            }
            said.push(line);
        }
        anyhow::bail!("wb-daemon did not start: {}", said.join("; "))
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(self.socket.with_extension("control"));
        let _ = std::fs::remove_file(self.socket.with_extension("toml"));
    }
}

/// An empty cache on this file.
pub(super) async fn format(cache: &RtDisk) -> anyhow::Result<()> {
    let options = FormatOptions {
        segment_bytes: SEGMENT_BYTES_DEFAULT.into(),
        label: "wb-bench".into(),
        uuid: uuid::Builder::from_random_bytes(std::array::from_fn(|_| RtEnv.random_u64() as u8)).into_uuid(),
        secret: RtEnv.random_u64() as u32,
        now_unix_ns: RtEnv.wall_ns(),
    };
    meta::format(cache, options).await.context("cannot format the cache").map(drop)
}

/// Random 4 KiB writes at depth 32 and at depth 1.
pub async fn against_null(lab: &mut Lab) -> anyhow::Result<()> {
    let program = lab.daemon()?;
    let files = lab.files().await?;
    let (bytes, budget) = (files.backing.size_bytes(), write_bytes_max(&files.cache.disk));
    let scratch = lab.files.take().expect("just made").close().await;
    let null = Server::nbdkit_null(lab.path("null.sock"), bytes)?;
    let (mut rates, mut null_rates, mut trips, mut null_trips) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..lab.rounds() {
        let tails = TailDir::new();
        format(&Opened::open(scratch[0].path())?.disk).await?;
        let (server, _) = Server::daemon(&program, scratch[0].path(), scratch[1].path(), &tails, lab.path("sock"))?;
        for depth in [32, 1] {
            // Two passes share what may be written.
            let load = Load { write_bytes_max: budget / 2, ..load_4k(depth, 1, bytes, lab.plan.runtime, round) };
            let ours = fio::run(&FioTarget::Nbd(server.uri()), &load)?;
            let nothing = fio::run(&FioTarget::Nbd(null.uri()), &load)?;
            if round == 0 {
                continue;
            }
            if depth == 32 {
                rates.push(ours.iops);
                null_rates.push(nothing.iops);
            } else {
                trips.push(ours.mean_us);
                null_trips.push(nothing.mean_us);
            }
        }
        drop(server);
    }
    // Operations of a killed server may hold the claims for a moment.
    let _ = lab.files.set(Files::open(scratch)?);
    let of = |a: &[f64], b: &[f64], unit: &str| {
        format!("{:.1} / {:.1} {unit}", median(a.iter().copied()), median(b.iter().copied()))
    };
    let counts = of(&rates, &null_rates, "IOPS");
    lab.at_least(6, "NBD 4 KiB random writes, depth 32 / nbdkit null", 0.90, ratios(&rates, &null_rates), counts);
    let times = of(&trips, &null_trips, "µs");
    lab.at_most(7, "NBD write round trip, depth 1 / nbdkit null", 1.1, ratios(&trips, &null_trips), times);
    Ok(())
}
