//! A ublk device with nothing behind it: every request is answered at once. No cache in userspace can do more, so it tells
//! whether the devices of a place are slow enough to be what is measured.

use super::{Devices, System};
use crate::compare::diskstats::require_block_device;
use crate::compare::shell::{self, Shell};
use anyhow::{Context as _, bail};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use uuid::Uuid;
use wb_core::io::Buf;
use wb_core::rt::{Config, RuntimeThread};
use wb_core::service::{BlockService, PayloadSource, ReadData, ServiceError, ServiceInfo};
use wb_core::sync::WaitQueue;
use wb_daemon::ublk::{Request, UblkDevice};

const NODE: &str = "/dev/ublkb0";
const LIMIT: Duration = Duration::from_secs(60);

/// Takes every write, copies its payload as a cache would have to, and forgets it.
#[derive(Clone)]
struct Nothing {
    info: ServiceInfo,
}

impl BlockService for Nothing {
    fn info(&self) -> ServiceInfo {
        self.info
    }

    async fn read(&self, _offset: u64, len: usize) -> Result<ReadData, ServiceError> {
        Ok(ReadData::new(Buf::unpooled(len), 0, len))
    }

    async fn write<P: PayloadSource + ?Sized>(
        &self,
        _offset: u64,
        len: usize,
        payload: &P,
        _fua: bool,
    ) -> Result<(), ServiceError> {
        payload.copy_to(0, &mut Buf::unpooled(len)[..len])
    }

    async fn flush(&self) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn discard(&self, _offset: u64, _len: u64, _fua: bool) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn write_zeroes(&self, _offset: u64, _len: u64, _fua: bool) -> Result<(), ServiceError> {
        Ok(())
    }
}

#[derive(Default)]
struct Stop {
    asked: AtomicBool,
    changed: WaitQueue,
}

/// The device while it is there.
#[derive(Default)]
pub struct Null {
    served: Option<(Arc<Stop>, RuntimeThread<anyhow::Result<()>>)>,
}

impl System for Null {
    fn reasons(&self) -> &'static [&'static str] {
        &["A ublk device that answers at once: what the place can do at most."]
    }

    fn create(&mut self, shell: &mut Shell, devices: &Devices) -> anyhow::Result<PathBuf> {
        let info = ServiceInfo {
            size_bytes: crate::compare::diskstats::size_bytes(&devices.disk)?,
            sector_bytes: 512,
            read_only: false,
        };
        shell.record("a ublk device that answers every request at once");
        let stop = Arc::new(Stop::default());
        let told = stop.clone();
        let (sender, receiver) = std::sync::mpsc::channel::<wb_core::rt::Remote>();
        let main = move || async move {
            let remote = receiver.recv().context("the starter is there")?;
            let request = Request { id: Some(0), name: "null".into(), uuid: Uuid::from_u128(1) };
            let device = UblkDevice::start(Nothing { info }, &request, &[remote]).await?;
            told.changed.wait_until(|| told.asked.load(Ordering::SeqCst).then_some(())).await;
            Ok(device.remove().await?)
        };
        let thread = RuntimeThread::start("null-ublk", Config::default(), main)?;
        sender.send(thread.remote().clone()).context("the thread runs")?;
        self.served = Some((stop, thread));
        let node = PathBuf::from(NODE);
        shell::wait_until("the null device", LIMIT, || {
            crate::compare::diskstats::size_bytes(&node).is_ok_and(|bytes| bytes > 0)
        })?;
        Ok(node)
    }

    fn reattach(&mut self, _shell: &mut Shell, _devices: &Devices) -> anyhow::Result<PathBuf> {
        bail!("there is nothing to attach again")
    }

    fn check(&self, _devices: &Devices) -> anyhow::Result<Vec<String>> {
        require_block_device(NODE.as_ref())?;
        Ok(vec![format!("{NODE} is a block device")])
    }

    fn dirty_bytes(&self) -> anyhow::Result<u64> {
        bail!("nothing is kept")
    }

    fn start_drain(&mut self, _shell: &mut Shell, _devices: &Devices) -> anyhow::Result<()> {
        bail!("nothing is kept")
    }

    fn destroy(&mut self, _shell: &mut Shell, _devices: &Devices) -> anyhow::Result<()> {
        if let Some((stop, thread)) = self.served.take() {
            stop.asked.store(true, Ordering::SeqCst);
            stop.changed.notify_all();
            thread.join().map_err(|_| anyhow::anyhow!("the null device's thread has panicked"))??;
        }
        Ok(())
    }
}
