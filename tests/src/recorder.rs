//! What a real engine asks of its two devices, in order, and what a power cut at a flush could leave of it.
//!
//! [`RecordingDisk`] stands between the engine and the reactor. A write is logged when the device has completed it; a flush
//! with the place in the log at which it was submitted: it covers what had completed before. [`Recording::cut`] replays
//! the log up to a flush: on each device everything that its last flush covers is there, every other write is there, is
//! not, or is torn between two sectors, as the seed has it.

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use wb_core::env::Env;
use wb_core::io::{Buf, Disk, DiskGeometry, IoError, Slice};
use wb_core::rt::{RtDisk, RtEnv};
use wb_core::sim::SimRng;

const SECTOR: usize = 512;

#[derive(Clone)]
enum Event {
    /// Completed. With FUA it is durable by itself.
    Write { offset: u64, bytes: Arc<[u8]>, fua: bool },
    /// Completed; it covers the events of its device before `submitted`.
    Flush { submitted: usize },
}

/// The log of both devices. Clones are the same log.
#[derive(Clone, Default)]
pub struct Recording {
    events: Arc<Mutex<Vec<(Device, Event)>>>,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The cache device.
    Cache,
    /// The backing device.
    Backing,
}

impl Recording {
    fn events(&self) -> MutexGuard<'_, Vec<(Device, Event)>> {
        self.events.lock().expect("no test panics while it holds the log")
    }

    /// The place in the log that comes next: what is acknowledged now is covered by every flush behind it.
    pub fn now(&self) -> usize {
        self.events().len()
    }

    /// The places right behind each flush and each write with FUA.
    pub fn flush_points(&self) -> Vec<usize> {
        let events = self.events();
        let durable = |event: &Event| matches!(event, Event::Flush { .. } | Event::Write { fua: true, .. });
        let points = events.iter().enumerate().filter(|(_, (_, event))| durable(event));
        points.map(|(at, _)| at + 1).collect()
    }

    /// Writes and flushes so far.
    pub fn counts(&self) -> (usize, usize) {
        let events = self.events();
        let flushes = events.iter().filter(|(_, event)| matches!(event, Event::Flush { .. })).count();
        (events.len() - flushes, flushes)
    }

    /// The same log, had a device done none of its flushes.
    pub fn without_flushes(&self, device: Device) -> Recording {
        let lies = |event: &mut (Device, Event)| match event {
            (of, Event::Flush { submitted }) if *of == device => *submitted = 0,
            (of, Event::Write { fua, .. }) if *of == device => *fua = false,
            _ => {}
        };
        let mut events = self.events().clone();
        events.iter_mut().for_each(lies);
        Recording { events: Arc::new(Mutex::new(events)) }
    }

    /// Both devices, in this order of `images`, after a power cut when the log had `until` events. `images` are as they
    /// were when the recording began.
    pub fn cut(&self, until: usize, seed: u64, mut images: [Vec<u8>; 2]) -> [Vec<u8>; 2] {
        let mut rng = SimRng::new(seed);
        let events = self.events();
        let events = &events[..until];
        for (device, image) in [Device::Cache, Device::Backing].into_iter().zip(&mut images) {
            let own =
                || events.iter().enumerate().filter(|(_, (of, _))| *of == device).map(|(at, (_, event))| (at, event));
            let covered = own().filter_map(|(_, event)| match event {
                Event::Flush { submitted } => Some(*submitted),
                Event::Write { .. } => None,
            });
            let covered = covered.max().unwrap_or(0);
            for (at, event) in own() {
                let Event::Write { offset, bytes, fua } = event else { continue };
                let sectors = bytes.len() / SECTOR;
                let kept: Range<usize> = match rng.below(3) {
                    _ if at < covered || *fua => 0..sectors,
                    0 => 0..0,
                    1 => 0..sectors,
                    _ => 0..rng.below(sectors as u64) as usize,
                };
                let (from, to) = (kept.start * SECTOR, kept.end * SECTOR);
                image[*offset as usize + from..*offset as usize + to].copy_from_slice(&bytes[from..to]);
            }
        }
        images
    }
}

/// A device of the reactor whose writes and flushes are recorded.
pub struct RecordingDisk {
    /// The device.
    pub disk: RtDisk,
    /// Which of the two it is.
    pub device: Device,
    /// The log of both.
    pub recording: Recording,
}

impl Disk for RecordingDisk {
    fn geometry(&self) -> DiskGeometry {
        self.disk.geometry()
    }
    async fn read(&self, offset: u64, buf: Buf) -> (Result<(), IoError>, Buf) {
        self.disk.read(offset, buf).await
    }
    async fn write(&self, offset: u64, data: Vec<Slice>, fua: bool) -> Result<(), IoError> {
        let bytes: Vec<u8> = data.iter().flat_map(|piece| piece.iter().copied()).collect();
        self.disk.write(offset, data, fua).await?;
        self.recording.events().push((self.device, Event::Write { offset, bytes: bytes.into(), fua }));
        Ok(())
    }
    async fn flush(&self) -> Result<(), IoError> {
        let submitted = self.recording.now();
        self.disk.flush().await?;
        self.recording.events().push((self.device, Event::Flush { submitted }));
        Ok(())
    }
    async fn discard(&self, _offset: u64, _len: u64) -> Result<(), IoError> {
        // Not done, so that the log needs no word for "anything".
        Err(IoError::Unsupported)
    }
    async fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<(), IoError> {
        // The engine writes zeroes then, and those are recorded.
        Err(IoError::Unsupported)
    }
}

/// [`RtEnv`] with such devices.
#[derive(Clone, Copy)]
pub struct RecordingEnv;

impl Env for RecordingEnv {
    type Disk = RecordingDisk;
    fn now_ns(&self) -> u64 {
        RtEnv.now_ns()
    }
    fn wall_ns(&self) -> u64 {
        RtEnv.wall_ns()
    }
    fn random_u64(&self) -> u64 {
        RtEnv.random_u64()
    }
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        RtEnv.spawn(task);
    }
    async fn sleep(&self, duration_ns: u64) {
        RtEnv.sleep(duration_ns).await;
    }
    async fn yield_now(&self) {
        RtEnv.yield_now().await;
    }
    async fn yield_point(&self) {}
}
