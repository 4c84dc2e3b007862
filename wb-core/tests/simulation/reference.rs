//! The simplest system that keeps a disk's promises, writing through, and broken relatives that must be caught: this
//! tests generator, driver and oracle without the engine.

use crate::{run_seeds, seeds, seeds_until_found};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use wb_core::env::Env;
use wb_core::io::{Buf, Disk, IoError};
use wb_core::service::{BlockService, PayloadSource, ReadData, ServiceError, ServiceInfo};
use wb_core::sim::offline::Inspection;
use wb_core::sim::scenario::{self, Running, System};
use wb_core::sim::workload::Plan;
use wb_core::sim::{SimDisk, SimEnv};

/// What is wrong with a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// FLUSH is acknowledged at once.
    AckFlushEarly,
    /// FUA is ignored.
    IgnoreFua,
    /// One write in fifty goes nowhere.
    LoseWrite,
    /// Reads come from a copy that writes do not renew.
    StaleRead,
    /// One write in fifty lands a sector further.
    Misdirect,
    /// One request in a hundred is never answered.
    Hang,
    /// One request in a hundred spins.
    Spin,
    /// One request in a hundred fails.
    FailWithoutReason,
    /// Panics after some requests.
    Panic,
}

/// What was read before, by offset and length.
type Copies = BTreeMap<(u64, usize), Vec<u8>>;

#[derive(Clone)]
struct WriteThrough(Bug);

#[derive(Clone)]
struct Through {
    bug: Bug,
    env: SimEnv,
    disk: Arc<SimDisk>,
    requests: Arc<Mutex<Cell<u64>>>,
    copies: Arc<Mutex<Copies>>,
}

fn error(error: IoError) -> ServiceError {
    match error {
        IoError::ReadOnly => ServiceError::ReadOnly,
        _ => ServiceError::Io,
    }
}

impl Through {
    /// Counts a request; the ways to go wrong that all requests have in common.
    async fn begin(&self) -> Result<u64, ServiceError> {
        let count = {
            let requests = self.requests.lock().expect("one thread");
            requests.set(requests.get() + 1);
            requests.get()
        };
        self.env.yield_point().await;
        match self.bug {
            Bug::Hang if count.is_multiple_of(100) => std::future::pending().await,
            Bug::FailWithoutReason if count.is_multiple_of(100) => Err(ServiceError::Io),
            Bug::Panic if count.is_multiple_of(100) => panic!("planted"),
            Bug::Spin if count.is_multiple_of(100) => loop {
                self.env.yield_now().await;
            },
            _ => Ok(count),
        }
    }

    async fn put(&self, offset: u64, buf: Buf, fua: bool) -> Result<(), ServiceError> {
        self.disk.write(offset, vec![buf.freeze()], fua && self.bug != Bug::IgnoreFua).await.map_err(error)
    }
}

impl BlockService for Through {
    fn info(&self) -> ServiceInfo {
        let geometry = self.disk.geometry();
        ServiceInfo { size_bytes: geometry.size_bytes, sector_bytes: geometry.sector_bytes, read_only: false }
    }

    async fn read(&self, offset: u64, len: usize) -> Result<ReadData, ServiceError> {
        self.begin().await?;
        if self.bug == Bug::StaleRead
            && let Some(copy) = self.copies.lock().expect("one thread").get(&(offset, len))
        {
            let mut buf = Buf::unpooled(len);
            buf.copy_from_slice(copy);
            return Ok(ReadData::new(buf, 0, len));
        }
        let (result, buf) = self.disk.read(offset, Buf::unpooled(len)).await;
        result.map_err(error)?;
        self.copies.lock().expect("one thread").insert((offset, len), buf.to_vec());
        Ok(ReadData::new(buf, 0, len))
    }

    async fn write<P: PayloadSource + ?Sized>(
        &self,
        offset: u64,
        len: usize,
        payload: &P,
        fua: bool,
    ) -> Result<(), ServiceError> {
        let count = self.begin().await?;
        let mut buf = Buf::unpooled(len);
        payload.copy_to(0, &mut buf)?;
        let info = self.info();
        let next = offset + u64::from(info.sector_bytes);
        match self.bug {
            Bug::LoseWrite if count.is_multiple_of(50) => Ok(()),
            Bug::Misdirect if count.is_multiple_of(50) && next + len as u64 <= info.size_bytes => {
                self.put(next, buf, fua).await
            }
            _ => self.put(offset, buf, fua).await,
        }
    }

    async fn flush(&self) -> Result<(), ServiceError> {
        self.begin().await?;
        match self.bug {
            Bug::AckFlushEarly => Ok(()),
            _ => self.disk.flush().await.map_err(error),
        }
    }

    async fn discard(&self, offset: u64, len: u64, _fua: bool) -> Result<(), ServiceError> {
        self.begin().await?;
        self.disk.discard(offset, len).await.map_err(error)
    }

    async fn write_zeroes(&self, offset: u64, len: u64, fua: bool) -> Result<(), ServiceError> {
        self.begin().await?;
        self.put(offset, Buf::unpooled(len as usize), fua).await
    }
}

impl Running for Through {
    type Service = Through;
    fn service(&self) -> Through {
        self.clone()
    }
    async fn drain(&self) -> Result<(), String> {
        self.disk.flush().await.map_err(|error| error.to_string())
    }
    async fn stop(&self) -> Result<(), String> {
        self.drain().await
    }
}

impl System for WriteThrough {
    type Running = Through;
    fn cache_bytes(&self, _plan: &Plan) -> u64 {
        4096
    }
    fn survives_kill(&self) -> bool {
        false
    }

    fn keeps_prefix(&self) -> bool {
        false
    }
    async fn format(self, _cache: SimDisk, _plan: Plan) -> Result<(), String> {
        Ok(())
    }
    async fn start(self, env: SimEnv, _cache: SimDisk, backing: SimDisk, _plan: Plan) -> Result<Through, String> {
        // What a killed predecessor wrote is visible; once read it must not be lost.
        backing.flush().await.map_err(|error| error.to_string())?;
        let (requests, copies) = (Arc::default(), Arc::default());
        Ok(Through { bug: self.0, env, disk: Arc::new(backing), requests, copies })
    }
    async fn inspect(self, _cache: SimDisk, _plan: Plan) -> Result<Inspection, String> {
        Ok(Inspection::default())
    }
}

#[test]
fn a_disk_written_through_has_no_violation() {
    run_seeds(&WriteThrough(Bug::None), "write-through", seeds(0..300));
}

#[test]
fn every_broken_relative_is_caught() {
    let bugs = [
        (Bug::AckFlushEarly, 40),
        (Bug::IgnoreFua, 80),
        (Bug::LoseWrite, 20),
        (Bug::StaleRead, 20),
        (Bug::Misdirect, 20),
        (Bug::Hang, 40),
        (Bug::Spin, 40),
        (Bug::FailWithoutReason, 20),
        (Bug::Panic, 20),
    ];
    for (bug, max) in bugs {
        let seeds = seeds_until_found(&WriteThrough(bug), max);
        println!("{bug:?}: found after {seeds:?} seeds");
        assert!(seeds.is_some(), "{bug:?} was not found in {max} seeds");
    }
}

#[test]
fn runs_are_repeatable() {
    for seed in 0..30 {
        let plan = Plan::draw(seed);
        let run = || scenario::run(&WriteThrough(Bug::None), &plan);
        assert_eq!(run(), run(), "seed {seed}");
    }
}
