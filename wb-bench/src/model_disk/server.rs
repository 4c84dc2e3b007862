//! The server of a modelled device: one thread, one Unix socket.

use super::counts::Counts;
use super::device::ModelDevice;
use anyhow::{Context as _, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use wb_cli::error::NextStep;
use wb_core::model::{self, DeviceParams, params};
use wb_core::rt::{self, Config, RuntimeThread};
use wb_core::sync::WaitQueue;
use wb_daemon::nbd::{Limits, ListenAddress, NbdServer};

/// How long connections may take to end.
const CLOSE_NS: u64 = 1_000_000_000;

/// What to model.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// A name of the parameter file ("sata-ssd", "hdd", ...), or "none": a device that takes no time.
    pub model: String,
    /// Bytes.
    pub size_bytes: u64,
    /// Logical sector.
    pub sector_bytes: u32,
    /// By how much it is slower than its original.
    pub dilation: f64,
    /// Unix socket to listen on.
    pub socket: PathBuf,
    /// Sparse file that holds the data; memory without.
    pub image: Option<PathBuf>,
}

/// A modelled device that is being served. It ends with this value.
pub struct ModelServer {
    device: ModelDevice,
    stop: Arc<Stop>,
    thread: Option<RuntimeThread<()>>,
}

#[derive(Default)]
struct Stop {
    asked: AtomicBool,
    changed: WaitQueue,
}

/// The parameters of a model by its name; `None` for "none".
pub fn parameters(name: &str) -> anyhow::Result<Option<DeviceParams>> {
    if name == "none" {
        return Ok(None);
    }
    let known = params::by_name(name).map(Some);
    known.with_context(|| format!("there is no model '{name}'")).next_step(format!("use one of {}", names().join(", ")))
}

/// Names of models.
pub fn names() -> Vec<&'static str> {
    params::NAMES.iter().copied().chain(["none"]).collect()
}

impl ModelServer {
    /// Serves. Once this returns, clients can connect.
    pub fn start(spec: &Spec) -> anyhow::Result<ModelServer> {
        let parameters = parameters(&spec.model)?;
        let dilation = if parameters.is_some() { spec.dilation } else { 0.0 };
        if !dilation.is_finite() || dilation < 0.0 {
            bail!("a dilation of {dilation} means nothing");
        }
        // Where nothing takes any time, any model will do.
        let parameters = parameters.unwrap_or(DeviceParams::Ssd(params::nvme_plp()));
        let model = model::build(&parameters, spec.size_bytes);
        let data = data(spec)?;
        let device = ModelDevice::new(model, dilation, spec.size_bytes, spec.sector_bytes, data);
        let server = NbdServer::new(device.clone(), "", &spec.model, Limits::default())?;
        let listener = ListenAddress::Unix(spec.socket.clone()).open()?.remove(0);
        let stop = Arc::new(Stop::default());
        let main = {
            let (device, stop) = (device.clone(), stop.clone());
            move || async move {
                let driver = rt::spawn(device.drive());
                let connections = server.clone();
                let accepting = rt::spawn(async move {
                    let here = connections.clone();
                    connections.accept(listener, |stream| drop(here.serve_connection(stream))).await;
                });
                stop.changed.wait_until(|| stop.asked.load(Ordering::SeqCst).then_some(())).await;
                server.stop(CLOSE_NS).await;
                accepting.cancel().await;
                driver.cancel().await;
            }
        };
        let thread = RuntimeThread::start("model-disk", Config::default(), main)?;
        Ok(ModelServer { device, stop, thread: Some(thread) })
    }

    /// Counters.
    pub fn counts(&self) -> Counts {
        self.device.counts()
    }

    /// Slows the device down by this factor from now on; 0: nothing takes any time.
    pub fn dilate(&self, dilation: f64) {
        self.device.dilate(dilation);
    }
}

impl Drop for ModelServer {
    fn drop(&mut self) {
        self.device.release();
        self.stop.asked.store(true, Ordering::SeqCst);
        self.stop.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported, and there is nothing to be saved.
            let _ = thread.join();
        }
    }
}

fn data(spec: &Spec) -> anyhow::Result<File> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = match &spec.image {
        Some(path) => open_image(path)?,
        None => File::from(memfd_create("model-disk", MFdFlags::MFD_CLOEXEC).context("cannot get memory for a disk")?),
    };
    file.set_len(spec.size_bytes).with_context(|| format!("cannot make a disk of {} bytes", spec.size_bytes))?;
    Ok(file)
}

fn open_image(path: &Path) -> anyhow::Result<File> {
    let open = File::options().read(true).write(true).create(true).truncate(false).open(path);
    open.with_context(|| format!("cannot open {}", path.display()))
}
