//! The world of an engine that is measured: the real one, with devices that count, or devices that take no time.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use wb_cli::json::bench::DeviceWork;
use wb_core::env::Env;
use wb_core::io::{Buf, Disk, DiskGeometry, IoError, Slice};
use wb_core::rt::{BlockingEnv, RtDisk, RtEnv};

/// Counts what a device is asked to do. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Counted(Arc<Cells>);

#[derive(Debug, Default)]
struct Cells {
    writes: AtomicU64,
    bytes: AtomicU64,
    flushes: AtomicU64,
}

impl Counted {
    /// What was asked for so far.
    pub fn work(&self) -> DeviceWork {
        let Cells { writes, bytes, flushes } = &*self.0;
        DeviceWork { writes: writes.load(Relaxed), bytes: bytes.load(Relaxed), flushes: flushes.load(Relaxed) }
    }

    fn write(&self, data: &[Slice]) {
        self.0.writes.fetch_add(1, Relaxed);
        self.0.bytes.fetch_add(data.iter().map(|piece| piece.len() as u64).sum(), Relaxed);
    }
}

/// A device of a measured engine.
#[derive(Debug, Clone)]
pub enum BenchDisk {
    /// A real one. Every write and flush that the engine hands over is counted, anchors and summaries included.
    Real(RtDisk, Counted),
    /// One of this size that carries everything out at once and keeps only its first bytes: superblock and anchors.
    /// What is read behind them is arbitrary.
    Null(Arc<NullDisk>),
}

/// See [`BenchDisk::Null`].
#[derive(Debug)]
pub struct NullDisk {
    size_bytes: u64,
    head: std::sync::Mutex<Vec<u8>>,
    tail: std::sync::Mutex<Vec<u8>>,
    kept_bytes: usize,
}

/// Bytes at either end that a null disk keeps: more than all metadata of the caches that are measured on it.
const KEPT_BYTES: usize = 2 << 20;

impl NullDisk {
    /// A disk of zeroes that keeps this much at either end.
    fn new(size_bytes: u64, kept_bytes: usize) -> NullDisk {
        assert!(size_bytes as usize >= 2 * kept_bytes, "a disk no smaller than what it keeps");
        NullDisk { size_bytes, head: vec![0; kept_bytes].into(), tail: vec![0; kept_bytes].into(), kept_bytes }
    }

    /// The part of a kept region that `offset..offset + len` lies in.
    fn kept(&self, offset: u64, len: usize) -> Option<(&std::sync::Mutex<Vec<u8>>, usize)> {
        let tail_start = self.size_bytes - self.kept_bytes as u64;
        if offset as usize + len <= self.kept_bytes {
            Some((&self.head, offset as usize))
        } else if offset >= tail_start {
            Some((&self.tail, (offset - tail_start) as usize))
        } else {
            None
        }
    }
}

impl BenchDisk {
    /// A null disk.
    pub fn null(size_bytes: u64) -> BenchDisk {
        BenchDisk::Null(Arc::new(NullDisk::new(size_bytes, KEPT_BYTES)))
    }

    /// A null disk that keeps everything, in memory; its halves are written by nobody at once.
    pub fn keeping(size_bytes: u64) -> BenchDisk {
        BenchDisk::Null(Arc::new(NullDisk::new(size_bytes, size_bytes as usize / 2)))
    }
}

impl Disk for BenchDisk {
    fn geometry(&self) -> DiskGeometry {
        match self {
            BenchDisk::Real(disk, _) => disk.geometry(),
            BenchDisk::Null(null) => DiskGeometry {
                size_bytes: null.size_bytes,
                sector_bytes: 512,
                align_bytes: 512,
                discard: false,
                fua: true,
                read_only: false,
            },
        }
    }

    async fn read(&self, offset: u64, mut buf: Buf) -> (Result<(), IoError>, Buf) {
        match self {
            BenchDisk::Real(disk, _) => disk.read(offset, buf).await,
            BenchDisk::Null(null) => {
                if let Some((kept, at)) = null.kept(offset, buf.len()) {
                    let len = buf.len();
                    buf.copy_from_slice(&kept.lock().expect("not poisoned")[at..][..len]);
                }
                (Ok(()), buf)
            }
        }
    }

    async fn write(&self, offset: u64, data: Vec<Slice>, fua: bool) -> Result<(), IoError> {
        match self {
            BenchDisk::Real(disk, counted) => {
                counted.write(&data);
                disk.write(offset, data, fua).await
            }
            BenchDisk::Null(null) => {
                let mut at = offset;
                for piece in &data {
                    if let Some((kept, start)) = null.kept(at, piece.len()) {
                        kept.lock().expect("not poisoned")[start..][..piece.len()].copy_from_slice(piece);
                    }
                    at += piece.len() as u64;
                }
                Ok(())
            }
        }
    }

    async fn flush(&self) -> Result<(), IoError> {
        match self {
            BenchDisk::Real(disk, counted) => {
                counted.0.flushes.fetch_add(1, Relaxed);
                disk.flush().await
            }
            BenchDisk::Null(_) => Ok(()),
        }
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        match self {
            BenchDisk::Real(disk, _) => disk.discard(offset, len).await,
            BenchDisk::Null(_) => Err(IoError::Unsupported),
        }
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        match self {
            BenchDisk::Real(disk, _) => disk.write_zeroes(offset, len).await,
            BenchDisk::Null(_) => Err(IoError::Unsupported),
        }
    }
}

/// The world of a measured engine.
#[derive(Debug, Clone)]
pub enum BenchEnv {
    /// [`RtEnv`] with these devices.
    Real,
    /// For counting instructions: no ring, and random numbers that are the same every time.
    Quiet(Arc<AtomicU64>),
}

impl Env for BenchEnv {
    type Disk = BenchDisk;

    fn now_ns(&self) -> u64 {
        RtEnv.now_ns()
    }
    fn wall_ns(&self) -> u64 {
        RtEnv.wall_ns()
    }
    fn random_u64(&self) -> u64 {
        match self {
            BenchEnv::Real => RtEnv.random_u64(),
            BenchEnv::Quiet(count) => count.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995,
        }
    }
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        match self {
            BenchEnv::Real => RtEnv.spawn(task),
            BenchEnv::Quiet(_) => BlockingEnv.spawn(task),
        }
    }
    async fn sleep(&self, duration_ns: u64) {
        match self {
            BenchEnv::Real => RtEnv.sleep(duration_ns).await,
            BenchEnv::Quiet(_) => BlockingEnv.sleep(duration_ns).await,
        }
    }
    async fn yield_now(&self) {
        match self {
            BenchEnv::Real => RtEnv.yield_now().await,
            BenchEnv::Quiet(_) => BlockingEnv.yield_now().await,
        }
    }
    fn yield_point(&self) -> impl Future<Output = ()> {
        std::future::ready(())
    }
}
