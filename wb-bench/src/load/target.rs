//! What load runs on: an engine in process, a device, an NBD server.

use super::nbd::Connection;
use anyhow::Context as _;
use std::future::Future;
use std::ops::Deref;
use std::rc::Rc;
use wb_core::engine::VolumeHandle;
use wb_core::env::Env;
use wb_core::io::{Buf, BufPool, Disk, PoolClass, Slice};
use wb_core::rt::RtDisk;
use wb_core::service::{BlockService, SERVICE_CHUNK_BYTES_MAX};

/// What load can be made on, from any thread.
pub trait Target: Clone + Send + Sync + 'static {
    /// Its form on one thread, for one job.
    type Io: Io;
    /// Opens it for a job.
    fn open(&self) -> impl Future<Output = anyhow::Result<Self::Io>>;
}

/// A target as one job uses it.
pub trait Io: 'static {
    /// Reads, and drops what was read.
    fn read(&self, offset: u64, len: usize) -> impl Future<Output = anyhow::Result<()>>;
    /// Writes `len` bytes: the payload, as often as it takes.
    fn write(&self, offset: u64, payload: Slice, len: usize) -> impl Future<Output = anyhow::Result<()>>;
    /// Makes completed writes durable.
    fn flush(&self) -> impl Future<Output = anyhow::Result<()>>;
}

impl<E: Env> Target for VolumeHandle<E> {
    type Io = VolumeHandle<E>;
    async fn open(&self) -> anyhow::Result<VolumeHandle<E>> {
        Ok(self.clone())
    }
}

impl<E: Env> Io for VolumeHandle<E> {
    async fn read(&self, offset: u64, len: usize) -> anyhow::Result<()> {
        for at in (0..len).step_by(SERVICE_CHUNK_BYTES_MAX) {
            BlockService::read(self, offset + at as u64, SERVICE_CHUNK_BYTES_MAX.min(len - at)).await?;
        }
        Ok(())
    }
    async fn write(&self, offset: u64, payload: Slice, len: usize) -> anyhow::Result<()> {
        for at in (0..len).step_by(SERVICE_CHUNK_BYTES_MAX) {
            let part = SERVICE_CHUNK_BYTES_MAX.min(len - at);
            BlockService::write(self, offset + at as u64, part, &payload.deref()[..part], false).await?;
        }
        Ok(())
    }
    async fn flush(&self) -> anyhow::Result<()> {
        Ok(BlockService::flush(self).await?)
    }
}

/// A device or file as it is.
#[derive(Clone)]
pub struct Device {
    disk: RtDisk,
    /// First byte of the part that is used.
    start: u64,
}

impl Device {
    /// The device from byte `start` on.
    pub fn new(disk: RtDisk, start: u64) -> Device {
        Device { disk, start }
    }
}

/// A device with buffers to read into.
pub struct DeviceIo {
    device: Device,
    buffers: BufPool,
}

/// Bytes of one operation on a device; longer ones are split.
const DEVICE_PIECE_BYTES: usize = 4 << 20;

impl Target for Device {
    type Io = DeviceIo;
    async fn open(&self) -> anyhow::Result<DeviceIo> {
        let classes = [(4 << 10, 4096), (64 << 10, 256), (1 << 20, 128), (DEVICE_PIECE_BYTES, 32)];
        let classes = classes.map(|(bytes, count)| PoolClass { bytes, count });
        Ok(DeviceIo { device: self.clone(), buffers: BufPool::new(&classes) })
    }
}

impl Io for DeviceIo {
    async fn read(&self, offset: u64, len: usize) -> anyhow::Result<()> {
        for at in (0..len).step_by(DEVICE_PIECE_BYTES) {
            let buf: Buf = self.buffers.alloc(DEVICE_PIECE_BYTES.min(len - at)).await;
            self.device.disk.read(self.device.start + offset + at as u64, buf).await.0?;
        }
        Ok(())
    }
    async fn write(&self, offset: u64, payload: Slice, len: usize) -> anyhow::Result<()> {
        for at in (0..len).step_by(payload.len()) {
            let part = payload.slice(0..payload.len().min(len - at));
            self.device.disk.write(self.device.start + offset + at as u64, vec![part], false).await?;
        }
        Ok(())
    }
    async fn flush(&self) -> anyhow::Result<()> {
        Ok(self.device.disk.flush().await?)
    }
}

/// An NBD server; every job has a connection of its own.
#[derive(Debug, Clone)]
pub struct NbdServer {
    /// Its URI.
    pub uri: String,
}

impl Target for NbdServer {
    type Io = Rc<Connection>;
    async fn open(&self) -> anyhow::Result<Rc<Connection>> {
        Connection::open(&self.uri).await.with_context(|| format!("cannot use the NBD server {}", self.uri))
    }
}

impl Io for Rc<Connection> {
    async fn read(&self, offset: u64, len: usize) -> anyhow::Result<()> {
        Connection::read(self, offset, len as u32).await
    }
    async fn write(&self, offset: u64, payload: Slice, len: usize) -> anyhow::Result<()> {
        for at in (0..len).step_by(payload.len()) {
            let part = payload.slice(0..payload.len().min(len - at));
            Connection::write(self, offset + at as u64, part).await?;
        }
        Ok(())
    }
    async fn flush(&self) -> anyhow::Result<()> {
        Connection::flush(self).await
    }
}
