//! What transports see of the engine.

use super::Engine;
use crate::env::Env;
use crate::service::{BlockService, PayloadSource, ReadData, ServiceError, ServiceInfo};

/// The volume of a cache, as a [`BlockService`].
pub struct VolumeHandle<E: Env>(Engine<E>);

impl<E: Env> Clone for VolumeHandle<E> {
    fn clone(&self) -> Self {
        VolumeHandle(self.0.clone())
    }
}

impl<E: Env> Engine<E> {
    /// The volume, for a transport.
    pub fn volume(&self) -> VolumeHandle<E> {
        VolumeHandle(self.clone())
    }
}

impl<E: Env> BlockService for VolumeHandle<E> {
    fn info(&self) -> ServiceInfo {
        let served = &self.0.inner.served;
        ServiceInfo {
            size_bytes: served.volume.size_bytes,
            sector_bytes: served.volume.sector_bytes,
            read_only: served.read_only,
        }
    }
    async fn read(&self, offset: u64, len: usize) -> Result<ReadData, ServiceError> {
        self.0.inner.read(offset, len).await
    }
    async fn write<P: PayloadSource + ?Sized>(
        &self,
        offset: u64,
        len: usize,
        payload: &P,
        fua: bool,
    ) -> Result<(), ServiceError> {
        self.0.inner.write(offset, len, payload, fua).await
    }
    async fn flush(&self) -> Result<(), ServiceError> {
        self.0.inner.flush().await
    }
    async fn discard(&self, offset: u64, len: u64, fua: bool) -> Result<(), ServiceError> {
        self.0.inner.discard(offset, len, fua).await
    }
    async fn write_zeroes(&self, offset: u64, len: u64, fua: bool) -> Result<(), ServiceError> {
        self.0.inner.write_zeroes(offset, len, fua).await
    }
}
